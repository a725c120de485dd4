"""The global part of `locate` where the template may be turned: the grid of upright boxes, in the image turned back.

The image is resampled once for each angle, at as many pixels as the search looks at, and searched as it is for upright
boxes. Candidates of all angles then compete by their costs, which are those of the same template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import diffcrop

from . import exhaustive
from .exhaustive import Axis, Block, Candidates
from .poses import matrices

# Degrees from one angle to the next: half of it moves a corner of a box of `exhaustive.SIDE` cells by a third of one.
STEP = 9.0
# Boxes that leave the image by more than this part of it were not cropped from it.
_MARGIN = 0.05
# Pixels of the turned image in those that are compared.
_PER_PIXEL = 2.0


class Canvas(NamedTuple):
    """A part of an image, of ``sides`` (x, y) pixels around ``centre`` (x, y), which is turned."""

    centre: tuple[float, float]
    sides: tuple[int, int]


def angles(low: float, high: float) -> list[float]:
    """From low to high degrees, evenly; a whole turn is not closed."""
    count = math.ceil((high - low) / STEP - 1e-9)
    if high - low >= 360:
        return [low + 360 * i / count for i in range(count)]
    return [low + (high - low) * i / max(count, 1) for i in range(count + 1)]


def best_candidates(
    image: Tensor,
    template: Tensor,
    canvas: Canvas,
    blocks: tuple[Block, ...],
    turns: Sequence[float],
    keep: int,
    overlap: float,
    metric: str,
    huber: float | None = None,
    *,
    reuse: bool = True,
) -> Candidates:
    """The ``keep`` best boxes (cx, cy, w, h, angle) of each of the ``turns``, of all of which the best come first."""
    # Along each side as many as its own cells need: a long box is no reason to look at its width closely.
    extents = [exhaustive.source_extent([block[axis] for block in blocks]) for axis in (0, 1)]
    across, down = (math.ceil(_PER_PIXEL * extent) for extent in extents)
    # Reduced once for all angles; a turned crop of it hardly reduces its finer side further.
    height, width = image.shape[-2:]
    shrink = min(max(across / canvas.sides[0], down / canvas.sides[1]), 1.0)
    small = exhaustive.resized(image, (max(math.ceil(height * shrink), 1), max(math.ceil(width * shrink), 1)))
    scale = (small.shape[-1] / width, small.shape[-2] / height)
    whole = torch.tensor([*canvas.centre, *canvas.sides, 0.0], dtype=torch.float64, device=image.device)
    found = []
    for turn in turns:
        whole[4] = turn
        matrix, _ = matrices(whole[None], (down, across), scale)
        turned = diffcrop.warp(small, matrix[0], (down, across), padding_mode="border")
        allowed = _inside(canvas, turn, (width, height))
        best = exhaustive.best_candidates(
            turned, template, blocks, keep, overlap, metric, huber, reuse=reuse, allowed=allowed
        )
        found.append(Candidates(_turned(best.boxes, canvas, turn), best.costs))
    boxes, costs = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = costs.argsort()
    return Candidates(boxes[order], costs[order])


def _turned(boxes: Tensor, canvas: Canvas, turn: float) -> Tensor:
    """Boxes (x0, y0, x1, y1) of the canvas as those of the image."""
    centre = (boxes[:, :2] + boxes[:, 2:] - torch.tensor(canvas.sides, dtype=boxes.dtype, device=boxes.device)) / 2
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    x = canvas.centre[0] + cos * centre[:, 0] + sin * centre[:, 1]
    y = canvas.centre[1] - sin * centre[:, 0] + cos * centre[:, 1]
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.stack([x, y, sides[:, 0], sides[:, 1], torch.full_like(x, turn)], 1)


def _inside(canvas: Canvas, turn: float, extent: tuple[int, int]) -> Callable[[Axis, Axis, torch.device], Tensor]:
    """Which boxes (n_y, n_x) of the canvas lie in the image, all but a margin."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))

    def allowed(columns: Axis, rows: Axis, device: torch.device) -> Tensor:
        x, y = (axis.intervals(device).to(torch.float32) for axis in (columns, rows))
        u, v = (ends.mean(1) - side / 2 for ends, side in zip((x, y), canvas.sides, strict=True))
        w, h = (ends[:, 1] - ends[:, 0] for ends in (x, y))
        result = torch.ones((), dtype=torch.bool, device=device)
        # Along x of the image, then along y: the centre, and half of what the turned box takes.
        parts = ((cos, sin, canvas.centre[0], extent[0]), (-sin, cos, canvas.centre[1], extent[1]))
        for by_u, by_v, middle, length in parts:
            half_x, half_y = abs(by_u) * w / 2, abs(by_v) * h / 2
            margin = 2 * _MARGIN
            low = (middle + by_u * u - (1 - margin) * half_x) + (by_v * v - (1 - margin) * half_y)[:, None]
            high = (middle + by_u * u + (1 - margin) * half_x) + (by_v * v + (1 - margin) * half_y)[:, None]
            result = result & (low >= 0) & (high <= length)
        return result

    return allowed
