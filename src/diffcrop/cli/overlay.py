"""The picture of `diffcrop locate`: the scene with the box on it, and how well the crop there is the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

import diffcrop
from diffcrop.cli.pictures import DPI, SEARCH_COLOUR, bare, draw_quad, show_crop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# All in inches.
_MARGIN = 0.2
_SCENE = (8.0, 7.0)
_SIDE = 2.6
_PANEL = 1.9
_TITLE = 0.28
_HEADER, _FOOTER = 0.45, 0.6
# Scenes that are wider for their height have the three small pictures below them and not beside.
_WIDE = 2.0
# A box that is drawn smaller would be lost without a circle round it.
_TINY = 0.25


def overlay_picture(
    scene: Tensor,
    compared: Tensor,
    template: Tensor,
    box: Sequence[float],
    mode: str,
    title: str,
    texts: Sequence[str],
    *,
    found: bool,
    unit: float | None,
    matched: bool,
) -> Image.Image:
    """Draw it. `scene` (C, H, W) is what is shown; crops are made of `compared`, which has the template's channels.

    What was not `found` is drawn with a dashed line. `unit` is white, None for float pixels. With `matched` the
    difference is that of crop and template with the same mean and contrast.
    """
    size = (template.shape[1], template.shape[2])
    crops = diffcrop.crop_rotated if len(box) == 5 else diffcrop.crop
    crop = crops(compared, torch.tensor(box, dtype=torch.float64), size, mode=mode)
    low, high = _limits(unit, compared, template)
    difference, factor = _difference(crop, template, high - low, matched=matched)

    corners = _corners(box)
    frame = _frame(corners, scene.shape[2], scene.shape[1])
    ratio = (frame[2] - frame[0]) / (frame[3] - frame[1])
    beside = ratio <= _WIDE
    if beside:
        width = min(_SCENE[0], _SCENE[1] * ratio)
        height = width / ratio
        body = max(height, 3 * _PANEL)
        wide = 3 * _MARGIN + width + _SIDE
        small = [(2 * _MARGIN + width, i * body / 3, _SIDE, body / 3) for i in range(3)]
    else:
        width = _SCENE[0] + _SIDE
        height = width / ratio
        body = height + _MARGIN + _PANEL
        wide = 2 * _MARGIN + width
        small = [(_MARGIN + i * width / 3, height + _MARGIN, width / 3 - _MARGIN, _PANEL) for i in range(3)]
    tall = _HEADER + body + _FOOTER
    figure = Figure(figsize=(wide, tall), dpi=DPI)

    def axes(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / wide, 1 - (_HEADER + top + height) / tall, width / wide, height / tall))

    place = axes(_MARGIN, (body - height) / 2 if beside else 0, width, height)
    black, white = _limits(unit, scene)
    _draw_scene(place, (scene - black) / (white - black), corners, frame, width, "-" if found else "--")
    amplified = "" if factor == 1 else f" x{factor}"
    names = ("template", "crop at the box", f"{'matched ' if matched else ''}difference{amplified}")
    shown = ((template - low) / (high - low), (crop - low) / (high - low), difference)
    for (left, top, w, h), name, pixels in zip(small, names, shown, strict=True):
        show_crop(axes(left, top + _TITLE, w, h - _TITLE - 0.06), pixels.expand(3, -1, -1), name)
    figure.text(_MARGIN / wide, 1 - 0.12 / tall, title, fontsize=13, va="top")
    figure.text(_MARGIN / wide, 0.1 / tall, "\n".join(texts), fontsize=9.5, va="bottom", color="#333333")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _corners(box: Sequence[float]) -> Tensor:
    """(4, 2): the corners of a box, turned or not, with the crop's top left first."""
    if len(box) == 5:
        return diffcrop.rotated_to_quads(torch.tensor(box, dtype=torch.float64))
    x0, y0, x1, y1 = box
    return torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=torch.float64)


def _around(corners: Tensor) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = corners.amin(0).tolist(), corners.amax(0).tolist()
    return x0, y0, x1, y1


def _frame(corners: Tensor, width: int, height: int) -> tuple[float, float, float, float]:
    """What part of the plane is shown: the scene, and of the box what lies less than half a scene outside."""
    x0, y0, x1, y1 = _around(corners)
    return (
        min(0.0, max(x0, -width / 2)),
        min(0.0, max(y0, -height / 2)),
        max(float(width), min(x1, 1.5 * width)),
        max(float(height), min(y1, 1.5 * height)),
    )


def _draw_scene(
    axes: Axes, scene: Tensor, corners: Tensor, frame: tuple[float, float, float, float], inches: float, line: str
) -> None:
    height, width = scene.shape[1:]
    # No more pixels than the picture has: matplotlib would make copies of all of them.
    scale = min(1.0, inches * DPI / width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shown = scene if scale == 1 else diffcrop.crop(scene, torch.tensor([0.0, 0, width, height]), size)
    pixels = shown.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)
    # This extent puts pixel (r, c) on [c, c+1] x [r, r+1], which is what a box's numbers mean.
    axes.imshow(pixels.numpy(), extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axes.set_xlim(frame[0], frame[2])
    axes.set_ylim(frame[3], frame[1])
    bare(axes)
    # A line on the frame's edge would lose its outer half.
    x0, y0, x1, y1 = _around(corners)
    inside = frame[0] <= x0 and frame[1] <= y0 and frame[2] >= x1 and frame[3] >= y1
    draw_quad(axes, corners, edgecolor=SEARCH_COLOUR, linewidth=2.5, linestyle=line, clip_on=not inside)
    unit = (frame[2] - frame[0]) / inches
    if max(x1 - x0, y1 - y0) < _TINY * unit:
        centre = ((x0 + x1) / 2, (y0 + y1) / 2)
        ring = Circle(centre, 1.5 * _TINY * unit, fill=False, edgecolor=SEARCH_COLOUR, linewidth=2)
        ring.set_path_effects([withStroke(linewidth=4, foreground="white")])
        axes.add_patch(ring)


def _limits(unit: float | None, *images: Tensor) -> tuple[float, float]:
    """What is black and what is white: of float photographs their extremes."""
    if unit is not None:
        return 0.0, unit
    low, high = min(float(image.amin()) for image in images), max(float(image.amax()) for image in images)
    return low, high if high > low else low + 1


def _difference(crop: Tensor, template: Tensor, top: float, *, matched: bool) -> tuple[Tensor, int]:
    """Crop minus template round a middle grey, 0 to 1, and by which power of two it was enlarged to be seen."""
    if matched:
        centred, wanted = (pixels - pixels.mean((1, 2), keepdim=True) for pixels in (crop, template))
        norm = float(centred.norm())
        difference = centred * (float(wanted.norm()) / norm if norm else 0.0) - wanted
    else:
        difference = crop - template
    difference = difference / top
    # The largest hundredth may be cut off. Not torch's quantile, which takes 16 million numbers at most.
    strength = float(np.quantile(difference.abs().numpy(), 0.99))
    factor = 2 ** min(max(math.floor(math.log2(0.5 / strength)), 0), 6) if strength > 0 else 1
    return 0.5 + difference * factor, factor
