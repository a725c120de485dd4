"""What surrounds a call: function transforms, compilers, autocast."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
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


def functionalized() -> bool:
    """Whether `torch.func.functionalize` is active, for which no Function has a rule. Not while compiling."""
    return _TransformType.Functionalize in _kinds()


def _kinds() -> list[Any]:
    stack = torch._C._functorch.get_interpreter_stack() or []  # pyright: ignore[reportAttributeAccessIssue]
    return [level.key() for level in stack]


_TransformType = torch._C._functorch.TransformType  # pyright: ignore[reportAttributeAccessIssue]


def is_concrete(*tensors: Tensor) -> bool:
    """Whether values may be looked at: ordinary eager tensors, without a compiler, transform, tracer or fake mode."""
    if torch.compiler.is_compiling() or in_transform() or _traced():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta" for t in tensors)


def _traced() -> bool:
    """Whether `make_fx` records the call (as in `torch.func.linearize`), which hands out ordinary tensors."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def plain(tensor: Tensor) -> Tensor:
    """A tensor that is only tagged by its class (one that leaves PyTorch's own rules alone) without that tag.

    PyTorch refuses to combine tensors of two unrelated classes, as an image and its boxes may well be. The graph is
    kept. Classes with rules of their own keep those.
    """
    kind = type(tensor)
    if kind is Tensor or _rules(kind) != _rules(Tensor):
        return tensor
    return tensor.as_subclass(Tensor)


def _rules(kind: type) -> tuple[Any, Any]:
    return getattr(kind.__torch_function__, "__func__", None), getattr(kind, "__torch_dispatch__", None)


def parts(value: Any) -> Any:
    """A nested tensor as the list of its parts, differentiably; anything else as it is."""
    return list(value.unbind()) if isinstance(value, Tensor) and value.is_nested else value


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


_said: set[str] = set()


def warn_of_reference(without: str, reason: str | None, remedy: str) -> None:
    """Say, the first time in a process, that the reference serves ``without`` what would be faster.

    Blames the line outside this package that led here. Says nothing while compiling, where a warning would break the
    graph.
    """
    if without in _said or torch.compiler.is_compiling():
        return
    _said.add(without)
    warnings.warn(
        "diffcrop runs on its reference implementation, which gives the same results more slowly, because "
        f"{without} {reason}. {remedy}",
        RuntimeWarning,
        stacklevel=_levels_above_package(),
    )


def _levels_above_package() -> int:
    """The stacklevel, for a warning given by the caller, of the first frame outside this package."""
    package = str(Path(__file__).parent)
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        level, frame = level + 1, frame.f_back
    return level
