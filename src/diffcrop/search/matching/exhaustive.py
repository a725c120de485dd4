"""Every box of a grid over positions and both sides, scored at once: the global part of `locate`.

Crops are separable, crop = W_y I W_x^T. So n_y intervals of rows and n_x intervals of columns, with the matrices of
each stacked, are n_y n_x boxes in a few matrix products:

    <T, crop> = sum_j (T^T W_y I)_j . (W_x)_j
    sum crop, sum crop^2

Intervals of one length lie so that they share their pixels: each is `SIDE` cells long and begins 1 / `phases` of a cell
after the one before. So the squares are those of all cells, of which there are far fewer than pixels of all crops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

import diffcrop
from diffcrop.search.overlap import iou

# The crops that are compared have so many rows and columns: the more there are, the nearer a candidate must lie.
SIDE = 6
# How fine a grid is, finest first: phases, and octaves from one side to the next. A candidate is off by a quarter of a
# cell or half of one at most, and by about as much at its ends because of its side.
_FINENESS = ((3, 0.17), (2, 0.2), (2, 0.25), (2, 0.3), (2, 0.36), (1, 0.36), (1, 0.42), (1, 0.5))
# The same around a box that is given.
_AROUND = (2, 0.25)
# So many times as many are looked at as are kept, before those that overlap are dropped.
_SPARE = 6
# Residuals that are made together where each of them is looked at: few enough to stay in a cache.
_CHUNK = 1 << 20

Sides = tuple[float, float]


class Level(NamedTuple):
    """The intervals of one length along an axis: ``SIDE phases`` units from ``offset + k unit`` on, k = 0..steps."""

    offset: float
    unit: float
    steps: int


class Axis(NamedTuple):
    """The intervals of an axis of ``extent`` pixels, level by level."""

    extent: int
    phases: int
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return sum(level.steps + 1 for level in self.levels)

    def intervals(self, device: torch.device) -> Tensor:
        """(n, 2), in pixels."""
        length = SIDE * self.phases
        return torch.tensor(
            [
                (offset + k * unit, offset + (k + length) * unit)
                for offset, unit, steps in self.levels
                for k in range(steps + 1)
            ],
            dtype=torch.float64,
            device=device,
        )


class Block(NamedTuple):
    """Intervals of columns and of rows: each pair of them is a candidate."""

    x: Axis
    y: Axis


def least_sides(image: Sides, template: Sides, fixed: bool) -> Sides:
    """The smallest sides that are searched where nobody says: half the template's, but a twelfth of the image's."""
    scales = [max(0.5, side / (12 * own)) for side, own in zip(image, template, strict=True)]
    if fixed:
        scales = [min(scales)] * 2
    return template[0] * scales[0], template[1] * scales[1]


@functools.lru_cache(maxsize=16)
def grid(image: tuple[int, int], low: Sides, high: Sides, fixed: bool, candidates: int) -> tuple[Block, ...] | None:
    """The finest grid of at most so many boxes in an image (width, height); None if the coarsest has more.

    Sides run from ``low`` to ``high``, each axis for itself, or where the aspect is fixed both by the same factor.
    """
    for phases, octaves in _FINENESS:
        blocks = tuple(_blocks(image, low, high, fixed, phases, octaves))
        if sum(len(block.x) * len(block.y) for block in blocks) <= candidates:
            return blocks
    return None


def grid_around(image: tuple[int, int], box: Sequence[float], reach: float, fixed: bool) -> tuple[Block, ...]:
    """Boxes whose centre is at most ``reach`` sides from that of a box, with sides exp(+-reach) of its own."""
    phases, octaves = _AROUND
    axes = []
    for extent, lo, hi in zip(image, box[:2], box[2:], strict=True):
        levels = []
        for side in _geometric((hi - lo) * math.exp(reach), (hi - lo) * math.exp(-reach), octaves):
            unit = side / (SIDE * phases)
            steps = math.floor(2 * reach * (hi - lo) / unit + 1e-9)
            levels.append(Level((lo + hi - side - steps * unit) / 2, unit, steps))
        axes.append(
            [Axis(extent, phases, (level,)) for level in levels] if fixed else [Axis(extent, phases, tuple(levels))]
        )
    return tuple(Block(x, y) for x, y in zip(*axes, strict=True))


def _blocks(
    image: tuple[int, int], low: Sides, high: Sides, fixed: bool, phases: int, octaves: float
) -> Iterator[Block]:
    x, y = (
        [_level(extent, side, phases, fixed) for side in _geometric(top, bottom, octaves)]
        for extent, bottom, top in zip(image, low, high, strict=True)
    )
    if fixed:
        for one, other in zip(x, y, strict=True):
            yield Block(Axis(image[0], phases, (one,)), Axis(image[1], phases, (other,)))
    else:
        # Rounded to steps that fit, two lengths may be one.
        yield Block(*(Axis(n, phases, tuple(dict.fromkeys(levels))) for n, levels in zip(image, (x, y), strict=True)))


def _geometric(top: float, bottom: float, octaves: float) -> list[float]:
    """From the largest down to the smallest, evenly in their logarithms."""
    steps = max(math.ceil(math.log2(top / bottom) / octaves - 1e-6), 1) if top > bottom else 0
    return [top * (bottom / top) ** (i / steps) for i in range(steps)] + [bottom]


def _level(extent: int, side: float, phases: int, exact: bool) -> Level:
    """Intervals of about this length (or exactly), evenly spaced; from edge to edge where the length may change."""
    length = SIDE * phases
    if not exact:
        units = max(round(length * extent / side), length)
        return Level(0.0, extent / units, units - length)
    unit = side / length
    steps = max(math.floor((extent - side) / unit + 1e-9), 0)
    return Level((extent - side - steps * unit) / 2, unit, steps)


class Candidates(NamedTuple):
    """The best of a grid: boxes (..., K, 4) in pixels and their costs (..., K), best first."""

    boxes: Tensor
    costs: Tensor


def best_candidates(
    image: Tensor,
    template: Tensor,
    blocks: tuple[Block, ...],
    keep: int,
    overlap: float,
    metric: str,
    huber: float | None = None,
    *,
    reuse: bool = True,
    allowed: Callable[[Axis, Axis, torch.device], Tensor] | None = None,
) -> Candidates:
    """The ``keep`` best boxes of the grid in one image (C, H, W) for one template (C, h, w).

    Those that are better than their neighbours on the grid, without any that overlaps a better one by more than
    ``overlap`` (intersection over union). Costs are those of `normal_equations` on crops of one channel. With
    ``reuse`` the grid's matrices are kept for the next call. ``allowed`` of a block's axes says which of its boxes
    (n_y, n_x) count at all.
    """
    make = _cells if reuse else _cells.__wrapped__
    width, height = (source_extent([block[axis] for block in blocks]) for axis in (0, 1))
    source, small, unit = _one_channel(resized(image, (height, width)), resized(template, (SIDE, SIDE)))
    boxes, costs = [], []
    for block in blocks:
        x, y = make(block.x, source.shape[1], source.device), make(block.y, source.shape[0], source.device)
        if huber is None:
            cost = _costs(source, small, x, y, metric)
        else:
            cost = _robust_costs(source, small, x, y, huber / unit)
        if allowed is not None:
            cost = torch.where(allowed(*block, source.device), cost, torch.inf)
        # Candidates on a slope lead where their neighbours lead.
        cost = torch.where(cost <= _least_around(cost), cost, torch.inf).flatten()
        found, place = cost.topk(min(_SPARE * keep, len(cost)), largest=False)
        x, y = (axis.intervals(image.device) for axis in block)
        column, row = x[place % len(x)], y[place // len(x)]
        boxes.append(torch.stack([column[:, 0], row[:, 0], column[:, 1], row[:, 1]], 1))
        costs.append(found.to(torch.float64))
    every, cost = torch.cat(boxes), torch.cat(costs)
    cost, order = cost.sort()
    cost, every = cost[: _SPARE * keep], every[order[: _SPARE * keep]]
    kept = distinct(every[None], cost[None], keep, overlap)[0]
    return Candidates(every[kept], cost[kept] * (unit * unit if metric == "l2" else 1))


def _least_around(cost: Tensor) -> Tensor:
    """The least of each element of (n_y, n_x) and its eight neighbours. max_pool2d takes fifty times as long."""
    for dim in (0, 1):
        inner = cost
        cost = cost.clone()
        for ahead, behind in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            at, other = ((slice(None),) * dim + (part,) for part in (ahead, behind))
            torch.minimum(cost[at], inner[other], out=cost[at])
    return cost


def distinct(
    boxes: Tensor, costs: Tensor, keep: int, overlap: float, shared: Callable[[Tensor, Tensor], Tensor] = iou
) -> Tensor:
    """Non-maximum suppression: places (P, keep) of the best boxes (P, K, m) that overlap no better one by more.

    Boxes come best first. Where fewer are left, the best is repeated: results have one shape.
    """
    near = (shared(boxes[:, :, None], boxes[:, None]) > overlap).float().tril(-1)
    # A box is kept if no better one that is kept is near. The first is right at once, then whoever depends on it.
    usable = costs.isfinite()
    kept = usable
    while True:
        again = usable & ~(near @ kept.float()[..., None])[..., 0].bool()
        if torch.equal(again, kept):
            break
        kept = again
    places = torch.argsort(~kept, dim=1, stable=True)[:, :keep]
    return torch.where(kept.gather(1, places), places, places[:, :1])


def source_extent(axes: list[Axis]) -> int:
    """What an axis is reduced to: the cells of the smallest boxes are pixels then."""
    cell = min(level.unit * axis.phases for axis in axes for level in axis.levels)
    return min(axes[0].extent, math.ceil(axes[0].extent / cell))


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """All of each image at another (height, width), by area: means of means are the means of the whole."""
    if tuple(images.shape[-2:]) == size:
        return images
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, device=images.device)
    return diffcrop.crop(images, whole, size, coords="unit", mode="area")


def _one_channel(source: Tensor, template: Tensor) -> tuple[Tensor, Tensor, float]:
    """(H, W) and (h, w) in float32: the combination of channels, of norm 1, in which the template varies most.

    The source's mean is taken off both, and both are divided by a unit, the third result: sums of squares in
    float32 must not be those of a mean that is large beside the contrast.
    """
    source, template = source.to(torch.float64), template.to(torch.float64)
    centred = (template - template.mean((1, 2), keepdim=True)).flatten(1)
    unit = float(centred.square().mean().sqrt()) or 1.0
    colours = centred / unit
    direction = torch.linalg.eigh(colours @ colours.T)[1][:, -1] / unit
    source, template = torch.tensordot(direction, source, 1), torch.tensordot(direction, template, 1)
    middle = source.mean()
    return (source - middle).to(torch.float32), (template - middle).to(torch.float32), unit


class _Cells(NamedTuple):
    """An axis on a source of m pixels: what each cell reads (c, m), and the cells of each interval, (n, SIDE)."""

    weights: Tensor
    members: Tensor

    def rows(self) -> Tensor:
        """What each interval's crop reads, (n, SIDE, m)."""
        return self.weights[self.members]


@functools.lru_cache(maxsize=16)
def _cells(axis: Axis, pixels: int, device: torch.device) -> _Cells:
    """The axis, reduced to so many pixels."""
    starts, ends, members, count = [], [], [], 0
    for offset, unit, steps in axis.levels:
        cells = steps + 1 + (SIDE - 1) * axis.phases
        starts += [offset + k * unit for k in range(cells)]
        ends += [offset + (k + axis.phases) * unit for k in range(cells)]
        members += [[count + k + i * axis.phases for i in range(SIDE)] for k in range(steps + 1)]
        count += cells
    scale = pixels / axis.extent
    boxes = torch.zeros(count, 4, dtype=torch.float64, device=device)
    ends_of_cells = torch.tensor([starts, ends], dtype=torch.float64, device=device) * scale
    boxes[:, 0], boxes[:, 2], boxes[:, 3] = *ends_of_cells, float(pixels)
    unit_image = torch.eye(pixels, dtype=torch.float32, device=device)[None]
    weights = diffcrop.crop(unit_image, boxes, (pixels, 1), mode="area")[:, 0, :, 0]
    return _Cells(weights.contiguous(), torch.tensor(members, device=device))


def _costs(source: Tensor, template: Tensor, x: _Cells, y: _Cells, metric: str) -> Tensor:
    """(n_y, n_x): half the squared difference ("l2"), or one minus the correlation ("zncc"), of every candidate."""
    count = SIDE * SIDE
    centred = template - template.mean()
    across, down = x.rows(), y.rows()
    # T^T W_y I, then its product with W_x, both summed over their axis of the crop.
    left = torch.einsum("ij,yih->yjh", centred, down).flatten(0, 1) @ source
    products = left.view(len(down), -1) @ across.flatten(1).T
    cells = (y.weights @ source) @ x.weights.T
    mean = _sums(cells, x, y) / count
    variance = _sums(cells.square_(), x, y) - count * mean * mean
    energy = centred.square().sum()
    if metric == "zncc":
        # What varies by less than the rounding of these sums correlates with nothing.
        least = 1e-6 * count * source.square().mean() + torch.finfo(source.dtype).tiny
        return 1 - products / (variance.clamp(min=least) * energy.clamp(min=least)).sqrt()
    return (variance.clamp(min=0) + energy) / 2 - products + count / 2 * (mean - template.mean()).square()


def _robust_costs(source: Tensor, template: Tensor, x: _Cells, y: _Cells, huber: float) -> Tensor:
    """(n_y, n_x): the sum of Huber's function of every candidate's differences, which no product gives."""
    cells = (y.weights @ source) @ x.weights.T
    each = max(_CHUNK // (SIDE * x.members.numel()), 1)
    parts = []
    for members in y.members.split(each):
        crops = cells[members][:, :, x.members]  # (n, SIDE, n_x, SIDE)
        off = crops.sub_(template[:, None, :]).abs_()
        near = off.clamp(max=huber)
        parts.append((near * (off - near / 2)).sum((1, 3)))
    return torch.cat(parts)


def _sums(cells: Tensor, x: _Cells, y: _Cells) -> Tensor:
    """Sums over the cells of every candidate, (n_y, n_x)."""
    rows = embedding_bag(y.members, cells, mode="sum")
    return embedding_bag(x.members, rows.T.contiguous(), mode="sum").T
