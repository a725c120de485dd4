"""The options of a crop as every layer below the public functions passes them on: checked, complete, hashable."""

from __future__ import annotations

from typing import NamedTuple

import torch

PADDING_MODES = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
WARP_MODES = ("bilinear", "bicubic", "lanczos3", "area", "nearest")
WARP_PADDING_MODES = PADDING_MODES[:-1]


class Options(NamedTuple):
    """Everything but tensors and the output size.

    ``fill`` has one value, or one per channel. ``parameter`` belongs to the mode: the Gaussian's sigma, and how many
    samples RoIAlign takes of a bin along an axis (0: as many as the bin is long).
    """

    mode: str = "bilinear"
    antialias: bool = True
    padding_mode: str = "border"
    fill: tuple[float, ...] = (0.0,)
    parameter: float = 0.5
    align_corners: bool = False

    def linear(self) -> Options:
        """The same crop without its constant: what acts on a tangent or a cotangent of the image."""
        return self if self.fill == (0.0,) else self._replace(fill=(0.0,))


def result_dtype(image_dtype: torch.dtype, mode: str) -> torch.dtype:
    """The crop keeps the image's dtype; interpolated integers become float32."""
    return image_dtype if image_dtype.is_floating_point or mode == "nearest" else torch.float32


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums are kept in float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# The most samples that a warp takes to an output and axis.
MOST_SAMPLES = 16
# A reduction of 1: warps know reductions in whole numbers of 1 / UNIT, as sines and cosines are rounded.
UNIT = 256


class WarpOptions(NamedTuple):
    """The options of a warp: everything but tensors and the output size."""

    mode: str = "bilinear"
    antialias: bool = True
    padding_mode: str = "border"
    fill: tuple[float, ...] = (0.0,)
    align_corners: bool = False

    def linear(self) -> WarpOptions:
        """The same warp without its constant: what acts on a tangent or a cotangent of the image."""
        return self if self.fill == (0.0,) else self._replace(fill=(0.0,))
