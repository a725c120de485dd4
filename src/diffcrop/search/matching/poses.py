"""The kinds of boxes that a template is fitted by: upright ones, and turned ones.

A pose knows what the numbers of its boxes mean, how a crop depends on them, and when two boxes are one. Boxes are in
pixels of the whole image throughout, also where the images that are compared were reduced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

import diffcrop
from diffcrop.search.overlap import iou

# Boxes turned against each other by more degrees than this are two.
_ANOTHER_ANGLE = 15.0


class Pose(Protocol):
    """Boxes of ``numbers`` numbers, (..., numbers), and the filters that their crops are made with."""

    @property
    def numbers(self) -> int:
        """4 of upright boxes, 5 of turned ones."""
        ...

    @property
    def filters(self) -> tuple[str, ...]:
        """What `locate` may name."""
        ...

    def units(self, boxes: Tensor) -> Tensor:
        """For each number how much is a lot: a side of the box, or a radian."""
        ...

    def pixels(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """For each number what moves the box by a pixel of its crop of ``size`` (h, w)."""
        ...

    def overlap(self, boxes: Tensor, others: Tensor) -> Tensor:
        """How much of two boxes is the same, 0 to 1."""
        ...

    def basis(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """The ways (numbers, n) in which a box moves without changing its aspect."""
        ...

    def of_aspect(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes with their own centre and area, but the aspect of ``size`` (h, w)."""
        ...

    def normalized(self, boxes: Tensor) -> Tensor:
        """Of all the numbers that mean the same box, those that are told to others."""
        ...

    def equations(
        self, images: Tensor, targets: Tensor, index: Tensor, scale: tuple[float, float], options: dict[str, Any]
    ) -> Callable[[Tensor], diffcrop.NormalEquations]:
        """Normal equations as a function of boxes, on images with ``scale`` (x, y) pixels for one of the whole."""
        ...

    def linearized(
        self, image: Tensor, box: Tensor, size: tuple[int, int], options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The crop (C, h, w) of one box and its derivative (C, h, w, numbers)."""
        ...


class Upright:
    """Boxes (x0, y0, x1, y1)."""

    numbers = 4
    filters = ("bilinear", "bicubic", "lanczos3", "area", "gaussian")

    def units(self, boxes: Tensor) -> Tensor:
        """Width and height."""
        return (boxes[..., 2:] - boxes[..., :2]).repeat(*[1] * (boxes.ndim - 1), 2)

    def pixels(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Those of the crop."""
        return self.units(boxes) / torch.tensor([size[1], size[0]] * 2, device=boxes.device)

    def overlap(self, boxes: Tensor, others: Tensor) -> Tensor:
        """Intersection over union."""
        return iou(boxes, others)

    def basis(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Along x, along y, and in size."""
        height, width = size
        columns = [[1, 0, 1, 0], [0, 1, 0, 1], [-width / 2, -height / 2, width / 2, height / 2]]
        return torch.tensor(columns, dtype=torch.float64, device=device).T

    def of_aspect(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """About its centre."""
        half = _of_aspect(boxes[..., 2:] - boxes[..., :2], size) / 2
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        return torch.cat([centre - half, centre + half], -1)

    def normalized(self, boxes: Tensor) -> Tensor:
        """There are no others."""
        return boxes

    def equations(
        self, images: Tensor, targets: Tensor, index: Tensor, scale: tuple[float, float], options: dict[str, Any]
    ) -> Callable[[Tensor], diffcrop.NormalEquations]:
        """Those of `diffcrop.normal_equations`."""
        by = torch.tensor([*scale, *scale], dtype=torch.float64, device=images.device)

        def evaluate(boxes: Tensor) -> diffcrop.NormalEquations:
            found = diffcrop.normal_equations(images, boxes * by, targets, batch_index=index, **options)
            return found._replace(hessian=by[:, None] * found.hessian * by, gradient=found.gradient * by)

        return evaluate

    def linearized(
        self, image: Tensor, box: Tensor, size: tuple[int, int], options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """By `diffcrop.crop_with_jacobian`."""
        return diffcrop.crop_with_jacobian(image, box, size, **options)


class Turned:
    """Boxes (cx, cy, w, h, angle), degrees counter-clockwise, as `diffcrop.crop_rotated` takes them."""

    numbers = 5
    filters = ("bilinear", "bicubic", "lanczos3", "area")

    def units(self, boxes: Tensor) -> Tensor:
        """Width and height, and a radian."""
        sides = boxes[..., 2:4]
        return torch.cat([sides, sides, torch.full_like(sides[..., :1], math.degrees(1))], -1)

    def pixels(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Those of the crop; of the angle, what moves a corner so far."""
        height, width = size
        steps = torch.tensor([width, height, width, height, math.hypot(width, height) / 2], device=boxes.device)
        return self.units(boxes) / steps

    def overlap(self, boxes: Tensor, others: Tensor) -> Tensor:
        """Intersection over union in the frame of the first box, and nothing where the angles differ."""
        turn = torch.deg2rad(boxes[..., 4])
        along, down = (others[..., :2] - boxes[..., :2]).unbind(-1)
        away = torch.stack(
            [turn.cos() * along - turn.sin() * down, turn.sin() * along + turn.cos() * down], -1
        )  # towards the crop's right and its bottom
        shared = iou(_corners(torch.zeros_like(away), boxes[..., 2:4]), _corners(away, others[..., 2:4]))
        between = torch.remainder(boxes[..., 4] - others[..., 4] + 180, 360) - 180
        return torch.where(between.abs() < _ANOTHER_ANGLE, shared, 0.0)

    def basis(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Along x, along y, in size, and turning."""
        height, width = size
        columns = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, width, height, 0], [0, 0, 0, 0, 1]]
        return torch.tensor(columns, dtype=torch.float64, device=device).T

    def of_aspect(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """With another width and height."""
        return torch.cat([boxes[..., :2], _of_aspect(boxes[..., 2:4], size), boxes[..., 4:]], -1)

    def normalized(self, boxes: Tensor) -> Tensor:
        """An angle from -180 to 180 degrees."""
        return torch.cat([boxes[..., :4], torch.remainder(boxes[..., 4:] + 180, 360) - 180], -1)

    def equations(
        self, images: Tensor, targets: Tensor, index: Tensor, scale: tuple[float, float], options: dict[str, Any]
    ) -> Callable[[Tensor], diffcrop.NormalEquations]:
        """Put together from crops and their derivatives by the matrix."""
        options = dict(options)
        loss = {name: options.pop(name) for name in ("metric", "huber")}
        size = (targets.shape[-2], targets.shape[-1])

        def evaluate(boxes: Tensor) -> diffcrop.NormalEquations:
            value, jacobian = self._crops(images, boxes, size, scale, {**options, "batch_index": index})
            return diffcrop.normal_equations_of(value, jacobian, targets, **loss)

        return evaluate

    def linearized(
        self, image: Tensor, box: Tensor, size: tuple[int, int], options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The same of one box."""
        value, jacobian = self._crops(image, box[None], size, (1.0, 1.0), options)
        return value[0], jacobian[0]

    def _crops(
        self, images: Tensor, boxes: Tensor, size: tuple[int, int], scale: tuple[float, float], options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        places, slopes = matrices(boxes, size, scale)
        value, jacobian = diffcrop.warp_with_jacobian(images, places, size, **options)
        return value, torch.einsum("rchwij,rijn->rchwn", jacobian.to(torch.float64), slopes)


def _of_aspect(sides: Tensor, size: tuple[int, int]) -> Tensor:
    """Width and height (..., 2) of the same area."""
    height, width = size
    scale = (sides.prod(-1, keepdim=True) / (height * width)).sqrt()
    return scale * torch.tensor([width, height], dtype=scale.dtype, device=scale.device)


def _corners(centre: Tensor, sides: Tensor) -> Tensor:
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def matrices(boxes: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """From pixels of turned boxes' crops to pixels of the image (R, 2, 3), and the derivative by the box (R, 2, 3, 5).

    For one pixel of the image the source of the crops has ``scale`` (x, y).
    """
    turn = torch.deg2rad(boxes[:, 4])
    cos, sin, none, degree = turn.cos(), turn.sin(), torch.zeros_like(turn), math.pi / 180
    across = torch.stack([cos, -sin], 1)  # where the crop's x leads, and its y
    down = torch.stack([sin, cos], 1)
    height, width = size

    def assembled(x: Tensor, y: Tensor, middle: Tensor) -> Tensor:
        """Of the sides as vectors, and of the centre."""
        return torch.stack([x / width, y / height, middle - (x + y) / 2], 2)

    zero = torch.zeros_like(across)
    x, y = boxes[:, 2:3] * across, boxes[:, 3:4] * down
    slopes = [
        assembled(zero, zero, torch.stack([none + 1, none], 1)),
        assembled(zero, zero, torch.stack([none, none + 1], 1)),
        assembled(across, zero, zero),
        assembled(zero, down, zero),
        assembled(-boxes[:, 2:3] * down * degree, boxes[:, 3:4] * across * degree, zero),
    ]
    by = torch.tensor(scale, dtype=boxes.dtype, device=boxes.device)[:, None]
    return by * assembled(x, y, boxes[:, :2]), by[..., None] * torch.stack(slopes, -1)
