"""Where the refinement begins: the best boxes of grids over whole images, or around boxes that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import arguments, exhaustive, turns
from .coarse_to_fine import STAGES, Matcher
from .exhaustive import Block, Candidates

# Candidates that overlap more (intersection over union) are one.
_NEAR = 0.6
# Of each angle so many are kept where boxes are turned: those of the true one meet with those of its neighbours.
_OF_A_TURN = 24

Sides = tuple[float, float]


def of_the_whole(
    matcher: Matcher, limits: Sides | None, budgets: Sequence[int], angles: tuple[float, float] | None
) -> tuple[Candidates, Sides]:
    """The best boxes of each whole image, (P, K, m), and the smallest sides that were searched.

    ``limits`` are those of the scales, ``budgets`` numbers of candidates of which the first that does is taken, and
    ``angles`` the least and the greatest in degrees, None where boxes are upright.
    """
    extent, size = (matcher.images.shape[-1], matcher.images.shape[-2]), (matcher.size[1], matcher.size[0])
    least = exhaustive.least_sides(extent, size, matcher.fixed)
    low, high = arguments.searched(extent, size, matcher.fixed, limits, least)
    if angles is None:
        blocks = _grid(extent, low, high, matcher.fixed, budgets)
        return _stacked([_upright(matcher, p, blocks) for p in range(len(matcher.templates))]), low
    # Along and across a turned box are neither along nor across the image.
    if not matcher.fixed:
        low, high = (min(low), min(low)), (max(high), max(high))
    side = math.ceil(math.hypot(*extent))
    square = (side, side)
    canvas = turns.Canvas((extent[0] / 2, extent[1] / 2), square)
    blocks = _grid(square, low, high, matcher.fixed, budgets)
    every = turns.angles(*angles)
    found = [_turned(matcher, p, canvas, blocks, every, True) for p in range(len(matcher.templates))]
    return _stacked(found), (min(low), min(low))


def around(matcher: Matcher, boxes: Tensor, reach: float) -> tuple[Candidates, Sides]:
    """The best boxes in reach of each start (P, m), and the smallest sides among them."""
    turned = matcher.pose.numbers == 5
    sides = matcher.pose.units(boxes)[:, :2]
    across, down = (sides.amin(0) * math.exp(-reach)).tolist()
    shorter = min(across, down)
    least = (shorter, shorter) if turned else (across, down)
    if reach == 0:
        costs = torch.full((len(boxes), 1), torch.nan, dtype=torch.float64, device=boxes.device)
        return Candidates(boxes[:, None], costs), least
    height, width = matcher.images.shape[-2:]
    found = []
    for p, box in enumerate(boxes.tolist()):
        if not turned:
            blocks = exhaustive.grid_around((width, height), box, reach, matcher.fixed)
            found.append(_upright(matcher, p, blocks, reuse=False))
            continue
        x, y, w, h, angle = box
        # All boxes of the grid lie in it.
        across, down = (math.ceil(side * (2 * reach + math.exp(reach))) for side in (w, h))
        own = [(across - w) / 2, (down - h) / 2, (across + w) / 2, (down + h) / 2]
        blocks = exhaustive.grid_around((across, down), own, reach, matcher.fixed)
        every = turns.angles(angle - math.degrees(reach), angle + math.degrees(reach))
        found.append(_turned(matcher, p, turns.Canvas((x, y), (across, down)), blocks, every, False))
    return _stacked(found), least


def _grid(extent: tuple[int, int], low: Sides, high: Sides, fixed: bool, budgets: Sequence[int]) -> tuple[Block, ...]:
    grids = (exhaustive.grid(extent, low, high, fixed, budget) for budget in budgets)
    blocks = next((grid for grid in grids if grid is not None), None)
    if blocks is None:
        raise ValueError(
            f"candidates={budgets[-1]} are too few to search boxes of {low[0]:.4g}x{low[1]:.4g} to "
            f"{high[0]:.4g}x{high[1]:.4g} pixels (width, height); allow more, or narrow scales"
        )
    return blocks


def _upright(matcher: Matcher, problem: int, blocks: tuple[Block, ...], reuse: bool = True) -> Candidates:
    image, template = _pair(matcher, problem)
    metric, huber = matcher.coarse_metric, matcher.options["huber"]
    return exhaustive.best_candidates(image, template, blocks, STAGES[0][1], _NEAR, metric, huber, reuse=reuse)


def _turned(
    matcher: Matcher,
    problem: int,
    canvas: turns.Canvas,
    blocks: tuple[Block, ...],
    angles: Sequence[float],
    reuse: bool,
) -> Candidates:
    image, template = _pair(matcher, problem)
    metric, huber = matcher.coarse_metric, matcher.options["huber"]
    found = turns.best_candidates(
        image, template, canvas, blocks, angles, _OF_A_TURN, _NEAR, metric, huber, reuse=reuse
    )
    keep = 2 * STAGES[0][1]
    return Candidates(found.boxes[:keep], found.costs[:keep])


def _pair(matcher: Matcher, problem: int) -> tuple[Tensor, Tensor]:
    each = len(matcher.templates) // len(matcher.images)
    return matcher.images[problem // each], matcher.templates[problem]


def _stacked(found: Sequence[Candidates]) -> Candidates:
    """Of several problems in one, as many for each as for that with the fewest."""
    keep = min(len(f.costs) for f in found)
    return Candidates(*(torch.stack([part[:keep] for part in parts]) for parts in zip(*found, strict=True)))
