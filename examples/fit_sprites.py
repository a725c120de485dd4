r"""Find where overlapping sprites lie in a picture, by gradient descent on their boxes through `diffcrop.paste`.

    python examples/fit_sprites.py -o sprites-out/                 (a minute)

A picture shows a few sprites of known appearance on a known background, one over the other, smaller than they were
drawn. Wanted are their places and sizes. All boxes start displaced, the picture is pasted anew at every step, and the
squared difference to what is seen moves the boxes. The other method is the usual recipe: `affine_grid` with the inverse
Theta and `grid_sample` for every sprite on a canvas of its own, blended in the same order. It reads four pixels of a
sprite however much that is reduced.

The picture itself is made by neither of them: it is drawn eight times as large, where every sprite is enlarged, and
averaged. Errors are in pixels of the picture, the largest of the four sides of a box.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIDE, SPRITE, COUNT, FINER = 96, 128, 4, 8
Paste = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def make_sprites(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colours (count, COUNT, 3, SPRITE, SPRITE), grained in two sizes, and their soft round alpha."""

    def noise(cells: int) -> Tensor:
        cells_of = torch.rand(count * COUNT, 3, cells, cells, generator=generator)
        return interpolate(cells_of, SPRITE, mode="bicubic").unflatten(0, (count, COUNT))

    colors = (0.5 * torch.rand(count, COUNT, 3, 1, 1, generator=generator) + 0.4 * noise(5) + 0.3 * noise(80)).clamp(
        0, 1
    )
    at = (torch.arange(SPRITE) + 0.5) / SPRITE * 2 - 1
    radius = (at[:, None] ** 2 + at**2).sqrt()
    alpha = ((0.92 - radius) * 24).sigmoid().expand(count, COUNT, 1, SPRITE, SPRITE)
    return colors, alpha.contiguous()


def make_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes (count, COUNT, 4) that overlap their neighbours, of 14 to 34 pixels."""
    sides = 14 + 20 * torch.rand(count, COUNT, 2, generator=generator)
    ring = (torch.arange(COUNT) + torch.rand(count, 1, generator=generator)) * (2 * torch.pi / COUNT)
    centres = SIDE / 2 + 17 * torch.stack([ring.cos(), ring.sin()], -1)
    centres = centres + 8 * (torch.rand(count, COUNT, 2, generator=generator) - 0.5)
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def displaced(boxes: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Every box moved by `amount` of its side in a random direction, and stretched by up to that."""
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    angle = 2 * torch.pi * torch.rand(boxes.shape[:-1], generator=generator)
    centres = centres + amount * sides * torch.stack([angle.cos(), angle.sin()], -1)
    sides = sides * (amount * (2 * torch.rand(sides.shape, generator=generator) - 1)).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def paste(colors: Tensor, alpha: Tensor, boxes: Tensor, canvas: Tensor) -> Tensor:
    """What this package does."""
    return diffcrop.paste(colors, boxes, canvas=canvas, alpha=alpha)


def recipe(colors: Tensor, alpha: Tensor, boxes: Tensor, canvas: Tensor) -> Tensor:
    """The usual way: each sprite on a canvas of its own, then one over the other."""
    count, _, height, width = canvas.shape
    (x0, y0, x1, y1), zero = boxes.flatten(0, 1).unbind(-1), torch.zeros(boxes.shape[0] * boxes.shape[1])
    rows = (
        [width / (x1 - x0), zero, (width - x0 - x1) / (x1 - x0)],
        [zero, height / (y1 - y0), (height - y0 - y1) / (y1 - y0)],
    )
    theta = torch.stack([torch.stack(row, -1) for row in rows], 1)
    layers = torch.cat([colors * alpha, alpha], 2).flatten(0, 1)
    grid = affine_grid(theta, [len(layers), 4, height, width], align_corners=False)
    placed = grid_sample(layers, grid, align_corners=False).unflatten(0, (count, -1))
    for k in range(placed.shape[1]):
        canvas = (1 - placed[:, k, 3:]) * canvas + placed[:, k, :3]
    return canvas


METHODS: dict[str, Paste] = {"diffcrop.paste": paste, "recipe": recipe}


def picture_of(colors: Tensor, alpha: Tensor, boxes: Tensor, background: Tensor) -> Tensor:
    """Drawn `FINER` times as large and averaged."""
    large = interpolate(background, scale_factor=FINER, mode="nearest")
    return torch.cat(
        [
            avg_pool2d(recipe(c[None], a[None], FINER * b[None], below[None]), FINER)
            for c, a, b, below in zip(colors, alpha, boxes, large, strict=True)
        ]
    )


def fit(method: Paste, seen: Tensor, sprites: tuple[Tensor, Tensor], background: Tensor, start: Tensor, steps: int):
    """The boxes after every step (steps + 1, count, COUNT, 4): Adam on centres, in sides, and logarithms of sides."""
    centres, sides = (start[..., :2] + start[..., 2:]) / 2, start[..., 2:] - start[..., :2]
    moves = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([moves], lr=0.04)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    path = []
    for _ in range(steps + 1):
        at, half = centres + moves[..., :2] * sides, sides * moves[..., 2:].exp() / 2
        boxes = torch.cat([at - half, at + half], -1)
        path.append(boxes.detach())
        optimizer.zero_grad()
        # A sum over the pictures: none of them slows down another.
        (method(*sprites, boxes, background) - seen).square().mean((1, 2, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    return torch.stack(path)


def errors(boxes: Tensor, truth: Tensor) -> Tensor:
    """The largest of the four sides, for each sprite."""
    return (boxes - truth).abs().amax(-1).flatten()


def summary(found: Tensor) -> dict[str, float]:
    """Median error, and the shares of sprites within half a pixel and within a tenth of one."""
    return {
        "median": round(float(found.median()), 4),
        "within_0.5": round(100 * float((found < 0.5).float().mean()), 1),
        "within_0.1": round(100 * float((found < 0.1).float().mean()), 1),
    }


def table(results: dict) -> str:
    """The errors as docs/paste.md shows them."""
    lines = [
        (
            f"{results['pictures']} pictures of {results['sprites']} sprites, {results['steps']} steps: median error "
            "in pixels (share of sprites within 0.5 px / within 0.1 px)."
        ),
        "",
        "| start, in sides of the box | " + " | ".join(("start", *METHODS)) + " |",
        "| --- | --- | --- | --- |",
    ]
    for amount, found in results["starts"].items():
        cells = [
            f"{one['median']:.3f} ({one['within_0.5']:.0f} / {one['within_0.1']:.0f} %)"
            for one in (found[name] for name in ("start", *METHODS))
        ]
        lines.append(f"| {amount} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(scene: int, sprites, background, seen, truth, paths, path: Path) -> None:
    """One picture: what is seen, the start, some steps and the end of both methods."""
    steps = len(next(iter(paths.values()))) - 1
    shown = [0, steps // 16, steps // 4, steps]
    figure, axes = plt.subplots(len(paths), 1 + len(shown), figsize=(2.6 * (1 + len(shown)), 5.6), layout="constrained")
    one = slice(scene, scene + 1)
    for row, (name, boxes) in zip(axes, paths.items(), strict=True):
        pictures = [("seen, and the truth", seen[scene], truth[scene])]
        for step in shown:
            with torch.no_grad():
                now = METHODS[name](sprites[0][one], sprites[1][one], boxes[step, one], background[one])[0]
            worst = float(errors(boxes[step, one], truth[one]).max())
            pictures.append((f"{name}, step {step}: {worst:.2f} px", now, boxes[step, scene]))
        for ax, (title, image, corners) in zip(row, pictures, strict=True):
            ax.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), extent=(0, SIDE, SIDE, 0), interpolation="nearest")
            for k, (x0, y0, x1, y1) in enumerate(corners.tolist()):
                ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=f"C{k + 1}", linewidth=1.2))
            ax.set_title(title, fontsize=8)
            ax.set_axis_off()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the boxes of overlapping sprites by gradient descent.")
    parser.add_argument("-o", "--output", type=Path, default=Path("sprites-out"), help="folder for what is written")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    generator = torch.Generator().manual_seed(0)
    sprites = make_sprites(options.pictures, generator)
    truth = make_boxes(options.pictures, generator)
    background = 0.3 * interpolate(torch.rand(options.pictures, 3, 6, 6, generator=generator), SIDE, mode="bicubic")
    with torch.no_grad():
        seen = picture_of(*sprites, truth, background)
    results = {"pictures": options.pictures, "sprites": COUNT, "steps": options.steps, "starts": {}}
    for amount in (0.1, 0.2, 0.4):
        start = displaced(truth, amount, generator)
        results["starts"][str(amount)] = {"start": summary(errors(start, truth))}
        paths = {}
        for name, method in METHODS.items():
            began = time.perf_counter()
            paths[name] = fit(method, seen, sprites, background, start, options.steps)
            milliseconds = 1000 * (time.perf_counter() - began) / (options.steps + 1)
            found = summary(errors(paths[name][-1], truth))
            results["starts"][str(amount)][name] = found
            print(
                f"start {100 * amount:.0f} % of the side away, {name:14s}: median error {found['median']:.3f} px, "
                f"within 0.5 px {found['within_0.5']:.0f} %, within 0.1 px {found['within_0.1']:.0f} %, "
                f"{milliseconds:.1f} ms a step"
            )
        if amount == 0.2:
            draw(0, sprites, background, seen, truth, paths, options.output / "fit_sprites.png")
    (options.output / "fit_sprites.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"fit_sprites.png and fit_sprites.json are in {options.output}")


if __name__ == "__main__":
    main()
