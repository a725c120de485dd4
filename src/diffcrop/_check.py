"""Every user-facing error, one function per argument.

A check runs before any work, looks at types, shapes, dtypes and devices only, and raises a ``TypeError`` (wrong kind of
thing) or a ``ValueError`` (right kind, wrong value) that names the argument, shows what came and says what would be
right. Values inside tensors are looked at only where `may_look` says that it costs no synchronisation.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from diffcrop import _boxes
from diffcrop._context import is_concrete

# --- helpers ----------------------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """A value as an error message shows it, in one line.

    Tensors and arrays by dtype and shape (never by their numbers: that may synchronise), lists of them by the first.
    """
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested tensor of {value.size(0)} parts"
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if _has_shape(value) and not _is_numpy_scalar(value):
        noun = f"{getattr(value, 'dtype', '')} {type(value).__name__}".strip()
        return f"{'an' if noun.startswith(_AN) else 'a'} {noun} of shape {value.shape}"
    if isinstance(value, (list, tuple)) and any(map(_has_shape, value)):
        return f"a {type(value).__name__} of {len(value)}, the first {describe(value[0])}"
    text = " ".join(repr(value).split())
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({type(value).__name__})"


_AN = (*"aeioAEIO", "nd")  # what takes it; a "uint8" does not


def _has_shape(value: Any) -> bool:
    if isinstance(value, Tensor):  # a nested one raises where it is asked
        return True
    return isinstance(getattr(value, "shape", None), tuple) and not isinstance(value, type)


def _is_numpy_scalar(value: Any) -> bool:
    # NumPy itself is not needed.
    return any((base.__module__, base.__name__) == ("numpy", "generic") for base in type(value).__mro__)


# What makes a tensor of a picture that Pillow has opened.
PICTURE = (
    "a picture of Pillow is read by torch.from_numpy(numpy.array(picture)).permute(2, 0, 1), a grey one by "
    "torch.from_numpy(numpy.array(picture))[None]"
)


def conversion(value: Any, otherwise: str = "convert with torch.as_tensor") -> str:
    """How pixels that are no tensor become one."""
    # Pillow itself is not needed.
    return PICTURE if any(base.__module__.startswith("PIL.") for base in type(value).__mro__) else otherwise


def may_look(*tensors: Tensor) -> bool:
    """Whether values may be read: plain CPU tensors, eager, no ``torch.func`` transform, no tracer."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return False
    if _get_current_dispatch_mode_stack():  # there is no public way to ask for these
        return False
    return is_concrete(*tensors) and all(t.device.type == "cpu" for t in tensors)


def real(value: Any) -> float:
    """The number as a float; whole numbers that none can hold are infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def choice(value: Any, name: str, allowed: Sequence[str], hints: dict[str, str] | None = None) -> str:
    """One of a few names; near misses get a suggestion."""
    if isinstance(value, str) and value in allowed:
        return value
    listed = ", ".join(repr(a) for a in allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {listed}, got {describe(value)}")
    near = (hints or {}).get(value.lower())
    if near not in allowed:  # what others take
        near = next(iter(difflib.get_close_matches(value.lower(), allowed, n=1, cutoff=0.5)), None)
    shown = repr(value) if len(value) <= 80 else describe(value)
    suggestion = "" if near is None else f"; did you mean {near!r}?"
    raise ValueError(f"{name} must be one of {listed}, got {shown}{suggestion}")


def real_tensor(value: Any, name: str) -> Tensor:
    """A tensor of real numbers."""
    if not isinstance(value, Tensor):
        if isinstance(value, torch.nn.Module):
            raise TypeError(f"{name} must be a tensor, got the module {type(value).__name__}; call it for its tensor")
        raise TypeError(
            f"{name} must be a tensor, got {describe(value)}; "
            f"convert it with torch.as_tensor({name}, dtype=torch.float32)"
        )
    if value.dtype not in _REAL:
        raise TypeError(
            f"{name} must hold real numbers (a floating-point or integer dtype), got {describe(value)}; "
            f"convert it with {name}.to(torch.float32)"
        )
    if type(value) is not Tensor or value.layout != torch.strided or value.is_nested:
        dense(value, name)
    return value


def dense(value: Tensor, name: str) -> None:
    """Every element is there, in memory with strides."""
    if value.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one ({value.layout}); "
            f"take its parts one by one, {name}.unbind()"
        )
    if isinstance(value, torch.masked.MaskedTensor):
        raise TypeError(
            f"{name} must be a dense tensor, got a MaskedTensor; say what masked elements are, "
            f"{name}.to_tensor(value), and mask the result"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; convert it with {name}.to_dense()")


_REAL = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    }
)  # fmt: skip


# --- options ----------------------------------------------------------------------------------------------------------

# What others call the same thing.
_FORMAT_HINTS = {
    **dict.fromkeys(("ltrb", "tlbr", "x1y1x2y2", "voc", "pascal_voc"), "xyxy"),
    **dict.fromkeys(("ltwh", "tlwh", "coco"), "xywh"),
    **dict.fromkeys(("ccwh", "xcycwh", "yolo"), "cxcywh"),
}
_COORDS_HINTS = {
    **dict.fromkeys(("absolute", "abs", "px"), "pixel"),
    **dict.fromkeys(("relative", "fraction", "xyxyn"), "unit"),
    "theta": "normalized",
}


def box_format(value: Any, name: str = "box_format") -> str:
    """The name of a box format."""
    return choice(value, name, _boxes.FORMATS, _FORMAT_HINTS)


def coords(value: Any, name: str = "coords") -> str:
    """The name of a coordinate system."""
    return choice(value, name, _boxes.COORDS, _COORDS_HINTS)


def to(value: Any) -> str:
    """Where points go: to the image, or to the crop."""
    return choice(value, "to", ("image", "crop"))


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        one = _has_shape(value) and getattr(value, "ndim", None) == 0
        raise TypeError(f"{name} must be True or False, got {describe(value)}{f'; pass bool({name})' if one else ''}")
    return value


def align_corners(value: Any) -> bool:
    """True or False."""
    return flag(value, "align_corners")


# --- sizes ------------------------------------------------------------------------------------------------------------

_AXES_NAMES = {1: "(w,)", 2: "(h, w)", 3: "(d, h, w)"}
# Runs of pixels are held in 32 bits.
LONGEST = 2**31


def size(
    value: Any,
    axes: int,
    name: str = "size",
    because: str | None = None,
    below: int = LONGEST,
    hint: str = "of an image pass its shape[-{axes}:]",
) -> tuple[int, ...]:
    """An int (the same along every axis) or one int per axis in tensor order, all at least 1. Returns one per axis.

    ``because`` says why so many, if not for the number of numbers of a box. ``hint`` is for tensors of pixels.
    """
    if type(value) is int and 0 < value < below:  # as nearly always
        return (value,) * axes
    if (
        type(value) is tuple
        and {*map(type, value)} == {int}
        and len(value) == axes
        and min(value) > 0
        and max(value) < below
    ):
        return value
    wanted = f"an int or {_AXES_NAMES[axes]}"
    given: Any = value
    if _is_int(value):
        value = (value,) * axes
    if not isinstance(value, (tuple, list)):
        remedy = ""
        if _has_shape(value):
            remedy = f"; pass {name}.tolist()" if given.ndim < 2 else "; " + hint.replace("{axes}", str(axes))
        raise TypeError(f"{name} must be {wanted}, got {describe(given)}{remedy}")
    for n in value:
        if not _is_int(n):
            raise TypeError(
                f"{name} must be {wanted} of whole numbers, got {describe(given)}, where {describe(n)} is not an int"
                f"{'; ' + hint.replace('{axes}', str(axes)) if _has_shape(n) and n.ndim else ''}"
            )
    if len(value) != axes:
        spatial = ""
        if len(value) > axes:
            spatial = f"; of a tensor's shape pass the spatial part, shape[-{axes}:]"
        if because is None:
            because = f", as the boxes have {2 * axes} numbers ({axes} spatial {'axis' if axes == 1 else 'axes'})"
        raise ValueError(f"{name} must be {wanted}{because}, got {describe(given)} of length {len(value)}{spatial}")
    for n in value:
        if n < 1:
            raise ValueError(f"{name} must be at least 1 along every axis, got {describe(given)}")
        if n >= below:
            raise ValueError(
                f"{name} must be below 2**{below.bit_length() - 1} along every axis, got {describe(given)}"
            )
    return tuple(_as_int(n) for n in value)


def image_size(
    value: Any, axes: int, *, needed_for: str | None = None, pixel_to: str | None = None, align_corners: bool = False
) -> tuple[int, ...] | None:
    """As `size`; None where it is not needed. ``needed_for`` says what needs it.

    ``pixel_to`` names the coordinates that pixels are divided into, which an axis of one pixel does not allow with
    ``align_corners=True``: its two edge centres are the same point.
    """
    if value is None:
        if needed_for is not None:
            raise ValueError(
                f"image_size is needed {needed_for}, got None; pass {_AXES_NAMES[axes]} of the image, "
                f"for example images.shape[-{axes}:]"
            )
        return None
    shape = size(value, axes, "image_size")
    if pixel_to is not None and align_corners:
        for n in shape:
            if n == 1:
                raise ValueError(
                    f"image_size must be at least 2 along every axis to turn pixel into {pixel_to} coordinates with "
                    f"align_corners=True, got {describe(value)}: the centre of a single pixel spans no length"
                )
    return shape


def _is_int(value: Any) -> bool:
    if isinstance(value, (int, torch.SymInt)):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)  # NumPy's integers register here


def _as_int(value: Any) -> int:
    # A symbolic size must stay symbolic: index() would freeze it.
    return cast(int, value) if isinstance(value, (int, torch.SymInt)) else operator.index(value)


# --- tensors ----------------------------------------------------------------------------------------------------------


# What 5 numbers may be: to functions of upright boxes, and to those among them that take a batch_index.
ROTATED = "rotated boxes (cx, cy, w, h, angle) are for crop_rotated"
FIVE = f"an index in front is no part of a box: pass {{name}}[..., 1:]; {ROTATED}"
NUMBERED = (
    "a leading batch-index column as in RoIAlign goes into batch_index: pass boxes[:, 1:] and "
    f"batch_index=boxes[:, 0].long(); {ROTATED}"
)


def boxes(value: Any, axes: int | None = None, name: str = "boxes", five: str = FIVE) -> int:
    """A real tensor (..., 2A). Returns the number of axes A, which must be ``axes`` where that is given.

    ``five`` is the hint for boxes of five numbers.
    """
    real_tensor(value, name)
    if value.ndim == 0:
        raise ValueError(f"{name} must have 2, 4 or 6 numbers in its last dimension, got {describe(value)}")
    count = value.shape[-1]
    hint = "; " + five.replace("{name}", name) if count == 5 else ""
    if tuple(value.shape) == (0,):
        hint = f"; no boxes are torch.zeros(0, {4 if axes is None else 2 * axes})"
    if axes is not None and count != 2 * axes:
        raise ValueError(
            f"{name} must have {2 * axes} numbers in its last dimension ({axes} spatial axes), got {describe(value)}"
            f"{hint}"
        )
    if count not in (2, 4, 6):
        raise ValueError(
            f"{name} must have 2 (signals), 4 (images) or 6 (volumes) numbers in its last dimension, "
            f"got {describe(value)}{hint}"
        )
    # A plain number: under dynamic shapes count // 2 would stay symbolic.
    return 2 if count == 4 else 1 if count == 2 else 3


def points(value: Any, boxes: Tensor, axes: int) -> Tensor:
    """A real tensor (..., P, A) whose leading dimensions broadcast with those of ``boxes``."""
    return _many(value, "points", axes, boxes)


def inner(value: Any, boxes: Tensor, axes: int) -> Tensor:
    """A real tensor (..., P, 2A) whose leading dimensions broadcast with those of ``boxes``."""
    return _many(value, "inner", 2 * axes, boxes)


def theta(value: Any) -> int:
    """A real tensor (..., A, A + 1) without rotation or skew. Returns A."""
    real_tensor(value, "theta")
    shape = tuple(value.shape)
    if len(shape) < 2 or shape[-2] not in (1, 2, 3) or shape[-1] != shape[-2] + 1:
        hint = ""
        if len(shape) >= 2 and shape[-1] == shape[-2] and shape[-1] in (3, 4):
            hint = "; of a homogeneous matrix pass theta[..., :-1, :]"
        raise ValueError(f"theta must have shape (..., 1, 2), (..., 2, 3) or (..., 3, 4), got {describe(value)}{hint}")
    if value.numel() and may_look(value):
        _theta_is_a_box(value.detach())
    return shape[-2]


def _theta_is_a_box(value: Tensor) -> None:
    """Entries off the diagonal must be zero up to rounding: 8 eps of the largest entry on it."""
    axes = value.shape[-2]
    linear = value[..., :axes].to(torch.float64)
    diagonal = linear.diagonal(dim1=-2, dim2=-1)
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    allowed = 8 * eps * diagonal.abs().amax(-1)[..., None, None]
    off = linear - torch.diag_embed(diagonal)
    # A Theta that is NaN throughout is a NaN box, which has a meaning; a NaN beside a finite diagonal is a fault.
    bad = (off.abs() > allowed) | (off.isnan() & allowed.isfinite())
    bad &= ~torch.eye(axes, dtype=torch.bool)
    if bad.any():
        where = bad.nonzero()
        first = tuple(where[0].tolist())
        entry = f"theta[{', '.join(map(str, first))}]"
        raise ValueError(
            "theta must have no rotation or skew to be a box: entries off the diagonal must be 0, "
            f"got {entry} = {value[first].item():.6g} ({len(where)} in all are not 0) in {describe(value)}"
        )


def _many(value: Any, name: str, last: int, boxes: Tensor) -> Tensor:
    real_tensor(value, name)
    if value.ndim < 2 or value.shape[-1] != last:
        hint = f"; a single one is {name}[None]" if value.ndim == 1 and value.shape[-1] == last else ""
        raise ValueError(
            f"{name} must have shape (..., P, {last}), as the boxes have {boxes.shape[-1]} numbers, "
            f"got {describe(value)}{hint}"
        )
    if value.device != boxes.device:
        raise ValueError(f"{name} and boxes must be on the same device, got {value.device} and {boxes.device}")
    leading, others = value.shape[:-2], boxes.shape[:-1]
    for m, n in zip(reversed(leading), reversed(others), strict=False):
        if m != n and m != 1 and n != 1:
            raise ValueError(
                f"the leading dimensions of {name} (..., P, {last}) and boxes (..., {boxes.shape[-1]}) must broadcast, "
                f"got shapes {tuple(value.shape)} and {tuple(boxes.shape)}"
            )
    return value
