"""`warp_with_jacobian`: a warp and the derivative of each of its pixels by the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop import _bounding, _check, _check_warp, _ops_warp
from diffcrop._context import full_precision, plain

from . import ragged
from .warp import MATRIX, Call, options_of, prepare


class WarpWithJacobian(NamedTuple):
    """What `warp_with_jacobian` returns."""

    crop: Tensor
    jacobian: Tensor


def warp_with_jacobian(
    images: Tensor,
    matrix: Tensor,
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    align_corners: bool = False,
    impl: str | None = None,
) -> WarpWithJacobian:
    """The warp and its derivative by the matrix, as Gauss-Newton and Levenberg-Marquardt need them.

    Arguments as for `warp`, without lists; ``mode="nearest"`` is an error, as it has no derivative.

    Returns:
        ``crop``: as `warp` gives it. ``jacobian``: (*crop.shape, 2, 3), or (*crop.shape, 3, 3) of matrices (3, 3): the
        derivative of each pixel by the matrix' own entries, in its own coordinates and in the crop's dtype. Both are
        differentiable. As for `warp`, the levels and numbers of samples that antialiasing chooses count as constants.

    The derivative by fewer numbers, of which the matrix is a function, is this times that function's:

    >>> import torch, diffcrop
    >>> ramp = torch.arange(8.0).expand(1, 8, 8)  # value = column
    >>> matrix = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]])
    >>> jacobian = diffcrop.warp_with_jacobian(ramp, matrix, 2).jacobian
    >>> quarter = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # d matrix / d angle, about the corner
    >>> (jacobian * quarter).sum((-2, -1))  # what lies lower moves to the right
    tensor([[[0.5000, 0.5000],
             [1.5000, 1.5000]]])

    """
    for name, value in (("images", images), ("matrix", matrix)):
        if ragged.is_list(value):
            raise TypeError(
                f"{name} must be a tensor, as warp_with_jacobian takes no lists, got {_check.describe(value)}; call it "
                "for each image of a list"
            )
    _check_warp.derivable(mode)
    options = options_of(mode, antialias, padding_mode, fill, align_corners, impl)
    call = prepare(_bounding.bare(images), matrix, size, batch_index, MATRIX, coords, options)
    projective = matrix.shape[-2] == 3
    arguments = (call.images, call.matrices, call.owner, call.size, call.options)
    value, jacobian = _ops_warp.with_jacobian(*arguments, projective, call.impl)
    # In other coordinates the last row of the matrix between pixels depends on the others, and they on it.
    linear = None if coords == "pixel" and not align_corners else _by_matrix(call, matrix, coords, align_corners)
    if linear is not None:
        rows = jacobian.shape[-2]
        # A matrix product would be rounded under autocast.
        flat = jacobian.flatten(-2)[..., None, :] * linear[..., : 3 * rows].to(jacobian.dtype)
        jacobian = flat.sum(-1).to(jacobian.dtype).unflatten(-1, (rows, 3))
    return WarpWithJacobian(
        value.reshape((*call.leading, *value.shape[1:])), jacobian.reshape((*call.leading, *jacobian.shape[1:]))
    )


def _by_matrix(call: Call, matrix: Tensor, coords: str, align_corners: bool) -> Tensor:
    """The derivative of the matrix between pixels, flat, by the entries of that given, a row for each of these.

    The one is an affine function of the other: this is that function's linear part.
    """
    rows = matrix.shape[-2]
    with full_precision(call.images):
        units = torch.eye(3 * rows, dtype=torch.float64 if matrix.device.type != "mps" else torch.float32)
        units = units.to(plain(matrix).device).view(-1, rows, 3)
        options: dict[str, Any] = {"coords": coords, "align_corners": align_corners}
        shape = call.images.shape[-2:]
        there = MATRIX.matrices(units, shape, call.size, **options)
        return (there - MATRIX.matrices(torch.zeros_like(units[:1]), shape, call.size, **options)).flatten(-2)
