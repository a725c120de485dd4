"""Normal equations by products of columns: pure functions of tensors, without checks.

A column has a number for each output of a channel. With J the 2A columns of d crop / d box they are

    l2      J, r               r = crop - target; weighted with W = min(1, delta / |r|), Huber's
    zncc    J, crop, target, 1

`products` of all pairs, (R, C, n, n) in float64, is what a kernel has to give: all that is asked is made from it alone.
The last number of l2, r with itself, is twice the sum of Huber's function, which is sum r^2 where delta is infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("l2", "zncc")
# A crop (or target) whose deviation from its channels' means is a smaller share of its norm is constant: what is left
# is the rounding of float32 sums. Squared.
FLAT = 2.0**-36


def columns(metric: str, axes: int) -> int:
    """How many there are."""
    return 2 * axes + (1 if metric == "l2" else 3)


def products(crop: Tensor, jacobian: Tensor, targets: Tensor, metric: str, huber: float) -> Tensor:
    """From crops and targets (R, C, *size) and the jacobian (R, C, *size, 2A)."""
    slopes = jacobian.flatten(2, -2).to(torch.float64)
    value, target = (t.flatten(2).to(torch.float64).unsqueeze(-1) for t in (crop, targets))
    if metric == "zncc":
        table = torch.cat([slopes, value, target, torch.ones_like(value)], -1)
        return table.mT @ table
    residual = value - target
    table = torch.cat([slopes, residual], -1)
    size = residual.abs()
    within = size <= huber
    result = (table * torch.where(within, 1.0, huber / size)).mT @ table
    outside = 2 * huber * size - huber**2
    loss = torch.where(within, residual.square(), outside).sum((-2, -1))
    # Put together, not written in place: so it is one expression for a compiler, too.
    last = torch.cat([result[..., -1, :-1], loss.unsqueeze(-1)], -1)
    return torch.cat([result[..., :-1, :], last.unsqueeze(-2)], -2)


def l2(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, gradient and loss of (R, C, n, n)."""
    total = sums.sum(1)
    return total[:, :-1, :-1], total[:, :-1, -1], total[:, -1, -1] / 2


def zncc(sums: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of channels of ``count`` outputs, for the normalised crop u = P crop / |P crop| and target.

    P takes the mean of each channel off, and J_u = (P J - u u^T P J) / |P crop|.
    """
    means = sums[..., :-1, -1:] / count
    centred = (sums[..., :-1, :-1] - means * sums[..., -1:, :-1]).sum(1)
    square = centred.diagonal(dim1=-2, dim2=-1)[:, -2:]
    flat = square <= FLAT * sums.sum(1).diagonal(dim1=-2, dim2=-1)[:, -3:-1]
    # Divided by infinity, all is zero. NaN is not flat.
    norms = torch.where(flat.any(-1, keepdim=True), torch.inf, square).sqrt()
    by_crop, by_target = (centred[..., -2:] / norms.unsqueeze(-2)).unbind(-1)
    norm, along = norms[:, :1], by_crop[:, :-2]
    correlation = by_target[:, -2:-1] / norm
    hessian = (centred[:, :-2, :-2] - along.unsqueeze(-1) * along.unsqueeze(-2)) / (norm * norm).unsqueeze(-1)
    gradient = (correlation * along - by_target[:, :-2]) / norm
    return hessian, gradient, (1 - correlation.squeeze(-1)).clamp(min=0.0)
