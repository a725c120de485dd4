"""Nothing is counted before what is run is right: samplers, derivatives and targets against the reference in float64.

Whether a method finds boxes says nothing if it crops elsewhere than it says, or if the target was cut from elsewhere.
Each is compared at the first and the last true box of a photograph, with the very tensors that are then used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import diffcrop

from .methods import Method
from .problems import MODE_OF, Problems, cropped

# Pillow rounds to 8 bits after each of its two passes; the second adds up to 1.4 of the first one's half levels.
_LEVELS = 1.5 / 255
# Of the largest derivative there is, in float32.
_JACOBIAN_TOLERANCE = 1e-5
# Our own target in float32.
_TARGET_TOLERANCE = 2e-6


@dataclass(frozen=True)
class Verdict:
    green: bool
    said: str


def check(method: Method, problems: Problems, target: str, size: int) -> Verdict:
    """The method's sampler, and its derivatives where it uses them, and the target, at true boxes."""
    photograph = problems.photograph
    boxes = problems.truth[sorted({0, len(problems.truth) - 1})]
    want = diffcrop.crop(photograph.pixels.double(), boxes.double(), size, **method.options, impl="reference")
    errors = {"crop": _largest(method.sampler(photograph.pixels, boxes, size), want)}
    limits = {"crop": method.tolerance}
    if method.jacobian:
        got = diffcrop.crop_with_jacobian(photograph.pixels, boxes, size, **method.options).jacobian
        want = diffcrop.crop_with_jacobian(
            photograph.pixels.double(), boxes.double(), size, **method.options, impl="reference"
        ).jacobian
        errors["jacobian"] = _largest(got, want) / max(float(want.abs().max()), 1e-12)
        limits["jacobian"] = _JACOBIAN_TOLERANCE
    errors["target"], limits["target"] = _target(problems, boxes, target, size)
    said = ", ".join(f"{name} {error:.1e} (at most {limits[name]:.0e})" for name, error in errors.items())
    # A NaN is no smaller than anything.
    return Verdict(all(error <= limits[name] for name, error in errors.items()), said)


def _target(problems: Problems, boxes: Tensor, target: str, size: int) -> tuple[float, float]:
    """What was cropped there, and how far it may be from the reference under the terms of who cropped it."""
    pixels, boxes, mode = problems.photograph.pixels.double(), boxes.double(), MODE_OF[target]
    got = cropped(problems.photograph, boxes, target, size)
    if target.startswith("pillow"):
        return _largest(got, torch.stack([_in_passes(pixels, box, mode, size) for box in boxes])), _LEVELS
    return _largest(got, diffcrop.crop(pixels, boxes, size, mode=mode, impl="reference")), _TARGET_TOLERANCE


def _in_passes(pixels: Tensor, box: Tensor, mode: str, size: int) -> Tensor:
    """Across, then down, as Pillow does it: each pass ends in values between 0 and 1."""
    height = pixels.shape[-2]
    x0, y0, x1, y1 = box.tolist()
    passes = ((0.0, x0, x1, height), (height, size)), ((y0, 0.0, size, y1), (size, size))
    for (top, left, right, bottom), shape in passes:
        corners = torch.tensor([left, top, right, bottom], dtype=torch.float64)
        pixels = diffcrop.crop(pixels, corners, shape, mode=mode, padding_mode="renormalize", impl="reference")
        pixels = pixels.clamp(0, 1)
    return pixels


def _largest(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max()) if got.shape == want.shape else torch.inf
