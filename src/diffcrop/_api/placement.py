"""Rotated boxes, quadrilaterals and matrices without pixels: from one to the other, and points through a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check, _check_warp, _homography
from diffcrop._context import plain


def rotated_to_quads(
    boxes: Tensor,
    image_size: int | Sequence[int] | None = None,
    *,
    coords: str = "pixel",
    clockwise: bool = False,
    angle_unit: str = "degrees",
    align_corners: bool = False,
) -> Tensor:
    r"""The four corners of rotated boxes, as `crop_quad` takes them.

    Of a box (cx, cy, w, h, angle) of `crop_rotated`, with p = (w cos(angle), -w sin(angle)) / 2 along its width and
    q = (h sin(angle), h cos(angle)) / 2 along its height, these are

    .. code-block:: text

        c - p - q,   c + p - q,   c + p + q,   c - p + q

    the corners top-left, top-right, bottom-right and bottom-left as seen from the box. `crop_quad` of them is
    `crop_rotated` of the box.

    Args:
        boxes: (..., 5), any leading shape; or torchvision's ``BoundingBoxes`` of format XYWHR or CXCYWHR.
        image_size: the image's size, an int or (h, w); needed unless ``coords="pixel"``, where the angle is one of
            pixels all the same.
        coords: the coordinates of the boxes and of the corners.
        clockwise: as for `crop_rotated`.
        angle_unit: as for `crop_rotated`.
        align_corners: the convention of the coordinates.

    Returns:
        (..., 4, 2), in float64 for float64 and int64 boxes, else in float32. Differentiable.

    Raises:
        TypeError, ValueError: for a wrong argument, and for ``image_size=None`` where it is needed.

    >>> import torch
    >>> from diffcrop import rotated_to_quads
    >>> rotated_to_quads(torch.tensor([5.0, 3.0, 4.0, 2.0, 90.0]))
    tensor([[4., 5.],
            [4., 1.],
            [6., 1.],
            [6., 5.]])

    """
    if type(boxes) is not Tensor:
        boxes = _turned(boxes, image_size, coords, clockwise, angle_unit, "rotated_to_quads")
    _check_warp.described(boxes, _check_warp.ROTATED_ALONE)
    shape = _convention(image_size, coords, align_corners, clockwise, angle_unit, back=True)
    corners = _homography.rotated_corners(
        _boxes.promote(plain(boxes)),
        shape,
        coords=coords,
        clockwise=clockwise,
        angle_unit=angle_unit,
        align_corners=align_corners,
    )
    return corners.to(_boxes.promoted_dtype(boxes.dtype))


def rotated_to_matrix(
    boxes: Tensor,
    size: int | Sequence[int],
    image_size: int | Sequence[int] | None = None,
    *,
    coords: str = "pixel",
    clockwise: bool = False,
    angle_unit: str = "degrees",
    align_corners: bool = False,
) -> Tensor:
    r"""The affine matrix that rotated boxes are to `warp`: from pixels of the crop to pixels of the image.

    With w' and h' outputs, p and q as in `rotated_to_quads` and ``align_corners=False``,

    .. code-block:: text

        (x, y) = c - p - q + (2 p / w') u + (2 q / h') v

    ``warp(images, rotated_to_matrix(boxes, size), size)`` is ``crop_rotated(images, boxes, size)``.

    Args:
        boxes: (..., 5), any leading shape; or torchvision's ``BoundingBoxes``, as for `rotated_to_quads`.
        size: h' and w' of the crop, or one int for both.
        image_size: the image's size, an int or (h, w); needed unless ``coords="pixel"``.
        coords: the coordinates of the boxes. The matrix is always one of pixels.
        clockwise: as for `crop_rotated`.
        angle_unit: as for `crop_rotated`.
        align_corners: the convention of all coordinates here, to be given to `warp` too.

    Returns:
        (..., 2, 3), in float64 for float64 and int64 boxes, else in float32. Differentiable.

    Raises:
        TypeError, ValueError: for a wrong argument, and for ``image_size=None`` where it is needed.

    >>> import torch
    >>> from diffcrop import rotated_to_matrix
    >>> rotated_to_matrix(torch.tensor([5.0, 3.0, 4.0, 2.0, -90.0]), (4, 8))
    tensor([[ 0.0000, -0.5000,  6.0000],
            [ 0.5000,  0.0000,  1.0000]])

    """
    if type(boxes) is not Tensor:
        boxes = _turned(boxes, image_size, coords, clockwise, angle_unit, "rotated_to_matrix")
    _check_warp.described(boxes, _check_warp.ROTATED_ALONE)
    shape = _convention(image_size, coords, align_corners, clockwise, angle_unit)
    matrix = _homography.from_rotated(
        _boxes.promote(plain(boxes)),
        shape,
        _check.size(size, 2, because=""),
        coords=coords,
        clockwise=clockwise,
        angle_unit=angle_unit,
        align_corners=align_corners,
    )
    if align_corners:
        matrix = _homography.numbered(matrix)
    return matrix[..., :2, :].to(_boxes.promoted_dtype(boxes.dtype))


def quads_to_matrix(
    quads: Tensor,
    size: int | Sequence[int],
    image_size: int | Sequence[int] | None = None,
    *,
    coords: str = "pixel",
    align_corners: bool = False,
) -> Tensor:
    r"""The homography that quadrilaterals are to `warp`: from pixels of the crop to pixels of the image.

    It takes the crop's corners (0, 0), (w, 0), (w, h), (0, h) (with ``align_corners=True`` the centres of its corner
    pixels) to those of the quadrilateral. ``warp(images, quads_to_matrix(quads, size), size)`` is
    ``crop_quad(images, quads, size)``. It is what OpenCV's ``getPerspectiveTransform`` gives for the same pairs of
    points, in closed form and differentiable.

    Args:
        quads: (..., 4, 2), any leading shape; see `crop_quad`, also for those that are not convex. Or torchvision's
            ``BoundingBoxes`` of format XYXYXYXY.
        size: h and w of the crop, or one int for both.
        image_size: the image's size, an int or (h, w); needed unless ``coords="pixel"``.
        coords: the coordinates of the corners. The matrix is always one of pixels.
        align_corners: the convention of all coordinates here, to be given to `warp` too.

    Returns:
        (..., 3, 3), in float64 for float64 and int64 corners, else in float32. Differentiable.

    Raises:
        TypeError, ValueError: for a wrong argument, for ``image_size=None`` where it is needed, and for corners that
            are not convex where looking at them costs nothing. Elsewhere their matrix is NaN.

    >>> import torch
    >>> from diffcrop import quads_to_matrix
    >>> quads_to_matrix(torch.tensor([[1.0, 0.0], [3.0, 0.0], [4.0, 3.0], [0.0, 3.0]]), 1)
    tensor([[ 2.0000, -1.0000,  1.0000],
            [ 0.0000,  1.5000,  0.0000],
            [ 0.0000, -0.5000,  1.0000]])

    """
    if type(quads) is not Tensor:
        sizes = _canvas_sizes(quads, image_size)
        quads = _bounding.quads(quads, sizes, coords, function="quads_to_matrix", what="image_size")
    _check_warp.described(quads, _check_warp.QUADS)
    shape = _convention(image_size, coords, align_corners)
    lattice = _check.size(size, 2, because="")
    _check_warp.quads_are_convex(quads, "quads")
    promoted = _boxes.promote(plain(quads))
    matrix = _homography.from_quads(promoted, shape, lattice, coords=coords, align_corners=align_corners)
    if align_corners:
        matrix = _homography.numbered(matrix)
    return matrix.to(_boxes.promoted_dtype(quads.dtype))


def warp_points(points: Tensor, matrix: Tensor, *, to: str = "image") -> Tensor:
    r"""Points between the output of `warp` and its image, for instance keypoints found in a rotated crop.

    A point (u, v) of the output and its point (x, y) of the image are related by

    .. code-block:: text

        (X, Y, Z) = M (u, v, 1),        (x, y) = (X / Z, Y / Z)

    in whatever coordinates the matrix is one of. For the crops of rotated boxes and of quadrilaterals, `map_points` of
    boxes, take ``rotated_to_matrix(boxes, size)`` or ``quads_to_matrix(quads, size)``.

    Args:
        points: (..., P, 2), x first.
        matrix: (..., 2, 3) or (..., 3, 3), as for `warp`; leading dimensions broadcast against those of ``points``
            without P.
        to: ``"image"`` (from the output to the image) or ``"crop"`` (back).

    Returns:
        (..., P, 2) in float64 if points or matrix are float64 or int64, else float32. Differentiable in both. Points on
        the horizon (Z = 0), and with ``to="crop"`` all points where the matrix is singular, go to infinity or NaN.

    Raises:
        TypeError, ValueError: for a wrong argument.

    >>> import torch
    >>> from diffcrop import rotated_to_matrix, warp_points
    >>> matrix = rotated_to_matrix(torch.tensor([50.0, 40.0, 20.0, 10.0, 90.0]), (10, 20))
    >>> warp_points(torch.tensor([[0.0, 0.0], [10.0, 5.0]]), matrix)
    tensor([[45., 50.],
            [50., 40.]])
    >>> warp_points(torch.tensor([[50.0, 40.0]]), matrix, to="crop")
    tensor([[10.,  5.]])

    """
    _check_warp.described(matrix, _check_warp.MATRIX)
    _check_warp.points(points, matrix)
    _check.to(to)
    moved = _homography.map_points(_boxes.widen(points), _homography.homogeneous(plain(matrix)), to=to)
    return moved.to(torch.promote_types(*map(_boxes.promoted_dtype, (points.dtype, matrix.dtype))))


def _turned(boxes: Any, image_size: Any, coords: Any, clockwise: Any, angle_unit: Any, function: str) -> Any:
    """Boxes that say their rotated format as (cx, cy, w, h, angle); all else as it is."""
    _check_warp.clockwise(clockwise)
    _check_warp.angle_unit(angle_unit)
    sizes = _canvas_sizes(boxes, image_size)
    return _bounding.rotated(boxes, sizes, coords, clockwise, angle_unit, function=function, what="image_size")


def _canvas_sizes(boxes: Any, image_size: Any) -> list[Sequence[int]]:
    """What the canvas of boxes is compared with, where they have one."""
    if image_size is None or not _bounding.is_bounding(boxes):
        return []
    return [_check.size(image_size, 2, "image_size")]


def _convention(
    image_size: int | Sequence[int] | None,
    coords: str,
    align_corners: bool,
    clockwise: bool = False,
    angle_unit: str = "degrees",
    back: bool = False,
) -> tuple[int, ...] | None:
    """The image's size where it is needed, and all options checked; ``back``: pixels are turned into ``coords``."""
    _check.coords(coords)
    _check.align_corners(align_corners)
    _check_warp.clockwise(clockwise)
    _check_warp.angle_unit(angle_unit)
    needed = coords != "pixel"
    shape = _check.image_size(
        image_size,
        2,
        needed_for=f"to turn {coords} coordinates into pixels" if needed else None,
        pixel_to=coords if needed and back else None,
        align_corners=align_corners,
    )
    return shape if needed else None
