"""Boxes that stay away from the kinks of a crop, and how far they do."""

from __future__ import annotations

import math

import torch

MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
# Every pair of a filter and antialias that is allowed.
FILTERS = [(mode, antialias) for mode in MODES for antialias in (True, False) if antialias or mode != "area"]

# Where f is not smooth, in units of the width. Lanczos and the Gaussian have a kink (of some order) where they are cut.
_KNOTS = {
    "bilinear": (-1.0, 0.0, 1.0),
    "bicubic": (-2.0, -1.0, 0.0, 1.0, 2.0),
    "lanczos3": (-3.0, 3.0),
    "gaussian": (-3.0, 3.0),  # 6 sigma at the default sigma
    "nearest": (),
}


def options(mode, antialias, padding_mode, **more):
    """Keywords for `crop`; a constant is given a fill that is not the default."""
    fill = {"fill": 0.25} if padding_mode == "constant" else {}
    return {"mode": mode, "antialias": antialias, "padding_mode": padding_mode, **fill, **more}


def kink_distance(lo, hi, n, pixels, *, mode, antialias=True, padding_mode="border", align_corners=False):
    """How far the axis [lo, hi] -> n is from a box where the crop is not smooth, in pixels of the image."""
    steps = n - 1 if align_corners else n
    s = abs(hi - lo) / max(steps, 1)
    first = lo + (hi - lo) / (2 * n) - 0.5 if not align_corners else (lo if n > 1 else (lo + hi) / 2)
    c = first + (hi - lo) / max(steps, 1) * torch.arange(n, dtype=torch.float64)
    width = max(s, 1.0) if antialias else 1.0
    distance = abs(hi - lo)  # |hi - lo| has a kink
    if antialias and mode != "nearest":
        distance = min(distance, abs(s - 1))
    if mode == "nearest":
        at = c + 0.5
    elif mode == "area":
        at = torch.cat([c + 0.5 - width / 2, c + 0.5 + width / 2])
    else:
        at = torch.cat([c + knot * width for knot in _KNOTS[mode]])
    distance = min(distance, float((at - at.round()).abs().min()))
    if padding_mode == "renormalize":  # the crop jumps where an output's centre leaves the image
        distance = min(distance, float((c + 0.5).abs().min()), float((c + 0.5 - pixels).abs().min()))
    return distance


def random_axis(pixels, n, generator, *, margin=0.02, reduction=None, **where):
    """One (lo, hi) at least ``margin`` from every kink: inside, across or outside the image, and often mirrored."""
    steps = max(n - 1, 1) if where.get("align_corners") else n
    for _ in range(20_000):
        u = torch.rand(4, generator=generator, dtype=torch.float64)
        s = math.exp(float(u[0]) * 3.2 - 1.6) if reduction is None else reduction * (0.9 + 0.2 * float(u[0]))
        middle = float(u[1]) * (pixels + 4) - 2
        extent = s * steps * (1 if u[2] < 0.7 else -1)
        lo, hi = middle - extent / 2, middle + extent / 2
        if kink_distance(lo, hi, n, pixels, **where) >= margin:
            return lo, hi
    raise AssertionError(f"no box of {n} outputs keeps {margin} from the kinks of {where}")


def random_boxes(count, size, shape, generator, **where):
    """(count, 4) pixel xyxy boxes, float64, smooth points of the crop; see `random_axis`."""
    rows = []
    for _ in range(count):
        y0, y1 = random_axis(shape[0], size[0], generator, **where)
        x0, x1 = random_axis(shape[1], size[1], generator, **where)
        rows.append((x0, y0, x1, y1))
    return torch.tensor(rows, dtype=torch.float64)


def rand(*shape, generator, dtype=torch.float64):
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)
