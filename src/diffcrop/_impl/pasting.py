"""The specification of `paste`: dense one-dimensional weights in plain differentiable PyTorch, blended in order.

Along an axis with canvas pixels j, a patch of n pixels and a box [lo, hi] canvas pixel j reads the patch at

    c_j = (j + 1/2 - lo) n / (hi - lo) - 1/2        that is a crop of the patch by the canvas's box in the patch,
    s = n / |hi - lo|                               (-lo n / (hi - lo), (N - lo) n / (hi - lo)), with zeros around it.

With W_y and W_x these matrices, q the patch and a its matte (ones if it has none),

    v = W_y q W_x^T        m = W_y a W_x^T          over: canvas = (1 - m) canvas + v, a patch after the other
                                                    add:  canvas = canvas + v

Shapes throughout: ``patches`` (R, C, *sides), premultiplied, with the matte as one more channel where ``matte``;
``boxes`` (R, 2A), pixel xyxy; ``index`` (R,) or None, which means that R is a multiple of B and patch r goes to canvas
r // (R / B); ``canvas`` (B, C, *spatial). The mask is what ones would paste onto zeros.

Where values may be looked at, a patch is blended with the region of the canvas that it touches alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffcrop import _axis
from diffcrop._context import in_full_precision, is_concrete
from diffcrop._filters import reach
from diffcrop._options import Options

# Beyond this a box counts as infinite, below this a side as empty: squares and products must not overflow.
FARTHEST = {torch.float64: 1e100, torch.float32: 1e12}
LEAST = {torch.float64: 1e-30, torch.float32: 1e-6}


class Rules(NamedTuple):
    """How patches are blended: with their last channel as the matte, over each other or added up."""

    matte: bool
    over: bool

    def moves(self, options: Options, dtype: torch.dtype) -> bool:
        """Whether whole numbers are only moved."""
        return options.mode == "nearest" and self.over and not self.matte and not dtype.is_floating_point


@in_full_precision
def paste(
    patches: Tensor,
    boxes: Tensor,
    index: Tensor | None,
    canvas: Tensor,
    rules: Rules,
    masked: bool,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """The canvases and the masks (B, 1, *spatial)."""
    count, spatial = canvas.shape[0], canvas.shape[2:]
    floating = canvas.dtype if canvas.is_floating_point() else torch.float32
    mask = torch.zeros((count, 1, *spatial), dtype=floating, device=canvas.device) if masked else None
    if boxes.shape[0] == 0:
        return canvas + _tie(boxes.sum(), patches, canvas), mask
    sound = _sound(count, boxes, index)
    tensors = (patches, boxes, canvas) if index is None else (patches, boxes, canvas, index)
    blend = _each if is_concrete(*tensors) else _all
    result, mask = blend(patches, sound, canvas, mask, rules, options)
    if mask is not None:
        mask = mask + _tie(sound.nothing, patches, mask)
    return result + _tie(sound.nothing, patches, result), mask


def _tie(nothing: Tensor, patches: Tensor, result: Tensor) -> Tensor:
    """A zero that gives what is not pasted a gradient, not none.

    Of one dimension: vmap over nothing cannot add tensors without any.
    """
    if not result.dtype.is_floating_point:
        return torch.zeros(1, dtype=result.dtype, device=result.device)
    return (nothing.unsqueeze(0) + patches.narrow(0, 0, 0).sum().unsqueeze(0)).to(result.dtype)


class _Sound(NamedTuple):
    """Boxes in the precision of positions, harmless where they have no place; which do; and a safe index.

    ``nothing`` is 0, has the derivative 0 by boxes of no size and NaN by those that are not finite.
    """

    boxes: Tensor
    usable: Tensor
    owner: Tensor | None
    nothing: Tensor


def _sound(count: int, boxes: Tensor, index: Tensor | None) -> _Sound:
    positions = boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)
    valid = (torch.isfinite(positions) & (positions.abs() <= FARTHEST[positions.dtype])).all(-1)
    if index is not None:
        known = (index >= 0) & (index < count)
        valid = valid & known
        index = torch.where(known, index, 0)
    known_boxes = torch.where(valid[:, None], positions, 0.0)
    # What is not selected passes on a gradient of 0, and 0 times NaN is NaN.
    never = torch.where(valid[:, None], 0.0, positions) * math.nan
    nothing = (known_boxes * 0.0).sum() + torch.where(torch.ones_like(valid)[:, None], 0.0, never).sum()
    axes = boxes.shape[1] // 2
    side = known_boxes[:, axes:] - known_boxes[:, :axes]
    usable = valid & (side.detach().abs() >= LEAST[positions.dtype]).all(-1)
    unit = torch.cat([torch.zeros_like(side), torch.ones_like(side)], -1)
    return _Sound(torch.where(usable[:, None], known_boxes, unit), usable, index, nothing)


class _Axis(NamedTuple):
    """One axis of R boxes: the canvas pixels that are asked for, and the ends of these in each patch."""

    lo: Tensor
    hi: Tensor
    outputs: tuple[int, int]
    side: int

    @property
    def pixels(self) -> int:
        return self.outputs[1] - self.outputs[0]

    def matrix(self, options: Options) -> Tensor:
        """(R, canvas pixels, patch pixels)."""
        return _axis.weights(self.lo, self.hi, self.pixels, self.side, options)

    def nearest(self, options: Options) -> tuple[Tensor, Tensor]:
        center, _ = _axis.sampling(self.lo.detach(), self.hi.detach(), self.pixels, False)
        return _axis.nearest(center, self.side, options)


def _axes(boxes: Tensor, sides: Sequence[int], spatial: Sequence[int], looking: bool, options: Options) -> list[_Axis]:
    count, result = len(spatial), []
    for axis, (n, pixels) in enumerate(zip(sides, spatial, strict=True)):
        lo, hi = boxes[:, count - 1 - axis], boxes[:, 2 * count - 1 - axis]  # boxes name x first, tensors have it last
        outputs = touched(float(lo.detach()), float(hi.detach()), n, pixels, options) if looking else (0, pixels)
        scale = n / (hi - lo)
        result.append(_Axis((outputs[0] - lo) * scale, (outputs[1] - lo) * scale, outputs, n))
    return result


def touched(lo: float, hi: float, n: int, pixels: int, options: Options) -> tuple[int, int]:
    """The canvas pixels outside of which a patch has no weight."""
    scale = (hi - lo) / n
    width = max(1 / abs(scale), 1.0) if options.antialias else 1.0
    margin = abs(scale) * (reach(options.mode, width, options.parameter) - 0.5) + 1.5
    first = min(max(min(lo, hi) - margin, 0.0), float(pixels))
    last = min(max(max(lo, hi) + margin, first), float(pixels))
    return math.floor(first), math.ceil(last)


def _layer(patches: Tensor, axes: list[_Axis], rules: Rules, options: Options) -> tuple[Tensor, Tensor]:
    """The colour v (R, C, *outputs) and the matte m (R, 1, *outputs)."""
    if rules.moves(options, patches.dtype):
        inside = torch.ones((), dtype=torch.bool, device=patches.device)
        for d, axis in enumerate(axes, 2):
            pixel, there = axis.nearest(options)
            shape = [pixel.shape[0]] + [1] * (d - 1) + [pixel.shape[1]] + [1] * (len(axes) + 1 - d)
            patches = torch.take_along_dim(patches, pixel.long().view(shape), d)
            inside = inside & there.view(shape)
        return patches, inside.expand(-1, 1, *patches.shape[2:])
    share = torch.ones((), dtype=patches.dtype, device=patches.device)
    within = torch.ones((), dtype=torch.bool, device=patches.device)
    for d, axis in enumerate(axes, 2):
        matrix = axis.matrix(options).to(patches.dtype)
        patches = torch.einsum("rij,r...j->r...i", matrix, patches.movedim(d, -1)).movedim(-1, d)
        shape = [matrix.shape[0]] + [1] * (d - 1) + [matrix.shape[1]] + [1] * (len(axes) + 1 - d)
        share = share * matrix.sum(-1).view(shape)
        within = within & (matrix != 0).any(-1).view(shape)
    # 0 times NaN is NaN: what is not finite stays within its patch. The rest keeps the derivatives of its zero weights.
    patches = torch.where(within | patches.isfinite(), patches, 0.0)
    if rules.matte:
        return patches[:, :-1], patches[:, -1:]
    return patches, share


def _blend(canvas: Tensor, v: Tensor, m: Tensor, over: bool) -> Tensor:
    if m.dtype == torch.bool:
        return torch.where(m, v, canvas)
    return (1 - m) * canvas + v if over else canvas + v


def _each(
    patches: Tensor, sound: _Sound, canvas: Tensor, mask: Tensor | None, rules: Rules, options: Options
) -> tuple[Tensor, Tensor | None]:
    """One patch after the other, each in the region that it touches."""
    result, rows, count = canvas.clone(), sound.boxes.shape[0], canvas.shape[0]
    owners = [r // (rows // count) for r in range(rows)] if sound.owner is None else sound.owner.tolist()
    for r, (owner, usable) in enumerate(zip(owners, sound.usable.tolist(), strict=True)):
        axes = _axes(sound.boxes[r : r + 1], patches.shape[2:], canvas.shape[2:], True, options) if usable else []
        if not usable or any(axis.outputs[0] >= axis.outputs[1] for axis in axes):
            continue
        v, m = _layer(patches[r : r + 1], axes, rules, options)
        place = (slice(owner, owner + 1), slice(None), *(slice(*axis.outputs) for axis in axes))
        # A copy: what is blended with is needed again by the derivative, when the canvas has changed.
        result[place] = _blend(result[place].clone(), v, m, rules.over)
        if mask is not None:
            mask = mask.clone() if mask.requires_grad else mask
            m = m.to(mask.dtype)
            mask[place] = _blend(mask[place].clone(), m, m, rules.over)
    return result, mask


def _all(
    patches: Tensor, sound: _Sound, canvas: Tensor, mask: Tensor | None, rules: Rules, options: Options
) -> tuple[Tensor, Tensor | None]:
    """As a function of its tensors, on all of the canvas."""
    axes = _axes(sound.boxes, patches.shape[2:], canvas.shape[2:], False, options)
    v, m = _layer(patches, axes, rules, options)
    usable = sound.usable.view(sound.usable.shape[0], *[1] * (canvas.ndim - 1))
    moves = m.dtype == torch.bool
    v, m = (v, m & usable) if moves else (torch.where(usable, v, 0.0), torch.where(usable, m, 0.0))
    count = canvas.shape[0]
    if sound.owner is None:
        layers = [t.unflatten(0, (count, t.shape[0] // count)).unbind(1) for t in (v, m)]
    else:
        # Every canvas sees every patch; others' have no weight there.
        mine = sound.owner[:, None] == torch.arange(count, device=canvas.device)
        mine = mine.view(*mine.shape, *[1] * (canvas.ndim - 1))
        layers = [
            (t[:, None] & mine if t.dtype == torch.bool else torch.where(mine, t[:, None], 0)).unbind(0) for t in (v, m)
        ]
    for value, matte in zip(*layers, strict=True):
        canvas = _blend(canvas, value, matte, rules.over)
        if mask is not None:
            matte = matte.to(mask.dtype)
            mask = _blend(mask, matte, matte, rules.over)
    return canvas, mask
