"""Derivatives of a function of tensors along a direction and against a cotangent, wherever the call is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._context import in_transform


def push(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor, wanted: bool) -> Tensor:
    """The derivative of ``function`` at ``point`` along ``direction``; with a graph where that is ``wanted``."""
    if in_transform() or torch.compiler.is_compiling():
        # Expanded tensors share their memory, which forward mode cannot write to.
        return torch.func.jvp(function, (point.clone(),), (direction.to(point.dtype).clone(),))[1]
    # Eager: the transpose of the transpose. vjp is linear in its cotangent, and its derivative there is the jvp.
    with torch.enable_grad():
        source = point if wanted and point.requires_grad else point.detach().requires_grad_()
        result = function(source)
        if point.shape[0] == 0:
            return torch.zeros_like(result)
        cotangent = torch.zeros_like(result, requires_grad=True)
        (pulled,) = torch.autograd.grad(result, source, cotangent, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, cotangent, direction.to(pulled.dtype), create_graph=wanted)
    return pushed


def pull(
    function: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor, create_graph: bool
) -> tuple[Tensor, Sequence[Tensor]]:
    """The value and the cotangents of the inputs, in a transform, in eager mode, and with a graph where asked."""
    if in_transform():
        result, vjp = torch.func.vjp(function, *inputs)  # pyright: ignore[reportAssignmentType]
        return result, vjp(cotangent.to(result.dtype))
    with torch.enable_grad():
        inputs = [t if create_graph and t.requires_grad else t.detach().requires_grad_() for t in inputs]
        result = function(*inputs)
        if not result.requires_grad:
            if result.numel() == 0:
                return result, [torch.zeros_like(t) for t in inputs]
            raise RuntimeError(
                "a second derivative by the box cannot be batched by is_grads_batched=True or vectorize=True; "
                "use torch.func.hessian or torch.func.jacrev, or one cotangent at a time"
            )
        grads = torch.autograd.grad(
            result, inputs, cotangent.to(result.dtype), create_graph=create_graph, materialize_grads=True
        )
    return (result if create_graph else result.detach()), grads
