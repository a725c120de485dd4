"""The resampling filters: name -> (formula, support), with the source of each.

A tap at pixel ``k`` of an output at position ``c`` has the unnormalised weight ``f((k - c) / width)``, where ``width``
is the reduction where the crop is antialiased and 1 elsewhere. Three kinds of filter follow from how their sums over a
lattice of pixels are formed:

* `Polynomial`: pieces of degree <= 3. A sum over any number of equally spaced taps has a closed form.
* `Area`: overlap of the pixel with a footprint; its sums telescope.
* `Smooth`: an entire function cut at its support. Short sums are added tap by tap, long ones by Gauss-Legendre
quadrature
  with end corrections (`_lattice`).

Which piece a tap belongs to is decided by integers (`exact_floor`), never by comparing ``(k - c) / width`` with a
breakpoint: rounding would put a tap into two pieces or none, and the derivative, which jumps there, would be
wrong. Intervals are open on the left and closed on the right in ``k``, which makes every derivative the right-hand one
in ``c``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest")
DEFAULT_SIGMA = 0.5
# Below this the cut Gaussian (6 sigma) is narrower than the distance from a point to its nearest pixel centre (1/2),
# so that some outputs would have no tap at all.
MIN_SIGMA = 0.1
MAX_SIGMA = 1e6
GAUSSIAN_CUT = 6.0
# Positions this close to a kink, in parts of their size, count as on it; a reduction this close above 1 counts as 1.
# float32 serves where a device has no float64: there less margin, as a margin is an error of its own.
SLACK = 2.0**-48
_SLACK_FLOAT32 = 2.0**-21
_AT_CUT = math.exp(-0.5 * GAUSSIAN_CUT**2)


@dataclass(frozen=True)
class Piece:
    """``sum(coefficients[i] * x**i)`` for ``start < x <= stop``."""

    start: int
    stop: int
    coefficients: tuple[float, float, float, float]

    def value(self, x: Tensor) -> Tensor:
        c0, c1, c2, c3 = self.coefficients
        return c0 + x * (c1 + x * (c2 + x * c3))

    def half_second_derivative(self, x: Tensor) -> Tensor:
        return self.coefficients[2] + 3 * self.coefficients[3] * x


@dataclass(frozen=True)
class Polynomial:
    """A piecewise polynomial; the weights of all integers sum to 1 at width 1 (a partition of unity)."""

    pieces: tuple[Piece, ...]

    @property
    def support(self) -> int:
        return self.pieces[-1].stop

    def breaks(self, center: Tensor, width: Tensor) -> list[Tensor]:
        """The last integer of each interval that ends at a breakpoint: the floor of ``c + a * width``."""
        c, width = snapped(center, width), width.detach()
        # a * width is exact: the breakpoints are 0, 1 and 2.
        return [exact_floor(c, a * width) for a in [piece.start for piece in self.pieces] + [self.support]]

    def values(self, k: Tensor, center: Tensor, width: Tensor) -> Tensor:
        """Unnormalised weights of the pixels ``k``, broadcast against ``center`` and ``width``."""
        breaks = self.breaks(center, width)
        x = (k - center) / width
        total = torch.zeros_like(x)
        for piece, before, last in zip(self.pieces, breaks[:-1], breaks[1:], strict=True):
            inside = (k > before) & (k <= last)
            # The inner `where` keeps the polynomial of a far pixel from overflowing in the backward pass.
            total = total + torch.where(inside, piece.value(torch.where(inside, x, 0.0)), 0.0)
        return total


@dataclass(frozen=True)
class Area:
    """Overlap of pixel [k, k+1] with the footprint [c + 1/2 - width/2, c + 1/2 + width/2]; `avg_pool` at integers."""

    def edges(self, center: Tensor, width: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Both edges of the footprint, each with the pixel that lies to the right of it."""
        c, half = snapped(center, width), 0.5 * width.detach()
        return [
            (center + 0.5 - 0.5 * width, exact_floor(c, -half, 0.5)),
            (center + 0.5 + 0.5 * width, exact_floor(c, half, 0.5)),
        ]

    def values(self, k: Tensor, center: Tensor, width: Tensor) -> Tensor:
        overlap = []
        for edge, pixel in self.edges(center, width):
            # The part of pixel k that lies left of the edge: 1, 0, or edge - k where the edge crosses the pixel.
            overlap.append(torch.where(k == pixel, edge - k, (k < pixel).to(edge.dtype)))
        return overlap[1] - overlap[0]


@dataclass(frozen=True)
class Smooth:
    """``f(x)`` for ``-support < x <= support`` in units of ``scale * width``; ``f`` is smooth on the whole line."""

    function: Callable[[Tensor], Tensor]
    support: float
    scale: float
    # The Taylor coefficients at the end of the support and the integral over it: what long sums are made of.
    taylor: tuple[float, ...]
    integral: float

    def values(self, k: Tensor, center: Tensor, width: Tensor) -> Tensor:
        unit = self.scale * width
        before, last = self.bounds(center, width)
        inside = (k > before) & (k <= last)
        x = torch.where(inside, (k - center) / unit, 0.0)
        return torch.where(inside, self.function(x), 0.0)

    def bounds(self, center: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """The integers of the support are those in ``(before, last]``."""
        reach = self.support * self.scale * width.detach()
        return torch.floor(center.detach() - reach), torch.floor(center.detach() + reach)


Filter = Polynomial | Area | Smooth


def exact_floor(first: Tensor, *others: Tensor | float) -> Tensor:
    """The floor of the sum that is not rounded: what ``c + 1`` rounds away decides on which side of a pixel it lies.

    All breakpoints of one output must agree on it. Knuth's two-sum gives the rounding error of each addition exactly.
    """
    total, error = first, torch.zeros_like(first)
    for other in others:
        rounded = total + other
        virtual = rounded - total
        error = error + ((total - (rounded - virtual)) + (other - virtual))
        total = rounded
    whole = torch.round(total)
    return whole - ((total - whole) + error < 0).to(whole.dtype)


def snapped(center: Tensor, width: Tensor) -> Tensor:
    """Positions as sides are taken from them: moved right by `SLACK`.

    A box of thirds puts c an ulp off the pixel that is meant, and a reduction of 3 an ulp off 3, where the kinks of two
    taps that should coincide lie an ulp apart and the derivative between them is that of neither side.
    """
    center, width = center.detach(), width.detach()
    return center + slack(center.dtype) * (1 + center.abs() + width)


def slack(dtype: torch.dtype) -> float:
    """`SLACK` for positions of this dtype."""
    return SLACK if dtype == torch.float64 else _SLACK_FLOAT32


def triangle() -> Polynomial:
    """``1 - |x|``: bilinear interpolation, and Pillow's BILINEAR when widened."""
    return Polynomial((Piece(-1, 0, (1, 1, 0, 0)), Piece(0, 1, (1, -1, 0, 0))))


def cubic(a: float) -> Polynomial:
    """Keys' cubic convolution (Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4).

    ``(a+2)|x|^3 - (a+3)|x|^2 + 1`` for ``|x| <= 1`` and ``a|x|^3 - 5a|x|^2 + 8a|x| - 4a`` for ``1 < |x| <= 2``.
    """
    return Polynomial(
        (
            Piece(-2, -1, (-4 * a, -8 * a, -5 * a, -a)),
            Piece(-1, 0, (1, 0, -(a + 3), -(a + 2))),
            Piece(0, 1, (1, 0, -(a + 3), a + 2)),
            Piece(1, 2, (-4 * a, 8 * a, -5 * a, a)),
        )
    )


# Near 0 the quotient sin(pi x) / (pi x) loses its derivatives to 0/0: its Taylor series serves there.
_SERIES_BELOW = 0.25
_SERIES = tuple((-1) ** i * math.pi ** (2 * i) / math.factorial(2 * i + 1) for i in range(10))


def sinc(x: Tensor) -> Tensor:
    """``sin(pi x) / (pi x)``: exactly 0 at non-zero integers, and differentiable to every order at 0."""
    small = x.detach().abs() < _SERIES_BELOW
    square = torch.where(small, x, 0.0) ** 2
    series = torch.zeros_like(x)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    safe = torch.where(small, 1.0, x)
    nearest = torch.round(safe.detach())
    # sin(pi x) = (-1)^m sin(pi (x - m)) with m the nearest integer: the argument is exact and small.
    sign = 1 - 2 * torch.remainder(nearest, 2)
    return torch.where(small, series, sign * torch.sin(math.pi * (safe - nearest)) / (math.pi * safe))


def _lanczos3(x: Tensor) -> Tensor:
    """Lanczos 1956, "Applied Analysis"; Duchon 1979, "Lanczos filtering in one and two dimensions"."""
    return sinc(x) * sinc(x / 3)


def _lanczos3_taylor(count: int) -> tuple[float, ...]:
    """With x = 3 + t: ``f = 3 / (2 pi^2) (cos(2 pi t / 3) - cos(4 pi t / 3)) / (3 + t)^2``."""
    waves = [0.0] * count
    for m in range(0, count, 2):
        waves[m] = (-1) ** (m // 2) * (2 * math.pi / 3) ** m / math.factorial(m) * (1 - 2.0**m)
    inverse_square = [(-1) ** m * (m + 1) / 3.0 ** (m + 2) for m in range(count)]
    front = 3 / (2 * math.pi**2)
    return tuple(front * sum(waves[i] * inverse_square[m - i] for i in range(m + 1)) for m in range(count))


def _gaussian(x: Tensor) -> Tensor:
    """``exp(-x^2 / 2)`` less its value at the cut: DRAW's read attention (Gregor et al. 2015, eq. 25)."""
    return torch.exp(-0.5 * x * x) - _AT_CUT


def _gaussian_taylor(count: int) -> tuple[float, ...]:
    """With x = b + t: ``f = exp(-b^2 / 2) (exp(-b t - t^2 / 2) - 1)``, from y' = -(b + t) y."""
    series = [1.0, -GAUSSIAN_CUT]
    for m in range(1, count - 1):
        series.append(-(GAUSSIAN_CUT * series[m] + series[m - 1]) / (m + 1))
    return (0.0, *(_AT_CUT * value for value in series[1:]))


_TERMS = 20
_LANCZOS3_TAYLOR = _lanczos3_taylor(_TERMS)
# 3 / (2 pi^2) times the integral of (cos(2 pi x / 3) - cos(4 pi x / 3)) / x^2: no elementary function.
_LANCZOS3_INTEGRAL = 0.9970553459543398
_GAUSSIAN_TAYLOR = _gaussian_taylor(_TERMS)
_GAUSSIAN_INTEGRAL = math.sqrt(2 * math.pi) * math.erf(GAUSSIAN_CUT / math.sqrt(2)) - 2 * GAUSSIAN_CUT * _AT_CUT


_Number = TypeVar("_Number", Tensor, float)


def get(mode: str, antialias: bool, sigma: float) -> Filter:
    """The filter of an interpolating mode ("nearest" has none)."""
    if mode == "bilinear":
        return triangle()
    if mode == "bicubic":
        # Pillow and interpolate(antialias=True) use -0.5, grid_sample and interpolate without antialiasing -0.75.
        return cubic(-0.5 if antialias else -0.75)
    if mode == "lanczos3":
        return Smooth(_lanczos3, 3.0, 1.0, _LANCZOS3_TAYLOR, _LANCZOS3_INTEGRAL)
    if mode == "area":
        return Area()
    if mode == "gaussian":
        return Smooth(_gaussian, GAUSSIAN_CUT, sigma, _GAUSSIAN_TAYLOR, _GAUSSIAN_INTEGRAL)
    raise ValueError(f"mode {mode!r} has no filter")


def reach(mode: str, width: _Number, sigma: float) -> _Number:
    """Distance from an output's position beyond which a pixel has no weight."""
    if mode == "area":
        return 0.5 * (width + 1)
    if mode == "gaussian":
        return GAUSSIAN_CUT * sigma * width
    if mode in ("samples", "integral"):  # `_bins`
        return 0.5 * width + 1
    return {"nearest": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos3": 3.0}[mode] * width
