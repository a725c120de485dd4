"""`crop` and what is made from it: checks, shapes, one dispatch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check, _check_crop, _ops, _sharding
from diffcrop._context import is_sharded, plain
from diffcrop._options import Options

from . import lists, ragged


class _Call(NamedTuple):
    """A checked call in the operators' terms, and the leading shape of its result."""

    images: Tensor
    boxes: Tensor
    owner: Tensor | None
    leading: tuple[int, ...]
    size: tuple[int, ...]
    options: Options
    impl: str
    box_format: str


class CropWithJacobian(NamedTuple):
    """What `crop_with_jacobian` returns."""

    crop: Tensor
    jacobian: Tensor


def crop(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    sigma: float | None = None,
    align_corners: bool = False,
    impl: str | None = None,
) -> Tensor:
    r"""Crop boxes out of images and resample them to ``size``, differentiably in the pixels and in the boxes.

    Pixel (row r, column c) covers the square [c, c+1] x [r, r+1]; a box is (x0, y0, x1, y1) in these continuous
    coordinates, and (0, 0, W, H) is the whole image. Along each axis, with (lo, hi) the box's two numbers and n
    outputs, output j reads the image at

        c_j = lo + (j + 1/2) (hi - lo) / n - 1/2        on the axis of pixel indices (pixel k at k), and
        s = |hi - lo| / n                               is the reduction.

    Its value is the weighted mean of the pixels k with weights f((k - c_j) / max(s, 1)) (f((k - c_j)) without
    antialiasing), normalised to sum 1 over all taps, those outside the image included. The two axes are independent:
    crop = W_y image W_x^T.

    >>> import torch, diffcrop
    >>> image = torch.arange(16.0).reshape(1, 4, 4)
    >>> diffcrop.crop(image, torch.tensor([0.0, 0.0, 4.0, 4.0]), 2, mode="area")
    tensor([[[ 2.5000,  4.5000],
             [10.5000, 12.5000]]])
    >>> box = torch.tensor([1.0, 1.0, 3.0, 3.0], requires_grad=True)
    >>> diffcrop.crop(image, box, 2).sum().backward()  # moving the box right by 1 raises each of 4 pixels by 1
    >>> box.grad
    tensor([2., 8., 2., 8.])

    Args:
        images: (C, H, W), (B, C, H, W), or a list of B images (C, H_b, W_b), channels first: (H, W, 3) is no error, but
            an image of H channels that is 3 wide; pass ``image.permute(2, 0, 1)``. float64, float32, float16, bfloat16,
            or any integer dtype or bool, which give float32 crops with values unscaled (``mode="nearest"`` keeps the
            dtype). Any strides; channels_last in, channels_last out. Boxes of 2 or 6 numbers, (x0, x1) or
            (x0, y0, z0, x1, y1, z1), crop signals (C, W) or volumes (C, D, H, W) in the same way.
        boxes: float32 or float64 (half precision and integers are promoted). Shapes and results:

            =============  ===========  =======================  ==================================================
            images         boxes        batch_index              result
            =============  ===========  =======================  ==================================================
            (C, H, W)      (4,)                                  (C, h, w)
            (C, H, W)      (K, 4)                                (K, C, h, w)
            (B, C, H, W)   (4,)                                  (B, C, h, w), the same box for all
            (B, C, H, W)   (B, 4)                                (B, C, h, w)
            (B, C, H, W)   (B, K, 4)                             (B, K, C, h, w)
            (B, C, H, W)   list of B                             (sum K_b, C, h, w); each tensor (K_b, 4)
            (B, C, H, W)   (R, 4)       (R,) integers 0..B-1     (R, C, h, w)
            list of B      as for a     as above                 as above
                           batch
            =============  ===========  =======================  ==================================================

            Boxes may leave the image, be mirrored (x1 < x0: a mirrored crop) or empty (one point sampled n times). A
            NaN or infinite box gives a NaN crop and a NaN gradient for that box alone, and adds nothing to the image
            gradient.
        size: h and w of the crops, or one int for both; at least 1.
        batch_index: which image each box reads. Out of range is an error; where looking at it would cost a
            synchronisation (on a GPU, under `torch.compile` or a transform) it makes a NaN box instead.
        box_format: ``"xyxy"``, ``"xywh"`` (corner and size) or ``"cxcywh"`` (centre and size).
        coords: ``"pixel"``, ``"unit"`` (the image is [0, 1]) or ``"normalized"`` (the image is [-1, 1], as in
            `torch.nn.functional.affine_grid`).
        mode: the filter f. ``"bilinear"``: triangle. ``"bicubic"``: Keys' cubic, a = -0.5 with antialiasing (Pillow)
            and -0.75 without (`grid_sample`). ``"lanczos3"``. ``"area"``: the mean over a footprint of width max(s, 1),
            `avg_pool2d` at integer reductions; needs antialiasing. ``"gaussian"``: exp(-x^2 / 2 sigma^2) -
            exp(-18), and 0 from 6 sigma on; smooths even at the identity. ``"nearest"``: pixel floor(c + 1/2),
            every dtype; a box that requires grad is an error there.
        antialias: whether the filter widens with the reduction. Without it a reduction reads a few pixels and skips the
            rest, and so does its box gradient. Nothing to do for ``"nearest"``.
        padding_mode: what lies outside the image. ``"border"``: the nearest pixel. ``"zeros"``. ``"constant"``:
            ``fill``. ``"reflection"``: mirrored at the image's edges. ``"circular"``: repeated. ``"renormalize"``: only
            taps inside count, renormalised, as in Pillow and ``interpolate(antialias=True)``; 0 where c is outside
            [-1/2, N - 1/2]. All but the last are continuous in the box.
        fill: for ``"constant"``: a number or one per channel, in the image's own range; not differentiable.
        sigma: for ``"gaussian"``: its width in output pixels (input pixels where s <= 1); default 0.5, at least 0.1.
        align_corners: the other convention of `grid_sample`: lo and hi are the centres of the first and last output
            pixel, pixel centres lie at 0..N-1, s = |hi - lo| / max(n - 1, 1), ``"reflection"`` mirrors at the centres
            of the edge pixels, n = 1 samples (lo + hi) / 2, and an image one pixel wide is that pixel everywhere.
        impl: ``None`` chooses. ``"cpu"``: compiled kernels. ``"triton"``: kernels for GPUs. ``"reference"``: plain
            PyTorch, any device. An implementation that is named and cannot serve is an error.

    Returns:
        The crops, in the images' dtype. Sums are kept in float32 (float64 for float64 images), positions in float64.

    The gradients are exact, those of the filter's width and normalisation included, to every order. Where the crop has
    a kink in the box (integer boxes at 1:1 are the common case) the derivative is the right-hand one in c, and the
    width's is 0 up to s = 1. First derivatives run in the kernels, higher ones through the reference.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes, devices or options that do not fit, with what would be right.

    The filters are those of Keys (1981), Duchon (1979) and Gregor et al. (2015, DRAW); the resampling is that of
    Pillow's ``Image.resize(box=)`` made differentiable, and with ``antialias=False, coords="normalized"`` it is
    `affine_grid` + `grid_sample` for an axis-aligned Theta.

    """
    options: dict[str, Any] = {
        "box_format": box_format,
        "coords": coords,
        "mode": mode,
        "antialias": antialias,
        "padding_mode": padding_mode,
        "fill": fill,
        "sigma": sigma,
        "align_corners": align_corners,
        "impl": impl,
    }
    if (type(images) is not Tensor or images.is_nested) and ragged.is_list(images):
        at_once = functools.partial(lists.crops, size=size)
        return _over_images(
            lambda i, b, **o: crop(i, b, size, **o), images, boxes, batch_index, options, at_once=at_once
        )
    call = _prepare(images, boxes, size, batch_index, **options)
    result = _ops.crop(call.images, call.boxes, call.owner, call.size, call.options, call.impl)
    if is_sharded(result):
        result = _sharding.settled(result)
    return result if len(call.leading) == 1 else result.reshape(*call.leading, *result.shape[1:])


def crop_with_jacobian(
    images: Tensor | Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    size: int | Sequence[int],
    *,
    batch_index: Tensor | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    sigma: float | None = None,
    align_corners: bool = False,
    impl: str | None = None,
) -> CropWithJacobian:
    """The crop and its derivative by the box, as Gauss-Newton and Levenberg-Marquardt need them.

    Arguments as for `crop`; ``mode="nearest"`` is an error, as it has no derivative.

    Returns:
        ``crop``: as `crop` gives it. ``jacobian``: (*crop.shape, 4) (2 numbers for signals, 6 for volumes), the
        derivative by the box's own numbers, in its own format and coordinates and in the crop's dtype. Both are
        differentiable.

    >>> import torch, diffcrop
    >>> ramp = torch.arange(8.0).expand(1, 8, 8)  # value = column
    >>> box = torch.tensor([4.0, 4.0, 2.0, 2.0])
    >>> diffcrop.crop_with_jacobian(ramp, box, 1, box_format="cxcywh").jacobian  # moves with cx alone
    tensor([[[[1., 0., 0., 0.]]]])

    """
    _check_crop.derivable(mode)
    convention: dict[str, Any] = {"box_format": box_format, "coords": coords, "align_corners": align_corners}
    options: dict[str, Any] = {
        **convention,
        "mode": mode,
        "antialias": antialias,
        "padding_mode": padding_mode,
        "fill": fill,
        "sigma": sigma,
        "impl": impl,
    }
    if ragged.is_list(images):
        return _over_images(lambda i, b, **o: crop_with_jacobian(i, b, size, **o), images, boxes, batch_index, options)
    call = _prepare(images, boxes, size, batch_index, **options)
    value = _ops.crop(call.images, call.boxes, call.owner, call.size, call.options, call.impl)
    jacobian = _ops.jacobian(call.images, call.boxes, call.owner, call.size, call.options, call.impl)
    linear = _by_box(call, convention)
    if linear is not None:
        if is_sharded(jacobian):
            linear = _sharding.replicated(linear, jacobian)
        # A matrix product would be rounded under autocast.
        jacobian = (jacobian.unsqueeze(-2) * linear.to(jacobian.dtype)).sum(-1).to(jacobian.dtype)
    return CropWithJacobian(
        value.reshape(*call.leading, *value.shape[1:]), jacobian.reshape(*call.leading, *jacobian.shape[1:])
    )


def _by_box(call: _Call, convention: dict[str, Any]) -> Tensor | None:
    """The derivative of pixel corners by the box, a row for each of its numbers; None where it is pixel corners.

    Pixel corners are an affine function of the box: this is that function's linear part.
    """
    if (call.box_format, convention["coords"]) == ("xyxy", "pixel"):
        return None
    convention = convention | {"box_format": call.box_format}  # boxes may have told it themselves
    unit = _boxes.widen(torch.eye(call.boxes.shape[-1], dtype=torch.float32, device=call.boxes.device))
    shape = call.images.shape[2:]
    return _boxes.to_pixel(unit, shape, **convention) - _boxes.to_pixel(torch.zeros_like(unit[0]), shape, **convention)


def coverage(
    boxes: Tensor,
    size: int | Sequence[int],
    image_size: int | Sequence[int],
    *,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    sigma: float | None = None,
    align_corners: bool = False,
    impl: str | None = None,
) -> Tensor:
    """The share of each output pixel's weight that lies inside the image: 1 inside, 0 outside, to mask losses.

    It is the crop of an image of ones that is surrounded by zeros: ``a_y a_x^T``, with ``a`` the sums of the weights of
    the pixels 0..N-1 along each axis. Filters with negative lobes leave [0, 1] a little near the edge.

    Args:
        boxes: (..., 4) ((..., 2) for signals, (..., 6) for volumes), any leading shape.
        size: of the crops, as for `crop`.
        image_size: (H, W) of the image, or an int for a square one.
        box_format: as for `crop`, like all that follow.
        coords: see there.
        mode: see there.
        antialias: see there.
        sigma: see there.
        align_corners: see there.
        impl: see there.

    Returns:
        (..., h, w) in the boxes' dtype, differentiable in the boxes (not for ``mode="nearest"``).

    >>> import torch, diffcrop
    >>> diffcrop.coverage(torch.tensor([-2.0, 1.0, 2.0, 2.0]), (1, 4), 4)
    tensor([[0., 0., 1., 1.]])

    """
    boxes, box_format, canvases = _bounding.read(boxes, box_format, coords)
    axes = _check.boxes(boxes)
    shape = _check.size(image_size, axes, "image_size")
    _bounding.fits(canvases, [shape], "image_size")
    _check_crop.differentiable(boxes, mode)
    dtype = _boxes.promoted_dtype(boxes.dtype)
    ones = torch.ones((), dtype=dtype, device=boxes.device).expand(1, *shape)
    if is_sharded(boxes):
        ones = _sharding.replicated(ones, boxes)
    result = crop(
        ones,
        boxes.reshape(-1, 2 * axes),
        size,
        box_format=box_format,
        coords=coords,
        mode=mode,
        antialias=antialias,
        padding_mode="zeros",
        sigma=sigma,
        align_corners=align_corners,
        impl=impl,
    )
    return result.reshape(*boxes.shape[:-1], *result.shape[2:])


def _prepare(
    images: Any,
    boxes: Any,
    size: Any,
    batch_index: Any,
    *,
    box_format: Any,
    coords: Any,
    mode: Any,
    antialias: Any,
    padding_mode: Any,
    fill: Any,
    sigma: Any,
    align_corners: Any,
    impl: Any,
) -> _Call:
    """Check everything, then bring images to (B, C, *spatial) and boxes to (R, 2A) in pixel corners."""
    canvases = ()
    if type(boxes) is not Tensor or boxes.is_nested:
        boxes, box_format, canvases = _bounding.read(ragged.parts(boxes), box_format, coords)
    if type(images) is not Tensor:
        images = _bounding.bare(images)
    listed = isinstance(boxes, (list, tuple))
    axes = _check_crop.box_list(boxes) if listed else _check.boxes(boxes, five=_check.NUMBERED)
    _check_crop.image(images, axes)
    if canvases:
        _bounding.fits(canvases, [images.shape[-axes:]])
    _check_crop.shards(images, boxes, batch_index, axes)
    batch = images.shape[0] if images.ndim == axes + 2 else None
    size = _check.size(size, axes)
    _check.box_format(box_format)
    _check.coords(coords)
    channels = images.shape[-axes - 1]
    options = _check_crop.options(
        mode, antialias, padding_mode, fill, sigma, align_corners, channels=channels, dtype=images.dtype
    )
    if impl is not None:
        _check_crop.impl(impl, images, axes, _ops.implementations(), _ops.interpreted())

    index = None
    if listed:
        if batch is None:
            raise ValueError(f"a list of boxes needs a batch of images, got images of shape {tuple(images.shape)}")
        _check_crop.box_count(boxes, batch)
        if batch_index is not None:
            raise ValueError("batch_index says what a list of boxes says already; pass one of them")
        for i, mine in enumerate(boxes):
            _check_crop.differentiable(mine, mode, f"boxes[{i}]")
        boxes, index = ragged.flattened(boxes, images.device)
        leading: tuple[int, ...] = (boxes.shape[0],)
    elif batch_index is not None:
        if batch is None:
            raise ValueError(f"batch_index needs a batch of images, got images of shape {tuple(images.shape)}")
        index = _check_crop.batch_index(batch_index, boxes, batch)
        leading = (boxes.shape[0],)
    else:
        _check_crop.box_rows(boxes, axes, batch)
        leading = tuple(boxes.shape[:-1]) or (() if batch is None else (batch,))
    _check_crop.same_device(images, boxes, index)
    _check_crop.differentiable(boxes, mode)

    if is_sharded(images):
        boxes, index = _sharding.align(images, boxes, index, batch)
    shape = images.shape[-axes:]
    boxes = _boxes.to_pixel(
        _boxes.promote(plain(boxes)), shape, box_format=box_format, coords=coords, align_corners=align_corners
    )
    if boxes.ndim == 1:
        boxes = boxes.expand(1 if batch is None else batch, 2 * axes)
    elif boxes.ndim == 3:
        boxes = boxes.flatten(0, 1)
    if index is not None:
        index = plain(index).to(torch.int64)
    images = images if batch is not None else images.unsqueeze(0)
    return _Call(images, boxes, index, leading, size, options, _ops.choose(impl, images, axes), box_format)


def _over_images(
    function: Any,
    images: Any,
    boxes: Any,
    batch_index: Any,
    options: dict[str, Any],
    along: Any = None,
    at_once: Any = None,
) -> Any:
    """A function of an image and its boxes, for images of different sizes, or one of all of them `at_once`."""
    boxes, options["box_format"], canvases = _bounding.read(
        ragged.parts(boxes), options["box_format"], options["coords"]
    )
    images = [_bounding.bare(image) for image in ragged.parts(images)]
    listed = isinstance(boxes, (list, tuple))
    axes = _check_crop.box_list(boxes) if listed else _check.boxes(boxes, five=_check.NUMBERED)
    _check_crop.shards(images, boxes, batch_index, axes)
    if canvases:
        _bounding.fits(canvases, [image.shape[-axes:] for image in _check_crop.image_list(images, axes)])
    for i, mine in enumerate(boxes if listed else [boxes]):
        _check_crop.differentiable(mine, options["mode"], f"boxes[{i}]" if listed else "boxes")
    return ragged.over_images(
        lambda *each: function(*each, **options),
        images,
        boxes,
        batch_index,
        axes=axes,
        along=along,
        at_once=None if at_once is None else functools.partial(at_once, **options),
    )
