"""RoIAlign by its definition: sample after sample, bin after bin, in Python's own numbers.

It shares nothing with the package: no matrices, no runs, no separability. Values and derivatives of a sample are those
of the bilinear surface at a point; derivatives are the right-hand ones. `exact` cuts bins into cells of the surface,
which is bilinear there: its mean over a rectangle is its value in the middle.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def _linear(p, count):
    """Pixels and weights of a position on an axis, and the derivatives of the weights by it."""
    if not -1 <= p <= count:
        return []
    if p < 0:
        return [(0, 1.0, 0.0)]
    if p >= count - 1:
        return [(count - 1, 1.0, 0.0)]
    k = math.floor(p)
    return [(k, 1 - (p - k), -1.0), (k + 1, p - k, 1.0)]


def _positions(lo, hi, n, ratio, aligned, scale):
    """For each bin its samples: the position and its derivatives by lo and hi as they were given."""
    lo, hi = lo * scale, hi * scale
    clamped = not aligned and hi - lo <= 1
    if aligned:
        lo, hi = lo - 0.5, hi - 0.5
    elif clamped:
        hi = lo + 1
    size = (hi - lo) / n
    count = ratio if ratio > 0 else math.ceil(size)
    bins = []
    for j in range(n):
        samples = []
        for i in range(count):
            t = (j + (i + 0.5) / count) / n
            by = (scale, 0.0) if clamped else ((1 - t) * scale, t * scale)
            samples.append((lo + t * (hi - lo), *by))
        bins.append(samples)
    return bins


def roi_align(images, rois, size, scale=1.0, ratio=-1, aligned=False, cotangent=None):
    """The result, and with a cotangent the gradients by the images and by the rois; any number of axes."""
    axes = len(size)
    spatial = images.shape[2:]
    result = np.zeros((len(rois), images.shape[1], *size))
    by_images, by_rois = np.zeros(images.shape), np.zeros(rois.shape)
    for r, (index, *box) in enumerate(rois):
        b = int(index)
        # Tensors have x last, boxes first.
        per_axis = [
            _positions(box[axes - 1 - a], box[2 * axes - 1 - a], size[a], ratio, aligned, scale) for a in range(axes)
        ]
        for bin_ in itertools.product(*map(range, size)):
            samples = list(itertools.product(*(per_axis[a][bin_[a]] for a in range(axes))))
            for sample in samples:
                for taps in itertools.product(*(_linear(s[0], spatial[a]) for a, s in enumerate(sample))):
                    pixel = images[(b, slice(None), *(t[0] for t in taps))]
                    weight = math.prod(t[1] for t in taps) / len(samples)
                    result[(r, slice(None), *bin_)] += weight * pixel
                    if cotangent is None:
                        continue
                    g = cotangent[(r, slice(None), *bin_)]
                    by_images[(b, slice(None), *(t[0] for t in taps))] += weight * g
                    for a, s in enumerate(sample):
                        slope = taps[a][2] * math.prod(t[1] for c, t in enumerate(taps) if c != a) / len(samples)
                        by_rois[r, axes - a] += (g * pixel).sum() * slope * s[1]
                        by_rois[r, 2 * axes - a] += (g * pixel).sum() * slope * s[2]
    return result if cotangent is None else (result, by_images, by_rois)


# --- the integral -----------------------------------------------------------------------------------------------------


def _surface(plane, y, x):
    """The bilinear surface through a plane that zeros surround, at a point."""
    total = 0.0
    for k, m in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= k < plane.shape[0] and 0 <= m < plane.shape[1]:
            total += plane[k, m] * (1 - abs(y - k)) * (1 - abs(x - m))
    return total


def _cells(a, b):
    """[a, b] cut at the integers: (middle, length) of every part."""
    cuts = [a, *range(math.floor(a) + 1, math.ceil(b)), b]
    return [((u + v) / 2, v - u) for u, v in itertools.pairwise(cuts)]


def _mean(a, b, function):
    return function(a) if a == b else sum(length * function(middle) for middle, length in _cells(a, b)) / (b - a)


def precise(plane, box, size, cotangent):
    """The mean over each bin of one plane (H, W), for a box in pixel corners; and its gradient by the box.

    The gradient is Leibniz's rule: a side that moves brings in the mean along itself in place of the bin's.
    """
    x0, y0, x1, y1 = box
    result, by_box = np.zeros(size), np.zeros(4)
    for i, j in itertools.product(*map(range, size)):
        ends = [
            (lo + t / n * (hi - lo) - 0.5, lo + (t + 1) / n * (hi - lo) - 0.5)
            for lo, hi, t, n in ((y0, y1, i, size[0]), (x0, x1, j, size[1]))
        ]
        (ya, yb), (xa, xb) = ((min(e), max(e)) for e in ends)
        along_y = lambda x, ya=ya, yb=yb: _mean(ya, yb, lambda y: _surface(plane, y, x))  # noqa: E731
        along_x = lambda y, xa=xa, xb=xb: _mean(xa, xb, lambda x: _surface(plane, y, x))  # noqa: E731
        value = result[i, j] = _mean(ya, yb, along_x)
        for (a, b), along, t, n, place in ((ends[0], along_x, i, size[0], 1), (ends[1], along_y, j, size[1], 0)):
            # By the bin's first and second end, which are a mirrored bin's upper and lower one.
            first, second = (value - along(a)) / (b - a), (along(b) - value) / (b - a)
            by_box[place] += cotangent[i, j] * ((1 - t / n) * first + (1 - (t + 1) / n) * second)
            by_box[place + 2] += cotangent[i, j] * (t / n * first + (t + 1) / n * second)
    return result, by_box
