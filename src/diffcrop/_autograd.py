"""What the `autograd.Function`s of all operators share: how they are applied, batched, and where they may not serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ._context import functionalized, in_transform, jvp_levels

_KERNEL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8)


def is_channels_last(images: Tensor) -> bool:
    """Whether channels are the innermost dimension, also in a slice; with one channel there is nothing to tell."""
    return images.dim() in (4, 5) and images.shape[1] > 1 and images.stride(1) == 1 and images.stride(-1) != 1


def beyond_functions() -> bool:
    """Where PyTorch would drop derivatives of an `autograd.Function` without a word, so that plain PyTorch must serve.

    These are transforms under the compiler and forward mode over forward mode; derivatives of higher order run through
    the reference anyway. `functionalize` refuses Functions.
    """
    if torch.compiler.is_compiling():
        return in_transform() or forward_ad._current_level >= 0
    return in_transform() and (jvp_levels() > 1 or functionalized())


def differentiated(*tensors: Tensor) -> bool:
    """Whether a derivative of any kind may be asked for: by a graph, a transform, or forward mode."""
    if in_transform() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def apply(function: type[Function], *args: Any) -> Any:
    """``function.apply`` in eager mode, and its ``forward`` alone where nothing is differentiated.

    Where no transform is active, ``apply`` only adds an inspection of signatures, which takes longer than a small crop.
    """
    if in_transform() or torch.compiler.is_compiling():
        return function.apply(*args)
    if not torch.is_grad_enabled() and forward_ad._current_level < 0:
        return function.forward(*args)
    return super(Function, function).apply(*args)  # pyright: ignore[reportAttributeAccessIssue]


def undifferentiated(operator: Any, *arguments: Any) -> Any:
    """What an operator gives where no derivative is asked of this call itself.

    What its derivative is registered for (graphs that hold it) is not needed in eager mode, and slow.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def refuse_older_vmap(*tensors: Tensor) -> None:
    """The vmap of is_grads_batched and vectorize has rules for operators, but few for the reference's plain PyTorch."""
    legacy = torch._C._functorch.is_legacy_batchedtensor  # pyright: ignore[reportAttributeAccessIssue]
    if any(map(legacy, tensors)):
        raise RuntimeError(
            "impl='reference' cannot be batched by is_grads_batched=True or vectorize=True; "
            "use torch.func.jacrev or torch.func.hessian, or one cotangent at a time"
        )


def layout_of(channels_last: bool, dims: int = 4) -> torch.memory_format:
    """Of tensors with ``dims`` dimensions, batch and channels among them."""
    if not channels_last:
        return torch.contiguous_format
    return torch.channels_last_3d if dims == 5 else torch.channels_last


def readable(images: Tensor, mode: str) -> Tensor:
    """The kernels read uint8 as it is; rarer integers are converted first, but nearest only moves them."""
    return images if images.dtype in _KERNEL_DTYPES or mode == "nearest" else images.to(torch.float32)


def added(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of those that are there, or None."""
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else None


def leading(tensor: Tensor, dim: int | None, n: int) -> Tensor:
    """The batched dimension in front; a tensor without one is repeated."""
    return tensor.movedim(dim, 0) if dim is not None else tensor.unsqueeze(0).expand(n, *tensor.shape)


def batched_index(
    n: int, count: int, rows: int, index: Tensor | None, dim: int | None, shared: bool, device: torch.device
) -> Tensor | None:
    """Which of the images each of n * rows boxes reads: all the same ``count`` where shared, else n * count."""
    if index is None:
        if not shared or count == 1:
            return None
        return (torch.arange(rows, device=device) // max(rows // max(count, 1), 1)).repeat(n)
    index = leading(index, dim, n)
    if not shared:
        known = (index >= 0) & (index < count)
        index = torch.where(known, index + count * torch.arange(n, device=device)[:, None], -1)
    return index.reshape(-1)
