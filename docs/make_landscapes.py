"""Draws docs/images/loss_landscapes.png: the loss of a crop around the true box, and which of its gradients mislead.

    python docs/make_landscapes.py

A photograph, a true box, the crop there as target. The loss of another box is the mean squared difference of its crop
and the target. Boxes are moved along x and enlarged about their centre; everything is in units of the true box. A
gradient points wrong where a small step against it increases the distance to the true box. Half of all directions do,
so half is what chance gives.
"""

from __future__ import annotations

import argparse
import io
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BOX = torch.tensor([236.0, 64.0, 396.0, 224.0])  # of coffee.jpg: the cup
REACH, FIELD, FINE = 0.5, 19, 121
COLOURS = {"affine_grid + grid_sample": "#D55E00", "diffcrop": "#0072B2"}


def recipe(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    theta = diffcrop.boxes_to_theta(boxes / torch.tensor([width, height] * 2) * 2 - 1, coords="normalized")
    grid = affine_grid(theta, [len(boxes), len(image), size, size], align_corners=False)
    images = image.expand(len(boxes), -1, -1, -1)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


SAMPLERS = {"affine_grid + grid_sample": recipe, "diffcrop": diffcrop.crop}


def displaced(way: Tensor) -> Tensor:
    """(N, 2), shift along x in sides and logarithm of the scale -> boxes (N, 4)."""
    centre, side = (BOX[:2] + BOX[2:]) / 2, BOX[2] - BOX[0]
    centres = centre + torch.stack([way[:, 0] * side, torch.zeros(len(way))], 1)
    halves = side / 2 * way[:, 1:].exp()
    return torch.cat([centres - halves, centres + halves], 1)


def losses(sampler, image: Tensor, target: Tensor, way: Tensor) -> Tensor:
    crops = [sampler(image, displaced(part), target.shape[-1]) for part in way.split(512)]
    return (torch.cat(crops) - target).square().mean((1, 2, 3))


def places(count: int) -> Tensor:
    """(count * count, 2), rows by scale."""
    line = torch.linspace(-REACH, REACH, count)
    return torch.cartesian_prod(line, line).flip(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    with (files("diffcrop.cli") / "photos" / "coffee.jpg").open("rb") as stream:
        picture = Image.open(stream).convert("RGB")
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    figure = plt.figure(figsize=(11.5, 8.4), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(1, 1, 1))
    side = float(BOX[2] - BOX[0])
    for row, reduction in zip(axes, (4, 16), strict=True):
        size = round(side / reduction)
        curves = row[2]
        for place, (name, sampler) in zip(row, SAMPLERS.items(), strict=False):
            target = sampler(image, BOX[None], size)
            fine = losses(sampler, image, target, places(FINE)).view(FINE, FINE)
            way = places(FIELD).requires_grad_()
            (slope,) = torch.autograd.grad(losses(sampler, image, target, way).sum(), way)
            way, down = way.detach(), -slope
            home = way.norm(dim=1) > 1e-6
            wrong = ((down * -way).sum(1) < 0) & home
            down = down / down.norm(dim=1, keepdim=True).clamp(min=1e-12)
            place.imshow(fine.numpy(), origin="lower", extent=(-REACH, REACH, -REACH, REACH), cmap="bone",
                         norm=PowerNorm(0.5, vmin=-0.02, vmax=0.1))  # fmt: skip
            for which, colour in ((~wrong & home, "#1b5fa8"), (wrong, "#E8201A")):
                place.quiver(*way[which].T.numpy(), *down[which].T.numpy(), color=colour, angles="xy", pivot="mid",
                             scale=23, width=0.0065, headwidth=4.5, headlength=5)  # fmt: skip
            place.plot(0, 0, "+", color="white", markersize=11, markeredgewidth=2)
            share = wrong.sum() / home.sum()
            place.set_title(f"{name}\n{share:.0%} of the arrows point wrong", fontsize=10.5, color=COLOURS[name])
            place.set_xlabel("moved along x, in sides")
            place.set_ylabel("log of the scale")
            line = torch.stack([torch.linspace(-REACH, REACH, 801), torch.zeros(801)], 1)
            curve = losses(sampler, image, target, line)
            curves.plot(line[:, 0].numpy(), curve.numpy(), color=COLOURS[name], linewidth=1.6, label=name)
            print(f"reduction {reduction:2d}  {name:26s} {share:.3f} of {int(home.sum())} gradients point wrong")
        curves.set_title("the loss along x alone", fontsize=10.5)
        curves.set_xlabel("moved along x, in sides")
        curves.set_ylim(0, 0.15)
        curves.spines[["top", "right"]].set_visible(False)
        curves.legend(frameon=False, fontsize=8.5, loc="upper center")
        row[0].annotate(f"{size} x {size} from {side:.0f} x {side:.0f}: reduction {reduction}", (-0.42, 0.5),
                        xycoords="axes fraction", rotation=90, va="center", ha="center", fontsize=12)  # fmt: skip
    figure.suptitle("Loss (dark: small) and downhill direction around the true box (+); red points away from it")
    options.output.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=80)
        # 128 colours are enough for it, and a third of the size.
        Image.open(stream).convert("RGB").quantize(128).save(options.output / "loss_landscapes.png", optimize=True)


if __name__ == "__main__":
    main()
