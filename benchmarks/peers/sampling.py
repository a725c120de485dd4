"""`grid_sample` as people use it for crops: the recipe, compiled, with all boxes in one grid, and inside kornia."""

from __future__ import annotations

import importlib
import math
import types
import warnings

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.cases import Case
from benchmarks.problem import Prepared, Problem

from .base import Meaning, Peer, Tolerance, per_box, torch_call

# An expanded image has an image gradient per box until autograd sums them.
_MOST_COPIES = 2 * 2**30


def theta(boxes: Tensor) -> Tensor:
    """(R, 2, 3), of volumes (R, 3, 4), from corners in [-1, 1]: what everybody pastes."""
    if boxes.shape[-1] == 6:
        lo, hi = boxes.split(3, -1)
        return torch.cat([torch.diag_embed((hi - lo) / 2), ((hi + lo) / 2)[..., None]], -1)
    x0, y0, x1, y1 = boxes.unbind(-1)
    zero = torch.zeros_like(x0)
    rows = [(x1 - x0) / 2, zero, (x1 + x0) / 2], [zero, (y1 - y0) / 2, (y1 + y0) / 2]
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def recipe(images: Tensor, boxes: Tensor, size: tuple[int, ...], padding_mode: str) -> Tensor:
    """Of images and volumes; of signals as images of one row, since `grid_sample` knows no others."""
    if len(size) == 1:
        one = torch.ones_like(boxes[:, 0])
        lifted = torch.stack([boxes[:, 0], -one, boxes[:, 1], one], -1)
        return recipe(images[:, :, None], lifted, (1, *size), padding_mode)[:, :, 0]
    grid = affine_grid(theta(boxes), [len(boxes), images.shape[1], *size], align_corners=False)
    return grid_sample(images, grid, padding_mode=padding_mode, align_corners=False)


def normalized(problem: Problem) -> Tensor:
    """The boxes as the recipe takes them, in the dtype it computes in."""
    sides = problem.case.images[:1:-1]
    scale = torch.tensor([*sides, *sides], dtype=torch.float64, device=problem.boxes.device)
    return (problem.boxes / scale * 2 - 1).to(problem.boxes.dtype)


def _recipe_meaning(problem: Problem) -> Meaning:
    return Meaning(normalized(problem).double(), problem.options() | {"coords": "normalized"})


def _prepare_recipe(problem: Problem, pass_: str) -> Prepared:
    case = problem.case
    half = problem.images.dtype != problem.boxes.dtype

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        if half:  # a grid has to be of the images' dtype, and half precision cannot hold positions: as autocast does
            images = images.float()
        result = recipe(per_box(images, problem), boxes, case.size, case.padding_mode)
        return result.to(problem.cotangent.dtype) if half else result

    return torch_call(function, problem.images, normalized(problem), problem.cotangent, pass_, problem)


def _prepare_compiled(problem: Problem, pass_: str) -> Prepared:
    """Compiled at its first call, which nobody times. Each pass has a code object, and so compiled code, of its own."""
    case = problem.case
    inductor = importlib.import_module("torch._inductor.config")

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        return recipe(per_box(images, problem), boxes, case.size, case.padding_mode)

    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, f"compiled_{pass_}", None, function.__closure__
    )
    # The number of threads is written into the generated code, and kept code is found by these settings.
    with inductor.patch({"compile_threads": 1, "cpp.threads": torch.get_num_threads()}):
        compiled = torch.compile(own, dynamic=False, fullgraph=True)
        prepared = torch_call(compiled, problem.images, normalized(problem), problem.cotangent, pass_, problem)
        prepared.call()
    return prepared


def _prepare_packed(problem: Problem, pass_: str) -> Prepared:
    """All boxes of an image as one tall grid: no copies. The cotangent is in the layout of its result, in advance."""
    case = problem.case
    images, count, channels, (first, *others) = case.images[0], case.boxes, case.images[1], case.size
    tall = (count * first, *others)

    def function(given: Tensor, boxes: Tensor) -> Tensor:
        grid = affine_grid(theta(boxes), [images * count, channels, *case.size], align_corners=False)
        grid = grid.reshape(images, *tall, case.axes)
        return grid_sample(given, grid, padding_mode=case.padding_mode, align_corners=False)

    def rows(value: Tensor, _: Problem) -> Tensor:
        return value.reshape(images, channels, count, *case.size).transpose(1, 2).flatten(0, 1)

    cotangent = problem.cotangent.unflatten(0, (images, count)).transpose(1, 2).reshape(images, channels, *tall)
    return torch_call(function, problem.images, normalized(problem), cotangent, pass_, problem, rows)


def _first_and_last(problem: Problem) -> Tensor:
    """kornia's boxes name the centres of the first and last output, on the axis of pixel indices."""
    lo, hi = problem.boxes.double().split(2, 1)
    half = (hi - lo) / torch.tensor(problem.case.size[::-1]) / 2
    return torch.cat([lo + half - 0.5, hi - half - 0.5], 1).to(problem.boxes.dtype)


def _prepare_kornia(problem: Problem, pass_: str) -> Prepared:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crop_and_resize = importlib.import_module("kornia.geometry.transform").crop_and_resize
    case = problem.case

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        x0, y0, x1, y1 = boxes.unbind(-1)
        corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], -1).reshape(-1, 4, 2)
        return crop_and_resize(per_box(images, problem), corners, case.size, padding_mode=case.padding_mode)

    return torch_call(function, problem.images, _first_and_last(problem), problem.cotangent, pass_, problem)


def _kornia_meaning(problem: Problem) -> Meaning:
    return Meaning(_first_and_last(problem).double(), problem.options() | {"align_corners": True})


def _samples(case: Case) -> str | None:
    if case.shape != "upright":
        return "for upright boxes"
    if case.mode != "bilinear" or case.antialias:
        return "grid_sample does not antialias"
    return None


def _copies(case: Case) -> str | None:
    if case.boxes > 1:
        size = 4 * case.boxes * math.prod(case.images)
        if size > _MOST_COPIES:
            return f"would hold {size / 2**30:.1f} GiB of image gradients, one for each box"
    return _samples(case)


def _floats(case: Case) -> str | None:
    return _copies(case) if case.dtype in ("float32", "float64") else f"not in {case.dtype}"


def _compiles(case: Case) -> str | None:
    if case.axes != 2:  # tried with torch 2.13
        return "torch.compile cannot compile affine_grid and grid_sample with gradients but for images"
    return _floats(case)


def _shared(case: Case) -> str | None:
    return _samples(case) if case.boxes > 1 or case.images[0] == 1 else "for many boxes of one image"


_FLOAT32 = Tolerance(
    value=1e-3,
    images=1e-3,
    boxes=1e-3,
    reason="positions in float32, between -1 and 1, are off by up to 3e-4 pixels; of noise a value moves as much",
)
_SOLVED = Tolerance(
    value=2e-3,
    images=2e-3,
    boxes=2e-3,
    reason="positions come from a linear system that kornia solves in float32",
)

RECIPE = Peer(
    "recipe",
    "Theta from the corners, `affine_grid`, `grid_sample`; a single image expanded over its boxes",
    _prepare_recipe,
    _recipe_meaning,
    _FLOAT32,
    refuses=_copies,
)
COMPILED = Peer(
    "compiled",
    "the recipe under `torch.compile`, compiled beforehand",
    _prepare_compiled,
    _recipe_meaning,
    _FLOAT32,
    refuses=_compiles,
)
PACKED = Peer(
    "packed",
    "the recipe with all boxes of one image as one tall grid",
    _prepare_packed,
    _recipe_meaning,
    _FLOAT32,
    refuses=_shared,
)
KORNIA = Peer(
    "kornia",
    "kornia's `crop_and_resize`; a single image expanded over its boxes",
    _prepare_kornia,
    _kornia_meaning,
    _SOLVED,
    needs=("kornia",),
    refuses=_floats,
)
