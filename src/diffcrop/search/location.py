"""`locate`: where in an image a template comes from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import diffcrop

from .arguments import count, number
from .matching import arguments, exhaustive
from .matching.coarse_to_fine import STAGES, Matcher, Path, start
from .matching.exhaustive import Candidates

# The filters that are tried where none is named: those that image programs use.
MODES = ("bilinear", "bicubic", "lanczos3", "area")
# Where nobody says how many: the first of these that a grid can do with. The first takes 6 ms or so in a photograph.
_CANDIDATES = tuple(400_000 * 4**i for i in range(5))
# Scales are asked for where boxes are small and details count. The last takes some GB.
_CANDIDATES_OF_SCALES = tuple(4_000_000 * 4**i for i in range(4))
# Candidates that overlap more (intersection over union) are one.
_NEAR = 0.6
# The crop must explain so much of the template's variance, or it is not what was looked for.
_EXPLAINED = 0.5


class LocateTrace(NamedTuple):
    """How `locate` came to its answer.

    ``candidates`` (..., K, 4) with their ``costs`` (..., K): what the search proposed, best first (``init``, with NaN,
    where ``reach`` is 0). ``boxes`` (n, ..., 4): the path from a candidate to the answer. ``modes`` (...): which of the
    filters in ``names`` was chosen.
    """

    candidates: Tensor
    costs: Tensor
    boxes: Tensor
    modes: Tensor
    names: tuple[str, ...]


class Location(NamedTuple):
    """What `locate` returns."""

    box: Tensor
    residual: Tensor
    converged: Tensor
    covariance: Tensor
    trace: LocateTrace


def locate(
    image: Tensor,
    template: Tensor,
    *,
    init: Tensor | Sequence[Any] | None = None,
    mode: str | Sequence[str] = MODES,
    metric: str = "l2",
    aspect: str = "free",
    scales: tuple[float, float] | None = None,
    reach: float | None = None,
    candidates: int | None = None,
    iterations: int = 20,
    tolerance: float = 1e-4,
    huber: float | None = None,
    antialias: bool = True,
    padding_mode: str = "border",
    impl: str | None = None,
) -> Location:
    """Find the box of an image that a template was cropped from, of unknown place and scale, to parts of a pixel.

    Without ``init`` the whole image is searched. Crops are separable, so a few matrix products score hundreds of
    thousands of boxes, places and both sides, at 6 x 6 pixels in the one combination of channels in which the template
    varies most. The best that do not overlap are refined in all channels by Levenberg and Marquardt's method with the
    exact Jacobian of the crop (`normal_equations`), ever fewer of them at ever larger sizes, the last two at the
    template's own, with every filter named. With ``init`` only its surroundings are searched.

    >>> import torch, diffcrop
    >>> waves = torch.arange(96.0) * torch.linspace(0.1, 0.3, 96)  # of a length that tells where one is
    >>> image = (waves.cos() + waves.sin()[:, None])[None]
    >>> template = diffcrop.crop(image, torch.tensor([20.25, 30.5, 60.75, 70.0]), 20)
    >>> found = diffcrop.locate(image, template)
    >>> found.box.round(decimals=2)
    tensor([20.2500, 30.5000, 60.7500, 70.0000], dtype=torch.float64)
    >>> found.converged
    tensor(True)

    Args:
        image: (C, H, W), or a batch (B, C, H, W). float64, float32, float16, bfloat16 or integers.
        template: (C, h, w), at most as large as the image, in the same units: both integers or both floating-point.

            =============  ===============  ============================================
            image          template         boxes
            =============  ===============  ============================================
            (C, H, W)      (C, h, w)        (4,)
            (C, H, W)      (T, C, h, w)     (T, 4)
            (B, C, H, W)   (C, h, w)        (B, 4), the same template in each image
            (B, C, H, W)   (B, C, h, w)     (B, 4), one template for each image
            (B, C, H, W)   (B, T, C, h, w)  (B, T, 4)
            =============  ===============  ============================================

        init: boxes (x0, y0, x1, y1) in pixels to begin at, of the result's shape or one that broadcasts to it.
            The whole image is not searched then, but what is in ``reach``.
        mode: the filter that made the template, or several to try: that with the least residual is kept. The accuracy
            depends on it; the default tries those of image programs. All of `crop` but ``"nearest"``.
        metric: ``"l2"``: the squared difference. ``"zncc"``: of crop and template with each channel's mean taken off
            and all channels together scaled to norm 1, which does not mind another brightness of each channel or
            another contrast of all.
        aspect: ``"free"``: width and height are scaled each for itself. ``"fixed"``: by the same factor.
        scales: (least, greatest) number of image pixels for a template pixel that the search looks at; refinement may
            lead a little beyond. By default from 0.5, but from boxes of a twelfth of the image's sides, up to the
            whole image. Smaller boxes, as of a small template in a large image, have to be asked for: (0.8, 1.2) where
            it was cut out about as it is.
        reach: for ``init``: also boxes are scored whose centre is up to so many of its sides away, with sides
            exp(+-reach) of its own; 0.5 if None. With 0 the start is refined and nothing else.
        candidates: how many boxes the search scores at most. More make a finer grid, which textures that repeat
            themselves may need. If None 400000, ten times as many with ``scales``, or what the coarsest grid has.
        iterations: steps of the last refinement, at the template's own size, with each filter.
        tolerance: it ends when no side of the box moves by more than this part of a template's pixel.
        huber: for ``"l2"``: beyond this difference, in the images' units (0.02 where white is 1, 5 where it is 255),
            the loss grows linearly and not with the
            square, so that what covers a part of the template counts less.
        antialias: as for `crop`: whether the template's filter widened with the reduction.
        padding_mode: as for `crop`: what a box that leaves the image reads.
        impl: as for `crop`.

    Returns:
        ``box`` (..., 4): (x0, y0, x1, y1) in pixels of the image, float64. ``residual`` (...): the root mean square of
        crop minus template for ``"l2"``; sqrt(1 - correlation^2) for ``"zncc"``, the part of the template's contrast
        that is left unexplained. ``converged`` (...): whether the last steps were within ``tolerance`` and the crop
        explains at least half of the template's variance; false where the template is not to be found.
        ``covariance`` (..., 4, 4): of the box, in pixels squared, if template and crop differ by independent noise of
        one strength, from the Gauss-Newton matrix: s^2 (J^T J)^-1, or infinite where that has no inverse. ``trace``:
        a `LocateTrace`.

    The result is a constant: nothing is differentiated through it.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes and options that do not fit, a template that is larger than the image or constant, pixels
            that are not finite, a range of scales that needs more candidates.

    The refinement is Lucas and Kanade's (1981) with Marquardt's (1963) damping; the search is exhaustive template
    matching, over scales too.

    """
    names = arguments.modes(MODES[:-1] if mode is MODES and not antialias else mode)  # area needs antialiasing
    arguments.choice(metric, "metric", arguments.METRICS)
    arguments.choice(aspect, "aspect", arguments.ASPECTS)
    iterations = count(iterations, "iterations")
    tolerance = number(tolerance, "tolerance", positive=True)
    limits = None if scales is None else arguments.scales(scales)
    budgets = _CANDIDATES if limits is None else _CANDIDATES_OF_SCALES
    budgets = budgets if candidates is None else (count(candidates, "candidates"),)
    reach = arguments.with_or_without_init(init, scales, candidates, reach)
    with torch.no_grad(), _without_autocast(image):
        problem = arguments.problem(image, template, init)
        options = {"antialias": antialias, "padding_mode": padding_mode, "metric": metric, "huber": huber, "impl": impl}
        matcher = Matcher(problem.images, problem.templates.flatten(0, 1), options, aspect == "fixed")
        _check_options(matcher, names)
        given = None
        if problem.init is None:
            proposed, least = _proposed(problem, matcher, limits, budgets)
        else:
            boxes = _of_aspect(problem.init.reshape(-1, 4), matcher)
            given = start(boxes[:, None])
            proposed, least = _around(problem, matcher, boxes, reach)
        path = given if given is not None and reach == 0 else start(proposed.boxes)
        path = matcher.coarse_to_fine(path, least, given)
        best, which = matcher.best_filter(path, names, iterations, tolerance)
        return _answer(matcher, best, which, names, proposed, problem.leading)


def _without_autocast(image: Any) -> contextlib.AbstractContextManager:
    """Without autocast, which would round matrix products; the image may not be a tensor at all yet."""
    device = image.device.type if isinstance(image, Tensor) else "cpu"
    return (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()
    )


def _proposed(
    problem: arguments.Problem, matcher: Matcher, limits: tuple[float, float] | None, budgets: Sequence[int]
) -> tuple[Candidates, tuple[float, float]]:
    """The best boxes of each whole image, (P, K, 4), and the smallest sides that were searched."""
    extent, size = (matcher.images.shape[-1], matcher.images.shape[-2]), (matcher.size[1], matcher.size[0])
    least = exhaustive.least_sides(extent, size, matcher.fixed)
    low, high = arguments.searched(extent, size, matcher.fixed, limits, least)
    grids = (exhaustive.grid(extent, low, high, matcher.fixed, budget) for budget in budgets)
    images = problem.images
    blocks = next((grid for grid in grids if grid is not None), None)
    if blocks is None:
        raise ValueError(
            f"candidates={budgets[-1]} are too few to search boxes of {low[0]:.4g}x{low[1]:.4g} to "
            f"{high[0]:.4g}x{high[1]:.4g} pixels (width, height); allow more, or narrow scales"
        )
    each = problem.templates.shape[1]
    found = [_best(matcher, images[p // each], own, blocks) for p, own in enumerate(matcher.templates)]
    return _stacked(found), low


def _around(
    problem: arguments.Problem, matcher: Matcher, boxes: Tensor, reach: float
) -> tuple[Candidates, tuple[float, float]]:
    """The best boxes in reach of each start (P, 4), and the smallest sides among them."""
    shrunk = ((boxes[:, 2:] - boxes[:, :2]).amin(0) * math.exp(-reach)).tolist()
    if reach == 0:
        costs = torch.full((len(boxes), 1), torch.nan, dtype=torch.float64, device=boxes.device)
        return Candidates(boxes[:, None], costs), (shrunk[0], shrunk[1])
    height, width = matcher.images.shape[-2:]
    found, each = [], problem.templates.shape[1]
    for p, box in enumerate(boxes.tolist()):
        blocks = exhaustive.grid_around((width, height), box, reach, matcher.fixed)
        found.append(_best(matcher, matcher.images[p // each], matcher.templates[p], blocks, reuse=False))
    return _stacked(found), (shrunk[0], shrunk[1])


def _best(
    matcher: Matcher, image: Tensor, template: Tensor, blocks: tuple[exhaustive.Block, ...], reuse: bool = True
) -> Candidates:
    metric, huber = matcher.coarse_metric, matcher.options["huber"]
    return exhaustive.best_candidates(image, template, blocks, STAGES[0][1], _NEAR, metric, huber, reuse=reuse)


def _stacked(found: Sequence[Candidates]) -> Candidates:
    """Of several problems in one, as many for each as for that with the fewest."""
    keep = min(len(f.costs) for f in found)
    return Candidates(*(torch.stack([part[:keep] for part in parts]) for parts in zip(*found, strict=True)))


def _of_aspect(boxes: Tensor, matcher: Matcher) -> Tensor:
    """Boxes (P, 4) with their own centre and area, but the template's aspect where that is fixed."""
    if not matcher.fixed:
        return boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    height, width = matcher.size
    scale = (sides.prod(1, keepdim=True) / (height * width)).sqrt()
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = scale * torch.tensor([width / 2, height / 2], dtype=scale.dtype, device=scale.device)
    return torch.cat([centre - half, centre + half], 1)


def _check_options(matcher: Matcher, names: Sequence[str]) -> None:
    """Let `normal_equations` refuse what it would, before there is work in vain."""
    none = matcher.images.new_zeros((0, 4), dtype=torch.float64)
    index = torch.zeros(0, dtype=torch.int64, device=none.device)
    for name in names:
        targets = matcher.templates[:0]
        diffcrop.normal_equations(matcher.images, none, targets, batch_index=index, mode=name, **matcher.options)


def _answer(
    matcher: Matcher, best: Path, which: Tensor, names: tuple[str, ...], proposed: Candidates, leading: tuple[int, ...]
) -> Location:
    boxes = best.boxes[:, 0]
    fits = [_fit(matcher, p, boxes[p], names[i]) for p, i in enumerate(which.tolist())]
    residual, explained, covariance = (torch.stack(part) for part in zip(*fits, strict=True))
    converged = best.settled[:, 0] & (explained >= _EXPLAINED)
    steps = best.steps[:, :, 0]
    trace = LocateTrace(
        proposed.boxes.reshape(*leading, -1, 4),
        proposed.costs.reshape(*leading, -1),
        steps.reshape(len(steps), *leading, 4),
        which.reshape(leading),
        names,
    )
    return Location(
        boxes.reshape(*leading, 4),
        residual.reshape(leading),
        converged.reshape(leading),
        covariance.reshape(*leading, 4, 4),
        trace,
    )


class _Fit(NamedTuple):
    """How well one crop is its template: residual (), the share of the template's variance explained (), (4, 4)."""

    residual: Tensor
    explained: Tensor
    covariance: Tensor


def _fit(matcher: Matcher, problem: int, box: Tensor, mode: str) -> _Fit:
    image = matcher.images[problem * len(matcher.images) // len(matcher.templates)]
    if image.is_floating_point() and image.element_size() < 4:
        image = image.float()  # what the refinement saw was not rounded either
    template = matcher.templates[problem]
    options = {name: matcher.options[name] for name in ("antialias", "padding_mode", "impl")}
    value, jacobian = diffcrop.crop_with_jacobian(image, box, template.shape[-2:], mode=mode, **options)
    value, wanted, jacobian = value.double(), template.double(), jacobian.double()
    centred = wanted - wanted.mean((1, 2), keepdim=True)
    basis, huber = matcher.basis(), matcher.options["huber"]
    freedom = value.numel() - (4 if basis is None else basis.shape[1])
    if matcher.options["metric"] == "zncc":
        # Each channel loses its mean and all of them their norm, of which the residual and the Jacobian know nothing.
        value, jacobian = value - value.mean((1, 2), keepdim=True), jacobian - jacobian.mean((1, 2), keepdim=True)
        norm = value.norm()
        unit = value / norm if norm > 0 else value
        jacobian = (jacobian - unit[..., None] * torch.tensordot(unit, jacobian, 3)) / norm
        difference = unit - centred / centred.norm()
        correlation = (1 - difference.square().sum() / 2).clamp(-1, 1)
        correlation = torch.where(norm > 0, correlation, 0.0)
        residual = (1 - correlation.square()).sqrt()
        explained = correlation.clamp(min=0).square()
        freedom -= value.shape[0] + 1
    else:
        difference = value - wanted
        residual = difference.square().mean().sqrt()
        # What Huber's function holds to be beside the point counts for no more than its limit in either.
        explained = 1 - _clipped(difference, huber).square().sum() / _clipped(centred, huber).square().sum()
    return _Fit(residual, explained, _covariance(difference, jacobian, huber, freedom, basis))


def _covariance(
    difference: Tensor, jacobian: Tensor, huber: float | None, freedom: int, basis: Tensor | None
) -> Tensor:
    """Of independent noise: s^2 (J^T J)^-1, s^2 the mean square of the residual over its degrees of freedom.

    With Huber's function, s^2 A^-1 J^T J A^-1, where s^2 and A count what is beyond the limit as that function does
    (Huber, 1981, section 7.6, without his small-sample factor).
    """
    r, J = difference.flatten(), jacobian.flatten(0, -2)
    if basis is not None:
        J = J @ basis
    inside = torch.ones_like(r) if huber is None else (r.abs() <= huber).to(r.dtype)
    if freedom < 1:
        return r.new_full((4, 4), torch.inf)
    inverse, _ = torch.linalg.inv_ex(J.T @ (inside[:, None] * J))
    if not bool(inverse.isfinite().all()):
        return r.new_full((4, 4), torch.inf)
    covariance = _clipped(r, huber).square().sum() / freedom * inverse @ (J.T @ J) @ inverse
    return covariance if basis is None else basis @ covariance @ basis.T


def _clipped(residual: Tensor, huber: float | None) -> Tensor:
    return residual if huber is None else residual.clamp(-huber, huber)
