"""How people paste patches differentiably: each on a canvas of its own, with its mask, then one over the other."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.cases import Case
from benchmarks.problem import Prepared, Problem

from .base import Meaning, Peer, Tolerance, torch_call


def _placed_by_recipe(layers: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """By the inverse Theta."""
    height, width = size
    (x0, y0, x1, y1), zero = boxes.unbind(-1), torch.zeros_like(boxes[:, 0])
    wide, high = x1 - x0, y1 - y0
    rows = [width / wide, zero, (width - x0 - x1) / wide], [zero, height / high, (height - y0 - y1) / high]
    theta = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = affine_grid(theta, [*layers.shape[:2], height, width], align_corners=False)
    return grid_sample(layers, grid, align_corners=False)


def _placed_by_kornia(layers: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """By `warp_affine` with the matrix from pixels of the patch to those of the canvas, which numbers their centres."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = importlib.import_module("kornia.geometry.transform")
    (x0, y0, x1, y1), zero = boxes.unbind(-1), torch.zeros_like(boxes[:, 0])
    h, w = layers.shape[-2:]
    a, b = (x1 - x0) / w, (y1 - y0) / h
    rows = [a, zero, x0 + (a - 1) / 2], [zero, b, y0 + (b - 1) / 2]
    matrix = torch.stack([torch.stack(row, -1) for row in rows], 1)
    return transform.warp_affine(layers, matrix, size, padding_mode="zeros")


def _prepare(place: Callable[[Tensor, Tensor, tuple[int, int]], Tensor]) -> Callable[[Problem, str], Prepared]:
    def prepare(problem: Problem, pass_: str) -> Prepared:
        start, each = problem.canvas, problem.case.boxes
        assert start is not None
        channels, size = start.shape[1], (start.shape[2], start.shape[3])

        def function(patches: Tensor, boxes: Tensor) -> Tensor:
            layers = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
            placed = place(layers, boxes, size).unflatten(0, (-1, each))
            canvas = start
            # Slices, one after the other, would each make a gradient of all layers.
            for layer in placed.unbind(1):
                color, matte = layer.split([channels, 1], 1)
                canvas = (1 - matte) * canvas + color
            return canvas

        return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)

    return prepare


def _meaning(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options())


def _refuses(case: Case) -> str | None:
    if case.shape != "paste":
        return "only for pastes"
    return "does not antialias" if case.antialias or case.mode != "bilinear" else None


_FLOAT32 = Tolerance(
    value=1e-3,
    images=1e-3,
    boxes=3e-2,
    reason="positions in float32, between -1 and 1, are off by up to 3e-4 pixels; the derivative by a box jumps where "
    "one of thousands of positions is taken for the next pixel's",
)

PASTE_RECIPE = Peer(
    "paste recipe",
    "`affine_grid` by the inverse Theta and `grid_sample` of each patch and its mask onto a canvas, blended in turn",
    _prepare(_placed_by_recipe),
    _meaning,
    _FLOAT32,
    refuses=_refuses,
)
PASTE_KORNIA = Peer(
    "paste kornia",
    "the same by kornia's `warp_affine`",
    _prepare(_placed_by_kornia),
    _meaning,
    _FLOAT32,
    needs=("kornia",),
    refuses=_refuses,
)
