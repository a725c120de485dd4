"""Problems: a true box in a photograph, what was cropped there and how it was spoilt, and starts beside it.

All draws depend on the seed, the photograph and the problem's number alone: every method sees the same problems, and
more of them begin with the same ones.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

import diffcrop
from diffcrop.cli.recovery import displaced

from .photographs import Photograph, as_tensor

DISPLACEMENTS = (0.1, 0.25, 0.5, 1.0)
REDUCTIONS = (1, 2, 4, 8, 16)
SIDES = (96.0, 160.0)
# A crop at reduction f has 128 / f pixels a side; boxes have 128 on average.
_SIDE = 128
MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian")

_RESAMPLING = {
    "pillow bilinear": Image.Resampling.BILINEAR,
    "pillow bicubic": Image.Resampling.BICUBIC,
    "pillow lanczos": Image.Resampling.LANCZOS,
}
# Who cropped the target.
TARGETS = (*(f"diffcrop {mode}" for mode in MODES), *_RESAMPLING)
# The mode of diffcrop that is the same filter.
MODE_OF = {f"diffcrop {mode}": mode for mode in MODES} | {
    "pillow bilinear": "bilinear",
    "pillow bicubic": "bicubic",
    "pillow lanczos": "lanczos3",
}


@dataclass(frozen=True)
class Variant:
    """How a target differs from the crop: gain * crop + bias + white noise of this sigma."""

    name: str
    about: str
    gain: float = 1.0
    bias: float = 0.0
    sigma: float = 0.0

    def apply(self, crops: Tensor, seed: str) -> Tensor:
        """Of (K, C, n, n); the noise of a problem is the same whatever was cropped and how many problems there are."""
        spoilt = self.gain * crops + self.bias
        if self.sigma == 0:
            return spoilt
        rows = []
        for number, crop in enumerate(spoilt):
            generator = torch.Generator().manual_seed(random.Random(f"{seed} {number}").getrandbits(63))
            rows.append(crop + self.sigma * torch.randn(crop.shape, generator=generator))
        return torch.stack(rows)


VARIANTS = {
    one.name: one
    for one in (
        Variant("clean", "as cropped"),
        Variant("noise", "white noise of 5 % of the value range added", sigma=0.05),
        Variant("gain", "0.6 times as bright plus 0.2, and noise of 2 %", gain=0.6, bias=0.2, sigma=0.02),
    )
}


@dataclass(frozen=True)
class Problems:
    """Those on one photograph: ``truth`` (K, 4) and ``start`` (displacements, K, 4), pixel corners."""

    photograph: Photograph
    truth: Tensor
    start: Tensor
    seed: str


def output_size(reduction: int) -> int:
    return _SIDE // reduction


def make(photograph: Photograph, count: int, seed: int = 0) -> Problems:
    """Boxes anywhere inside with sides drawn evenly from `SIDES`, and starts as those of the demonstration."""
    width, height = photograph.image.size
    truths, starts = [], []
    for number in range(count):
        draw = random.Random(f"{seed} {photograph.name} {number}")
        w, h = (draw.uniform(*SIDES) for _ in range(2))
        cx, cy = w / 2 + draw.random() * (width - w), h / 2 + draw.random() * (height - h)
        angle = draw.uniform(0, 2 * math.pi)
        stretch = draw.uniform(-1, 1), draw.uniform(-1, 1)
        truths.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
        starts.append([displaced(cx, cy, w, h, d, angle, stretch) for d in DISPLACEMENTS])
    start = torch.tensor(starts).transpose(0, 1).contiguous()
    return Problems(photograph, torch.tensor(truths), start, f"{seed} {photograph.name}")


def targets(problems: Problems, target: str, variant: Variant, size: int) -> Tensor:
    """What was cropped at the true boxes, (K, C, size, size)."""
    crops = cropped(problems.photograph, problems.truth, target, size)
    return variant.apply(crops, f"{problems.seed} {size} {variant.name}")


def cropped(photograph: Photograph, boxes: Tensor, target: str, size: int) -> Tensor:
    if target not in _RESAMPLING:
        return diffcrop.crop(photograph.pixels, boxes, size, mode=MODE_OF[target])
    image = photograph.image
    crops = []
    for x0, y0, x1, y1 in boxes.tolist():
        # A box that touches the photograph's edge may be over it by a rounding, which Pillow refuses.
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, image.width), min(y1, image.height))
        crops.append(as_tensor(image.resize((size, size), _RESAMPLING[target], box=box)))
    return torch.stack(crops)


def standard_errors(photograph: Photograph, truth: Tensor, mode: str, size: int) -> Tensor:
    """The Cramer-Rao bound for noise of sigma 1: (K,), root mean square over the four corner numbers, in pixels.

    Of white noise the covariance of any unbiased estimate is at least sigma^2 (J^T J)^-1, with the derivative J of the
    crop by the box at the truth. Infinite where the crop does not depend on some motion of the box.
    """
    jacobian = diffcrop.crop_with_jacobian(photograph.pixels.double(), truth.double(), size, mode=mode).jacobian
    jacobian = jacobian.flatten(1, -2)
    values, vectors = torch.linalg.eigh(jacobian.mT @ jacobian)
    # A flat crop has eigenvalues of 0, or of a rounding on either side of it.
    known = values > 1e-12
    variances = (vectors.square() / torch.where(known, values, 1.0).unsqueeze(-2)).sum(-1).mean(-1)
    return torch.where(known.all(-1), variances.sqrt(), torch.inf)
