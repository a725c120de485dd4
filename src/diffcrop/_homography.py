"""Rotated boxes, quadrilaterals and matrices as maps from pixels of a crop to pixels of an image. Pure, no checks.

Every function gives a matrix (..., 3, 3), M, that takes homogeneous continuous pixel coordinates of the crop (pixel j
covers [j, j + 1]) to those of the image:

    (X, Y, Z) = M (u, v, 1),        (x, y) = (X / Z, Y / Z)

It is put together from three maps: from the crop's pixels to coordinates of the crop, from there to the same kind of
coordinates of the image, and on to the image's pixels. The first and the last are, per axis of n and N pixels,

================  =================  ======================  ====================
coordinates       ``align_corners``  u to those of the crop  those of the image to x
================  =================  ======================  ====================
``"pixel"``       False              u                       p
``"pixel"``       True               u - 1/2                 p + 1/2
``"unit"``        False              u / n                   s N
``"unit"``        True               (u - 1/2) / (n - 1)     s (N - 1) + 1/2
``"normalized"``                     2 unit - 1              by way of unit = (v + 1) / 2
================  =================  ======================  ====================

With ``align_corners=True`` the one output of n = 1 lies in the middle, unit = u, and an image with N = 1 is its pixel
everywhere, x = 1/2.

Like `_boxes` this is plain arithmetic on slices, so that sizes may be symbolic and every transform passes through. It
multiplies by N before it divides by n: so identities are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._boxes import extents, widen

ANGLE_UNITS = ("degrees", "radians")
# The least sine of the angle at a corner of a quadrilateral. With less, three corners are taken to lie on a line.
LEAST_SINE = 2.0**-20


def from_rotated(
    boxes: Tensor,
    image_shape: Sequence[int] | None,
    size: Sequence[int],
    *,
    coords: str,
    clockwise: bool,
    angle_unit: str,
    align_corners: bool,
) -> Tensor:
    """Boxes (..., 5) = (cx, cy, w, h, angle) to matrices.

    With (s, t) the unit coordinates of the crop and angles counter-clockwise where y points down,

        x = cx + (s - 1/2) w cos + (t - 1/2) h sin
        y = cy - (s - 1/2) w sin + (t - 1/2) h cos
    """
    centre, along, down = _axes(boxes, image_shape, coords, clockwise, angle_unit, align_corners)
    matrix = _homogeneous(torch.stack([along, down, centre - along / 2 - down / 2], -1))
    return _between_pixels(matrix, image_shape, size, "unit", "pixel", align_corners)


def rotated_corners(
    boxes: Tensor,
    image_shape: Sequence[int] | None,
    *,
    coords: str,
    clockwise: bool,
    angle_unit: str,
    align_corners: bool,
) -> Tensor:
    """The corners (..., 4, 2) of rotated boxes, in the boxes' own coordinates, in the order of a quadrilateral."""
    centre, along, down = _axes(boxes, image_shape, coords, clockwise, angle_unit, align_corners)
    first, second = (along + down) / 2, (along - down) / 2
    corners = torch.stack([centre - first, centre + second, centre + first, centre - second], -2)
    if coords == "pixel" or image_shape is None:
        return corners
    width, height = extents(image_shape, align_corners)
    unit = torch.stack([corners[..., 0] / width, corners[..., 1] / height], -1)
    return unit if coords == "unit" else 2 * unit - 1


def from_quads(
    quads: Tensor, image_shape: Sequence[int] | None, size: Sequence[int], *, coords: str, align_corners: bool
) -> Tensor:
    """Quadrilaterals (..., 4, 2) to matrices; NaN where they are not `convex`."""
    quads = widen(quads)
    # Added, not chosen: so the gradient of a quadrilateral that is not is NaN as well.
    matrix = _from_unit_square(quads) + torch.where(convex(quads), 0.0, torch.nan)[..., None, None]
    return _between_pixels(matrix, image_shape, size, "unit", coords, align_corners)


def from_matrix(
    matrix: Tensor, image_shape: Sequence[int] | None, size: Sequence[int], *, coords: str, align_corners: bool
) -> Tensor:
    """A matrix (..., 2, 3) or (..., 3, 3) between coordinates of one kind, to one between pixels."""
    return _between_pixels(homogeneous(matrix), image_shape, size, coords, coords, align_corners)


def homogeneous(matrix: Tensor) -> Tensor:
    """(..., 2, 3) or (..., 3, 3), of any dtype, as (..., 3, 3) in the precision of positions."""
    matrix = widen(matrix)
    return _homogeneous(matrix) if matrix.shape[-2] == 2 else matrix


def numbered(matrix: Tensor) -> Tensor:
    """A matrix between continuous pixels (..., 3, 3), as one between numbers of pixels, whose centres are integers."""
    x, y, z = matrix.unbind(-2)
    a, b, c = torch.stack([x - z / 2, y - z / 2, z], -2).unbind(-1)
    return torch.stack([a, b, c + (a + b) / 2], -1)


def convex(quads: Tensor) -> Tensor:
    """Which quadrilaterals (..., 4, 2) have four true corners that all turn the same way.

    To exactly these a rectangle can be mapped without a part of it at infinity.
    """
    quads = quads.detach()
    # Around the first corner and of size 1, so that squares neither overflow nor vanish.
    quads = quads - quads[..., :1, :]
    quads = quads / quads.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(quads.dtype).tiny)
    after = torch.stack([quads[..., k, :] for k in (1, 2, 3, 0)], -2) - quads
    before = torch.stack([after[..., k, :] for k in (3, 0, 1, 2)], -2)
    least = LEAST_SINE * torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    turn = _area(before, after)
    return (turn > least).all(-1) | (turn < -least).all(-1)


def map_points(points: Tensor, matrix: Tensor, *, to: str) -> Tensor:
    """Points (..., P, 2) through matrices (..., 3, 3), or back.

    Back is by the adjugate, which is the inverse up to a factor that the division by Z takes out.
    """
    rows = [list(row.unbind(-1)) for row in matrix.unbind(-2)]
    if to == "crop":
        columns = [_cross(rows[1], rows[2]), _cross(rows[2], rows[0]), _cross(rows[0], rows[1])]
        rows = [[column[i] for column in columns] for i in range(3)]
    x, y = points[..., 0], points[..., 1]
    a, b, c = (row[0][..., None] * x + row[1][..., None] * y + row[2][..., None] for row in rows)
    return torch.stack([a / c, b / c], -1)


def _between_pixels(
    matrix: Tensor,
    image_shape: Sequence[int] | None,
    size: Sequence[int],
    from_coords: str,
    to_coords: str,
    align_corners: bool,
) -> Tensor:
    """A map from coordinates of the crop to coordinates of the image, each of its kind, as one between pixels."""
    shape = (2, 2) if image_shape is None else image_shape  # pixels need it only to know axes of one pixel
    x, y, z = matrix.unbind(-2)
    width, height = reversed(shape)
    x, y = (_to_pixels(row, z, n, to_coords, align_corners) for row, n in ((x, width), (y, height)))
    a, b, c = torch.stack([x, y, z], -2).unbind(-1)
    for first, n in ((True, size[1]), (False, size[0])):
        column, c = _from_pixels(a if first else b, c, n, from_coords, align_corners)
        a, b = (column, b) if first else (a, column)
    return torch.stack([a, b, c], -1)


def _to_pixels(row: Tensor, z: Tensor, n: int, coords: str, align_corners: bool) -> Tensor:
    """The row of x, times Z, in continuous pixels."""
    if align_corners and n == 1:
        return row * 0 + z / 2  # NaN stays NaN
    if coords == "normalized":
        row = (row + z) / 2
    if coords != "pixel":
        row = row * (n - 1 if align_corners else n)
    return row + z / 2 if align_corners else row


def _from_pixels(column: Tensor, last: Tensor, n: int, coords: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The column that coordinates of the crop are multiplied by, and the last, for continuous pixels instead."""
    if coords == "normalized":
        column, last = column * 2, last - column
    spread = align_corners and (coords == "pixel" or n != 1)
    if coords != "pixel":
        column = column / (n - 1 if spread else n)
    return column, last - column / 2 if spread else last


def _axes(
    boxes: Tensor, image_shape: Sequence[int] | None, coords: str, clockwise: bool, angle_unit: str, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, width vector and height vector (..., 2) of rotated boxes, in pixels."""
    cx, cy, w, h, angle = widen(boxes).unbind(-1)
    if coords != "pixel" and image_shape is not None:
        width, height = extents(image_shape, align_corners)
        if coords == "normalized":
            cx, cy, w, h = (cx + 1) / 2, (cy + 1) / 2, w / 2, h / 2
        cx, cy, w, h = cx * width, cy * height, w * width, h * height
    cos, sin = _turn(angle, angle_unit)
    if clockwise:
        sin = -sin
    return torch.stack([cx, cy], -1), torch.stack([w * cos, -w * sin], -1), torch.stack([h * sin, h * cos], -1)


def _turn(angle: Tensor, unit: str) -> tuple[Tensor, Tensor]:
    """Cosine and sine. Of degrees they are exact at quarter turns, which are taken off before anything is rounded."""
    if unit == "radians":
        return angle.cos(), angle.sin()
    quarters = (angle.detach() / 90).round()
    rest = (angle - 90 * quarters) * (math.pi / 180)
    cos, sin = rest.cos(), rest.sin()
    odd, half = quarters.remainder(2) == 1, quarters.remainder(4) >= 2
    cos, sin = torch.where(odd, -sin, cos), torch.where(odd, cos, sin)
    return torch.where(half, -cos, cos), torch.where(half, -sin, sin)


def _homogeneous(affine: Tensor) -> Tensor:
    """(..., 2, 3) with the row (0, 0, 1) below."""
    zero = torch.zeros_like(affine[..., 0, 0])
    return torch.cat([affine, torch.stack([zero, zero, zero + 1], -1).unsqueeze(-2)], -2)


def _from_unit_square(quads: Tensor) -> Tensor:
    """The homography that takes (0, 0), (1, 0), (1, 1), (0, 1) to four points (Heckbert, 1989), with Z = g s + h t + 1.

    Three corners fix the first two rows once g and h are known, and at the corner (1, 1) it has to reach p2, which is

        g (p1 - p2) + h (p3 - p2) = p0 - p1 + p2 - p3

    The right side is 0 for a parallelogram, whose map is affine.
    """
    p0, p1, p2, p3 = quads.unbind(-2)
    one, three, twist = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    area = _area(one, three)
    g, h = _area(twist, three) / area, _area(one, twist) / area
    across, down = p1 - p0 + g[..., None] * p1, p3 - p0 + h[..., None] * p3
    last = torch.stack([g, h, torch.ones_like(g)], -1)
    return torch.cat([torch.stack([across, down, p0], -1), last.unsqueeze(-2)], -2)


def _area(a: Tensor, b: Tensor) -> Tensor:
    """Of the parallelogram of two vectors (..., 2), with a sign."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _cross(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
