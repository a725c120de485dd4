"""Libraries that resize pictures, on slices of whole pixels; Pillow takes the boxes as they are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.cases import Case
from benchmarks.problem import Outcome, Prepared, Problem

from .base import IMAGE_GRADIENT_ONLY, Meaning, Peer, Tolerance, torch_call


def _sliced(padding_mode: str, **changed: Any) -> Callable[[Problem], Meaning]:
    """The whole slice is the box, and what lies beyond it is as the library has it."""

    def meaning(problem: Problem) -> Meaning:
        options = problem.options() | {"padding_mode": padding_mode} | changed
        return Meaning(torch.tensor(problem.rounded(), dtype=torch.float64), options, sliced=True)

    return meaning


def _slices(images: Tensor, problem: Problem, boxes: list[tuple[int, int, int, int]]) -> list[Tensor]:
    """Taken from the unbound batch: the gradient of each slice of the batch itself would be as large as the batch."""
    pictures = images.unbind() if len(images) > 1 else (images[0],)
    owner = problem.owner.tolist()
    return [pictures[b][:, y0:y1, x0:x1] for b, (x0, y0, x1, y1) in zip(owner, boxes, strict=True)]


def _prepare_slices(problem: Problem, pass_: str) -> Prepared:
    case, boxes = problem.case, problem.rounded()

    def function(images: Tensor, _: Tensor) -> Tensor:
        parts = _slices(images, problem, boxes)
        return torch.cat([interpolate(part[None], case.size, mode=case.mode, antialias=True) for part in parts])

    return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)


def _prepare_whole(problem: Problem, pass_: str) -> Prepared:
    """Signals and volumes, for which PyTorch has no antialiasing but the mean of whole pixels."""
    case = problem.case
    mode = "area" if case.mode == "area" else {1: "linear", 2: "bilinear", 3: "trilinear"}[case.axes]

    def function(images: Tensor, _: Tensor) -> Tensor:
        return interpolate(images, case.size, mode=mode)

    return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)


def _not_resized(case: Case) -> str | None:
    if not case.is_whole() or case.boxes > 1:
        return "resizes whole images"
    if case.mode == "area":
        divides = all(n % m == 0 for n, m in zip(case.images[2:], case.size, strict=True))
        return None if divides else "averages whole pixels"
    return None if case.mode == "bilinear" and not case.antialias else "does not antialias"


def _prepare_slicing(problem: Problem, pass_: str) -> Prepared:
    boxes = problem.rounded()

    def function(images: Tensor, _: Tensor) -> Tensor:
        return torch.stack(_slices(images, problem, boxes))

    return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)


def _prepare_pillow(problem: Problem, pass_: str) -> Prepared:
    """One mode "F" picture per channel, made beforehand; the results stay Pillow's."""
    assert pass_ == "forward"
    image = importlib.import_module("PIL.Image")
    resampling = image.Resampling
    filters = {"bilinear": resampling.BILINEAR, "bicubic": resampling.BICUBIC, "lanczos3": resampling.LANCZOS}
    size, filter_ = problem.case.size[::-1], filters[problem.case.mode]
    pictures = [[image.fromarray(channel.numpy()) for channel in picture] for picture in problem.images]
    jobs = [
        (p, tuple(box))
        for box, b in zip(problem.boxes.tolist(), problem.owner.tolist(), strict=True)
        for p in pictures[b]
    ]

    def call() -> list[Any]:
        return [picture.resize(size, filter_, box=box, reducing_gap=None) for picture, box in jobs]

    def outcome(results: list[Any]) -> Outcome:
        flat = torch.from_numpy(np.stack([np.asarray(result) for result in results]))
        return Outcome(flat.reshape(len(problem.owner), -1, *problem.case.size))

    return Prepared(call, outcome)


def _pillow_meaning(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options() | {"padding_mode": "renormalize"})


def channels_inside(problem: Problem) -> list[Any]:
    """(H, W, C) as OpenCV has them, in memory too; one channel without its dimension."""
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()).squeeze() for image in problem.images]


def as_outcome(results: list[Any], problem: Problem) -> Outcome:
    stacked = torch.from_numpy(np.stack(results))
    if stacked.ndim == 3:
        stacked = stacked[..., None]
    return Outcome(stacked.reshape(len(problem.owner), *problem.case.size, -1).permute(0, 3, 1, 2))


def _prepare_opencv(interpolation: str) -> Callable[[Problem, str], Prepared]:
    def prepare(problem: Problem, pass_: str) -> Prepared:
        assert pass_ == "forward"
        cv2: Any = importlib.import_module("cv2")
        pictures, size, how = channels_inside(problem), problem.case.size[::-1], getattr(cv2, interpolation)
        jobs = [(pictures[b], box) for b, box in zip(problem.owner.tolist(), problem.rounded(), strict=True)]

        def call() -> list[Any]:
            return [cv2.resize(image[y0:y1, x0:x1], size, interpolation=how) for image, (x0, y0, x1, y1) in jobs]

        return Prepared(call, lambda results: as_outcome(results, problem))

    return prepare


def _prepare_remap(problem: Problem, pass_: str) -> Prepared:
    """The maps are part of the call, since they change with the box."""
    assert pass_ == "forward"
    cv2: Any = importlib.import_module("cv2")
    pictures, (h, w) = channels_inside(problem), problem.case.size
    jobs = [(pictures[b], box) for b, box in zip(problem.owner.tolist(), problem.boxes.tolist(), strict=True)]
    columns, rows = np.arange(w) + 0.5, np.arange(h)[:, None] + 0.5
    border = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}[problem.case.padding_mode]

    def call() -> list[Any]:
        results = []
        for image, (x0, y0, x1, y1) in jobs:
            x, y = np.empty((h, w), np.float32), np.empty((h, w), np.float32)
            x[:] = x0 - 0.5 + columns * ((x1 - x0) / w)
            y[:] = y0 - 0.5 + rows * ((y1 - y0) / h)
            results.append(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border))
        return results

    return Prepared(call, lambda results: as_outcome(results, problem))


def _as_they_are(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options())


def _antialiased(case: Case) -> str | None:
    if not case.antialias or case.mode not in ("bilinear", "bicubic"):
        return "interpolates antialiased, bilinear or bicubic"
    return None


def _whole(case: Case) -> str | None:
    return None if case.whole and case.pixels == tuple(map(float, case.size)) else "copies pixels"


def _pillow_filters(case: Case) -> str | None:
    if not case.antialias or case.mode not in ("bilinear", "bicubic", "lanczos3") or case.dtype != "float32":
        return "antialiases with its own filters, here in float32"
    return None


def _opencv(mode: str, antialias: bool) -> Callable[[Case], str | None]:
    def refuses(case: Case) -> str | None:
        if case.images[1] > 4:
            return "for pictures of up to 4 channels"
        if (case.mode, case.antialias, case.dtype) != (mode, antialias, "float32"):
            return f"is {mode} {'with' if antialias else 'without'} antialiasing, here in float32"
        return None

    return refuses


_EXACT = Tolerance(value=1e-4, images=1e-4, boxes=0.0, reason="positions and weights in float32")
_REMAP = Tolerance(
    value=4e-2,
    images=0.0,
    boxes=0.0,
    reason="OpenCV up to 4 rounds positions to 1/32 of a pixel: 1/64 off on each axis",
)

SLICES = Peer(
    "slices",
    "`interpolate(antialias=True)` of each slice, then `cat`; boxes rounded to whole pixels, no box gradient",
    _prepare_slices,
    _sliced("renormalize"),
    _EXACT,
    passes=IMAGE_GRADIENT_ONLY,
    refuses=_antialiased,
)
SLICING = Peer(
    "slicing",
    "`stack` of the slices: a copy",
    _prepare_slicing,
    _sliced("border"),
    _EXACT,
    passes=IMAGE_GRADIENT_ONLY,
    refuses=_whole,
)
PILLOW = Peer(
    "pillow",
    'Pillow\'s `resize(box=)` of mode "F" pictures, one per channel; results are left to it; one thread always',
    _prepare_pillow,
    _pillow_meaning,
    Tolerance(value=1e-4, images=0.0, boxes=0.0, reason="sides of boxes in float32"),
    passes=("forward",),
    needs=("PIL",),
    refuses=_pillow_filters,
    pool="none",
    single=True,
)
OPENCV_LINEAR = Peer(
    "opencv linear",
    "OpenCV's `resize`, INTER_LINEAR, of slices with channels last; boxes rounded to whole pixels",
    _prepare_opencv("INTER_LINEAR"),
    _sliced("border"),
    Tolerance(value=1e-4, images=0.0, boxes=0.0, reason="positions in float32"),
    passes=("forward",),
    needs=("cv2",),
    refuses=_opencv("bilinear", antialias=False),
    pool="opencv",
)
OPENCV_AREA = Peer(
    "opencv area",
    "OpenCV's `resize`, INTER_AREA, of slices with channels last; boxes rounded to whole pixels",
    _prepare_opencv("INTER_AREA"),
    _sliced("border"),
    _EXACT,
    passes=("forward",),
    needs=("cv2",),
    refuses=_opencv("area", antialias=True),
    pool="opencv",
)
OPENCV_REMAP = Peer(
    "opencv remap",
    "OpenCV's `remap`, INTER_LINEAR, with maps made from each box, channels last",
    _prepare_remap,
    _as_they_are,
    _REMAP,
    passes=("forward",),
    needs=("cv2",),
    refuses=_opencv("bilinear", antialias=False),
    pool="opencv",
)

WHOLE = Peer(
    "interpolate",
    "PyTorch's `interpolate` of the whole, without antialiasing or averaging whole pixels",
    _prepare_whole,
    lambda problem: Meaning(problem.boxes.double(), problem.options()),
    Tolerance(value=2e-6, images=2e-6, boxes=0.0, reason="sums in float32"),
    passes=IMAGE_GRADIENT_ONLY,
    refuses=_not_resized,
)
