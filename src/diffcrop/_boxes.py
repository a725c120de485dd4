"""Boxes as plain tensors: formats, coordinates, Theta and point maps. Pure functions, no checks, no state.

A box on A spatial axes is 2A numbers in the last dimension, x first: ``(x0, y0[, z0], x1, y1[, z1])``. The shape of an
image is in tensor order, ``(d, h, w)``, so it is read backwards against x, y, z. With N pixels along an axis the image
spans

====================  ================  ===================  ======================================
coordinates           pixel             unit                 normalized
====================  ================  ===================  ======================================
``align_corners``     0 .. E            0 .. 1: x E          -1 .. 1: (x + 1) / 2 E
====================  ================  ===================  ======================================

with the extent E = N when ``align_corners`` is False (outer edges) and E = N - 1 when it is True (centres of the edge
pixels).

Everything per axis is plain arithmetic on slices, never a tensor made from Python numbers: so image shapes may be
symbolic, and ``torch.compile``, ``torch.func`` and CUDA graphs all pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FORMATS = ("xyxy", "xywh", "cxcywh")
COORDS = ("pixel", "unit", "normalized")

# float64 holds every int32 and, for coordinates below 2**53, every int64; float32 does not.
_TO_FLOAT64 = (torch.int64, torch.uint32, torch.uint64)


def promote(boxes: Tensor) -> Tensor:
    """The boxes in the dtype of results: never below float32; int64 becomes float64, float32 and float64 stay."""
    dtype = promoted_dtype(boxes.dtype)
    return boxes if boxes.dtype == dtype else boxes.to(dtype)


def promoted_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that boxes of this one are computed in: never below float32."""
    if dtype == torch.float64 or dtype in _TO_FLOAT64:
        return torch.float64
    return torch.float32


def widen(boxes: Tensor) -> Tensor:
    """The boxes in float64, so that conversions add no rounding of their own; in float32 on devices without float64."""
    return boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)


def extents(image_shape: Sequence[int], align_corners: bool) -> tuple[int, ...]:
    """Length of the image along x, y[, z] in pixel coordinates."""
    return tuple(n - 1 if align_corners else n for n in reversed(image_shape))


def to_pixel(
    boxes: Tensor,
    image_shape: Sequence[int],
    *,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    """Boxes as pixel ``xyxy``: the very tensor given where it is that already, else float64 (see `widen`)."""
    if box_format == "xyxy" and coords == "pixel":
        return boxes
    corners = _to_corners(widen(boxes), box_format)
    return _move(corners, image_shape, coords, "pixel", align_corners)


def convert(
    boxes: Tensor,
    image_shape: Sequence[int] | None,
    *,
    from_format: str,
    to_format: str,
    from_coords: str,
    to_coords: str,
    align_corners: bool = False,
) -> Tensor:
    """Any format and coordinates to any other, in the promoted dtype. The format is read within its own coordinates."""
    if from_format == to_format and from_coords == to_coords:
        return promote(boxes)
    corners = _to_corners(widen(boxes), from_format)
    corners = _move(corners, image_shape, from_coords, to_coords, align_corners)
    return _from_corners(corners, to_format).to(promoted_dtype(boxes.dtype))


def needs_image_shape(from_coords: str, to_coords: str) -> bool:
    """Unit and normalized coordinates differ by (x + 1) / 2 whatever the image; only pixels need its shape."""
    return from_coords != to_coords and "pixel" in (from_coords, to_coords)


def boxes_to_theta(boxes: Tensor) -> Tensor:
    """Normalized ``xyxy`` boxes (..., 2A) to Theta (..., A, A + 1) = [diag((hi - lo) / 2) | (hi + lo) / 2]."""
    lo, hi = _halves(boxes)
    return torch.cat([torch.diag_embed((hi - lo) / 2), ((hi + lo) / 2).unsqueeze(-1)], -1)


def theta_to_boxes(theta: Tensor) -> Tensor:
    """Theta (..., A, A + 1) to normalized ``xyxy`` boxes; entries off the diagonal are not looked at."""
    half = theta[..., :-1].diagonal(dim1=-2, dim2=-1)
    centre = theta[..., -1]
    return torch.cat([centre - half, centre + half], -1)


def invert_boxes(boxes: Tensor, image_shape: Sequence[int] | None, *, coords: str, align_corners: bool) -> Tensor:
    """The whole image's box in unit coordinates of the crop: ((a - lo) / (hi - lo), (b - lo) / (hi - lo)) per axis.

    ``boxes`` are ``xyxy`` in ``coords``, where the image spans a .. b. In unit coordinates this is its own inverse.
    """
    lo, hi = _halves(boxes)
    side = hi - lo
    if coords != "pixel" or image_shape is None:
        a, b = (-1, 1) if coords == "normalized" else (0, 1)
        return torch.cat([(a - lo) / side, (b - lo) / side], -1)
    end = _per_axis(lo, extents(image_shape, align_corners), lambda x, extent: extent - x)
    return torch.cat([-lo / side, end / side], -1)


def map_points(points: Tensor, boxes: Tensor, size: Sequence[int], *, to: str, align_corners: bool) -> Tensor:
    """Points (..., P, A) between crop pixels p and image pixels q = origin + step p, for pixel ``xyxy`` boxes."""
    origin, step = _lattice(boxes, size, align_corners)
    origin, step = origin.unsqueeze(-2), step.unsqueeze(-2)
    return origin + points * step if to == "image" else (points - origin) / step


def map_boxes(inner: Tensor, boxes: Tensor, size: Sequence[int], *, to: str, align_corners: bool) -> Tensor:
    """As `map_points` for each corner of ``xyxy`` boxes (..., P, 2A), unsorted: a mirror stays a mirror."""
    lo, hi = (map_points(corner, boxes, size, to=to, align_corners=align_corners) for corner in _halves(inner))
    return torch.cat([lo, hi], -1)


def _lattice(boxes: Tensor, size: Sequence[int], align_corners: bool) -> tuple[Tensor, Tensor]:
    """(origin, step) per axis of the crop's pixel coordinates in the image's."""
    lo, hi = _halves(boxes)
    side = hi - lo
    if not align_corners:
        return lo, _per_axis(side, reversed(size), lambda x, n: x / n)
    # A single aligned pixel sits at the middle of its box, and one crop pixel is as long as the box.
    step = _per_axis(side, reversed(size), lambda x, n: x if n == 1 else x / (n - 1))
    origin = torch.stack(
        [(a + b) / 2 if n == 1 else a for a, b, n in zip(lo.unbind(-1), hi.unbind(-1), reversed(size), strict=True)], -1
    )
    return origin, step


def _move(boxes: Tensor, image_shape: Sequence[int] | None, source: str, target: str, align_corners: bool) -> Tensor:
    """``xyxy`` boxes from one kind of coordinates to another, by way of unit coordinates."""
    if source == target:
        return boxes
    if source == "normalized":
        boxes = (boxes + 1) / 2
    if image_shape is not None and "pixel" in (source, target):
        spans = extents(image_shape, align_corners) * 2
        boxes = _per_axis(boxes, spans, (lambda x, e: x / e) if source == "pixel" else (lambda x, e: x * e))
    return boxes * 2 - 1 if target == "normalized" else boxes


def _to_corners(boxes: Tensor, box_format: str) -> Tensor:
    if box_format == "xyxy":
        return boxes
    anchor, side = _halves(boxes)
    lo = anchor if box_format == "xywh" else anchor - side / 2
    return torch.cat([lo, lo + side if box_format == "xywh" else anchor + side / 2], -1)


def _from_corners(boxes: Tensor, box_format: str) -> Tensor:
    if box_format == "xyxy":
        return boxes
    lo, hi = _halves(boxes)
    return torch.cat([lo if box_format == "xywh" else (lo + hi) / 2, hi - lo], -1)


def _halves(boxes: Tensor) -> tuple[Tensor, Tensor]:
    axes = boxes.shape[-1] // 2
    return boxes[..., :axes], boxes[..., axes:]


def _per_axis(values: Tensor, numbers, function: Callable) -> Tensor:
    # Not -1: the DTensor rule of select's derivative takes it for a place in front of the dimension that is split.
    last = values.ndim - 1
    return torch.stack([function(v, n) for v, n in zip(values.unbind(last), numbers, strict=True)], last)
