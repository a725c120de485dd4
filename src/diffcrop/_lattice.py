r"""Sums of a filter over a lattice of pixels, at a cost that does not grow with their number.

``lattice_sum(f, c, width, anchor, step, lower, upper)`` is ``sum f((k - c) / width)`` over the integers
``k = anchor + m * step`` with ``lower <= k <= upper``. With step 1 it is a normaliser, or the tail that border padding
gives to an edge pixel; with the period as step it is the weight of all copies of a pixel under a periodic padding.

*Polynomial pieces.* For M points with spacing h around their mean x, the odd central moments vanish and

    sum p(x_i) = M p(x) + p''(x)/2 * h^2 * M (M^2 - 1) / 12        (exact up to degree 3).

*Area.* The overlap with ``(-inf, e]`` telescopes to a staircase with ramps.

*Smooth functions.* Short sums are added one by one. A long one over the whole support [-b, b] is Euler and Maclaurin's,
with h = step / unit and theta the distance from either end of the support to the nearest point within, over h:

    sum f(x_i) = 1/h * integral f + E(theta_left) + E(theta_right)
    E(theta)   = sum_r (-1)^r h^(r-1) B_r(theta) / r! f^(r-1)(b)

A long one that ends inside the support (a tail) has no constants to offer there: with the ends E half a step outside,

    sum f(x_i) = 1/h * integral f + sum_i C_i [f(E + (i - 1/2) h) - f(E - (i - 1/2) h)] at both ends,

the midpoint rule's series with its derivatives replaced by differences, the integral by Gauss-Legendre quadrature; f is
continued beyond its support by its own formula. Both agree with the sum tap by tap to rounding, and so do their
derivatives; where they take over (`LONG`, `LONG_TAIL`) follows from the terms that are kept.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._context import is_concrete
from ._filters import Area, Filter, Polynomial, Smooth, get

# More taps than this are not added one by one: over the whole support, and where the sum ends inside of it.
LONG = 24
LONG_TAIL = 96
# Elements from which on the intermediates of a smooth filter are not kept for the backward pass.
_RECOMPUTE = 2**14


def _bernoulli(count: int) -> list[Fraction]:
    numbers = [Fraction(1)]
    for n in range(1, count):
        numbers.append(-sum((math.comb(n + 1, k) * numbers[k] for k in range(n)), Fraction(0)) / (n + 1))
    return numbers


def _end_corrections(terms: int) -> tuple[float, ...]:
    """C_i such that ``sum C_i 2 sinh((i - 1/2) D) = sum_{j>=1} B_{2j}(1/2) / (2j)! D^(2j-1)`` up to D^(2 terms - 1)."""
    bernoulli = _bernoulli(2 * terms + 1)
    system = []
    for p in range(1, 2 * terms, 2):
        half = (Fraction(1, 2**p) - 1) * bernoulli[p + 1]  # B_n(1/2) = (2^(1-n) - 1) B_n
        system.append([2 * Fraction(2 * i + 1, 2) ** p for i in range(terms)] + [half / (p + 1)])
    for i in range(terms):  # Gauss-Jordan, exact; both sides of row p have been multiplied by p!
        system[i] = [value / system[i][i] for value in system[i]]
        for j in range(terms):
            if j != i:
                system[j] = [u - system[j][i] * v for u, v in zip(system[j], system[i], strict=True)]
    return tuple(float(row[-1]) for row in system)


def _gauss_legendre(nodes: int) -> tuple[tuple[float, float], ...]:
    """(node, weight) on [-1, 1], the roots of the Legendre polynomial by Newton's method."""
    rule = []
    for i in range(nodes):
        x, slope = math.cos(math.pi * (i + 0.75) / (nodes + 0.5)), 1.0
        for _ in range(8):
            previous, value = 1.0, x
            for n in range(2, nodes + 1):
                previous, value = value, ((2 * n - 1) * x * value - (n - 1) * previous) / n
            slope = nodes * (x * value - previous) / (x * x - 1)
            x -= value / slope
        rule.append((x, 2 / ((1 - x * x) * slope**2)))
    return tuple(rule)


_BERNOULLI = tuple(float(b) for b in _bernoulli(24))


def _end_polynomials(taylor: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Row p has the coefficients of ``h^0, h^1, ...`` in E's coefficient of ``theta^p``; taylor = f^(m)(b) / m!."""
    return tuple(
        tuple(
            (-1) ** r * taylor[r - 1] / r * math.comb(r, p) * _BERNOULLI[r - p] if r >= p else 0.0
            for r in range(1, len(taylor) + 1)
        )
        for p in range(len(taylor) + 1)
    )


# By powers of h: the coefficients of all powers of theta in E.
_ENDS = {
    taylor: tuple(zip(*_end_polynomials(taylor), strict=True))
    for taylor in (cast(Smooth, get(mode, True, 1.0)).taylor for mode in ("lanczos3", "gaussian"))
}
# The points of a sum's quadrature and end corrections: f is taken at ``middle + along * half + beyond * step``, with
# the weight ``share * count + fixed``.
_ALONG, _BEYOND, _SHARE, _FIXED = zip(
    *((node, 0.0, 0.5 * weight, 0.0) for node, weight in _gauss_legendre(48)),
    *(
        (side, side * sign * (i + 0.5), 0.0, sign * coefficient)
        for i, coefficient in enumerate(_end_corrections(6))
        for side in (1.0, -1.0)
        for sign in (1.0, -1.0)
    ),
    strict=True,
)
# Taps at a time of a periodic padding where values cannot be looked at: all together would be many times the weights.
_TOGETHER = 6


def lattice_sum(
    kernel: Filter,
    center: Tensor,
    width: Tensor,
    *,
    anchor: Tensor | float = 0.0,
    step: float = 1.0,
    lower: float = -math.inf,
    upper: float = math.inf,
) -> Tensor:
    """The sum of ``kernel`` over the lattice; shapes of ``center``, ``width`` and ``anchor`` broadcast.

    ``lower`` and ``upper`` are integers or infinite, and go with step 1 only.
    """
    if isinstance(kernel, Polynomial):
        return _polynomial_sum(kernel, center, width, anchor, step, lower, upper)
    if isinstance(kernel, Area):
        return _area_sum(kernel, center, width, anchor, step, lower, upper)
    return _smooth_sum(kernel, center, width, anchor, step, lower, upper)


def _run(before: Tensor, last: Tensor, anchor: Tensor | float, step: float) -> tuple[Tensor, Tensor]:
    """First lattice point in ``(before, last]`` and how many there are."""
    first = torch.floor((before - anchor) / step) + 1
    count = torch.clamp(torch.floor((last - anchor) / step) - first + 1, min=0.0)
    return anchor + first * step, count


def _polynomial_sum(
    kernel: Polynomial,
    center: Tensor,
    width: Tensor,
    anchor: Tensor | float,
    step: float,
    lower: float,
    upper: float,
) -> Tensor:
    total = torch.zeros((), dtype=center.dtype, device=center.device)
    breaks = [torch.clamp(b, lower - 1, upper) for b in kernel.breaks(center, width)]
    spacing = step / width
    for piece, before, last in zip(kernel.pieces, breaks[:-1], breaks[1:], strict=True):
        first, count = _run(before, last, anchor, step)
        some = count > 0
        mean = (first + 0.5 * (count - 1) * step - center) / width
        mean = torch.where(some, mean, 0.0)
        spread = torch.where(some, count * ((count * spacing) ** 2 - spacing**2) / 12, 0.0)
        total = total + count * piece.value(mean) * some + piece.half_second_derivative(mean) * spread
    return total


def _area_sum(
    kernel: Area,
    center: Tensor,
    width: Tensor,
    anchor: Tensor | float,
    step: float,
    lower: float,
    upper: float,
) -> Tensor:
    staircase = []
    for edge, pixel in kernel.edges(center, width):
        if step == 1:
            # Pixels lower..upper left of the edge; the edge's own pixel counts only while it is one of them.
            inside = (pixel >= lower) & (pixel <= upper)
            staircase.append(torch.where(inside, edge, torch.clamp(pixel, lower, upper + 1)))
        else:
            copy = torch.floor((pixel - anchor) / step)
            rest = pixel - anchor - copy * step
            staircase.append(copy + torch.where(rest == 0, edge - pixel, 1.0))
    return staircase[1] - staircase[0]


def _smooth_sum(
    kernel: Smooth,
    center: Tensor,
    width: Tensor,
    anchor: Tensor | float,
    step: float,
    lower: float,
    upper: float,
) -> Tensor:
    before, last = (torch.clamp(b, lower - 1, upper) for b in kernel.bounds(center, width))
    first, count = _run(before, last, anchor, step)
    whole = lower == -math.inf and upper == math.inf
    most = LONG if whole else LONG_TAIL
    short = count <= most

    taps = _longest(count, most)
    # As many at a time as keeps the intermediates small; a loop over single taps would be slow where all are few, and
    # make a long graph. A graph must not depend on how many elements there are.
    if is_concrete(count):
        together = max(1, _RECOMPUTE // max(count.numel(), 1))
    else:
        together = taps if step == 1 else _TOGETHER
    total = torch.zeros((), dtype=center.dtype, device=center.device)
    for start in range(0, taps, together):
        i = torch.arange(start, min(start + together, taps), dtype=center.dtype, device=center.device)
        i = i.view(-1, *[1] * short.ndim)
        there = short & (i < count)
        x = (first + i * step - center) / (kernel.scale * width)
        total = total + torch.where(there, _evaluate(kernel, torch.where(there, x, 0.0)), 0.0).sum(0)
    if is_concrete(count) and bool(short.all()):
        return total
    long = (_euler_maclaurin if whole else _quadrature)(kernel, center, width, first, count, step, short)
    return torch.where(short, total, long)


def _euler_maclaurin(
    kernel: Smooth, center: Tensor, width: Tensor, first: Tensor, count: Tensor, step: float, idle: Tensor
) -> Tensor:
    """The sum over the whole support; anything finite where ``idle``."""
    reach = kernel.support * kernel.scale * width
    h = step / (kernel.scale * width)
    h_safe = torch.where(h.detach() * LONG > 2 * kernel.support, 0.0, h)  # few taps: not used, must not overflow
    # The coefficients of all powers of theta at once, by Horner's rule in h.
    coefficients = torch.zeros_like(h_safe)
    for column in reversed(_ENDS[kernel.taylor]):
        coefficients = coefficients * h_safe + _column(column, h_safe)
    # From both ends of the support; in [0, 1] but for the rounding of positions too large to tell pixels apart.
    theta = torch.stack([(center + reach - first - (count - 1) * step) / step, (first - center + reach) / step])
    theta = theta + (torch.clamp(theta, 0.0, 1.0) - theta).detach()  # a clamp would end the gradient at 0 and at 1
    theta = torch.where(idle, 0.0, theta)
    ends = torch.zeros_like(theta)
    for coefficient in reversed(coefficients.unbind(0)):
        ends = ends * theta + coefficient
    return kernel.integral / h + ends.sum(0)


def _quadrature(
    kernel: Smooth, center: Tensor, width: Tensor, first: Tensor, count: Tensor, step: float, idle: Tensor
) -> Tensor:
    """The sum over part of the support; anything finite where ``idle``."""
    unit = kernel.scale * width
    half = torch.where(idle, 0.0, 0.5 * count * step)
    middle = torch.where(idle, center, first + 0.5 * (count - 1) * step)
    along, beyond, share, fixed = (_column(c, middle) for c in (_ALONG, _BEYOND, _SHARE, _FIXED))
    values = kernel.function((middle + along * half + beyond * step - center) / unit)
    return ((share * count + fixed) * values).sum(0)


def _column(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers along a new dimension in front of those of ``like``."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, *[1] * like.ndim)


def _evaluate(kernel: Smooth, x: Tensor) -> Tensor:
    """The filter at ``x``; where what it leaves for the backward pass would be large, it is made again there."""
    if x.requires_grad and x.numel() > _RECOMPUTE and is_concrete(x):
        return cast(Tensor, checkpoint(kernel.function, x, use_reentrant=False))
    return kernel.function(x)


def _longest(count: Tensor, most: int) -> int:
    if not is_concrete(count):
        return most
    return min(int(count.max()), most) if count.numel() else 0
