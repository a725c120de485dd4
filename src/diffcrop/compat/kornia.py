"""kornia's crops: `crop_and_resize`, `crop_by_boxes`, `crop_by_transform_mat` and `center_crop` of kornia 0.9.

kornia itself is not needed. What differs from it:

* Derivatives exist to every order, in forward mode and under `torch.func`; the image gradient is deterministic, and
  where a sample lies on a pixel centre derivatives are the right-hand ones.
* Crops of one pixel, and boxes of one row or column, are defined: such an axis reads the middle of its side. kornia
  gives NaN where only one of the two boxes has that extent.
* Corners are float32 at least, whatever the image's dtype, and positions are computed in float64.
* Integer images are taken, and give float32. ``mode="bicubic"``, which kornia's functions pass on, is taken as well.
* Halves are rounded up by ``"nearest"``, to even by kornia.
* What lies beyond the horizon of a matrix or of corners, on the other side than the middle of the output, is 0 with
  every padding, as for `diffcrop.warp`. kornia divides by Z on both sides, and shows there what lies behind the viewer.
* A NaN box gives NaN for itself alone.
* Nothing is antialiased, as in kornia. `diffcrop.crop_quad` and `diffcrop.crop` are, with the same corners under
  ``align_corners=True``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _check, _check_crop, _check_warp

from . import _arguments

__all__ = ["center_crop", "crop_and_resize", "crop_by_boxes", "crop_by_transform_mat"]

_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


def crop_and_resize(
    input_tensor: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> Tensor:
    r"""One crop of each image, between four corners that are pixel centres: ``kornia.geometry.transform``'s.

    Pixel k of an axis has its centre at k, and the four corners are the centres of the crop's corner pixels: output
    (i, j) of (h, w) reads the image where the projective map that takes (0, 0), (w - 1, 0), (w - 1, h - 1), (0, h - 1)
    to the corners takes (j, i). For an upright box from (x0, y0) to (x1, y1) that is
    x = x0 + j (x1 - x0) / (w - 1), y = y0 + i (y1 - y0) / (h - 1), and the middle where w or h is 1.

    Args:
        input_tensor: (B, C, H, W).
        boxes: (B, 4, 2), or (1, 4, 2) for all images: corners (x, y) from the top-left one clockwise.
        size: (h, w).
        mode: ``"bilinear"``, ``"nearest"`` or ``"bicubic"``.
        padding_mode: ``"zeros"``, ``"border"`` or ``"reflection"``.
        align_corners: moves no sample; ``"reflection"`` mirrors at the centres of the edge pixels with True, at their
            outer edges with False.

    Returns:
        (B, C, h, w), differentiable in ``input_tensor`` and in all eight numbers of a box (not by ``"nearest"``).

    Raises:
        TypeError, ValueError: for a wrong argument, and for corners that are not convex where looking at them costs
            nothing.

    >>> import torch
    >>> from diffcrop.compat.kornia import crop_and_resize
    >>> image = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)
    >>> corners = torch.tensor([[[1.0, 1.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]])
    >>> crop_and_resize(image, corners, (2, 2))
    tensor([[[[ 6.,  7.],
              [10., 11.]]]])

    """
    _options(input_tensor, mode, padding_mode, align_corners)
    corners = _corners(boxes, "boxes", input_tensor, mode)
    h, w = _arguments.size(size, "size", "(h, w)", 2, _check_warp.LONGEST)
    end = torch.tensor([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], dtype=torch.float64, device=corners.device)
    names = ("boxes", "size")
    return _between(input_tensor, corners, end.expand_as(corners), names, (h, w), mode, padding_mode, align_corners)


def crop_by_boxes(
    input_tensor: Tensor,
    src_box: Tensor,
    dst_box: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
    validate_boxes: bool = True,
) -> Tensor:
    r"""What lies between four corners of the image, brought to lie between four corners of the output.

    As `crop_and_resize`, whose corners in the output are its own. The output's height and width are those of
    ``dst_box`` with both ends: y of its third corner less that of its first, plus 1, and x of its second less that of
    its first, plus 1.

    Args:
        input_tensor: (B, C, H, W).
        src_box: (B, 4, 2), or (1, 4, 2) for all images: corners in the image, from the top-left one clockwise.
        dst_box: (B, 4, 2) or (1, 4, 2), corners in the output. They are read for its size.
        mode: as for `crop_and_resize`.
        padding_mode: as there.
        align_corners: as there.
        validate_boxes: whether to check that all boxes of ``dst_box`` give one size, of whole numbers. Without, the
            first one's size is cut off to whole numbers and taken for all.

    Returns:
        (B, C, h, w), differentiable in ``input_tensor`` and, not by ``"nearest"``, in both boxes.

    Raises:
        TypeError, ValueError: for a wrong argument.

    >>> import torch
    >>> from diffcrop.compat.kornia import crop_by_boxes
    >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> src = torch.tensor([[[1.0, 1.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]])
    >>> dst = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]])
    >>> crop_by_boxes(image, src, dst)
    tensor([[[[ 5.0000,  5.5000,  6.0000],
              [ 9.0000,  9.5000, 10.0000]]]])

    """
    _options(input_tensor, mode, padding_mode, align_corners)
    _arguments.flag(validate_boxes, "validate_boxes")
    src = _corners(src_box, "src_box", input_tensor, mode)
    dst = _corners(dst_box, "dst_box", input_tensor, mode)
    heights = (dst[:, 2, 1] - dst[:, 0, 1] + 1).detach().tolist()
    widths = (dst[:, 1, 0] - dst[:, 0, 0] + 1).detach().tolist()
    shape = []
    for what, values in (("height", heights), ("width", widths)):
        first = values[0] if values else 1.0
        if not 1 <= first < _check_warp.LONGEST or (
            validate_boxes and not all(v == first and abs(v - round(v)) < 1e-4 for v in values)
        ):
            sizes = _arguments.describe(values)
            raise ValueError(f"dst_box must give one {what}, a whole number of at least 1, to all crops, got {sizes}")
        shape.append(round(first) if validate_boxes else int(first))
    names = ("src_box", "dst_box")
    size = (shape[0], shape[1])
    return _between(input_tensor, src, dst, names, size, mode, padding_mode, align_corners)


def crop_by_transform_mat(
    input_tensor: Tensor,
    transform: Tensor,
    out_size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> Tensor:
    r"""The image through a matrix that takes its pixels to those of the output.

    Args:
        input_tensor: (B, C, H, W).
        transform: (B, 3, 3) or (B, 2, 3), or one for all images: from (x, y, 1) in the image to the output, where pixel
            k has its centre at k. `diffcrop.warp` takes the inverse.
        out_size: (h, w).
        mode: as for `crop_and_resize`.
        padding_mode: as there.
        align_corners: as there.

    Returns:
        (B, C, h, w), differentiable in ``input_tensor`` and, not by ``"nearest"``, in ``transform``.

    Raises:
        TypeError, ValueError: for a wrong argument, and for a singular matrix.

    >>> import torch
    >>> from diffcrop.compat.kornia import crop_by_transform_mat
    >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> to_the_left = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])
    >>> crop_by_transform_mat(image, to_the_left, (2, 2))
    tensor([[[[1., 2.],
              [5., 6.]]]])

    """
    _options(input_tensor, mode, padding_mode, align_corners)
    _arguments.tensor(transform, "transform", "(B, 3, 3) or (B, 2, 3)", 3)
    _check.real_tensor(transform, "transform")
    if tuple(transform.shape[1:]) not in ((2, 3), (3, 3)):
        raise ValueError(f"transform must have shape (B, 3, 3) or (B, 2, 3), got {tuple(transform.shape)}")
    _check_warp.differentiable(transform, "transform", mode)
    matrix = _expanded(_wide(transform), "transform", input_tensor)
    if matrix.shape[1] == 2:
        last = torch.tensor([0.0, 0.0, 1.0], dtype=matrix.dtype, device=matrix.device)
        matrix = torch.cat([matrix, last.expand(len(matrix), 1, 3)], 1)
    h, w = _arguments.size(out_size, "out_size", "(h, w)", 2, _check_warp.LONGEST)
    inverse, singular = torch.linalg.inv_ex(matrix)
    if _may_look(matrix) and bool(singular.any()):
        raise ValueError("transform must be invertible, got a singular matrix; diffcrop.warp takes the inverse itself")
    return _warped(input_tensor, inverse, (h, w), mode, padding_mode, align_corners)


def center_crop(
    input_tensor: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = True,
) -> Tensor:
    r"""The middle of each image at its own resolution; between its pixels where size and image differ by an odd number.

    Args:
        input_tensor: (B, C, H, W).
        size: (h, w). What of it lies outside the image is padding.
        mode: as for `crop_and_resize`.
        padding_mode: as there.
        align_corners: as there.

    Returns:
        (B, C, h, w), differentiable in ``input_tensor``.

    Raises:
        TypeError, ValueError: for a wrong argument.

    >>> import torch
    >>> from diffcrop.compat.kornia import center_crop
    >>> center_crop(torch.arange(16.0).reshape(1, 1, 4, 4), (2, 3))
    tensor([[[[ 4.5000,  5.5000,  6.5000],
              [ 8.5000,  9.5000, 10.5000]]]])

    """
    _options(input_tensor, mode, padding_mode, align_corners)
    h, w = _arguments.size(size, "size", "(h, w)", 2, _check_warp.LONGEST)
    x, y = (input_tensor.shape[3] - w) / 2, (input_tensor.shape[2] - h) / 2
    box = torch.tensor([x, y, x + w - 1, y + h - 1], dtype=torch.float64, device=input_tensor.device)
    return _upright(input_tensor, box, (h, w), mode, padding_mode, align_corners)


def _between(
    images: Tensor,
    src: Tensor,
    dst: Tensor,
    names: tuple[str, str],
    size: tuple[int, int],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """The crops that the projective map from the corners ``dst`` to the corners ``src`` samples.

    Upright boxes are crops along the axes. Where a gradient is wanted the eight numbers of a box move apart, so that
    only those whose map does not exist, boxes of one row or column, are taken as such.
    """
    options = (size, mode, padding_mode, align_corners)
    if not _may_look(src) or not _may_look(dst):
        return _warped(images, _homography(src, dst), *options)
    upright = _is_upright(src) & _is_upright(dst)
    if torch.is_grad_enabled() and (src.requires_grad or dst.requires_grad):
        upright &= _is_empty(src) | _is_empty(dst)
    if bool(upright.all()):
        return _upright(images, _box(src, dst, size), *options)
    for corners, name in zip((src, dst), names, strict=True):
        _check_warp.quads_are_convex(corners[~upright], name)
    if not bool(upright.any()):
        return _warped(images, _homography(src, dst), *options)
    one, other = upright.nonzero().squeeze(1), (~upright).nonzero().squeeze(1)
    crops = [
        _upright(images[one], _box(src[one], dst[one], size), *options),
        _warped(images[other], _homography(src[other], dst[other]), *options),
    ]
    return torch.cat(crops)[torch.argsort(torch.cat([one, other]))]


def _homography(src: Tensor, dst: Tensor) -> Tensor:
    """From the output to the image, by way of the square whose corners go to both."""
    return _square(src) @ torch.linalg.inv_ex(_square(dst))[0]


def _square(corners: Tensor) -> Tensor:
    return diffcrop.quads_to_matrix(corners, 2, align_corners=True)


def _box(src: Tensor, dst: Tensor, size: tuple[int, int]) -> Tensor:
    """The centres of the first and last output along each axis, (B, 4), of upright boxes."""
    ends = []
    for axis, n in ((0, size[1]), (1, size[0])):
        lo, hi = ((c[:, i, axis] + c[:, j, axis]) / 2 for c in (src,) for i, j in _SIDES[axis])
        start, stop = ((c[:, i, axis] + c[:, j, axis]) / 2 for c in (dst,) for i, j in _SIDES[axis])
        extent = stop - start
        point = extent.detach() == 0
        scale = (hi - lo) / torch.where(point, 1.0, extent)
        first = torch.where(point, (lo + hi) / 2 - start, lo - start * scale)
        # An output of one place, however many pixels are asked for, goes on at the image's own resolution.
        ends.append((first, first + (n - 1) * torch.where(point, 1.0, scale)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], 1)


# Corners that share the first and the last coordinate of an axis.
_SIDES = (((0, 3), (1, 2)), ((0, 1), (2, 3)))


def _is_upright(corners: Tensor) -> Tensor:
    """Whether a box has the corners of a rectangle along the axes; NaN counts as one."""
    c = corners.detach()
    pairs = [(c[:, i, axis], c[:, j, axis]) for axis in (0, 1) for i, j in _SIDES[axis]]
    skew = torch.stack([(a != b) for a, b in pairs]).any(0)
    return ~skew | ~c.isfinite().flatten(1).all(1)


def _is_empty(corners: Tensor) -> Tensor:
    """Whether a box has no width or no height, or no numbers."""
    side = (corners[:, 2] - corners[:, 0]).detach()
    return (side == 0).any(1) | ~side.isfinite().all(1)


def _upright(
    images: Tensor, box: Tensor, size: tuple[int, int], mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    if not align_corners:
        # From the centres of the first and last output to the crop's outer edges.
        h, w = size
        lo, hi = box[..., :2], box[..., 2:]
        gaps = torch.tensor([max(w - 1, 1), max(h - 1, 1)], dtype=box.dtype, device=box.device)
        single = torch.tensor([w == 1, h == 1], device=box.device)
        half = (hi - lo) / gaps / 2
        middle = (lo + hi) / 2
        lo, hi = torch.where(single, middle, lo - half), torch.where(single, middle, hi + half)
        box = torch.cat([lo, hi], -1) + 0.5
    return diffcrop.crop(
        images, box, size, mode=mode, antialias=False, padding_mode=padding_mode, align_corners=align_corners
    )


def _warped(
    images: Tensor, matrix: Tensor, size: tuple[int, int], mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    if not align_corners:  # pixel k has its centre at k + 1/2 there
        shift = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        shift[:2, 2] = 0.5
        back = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
        back[:2, 2] = -0.5
        matrix = shift @ matrix @ back
    return diffcrop.warp(
        images, matrix, size, mode=mode, antialias=False, padding_mode=padding_mode, align_corners=align_corners
    )


def _options(images: Any, mode: Any, padding_mode: Any, align_corners: Any) -> None:
    _arguments.tensor(images, "input_tensor", "(B, C, H, W)", 4)
    _check_crop.image(images, 2, "input_tensor", True, "of images", _check_warp.LONGEST)
    _arguments.choice(mode, "mode", _MODES)
    _arguments.choice(padding_mode, "padding_mode", _PADDINGS)
    _arguments.flag(align_corners, "align_corners")


def _corners(value: Any, name: str, images: Tensor, mode: str) -> Tensor:
    """(B, 4, 2) in float64."""
    words = "(B, 4, 2), corners (x, y) from the top-left one clockwise"
    _arguments.tensor(value, name, words, 3)
    _arguments.last(value, name, words, (4, 2))
    _check.real_tensor(value, name)
    _check_warp.differentiable(value, name, mode)
    return _expanded(_wide(value), name, images)


def _expanded(value: Tensor, name: str, images: Tensor) -> Tensor:
    """One for each image."""
    if value.device != images.device:
        raise ValueError(f"input_tensor and {name} must be on the same device, got {images.device} and {value.device}")
    if value.shape[0] not in (1, images.shape[0]):
        raise ValueError(
            f"{name} must have one entry for each of {images.shape[0]} images, or one for all, got {tuple(value.shape)}"
        )
    return value.expand(images.shape[0], *value.shape[1:])


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _may_look(value: Tensor) -> bool:
    """Whether values may be read without waiting for a device or breaking a graph.

    Unlike `_check.may_look` also under vmap of the image alone, where boxes of one row or column stay defined.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or value.device.type != "cpu":  # pyright: ignore[reportPrivateImportUsage]
        return False
    if _get_current_dispatch_mode_stack():  # fake tensors and the like
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
