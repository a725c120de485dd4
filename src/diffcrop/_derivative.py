"""Derivatives of a function of tensors along a direction and against a cotangent, wherever the call is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._context import in_transform


def source(tensor: Tensor, create_graph: bool) -> Tensor:
    """What to differentiate by; on the graph of ``tensor`` where that is asked for.

    Then a view: other inputs, and what the function holds, may depend on the tensor themselves (the cotangent of a
    second derivative does), and what goes through them is for the caller's graph to count, not for this.
    """
    return tensor.view_as(tensor) if create_graph and tensor.requires_grad else tensor.detach().requires_grad_()


def push(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor, wanted: bool) -> Tensor:
    """The derivative of ``function`` at ``point`` along ``direction``; with a graph where that is ``wanted``."""
    if in_transform() or torch.compiler.is_compiling():
        # Expanded tensors share their memory, which forward mode cannot write to.
        return torch.func.jvp(function, (point.clone(),), (direction.to(point.dtype).clone(),))[1]
    # Eager: the transpose of the transpose. vjp is linear in its cotangent, and its derivative there is the jvp.
    with torch.enable_grad():
        at = source(point, wanted)
        result = function(at)
        if point.shape[0] == 0:
            return torch.zeros_like(result)
        cotangent = torch.zeros_like(result, requires_grad=True)
        (pulled,) = torch.autograd.grad(result, at, cotangent, create_graph=True)
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
        inputs = [source(t, create_graph) for t in inputs]
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
