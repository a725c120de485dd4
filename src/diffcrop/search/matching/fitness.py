"""How well a crop is its template, and how exactly its box is known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .coarse_to_fine import Matcher


class Fit(NamedTuple):
    """How well one crop is its template: residual (), the share of the template's variance explained (), (m, m)."""

    residual: Tensor
    explained: Tensor
    covariance: Tensor


def fit(matcher: Matcher, problem: int, box: Tensor, mode: str) -> Fit:
    """Of one box (m,) for one of the problems."""
    image = matcher.images[problem * len(matcher.images) // len(matcher.templates)]
    if image.is_floating_point() and image.element_size() < 4:
        image = image.float()  # what the refinement saw was not rounded either
    template = matcher.templates[problem]
    options = {name: matcher.options[name] for name in ("antialias", "padding_mode", "impl")}
    value, jacobian = matcher.pose.linearized(image, box, matcher.size, {**options, "mode": mode})
    value, wanted, jacobian = value.double(), template.double(), jacobian.double()
    centred = wanted - wanted.mean((1, 2), keepdim=True)
    basis, huber = matcher.basis(), matcher.options["huber"]
    freedom = value.numel() - (len(box) if basis is None else basis.shape[1])
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
    return Fit(residual, explained, _covariance(difference, jacobian, huber, freedom, basis))


def _covariance(
    difference: Tensor, jacobian: Tensor, huber: float | None, freedom: int, basis: Tensor | None
) -> Tensor:
    """Of independent noise: s^2 (J^T J)^-1, s^2 the mean square of the residual over its degrees of freedom.

    With Huber's function, s^2 A^-1 J^T J A^-1, where s^2 and A count what is beyond the limit as that function does
    (Huber, 1981, section 7.6, without his small-sample factor).
    """
    r, J, m = difference.flatten(), jacobian.flatten(0, -2), jacobian.shape[-1]
    if basis is not None:
        J = J @ basis
    inside = torch.ones_like(r) if huber is None else (r.abs() <= huber).to(r.dtype)
    if freedom < 1:
        return r.new_full((m, m), torch.inf)
    inverse, _ = torch.linalg.inv_ex(J.T @ (inside[:, None] * J))
    if not bool(inverse.isfinite().all()):
        return r.new_full((m, m), torch.inf)
    covariance = _clipped(r, huber).square().sum() / freedom * inverse @ (J.T @ J) @ inverse
    return covariance if basis is None else basis @ covariance @ basis.T


def _clipped(residual: Tensor, huber: float | None) -> Tensor:
    return residual if huber is None else residual.clamp(-huber, huber)
