"""How an antialiased warp is made: of which reduced image, with how many samples to an output. Pure.

Where a box reduces its image, the longest steps between its neighbouring outputs are s_x and s_y image pixels along u
and v (the largest over the crop's corners and centre), the shortest of both the least over these. The box reads level l
of its image, which is the whole image reduced by 2^l with `area`, the largest l with 2^l <= shortest / `OVERSAMPLING`.
There its reductions are s / 2^l, rounded to 1 / `UNIT`, and the warp takes ceil(s / 2^l) samples of it to an output and
axis, which the mode's filter weighs. Where that would exceed `MOST_SAMPLES` the level is raised: the shorter axis is
blurred rather than the longer one aliased.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._options import MOST_SAMPLES, UNIT, WarpOptions

OVERSAMPLING = 4.0
# Of levels, which are powers of two.
_SLACK = 2.0**-32


class Plan(NamedTuple):
    """For each box its ``level`` (R,) and its ``reductions`` (R, 2) along x and y there, at least `UNIT`, which is 1.

    Both are int64 and without derivatives.
    """

    level: Tensor
    reductions: Tensor


def plan(matrices: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> Plan:
    """What serves boxes (R, 3, 3) of this output size. Boxes that are not finite count as not reduced."""
    h, w = size
    matrices = matrices.detach().to(torch.float32 if matrices.device.type == "mps" else torch.float64)
    points = [(0.0, 0.0), (w, 0.0), (0.0, h), (w, h), (0.5 * w, 0.5 * h)]
    place = torch.tensor([(u, v, 1.0) for u, v in points], dtype=matrices.dtype, device=matrices.device)
    x, y, z = (matrices @ place.T).unbind(1)  # (R, points)
    front = z * torch.where(z[:, -1:] < 0, -1.0, 1.0) > 0
    below = torch.where(front, z, 1.0)
    a = matrices[..., :2, None]
    # d(X/Z)/du = (dX/du - X/Z dZ/du) / Z, and so on.
    steps = [(a[:, row] - t[:, None] / below[:, None] * a[:, 2]) / below[:, None] for row, t in enumerate((x, y))]
    top = float(2 ** levels(image_size))
    # More than `top` is as good as that, and has a square. (`hypot` does not go to ONNX.)
    both = torch.stack(steps).clamp(-2 * top, 2 * top).square().sum(0).sqrt().mT  # (R, points, 2)
    sound = torch.isfinite(both) & front[..., None]
    longest = torch.where(sound, both, 0.0).amax(1).clamp(1.0, top)
    shortest = torch.where(sound, both, math.inf).amin((1, 2)).clamp(1.0, top)
    # How many powers of two, counted: what a logarithm rounds to differs from one library to the next.
    powers = 2.0 ** torch.arange(levels(image_size), dtype=matrices.dtype, device=matrices.device)
    fine, coarse = shortest / OVERSAMPLING * (1 + _SLACK), longest.amax(1) / MOST_SAMPLES * (1 - _SLACK)
    level = torch.maximum((fine[:, None] >= 2 * powers).sum(1), (coarse[:, None] > powers).sum(1))
    reductions = (longest * torch.exp2(-level)[:, None] * UNIT).round().clamp(UNIT, MOST_SAMPLES * UNIT)
    known = torch.isfinite(matrices).flatten(1).all(1)
    return Plan(torch.where(known, level, 0).long(), torch.where(known[:, None], reductions, UNIT).long())


def levels(image_size: tuple[int, int]) -> int:
    """The last level, at which an axis has no more than one pixel left."""
    return max(math.ceil(math.log2(max(image_size))), 0)


def reduced(image_size: tuple[int, int], level: int) -> tuple[int, int]:
    """The size of a level, without its margin."""
    h, w = image_size
    return max(-(-h // 2**level), 1), max(-(-w // 2**level), 1)


class Level(NamedTuple):
    """Which ``box`` (xyxy, as `crop` has it) of the image a level is, its ``size``, and the map of positions to it."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    scale: tuple[float, float]
    shift: tuple[float, float]


def level(image_size: tuple[int, int], number: int, options: WarpOptions) -> Level:
    """A level is the image that `area` makes of the padded image: the padding of the one continues the other.

    Under border a pixel is added all around, which is what surrounds the image: else its blurred edge would do.
    """
    h, w = reduced(image_size, number)
    height, width = image_size
    if options.padding_mode == "reflection" and options.align_corners:
        # The mirrors are centres of pixels, and stay so. Positions scale about the first of them.
        x, y = ((n - 1) / (N - 1) if N > 1 else 1.0 for n, N in ((w, width), (h, height)))
        return Level((0.0, 0.0, width - 1.0, height - 1.0), (h, w), (x, y), (0.5 - 0.5 * x, 0.5 - 0.5 * y))
    x, y = w / width, h / height
    margin = 1 if options.padding_mode == "border" else 0
    box = (-margin / x, -margin / y, width + margin / x, height + margin / y)
    return Level(box, (h + 2 * margin, w + 2 * margin), (x, y), (float(margin), float(margin)))


def on_level(matrices: Tensor, level: Level) -> Tensor:
    """The matrices as they read that level: differentiable."""
    matrices = matrices.to(torch.float32 if matrices.device.type == "mps" else torch.float64)
    (a, b), (c, d) = level.scale, level.shift
    x, y, z = matrices.unbind(-2)
    return torch.stack([a * x + c * z, b * y + d * z, z], -2)


def by_whole(jacobian: Tensor, level: Level) -> Tensor:
    """From derivatives by matrices that read the level to those by the same matrices of the image: (..., 2 or 3, 3)."""
    (a, b), (c, d) = level.scale, level.shift
    x, y, *rest = jacobian.unbind(-2)
    return torch.stack([a * x, b * y, *(z + c * x + d * y for z in rest)], -2)
