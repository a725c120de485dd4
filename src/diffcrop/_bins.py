r"""RoIAlign's two filters along one axis: the mean of the linear surface over each bin, at samples or as an integral.

Both read the surface ``L(p)`` that interpolates the pixels linearly, pixel k at position k, in the bin of width w
around c, whatever w is: unlike the other filters they do not stay one pixel wide where nothing is reduced.

``samples``: the mean of g samples (He et al. 2017, "Mask R-CNN"),

    1/g sum_i L(p_i),   p_i = c + ((i + 1/2) / g - 1/2) w,   i = 0..g-1.

A sample in [-1, 0] reads pixel 0, one in [N-1, N] pixel N-1, and one beyond counts as zero. So L is linear between
-1, 0, ..., N-1, N, and the m samples of such an interval, consecutive i, sum to m times L at their mean position. That
takes no longer for a million of them. The number of samples that lie below an interval's end is an integer, and the
same for both intervals that meet there: no sample is lost or counted twice. It does not depend on the box
otherwise, so that each weight is linear in c and w and its derivative by them what autograd makes of that line. Samples
within `slack` of a pixel count as on it (intervals are closed on the left: right-hand derivatives), those within it of
-1 and N as inside.

``integral``: the mean of the whole surface (Jiang et al. 2018, "Acquisition of localization confidence for accurate
object detection", PrRoIPool), zero outside of the image but for the last pixel's slope: pixel k has the mean of the
triangle T around it,

    1/w int_{c-w/2}^{c+w/2} T(p - k) dp,

which is T(c - k) in the limit of an empty bin. With F the integral of T that is (F(b) - F(a)) / w at the bin's ends,
for w >= 1. Below, where that would cancel, T is the second difference of the ramps max(p - K, 0) at K = k-1, k, k+1,
whose means are

    c - K for K <= a,    (b - K)^2 / 2w for a < K <= b,    0 for K > b:

no difference of theirs loses digits, nor does one of their derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._filters import exact_floor, slack, snapped

BIN_MODES = ("samples", "integral")
# Bins narrower than so many times the slack of their position are points.
_POINT = 8.0


def weights(
    mode: str, center: Tensor, width: Tensor, extent: Tensor, given: float, pixels: int, band: tuple[int, int]
) -> Tensor:
    """The weights (..., n, band) of outputs at ``center`` (..., n) with bins of ``width`` (..., 1).

    ``extent`` (..., 1) is the axis' length with its sign, and ``given`` the samples of a bin; 0 for one to each pixel
    that the bin is long, and none of an axis that has no length or is mirrored.
    """
    center, width = center[..., None], width[..., None]
    if mode == "integral":
        return _integral(center, width, torch.arange(*band, dtype=center.dtype, device=center.device))
    if given > 0:
        count = torch.full_like(width, given)
    else:
        length = width.detach()
        count = torch.where(extent.detach()[..., None] > 0, torch.ceil(length - slack(length.dtype) * length), 0.0)
    return _samples(center, width, count, pixels, band)


def _samples(center: Tensor, width: Tensor, count: Tensor, pixels: int, band: tuple[int, int]) -> Tensor:
    first, stop = band
    # Of the intervals [first - 1, first], ..., [stop - 1, stop], which the pixels of the band lie between.
    ends = torch.arange(first - 1, stop + 1, dtype=center.dtype, device=center.device)
    below = _below(ends, center, width, count)
    if stop == pixels:
        below = torch.cat([below[..., :-1], _up_to(pixels, center, width, count)], -1)
    some = torch.clamp(count, min=1.0)
    share = (below[..., 1:] - below[..., :-1]) / some
    place = (below[..., 1:] + below[..., :-1]) / (2 * some) - 0.5
    start = ends[:-1]
    position = center + place * width
    # Far out rounding alone may move the mean of an interval's samples out of it.
    position = position + (torch.minimum(torch.maximum(position, start), start + 1) - position).detach()
    right = share * (position - start)
    left = share - right
    # Beyond the centre of an edge pixel nothing but that pixel is read.
    right = torch.where(start < 0, share, right)[..., :-1]
    left = torch.where(start == pixels - 1, share, left)[..., 1:]
    return left + right


def _below(ends: Tensor, center: Tensor, width: Tensor, count: Tensor) -> Tensor:
    """How many samples lie below each of ``ends``: p_i < end is i < g ((end - c) / w + 1/2) - 1/2."""
    near, width = snapped(center, width), width.detach()
    some = (width > 0) & (count > 0)
    place = torch.ceil(count * ((ends - near) / torch.where(some, width, 1.0) + 0.5) - 0.5)
    return torch.where(some, torch.minimum(torch.clamp(place, min=0.0), count), count * (near < ends))


def _up_to(end: float, center: Tensor, width: Tensor, count: Tensor) -> Tensor:
    """How many samples do not lie beyond the last ``end``."""
    near = center.detach() - (snapped(center, width) - center.detach())
    width = width.detach()
    some = (width > 0) & (count > 0)
    place = torch.floor(count * ((end - near) / torch.where(some, width, 1.0) + 0.5) - 0.5) + 1
    return torch.where(some, torch.minimum(torch.clamp(place, min=0.0), count), count * (near <= end))


def _integral(center: Tensor, width: Tensor, k: Tensor) -> Tensor:
    near, length = snapped(center, width), width.detach()
    point = length <= _POINT * (near - center.detach())
    half = torch.where(point, 0.0, 0.5 * length)
    left, right = exact_floor(near, -half), exact_floor(near, half)
    wide = length >= 1
    high, low = (_antiderivative(center + side * width, k, end) for side, end in ((0.5, right), (-0.5, left)))
    spread = torch.where(wide, (high - low) / torch.where(wide, width, 1.0), 0.0)

    narrow = torch.where(wide | point, 1.0, width)
    end = center + 0.5 * width

    def ramp(knot: Tensor) -> Tensor:
        inside = (knot > left) & (knot <= right) & ~wide
        rest = torch.where(inside, end - knot, 0.0)
        full = (knot <= left) & (knot >= left - 1) & ~wide  # farther left the second difference is 0
        return torch.where(inside, rest * rest / (2 * narrow), torch.where(full, center - knot, 0.0))

    near_by = (k >= left) & (k <= right + 1) & ~wide
    second = torch.where(near_by, ramp(k - 1) - 2 * ramp(k) + ramp(k + 1), 0.0)
    return torch.where(wide, spread, second)


def _antiderivative(end: Tensor, k: Tensor, pixel: Tensor) -> Tensor:
    """The integral of pixel k's triangle up to ``end``, which lies in [pixel, pixel + 1)."""
    rising, falling = k == pixel + 1, k == pixel
    x = torch.where(rising | falling, end - k, 0.0)
    value = torch.where(rising, 0.5 * (1 + x) * (1 + x), 1 - 0.5 * (1 - x) * (1 - x))
    return torch.where(rising | falling, value, (k < pixel).to(end.dtype))
