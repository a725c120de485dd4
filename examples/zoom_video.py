r"""A zoom into a photograph that moves by fractions of a pixel, as an animated GIF.

    python examples/zoom_video.py -o zoom-out/

All frames are one call: `diffcrop.crop` with a box for each. Boxes need not lie on whole pixels, so nothing trembles,
and the filter is as wide as each frame's own reduction, so nothing flickers at the far end. Cutting whole pixels out
and resizing them, with the best filter there is, jumps by up to half a pixel of the photograph, which is magnified with
it: `zoom.png` shows one line of pixels through time for both.

Two details make a zoom look even. Sides shrink by the same *factor* per frame, or the end rushes by. And a point must
stay where it is in the frame: the corner moves in proportion to the side.
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

SIZE = 192
# Two boxes in the photograph of 512 x 512: all of it, and an eye. What lies at EYE does not move in between.
EYE = (204.0, 99.0)
START, END = (0.0, 0.0, 512.0, 512.0), (188.1, 91.3, 228.1, 131.3)
LINE = round(EYE[1] / 512 * SIZE)


def zoom_path(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """(frames, 4): square boxes from `start` to `end`, at an even speed of zoom, about a fixed point."""
    first, last = start[2] - start[0], end[2] - end[0]
    sides = first * (last / first) ** torch.linspace(0, 1, frames)
    way = ((first - sides) / (first - last))[:, None]  # 0 to 1, not evenly
    corners = start[:2] + way * (end[:2] - start[:2])
    return torch.cat([corners, corners + sides[:, None]], 1)


def smooth(photo: Image.Image, boxes: Tensor) -> np.ndarray:
    """(frames, SIZE, SIZE, 3) of uint8, by diffcrop."""
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    # Lanczos overshoots at edges, so it is clamped before it is rounded.
    return diffcrop.crop(pixels, boxes, SIZE, mode="lanczos3").round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def sliced(photo: Image.Image, boxes: Tensor) -> np.ndarray:
    """The same frames of whole pixels: round, cut, resize."""
    cuts = [photo.crop(tuple(box)) for box in boxes.round().int().tolist()]
    return np.stack([np.array(cut.resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for cut in cuts])


def picture(ours: np.ndarray, theirs: np.ndarray, path: Path) -> None:
    """Frames on the way, and one line of pixels by time."""
    chosen = np.linspace(0, len(ours) - 1, 4).astype(int)
    figure = plt.figure(figsize=(11, 6.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    for axes, frame in zip(upper.subplots(1, 4), chosen, strict=True):
        axes.imshow(ours[frame])
        axes.axhline(LINE, color="#0072B2", linewidth=1)
        axes.set_title(f"frame {frame}", fontsize=10)
        axes.set_axis_off()
    late = slice(len(ours) // 2, None)
    left, right = lower.subplots(1, 2)
    for axes, frames, title in ((left, theirs, "whole pixels, cut and resized"), (right, ours, "diffcrop")):
        axes.imshow(frames[late, LINE], aspect="auto", interpolation="nearest", extent=(0, SIZE, len(ours), late.start))
        axes.set_title(f"the blue line through time: {title}", fontsize=11)
        axes.set_xlabel("pixel of the line")
        axes.set_ylabel("frame")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def tremble(frames: np.ndarray) -> float:
    """How much a frame differs from the mean of its neighbours, in grey levels: 0 for an even motion."""
    values = frames[2 * len(frames) // 3 :].astype(np.float32)
    return float(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="A sub-pixel zoom into a photograph.")
    parser.add_argument("-o", "--output", type=Path, default=Path("zoom-out"), help="folder for what is written")
    parser.add_argument("--frames", type=int, default=90)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    with (files("diffcrop.cli") / "photos" / "astronaut.jpg").open("rb") as stream:
        photo = Image.open(stream).convert("RGB")
    boxes = zoom_path(torch.tensor(START), torch.tensor(END), options.frames)
    ours, theirs = smooth(photo, boxes), sliced(photo, boxes)
    picture(ours, theirs, options.output / "zoom.png")
    there_and_back = [Image.fromarray(frame) for frame in (*ours, *ours[-2:0:-1])]
    # One palette for all: colours that change from frame to frame would flicker.
    palette = Image.fromarray(np.concatenate(ours[:: len(ours) // 6 or 1])).quantize(128)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in there_and_back)
    first.save(options.output / "zoom.gif", save_all=True, append_images=others, duration=50, loop=0)
    print(f"frame against the mean of its neighbours: {tremble(ours):.2f} grey levels, "
          f"cut at whole pixels {tremble(theirs):.2f}")  # fmt: skip
    print(f"zoom.gif and zoom.png are in {options.output}")


if __name__ == "__main__":
    main()
