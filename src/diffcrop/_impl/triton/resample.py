"""Crops and their gradients from the runs that `plan` made of boxes.

The crop is the product ``W_y image W_x^T``, the image gradient the same with the runs turned round, summed over the
boxes of an image in their order: no element is written by two programs, nothing is added atomically, and the sums are
cut by sizes alone.

Tiles have three axes: outputs, the places of one block of taps along x, channels. Channels are the last one where they
are the innermost dimension in memory (``LAST``), and the first one elsewhere.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportPossiblyUnboundVariable=false

import triton
import triton.language as tl

from .config import AS_THEY_COME

FORWARD = tl.constexpr(0)
WRAPPED = tl.constexpr(1)
LISTED = tl.constexpr(2)


@triton.jit
def by_output(v, LAST: tl.constexpr):
    return v[:, None, None] if LAST else v[None, :, None]


@triton.jit
def by_tap(v, LAST: tl.constexpr):
    """From (outputs, taps)."""
    return v[:, :, None] if LAST else v[None, :, :]


@triton.jit
def by_channel(v, LAST: tl.constexpr):
    return v[None, None, :] if LAST else v[:, None, None]


@triton.jit
def summed(tile, LAST: tl.constexpr):
    """Over the taps: (outputs, channels) or (channels, outputs)."""
    return tl.sum(tile, axis=1) if LAST else tl.sum(tile, axis=2)


@triton.jit
def flat(v, LAST: tl.constexpr):
    """One number per output, against what `summed` returns."""
    return v[:, None] if LAST else v[None, :]


@triton.jit
def flat_channel(v, LAST: tl.constexpr):
    return v[None, :] if LAST else v[:, None]


@triton.jit
def work_of(size_y, size_x, channels, TILE_Y: tl.constexpr, TILE_X: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: its box or image; rows and columns of its tile, and which there are; its channels, likewise."""
    across = tl.cdiv(size_x, TILE_X)
    tiles = tl.cdiv(size_y, TILE_Y) * across
    groups = tl.cdiv(channels, CHANNELS)
    tile = tl.program_id(0) % tiles
    group = tl.program_id(0) // tiles % groups
    o = tl.arange(0, TILE_Y * TILE_X)
    y = tile // across * TILE_Y + o // TILE_X
    x = tile % across * TILE_X + o % TILE_X
    c = group * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // tiles // groups, y, x, (y < size_y) & (x < size_x), c, c < channels


@triton.jit
def owner_of(index, r, sound, per_image, INDEXED: tl.constexpr):
    """The image that box r reads; any, where the box is not sound."""
    owner = tl.load(index + r).to(tl.int64) if INDEXED else r // per_image
    return tl.where(sound, owner, 0)


@triton.jit
def place_of(begin, t, at, places, pixels, live, PLACES: tl.constexpr):
    """The place that the t-th tap reads; ``at`` is where it stands in the table."""
    if PLACES == LISTED:
        return tl.load(places + at, mask=live, other=0)
    elif PLACES == WRAPPED:
        k = begin + t
        return tl.where(k >= pixels, k - pixels, k)
    else:
        return begin + t


@triton.jit
def product(
    source,
    c,
    c_there,
    stride_c,
    stride_y,
    stride_x,
    in_y,
    in_x,
    start_y,
    count_y,
    offset_y,
    weights_y,
    places_y,
    oy,
    start_x,
    count_x,
    offset_x,
    weights_x,
    places_x,
    ox,
    there,
    ACCUMULATE: tl.constexpr,
    PLACES: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """The sum over the taps of each output of a tile, for each channel. Pointers are those of one box and image."""
    begin_y = tl.load(start_y + oy, mask=there, other=0)
    length_y = tl.load(count_y + oy, mask=there, other=0)
    at_y = tl.load(offset_y + oy, mask=there, other=0)
    begin_x = tl.load(start_x + ox, mask=there, other=0)
    length_x = tl.load(count_x + ox, mask=there, other=0)
    at_x = tl.load(offset_x + ox, mask=there, other=0)
    length_x = tl.where(length_y > 0, length_x, 0)
    channel = by_channel(c.to(tl.int64) * stride_c if WIDE else c * stride_c, LAST)
    has_channel = by_channel(c_there, LAST)
    rows = tl.max(length_y, axis=0)
    outputs: tl.constexpr = there.shape[0]
    channels: tl.constexpr = c.shape[0]
    if LAST:
        total = tl.zeros([outputs, channels], dtype=ACCUMULATE)
    else:
        total = tl.zeros([channels, outputs], dtype=ACCUMULATE)
    for t0 in range(0, tl.max(length_x, axis=0), TAPS):
        t = t0 + tl.arange(0, TAPS)[None, :]
        live = t < length_x[:, None]
        table_x = at_x[:, None] + t
        k = place_of(begin_x[:, None], t, table_x, places_x, in_x, live, PLACES)
        weight_x = tl.load(weights_x + table_x, mask=live, other=0)
        column = by_tap(k.to(tl.int64) * stride_x if WIDE else k * stride_x, LAST) + channel
        if LAST:
            part = tl.zeros([outputs, TAPS, channels], dtype=ACCUMULATE)
        else:
            part = tl.zeros([channels, outputs, TAPS], dtype=ACCUMULATE)
        for s in range(rows):
            reads = s < length_y
            table_y = at_y + s
            row = place_of(begin_y, s, table_y, places_y, in_y, reads, PLACES)
            weight_y = tl.load(weights_y + table_y, mask=reads, other=0)
            line = by_output(row.to(tl.int64) * stride_y if WIDE else row * stride_y, LAST)
            mask = by_tap(live, LAST) & by_output(reads, LAST) & has_channel
            part += by_output(weight_y, LAST) * tl.load(source + line + column, mask=mask, other=0).to(ACCUMULATE)
        total += summed(part * by_tap(weight_x, LAST), LAST)
    return total


@triton.jit(do_not_specialize=AS_THEY_COME)
def crop_kernel(
    images,
    index,
    start,
    count,
    offset,
    share,
    weights,
    sounds,
    fill,
    out,
    per_image,
    channels,
    in_y,
    in_x,
    out_y,
    out_x,
    capacity_y,
    capacity_x,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    to_r,
    to_c,
    to_y,
    to_x,
    FILL: tl.constexpr,
    INDEXED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PLACES: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One tile of one crop. ``FILL``: 0 none, 1 one number, 2 one per channel."""
    r, oy, ox, there, c, c_there = work_of(out_y, out_x, channels, TILE_Y, TILE_X, CHANNELS)
    r = r.to(tl.int64)
    sound = tl.load(sounds + r) != 0
    owner = owner_of(index, r, sound, per_image, INDEXED)
    runs_y = r * (out_y + out_x)
    runs_x = runs_y + out_y
    table_y = weights + r * tl.cast(capacity_y + capacity_x, tl.int64)
    result = product(
        images + owner * stride_b, c, c_there, stride_c, stride_y, stride_x, in_y, in_x,
        start + runs_y, count + runs_y, offset + runs_y, table_y, start, oy,
        start + runs_x, count + runs_x, offset + runs_x, table_y + capacity_y, start, ox,
        there, ACCUMULATE, PLACES, LAST, WIDE, TAPS,
    )  # fmt: skip
    if FILL > 0:
        inside = tl.load(share + runs_y + oy, mask=there, other=0) * tl.load(share + runs_x + ox, mask=there, other=0)
        constant = tl.load(fill + (c if FILL == 2 else c * 0), mask=c_there, other=0)
        result += flat_channel(constant, LAST) * flat(1 - inside, LAST)
    result = tl.where(sound, result, float("nan"))
    at = flat(oy.to(tl.int64) * to_y + ox.to(tl.int64) * to_x, LAST) + flat_channel(c.to(tl.int64) * to_c, LAST)
    tl.store(out + r * to_r + at, result.to(out.dtype.element_ty), mask=flat(there, LAST) & flat_channel(c_there, LAST))


@triton.jit(do_not_specialize=AS_THEY_COME)
def nearest_kernel(
    images,
    index,
    start,
    count,
    sounds,
    fill,
    invalid,
    out,
    per_image,
    channels,
    out_y,
    out_x,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    to_r,
    to_c,
    to_y,
    to_x,
    FILL: tl.constexpr,
    INDEXED: tl.constexpr,
    LAST: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One tile of one crop that moves elements of any dtype: a pixel, ``fill``, or ``invalid`` where a box is not."""
    r, oy, ox, there, c, c_there = work_of(out_y, out_x, channels, TILE_Y, TILE_X, CHANNELS)
    r = r.to(tl.int64)
    sound = tl.load(sounds + r) != 0
    owner = owner_of(index, r, sound, per_image, INDEXED)
    runs_y = r * (out_y + out_x) + oy
    runs_x = r * (out_y + out_x) + out_y + ox
    reads = there & (tl.load(count + runs_y, mask=there, other=0) > 0)
    reads &= tl.load(count + runs_x, mask=there, other=0) > 0
    y = tl.load(start + runs_y, mask=reads, other=0).to(tl.int64)
    x = tl.load(start + runs_x, mask=reads, other=0).to(tl.int64)
    from_ = flat(y * stride_y + x * stride_x, LAST) + flat_channel(c.to(tl.int64) * stride_c, LAST)
    writes = flat(there, LAST) & flat_channel(c_there, LAST)
    constant = flat_channel(tl.load(fill + (c if FILL == 2 else c * 0), mask=c_there, other=0), LAST)
    pixel = tl.load(images + owner * stride_b + from_, mask=flat(reads, LAST) & flat_channel(c_there, LAST), other=0)
    result = tl.where(flat(reads, LAST), pixel, constant)
    wrong = flat_channel(tl.load(invalid + (c if FILL == 2 else c * 0), mask=c_there, other=0), LAST)
    result = tl.where(sound, result, wrong)
    at = flat(oy.to(tl.int64) * to_y + ox.to(tl.int64) * to_x, LAST) + flat_channel(c.to(tl.int64) * to_c, LAST)
    tl.store(out + r * to_r + at, result, mask=writes)


@triton.jit
def touching(hull, r, candidate, y0, y1, x0, x1):
    """Which of the boxes r touch the pixels [y0, y1) x [x0, x1)."""
    top = tl.load(hull + r * 4, mask=candidate, other=0)
    bottom = tl.load(hull + r * 4 + 1, mask=candidate, other=0)
    left = tl.load(hull + r * 4 + 2, mask=candidate, other=0)
    right = tl.load(hull + r * 4 + 3, mask=candidate, other=0)
    return candidate & (top < y1) & (bottom > y0) & (left < x1) & (right > x0)


@triton.jit(do_not_specialize=AS_THEY_COME)
def grad_images_kernel(
    grad,
    order,
    bounds,
    hull,
    start,
    count,
    offset,
    weights,
    places,
    out,
    per_image,
    channels,
    out_y,
    out_x,
    in_y,
    in_x,
    capacity_y,
    capacity_x,
    stride_r,
    stride_c,
    stride_y,
    stride_x,
    to_b,
    to_c,
    to_y,
    to_x,
    INDEXED: tl.constexpr,
    INNER: tl.constexpr,
    ADD: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PLACES: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BOXES: tl.constexpr,
):
    """One tile of one image's gradient: the boxes of the image in their order, those left out that do not touch it.

    With ``INDEXED``, ``order`` lists boxes by their image and ``bounds`` where each image's begin. ``INNER``: all but
    the pixels at the edges. ``ADD``: to what is there.
    """
    b, y, x, there, c, c_there = work_of(in_y, in_x, channels, TILE_Y, TILE_X, CHANNELS)
    if INNER:
        there &= (y > 0) & (y < in_y - 1) & (x > 0) & (x < in_x - 1)
    if LAST:
        total = tl.zeros([TILE_Y * TILE_X, CHANNELS], dtype=ACCUMULATE)
    else:
        total = tl.zeros([CHANNELS, TILE_Y * TILE_X], dtype=ACCUMULATE)
    first = tl.load(bounds + b).to(tl.int32) if INDEXED else b * per_image
    last = tl.load(bounds + b + 1).to(tl.int32) if INDEXED else (b + 1) * per_image
    y0 = tl.min(y, axis=0)
    x0 = tl.min(x, axis=0)
    for i0 in range(first, last, BOXES):
        i = i0 + tl.arange(0, BOXES)
        candidate = i < last
        boxes = tl.load(order + i, mask=candidate, other=0).to(tl.int64) if INDEXED else i.to(tl.int64)
        touches = touching(hull, boxes, candidate, y0, y0 + TILE_Y, x0, x0 + TILE_X)
        following = tl.min(tl.where(touches, i, last), axis=0)
        while following < last:
            r = tl.load(order + following).to(tl.int64) if INDEXED else following.to(tl.int64)
            runs_y = r * (in_y + in_x)
            runs_x = runs_y + in_y
            table_y = r * tl.cast(capacity_y + capacity_x, tl.int64)
            table_x = table_y + capacity_y
            total += product(
                grad + r * stride_r, c, c_there, stride_c, stride_y, stride_x, out_y, out_x,
                start + runs_y, count + runs_y, offset + runs_y, weights + table_y, places + table_y, y,
                start + runs_x, count + runs_x, offset + runs_x, weights + table_x, places + table_x, x,
                there, ACCUMULATE, PLACES, LAST, WIDE, TAPS,
            )  # fmt: skip
            following = tl.min(tl.where(touches & (i > following), i, last), axis=0)
    at = flat(y.to(tl.int64) * to_y + x.to(tl.int64) * to_x, LAST) + flat_channel(c.to(tl.int64) * to_c, LAST)
    target = out + b.to(tl.int64) * to_b + at
    mask = flat(there, LAST) & flat_channel(c_there, LAST)
    if ADD:
        total += tl.load(target, mask=mask, other=0).to(ACCUMULATE)
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=AS_THEY_COME)
def grad_edges_kernel(
    grad,
    order,
    bounds,
    hull,
    start,
    count,
    offset,
    weights,
    out,
    per_image,
    channels,
    in_y,
    in_x,
    edges,
    capacity_y,
    capacity_x,
    stride_r,
    stride_c,
    stride_y,
    stride_x,
    to_b,
    to_c,
    to_y,
    to_x,
    INDEXED: tl.constexpr,
    ADD: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    CHANNELS: tl.constexpr,
    BOXES: tl.constexpr,
):
    """`grad_images_kernel` for one of the ``edges`` pixels of an image, which under border padding all outputs beside
    the image read: threads share the outputs, where elsewhere they share the pixels.
    """
    groups = tl.cdiv(channels, CHANNELS)
    e = tl.program_id(0) % edges
    group = tl.program_id(0) // edges % groups
    b = tl.program_id(0) // edges // groups
    # The first and the last row, then the ends of the rows between.
    rest = e - in_x * tl.minimum(in_y, 2)
    ends = tl.minimum(in_x, 2)
    y = tl.where(rest >= 0, 1 + rest // ends, tl.where(e < in_x, 0, in_y - 1))
    x = tl.where(rest >= 0, rest % ends * (in_x - 1), e % in_x)
    c = group * CHANNELS + tl.arange(0, CHANNELS)
    c_there = c < channels
    channel = by_channel(c.to(tl.int64) * stride_c if WIDE else c * stride_c, LAST)
    if LAST:
        total = tl.zeros([TILE_Y, TILE_X, CHANNELS], dtype=ACCUMULATE)
    else:
        total = tl.zeros([CHANNELS, TILE_Y, TILE_X], dtype=ACCUMULATE)
    first = tl.load(bounds + b).to(tl.int32) if INDEXED else b * per_image
    last = tl.load(bounds + b + 1).to(tl.int32) if INDEXED else (b + 1) * per_image
    for i0 in range(first, last, BOXES):
        i = i0 + tl.arange(0, BOXES)
        candidate = i < last
        boxes = tl.load(order + i, mask=candidate, other=0).to(tl.int64) if INDEXED else i.to(tl.int64)
        touches = touching(hull, boxes, candidate, y, y + 1, x, x + 1)
        following = tl.min(tl.where(touches, i, last), axis=0)
        while following < last:
            r = tl.load(order + following).to(tl.int64) if INDEXED else following.to(tl.int64)
            runs_y = r * (in_y + in_x) + y
            runs_x = r * (in_y + in_x) + in_y + x
            table_y = weights + r * tl.cast(capacity_y + capacity_x, tl.int64) + tl.load(offset + runs_y)
            table_x = weights + r * tl.cast(capacity_y + capacity_x, tl.int64) + capacity_y + tl.load(offset + runs_x)
            begin_y = tl.load(start + runs_y)
            begin_x = tl.load(start + runs_x)
            length_y = tl.load(count + runs_y)
            length_x = tl.load(count + runs_x)
            for s0 in range(0, length_y, TILE_Y):
                s = s0 + tl.arange(0, TILE_Y)
                weight_y = tl.load(table_y + s, mask=s < length_y, other=0)
                row = begin_y + s
                line = (row.to(tl.int64) * stride_y if WIDE else row * stride_y)[:, None]
                for t0 in range(0, length_x, TILE_X):
                    t = t0 + tl.arange(0, TILE_X)
                    weight_x = tl.load(table_x + t, mask=t < length_x, other=0)
                    column = begin_x + t
                    place = line + (column.to(tl.int64) * stride_x if WIDE else column * stride_x)[None, :]
                    live = (s < length_y)[:, None] & (t < length_x)[None, :]
                    pulled = tl.load(
                        grad + r * stride_r + by_tap(place, LAST) + channel,
                        mask=by_tap(live, LAST) & by_channel(c_there, LAST),
                        other=0,
                    )
                    total += by_tap(weight_y[:, None] * weight_x[None, :], LAST) * pulled.to(ACCUMULATE)
            following = tl.min(tl.where(touches & (i > following), i, last), axis=0)
    result = tl.sum(tl.sum(total, axis=0), axis=0) if LAST else tl.sum(tl.sum(total, axis=2), axis=1)
    target = out + b.to(tl.int64) * to_b + y.to(tl.int64) * to_y + x.to(tl.int64) * to_x + c.to(tl.int64) * to_c
    if ADD:
        result += tl.load(target, mask=c_there, other=0).to(ACCUMULATE)
    tl.store(target, result.to(out.dtype.element_ty), mask=c_there)


@triton.jit
def slopes_of(
    source,
    c,
    c_there,
    stride_c,
    stride_y,
    stride_x,
    in_y,
    in_x,
    start,
    count,
    offset,
    share,
    weights_y,
    weights_x,
    share_step,
    weight_step,
    constant,
    oy,
    out_y,
    ox,
    there,
    FILL: tl.constexpr,
    WIDENING: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PLACES: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Derivatives of a tile by y's position and width and by x's; as `product`, the runs of y before those of x."""
    start_x = start + out_y
    begin_y = tl.load(start + oy, mask=there, other=0)
    length_y = tl.load(count + oy, mask=there, other=0)
    at_y = tl.load(offset + oy, mask=there, other=0)
    begin_x = tl.load(start_x + ox, mask=there, other=0)
    length_x = tl.load(count + out_y + ox, mask=there, other=0)
    at_x = tl.load(offset + out_y + ox, mask=there, other=0)
    length_x = tl.where(length_y > 0, length_x, 0)
    channel = by_channel(c.to(tl.int64) * stride_c if WIDE else c * stride_c, LAST)
    has_channel = by_channel(c_there, LAST)
    rows = tl.max(length_y, axis=0)
    outputs: tl.constexpr = there.shape[0]
    channels: tl.constexpr = c.shape[0]
    if LAST:
        y_center = tl.zeros([outputs, channels], dtype=ACCUMULATE)
    else:
        y_center = tl.zeros([channels, outputs], dtype=ACCUMULATE)
    y_width = tl.zeros_like(y_center)
    x_center = tl.zeros_like(y_center)
    x_width = tl.zeros_like(y_center)
    for t0 in range(0, tl.max(length_x, axis=0), TAPS):
        t = t0 + tl.arange(0, TAPS)[None, :]
        live = t < length_x[:, None]
        table_x = at_x[:, None] + t
        k = place_of(begin_x[:, None], t, table_x, start, in_x, live, PLACES)
        weight_x = by_tap(tl.load(weights_x + table_x, mask=live, other=0), LAST)
        column = by_tap(k.to(tl.int64) * stride_x if WIDE else k * stride_x, LAST) + channel
        if LAST:
            part = tl.zeros([outputs, TAPS, channels], dtype=ACCUMULATE)
        else:
            part = tl.zeros([channels, outputs, TAPS], dtype=ACCUMULATE)
        part_center = tl.zeros_like(part)
        part_width = tl.zeros_like(part)
        for s in range(rows):
            reads = s < length_y
            table_y = at_y + s
            row = place_of(begin_y, s, table_y, start, in_y, reads, PLACES)
            line = by_output(row.to(tl.int64) * stride_y if WIDE else row * stride_y, LAST)
            mask = by_tap(live, LAST) & by_output(reads, LAST) & has_channel
            pixel = tl.load(source + line + column, mask=mask, other=0).to(ACCUMULATE)
            part += by_output(tl.load(weights_y + table_y, mask=reads, other=0), LAST) * pixel
            by_center = tl.load(weights_y + weight_step + table_y, mask=reads, other=0)
            part_center += by_output(by_center, LAST) * pixel
            if WIDENING:
                by_width = tl.load(weights_y + 2 * weight_step + table_y, mask=reads, other=0)
                part_width += by_output(by_width, LAST) * pixel
        y_center += summed(part_center * weight_x, LAST)
        by_center = by_tap(tl.load(weights_x + weight_step + table_x, mask=live, other=0), LAST)
        x_center += summed(part * by_center, LAST)
        if WIDENING:
            y_width += summed(part_width * weight_x, LAST)
            by_width = by_tap(tl.load(weights_x + 2 * weight_step + table_x, mask=live, other=0), LAST)
            x_width += summed(part * by_width, LAST)
    if FILL > 0:
        # crop = ... + fill (1 - share_y share_x)
        share_x = share + out_y
        value_y = tl.load(share + oy, mask=there, other=0)
        value_x = tl.load(share_x + ox, mask=there, other=0)
        lost = flat_channel(constant, LAST)
        y_center -= lost * flat(tl.load(share + share_step + oy, mask=there, other=0) * value_x, LAST)
        x_center -= lost * flat(tl.load(share_x + share_step + ox, mask=there, other=0) * value_y, LAST)
        if WIDENING:
            y_width -= lost * flat(tl.load(share + 2 * share_step + oy, mask=there, other=0) * value_x, LAST)
            x_width -= lost * flat(tl.load(share_x + 2 * share_step + ox, mask=there, other=0) * value_y, LAST)
    return y_center, y_width, x_center, x_width


@triton.jit
def fraction_of(j, n, ACCUMULATE: tl.constexpr, ALIGN: tl.constexpr):
    """The derivative of the outputs' positions by hi; by lo it is the rest to 1."""
    j = j.to(ACCUMULATE)
    if ALIGN:
        return tl.where(n == 1, 0.5, j / tl.maximum(n - 1, 1).to(ACCUMULATE))
    else:
        return (j + 0.5) / (n + tl.zeros_like(j))


@triton.jit(do_not_specialize=AS_THEY_COME)
def box_kernel(
    grad,
    images,
    index,
    start,
    count,
    offset,
    share,
    weights,
    sounds,
    slopes,
    fill,
    out,
    rows,
    per_image,
    channels,
    in_y,
    in_x,
    out_y,
    out_x,
    capacity_y,
    capacity_x,
    grad_r,
    grad_c,
    grad_y,
    grad_x,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    FILL: tl.constexpr,
    INDEXED: tl.constexpr,
    WIDENING: tl.constexpr,
    ALIGN: tl.constexpr,
    JACOBIAN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PLACES: tl.constexpr,
    LAST: tl.constexpr,
    WIDE: tl.constexpr,
    TILE_Y: tl.constexpr,
    TILE_X: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One tile of the derivative by the box: ``out`` (R, C, out_y, out_x, 4), or its product with ``grad``, one sum of
    four numbers for each tile and group of channels.
    """
    r, oy, ox, there, c, c_there = work_of(out_y, out_x, channels, TILE_Y, TILE_X, CHANNELS)
    r = r.to(tl.int64)
    sound = tl.load(sounds + r) != 0
    owner = owner_of(index, r, sound, per_image, INDEXED)
    runs = r * (out_y + out_x)
    capacity = tl.cast(capacity_y + capacity_x, tl.int64)
    table = weights + r * capacity
    if FILL > 0:
        constant = tl.load(fill + (c if FILL == 2 else c * 0), mask=c_there, other=0)
    else:
        constant = tl.zeros([CHANNELS], dtype=ACCUMULATE)
    y_center, y_width, x_center, x_width = slopes_of(
        images + owner * stride_b, c, c_there, stride_c, stride_y, stride_x, in_y, in_x,
        start + runs, count + runs, offset + runs, share + runs, table, table + capacity_y,
        tl.cast(rows, tl.int64) * (out_y + out_x), rows * capacity, constant, oy, out_y, ox, there,
        FILL, WIDENING, ACCUMULATE, PLACES, LAST, WIDE, TAPS,
    )  # fmt: skip
    by_y1 = flat(fraction_of(oy, out_y, ACCUMULATE, ALIGN), LAST)
    by_x1 = flat(fraction_of(ox, out_x, ACCUMULATE, ALIGN), LAST)
    slope_y = tl.load(slopes + r * 2).to(ACCUMULATE)
    slope_x = tl.load(slopes + r * 2 + 1).to(ACCUMULATE)
    x0 = x_center * (1 - by_x1) - slope_x * x_width
    y0 = y_center * (1 - by_y1) - slope_y * y_width
    x1 = x_center * by_x1 + slope_x * x_width
    y1 = y_center * by_y1 + slope_y * y_width
    mask = flat(there, LAST) & flat_channel(c_there, LAST)
    if JACOBIAN:
        pixel = (r * channels + flat_channel(c.to(tl.int64), LAST)) * out_y + flat(oy.to(tl.int64), LAST)
        target = out + (pixel * out_x + flat(ox.to(tl.int64), LAST)) * 4
        element: tl.constexpr = out.dtype.element_ty
        tl.store(target, tl.where(sound, x0, float("nan")).to(element), mask=mask)
        tl.store(target + 1, tl.where(sound, y0, float("nan")).to(element), mask=mask)
        tl.store(target + 2, tl.where(sound, x1, float("nan")).to(element), mask=mask)
        tl.store(target + 3, tl.where(sound, y1, float("nan")).to(element), mask=mask)
    else:
        at = flat(oy.to(tl.int64) * grad_y + ox.to(tl.int64) * grad_x, LAST)
        at += flat_channel(c.to(tl.int64) * grad_c, LAST)
        g = tl.load(grad + r * grad_r + at, mask=mask, other=0).to(ACCUMULATE)
        target = out + tl.program_id(0).to(tl.int64) * 4
        tl.store(target, tl.sum(tl.sum(tl.where(mask, g * x0, 0), axis=1), axis=0))
        tl.store(target + 1, tl.sum(tl.sum(tl.where(mask, g * y0, 0), axis=1), axis=0))
        tl.store(target + 2, tl.sum(tl.sum(tl.where(mask, g * x1, 0), axis=1), axis=0))
        tl.store(target + 3, tl.sum(tl.sum(tl.where(mask, g * y1, 0), axis=1), axis=0))


@triton.jit(do_not_specialize=("count",))
def sum_kernel(parts, sounds, out, count, BLOCK: tl.constexpr):
    """The gradient of one box: its ``parts`` (R, count, 4) summed in a fixed order."""
    r = tl.program_id(0).to(tl.int64)
    sound = tl.load(sounds + r) != 0
    four = tl.arange(0, 4)
    total = tl.zeros([BLOCK, 4], dtype=tl.float64)
    for p0 in range(0, count, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        total += tl.load(parts + (r * count + p[:, None]) * 4 + four[None, :], mask=p[:, None] < count, other=0)
    total = tl.sum(total, axis=0)
    tl.store(out + r * 4 + four, tl.where(sound, total, float("nan")).to(out.dtype.element_ty))
