"""One axis of a crop: where its outputs lie, and the matrix W (outputs x pixels) that filter and padding make there."""

from __future__ import annotations

import torch
from torch import Tensor

from ._bins import BIN_MODES
from ._bins import weights as bin_weights
from ._filters import Filter, Polynomial, get, reach, slack
from ._lattice import lattice_sum
from ._options import Options

# Positions farther out than this are reduced modulo the period of a periodic padding, which costs them nothing.
_FAR = {torch.float64: 2.0**30, torch.float32: 2.0**10}


def sampling(lo: Tensor, hi: Tensor, n: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Positions ``c`` (..., n) of the outputs on the pixel-index axis and the reduction ``s`` (..., 1).

    ``c_j = lo + (j + 1/2) (hi - lo) / n - 1/2`` and ``s = |hi - lo| / n``; with ``align_corners`` the centres of the
    first and last output lie at ``lo`` and ``hi``: ``c_j = lo + j (hi - lo) / (n - 1)``.
    """
    j = torch.arange(n, dtype=lo.dtype, device=lo.device)
    lo, hi = lo[..., None], hi[..., None]
    extent = hi - lo
    length = torch.where(extent.detach() >= 0, extent, -extent)
    if not align_corners:
        return lo + (j + 0.5) * (extent / n) - 0.5, length / n
    if n == 1:
        return lo + 0.5 * extent, length
    return lo + j * (extent / (n - 1)), length / (n - 1)


def weights(
    lo: Tensor,
    hi: Tensor,
    n: int,
    pixels: int,
    options: Options,
    band: tuple[int, int] | None = None,
    outputs: tuple[int, int] | None = None,
) -> Tensor:
    """The matrix W (..., n, pixels), or its rows ``outputs`` and its columns ``band``, which must hold all but zeros.

    ``lo`` and ``hi`` (...) are finite pixel coordinates. Differentiable to every order in both; the derivative at a
    kink is the right-hand one in the sampling position, and the width's is 0 up to a reduction of 1 (both to
    within `slack`).
    """
    center, reduction = sampling(lo, hi, n, options.align_corners)
    center = center[..., slice(*(outputs or (0, n)))]
    if options.align_corners and pixels == 1:
        return (1 + 0 * center)[..., None]  # a gradient of zero, not none
    if options.mode in BIN_MODES:
        extent = (hi - lo)[..., None]
        return bin_weights(options.mode, center, reduction, extent, options.parameter, pixels, band or (0, pixels))
    k = torch.arange(*(band or (0, pixels)), dtype=lo.dtype, device=lo.device)
    if options.mode == "nearest":
        pixel, inside = nearest(center, pixels, options)
        return ((k == pixel[..., None]) & inside[..., None]).to(lo.dtype)

    widens = options.antialias & (reduction.detach() > 1 + slack(reduction.dtype))
    width = torch.where(widens, reduction, 1.0)
    center = _bring_near(center, width, pixels, options)
    kernel = get(options.mode, options.antialias, options.parameter)
    taps = _folded(kernel, k, center[..., None], width[..., None], pixels, options)
    if options.padding_mode == "renormalize":
        inside = ((center >= -0.5) & (center <= pixels - 0.5)).detach()[..., None]
        total = torch.where(inside, taps.sum(-1, keepdim=True), 1.0)
        return torch.where(inside, taps / total, 0.0)
    total = lattice_sum(kernel, center, width)
    if isinstance(kernel, Polynomial):  # a partition of unity at width 1: its rounding must not touch the identity
        total = torch.where(width.detach() == 1, 1.0, total)
    return taps / total[..., None]


def nearest(center: Tensor, pixels: int, options: Options) -> tuple[Tensor, Tensor]:
    """The pixel that each output reads, as whole floats, and whether it reads the image at all."""
    k = torch.floor(center.detach() + 0.5)
    if options.align_corners and pixels == 1:
        return torch.zeros_like(k), torch.ones_like(k, dtype=torch.bool)
    if options.padding_mode == "border":
        return torch.clamp(k, 0, pixels - 1), torch.ones_like(k, dtype=torch.bool)
    if options.padding_mode in ("circular", "reflection"):
        period, mirror = _period(pixels, options)
        k = torch.remainder(k, period)
        return torch.where(k < pixels, k, mirror - k + period), torch.ones_like(k, dtype=torch.bool)
    inside = (k >= 0) & (k < pixels)
    return torch.where(inside, k, 0.0), inside


def touched(
    lo: Tensor, hi: Tensor, n: int, pixels: int, options: Options, outputs: tuple[int, int] | None = None
) -> tuple[int, int]:
    """The range of pixels outside of which W, or its rows ``outputs``, are zero for all boxes. Looks at values."""
    center, reduction = sampling(lo.detach(), hi.detach(), n, options.align_corners)
    center = center[..., slice(*(outputs or (0, n)))]
    width = torch.clamp(reduction, min=1.0) if options.antialias else torch.ones_like(reduction)
    margin = reach(options.mode, width, options.parameter) + 1
    first = int(torch.clamp((center - margin).min(), -pixels - 2, 2 * pixels + 1).floor())
    last = int(torch.clamp((center + margin).max(), -pixels - 2, 2 * pixels + 1).ceil())
    if options.padding_mode == "circular" and (first < 0 or last >= pixels):
        return 0, pixels
    if options.padding_mode == "reflection":  # places outside stand for pixels as far inside, or one less
        first, last = min(first, 2 * pixels - 2 - last), max(last, -first)
    if options.padding_mode == "border" or first >= pixels or last < 0:
        first, last = min(max(first, 0), pixels - 1), min(max(last, 0), pixels - 1)
    return max(first, 0), min(last, pixels - 1) + 1


def _period(pixels: int, options: Options) -> tuple[int, int]:
    """Period of a periodic padding, and for reflection the m such that pixel k also stands at m - k."""
    if options.padding_mode == "circular":
        return pixels, 0
    return (2 * pixels - 2, 0) if options.align_corners else (2 * pixels, -1)


def _folded(kernel: Filter, k: Tensor, center: Tensor, width: Tensor, pixels: int, options: Options) -> Tensor:
    """Unnormalised weights of the pixels ``k``, each with all the places outside the image that it stands for."""
    if options.padding_mode in ("circular", "reflection"):
        period, mirror = _period(pixels, options)
        taps = lattice_sum(kernel, center, width, anchor=k, step=float(period))
        if options.padding_mode == "circular":
            return taps
        mirrored = lattice_sum(kernel, center, width, anchor=mirror - k, step=float(period))
        # Where the mirror is a pixel's centre, that pixel is its own mirror image and must count once.
        own = (k == 0) | (k == pixels - 1) if options.align_corners else torch.zeros_like(k, dtype=torch.bool)
        return taps + torch.where(own, 0.0, mirrored)
    taps = kernel.values(k, center, width)
    if options.padding_mode == "border":
        if pixels == 1:
            return lattice_sum(kernel, center, width)
        taps = torch.where(k == 0, lattice_sum(kernel, center, width, upper=0), taps)
        taps = torch.where(k == pixels - 1, lattice_sum(kernel, center, width, lower=pixels - 1), taps)
    return taps


def _bring_near(center: Tensor, width: Tensor, pixels: int, options: Options) -> Tensor:
    """Where ``c + 1 == c`` there are no taps to count: move such positions to where the crop is the same."""
    if options.padding_mode in ("circular", "reflection"):
        period, _ = _period(pixels, options)
        far = center.detach()
        return torch.where(far.abs() > _FAR[far.dtype], center - (far - torch.remainder(far, period)), center)
    margin = reach(options.mode, width.detach(), options.parameter) + 2
    return torch.minimum(torch.maximum(center, -margin), pixels + margin)
