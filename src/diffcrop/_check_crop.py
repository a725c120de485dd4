"""The errors of cropping, one function per argument; `_check` holds those that boxes alone can cause."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _check
from ._context import is_sharded
from ._filters import DEFAULT_SIGMA, MAX_SIGMA, MIN_SIGMA, MODES
from ._options import PADDING_MODES, Options

MODE_HINTS = {
    **dict.fromkeys(("linear", "triangle", "trilinear", "hamming"), "bilinear"),
    **dict.fromkeys(("cubic", "catmullrom", "keys"), "bicubic"),
    **dict.fromkeys(("lanczos", "antialias"), "lanczos3"),
    **dict.fromkeys(("box", "average", "avg", "mean", "inter_area"), "area"),
    **dict.fromkeys(("nearest-exact", "nn"), "nearest"),
    "blur": "gaussian",
}
PADDING_HINTS = {
    **dict.fromkeys(("replicate", "edge", "clamp", "nearest"), "border"),
    **dict.fromkeys(("zero", "none"), "zeros"),
    **dict.fromkeys(("reflect", "mirror", "symmetric"), "reflection"),
    **dict.fromkeys(("wrap", "periodic", "repeat"), "circular"),
    **dict.fromkeys(("fill", "value"), "constant"),
    **dict.fromkeys(("valid", "pillow"), "renormalize"),
}
_IMAGE_SHAPES = {
    1: "(C, W) or (B, C, W)",
    2: "(C, H, W) or (B, C, H, W)",
    3: "(C, D, H, W) or (B, C, D, H, W)",
}
_ARRAY = "convert with torch.as_tensor, and move the channels in front of the spatial axes"
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
DTYPES = frozenset(FLOATING + _WHOLE)


def image(
    value: Any,
    axes: int,
    name: str = "images",
    batched: bool | None = None,
    where: str | None = None,
    below: int = _check.LONGEST,
) -> Tensor:
    """An image (C, *spatial), or a batch (B, C, *spatial); ``batched`` False admits the former only.

    ``where`` says when these are the shapes, if not by the number of numbers of a box.
    """
    wanted = _IMAGE_SHAPES[axes] if batched is None else _IMAGE_SHAPES[axes].split(" or ")[0]
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor of shape {wanted}{', or a list of B tensors' if batched is None else ''}, "
            f"got {_check.describe(value)}; {_check.conversion(value, _ARRAY)}"
        )
    pixels(value, name)
    allowed = (axes + 1,) if batched is False else (axes + 1, axes + 2)
    if value.ndim not in allowed:
        hint = ""
        if value.ndim == axes:
            hint = f"; add the channels: {name}[None]"
        elif value.ndim == axes + 2:
            hint = f"; without the batch it is {name}[0]" if len(value) == 1 else f"; take them apart: *{name}"
        elif value.ndim == axes + 3:
            hint = f"; fold the leading dimensions: {name}.flatten(0, 1)"
        if value.ndim > axes + 1 and where is None and axes < 3:
            hint += f"; {'images' if axes == 1 else 'volumes'} take boxes of {2 * axes + 2} numbers"
        raise ValueError(
            f"{name} must have shape {wanted} {where or f'where the boxes have {2 * axes} numbers'}, "
            f"got {_check.describe(value)}{hint}"
        )
    # One by one: of a maximum the compiler makes a guard that says which side is the longest.
    for n in value.shape[-axes:]:
        if n == 0:
            raise ValueError(f"{name} must have at least one pixel along every axis, got {_check.describe(value)}")
        if n >= below:
            most = f"fewer than 2**{below.bit_length() - 1} pixels"
            raise ValueError(f"{name} must have {most} along every axis, got {_check.describe(value)}")
    return value


def pixels(value: Tensor, name: str) -> None:
    """Of a dtype that pixels have, and in memory with strides."""
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be floating-point (float64, float32, float16, bfloat16), integer or bool, "
            f"got {_check.describe(value)}"
        )
    if type(value) is not Tensor or value.layout != torch.strided or value.is_nested:
        _check.dense(value, name)


def image_list(
    value: Sequence[Any],
    axes: int,
    where: str | None = None,
    name: str = "images",
    below: int = _check.LONGEST,
) -> list[Tensor]:
    """B images (C, *spatial) of their own sizes, alike in channels, dtype and device."""
    if not value:
        raise ValueError(f"{name} must not be an empty list: there is no dtype or number of channels to crop with")
    tensors = [image(t, axes, f"{name}[{i}]", False, where, below) for i, t in enumerate(value)]
    first = tensors[0]
    for i, t in enumerate(tensors):
        if t.shape[0] == first.shape[0] and t.dtype == first.dtype and t.device == first.device:
            continue
        for what, mine, theirs in (
            ("channels", t.shape[0], first.shape[0]),
            ("dtype", t.dtype, first.dtype),
            ("device", t.device, first.device),
        ):
            if mine != theirs:
                raise ValueError(
                    f"the {name} of a list must agree in channels, dtype and device, got {what} {mine} for {name}[{i}] "
                    f"and {theirs} for {name}[0]"
                )
    return tensors


def box_list(value: Sequence[Any], five: str = _check.FIVE) -> int:
    """One tensor (K_b, 2A) per image. Returns A. ``five`` is the hint for boxes of five numbers."""
    if not value:
        raise ValueError(
            "boxes must be a list of one tensor per image, got an empty list; zero boxes are a tensor of shape (0, 4)"
        )
    _tensors_of_boxes(value)
    axes = _check.boxes(value[0], name="boxes[0]", five=five)
    for i, t in enumerate(value):
        _check.boxes(t, axes, f"boxes[{i}]", five)
        if t.ndim != 2:
            one = f"; one box is boxes[{i}][None]" if t.ndim == 1 else ""
            raise ValueError(f"boxes[{i}] must have shape (K, {2 * axes}), got {_check.describe(t)}{one}")
        if t.device != value[0].device or t.dtype != value[0].dtype:
            raise ValueError(
                f"the boxes of a list must agree in dtype and device, got {t.dtype} on {t.device} for boxes[{i}] and "
                f"{value[0].dtype} on {value[0].device} for boxes[0]"
            )
    return axes


def _tensors_of_boxes(value: Sequence[Any]) -> None:
    """Not a box in numbers, nor boxes in lists, nor one tensor for each box; and no boxes are a tensor, too."""
    for i, v in enumerate(value):
        if v is None or (isinstance(v, (list, tuple)) and not v):
            width = next((t.shape[-1] for t in value if isinstance(t, Tensor) and t.ndim == 2), 4)
            raise TypeError(
                f"boxes[{i}] must be a tensor, got {_check.describe(v)}; no boxes are torch.zeros(0, {width})"
            )
    if all(isinstance(v, (numbers.Real, list, tuple)) for v in value):
        deep = any(isinstance(v, (list, tuple)) and isinstance(v[0], (list, tuple)) for v in value)
        each = "them, [torch.as_tensor(b, dtype=torch.float32) for b in boxes]"
        kind, remedy = TypeError, f"convert {each if deep else 'it with torch.as_tensor(boxes, dtype=torch.float32)'}"
    elif all(isinstance(v, numbers.Real) or (isinstance(v, Tensor) and v.ndim == 0) for v in value):
        kind = ValueError
        mixed = any(isinstance(v, numbers.Real) for v in value)
        remedy = f"a box of numbers is torch.stack({'[torch.as_tensor(v) for v in boxes]' if mixed else 'boxes'})"
    elif all(isinstance(v, Tensor) and v.ndim == 1 and v.shape == value[0].shape != (0,) for v in value):
        kind, remedy = ValueError, "boxes of one tensor each are torch.stack(boxes)"
    else:
        return
    raise kind(f"boxes must be a tensor, or a list of one tensor per image, got {_check.describe(value)}; {remedy}")


def shards(images: Any, boxes: Any, batch_index: Any, axes: int) -> None:
    """DTensors: all of the arguments or none, and split where a crop can be: over the batch, channels or boxes."""
    if type(images) is type(boxes) is Tensor and (batch_index is None or type(batch_index) is Tensor):
        return  # nearly every call
    tensors = {"images": images, "boxes": boxes, "batch_index": batch_index}
    parts = [t for value in tensors.values() for t in (value if isinstance(value, (list, tuple)) else (value,))]
    if not any(map(is_sharded, parts)):
        return
    for name, value in tensors.items():
        if isinstance(value, (list, tuple)):
            raise TypeError(f"lists are for plain tensors, got DTensors and a list of {name}; pass one DTensor")
        if value is not None and not is_sharded(value):
            mesh = next(f"{other}.device_mesh" for other, t in tensors.items() if is_sharded(t))
            raise TypeError(
                f"{name} must be a DTensor as the others are, got {_check.describe(value)}; make one on their mesh: "
                f"torch.distributed.tensor.distribute_tensor({name}, {mesh}, [Replicate()] * {mesh}.ndim)"
            )
        if value is not None and value.device_mesh != images.device_mesh:
            raise ValueError(
                f"images and {name} must be on the same mesh, got {images.device_mesh} and {value.device_mesh}"
            )
    _image_shards(images, boxes, batch_index, axes)


def _image_shards(images: Any, boxes: Any, batch_index: Any, axes: int) -> None:
    from torch.distributed.tensor import Shard

    channels = images.ndim - axes - 1
    gather = "images.redistribute(placements=[Replicate()] * images.device_mesh.ndim) gathers them"
    for p in images.placements:
        if not p.is_replicate() and (type(p) is not Shard or p.dim > channels):
            raise ValueError(
                f"images must be replicated or split over {'the batch or ' if channels else ''}the channels, "
                f"Shard({channels}), got placements {images.placements} for shape {tuple(images.shape)}; {gather}"
            )
    if not channels or Shard(0) not in images.placements:
        return
    if batch_index is not None:
        raise ValueError(
            f"batch_index may name any image, so images must not be split over the batch, got {images.placements}; "
            f"{gather}, or pass boxes (B, K, {2 * axes}), which are split as the images are"
        )
    parts = math.prod([images.device_mesh.size(i) for i, p in enumerate(images.placements) if p == Shard(0)])
    if boxes.ndim == 3 and len(images) % parts:
        raise ValueError(
            f"boxes of shape (B, K, {2 * axes}) need B divisible by the {parts} parts that images are split into, "
            f"got {tuple(boxes.shape)} and {images.placements}; pad the batch, or pass (B, {2 * axes}) K times"
        )


def box_count(value: Sequence[Any], count: int) -> None:
    """A list of boxes has one tensor for each image."""
    if len(value) != count:
        raise ValueError(f"a list of boxes must have one tensor per image, got {len(value)} for {count} images")


def same_device(
    images: Tensor, boxes: Tensor, batch_index: Tensor | None, name: str = "boxes", images_name: str = "images"
) -> None:
    """Everything that a crop reads lies on one device."""
    if images.device != boxes.device:
        raise ValueError(
            f"{images_name} and {name} must be on the same device, got {images.device} and {boxes.device}; "
            f"move one with {name}.to({str(images.device)!r})"
        )
    if batch_index is not None and batch_index.device != images.device:
        raise ValueError(
            f"{images_name} and batch_index must be on the same device, got {images.device} and {batch_index.device}; "
            f"move one with batch_index.to({str(images.device)!r})"
        )


def batch_index(value: Any, boxes: Tensor, count: int, tail: int = 1) -> Tensor:
    """(R,) of any integer dtype, 0..B-1, one per box of ``tail`` dimensions."""
    index_kind(value)
    if boxes.ndim != tail + 1 or value.ndim != 1 or value.shape[0] != boxes.shape[0]:
        one = ", ".join(map(str, boxes.shape[-tail:]))
        raise ValueError(
            f"batch_index must have shape (R,) where boxes have shape (R, {one}), "
            f"got {tuple(value.shape)} and {tuple(boxes.shape)}"
        )
    index_range(value, count)
    return value


def index_kind(value: Any, name: str = "batch_index") -> None:
    """A tensor of integers."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be an integer tensor of shape (R,), got {_check.describe(value)}; "
            "convert it with torch.as_tensor"
        )
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be of an integer dtype, got {_check.describe(value)}; convert it with .long()")
    _check.dense(value, name)


def index_range(value: Tensor, count: int, name: str = "batch_index") -> None:
    """0..B-1, where looking costs nothing."""
    if _check.may_look(value) and value.numel():
        whole = value.to(torch.int64)  # some unsigned dtypes have no minimum
        low, high = int(whole.min()), int(whole.max())
        if count == 0:
            raise ValueError(f"{name} names images, but there are none, got {_check.describe(value)}")
        if low < 0 or high >= count:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name} must lie in 0..{count - 1} for a batch of {count} images, got {wrong} "
                f"in {_check.describe(value)}"
            )


def box_rows(boxes: Tensor, axes: int, count: int | None) -> None:
    """The shapes of boxes without batch_index: for one image (``count`` None) or a batch of ``count``."""
    if count is None:
        last, shape = 2 * axes, tuple(boxes.shape)
        if boxes.ndim > 2:
            raise ValueError(
                f"boxes must have shape ({last},) or (K, {last}) for one image, got {shape}; boxes of several images "
                "need images with a batch dimension"
            )
        return
    box_batch(boxes, count)


def box_batch(boxes: Tensor, count: int, tail: int = 1) -> None:
    """The shapes of boxes, of ``tail`` dimensions each, for a batch of ``count`` images without batch_index."""
    shape = tuple(boxes.shape)
    if not tail <= boxes.ndim <= tail + 2:
        one = ", ".join(map(str, shape[-tail:]))  # not before: the compiler cannot make text of a symbolic size
        alone = f"({one},)" if tail == 1 else f"({one})"
        raise ValueError(f"boxes must have shape {alone}, (B, {one}) or (B, K, {one}), got {shape}")
    if boxes.ndim > tail and boxes.shape[0] != count:
        one, hint = ", ".join(map(str, shape[-tail:])), ""
        if boxes.ndim == tail + 1:
            hint = (
                f"; for the same {shape[0]} boxes on every image pass boxes.expand({count}{', -1' * boxes.ndim}), "
                f"for boxes that name their image add batch_index of shape ({shape[0]},)"
            )
        raise ValueError(
            f"boxes of shape (B, {one}) or (B, K, {one}) must have B = {count} as images do, got {shape}{hint}"
        )


def options(
    mode: Any,
    antialias: Any,
    padding_mode: Any,
    fill: Any,
    sigma: Any,
    align_corners: Any,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Options:
    """All options that are not tensors, each checked alone and with the others."""
    _check.choice(mode, "mode", MODES, MODE_HINTS)
    _check.choice(padding_mode, "padding_mode", PADDING_MODES, PADDING_HINTS)
    _check.flag(antialias, "antialias")
    if mode == "area" and not antialias:
        raise ValueError(
            "mode='area' is an antialiasing filter and needs antialias=True, got False; "
            "without antialiasing use mode='bilinear'"
        )
    _check.align_corners(align_corners)
    return Options(
        mode,
        antialias,
        padding_mode,
        _fill(fill, padding_mode, mode, channels, dtype),
        _sigma(sigma, mode),
        align_corners,
    )


def _sigma(value: Any, mode: str) -> float:
    if value is None:
        return DEFAULT_SIGMA
    if mode != "gaussian":
        raise ValueError(
            f"sigma belongs to mode='gaussian', got sigma={_check.describe(value)} with mode={mode!r}; leave it out"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"sigma must be a number, got {_check.describe(value)}")
    if not MIN_SIGMA <= float(value) <= MAX_SIGMA:
        raise ValueError(
            f"sigma must be at least {MIN_SIGMA} (a narrower Gaussian misses every pixel of some outputs) "
            f"and at most {MAX_SIGMA:g}, got {value!r}"
        )
    return float(value)


def _fill(value: Any, padding_mode: str, mode: str, channels: int | None, dtype: torch.dtype) -> tuple[float, ...]:
    if isinstance(value, float) and value == 0:  # nearly every call; and the compiler may have made it symbolic
        return (0.0,)
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"fill is not differentiable, got {_check.describe(value)} that requires grad; pass fill.detach()"
            )
        if value.ndim > 1 or value.is_complex():
            raise ValueError(f"fill must be a number or one per channel, got {_check.describe(value)}")
        value = value.tolist()
    values = (value,) if isinstance(value, numbers.Real) else value
    if isinstance(value, (bool, str)) or not isinstance(values, (tuple, list)):
        raise TypeError(f"fill must be a number or a sequence with one per channel, got {_check.describe(value)}")
    for v in values:
        if isinstance(v, bool) or not isinstance(v, numbers.Real):
            raise TypeError(f"fill must hold numbers, got {_check.describe(v)} in {_check.describe(value)}")
        # Sums are made in float32 but for float64 images.
        if not abs(_check.real(v)) <= torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max:
            raise ValueError(
                f"fill must be finite, also in the dtype of the sums, got {_check.real(v)!r} for images of {dtype}; "
                "to tell the outside apart use diffcrop.coverage"
            )
    values = tuple(float(v) for v in values)
    if any(values) and padding_mode != "constant":
        raise ValueError(
            f"fill belongs to padding_mode='constant', got fill={_check.describe(value)} with "
            f"padding_mode={padding_mode!r}"
        )
    if not values or (channels is not None and len(values) not in (1, channels)):
        raise ValueError(f"fill must be one number or one for each of the {channels} channels, got {len(values)}")
    if mode == "nearest" and not dtype.is_floating_point:
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        for v in values:
            if v != int(v) or not low <= v <= high:
                raise ValueError(f"fill must be a whole number in {low}..{high} for {dtype} images, got {v!r}")
    return values


def derivable(mode: Any, modes: Sequence[str] = MODES, by: str = "the box") -> None:
    """The name of a filter that has a derivative."""
    if isinstance(mode, str) and mode == "nearest":
        raise ValueError(f"mode='nearest' has no derivative by {by}; choose another mode")
    _check.choice(mode, "mode", [each for each in modes if each != "nearest"], MODE_HINTS)


def differentiable(boxes: Tensor, mode: Any, name: str = "boxes", argument: str = "mode") -> None:
    """Nearest has no gradient by the box; None without a word would be worse than an error."""
    if not isinstance(mode, str) or mode != "nearest":
        return
    dual = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if (boxes.requires_grad and torch.is_grad_enabled()) or (
        dual and forward_ad.unpack_dual(boxes).tangent is not None
    ):
        raise ValueError(
            f"{argument}='nearest' has no gradient by the box, but {name} requires grad or has a tangent; "
            f"use {name}.detach(), or another {argument}"
        )


def kernels_of_images(value: Any, axes: int) -> None:
    """Of some operations the compiled kernels are those of images."""
    if isinstance(value, str) and value == "cpu" and axes != 2:
        raise ValueError(
            f"impl='cpu' serves images (boxes of 4 numbers), got boxes of {2 * axes} numbers; leave impl=None, which "
            "takes the reference"
        )


def impl(
    value: Any,
    images: Tensor,
    axes: int,
    implementations: dict[str, str | None],
    interpreted: bool,
    name: str = "images",
) -> None:
    """An explicit implementation must be there and able to serve; ``interpreted``: Triton, on the CPU."""
    _check.choice(value, "impl", tuple(implementations))
    reason = implementations[value]
    if reason is not None:
        raise ValueError(f"impl={value!r} is not available: {reason}; leave impl=None to use what is")
    if value == "reference":
        return
    if value == "triton" and axes != 2:
        raise ValueError(
            f"impl={value!r} serves images (boxes of 4 numbers), got boxes of {2 * axes} numbers; leave impl=None"
        )
    device = images.device.type
    if value == "cpu" and device != "cpu":
        raise ValueError(f"impl='cpu' serves CPU tensors, got {name} on {images.device}; leave impl=None")
    if value == "triton" and device != "cuda" and not (device == "cpu" and interpreted):
        raise ValueError(f"impl='triton' serves tensors on a GPU, got images on {images.device}; leave impl=None")
