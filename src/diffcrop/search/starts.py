"""Where a search begins, and which of its paths go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcrop.search.overlap import iou

__all__ = ["distinct_best", "offsets", "spread_out"]

# Of two paths that overlap more than this (intersection over union) one is enough.
_SAME_IOU = 0.7


def offsets(count: int, spread: float, generator: torch.Generator | None) -> Tensor:
    """(count, 4) numbers in -spread .. spread that fill their cube evenly: scrambled Sobol points.

    The first of them do not depend on how many there are. No generator but the one given is touched.
    """
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
    if not count:
        return torch.zeros(0, 4, dtype=torch.float64, device="cpu")
    with torch.device("cpu"):
        points = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    return spread * (2 * points - 1)


def spread_out(
    boxes: Tensor, moves: Tensor, extents: Sequence[float], *, min_size: float, inside: bool, aspect: float | None
) -> Tensor:
    """Pixel ``xyxy`` boxes (K, 4), each moved by all of ``moves`` (S, 4): (S, K, 4), within the bounds.

    Centres move by (moves 0 and 1) sides, sides by the factors exp(moves 2 and 3), or exp(move 2) both under a fixed
    aspect. Centres stay in the image, where at least some of the box sees it, unless the box itself began beyond.
    """
    limits = torch.tensor(extents, dtype=boxes.dtype, device=boxes.device)
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    grown = sides * moves[:, None, (2, 2) if aspect is not None else (2, 3)].exp()
    if aspect is None:
        grown = grown.clamp(min=min_size)
        grown = grown.minimum(limits) if inside else grown
    else:
        grown = grown * (min_size / grown).amax(-1, keepdim=True).clamp(min=1)
        grown = grown * (limits / grown).amin(-1, keepdim=True).clamp(max=1) if inside else grown
    moved = centre + moves[:, None, :2] * sides
    low, high = (grown / 2, limits - grown / 2) if inside else (centre.clamp(max=0), centre.maximum(limits))
    moved = moved.maximum(low).minimum(high)
    return torch.cat([moved - grown / 2, moved + grown / 2], -1)


def distinct_best(boxes: Tensor, scores: Tensor, keep: int) -> Tensor:
    """Indices (keep, K) of the best starts of each box, of those that are nearly the same only the best.

    ``boxes`` are (S, K, 4), ``scores`` (S, K). Near copies and scores that are not finite come last, in this order.
    """
    starts, count = scores.shape
    every = torch.arange(count, device=scores.device)
    # Ranks instead of scores: they can be shifted without rounding.
    usable = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    order = usable.argsort(dim=0, descending=True, stable=True)
    rank = order.argsort(dim=0)
    rank = rank + 2 * starts * (~scores.isfinite())
    chosen = []
    for _ in range(keep):
        best = rank.argmin(0)
        chosen.append(best)
        copies = iou(boxes, boxes[best, every]) > _SAME_IOU
        rank = rank + starts * copies
        rank[best, every] = 10 * starts * starts
    return torch.stack(chosen)
