"""Nothing is timed before it is right: values and gradients against the reference in float64, under a peer's own terms.

The very call that will be timed is looked at, on its full tensors. What is expected of it is computed for the first and
the last box with all channels, and, where an image's gradient sums over many boxes, for the first channels with all of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

import diffcrop

from .peers import Meaning, Peer
from .problem import Outcome, Problem, crop_of, wants

_CHANNELS = 4


@dataclass(frozen=True)
class Verdict:
    """Errors in parts of the largest expected value, beside what they may be."""

    green: bool
    errors: dict[str, float]
    tolerances: dict[str, float]
    problem: str | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        return ", ".join(
            f"{name} {error:.1e} (at most {self.tolerances[name]:.0e})" for name, error in self.errors.items()
        )


@dataclass(frozen=True)
class Expected:
    """Of the crops ``values``: what they are; of the boxes ``rows``, and ``images`` and first channels: gradients."""

    values: list[int]
    rows: list[int]
    images: list[int]
    channels: int
    outcome: Outcome


def expected(problem: Problem, meaning: Meaning) -> Expected:
    """All that any pass of this problem may be asked for."""
    if problem.canvas is not None:
        return _expected_paste(problem, meaning)
    rows = sorted({0, len(problem.owner) - 1})
    images = sorted({int(problem.owner[row]) for row in rows})
    one_box_each = problem.case.boxes == 1
    value, by_images, by_boxes = _reference(problem, meaning, rows, images, problem.images.shape[1])
    channels = problem.images.shape[1]
    if not one_box_each:
        channels = min(channels, _CHANNELS)
        everything = [row for row in range(len(problem.owner)) if int(problem.owner[row]) in images]
        _, by_images, _ = _reference(problem, meaning, everything, images, channels)
    return Expected(rows, rows, images, channels, Outcome(value, by_images, by_boxes))


def _expected_paste(problem: Problem, meaning: Meaning) -> Expected:
    """The first and the last canvas with all their patches."""
    assert problem.canvas is not None
    canvases = sorted({0, len(problem.canvas) - 1})
    rows = [row for row, canvas in enumerate(problem.owner.tolist()) if canvas in canvases]
    patches = problem.images[rows].double().requires_grad_()
    boxes = meaning.boxes[rows].requires_grad_()
    owner = torch.tensor([canvases.index(int(problem.owner[row])) for row in rows])
    canvas, options = problem.canvas[canvases].double(), problem.paste_options()
    value = diffcrop.paste(patches, boxes, canvas=canvas, batch_index=owner, impl="reference", **options)
    by_patches, by_boxes = torch.autograd.grad(value, (patches, boxes), problem.cotangent[canvases].double())
    return Expected(canvases, rows, rows, patches.shape[1], Outcome(value.detach(), by_patches, by_boxes))


def _reference(
    problem: Problem, meaning: Meaning, rows: list[int], images: list[int], channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Crops of some boxes of some images in float64, and both gradients."""
    pictures = problem.images[images, :channels].double().contiguous().requires_grad_()
    boxes = meaning.boxes[rows].requires_grad_()
    owner = torch.tensor([images.index(int(problem.owner[row])) for row in rows])
    size, options = problem.case.size, meaning.options
    if meaning.sliced:
        crops = []
        for b, (x0, y0, x1, y1) in zip(owner.tolist(), boxes.detach().int().tolist(), strict=True):
            whole = torch.tensor([0.0, 0, x1 - x0, y1 - y0], dtype=torch.float64)
            crops.append(diffcrop.crop(pictures[b, :, y0:y1, x0:x1], whole, size, impl="reference", **options))
        value = torch.stack(crops) + 0 * boxes.sum()  # a slice does not depend on its box
    else:
        value = crop_of(problem.case)(pictures, boxes, size, batch_index=owner, impl="reference", **options)
    cotangent = problem.cotangent[rows, :channels].double()
    by_images, by_boxes = torch.autograd.grad(value, (pictures, boxes), cotangent)
    return value.detach(), by_images, by_boxes


def compare(problem: Problem, peer: Peer, pass_: str, outcome: Outcome, wanted: Expected) -> Verdict:
    """Of one pass."""
    scale, rounding = _precision(outcome.value.dtype)
    limits = {"value": peer.tolerance.value * scale + rounding}
    pairs: dict[str, tuple[Tensor | None, Tensor | None, Callable[[Tensor], Tensor]]] = {
        "value": (outcome.value, wanted.outcome.value, lambda t: t[wanted.values]),
    }
    by_images, by_boxes = wants(pass_)
    if by_images:
        limits["images"] = peer.tolerance.images * scale + rounding
        pairs["images"] = (outcome.images, wanted.outcome.images, lambda t: t[wanted.images, : wanted.channels])
    if by_boxes:
        limits["boxes"] = peer.tolerance.boxes * scale
        pairs["boxes"] = (outcome.boxes, wanted.outcome.boxes, lambda t: t[wanted.rows])
    shapes = {"value": problem.cotangent.shape, "images": problem.images.shape, "boxes": problem.boxes.shape}
    errors = {}
    for name, (got, want, part) in pairs.items():
        if got is None or want is None or got.shape != shapes[name]:
            said = "nothing" if got is None else str(tuple(got.shape))
            return Verdict(False, errors, limits, f"{name}: {said} where {tuple(shapes[name])} is expected")
        if not bool(got.isfinite().all()):
            return Verdict(False, errors, limits, f"{name}: not finite")
        errors[name] = float((part(got).double() - want).abs().max() / want.abs().max().clamp(min=1e-30))
    return Verdict(all(errors[name] <= limits[name] for name in errors), errors, limits)


def _precision(dtype: torch.dtype) -> tuple[float, float]:
    """What tolerances of float32 become: a factor for float64; for half precision, the rounding of what is stored."""
    eps = torch.finfo(dtype).eps
    if dtype == torch.float64:
        return eps / torch.finfo(torch.float32).eps, 0.0
    return 1.0, eps if dtype.itemsize == 2 else 0.0
