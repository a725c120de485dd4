"""Draws docs/images/rotated.png and writes the tables of docs/rotated.md: what crops that do not lie upright are.

    python docs/make_rotated.py

The photographs are those of the command line. A table stands between two marks in the page, and
tests/test_rotated_page.py compares it with what is measured anew.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Arc, FancyArrowPatch, Polygon

PAGE = Path(__file__).parent / "rotated.md"
FACE = torch.tensor([250.0, 156.0, 250.0, 180.0, 22.0])  # of `askew`: her eyes lie level in it
ORANGE, WHITE = "#E69F00", "white"


def photograph(name: str) -> Tensor:
    with (files("diffcrop.cli") / "photos" / f"{name}.jpg").open("rb") as stream:
        pixels = np.array(Image.open(stream).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


# --- the picture ------------------------------------------------------------------------------------------------------


def show(axes, image: Tensor, title: str) -> None:
    height, width = image.shape[-2:]
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), extent=(0, width, height, 0), interpolation="nearest")
    axes.set_title(title, fontsize=10.5)
    axes.set_xticks([])
    axes.set_yticks([])


def outline(axes, quad: Tensor, colour: str = ORANGE) -> None:
    """The corners numbered in their order."""
    axes.add_patch(Polygon(quad.numpy(), fill=False, edgecolor=colour, linewidth=2))
    middle = quad.mean(0)
    for i, corner in enumerate(quad):
        axes.plot(*corner.tolist(), "o", color=colour, markersize=5)
        x, y = (corner + 0.13 * (middle - corner)).tolist()
        axes.text(x, y, str(i), color=WHITE, fontsize=11, fontweight="bold", ha="center", va="center")


def seen_at_an_angle(picture: Tensor) -> tuple[Tensor, Tensor]:
    """The picture on a dark wall, and its corners there."""
    height, width = picture.shape[-2:]
    corners = torch.tensor([[90.0, 60.0], [520.0, 24.0], [452.0, 366.0], [60.0, 300.0]])
    inverse = torch.linalg.inv(diffcrop.quads_to_matrix(corners.double(), (height, width)))
    scene = diffcrop.warp(picture, inverse, (400, 600), padding_mode="constant", fill=0.12)
    return scene, corners


def askew() -> Tensor:
    """chelsea.jpg turned by 30 degrees, mirrored beyond its edges."""
    image = photograph("chelsea")
    height, width = image.shape[-2:]
    box = torch.tensor([width / 2, height / 2, width, height, -30.0])
    return diffcrop.crop_rotated(image, box, (height, width), padding_mode="reflection")


def rotated_row(row) -> None:
    image = askew()
    show(row[0], image, "crop_rotated: (cx, cy, w, h, angle)")
    outline(row[0], diffcrop.rotated_to_quads(FACE))
    cx, cy, w, _, angle = FACE.tolist()
    row[0].plot([cx, cx + w / 2 + 60], [cy, cy], "--", color=WHITE, linewidth=1)
    end = torch.tensor([[w + 60, 0.0]]) / 1
    tip = diffcrop.warp_points(end - torch.tensor([[30.0, 0.0]]), turning())[0]
    row[0].add_patch(
        FancyArrowPatch((cx, cy), tuple(tip.tolist()), arrowstyle="-|>", color=WHITE, mutation_scale=14, linewidth=1.5)
    )
    row[0].add_patch(Arc((cx, cy), 170, 170, theta1=-angle, theta2=0, color=WHITE, linewidth=1.5))
    row[0].text(cx + 98, cy - 12, f"{angle:.0f}°", color=WHITE, fontsize=11, va="center")
    show(row[1], diffcrop.crop_rotated(image, FACE, (180, 250)), "the crop")
    mirrored = FACE * torch.tensor([1, 1, -1, 1, 1.0])
    show(row[2], diffcrop.crop_rotated(image, mirrored, (180, 250)), "w < 0: mirrored")


def turning() -> Tensor:
    """From lengths along the width of the box to the image."""
    cx, cy, _, _, angle = FACE.tolist()
    direction = torch.tensor([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])
    return torch.stack([direction, torch.zeros(2), torch.tensor([cx, cy])], 1).float() * torch.tensor([0.5, 1, 1])


def quad_row(row) -> None:
    picture = photograph("coffee")
    scene, corners = seen_at_an_angle(picture)
    show(row[0], scene, "crop_quad: four corners, in this order")
    outline(row[0], corners)
    height, width = picture.shape[-2:]
    show(row[1], diffcrop.crop_quad(scene, corners, (height // 2, width // 2)), "the crop")
    show(row[2], diffcrop.crop_quad(scene, corners.roll(1, 0), (height // 2, width // 2)), "corners begun one later")


def warp_row(row) -> None:
    image = photograph("rocket")
    height, width = image.shape[-2:]
    shear = torch.tensor([[1.0, 0.35, -0.175 * height], [0.0, 1.0, 0.0]])
    show(row[0], diffcrop.warp(image, shear, (height, width)), "warp: x = u + 0.35 v - c")
    tilt = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -0.6, 1.0]])
    show(
        row[1],
        diffcrop.warp(image, tilt, (height, width), coords="normalized", padding_mode="zeros"),
        "a homography, zeros outside",
    )
    theta = torch.tensor([[2.2, -0.8, 0.0], [0.8, 2.2, 0.0]])
    show(
        row[2],
        diffcrop.warp(image, theta, (height, width), coords="normalized", padding_mode="reflection"),
        "an affine map, reflection outside",
    )


def antialias_row(row) -> None:
    """A reduction by 8 at 30 degrees, four times enlarged so that its pixels show."""
    image = photograph("astronaut")
    height, width = image.shape[-2:]
    box = torch.tensor([width / 2, height / 2, 448.0, 448.0, 30.0])
    theta = diffcrop.rotated_to_matrix(box, (2, 2)).double()
    bottom = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    square = torch.tensor([[1.0, 0, 1], [0, 1.0, 1], [0, 0, 1]], dtype=torch.float64)
    scale = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=torch.float64)
    theta = (scale @ torch.cat([theta, bottom]) @ square)[None, :2].float()
    grid = affine_grid(theta, [1, 3, 56, 56], align_corners=False)
    recipe = grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    show(row[0], recipe, "affine_grid + grid_sample, reduced by 8")
    show(row[1], diffcrop.crop_rotated(image, box, 56), "crop_rotated, reduced by 8")
    show(row[2], supersampled(image, box, 56, 16), "16 x 16 samples to a pixel, bilinear")


def supersampled(image: Tensor, box: Tensor, size: int, samples: int, mode: str = "bilinear") -> Tensor:
    """The crop with so many samples to an output and axis, reduced by the separable crop, which is exact."""
    # With two outputs more on every side, as many as filters reach over.
    whole, inner = size + 6, float(3 * samples)
    wider = box * torch.tensor([1, 1, whole / size, whole / size, 1.0])
    fine = diffcrop.crop_rotated(image, wider, whole * samples, antialias=False)
    end = inner + size * samples
    return diffcrop.crop(fine, torch.tensor([inner, inner, end, end]), size, mode=mode)


def draw(path: Path) -> None:
    figure = plt.figure(figsize=(11.5, 13.2), layout="constrained")
    rows = figure.subplots(4, 3, height_ratios=(1, 1, 1, 1.5))
    for row, drawn in zip(rows, (rotated_row, quad_row, warp_row, antialias_row), strict=True):
        drawn(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as stream:
        figure.savefig(stream, dpi=80)
        Image.open(stream).convert("RGB").save(path, optimize=True)
    plt.close(figure)


# --- the tables -------------------------------------------------------------------------------------------------------

SHAPE, SIZE, COUNT = (64, 80), (24, 28), 40
f64 = torch.float64


def equalities() -> Iterator[tuple[str, str, str, float]]:
    """What is called, of whom, with which options, and the largest difference: images of noise in [0, 1], float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(COUNT, 2, *SHAPE, generator=generator, dtype=f64)
    unit = torch.rand(COUNT, 5, generator=generator, dtype=f64)
    boxes = unit * torch.tensor([60, 44, 40, 30, 360]) + torch.tensor([10, 10, 10, 10, 0])
    quads = diffcrop.rotated_to_quads(boxes) + 6 * (torch.rand(COUNT, 4, 2, generator=generator, dtype=f64) - 0.5)
    thetas = (torch.rand(COUNT, 2, 3, generator=generator, dtype=f64) - 0.5) * 2
    for mode in ("bilinear", "bicubic", "nearest"):
        for align_corners in (False, True):
            yield recipe_row(images, thetas, mode, align_corners)
    yield ("`crop_rotated`, angle 0", "`crop`, `cxcywh`", "bicubic, no antialiasing", upright(images, boxes, False))
    yield ("`crop_rotated`, angle 0", "`crop`, `cxcywh`", "bicubic, antialiased, reduced by up to 2: of noise",
           upright(images, boxes, True))  # fmt: skip
    turned = torch.stack([image.rot90(-1, (1, 2)) for image in images])
    box = torch.tensor([SHAPE[1] / 2, SHAPE[0] / 2, SHAPE[0], SHAPE[1], 90.0], dtype=f64)
    found = diffcrop.crop_rotated(images, box, (SHAPE[1], SHAPE[0]))
    yield ("`crop_rotated`, 90 degrees", "`torch.rot90`", "antialiased", gap(found, turned))
    one = diffcrop.crop_rotated(images, boxes, SIZE)
    yield ("`crop_quad` of its corners", "`crop_rotated`", "antialiased",
           gap(diffcrop.crop_quad(images, diffcrop.rotated_to_quads(boxes), SIZE), one))  # fmt: skip
    yield ("`warp` by its matrix", "`crop_rotated`", "antialiased",
           gap(diffcrop.warp(images, diffcrop.rotated_to_matrix(boxes, SIZE), SIZE), one))  # fmt: skip
    yield from kornias(images, boxes, quads)
    yield from opencvs(images[:10], boxes[:10], quads[:10])


def gap(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def recipe_row(images: Tensor, thetas: Tensor, mode: str, align_corners: bool) -> tuple[str, str, str, float]:
    how = {"mode": mode, "padding_mode": "zeros", "align_corners": align_corners}
    grid = affine_grid(thetas, [COUNT, 2, *SIZE], align_corners=align_corners)
    found = diffcrop.warp(images, thetas, SIZE, coords="normalized", antialias=False, **how)
    label = f"{mode}, zeros, align_corners={align_corners}"
    return "`warp`, normalized", "`affine_grid` + `grid_sample`", label, gap(found, grid_sample(images, grid, **how))


def upright(images: Tensor, boxes: Tensor, antialias: bool) -> float:
    boxes = boxes * torch.tensor([1, 1, 1, 1, 0])
    how = {"antialias": antialias, "mode": "bicubic"}
    expected = diffcrop.crop(images, boxes[:, :4], SIZE, box_format="cxcywh", **how)
    return gap(diffcrop.crop_rotated(images, boxes, SIZE, **how), expected)


def kornias(images: Tensor, boxes: Tensor, quads: Tensor) -> Iterator[tuple[str, str, str, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kornia = importlib.import_module("kornia.geometry.transform")
    how = {"antialias": False, "padding_mode": "zeros", "align_corners": True}
    matrix = diffcrop.rotated_to_matrix(boxes, SIZE, align_corners=True)
    full = torch.cat([matrix, torch.tensor([[[0, 0, 1]]], dtype=f64).expand(COUNT, 1, 3)], 1)
    theirs = kornia.warp_affine(images, torch.linalg.inv(full)[:, :2], SIZE)
    yield ("`warp`, pixel, align_corners", "kornia `warp_affine`, inverse matrix", "bilinear, zeros",
           gap(diffcrop.warp(images, matrix, SIZE, **how), theirs))  # fmt: skip
    matrix = diffcrop.quads_to_matrix(quads, SIZE, align_corners=True)
    theirs = kornia.warp_perspective(images, torch.linalg.inv(matrix), SIZE)
    yield ("`warp`, pixel, align_corners", "kornia `warp_perspective`, inverse matrix", "bilinear, zeros",
           gap(diffcrop.warp(images, matrix, SIZE, **how), theirs))  # fmt: skip
    theirs = kornia.crop_and_resize(images, quads, SIZE)
    yield ("`crop_quad`, align_corners", "kornia `crop_and_resize`", "bilinear, zeros",
           gap(diffcrop.crop_quad(images, quads, SIZE, **how), theirs))  # fmt: skip


def opencvs(images: Tensor, boxes: Tensor, quads: Tensor) -> Iterator[tuple[str, str, str, float]]:
    for name, matrices, function in (
        ("warpAffine", diffcrop.rotated_to_matrix(boxes, SIZE, align_corners=True), cv2.warpAffine),
        ("warpPerspective", diffcrop.quads_to_matrix(quads, SIZE, align_corners=True), cv2.warpPerspective),
    ):
        for dtype in (torch.float32, torch.float64):
            for mode, flag in (("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)):
                if dtype == torch.float64 and mode == "bicubic":
                    continue
                yield (f"`warp`, pixel, align_corners, {str(dtype)[6:]}", f"OpenCV `{name}`", f"{mode}, zeros",
                       opencv_gap(images[:, 0].to(dtype), matrices, function, mode, flag))  # fmt: skip


def opencv_gap(images: Tensor, matrices: Tensor, function: Callable, mode: str, flag: int) -> float:
    how = {"antialias": False, "padding_mode": "zeros", "align_corners": True, "mode": mode}
    worst = 0.0
    for image, matrix in zip(images, matrices, strict=True):
        theirs = function(image.numpy(), matrix.numpy(), SIZE[::-1], flags=flag | cv2.WARP_INVERSE_MAP)
        ours = diffcrop.warp(image[None], matrix, SIZE, **how)[0]
        worst = max(worst, gap(ours, torch.from_numpy(theirs)))
    return worst


def equality_table() -> str:
    lines = ["| | equals | options | largest difference |", "| --- | --- | --- | --- |"]
    lines += [f"| {ours} | {theirs} | {how} | {difference:.0e} |" for ours, theirs, how, difference in equalities()]
    return "\n".join(lines)


CASES = ((1.5, 1.5), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0), (16.0, 16.0), (4.0, 1.0), (8.0, 2.0), (16.0, 1.0))


def quality_table() -> str:
    """Root mean square differences from 16 x 16 supersampling, over three photographs in [0, 1]."""
    head = ("pixels to an output, along w and h", "0 degrees", "30 degrees", "30 degrees, area", "not antialiased")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for reductions in CASES:
        found = [
            quality(reductions, angle, mode, antialias)
            for angle, mode, antialias in (
                (0.0, "bilinear", True),
                (30.0, "bilinear", True),
                (30.0, "area", True),
                (30.0, "bilinear", False),
            )
        ]
        lines.append(f"| {reductions[0]:g} x {reductions[1]:g} | " + " | ".join(f"{e:.4f}" for e in found) + " |")
    return "\n".join(lines)


def quality(reductions: tuple[float, float], angle: float, mode: str, antialias: bool, size: int = 20) -> float:
    square = 0.0
    for name in ("astronaut", "coffee", "rocket"):
        image = photograph(name).double()
        height, width = image.shape[-2:]
        sides = [size * reduction for reduction in reductions]
        box = torch.tensor([width / 2, height / 2, *sides, angle], dtype=f64)
        truth = supersampled(image, box, size, 16, mode)
        found = diffcrop.crop_rotated(image, box, size, mode=mode if antialias else "bilinear", antialias=antialias)
        square += float((found - truth).square().mean()) / 3
    return square**0.5


def triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp(min=0)


def keys(x: Tensor) -> Tensor:
    inner, outer = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, 0.0))


FILTERS = {"bilinear": (triangle, 1), "bicubic": (keys, 2)}


def filtered(image: Tensor, box: Tensor, size: int, mode: str) -> Tensor:
    """Every pixel weighed by the mode's filter, along the crop's own axes, by its distance from the output's centre."""
    function, reach = FILTERS[mode]
    _, height, width = image.shape
    s = box[2:4] / size
    place = diffcrop.rotated_to_matrix(box, size).to(f64)
    v, u = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    x, y = (place[row, 0] * u + place[row, 1] * v + place[row, 2] - 0.5 for row in range(2))
    angle = torch.deg2rad(box[4])
    cos, sin = angle.cos(), angle.sin()
    margin = int(reach * float(s.clamp(min=1).square().sum().sqrt())) + 1
    total, weights = torch.zeros(3, size, size, dtype=f64), torch.zeros(size, size, dtype=f64)
    for down in range(-margin, margin + 2):
        for right in range(-margin, margin + 2):
            column, row = x.floor().long() + right, y.floor().long() + down
            away = torch.stack([cos * (column - x) - sin * (row - y), sin * (column - x) + cos * (row - y)], -1)
            weight = function((away / s.clamp(min=1)).abs()).prod(-1)
            total += weight * image[:, row.clamp(0, height - 1), column.clamp(0, width - 1)]
            weights += weight
    return total / weights


NEAR = (
    (1.01, 1.01),
    (1.1, 1.1),
    (1.25, 1.25),
    (1.5, 1.5),
    (2.0, 2.0),
    (3.0, 3.0),
    (4.0, 4.0),
    (8.5, 8.5),
    (4.0, 1.0),
    (8.0, 2.0),
)


def filter_table() -> str:
    """Root mean square differences from the filter itself, over the three photographs, turned by 30 degrees."""
    head = ("pixels to an output, along w and h", "bilinear", "16 x 16 samples", "not antialiased", "bicubic")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for reductions in NEAR:
        found = [distance(reductions, how) for how in ("bilinear", "supersampled", "none", "bicubic")]
        lines.append(f"| {reductions[0]:g} x {reductions[1]:g} | " + " | ".join(f"{e:.4f}" for e in found) + " |")
    return "\n".join(lines)


def distance(reductions: tuple[float, float], how: str, size: int = 20) -> float:
    square = 0.0
    for name in ("astronaut", "coffee", "rocket"):
        image = photograph(name).double()
        height, width = image.shape[-2:]
        sides = [size * reduction for reduction in reductions]
        box = torch.tensor([width / 2 + 0.3, height / 2 - 0.2, *sides, 30.0], dtype=f64)
        mode = how if how in FILTERS else "bilinear"
        if how == "supersampled":
            found = supersampled(image, box, size, 16)
        else:
            found = diffcrop.crop_rotated(image, box, size, mode=mode, antialias=how != "none")
        square += float((found - filtered(image, box, size, mode)).square().mean()) / 3
    return square**0.5


# The reductions that samples are added at, and where that is: they are rounded to 1/256. From 8 on levels change.
STEPS = (
    *((s, (round(256 * s) - (s == 5 / 3) + 0.5) / 256) for s in (1.0, 5 / 3, 2.0, 3.0, 4.0)),
    (8.0, 8.0),
    (16.0, 16.0),
)


def jump_table() -> str:
    """Root mean square differences between crops reduced by a little less and a little more, in levels of 255."""
    modes = ("bilinear", "bicubic", "lanczos3", "area")
    lines = ["| pixels to an output | " + " | ".join(modes) + " |", "|" + " --- |" * 5]
    for name, s in STEPS:
        lines.append(f"| {name:.3g} | " + " | ".join(f"{255 * jump(s, mode):.2f}" for mode in modes) + " |")
    return "\n".join(lines)


def jump(s: float, mode: str, size: int = 20) -> float:
    square = 0.0
    for name in ("astronaut", "coffee", "rocket"):
        image = photograph(name).double()
        height, width = image.shape[-2:]
        sides = [size * s * (1 + by) for by in (-1e-7, 1e-7)]
        boxes = torch.tensor([[width / 2 + 0.3, height / 2 - 0.2, side, side, 30.0] for side in sides], dtype=f64)
        below, above = diffcrop.crop_rotated(image, boxes, size, mode=mode)
        square += float((above - below).square().mean()) / 3
    return square**0.5


TABLES: dict[str, Callable[[], str]] = {
    "equality": equality_table,
    "jump": jump_table,
    "quality": quality_table,
    "filter": filter_table,
}


def replaced(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"the page needs one pair of {begin} and {end}")
    return found.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    draw(options.output / "rotated.png")
    text = PAGE.read_text()
    for name, make in TABLES.items():
        text = replaced(text, name, make())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
