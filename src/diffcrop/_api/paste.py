"""`paste`, the inverse of `crop`: checks, shapes, one dispatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop import _bounding, _boxes, _check, _check_crop, _check_paste, _ops, _ops_paste
from diffcrop._context import full_precision, plain
from diffcrop._options import result_dtype

from . import ragged


class Pasted(NamedTuple):
    """What `paste` returns with ``return_mask=True``."""

    canvas: Tensor
    mask: Tensor


def paste(
    patches: Tensor,
    boxes: Tensor | Sequence[Tensor],
    size: int | Sequence[int] | None = None,
    *,
    canvas: Tensor | Sequence[Tensor] | None = None,
    alpha: Tensor | None = None,
    batch_size: int | None = None,
    batch_index: Tensor | None = None,
    blend: str = "over",
    return_mask: bool = False,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    sigma: float | None = None,
    align_corners: bool = False,
    impl: str | None = None,
) -> Any:
    r"""Paste patches into boxes of a canvas, differentiably in the patches, their alpha, the boxes and the canvas.

    The inverse of `crop`: a box says where the patch's area [0, w] x [0, h] comes to lie, in the canvas's continuous
    pixel coordinates. Along each axis, with (lo, hi) the box's two numbers and n pixels of the patch, canvas pixel j
    reads the patch at

        c_j = (j + 1/2 - lo) n / (hi - lo) - 1/2        on the axis of its pixel indices, with
        s = n / |hi - lo|                               the reduction,

    with the filters and antialiasing of `crop`, and zeros around the patch. With W_y and W_x these weights, p a patch,
    a its alpha,

        v = W_y (a p) W_x^T         the colour that it brings, and
        m = W_y a W_x^T             how much it covers: 1 inside its box, less where only a part of a pixel lies in it.

    ``blend="over"``: for the patches of a canvas in ascending order, ``canvas = (1 - m) canvas + v``: later patches lie
    on top. ``blend="add"``: ``canvas = canvas + v``.

    >>> import torch, diffcrop
    >>> image, box = torch.arange(16.0).reshape(1, 4, 4), torch.tensor([1.0, 1.0, 3.0, 4.0])
    >>> diffcrop.paste(diffcrop.crop(image, box, (3, 2)), box, canvas=torch.zeros(1, 4, 4))
    tensor([[[ 0.,  0.,  0.,  0.],
             [ 0.,  5.,  6.,  0.],
             [ 0.,  9., 10.,  0.],
             [ 0., 13., 14.,  0.]]])
    >>> box = torch.tensor([0.5, 0.0, 2.5, 1.0], requires_grad=True)
    >>> pasted = diffcrop.paste(torch.ones(1, 1, 2), box, (1, 4))
    >>> pasted.detach()
    tensor([[[0.5000, 1.0000, 0.5000, 0.0000]]])
    >>> pasted[0, 0, 0].backward()  # less of the first pixel is covered as the left side moves right
    >>> box.grad[0] < 0
    tensor(True)

    Args:
        patches: (C, h, w), (K, C, h, w) or (B, K, C, h, w), channels first. float64, float32, float16, bfloat16; or any
            integer dtype or bool, read as float32. Any strides. Boxes of 2 or 6 numbers paste signals (C, w) and
            volumes (C, d, h, w) in the same way, on the reference implementation.
        boxes: float32 or float64 (half precision and integers are promoted). Whatever `crop` returns is pasted back by
            the same boxes and the same batch_index. Shapes and results, with canvases of any size:

            ================  ===========  ==============  ======================  ================
            patches           boxes        batch_index     canvas                  result
            ================  ===========  ==============  ======================  ================
            (C, h, w)         (4,)                         (C, H, W)               (C, H, W)
            (K, C, h, w)      (K, 4)                       (C, H, W)               (C, H, W)
            (B, C, h, w)      (4,)                         (B, C, H, W)            (B, C, H, W)
            (B, C, h, w)      (B, 4)                       (B, C, H, W)            (B, C, H, W)
            (B, K, C, h, w)   (B, K, 4)                    (B, C, H, W) or none    (B, C, H, W)
            (R, C, h, w)      list of B                    (B, C, H, W) or none    (B, C, H, W)
            (R, C, h, w)      (R, 4)       (R,) integers   (B, C, H, W)            (B, C, H, W)
            as for a batch    as for a     as for a        list of B (C, H_b,      list of B
                              batch        batch           W_b)                    (C, H_b, W_b)
            ================  ===========  ==============  ======================  ================

            With a list, R is the number of all its boxes. Boxes may hang over the canvas or be mirrored (x1 < x0: a
            mirrored patch). A box with a side of no length pastes nothing, and its gradient is zero. One that is NaN or
            infinite has no place either: it pastes nothing, gets a NaN gradient, and leaves all others alone.
        size: H and W of the canvas that is made, of zeros, where none is given; or one int for both.
        canvas: what to paste onto; it stays as it is. Integers are read as float32.
        alpha: how opaque each pixel of the patches is, from 0 to 1, floating-point or bool: like them with one channel,
            (..., 1, h, w). None: wholly. Of 8 bits pass ``alpha / 255``; values above 1 are no error.
        batch_size: without a canvas, how many to make; needed for patches that would else all go to one.
        batch_index: which canvas each patch goes to. Out of range is an error; where looking at it would cost a
            synchronisation it makes a NaN box instead.
        blend: ``"over"`` or ``"add"``, see above.
        return_mask: also return how much of each canvas pixel is covered: 1 - prod(1 - m) over its patches, and the sum
            of m for ``"add"``.
        box_format: ``"xyxy"``, ``"xywh"`` (corner and size) or ``"cxcywh"`` (centre and size).
        coords: ``"pixel"``, ``"unit"`` (the canvas is [0, 1]) or ``"normalized"`` (the canvas is [-1, 1]).
        mode: the filter, as for `crop`: ``"bilinear"``, ``"bicubic"``, ``"lanczos3"``, ``"area"``, ``"gaussian"`` or
            ``"nearest"``. Those with negative lobes also cover a little more or less than 1. A canvas pixel takes
            ``"nearest"`` from the patch pixel that its centre lies in, or nothing: a box that requires grad is an
            error there, and without alpha and under ``"over"`` the dtype is kept, whatever it is.
        antialias: whether the filter widens where the patch is reduced.
        sigma: for ``"gaussian"``: its width in canvas pixels where the patch is reduced, else in patch pixels;
            default 0.5.
        align_corners: lo and hi are where the centres of the first and last pixel of the patch come to lie, pixel
            centres of the canvas lie at 0..N-1. A patch one pixel wide covers [lo + 1/2, hi + 1/2] of the other
            convention.
        impl: ``None`` chooses. ``"cpu"``: compiled kernels. ``"reference"``: plain PyTorch, any device. An
            implementation that is named and cannot serve is an error.

    Returns:
        The canvas, or a `Pasted` of canvas and mask (..., 1, H, W), in the dtype of the patches, which canvas and alpha
        share where they are floating-point; float32 if all are integers. A list of them where the canvas is a list.
        Sums are kept in float32 (float64 for float64), positions in float64.

    Time and memory go with the area of the boxes inside the canvas and with one copy of the canvas, not with boxes
    times canvas, in both directions. The gradients are exact, to every order: first derivatives run in the kernels,
    higher ones through the reference. At a kink (boxes on whole pixels) the derivative is the right-hand one in c:
    that of a box moving left or up.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes, devices or options that do not fit, with what would be right.

    ``mode="gaussian", blend="add"`` is the write attention of Gregor et al. (2015, DRAW) with the filters normalised
    over the patch and not over the canvas; ``"over"`` is that of Porter and Duff (1984). Without antialiasing it is
    `affine_grid` with the inverse Theta and `grid_sample` with zeros.

    """
    options: dict[str, Any] = {
        "blend": blend,
        "return_mask": return_mask,
        "box_format": box_format,
        "coords": coords,
        "mode": mode,
        "antialias": antialias,
        "sigma": sigma,
        "align_corners": align_corners,
        "impl": impl,
    }
    boxes, canvas = ragged.parts(boxes), ragged.parts(canvas)
    several = isinstance(canvas, (list, tuple))
    return (_paste_list if several else _paste)(patches, boxes, size, canvas, alpha, batch_size, batch_index, **options)


def _paste(
    patches: Any,
    boxes: Any,
    size: Any,
    canvas: Any,
    alpha: Any,
    batch_size: Any,
    batch_index: Any,
    *,
    blend: Any,
    return_mask: Any,
    box_format: Any,
    coords: Any,
    mode: Any,
    antialias: Any,
    sigma: Any,
    align_corners: Any,
    impl: Any,
) -> Any:
    canvases = ()
    if type(boxes) is not Tensor:
        boxes, box_format, canvases = _bounding.read(boxes, box_format, coords)
    patches, canvas, alpha = _bounding.bare(patches), _bounding.bare(canvas), _bounding.bare(alpha)
    listed = isinstance(boxes, (list, tuple))
    axes = _check_crop.box_list(boxes, _check_paste.TURNED) if listed else _check.boxes(boxes, five=_check_paste.FIVE)
    patches = _check_paste.patches(patches, axes)
    if canvas is not None:
        _check_paste.canvas(canvas, patches, axes)
    spatial = _check_paste.size(size, axes, canvas)
    if canvases:
        _bounding.fits(canvases, [spatial], "canvases")
    _check.box_format(box_format)
    _check.coords(coords)
    options = _check_crop.options(mode, antialias, "zeros", 0.0, sigma, align_corners)
    options = options._replace(align_corners=False)  # boxes are brought to that convention
    over = _check_paste.blend(blend) == "over"
    _check_paste.return_mask(return_mask)
    if alpha is not None:
        _check_paste.alpha(alpha, patches, axes)
    if impl is not None:
        _check_paste.implementation(impl, axes)
        _check_paste.available(impl, patches, axes, _ops.implementations())

    batch = canvas.shape[0] if canvas is not None and canvas.ndim == axes + 2 else None
    batch = _check_paste.batch_size(batch_size, canvas, batch)
    index = None
    if listed:
        if batch_index is not None:
            raise ValueError("batch_index says what a list of boxes says already; pass one of them")
        batch = _listed(boxes, batch, canvas)
        for i, mine in enumerate(boxes):
            _check_crop.differentiable(mine, mode, f"boxes[{i}]")
        boxes, index = ragged.flattened(boxes, patches.device)
        _check_paste.rows(patches, boxes.shape[0], axes, "a list of boxes")
    elif batch_index is not None:
        _check_crop.index_kind(batch_index)
        if batch is None:
            raise ValueError("batch_index needs a batch of canvases; pass canvas (B, C, ...), or size and batch_size")
        _check_paste.rows(patches, batch_index.shape[0] if batch_index.ndim else 0, axes, "batch_index")
        index = plain(_check_crop.batch_index(batch_index, boxes, batch)).to(torch.int64)
    else:
        batch = _check_paste.places(boxes, patches, axes, _batch_of(batch, canvas, patches, axes))
    _check_paste.same(patches, boxes=boxes, alpha=alpha, canvas=canvas, batch_index=index)
    if not listed:
        _check_crop.differentiable(boxes, mode)

    boxes = _boxes.to_pixel(
        _boxes.promote(plain(boxes)), spatial, box_format=box_format, coords=coords, align_corners=align_corners
    )
    if align_corners:
        boxes = _outer_edges(boxes, patches.shape[-axes:])
    count = 1 if batch is None else batch
    leading = patches.ndim - axes - 1
    if boxes.ndim == 1:
        boxes = boxes.expand(patches.shape[0] if leading else 1, 2 * axes)
    boxes = boxes.flatten(0, -2)
    dtype = _dtype(patches, canvas, alpha, mode if over else "bilinear")
    patches = _flat(patches, leading)
    alpha = None if alpha is None else _flat(alpha, leading)
    onto = canvas if canvas is None or batch is not None else canvas.unsqueeze(0)
    shape = (count, patches.shape[1], *spatial)
    chosen = _ops_paste.choose(impl, patches, axes)
    with full_precision(patches):
        result, mask = _ops_paste.paste(
            patches, alpha, boxes, index, onto, shape, dtype, over, return_mask, options, chosen
        )
    if batch is None:
        result, mask = result.squeeze(0), None if mask is None else mask.squeeze(0)
    return result if mask is None else Pasted(result, mask)


def _flat(tensor: Tensor, leading: int) -> Tensor:
    """One leading dimension."""
    return tensor.unsqueeze(0) if leading == 0 else tensor if leading == 1 else tensor.flatten(0, 1)


def _batch_of(batch: int | None, canvas: Tensor | None, patches: Tensor, axes: int) -> int | None:
    """The number of canvases, which patches (B, K, ...) tell as well; one canvas alone is none of B."""
    if batch is None and canvas is not None and patches.ndim == axes + 3:
        raise ValueError(
            f"patches of shape (B, K, C, ...) need canvases (B, C, ...), got {tuple(patches.shape)} and canvas "
            f"{tuple(canvas.shape)}; for one canvas pass patches.flatten(0, 1) and boxes.flatten(0, 1)"
        )
    return batch


def _listed(boxes: Sequence[Tensor], batch: int | None, canvas: Tensor | None) -> int:
    if batch is None:
        if canvas is not None:
            raise ValueError(f"a list of boxes needs a batch of canvases, got canvas of shape {tuple(canvas.shape)}")
        return len(boxes)
    if len(boxes) != batch:
        raise ValueError(f"a list of boxes must have one tensor per canvas, got {len(boxes)} for {batch} canvases")
    return batch


def _outer_edges(boxes: Tensor, sides: Sequence[int]) -> Tensor:
    """From the centres of a patch's first and last pixel to its outer edges, where pixel k covers [k, k + 1].

    A single pixel has its centre in the middle of the box and is as long as that, as in `map_points`.
    """
    axes = len(sides)
    boxes = _boxes.widen(boxes)
    lo, hi = boxes[..., :axes].unbind(-1), boxes[..., axes:].unbind(-1)
    first, last = [], []
    for a, b, n in zip(lo, hi, reversed(sides), strict=True):
        margin = 0.5 * (b - a) / (n - 1) if n > 1 else 0.0
        first.append(a + 0.5 - margin)
        last.append(b + 0.5 + margin)
    return torch.stack([*first, *last], -1)


def _dtype(patches: Tensor, canvas: Tensor | None, alpha: Tensor | None, mode: str) -> torch.dtype:
    """Of the result: the floating-point one that there is, else float32, but where pixels are only moved."""
    for tensor in (patches, canvas, alpha):
        if tensor is not None and tensor.is_floating_point():
            return tensor.dtype
    if alpha is not None or (canvas is not None and canvas.dtype != patches.dtype):
        return torch.float32
    return result_dtype(patches.dtype, mode)


def _paste_list(
    patches: Any,
    boxes: Any,
    size: Any,
    canvas: Any,
    alpha: Any,
    batch_size: Any,
    batch_index: Any,
    **options: Any,
) -> Any:
    """Canvases of different sizes: one call for each, with its patches in their order."""
    boxes, options["box_format"], canvases = _bounding.read(boxes, options["box_format"], options["coords"])
    listed = isinstance(boxes, (list, tuple))
    axes = _check_crop.box_list(boxes, _check_paste.TURNED) if listed else _check.boxes(boxes, five=_check_paste.FIVE)
    patches = _check_paste.patches(patches, axes)
    onto = _check_paste.canvas_list(canvas, patches, axes)
    _bounding.fits(canvases, [one.shape[-axes:] for one in onto], "canvases")
    count = len(onto)
    if size is not None:
        raise ValueError(f"size must be left out with a list of canvases, got {_check.describe(size)}")
    _check_paste.batch_size(batch_size, onto, count)
    if alpha is not None:
        _check_paste.alpha(alpha, patches, axes)
    named = {f"boxes[{i}]": mine for i, mine in enumerate(boxes)} if listed else {"boxes": boxes}
    for name, mine in named.items():
        _check_crop.differentiable(mine, options["mode"], name)
    if batch_index is not None:
        _check_crop.index_kind(batch_index)
    for i, one in enumerate(onto):
        _check_paste.same(patches, **named, alpha=alpha, **{f"canvas[{i}]": one}, batch_index=batch_index)
    leading = patches.ndim - axes - 1
    if listed:
        _listed(boxes, count, None)
        if batch_index is not None:
            raise ValueError("batch_index says what a list of boxes says already; pass one of them")
        _check_paste.rows(patches, sum(len(t) for t in boxes), axes, "a list of boxes")
        lengths = [len(t) for t in boxes]
        parts = patches.split(lengths)
        mattes = [None] * count if alpha is None else alpha.split(lengths)
        each = list(boxes)
    elif batch_index is not None:
        _check_paste.rows(patches, batch_index.shape[0] if batch_index.ndim else 0, axes, "batch_index")
        index = plain(_check_crop.batch_index(batch_index, boxes, count)).to(torch.int64)
        rows = [(index == b).nonzero().squeeze(1) for b in range(count)]
        parts, each = [patches[row] for row in rows], [boxes[row] for row in rows]
        mattes = [None if alpha is None else alpha[row] for row in rows]
    else:
        _check_paste.places(boxes, patches, axes, count)
        parts = patches.unbind(0) if leading else [patches]
        mattes = [None] * count if alpha is None else alpha.unbind(0)
        each = [boxes] * count if boxes.ndim == 1 else boxes.unbind(0)
    return [paste(p, b, canvas=c, alpha=a, **options) for p, b, c, a in zip(parts, each, onto, mattes, strict=True)]
