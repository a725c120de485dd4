"""The operators on tensors: plan, allocate, launch. Nothing here waits for the device or reads a number from it."""

# A kernel is called with options of its launch, and constants as what they are.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from diffcrop import _normal
from diffcrop._options import Options, result_dtype, sum_dtype

from . import config, plan, resample

_PERIODIC = ("reflection", "circular")
_CUBIC = {True: -0.5, False: -0.75}
# As many programs as a launch may have.
_MOST_PROGRAMS = 2**31 - 1


@dataclass(frozen=True)
class _Runs:
    """Runs of both axes of boxes, and what belongs to them: see `plan.forward_runs`."""

    start: Tensor
    count: Tensor
    offset: Tensor
    weights: Tensor
    size: tuple[int, int]
    capacity: tuple[int, int]
    share: Tensor
    hull: Tensor
    sounds: Tensor
    slopes: Tensor


def crop(
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    size: Sequence[int],
    channels_last: bool,
    mode: str,
    antialias: bool,
    padding_mode: str,
    fill: Sequence[float],
    parameter: float,
    align_corners: bool,
) -> Tensor:
    """The crops (R, C, h, w)."""
    options = Options(mode, antialias, padding_mode, tuple(fill), parameter, align_corners)
    rows, channels = boxes.shape[0], images.shape[1]
    out = _empty((rows, channels, *size), result_dtype(images.dtype, mode), images.device, channels_last)
    if out.numel() == 0:
        return out
    last = _innermost(images) and channels_last
    taps = 1 if mode == "nearest" else config.expected_taps(size[1], images.shape[3], options)
    tile = config.tile(_pair(size), channels, taps, last)
    programs = tile.count(_pair(size), channels)
    fills = _fill(options, out)
    with _on(images.device):
        for part, owners in _turns(rows, images.shape[0], index, options, size, images.shape[2:], images, 1, programs):
            runs = _plan(boxes[part], owners, images, size, options, trim=True)
            if mode == "nearest":
                _nearest(images, owners, runs, fills, out[part], rows, tile, last)
            else:
                _resample(images, owners, runs, fills, out[part], rows, options, tile, last)
    return out


def _resample(
    images: Tensor, owners: Tensor | None, runs: _Runs, fills: Tensor, out: Tensor, rows: int, options: Options,
    tile: config.Tile, last: bool,
) -> None:  # fmt: skip
    count, channels, in_y, in_x = images.shape
    out_y, out_x = out.shape[2:]
    resample.crop_kernel[(out.shape[0] * tile.count((out_y, out_x), channels),)](
        images, owners, runs.start, runs.count, runs.offset, runs.share, runs.weights, runs.sounds, fills, out,
        rows // max(count, 1), channels, in_y, in_x, out_y, out_x, *runs.capacity, *images.stride(), *out.stride(),
        FILL=_filling(options), INDEXED=owners is not None, PLACES=_places(options), **_common(images, tile, last),
    )  # fmt: skip


def _nearest(
    images: Tensor, owners: Tensor | None, runs: _Runs, fills: Tensor, out: Tensor, rows: int, tile: config.Tile,
    last: bool,
) -> None:  # fmt: skip
    count, channels = images.shape[:2]
    out_y, out_x = out.shape[2:]
    constant = fills.to(out.dtype)
    invalid = torch.full_like(constant, math.nan) if out.dtype.is_floating_point else constant
    # Elements are moved as integers of their size: whatever they mean, not a bit may change.
    element = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[out.element_size()]
    resample.nearest_kernel[(out.shape[0] * tile.count((out_y, out_x), channels),)](
        images.view(element), owners, runs.start, runs.count, runs.sounds, constant.view(element),
        invalid.view(element), out.view(element), rows // max(count, 1), channels, out_y, out_x,
        *images.stride(), *out.stride(), FILL=2 if constant.numel() > 1 else 1, INDEXED=owners is not None, LAST=last,
        TILE_Y=tile.rows, TILE_X=tile.columns, CHANNELS=tile.channels, num_warps=tile.warps,
        enable_fp_fusion=True,
    )  # fmt: skip


def crop_grad_images(
    grad: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    image_shape: Sequence[int],
    channels_last: bool,
    mode: str,
    antialias: bool,
    padding_mode: str,
    fill: Sequence[float],  # noqa: ARG001
    parameter: float,
    align_corners: bool,
) -> Tensor:
    """``W_y^T grad W_x``, summed over the boxes of each image."""
    options = Options(mode, antialias, padding_mode, (0.0,), parameter, align_corners)
    (count, channels, in_y, in_x), (out_y, out_x), rows = image_shape, grad.shape[2:], grad.shape[0]
    listed = padding_mode in _PERIODIC
    if rows == 0 or count == 0 or channels == 0:
        return _empty(image_shape, grad.dtype, grad.device, channels_last).zero_()
    last = _innermost(grad) and channels_last
    tile = config.tile((in_y, in_x), channels, config.expected_readers(out_x, in_x, options), last)
    programs = tile.count((in_y, in_x), channels)
    turns = list(_turns(rows, count, index, options, (out_y, out_x), (in_y, in_x), grad, 1, transposed=True))
    # An image collects the parts of all its boxes in the precision of sums.
    dtype = grad.dtype if len(turns) == 1 else sum_dtype(grad.dtype)
    out = _empty(image_shape, dtype, grad.device, channels_last)
    like = grad.new_empty(()).expand(tuple(image_shape))
    with _on(grad.device):
        for turn, (part, owners) in enumerate(turns):
            mine = boxes[part]
            runs = _plan(mine, owners, like, (out_y, out_x), options)
            start, length, offset, weights, places, capacity = _transposed(mine, runs, (in_y, in_x), options)
            order = bounds = None
            if owners is not None:
                known, order = torch.sort(owners, stable=True)
                bounds = torch.searchsorted(known, torch.arange(count + 1, device=grad.device, dtype=known.dtype))
            pulled = grad[part]
            border = padding_mode == "border"
            resample.grad_images_kernel[(count * programs,)](
                pulled, order, bounds, runs.hull, start, length, offset, weights, places, out, rows // count,
                channels, out_y, out_x, in_y, in_x, *capacity, *pulled.stride(), *out.stride(),
                INDEXED=owners is not None, INNER=border, ADD=turn > 0,
                PLACES=resample.LISTED if listed else resample.FORWARD, BOXES=config.together(mine.shape[0]),
                **_common(pulled, tile, last),
            )  # fmt: skip
            if not border:
                continue
            readers, edges = config.tile((out_y, out_x), channels, 1, last), config.edges((in_y, in_x))
            options_of = _common(pulled, readers, last)
            options_of.pop("TAPS")
            resample.grad_edges_kernel[(count * edges * triton.cdiv(channels, readers.channels),)](
                pulled, order, bounds, runs.hull, start, length, offset, weights, out, rows // count, channels,
                in_y, in_x, edges, *capacity, *pulled.stride(), *out.stride(), INDEXED=owners is not None,
                ADD=turn > 0, BOXES=config.together(mine.shape[0]), **options_of,
            )  # fmt: skip
    return out.to(grad.dtype)


def crop_grad_boxes(
    grad: Tensor,
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    mode: str,
    antialias: bool,
    padding_mode: str,
    fill: Sequence[float],
    parameter: float,
    align_corners: bool,
) -> Tensor:
    """``<grad, d crop / d box>`` (R, 4)."""
    options = _differentiable(Options(mode, antialias, padding_mode, tuple(fill), parameter, align_corners))
    out = torch.empty(boxes.shape, dtype=boxes.dtype, device=boxes.device)
    if out.numel() == 0:
        return out
    rows, channels, size = boxes.shape[0], images.shape[1], _pair(grad.shape[2:])
    last = _innermost(images) and _innermost(grad)
    tile = config.tile(size, channels, config.expected_taps(size[1], images.shape[3], options), last, slopes=True)
    programs = tile.count(size, channels)
    dtype = sum_dtype(images.dtype)
    with _on(images.device):
        for part, owners in _turns(rows, images.shape[0], index, options, size, images.shape[2:], images, 3, programs):
            runs = _plan(boxes[part], owners, images, size, options, derivatives=True)
            parts = torch.empty((runs.sounds.shape[0], programs, 4), dtype=dtype, device=images.device)
            if channels:
                _slopes(grad[part], images, owners, runs, parts, rows, options, tile, last, jacobian=False)
            resample.sum_kernel[(runs.sounds.shape[0],)](
                parts,
                runs.sounds,
                out[part],
                programs,
                BLOCK=min(config.power(max(programs, 1)), config.PARTS),
                num_warps=8,
                enable_fp_fusion=True,
            )
    return out


def crop_jacobian(
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    size: Sequence[int],
    mode: str,
    antialias: bool,
    padding_mode: str,
    fill: Sequence[float],
    parameter: float,
    align_corners: bool,
) -> Tensor:
    """``d crop / d box`` (R, C, h, w, 4)."""
    options = _differentiable(Options(mode, antialias, padding_mode, tuple(fill), parameter, align_corners))
    rows, channels = boxes.shape[0], images.shape[1]
    out = images.new_empty((rows, channels, *size, 4), dtype=result_dtype(images.dtype, mode))
    if out.numel() == 0:
        return out
    last = _innermost(images)
    taps = config.expected_taps(size[1], images.shape[3], options)
    tile = config.tile(_pair(size), channels, taps, last, slopes=True)
    programs = tile.count(_pair(size), channels)
    with _on(images.device):
        for part, owners in _turns(rows, images.shape[0], index, options, size, images.shape[2:], images, 3, programs):
            runs = _plan(boxes[part], owners, images, size, options, derivatives=True)
            _slopes(out[part][..., 0], images, owners, runs, out[part], rows, options, tile, last, jacobian=True)
    return out


def crop_gram(
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    targets: Tensor,
    metric: str,
    huber: float,
    *options: Any,
) -> Tensor:
    """`_normal.products`, from the crops and jacobians of as many boxes as the budget has room for."""
    rows, (count, channels) = boxes.shape[0], images.shape[:2]
    size, number = targets.shape[2:], _normal.columns(metric, 2)
    images = images.to(sum_dtype(images.dtype))  # a half precision would round the crop
    if index is None and rows:
        index = torch.arange(rows, device=boxes.device) // (rows // count)
    together = max(config.BUDGET // (3 * 8 * number * max(channels, 1) * math.prod(size)), 1)
    parts = [images.new_empty((0, channels, number, number), dtype=torch.float64)]
    for first in range(0, rows, together):
        part = slice(first, first + together)
        given = images, boxes[part], None if index is None else index[part], size
        parts.append(
            _normal.products(
                crop(*given, False, *options), crop_jacobian(*given, *options), targets[part], metric, huber
            )
        )
    return torch.cat(parts)


def _slopes(
    grad: Tensor, images: Tensor, owners: Tensor | None, runs: _Runs, out: Tensor, rows: int, options: Options,
    tile: config.Tile, last: bool, jacobian: bool,
) -> None:  # fmt: skip
    (out_y, out_x), (count, channels, in_y, in_x) = grad.shape[2:], images.shape
    mine = runs.sounds.shape[0]
    resample.box_kernel[(mine * tile.count((out_y, out_x), channels),)](
        grad, images, owners, runs.start, runs.count, runs.offset, runs.share, runs.weights, runs.sounds, runs.slopes,
        _fill(options, images), out, mine, rows // max(count, 1), channels, in_y, in_x, out_y, out_x, *runs.capacity,
        *grad.stride(), *images.stride(), FILL=_filling(options), INDEXED=owners is not None,
        WIDENING=options.antialias, ALIGN=options.align_corners, JACOBIAN=jacobian, PLACES=_places(options),
        **_common(images, tile, last),
    )  # fmt: skip


def _plan(
    boxes: Tensor,
    owners: Tensor | None,
    images: Tensor,
    size: Sequence[int],
    options: Options,
    derivatives: bool = False,
    trim: bool = False,
) -> _Runs:
    rows, (out_y, out_x), (count, _, in_y, in_x) = boxes.shape[0], size, images.shape
    device, dtype = boxes.device, sum_dtype(images.dtype)
    capacity = _capacity(config.forward_capacity, size, (in_y, in_x), options)
    orders = 1 + derivatives + (derivatives and options.antialias)
    runs = _Runs(
        *torch.empty((3, rows, out_y + out_x), dtype=torch.int32, device=device).unbind(),
        weights=torch.empty((orders, rows, sum(capacity)), dtype=dtype, device=device),
        size=_pair(size),
        capacity=capacity,
        share=torch.empty((orders, rows, out_y + out_x), dtype=dtype, device=device),
        hull=torch.empty((rows, 2, 2), dtype=torch.int32, device=device),
        sounds=torch.empty((rows,), dtype=torch.int32, device=device),
        slopes=torch.empty((rows, 2), dtype=torch.float64, device=device),
    )
    how = config.planning(max(size))
    plan.forward_runs[(rows * 2 * triton.cdiv(max(size), how.block),)](
        boxes.contiguous(), owners, count, runs.start, runs.count, runs.offset, runs.share, runs.weights, runs.hull,
        runs.sounds, runs.slopes, rows, out_y, out_x, in_y, in_x, *capacity, _scale(options),
        INDEXED=owners is not None, MODE=options.mode, A=_CUBIC[options.antialias], PADDING=options.padding_mode,
        WIDENING=options.antialias and options.mode != "nearest", ALIGN=options.align_corners,
        DERIVATIVES=derivatives, TRIM=trim, BLOCK=how.block, TAPS=how.taps, num_warps=how.warps, enable_fp_fusion=False,
    )  # fmt: skip
    return runs


def _transposed(
    boxes: Tensor, runs: _Runs, shape: tuple[int, int], options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[int, int]]:
    """start, count, offset, weights and places of the runs turned round, and the capacity of each axis."""
    rows, (in_y, in_x), device = boxes.shape[0], shape, boxes.device
    out_y, out_x = runs.size
    capacity = _capacity(config.transposed_capacity, runs.size, shape, options)
    listed = options.padding_mode in _PERIODIC
    start, count, offset = torch.empty((3, rows, in_y + in_x), dtype=torch.int32, device=device).unbind()
    weights = torch.empty((rows, sum(capacity)), dtype=runs.weights.dtype, device=device)
    places = torch.empty((rows, sum(capacity)), dtype=torch.int32, device=device) if listed else start
    how = config.planning(max(shape))
    plan.transposed_runs[(rows * 2 * triton.cdiv(max(shape), how.block),)](
        boxes.contiguous(), runs.sounds, runs.start, runs.count, runs.offset, runs.weights, runs.hull, start, count,
        offset, weights, places, out_y, out_x, in_y, in_x, *runs.capacity, *capacity, _scale(options),
        MODE=options.mode, WIDENING=options.antialias and options.mode != "nearest", ALIGN=options.align_corners,
        LISTED=listed, BLOCK=how.block, TAPS=how.taps, num_warps=how.warps, enable_fp_fusion=False,
    )  # fmt: skip
    return start, count, offset, weights, places, capacity


def _turns(
    rows: int,
    count: int,
    index: Tensor | None,
    options: Options,
    size: Sequence[int],
    shape: Sequence[int],
    like: Tensor,
    orders: int,
    programs: int = 0,
    transposed: bool = False,
) -> Iterator[tuple[slice, Tensor | None]]:
    """Boxes that are worked off together, with the images that they read: as many as tables and launches have room for.

    ``programs`` per box. Without an index all boxes of a call are one turn, or get one.
    """
    index = None if index is None else index.contiguous()
    each = orders * sum(_capacity(config.forward_capacity, size, shape, options)) * sum_dtype(like.dtype).itemsize
    if transposed:
        listed = 4 if options.padding_mode in _PERIODIC else 0
        item = sum_dtype(like.dtype).itemsize + listed
        each += sum(_capacity(config.transposed_capacity, size, shape, options)) * item + 12 * sum(shape)
    together = max(min(config.BUDGET // each, _MOST_PROGRAMS // max(programs, 1)), 1)
    if together >= rows:
        yield slice(0, rows), index
        return
    if index is None:
        index = torch.arange(rows, device=like.device) // (rows // count)
    for first in range(0, rows, together):
        part = slice(first, min(first + together, rows))
        yield part, index[part]


def _capacity(bound: Any, size: Sequence[int], shape: Sequence[int], options: Options) -> tuple[int, int]:
    capacity = (bound(size[0], shape[0], options), bound(size[1], shape[1], options))
    if sum(capacity) > 2**31 - 1:
        raise ValueError(
            f"impl='triton' needs more than 2**31 weights for a crop of {tuple(size)} from an image of {tuple(shape)} "
            f"with padding_mode={options.padding_mode!r} and antialias={options.antialias}; use impl='reference'"
        )
    return capacity


def _common(source: Tensor, tile: config.Tile, last: bool) -> dict[str, Any]:
    """What the kernels that make products are all told."""
    return {
        "ACCUMULATE": tl.float64 if source.dtype == torch.float64 else tl.float32,
        "LAST": last,
        "WIDE": _farthest(source) >= 2**31,
        "TILE_Y": tile.rows,
        "TILE_X": tile.columns,
        "TAPS": tile.taps,
        "CHANNELS": tile.channels,
        "num_warps": tile.warps,
        "enable_fp_fusion": True,
    }


def _farthest(tensor: Tensor) -> int:
    """The distance of the last element of an image from its first."""
    return sum((n - 1) * stride for n, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def _differentiable(options: Options) -> Options:
    if options.mode == "nearest":
        raise ValueError("mode='nearest' has no derivative by the box; choose another mode")
    return options


def _places(options: Options) -> Any:
    return resample.WRAPPED if options.padding_mode == "circular" else resample.FORWARD


def _fill(options: Options, like: Tensor) -> Tensor:
    """One number, or one per channel, made on the device: a copy from here would have to be waited for."""
    dtype = sum_dtype(like.dtype) if options.mode != "nearest" else like.dtype
    if options.mode != "nearest" and not any(options.fill):  # nobody will look
        return torch.empty((1,), dtype=dtype, device=like.device)
    if like.dtype == torch.bool:
        dtype = torch.uint8
    fills = [torch.full((1,), value, dtype=dtype, device=like.device) for value in _values(options)]
    return torch.cat(fills) if len(fills) > 1 else fills[0]


def _filling(options: Options) -> int:
    return 0 if not any(options.fill) else min(len(_values(options)), 2)


def _values(options: Options) -> tuple[float, ...]:
    """One for all channels where they are the same."""
    return options.fill if len(set(options.fill)) > 1 else options.fill[:1]


def _scale(options: Options) -> int:
    """The bits of the Gaussian's width: a float would arrive in single precision."""
    return struct.unpack("<q", struct.pack("<d", options.parameter if options.mode == "gaussian" else 1.0))[0]


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=layout)


def _innermost(tensor: Tensor) -> bool:
    """Whether neighbours in memory are channels."""
    return tensor.shape[1] > 1 and tensor.stride(1) == 1 and tensor.stride(3) != 1


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return size[0], size[1]


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
