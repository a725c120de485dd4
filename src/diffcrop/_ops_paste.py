"""The operators of `paste`: schemas, shapes for the compiler, autograd. Nothing here knows how a patch is pasted.

`paste` takes premultiplied patches, with the matte as their last channel where they have one, so that all of alpha's
derivatives are those of a product. `paste_backward` gives the derivatives by patches, boxes and canvases together:
under ``over`` they share what lies between a patch and the result. Its own derivatives, forward mode and transforms
run through the reference as plain PyTorch.
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

from . import _ops
from ._autograd import apply, differentiated, is_channels_last, layout_of, refuse_older_vmap, undifferentiated
from ._context import full_precision, in_transform, is_concrete
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
    if plainly or in_transform() or forward_ad._current_level >= 0:
        onto = patches.new_zeros(shape) if canvas is None else canvas
        result, mask = pasting.paste(patches, boxes, index, onto, rules, masked, options)
        return (result if in_transform() else result.contiguous(memory_format=layout_of(channels_last))), mask
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
        with full_precision(ctx.saved_tensors[2]):
            return (*_second(ctx.saved_tensors, cotangents, ctx), *[None] * 5)


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
        sources = {
            i: t if again and t.requires_grad else t.detach().requires_grad_()
            for i, t in enumerate(tensors)
            if t is not None and i != 4
        }
        onto = sources[5] if canvas is not None else patches.new_zeros(ctx.shape)
        masked = grad_mask is not None
        outputs = pasting.paste(sources[2], sources[3], index, onto, ctx.rules, masked, ctx.options)
        pairs = [(o, sources[i]) for i, o in enumerate(outputs) if o is not None and i in sources]
        inner = [(i, c) for i, c in zip((2, 3, 5), cotangents, strict=True) if c is not None and i in sources]
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
