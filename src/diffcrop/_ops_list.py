"""The operators on images of different sizes: a list of tensors (C, H, W), boxes (R, 4) and the image of each.

What they compute is what `_ops.crop` does, called for each image with its boxes, bit for bit. They serve eager calls on
the CPU; derivatives beyond the first are made of the operators of `_ops`, image by image.
"""

# A Function's static methods take the arguments of its own forward.
# pyright: reportIncompatibleMethodOverride=false
# ruff: noqa: ARG001, ARG004

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _flops, _ops
from ._autograd import apply, differentiated, is_channels_last, layout_of, readable, undifferentiated
from ._context import in_transform, is_concrete
from ._options import Options, result_dtype

_OPTIONS = "str mode, bool antialias, str padding_mode, float[] fill, float parameter, bool align_corners"
_SCHEMAS = {
    "crop_list": "(Tensor[] images, Tensor boxes, Tensor index, SymInt[] size, {}) -> Tensor",
    "crop_list_grad_boxes": "(Tensor grad, Tensor[] images, Tensor boxes, Tensor index, {}) -> Tensor",
    "crop_list_grad_images": "(Tensor grad, Tensor[] images, Tensor boxes, Tensor index, int[] wanted, {}) -> Tensor[]",
}
_library = torch.library.Library("diffcrop", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema.format(_OPTIONS))
_operators = torch.ops.diffcrop


def serves(impl: str, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> bool:
    """Whether `crop` may be called: for images in eager mode, on the CPU, without transforms, tracers or tangents."""
    return impl == "cpu" and forward_ad._current_level < 0 and is_concrete(*images, *boxes)


def crop(images: Sequence[Tensor], boxes: Tensor, index: Tensor, size: tuple[int, ...], options: Options) -> Tensor:
    """The crops (R, C, *size) of ``images``, each (C, H_b, W_b), at ``boxes`` (R, 4), pixel xyxy; box r in index[r].

    Differentiable in all of them. ``index`` holds 0..B-1. The result is channels-last if all images are.
    """
    if differentiated(boxes, *images):
        return apply(_CropList, boxes, index, size, options, *images)
    return _forward(boxes, index, size, options, images)


def _forward(boxes: Tensor, index: Tensor, size: tuple[int, ...], options: Options, images: Sequence[Tensor]) -> Tensor:
    _flops.ensure()
    return undifferentiated(_operators.crop_list, _readable(images, options), boxes, index, size, *options)


def _readable(images: Sequence[Tensor], options: Options) -> Sequence[Tensor]:
    first = readable(images[0], options.mode)
    return images if first is images[0] else [readable(image, options.mode) for image in images]


class _CropList(Function):
    @staticmethod
    def forward(boxes, index, size, options, *images):
        return _forward(boxes, index, size, options, images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        boxes, index, _, ctx.options, *images = inputs
        ctx.save_for_backward(boxes, index, *images)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        by_boxes, by_images = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        if grad is None:
            return (None,) * (4 + len(by_images))
        legacy = torch._C._functorch.is_legacy_batchedtensor(grad)  # pyright: ignore[reportAttributeAccessIssue]
        pull = _pull_each if torch.is_grad_enabled() or legacy or in_transform() else _pull
        boxes, index, *images = ctx.saved_tensors
        box_grad, image_grads = pull(grad, images, boxes, index, ctx.options, by_boxes, by_images)
        return (box_grad, None, None, None, *image_grads)


_Pulled = tuple[Tensor | None, list[Tensor | None]]


def _pull(
    grad: Tensor,
    images: Sequence[Tensor],
    boxes: Tensor,
    index: Tensor,
    options: Options,
    by_boxes: bool,
    by_images: Sequence[bool],
) -> _Pulled:
    """The cotangents of the boxes and of the images, where they are asked for."""
    box_grad: Tensor | None = None
    image_grads: list[Tensor | None] = [None] * len(images)
    # Boxes first: the images may still be in a cache, which their gradient will fill.
    if by_boxes:
        box_grad = _operators.crop_list_grad_boxes(grad, _readable(images, options), boxes, index, *options)
    wanted = [i for i, needed in enumerate(by_images) if needed]
    if wanted:
        made = _operators.crop_list_grad_images(grad, images, boxes, index, wanted, *options.linear())
        for i, one in zip(wanted, made, strict=True):
            image_grads[i] = one
    return box_grad, image_grads


def _pull_each(
    grad: Tensor,
    images: Sequence[Tensor],
    boxes: Tensor,
    index: Tensor,
    options: Options,
    by_boxes: bool,
    by_images: Sequence[bool],
) -> _Pulled:
    """The same image by image, differentiably."""
    counts = torch.bincount(index, minlength=len(images)).tolist()
    order = torch.argsort(index, stable=True)
    sort = bool((index[1:] < index[:-1]).any())
    if sort:
        grad, boxes = grad[order], boxes[order]
    box_grads, image_grads = [], []
    parts = zip(grad.split(counts), images, boxes.split(counts), by_images, strict=True)
    for mine, image, own, wanted in parts:
        image_grad, box_grad = _ops.pull(mine, image[None], own, None, options, "cpu", (wanted, by_boxes))
        box_grads.append(box_grad)
        image_grads.append(None if image_grad is None else image_grad[0])
    if not by_boxes:
        return None, image_grads
    box_grad = torch.cat(box_grads)
    return box_grad[torch.argsort(order)] if sort else box_grad, image_grads


# For whoever meets the operators in a graph.


def _last(image: Tensor) -> bool:
    return is_channels_last(image[None])


def _fake_crop(images, boxes, index, size, mode, *_):
    result = images[0].new_empty((boxes.shape[0], images[0].shape[0], *size), dtype=result_dtype(images[0].dtype, mode))
    return result.contiguous(memory_format=layout_of(all(map(_last, images))))


def _fake_grad_boxes(grad, images, boxes, index, *_):
    return torch.empty_like(boxes, memory_format=torch.contiguous_format)


def _fake_grad_images(grad, images, boxes, index, wanted, *_):
    made = [grad.new_empty((1, *images[i].shape)) for i in wanted]
    return [m.contiguous(memory_format=layout_of(_last(images[i])))[0] for m, i in zip(made, wanted, strict=True)]


def _setup_crop(ctx: Any, inputs: tuple, output: Tensor) -> None:
    images, boxes, index, _, *options = inputs
    options = Options(*options)
    ctx.options = options._replace(fill=tuple(options.fill))
    ctx.by = boxes.requires_grad, [image.requires_grad for image in images]
    ctx.save_for_backward(boxes, index, *images)


def _backward_crop(ctx: Any, grad: Tensor) -> tuple:
    boxes, index, *images = ctx.saved_tensors
    again = torch.is_grad_enabled() and is_concrete(grad, boxes, *images)
    box_grad, image_grads = (_pull_each if again else _pull)(grad, images, boxes, index, ctx.options, *ctx.by)
    return (image_grads, box_grad, *[None] * 8)


for _name, _fake in (
    ("crop_list", _fake_crop),
    ("crop_list_grad_boxes", _fake_grad_boxes),
    ("crop_list_grad_images", _fake_grad_images),
):
    torch.library.register_fake(f"diffcrop::{_name}", _fake)
torch.library.register_autograd("diffcrop::crop_list", _backward_crop, setup_context=_setup_crop)

_flops.ensure()
