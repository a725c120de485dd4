"""From candidates to the one box of each template: coarse to fine, then filter by filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import exhaustive
from .marquardt import levenberg_marquardt
from .poses import Pose

# Coarse to fine: the side of the crops that are compared, how many boxes are refined, and for how many steps.
STAGES = ((8, 64, 8), (16, 32, 6), (32, 8, 5), (128, 3, 5), (512, 3, 5))
# Those that are compared at the template's own size: as many as its pixels allow, within limits.
_FINAL_PIXELS, _FEWEST, _MOST = 4096, 2, 16
# Each of them takes so many steps there with the first filter, and from there so many with each other one. Then the
# best box goes on, with the filter that explains it best.
_FINAL, _OTHERS = 4, 2
# Boxes that overlap more (intersection over union) after they were refined are one.
_SAME = 0.9
# In those stages a crop's pixel has so many of the source's in each direction, unless the image has fewer.
_PER_PIXEL = 2.0
# Steps smaller than this, in pixels of the crop, are not worth another there.
_ROUGHLY = 0.02


class Path(NamedTuple):
    """K boxes (P, K, m) of each problem, losses and whether they settled (P, K), and all steps so far (n, P, K, m)."""

    boxes: Tensor
    losses: Tensor
    settled: Tensor
    steps: Tensor

    def take(self, places: Tensor) -> Path:
        """Those at places (P, K')."""
        box = places[..., None].expand(-1, -1, self.boxes.shape[-1])
        steps = self.steps.gather(2, box.expand(len(self.steps), -1, -1, -1))
        return Path(self.boxes.gather(1, box), self.losses.gather(1, places), self.settled.gather(1, places), steps)

    def best(self, keep: int, pose: Pose) -> Path:
        """The ``keep`` of least loss that differ, least first; NaN comes last."""
        ordered = self.take(self.losses.nan_to_num(torch.inf).argsort(1))
        return ordered.take(exhaustive.distinct(ordered.boxes, ordered.losses, keep, _SAME, pose.overlap))


def start(boxes: Tensor) -> Path:
    """Paths that begin at boxes (P, K, m), in the order of how good they are thought to be."""
    rank = torch.arange(boxes.shape[1], dtype=boxes.dtype, device=boxes.device).expand(boxes.shape[:2])
    return Path(boxes, rank, torch.zeros_like(rank, dtype=torch.bool), boxes[None])


class Matcher(NamedTuple):
    """P = B T problems, T templates in each of B images: images (B, C, H, W), templates (P, C, h, w).

    ``options`` are those of `diffcrop.normal_equations`. Where the aspect is fixed, boxes keep the template's.
    """

    images: Tensor
    templates: Tensor
    options: dict[str, Any]
    fixed: bool
    pose: Pose

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the templates."""
        return self.templates.shape[-2], self.templates.shape[-1]

    @property
    def coarse_metric(self) -> str:
        """What candidates are compared by before their filter is known.

        A template that is hardly larger than the crops that are compared has the contrast its filter left it, of which
        areas know nothing; only its shape can be relied on.
        """
        height, width = self.size
        small = (height * width) ** 0.5 < 1.5 * STAGES[0][0]
        return "zncc" if small and self.options["huber"] is None else self.options["metric"]

    def basis(self) -> Tensor | None:
        """How a box may change, as columns (m, n); None where it is free."""
        return self.pose.basis(self.size, self.images.device) if self.fixed else None

    def coarse_to_fine(self, path: Path, least: tuple[float, float], given: Path | None = None) -> Path:
        """Refine at ever larger sizes, ever fewer boxes, to those that are worth the templates' own size.

        ``least``: the smallest sides (x, y) of boxes to be expected, which the sources must resolve. Those that are
        ``given`` begin anew at each stage, as what a small size says may lead away from a good one.
        """
        height, width = self.size
        whole = (height * width) ** 0.5
        finalists = min(max(_FINAL_PIXELS // (height * width), _FEWEST), _MOST)
        whole_areas = self._replace(options={**self.options, "antialias": True, "metric": self.coarse_metric})
        stages = [stage for stage in STAGES if stage[0] < 0.75 * whole] or [STAGES[0]]
        for i, (side, _, steps) in enumerate(stages):
            size = tuple(max(round(n * min(side / whole, 1.0)), 1) for n in self.size)
            if given is not None and path is not given:
                path = _joined(path, given)
            source = exhaustive.resized(self.images, self._source_size(size, least))
            wanted = exhaustive.resized(self.templates, size)
            path = whole_areas.refine(path, source, wanted, "area", steps, _ROUGHLY)
            path = path.best(stages[i + 1][1] if i + 1 < len(stages) else finalists, self.pose)
        return path if given is None else _joined(path, given)

    def best_filter(self, path: Path, names: Sequence[str], iterations: int, tolerance: float) -> tuple[Path, Tensor]:
        """The one box of each problem (P, 1), and which of the filters explains its template best (P,)."""
        size = (self.images, self.templates)
        path = self.refine(path, *size, names[0], min(_FINAL, iterations), tolerance)
        others = [self.refine(path, *size, name, min(_OTHERS, iterations), tolerance) for name in names[1:]]
        each = [one.best(1, self.pose) for one in (path, *others)]
        which = torch.cat([one.losses for one in each], 1).nan_to_num(torch.inf).argmin(1)
        for i, name in enumerate(names):
            if iterations > _FINAL and bool((which == i).any()):
                each[i] = self.refine(each[i], *size, name, iterations - _FINAL, tolerance)
        return _of_each(each, which), which

    def refine(self, path: Path, images: Tensor, targets: Tensor, mode: str, steps: int, tolerance: float) -> Path:
        """Go on from each box on images that may be reduced, against (P, C, h, w); the size of a step as there."""
        problems, keep = path.boxes.shape[:2]
        row = torch.arange(problems * keep, device=images.device)
        index = row // (keep * (problems // len(images)))
        wanted = targets[:, None].expand(-1, keep, -1, -1, -1).flatten(0, 1)
        vertical, horizontal = (n / m for n, m in zip(images.shape[2:], self.images.shape[2:], strict=True))
        options = {**self.options, "mode": mode}
        equations = self.pose.equations(images, wanted, index, (horizontal, vertical), options)
        boxes = path.boxes.flatten(0, 1)
        pixels = self.pose.pixels(boxes, (targets.shape[-2], targets.shape[-1]))
        descent = levenberg_marquardt(equations, boxes, self.pose.units, pixels, steps, tolerance, self.basis())
        shape = (problems, keep)
        return Path(
            descent.boxes.unflatten(0, shape),
            descent.losses.unflatten(0, shape),
            descent.settled.unflatten(0, shape),
            torch.cat([path.steps, descent.path[1:].unflatten(1, shape)]),
        )

    def _source_size(self, size: Sequence[int], least: Sequence[float]) -> tuple[int, int]:
        """(h, w) that the images are reduced to for crops of this size, or their own."""
        extents = self.images.shape[-2:]
        height, width = (
            min(extent, math.ceil(_PER_PIXEL * n * extent / side))
            for extent, n, side in zip(extents, size, reversed(least), strict=True)
        )
        return height, width


def _joined(path: Path, other: Path) -> Path:
    """The boxes of both; the other one has waited for the missing steps."""
    return Path(
        torch.cat([path.boxes, other.boxes], 1),
        torch.cat([path.losses, other.losses], 1),
        torch.cat([path.settled, other.settled], 1),
        torch.cat([path.steps, _waited(other, len(path.steps))], 2),
    )


def _waited(path: Path, steps: int) -> Tensor:
    """All steps of a path, led by its beginning until they are so many."""
    missing = steps - len(path.steps)
    return torch.cat([path.steps[:1].expand(missing, -1, -1, -1), path.steps])


def _of_each(paths: Sequence[Path], which: Tensor) -> Path:
    """Of paths of one box (P, 1) the one that is named for each problem. Those that took fewer steps waited first."""
    longest = max(len(path.steps) for path in paths)
    rows = torch.arange(len(which), device=which.device)

    def chosen(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))[which, rows]

    return Path(
        chosen([path.boxes for path in paths]),
        chosen([path.losses for path in paths]),
        chosen([path.settled for path in paths]),
        chosen([_waited(path, longest).transpose(0, 1) for path in paths]).transpose(0, 1),
    )
