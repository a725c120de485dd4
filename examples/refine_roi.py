r"""Refine boxes by climbing a score: a network that tells how well a box fits, and gradient ascent on the box.

    python examples/refine_roi.py -o refine-out/                 (a minute)

As in IoU-Net (Jiang et al., 2018) a network learns to predict, from the crop of a box, its overlap (IoU) with the
object. Then the box is moved uphill: the derivative of the score by the crop, times that of the crop by the box. Steps
count in sides of the box, as they do with IoU-Net's scaled gradient (x / w, y / h, log w, log h).

`diffcrop.fit_boxes` is that ascent. The last line of what is printed has antialiasing switched off, in training and in
the ascent: its crop is the one of `affine_grid` and `grid_sample`. A start that overlaps by more than 0.9 tends to get
a little worse: the score is only known so well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.functional import interpolate

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIDE, CROP = 192, 16
CONTEXT = 1.5  # the network sees this much of the surroundings, in sides of the box


def make_scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(count, 1, SIDE, SIDE): an ellipse of coarse grain on a cloudy background, with noise; and its box."""
    numbers = torch.rand(count, 4, generator=generator)
    sides = 48 + 64 * numbers[:, 2:]
    centres = 60 + (SIDE - 120) * numbers[:, :2]
    at = torch.arange(SIDE) + 0.5
    x = (at - centres[:, :1]) / sides[:, :1] * 2
    y = (at - centres[:, 1:]) / sides[:, 1:] * 2
    inside = ((1 - (x[:, None] ** 2 + y[:, :, None] ** 2).sqrt()) * 12).sigmoid()[:, None]

    def noise(cells: int) -> Tensor:
        return interpolate(torch.rand(count, 1, cells, cells, generator=generator), SIDE, mode="bilinear")

    scenes = 0.3 * noise(6) + inside * (0.3 + 0.4 * (noise(48) - 0.5)) + 0.15 * (noise(SIDE) - 0.5)
    return scenes, torch.cat([centres - sides / 2, centres + sides / 2], 1)


def jittered(boxes: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Boxes moved by up to `most` sides, and stretched by factors of up to exp(most), each by an amount of its own."""
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    amount = most * torch.rand(len(boxes), 1, generator=generator)
    move, stretch = 2 * torch.rand(2, len(boxes), 2, generator=generator) - 1
    centres, sides = centres + amount * move * sides, sides * (amount * stretch).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], 1)


def widened(boxes: Tensor, factor: float) -> Tensor:
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * factor
    return torch.cat([centres - halves, centres + halves], 1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared)


def train(scenes: Tensor, truth: Tensor, steps: int, antialias: bool, generator: torch.Generator) -> nn.Module:
    """A network that predicts the IoU of a box from the crop of it with its surroundings."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(32 * (CROP // 2) ** 2, 64), nn.SiLU(),
        nn.Linear(64, 1), nn.Flatten(0),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (96,), generator=generator)
        boxes = jittered(truth[chosen], 0.5, generator)
        crops = diffcrop.crop(scenes[chosen], widened(boxes, CONTEXT), CROP, antialias=antialias)
        loss = (network(crops) - overlap(boxes, truth[chosen])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.eval()


def picture(scenes: Tensor, truth: Tensor, start: Tensor, refined: Tensor, path: Path) -> None:
    """Six scenes of the test set, as they come, and how the overlap changed in all of them."""
    before, after = overlap(start, truth), overlap(refined, truth)
    figure = plt.figure(figsize=(11.5, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.55, 1))
    for index, axes in enumerate(left.subplots(2, 3).flat):
        axes.imshow(scenes[index, 0].numpy(), cmap="gray", extent=(0, SIDE, SIDE, 0))
        for box, colour, style in ((start, "#D55E00", ":"), (refined, "#56B4E9", "-"), (truth, "white", (0, (4, 3)))):
            x0, y0, x1, y1 = box[index].tolist()
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style,
                                     linewidth=2.2 if style == "-" else 1.8))  # fmt: skip
        axes.set_title(f"IoU {before[index]:.2f} to {after[index]:.2f}", fontsize=10)
        axes.set_axis_off()
    left.suptitle("dotted: start, blue: refined, dashed: truth", fontsize=11)
    axes = right.subplots()
    axes.scatter(before.numpy(), after.numpy(), s=10, color="#0072B2", alpha=0.6, linewidth=0)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    axes.set_xlabel("IoU before")
    axes.set_ylabel("IoU after")
    axes.set_title(f"all {len(before)} test scenes: mean {before.mean():.2f} to {after.mean():.2f}", fontsize=11)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Refine boxes by gradient ascent on a predicted overlap.")
    parser.add_argument("-o", "--output", type=Path, default=Path("refine-out"), help="folder for what is written")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the score")
    parser.add_argument("--scenes", type=int, default=2000, help="to train on")
    parser.add_argument("--tests", type=int, default=300)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    generator = torch.Generator().manual_seed(0)
    scenes, truth = make_scenes(options.scenes, generator)
    test_scenes, test_truth = make_scenes(options.tests, generator)
    start = jittered(test_truth, 0.5, generator)
    said = [("start", overlap(start, test_truth))]
    for antialias in (True, False):
        score = train(scenes, truth, options.steps, antialias, generator)
        init = widened(start, CONTEXT)
        fit = diffcrop.fit_boxes(test_scenes, score, init, CROP, steps=60, learning_rate=0.03, antialias=antialias)
        refined = widened(fit.boxes, 1 / CONTEXT)
        said.append(("refined" if antialias else "refined, without antialiasing", overlap(refined, test_truth)))
        if antialias:
            picture(test_scenes, test_truth, start, refined, options.output / "refined.png")
    for name, values in said:
        shares = " / ".join(f"{100 * (values > bound).float().mean():.0f}" for bound in (0.5, 0.7, 0.8, 0.9))
        print(f"{name:30s} mean IoU {values.mean():.3f}, above 0.5 / 0.7 / 0.8 / 0.9: {shares} %")
    print(f"refined.png is in {options.output}")


if __name__ == "__main__":
    main()
