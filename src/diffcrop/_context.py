"""What surrounds a call: function transforms, compilers, autocast."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def in_transform() -> bool:
    """Whether a ``torch.func`` transform is active; also known while compiling."""
    # Of all ways to ask, the one that the compiler answers rightly (it leaves a dead node in its graph).
    return torch._C._are_functorch_transforms_active()


def jvp_levels() -> int:
    """How many forward-mode transforms are active, one inside the other. Not while compiling."""
    return _kinds().count(_TransformType.Jvp)


def batched() -> bool:
    """Whether `vmap` is active, or may be where it cannot be asked."""
    return in_transform() and (torch.compiler.is_compiling() or _TransformType.Vmap in _kinds())


def _kinds() -> list[Any]:
    stack = torch._C._functorch.get_interpreter_stack() or []  # pyright: ignore[reportAttributeAccessIssue]
    return [level.key() for level in stack]


_TransformType = torch._C._functorch.TransformType  # pyright: ignore[reportAttributeAccessIssue]


def is_concrete(*tensors: Tensor) -> bool:
    """Whether values may be looked at: ordinary eager tensors, not under a compiler, a transform or a fake mode."""
    if torch.compiler.is_compiling() or in_transform():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta" for t in tensors)


def is_sharded(value: Any) -> bool:
    """Whether this is a DTensor, told without importing torch.distributed."""
    if type(value) in (Tensor, torch.nn.Parameter):
        return False
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast, which would round contractions and refuse to stack some dtypes."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function of tensors, its first argument one of them, in `full_precision`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with full_precision(cast(Tensor, args[0])):
            return function(*args, **kwargs)

    return wrapped
