"""Boxes to runs: for every output of an axis the pixels that it reads, and their weights.

Both kernels of this file write tables that the kernels of `resample` read without knowing of filters and paddings. An
axis of a box is a row of *runs*: run j reads ``count[j]`` places from ``start[j]`` on, with the weights
``weights[offset[j] : offset[j] + count[j]]``. `forward_runs` makes those of the crop (a run to an output, places are
pixels, modulo N under a periodic padding), `transposed_runs` turns them round (a run to a pixel, places are outputs;
under a periodic padding, which shows a pixel to several parts of a crop, they are listed in ``places``).

No table may be larger than sizes alone can tell, because box numbers never reach the host. Outputs that read the image
get ``stride`` weights each, which is what the box's filter reaches; others get one. `forward_capacity` and
`transposed_capacity` in `config` bound the sums.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false

import triton
import triton.language as tl

from .config import AS_THEY_COME
from .filters import INFINITY, SLACK, clamp, lattice_sum, reach_of, support, tap

# Beyond this a box counts as infinite.
FARTHEST = tl.constexpr(1e100)


@triton.jit
def floored_remainder(a, b):
    """In [0, b)."""
    return a - b * tl.floor(a / b)


@triton.jit
def axis_of(boxes, r, axis):
    """Of a box lo and hi (0 and 0 where one of its numbers is not finite), and whether all are."""
    x0 = tl.load(boxes + r * 4).to(tl.float64)
    y0 = tl.load(boxes + r * 4 + 1).to(tl.float64)
    x1 = tl.load(boxes + r * 4 + 2).to(tl.float64)
    y1 = tl.load(boxes + r * 4 + 3).to(tl.float64)
    sound = (tl.abs(x0) <= FARTHEST) & (tl.abs(y0) <= FARTHEST) & (tl.abs(x1) <= FARTHEST) & (tl.abs(y1) <= FARTHEST)
    lo = tl.where(axis == 0, y0, x0)
    hi = tl.where(axis == 0, y1, x1)
    return tl.where(sound, lo, 0.0), tl.where(sound, hi, 0.0), sound


@triton.jit
def centers(j, lo, hi, n, ALIGN: tl.constexpr):
    """Positions of the outputs j (float64) on the axis of pixel indices."""
    extent = hi - lo
    if ALIGN:
        single = n == 1
        c = tl.where(single, lo + 0.5 * extent, lo + j * (extent / tl.maximum(n - 1, 1).to(tl.float64)))
    else:
        c = lo + (j + 0.5) * (extent / n.to(tl.float64)) - 0.5
    return c


@triton.jit
def steps_of(n, ALIGN: tl.constexpr):
    """How many steps from output to output a box has."""
    return (tl.maximum(n - 1, 1) if ALIGN else n).to(tl.float64)


@triton.jit
def width_of(lo, hi, n, WIDENING: tl.constexpr, ALIGN: tl.constexpr):
    """The filter's width and its derivative by hi."""
    steps = steps_of(n, ALIGN)
    reduction = tl.abs(hi - lo) / steps
    one = reduction * 0 + 1
    if WIDENING:
        widens = reduction > 1 + SLACK
        return tl.where(widens, reduction, one), tl.where(widens, tl.where(hi < lo, -1.0, 1.0) / steps, 0.0)
    else:
        return one, one * 0


@triton.jit
def outputs_within(lo, hi, n, margin, pixels, ALIGN: tl.constexpr):
    """A range of outputs outside of which all lie farther than ``margin`` from the image."""
    steps = steps_of(n, ALIGN)
    step = (hi - lo) / steps
    zero = lo * 0
    first = centers(zero, lo, hi, n, ALIGN)
    moves = step != 0
    safe = tl.where(moves, step, 1.0)
    one = (-margin - first) / safe
    other = (pixels.to(tl.float64) - 1 + margin - first) / safe
    end = n.to(tl.float64)
    begin = clamp(tl.floor(tl.minimum(one, other)), 0.0, end)
    stop = clamp(tl.floor(tl.maximum(one, other)) + 2, 0.0, end)
    return tl.where(moves, begin, 0.0).to(tl.int32), tl.where(moves, stop, end).to(tl.int32)


@triton.jit
def stride_of(margin, pixels):
    """How many pixels of the image a run may have."""
    return tl.minimum(tl.floor(2 * margin) + 1, pixels.to(tl.float64)).to(tl.int32)


@triton.jit(do_not_specialize=AS_THEY_COME)
def forward_runs(
    boxes,
    index,
    images,
    start,
    count,
    offset,
    share,
    weights,
    hull,
    sounds,
    slopes,
    rows,
    out_y,
    out_x,
    in_y,
    in_x,
    capacity_y,
    capacity_x,
    scale_bits,
    INDEXED: tl.constexpr,
    MODE: tl.constexpr,
    A: tl.constexpr,
    PADDING: tl.constexpr,
    WIDENING: tl.constexpr,
    ALIGN: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    TRIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Runs of `BLOCK` outputs of one axis (0: y) of one box.

    ``start``, ``count``, ``offset`` are (R, out_y + out_x), ``share`` (orders, R, out_y + out_x) the sums of a run's
    weights, ``weights`` (orders, R, capacity_y + capacity_x), ``hull`` (R, 2, 2) the pixels touched, ``sounds`` (R,),
    ``slopes`` (R, 2) the derivative of the width by hi. Orders: value, by the position, by the width. ``TRIM`` where
    only values are wanted: then runs need not begin and end in the order of outputs, as `readers` asks for.
    """
    blocks = tl.cdiv(tl.maximum(out_y, out_x), BLOCK)
    block = tl.program_id(0) % blocks
    axis = tl.program_id(0) // blocks % 2
    r = (tl.program_id(0) // blocks // 2).to(tl.int64)
    n = tl.where(axis == 0, out_y, out_x)
    pixels = tl.where(axis == 0, in_y, in_x)
    end = pixels.to(tl.float64) - 1
    scale = scale_bits.to(tl.float64, bitcast=True)
    lo, hi, sound = axis_of(boxes, r, axis)
    if INDEXED:
        owner = tl.load(index + r)
        sound = sound & (owner >= 0) & (owner < images)
    w, slope = width_of(lo, hi, n, WIDENING, ALIGN)
    reach = reach_of(w, scale, MODE)
    single = (pixels == 1) & ALIGN

    j = block * BLOCK + tl.arange(0, BLOCK)
    valid = j < n
    c = centers(j.to(tl.float64), lo, hi, n, ALIGN)
    periodic: tl.constexpr = PADDING == "reflection" or PADDING == "circular"
    if PADDING == "circular":
        period = end + 1
        mirror = end * 0
    elif ALIGN:
        period = tl.maximum(2 * end, 1.0)
        mirror = end * 0
    else:
        period = 2 * end + 2
        mirror = end * 0 - 1
    if periodic:
        # Far out, to where the crop is the same: a period around the image.
        away = period * tl.floor(c / period + 0.25)
        c = clamp(c - away, -period, 2 * period)  # nothing to do but beyond 2^53, where c has no fraction
    else:
        c = clamp(c, -(reach + 2), pixels.to(tl.float64) + (reach + 2))

    if MODE == "nearest":
        first = tl.floor(c + 0.5)
        last = first
    else:
        first, last = support(c, w, scale, MODE)
    inside = (first >= 0) & (last <= end)
    lower = tl.maximum(first, 0.0)
    upper = tl.minimum(last, end)
    if PADDING == "border":
        # Taps outside are led to the edge pixels; with all of them on one side that pixel alone remains.
        lower = tl.minimum(lower, end)
        upper = tl.maximum(upper, 0.0)
    elif PADDING == "circular":
        whole = last - first >= end
        lower = tl.where(whole, 0.0, floored_remainder(first, period))
        upper = tl.where(whole, end, lower + last - first)
    elif PADDING == "reflection":
        # Places beyond one edge are mirrored at it; beyond both, or too far, the whole axis is read.
        left = (first < 0) & (last <= end) & (mirror - first <= end)
        right = (last > end) & (first >= 0) & (period + mirror - last >= 0)
        lower = tl.where(left, tl.where(last < 0, mirror - last, 0.0), lower)
        upper = tl.where(left, tl.maximum(mirror - first, last), upper)
        lower = tl.where(right, tl.minimum(period + mirror - last, first), lower)
        upper = tl.where(right, tl.where(first > end, period + mirror - first, end), upper)
        whole = ~(inside | left | right)
        lower = tl.where(whole, 0.0, lower)
        upper = tl.where(whole, end, upper)
    length = tl.maximum(upper - lower + 1, 0.0)
    if PADDING == "renormalize" and MODE != "nearest":
        out = (c < -0.5) | (c > end + 0.5)
        length = tl.where(out, 0.0, length)
        lower = tl.where(out, tl.where(c < 0, 0.0, end + 1), lower)
    if TRIM and MODE != "nearest":
        # Taps at the ends that do nothing are left out, where they are not edge pixels with all that lies beyond: what
        # they would read may be NaN, and an identity reads one pixel.
        for _ in tl.static_range(3):
            at_begin, _by_center, _by_width = tap(lower, c, w, scale, MODE, A)
            ours = inside if periodic else (inside | (lower > 0) | (PADDING != "border"))
            drop = ours & (at_begin == 0) & (length > 1)
            lower = tl.where(drop, lower + 1, lower)
            length = tl.where(drop, length - 1, length)
            at_end, _by_center, _by_width = tap(lower + length - 1, c, w, scale, MODE, A)
            ours = inside if periodic else (inside | (lower + length - 1 < end) | (PADDING != "border"))
            length = tl.where(ours & (at_end == 0) & (length > 1), length - 1, length)
    begins = tl.where(single, 0.0, clamp(lower, 0.0, end + 1))
    length = tl.where(single, 1.0, length)
    length = tl.where(sound, length, 0.0)

    # Where a run's weights go.
    near, stop = outputs_within(lo, hi, n, reach + 1, pixels, ALIGN)
    if periodic:
        near = near * 0
        stop = n
    stride = stride_of(reach + 1, pixels) if MODE != "nearest" else 1
    places = tl.where((j >= near) & (j < stop), (j - near) * stride, (stop - near) * stride + j)

    width = out_y + out_x
    at = r * width + tl.where(axis == 0, 0, out_y) + j
    tl.store(start + at, begins.to(tl.int32), mask=valid)
    tl.store(count + at, length.to(tl.int32), mask=valid)
    tl.store(offset + at, places, mask=valid)
    if block == 0:
        # A little more than is touched, from the outputs at both ends.
        one = centers(lo * 0, lo, hi, n, ALIGN)
        other = centers((n - 1).to(tl.float64), lo, hi, n, ALIGN)
        from_ = tl.floor(tl.minimum(one, other) - reach) - 1
        to = tl.floor(tl.maximum(one, other) + reach) + 2
        if periodic:
            some = (from_ < 0) | (to > end)
            from_ = tl.where(some, 0.0, from_)
            to = tl.where(some, end, to)
        elif PADDING == "border":
            from_ = tl.minimum(from_, end)
            to = tl.maximum(to, 0.0)
        from_ = tl.where(single, 0.0, clamp(from_, 0.0, end + 1))
        to = tl.where(single, 1.0, clamp(to, -1.0, end) + 1)
        tl.store(hull + r * 4 + axis * 2, tl.where(sound, from_, 0.0).to(tl.int32))
        tl.store(hull + r * 4 + axis * 2 + 1, tl.where(sound, to, 0.0).to(tl.int32))
        tl.store(slopes + r * 2 + axis, slope)
        if axis == 0:
            tl.store(sounds + r, sound.to(tl.int32))

    share_at = share + at
    capacity = tl.cast(capacity_y + capacity_x, tl.int64)
    weight_at = weights + r * capacity + tl.where(axis == 0, 0, capacity_y) + places[:, None]
    orders: tl.constexpr = 3 if DERIVATIVES and WIDENING else (2 if DERIVATIVES else 1)
    share_step = tl.cast(rows, tl.int64) * width
    weight_step = rows * capacity
    if MODE == "nearest":
        one = (length > 0).to(tl.float64)
        tl.store(share_at, one, mask=valid)
        tl.store(weights + r * capacity + tl.where(axis == 0, 0, capacity_y) + places, one, mask=valid & (length > 0))
    else:
        if PADDING == "renormalize":
            total, by_center, by_width = lattice_sum(c, w, scale, 0.0, 1.0, 0.0, end, MODE, A)
        else:
            total, by_center, by_width = lattice_sum(c, w, scale, 0.0, 1.0, -INFINITY, INFINITY, MODE, A)
            if MODE == "bilinear" or MODE == "bicubic":
                # A partition of unity at width 1: its rounding must not touch the identity.
                exact = w == 1
                total = tl.where(exact, 1.0, total)
                by_center = tl.where(exact, 0.0, by_center)
                by_width = tl.where(exact, 0.0, by_width)
        total = tl.where(length > 0, total, 1.0)
        if PADDING == "border":
            head, head_center, head_width = lattice_sum(c, w, scale, 0.0, 1.0, -INFINITY, 0.0, MODE, A)
            tail, tail_center, tail_width = lattice_sum(c, w, scale, 0.0, 1.0, end, INFINITY, MODE, A)
        sum_value = tl.zeros_like(c)
        sum_center = tl.zeros_like(c)
        sum_width = tl.zeros_like(c)
        poking = tl.max((valid & ~inside).to(tl.int32), axis=0) > 0
        for t0 in range(0, tl.max(length, axis=0).to(tl.int32), TAPS):
            t = (t0 + tl.arange(0, TAPS)).to(tl.float64)[None, :]
            live = valid[:, None] & (t < length[:, None])
            k = begins[:, None] + t
            k = tl.where(k > end, k - (end + 1), k)  # only a run under circular padding goes beyond the edge
            k = tl.where(live, k, 0.0)
            value, slope_center, slope_width = tap(k, c[:, None], w, scale, MODE, A)
            if periodic:
                if poking:
                    value, slope_center, slope_width = lattice_sum(
                        c[:, None], w, scale, k, period, -INFINITY, INFINITY, MODE, A
                    )
                    if PADDING == "reflection":
                        v, p, q = lattice_sum(c[:, None], w, scale, mirror - k, period, -INFINITY, INFINITY, MODE, A)
                        if ALIGN:
                            own = (k == 0) | (k == end)
                            v = tl.where(own, 0.0, v)
                            p = tl.where(own, 0.0, p)
                            q = tl.where(own, 0.0, q)
                        value += v
                        slope_center += p
                        slope_width += q
            if PADDING == "border":
                at_head = k == 0
                at_tail = k == end
                value = tl.where(at_head, head[:, None], tl.where(at_tail, tail[:, None], value))
                slope_center = tl.where(
                    at_head, head_center[:, None], tl.where(at_tail, tail_center[:, None], slope_center)
                )
                slope_width = tl.where(
                    at_head, head_width[:, None], tl.where(at_tail, tail_width[:, None], slope_width)
                )
                alone = end == 0
                value = tl.where(alone, total[:, None], value)
                slope_center = tl.where(alone, by_center[:, None], slope_center)
                slope_width = tl.where(alone, by_width[:, None], slope_width)
            value = value / total[:, None]
            value = tl.where(single, 1.0, value)
            value = tl.where(live, value, 0.0)
            sum_value += tl.sum(value, axis=1)
            tl.store(weight_at + t.to(tl.int32), value, mask=live)
            if DERIVATIVES:
                slope_center = (slope_center - value * by_center[:, None]) / total[:, None]
                slope_center = tl.where(live & ~single, slope_center, 0.0)
                sum_center += tl.sum(slope_center, axis=1)
                tl.store(weight_at + weight_step + t.to(tl.int32), slope_center, mask=live)
            if orders == 3:
                slope_width = (slope_width - value * by_width[:, None]) / total[:, None]
                slope_width = tl.where(live & ~single, slope_width, 0.0)
                sum_width += tl.sum(slope_width, axis=1)
                tl.store(weight_at + 2 * weight_step + t.to(tl.int32), slope_width, mask=live)
        tl.store(share_at, sum_value, mask=valid)
        if DERIVATIVES:
            tl.store(share_at + share_step, sum_center, mask=valid)
        if orders == 3:
            tl.store(share_at + 2 * share_step, sum_width, mask=valid)


@triton.jit
def readers(start, count, k, n, mirrored):
    """The outputs from the first whose run ends behind pixel k to before the first whose run begins behind it.

    Runs of a box begin and end in the order of their outputs, or in the opposite order where it is mirrored.
    """
    begin = tl.zeros_like(k)
    end = tl.zeros_like(k)
    for side in tl.static_range(2):
        low = tl.zeros_like(k)
        high = tl.zeros_like(k) + n
        size = n
        while size > 0:
            middle = (low + high) // 2
            searching = low < high
            j = tl.where(mirrored, n - 1 - middle, middle)
            bound = tl.load(start + j, mask=searching, other=0)
            if side == 0:
                bound += tl.load(count + j, mask=searching, other=0)
            behind = bound > k
            high = tl.where(searching & behind, middle, high)
            low = tl.where(searching & ~behind, middle + 1, low)
            size = size // 2
        if side == 0:
            begin = low
        else:
            end = low
    return tl.where(mirrored, n - end, begin), tl.where(mirrored, n - begin, end)


@triton.jit(do_not_specialize=AS_THEY_COME)
def transposed_runs(
    boxes,
    sounds,
    start,
    count,
    offset,
    weights,
    hull,
    to_start,
    to_count,
    to_offset,
    to_weights,
    to_places,
    out_y,
    out_x,
    in_y,
    in_x,
    capacity_y,
    capacity_x,
    to_capacity_y,
    to_capacity_x,
    scale_bits,
    MODE: tl.constexpr,
    WIDENING: tl.constexpr,
    ALIGN: tl.constexpr,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Runs of `BLOCK` pixels: which outputs read them. Layouts as those of `forward_runs`, with pixels for outputs."""
    blocks = tl.cdiv(tl.maximum(in_y, in_x), BLOCK)
    block = tl.program_id(0) % blocks
    axis = tl.program_id(0) // blocks % 2
    r = (tl.program_id(0) // blocks // 2).to(tl.int64)
    n = tl.where(axis == 0, out_y, out_x)
    pixels = tl.where(axis == 0, in_y, in_x)
    k = block * BLOCK + tl.arange(0, BLOCK)
    valid = k < pixels
    at = r * (out_y + out_x) + tl.where(axis == 0, 0, out_y)
    to_at = r * (in_y + in_x) + tl.where(axis == 0, 0, in_y) + k
    source = weights + r * tl.cast(capacity_y + capacity_x, tl.int64) + tl.where(axis == 0, 0, capacity_y)
    target = r * tl.cast(to_capacity_y + to_capacity_x, tl.int64) + tl.where(axis == 0, 0, to_capacity_y)
    if LISTED:
        sound = tl.load(sounds + r) != 0
        places = k * n
        found = tl.zeros_like(k)
        for j in range(tl.where(sound, n, 0)):
            reach = tl.load(count + at + j)
            t = k - tl.load(start + at + j)
            t = tl.where(t < 0, t + pixels, t)
            reads = valid & (t < reach)
            weight = tl.load(source + tl.load(offset + at + j) + t, mask=reads, other=0)
            tl.store(to_weights + target + places + found, weight, mask=reads)
            tl.store(to_places + target + places + found, tl.zeros_like(k) + j, mask=reads)
            found += reads.to(tl.int32)
        begin = tl.zeros_like(k)
        length = found
    else:
        lo, hi, sound = axis_of(boxes, r, axis)
        w, _ = width_of(lo, hi, n, WIDENING, ALIGN)
        reach = reach_of(w, scale_bits.to(tl.float64, bitcast=True), MODE)
        begin, stop = readers(start + at, count + at, k, n, hi < lo)
        length = tl.maximum(stop - begin, 0)
        # Edge pixels may be read by every output; those between by no more than the filter covers.
        step = tl.abs(hi - lo) / steps_of(n, ALIGN)
        most = tl.where(step > 0, tl.floor(2 * reach / tl.where(step > 0, step, 1.0)) + 3, n.to(tl.float64))
        most = tl.minimum(most, n.to(tl.float64)).to(tl.int32)
        first = tl.load(hull + r * 4 + axis * 2)
        last = tl.load(hull + r * 4 + axis * 2 + 1)
        between = (k >= first) & (k < last)
        places = tl.where(k == 0, 0, tl.where(k == pixels - 1, n, 2 * n + tl.where(between, (k - first) * most, 0)))
        for t0 in range(0, tl.max(tl.where(valid, length, 0), axis=0), TAPS):
            t = t0 + tl.arange(0, TAPS)[None, :]
            live = valid[:, None] & (t < length[:, None])
            j = begin[:, None] + t
            from_ = tl.load(offset + at + j, mask=live, other=0) - tl.load(start + at + j, mask=live, other=0)
            weight = tl.load(source + from_ + k[:, None], mask=live, other=0)
            tl.store(to_weights + target + places[:, None] + t, weight, mask=live)
    tl.store(to_start + to_at, begin, mask=valid)
    tl.store(to_count + to_at, length, mask=valid)
    tl.store(to_offset + to_at, places, mask=valid)
