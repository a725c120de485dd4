"""The errors of normal equations, one function per argument."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _check, _check_crop
from ._context import in_transform, is_sharded
from ._normal import METRICS


def targets(value: Any, axes: int) -> tuple[int, ...]:
    """A tensor of at least the spatial axes; its other dimensions are `target_shape`'s. Returns the crops' size."""
    wanted = f"(..., C, {', '.join('dhw'[-axes:] if axes > 1 else 'w')})"
    if not isinstance(value, Tensor):
        raise TypeError(
            f"targets must be a tensor of shape {wanted}, got {_check.describe(value)}; {_check.conversion(value)}"
        )
    if value.dtype not in _check_crop.DTYPES:
        raise TypeError(
            f"targets must be floating-point (float64, float32, float16, bfloat16), integer or bool, "
            f"got {_check.describe(value)}"
        )
    _check.dense(value, "targets")
    size = tuple(value.shape[max(value.ndim - axes, 0) :])
    if len(size) < axes or any(n == 0 for n in size):
        raise ValueError(
            f"targets must have shape {wanted}, with at least one pixel along every axis, got {_check.describe(value)}"
        )
    return size


def target_shape(value: Tensor, name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Targets broadcast to the crops of this shape, and lie where the images (or crops, see ``name``) do."""
    if value.device != images.device:
        raise ValueError(
            f"{name} and targets must be on the same device, got {images.device} and {value.device}; "
            f"move one with targets.to({str(images.device)!r})"
        )
    given = tuple(value.shape)
    if len(given) > len(shape) or any(m not in (1, n) for m, n in zip(reversed(given), reversed(shape), strict=False)):
        raise ValueError(
            f"targets must have the shape of the crops, {shape}, or one that broadcasts to it, got {given}; "
            "one target for each box has the boxes' leading dimensions"
        )


def metric(value: Any, huber: Any) -> None:
    """The name of a metric, and Huber's threshold, which belongs to l2."""
    _check.choice(value, "metric", METRICS, {"ssd": "l2", "mse": "l2", "ncc": "zncc", "correlation": "zncc"})
    if huber is None:
        return
    if value != "l2":
        raise ValueError(
            f"huber belongs to metric='l2', got huber={_check.describe(huber)} with metric={value!r}; leave it out"
        )
    if isinstance(huber, bool) or not isinstance(huber, numbers.Real):
        raise TypeError(f"huber must be a number, or None for squares throughout, got {_check.describe(huber)}")
    if not _check.real(huber) > 0:
        raise ValueError(f"huber must be more than 0, in the units of the images, got {huber!r}")


def undifferentiated(**tensors: Any) -> None:
    """Nothing is to be differentiated: normal equations have no derivative, and zeros would be worse than an error."""
    instead = "differentiate what crop_with_jacobian returns"
    if in_transform():
        raise ValueError(f"normal equations are not made under torch.func transforms; call it outside, or {instead}")
    dual = forward_ad._current_level >= 0
    for name, tensor in _each(tensors):
        if is_sharded(tensor):
            raise TypeError(f"normal equations take plain tensors, got a DTensor of {name}; pass {name}.to_local()")
        if not isinstance(tensor, Tensor):
            continue  # another check's
        if (torch.is_grad_enabled() and tensor.requires_grad) or (
            dual and forward_ad.unpack_dual(tensor).tangent is not None
        ):
            raise ValueError(
                f"normal equations are not differentiable, but {name} requires grad or has a tangent; make them under "
                f"torch.no_grad(), pass {name}.detach(), or {instead}"
            )


def _each(tensors: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name, those of lists one by one."""
    for name, value in tensors.items():
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", one) for i, one in enumerate(value))
        else:
            yield name, value


def axes(value: Any) -> int:
    """How many spatial dimensions crops have."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"axes must be 1, 2 or 3, the spatial dimensions of the crops, got {_check.describe(value)}")
    if value not in (1, 2, 3):
        raise ValueError(f"axes must be 1 (signals), 2 (images) or 3 (volumes), got {_check.describe(value)}")
    return value


def crops(value: Any, axes: int) -> None:
    """Floating-point, with channels and so many spatial axes."""
    wanted = f"(..., C, {', '.join('dhw'[-axes:] if axes > 1 else 'w')})"
    _floating(value, "crops", wanted)
    if value.ndim < axes + 1 or 0 in value.shape[-axes:]:
        raise ValueError(
            f"crops must have shape {wanted}, with at least one pixel along every axis, got {_check.describe(value)}"
        )


def jacobian(value: Any, crops: Tensor) -> None:
    """A derivative of each number of the crops by some numbers."""
    _floating(value, "jacobian", "(..., C, h, w, m)")
    if value.shape[:-1] != crops.shape:
        hint = ""
        if value.ndim == crops.ndim + 2 and value.shape[:-2] == crops.shape:
            hint = "; of derivatives by a matrix, as of warp_with_jacobian, pass jacobian.flatten(-2)"
        shape = f"({', '.join(map(str, crops.shape))}, m)"
        raise ValueError(
            f"jacobian must have the shape of the crops and one dimension more, {shape}, "
            f"got {_check.describe(value)}{hint}"
        )
    if value.device != crops.device:
        raise ValueError(
            f"crops and jacobian must be on the same device, got {crops.device} and {value.device}; "
            f"move one with jacobian.to({str(crops.device)!r})"
        )


def _floating(value: Any, name: str, wanted: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {wanted}, got {_check.describe(value)}")
    if value.dtype not in _check_crop.FLOATING:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {_check.describe(value)}")
    _check.dense(value, name)
