"""`roi_align`: many boxes of feature maps at once, as detection heads read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check, _check_crop, _check_roi, _ops
from diffcrop._context import full_precision, in_transform, plain
from diffcrop._options import Options

from . import ragged


def roi_align(
    input: Tensor | Sequence[Tensor],  # noqa: A002  (torchvision's name)
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: str = "sample",
    impl: str | None = None,
) -> Tensor:
    r"""RoIAlign with torchvision's arguments and values, differentiable in the input and in the boxes, to every order.

    Each box is cut into h x w bins, and each bin is the mean of samples of the bilinear surface through the pixels.
    Along an axis, with (lo, hi) the box's two numbers times ``spatial_scale``, n bins and N pixels, g samples lie in
    each bin, at

        p_ji = lo + (j + (i + 1/2) / g) s - 1/2,   s = (hi - lo) / n        (pixel k at k)

    with ``aligned=True``. A sample in [-1, 0] reads pixel 0, one in [N-1, N] pixel N-1, and one beyond counts as 0.

    >>> import torch, diffcrop
    >>> features = torch.arange(36.0).reshape(1, 1, 6, 6)
    >>> boxes = torch.tensor([[0, 1.0, 1.0, 5.0, 3.0]], requires_grad=True)  # index, x0, y0, x1, y1
    >>> diffcrop.roi_align(features, boxes, (1, 2), sampling_ratio=2, aligned=True)
    tensor([[[[10.5000, 12.5000]]]], grad_fn=<_DualCropBackward>)
    >>> diffcrop.roi_align(features, boxes, (1, 2), aligned=True).sum().backward()
    >>> boxes.grad  # x grows by 1 a pixel, y by 6, and there are two bins
    tensor([[0., 1., 6., 1., 6.]])

    Args:
        input: (B, C, H, W), any dtype of `diffcrop.crop`; or volumes (B, C, D, H, W). Or a list of B feature maps
            (C, H_b, W_b) of different sizes, all of the same ``spatial_scale``.
        boxes: (K, 5), rows (index, x0, y0, x1, y1) with the index of an image, 0..B-1; or a list of B tensors
            (K_b, 4), as in torchvision. For volumes (K, 7), rows (index, x0, y0, z0, x1, y1, z1), or a list of
            (K_b, 6). In pixels of the image that ``spatial_scale`` refers to, of any dtype (below float32 they are
            promoted). An index out of range is an error; where looking at it would cost a synchronisation (on a GPU,
            under `torch.compile` or a transform) it makes a NaN box instead. A box that is not finite gives NaN and a
            NaN gradient for itself alone, and adds nothing to the gradient of ``input``.
        output_size: (h, w) of the result, (d, h, w) for volumes, or one int for all.
        spatial_scale: what box coordinates are multiplied with, such as 1 / 16 for features of stride 16. The
            stride itself is no error, but puts boxes beyond the features, where samples are 0.
        sampling_ratio: g, along each axis. 0 and less (the default: ``-1``): as many as the bin is long, ceil(s) for
            each box and axis; then an empty or mirrored axis (hi <= lo) has no samples and gives 0.
        aligned: the shift by half a pixel that makes boxes mean the same as in `diffcrop.crop`. Without it (the
            original convention) p_ji is larger by 1/2, and sides are at least 1 long: hi becomes lo + 1 where hi is
            less, so that hi has no gradient there.
        mode: ``"sample"``, or ``"exact"`` for the mean over the whole bin of the bilinear surface (Precise RoI
            Pooling). The surface is then continued by zeros outside of the image, and boxes are of any size: mirrored
            ones give mirrored results, an empty bin is one point, and nothing jumps.
        impl: ``None`` chooses. ``"cpu"``: compiled kernels. ``"reference"``: plain PyTorch, any device.

    Returns:
        (K, C, h, w) in the input's dtype (float32 for integers), in the order of the boxes. Sums are kept in float32
        (float64 for float64), positions in float64.

    The gradient by the boxes is that of this formula: linear between the pixels, the right-hand one where a sample lies
    on a pixel. Where a sample crosses -1 or N, or the number of samples changes, the result jumps, and the
    gradient is that of either side: it knows nothing of the jump. With ``mode="exact"`` the gradient is continuous, but
    where a bin is a point. The column of indices has a gradient of 0.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes, devices, indices or options that do not fit, with what would be right.

    He et al. 2017, "Mask R-CNN"; `torchvision.ops.roi_align`, which has no gradient by the boxes. Jiang et al. 2018,
    "Acquisition of localization confidence for accurate object detection" for ``"exact"``.

    """
    boxes = _corners(ragged.parts(boxes))
    if ragged.is_list(input):
        more: dict[str, Any] = {"mode": mode, "impl": impl}
        given = (output_size, spatial_scale, sampling_ratio, aligned)
        return _over_images(lambda one, mine: roi_align(one[None], [mine], *given, **more), input, boxes)
    maps = _bounding.bare(input)
    axes = _check_roi.image(maps)
    count = maps.shape[0]
    _check_roi.boxes(boxes, axes, count)
    size = _check.size(output_size, axes, "output_size")
    scale = _check_roi.spatial_scale(spatial_scale)
    ratio = _check_roi.sampling_ratio(sampling_ratio)
    _check_roi.aligned(aligned)
    _check_roi.mode(mode, ratio)
    if impl is not None:
        _check_roi.impl(impl, maps, axes, _ops.implementations())
    corners, index = _rows(boxes, axes, count, maps.device)
    _check_crop.same_device(maps, corners, index, images_name="input")

    options = _OPTIONS[mode]._replace(parameter=float(ratio)) if ratio else _OPTIONS[mode]
    with full_precision(corners):
        corners = _pixel(corners, axes, scale, aligned, mode)
    impl = _ops.choose(impl, maps, axes, options.mode)
    if impl == "cpu" and _better_side_by_side(maps, corners.shape[0], size):
        result = _ops.crop(maps.contiguous(memory_format=torch.channels_last), corners, index, size, options, impl)
        return result.contiguous()
    return _ops.crop(maps, corners, index, size, options, impl)


_LEAST_CHANNELS = 16
_OPTIONS = {
    "sample": Options(mode="samples", padding_mode="roi", parameter=0.0),
    "exact": Options(mode="integral", padding_mode="zeros", parameter=0.0),
}


def _over_images(function: Any, images: Any, boxes: Any) -> Tensor:
    """A function of one feature map and its boxes, for maps of different sizes."""
    maps = [_bounding.bare(one) for one in ragged.parts(images)]
    axes = _check_roi.image_list(maps)
    _check_roi.boxes(boxes, axes, len(maps))
    if isinstance(boxes, (list, tuple)):
        for i, mine in enumerate(boxes):
            _check_crop.same_device(maps[0], mine, None, f"boxes[{i}]", "input")
        return ragged.over_images(function, maps, boxes, axes=axes)
    _check_crop.same_device(maps[0], boxes, None, images_name="input")
    boxes = plain(boxes)
    return ragged.over_images(function, maps, boxes[:, 1:], _known(boxes, len(maps)), axes=axes)


def _corners(boxes: Any) -> Any:
    """A list of boxes that know their format as one of plain corners; anything else as it is."""
    if isinstance(boxes, (list, tuple)):
        boxes, box_format, _ = _bounding.read(boxes, "xyxy", "pixel")
        return boxes if box_format == "xyxy" else [_boxes.to_pixel(t, (), box_format=box_format) for t in boxes]
    if _bounding.is_bounding(boxes):
        raise TypeError(
            f"boxes of the class {type(boxes).__name__} do not say which image they belong to; pass a list with one of "
            "them for each image"
        )
    return boxes


def _better_side_by_side(images: Tensor, rows: int, size: tuple[int, ...]) -> bool:
    """Whether it is worth the copies to have the channels side by side.

    A row of 7 outputs takes about as long to set up as to make, a row of 7 x 256 numbers does not. Copying the
    features there and the result back pays as soon as boxes read the features about once, from 16 channels on. By sizes
    alone: results must not depend on what the boxes are.
    """
    if (
        images.dim() != 4
        or images.shape[1] < _LEAST_CHANNELS
        or not images.is_floating_point()
        or not images.is_contiguous()
    ):
        return False
    if in_transform() or torch.compiler.is_exporting():  # where there are no memory formats, or sizes may be any
        return False
    return 4 * rows * math.prod(size) >= images.shape[0] * math.prod(images.shape[2:])


def _rows(boxes: Any, axes: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Corners (K, 2A) and the image of each, which is no image's where it is not known to be one."""
    if isinstance(boxes, (list, tuple)):
        if not boxes:
            return torch.zeros(0, 2 * axes, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        return ragged.flattened([plain(t) for t in boxes], boxes[0].device)
    boxes = plain(boxes)
    return boxes[:, 1:], _known(boxes, count)


def _known(boxes: Tensor, count: int) -> Tensor:
    """The image of each row (index, ...), -1 where that is none."""
    column = boxes[:, 0].detach()
    _check_roi.indices(column, count)
    known = (column >= 0) & (column < count)  # not of NaN
    return torch.where(known, column, -1).to(torch.int64)


def _pixel(corners: Tensor, axes: int, scale: float, aligned: bool, mode: str) -> Tensor:
    """Boxes in pixel corners of the input, as the operators take them."""
    corners = _boxes.widen(_boxes.promote(corners)) * scale
    if aligned:
        return corners
    if mode == "sample":
        lo, hi = corners[:, :axes], corners[:, axes:]
        corners = torch.cat([lo, torch.where((hi - lo).detach() > 1, hi, lo + 1)], 1)
    return corners + 0.5
