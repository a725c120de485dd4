"""What `fit_boxes` is given: checked, and brought to one form."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _bounding
from diffcrop._check import LONGEST, describe, real, real_tensor

__all__ = ["Problem", "check_images", "check_optimizer", "count", "make_optimizer", "number", "pose"]


@dataclass(frozen=True)
class Problem:
    """What to begin with: pixel ``xyxy`` boxes (K, 4), float64 on the CPU, and how the user writes boxes."""

    boxes: Tensor
    leading: tuple[int, ...]
    image_size: tuple[int, int]
    # Which image each box reads, or None if there is only one.
    owner: Tensor | None
    convention: dict[str, Any]
    constraints: dict[str, Any]
    dtype: torch.dtype
    device: torch.device

    def report(self, boxes: Tensor) -> Tensor:
        """Pixel boxes (*any, K, 4) as the user writes them, (*any, *leading, 4)."""
        boxes = diffcrop.convert_boxes(
            boxes.detach(),
            self.image_size,
            to_format=self.convention["box_format"],
            to_coords=self.convention["coords"],
            align_corners=self.convention["align_corners"],
        )
        return boxes.to(self.dtype).reshape(*boxes.shape[:-2], *self.leading, 4)

    def shaped(self, values: Tensor) -> Tensor:
        """(*any, K) as (*any, *leading)."""
        return values.reshape((*values.shape[:-1], *self.leading))


def check_images(images: Any, size: Any, options: dict[str, Any], convention: dict[str, Any]) -> None:
    """Crop nothing (no boxes) for the sake of the checks that `diffcrop.crop` makes."""
    if isinstance(images, (list, tuple)):
        raise TypeError(
            "images must be a tensor, (C, H, W) or (B, C, H, W), got a list; images of different sizes are fitted one "
            "by one, others go into torch.stack(images)"
        )
    if isinstance(options["mode"], str) and options["mode"] == "nearest":
        raise ValueError("mode='nearest' has no derivative by the box; choose another mode")
    if isinstance(images, Tensor) and images.device.type == "meta":
        raise ValueError(f"images must have pixels, got {describe(images)} on the device meta")
    device = images.device if isinstance(images, Tensor) else None
    single = not isinstance(images, Tensor) or images.ndim != 4
    none = torch.zeros((0, 4) if single else (len(images), 0, 4), dtype=torch.float32, device=device)
    if isinstance(images, Tensor) and images.ndim and not len(images):
        raise ValueError(f"images must hold at least one, got shape {tuple(images.shape)}")
    diffcrop.crop(images, none, size, **options, box_format=convention["box_format"], coords=convention["coords"])


def check_optimizer(optimizer: Any) -> None:
    """What `make_optimizer` can make one of."""
    if isinstance(optimizer, str):
        if optimizer != "adam":
            raise ValueError(f"optimizer must be 'adam', a class or a function of the parameters, got {optimizer!r}")
    elif isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be 'adam', a class or a function of the parameters, got one that is made already; "
            f"pass lambda params: {type(optimizer).__name__}(params, ...)"
        )
    elif not callable(optimizer):
        raise TypeError(f"optimizer must be 'adam', a class or a function of the parameters, got {describe(optimizer)}")


def pose(images: Tensor, init: Any, convention: dict[str, Any], constraints: dict[str, Any]) -> Problem:
    """Bring ``init`` to pixel boxes, after all checks that `LearnableBox` makes."""
    if _bounding.is_bounding(init):
        init = _untagged(init, images.shape[-2:], convention)
    if isinstance(init, Tensor):
        real_tensor(init, "init")
        if init.device.type == "meta":
            raise ValueError(f"init must have values, got {describe(init)} on the device meta")
    given = init
    if init is not None and not isinstance(init, Tensor):
        try:
            given = torch.tensor(init, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"init must be a tensor, nested lists of numbers or None, got {describe(init)}") from error
    batch = (len(images),) if images.ndim == 4 else ()
    if given is not None:
        shape = tuple(given.shape)
        wanted = [(4,), (*batch, 4), (*batch, "K", 4)] if batch else [(4,), ("K", 4)]
        fits = shape == (4,) or (
            shape[-1:] == (4,) and shape[: len(batch)] == batch and len(shape) in (len(batch) + 1, len(batch) + 2)
        )
        if not fits or 0 in shape:
            texts = " or ".join(
                f"({', '.join(map(str, w))}{',' if len(w) == 1 else ''})" for w in dict.fromkeys(wanted)
            )
            raise ValueError(f"init must have shape {texts} for images of shape {tuple(images.shape)}, got {shape}")
        given = given.detach().to("cpu", torch.float64)
    start = diffcrop.nn.LearnableBox(
        images.shape[-2:],
        init=None if given is None else given.reshape(-1, 4) if given.ndim > 1 else given,
        dtype=torch.float64,
        device="cpu",
        **convention,
        **constraints,
    )
    if given is None:
        leading = batch
        with torch.no_grad():
            given = start()
    else:
        leading = batch if given.ndim == 1 else tuple(given.shape[:-1])
    pixels = diffcrop.convert_boxes(
        given.clone(),
        images.shape[-2:],
        from_format=convention["box_format"],
        from_coords=convention["coords"],
        align_corners=convention["align_corners"],
    )
    count = math.prod(leading)
    owner = None
    if batch:
        owner = torch.arange(batch[0], device=images.device).repeat_interleave(count // batch[0] if batch[0] else 0)
    dtype = torch.get_default_dtype()
    if isinstance(init, Tensor) and init.is_floating_point():
        dtype = init.dtype
    return Problem(
        boxes=pixels.reshape(-1, 4).expand(count, 4),
        leading=leading,
        image_size=(images.shape[-2], images.shape[-1]),
        owner=owner,
        convention=convention,
        constraints=constraints,
        dtype=torch.float64 if dtype == torch.float64 and images.device.type != "mps" else torch.float32,
        device=images.device,
    )


def _untagged(init: Any, size: Sequence[int], convention: dict[str, Any]) -> Tensor:
    """Starts that say their own format as the caller writes boxes."""
    given, box_format, canvases = _bounding.read(init, convention["box_format"], convention["coords"], "init")
    _bounding.fits(canvases, [size], "images", "init")
    return diffcrop.convert_boxes(given, from_format=box_format, to_format=convention["box_format"])


def count(value: Any, name: str) -> int:
    """A whole number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {describe(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {describe(value)}")
    if int(value) >= LONGEST:
        raise ValueError(f"{name} must be below 2**31, got {describe(value)}")
    return int(value)


def number(value: Any, name: str, *, positive: bool = False, signed: bool = False) -> float:
    """A finite number, at least 0; above it where ``positive``, of either sign where ``signed``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    value = real(value)
    if signed:
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value:g}")
    elif not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be finite and {'above 0' if positive else 'at least 0'}, got {value:g}")
    return value


def make_optimizer(
    optimizer: Any, raw: torch.nn.Parameter, learning_rate: float
) -> tuple[torch.optim.Optimizer, list[Any]]:
    """The optimiser of a stage, and the learning rates of its groups."""
    if optimizer == "adam":
        optimizer = torch.optim.Adam
    if isinstance(optimizer, type):
        made = optimizer([raw], lr=learning_rate)
    else:
        made = optimizer([raw])
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, got {describe(made)}")
    if not any(p is raw for group in made.param_groups for p in group["params"]):
        raise ValueError("optimizer must be given the parameters that it is called with, got one that holds others")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"optimizer must take steps without a closure, which {type(made).__name__} needs")
    return made, [group["lr"] for group in made.param_groups]
