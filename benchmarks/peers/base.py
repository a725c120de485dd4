"""What a peer is: how it is called, what it means by that, and how exact it has to be."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.problem import Outcome, Prepared, Problem, wants

IMAGE_GRADIENT_ONLY = ("forward", "images")


@dataclass(frozen=True)
class Tolerance:
    """Largest error in parts of the largest expected value, for float32, and why it may be that large."""

    value: float
    images: float
    boxes: float
    reason: str


@dataclass(frozen=True)
class Meaning:
    """The same operation in diffcrop's terms: the gate expects its reference on these boxes, in float64.

    ``sliced``: the peer sees nothing but the slice that its boxes, whole numbers, cut out.
    """

    boxes: Tensor
    options: dict[str, Any]
    sliced: bool = False


@dataclass(frozen=True)
class Peer:
    """A contestant as data. ``prepare`` makes the call that is timed, with all that a user has at hand before it."""

    name: str
    about: str
    prepare: Callable[[Problem, str], Prepared]
    meaning: Callable[[Problem], Meaning]
    tolerance: Tolerance
    passes: tuple[str, ...] = ("forward", "boxes", "images", "both")
    needs: tuple[str, ...] = ()
    # Why it cannot do a case, or None.
    refuses: Callable[[Case], str | None] = field(default=lambda _: None)
    # Whose threads it runs on. Where this changes from one sample to the next, those of the last may go to sleep first.
    pool: str = "openmp"
    # Runs in a process of its own, which sees as many processors as there are threads.
    alone: bool = False
    # What it runs on one thread only, whatever is asked.
    single: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else None


def as_rows(crops: Tensor, problem: Problem) -> Tensor:
    """Crops in whatever leading shape, as (R, C, *size); pastes as they come, canvases (B, C, H, W)."""
    if problem.case.shape == "paste":
        return crops
    return crops.reshape(len(problem.owner), *crops.shape[-problem.case.axes - 1 :])


def torch_call(
    function: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    boxes: Tensor,
    cotangent: Tensor,
    pass_: str,
    problem: Problem,
    rows: Callable[[Tensor, Problem], Tensor] = as_rows,
) -> Prepared:
    """A call of ``function(images, boxes)`` and of autograd; ``cotangent`` is in the layout of its result."""
    by_images, by_boxes = wants(pass_)
    images, boxes = images.detach().requires_grad_(by_images), boxes.detach().requires_grad_(by_boxes)
    leaves = [leaf for leaf in (images, boxes) if leaf.requires_grad]

    def call() -> Sequence[Tensor]:
        value = function(images, boxes)
        if not leaves:
            return (value,)
        return value, *torch.autograd.grad(value, leaves, cotangent)

    def outcome(result: Sequence[Tensor]) -> Outcome:
        value, *gradients = (tensor.detach() for tensor in result)
        return Outcome(
            value=rows(value, problem),
            images=gradients[0].reshape(problem.images.shape) if by_images else None,
            boxes=gradients[-1].reshape(problem.boxes.shape) if by_boxes else None,
        )

    return Prepared(call, outcome)


def per_box(images: Tensor, problem: Problem) -> Tensor:
    """One image per box for operations that pair them: a view of a single image, copies of several."""
    count = problem.case.boxes
    if count == 1:
        return images
    if len(images) == 1:
        return images.expand(count, *images.shape[1:])
    return images.repeat_interleave(count, 0)
