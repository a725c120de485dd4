"""Boxes without pixels: conversions, the recipe's Theta, inverses, and maps between a crop and its image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check
from diffcrop._context import plain


def convert_boxes(
    boxes: Tensor,
    image_size: int | Sequence[int] | None = None,
    *,
    from_format: str = "xyxy",
    to_format: str = "xyxy",
    from_coords: str = "pixel",
    to_coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""Turn boxes from one format and kind of coordinates into another.

    Formats, each read within its own coordinates and with x first:

    ============  ==================================  ==============================
    ``"xyxy"``    corners (x0, y0, x1, y1)
    ``"xywh"``    corner and size (x0, y0, w, h)      x1 = x0 + w
    ``"cxcywh"``  centre and size (cx, cy, w, h)      x0 = cx - w / 2, x1 = cx + w / 2
    ============  ==================================  ==============================

    Coordinates along an axis of N pixels, with E = N (``align_corners=False``: pixel j covers [j, j + 1] and the image
    0 .. N) or E = N - 1 (``align_corners=True``: pixel j has its centre at j and the image runs from the first centre
    to the last):

    ================  ======================  ====================================
    ``"pixel"``       p, the image is 0 .. E
    ``"unit"``        u, the image is 0 .. 1  p = u E
    ``"normalized"``  v, the image is -1 .. 1 p = (v + 1) / 2 E
    ================  ======================  ====================================

    Widths and heights are in these coordinates too: in ``"normalized"`` a box as wide as the image has w = 2.

    Args:
        boxes: (..., 2A) with A = 1, 2 or 3 spatial axes: 2, 4 or 6 numbers.
        image_size: the image's size in pixels, an int or (h, w) ((w,) and (d, h, w) for the other numbers of axes).
            Needed where pixel coordinates are turned into others or back, optional elsewhere.
        from_format: the format given, ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.
        to_format: the format wanted.
        from_coords: the coordinates given, ``"pixel"``, ``"unit"`` or ``"normalized"``.
        to_coords: the coordinates wanted.
        align_corners: which of the two conventions above.

    Returns:
        Boxes of the same shape, in float64 for float64 and int64 boxes and in float32 for all others, computed in
        float64. The conversion is affine, so it is differentiable to every order; empty and mirrored boxes are
        converted like any other.

    Raises:
        TypeError, ValueError: for a wrong argument; for ``image_size=None`` where it is needed; and for an axis of one
            pixel with ``align_corners=True`` where pixel coordinates would have to be divided by E = 0.

    >>> import torch
    >>> from diffcrop import convert_boxes
    >>> box = torch.tensor([10.0, 20.0, 50.0, 60.0])
    >>> convert_boxes(box, to_format="cxcywh")
    tensor([30., 40., 40., 40.])
    >>> convert_boxes(box, (80, 100), to_coords="unit")
    tensor([0.1000, 0.2500, 0.5000, 0.7500])

    The whole image, from the recipe's coordinates to pixels:

    >>> convert_boxes(torch.tensor([0.0, 0.0, 2.0, 2.0]), (80, 100), from_format="cxcywh", from_coords="normalized")
    tensor([  0.,   0., 100.,  80.])

    """
    boxes, from_format, image_size = _untagged(boxes, from_format, from_coords, image_size, "from_format")
    axes = _check.boxes(boxes)
    _check.box_format(from_format, "from_format")
    _check.box_format(to_format, "to_format")
    _check.coords(from_coords, "from_coords")
    _check.coords(to_coords, "to_coords")
    _check.align_corners(align_corners)
    shape = _image_shape(image_size, axes, from_coords, to_coords, align_corners)
    return _boxes.convert(
        boxes,
        shape,
        from_format=from_format,
        to_format=to_format,
        from_coords=from_coords,
        to_coords=to_coords,
        align_corners=align_corners,
    )


def boxes_to_theta(
    boxes: Tensor,
    image_size: int | Sequence[int] | None = None,
    *,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""The matrix that ``torch.nn.functional.affine_grid`` takes for a box.

    For a box with corners (x0, y0), (x1, y1) in normalized coordinates

    .. code-block:: text

        Theta = [ (x1 - x0) / 2        0         (x0 + x1) / 2 ]
                [       0        (y1 - y0) / 2   (y0 + y1) / 2 ]

    so that Theta maps the crop's own square [-1, 1] x [-1, 1] onto the box. Boxes in other coordinates are turned into
    normalized ones first (see `convert_boxes`). Give ``affine_grid`` and ``grid_sample`` the same ``align_corners`` as
    here: with True, (x0, y0) and (x1, y1) are the centres of the crop's first and last pixel, with False the outer
    corners of these pixels.

    Args:
        boxes: (..., 2A); A = 1, 2 or 3 spatial axes.
        image_size: the image's size, an int or (h, w); needed for ``coords="pixel"`` only.
        box_format: the format of ``boxes``.
        coords: the coordinates of ``boxes``.
        align_corners: the convention of pixel coordinates; of no effect on normalized and unit boxes.

    Returns:
        (..., A, A + 1), in float64 for float64 and int64 boxes, else in float32. Differentiable (affine in the boxes).

    Raises:
        TypeError, ValueError: as `convert_boxes`.

    >>> import torch
    >>> from diffcrop import boxes_to_theta
    >>> boxes_to_theta(torch.tensor([25.0, 0.0, 75.0, 80.0]), (80, 100))
    tensor([[0.5000, 0.0000, 0.0000],
            [0.0000, 1.0000, 0.0000]])

    """
    boxes, box_format, image_size = _untagged(boxes, box_format, coords, image_size)
    axes = _check.boxes(boxes)
    _check.box_format(box_format)
    _check.coords(coords)
    _check.align_corners(align_corners)
    shape = _image_shape(image_size, axes, coords, "normalized", align_corners)
    normalized = _boxes.convert(
        _boxes.widen(boxes),
        shape,
        from_format=box_format,
        to_format="xyxy",
        from_coords=coords,
        to_coords="normalized",
        align_corners=align_corners,
    )
    return _boxes.boxes_to_theta(normalized).to(_boxes.promoted_dtype(boxes.dtype))


def theta_to_boxes(
    theta: Tensor,
    image_size: int | Sequence[int] | None = None,
    *,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""The box of a Theta without rotation or skew: the inverse of `boxes_to_theta`.

    Per axis, with the diagonal entry a and the last column t, lo = t - a and hi = t + a in normalized coordinates. A
    negative diagonal entry gives a mirrored box (hi < lo).

    Args:
        theta: (..., A, A + 1); A = 1, 2 or 3 spatial axes.
        image_size: the image's size, an int or (h, w); needed for ``coords="pixel"`` only.
        box_format: the format of the result.
        coords: the coordinates of the result.
        align_corners: the convention of pixel coordinates, the one used with ``affine_grid``.

    Returns:
        (..., 2A), in float64 for float64 and int64, else in float32. Differentiable in the diagonal and the last
        column.

    Raises:
        TypeError, ValueError: for a wrong argument; and for entries off the diagonal that are not 0 (up to 8 eps of the
            largest entry on it), where reading them costs no synchronisation: CPU tensors in eager mode, outside
            ``torch.func`` transforms. Elsewhere these entries are not looked at.

    >>> import torch
    >>> from diffcrop import theta_to_boxes
    >>> theta_to_boxes(torch.tensor([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]]), (80, 100))
    tensor([25.,  0., 75., 80.])

    """
    axes = _check.theta(theta)
    _check.box_format(box_format)
    _check.coords(coords)
    _check.align_corners(align_corners)
    shape = _image_shape(image_size, axes, "normalized", coords, align_corners)
    boxes = _boxes.convert(
        _boxes.theta_to_boxes(_boxes.widen(theta)),
        shape,
        from_format="xyxy",
        to_format=box_format,
        from_coords="normalized",
        to_coords=coords,
        align_corners=align_corners,
    )
    return boxes.to(_boxes.promoted_dtype(theta.dtype))


def invert_boxes(
    boxes: Tensor,
    image_size: int | Sequence[int] | None = None,
    *,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""The box of the whole image as seen from the crop, in unit coordinates of the crop.

    Cropping the crop at this box undoes the crop, up to resolution and what was cut off: this is how a patch is pasted
    back. Along an axis where the image spans a .. b in ``coords`` (see `convert_boxes`), a box lo .. hi gives

    .. code-block:: text

        ( (a - lo) / (hi - lo),  (b - lo) / (hi - lo) )

    that is ((0 - x0) / (x1 - x0), (0 - y0) / (y1 - y0), (W - x0) / (x1 - x0), (H - y0) / (y1 - y0)) for pixel ``xyxy``
    boxes. A mirrored box has a mirrored inverse. With ``coords="unit"`` the function is its own inverse.

    Args:
        boxes: (..., 2A); A = 1, 2 or 3 spatial axes.
        image_size: the image's size, an int or (h, w); needed for ``coords="pixel"`` only.
        box_format: the format of ``boxes`` and of the result.
        coords: the coordinates of ``boxes``. The result is always in unit coordinates of the crop.
        align_corners: the convention of pixel coordinates; the result is in the same convention.

    Returns:
        (..., 2A), in float64 for float64 and int64 boxes, else in float32. Differentiable; a box of no width or height
        has infinite or NaN numbers there.

    Raises:
        TypeError, ValueError: for a wrong argument, and for ``image_size=None`` where it is needed.

    >>> import torch
    >>> from diffcrop import invert_boxes
    >>> invert_boxes(torch.tensor([25.0, 20.0, 75.0, 60.0]), (80, 100))
    tensor([-0.5000, -0.5000,  1.5000,  1.5000])

    """
    boxes, box_format, image_size = _untagged(boxes, box_format, coords, image_size)
    axes = _check.boxes(boxes)
    _check.box_format(box_format)
    _check.coords(coords)
    _check.align_corners(align_corners)
    needed_for = 'for boxes with coords="pixel" (the default)' if coords == "pixel" else None
    shape = _check.image_size(image_size, axes, needed_for=needed_for)
    corners = _reformat(_boxes.widen(boxes), box_format, "xyxy")
    inverse = _boxes.invert_boxes(corners, shape, coords=coords, align_corners=align_corners)
    return _reformat(inverse, "xyxy", box_format).to(_boxes.promoted_dtype(boxes.dtype))


def map_points(
    points: Tensor,
    boxes: Tensor,
    size: int | Sequence[int],
    *,
    to: str = "image",
    image_size: int | Sequence[int] | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""Points between the pixels of a crop and the pixels of its image, for instance keypoints found in a glimpse.

    Along an axis with box lo .. hi (in pixels of the image) and n pixels in the crop, a crop point p and its image
    point q are related by

    .. code-block:: text

        q = lo + p (hi - lo) / n             align_corners=False: crop pixel j has its centre at j + 0.5
        q = lo + p (hi - lo) / (n - 1)       align_corners=True:  crop pixel j has its centre at j
        q = (lo + hi) / 2 + p (hi - lo)      align_corners=True and n = 1

    which is where `crop` samples its pixel centres. Points are continuous and need not lie inside; mirrored boxes
    mirror.

    Args:
        points: (..., P, A), x first, in pixels of the crop (``to="image"``) or of the image (``to="crop"``).
        boxes: (..., 2A) the boxes the crops were taken with; leading dimensions broadcast against those of ``points``
            without P.
        size: the crop's size, an int or (h, w).
        to: ``"image"`` (crop to image) or ``"crop"`` (image to crop).
        image_size: the image's size, an int or (h, w); needed unless ``coords="pixel"``.
        box_format: the format of ``boxes``.
        coords: the coordinates of ``boxes``. Points are always in pixels.
        align_corners: the convention of the crop, and of all pixel coordinates here.

    Returns:
        (..., P, A) in float64 if points or boxes are float64 or int64, else float32. Differentiable in points and
        boxes. For a box of no width or height ``to="image"`` gives its one point and ``to="crop"`` gives infinite or
        NaN coordinates.

    Raises:
        TypeError, ValueError: for a wrong argument, and for ``image_size=None`` where it is needed.

    >>> import torch
    >>> from diffcrop import map_points
    >>> box = torch.tensor([10.0, 20.0, 50.0, 60.0])
    >>> found = torch.tensor([[0.0, 0.0], [4.0, 4.0], [0.5, 7.5]])
    >>> map_points(found, box, size=8)
    tensor([[10.0000, 20.0000],
            [30.0000, 40.0000],
            [12.5000, 57.5000]])
    >>> map_points(map_points(found, box, size=8), box, size=8, to="crop").equal(found)
    True

    """
    boxes, box_format, image_size = _untagged(boxes, box_format, coords, image_size)
    axes = _check.boxes(boxes)
    _check.points(points, boxes, axes)
    lattice, corners = _lattice_arguments(boxes, axes, size, to, image_size, box_format, coords, align_corners)
    moved = _boxes.map_points(_boxes.widen(points), corners, lattice, to=to, align_corners=align_corners)
    return moved.to(_common_dtype(points, boxes))


def map_boxes(
    inner: Tensor,
    boxes: Tensor,
    size: int | Sequence[int],
    *,
    to: str = "image",
    inner_format: str = "xyxy",
    image_size: int | Sequence[int] | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""Boxes between the pixels of a crop and the pixels of its image, for instance detections found in a glimpse.

    Each corner is moved as by `map_points`, and corners are not sorted: what `crop` shows at the result is what it
    shows in the crop at ``inner``, so a mirrored inner box stays mirrored, an inner box of a mirrored crop becomes
    mirrored, and both together give an ordinary box.

    Args:
        inner: (..., P, 2A) boxes in pixels of the crop (``to="image"``) or of the image (``to="crop"``).
        boxes: (..., 2A) the boxes the crops were taken with; leading dimensions broadcast against those of ``inner``
            without P.
        size: the crop's size, an int or (h, w).
        to: ``"image"`` (crop to image) or ``"crop"`` (image to crop).
        inner_format: the format of ``inner`` and of the result.
        image_size: the image's size, an int or (h, w); needed unless ``coords="pixel"``.
        box_format: the format of ``boxes``.
        coords: the coordinates of ``boxes``. ``inner`` and the result are always in pixels.
        align_corners: the convention of the crop, and of all pixel coordinates here.

    Returns:
        (..., P, 2A) in float64 if inner or boxes are float64 or int64, else float32. Differentiable in both. Boxes of
        no width or
        height: as `map_points`.

    Raises:
        TypeError, ValueError: for a wrong argument, and for ``image_size=None`` where it is needed.

    >>> import torch
    >>> from diffcrop import map_boxes
    >>> box = torch.tensor([10.0, 20.0, 50.0, 60.0])
    >>> map_boxes(torch.tensor([[2.0, 2.0, 4.0, 8.0]]), box, size=8)
    tensor([[20., 30., 30., 60.]])

    """
    boxes, box_format, image_size = _untagged(boxes, box_format, coords, image_size)
    axes = _check.boxes(boxes)
    if _bounding.is_bounding(inner):
        canvas = size if to == "image" else image_size
        inner, inner_format, _ = _untagged(inner, inner_format, "pixel", canvas, "inner_format", "inner")
    _check.inner(inner, boxes, axes)
    _check.box_format(inner_format, "inner_format")
    lattice, corners = _lattice_arguments(boxes, axes, size, to, image_size, box_format, coords, align_corners)
    moved = _boxes.map_boxes(
        _reformat(_boxes.widen(inner), inner_format, "xyxy"), corners, lattice, to=to, align_corners=align_corners
    )
    return _reformat(moved, "xyxy", inner_format).to(_common_dtype(inner, boxes))


def _untagged(
    boxes: Any, box_format: Any, coords: Any, image_size: Any, argument: str = "box_format", name: str = "boxes"
) -> tuple[Any, Any, Any]:
    """Boxes without a tag, and what it says: their format, and the size of the image where the caller does not."""
    if not _bounding.is_bounding(boxes):
        return boxes, box_format, image_size
    boxes, box_format, (canvas,) = _bounding.read(boxes, box_format, coords, name, argument)
    if image_size is None:
        return boxes, box_format, canvas
    shape = _check.size(image_size, 2, "image_size")
    _bounding.fits((canvas,), [shape], "image_size" if name == "boxes" else "pixels", name)
    return boxes, box_format, image_size


def _image_shape(
    image_size: int | Sequence[int] | None,
    axes: int,
    from_coords: str,
    to_coords: str,
    align_corners: bool,
) -> tuple[int, ...] | None:
    needed = _boxes.needs_image_shape(from_coords, to_coords)
    return _check.image_size(
        image_size,
        axes,
        needed_for=f"to turn {from_coords} coordinates into {to_coords} ones" if needed else None,
        pixel_to=to_coords if needed and from_coords == "pixel" else None,
        align_corners=align_corners,
    )


def _lattice_arguments(
    boxes: Tensor,
    axes: int,
    size: int | Sequence[int],
    to: str,
    image_size: int | Sequence[int] | None,
    box_format: str,
    coords: str,
    align_corners: bool,
) -> tuple[tuple[int, ...], Tensor]:
    """The checked crop size and the boxes as wide pixel ``xyxy``, for both maps."""
    lattice = _check.size(size, axes)
    _check.to(to)
    _check.box_format(box_format)
    _check.coords(coords)
    _check.align_corners(align_corners)
    shape = _image_shape(image_size, axes, coords, "pixel", align_corners)
    corners = _boxes.convert(
        _boxes.widen(plain(boxes)),
        shape,
        from_format=box_format,
        to_format="xyxy",
        from_coords=coords,
        to_coords="pixel",
        align_corners=align_corners,
    )
    return lattice, corners


def _reformat(boxes: Tensor, from_format: str, to_format: str) -> Tensor:
    return _boxes.convert(
        boxes, None, from_format=from_format, to_format=to_format, from_coords="pixel", to_coords="pixel"
    )


def _common_dtype(one: Tensor, other: Tensor) -> torch.dtype:
    return torch.promote_types(_boxes.promoted_dtype(one.dtype), _boxes.promoted_dtype(other.dtype))
