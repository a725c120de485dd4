"""Matrices of warps for tests: rotated, sheared, projective; near, across and far from the image's edges."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def placed(degrees: float, scale: tuple[float, float], center: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """The crop's centre at ``center`` (x, y), its u axis turned by ``degrees``, ``scale`` pixels to an output."""
    angle, (h, w) = math.radians(degrees), size
    a = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    a = a * torch.tensor(scale, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] = a
    matrix[:2, 2] = torch.tensor(center, dtype=torch.float64) - a @ torch.tensor([w / 2, h / 2], dtype=torch.float64)
    return matrix


def tilted(matrix: Tensor, by: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """The same at the crop's centre, seen at an angle: Z = 1 + by . (u - w / 2, v - h / 2) there."""
    result = matrix.clone()
    row = torch.tensor([by[0], by[1], 1 - by[0] * size[1] / 2 - by[1] * size[0] / 2], dtype=torch.float64)
    x, y = (matrix[i] @ torch.tensor([size[1] / 2, size[0] / 2, 1.0], dtype=torch.float64) for i in range(2))
    bottom = row - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    result[0], result[1], result[2] = matrix[0] + x * bottom, matrix[1] + y * bottom, row
    return result


def reduced(*boxes: tuple[float, float]) -> Tensor:
    """The reductions of boxes along x and y, as warps take them; 0 leaves a box out."""
    return torch.tensor([[round(256 * s) for s in box] for box in boxes])


def boxed(box: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """The matrix of an axis-aligned box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    return torch.tensor([[(x1 - x0) / size[1], 0, x0], [0, (y1 - y0) / size[0], y0], [0, 0, 1]], dtype=torch.float64)


def grid_of(matrices: Tensor, size: tuple[int, int], image_size: tuple[int, int], align_corners: bool) -> Tensor:
    """What `grid_sample` takes: the positions (R, h, w, 2) in [-1, 1]."""
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in size), indexing="ij")
    homogeneous = torch.einsum("rab,ijb->rija", matrices, torch.stack([u, v, torch.ones_like(u)], -1))
    place = homogeneous[..., :2] / homogeneous[..., 2:]
    extent = torch.tensor([image_size[1], image_size[0]], dtype=torch.float64)
    if align_corners:
        return 2 * (place - 0.5) / (extent - 1) - 1
    return 2 * place / extent - 1


def some(size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """Six of them: inside, across corners, beside the image, mirrored, and two seen at an angle."""
    (height, width), middle = image_size, (image_size[1] * 0.47, image_size[0] * 0.53)
    near = 0.5 * min(width / size[1], height / size[0])
    tilt = 0.6 / max(size)
    return torch.stack([
        placed(31.0, (near, 0.9 * near), middle, size),
        placed(-121.0, (1.31, 1.1), (width - 1.3, 0.7), size),
        placed(200.0, (2.1, -1.7), (0.4 * width, height + 0.3), size),
        placed(77.0, (0.3, 0.4), (-40.2, 12.1), size),
        tilted(placed(12.0, (1.2 * near, near), middle, size), (tilt, -0.5 * tilt), size),
        -2 * tilted(placed(-63.0, (2.2, 1.6), middle, size), (0.3 * tilt, tilt), size),
    ])  # fmt: skip
