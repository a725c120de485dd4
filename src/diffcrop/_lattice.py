r"""Sums of a filter over a lattice of pixels, at a cost that does not grow with their number.

``lattice_sum(f, c, width, anchor, step, lower, upper)`` is ``sum f((k - c) / width)`` over the integers
``k = anchor + m * step`` with ``lower <= k <= upper``. With step 1 it is a normaliser, or the tail that border padding
gives to an edge pixel; with the period as step it is the weight of all copies of a pixel under a periodic padding.

*Polynomial pieces.* For M points with spacing h around their mean x, the odd central moments vanish and

    sum p(x_i) = M p(x) + p''(x)/2 * h^2 * M (M^2 - 1) / 12        (exact up to degree 3).

*Area.* The overlap with ``(-inf, e]`` telescopes to a staircase with ramps.

*Smooth functions.* Up to `DIRECT` taps: one by one. Beyond, with h = step / unit and E = the two ends half a step
outside,

    sum f(x_i) = 1/h * integral f + sum_i C_i [f(E + (i - 1/2) h) - f(E - (i - 1/2) h)] at both ends,

the midpoint rule's Euler-Maclaurin series with its derivatives replaced by differences. f is continued beyond its
support by its own formula, so that nothing has a kink and both the sum and its derivatives agree with the tap-by-tap
sum to rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from ._filters import Area, Filter, Polynomial, Smooth

# Taps of a smooth filter that are added one by one; more are summed by quadrature.
DIRECT = 96


def _end_corrections(terms: int) -> tuple[float, ...]:
    """C_i such that ``sum C_i 2 sinh((i - 1/2) D) = sum_{j>=1} B_{2j}(1/2) / (2j)! D^(2j-1)`` up to D^(2 terms - 1)."""
    bernoulli = [Fraction(1)]
    for n in range(1, 2 * terms + 1):
        bernoulli.append(-sum((math.comb(n + 1, k) * bernoulli[k] for k in range(n)), Fraction(0)) / (n + 1))
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


_NODES = _gauss_legendre(48)
_CORRECTIONS = _end_corrections(6)


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
    unit = kernel.scale * width
    before, last = (torch.clamp(b, lower - 1, upper) for b in kernel.bounds(center, width))
    first, count = _run(before, last, anchor, step)
    short = count <= DIRECT

    total = torch.zeros((), dtype=center.dtype, device=center.device)
    for i in range(_longest(count)):
        there = short & (i < count)
        x = torch.where(there, (first + i * step - center) / unit, 0.0)
        total = total + torch.where(there, kernel.function(x), 0.0)
    if not _may_exceed(count):
        return total

    half = torch.where(short, 1.0, 0.5 * count * step / unit)
    middle = torch.where(short, 0.0, (first + 0.5 * (count - 1) * step - center) / unit)
    spacing = torch.where(short, 1.0, step / unit)
    long = torch.zeros_like(middle)
    for node, weight in _NODES:
        long = long + weight * kernel.function(middle + node * half)
    long = long * half / spacing
    for i, coefficient in enumerate(_CORRECTIONS):
        out = (i + 0.5) * spacing
        for side in (1, -1):
            end = middle + side * half
            long = long + coefficient * (kernel.function(end + side * out) - kernel.function(end - side * out))
    return torch.where(short, total, long)


def is_concrete(*tensors: Tensor) -> bool:
    """Whether values may be looked at: ordinary eager tensors, not under a compiler, a transform or a fake mode."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta" for t in tensors)


def _longest(count: Tensor) -> int:
    if not is_concrete(count):
        return DIRECT
    return min(int(count.max()), DIRECT) if count.numel() else 0


def _may_exceed(count: Tensor) -> bool:
    return not is_concrete(count) or bool((count > DIRECT).any())
