"""Crops of a list of images in one call of the kernels, where these serve; elsewhere `ragged` goes image by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffcrop import _boxes, _check, _check_crop, _ops, _ops_list
from diffcrop._context import full_precision

from .ragged import Rows


def crops(
    images: list[Tensor],
    rows: Rows,
    size: Any,
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
) -> Tensor | None:
    """The crops (R, C, h, w) of checked images (C, H_b, W_b) and boxes, or None. The other arguments as for `crop`."""
    axes = images[0].ndim - 1
    given = rows.boxes if isinstance(rows.boxes, (list, tuple)) else [rows.boxes]
    if axes != 2:
        return None
    if impl is not None:
        _check_crop.impl(impl, images[0], axes, _ops.implementations(), _ops.interpreted())
    if not _ops_list.serves(_ops.choose(impl, images[0], axes), images, given):
        return None
    size = _check.size(size, axes)
    _check.box_format(box_format)
    _check.coords(coords)
    options = _check_crop.options(
        mode,
        antialias,
        padding_mode,
        fill,
        sigma,
        align_corners,
        channels=images[0].shape[0],
        dtype=images[0].dtype,
    )
    with full_precision(images[0]):
        boxes, index = rows.flat()
        shape: tuple[Any, ...] = ()
        if coords != "pixel":  # every image is its own unit
            sides = torch.tensor([image.shape[1:] for image in images], dtype=torch.float64, device=boxes.device)
            shape = sides[index].unbind(1)
        boxes = _boxes.to_pixel(
            _boxes.promote(boxes), shape, box_format=box_format, coords=coords, align_corners=align_corners
        )
        return _ops_list.crop(images, boxes, index, size, options)
