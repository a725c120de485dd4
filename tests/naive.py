"""The contract once more, by brute force: an independent oracle that shares no line and no idea with the package.

For each output it walks over every unfolded integer tap within the filter's reach, weighs it, divides by the sum, and
only then folds the taps into the image. Its cost grows with the reduction; it has no closed forms, no switches and no
bands. Derivatives are written out from f'; where f' jumps they are the right-hand ones in c.
"""

from __future__ import annotations

import math

import numpy as np

GAUSSIAN_CUT = 6.0


def _triangle(x):
    """f and f' at x; where f' jumps, the piece on the left of x: as c moves right, x = (k - c) / width moves left."""
    value = np.maximum(1 - np.abs(x), 0.0)
    slope = np.where((x > -1) & (x <= 0), 1.0, np.where((x > 0) & (x <= 1), -1.0, 0.0))
    return value, slope


def _cubic(a):
    def f(x):
        r, sign = np.abs(x), np.where(x <= 0, -1.0, 1.0)
        inner, outer = r <= 1, (r > 1) & (r <= 2)
        value = np.where(
            inner, ((a + 2) * r - (a + 3)) * r * r + 1, np.where(outer, a * (((r - 5) * r + 8) * r - 4), 0.0)
        )
        slope = np.where(inner, (3 * (a + 2) * r - 2 * (a + 3)) * r, np.where(outer, a * ((3 * r - 10) * r + 8), 0.0))
        return value, sign * slope

    return f


def _lanczos3(x):
    def sinc(t):
        value = np.sinc(t)
        safe = np.where(t == 0, 1.0, t)
        slope = np.where(np.abs(t) < 1e-4, -(math.pi**2) * t / 3, (np.cos(math.pi * safe) - value) / safe)
        return value, slope

    (u, du), (v, dv) = sinc(x), sinc(x / 3)
    inside = (x > -3) & (x <= 3)
    return np.where(inside, u * v, 0.0), np.where(inside, du * v + u * dv / 3, 0.0)


def _gaussian(sigma):
    def f(x):
        e = np.exp(-0.5 * (x / sigma) ** 2)
        inside = (x > -GAUSSIAN_CUT * sigma) & (x <= GAUSSIAN_CUT * sigma)
        return np.where(inside, e - math.exp(-0.5 * GAUSSIAN_CUT**2), 0.0), np.where(inside, -x / sigma**2 * e, 0.0)

    return f


def filter_and_support(mode, antialias, sigma):
    return {
        "bilinear": (_triangle, 1.0),
        "bicubic": (_cubic(-0.5 if antialias else -0.75), 2.0),
        "lanczos3": (_lanczos3, 3.0),
        "gaussian": (_gaussian(sigma), GAUSSIAN_CUT * sigma),
    }[mode]


def _raw(mode, k, c, width, antialias, sigma):
    """Unnormalised weights of the taps k and their derivatives by c and by the width."""
    if mode == "area":
        left, right = c + 0.5 - width / 2, c + 0.5 + width / 2
        w = np.maximum(np.minimum(k + 1, right) - np.maximum(k, left), 0.0)
        at_left = ((k <= left) & (left < k + 1)).astype(float)
        at_right = ((k <= right) & (right < k + 1)).astype(float)
        return w, at_right - at_left, (at_right + at_left) / 2
    f, _ = filter_and_support(mode, antialias, sigma)
    x = (k - c) / width
    w, slope = f(x)
    return w, -slope / width, -slope * x / width


def _fold(k, pixels, padding_mode, align_corners):
    """Where the taps k read the image, and which of them do."""
    everywhere = np.ones(k.shape, dtype=bool)
    if padding_mode == "border":
        return np.clip(k, 0, pixels - 1), everywhere
    if padding_mode == "circular":
        return k % pixels, everywhere
    if padding_mode == "reflection":
        if align_corners:
            m = k % max(2 * pixels - 2, 1)
            return np.where(m < pixels, m, 2 * pixels - 2 - m), everywhere
        m = k % (2 * pixels)
        return np.where(m < pixels, m, 2 * pixels - 1 - m), everywhere
    inside = (k >= 0) & (k < pixels)
    return np.where(inside, k, 0), inside


def sampling(lo, hi, n, align_corners):
    """Positions, the reduction, and how each position moves with lo and with hi."""
    j = np.arange(n)
    if not align_corners:
        t = (j + 0.5) / n
        return lo + t * (hi - lo) - 0.5, abs(hi - lo) / n, 1 - t, t
    t = j / (n - 1) if n > 1 else np.array([0.5])
    return lo + t * (hi - lo), abs(hi - lo) / max(n - 1, 1), 1 - t, t


def axis(lo, hi, n, pixels, *, mode, antialias, padding_mode, sigma=0.5, align_corners=False):
    """W (n, pixels), dW/dlo, dW/dhi, and the mask of the (output, pixel) pairs that lie within the filter's reach."""
    W, D0, D1 = np.zeros((3, n, pixels))
    near = np.zeros((n, pixels), dtype=bool)
    if align_corners and pixels == 1:
        return W + 1, D0, D1, ~near
    c, s, c_lo, c_hi = sampling(lo, hi, n, align_corners)
    if mode == "nearest":
        k, inside = _fold(np.floor(c + 0.5).astype(np.int64), pixels, padding_mode, align_corners)
        W[np.arange(n), k] = inside
        return W, D0, D1, W > 0
    width = max(s, 1.0) if antialias else 1.0
    s_lo = s_hi = 0.0
    if antialias and s > 1:
        s_hi = math.copysign(1.0, hi - lo) / (n if not align_corners else max(n - 1, 1))
        s_lo = -s_hi
    reach = (width + 1) / 2 if mode == "area" else filter_and_support(mode, antialias, sigma)[1] * width
    for j in range(n):
        k = np.arange(math.floor(c[j] - reach) - 1, math.ceil(c[j] + reach) + 2)
        w, by_c, by_width = _raw(mode, k, c[j], width, antialias, sigma)
        where, inside = _fold(k, pixels, padding_mode, align_corners)
        if padding_mode == "renormalize":
            if not -0.5 <= c[j] <= pixels - 0.5:
                continue
            k, w, by_c, by_width, where, inside = (t[inside] for t in (k, w, by_c, by_width, where, inside))
        total = w.sum()
        by_lo, by_hi = by_c * c_lo[j] + by_width * s_lo, by_c * c_hi[j] + by_width * s_hi
        w, by_lo, by_hi = (
            w / total,
            (by_lo - w / total * by_lo.sum()) / total,
            (by_hi - w / total * by_hi.sum()) / total,
        )
        for pixel in np.unique(where[inside]):  # numpy's pairwise sums: a scatter would lose digits over many taps
            here = inside & (where == pixel)
            W[j, pixel], D0[j, pixel], D1[j, pixel] = w[here].sum(), by_lo[here].sum(), by_hi[here].sum()
        near[j, where[inside & (np.abs(k - c[j]) <= reach)]] = True
    return W, D0, D1, near


def matrices(box, size, shape, **options):
    """`axis` for y and for x, of a pixel xyxy box."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return axis(y0, y1, size[0], shape[0], **options), axis(x0, x1, size[1], shape[1], **options)


def crop(image, box, size, fill=0.0, **options):
    """(C, h, w) of a (C, H, W) image, float64; ``fill`` broadcasts against (C, 1, 1)."""
    (Wy, *_), (Wx, *_) = matrices(box, size, image.shape[1:], **options)
    return fill + Wy @ (image - fill) @ Wx.T


def gradients(image, box, size, cotangent, fill=0.0, **options):
    """Of <cotangent, crop> by the image and by the box."""
    (Wy, Dy0, Dy1, _), (Wx, Dx0, Dx1, _) = matrices(box, size, image.shape[1:], **options)
    image = image - fill
    by_box = [np.sum(cotangent * (A @ image @ B.T)) for A, B in ((Wy, Dx0), (Dy0, Wx), (Wy, Dx1), (Dy1, Wx))]
    return Wy.T @ cotangent @ Wx, np.array(by_box)
