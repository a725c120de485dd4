"""Draws docs/images/roi_align.png: where RoIAlign reads a photograph, and what it makes of it.

python docs/make_roi_align.py
"""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

BINS = 4
BOX = torch.tensor([[3.4, 3.2, 20.6, 14.9]])  # pixels of the reduced photograph
BLUE = "#0072B2"


def photograph() -> Tensor:
    """(1, 3, 20, 24) in [0, 1]: the face of chelsea.jpg, small enough for pixels to be seen."""
    path = files("diffcrop.cli") / "photos" / "chelsea.jpg"
    with Image.open(io.BytesIO(path.read_bytes())) as picture:
        pixels = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(2, 0) / 255
    height, width = pixels.shape[1:]
    box = torch.tensor([0.12 * width, 0.05 * height, 0.12 * width + height * 0.9 * 1.2, 0.95 * height])
    return diffcrop.crop(pixels, box, (20, 24), mode="area")[None]


def draw(axes: plt.Axes, image: Tensor, title: str) -> None:
    height, width = image.shape[-2:]
    axes.imshow(image[0].movedim(0, 2).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    x0, y0, x1, y1 = BOX[0].tolist()
    for i in range(BINS + 1):
        axes.plot([x0 + i / BINS * (x1 - x0)] * 2, [y0, y1], color=BLUE, linewidth=2 if i in (0, BINS) else 0.8)
        axes.plot([x0, x1], [y0 + i / BINS * (y1 - y0)] * 2, color=BLUE, linewidth=2 if i in (0, BINS) else 0.8)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([]), axes.set_yticks([])


def samples(lo: float, hi: float, count: int) -> Tensor:
    return lo + (torch.arange(BINS * count) + 0.5) / (BINS * count) * (hi - lo)


def main() -> None:
    """Where samples lie, and the result beside it."""
    image = photograph()
    x0, y0, x1, y1 = BOX[0].tolist()
    adaptive = tuple(int(np.ceil(side / BINS)) for side in (x1 - x0, y1 - y0))
    figure, rows = plt.subplots(2, 3, figsize=(9.2, 5.8), gridspec_kw={"height_ratios": [1.35, 1]})
    cases = [
        ("sampling_ratio=1", (1, 1), {"sampling_ratio": 1}),
        (f"sampling_ratio=-1: {adaptive[0]} x {adaptive[1]}", adaptive, {}),
        ('mode="exact": the whole bin', None, {"mode": "exact"}),
    ]
    for (title, counts, options), above, below in zip(cases, rows[0], rows[1], strict=True):
        draw(above, image, title)
        if counts is None:
            above.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color="white", alpha=0.35, linewidth=0))
        else:
            x, y = torch.meshgrid(samples(x0, x1, counts[0]), samples(y0, y1, counts[1]), indexing="xy")
            above.plot(
                x.flatten(),
                y.flatten(),
                "o",
                color="white",
                markeredgecolor="black",
                markeredgewidth=0.6,
                markersize=3.5,
            )
        result = diffcrop.roi_align(image, [BOX], BINS, aligned=True, **options)
        below.imshow(result[0].movedim(0, 2).clamp(0, 1).numpy(), aspect=(y1 - y0) / (x1 - x0), interpolation="nearest")
        below.set_xticks([]), below.set_yticks([])
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "images" / "roi_align.png", dpi=90)


if __name__ == "__main__":
    main()
