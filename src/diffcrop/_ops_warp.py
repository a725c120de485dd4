"""The operators of warps: schemas, shapes for the compiler, autograd, batching. See `_ops`, whose pattern they follow.

With warp(I, M) linear in the image I, its derivatives are

    by the image:   G(g, M)                          the transpose, linear in the cotangent g
    by the matrix:  B(g, I, M) = <g, d warp / d M>    bilinear in g and I; its derivatives are `_impl.warp.second`
"""

# A Function's static methods take the arguments of its own forward.
# pyright: reportIncompatibleMethodOverride=false
# ruff: noqa: ARG001, ARG004

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops, _pyramid
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
from ._context import batched, in_full_precision, is_concrete
from ._impl import warp as reference
from ._options import UNIT, Options, WarpOptions, result_dtype, sum_dtype

_OPTIONS = "str mode, bool antialias, str padding_mode, float[] fill, bool align_corners"
_SCHEMAS = {
    "warp": "Tensor images, Tensor matrices, Tensor? index, Tensor? reductions, SymInt[] size, bool channels_last",
    "warp_jacobian": "Tensor images, Tensor matrices, Tensor? index, Tensor? reductions, SymInt[] size, "
    "bool projective",
    "warp_grad_images": "Tensor grad, Tensor matrices, Tensor? index, Tensor? reductions, SymInt[] image_shape, "
    "bool channels_last",
    "warp_grad_matrices": "Tensor grad, Tensor images, Tensor matrices, Tensor? index, Tensor? reductions",
}
_library = torch.library.Library("diffcrop", "FRAGMENT")
for _name, _arguments in _SCHEMAS.items():
    _library.define(f"{_name}({_arguments}, {_OPTIONS}) -> Tensor")


def choose(impl: str | None, images: Tensor) -> str:
    """As `_ops.choose`; there are no kernels for GPUs."""
    if impl is None and images.device.type != "cpu":
        return "reference"
    return _ops.choose(impl, images, 2)


def warp(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    size: tuple[int, int],
    options: WarpOptions,
    impl: str,
) -> Tensor:
    """The images (B, C, H, W) seen through ``matrices`` (R, 3, 3): (R, C, *size), differentiable in both.

    A matrix maps (u, v, 1), a point of the result in pixels (pixel j covers [j, j+1]), to homogeneous coordinates of a
    point of the image in pixels. Box r reads image ``index[r]``, or ``r // (R / B)`` where index is None. How
    antialiasing is done is said in `_pyramid`.
    """
    total = None
    for number, reductions in _levels(images, matrices, size, options):
        part = sampled(*_on_level(images, matrices, number, options, impl), index, reductions, size, options, impl)
        total = part if total is None or reductions is None else _joined(total, part, reductions)
    return total.to(result_dtype(images.dtype, options.mode))  # pyright: ignore[reportOptionalMemberAccess]


@in_full_precision
def with_jacobian(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    size: tuple[int, int],
    options: WarpOptions,
    projective: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """`warp` and its derivative by the first two rows of the matrices, or all three: (R, C, *size, 2 or 3, 3)."""
    total = None
    for number, reductions in _levels(images, matrices, size, options):
        source, places = _on_level(images, matrices, number, options, impl)
        value = sampled(source, places, index, reductions, size, options, impl)
        if impl == "cpu" and not differentiated(source, places):
            source = readable(source, options.mode)
            part = torch.ops.diffcrop.warp_jacobian(source, places, index, reductions, size, projective, *options)
            part = part.unflatten(-1, (-1, 3))
        else:
            units = torch.eye(9, dtype=places.dtype, device=places.device).view(9, 1, 3, 3)
            entries = [
                reference.tangent(source, places, index, reductions, size, options, unit.expand_as(places))
                for unit in units[: 9 if projective else 6]
            ]
            part = torch.stack(entries, -1).unflatten(-1, (-1, 3))
        if number > 0:
            height, width = images.shape[2:]
            part = _pyramid.by_whole(part, _pyramid.level((height, width), number, options))
        parts = value, part
        if total is None or reductions is None:
            total = parts
        else:
            total = tuple(_joined(t, p, reductions) for t, p in zip(total, parts, strict=True))
    dtype = result_dtype(images.dtype, options.mode)
    return tuple(part.to(dtype) for part in total)  # pyright: ignore[reportOptionalIterable, reportReturnType]


def _levels(
    images: Tensor, matrices: Tensor, size: tuple[int, int], options: WarpOptions
) -> Iterator[tuple[int, Tensor | None]]:
    """Which levels of the images are read, each with the reductions (R, 2) of the boxes there; None: no reduction."""
    if not options.antialias or options.mode == "nearest":
        yield 0, None
        return
    height, width = images.shape[2:]
    chosen = _pyramid.plan(matrices, size, (height, width))
    numbers: Sequence[int] = range(_pyramid.levels((height, width)) + 1)
    if is_concrete(matrices):
        numbers = chosen.level.unique().tolist() or [0]
        if numbers == [0] and bool((chosen.reductions == UNIT).all()):
            yield 0, None
            return
    for number in numbers:
        yield number, torch.where((chosen.level == number)[:, None], chosen.reductions, 0)


def _joined(total: Tensor, part: Tensor, reductions: Tensor) -> Tensor:
    """The crops so far and those of one more level, which alone has its boxes; a sum would lose the sign of zeros."""
    here = (reductions > 0).all(-1)
    return torch.where(here.view(-1, *[1] * (part.ndim - 1)), part, total)


def _on_level(images: Tensor, matrices: Tensor, number: int, options: WarpOptions, impl: str) -> tuple[Tensor, Tensor]:
    """A level of all images in the dtype of sums, and the matrices as they read it."""
    if number == 0:
        return images, matrices
    if images.is_floating_point():
        images = images.to(sum_dtype(images.dtype))
    height, width = images.shape[2:]
    level = _pyramid.level((height, width), number, options)
    boxes = torch.tensor([level.box], dtype=torch.float64, device=images.device).expand(images.shape[0], 4)
    way = Options("area", True, options.padding_mode, options.fill, align_corners=options.align_corners)
    if not (options.padding_mode == "reflection" and options.align_corners):
        way = way._replace(align_corners=False)
    return _ops.crop(images, boxes, None, level.size, way, impl), _pyramid.on_level(matrices, level)


def sampled(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: tuple[int, ...],
    options: WarpOptions,
    impl: str,
) -> Tensor:
    """`warp` of boxes that are reduced by ``reductions`` (R, 2) along x and y, in parts of `UNIT`.

    A box with a reduction of 0 is left out: zeros, without derivatives. None: nothing is reduced.
    """
    if beyond_functions() or (impl == "reference" and not is_concrete(images, matrices)):
        result = reference.warp(images, matrices, index, reductions, size, options)
        # vmap has no memory formats; there the layout is left to the reference.
        if is_channels_last(images) and not batched():
            return result.contiguous(memory_format=torch.channels_last)
        return result
    if not differentiated(images, matrices):
        return _forward(images, matrices, index, reductions, size, options, impl)
    if torch.compiler.is_compiling():
        return _Warp.apply(images, matrices, index, reductions, size, options, impl)
    return apply(_DualWarp, images, matrices, index, reductions, size, options, impl)


def _forward(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: Sequence[int],
    options: WarpOptions,
    impl: str,
) -> Tensor:
    if impl == "cpu":
        images = readable(images, options.mode)
        arguments = (images, matrices, index, reductions, size, is_channels_last(images), *options)
        return undifferentiated(torch.ops.diffcrop.warp, *arguments)
    refuse_older_vmap(images, matrices)
    with torch.no_grad():
        result = reference.warp(images, matrices, index, reductions, size, options)
    return result.contiguous(memory_format=layout_of(is_channels_last(images)))


class _Warp(Function):
    """`sampled` with both of its derivatives; `_DualWarp` adds forward mode."""

    @staticmethod
    def forward(images, matrices, index, reductions, size, options, impl):
        return _forward(images, matrices, index, reductions, size, options, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.size, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        return _pull_warp(ctx, grad, _GradImages, _GradMatrices)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, images, matrices, index, reductions, size, options, impl):
        n, shared = info.batch_size, in_dims[0] is None
        count = images.shape[0] if shared else images.movedim(in_dims[0], 0).shape[1]
        matrices = leading(matrices, in_dims[1], n)
        rows = matrices.shape[1]  # not -1, which says nothing where n is 0
        index = batched_index(n, count, rows, index, in_dims[2], shared, matrices.device)
        reductions = _batched_reductions(n, reductions, in_dims[3])
        images = images if shared else images.movedim(in_dims[0], 0).flatten(0, 1)
        result = sampled(images, matrices.flatten(0, 1), index, reductions, size, options, impl)
        return result.unflatten(0, (n, rows)), 0


class _DualWarp(_Warp):
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        return _pull_warp(ctx, grad, _DualGradImages, _DualGradMatrices)

    @staticmethod
    def jvp(ctx: Any, d_images: Tensor | None, d_matrices: Tensor | None, *_: None) -> Tensor | None:
        images, matrices, index, reductions = ctx.saved_tensors
        parts: list[Tensor | None] = []
        if d_images is not None:
            parts.append(sampled(d_images, matrices, index, reductions, ctx.size, ctx.options.linear(), ctx.impl))
        if d_matrices is not None:
            parts.append(reference.tangent(images, matrices, index, reductions, ctx.size, ctx.options, d_matrices))
        return added(parts)


def _pull_warp(ctx: Any, grad: Tensor | None, by_images: type[Function], by_matrices: type[Function]) -> tuple:
    if grad is None:
        return (None,) * 7
    images, matrices, index, reductions = ctx.saved_tensors
    image_grad = matrix_grad = None
    # Matrices first: the images may still be in a cache, which their gradient will fill.
    if ctx.needs_input_grad[1]:
        matrix_grad = apply(by_matrices, grad, images, matrices, index, reductions, ctx.options, ctx.impl)
    if ctx.needs_input_grad[0]:
        layout = (tuple(images.shape), is_channels_last(images))
        image_grad = apply(by_images, grad, matrices, index, reductions, *layout, ctx.options.linear(), ctx.impl)
    return image_grad, matrix_grad, None, None, None, None, None


class _GradImages(Function):
    """G(g, M): for any h, <h, G(g, M)> = <warp(h, M), g>, which gives both of its derivatives."""

    @staticmethod
    def forward(grad, matrices, index, reductions, image_shape, channels_last, options, impl):
        if impl == "cpu":
            arguments = (grad, matrices, index, reductions, image_shape, channels_last, *options)
            return torch.ops.diffcrop.warp_grad_images(*arguments)
        refuse_older_vmap(grad, matrices)
        result = reference.grad_images(grad, matrices, index, reductions, image_shape, options).to(grad.dtype)
        return result.contiguous(memory_format=layout_of(channels_last))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.image_shape, ctx.channels_last, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        return _pull_grad_images(ctx, cotangent, _Warp, _GradMatrices)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad, matrices, index, reductions, image_shape, channels_last, options, impl):
        n, count = info.batch_size, image_shape[0]
        grad, matrices = leading(grad, in_dims[0], n).flatten(0, 1), leading(matrices, in_dims[1], n)
        index = batched_index(n, count, matrices.shape[1], index, in_dims[2], False, matrices.device)
        reductions = _batched_reductions(n, reductions, in_dims[3])
        shape = (n * count, *image_shape[1:])
        arguments = (grad, matrices.flatten(0, 1), index, reductions, shape, channels_last, options, impl)
        return _DualGradImages.apply(*arguments).unflatten(0, (n, count)), 0


class _DualGradImages(_GradImages):
    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        return _pull_grad_images(ctx, cotangent, _DualWarp, _DualGradMatrices)

    @staticmethod
    def jvp(ctx: Any, d_grad: Tensor | None, d_matrices: Tensor | None, *_: None) -> Tensor | None:
        grad, matrices, index, reductions = ctx.saved_tensors
        parts: list[Tensor | None] = []
        if d_grad is not None:
            layout = (ctx.image_shape, ctx.channels_last, ctx.options, ctx.impl)
            parts.append(_DualGradImages.apply(d_grad, matrices, index, reductions, *layout))
        if d_matrices is not None:
            zeros = torch.zeros(ctx.image_shape, dtype=grad.dtype, device=grad.device)
            wanted = (False, True, False)
            parts.append(reference.second(grad, zeros, matrices, index, reductions, ctx.options, d_matrices, wanted)[1])
        return added(parts)


def _pull_grad_images(ctx: Any, cotangent: Tensor | None, push: type[Function], by_matrices: type[Function]) -> tuple:
    if cotangent is None:
        return (None,) * 8
    grad, matrices, index, reductions = ctx.saved_tensors
    by_grad = matrix_grad = None
    if ctx.needs_input_grad[0]:
        size = tuple(grad.shape[2:])
        by_grad = apply(push, cotangent, matrices, index, reductions, size, ctx.options, ctx.impl)
    if ctx.needs_input_grad[1]:
        matrix_grad = apply(by_matrices, grad, cotangent, matrices, index, reductions, ctx.options, ctx.impl)
    return (by_grad, matrix_grad, *[None] * 6)


class _GradMatrices(Function):
    """B(g, I, M); its derivatives are second derivatives of the warp and run through the reference."""

    @staticmethod
    def forward(grad, images, matrices, index, reductions, options, impl):
        if impl == "cpu":
            images = readable(images, options.mode)
            return torch.ops.diffcrop.warp_grad_matrices(grad, images, matrices, index, reductions, *options)
        return reference.grad_matrices(grad, images, matrices, index, reductions, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        if cotangent is None:
            return (None,) * 7
        grad, images, matrices, index, reductions = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if not any(wanted):
            return (None,) * 7
        parts = reference.second(grad, images, matrices, index, reductions, ctx.options, cotangent, wanted)
        return (*parts, *[None] * 4)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad, images, matrices, index, reductions, options, impl):
        n, shared = info.batch_size, in_dims[1] is None
        count = images.shape[0] if shared else images.movedim(in_dims[1], 0).shape[1]
        grad, matrices = leading(grad, in_dims[0], n).flatten(0, 1), leading(matrices, in_dims[2], n)
        index = batched_index(n, count, matrices.shape[1], index, in_dims[3], shared, matrices.device)
        reductions = _batched_reductions(n, reductions, in_dims[4])
        images = images if shared else images.movedim(in_dims[1], 0).flatten(0, 1)
        result = _DualGradMatrices.apply(grad, images, matrices.flatten(0, 1), index, reductions, options, impl)
        return result.unflatten(0, (n, matrices.shape[1])), 0


class _DualGradMatrices(_GradMatrices):
    @staticmethod
    def jvp(
        ctx: Any, d_grad: Tensor | None, d_images: Tensor | None, d_matrices: Tensor | None, *_: None
    ) -> Tensor | None:
        grad, images, matrices, index, reductions = ctx.saved_tensors
        rest, parts = (matrices, index, reductions), []
        if d_grad is not None:
            parts.append(_DualGradMatrices.apply(d_grad, images, *rest, ctx.options, ctx.impl))
        if d_images is not None:
            parts.append(_DualGradMatrices.apply(grad, d_images, *rest, ctx.options.linear(), ctx.impl))
        if d_matrices is not None:
            # The Hessian by the matrix is symmetric: its product with d_matrices is the derivative of <grad, tangent>.
            wanted = (False, False, True)
            parts.append(reference.second(grad, images, *rest, ctx.options, d_matrices, wanted)[2])
        return added(parts)


def _batched_reductions(n: int, reductions: Tensor | None, dim: int | None) -> Tensor | None:
    return None if reductions is None else leading(reductions, dim, n).flatten(0, 1)


# The operators for the compiler and for whoever meets them in a graph: shapes, and the derivative by the same facts.


def _fake_warp(images, matrices, index, reductions, size, channels_last, mode, *_):
    shape, dtype = (matrices.shape[0], images.shape[1], *size), result_dtype(images.dtype, mode)
    return images.new_empty(shape, dtype=dtype).contiguous(memory_format=layout_of(channels_last))


def _fake_jacobian(images, matrices, index, reductions, size, projective, mode, *_):
    shape = (matrices.shape[0], images.shape[1], *size, 9 if projective else 6)
    return images.new_empty(shape, dtype=result_dtype(images.dtype, mode))


def _fake_grad_images(grad, matrices, index, reductions, image_shape, channels_last, *_):
    return grad.new_empty(image_shape).contiguous(memory_format=layout_of(channels_last))


def _fake_grad_matrices(grad, images, matrices, *_):
    return torch.empty_like(matrices, memory_format=torch.contiguous_format)


def _setup_warp(ctx: Any, inputs: tuple, output: Tensor) -> None:
    images, matrices, index, reductions, size, _, *options = inputs
    options = WarpOptions(*options)
    options = options._replace(fill=tuple(options.fill))
    _Warp.setup_context(ctx, (images, matrices, index, reductions, tuple(size), options, "cpu"), output)


def _backward_warp(ctx: Any, grad: Tensor | None) -> tuple:
    image_grad, matrix_grad, *_ = _pull_warp(ctx, grad, _GradImages, _GradMatrices)
    return (image_grad, matrix_grad, *[None] * 9)


torch.library.register_fake("diffcrop::warp", _fake_warp)
torch.library.register_fake("diffcrop::warp_jacobian", _fake_jacobian)
torch.library.register_fake("diffcrop::warp_grad_images", _fake_grad_images)
torch.library.register_fake("diffcrop::warp_grad_matrices", _fake_grad_matrices)
torch.library.register_autograd("diffcrop::warp", _backward_warp, setup_context=_setup_warp)
