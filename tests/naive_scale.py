"""`jax.image.scale_and_translate` by its published definition: tap by tap, in Python's own numbers, without autograd.

Of an axis with N pixels, scale s and translation t, output j reads the image at c = (j + 1/2 - t) / s - 1/2, and tap k
has the weight f(|c - k| / w) with w = max(1 / s, 1) (1 without antialiasing), normalised by their sum over the pixels
that there are; a sum of nearly nothing, or a c outside of [-1/2, N - 1/2], makes a row of zeros. "area" weighs pixel
[k, k + 1] by what it shares with [(j - t) / s, (j + 1 - t) / s]. "cubic-pytorch" without antialiasing repeats the
pixels at the edges and knows no outside.

With m = 1 / s:

    dc/dt = -m         dc/ds = -(j + 1/2 - t) m^2         dw/ds = -m^2 where m > 1, else 0
    d f(x)             = f'(x) (dc - x dw) / w, with x = (c - k) / w
    d (f / sum f)      = (df - (f / sum f) sum df) / sum f
"""

from __future__ import annotations

import math

import numpy as np

NEARLY_NOTHING = 1000 * float(np.finfo(np.float32).eps)


def _triangle(x):
    return (1 - x, -1.0) if x < 1 else (0.0, 0.0)


def _cubic(a):
    def kernel(x):
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1, 3 * (a + 2) * x**2 - 2 * (a + 3) * x
        if x < 2:
            return a * (x**3 - 5 * x**2 + 8 * x - 4), a * (3 * x**2 - 10 * x + 8)
        return 0.0, 0.0

    return kernel


def _sinc(x):
    """sin(pi x) / (pi x) and its derivative, away from 0."""
    angle = math.pi * x
    return math.sin(angle) / angle, (math.cos(angle) - math.sin(angle) / angle) / x


def _lanczos(radius):
    def kernel(x):
        if x >= radius:
            return 0.0, 0.0
        narrow, by_narrow = _sinc(x)
        wide, by_wide = _sinc(x / radius)
        return narrow * wide, by_narrow * wide + narrow * by_wide / radius

    return kernel


# Of x >= 0: value and derivative.
_KERNELS = {
    "linear": _triangle,
    "cubic": _cubic(-0.5),
    "cubic-pytorch": _cubic(-0.75),
    "lanczos3": _lanczos(3),
    "lanczos5": _lanczos(5),
}


def _overlap(k, lo, hi, by_lo, by_hi):
    """The length of [k, k + 1] inside [lo, hi], and its derivatives."""
    length = min(hi, k + 1) - max(lo, k)
    if length <= 0:
        return 0.0, np.zeros(2)
    return length, by_hi * (hi < k + 1) - by_lo * (lo > k)


def _row(j, pixels, scale, translation, method, antialias):
    """The weights (N,) of output j and their derivatives (N, 2) by scale and translation."""
    m = 1 / scale
    place = j + 0.5 - translation
    c, by_c = place * m - 0.5, np.array([-place * m * m, -m])
    width, by_width = (m, np.array([-m * m, 0.0])) if antialias and m > 1 else (1.0, np.zeros(2))
    repeats = method == "cubic-pytorch" and not antialias
    weights, slopes = np.zeros(pixels), np.zeros((pixels, 2))
    reach = 2 if repeats else 0
    for k in range(-reach, pixels + reach):
        if method == "area":
            lo, hi = (place - 0.5) * m, (place + 0.5) * m
            by = [np.array([-(place + h) * m * m, -m]) for h in (-0.5, 0.5)]
            weight, slope = _overlap(k, lo, hi, *by)
        else:
            kernel = _KERNELS["cubic" if method == "cubic-pytorch" and antialias else method]
            x = (c - k) / width
            weight, slope = kernel(abs(x))
            slope = slope * math.copysign(1.0, x) * (by_c - x * by_width) / width
        at = min(max(k, 0), pixels - 1)
        weights[at] += weight
        slopes[at] += slope
    total, by_total = weights.sum(), slopes.sum(0)
    if abs(total) <= NEARLY_NOTHING or (not repeats and not -0.5 <= c <= pixels - 0.5):
        return np.zeros(pixels), np.zeros((pixels, 2))
    weights = weights / total
    return weights, (slopes - weights[:, None] * by_total) / total


def scale_and_translate(image, shape, dims, scale, translation, method, antialias, cotangent):
    """The result and its gradients by the image, the scale and the translation, as float64 arrays."""
    matrices, slopes = [], []
    for d, s, t in zip(dims, scale, translation, strict=True):
        rows = [_row(j, image.shape[d], s, t, method, antialias) for j in range(shape[d])]
        matrices.append(np.stack([row[0] for row in rows]))
        slopes.append(np.stack([row[1] for row in rows]))

    def product(source, factors):
        for d, matrix in zip(dims, factors, strict=True):
            source = np.moveaxis(np.tensordot(source, matrix, (d, 1)), -1, d)
        return source

    by_image = product(cotangent, [matrix.T for matrix in matrices])
    by_scale, by_translation = np.zeros(len(dims)), np.zeros(len(dims))
    for i in range(len(dims)):
        for which, gradient in enumerate((by_scale, by_translation)):
            moved = [slopes[i][..., which] if i == other else matrix for other, matrix in enumerate(matrices)]
            gradient[i] = (product(image, moved) * cotangent).sum()
    return product(image, matrices), by_image, by_scale, by_translation
