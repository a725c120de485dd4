"""The specification of warps: every sample reads the pixels around it, in plain differentiable PyTorch.

With (u, v) a point of the crop in its own pixels and M the matrix of its box,

    (X, Y, Z) = M (u, v, 1),   c = (X / Z - 1/2, Y / Z - 1/2)          the position on the axes of pixel indices
    surface(c) = sum_a sum_b f(k_a - c_y) f(k_b - c_x) image[k_a, k_b]   f: the mode's filter, of width 1
    warp[i, j] = sum_s sum_t w_s w_t surface(c(j + p_t, i + p_s))

The last line is the filter again, over m samples an axis and output, where the reduction s is above 1. The surface is
an image that is filtered already, at width 1, so the samples' filter is a narrower one, which tends to the middle
sample as s tends to 1 (`_weights`). For all filters but `area` there are m = ceil(s) samples, one of them in the
middle: p_t = 1/2 + t/m for whole t. For `area` they are the middles of m parts of the output.

Shapes throughout: ``images`` (B, C, H, W); ``matrices`` (R, 3, 3); ``index`` (R,) or None, which means that R is a
multiple of B and box r reads image r // (R / B); ``reductions`` (R, 2) int64, s along x and y in parts of `UNIT` (1 and
less: no reduction; 0: no box at all, the result is 0), or None where nothing is reduced; the result is (R, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffcrop._context import in_full_precision, is_concrete
from diffcrop._derivative import pull, push
from diffcrop._filters import get, slack
from diffcrop._options import MOST_SAMPLES, UNIT, WarpOptions, result_dtype, sum_dtype

# Beyond this a matrix counts as infinite: its products must not overflow.
_FARTHEST = 1e100
# Positions farther out than this are as good as infinity: the nearest such place serves, and nothing moves there.
_FAR = 2.0**52
# Memory of intermediates, about, at which boxes are worked on one by one where values may be looked at.
_BUDGET = 64 * 2**20
# Pixels that an output reads along an axis, and how many outputs away the filter of samples reaches.
TAPS = {"nearest": 1, "bilinear": 2, "area": 2, "bicubic": 4, "lanczos3": 6}
REACH = {"nearest": 0, "bilinear": 1, "area": 0, "bicubic": 2, "lanczos3": 3}


@in_full_precision
def warp(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: Sequence[int],
    options: WarpOptions,
) -> Tensor:
    """The warped images (R, C, *size)."""
    if matrices.shape[0] == 0:
        return images.new_zeros((0, images.shape[1], *size), dtype=result_dtype(images.dtype, options.mode))
    steps = _steps(images.shape, matrices, index, reductions, size, options)
    if steps is None:
        return _warp(images, matrices, index, reductions, size, options)
    return torch.cat([_warp(images[b], matrices[r], i, s, size, options) for r, b, i, s in steps])


@in_full_precision
def grad_images(
    grad: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    image_shape: Sequence[int],
    options: WarpOptions,
) -> Tensor:
    """The transpose of the warp, summed over the boxes of each image, in the dtype of the sums."""
    zeros = grad.new_zeros(tuple(image_shape), dtype=sum_dtype(grad.dtype))
    grad, size = grad.to(zeros.dtype), grad.shape[2:]
    differentiated = torch.is_grad_enabled() and (grad.requires_grad or matrices.requires_grad)
    steps = None if differentiated else _steps(image_shape, matrices, index, reductions, size, options)
    if steps is None or matrices.shape[0] == 0:

        def function(i: Tensor) -> Tensor:
            return warp(i, matrices, index, reductions, size, options)

        return pull(function, [zeros], grad, differentiated)[1][0]
    for r, b, i, s in steps:

        def one(image: Tensor, r: slice = r, i: Tensor | None = i, s: Tensor | None = s) -> Tensor:
            return warp(image, matrices[r], i, s, size, options)

        zeros[b] += pull(one, [torch.zeros_like(zeros[b])], grad[r], False)[1][0]
    return zeros


@in_full_precision
def grad_matrices(
    grad: Tensor,
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    options: WarpOptions,
) -> Tensor:
    """``<grad, d warp / d matrix>`` (R, 3, 3), in the matrices' dtype."""
    size = grad.shape[2:]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (grad, images, matrices))
    steps = None if differentiated else _steps(images.shape, matrices, index, reductions, size, options)
    if steps is None or matrices.shape[0] == 0:

        def function(m: Tensor) -> Tensor:
            return warp(images, m, index, reductions, size, options)

        return pull(function, [matrices], grad, differentiated)[1][0]
    parts = []
    for r, b, i, s in steps:

        def one(m: Tensor, b: slice = b, i: Tensor | None = i, s: Tensor | None = s) -> Tensor:
            return warp(images[b], m, i, s, size, options)

        parts.append(pull(one, [matrices[r]], grad[r], False)[1][0])
    return torch.cat(parts)


@in_full_precision
def tangent(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: Sequence[int],
    options: WarpOptions,
    d_matrices: Tensor,
) -> Tensor:
    """The derivative of the warp in the direction ``d_matrices``; differentiable in all its tensors."""
    if is_concrete(images, matrices) and torch.is_inference_mode_enabled():
        # No graph can be had there, and none of its tensors may enter one.
        with torch.inference_mode(False):
            owner, counts = (None if t is None else t.clone() for t in (index, reductions))
            return tangent(images.clone(), matrices.clone(), owner, counts, size, options, d_matrices.clone())

    def function(m: Tensor) -> Tensor:
        return warp(images, m, index, reductions, size, options)

    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (images, matrices, d_matrices))
    return push(function, matrices, d_matrices, wanted)


@in_full_precision
def second(
    grad: Tensor,
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    options: WarpOptions,
    d_matrices: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Derivatives of ``<grad, tangent(d_matrices)>`` by grad, the images and the matrices; None where not ``wanted``.

    See `reference.second`, of which this is the counterpart.
    """
    images = images if images.is_floating_point() else images.to(grad.dtype)
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (grad, images, matrices, d_matrices))

    def function(i: Tensor, m: Tensor) -> Tensor:
        return tangent(i, m, index, reductions, grad.shape[2:], options, d_matrices)

    if wanted[1]:
        value, grads = pull(function, [images, matrices], grad, differentiated)
        parts = [value, *grads]
    else:
        value, grads = pull(lambda m: function(images, m), [matrices], grad, differentiated)
        parts = [value, None, *grads]
    return [part if want else None for part, want in zip(parts, wanted, strict=True)]


def _steps(
    image_shape: Sequence[int],
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: Sequence[int],
    options: WarpOptions,
) -> Iterator[tuple[slice, slice, Tensor | None, Tensor | None]] | None:
    """Box, image, index and samples of one box after another, where all at once would take more than `_BUDGET`."""
    rows, count = matrices.shape[0], image_shape[0]
    given = [t for t in (matrices, index, reductions) if t is not None]
    if rows < (2 if index is None else 1) or count == 0 or not is_concrete(*given):
        return None
    most = 1 if reductions is None or reductions.numel() == 0 else _most(reductions, options.mode)
    if 16 * rows * image_shape[1] * math.prod(size) * most**2 * TAPS[options.mode] ** 2 <= _BUDGET:
        return None
    owners = [r // (rows // count) for r in range(rows)] if index is None else index.tolist()
    return (_step(r, b, count, reductions, matrices.device) for r, b in enumerate(owners))


def _step(
    row: int, owner: int, count: int, reductions: Tensor | None, device: torch.device
) -> tuple[slice, slice, Tensor | None, Tensor | None]:
    known = 0 <= owner < count
    image = slice(owner, owner + 1) if known else slice(0, 1)
    counts = None if reductions is None else reductions[row : row + 1]
    return slice(row, row + 1), image, None if known else torch.full((1,), -1, device=device), counts


def _warp(
    images: Tensor,
    matrices: Tensor,
    index: Tensor | None,
    reductions: Tensor | None,
    size: Sequence[int],
    options: WarpOptions,
) -> Tensor:
    count, _, height, width = images.shape
    rows = matrices.shape[0]
    dtype = images.dtype if options.mode == "nearest" else sum_dtype(images.dtype)
    position = torch.float32 if matrices.device.type == "mps" else torch.float64
    fill = torch.tensor(options.fill, dtype=dtype if dtype.is_floating_point else position)
    fill = fill.to(dtype).to(images.device)

    matrices = matrices.to(position)
    valid = (torch.isfinite(matrices) & (matrices.abs() <= _FARTHEST)).flatten(1).all(-1)
    if index is None:
        index = torch.arange(rows, device=matrices.device) // max(rows // max(count, 1), 1)
    valid = valid & (index >= 0) & (index < count)
    index = torch.where(valid, index, 0)
    nan = torch.where(valid[:, None, None], 0.0, matrices).flatten(1).sum(-1) * math.nan
    matrices = torch.where(valid[:, None, None], matrices, torch.eye(3, dtype=position, device=matrices.device))

    reach, most = REACH[options.mode], MOST_SAMPLES
    if reductions is None:
        reach, most = 0, 1
    elif is_concrete(reductions):
        most = _most(reductions, options.mode)
        reach = 0 if most == 1 else reach
    steps = _steps_of(reductions, rows, matrices.device)
    places = [_places(n, s, reach, most, options.mode) for n, s in zip(size, steps, strict=True)]
    center, seen = _positions(matrices, size, *places)
    taps = [_taps(c, n, options) for c, n in zip(center, (height, width), strict=True)]
    table = images.permute(0, 2, 3, 1).reshape(count * height * width, images.shape[1])
    start = index * (height * width)
    if options.mode == "nearest":
        result = _nearest(table, start, width, taps, fill)
    else:
        result = _surface(table, start, width, taps, fill, dtype)
    background = fill if options.padding_mode == "constant" else torch.zeros_like(fill)
    result = torch.where(seen[..., None], result, background)
    if reductions is not None and (most > 1 or reach > 0):
        for n, s in zip(size, steps, strict=True):
            result = _reduced(result, _weights(s, reach, most, options).to(dtype), n).movedim(1, 2)
    if reductions is not None:
        result = torch.where((reductions > 0).all(-1)[:, None, None, None], result, torch.zeros_like(background))
        valid = valid | ~(reductions > 0).all(-1)
    unknown = nan.to(dtype)[:, None, None, None] if dtype.is_floating_point else fill
    result = torch.where(valid[:, None, None, None], result, unknown)
    return result.movedim(-1, 1).to(result_dtype(images.dtype, options.mode)).contiguous()


def _steps_of(reductions: Tensor | None, rows: int, device: torch.device) -> list[Tensor]:
    """The reductions (R,) along y and x, at least 1 and at most `MOST_SAMPLES`, in parts of `UNIT`."""
    if reductions is None:
        return [torch.full((rows,), UNIT, dtype=torch.int64, device=device)] * 2
    return [reductions[:, axis].clamp(UNIT, MOST_SAMPLES * UNIT) for axis in (1, 0)]


def _most(reductions: Tensor, mode: str) -> int:
    """No box of a call has more samples to an output."""
    return max(1, *_count(reductions.clamp(UNIT, MOST_SAMPLES * UNIT), mode).flatten().tolist())


def _count(s: Tensor, mode: str) -> Tensor:
    """The samples to an output."""
    m = torch.div(s + (UNIT - 1), UNIT, rounding_mode="floor")
    return torch.where((s > UNIT) & (3 * s < 5 * UNIT), 3, m) if mode == "area" else m


def _places(n: int, s: Tensor, reach: int, most: int, mode: str) -> Tensor:
    """Where the samples lie along an axis, (R, (n + 2 reach) most): `most` to an output, of which m are needed."""
    m = _count(s, mode)[:, None, None]
    j = torch.arange(-reach, n + reach, device=s.device)
    t = torch.arange(most, device=s.device)
    middle = 0.5 if mode == "area" else 0.5 * (m % 2).to(torch.float64)
    return (((j[:, None] * m + t).to(torch.float64) + middle) / m).flatten(1)


def _weights(s: Tensor, reach: int, most: int, options: WarpOptions) -> Tensor:
    """What the samples weigh in an output, (R, 2 reach + 1, most); they sum to 1.

    `bilinear`: the triangle with which samples and surface together have the variance of the triangle of width s, so
    that of the samples, in units of their distance, is m^2 (1 - 1/s^2) / 6. Where s is m that is the triangle itself.
    `bicubic` and `lanczos3` have next to no variance, and fourth moments that add; their width is that of the filter
    times the third root of 1 - 1/s^4, which is nearer to the best (in the least squares' sense) than the fourth.
    `area`: three samples up to a reduction of 5/3, the outer ones with a weight of s - 1, and a plain mean beyond.
    """
    m = _count(s, options.mode)[:, None, None]
    s = s.to(torch.float64)[:, None, None] / UNIT
    d = torch.arange(-reach, reach + 1, device=s.device)[:, None]
    t = torch.arange(most, device=s.device)
    distance = (d * m + (t - m // 2)).abs()
    if options.mode == "area":
        weights = torch.where((s < 5 / 3) & (distance == 1), s - 1, 1.0)
    else:
        support = _support((1 - s**-2) * m**2 / 6)
        if options.mode != "bilinear":
            support = (m * (1 - s**-4) ** (1 / 3)).clamp(min=1)
        kernel = get(options.mode, options.antialias, 1.0)
        one = torch.ones((), dtype=torch.float64, device=s.device)
        weights = kernel.values(distance / support, torch.zeros_like(one), one)
    weights = torch.where(t < m, weights, 0.0)
    return weights / weights.sum((1, 2), keepdim=True)


def _support(variance: Tensor) -> Tensor:
    """Where the triangle ends whose values at whole numbers have this variance.

    One that ends at T in (K, K + 1] has the variance 2 sum_k<=K (1 - k/T) k^2 / (1 + 2 sum_k<=K (1 - k/T)), which is to
    be solved for T; at T = K + 1 that is K (K + 2) / 6.
    """
    last = torch.ceil(torch.sqrt(1 + 6 * variance) - 1).clamp(min=1)
    squares, cubes, twice = last * (last + 1) * (2 * last + 1) / 3, (last * (last + 1)) ** 2 / 2, last * (last + 1)
    return (cubes - variance * twice) / (squares - variance * (1 + 2 * last))


def _reduced(fine: Tensor, weights: Tensor, n: int) -> Tensor:
    """The outputs along dimension 1, from samples (R, (n + 2 reach) most, ...)."""
    span, most = weights.shape[1:]
    fine = fine.unflatten(1, (n + span - 1, most))
    parts = [torch.einsum("rt,rnt...->rn...", weights[:, d], fine[:, d : d + n]) for d in range(span)]
    return sum(parts[1:], parts[0])


def _positions(matrices: Tensor, size: Sequence[int], v: Tensor, u: Tensor) -> tuple[list[Tensor], Tensor]:
    """Positions (R, V, U) on the pixel axes y and x of all pairs of ``v`` and ``u``, and which of them are in front.

    A matrix means the same as its negative: in front is the side of the horizon on which the crop's centre lies.
    """
    u, v = u[:, None, :].to(matrices.dtype), v[:, :, None].to(matrices.dtype)

    def line(row: int, u: Tensor | float, v: Tensor | float) -> Tensor:
        a, b, c = (matrices[:, row, i, None, None] for i in range(3))
        return a * u + (b * v + c)

    front = torch.where(line(2, 0.5 * size[1], 0.5 * size[0]).detach() < 0, -1.0, 1.0)
    x, y, z = (front * line(row, u, v) for row in range(3))
    seen = z.detach() > 0
    return [_quotient(t, z, seen) - 0.5 for t in (y, x)], seen


def _quotient(above: Tensor, below: Tensor, seen: Tensor) -> Tensor:
    """Above / below where that is finite; whatever it is replaced by elsewhere has no derivative."""
    far = above.detach().abs() > _FAR * below.detach()
    near = seen & ~far
    quotient = torch.where(near, above, 0.0) / torch.where(near, below, 1.0)
    return torch.where(seen & far, _FAR * torch.sign(above.detach()), quotient)


def _taps(center: Tensor, pixels: int, options: WarpOptions) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each tap of an axis its pixel, whether it is one of the image, and its weight, which sum to 1."""
    count = TAPS[options.mode]
    if options.align_corners and pixels == 1:
        everywhere = torch.ones_like(center, dtype=torch.bool)
        return [(torch.zeros_like(center, dtype=torch.int64), everywhere, 1 + 0 * center)]
    if options.padding_mode in ("circular", "reflection"):
        period = (2 * pixels - 2 if options.align_corners else 2 * pixels) * 1.0
        period = float(pixels) if options.padding_mode == "circular" else period
        far = center.detach()
        center = torch.where(far.abs() > 2.0**30, center - (far - torch.remainder(far, period)), center)
    else:
        margin = float(count + 2)
        center = center.clamp(-margin, pixels + margin)
    near = center.detach()
    near = near + slack(near.dtype) * (2 + near.abs())
    first = torch.floor(near + 0.5) if count == 1 else torch.floor(near) - (count // 2 - 1)
    taps = [(*_folded(first + t, pixels, options), first + t - center) for t in range(count)]
    if count == 1:
        return [(pixel, inside, torch.ones_like(center)) for pixel, inside, _ in taps]
    weights = _interpolation(torch.stack([x for *_, x in taps]), options)
    return [(pixel, inside, w) for (pixel, inside, _), w in zip(taps, weights, strict=True)]


def _interpolation(x: Tensor, options: WarpOptions) -> Tensor:
    """The weights of taps ``x`` (taps, ...) away from the position, which lie on the pieces of the filter in turn."""
    if options.mode == "lanczos3":
        kernel = get("lanczos3", False, 1.0)
        values = kernel.function(x)  # pyright: ignore[reportAttributeAccessIssue]
        return values / values.sum(0)
    kernel = get("bilinear" if options.mode == "area" else options.mode, options.antialias, 1.0)
    pieces = kernel.pieces  # pyright: ignore[reportAttributeAccessIssue]
    return torch.stack([piece.value(t) for piece, t in zip(pieces, x, strict=True)])


def _folded(k: Tensor, pixels: int, options: WarpOptions) -> tuple[Tensor, Tensor]:
    """The pixels that the places ``k`` stand for, and whether they are of the image."""
    if options.padding_mode == "border":
        return k.clamp(0, pixels - 1).long(), torch.ones_like(k, dtype=torch.bool)
    if options.padding_mode in ("circular", "reflection"):
        mirrored = options.padding_mode == "reflection"
        period = pixels if not mirrored else 2 * pixels - 2 if options.align_corners else 2 * pixels
        k = torch.remainder(k, period)
        last = period if options.align_corners else period - 1
        return torch.where(k < pixels, k, last - k).long(), torch.ones_like(k, dtype=torch.bool)
    inside = (k >= 0) & (k < pixels)
    return torch.where(inside, k, 0.0).long(), inside


def _surface(
    table: Tensor,
    start: Tensor,
    width: int,
    taps: list[list[tuple[Tensor, Tensor, Tensor]]],
    fill: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The image's value at every position, (R, V, U, C), from its pixels (B H W, C)."""

    def at(y: Tensor, inside_y: Tensor, x: Tensor, inside_x: Tensor) -> Tensor:
        place = start[:, None, None] + y * width + x
        pixel = table.index_select(0, place.flatten()).unflatten(0, place.shape).to(dtype)
        return torch.where((inside_y & inside_x)[..., None], pixel, fill)

    rows = []
    for y, inside_y, weight_y in taps[0]:
        row = [at(y, inside_y, x, inside_x) * weight[..., None].to(dtype) for x, inside_x, weight in taps[1]]
        rows.append(sum(row[1:], row[0]) * weight_y[..., None].to(dtype))
    return sum(rows[1:], rows[0])


def _nearest(
    table: Tensor, start: Tensor, width: int, taps: list[list[tuple[Tensor, Tensor, Tensor]]], fill: Tensor
) -> Tensor:
    """The same without arithmetic, so that every dtype is kept."""
    (y, inside_y, _), (x, inside_x, _) = (axis[0] for axis in taps)
    place = start[:, None, None] + y * width + x
    pixel = table.index_select(0, place.flatten()).unflatten(0, place.shape)
    return torch.where((inside_y & inside_x)[..., None], pixel, fill)
