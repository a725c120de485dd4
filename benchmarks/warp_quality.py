"""How near antialiased warps come to what they approximate: the filter over 16 x 16 samples of every output pixel.

    python -m benchmarks.warp_quality [--oversampling 4] [--mode bilinear]

Prints a table in markdown: root mean square and largest difference, in 8-bit levels, of warps with and without
antialiasing, and at angle 0 of `diffcrop.crop` with antialiasing, over the photographs that diffcrop ships and over a
zone plate. The truth is made of `grid_sample` in float64 and the filter's formula, and knows nothing of this package.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample

from diffcrop import _ops, _ops_warp, _pyramid
from diffcrop._options import UNIT, Options, WarpOptions

PHOTOS = Path(_ops.__file__).parent / "cli" / "photos"
ANGLES = (0, 17, 45)
REDUCTIONS = ((1.5, 1.5), (2, 2), (3, 3), (4, 4), (8, 8), (16, 16), (4, 1), (8, 1), (8, 2))
FINE = 16


def photographs() -> list[Tensor]:
    """Shipped photographs (1, 3, H, W) in float64, [0, 1]."""
    images = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    return [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(1, image.height, image.width, 3)
        .movedim(-1, 1)
        .double()
        / 255
        for image in images
    ]


def zone_plate(size: int = 512) -> Tensor:
    """Frequencies from 0 at the centre to half a cycle a pixel at the edge."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    square = place[:, None] ** 2 + place**2
    return (0.5 + 0.5 * torch.cos(math.pi * square / size))[None, None]


def matrix_of(image: Tensor, size: tuple[int, int], scale: tuple[float, float], degrees: float, tilt: float) -> Tensor:
    """The crop's centre at the image's, turned; with a ``tilt`` its scale changes by that share across it."""
    (height, width), (h, w), angle = image.shape[2:], size, math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    turn = turn * torch.tensor(scale, dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    middle = torch.tensor([w / 2, h / 2], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)
    bottom = torch.tensor([0.0, tilt / h, 1 - tilt / 2], dtype=torch.float64)
    matrix[:2, :2], matrix[:2, 2], matrix[2] = turn, centre - turn @ middle, bottom
    matrix[:2] += centre[:, None] * (bottom - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    return matrix[None]


def kernel(mode: str, x: Tensor) -> Tensor:
    """The filter's formula: a triangle, or Keys' cubic with a = -1/2."""
    x = x.abs()
    if mode == "bilinear":
        return (1 - x).clamp(min=0)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, 0.0))


def truth(image: Tensor, matrix: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Every output the mean of samples 1/16 apart, weighted by the filter."""
    reach = 1 if mode == "bilinear" else 2
    height, width = image.shape[2:]
    lines = [(torch.arange((n + 2 * reach) * FINE, dtype=torch.float64) + 0.5) / FINE - reach for n in size]
    v, u = torch.meshgrid(*lines, indexing="ij")
    place = torch.stack([u, v, torch.ones_like(u)], -1) @ matrix[0].T
    place = place[..., :2] / place[..., 2:]
    grid = 2 * place / torch.tensor([width, height], dtype=torch.float64) - 1
    fine = grid_sample(image, grid[None], padding_mode="border", align_corners=False)
    for n, line, axis in zip(size, lines, (2, 3), strict=True):
        weights = kernel(mode, line - (torch.arange(n, dtype=torch.float64)[:, None] + 0.5))
        fine = (fine.movedim(axis, -1) @ (weights / weights.sum(1, keepdim=True)).T).movedim(-1, axis)
    return fine


def warped(image: Tensor, matrix: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    return _ops_warp.warp(image, matrix, None, size, WarpOptions(mode, antialias), _ops_warp.choose(None, image))


def cropped(image: Tensor, size: tuple[int, int], scale: tuple[float, float], mode: str) -> Tensor:
    """What `crop` makes of the same at angle 0."""
    (height, width), (h, w) = image.shape[2:], size
    x, y = w * scale[0] / 2, h * scale[1] / 2
    box = torch.tensor([[width / 2 - x, height / 2 - y, width / 2 + x, height / 2 + y]], dtype=torch.float64)
    return _ops.crop(image, box, None, size, Options(mode, True), _ops.choose(None, image, 2))


def size_of(image: Tensor, scale: tuple[float, float], tilt: float) -> tuple[int, int]:
    """As large as stays in the image at every angle, up to 48."""
    room = 0.66 * min(image.shape[2:]) / (1 + tilt)
    h, w = (min(max(int(room / s), 4), 48) for s in reversed(scale))
    return h, w


def differences(images: list[Tensor], scale: tuple[float, float], degrees: float, tilt: float, mode: str) -> list[str]:
    rows: dict[str, list[Tensor]] = {"none": [], "warp": [], "crop": []}
    samples = 0
    for image in images:
        size = size_of(image, scale, tilt)
        matrix = matrix_of(image, size, scale, degrees, tilt)
        expected = truth(image, matrix, size, mode)
        rows["none"].append((warped(image, matrix, size, mode, False) - expected).flatten())
        rows["warp"].append((warped(image, matrix, size, mode, True) - expected).flatten())
        chosen = _pyramid.plan(matrix, size, (image.shape[2], image.shape[3]))
        samples = max(samples, int((-(-chosen.reductions // UNIT)).prod()))
        if degrees == 0 and tilt == 0:
            rows["crop"].append((cropped(image, size, scale, mode) - expected).flatten())
    cells = []
    for parts in rows.values():
        if not parts:
            cells.append("")
            continue
        every = torch.cat(parts) * 255
        cells.append(f"{every.square().mean().sqrt():.2f} / {every.abs().max():.0f}")
    return [*cells, str(samples)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--mode", choices=("bilinear", "bicubic"), default="bilinear")
    parser.add_argument("--oversampling", type=float, default=_pyramid.OVERSAMPLING)
    asked = parser.parse_args()
    _pyramid.OVERSAMPLING = asked.oversampling
    print("| images | reduction | angle | without | warp | crop | samples |\n|---|---|---|---|---|---|---|")
    for name, images in (("photographs", photographs()), ("zone plate", [zone_plate()])):
        for scale in REDUCTIONS:
            for degrees in ANGLES:
                cells = differences(images, scale, degrees, 0.0, asked.mode)
                print(f"| {name} | {scale[0]:g} x {scale[1]:g} | {degrees} | {' | '.join(cells)} |", flush=True)
        for scale in ((3, 3), (6, 6)):
            cells = differences(images, scale, 17, 0.8, asked.mode)
            print(f"| {name} | {scale[0]:g}, seen at an angle | 17 | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
