"""Errors that the peers' functions share: what the argument is called, what came, and what would be right."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from diffcrop._check import LONGEST, choice, dense, describe, flag, real

__all__ = ["choice", "describe", "flag", "is_int", "last", "number", "size", "tensor"]


def tensor(value: Any, name: str, shape: str, ndim: int) -> Tensor:
    """A tensor with so many dimensions, which ``shape`` names."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor of shape {shape}, got {describe(value)}; convert with torch.as_tensor"
        )
    dense(value, name)
    if value.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    return value


def last(value: Tensor, name: str, shape: str, sizes: tuple[int, ...]) -> None:
    """The trailing dimensions have these sizes."""
    if tuple(value.shape[-len(sizes) :]) != sizes:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")


def is_int(value: Any) -> bool:
    """Whether this is a whole number, by its type."""
    if isinstance(value, (int, torch.SymInt)):
        return not isinstance(value, bool)
    return isinstance(value, numbers.Integral)


def size(value: Any, name: str, words: str, count: int, below: int = LONGEST) -> tuple[int, ...]:
    """So many whole numbers, at least 1; a tensor of them is read."""
    given = value
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
        value = value.tolist()
    if not isinstance(value, (tuple, list)) or not all(map(is_int, value)):
        raise TypeError(f"{name} must be {words}, whole numbers, got {describe(given)}")
    if len(value) != count or min(value) < 1:
        raise ValueError(f"{name} must be {words}, at least 1 each, got {describe(given)}")
    if max(value) >= below:
        raise ValueError(f"{name} must be below 2**{below.bit_length() - 1} each, got {describe(given)}")
    return tuple(value)


def number(value: Any, name: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    if not math.isfinite(real(value)):
        raise ValueError(f"{name} must be finite, got {describe(value)}")
    return float(value)
