"""Draws docs/images/paste.png: where patches come to lie, what they cover, and in which order.

python docs/make_paste.py
"""

from __future__ import annotations

import argparse
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


def photograph(name: str) -> Tensor:
    with (files("diffcrop.cli") / "photos" / f"{name}.jpg").open("rb") as stream:
        pixels = np.array(Image.open(stream).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of docs/paste.md.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    cat = diffcrop.crop(photograph("chelsea"), torch.tensor([30.0, 0.0, 330.0, 300.0]), 240, mode="area")
    face = torch.tensor([60.0, 60.0, 190.0, 150.0])
    patch = diffcrop.crop(cat, face, (90, 130))
    back = diffcrop.paste(1 - patch, face, canvas=cat)

    at = torch.linspace(-1, 1, 96)
    alpha = ((0.85 - (at[:, None] ** 2 + at**2).sqrt()) * 16).sigmoid().expand(4, 1, 96, 96)
    sprites = diffcrop.crop(cat, face, 96).expand(4, 3, 96, 96) * torch.tensor(
        [[1.0, 0.4, 0.4], [0.4, 1.0, 0.4], [0.5, 0.6, 1.2], [1.2, 1.1, 0.3]]
    ).view(4, 3, 1, 1)
    boxes = torch.tensor(
        [
            [10.0, 20.0, 150.0, 160.0],
            [90.0, 60.0, 230.0, 170.0],
            [150.0, 110.0, 60.0, 230.0],
            [190.0, 180.0, 270.0, 260.0],
        ]
    )
    canvas = torch.full((3, 240, 240), 0.15)
    over, mask = diffcrop.paste(sprites, boxes, canvas=canvas, alpha=alpha, return_mask=True)
    added = diffcrop.paste(sprites / 2, boxes, canvas=canvas, alpha=alpha, blend="add")

    dot = torch.ones(1, 5, 5)
    write = diffcrop.paste(dot, torch.tensor([4.3, 4.3, 15.6, 15.6]), 20, mode="gaussian", blend="add")
    soft = diffcrop.paste(dot, torch.tensor([4.3, 4.3, 15.6, 15.6]), 20)
    small = diffcrop.paste(diffcrop.crop(cat, face, 96), torch.tensor([4.2, 3.7, 14.2, 13.7]), 20)
    rough = diffcrop.paste(diffcrop.crop(cat, face, 96), torch.tensor([4.2, 3.7, 14.2, 13.7]), 20, antialias=False)

    shown = [
        ("a crop, inverted and pasted back", back, face[None]),
        ("over: later patches on top, mirrored, cut", over, boxes),
        ("the mask", mask, boxes),
        ("add", added, boxes),
        ("5 x 5 ones, bilinear: what a pixel covers", soft, None),
        ('mode="gaussian": write attention', write, None),
        ("96 pixels into 10, antialiased", small, None),
        ("the same without antialiasing", rough, None),
    ]
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for ax, (title, picture, places) in zip(axes.flat, shown, strict=True):
        image = picture.clamp(0, 1).permute(1, 2, 0).numpy()
        side = image.shape[0]
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(0, side, side, 0), interpolation="nearest")
        for k, (x0, y0, x1, y1) in enumerate([] if places is None else places.tolist()):
            ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=f"C{k}", linewidth=1.2))
        ax.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])
        ax.set_title(title, fontsize=9)
    figure.savefig(output / "paste.png", dpi=70)
    plt.close(figure)
    print(f"paste.png is in {output}")


if __name__ == "__main__":
    main()
