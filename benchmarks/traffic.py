"""The bytes that a case must move at the least, whoever computes it: what GB/s are counted over.

Read once: the pixels that the crops depend on, in whole cache lines along a row, and with a gradient the cotangent.
Written once: the crops and the gradients asked for, an image gradient as a whole. A paste reads patches and canvases
and writes canvases. Temporaries, second reads and
the lines that a write fetches first are the business of who computes, not of the case.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import diffcrop

from .problem import SAMPLES, Problem, wants

LINE = 64
# Distance from an output's position, in widths, at which a filter has fallen to zero. An averaged pixel is counted by
# its overlap with the footprint, hence half a pixel more.
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos3": 3.0, "area": 0.5}


def taps(lo: float, hi: float, n: int, pixels: int, mode: str, antialias: bool, padding_mode: str) -> NDArray[np.bool_]:
    """Which of the pixels 0..pixels-1 have a weight in any of n outputs of the axis [lo, hi]."""
    if padding_mode not in ("zeros", "constant", "border", "renormalize"):
        raise ValueError(f"padding_mode={padding_mode!r} is not counted")
    s = abs(hi - lo) / n
    width = max(s, 1.0) if antialias else 1.0
    reach = _SUPPORT[mode] * width + (0.5 if mode == "area" else 0.0)
    read = np.zeros(pixels, dtype=bool)
    for j in range(n):
        c = lo + (j + 0.5) * (hi - lo) / n - 0.5
        if padding_mode == "renormalize" and not -0.5 <= c <= pixels - 0.5:
            continue
        # Strictly between c - reach and c + reach: at the ends the weight is zero.
        first, last = int(np.floor(c - reach)) + 1, int(np.ceil(c + reach)) - 1
        if padding_mode == "border":
            first, last = (min(max(k, 0), pixels - 1) for k in (first, last))
        read[max(first, 0) : max(last + 1, 0)] = True
    return read


def touched_bytes(problem: Problem) -> int:
    """Of the images, in whole lines, each once however many boxes share it.

    Rows are taken to begin a line, which holds where their bytes are a multiple of 64, as in all larger cases.
    """
    case = problem.case
    count, channels, *others, width = case.images
    item = problem.images.element_size()
    # With channels innermost a pixel is all of them and there is one plane.
    pixel, planes = (item * channels, 1) if case.channels_last else (item, channels)
    first = np.arange(width) * pixel // LINE
    last = ((np.arange(width) + 1) * pixel - 1) // LINE
    lines = -(-width * pixel // LINE)
    sizes = np.full(lines, LINE)
    sizes[-1] = width * pixel - LINE * (lines - 1)
    filter_ = (case.mode, case.antialias, case.padding_mode)
    total = 0
    for image in range(count):
        read = np.zeros((*others, lines), dtype=bool)
        if case.shape not in ("upright", "roi"):
            read |= _touched_lines(problem, image, first, last, lines)
            total += int((read * sizes).sum()) * planes
            continue
        each = SAMPLES if case.shape == "roi" else 1
        for box in problem.boxes[problem.owner == image].tolist():
            ends = np.zeros(lines + 1, dtype=int)
            for column in taps(box[0], box[case.axes], each * case.size[-1], width, *filter_).nonzero()[0]:
                ends[first[column]] += 1
                ends[last[column] + 1] -= 1
            mine = np.cumsum(ends)[:-1] > 0
            for axis in range(1, case.axes):  # y, z: in front of x
                ends_of = box[axis], box[case.axes + axis]
                rows = taps(*ends_of, each * case.size[-1 - axis], case.images[-1 - axis], *filter_)
                mine = rows.reshape(-1, *[1] * mine.ndim) & mine
            read |= mine
        total += int((read * sizes).sum()) * planes
    return total


def _touched_lines(
    problem: Problem, image: int, first: NDArray[np.int_], last: NDArray[np.int_], lines: int
) -> NDArray[np.bool_]:
    """Which lines of an image boxes that are not upright read: those of the two by two pixels around each position.

    Positions are those of the outputs, or with antialiasing lie no more than a pixel apart.
    """
    case = problem.case
    if case.mode != "bilinear" or case.padding_mode != "zeros":
        raise ValueError(f"mode={case.mode!r} with padding_mode={case.padding_mode!r} is not counted")
    _, _, height, width = case.images
    boxes = problem.boxes[problem.owner == image].double()
    quads = diffcrop.rotated_to_quads(boxes) if case.shape == "rotated" else boxes.unflatten(1, (4, 2))
    h, w = case.size
    if case.antialias:
        side = float((quads - quads.roll(1, 1)).norm(dim=-1).max())
        h, w = max(h, int(side) + 1), max(w, int(side) + 1)
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in (h, w)), indexing="ij")
    place = diffcrop.warp_points(torch.stack([u, v], -1).flatten(0, 1), diffcrop.quads_to_matrix(quads, (h, w)))
    column, row = (place - 0.5).floor().long().flatten(0, 1).numpy().T
    read = np.zeros((height, lines), dtype=bool)
    for r in (row, row + 1):
        for c in (column, column + 1):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            read[r[inside], first[c[inside]]] = True
            read[r[inside], last[c[inside]]] = True
    return read


def bytes_moved(problem: Problem) -> dict[str, int]:
    """At the least, by pass."""
    crops = problem.cotangent.numel() * problem.cotangent.element_size()
    if problem.canvas is not None:  # patches and canvases are read as wholes
        touched = problem.images.nbytes + problem.canvas.nbytes
    else:
        touched = touched_bytes(problem)
    moved = {}
    for pass_ in problem.case.passes:
        images, boxes = wants(pass_)
        total = touched + crops
        total += crops if images or boxes else 0
        total += problem.images.numel() * problem.images.element_size() if images else 0
        total += problem.boxes.numel() * problem.boxes.element_size() if boxes else 0
        moved[pass_] = total
    return moved
