"""How people cut out what does not lie upright: `grid_sample` on a grid of their own, kornia, OpenCV."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from benchmarks.cases import Case
from benchmarks.problem import Outcome, Prepared, Problem

from .base import Meaning, Peer, Tolerance, per_box, torch_call
from .resizing import as_outcome, channels_inside


def _turn(boxes: Tensor) -> tuple[Tensor, Tensor]:
    angle = boxes[:, 4] * (math.pi / 180)
    return angle.cos(), angle.sin()


def rotated_theta(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Theta of boxes (R, 5) in pixels, as `affine_grid` takes it."""
    cx, cy, w, h, _ = boxes.unbind(-1)
    cos, sin = _turn(boxes)
    height, width = shape
    rows = (
        [w * cos / width, h * sin / width, 2 * cx / width - 1],
        [-w * sin / height, h * cos / height, 2 * cy / height - 1],
    )
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def homography(corners: Tensor, size: tuple[int, ...]) -> Tensor:
    """The matrix (R, 3, 3) from pixels of the crop to those of four corners (R, 4, 2), by solving for its 8 entries."""
    h, w = size
    target = torch.tensor([[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]], dtype=corners.dtype)
    u, v = target.expand_as(corners).unbind(-1)
    x, y = corners.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    upper = torch.stack([u, v, one, zero, zero, zero, -u * x, -v * x], -1)
    lower = torch.stack([zero, zero, zero, u, v, one, -u * y, -v * y], -1)
    solved = torch.linalg.solve(torch.cat([upper, lower], 1), torch.cat([x, y], 1))
    return torch.cat([solved, torch.ones_like(solved[:, :1])], 1).unflatten(1, (3, 3))


def quad_grid(corners: Tensor, size: tuple[int, ...], shape: tuple[int, int]) -> Tensor:
    h, w = size
    v, u = torch.meshgrid(*(torch.arange(n, dtype=corners.dtype) + 0.5 for n in (h, w)), indexing="ij")
    points = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1)
    x, y, z = (points @ homography(corners, size).mT).unbind(-1)
    height, width = shape
    return torch.stack([2 * x / (z * width) - 1, 2 * y / (z * height) - 1], -1).unflatten(1, size)


def _prepare_recipe(problem: Problem, pass_: str) -> Prepared:
    case = problem.case
    shape = (case.images[2], case.images[3])

    def function(images: Tensor, boxes: Tensor) -> Tensor:
        if not images.is_floating_point():
            images = images.float()
        if case.shape == "rotated":
            size = [len(boxes), images.shape[1], *case.size]
            grid = affine_grid(rotated_theta(boxes, shape), size, align_corners=False)
        else:
            grid = quad_grid(boxes.unflatten(1, (4, 2)), case.size, shape)
        return grid_sample(per_box(images, problem), grid, padding_mode=case.padding_mode, align_corners=False)

    return torch_call(function, problem.images, problem.boxes, problem.cotangent, pass_, problem)


def _prepare_kornia(problem: Problem, pass_: str) -> Prepared:
    """`warp_affine` by the inverse of the box's matrix, `crop_and_resize` by corners: both number centres of pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = importlib.import_module("kornia.geometry.transform")
    case = problem.case
    h, w = case.size

    def rotated(images: Tensor, boxes: Tensor) -> Tensor:
        cx, cy, width, height, _ = boxes.unbind(-1)
        cos, sin = _turn(boxes)
        a, b = w / width, h / height
        x, y = cx - 0.5, cy - 0.5
        rows = (
            [a * cos, -a * sin, (w - 1) / 2 - a * (cos * x - sin * y)],
            [b * sin, b * cos, (h - 1) / 2 - b * (sin * x + cos * y)],
        )
        matrix = torch.stack([torch.stack(row, -1) for row in rows], 1)
        return transform.warp_affine(per_box(images, problem), matrix, case.size, padding_mode=case.padding_mode)

    def quad(images: Tensor, boxes: Tensor) -> Tensor:
        return transform.crop_and_resize(
            per_box(images, problem), boxes.unflatten(1, (4, 2)), case.size, padding_mode=case.padding_mode
        )

    function = rotated if case.shape == "rotated" else quad
    boxes = problem.boxes if case.shape == "rotated" else _centres(problem).to(problem.boxes.dtype)
    return torch_call(function, problem.images, boxes, problem.cotangent, pass_, problem)


def _centres(problem: Problem) -> Tensor:
    """Corners as kornia has them: of the centres of the crop's corner pixels, on the axes of pixel indices."""
    h, w = problem.case.size
    inner = torch.tensor([[0.5, 0.5], [w - 0.5, 0.5], [w - 0.5, h - 0.5], [0.5, h - 0.5]], dtype=torch.float64)
    matrix = homography(problem.boxes.double().unflatten(1, (4, 2)), (h, w))
    place = torch.cat([inner, torch.ones(4, 1, dtype=torch.float64)], 1) @ matrix.mT
    return (place[..., :2] / place[..., 2:] - 0.5).flatten(1)


def _kornia_meaning(problem: Problem) -> Meaning:
    if problem.case.shape == "rotated":
        return _as_it_is(problem)
    return Meaning(_centres(problem), problem.options() | {"align_corners": True})


def _prepare_opencv(problem: Problem, pass_: str) -> Prepared:
    """`warpAffine` and `warpPerspective` by matrices that are made beforehand, as they cost next to nothing."""
    assert pass_ == "forward"
    cv2: Any = importlib.import_module("cv2")
    case = problem.case
    boxes = problem.boxes.double()
    if case.shape == "rotated":
        height, width = case.images[2:]
        full = torch.eye(3, dtype=torch.float64).repeat(len(boxes), 1, 1)
        full[:, :2] = rotated_theta(boxes, (height, width))
        h, w = case.size
        begin = torch.tensor([[2 / w, 0, -1], [0, 2 / h, -1], [0, 0, 1]], dtype=torch.float64)
        end = torch.tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]], dtype=torch.float64)
        matrices = end @ full @ begin
    else:
        matrices = homography(boxes.unflatten(1, (4, 2)), case.size)
    half = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    numbered = (torch.linalg.inv(half) @ matrices @ half).numpy()
    border = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}[case.padding_mode]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    affine = case.shape == "rotated"
    images, size = channels_inside(problem), case.size[::-1]
    function = cv2.warpAffine if affine else cv2.warpPerspective
    jobs = [(images[b], m[:2] if affine else m) for b, m in zip(problem.owner.tolist(), numbered, strict=True)]

    def call() -> list[Any]:
        return [function(image, matrix, size, flags=flags, borderMode=border) for image, matrix in jobs]

    def outcome(results: list[Any]) -> Outcome:
        found = as_outcome(results, problem)
        return Outcome(found.value.to(problem.cotangent.dtype))

    return Prepared(call, outcome)


def _as_it_is(problem: Problem) -> Meaning:
    return Meaning(problem.boxes.double(), problem.options())


def _slanted(case: Case) -> str | None:
    if case.shape not in ("rotated", "quad"):
        return "for boxes that do not lie upright"
    return "does not antialias" if case.antialias or case.mode != "bilinear" else None


def _floats(case: Case) -> str | None:
    return _slanted(case) if case.dtype in ("float32", "float64") else f"not in {case.dtype}"


def _peer(name: str, about: str, prepare: Callable[[Problem, str], Prepared], **more: Any) -> Peer:
    return Peer(name, about, prepare, **({"meaning": _as_it_is, "refuses": _slanted} | more))


# Box gradients of the full cases were off by 9e-3 (turned) and 1.4e-2 (quads) in float32, the recipe's and kornia's
# alike, and by less than 2e-13 in float64: the derivative by a box jumps where one of thousands of positions is taken
# for the next pixel's. `tests/test_benchmarks.py` holds them to 1e-10 in float64.
_FLOAT32 = Tolerance(
    value=2e-3,
    images=2e-3,
    boxes=3e-2,
    reason="positions in float32 are off by up to 1e-3 pixels where a homography is solved for; of noise a value moves "
    "as much, and the derivative by a box jumps where a position is rounded across a pixel's centre",
)
_BYTES = Tolerance(
    value=0.5 / 255 + 2e-3,
    images=2e-3,
    boxes=2e-3,
    reason="positions in float32, and bytes out of bytes",
)

WARP_RECIPE = _peer(
    "warp recipe",
    "Theta and `affine_grid`, or the grid of a homography that is solved for; `grid_sample`",
    _prepare_recipe,
    tolerance=_FLOAT32,
)
WARP_KORNIA = _peer(
    "warp kornia",
    "kornia's `warp_affine`, or `crop_and_resize` by corners",
    _prepare_kornia,
    meaning=_kornia_meaning,
    tolerance=_FLOAT32,
    needs=("kornia",),
    refuses=_floats,
)
WARP_OPENCV = _peer(
    "warp opencv",
    "OpenCV's `warpAffine` or `warpPerspective`, channels side by side",
    _prepare_opencv,
    tolerance=_BYTES,
    needs=("cv2",),
    passes=("forward",),
)
