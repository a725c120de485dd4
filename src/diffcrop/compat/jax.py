"""`jax.image.scale_and_translate`, with torch's tensors.

What differs from JAX:

* At kinks (positions on pixel centres, a scale of exactly 1) the derivative is the right-hand one in the position,
  where JAX takes what its `maximum` and `abs` give there; elsewhere the derivatives are equal, to every order.
* A negative scale mirrors, and is antialiased as its absolute value is; JAX antialiases positive scales only.
* Sums of integers and half precision are kept in float32 or better, positions and weights are computed in float64.
* ``shape`` has to repeat the sizes of the dimensions that are not spatial, which JAX does not look at.
* ``"linear"``, ``"lanczos3"`` and the antialiased ``"cubic"`` run in `diffcrop.crop`, without matrices of weights.
  ``"lanczos5"``, ``"area"`` and cubics without antialiasing are contracted with such matrices, as JAX does it, in
  float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _check, _check_crop

from . import _arguments

__all__ = ["scale_and_translate"]

_METHODS = {
    **dict.fromkeys(("linear", "bilinear", "trilinear", "triangle"), "linear"),
    **dict.fromkeys(("cubic", "bicubic", "tricubic"), "cubic"),
    **dict.fromkeys(("cubic-pytorch", "bicubic-pytorch"), "cubic-pytorch"),
    "lanczos3": "lanczos3",
    "lanczos5": "lanczos5",
    "area": "area",
}


def scale_and_translate(
    image: Tensor,
    shape: Sequence[int],
    spatial_dims: Sequence[int],
    scale: Tensor | Sequence[float],
    translation: Tensor | Sequence[float],
    method: Any,
    antialias: bool = True,
    precision: str | None = None,
) -> Tensor:
    r"""An array of ``shape`` that shows the image scaled and moved, as ``jax.image.scale_and_translate`` gives it.

    Pixel k of an axis covers [k, k + 1]. Along a spatial dimension a place x of the image comes to lie at
    x scale + translation, so output j of n, at j + 1/2, reads the image at

    .. code-block:: text

        c_j = (j + 1/2 - translation) / scale - 1/2        on the axis of pixel indices

    which is `diffcrop.crop` at the box from -translation / scale to (n - translation) / scale with
    ``padding_mode="renormalize"``: taps inside the image count, renormalised, and outputs with c_j outside
    [-1/2, N - 1/2] are 0.

    Args:
        image: any number of dimensions; integers give float32.
        shape: of the result, all dimensions.
        spatial_dims: 1 to 3 different ones, in any order; negative ones count from the end.
        scale: one number for each spatial dimension.
        translation: the same.
        method: ``"linear"`` (also ``"bilinear"``, ``"trilinear"``, ``"triangle"``), ``"cubic"`` (``"bicubic"``,
            ``"tricubic"``: Keys' with a = -1/2), ``"cubic-pytorch"`` (``"bicubic-pytorch"``: without antialiasing
            a = -3/4, and the image's edge is repeated), ``"lanczos3"``, ``"lanczos5"``, ``"area"``; or a member of
            ``jax.image.ResizeMethod``.
        antialias: whether the filter widens where the scale reduces.
        precision: None or ``"highest"``: sums are never rounded to less than float32.

    Returns:
        A tensor of ``shape`` in the image's dtype, differentiable in ``image``, ``scale`` and ``translation``.

    Raises:
        TypeError, ValueError: for a wrong argument, ``"nearest"`` among the methods (as in JAX).

    >>> import torch
    >>> from diffcrop.compat.jax import scale_and_translate
    >>> signal = torch.arange(6.0)
    >>> translation = torch.tensor([1.0], requires_grad=True)
    >>> moved = scale_and_translate(signal, (6,), (0,), torch.tensor([1.0]), translation, "linear")
    >>> moved.tolist()
    [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    >>> moved.sum().backward()
    >>> translation.grad  # every output but the first sinks by 1, and that one is outside
    tensor([-5.])

    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a tensor, got {_arguments.describe(image)}; convert with torch.as_tensor")
    _check_crop.pixels(image, "image")
    dims = _spatial(spatial_dims, image.ndim)
    size = _shape(shape, image, dims)
    name = _method(method)
    _arguments.flag(antialias, "antialias")
    if precision is not None and not (isinstance(precision, str) and precision == "highest"):
        given = _arguments.describe(precision)
        raise ValueError(f"precision must be None or 'highest', as sums are kept in float32, got {given}")
    scale = _numbers(scale, "scale", dims, image.device)
    translation = _numbers(translation, "translation", dims, image.device)
    if not dims:
        return image

    length = torch.tensor(size, dtype=scale.dtype, device=image.device)
    lo, hi = -translation / scale, (length - translation) / scale
    last = tuple(range(-len(dims), 0))
    source = image.movedim(dims, last)
    if name == "cubic-pytorch" and antialias:
        name = "cubic"
    # What crop has no filter for: weights as a matrix.
    if name in ("lanczos5", "area", "cubic-pytorch") or (name == "cubic" and not antialias):
        result = _contracted(source, lo, hi, size, name, antialias)
    else:
        result = _cropped(source, lo, hi, size, name, antialias)
    return result.movedim(last, dims)


def _cropped(source: Tensor, lo: Tensor, hi: Tensor, size: tuple[int, ...], name: str, antialias: bool) -> Tensor:
    """By `diffcrop.crop`: the dimensions in front of the spatial ones become one batch and its channels."""
    axes = len(size)
    leading = source.shape[: source.ndim - axes]
    if len(leading) == 0:
        source = source.unsqueeze(0)
    elif len(leading) > 2:  # the first is the batch, which leaves channels that are innermost where they are
        source = source.flatten(1, len(leading) - 1)
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(name, name)
    box = torch.cat([lo.flip(0), hi.flip(0)])
    result = diffcrop.crop(source, box, size, mode=mode, antialias=antialias, padding_mode="renormalize")
    return result.reshape(*leading, *size)


def _contracted(source: Tensor, lo: Tensor, hi: Tensor, size: tuple[int, ...], name: str, antialias: bool) -> Tensor:
    """With one matrix of weights (n, N) for each axis, in float64: autocast leaves its products alone, backward too."""
    axes = len(size)
    dtype = source.dtype if source.is_floating_point() else torch.float32
    result = source.to(lo.dtype)
    for axis in range(axes):
        pixels = result.shape[axis - axes]
        weights = _weights(lo[axis], hi[axis], size[axis], pixels, name, antialias)
        with torch.autocast(result.device.type, enabled=False):  # for devices without float64
            result = (result.movedim(axis - axes, -1) @ weights.mT).movedim(-1, axis - axes)
    return result.to(dtype)


def _weights(lo: Tensor, hi: Tensor, n: int, pixels: int, name: str, antialias: bool) -> Tensor:
    """The weights of all pixels (n, N) of an axis, normalised; 0 where the output lies outside."""
    step = (hi - lo) / n
    k = torch.arange(pixels, dtype=lo.dtype, device=lo.device)
    left = lo + torch.arange(n, dtype=lo.dtype, device=lo.device)[:, None] * step
    centre = left + step / 2 - 0.5
    if name == "area":
        low, high = torch.minimum(left, left + step), torch.maximum(left, left + step)
        weights = (torch.minimum(high, k + 1) - torch.maximum(low, k)).clamp(min=0)
        return _normalised(weights, centre, pixels)
    width = step.abs().clamp(min=1) if antialias else torch.ones_like(step)
    if name != "cubic-pytorch":
        return _normalised(_KERNELS[name](((centre - k) / width).abs()), centre, pixels)
    # Two pixels more on each side, which are copies of the edge; beyond their reach there is nothing.
    margin = 2
    k = torch.arange(-margin, pixels + margin, dtype=lo.dtype, device=lo.device)
    taps = _KERNELS[name](((centre - k) / width).abs())
    first = taps[:, : margin + 1].sum(1, keepdim=True)
    middle = taps[:, margin + 1 : margin + pixels]
    if pixels == 1:
        folded = taps.sum(1, keepdim=True)
    else:
        end = middle[:, -1:] + taps[:, margin + pixels :].sum(1, keepdim=True)
        folded = torch.cat([first, middle[:, :-1], end], 1)
    return _normalised(folded, centre, None)


def _normalised(weights: Tensor, centre: Tensor, pixels: int | None) -> Tensor:
    total = weights.sum(1, keepdim=True)
    # As JAX has it: rows that sum to nearly nothing are nothing.
    some = total.abs() > 1000 * torch.finfo(torch.float32).eps
    weights = torch.where(some, weights / torch.where(some, total, 1.0), 0.0)
    if pixels is None:
        return weights
    return torch.where((centre < -0.5) | (centre > pixels - 0.5), 0.0, weights)


def _keys(a: float) -> Callable[[Tensor], Tensor]:
    """Keys' cubic convolution (1981) of |x|."""

    def kernel(x: Tensor) -> Tensor:
        inner = ((a + 2) * x - (a + 3)) * x * x + 1
        outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return torch.where(x <= 1, inner, torch.where(x < 2, outer, 0.0))

    return kernel


def _lanczos5(x: Tensor) -> Tensor:
    """sinc(x) sinc(x / 5) of |x|, cut at 5."""
    return torch.where(x < 5, torch.sinc(x) * torch.sinc(x / 5), 0.0)


_KERNELS = {"cubic": _keys(-0.5), "cubic-pytorch": _keys(-0.75), "lanczos5": _lanczos5}


def _method(value: Any) -> str:
    given = value
    if not isinstance(value, str) and isinstance(getattr(value, "name", None), str):
        value = value.name.lower().replace("_", "-")
    if isinstance(value, str) and value == "nearest":
        raise ValueError("method must not be 'nearest', which has no scale to be differentiated by; use 'linear'")
    if not isinstance(value, str):
        raise TypeError(f"method must be one of {', '.join(map(repr, _METHODS))}, got {_arguments.describe(given)}")
    return _METHODS[_arguments.choice(value, "method", tuple(_METHODS))]


def _spatial(value: Any, ndim: int) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or not all(map(_arguments.is_int, value)):
        raise TypeError(f"spatial_dims must be a tuple of dimensions, got {_arguments.describe(value)}")
    if len(value) > 3:
        raise ValueError(f"spatial_dims must name 1 to 3 dimensions, got {tuple(value)}")
    for d in value:
        if not -ndim <= d < ndim:
            raise ValueError(f"spatial_dims must lie in {-ndim}..{ndim - 1} for an image of {ndim} dimensions, got {d}")
    dims = tuple(d % ndim for d in value)
    if len(set(dims)) < len(dims):
        raise ValueError(f"spatial_dims must be different dimensions, got {tuple(value)}")
    return dims


def _shape(value: Any, image: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the spatial dimensions in the order of ``dims``."""
    if not isinstance(value, (tuple, list)) or not all(map(_arguments.is_int, value)):
        raise TypeError(f"shape must be a tuple of whole numbers, got {_arguments.describe(value)}")
    given = tuple(image.shape)
    if len(value) != len(given):
        raise ValueError(f"shape must have the image's {len(given)} dimensions {given}, got {tuple(value)}")
    for d, (n, pixels) in enumerate(zip(value, given, strict=True)):
        if d not in dims and n != pixels:
            raise ValueError(
                f"shape must keep dimension {d}, which spatial_dims {dims} does not name: {pixels} as in {given}, "
                f"got {n}"
            )
        if d in dims and (n < 1 or pixels < 1):
            raise ValueError(f"spatial dimensions must be at least 1, got shape {tuple(value)} for an image {given}")
        if d in dims and max(n, pixels) >= _check.LONGEST:
            raise ValueError(f"shape must be below 2**31 along every axis, got {tuple(value)} for an image {given}")
    return tuple(value[d] for d in dims)


def _numbers(value: Any, name: str, dims: tuple[int, ...], device: torch.device) -> Tensor:
    """One number for each spatial dimension, in float64."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(value, (list, tuple)) and not any(isinstance(v, Tensor) for v in value):
        value = torch.tensor([_arguments.number(v, name) for v in value], dtype=wide, device=device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor or a list of numbers, got {_arguments.describe(value)}")
    if value.shape != (len(dims),):
        raise ValueError(
            f"{name} must have shape ({len(dims)},), a number for each of spatial_dims {dims}, got {tuple(value.shape)}"
        )
    _check.real_tensor(value, name)
    if value.device != device:
        raise ValueError(f"image and {name} must be on the same device, got {device} and {value.device}")
    return value.to(wide)
