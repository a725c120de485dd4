"""Levenberg and Marquardt's method for many boxes side by side, with the exact derivatives of the crop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import diffcrop

# Damping is in units of the Hessian's diagonal, as Marquardt (1963) has it, so that it means the same for each side.
_DAMPING, _LOWER, _RAISE, _LEAST, _MOST = 1e-3, 0.1, 8.0, 1e-9, 1e6
# Of the Hessian's largest diagonal element: crops in float32 have derivatives of this much where there are none.
_ROUNDING = 1e-9
# A gain of this part of the loss is none. Where a template fits exactly the loss falls by far more up to the end.
_GAIN = 1e-6
# No number changes by more at once, in its unit: the box's side, or a radian.
_FARTHEST = 0.3

Equations = Callable[[Tensor], "diffcrop.NormalEquations"]
Units = Callable[[Tensor], Tensor]


class Descent(NamedTuple):
    """R boxes of m numbers after n steps (R, m), losses, whether a step was small (R,); (n + 1, R, m), (n + 1, R)."""

    boxes: Tensor
    losses: Tensor
    settled: Tensor
    path: Tensor
    path_losses: Tensor


def levenberg_marquardt(
    equations: Equations,
    boxes: Tensor,
    units: Units,
    pixel: Tensor,
    iterations: int,
    tolerance: float,
    basis: Tensor | None = None,
) -> Descent:
    """Minimise the losses of ``equations`` over boxes (R, m), each by itself, until steps are small.

    ``units`` of boxes (R, m) say how far each number may move. ``pixel`` (R, m) is the size of a crop's pixel: a step
    is small when no number changes by more than ``tolerance`` of it. With a ``basis`` (m, n) boxes move in its
    columns alone.
    """
    hessian, gradient, loss = equations(boxes)
    damping = torch.full_like(loss, _DAMPING)
    settled = torch.zeros_like(loss, dtype=torch.bool)
    path, losses = [boxes], [loss]
    for _ in range(iterations):
        step = _step(hessian, gradient, damping, basis)
        step = step * (_FARTHEST / (step / units(boxes)).abs().amax(1, keepdim=True).clamp(min=_FARTHEST))
        trial = boxes + step
        hessian_there, gradient_there, loss_there = equations(trial)
        better = loss_there < loss  # false for NaN
        # Some crops have kinks, at which steps stay longer than what they gain is worth.
        stalled = better & (loss - loss_there <= _GAIN * loss)
        settled = settled | stalled | ((step / pixel).abs() < tolerance).all(1)
        boxes = torch.where(better[:, None], trial, boxes)
        hessian = torch.where(better[:, None, None], hessian_there, hessian)
        gradient = torch.where(better[:, None], gradient_there, gradient)
        loss = torch.where(better, loss_there, loss)
        damping = torch.where(better, damping * _LOWER, damping * _RAISE).clamp(_LEAST, _MOST)
        path.append(boxes)
        losses.append(loss)
        if settled.all():
            break
    return Descent(boxes, loss, settled, torch.stack(path), torch.stack(losses))


def _step(hessian: Tensor, gradient: Tensor, damping: Tensor, basis: Tensor | None) -> Tensor:
    if basis is not None:
        hessian, gradient = basis.mT @ hessian @ basis, (basis.mT @ gradient[..., None])[..., 0]
    diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
    # Where the template says nothing about a number of the box there is only rounding, which must not move it.
    largest = diagonal.amax(1, keepdim=True)
    unknown = diagonal <= _ROUNDING * largest
    floor = unknown * largest + torch.finfo(diagonal.dtype).tiny
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal + floor)
    solution, failed = torch.linalg.solve_ex(damped, gradient.masked_fill(unknown, 0))
    step = -torch.where((failed == 0)[:, None], solution, 0).nan_to_num(0, 0, 0)
    return step if basis is None else (basis @ step[..., None])[..., 0]
