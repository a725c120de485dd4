"""Rotated boxes, quadrilaterals and matrices as geometry, without a pixel."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffcrop
from diffcrop import _homography, map_points, quads_to_matrix, rotated_to_matrix, rotated_to_quads, warp_points
from helpers import rand

f64 = torch.float64
SIZE, IMAGE = (5, 7), (11, 13)


def same(actual, expected, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


def some_boxes(count, generator):
    spread = torch.tensor([12, 10, 16, 16, 720], dtype=f64)
    return rand(count, 5, generator=generator) * spread - torch.tensor([0, 0, 8, 8, 360], dtype=f64)


def some_quads(count, generator, jitter=4):
    """Convex, half of them mirrored: jittered by less than makes them concave."""
    square = torch.tensor([[0, 0], [10, 0], [10, 8], [0, 8]], dtype=f64)
    quads = square + (rand(count, 4, 2, generator=generator) - 0.5) * jitter
    return torch.where(torch.arange(count)[:, None, None] % 2 == 0, quads, quads.flip(1))


def centres_of(size, align_corners):
    """The centres of a crop's pixels, (h w, 2)."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=f64) for n in size), indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1) + (0.0 if align_corners else 0.5)


# --- rotated boxes ----------------------------------------------------------------------------------------------------

# The box (5, 3, 4, 2, angle) of the documentation of detectron2's RotatedBoxes, whose vertices A, B, C, D are the box's
# own top-left, top-right, bottom-right and bottom-left.
DETECTRON2 = {
    0: [(3, 2), (7, 2), (7, 4), (3, 4)],
    90: [(4, 5), (4, 1), (6, 1), (6, 5)],
    -90: [(6, 1), (6, 5), (4, 5), (4, 1)],
    180: [(7, 4), (3, 4), (3, 2), (7, 2)],
    -180: [(7, 4), (3, 4), (3, 2), (7, 2)],
    270: [(6, 1), (6, 5), (4, 5), (4, 1)],
}


@pytest.mark.parametrize("angle", DETECTRON2)
def test_corners_are_those_of_detectron2(angle):
    box = torch.tensor([5.0, 3.0, 4.0, 2.0, angle])
    assert rotated_to_quads(box).tolist() == [list(map(float, p)) for p in DETECTRON2[angle]]
    assert rotated_to_quads(box * torch.tensor([1, 1, 1, 1, -1.0]), clockwise=True).equal(rotated_to_quads(box))


def test_corners_are_those_of_torchvision(generator):
    """By the definition of its conversion from CXCYWHR to corners."""
    boxes = some_boxes(50, generator)
    cx, cy, w, h, angle = boxes.unbind(-1)
    cos, sin = torch.cos(angle * math.pi / 180), torch.sin(angle * math.pi / 180)
    x1, y1 = cx - w / 2 * cos - h / 2 * sin, cy - h / 2 * cos + w / 2 * sin
    x2, y2 = x1 + w * cos, y1 - w * sin
    x3, y3 = x2 + h * sin, y2 + h * cos
    x4, y4 = x1 + h * sin, y1 + h * cos
    expected = torch.stack([x1, y1, x2, y2, x3, y3, x4, y4], -1).unflatten(-1, (4, 2))
    same(rotated_to_quads(boxes), expected)
    radians = boxes * torch.tensor([1, 1, 1, 1, math.pi / 180], dtype=f64)
    same(rotated_to_quads(radians, angle_unit="radians"), expected)


def test_corners_are_those_of_opencv(generator):
    """Its RotatedRect turns clockwise; boxPoints gives the corners in some order."""
    for box in some_boxes(20, generator).abs():
        cx, cy, w, h, angle = box.tolist()
        theirs = cv2.boxPoints(((cx, cy), (w, h), angle))
        ours = rotated_to_quads(box, clockwise=True).numpy()
        distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
        assert distance.min(0).max() < 1e-4
        assert distance.min(1).max() < 1e-4


def test_a_positive_angle_turns_counter_clockwise_on_the_screen():
    """The top of the box, up at angle 0, leans to the left."""
    top_left, top_right, bottom_right, _ = rotated_to_quads(torch.tensor([50.0, 50.0, 20.0, 10.0, 30.0])).tolist()
    middle = [(a + b) / 2 for a, b in zip(top_left, top_right, strict=True)]
    assert middle[0] < 50
    assert middle[1] < 50
    assert top_right[1] < top_left[1]  # y points down: its right end is higher
    assert bottom_right[0] > 50


def test_degrees_are_exact_at_quarter_turns():
    turns = torch.tensor([0, 90, 180, 270, 360, 450, -90, -180, -270, 36000090, 9e14], dtype=f64)
    cos, sin = _homography._turn(turns, "degrees")
    assert cos.tolist() == [1, 0, -1, 0, 1, 0, 0, -1, 0, 0, 1]
    assert sin.tolist() == [0, 1, 0, -1, 0, 1, -1, 0, 1, 1, 0]


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e6, 1e6))
def test_degrees_are_radians(angle):
    cos, sin = _homography._turn(torch.tensor(angle, dtype=f64), "degrees")
    # The remainder of the division by a whole turn is exact, so this is what the angle means.
    rest = math.radians(math.fmod(angle, 360.0))
    assert float(cos) == pytest.approx(math.cos(rest), abs=1e-14)
    assert float(sin) == pytest.approx(math.sin(rest), abs=1e-14)


@pytest.mark.parametrize("angle", [0.0, 45.0, 90.0, 135.0, 225.0, 359.0, -45.0, 12.3])
def test_the_derivative_by_the_angle_is_that_of_a_turn(angle):
    a = torch.tensor(angle, dtype=f64, requires_grad=True)
    cos, sin = _homography._turn(a, "degrees")
    (d_cos,) = torch.autograd.grad(cos, a, retain_graph=True)
    (d_sin,) = torch.autograd.grad(sin, a)
    assert float(d_cos) == pytest.approx(-math.sin(math.radians(angle)) * math.pi / 180, abs=1e-15)
    assert float(d_sin) == pytest.approx(math.cos(math.radians(angle)) * math.pi / 180, abs=1e-15)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("coords", ["unit", "normalized"])
def test_other_coordinates_scale_the_sides_as_at_angle_0(coords, align_corners, generator):
    """So the box is a rectangle of pixels at any angle, and at 0 what `convert_boxes` makes of it."""
    pixel = some_boxes(20, generator)
    other = diffcrop.convert_boxes(
        pixel[:, :4],
        IMAGE,
        from_format="cxcywh",
        to_format="cxcywh",
        to_coords=coords,
        align_corners=align_corners,
    )
    given_ = torch.cat([other, pixel[:, 4:]], -1)
    options = {"coords": coords, "align_corners": align_corners}
    same(rotated_to_matrix(given_, SIZE, IMAGE, **options), rotated_to_matrix(pixel, SIZE, align_corners=align_corners))
    corners = rotated_to_quads(given_, IMAGE, **options)
    extent = torch.tensor([n - align_corners for n in reversed(IMAGE)], dtype=f64)
    back = corners * extent if coords == "unit" else (corners + 1) / 2 * extent
    same(back, rotated_to_quads(pixel))


# --- matrices ---------------------------------------------------------------------------------------------------------


def crop_corners(size, align_corners):
    h, w = size
    w, h = (w - 1, h - 1) if align_corners else (w, h)
    return torch.tensor([[0, 0], [w, 0], [w, h], [0, h]], dtype=f64)


@pytest.mark.parametrize("align_corners", [False, True])
def test_corners_go_to_corners(align_corners, generator):
    quads, corners = some_quads(50, generator), crop_corners(SIZE, align_corners)
    matrix = quads_to_matrix(quads, SIZE, align_corners=align_corners)
    same(warp_points(corners, matrix), quads)
    same(warp_points(quads, matrix, to="crop"), corners.expand_as(quads))
    boxes = some_boxes(50, generator)
    matrix = rotated_to_matrix(boxes, SIZE, align_corners=align_corners)
    assert matrix.shape == (50, 2, 3)
    same(warp_points(corners, matrix), rotated_to_quads(boxes))


def test_the_homography_is_that_of_opencv(generator):
    for quad in some_quads(20, generator):
        corners = crop_corners(SIZE, False).numpy().astype(np.float32)
        theirs = torch.from_numpy(cv2.getPerspectiveTransform(corners, quad.numpy().astype(np.float32)))
        ours = quads_to_matrix(quad.float().double(), SIZE)
        # Theirs is made from float32 points.
        same(ours / ours[2, 2], theirs / theirs[2, 2], atol=1e-6)


def test_points_are_those_of_map_points(generator):
    """At angle 0."""
    boxes = some_boxes(10, generator)
    boxes[:, 4] = 0
    points = rand(10, 6, 2, generator=generator) * 20 - 5
    for align_corners in (False, True):
        options = {"align_corners": align_corners}
        for size in (SIZE, (1, 3)):
            for to in ("image", "crop"):
                expected = map_points(points, boxes[:, :4], size, to=to, box_format="cxcywh", **options)
                same(warp_points(points, rotated_to_matrix(boxes, size, **options), to=to), expected, atol=1e-11)


def test_points_go_there_and_back(generator):
    matrices = quads_to_matrix(some_quads(20, generator), SIZE)
    inner = rand(20, 30, 2, generator=generator) * torch.tensor([7, 5])
    same(warp_points(warp_points(inner, matrices), matrices, to="crop"), inner)
    # The adjugate is the inverse up to a factor.
    same(warp_points(inner, matrices, to="crop"), warp_points(inner, torch.linalg.inv(matrices)), atol=1e-9)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_affine_map_of_a_parallelogram_is_affine_to_the_bit(align_corners):
    corner, right, down = torch.tensor([[3.5, 2.25], [6.0, 1.5], [-1.25, 4.0]])
    quad = torch.stack([corner, corner + right, corner + right + down, corner + down])
    matrix = quads_to_matrix(quad.double(), SIZE, align_corners=align_corners)
    assert matrix[2].tolist() == [0, 0, 1]


def test_a_trapezoid_is_exact():
    """x in [1, 3] at the top and [0, 4] at the bottom, 3 high. Halfway down the crop the diagonals have crossed."""
    quad = torch.tensor([[1, 0], [3, 0], [4, 3], [0, 3]], dtype=f64)
    matrix = quads_to_matrix(quad, 1)
    # They cross where a third of the way is left: at y = 1 of 3, as 2 and 4 are the widths.
    assert warp_points(torch.tensor([[0.5, 0.5]], dtype=f64), matrix).tolist() == [[2.0, 1.0]]
    assert matrix[0].tolist() == [2, -1, 1]


# --- what is convex ---------------------------------------------------------------------------------------------------

SQUARE = torch.tensor([[0, 0], [4, 0], [4, 4], [0, 4]], dtype=f64)
NOT_CONVEX = {
    "crossed sides": SQUARE[[0, 2, 1, 3]],
    "crossed sides, the other way": SQUARE[[0, 1, 3, 2]],
    "concave": torch.tensor([[0, 0], [4, 0], [1, 1], [0, 4]], dtype=f64),
    "three on a line": torch.tensor([[0, 0], [4, 0], [2, 2], [0, 4]], dtype=f64),
    "three on a line, in thirds": torch.tensor([[0, 0], [1.1, 1.1], [3.3, 3.3], [0, 4]], dtype=f64),
    "two corners in one": torch.tensor([[0, 0], [0, 0], [4, 4], [0, 4]], dtype=f64),
    "no area": torch.tensor([[0, 0], [4, 0], [4, 0], [0, 0]], dtype=f64),
    "a point": torch.full((4, 2), 3.0, dtype=f64),
    "NaN": SQUARE + torch.tensor([[torch.nan, 0], [0, 0], [0, 0], [0, 0]]),
    "infinite": SQUARE * torch.tensor([[1, 1], [torch.inf, 1], [1, 1], [1, 1]]).nan_to_num(nan=0, posinf=torch.inf),
}


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("name", NOT_CONVEX)
def test_what_is_not_convex(name, shift):
    quad = NOT_CONVEX[name] + shift
    for turned in (quad.roll(k, 0) for k in range(4)):
        assert not _homography.convex(turned)
        assert not _homography.convex(turned.flip(0))
        matrix = _homography.from_quads(turned, None, SIZE, coords="pixel", align_corners=False)
        assert matrix.isnan().all()


def test_what_is_convex(generator):
    quads = some_quads(100, generator)
    assert _homography.convex(quads).all()
    assert _homography.convex(quads * torch.tensor([1e6, 1e-6])[:, None, None].repeat(50, 1, 1)).all()
    assert _homography.convex(torch.stack([SQUARE, SQUARE.flip(0), SQUARE.roll(1, 0)])).all()
    thin = torch.tensor([[0, 0], [1000, 0], [1000, 0.001], [0, 0.001]], dtype=f64)
    assert _homography.convex(thin)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_how_nearly_three_corners_may_lie_on_a_line(scale):
    """Up to the documented sine of the angle at the corner between them, whatever the size."""
    for sine, expected in ((2.0**-19, True), (2.0**-21, False), (-(2.0**-19), False)):
        quad = torch.tensor([[0, 0], [1, -sine], [2, 0], [1, 2]], dtype=f64) * scale
        # Both sides of corner 1 lean by half of what they enclose.
        quad[1, 1] /= 2
        assert bool(_homography.convex(quad)) is expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8))
def test_convexity_is_a_finite_map_of_the_square(numbers):
    """By the signs of four turns, or with Z of one sign at the crop's corners: the same, where neither is close."""
    quad = torch.tensor(numbers, dtype=f64).reshape(4, 2)
    matrix = _homography._from_unit_square(quad)
    unit = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=f64)
    z = unit @ matrix[2]
    if not matrix.isfinite().all() or z.abs().min() < 1e-4 or z.abs().max() > 1e4:
        return
    assert bool(_homography.convex(quad)) == bool((z > 0).all())


def test_the_gradient_of_a_quad_that_is_not_convex_is_nan():
    quads = torch.stack([SQUARE + 0.1 * torch.arange(8, dtype=f64).view(4, 2), NOT_CONVEX["concave"]]).requires_grad_()
    matrix = _homography.from_quads(quads, None, SIZE, coords="pixel", align_corners=False)
    (grad,) = torch.autograd.grad(matrix.square().sum(), quads)
    assert grad[0].isfinite().all()
    assert grad[1].isnan().any()


# --- identities, and derivatives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [2, 3, 7, 49, 93, 107, 224, 1000])
def test_identities_are_exact(n, align_corners):
    """Whatever the coordinates: N is multiplied with before n is divided by."""
    shape, eye = (n, n + 5), torch.eye(3, dtype=f64)
    convention = {"align_corners": align_corners}
    for coords in ("pixel", "unit", "normalized"):
        assert _homography.from_matrix(eye[:2], shape, shape, coords=coords, **convention).equal(eye)
    h, w = (m - align_corners for m in shape)
    box = torch.tensor([w / 2, h / 2, w, h, 0.0], dtype=f64)
    assert rotated_to_matrix(box, shape, **convention).equal(eye[:2])
    assert quads_to_matrix(rotated_to_quads(box), shape, **convention).equal(eye)


def test_an_aligned_axis_of_one_pixel_is_that_pixel_everywhere():
    matrix = torch.tensor([[2.0, 1.0, 7.0], [0.5, 3.0, -2.0], [0.1, 0.2, 1.0]], dtype=f64)
    for coords in ("pixel", "unit", "normalized"):
        found = _homography.from_matrix(matrix, (1, 9), (4, 4), coords=coords, align_corners=True)
        x, y, z = found.unbind(0)
        assert y.equal(z / 2)
        assert not x.equal(z / 2)


FUNCTIONS = {
    "rotated_to_quads": (lambda b: rotated_to_quads(b, IMAGE, coords="normalized"), "boxes"),
    "rotated_to_matrix": (lambda b: rotated_to_matrix(b, SIZE, clockwise=True, angle_unit="radians"), "boxes"),
    "quads_to_matrix": (lambda q: quads_to_matrix(q, SIZE, align_corners=True), "quads"),
    "warp_points": (lambda q: warp_points(q[0], torch.eye(3, dtype=f64) + 0.1 * q[1, :3, :1]), "quads"),
    "warp_points back": (lambda q: warp_points(q[0], torch.eye(3, dtype=f64) + 0.1 * q[1, :3, :1], to="crop"), "quads"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name, generator):
    function, kind = FUNCTIONS[name]
    value = (some_boxes if kind == "boxes" else some_quads)(2, generator).requires_grad_()
    assert torch.autograd.gradcheck(function, value, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes(name, generator):
    """float32 in and out, computed in float64; half precision is promoted, integers are."""
    function, kind = FUNCTIONS[name]
    if name.startswith("warp_points"):
        to = "crop" if name.endswith("back") else "image"

        def function(value):
            return warp_points(value[0], torch.eye(3, dtype=value.dtype), to=to)

    value = (some_boxes if kind == "boxes" else some_quads)(2, generator).float()
    assert function(value).dtype == torch.float32
    assert function(value).equal(function(value.double()).float())
    assert function(value.to(torch.bfloat16)).equal(function(value.to(torch.bfloat16).float()))
    assert function(value.round().long()).equal(function(value.round().double()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_and_one(name, generator):
    """None at all, and one without a leading dimension."""
    function, kind = FUNCTIONS[name]
    value = (some_boxes if kind == "boxes" else some_quads)(2, generator)
    if name.startswith("warp_points"):
        assert warp_points(value[:0], torch.eye(3)).shape == (0, 4, 2)
        assert warp_points(value, torch.eye(3)[:2][None].expand(0, 1, 2, 3)).shape == (0, 2, 4, 2)
        return
    assert function(value[:0]).shape == (0, *function(value[0]).shape)
    assert function(value)[1].equal(function(value[1]))
