"""The errors of `paste`; what it shares with `crop` is in `_check_crop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import _check, _check_crop
from ._context import is_sharded

BLENDS = ("over", "add")
_BLEND_HINTS = {
    **dict.fromkeys(("alpha", "normal", "compose", "replace", "source-over"), "over"),
    **dict.fromkeys(("sum", "plus", "additive", "lighter"), "add"),
}

# What five numbers may be, of a list of boxes and of one tensor.
TURNED = "rotated boxes (cx, cy, w, h, angle) are pasted by warp, as docs/paste.md shows"
FIVE = (
    "a leading batch-index column goes into batch_index: pass boxes[:, 1:] and batch_index=boxes[:, 0].long(); "
    + TURNED
)


def patches(value: Any, axes: int) -> Tensor:
    """(C, *sides), (K, C, *sides) or (B, K, C, *sides)."""
    sides = {1: "w", 2: "h, w", 3: "d, h, w"}[axes]
    if isinstance(value, (list, tuple)):
        raise TypeError(
            f"patches must be a tensor, got {_check.describe(value)}; stack patches of one size with torch.stack, and "
            "paste those of another size in a second call, onto the result of the first"
        )
    if isinstance(value, Tensor):
        _check.dense(value, "patches")
    if isinstance(value, Tensor) and value.ndim == axes + 3:
        return _check_crop.image(value.flatten(0, 1), axes, "patches").unflatten(0, value.shape[:2])
    try:
        return _check_crop.image(value, axes, "patches")
    except ValueError as error:
        if isinstance(value, Tensor) and not axes + 1 <= value.ndim <= axes + 3:
            raise ValueError(
                f"patches must have shape (C, {sides}), (K, C, {sides}) or (B, K, C, {sides}) where the boxes have "
                f"{2 * axes} numbers, got {_check.describe(value)}"
            ) from error
        raise


def alpha(value: Any, patches: Tensor, axes: int) -> Tensor:
    """Like the patches, with one channel; no integers, of which nobody knows what is wholly opaque."""
    shape = (*patches.shape[: -axes - 1], 1, *patches.shape[-axes:])
    if not isinstance(value, Tensor):
        raise TypeError(
            f"alpha must be a tensor of shape {shape}, got {_check.describe(value)}; {_check.conversion(value)}"
        )
    if not value.is_floating_point() and value.dtype != torch.bool:
        raise TypeError(
            f"alpha must be floating-point, from 0 to 1, or bool, got {_check.describe(value)}; "
            "of 8 bits pass alpha / 255, of zeros and ones alpha.bool()"
        )
    _check.dense(value, "alpha")
    if tuple(value.shape) != shape:
        hint = ""
        if tuple(value.shape) == (*shape[: -axes - 1], *shape[-axes:]):
            hint = f"; add the channel: alpha.unsqueeze(-{axes + 1})"
        raise ValueError(
            f"alpha must have the patches' shape with one channel, {shape}, got {_check.describe(value)}{hint}"
        )
    return value


def places(value: Any, given: Tensor, axes: int, count: int | None) -> int | None:
    """Shapes of patches and boxes without batch_index for one canvas (``count`` None) or ``count`` of them.

    Returns the number of canvases.
    """
    last, leading = 2 * axes, tuple(given.shape[: -axes - 1])
    shape = tuple(value.shape)
    if count is None and len(leading) == 2:
        count = leading[0]
    if count is None:
        if value.ndim > 2 or leading != shape[:-1]:
            raise ValueError(
                f"onto one canvas go patches (C, ...) at boxes ({last},) or (K, C, ...) at (K, {last}), "
                f"got {tuple(given.shape)} and {shape}; for several canvases pass them, or batch_size"
            )
        return None
    allowed = [(count,)] if value.ndim <= 2 else [(count, shape[1])]
    if value.ndim > 3 or leading not in allowed or (value.ndim > 1 and shape[0] != count):
        raise ValueError(
            f"onto B = {count} canvases go patches (B, C, ...) at boxes ({last},) or (B, {last}), or (B, K, C, ...) at "
            f"(B, K, {last}), got {tuple(given.shape)} and {shape}; patches that name their canvas take batch_index"
        )
    return count


def rows(given: Tensor, count: int, axes: int, what: str) -> None:
    """Patches (R, C, *sides), one for each of R boxes."""
    if given.ndim != axes + 2 or given.shape[0] != count:
        raise ValueError(
            f"patches must have one for each of the {count} boxes, as {what} says, ({count}, C, ...), "
            f"got shape {tuple(given.shape)}"
        )


def canvas(value: Any, given: Tensor, axes: int, name: str = "canvas", batched: bool | None = None) -> Tensor:
    """(C, *spatial) or (B, C, *spatial), with the patches' channels; ``batched`` False admits the former only."""
    _check_crop.image(value, axes, name, batched)
    mine, theirs = value.shape[-axes - 1], given.shape[-axes - 1]
    if mine != theirs:
        raise ValueError(f"{name} and patches must have as many channels, got {mine} and {theirs}")
    return value


def canvas_list(value: Sequence[Any], given: Tensor, axes: int) -> list[Tensor]:
    """B canvases (C, *spatial) of their own sizes, with the patches' channels."""
    if not value:
        raise ValueError("canvas must not be an empty list: there is nothing to paste onto")
    return [canvas(t, given, axes, f"canvas[{i}]", False) for i, t in enumerate(value)]


def size(value: Any, axes: int, onto: Tensor | None) -> tuple[int, ...]:
    """Of the canvas; needed where there is none, and otherwise the canvas's own."""
    if onto is None:
        if value is None:
            raise ValueError(
                "size is needed where no canvas is given: the (h, w) of the canvas of zeros that is made, got None"
            )
        return _check.size(value, axes, hint=_ONTO)
    shape = tuple(onto.shape[-axes:])
    if value is not None and _check.size(value, axes, hint=_ONTO) != shape:
        raise ValueError(f"size must be that of the canvas, {shape}, or left out, got {_check.describe(value)}")
    return shape


_ONTO = "what to paste onto is canvas=, and has its own size"


def batch_size(value: Any, onto: Any, count: int | None) -> int | None:
    """How many canvases there are: ``count`` of those given, or the number asked for."""
    if value is None:
        return count
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"batch_size must be an int, the number of canvases, got {_check.describe(value)}")
    if value < 0:
        raise ValueError(f"batch_size must not be negative, got {_check.describe(value)}")
    if isinstance(value, int) and value >= _check.LONGEST:
        raise ValueError(f"batch_size must be below 2**31, got {_check.describe(value)}")
    if onto is not None and value != count:
        have = "one canvas without a batch dimension" if count is None else f"{count} canvases"
        raise ValueError(f"batch_size says how many canvases to make, got {value} with {have}; leave it out")
    return cast(int, value)


def blend(value: Any) -> str:
    """How a patch and what is below it become one."""
    return _check.choice(value, "blend", BLENDS, _BLEND_HINTS)


def return_mask(value: Any) -> None:
    """A plain bool."""
    _check.flag(value, "return_mask")


def same(given: Tensor, **others: Tensor | None) -> None:
    """One device; and one floating dtype, with integers beside it."""
    tensors: dict[str, Tensor] = {"patches": given, **{name: t for name, t in others.items() if t is not None}}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            raise TypeError(f"paste takes plain tensors, got a DTensor of {name}; pass {name}.to_local()")
        if tensor.device != given.device:
            raise ValueError(
                f"patches and {name} must be on the same device, got {given.device} and {tensor.device}; "
                f"move one with {name}.to({str(given.device)!r})"
            )
    pixels = {name: t for name, t in tensors.items() if name.partition("[")[0] in _PIXELS}
    floating = {name: t.dtype for name, t in pixels.items() if t.is_floating_point()}
    for name, dtype in floating.items():
        first = next(iter(floating))
        if dtype != floating[first]:
            raise ValueError(
                f"{first} and {name} must agree in dtype where both are floating-point, got {floating[first]} and "
                f"{dtype}; convert one with {name}.to({floating[first]})"
            )


_PIXELS = ("patches", "canvas", "alpha")


def available(value: Any, given: Tensor, axes: int, implementations: dict[str, str | None]) -> None:
    """An implementation other than Triton's, which does not paste."""
    mine = {name: reason for name, reason in implementations.items() if name != "triton"}
    _check_crop.impl(value, given, axes, mine, False, "patches")


def implementation(value: Any, axes: int) -> None:
    """Triton has no kernels for this, and the compiled ones are for images."""
    if isinstance(value, str) and value == "triton":
        raise ValueError("impl='triton' does not paste; leave impl=None, which on a GPU takes the reference")
    _check_crop.kernels_of_images(value, axes)
