"""The GPU kernels, in Triton: whether they are there, and the operators on tensors.

Triton is imported at the first crop that needs it, which `import diffcrop` must not wait for. With
``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs the kernels on tensors of the CPU: slowly, to test
them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

_UNKNOWN = object()
_reason: Any = _UNKNOWN


def interpreted() -> bool:
    """Whether Triton's interpreter serves, so that tensors of the CPU are welcome."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def reason() -> str | None:
    """Why the kernels cannot be called, or None if they can."""
    global _reason
    if _reason is _UNKNOWN:
        _reason = _look()
    return _reason


# What `torch.compiler.assume_constant_result` says of a function, without importing the compiler for it: the compiler
# asks once. Otherwise it would guard what it has just changed here, and compile its first graph twice.
reason._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def available() -> bool:
    """Whether the kernels can be called."""
    return reason() is None


def _look() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (PyTorch's builds for GPUs on Linux bring it along)"
    if not interpreted() and not torch.cuda.is_available():
        return (
            "PyTorch sees no GPU (torch.cuda.is_available() is False); with TRITON_INTERPRET=1 in the environment "
            "Triton's interpreter runs them on the CPU, very slowly"
        )
    if not interpreted():
        # Triton compiles a helper of its own the first time, with the system's C compiler, and may find none.
        try:
            importlib.import_module("triton").runtime.driver.active.get_current_device()
        except Exception as error:  # whatever its driver or the compiler raises
            return f"Triton cannot start ({error})"
    return None


def crop(*arguments: Any) -> Tensor:
    """See `launch.crop`."""
    from . import launch

    return launch.crop(*arguments)


def crop_grad_images(*arguments: Any) -> Tensor:
    """See `launch.crop_grad_images`."""
    from . import launch

    return launch.crop_grad_images(*arguments)


def crop_grad_boxes(*arguments: Any) -> Tensor:
    """See `launch.crop_grad_boxes`."""
    from . import launch

    return launch.crop_grad_boxes(*arguments)


def crop_jacobian(*arguments: Any) -> Tensor:
    """See `launch.crop_jacobian`."""
    from . import launch

    return launch.crop_jacobian(*arguments)


def crop_gram(*arguments: Any) -> Tensor:
    """See `launch.crop_gram`."""
    from . import launch

    return launch.crop_gram(*arguments)
