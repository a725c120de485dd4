"""A case made concrete: seeded tensors. The same in every process, and unchanged by what other cases there are."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import diffcrop

from .cases import Case

# Sampling positions keep this far, in pixels, from where a filter has a kink. A box gradient jumps there, and a peer
# that computes positions in float32 (off by up to 3e-4 pixels on the largest image) would be on a side by chance.
MARGIN = 1e-3
_TRIES = 400
# Of a bin of RoIAlign, along each axis.
SAMPLES = 2


@dataclass(frozen=True)
class Problem:
    """Images (B, C, *spatial), boxes in pixels, box r reading image owner[r], and the cotangent of the crops.

    Boxes are (R, 2 axes), rotated ones (R, 5) and quadrilaterals (R, 8). Of pastes the images are the patches
    (R, C, *size), which go to canvas owner[r], and the cotangent is that of the canvases.
    """

    case: Case
    images: Tensor
    boxes: Tensor
    owner: Tensor
    cotangent: Tensor
    canvas: Tensor | None = None

    def rounded(self) -> list[tuple[int, int, int, int]]:
        """The boxes on whole pixels, for peers that crop by slicing."""
        return [(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)) for x0, y0, x1, y1 in self.boxes.round().int().tolist()]

    def options(self) -> dict[str, Any]:
        """What `diffcrop.crop` is told."""
        return {name: getattr(self.case, name) for name in ("mode", "antialias", "padding_mode")}

    def paste_options(self) -> dict[str, Any]:
        """What `diffcrop.paste` is told."""
        return {name: getattr(self.case, name) for name in ("mode", "antialias")}


@dataclass(frozen=True)
class Outcome:
    """Crops (R, C, *size), or canvases; and the gradients that were asked for: those of the images and of the boxes."""

    value: Tensor
    images: Tensor | None = None
    boxes: Tensor | None = None


@dataclass(frozen=True)
class Prepared:
    """One call as a user writes it, and how its result reads as tensors, which is not timed."""

    call: Callable[[], Any]
    outcome: Callable[[Any], Outcome]


def wants(pass_: str) -> tuple[bool, bool]:
    """Whether the images and whether the boxes require grad in a pass."""
    return pass_ in ("images", "both"), pass_ in ("boxes", "both")


def crop_of(case: Case) -> Callable[..., Tensor]:
    """Our function for boxes of this shape, which takes them as `Problem` has them."""
    if case.shape == "quad":
        return lambda images, boxes, *rest, **options: diffcrop.crop_quad(
            images, boxes.unflatten(-1, (4, 2)), *rest, **options
        )
    if case.shape == "roi":
        return _roi_align
    return diffcrop.crop_rotated if case.shape == "rotated" else diffcrop.crop


def _roi_align(
    images: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    *,
    batch_index: Tensor | None = None,
    coords: str = "pixel",
    impl: str | None = None,
    **_: Any,
) -> Tensor:
    """With torchvision's rows (index, x0, y0, x1, y1); as many boxes to each image."""
    if batch_index is None:
        batch_index = torch.arange(len(images)).repeat_interleave(len(boxes) // len(images))
    if coords != "pixel":
        boxes = diffcrop.convert_boxes(boxes, images.shape[-2:], from_coords=coords)
    rows = torch.cat([batch_index[:, None].to(boxes.dtype), boxes], 1)
    return diffcrop.roi_align(images, rows, size, 1.0, SAMPLES, True, impl=impl)


def make(case: Case) -> Problem:
    # By what is cropped and not by how: variants of a case have its boxes, to within a pixel.
    seed = zlib.crc32(repr((case.images, case.size, case.boxes, case.share, case.pixels)).encode())
    generator = torch.Generator().manual_seed(seed)
    if case.shape == "paste":
        return _pasting(case, generator)
    dtype = getattr(torch, case.dtype)
    if dtype.is_floating_point:
        images = torch.rand(case.images, generator=generator, dtype=torch.float32).to(dtype)
    else:
        images = torch.randint(0, 256, case.images, generator=generator, dtype=dtype)
    if case.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    count, channels, *spatial = case.images
    rows = count * case.boxes
    boxes = torch.empty(rows, 2 * case.axes, dtype=torch.float64)
    for first, (pixels, n) in enumerate(zip(reversed(spatial), reversed(case.size), strict=True)):
        for row in range(rows):
            boxes[row, first], boxes[row, first + case.axes] = _axis(case, pixels, n, generator)
    if case.shape not in ("upright", "roi"):
        boxes = _turned(boxes, case, generator)
    result = dtype if dtype.is_floating_point else torch.float32
    cotangent = torch.randn(rows, channels, *case.size, generator=generator).to(result)
    if case.channels_last:
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
    return Problem(
        case=case,
        images=images,
        boxes=boxes if dtype == torch.float64 else boxes.float(),
        owner=torch.arange(count).repeat_interleave(case.boxes),
        cotangent=cotangent,
    )


def _pasting(case: Case, generator: torch.Generator) -> Problem:
    count, channels, *spatial = case.images
    rows = count * case.boxes
    boxes = torch.empty(rows, 4, dtype=torch.float64)
    for first, (pixels, n) in enumerate(zip(reversed(spatial), reversed(case.size), strict=True)):
        for row in range(rows):
            boxes[row, first], boxes[row, first + 2] = _axis(case, pixels, n, generator)
    return Problem(
        case=case,
        images=torch.rand(rows, channels, *case.size, generator=generator),
        boxes=boxes.float(),
        owner=torch.arange(count).repeat_interleave(case.boxes),
        cotangent=torch.randn(case.images, generator=generator),
        canvas=torch.rand(case.images, generator=generator),
    )


def _turned(boxes: Tensor, case: Case, generator: torch.Generator) -> Tensor:
    """The boxes turned about their centres; corners of quadrilaterals are moved by up to a tenth of the sides too."""
    low, high = case.degrees
    angle = low + (high - low) * torch.rand(len(boxes), generator=generator, dtype=torch.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    rotated = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, sides, angle[:, None]], 1)
    if case.shape == "rotated":
        return rotated
    moved = 0.2 * (torch.rand(len(boxes), 4, 2, generator=generator, dtype=torch.float64) - 0.5) * sides[:, None]
    return (diffcrop.rotated_to_quads(rotated) + moved).flatten(1)


def _axis(case: Case, pixels: int, n: int, generator: torch.Generator) -> tuple[float, float]:
    """(lo, hi) inside [0, pixels], float32 numbers: drawn, then moved by up to half a pixel until it keeps `MARGIN`.

    Where no move does, the one that keeps the most. Boxes of a given side move as a whole.
    """
    u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    low, high = case.pixels or (case.share[0] * pixels, case.share[1] * pixels)
    side = low + u * (high - low)
    lo = v * (pixels - side)
    moves = torch.rand(2, _TRIES, generator=generator, dtype=torch.float64) - 0.5
    if case.whole:
        return float(round(lo)), float(round(lo) + round(side))
    lows = (lo + moves[0]).clamp(min=0).float()
    highs = (lows + side if low == high else lo + side + moves[1]).clamp(max=pixels).float()
    if case.shape == "paste":
        distance = _paste_kink_distance(lows.double(), highs.double(), n, pixels)
    else:
        distance = _kink_distance(lows.double(), highs.double(), n, case)
    good = (distance >= MARGIN).nonzero()
    pick = int(good[0]) if len(good) else int(distance.argmax())
    return lows[pick].item(), highs[pick].item()


def _kink_distance(lo: Tensor, hi: Tensor, n: int, case: Case) -> Tensor:
    """How far the sampling positions of each of many axes stay from where the filter's derivative jumps."""
    s = (hi - lo) / n
    c = lo[:, None] + (torch.arange(n, dtype=torch.float64) + 0.5) * s[:, None] - 0.5
    width = s.clamp(min=1.0)[:, None] if case.antialias else torch.ones_like(s)[:, None]
    # Pixels are averaged over a footprint with edges; the triangle has three corners; the others are smooth enough.
    shifts = {"area": (0.5 + width / 2, 0.5 - width / 2), "bilinear": (-width, 0 * width, width)}.get(case.mode, ())
    if not shifts:
        return torch.full_like(lo, torch.inf)
    at = torch.cat([c + shift for shift in shifts], 1)
    return (at - at.round()).abs().amin(1)


def _paste_kink_distance(lo: Tensor, hi: Tensor, n: int, pixels: int) -> Tensor:
    """How far canvas pixels keep from where a patch of n pixels has a kink, or the zeros around it; in its pixels."""
    c = (torch.arange(pixels, dtype=torch.float64) + 0.5 - lo[:, None]) * (n / (hi - lo))[:, None] - 0.5
    distance = torch.where((c > -1.5) & (c < n + 0.5), (c - c.round()).abs(), torch.inf)
    return distance.amin(1)
