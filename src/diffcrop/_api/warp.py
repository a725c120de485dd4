"""Crops that are not axis-aligned: `crop_rotated`, `crop_quad`, `warp`. Checks, shapes, one dispatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check, _check_crop, _check_warp, _homography, _ops, _ops_warp
from diffcrop._context import full_precision, plain
from diffcrop._options import WarpOptions

from . import ragged

_WHERE = "to be warped"


class Call(NamedTuple):
    """A checked call in the operators' terms, and the leading shape of its result."""

    images: Tensor
    matrices: Tensor
    owner: Tensor | None
    leading: tuple[int, ...]
    size: tuple[int, int]
    options: WarpOptions
    impl: str


class Place(NamedTuple):
    """Where crops lie: the argument that says so, its matrices, and what its values are looked at for."""

    kind: _check_warp.Kind
    matrices: Callable[..., Tensor]  # (value, image_shape, size, coords=, align_corners=)
    look: Callable[[Tensor, str], None]


def crop_rotated(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    coords: str = "pixel",
    clockwise: bool = False,
    angle_unit: str = "degrees",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    align_corners: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Crop rotated boxes out of images and resample them to ``size``, differentiably in the pixels and all 5 numbers.

    A box (cx, cy, w, h, angle) is the box of that centre, width and height, turned about its centre by ``angle``
    degrees, counter-clockwise as one sees it on the screen (y points down). w and h stay the lengths of the box's own
    sides. With pixel (row r, column c) on [c, c+1] x [r, r+1], the centre of output (i, j) of (h', w') lies at

    .. code-block:: text

        x = cx + a cos(angle) + b sin(angle)         a = w ((j + 1/2) / w' - 1/2)      along the box's width
        y = cy - a sin(angle) + b cos(angle)         b = h ((i + 1/2) / h' - 1/2)      along its height

    so what is upright in the box is upright in the crop. Angle 0 is `crop` with ``box_format="cxcywh"``.

    >>> import torch, diffcrop
    >>> image = torch.arange(16.0).reshape(1, 4, 4)
    >>> diffcrop.crop_rotated(image, torch.tensor([2.0, 2.0, 4.0, 4.0, 90.0]), 4)  # its top looks to the left
    tensor([[[12.,  8.,  4.,  0.],
             [13.,  9.,  5.,  1.],
             [14., 10.,  6.,  2.],
             [15., 11.,  7.,  3.]]])
    >>> box = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0], requires_grad=True)
    >>> diffcrop.crop_rotated(image, box, 2)[0, 0, 1].backward()  # the top right pixel, of value 6
    >>> box.grad[:4]  # 1 to the right, 4 down, and half of each where the box grows
    tensor([ 1.0000,  4.0000,  0.2500, -1.0000])

    Args:
        images: as for `crop`: (C, H, W), (B, C, H, W), or a list of B images (C, H_b, W_b).
        boxes: float32 or float64 (half precision and integers are promoted): (5,), (K, 5), (B, 5), (B, K, 5), or a list
            of B tensors (K_b, 5), with results as in the table of `crop`. A negative w or h mirrors, 0 samples a line.
            Any angle will do: it is not wrapped. A box with a NaN or an infinity gives a NaN crop and a NaN gradient
            for itself alone, and adds nothing to the image gradient.
        size: h' and w' of the crops, or one int for both; at least 1.
        batch_index: (R,) integers 0..B-1, which image each of boxes (R, 5) reads; see `crop`.
        coords: ``"pixel"``, ``"unit"`` or ``"normalized"``: those of cx, cy, w and h. In the latter two w is a share of
            the image's width and h one of its height, as at angle 0; the box is a rectangle of pixels at any angle.
        clockwise: whether positive angles turn clockwise.
        angle_unit: ``"degrees"`` or ``"radians"``. Degrees are exact at quarter turns. Radians that are given as
            degrees are no error, but a box that hardly turns.
        mode: ``"bilinear"``, ``"bicubic"``, ``"lanczos3"``, ``"area"`` or ``"nearest"``, see `crop`.
        antialias: whether pixels are averaged where the crop has fewer of them than the box.
        padding_mode: what lies outside the image: ``"border"``, ``"zeros"``, ``"constant"``, ``"reflection"`` or
            ``"circular"``, see `crop`.
        fill: for ``"constant"``, see `crop`.
        align_corners: w and h reach from the centre of the first output to the centre of the last, and pixel centres
            lie at 0..N-1; see `crop`.
        impl: ``None`` chooses; ``"cpu"`` or ``"reference"``.

    Returns:
        The crops, in the images' dtype (float32 for integers, but for ``"nearest"``), shaped as those of `crop`.

    The derivative by the angle is per degree, or per radian where that is its unit. At a kink, where a
    sample lies on a row or column of pixels (boxes of whole numbers have such samples at many angles), derivatives are
    those by the position to the right: by the box they may lie outside of both one-sided ones. Compare with differences
    at odd numbers.

    Raises:
        TypeError, ValueError: for a wrong argument, with what would be right.

    The angle is that of detectron2's ``RotatedBoxes`` and of torchvision's format ``"cxcywhr"``; OpenCV's
    ``RotatedRect`` turns the other way. See also `rotated_to_quads` and `rotated_to_matrix`.

    """
    _check_warp.clockwise(clockwise)
    _check_warp.angle_unit(angle_unit)
    if type(boxes) is not Tensor:
        boxes = _bounding.rotated(boxes, _bounding.sizes_of(images), coords, clockwise, angle_unit)
    place = _ROTATED._replace(matrices=partial(_homography.from_rotated, clockwise=clockwise, angle_unit=angle_unit))
    return _crops(
        images,
        boxes,
        size,
        batch_index,
        place,
        coords,
        options_of(mode, antialias, padding_mode, fill, align_corners, impl),
    )


def crop_quad(
    images: Tensor | Sequence[Tensor],
    quads: Tensor | Sequence[Tensor],
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    align_corners: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Rectify quadrilaterals: crop what lies between four corners as if seen from the front, differentiably in all.

    The crop's own corners (0, 0), (w, 0), (w, h), (0, h) go to the quadrilateral's in this order, top-left, top-right,
    bottom-right, bottom-left, by the one projective map that does so; output (i, j) reads the image where its centre
    (j + 1/2, i + 1/2) goes. So straight lines stay straight, and the middle of the crop is where the diagonals meet.
    For a parallelogram the map is affine, and for an upright rectangle it is `crop`.

    >>> import torch, diffcrop
    >>> image = torch.arange(16.0).reshape(1, 4, 4)
    >>> mirrored = torch.tensor([[4.0, 0.0], [0.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    >>> diffcrop.crop_quad(image, mirrored, 4)
    tensor([[[ 3.,  2.,  1.,  0.],
             [ 7.,  6.,  5.,  4.],
             [11., 10.,  9.,  8.],
             [15., 14., 13., 12.]]])
    >>> trapezoid = torch.tensor([[1.0, 0.5], [3.0, 0.5], [4.0, 3.5], [0.0, 3.5]])
    >>> diffcrop.crop_quad(image, trapezoid, 1, antialias=False)  # the diagonals meet at (2, 1.5), above the middle
    tensor([[[5.5000]]])

    Args:
        images: as for `crop`: (C, H, W), (B, C, H, W), or a list of B images (C, H_b, W_b).
        quads: float32 or float64 (half precision and integers are promoted): (4, 2), (K, 4, 2), (B, 4, 2),
            (B, K, 4, 2), or a list of B tensors (K_b, 4, 2), with results as in the table of `crop`. Corners are (x, y)
            and may lie outside the image; in the other sense of rotation they mirror. They must be convex: see below.
        size: h and w of the crops, or one int for both; at least 1.
        batch_index: (R,) integers 0..B-1, which image each of quads (R, 4, 2) reads; see `crop`.
        coords: ``"pixel"``, ``"unit"`` or ``"normalized"``, see `crop`.
        mode: ``"bilinear"``, ``"bicubic"``, ``"lanczos3"``, ``"area"`` or ``"nearest"``, see `crop`.
        antialias: whether pixels are averaged where the crop has fewer of them than the quadrilateral.
        padding_mode: what lies outside the image: ``"border"``, ``"zeros"``, ``"constant"``, ``"reflection"`` or
            ``"circular"``, see `crop`.
        fill: for ``"constant"``, see `crop`.
        align_corners: the corners are the centres of the crop's corner pixels, and pixel centres lie at 0..N-1. A crop
            of one pixel along an axis takes the middle.
        impl: ``None`` chooses; ``"cpu"`` or ``"reference"``.

    Returns:
        The crops, in the images' dtype (float32 for integers, but for ``"nearest"``), shaped as those of `crop`.

    **Not defined** is the crop of corners that are not convex: three of them on a line (the sine of a corner's angle
    below 2^-20), one inside the triangle of the others, sides that cross, or no area at all. There the map sends a part
    of the crop to infinity, or there is none. It is an error where looking at the corners costs nothing (on the CPU in
    eager mode), elsewhere such a crop is NaN, as is its gradient, and it adds nothing to the image gradient. Corners
    that are NaN or infinite give such a crop everywhere.

    Raises:
        TypeError, ValueError: for a wrong argument, with what would be right.

    The map is that of Heckbert, "Fundamentals of Texture Mapping and Image Warping" (1989), in closed form. See also
    `quads_to_matrix`, and `rotated_to_quads` for the corners of rotated boxes.

    """
    if type(quads) is not Tensor:
        quads = _bounding.quads(quads, _bounding.sizes_of(images), coords)
    return _crops(
        images,
        quads,
        size,
        batch_index,
        _QUADS,
        coords,
        options_of(mode, antialias, padding_mode, fill, align_corners, impl),
    )


def warp(
    images: Tensor | Sequence[Tensor],
    matrix: Tensor | Sequence[Tensor],
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    align_corners: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Warp images by affine maps or homographies, differentiably in the pixels and in every entry of the matrix.

    The matrix says where outputs look: it maps coordinates of the output to coordinates of the image, as the Theta of
    `torch.nn.functional.affine_grid` does and OpenCV's ``warpAffine`` and ``warpPerspective`` with
    ``WARP_INVERSE_MAP``. The output at (u, v) is the image at

    .. code-block:: text

        (X, Y, Z) = M (u, v, 1),        (x, y) = (X / Z, Y / Z)

    with Z = 1 for a matrix (2, 3), in coordinates of one kind on both sides:

    ================  =================  ===========================================================================
    ``coords``        ``align_corners``  the centre of pixel j of N, in the image as in the output
    ================  =================  ===========================================================================
    ``"pixel"``       False              j + 1/2, as everywhere else in diffcrop
    ``"pixel"``       True               j: the numbering of OpenCV, and of kornia's ``warp_affine`` and
                                         ``warp_perspective``, whose matrices are the inverse
    ``"unit"``        False              (j + 1/2) / N
    ``"unit"``        True               j / (N - 1)
    ``"normalized"``  either             2 unit - 1: that of ``affine_grid`` and ``grid_sample``
    ================  =================  ===========================================================================

    >>> import torch, diffcrop
    >>> image = torch.arange(16.0).reshape(1, 4, 4)
    >>> shear = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]])  # x = u + v / 2, y = v
    >>> diffcrop.warp(image, shear, (2, 3), antialias=False)
    tensor([[[0.2500, 1.2500, 2.2500],
             [4.7500, 5.7500, 6.7500]]])
    >>> theta = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    >>> out = diffcrop.warp(image, theta, 4, coords="normalized", padding_mode="zeros")
    >>> grid = torch.nn.functional.affine_grid(theta[None], (1, 1, 4, 4), align_corners=False)
    >>> out.equal(torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0])
    True

    Args:
        images: as for `crop`: (C, H, W), (B, C, H, W), or a list of B images (C, H_b, W_b).
        matrix: float32 or float64 (half precision and integers are promoted). One is (2, 3) or (3, 3); several are
            stacked in front as boxes are for `crop`, (K, 3, 3), (B, 3, 3), (B, K, 3, 3) or a list of B tensors
            (K_b, 3, 3). A homography counts up to a factor. A matrix with a NaN or an infinity gives a NaN crop and a
            NaN gradient for itself alone, and adds nothing to the image gradient.
        size: h and w of the output, or one int for both; at least 1.
        batch_index: (R,) integers 0..B-1, which image each of R matrices reads; see `crop`.
        coords: ``"pixel"``, ``"unit"`` or ``"normalized"``, of output and image alike.
        mode: ``"bilinear"``, ``"bicubic"``, ``"lanczos3"``, ``"area"`` or ``"nearest"``, see `crop`.
        antialias: whether pixels are averaged where the output has fewer of them than the region it shows.
        padding_mode: what lies outside the image: ``"border"``, ``"zeros"`` (the default of OpenCV and
            ``grid_sample``), ``"constant"``, ``"reflection"`` or ``"circular"``, see `crop`.
        fill: for ``"constant"``, see `crop`.
        align_corners: the convention above. As for `crop`, an image one pixel wide is that pixel everywhere.
        impl: ``None`` chooses; ``"cpu"`` or ``"reference"``.

    Returns:
        The warped images, in their dtype (float32 for integers, but for ``"nearest"``), shaped as those of `crop`.

    A homography has a horizon, Z = 0. What lies beyond it, on the other side than the middle of the output, is not
    seen: ``fill`` for ``"constant"``, else 0. A singular affine matrix looks along a line or at a point, as an empty
    box does. A last row of zeros, with no point in front of the horizon, is an error where looking costs nothing.

    Raises:
        TypeError, ValueError: for a wrong argument, with what would be right.

    """
    return _crops(
        images,
        matrix,
        size,
        batch_index,
        MATRIX,
        coords,
        options_of(mode, antialias, padding_mode, fill, align_corners, impl),
    )


_ROTATED = Place(_check_warp.ROTATED, _homography.from_rotated, lambda *_: None)
_QUADS = Place(_check_warp.QUADS, _homography.from_quads, _check_warp.quads_are_convex)
MATRIX = Place(_check_warp.MATRIX, _homography.from_matrix, _check_warp.last_row_is_not_zero)


def options_of(
    mode: str, antialias: bool, padding_mode: str, fill: Any, align_corners: bool, impl: str | None
) -> dict[str, Any]:
    """What `prepare` checks by name, and ``impl``."""
    return {
        "mode": mode,
        "antialias": antialias,
        "padding_mode": padding_mode,
        "fill": fill,
        "align_corners": align_corners,
        "impl": impl,
    }


def _crops(
    images: Any, value: Any, size: Any, batch_index: Any, place: Place, coords: Any, options: dict[str, Any]
) -> Tensor:
    value = ragged.parts(value)
    if type(images) is not Tensor:
        images = [*map(_bounding.bare, images)] if isinstance(images, (list, tuple)) else _bounding.bare(images)
    if ragged.is_list(images):
        return _of_list(ragged.parts(images), value, size, batch_index, place, coords, options)
    call = prepare(images, value, size, batch_index, place, coords, options)
    result = _ops_warp.warp(call.images, call.matrices, call.owner, call.size, call.options, call.impl)
    return result if len(call.leading) == 1 else result.reshape(*call.leading, *result.shape[1:])


def prepare(
    images: Any, value: Any, size: Any, batch_index: Any, place: Place, coords: Any, options: dict[str, Any]
) -> Call:
    """Check everything, bring images to (B, C, H, W) and what says where to matrices (R, 3, 3)."""
    kind, listed = place.kind, isinstance(value, (list, tuple))
    _check_warp.many(value, kind) if listed else _check_warp.described(value, kind)
    _check_crop.image(images, 2, where=_WHERE, below=_check_warp.LONGEST)
    _check_warp.whole(images=images, **{kind.name: value}, batch_index=batch_index)
    batch = images.shape[0] if images.ndim == 4 else None
    size = _check.size(size, 2, because="", below=_check_warp.LONGEST)
    _check.coords(coords)
    align_corners, impl = options["align_corners"], options["impl"]
    chosen = {name: option for name, option in options.items() if name != "impl"}
    checked = _check_warp.options(**chosen, channels=images.shape[-3], dtype=images.dtype)
    _check_warp.exported_size(images, checked)
    if impl is not None:
        _check_warp.impl(impl, images, _ops.implementations())

    index = None
    if listed:
        if batch is None:
            raise ValueError(
                f"a list of {kind.name} needs a batch of images, got images of shape {tuple(images.shape)}"
            )
        _check_warp.count(value, kind, batch)
        if batch_index is not None:
            raise ValueError(f"batch_index says what a list of {kind.name} says already; pass one of them")
        for i, mine in enumerate(value):
            _check_warp.differentiable(mine, f"{kind.name}[{i}]", checked.mode)
            place.look(mine, f"{kind.name}[{i}]")
        value, index = ragged.flattened(value, images.device)
    elif batch_index is not None:
        if batch is None:
            raise ValueError(f"batch_index needs a batch of images, got images of shape {tuple(images.shape)}")
        index = _check_warp.batch_index(batch_index, value, kind, batch)
    else:
        _check_warp.rows(value, kind, batch)
    _check_crop.same_device(images, value, index, kind.name)
    if not listed:
        _check_warp.differentiable(value, kind.name, checked.mode)
        place.look(value, kind.name)

    leading = kind.leading(value) or (() if batch is None else (batch,))
    shape = tuple(images.shape[-2:])
    with full_precision(images):
        matrices = place.matrices(_boxes.promote(plain(value)), shape, size, coords=coords, align_corners=align_corners)
    if matrices.ndim == 2:
        matrices = matrices.expand(1 if batch is None else batch, 3, 3)
    elif matrices.ndim == 4:
        matrices = matrices.flatten(0, 1)
    if index is not None:
        index = plain(index).to(torch.int64)
    images = images if batch is not None else images.unsqueeze(0)
    return Call(images, matrices, index, leading, size, checked, _ops_warp.choose(impl, images))


def _of_list(
    images: Sequence[Any], value: Any, size: Any, batch_index: Any, place: Place, coords: Any, options: dict[str, Any]
) -> Tensor:
    """Images of different sizes: one call per image. All is checked before the first, and by its own name."""
    kind, listed = place.kind, isinstance(value, (list, tuple))
    _check_warp.many(value, kind) if listed else _check_warp.described(value, kind)
    tensors = _check_crop.image_list(images, 2, where=_WHERE, below=_check_warp.LONGEST)
    _check_warp.whole(images=tensors, **{kind.name: value}, batch_index=batch_index)
    if listed:
        _check_warp.count(value, kind, len(tensors))
        if batch_index is not None:
            raise ValueError(f"batch_index says what a list of {kind.name} says already; pass one of them")
    elif batch_index is not None:
        _check_warp.batch_index(batch_index, value, kind, len(tensors))
    else:
        _check_warp.rows(value, kind, len(tensors))
    for i, mine in enumerate(value if listed else [value]):
        name = f"{kind.name}[{i}]" if listed else kind.name
        _check_crop.same_device(tensors[0], mine, batch_index, name)
        _check_warp.differentiable(mine, name, options["mode"])
        place.look(mine, name)

    def one(image: Tensor, mine: Tensor) -> Tensor:
        return _crops(image, mine, size, None, place, coords, options)

    return ragged.over_images(one, tensors, value, batch_index, tail=kind.dims)
