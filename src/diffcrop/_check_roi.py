"""The errors of RoIAlign, one function per argument; what it shares with a crop is in `_check` and `_check_crop`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from . import _check, _check_crop
from ._context import is_sharded, parts

MODES = ("sample", "exact")
_MODE_HINTS = {
    **dict.fromkeys(("samples", "average", "avg", "roi_align", "roialign", "bilinear"), "sample"),
    **dict.fromkeys(("integral", "precise", "prroi", "prroi_pool"), "exact"),
}
_NUMBERED = f"rows (index, ...) are one tensor and no list: pass torch.cat(boxes); {_check.ROTATED}"
_COLUMNS = {2: "x0, y0, x1, y1", 3: "x0, y0, z0, x1, y1, z1"}


def image(value: Any) -> int:
    """A batch of images or volumes. Returns how many axes they have."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"input must be a tensor of shape (B, C, H, W), or (B, C, D, H, W) for volumes, "
            f"got {_check.describe(value)}; maps of different sizes are a list of tensors (C, H, W)"
        )
    if value.ndim not in (4, 5):
        hint = "; a single image is a batch of one: input[None]; signals are not served" if value.ndim == 3 else ""
        raise ValueError(
            f"input must have shape (B, C, H, W), or (B, C, D, H, W) for volumes, got {_check.describe(value)}{hint}"
        )
    axes = value.ndim - 2
    _check_crop.image(value, axes, "input")
    if is_sharded(value):
        raise TypeError("roi_align takes plain tensors, got a DTensor of input; pass input.to_local()")
    return axes


def image_list(value: Sequence[Any]) -> int:
    """B feature maps (C, H_b, W_b), or volumes (C, D_b, H_b, W_b), of their own sizes. Returns how many axes."""
    first = value[0] if value else None
    axes = first.ndim - 1 if isinstance(first, Tensor) else 2
    if axes not in (2, 3):
        raise ValueError(
            f"a list of input must hold tensors (C, H, W), or (C, D, H, W) for volumes, got {_check.describe(first)}"
        )
    _check_crop.image_list(value, axes, "in a list", "input")
    return axes


def boxes(value: Any, axes: int, count: int, five: str = _NUMBERED) -> None:
    """A tensor (K, 2A + 1), or a list with a tensor (K_b, 2A) for each of ``count`` images.

    ``five`` is the hint for boxes of five numbers in a list.
    """
    width = 2 * axes
    rows = f"(K, {width + 1}) with rows (index, {_COLUMNS[axes]})"
    if isinstance(value, (list, tuple)):
        # In its own words for lists of boxes; but an empty list of an empty batch is no error.
        if value or count:
            _check_crop.box_list(value, five)
        for i, each in enumerate(value):
            _check.boxes(each, axes, f"boxes[{i}]", five)
            if is_sharded(each):
                raise TypeError(f"roi_align takes plain tensors, got a DTensor of boxes[{i}]; pass its to_local()")
        if len(value) != count:
            raise ValueError(f"a list of boxes must have one tensor per image, got {len(value)} for {count} images")
        return
    if isinstance(value, Tensor):
        _check.real_tensor(value, "boxes")
    else:
        raise TypeError(
            f"boxes must be a tensor {rows}, or a list of one tensor (K, {width}) per image, "
            f"got {_check.describe(value)}"
        )
    if is_sharded(value):
        raise TypeError("roi_align takes plain tensors, got a DTensor of boxes; pass boxes.to_local()")
    if value.ndim != 2 or value.shape[1] != width + 1:
        hint = ""
        if value.ndim == 2 and value.shape[1] == width:
            hint = "; without the column of indices pass a list, one tensor for each image"
        raise ValueError(
            f"boxes must have shape {rows}, or be a list of one tensor (K, {width}) per image, "
            f"got {_check.describe(value)}{hint}"
        )


def maps(values: Mapping[str, Any]) -> None:
    """A pyramid of feature maps (B, C, H, W), alike in all but H and W."""
    first, theirs = next(iter(values.items()))
    for name, value in values.items():
        mine = f"x[{name!r}]"
        if not isinstance(value, Tensor) or value.is_nested or value.ndim != 4 or 0 in value.shape[2:]:
            raise TypeError(
                f"x must hold feature maps (B, C, H, W), not empty, got {_check.describe(value)} for {mine}"
            )
        _check_crop.pixels(value, mine)
        if (value.shape[:2], value.dtype, value.device) != (theirs.shape[:2], theirs.dtype, theirs.device):
            raise ValueError(
                f"x must hold feature maps that agree in images, channels, dtype and device, got "
                f"{_check.describe(value)} on {value.device} for {mine} and {_check.describe(theirs)} on "
                f"{theirs.device} for x[{first!r}]"
            )


def box_list(value: Any, count: int) -> Sequence[Tensor]:
    """A list, or a nested tensor, with a tensor (K_b, 4) for each of ``count`` images. Returns the list."""
    value = parts(value)
    if not isinstance(value, (list, tuple)):
        hint = "; pass [boxes] for one image" if isinstance(value, Tensor) else ""
        raise TypeError(f"boxes must be a list of one tensor (K, 4) per image, got {_check.describe(value)}{hint}")
    if value:
        boxes(value, 2, count, _check.FIVE)
    elif count:
        raise ValueError(f"boxes must be a list of one tensor (K, 4) per image, got none for {count} images")
    return value


def indices(column: Tensor, count: int) -> None:
    """The first column of boxes: whole numbers 0..B-1. Looks at the values, where that costs nothing."""
    if column.numel() == 0 or not _check.may_look(column):
        return
    column = column.detach()
    wrong = ~((column >= 0) & (column < count)) | (column % 1 != 0)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        values = f"0..{count - 1}" if count else "which an empty batch has none of"
        raise ValueError(
            f"boxes[:, 0] must name images, whole numbers in {values}, got {column[row].item():g} in row {row} "
            f"({int(wrong.sum())} of {len(column)} rows)"
        )


def spatial_scale(value: Any) -> float:
    """A factor above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"spatial_scale must be a number, the features' side over the image's (such as 1 / 16), "
            f"got {_check.describe(value)}"
        )
    if not 0 < _check.real(value) < math.inf:
        raise ValueError(f"spatial_scale must be finite and more than 0, got {_check.real(value)!r}")
    return float(value)


def sampling_ratio(value: Any) -> int:
    """An int; 0 and less stand for a number that follows the box. Returns 0 for these."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"sampling_ratio must be an int: samples of a bin along each axis, or -1 for a number that follows the "
            f"box, got {_check.describe(value)}"
        )
    if int(value) >= 2**31:
        raise ValueError(
            f"sampling_ratio must be below 2**31, got {_check.describe(value)}; the mean over all points is "
            "diffcrop.roi_align(..., mode='exact')"
        )
    return max(int(value), 0)


def aligned(value: Any) -> bool:
    """True or False."""
    return _check.flag(value, "aligned")


def mode(value: Any, ratio: int) -> None:
    """Samples, or the integral, which takes none."""
    _check.choice(value, "mode", MODES, _MODE_HINTS)
    if value == "exact" and ratio > 0:
        raise ValueError(
            f"sampling_ratio belongs to mode='sample', got sampling_ratio={ratio} with mode='exact', which averages "
            "the whole bin; pass -1 or leave it out"
        )


def impl(value: Any, images: Tensor, axes: int, implementations: dict[str, str | None]) -> None:
    """An explicit implementation must be there and able to serve; Triton's kernels do not know these filters."""
    if isinstance(value, str) and value == "triton":
        raise ValueError("impl='triton' does not serve roi_align; leave impl=None, or use impl='reference'")
    mine = {name: reason for name, reason in implementations.items() if name != "triton"}
    _check_crop.impl(value, images, axes, mine, False, "input")
