"""The methods, as data: how each is run on the problems of one photograph, and what it crops with."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import diffcrop
from diffcrop.cli.recovery import Sampler, recipe

from . import solvers
from .problems import MODES
from .solvers import Answer

STEPS = 200
# Adam's first step in units of the box's sides. Of those tried on the tuning photographs (`RATES`, in the report) it is
# the one with which the recipe recovers most in all, at reductions 1, 4 and 8, so it is handicapped by none other.
RATE = 0.05
RATES = (0.01, 0.02, 0.05, 0.1)
# Sigmas of a coarse to fine search, in sides of the box. Each level has a descent of its own, for which 0.02 recovers
# most of the tuning photographs' boxes; as does blurring the targets like the photograph.
BLURS = (1 / 8, 1 / 16, 1 / 32, 0.0)
BLUR_RATE = 0.02
LM_STEPS = 40

Solver = Callable[[Tensor, Tensor, Tensor], Answer]


@dataclass(frozen=True)
class Method:
    """``run(image, start, targets)`` answers the problems of one photograph, all in one batch.

    ``sampler`` is what it crops with, ``options`` say the same to diffcrop's reference, and ``tolerance`` is how far
    the two may be apart, in parts of the value range. ``mode`` is the filter that the sampler is.
    """

    name: str
    about: str
    run: Solver
    sampler: Sampler
    options: dict[str, Any]
    mode: str
    tolerance: float
    # Whether it uses the start. Without, it is run once for all displacements.
    starts: bool = True
    # Whether it crops with derivatives by the box, which are then compared as well.
    jacobian: bool = False
    needs: tuple[str, ...] = ()
    # Functions of diffcrop that it needs.
    functions: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        absent += [f"diffcrop.{name}" for name in self.functions if not hasattr(diffcrop, name)]
        return f"there is no {' and no '.join(absent)}" if absent else None


def ours(mode: str) -> Sampler:
    return functools.partial(_crop, mode)


def _crop(mode: str, image: Tensor, boxes: Tensor, size: int) -> Tensor:
    return diffcrop.crop(image, boxes, size, mode=mode)


def _linearized(image: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return diffcrop.crop_with_jacobian(image, boxes, size)


def kornia(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`crop_and_resize` wants the centres of the first and last output, on the axis of pixel indices."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crop_and_resize = importlib.import_module("kornia.geometry.transform").crop_and_resize
    half = (boxes[:, 2:] - boxes[:, :2]) / size / 2
    x0, y0, x1, y1 = torch.cat([boxes[:, :2] + half - 0.5, boxes[:, 2:] - half - 0.5], 1).unbind(-1)
    corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], -1).reshape(-1, 4, 2)
    return crop_and_resize(image.expand(len(boxes), -1, -1, -1), corners, (size, size), padding_mode="border")


def _adam(sampler: Sampler, rate: float = RATE) -> Solver:
    return functools.partial(solvers.adam, sampler, steps=STEPS, rate=rate)


def _fit_boxes(image: Tensor, start: Tensor, targets: Tensor, **how: Any) -> Answer:
    """`diffcrop.fit_boxes` on minus the squared difference."""
    fit_boxes: Any = getattr(diffcrop, "fit_boxes")  # noqa: B009 - may not be there

    def alike(crops: Tensor) -> Tensor:
        # Of several starts each box comes in every one, boxes fastest.
        return -(crops.unflatten(0, (-1, len(targets))) - targets).square().mean((2, 3, 4)).flatten()

    began = time.perf_counter()
    fit = fit_boxes(image, alike, start, targets.shape[-1], steps=STEPS, progress=False, **how)
    return Answer(fit.boxes, time.perf_counter() - began)


def _locate(image: Tensor, start: Tensor, targets: Tensor, *, from_start: bool = False, **how: Any) -> Answer:
    """`diffcrop.locate` of all targets at once: in the whole photograph, or near the starts."""
    locate: Any = getattr(diffcrop, "locate")  # noqa: B009 - may not be there
    if from_start:
        how["init"] = start
    began = time.perf_counter()
    found = locate(image, targets, **how)
    seconds = time.perf_counter() - began
    return Answer(found.box.to(start.dtype), seconds, found.trace.boxes.to(start.dtype))


# Positions in float32 between -1 and 1 are off by up to 1e-4 pixels of a photograph, and kornia solves a linear system
# in float32 for them. Ours are float64, and only sums are rounded.
_RECIPE_TOLERANCE, _KORNIA_TOLERANCE, _OUR_TOLERANCE = 2e-4, 2e-3, 2e-6
_PLAIN = {"antialias": False}


def _recipe(name: str, about: str, rate: float) -> Method:
    return Method(name, about, _adam(recipe, rate), recipe, _PLAIN, "bilinear", _RECIPE_TOLERANCE)


def _ours(name: str, about: str, run: Solver, mode: str = "bilinear", **how: Any) -> Method:
    return Method(name, about, run, ours(mode), {"mode": mode}, mode, _OUR_TOLERANCE, **how)


def _bilinear(name: str, about: str, rate: float) -> Method:
    return _ours(name, about, _adam(ours("bilinear"), rate))


def _located(name: str, **how: Any) -> Method:
    """Of several filters, the default, that which fits best is the answer's; the gate looks at the first of them."""
    given = ", ".join("init=..." if option == "from_start" else f"{option}={value!r}" for option, value in how.items())
    where = "from the start" if "from_start" in how else "in the whole photograph"
    filters = "" if "mode" in how else ", of the filters that it tries the one that fits best"
    run = functools.partial(_locate, **how)
    about = f"`locate({given})` {where}{filters}"
    return _ours(name, about, run, starts="from_start" in how, functions=("locate",))


_ALL = (
    _recipe("recipe + Adam", f"`affine_grid` and `grid_sample`, {STEPS} steps of Adam", RATE),
    Method(
        "kornia + Adam",
        "kornia's `crop_and_resize`, and the same Adam",
        _adam(kornia),
        kornia,
        _PLAIN,
        "bilinear",
        _KORNIA_TOLERANCE,
        needs=("kornia",),
    ),
    *(_ours(f"{m} + Adam", f"`crop(mode={m!r})` and the same Adam", _adam(ours(m)), m) for m in MODES),
    _ours(
        "blur schedule + Adam",
        f"bilinear, {STEPS} steps in all, photograph and target blurred by sigmas of 1/8, 1/16, 1/32 and 0 sides",
        functools.partial(solvers.coarse_to_fine, ours("bilinear"), steps=STEPS, rate=BLUR_RATE, fractions=BLURS),
    ),
    _ours(
        "LM",
        f"Levenberg-Marquardt from the start with `crop_with_jacobian`, bilinear, at most {LM_STEPS} steps",
        functools.partial(solvers.levenberg_marquardt, _linearized, steps=LM_STEPS),
        jacobian=True,
    ),
    _ours(
        "fit_boxes",
        f"`fit_boxes(schedule='coarse-to-fine', starts=16)`, bilinear, {STEPS} steps",
        functools.partial(_fit_boxes, schedule="coarse-to-fine", starts=16),
        functions=("fit_boxes",),
    ),
    _located("locate, init", from_start=True),
    _located("locate"),
    _located("locate bilinear", mode="bilinear"),
    _located("locate zncc", metric="zncc"),
)
METHODS = {one.name: one for one in _ALL}
# The recipe at other rates, to see whether the one above handicaps it.
_RATED = [
    make(f"{name} + Adam, rate {rate:g}", f"{name} at this rate", rate)
    for name, make in (("recipe", _recipe), ("bilinear", _bilinear))
    for rate in RATES
]
SWEEP = {one.name: one for one in _RATED}
