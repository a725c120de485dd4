"""The filters and their sums over a lattice of pixels, with derivatives, in float64: one output to a lane.

The formulas of `_filters` and `_lattice`, where they are explained. Whatever returns a weight returns it with its
derivatives by the position and by the width: ``(value, by_center, by_width)``. With x = (k - c) / u and u the filter's
unit (width, or scale * width) these are f(x), -f'(x) / u and -x f'(x) / width.

Positions must round as those of the reference do, because the derivative at a kink depends on the side on which they
fall: launch what uses these functions with ``enable_fp_fusion=False``.
"""

# Functions of Triton's language: dtypes are those of the arguments, and constants take part in them exactly.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false

import math

import triton
import triton.language as tl

from diffcrop import _filters

SLACK = tl.constexpr(_filters.SLACK)
GAUSSIAN_CUT = tl.constexpr(_filters.GAUSSIAN_CUT)
AT_CUT = tl.constexpr(math.exp(-0.5 * _filters.GAUSSIAN_CUT**2))
PI = tl.constexpr(math.pi)
INFINITY = tl.constexpr(math.inf)
SERIES_BELOW = tl.constexpr(0.25)

# Sums of more taps than this are made of the midpoint rule's integral and end corrections.
LONG = tl.constexpr(96)
PANELS, NODES, CORRECTIONS = tl.constexpr(12), tl.constexpr(8), tl.constexpr(6)


@triton.jit
def clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def exact_floor(a, b, c):
    """The floor of a + b + c that is not rounded; Knuth's two-sum gives the error of each addition exactly."""
    first = a + b
    virtual = first - a
    error = (a - (first - virtual)) + (b - virtual)
    total = first + c
    virtual = total - first
    error += (first - (total - virtual)) + (c - virtual)
    whole = tl.floor(total)
    rest = (total - whole) + error
    return whole + tl.where(rest >= 1, 1.0, 0.0) - tl.where(rest < 0, 1.0, 0.0)


@triton.jit
def snapped(c, w):
    return c + SLACK * (1 + tl.abs(c) + w)


@triton.jit
def run_of(before, last, anchor, step):
    """First lattice point in ``(before, last]`` and how many there are."""
    m = tl.floor((before - anchor) / step) + 1
    count = tl.floor((last - anchor) / step) - m + 1
    return anchor + m * step, tl.maximum(count, 0.0)


# --- piecewise polynomials: bilinear, bicubic -------------------------------------------------------------------------


@triton.jit
def piece(n: tl.constexpr, CUBIC: tl.constexpr, A: tl.constexpr):
    """Coefficients of the n-th piece; each is one unit long."""
    if not CUBIC:
        if n == 0:
            return 1.0, 1.0, 0.0, 0.0
        else:
            return 1.0, -1.0, 0.0, 0.0
    elif n == 0:
        return -4.0 * A, -8.0 * A, -5.0 * A, -1.0 * A
    elif n == 1:
        return 1.0, 0.0, -1.0 * (A + 3.0), -1.0 * (A + 2.0)
    elif n == 2:
        return 1.0, 0.0, -1.0 * (A + 3.0), A + 2.0
    else:
        return -4.0 * A, 8.0 * A, -5.0 * A, A


@triton.jit
def knot(n: tl.constexpr, c, w, CUBIC: tl.constexpr):
    """The last pixel of the pieces before the n-th: the floor of ``c + a * width``; a * width is exact."""
    a: tl.constexpr = n - 2 if CUBIC else n - 1
    return exact_floor(snapped(c, w), a * w, 0.0 * w)


@triton.jit
def polynomial_tap(k, c, w, CUBIC: tl.constexpr, A: tl.constexpr):
    x = (k - c) / w
    value = tl.zeros_like(x)
    slope = tl.zeros_like(x)
    pieces: tl.constexpr = 4 if CUBIC else 2
    for n in tl.static_range(pieces):
        c0, c1, c2, c3 = piece(n, CUBIC, A)
        inside = (k > knot(n, c, w, CUBIC)) & (k <= knot(n + 1, c, w, CUBIC))
        value = tl.where(inside, c0 + x * (c1 + x * (c2 + x * c3)), value)
        slope = tl.where(inside, c1 + x * (2.0 * c2 + x * (3.0 * c3)), slope)
    by_center = -slope / w
    return value, by_center, x * by_center


@triton.jit
def polynomial_sum(c, w, anchor, step, lower, upper, CUBIC: tl.constexpr, A: tl.constexpr):
    """M points with spacing h around x: sum p = M p(x) + p''(x)/2 R with R = M ((M h)^2 - h^2) / 12."""
    value = tl.zeros_like(c + anchor)
    by_center = tl.zeros_like(value)
    by_width = tl.zeros_like(value)
    h = step / w
    pieces: tl.constexpr = 4 if CUBIC else 2
    for n in tl.static_range(pieces):
        c0, c1, c2, c3 = piece(n, CUBIC, A)
        before = clamp(knot(n, c, w, CUBIC), lower - 1, upper)
        last = clamp(knot(n + 1, c, w, CUBIC), lower - 1, upper)
        first, count = run_of(before, last, anchor, step)
        there = count > 0
        x = tl.where(there, (first + 0.5 * (count - 1) * step - c) / w, 0.0)
        spread = tl.where(there, count * ((count * h) * (count * h) - h * h) / 12, 0.0)
        half_curvature = c2 + 3.0 * c3 * x
        by_x = count * (c1 + x * (2.0 * c2 + x * (3.0 * c3))) + 3.0 * c3 * spread
        value += count * (c0 + x * (c1 + x * (c2 + x * c3))) + half_curvature * spread
        by_center += -by_x / w
        by_width += -x * by_x / w - 2 * half_curvature * spread / w
    return value, by_center, by_width


# --- area -------------------------------------------------------------------------------------------------------------


@triton.jit
def area_edge(c, w, side: tl.constexpr):
    """An edge of the footprint and the pixel to the right of it."""
    half = side * w
    return c + 0.5 + half, exact_floor(snapped(c, w), half, 0.0 * w + 0.5)


@triton.jit
def area_left_of(k, c, w, side: tl.constexpr):
    """The part of pixel k that lies left of an edge, and its derivatives."""
    position, pixel = area_edge(c, w, side)
    crossed = tl.where(k == pixel, 1.0, 0.0)
    return tl.where(k == pixel, position - k, tl.where(k < pixel, 1.0, 0.0)), crossed, side * crossed


@triton.jit
def area_tap(k, c, w):
    value, by_center, by_width = area_left_of(k, c, w, 0.5)
    less, less_center, less_width = area_left_of(k, c, w, -0.5)
    return value - less, by_center - less_center, by_width - less_width


@triton.jit
def area_stairs(c, w, anchor, step, lower, upper, side: tl.constexpr):
    """The sum of `area_left_of` over a lattice: a staircase, with a ramp where the edge crosses a pixel."""
    position, pixel = area_edge(c, w, side)
    # Bounds go with step 1, where all pixels left of the edge count; else there are none, and those up to it do.
    bounded = clamp(pixel, lower, upper + 1)
    copy = tl.floor((bounded - anchor) / step)
    crosses = (bounded - anchor - copy * step == 0) & (pixel >= lower) & (pixel <= upper)
    stairs = tl.where(crosses, copy + (position - pixel), copy + tl.where(step == 1, 0.0, 1.0))
    crossed = tl.where(crosses, 1.0, 0.0)
    return stairs, crossed, side * crossed


@triton.jit
def area_sum(c, w, anchor, step, lower, upper):
    value, by_center, by_width = area_stairs(c, w, anchor, step, lower, upper, 0.5)
    less, less_center, less_width = area_stairs(c, w, anchor, step, lower, upper, -0.5)
    return value - less, by_center - less_center, by_width - less_width


# --- entire functions cut at their support: lanczos3, gaussian --------------------------------------------------------


@triton.jit
def sinc(x):
    """``sin(pi x) / (pi x)`` and its derivative: exactly 0 at non-zero integers."""
    # A Taylor series near 0, where the quotient loses its derivative to 0/0.
    near = tl.abs(x) < SERIES_BELOW
    square = tl.where(near, x * x, 0.0)
    term = tl.zeros_like(x) + 1
    series = term
    series_slope = tl.zeros_like(x)
    for i in tl.static_range(1, 10):
        term = term * (-1.0 * PI * PI / ((2 * i) * (2 * i + 1)))
        series_slope += (2 * i) * term
        term = term * square
        series += term
    # sin(pi x) = (-1)^m sin(pi (x - m)) with m the nearest integer: the argument is exact and small.
    m = tl.floor(x + 0.5)
    sign = 1 - 2 * (m - 2 * tl.floor(0.5 * m))
    y = PI * (x - m)
    s = y
    sine = s
    q = tl.zeros_like(x) + 1
    cosine = q
    for i in tl.static_range(1, 12):
        s = s * (y * y) * (-1.0 / ((2 * i) * (2 * i + 1)))
        q = q * (y * y) * (-1.0 / ((2 * i - 1) * (2 * i)))
        sine += s
        cosine += q
    safe = tl.where(near, 1.0, x)
    value = sign * sine / (PI * safe)
    slope = (sign * cosine - value) / safe
    return tl.where(near, series, value), tl.where(near, series_slope * x, slope)


@triton.jit
def smooth_at(k, c, w, scale, GAUSSIAN: tl.constexpr):
    unit = scale * w
    x = (k - c) / unit
    if GAUSSIAN:
        bell = tl.exp(-0.5 * x * x)
        value = bell - AT_CUT
        slope = -x * bell
    else:
        whole, whole_slope = sinc(x)
        third, third_slope = sinc(x / 3)
        value = whole * third
        slope = whole_slope * third + whole * third_slope / 3
    return value, -slope / unit, -x * slope / w


@triton.jit
def smooth_reach(w, scale, GAUSSIAN: tl.constexpr):
    support: tl.constexpr = GAUSSIAN_CUT if GAUSSIAN else 3.0
    return support * scale * w


@triton.jit
def smooth_tap(k, c, w, scale, GAUSSIAN: tl.constexpr):
    reach = smooth_reach(w, scale, GAUSSIAN)
    inside = (k > tl.floor(c - reach)) & (k <= tl.floor(c + reach))
    # Outside, the function is not asked for what it may not be able to give.
    value, by_center, by_width = smooth_at(tl.where(inside, k, c), c, w, scale, GAUSSIAN)
    return tl.where(inside, value, 0.0), tl.where(inside, by_center, 0.0), tl.where(inside, by_width, 0.0)


@triton.jit
def gauss_legendre(i):
    """The i-th of `PANELS` times `NODES` nodes of a composite rule on [-1, 1], and its weight."""
    panel = i // NODES
    q = i % NODES
    outer = tl.where(q >= 4, q - 4, 3 - q)  # nodes lie symmetrically
    zero = (outer == 0).to(tl.float64)
    one = (outer == 1).to(tl.float64)
    two = (outer == 2).to(tl.float64)
    three = (outer == 3).to(tl.float64)
    node = zero * 0.1834346424956498 + one * 0.525532409916329 + two * 0.7966664774136267 + three * 0.9602898564975363
    weight = zero * 0.362683783378362 + one * 0.3137066458778873 + two * 0.2223810344533745 + three * 0.1012285362903763
    sign = tl.where(q >= 4, 1.0, -1.0)
    return (2 * panel + 1 + sign * node) / PANELS - 1, weight / PANELS


@triton.jit
def correction(i):
    """What stands for the derivatives of the midpoint rule's series; see `_lattice`."""
    return (
        (i == 0).to(tl.float64) * -0.058663459455945435
        + (i == 1).to(tl.float64) * 0.007651539726433799
        + (i == 2).to(tl.float64) * -0.001507862238404164
        + (i == 3).to(tl.float64) * 0.00026452902283724176
        + (i == 4).to(tl.float64) * -3.245638827113535e-05
        + (i == 5).to(tl.float64) * 1.9899215070652008e-06
    )


@triton.jit
def smooth_sum(c, w, anchor, step, lower, upper, scale, GAUSSIAN: tl.constexpr):
    reach = smooth_reach(w, scale, GAUSSIAN)
    before = clamp(tl.floor(c - reach), lower - 1, upper)
    last = clamp(tl.floor(c + reach), lower - 1, upper)
    first, count = run_of(before, last, anchor, step)
    long = count > LONG
    half = tl.where(long, 0.5 * count * step, 0.0)
    middle = first + 0.5 * (count - 1) * step
    value = tl.zeros_like(first)
    by_center = tl.zeros_like(first)
    by_width = tl.zeros_like(first)
    nodes: tl.constexpr = PANELS * NODES
    longest = tl.max(tl.max(count, axis=0), axis=0) if len(count.shape) == 2 else tl.max(count, axis=0)
    steps = tl.where(longest > LONG, nodes + 4 * CORRECTIONS, longest).to(tl.int32)
    for number in range(steps):
        i = tl.zeros_like(steps) + number
        node, weight = gauss_legendre(i)
        end = i - nodes
        out = (end // 4 + 0.5) * step
        side = tl.where(end % 2 == 0, 1.0, -1.0)
        outward = tl.where(end % 4 < 2, 1.0, -1.0)
        quadrature = i < nodes
        place = tl.where(quadrature, middle + node * half, middle + side * (half + outward * out))
        factor = tl.where(quadrature, 0.5 * count * weight, outward * correction(end // 4))
        k = tl.where(long, place, first + i * step)
        there = long | (i < count)
        factor = tl.where(long, factor, 1.0)
        v, p, q = smooth_at(tl.where(there, k, c), c, w, scale, GAUSSIAN)
        value += tl.where(there, factor * v, 0.0)
        by_center += tl.where(there, factor * p, 0.0)
        by_width += tl.where(there, factor * q, 0.0)
    return value, by_center, by_width


# --- any of them ------------------------------------------------------------------------------------------------------


@triton.jit
def tap(k, c, w, scale, MODE: tl.constexpr, A: tl.constexpr):
    """The unnormalised weight of pixel k."""
    if MODE == "area":
        return area_tap(k, c, w)
    elif MODE == "lanczos3" or MODE == "gaussian":
        return smooth_tap(k, c, w, scale, MODE == "gaussian")
    else:
        return polynomial_tap(k, c, w, MODE == "bicubic", A)


@triton.jit
def lattice_sum(c, w, scale, anchor, step, lower, upper, MODE: tl.constexpr, A: tl.constexpr):
    """The sum over the integers ``anchor + m * step`` in [lower, upper]; bounds go with step 1 only."""
    if MODE == "area":
        return area_sum(c, w, anchor, step, lower, upper)
    elif MODE == "lanczos3" or MODE == "gaussian":
        return smooth_sum(c, w, anchor, step, lower, upper, scale, MODE == "gaussian")
    else:
        return polynomial_sum(c, w, anchor, step, lower, upper, MODE == "bicubic", A)


@triton.jit
def reach_of(w, scale, MODE: tl.constexpr):
    """Distance from an output's position beyond which a pixel has no weight."""
    if MODE == "area":
        return 0.5 * (w + 1)
    elif MODE == "lanczos3" or MODE == "gaussian":
        return smooth_reach(w, scale, MODE == "gaussian")
    elif MODE == "bicubic":
        return 2.0 * w
    elif MODE == "nearest":
        return 0.5 * w
    else:
        return 1.0 * w


@triton.jit
def support(c, w, scale, MODE: tl.constexpr):
    """The first and last pixel with a weight, also outside the image."""
    if MODE == "area":
        _, left = area_edge(c, w, -0.5)
        _, right = area_edge(c, w, 0.5)
        return left, right
    elif MODE == "lanczos3" or MODE == "gaussian":
        reach = smooth_reach(w, scale, MODE == "gaussian")
        return tl.floor(c - reach) + 1, tl.floor(c + reach)
    elif MODE == "bicubic":
        return knot(0, c, w, True) + 1, knot(4, c, w, True)
    else:
        return knot(0, c, w, False) + 1, knot(2, c, w, False)
