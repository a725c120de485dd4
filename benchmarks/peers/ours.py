"""diffcrop itself, and diffcrop on the plain form of a case in another layout or dtype."""

from __future__ import annotations

from functools import partial

from torch import Tensor

import diffcrop
from benchmarks.problem import Prepared, Problem, crop_of

from .base import Meaning, Peer, Tolerance, torch_call


def _prepare(problem: Problem, pass_: str, plain: bool = False) -> Prepared:
    """One box per image, K boxes (K, 4) of a single image (C, H, W), or (B, K, 4): forms of the documentation."""
    if problem.case.shape == "paste":
        return _prepare_paste(problem, pass_)
    images = problem.images.float().contiguous() if plain else problem.images
    cotangent = problem.cotangent.float().contiguous() if plain else problem.cotangent
    boxes, count = problem.boxes, problem.case.boxes if problem.case.shape != "roi" else 1
    if count > 1 and len(images) == 1:
        (images,) = images
    elif count > 1:
        boxes, cotangent = (t.unflatten(0, (len(images), count)) for t in (boxes, cotangent))
    crop = partial(crop_of(problem.case), size=problem.case.size, **problem.options())

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        return crop(images, boxes)

    return torch_call(function, images, boxes, cotangent, pass_, problem)


def _prepare_paste(problem: Problem, pass_: str) -> Prepared:
    """K patches to each canvas."""
    shape = (-1, problem.case.boxes)

    def function(patches: Tensor, boxes: Tensor) -> Tensor:
        return diffcrop.paste(
            patches.unflatten(0, shape), boxes.unflatten(0, shape), canvas=problem.canvas, **problem.paste_options()
        )

    return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)


def _meaning(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options())


_FLOAT32 = Tolerance(
    value=2e-6,
    images=2e-6,
    boxes=2e-5,
    reason="sums in float32, positions in float64; a box gradient is a sum over the whole crop of terms that cancel",
)

DIFFCROP = Peer(
    "diffcrop", "`diffcrop.crop`, `crop_rotated`, `crop_quad`, `roi_align` or `paste`", _prepare, _meaning, _FLOAT32
)
PLAIN = Peer(
    "plain",
    "`diffcrop.crop`, the same case in float32 and contiguous",
    partial(_prepare, plain=True),
    _meaning,
    _FLOAT32,
)
