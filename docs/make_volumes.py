"""Draws docs/images/volumes.png: slices of a small volume and of its crops, and where their box gradients point.

    python docs/make_volumes.py

The volume is made by a formula: vessels and shells of 128^3 voxels, with grain. A box of it is cropped to 20^3, by
`diffcrop.crop` and by `affine_grid` and 5-D `grid_sample`, and compared with the means over each output's cell of
voxels. On the right, the angle between the negative gradient of the squared difference to the crop at the true box and
the way there, from boxes displaced at random by 2 to 20 % of a side: less than 90 degrees is toward the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIDE, SIZE = 128, 20
BOX = torch.tensor([4.0, 4.0, 4.0, 124.0, 124.0, 124.0])  # x0, y0, z0, x1, y1, z1: a reduction of 6
COLOURS = {"diffcrop": "#0072B2", "grid_sample": "#D55E00"}


def volume() -> Tensor:
    """(1, D, H, W): a shell, bent vessels, a zone plate, and grain."""
    generator = torch.Generator().manual_seed(0)
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 3, indexing="ij")
    radius = (x**2 + (1.2 * y) ** 2 + (0.9 * z) ** 2).sqrt()
    made = 0.35 * torch.sigmoid((0.85 - radius) * 40) + 0.25 * torch.exp(-(((radius - 0.78) / 0.03) ** 2))
    for phase in range(7):
        from_x = x - 0.55 * torch.cos(2.5 * z + phase) * torch.cos(torch.tensor(1.7 * phase))
        from_y = y - 0.55 * torch.sin(2.0 * z + 2 * phase)
        made = made + 0.6 * torch.exp(-(from_x**2 + from_y**2) / 0.001) * (radius < 0.8)
    chirp = torch.cos(150 * ((x - 0.3) ** 2 + (y + 0.3) ** 2 + (z - 0.1) ** 2))
    made = made + 0.25 * chirp * (((x - 0.3) ** 2 + (y + 0.3) ** 2 + (z - 0.1) ** 2) < 0.16)
    return (made + 0.2 * torch.randn(made.shape, generator=generator))[None]


def recipe(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    theta = diffcrop.boxes_to_theta(boxes / SIDE * 2 - 1, coords="normalized")
    grid = affine_grid(theta, [len(boxes), len(image), size, size, size], align_corners=False)
    return grid_sample(image.expand(len(boxes), -1, -1, -1, -1), grid, padding_mode="border", align_corners=False)


SAMPLERS = {"diffcrop": diffcrop.crop, "grid_sample": recipe}


def angles(sampler, image: Tensor, count: int) -> Tensor:
    """Degrees between the negative gradient and the way to the true box."""
    generator = torch.Generator().manual_seed(1)
    target = sampler(image, BOX[None], SIZE)
    way = torch.randn(count, 6, generator=generator)
    share = 0.02 + 0.18 * torch.rand(count, 1, generator=generator)
    boxes = BOX + way / way.norm(dim=1, keepdim=True) * share * (BOX[3] - BOX[0])
    result = []
    for part in boxes.split(8):
        given = part.clone().requires_grad_()
        (sampler(image, given, SIZE) - target).square().sum().backward()
        result.append(torch.nn.functional.cosine_similarity(-given.grad, BOX - part))
    return torch.rad2deg(torch.acos(torch.cat(result)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).with_name("images")
    parser.add_argument("-o", "--out", type=Path, default=here, help="where to put the picture")
    parser.add_argument("--count", type=int, default=200, help="displaced boxes")
    given = parser.parse_args()
    image = volume()
    crops = {name: sampler(image, BOX[None], SIZE)[0, 0] for name, sampler in SAMPLERS.items()}
    cells = image[0, 4:124, 4:124, 4:124].reshape(SIZE, 6, SIZE, 6, SIZE, 6).mean((1, 3, 5))
    columns = {
        f"volume, {SIDE}$^3$": image[0, 4:124, 4:124, 4:124],
        f"means of cells, {SIZE}$^3$": cells,
        "diffcrop": crops["diffcrop"],
        "grid_sample": crops["grid_sample"],
    }
    figure = plt.figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 5, width_ratios=[1, 1, 1, 1, 1.2])
    for column, (name, solid) in enumerate(columns.items()):
        middle = len(solid) * 11 // 20
        for row, (across, part) in enumerate((("z", solid[middle]), ("y", solid[:, middle]))):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(part.numpy(), cmap="gray", vmin=-0.05, vmax=0.95, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(name, fontsize=10)
            if column == 0:
                axes.set_ylabel(f"a slice across {across}", fontsize=10)
    axes = figure.add_subplot(grid[:, 4])
    for name, sampler in SAMPLERS.items():
        found = angles(sampler, image, given.count)
        error = (crops[name] - cells).square().mean().sqrt()
        right = 100 * float((found < 90).float().mean())
        print(
            f"{name}: {right:.0f} % toward the truth, median {found.median():.0f} degrees, off the means by {error:.3f}"
        )
        bins = np.linspace(0, 180, 19)
        label = f"{name}: {right:.0f} %"
        axes.hist(found.numpy(), bins=bins, histtype="stepfilled", alpha=0.55, color=COLOURS[name], label=label)
    axes.axvline(90, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="degrees off the way to the truth", yticks=[], xticks=[0, 45, 90, 135, 180])
    axes.legend(fontsize=9, title="toward the truth")
    axes.set_title("negative box gradients", fontsize=10)
    given.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out / "volumes.png")


if __name__ == "__main__":
    main()
