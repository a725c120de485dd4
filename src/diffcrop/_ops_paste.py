"""The operators of `paste`: schemas, shapes for the compiler, autograd. Nothing here knows how a patch is pasted.

`paste` takes premultiplied patches, with the matte as their last channel where they have one, so that all of alpha's
derivatives are those of a product. `paste_backward` gives the derivatives by patches, boxes and canvases together:
under ``over`` they share what lies between a patch and the result. Its own derivatives and forward mode run through
the reference as plain PyTorch.
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
from torch.autograd import Function, forward_ad

from . import _flops, _ops
from ._autograd import (
    apply,
    batched_index,
    beyond_functions,
    differentiated,
    is_channels_last,
    layout_of,
    leading,
    refuse_older_vmap,
    undifferentiated,
)
from ._context import batched, full_precision, in_transform, is_concrete
from ._derivative import source
from ._impl import pasting
from ._impl.pasting import Rules
from ._options import Options, sum_dtype

_OPTIONS = "bool matte, bool over, str mode, bool antialias, float sigma"
_library = torch.library.Library("diffcrop", "FRAGMENT")
_library.define(
    "paste(Tensor patches, Tensor boxes, Tensor? index, Tensor? canvas, SymInt[] shape, bool masked, "
    f"bool channels_last, {_OPTIONS}) -> (Tensor, Tensor)"
)
_library.define(
    "paste_backward(Tensor? grad, Tensor? grad_mask, Tensor patches, Tensor boxes, Tensor? index, Tensor? canvas, "
    f"SymInt[] shape, bool[] wanted, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
_paste, _paste_backward = torch.ops.diffcrop.paste.default, torch.ops.diffcrop.paste_backward.default


def choose(impl: str | None, patches: Tensor, axes: int) -> str:
    """As `_ops.choose`; there are no kernels for GPUs, nor any for signals and volumes."""
    if impl is None and (patches.device.type != "cpu" or axes != 2):
        return "reference"
    return _ops.choose(impl, patches, axes)


def paste(
    patches: Tensor,
    alpha: Tensor | None,
    boxes: Tensor,
    index: Tensor | None,
    canvas: Tensor | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    over: bool,
    masked: bool,
    options: Options,
    impl: str,
) -> tuple[Tensor, Tensor | None]:
    """The canvases (B, C, *spatial) = ``shape`` in ``dtype`` with ``patches`` (R, C, *sides) on them, and their masks.

    ``boxes`` (R, 2A), pixel xyxy. Patch r goes to canvas ``index[r]``, or ``r // (R / B)`` where index is None.
    Differentiable in patches, alpha, boxes and canvas.
    """
    rules = Rules(alpha is not None, over)
    sums = dtype if rules.moves(options, dtype) else sum_dtype(dtype)
    channels_last = is_channels_last(patches if canvas is None else canvas)
    patches = patches.to(sums)
    if alpha is not None:
        alpha = alpha.to(sums)
        patches = torch.cat([patches * alpha, alpha], 1)
    canvas = None if canvas is None else canvas.to(sums)
    given = patches, boxes, index, canvas, shape, rules, masked, channels_last, options
    result, mask = _dispatch(given, impl)
    result = result.to(dtype)
    if mask is not None and dtype.is_floating_point:
        mask = mask.to(dtype)
    return result, mask


def _dispatch(given: tuple[Any, ...], impl: str) -> tuple[Tensor, Tensor | None]:
    patches, boxes, index, canvas, shape, rules, masked, channels_last, options = given
    tensors = [t for t in (patches, boxes, canvas) if t is not None]
    plainly = impl == "reference" and not is_concrete(*tensors)
    if plainly or beyond_functions() or forward_ad._current_level >= 0:
        onto = patches.new_zeros(shape) if canvas is None else canvas
        result, mask = pasting.paste(patches, boxes, index, onto, rules, masked, options)
        # vmap has no memory formats; there the layout is left to the reference.
        return (result if batched() else result.contiguous(memory_format=layout_of(channels_last))), mask
    run: Any = _Paste.apply if torch.compiler.is_compiling() else functools.partial(apply, _Paste)
    given = (*given, impl)
    result, mask = run(*given) if differentiated(*tensors) else _forward(*given)
    return result, (mask if masked else None)


def _forward(
    patches: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    canvas: Tensor | None,
    shape: Sequence[int],
    rules: Rules,
    masked: bool,
    channels_last: bool,
    options: Options,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if impl == "reference":
        refuse_older_vmap(patches, boxes)
        with torch.no_grad():
            onto = patches.new_zeros(shape) if canvas is None else canvas
            result, mask = pasting.paste(patches, boxes, index, onto, rules, masked, options)
        result = result.contiguous(memory_format=layout_of(channels_last))
        return result, patches.new_empty(0) if mask is None else mask
    if not torch.compiler.is_compiling():
        _flops.ensure()
    given = patches, boxes, index, canvas, shape, masked, channels_last, *rules, *_kernel_options(options)
    return undifferentiated(_paste, *given)


def _kernel_options(options: Options) -> tuple[str, bool, float]:
    return options.mode, options.antialias, options.parameter


class _Paste(Function):
    """`paste` with its derivatives."""

    @staticmethod
    def forward(patches, boxes, index, canvas, shape, rules, masked, channels_last, options, impl):
        return _forward(patches, boxes, index, canvas, shape, rules, masked, channels_last, options, impl)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        patches, boxes, index, canvas, ctx.shape, ctx.rules, ctx.masked, _, ctx.options, ctx.impl = inputs
        ctx.save_for_backward(patches, boxes, index, canvas)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_mask: Tensor | None) -> tuple:
        return _pull(ctx, grad, grad_mask)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, patches, boxes, index, canvas, shape, rules, masked, channels_last, *rest):
        options, impl = rest
        n = info.batch_size
        tensors = _side_by_side(n, in_dims, patches, boxes, index, canvas, shape)
        shapes = (n * shape[0], *shape[1:])
        result, mask = _dispatch((*tensors, shapes, rules, masked, channels_last, options), impl)
        apart = (n, shape[0])
        if mask is None:
            return (result.unflatten(0, apart), patches.new_empty(0)), (0, None)
        return (result.unflatten(0, apart), mask.unflatten(0, apart)), (0, 0)


def _side_by_side(
    n: int, in_dims: tuple, patches: Tensor, boxes: Tensor, index: Tensor | None, canvas: Tensor | None, shape: tuple
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The tensors of n calls as those of one; without an index patches keep to their canvases as they are."""
    rows = boxes.shape[0] if in_dims[1] is None else boxes.movedim(in_dims[1], 0).shape[1]
    if index is not None:
        index = batched_index(n, shape[0], rows, index, in_dims[2], False, boxes.device)
    canvas = None if canvas is None else leading(canvas, in_dims[3], n).flatten(0, 1)
    return leading(patches, in_dims[0], n).flatten(0, 1), leading(boxes, in_dims[1], n).flatten(0, 1), index, canvas


def _pull(ctx: Any, grad: Tensor | None, grad_mask: Tensor | None) -> tuple:
    grad_mask = grad_mask if ctx.masked else None
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    if (grad is None and grad_mask is None) or not any(wanted):
        return (None,) * 10
    tensors = grad, grad_mask, *ctx.saved_tensors
    given = (*tensors, ctx.shape, wanted, ctx.rules, ctx.options, ctx.impl)
    run = _Backward.apply if torch.compiler.is_compiling() else functools.partial(apply, _Backward)
    by_patches, by_boxes, by_canvas = run(*given)
    return (
        by_patches if wanted[0] else None,
        by_boxes if wanted[1] else None,
        None,
        by_canvas if wanted[2] else None,
        *[None] * 6,
    )


class _Backward(Function):
    """The derivatives of `paste` against cotangents; their own run through the reference."""

    @staticmethod
    def forward(grad, grad_mask, patches, boxes, index, canvas, shape, wanted, rules, options, impl):
        if impl == "reference":
            return _first(grad, grad_mask, patches, boxes, index, canvas, shape, wanted, rules, options)
        given = grad, grad_mask, patches, boxes, index, canvas, shape, list(wanted), *rules, *_kernel_options(options)
        return _paste_backward(*given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        grad, grad_mask, patches, boxes, index, canvas, ctx.shape, ctx.wanted, ctx.rules, ctx.options, _ = inputs
        ctx.save_for_backward(grad, grad_mask, patches, boxes, index, canvas)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        second = _second_in_transform if in_transform() else _second
        with full_precision(ctx.saved_tensors[2]):
            return (*second(ctx.saved_tensors, cotangents, ctx), *[None] * 5)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, grad, grad_mask, patches, boxes, index, canvas, shape, wanted, *rest):
        n = info.batch_size
        tensors = _side_by_side(n, in_dims[2:6], patches, boxes, index, canvas, shape)
        pairs = zip((grad, grad_mask), in_dims[:2], strict=True)
        grads = [None if g is None else leading(g, dim, n).flatten(0, 1) for g, dim in pairs]
        result = _Backward.apply(*grads, *tensors, (n * shape[0], *shape[1:]), wanted, *rest)
        rows = patches.shape[0] if in_dims[2] is None else patches.movedim(in_dims[2], 0).shape[1]
        apart = rows, rows, shape[0]
        found = [t.unflatten(0, (n, k)) if want else t for t, k, want in zip(result, apart, wanted, strict=True)]
        return tuple(found), tuple(0 if want else None for want in wanted)


def _first(grad, grad_mask, patches, boxes, index, canvas, shape, wanted, rules, options):
    """The derivatives by patches, boxes and canvases, by the reference; empty where they are not wanted."""
    refuse_older_vmap(*[t for t in (grad, grad_mask, patches, boxes, canvas) if t is not None])
    with full_precision(patches), torch.enable_grad():
        given = patches, boxes, patches.new_zeros(tuple(shape)) if canvas is None else canvas
        sources = [t.detach().requires_grad_(want) for t, want in zip(given, wanted, strict=True)]
        masked = grad_mask is not None
        outputs = pasting.paste(sources[0], sources[1], index, sources[2], rules, masked, options)
        pairs = [
            (o, g)
            for o, g in zip(outputs, (grad, grad_mask), strict=True)
            if o is not None and g is not None and o.requires_grad
        ]
        grads = torch.autograd.grad(
            [o for o, _ in pairs],
            [t for t in sources if t.requires_grad],
            [g for _, g in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    # Where no patch touches the canvas its derivative is the cotangent itself, which is saved: a Function must not
    # return that.
    grads = [g.clone() if any(g is given for given in (grad, grad_mask)) else g for g in grads]
    left = iter(grads)
    return tuple(next(left) if want else t.new_empty(0) for t, want in zip(given, wanted, strict=True))


def _second(tensors: tuple, cotangents: tuple, ctx: Any) -> list[Tensor | None]:
    """The derivative of ``phi = <cotangents, derivatives of paste against grad and grad_mask>``, by the reference.

    By grad, grad_mask, patches, boxes, index (None) and canvas.
    """
    _, grad_mask, patches, _, index, canvas = tensors
    refuse_older_vmap(*[t for t in (*tensors, *cotangents) if t is not None])
    needed = [i for i in (0, 1, 2, 3, 5) if ctx.needs_input_grad[i]]
    result: list[Tensor | None] = [None] * 6
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        sources = {i: source(t, again) for i, t in enumerate(tensors) if t is not None and i != 4}
        onto = sources[5] if canvas is not None else patches.new_zeros(ctx.shape)
        masked = grad_mask is not None
        outputs = pasting.paste(sources[2], sources[3], index, onto, ctx.rules, masked, ctx.options)
        pairs = [(o, sources[i]) for i, o in enumerate(outputs) if o is not None and o.requires_grad and i in sources]
        inner = [(i, c) for i, c in _given(cotangents, ctx) if i in sources]
        if not pairs or not inner or not needed:
            return result
        first = torch.autograd.grad(
            [o for o, _ in pairs],
            [sources[i] for i, _ in inner],
            [g for _, g in pairs],
            create_graph=True,
            materialize_grads=True,
        )
        phi = [(f, c) for f, (_, c) in zip(first, inner, strict=True) if f.requires_grad]
        if not phi:
            return result
        parts = torch.autograd.grad(
            [f for f, _ in phi],
            [sources[i] for i in needed],
            [c.to(f.dtype) for f, c in phi],
            create_graph=again,
            allow_unused=True,
        )
    for i, part in zip(needed, parts, strict=True):
        result[i] = part
    return result


def _given(cotangents: tuple, ctx: Any) -> list[tuple[int, Tensor]]:
    """The cotangents that there are, each with the place of what it belongs to among the saved tensors."""
    found = zip((2, 3, 5), cotangents, ctx.wanted, strict=True)
    return [(i, c) for i, c, wanted in found if wanted and c is not None]


def _second_in_transform(tensors: tuple, cotangents: tuple, ctx: Any) -> list[Tensor | None]:
    """`_second` as a function of its tensors."""
    index = tensors[4]
    result: list[Tensor | None] = [None] * 6
    inner, there = _given(cotangents, ctx), [i for i in (0, 1, 2, 3, 5) if tensors[i] is not None]
    if not inner:
        return result

    def first(*given: Tensor) -> tuple[Tensor, ...]:
        at = dict(zip(there, given, strict=True))
        onto = at[5] if 5 in at else at[2].new_zeros(ctx.shape)

        def values(*sources: Tensor) -> tuple[Tensor, ...]:
            outputs = pasting.paste(sources[0], sources[1], index, sources[2], ctx.rules, 1 in at, ctx.options)
            return tuple(o for i, o in enumerate(outputs) if o is not None and i in at)

        _, pull = torch.func.vjp(values, at[2], at[3], onto)  # pyright: ignore[reportAssignmentType]
        grads: dict[int, Tensor] = dict(zip((2, 3, 5), pull(tuple(at[i] for i in (0, 1) if i in at)), strict=True))
        return tuple(grads[i] for i, _ in inner)

    found, pull = torch.func.vjp(first, *[tensors[i] for i in there])  # pyright: ignore[reportAssignmentType]
    for i, part in zip(there, pull(tuple(c.to(f.dtype) for f, (_, c) in zip(found, inner, strict=True))), strict=True):
        result[i] = part
    return result


# The operators for the compiler and for whoever meets them in a graph: shapes, and the derivative.


def _fake_paste(patches, boxes, index, canvas, shape, masked, channels_last, *_):
    result = patches.new_empty(shape).contiguous(memory_format=layout_of(channels_last))
    floating = patches.dtype if patches.is_floating_point() else torch.float32
    return result, patches.new_empty((shape[0], 1, *shape[2:]) if masked else (0,), dtype=floating)


def _fake_backward(grad, grad_mask, patches, boxes, index, canvas, shape, wanted, *_):
    def made(tensor, shape, want):
        return tensor.new_empty(shape if want else (0,))

    by_patches, by_boxes = made(patches, patches.shape, wanted[0]), made(boxes, boxes.shape, wanted[1])
    return by_patches, by_boxes, made(patches, shape, wanted[2])


def _setup_paste(ctx: Any, inputs: tuple, output: tuple) -> None:
    patches, boxes, index, canvas, shape, masked, channels_last, matte, over, mode, antialias, sigma = inputs
    options = Options(mode, antialias, "zeros", (0.0,), sigma)
    given = patches, boxes, index, canvas, tuple(shape), Rules(matte, over), masked, channels_last, options, "cpu"
    _Paste.setup_context(ctx, given, output)


def _backward_paste(ctx: Any, grad: Tensor | None, grad_mask: Tensor | None) -> tuple:
    return (*_pull(ctx, grad, grad_mask)[:4], *[None] * 8)


torch.library.register_fake("diffcrop::paste", _fake_paste)
torch.library.register_fake("diffcrop::paste_backward", _fake_backward)
torch.library.register_autograd("diffcrop::paste", _backward_paste, setup_context=_setup_paste)

_flops.ensure()
