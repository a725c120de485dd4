"""The specification: dense one-dimensional weights in plain differentiable PyTorch, contracted with the image.

    crop = fill + W_y (image - fill) W_x^T            (one matrix per axis, `_axis.weights`; any number of axes)

Every derivative is what autograd makes of that line, and every kernel is compared with it. Shapes throughout:
``images`` (B, C, *spatial); ``boxes`` (R, 2A), pixel xyxy; ``index`` (R,) or None, which means that R is a multiple of
B and box r reads image r // (R / B); the crop is (R, C, *size).

Where values may be looked at (eager, no transform, any device) a call works on the band of the image that its boxes
touch, box by box where their weights together would not fit into `BUDGET`, and a long axis in pieces, each made of some
outputs and the pixels that those touch (`_Axis`). Autograd then makes a piece's weights again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffcrop import _axis, _normal
from diffcrop._context import in_full_precision, in_transform, is_concrete
from diffcrop._derivative import pull, push
from diffcrop._options import Options, result_dtype, sum_dtype
from diffcrop._sharding import per_shard

BUDGET = 32 * 2**20
# Beyond this a box counts as infinite: its squares and products must not overflow.
FARTHEST = {torch.float64: 1e100, torch.float32: 1e12}
# Intermediates of the size of a weight matrix that autograd keeps for a second derivative, about.
_COPIES = 40


@per_shard(crops=False)
@in_full_precision
def crop(images: Tensor, boxes: Tensor, index: Tensor | None, size: Sequence[int], options: Options) -> Tensor:
    """The crops (R, C, *size)."""
    if boxes.shape[0] == 0:
        return images.new_zeros((0, images.shape[1], *size), dtype=result_dtype(images.dtype, options.mode))
    steps = _steps(images.shape, boxes, index, size)
    if steps is not None:
        return torch.cat([_crop(images[b], boxes[r], i, size, options) for r, b, i in steps])
    return _crop(images, boxes, index, size, options)


def _crop(images: Tensor, boxes: Tensor, index: Tensor | None, size: Sequence[int], options: Options) -> Tensor:
    sound, valid, index = _sound(images.shape[0], boxes, index)
    nan = _spread(torch.where(valid[:, None], 0.0, boxes).sum(-1) * math.nan, len(size))
    valid = _spread(valid, len(size))
    dtype = images.dtype if options.mode == "nearest" else sum_dtype(images.dtype)
    fill = torch.tensor(options.fill, dtype=dtype if dtype.is_floating_point else torch.float64)
    fill = fill.to(dtype).to(images.device).view(-1, *[1] * len(size))
    if options.mode == "nearest":
        result = _nearest(images, sound, index, size, options, fill)
        return torch.where(valid, result, (nan if result.is_floating_point() else fill).to(result.dtype))

    axes = _axes(sound, images.shape[2:], size, options)
    region = images[(..., *(slice(*axis.band) for axis in axes))]
    if index is not None:
        region = region.index_select(0, index)
    result, shares = _gather(region, axes, fill.dtype)
    result = result.flatten(0, 1)
    if any(options.fill):
        result = result + fill * (1 - _outer(shares))
    result = torch.where(valid, result, nan.to(result.dtype)).to(result_dtype(images.dtype, options.mode))
    return result


@per_shard(images=True)
@in_full_precision
def grad_images(
    grad: Tensor, boxes: Tensor, index: Tensor | None, image_shape: Sequence[int], options: Options
) -> Tensor:
    """``W_y^T grad W_x``, summed over the boxes of each image, in the dtype of the sums."""
    size, dtype = grad.shape[2:], sum_dtype(grad.dtype)
    differentiated = torch.is_grad_enabled() and (grad.requires_grad or boxes.requires_grad)
    steps = None if differentiated else _steps(image_shape, boxes, index, size)
    if steps is None:
        if differentiated or index is not None or boxes.shape[0] == 0 or not is_concrete(grad, boxes):
            return _grad_images(grad, boxes, index, image_shape, options, dtype)
        steps = [(slice(None), slice(None), None)]
    total = grad.new_zeros(tuple(image_shape), dtype=dtype)
    for r, b, i in steps:
        sound, known, _ = _sound(1, boxes[r], i)
        part = torch.where(_spread(known, len(size)), grad[r].to(dtype), 0.0)
        axes = _axes(sound, image_shape[2:], size, options)
        place = total[(b, slice(None), *(slice(*axis.band) for axis in axes))]
        _scatter(part.unflatten(0, (place.shape[0], -1)), axes, dtype, place)
    return total


def _grad_images(
    grad: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    image_shape: Sequence[int],
    options: Options,
    dtype: torch.dtype,
) -> Tensor:
    """All at once and as a function of its tensors."""
    count, channels, *spatial = image_shape
    if boxes.shape[0] == 0:
        return grad.new_zeros((count, channels, *spatial), dtype=dtype)
    sound, valid, index = _sound(count, boxes, index)
    grad = torch.where(_spread(valid, len(spatial)), grad.to(dtype), 0.0)
    axes = _axes(sound, spatial, grad.shape[2:], options)
    groups = count if index is None else boxes.shape[0]
    part = _scatter(grad.unflatten(0, (groups, grad.shape[0] // groups)), axes, dtype)
    if index is not None:
        part = part.new_zeros((count, *part.shape[1:])).index_add(0, index, part)
    margins = [m for axis in reversed(axes) for m in (axis.band[0], axis.pixels - axis.band[1])]
    return torch.nn.functional.pad(part, margins)


@per_shard(boxes=True)
@in_full_precision
def grad_boxes(grad: Tensor, images: Tensor, boxes: Tensor, index: Tensor | None, options: Options) -> Tensor:
    """``<grad, d crop / d box>`` (R, 2A), in the boxes' dtype."""
    size = grad.shape[2:]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (grad, images, boxes))
    steps = None if differentiated else _steps(images.shape, boxes, index, size)
    if steps is None:
        return pull(lambda b: crop(images, b, index, size, options), [boxes], grad, differentiated)[1][0]
    parts = []
    for r, b, i in steps:

        def one(box: Tensor, b: slice = b, i: Tensor | None = i) -> Tensor:
            return crop(images[b], box, i, size, options)

        parts.append(pull(one, [boxes[r]], grad[r], False)[1][0])
    return torch.cat(parts)


@per_shard(crops=False)
@in_full_precision
def tangent(
    images: Tensor, boxes: Tensor, index: Tensor | None, size: Sequence[int], options: Options, d_boxes: Tensor
) -> Tensor:
    """The derivative of the crop in the direction ``d_boxes``; differentiable in all its tensors."""

    def function(b: Tensor) -> Tensor:
        return crop(images, b, index, size, options)

    if not (torch.compiler.is_compiling() or in_transform()) and torch.is_inference_mode_enabled():
        # No graph can be had there, and none of its tensors may enter one.
        with torch.inference_mode(False):
            owner = None if index is None else index.clone()
            return tangent(images.clone(), boxes.clone(), owner, size, options, d_boxes.clone())
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (images, boxes, d_boxes))
    return push(function, boxes, d_boxes, wanted)


@in_full_precision
@torch.no_grad()
def gram(
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    targets: Tensor,
    metric: str,
    huber: float,
    options: Options,
) -> Tensor:
    """`_normal.products` of the crops and their jacobian, of one box after the other where values may be looked at."""

    def some(r: slice, b: slice, i: Tensor | None) -> Tensor:
        # In the precision of sums: a half precision would round the crop.
        given = images[b].to(sum_dtype(images.dtype)), boxes[r], i, targets.shape[2:], options
        units = torch.eye(boxes.shape[1], dtype=boxes.dtype, device=boxes.device)
        jacobian = torch.stack([tangent(*given, unit.expand_as(given[1])) for unit in units], -1)
        return _normal.products(crop(*given), jacobian, targets[r], metric, huber)

    if boxes.shape[0] == 0 or not is_concrete(images, boxes, targets) or (index is not None and not is_concrete(index)):
        return some(slice(None), slice(None), index)
    return torch.cat([some(*step) for step in _one_by_one(images.shape[0], boxes, index)])


@per_shard(crops=False, images=True, boxes=True)
@in_full_precision
def second(
    grad: Tensor,
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    options: Options,
    d_boxes: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Derivatives of ``phi = <grad, tangent(d_boxes)>`` by grad (the tangent itself), the images and the boxes.

    phi is bilinear in grad and d_boxes, so this is at once the backward of `grad_boxes` (with ``d_boxes`` its
    cotangent) and its forward-mode derivative along the boxes. What is not ``wanted`` is None.
    """
    size = grad.shape[2:]
    images = images if images.is_floating_point() else images.to(grad.dtype)
    tensors = (grad, images, boxes, d_boxes)
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    steps = None if differentiated else _steps(images.shape, boxes, index, size)
    if steps is None:
        parts = _second(grad, images, boxes, index, options, d_boxes, wanted, differentiated)
        return [part if want else None for part, want in zip(parts, wanted, strict=True)]

    # In the precision of sums: an image collects the parts of all its boxes.
    dtypes = (grad.dtype, sum_dtype(images.dtype), boxes.dtype)
    totals = [
        torch.zeros_like(t, dtype=dtype) if want else None
        for t, dtype, want in zip((grad, images, boxes), dtypes, wanted, strict=True)
    ]
    for r, b, i in steps:
        parts = _second(grad[r], images[b], boxes[r], i, options, d_boxes[r], wanted, False)
        for total, part, place in zip(totals, parts, (r, b, r), strict=True):
            if total is not None and part is not None:
                total[place] += part
    return [total if total is None else total.to(t.dtype) for total, t in zip(totals, tensors[:3], strict=True)]


def _second(
    grad: Tensor,
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    options: Options,
    d_boxes: Tensor,
    wanted: Sequence[bool],
    create_graph: bool,
) -> list[Tensor | None]:
    """All at once, without the images' part where that is not wanted: it alone takes extra work."""

    def function(i: Tensor, b: Tensor) -> Tensor:
        return tangent(i, b, index, grad.shape[2:], options, d_boxes)

    if wanted[1]:
        value, grads = pull(function, [images, boxes], grad, create_graph)
        return [value, *grads]
    value, grads = pull(lambda b: function(images, b), [boxes], grad, create_graph)
    return [value, None, *grads]


def _steps(
    image_shape: Sequence[int], boxes: Tensor, index: Tensor | None, size: Sequence[int]
) -> Iterator[tuple[slice, slice, Tensor | None]] | None:
    """Box, image and index of one crop after another, where all at once would take more than `BUDGET`.

    A box alone is left to its pieces, but for one that names its image: to select that is to copy it.
    """
    count, channels, *spatial = image_shape
    rows = boxes.shape[0]
    if rows < (2 if index is None else 1) or not is_concrete(boxes) or (index is not None and not is_concrete(index)):
        return None
    entries = sum(n * s for n, s in zip(size, spatial, strict=True)) * _COPIES
    entries += channels * size[0] * math.prod(spatial[1:]) + (0 if index is None else channels * math.prod(spatial))
    if 8 * rows * entries <= BUDGET:
        return None
    return _one_by_one(count, boxes, index)


def _one_by_one(count: int, boxes: Tensor, index: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    rows = boxes.shape[0]
    owners = [r // (rows // count) for r in range(rows)] if index is None else index.tolist()
    return (_step(r, b, count, boxes.device) for r, b in enumerate(owners))


def _step(row: int, owner: int, count: int, device: torch.device) -> tuple[slice, slice, Tensor | None]:
    known = 0 <= owner < count
    image = slice(owner, owner + 1) if known else slice(0, 1)
    return slice(row, row + 1), image, None if known else torch.full((1,), -1, device=device)


def position_dtype(device: torch.device) -> torch.dtype:
    """float64, but float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _sound(count: int, boxes: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Boxes in the precision of positions, those that are not finite replaced; which were sound; a safe index."""
    positions = boxes.to(position_dtype(boxes.device))
    # In ONNX graphs numbers become float32, where the farthest is infinity, so that is asked for as well.
    valid = (torch.isfinite(positions) & (positions.abs() <= FARTHEST[positions.dtype])).all(-1)
    if index is not None:
        known = (index >= 0) & (index < count)
        valid = valid & known
        index = torch.where(known, index, 0)
    return torch.where(valid[:, None], positions, 0.0), valid, index


class _Piece(NamedTuple):
    """Some outputs of an axis, and the pixels outside of which their weights are zero."""

    outputs: tuple[int, int]
    band: tuple[int, int]


class _Axis(NamedTuple):
    """One axis of R boxes, in pieces whose intermediates fit into `BUDGET`; in one where nothing may be looked at."""

    lo: Tensor
    hi: Tensor
    size: int
    pixels: int
    options: Options
    pieces: list[_Piece]

    @property
    def band(self) -> tuple[int, int]:
        """The pixels that any output touches."""
        return min(piece.band[0] for piece in self.pieces), max(piece.band[1] for piece in self.pieces)

    def matrix(self, piece: _Piece) -> Tensor:
        """(R, outputs, pixels) of a piece."""
        return _axis.weights(self.lo, self.hi, self.size, self.pixels, self.options, piece.band, piece.outputs)

    def gather(self, piece: _Piece, equation: str, dtype: torch.dtype, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of a piece from the ``tensor`` of its pixels, and their sums of weights (R, outputs)."""
        matrix = self.matrix(piece).to(dtype)
        return torch.einsum(equation, matrix.unflatten(0, (tensor.shape[0], -1)), tensor.to(dtype)), matrix.sum(-1)


def _axes(boxes: Tensor, spatial: Sequence[int], size: Sequence[int], options: Options) -> list[_Axis]:
    count, axes = len(spatial), []
    for axis, (n, pixels) in enumerate(zip(size, spatial, strict=True)):
        lo, hi = boxes[:, count - 1 - axis], boxes[:, 2 * count - 1 - axis]  # boxes name x first, tensors have it last
        looking = is_concrete(boxes)
        pieces = _pieces(lo, hi, n, pixels, options, (0, n)) if looking else [_Piece((0, n), (0, pixels))]
        axes.append(_Axis(lo, hi, n, pixels, options, pieces))
    return axes


def _pieces(lo: Tensor, hi: Tensor, n: int, pixels: int, options: Options, outputs: tuple[int, int]) -> list[_Piece]:
    """``outputs`` halved until the intermediates of each piece fit into `BUDGET`."""
    first, last = outputs
    band = _axis.touched(lo, hi, n, pixels, options, outputs)
    if last - first == 1 or 8 * _COPIES * lo.numel() * (last - first) * (band[1] - band[0]) <= BUDGET:
        return [_Piece(outputs, band)]
    middle = (first + last) // 2
    halves = (first, middle), (middle, last)
    return [piece for half in halves for piece in _pieces(lo, hi, n, pixels, options, half)]


def _equations(source: str, target: str, axes: int, transposed: bool) -> Iterator[tuple[str, int, int]]:
    """The product with one matrix (R, n, pixels) for each axis, and the axis' dimension before and after.

    b k = R boxes, c channels, xyz outputs, uvw pixels. ``transposed`` goes from outputs to pixels and sums over k in
    the last step.
    """
    current, final = source[: source.index("c") + 1 + axes], target[: target.index("c") + 1 + axes]
    for i in range(axes):
        pixel, output = "uvw"[i], "xyz"[i]
        old, new = (output, pixel) if transposed else (pixel, output)
        following = final if i == axes - 1 else "bkc" + current[current.index("c") + 1 :].replace(old, new)
        yield f"bk{output}{pixel},{current}->{following}", current.index(old), following.index(new)
        current = following


def _gather(tensor: Tensor, axes: list[_Axis], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Apply the matrix of each axis to the bands (B, C, *pixels): (B, K, C, *size), and each one's sums (R, n)."""
    shares = []
    for axis, (equation, old, new) in zip(axes, _equations("bcuvw", "bkcxyz", len(axes), False), strict=True):
        again = len(axis.pieces) > 1 and torch.is_grad_enabled() and axis.lo.requires_grad
        parts = []
        for piece in axis.pieces:
            band = tensor.narrow(old, piece.band[0] - axis.band[0], piece.band[1] - piece.band[0])
            if again:
                arguments = (axis.gather, piece, equation, dtype, band)
                parts.append(checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(axis.gather(piece, equation, dtype, band))
        products, sums = zip(*cast(list[tuple[Tensor, Tensor]], parts), strict=True)
        tensor = products[0] if len(products) == 1 else torch.cat(products, new)
        shares.append(sums[0] if len(sums) == 1 else torch.cat(sums, -1))
    return tensor, shares


def _scatter(tensor: Tensor, axes: list[_Axis], dtype: torch.dtype, place: Tensor | None = None) -> Tensor:
    """The transpose: from (B, K, C, *size) to bands (B, C, *pixels), or added to such bands, the ``place``."""
    for i, (axis, (equation, old, new)) in enumerate(
        zip(axes, _equations("bkcxyz", "bcuvw", len(axes), True), strict=True)
    ):
        total = place if i == len(axes) - 1 else None
        for piece in axis.pieces:
            (first, last), band = piece.outputs, piece.band
            matrix = axis.matrix(piece).to(dtype).unflatten(0, (tensor.shape[0], -1))
            part = torch.einsum(equation, matrix, tensor.narrow(old, first, last - first))
            if total is None:
                if len(axis.pieces) == 1:
                    total = part
                    break
                shape = [axis.band[1] - axis.band[0] if d == new else s for d, s in enumerate(part.shape)]
                total = part.new_zeros(shape)
            total.narrow(new, band[0] - axis.band[0], band[1] - band[0]).add_(part)
        tensor = cast(Tensor, total)
    return tensor


def _nearest(
    images: Tensor, boxes: Tensor, index: Tensor | None, size: Sequence[int], options: Options, fill: Tensor
) -> Tensor:
    """A gather, so that every dtype is kept."""
    axes, rows = len(size), boxes.shape[0]
    if index is None:
        index = torch.arange(rows, device=images.device) // (rows // images.shape[0])
    where, inside = [], torch.ones((), dtype=torch.bool, device=images.device)
    for axis, (n, pixels) in enumerate(zip(size, images.shape[2:], strict=True)):
        lo, hi = boxes[:, axes - 1 - axis], boxes[:, 2 * axes - 1 - axis]
        center, _ = _axis.sampling(lo.detach(), hi.detach(), n, options.align_corners)
        pixel, there = _axis.nearest(center, pixels, options)
        shape = [rows] + [n if a == axis else 1 for a in range(axes)]
        where.append(pixel.long().view(shape))
        inside = inside & there.view(shape)
    gathered = images[(index.view(-1, *[1] * axes), slice(None), *where)].movedim(-1, 1)
    return torch.where(inside[:, None], gathered, fill.to(images.dtype))


def _outer(vectors: list[Tensor]) -> Tensor:
    """(R, 1, *size): the product of one vector (R, n) per axis."""
    axes = len(vectors)
    product = torch.ones((), dtype=vectors[0].dtype, device=vectors[0].device)
    for axis, vector in enumerate(vectors):
        product = product * vector.view(vector.shape[0], 1, *[vector.shape[1] if a == axis else 1 for a in range(axes)])
    return product


def _spread(vector: Tensor, axes: int) -> Tensor:
    return vector.view(vector.shape[0], *[1] * (axes + 1))
