"""Schedules: the stages of a search, from a blurred image to the image itself."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import diffcrop
from diffcrop._check import describe

__all__ = ["SCHEDULES", "Stage", "stages_of", "steps_of"]


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule for `diffcrop.fit_boxes`.

    Args:
        blur: standard deviation of the Gaussian that blurs the image, in units of the box (the geometric mean of the
            sides that ``init`` gives it), rounded to half an octave. The crop is blurred with all that surrounds it:
            blurring the crop alone would keep the local optima that a schedule is to remove. 0 is the image itself.
        share: of the steps, in proportion to the other stages.
        rate: factor of the learning rate, which falls to 0 within the stage on a half cosine.
        keep: of the starts of each box only so many go on from the stage before, those that scored best there; of
            two that overlap by more than 0.7 (intersection over union) only the better, while there are others. None
            keeps all. The start that waits for the image itself comes in addition.

    """

    blur: float = 0.0
    share: float = 1.0
    rate: float = 1.0
    keep: int | None = None

    def __post_init__(self) -> None:
        for name in ("blur", "share", "rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name} of a Stage must be a number, got {describe(value)}")
            least = "0 or more" if name == "blur" else "above 0"
            number = float(value)
            if not math.isfinite(number) or number < 0 or (number == 0 and name != "blur"):
                raise ValueError(f"{name} of a Stage must be finite and {least}, got {number:g}")
        if self.keep is None:
            return
        if isinstance(self.keep, bool) or not isinstance(self.keep, numbers.Integral):
            raise TypeError(f"keep of a Stage must be None or an int, got {describe(self.keep)}")
        if self.keep < 1:
            raise ValueError(f"keep of a Stage must be at least 1, got {self.keep}; None keeps all starts")


# Chosen on the photographs of the demonstration; what it recovers on others is in docs/recovery.md.
SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "coarse-to-fine": (
        Stage(blur=1 / 8, share=1, rate=3),
        Stage(blur=1 / 16, share=1, rate=1.5, keep=8),
        Stage(share=2, keep=4),
    ),
}


def stages_of(schedule: Any) -> tuple[Stage, ...]:
    """The stages that the argument ``schedule`` of `fit_boxes` stands for."""
    if schedule is None:
        return (Stage(),)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            known = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"schedule must be None, {known} or a sequence of Stage, got {describe(schedule)}")
        return SCHEDULES[schedule]
    if isinstance(schedule, Stage) or not isinstance(schedule, Sequence):
        raise TypeError(f"schedule must be None, a name or a sequence of Stage, got {describe(schedule)}")
    for stage in schedule:
        if not isinstance(stage, Stage):
            raise TypeError(f"schedule must hold stages (diffcrop.search.Stage), got {describe(stage)}")
    if not schedule:
        raise ValueError("schedule must have at least one Stage, got none; None is the image itself throughout")
    if schedule[-1].blur:
        raise ValueError(
            f"schedule must end with a stage without blur, as scores of blurred images cannot be compared with those "
            f"of the image, got blur={schedule[-1].blur:g} in the last; append Stage()"
        )
    return tuple(schedule)


def steps_of(stages: Sequence[Stage], steps: int) -> list[int]:
    """Whole steps by the stages' shares, at least one each; what rounding leaves over is the last stage's."""
    if steps < len(stages):
        raise ValueError(f"steps must be at least 1 for each of the {len(stages)} stages, got {steps}")
    total = sum(stage.share for stage in stages)
    counts: list[int] = []
    for i, stage in enumerate(stages[:-1]):
        left = steps - sum(counts) - (len(stages) - 1 - i)
        counts.append(min(max(1, round(steps * stage.share / total)), left))
    return [*counts, steps - sum(counts)]


class Sources:
    """The images, and blurred ones made from them when they are first asked for.

    A blurred image is a gaussian crop of the whole image whose pixels are as large as its sigma: it holds all that is
    left, and crops of it are cheap. Boxes differ in size and so in their blur; rounding it to half an octave lets boxes
    of about one size share an image.
    """

    def __init__(self, images: Tensor, options: dict[str, Any]) -> None:
        self._images = images
        self._options = options
        self._blurred: dict[int, Tensor] = {}

    def level(self, sigma: Tensor) -> Tensor:
        """Half octaves of blur for a standard deviation in pixels; `_SHARP` below half a pixel."""
        level = (2 * sigma.clamp(min=1e-3).log2()).round().to(torch.int64)
        return torch.where(sigma < 0.5, _SHARP, level)

    def crop(self, boxes: Tensor, size: Any, level: int, index: Tensor | None) -> Tensor:
        """Crops of pixel ``xyxy`` boxes (N, 4) from the images blurred to this level."""
        options, images = self._options, self._images
        if level != _SHARP:
            sigma, pixel = _sigma_and_pixel(level)
            if level not in self._blurred:
                self._blurred[level] = self._blur(sigma, pixel)
            images = self._blurred[level]
            # Outer edges scale; centres, which align_corners counts from, lie half a pixel inside.
            half = 0.5 if options["align_corners"] else 0.0
            boxes = (boxes + half) / pixel - half
        return diffcrop.crop(images, boxes, size, batch_index=index, **options)

    def _blur(self, sigma: float, pixel: float) -> Tensor:
        height, width = (max(1, math.ceil(n / pixel)) for n in self._images.shape[-2:])
        whole = torch.tensor([0.0, 0.0, width * pixel, height * pixel], dtype=torch.float32, device=self._images.device)
        outside = {name: self._options[name] for name in ("padding_mode", "fill", "impl")}
        if outside["padding_mode"] == "renormalize":
            # It is 0 where an output's centre is outside, which a blurred edge should not be.
            outside["padding_mode"] = "border"
        return diffcrop.crop(
            self._images, whole, (height, width), mode="gaussian", sigma=sigma / pixel, **outside
        ).detach()


_SHARP = -(2**31)


def _sigma_and_pixel(level: int) -> tuple[float, float]:
    """Standard deviation of a level and side of its pixels, in pixels of the image."""
    sigma = 2.0 ** (level / 2)
    return sigma, max(1.0, sigma)
