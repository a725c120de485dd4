"""Errors that the peers' functions share: what the argument is called, what came, and what would be right."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def describe(value: Any) -> str:
    """A value as a message shows it: tensors by dtype and shape."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def tensor(value: Any, name: str, shape: str, ndim: int) -> Tensor:
    """A tensor with so many dimensions, which ``shape`` names."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor of shape {shape}, got {describe(value)}; convert with torch.as_tensor"
        )
    if value.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    return value


def last(value: Tensor, name: str, shape: str, sizes: tuple[int, ...]) -> None:
    """The trailing dimensions have these sizes."""
    if tuple(value.shape[-len(sizes) :]) != sizes:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def choice(value: Any, name: str, allowed: Sequence[str]) -> str:
    """One of a few names."""
    listed = ", ".join(repr(a) for a in allowed)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {listed}, got {describe(value)}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")
    return value


def flag(value: Any, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return value


def is_int(value: Any) -> bool:
    """Whether this is a whole number, by its type."""
    if isinstance(value, (int, torch.SymInt)):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)


def size(value: Any, name: str, words: str, count: int) -> tuple[int, ...]:
    """So many whole numbers, at least 1; a tensor of them is read."""
    given = value
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
        value = value.tolist()
    if not isinstance(value, (tuple, list)) or not all(map(is_int, value)):
        raise TypeError(f"{name} must be {words}, whole numbers, got {describe(given)}")
    if len(value) != count or min(value) < 1:
        raise ValueError(f"{name} must be {words}, at least 1 each, got {describe(given)}")
    return tuple(value)


def number(value: Any, name: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not -float("inf") < float(value) < float("inf"):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)
