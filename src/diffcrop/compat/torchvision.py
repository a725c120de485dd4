"""torchvision's ``ops.roi_align``, and ``transforms.v2.functional.resized_crop``, which slices first and resizes then.

What differs from torchvision:

* ``roi_align`` has gradients by the boxes, and derivatives of every order. A NaN box gives NaN for itself alone.
* The slice may lie anywhere, not only on whole pixels, with gradients to all four of its numbers, to every order.
* Integers other than bytes are resized too, and all of them rounded once.
* Sums are kept in float32, positions in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _check, _check_crop

from . import _arguments

__all__ = ["resized_crop", "roi_align"]

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "nearest-exact")
# Pillow's numbers, which torchvision takes as well.
_NUMBERED = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# Slices up to this length have their pixels numbered.
_NUMBERED_PIXELS = 2**16


def roi_align(
    input: Tensor,  # noqa: A002  (torchvision's name)
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    r"""``torchvision.ops.roi_align``: `diffcrop.roi_align` with torchvision's arguments alone.

    Args:
        input: (B, C, H, W).
        boxes: (K, 5), rows (index, x0, y0, x1, y1), or a list of B tensors (K_b, 4).
        output_size: (h, w), or one int for both.
        spatial_scale: what box coordinates are multiplied with.
        sampling_ratio: samples along each axis of a bin; 0 and less (the default: ``-1``): as many as the bin is long.
        aligned: whether boxes are shifted by half a pixel, as they mean in `diffcrop.crop`.

    Returns:
        (K, C, h, w), differentiable in ``input`` and ``boxes``.

    Raises:
        TypeError, ValueError: as `diffcrop.roi_align`.

    >>> import torch
    >>> from diffcrop.compat.torchvision import roi_align
    >>> features = torch.arange(36.0).reshape(1, 1, 6, 6)
    >>> boxes = torch.tensor([[0, 1.0, 1.0, 5.0, 3.0]], requires_grad=True)
    >>> roi_align(features, boxes, (1, 2), 1.0, 2, True).sum().backward()
    >>> boxes.grad  # None from torchvision
    tensor([[0., 1., 6., 1., 6.]])

    """
    return diffcrop.roi_align(input, boxes, output_size, spatial_scale, sampling_ratio, aligned)


def resized_crop(
    img: Tensor,
    top: int | float | Tensor,
    left: int | float | Tensor,
    height: int | float | Tensor,
    width: int | float | Tensor,
    size: int | Sequence[int],
    interpolation: Any = "bilinear",
    antialias: bool | None = True,
) -> Tensor:
    r"""A slice of an image, resized: ``torchvision.transforms.v2.functional.resized_crop``, and more than whole pixels.

    With whole numbers the result is torchvision's: rows top..top + height - 1 and columns left..left + width - 1, zeros
    where they leave the image, resized as `torch.nn.functional.interpolate` does. Pixels beside the slice are not
    seen, unlike by `diffcrop.crop`; the two differ near the edges of the box, by some hundredths of the image's range.

    **Real numbers**, floats or tensors with gradients, continue this: along an axis from lo to hi = lo + length, pixel
    k counts in proportion to the part o_k of [k, k + 1] that lies in [lo, hi],

    .. code-block:: text

        y_j = sum_k o_k f((k - c_j) / w) x_k / sum_k o_k f((k - c_j) / w)

    with the positions c_j, the filter f and its width w of `diffcrop.crop`. At whole numbers that is torchvision's
    result, and it is continuous and differentiable in between, with the right-hand derivative at whole numbers.

    Args:
        img: (..., C, H, W) with any number of leading dimensions, or (H, W). Whole-number calls keep an integer dtype
            and round, once; torch's kernels for bytes, which torchvision uses, round and clamp between the axes as
            well, which is one level with bilinear, and more with bicubic beside black and white. Real numbers give
            float32 for integers.
        top: the first row, an int, or a float or tensor of one real number.
        left: the first column, likewise.
        height: of the slice, more than 0.
        width: likewise.
        size: (h, w); an int, or a list of one, is the shorter side, with the slice's aspect ratio kept as far as whole
            numbers allow.
        interpolation: ``"bilinear"``, ``"bicubic"``, ``"nearest"`` or ``"nearest-exact"``, or torchvision's
            ``InterpolationMode`` of these, or Pillow's number. The latter two are for whole numbers only.
        antialias: whether the filter widens where the crop is smaller than the slice (of no effect on the nearest);
            None counts as False, as for tensors in torchvision. Real numbers with ``"bicubic"`` need True: without
            antialiasing that repeats the slice's edge, which has no continuation.

    Returns:
        (..., C, h, w), differentiable in ``img`` and in those of the four numbers that are tensors. An image of one of
        ``torchvision.tv_tensors``' classes gives one of that class.

    Time and memory depend on the image and ``size``, not on how long the slice is.

    The four numbers of tensors are read, so that only as much of the image is touched as they name: not under
    `torch.vmap` or ``fullgraph=True``. Use `diffcrop.crop` there.

    Raises:
        TypeError, ValueError: for a wrong argument.

    >>> import torch
    >>> from diffcrop.compat.torchvision import resized_crop
    >>> image = torch.arange(36.0).reshape(1, 6, 6)
    >>> resized_crop(image, 1, 1, 4, 4, (2, 2))
    tensor([[[12.0000, 13.5714],
             [21.4286, 23.0000]]])
    >>> left = torch.tensor(1.0, requires_grad=True)
    >>> resized_crop(image, 1, left, 4, 4, (2, 2)).mean().backward()
    >>> left.grad  # a whole column further is 1 more; on the way there the outer columns count by parts
    tensor(0.9286)

    """
    mode = _interpolation(interpolation)
    if antialias is not None:
        _arguments.flag(antialias, "antialias")
    if not isinstance(img, Tensor):
        raise TypeError(
            f"img must be a tensor (..., C, H, W), got {_arguments.describe(img)}; convert with pil_to_tensor"
        )
    _check_crop.pixels(img if type(img) is Tensor else img.as_subclass(Tensor), "img")
    if img.ndim < 2 or 0 in img.shape[-2:]:
        raise ValueError(f"img must have shape (..., C, H, W), at least one pixel, got {tuple(img.shape)}")
    numbers = {"top": top, "left": left, "height": height, "width": width}
    kinds = [_is_real(value, name) for name, value in numbers.items()]
    real = any(kinds)
    read = {name: value.item() if isinstance(value, Tensor) else value for name, value in numbers.items()}
    for name, value in read.items():
        if not abs(_check.real(value)) < _check.LONGEST:
            raise ValueError(f"{name} must be finite and below 2**31, got {_check.describe(value)}")
    for name in ("height", "width"):
        if read[name] <= 0:
            raise ValueError(f"{name} must be more than 0, got {read[name]!r}")
    shape = _size(size, read["height"], read["width"])

    plain = img.as_subclass(Tensor) if type(img) is not Tensor else img
    images = plain.reshape(math.prod(plain.shape[:-3]), *([1] * (3 - plain.ndim)), *plain.shape[-3:])
    if real:
        if mode.startswith("nearest"):
            raise ValueError(
                f"interpolation={mode!r} has no gradient and takes whole numbers, got {_check.describe(numbers)}"
            )
        if mode == "bicubic" and not antialias:
            raise ValueError("interpolation='bicubic' takes real numbers with antialias=True only, got antialias=False")
        result = _real(images, numbers, read, shape, mode, bool(antialias))
    else:
        whole = {name: int(value) for name, value in read.items()}
        result = _whole(images, shape, mode, bool(antialias), **whole)
    result = result.reshape(*plain.shape[:-2], *shape)
    return result.as_subclass(type(img)) if _is_tv_tensor(img) else result


def _whole(
    images: Tensor, shape: tuple[int, int], mode: str, antialias: bool, *, top: int, left: int, height: int, width: int
) -> Tensor:
    """Slice, then resize; of the slice no more is made than lies in the image."""
    ends = (top, top + height), (left, left + width)
    if mode.startswith("nearest"):
        return _nearest(images, shape, mode, ends)
    if images.dtype == torch.bool:
        raise TypeError(f"img must not be bool to be resized by {mode!r}; pass img.to(torch.uint8), or mode nearest")
    region, (y, x) = _inner(images, ends)
    if not region.is_floating_point() and torch.iinfo(region.dtype).bits > 16:
        region = region.double()  # float32 does not hold their numbers
    options: dict[str, Any] = {"mode": mode, "antialias": antialias}
    leaves = (y, top + height - y - region.shape[-2]), (x, left + width - x - region.shape[-1])
    leaves = [(first - start, rest) for (first, rest), start in zip(leaves, (top, left), strict=True)]
    if not antialias and leaves != [(0, 0), (0, 0)]:
        # What is beyond the image is 0, and so is what repeats its edge: one pixel of that stands for all.
        (above, below), (before, after) = ([min(margin, 1) for margin in margins] for margins in leaves)
        region, y, x = functional.pad(region, (before, after, above, below)), y - above, x - before
    place = [left - x, top - y, left + width - x, top + height - y]
    box = torch.tensor(place, dtype=torch.float64, device=region.device)
    if antialias and leaves != [(0, 0), (0, 0)]:
        share = [
            _share(torch.tensor(pair, dtype=torch.float64, device=region.device), n, options)
            for pair, n in zip(ends, shape, strict=True)
        ]
        result = diffcrop.crop(region, box, shape, padding_mode="zeros", **options)
        result = (result / (share[0][:, None] * share[1])).to(result.dtype)
    else:
        padding = "renormalize" if antialias else "border"
        result = diffcrop.crop(region, box, shape, padding_mode=padding, **options)
    if images.is_floating_point():
        return result
    limits = torch.iinfo(images.dtype)
    # The largest number of 64 bits is none of float64: what is not below it is given, not converted.
    most = result >= float(limits.max)
    whole = torch.where(most, 0.0, result.round().clamp(min=limits.min)).to(images.dtype)
    return torch.where(most, torch.full_like(whole, limits.max), whole)


def _nearest(images: Tensor, shape: tuple[int, int], mode: str, ends: tuple[tuple[int, int], ...]) -> Tensor:
    """One pixel for each output, of any dtype."""
    places, known = [], []
    for (start, stop), n, pixels in zip(ends, shape, images.shape[-2:], strict=True):
        place = _nearest_places(stop - start, n, mode, images.device) + start
        known.append((place >= 0) & (place < pixels))
        places.append(place.clamp(0, pixels - 1))
    result = images[..., places[0][:, None], places[1]]
    return torch.where(known[0][:, None] & known[1], result, torch.zeros_like(result))


def _nearest_places(pixels: int, n: int, mode: str, device: torch.device) -> Tensor:
    """Which of so many pixels each of n outputs is."""
    if pixels <= _NUMBERED_PIXELS:  # between two pixels it depends on the rounding of `interpolate`
        every = torch.arange(pixels, dtype=torch.float64, device=device)
        return functional.interpolate(every[None, None], n, mode=mode).flatten().long()
    k = torch.arange(n, dtype=torch.float64, device=device)
    return ((k + 0.5 if mode == "nearest-exact" else k) * (pixels / n)).floor().long().clamp(max=pixels - 1)


def _real(
    images: Tensor, numbers: dict[str, Any], read: dict[str, float], shape: tuple[int, int], mode: str, antialias: bool
) -> Tensor:
    """The crop of what lies in the box, over the share of each output's filter that does."""
    device = images.device
    sides, ends = [], []
    for first, length in (("top", "height"), ("left", "width")):
        lo, extent = (
            torch.as_tensor(numbers[n], dtype=torch.float64, device=device).squeeze() for n in (first, length)
        )
        sides.append((lo, lo + extent))
        # Whole pixels from that of lo to that of hi: to the right of it, so that derivatives are right-hand ones.
        ends.append((int(read[first] // 1), int((read[first] + read[length]) // 1) + 1))
    region, origin = _inner(images, (ends[0], ends[1]))
    if not region.is_floating_point():
        region = region.float()
    wide = torch.promote_types(region.dtype, torch.float32)
    options: dict[str, Any] = {"mode": mode, "antialias": antialias}
    share = [_share(torch.stack(side), n, options) for side, n in zip(sides, shape, strict=True)]
    (y0, y1), (x0, x1) = ((lo - first, hi - first) for (lo, hi), first in zip(sides, origin, strict=True))
    inside = (_inside(y0, y1, region.shape[-2])[:, None] * _inside(x0, x1, region.shape[-1])).to(wide)
    box = torch.stack([x0, y0, x1, y1])
    crops = diffcrop.crop(region.to(wide) * inside, box, shape, padding_mode="zeros", **options)
    return (crops / (share[0][:, None] * share[1])).to(region.dtype)


def _inside(lo: Tensor, hi: Tensor, pixels: int) -> Tensor:
    """How much of each of the pixels 0..pixels - 1 lies between lo and hi, with right-hand derivatives."""
    k = torch.arange(pixels, device=lo.device)
    left = []
    for end in (lo, hi):
        last = end.detach().floor()
        left.append(torch.where(k == last, end - k, (k < last).to(end.dtype)))  # the part of k that lies left of it
    return left[1] - left[0]


def _share(ends: Tensor, n: int, options: dict[str, Any]) -> Tensor:
    """The weights (n,) of what lies between two ends, however long that is.

    What lies to the right of an end is a signal of three pixels: 0, the part of the end's own, and 1, continued.
    """
    right = []
    for end in ends.unbind():
        last = end.detach().floor()
        part = last + 1 - end
        signal = torch.stack([torch.zeros_like(part), part, torch.ones_like(part)])
        right.append(diffcrop.crop(signal[None], ends - (last - 1), n, padding_mode="border", **options)[0])
    return right[0] - right[1]


def _inner(images: Tensor, ends: tuple[tuple[int, int], tuple[int, int]]) -> tuple[Tensor, list[int]]:
    """What of the rows and columns of a slice the images have, and the first of each; one zero where they have none."""
    origin = [min(max(start, 0), pixels) for (start, _), pixels in zip(ends, images.shape[-2:], strict=True)]
    (top, left), (bottom, right) = origin, (max(stop, 0) for _, stop in ends)
    region = images[..., top:bottom, left:right]
    if 0 not in region.shape[-2:]:
        return region, origin
    return images.new_zeros((*images.shape[:-2], 1, 1)), [start for start, _ in ends]


def _is_real(value: Any, name: str) -> bool:
    """Whether a number is to be taken as a real one: a float, or a tensor of a floating-point dtype."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{name} must be one real number, got {_arguments.describe(value)}")
        return value.is_floating_point()
    if _arguments.is_int(value):
        return False
    _arguments.number(value, name)
    return True


def _size(value: Any, height: float, width: float) -> tuple[int, int]:
    """(h, w), or from the shorter side."""
    if _arguments.is_int(value) or (isinstance(value, (list, tuple)) and len(value) == 1):
        (short,) = _arguments.size([value] if _arguments.is_int(value) else value, "size", "an int or (h, w)", 1)
        if height <= width:
            return short, max(int(short * width / height), 1)
        return max(int(short * height / width), 1), short
    h, w = _arguments.size(value, "size", "an int or (h, w)", 2)
    return h, w


def _interpolation(value: Any) -> str:
    given = value
    if _arguments.is_int(value):
        value = _NUMBERED.get(int(value), value)
    elif not isinstance(value, str):
        value = getattr(value, "value", value)
    if not isinstance(value, str):
        raise TypeError(f"interpolation must be one of {_INTERPOLATIONS}, got {_arguments.describe(given)}")
    return _arguments.choice(value, "interpolation", _INTERPOLATIONS)


def _is_tv_tensor(value: Tensor) -> bool:
    """Whether a tensor's class is one of torchvision's, or derived from one; torchvision need not be there."""
    return any(base.__module__.startswith("torchvision.tv_tensors") for base in type(value).__mro__)
