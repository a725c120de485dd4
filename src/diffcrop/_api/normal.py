"""`normal_equations`: what Gauss-Newton and Levenberg-Marquardt solve, without a jacobian in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from diffcrop import _check, _check_crop, _check_normal, _normal, _ops
from diffcrop._context import plain
from diffcrop._options import sum_dtype

from . import ragged
from .crop import _by_box, _over_images, _prepare


class NormalEquations(NamedTuple):
    """What `normal_equations` returns."""

    hessian: Tensor
    gradient: Tensor
    loss: Tensor


def normal_equations(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    targets: Tensor,
    *,
    batch_index: Tensor | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    sigma: float | None = None,
    align_corners: bool = False,
    metric: str = "l2",
    huber: float | None = None,
    impl: str | None = None,
) -> NormalEquations:
    r"""The loss between crops and targets, its gradient by the box and its Gauss-Newton Hessian, in one pass.

    A step of Gauss-Newton is ``-solve(hessian, gradient)``. The jacobian J = d crop / d box is never stored: the
    compiled kernels make its rows, and add up their products, where `crop_with_jacobian` writes them.

    >>> import torch, diffcrop
    >>> ramp = torch.arange(8.0).expand(1, 8, 8)  # value = column
    >>> box = torch.tensor([4.0, 4.0, 2.0, 2.0])
    >>> target = diffcrop.crop(ramp, torch.tensor([4.5, 4.0, 2.0, 2.0]), 2, box_format="cxcywh")
    >>> hessian, gradient, loss = diffcrop.normal_equations(ramp, box, target, box_format="cxcywh")
    >>> step = -torch.linalg.pinv(hessian) @ gradient  # pinv: cy and h change nothing here
    >>> [round(s, 6) + 0.0 for s in step.tolist()]
    [0.5, 0.0, 0.0, 0.0]

    Args:
        images: as for `crop`, lists among them.
        boxes: as for `crop`, likewise.
        targets: what the crops shall become, (..., C, h, w) as the crops are, or what broadcasts to that: (C, h, w) is
            one target for all boxes, of which no copies are made. Floating-point or integer, which mean the same
            values. Their last dimensions say the size of the crops, which is one also for lists.
        batch_index: as for `crop`, like all that follow.
        box_format: the Hessian and the gradient are by the box's own numbers, in its format.
        coords: and in its coordinates.
        mode: all but ``"nearest"``, which has no derivative.
        antialias: see `crop`.
        padding_mode: see there.
        fill: see there.
        sigma: see there.
        align_corners: see there.
        metric: ``"l2"``: with r = crop - target, loss = sum r^2 / 2, gradient = J^T r, hessian = J^T J. ``"zncc"``: of
            crop and target each channel's mean is taken off and all channels together are scaled to norm 1, which
            makes u and t; loss = \|u - t\|^2 / 2 = 1 - correlation, gradient = J_u^T (u - t), hessian = J_u^T J_u
            with J_u = d u / d box. Brightness and contrast do not count then. A crop or target that is constant up to
            rounding (it deviates by less than 4e-6 of its root mean square) has loss 1 and zeros for the others.
        huber: for ``"l2"``: beyond this residual, in the images' units, the loss goes on linearly: r^2 / 2 becomes
            huber (\|r\| - huber / 2), and gradient and hessian are J^T W r and J^T W J, W = min(1, huber / \|r\|).
        impl: as for `crop`. The kernels of ``"cpu"`` are made for this; the others put crops and jacobians together, a
            few boxes at a time.

    Returns:
        ``hessian`` (..., 4, 4), ``gradient`` (..., 4) and ``loss`` (...), float64, with the leading dimensions that the
        crops have (2 numbers for signals, 6 for volumes). ``gradient`` is exactly d loss / d box. A NaN or infinite box
        gives NaN for itself alone. Crops are not rounded to a half precision of the images.

    Not differentiable: arguments that require grad are an error, unless grad mode is off. What is to be
    differentiated can be put together from `crop_with_jacobian`.

    """
    boxes = ragged.parts(boxes)
    axes = (
        _check_crop.box_list(boxes) if isinstance(boxes, (list, tuple)) else _check.boxes(boxes, five=_check.NUMBERED)
    )
    _check_normal.metric(metric, huber)
    size = _check_normal.targets(targets, axes)
    _check_normal.undifferentiated(images=images, boxes=boxes, targets=targets)
    _check_crop.derivable(mode)
    _check_crop.kernels_of_images(impl, axes)
    convention: dict[str, Any] = {"box_format": box_format, "coords": coords, "align_corners": align_corners}
    options: dict[str, Any] = {
        **convention,
        "mode": mode,
        "antialias": antialias,
        "padding_mode": padding_mode,
        "fill": fill,
        "sigma": sigma,
        "impl": impl,
    }
    if ragged.is_list(images):

        def along(leading: tuple[int, ...]) -> Tensor:
            first = ragged.parts(images)[0]
            shape = (*leading, first.shape[0], *size)
            _check_normal.target_shape(targets, "images", first, shape)
            return plain(targets).expand(shape)

        options |= {"metric": metric, "huber": huber}
        return _over_images(normal_equations, images, boxes, batch_index, options, along)
    call = _prepare(images, boxes, size, batch_index, **options)
    rows, channels = call.boxes.shape[0], call.images.shape[1]
    _check_normal.target_shape(targets, "images", call.images, (*call.leading, channels, *size))
    wanted = plain(targets).to(sum_dtype(call.images.dtype)).expand(*call.leading, channels, *size)
    sums = _ops.gram(
        plain(call.images),
        call.boxes,
        call.owner,
        wanted.reshape(rows, channels, *size),
        metric,
        math.inf if huber is None else _check.real(huber),
        call.options,
        call.impl,
    )
    hessian, gradient, loss = _normal.l2(sums) if metric == "l2" else _normal.zncc(sums, math.prod(size))
    linear = _by_box(call, convention)
    if linear is not None:
        hessian, gradient = linear @ hessian @ linear.mT, gradient @ linear.mT
    parts = (part.reshape((*call.leading, *part.shape[1:])) for part in (hessian, gradient, loss))
    return NormalEquations(*parts)


def normal_equations_of(
    crops: Tensor,
    jacobian: Tensor,
    targets: Tensor,
    *,
    metric: str = "l2",
    huber: float | None = None,
    axes: int = 2,
) -> NormalEquations:
    """The same from crops and derivatives that are there: of turned boxes, of quadrilaterals, of numbers of your own.

    `normal_equations` is faster for upright boxes and makes no jacobian. This is for what has one:
    `crop_with_jacobian`, and `warp_with_jacobian` with ``jacobian.flatten(-2)``, as its last two dimensions are those
    of the matrix. The last dimension may have been multiplied by the derivative of the box by m numbers.

    >>> import torch, diffcrop
    >>> ramp = torch.arange(8.0).expand(1, 8, 8)  # value = column
    >>> crop, jacobian = diffcrop.crop_with_jacobian(ramp, torch.tensor([1.0, 2.0, 5.0, 6.0]), 2)
    >>> along_x = jacobian @ torch.tensor([[1.0], [0.0], [1.0], [0.0]])  # one number: the box moves along x
    >>> hessian, gradient, loss = diffcrop.normal_equations_of(crop, along_x, crop + 0.5)
    >>> -torch.linalg.solve(hessian, gradient)
    tensor([0.5000], dtype=torch.float64)

    Args:
        crops: (..., C, h, w), floating-point.
        jacobian: (..., C, h, w, m), their derivatives by m numbers.
        targets: what the crops shall become, of their shape or what broadcasts to it.
        metric: ``"l2"`` or ``"zncc"``, as for `normal_equations`.
        huber: see there.
        axes: how many spatial dimensions the crops have: 1 for signals, 3 for volumes.

    Returns:
        ``hessian`` (..., m, m), ``gradient`` (..., m) and ``loss`` (...), float64.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes, devices or options that do not fit.

    Not differentiable: arguments that require grad are an error, unless grad mode is off.

    """
    _check_normal.axes(axes)
    _check_normal.metric(metric, huber)
    _check_normal.crops(crops, axes)
    _check_normal.jacobian(jacobian, crops)
    _check_normal.targets(targets, axes)
    _check_normal.target_shape(targets, "crops", crops, tuple(crops.shape))
    _check_normal.undifferentiated(crops=crops, jacobian=jacobian, targets=targets)
    leading, (channels, *size) = crops.shape[: -axes - 1], crops.shape[-axes - 1 :]
    rows = math.prod(leading)
    sums = _normal.products(
        plain(crops).reshape(rows, channels, *size),
        plain(jacobian).reshape(rows, channels, *size, jacobian.shape[-1]),
        plain(targets).expand(crops.shape).reshape(rows, channels, *size),
        metric,
        math.inf if huber is None else _check.real(huber),
    )
    parts = _normal.l2(sums) if metric == "l2" else _normal.zncc(sums, math.prod(size))
    return NormalEquations(*(part.reshape((*leading, *part.shape[1:])) for part in parts))
