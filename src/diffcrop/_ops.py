"""The operators: schemas, shapes for the compiler, autograd, batching. Nothing here knows how a crop is computed.

Three linear-algebra facts carry every derivative. With crop(I, b) = W_y I W_x^T and cotangent g,

    by the image:   G(g, b) = W_y^T g W_x          linear in g; its own derivatives are crop(., b) and B(., ., b)
    by the box:     B(g, I, b) = <g, d crop / d b>  bilinear in g and I; its derivatives are `reference.second`
    forward mode:   crop(dI, b) + d crop / d b . db

The `autograd.Function`s serve eager mode, `torch.func` and the compiler. A Function with a `jvp` cannot be compiled, so
forward mode lives in subclasses that serve only where nothing is compiled. Where PyTorch would drop a derivative of a
Function without a word (`beyond_functions`) the reference serves as plain PyTorch.
"""

# A Function's static methods take the arguments of its own forward.
# pyright: reportIncompatibleMethodOverride=false
# ruff: noqa: ARG001, ARG004

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _flops, _normal
from ._autograd import (
    added,
    apply,
    batched_index,
    beyond_functions,
    differentiated,
    is_channels_last,
    layout_of,
    leading,
    readable,
    refuse_older_vmap,
    undifferentiated,
)
from ._bins import BIN_MODES
from ._context import (
    batched,
    in_full_precision,
    is_concrete,
    is_sharded,
    warn_of_reference,
)
from ._impl import cpu, reference, triton
from ._options import Options, result_dtype

_OPTIONS = "str mode, bool antialias, str padding_mode, float[] fill, float parameter, bool align_corners"
_SCHEMAS = {
    "crop": "Tensor images, Tensor boxes, Tensor? index, SymInt[] size, bool channels_last",
    "crop_grad_images": "Tensor grad, Tensor boxes, Tensor? index, SymInt[] image_shape, bool channels_last",
    "crop_grad_boxes": "Tensor grad, Tensor images, Tensor boxes, Tensor? index",
    "crop_jacobian": "Tensor images, Tensor boxes, Tensor? index, SymInt[] size",
    "crop_gram": "Tensor images, Tensor boxes, Tensor? index, Tensor targets, str metric, float huber",
}
# The compiled library's operators, and Triton's, which serve a GPU under both names: a graph that was made on the CPU
# finds kernels when it is moved there.
_OVERLOADS = {"cpu": "", "triton": ".triton"}
_library = torch.library.Library("diffcrop", "FRAGMENT")
for _name, _arguments in _SCHEMAS.items():
    for _overload in _OVERLOADS.values():
        _library.define(f"{_name}{_overload}({_arguments}, {_OPTIONS}) -> Tensor")
    _library.impl(_name, getattr(triton, _name), "CUDA")
    for _key in ("CPU", "CUDA"):
        _library.impl(f"{_name}.triton", getattr(triton, _name), _key)


def _operators(name: str) -> dict[str, Any]:
    """By the implementation that they belong to."""
    packet = getattr(torch.ops.diffcrop, name)
    return {impl: getattr(packet, overload[1:] or "default") for impl, overload in _OVERLOADS.items()}


_crop, _crop_grad_images = _operators("crop"), _operators("crop_grad_images")
_crop_grad_boxes, _crop_jacobian = _operators("crop_grad_boxes"), _operators("crop_jacobian")
_crop_gram = _operators("crop_gram")


def implementations() -> dict[str, str | None]:
    """Name -> None if it is there, or why not."""
    return {"cpu": cpu.reason(), "triton": triton.reason(), "reference": None}


def interpreted() -> bool:
    """Whether Triton's interpreter serves, on the CPU."""
    return triton.interpreted()


def simd_level() -> str | None:
    """See `diffcrop.simd_level`."""
    return cpu.simd_level()


def choose(impl: str | None, images: Tensor, axes: int, mode: str = "bilinear") -> str:
    """The implementation that serves: the one named, else the kernels where they can, else the reference."""
    if impl is not None:
        return impl
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():  # whose graphs hold PyTorch's operators only
        return "reference"
    if images.device.type not in ("cpu", "cuda") or (axes != 2 and images.device.type == "cuda"):
        return "reference"
    if images.device.type == "cuda":
        if mode in BIN_MODES:
            return "reference"
        if triton.available():
            return "triton"
        warn_of_reference("its GPU kernels cannot run:", triton.reason(), "PyTorch for Linux brings Triton along")
        return "reference"
    if cpu.available():
        return "cpu"
    warn_of_reference(
        "the compiled library is not there:",
        cpu.reason(),
        "With a C++ compiler at hand, install diffcrop again to have it",
    )
    return "reference"


def crop(
    images: Tensor, boxes: Tensor, index: Tensor | None, size: tuple[int, ...], options: Options, impl: str
) -> Tensor:
    """The crops (R, C, *size) of ``images`` (B, C, *spatial) at ``boxes`` (R, 2A), pixel xyxy, differentiable in both.

    Box r reads image ``index[r]``, or ``r // (R / B)`` where index is None.
    """
    if beyond_functions() or (impl == "reference" and not is_concrete(images, boxes) and not is_sharded(images)):
        result = reference.crop(images, boxes, index, size, options)
        # vmap has no memory formats; there the layout is left to the reference.
        if is_channels_last(images) and not batched():
            return result.contiguous(memory_format=layout_of(True, images.dim()))
        return result
    if not differentiated(images, boxes):
        return _forward(images, boxes, index, size, options, impl)
    if torch.compiler.is_compiling():
        return _Crop.apply(images, boxes, index, size, options, impl)
    return apply(_DualCrop, images, boxes, index, size, options, impl)


@in_full_precision
def jacobian(
    images: Tensor, boxes: Tensor, index: Tensor | None, size: tuple[int, ...], options: Options, impl: str
) -> Tensor:
    """The derivative of `crop` by the boxes, (R, C, *size, 2A)."""
    if impl in _crop_jacobian and not differentiated(images, boxes):
        if not torch.compiler.is_compiling():
            _flops.ensure()
        return _crop_jacobian[impl](readable(images, options.mode), boxes, index, size, *options)
    columns = []
    for i in range(boxes.shape[-1]):
        unit = torch.zeros_like(boxes)
        unit[:, i].fill_(1)  # DTensors have no rule for an assignment
        columns.append(reference.tangent(images, boxes, index, size, options, unit))
    return torch.stack(columns, -1)


def gram(
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    targets: Tensor,
    metric: str,
    huber: float,
    options: Options,
    impl: str,
) -> Tensor:
    """`_normal.products` of the crops, their derivatives by the boxes and ``targets``, in the dtype of sums.

    Without derivatives of its own.
    """
    if impl in _crop_gram and boxes.shape[1] == 4:  # the kernels' products are those of images
        if not torch.compiler.is_compiling():
            _flops.ensure()
        return _crop_gram[impl](readable(images, options.mode), boxes, index, targets, metric, huber, *options)
    return reference.gram(images, boxes, index, targets, metric, huber, options)


def _forward(
    images: Tensor, boxes: Tensor, index: Tensor | None, size: Sequence[int], options: Options, impl: str
) -> Tensor:
    if impl in _crop:
        images = readable(images, options.mode)
        if not torch.compiler.is_compiling():
            _flops.ensure()
        return undifferentiated(_crop[impl], images, boxes, index, size, is_channels_last(images), *options)
    refuse_older_vmap(images, boxes)
    with torch.no_grad():
        result = reference.crop(images, boxes, index, size, options)
    return result.contiguous(memory_format=layout_of(is_channels_last(images), images.dim()))


class _Crop(Function):
    """`crop` with both of its derivatives; `_DualCrop` adds forward mode."""

    @staticmethod
    def forward(images, boxes, index, size, options, impl):
        return _forward(images, boxes, index, size, options, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        images, boxes, index, ctx.size, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(images, boxes, index)
        ctx.save_for_forward(images, boxes, index)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        return _pull_crop(ctx, grad, _GradImages, _GradBoxes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, images, boxes, index, size, options, impl):
        n, shared = info.batch_size, in_dims[0] is None
        count = images.shape[0] if shared else images.movedim(in_dims[0], 0).shape[1]
        boxes = leading(boxes, in_dims[1], n)
        index = batched_index(n, count, boxes.shape[1], index, in_dims[2], shared, boxes.device)
        images = images if shared else images.movedim(in_dims[0], 0).flatten(0, 1)
        rows = boxes.shape[1]  # not -1, which says nothing where n is 0
        return crop(images, boxes.flatten(0, 1), index, size, options, impl).unflatten(0, (n, rows)), 0


class _DualCrop(_Crop):
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        return _pull_crop(ctx, grad, _DualGradImages, _DualGradBoxes)

    @staticmethod
    def jvp(ctx: Any, d_images: Tensor | None, d_boxes: Tensor | None, *_: None) -> Tensor | None:
        images, boxes, index = ctx.saved_tensors
        parts: list[Tensor | None] = []
        if d_images is not None:
            parts.append(crop(d_images, boxes, index, ctx.size, ctx.options.linear(), ctx.impl))
        if d_boxes is not None:
            parts.append(reference.tangent(images, boxes, index, ctx.size, ctx.options, d_boxes))
        return added(parts)


def _pull_crop(ctx: Any, grad: Tensor | None, by_images: type[Function], by_boxes: type[Function]) -> tuple:
    if grad is None:
        return (None,) * 6
    images, boxes, index = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    made = _pulled(grad, images, boxes, index, ctx.options, ctx.impl, wanted, by_images, by_boxes)
    return (*made, None, None, None, None)


def pull(
    grad: Tensor,
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    options: Options,
    impl: str,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The cotangents of `crop`'s images and boxes for that of its result, where ``wanted``; differentiable."""
    return _pulled(grad, images, boxes, index, options, impl, wanted, _DualGradImages, _DualGradBoxes)


def _pulled(
    grad: Tensor,
    images: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    options: Options,
    impl: str,
    wanted: Sequence[bool],
    by_images: type[Function],
    by_boxes: type[Function],
) -> tuple[Tensor | None, Tensor | None]:
    image_grad = box_grad = None
    # Boxes first: the images may still be in a cache, which their gradient will fill.
    if wanted[1]:
        box_grad = apply(by_boxes, grad, images, boxes, index, options, impl)
    if wanted[0]:
        layout = (tuple(images.shape), is_channels_last(images))
        image_grad = apply(by_images, grad, boxes, index, *layout, options.linear(), impl)
    return image_grad, box_grad


class _GradImages(Function):
    """G(g, b): for any h, <h, G(g, b)> = <crop(h, b), g>, which gives both of its derivatives."""

    @staticmethod
    def forward(grad, boxes, index, image_shape, channels_last, options, impl):
        if impl in _crop_grad_images:
            return _crop_grad_images[impl](grad, boxes, index, image_shape, channels_last, *options)
        refuse_older_vmap(grad, boxes)
        result = reference.grad_images(grad, boxes, index, image_shape, options).to(grad.dtype)
        return result.contiguous(memory_format=layout_of(channels_last, result.dim()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, boxes, index, ctx.image_shape, ctx.channels_last, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(grad, boxes, index)
        ctx.save_for_forward(grad, boxes, index)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        return _pull_grad_images(ctx, cotangent, _Crop, _GradBoxes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad, boxes, index, image_shape, channels_last, options, impl):
        n, count = info.batch_size, image_shape[0]
        grad, boxes = leading(grad, in_dims[0], n).flatten(0, 1), leading(boxes, in_dims[1], n)
        index = batched_index(n, count, boxes.shape[1], index, in_dims[2], False, boxes.device)
        shape = (n * count, *image_shape[1:])
        result = _DualGradImages.apply(grad, boxes.flatten(0, 1), index, shape, channels_last, options, impl)
        return result.unflatten(0, (n, count)), 0


class _DualGradImages(_GradImages):
    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        return _pull_grad_images(ctx, cotangent, _DualCrop, _DualGradBoxes)

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_boxes: Tensor | None, *_: None) -> Tensor | None:
        grad, boxes, index = ctx.saved_tensors
        layout = (ctx.image_shape, ctx.channels_last, ctx.options, ctx.impl)
        parts: list[Tensor | None] = []
        if d_grad is not None:
            parts.append(_DualGradImages.apply(d_grad, boxes, index, *layout))
        if d_boxes is not None:
            zeros = torch.zeros(ctx.image_shape, dtype=grad.dtype, device=grad.device)
            parts.append(reference.second(grad, zeros, boxes, index, ctx.options, d_boxes, (False, True, False))[1])
        return added(parts)


def _pull_grad_images(ctx: Any, cotangent: Tensor | None, push: type[Function], by_boxes: type[Function]) -> tuple:
    if cotangent is None:
        return (None,) * 7
    grad, boxes, index = ctx.saved_tensors
    by_grad = box_grad = None
    if ctx.needs_input_grad[0]:
        by_grad = apply(push, cotangent, boxes, index, tuple(grad.shape[2:]), ctx.options, ctx.impl)
    if ctx.needs_input_grad[1]:
        box_grad = apply(by_boxes, grad, cotangent, boxes, index, ctx.options, ctx.impl)
    return by_grad, box_grad, None, None, None, None, None


class _GradBoxes(Function):
    """B(g, I, b); its derivatives are second derivatives of the crop and run through the reference."""

    @staticmethod
    def forward(grad, images, boxes, index, options, impl):
        if impl in _crop_grad_boxes:
            return _crop_grad_boxes[impl](grad, readable(images, options.mode), boxes, index, *options)
        return reference.grad_boxes(grad, images, boxes, index, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        grad, images, boxes, index, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(grad, images, boxes, index)
        ctx.save_for_forward(grad, images, boxes, index)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        if cotangent is None:
            return (None,) * 6
        grad, images, boxes, index = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if not any(wanted):
            return (None,) * 6
        parts = reference.second(grad, images, boxes, index, ctx.options, cotangent, wanted)
        return (*parts, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad, images, boxes, index, options, impl):
        n, shared = info.batch_size, in_dims[1] is None
        count = images.shape[0] if shared else images.movedim(in_dims[1], 0).shape[1]
        grad, boxes = leading(grad, in_dims[0], n).flatten(0, 1), leading(boxes, in_dims[2], n)
        index = batched_index(n, count, boxes.shape[1], index, in_dims[3], shared, boxes.device)
        images = images if shared else images.movedim(in_dims[1], 0).flatten(0, 1)
        result = _DualGradBoxes.apply(grad, images, boxes.flatten(0, 1), index, options, impl)
        return result.unflatten(0, (n, boxes.shape[1])), 0


class _DualGradBoxes(_GradBoxes):
    @staticmethod
    def jvp(
        ctx: Any, d_grad: Tensor | None, d_images: Tensor | None, d_boxes: Tensor | None, *_: None
    ) -> Tensor | None:
        grad, images, boxes, index = ctx.saved_tensors
        parts: list[Tensor | None] = []
        if d_grad is not None:
            parts.append(_DualGradBoxes.apply(d_grad, images, boxes, index, ctx.options, ctx.impl))
        if d_images is not None:
            parts.append(_DualGradBoxes.apply(grad, d_images, boxes, index, ctx.options.linear(), ctx.impl))
        if d_boxes is not None:
            # The Hessian by the box is symmetric: its product with d_boxes is the derivative of <grad, tangent>.
            parts.append(reference.second(grad, images, boxes, index, ctx.options, d_boxes, (False, False, True))[2])
        return added(parts)


# The operators for the compiler and for whoever meets them in a graph: shapes, and the derivative by the same facts.


def _fake_crop(images, boxes, index, size, channels_last, mode, *_):
    result = images.new_empty((boxes.shape[0], images.shape[1], *size), dtype=result_dtype(images.dtype, mode))
    return result.contiguous(memory_format=layout_of(channels_last, result.dim()))


def _fake_grad_images(grad, boxes, index, image_shape, channels_last, *_):
    result = grad.new_empty(image_shape)
    return result.contiguous(memory_format=layout_of(channels_last, result.dim()))


def _fake_grad_boxes(grad, images, boxes, index, *_):
    return torch.empty_like(boxes, memory_format=torch.contiguous_format)


def _fake_jacobian(images, boxes, index, size, mode, *_):
    shape = (boxes.shape[0], images.shape[1], *size, boxes.shape[1])
    return images.new_empty(shape, dtype=result_dtype(images.dtype, mode))


def _fake_gram(images, boxes, index, targets, metric, *_):
    count = _normal.columns(metric, boxes.shape[1] // 2)
    return images.new_empty((boxes.shape[0], images.shape[1], count, count), dtype=torch.float64)


def _setup_crop(impl: str, ctx: Any, inputs: tuple, output: Tensor) -> None:
    images, boxes, index, size, _, *options = inputs
    options = Options(*options)
    options = options._replace(fill=tuple(options.fill))
    _Crop.setup_context(ctx, (images, boxes, index, tuple(size), options, impl), output)


def _backward_crop(ctx: Any, grad: Tensor | None) -> tuple:
    image_grad, box_grad, *_ = _pull_crop(ctx, grad, _GradImages, _GradBoxes)
    return (image_grad, box_grad, *[None] * 9)


for _impl, _overload in _OVERLOADS.items():
    torch.library.register_fake(f"diffcrop::crop{_overload}", _fake_crop)
    torch.library.register_fake(f"diffcrop::crop_grad_images{_overload}", _fake_grad_images)
    torch.library.register_fake(f"diffcrop::crop_grad_boxes{_overload}", _fake_grad_boxes)
    torch.library.register_fake(f"diffcrop::crop_jacobian{_overload}", _fake_jacobian)
    torch.library.register_fake(f"diffcrop::crop_gram{_overload}", _fake_gram)
    torch.library.register_autograd(
        f"diffcrop::crop{_overload}", _backward_crop, setup_context=functools.partial(_setup_crop, _impl)
    )

_flops.ensure()

# Here, outside of any compilation: the library's kernels belong to the schemas above.
cpu.load()
