"""`locate`: where in an image a template comes from."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop._check import choice, flag, real

from .arguments import count, number
from .matching import arguments, proposals
from .matching.coarse_to_fine import Matcher, Path, start
from .matching.exhaustive import Candidates
from .matching.fitness import fit
from .matching.poses import Turned, Upright

# The filters that are tried where none is named: those that image programs use.
MODES = ("bilinear", "bicubic", "lanczos3", "area")
# Where nobody says how many: the first of these that a grid can do with. The first takes 6 ms or so in a photograph.
_CANDIDATES = tuple(400_000 * 4**i for i in range(5))
# Scales are asked for where boxes are small and details count. The last takes some GB.
_CANDIDATES_OF_SCALES = tuple(4_000_000 * 4**i for i in range(4))
# Of each angle fewer will do, as neighbouring angles find the same boxes.
_CANDIDATES_OF_A_TURN = tuple(100_000 * 4**i for i in range(6))
# The crop must explain so much of the template's variance, or it is not what was looked for.
_EXPLAINED = 0.5


class LocateTrace(NamedTuple):
    """How `locate` came to its answer.

    ``candidates`` (..., K, 4) with their ``costs`` (..., K): what the search proposed, best first (``init``, with NaN,
    where ``reach`` is 0). ``boxes`` (n, ..., 4): the path from a candidate to the answer. ``modes`` (...): which of the
    filters in ``names`` was chosen. Boxes have five numbers where the search turned them.
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
    rotation: bool | tuple[float, float] = False,
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

        init: boxes (x0, y0, x1, y1) in pixels to begin at, of the result's shape or one that broadcasts to it; with
            ``rotation`` (cx, cy, w, h, angle). Or torchvision's ``BoundingBoxes``, whose format is read from them. The
            whole image is not searched then, but what is in ``reach``.
        mode: the filter that made the template, or several to try: that with the least residual is kept. The accuracy
            depends on it; the default tries those of image programs. All of `crop` but ``"nearest"``.
        metric: ``"l2"``: the squared difference. ``"zncc"``: of crop and template with each channel's mean taken off
            and all channels together scaled to norm 1, which does not mind another brightness of each channel or
            another contrast of all.
        aspect: ``"free"``: width and height are scaled each for itself. ``"fixed"``: by the same factor.
        rotation: whether the template may be turned: by any angle (``True``), or by (least, greatest) degrees,
            counter-clockwise. Boxes are (cx, cy, w, h, angle) then, as `crop_rotated` takes them, and the angle is that
            of the box in the image: what was turned by +a before it was cut out upright is found at -a. The range is
            where the search looks; refinement may leave it. An upright search takes some milliseconds, one for each
            nine degrees makes forty of them.
        scales: (least, greatest) number of image pixels for a template pixel that the search looks at; refinement may
            lead a little beyond. By default from 0.5, but from boxes of a twelfth of the image's sides, up to the
            whole image. Smaller boxes, as of a small template in a large image, have to be asked for: (0.8, 1.2) where
            it was cut out about as it is.
        reach: for ``init``: also boxes are scored whose centre is up to so many of its sides away, with sides
            exp(+-reach) of its own, and with ``rotation`` angles up to ``reach`` radians off; 0.5 if None. With 0 the
            start is refined and nothing else.
        candidates: how many boxes the search scores at most, with ``rotation`` for each angle. More make a finer grid,
            which textures that repeat themselves may need. If None 400000, 100000 with ``rotation``, 4 million with
            ``scales``, or what the coarsest grid has.
        iterations: steps of the last refinement, at the template's own size, with each filter.
        tolerance: it ends when no side of the box moves by more than this part of a template's pixel.
        huber: for ``"l2"``: beyond this difference, in the images' units (0.02 where white is 1, 5 where it is 255),
            the loss grows linearly and not with the
            square, so that what covers a part of the template counts less.
        antialias: as for `crop`: whether the template's filter widened with the reduction.
        padding_mode: as for `crop`: what a box that leaves the image reads.
        impl: as for `crop`.

    Returns:
        ``box`` (..., 4): (x0, y0, x1, y1) in pixels of the image, float64; with ``rotation`` (..., 5), (cx, cy, w, h,
        angle), the angle in degrees from -180 to 180. ``residual`` (...): the root mean square of
        crop minus template for ``"l2"``; sqrt(1 - correlation^2) for ``"zncc"``, the part of the template's contrast
        that is left unexplained. ``converged`` (...): whether the last steps were within ``tolerance`` and the crop
        explains at least half of the template's variance; false where the template is not to be found.
        ``covariance`` (..., 4, 4): of the box, in pixels squared, if template and crop differ by independent noise of
        one strength, from the Gauss-Newton matrix: s^2 (J^T J)^-1, or infinite where that has no inverse. With
        ``rotation`` it is (..., 5, 5), in pixels and degrees. ``trace``: a `LocateTrace`.

    The result is a constant: nothing is differentiated through it.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes and options that do not fit, a template that is larger than the image or constant, pixels
            that are not finite, a range of scales that needs more candidates.

    The refinement is Lucas and Kanade's (1981) with Marquardt's (1963) damping; the search is exhaustive template
    matching, over scales too.

    """
    flag(antialias, "antialias")
    turns = arguments.rotation(rotation, init)
    pose = Upright() if turns is None else Turned()
    names = arguments.modes(MODES[:-1] if mode is MODES and not antialias else mode, pose.filters)  # area averages
    choice(metric, "metric", arguments.METRICS)
    choice(aspect, "aspect", arguments.ASPECTS)
    iterations = count(iterations, "iterations")
    tolerance = number(tolerance, "tolerance", positive=True)
    limits = None if scales is None else arguments.scales(scales)
    usual = _CANDIDATES if turns is None else _CANDIDATES_OF_A_TURN
    budgets = usual if limits is None else _CANDIDATES_OF_SCALES
    budgets = budgets if candidates is None else (count(candidates, "candidates"),)
    reach = arguments.with_or_without_init(init, scales, candidates, reach)
    if isinstance(huber, numbers.Real) and not isinstance(huber, bool):
        huber = real(huber)
    with torch.no_grad(), _without_autocast(image):
        problem = arguments.problem(image, template, init, pose.numbers)
        options = {"antialias": antialias, "padding_mode": padding_mode, "metric": metric, "huber": huber, "impl": impl}
        matcher = Matcher(problem.images, problem.templates.flatten(0, 1), options, aspect == "fixed", pose)
        _check_options(matcher, names)
        given = None
        if problem.init is None:
            proposed, least = proposals.of_the_whole(matcher, limits, budgets, turns)
        else:
            boxes = problem.init.reshape(-1, pose.numbers)
            boxes = pose.of_aspect(boxes, matcher.size) if matcher.fixed else boxes
            given = start(boxes[:, None])
            proposed, least = proposals.around(matcher, boxes, reach)
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


def _check_options(matcher: Matcher, names: Sequence[str]) -> None:
    """Let the normal equations refuse what they would, before there is work in vain."""
    pose, images = matcher.pose, matcher.images
    none = images.new_zeros((0, pose.numbers), dtype=torch.float64)
    index = torch.zeros(0, dtype=torch.int64, device=none.device)
    for name in names:
        options = {**matcher.options, "mode": name}
        pose.equations(images, matcher.templates[:0], index, (1.0, 1.0), options)(none)


def _answer(
    matcher: Matcher, best: Path, which: Tensor, names: tuple[str, ...], proposed: Candidates, leading: tuple[int, ...]
) -> Location:
    pose, boxes = matcher.pose, best.boxes[:, 0]
    fits = [fit(matcher, p, boxes[p], names[i]) for p, i in enumerate(which.tolist())]
    residual, explained, covariance = (torch.stack(part) for part in zip(*fits, strict=True))
    converged = best.settled[:, 0] & (explained >= _EXPLAINED)
    steps = best.steps[:, :, 0]
    trace = LocateTrace(
        proposed.boxes.reshape(*leading, -1, pose.numbers),
        proposed.costs.reshape(*leading, -1),
        steps.reshape(len(steps), *leading, pose.numbers),
        which.reshape(leading),
        names,
    )
    return Location(
        pose.normalized(boxes).reshape(*leading, pose.numbers),
        residual.reshape(leading),
        converged.reshape(leading),
        covariance.reshape(*leading, pose.numbers, pose.numbers),
        trace,
    )
