"""Formats, coordinates, Theta, inverses and maps: against hand formulas and torch's own affine_grid."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcrop import _boxes, _check, boxes_to_theta, convert_boxes, invert_boxes, map_boxes, map_points, theta_to_boxes

FORMATS = ("xyxy", "xywh", "cxcywh")
COORDS = ("pixel", "unit", "normalized")
H, W = 7, 11


def f64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def positions(lo, hi, n, align_corners):
    """Where the contract puts the n samples of an axis, in continuous pixel coordinates."""
    j = torch.arange(n, dtype=torch.float64)
    if not align_corners:
        return lo + (j + 0.5) * (hi - lo) / n
    return lo + j * (hi - lo) / (n - 1) if n > 1 else (lo + hi).reshape(1) / 2


# --- convert_boxes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("align_corners", "coords", "expected"),
    [
        (False, "pixel", (1.0, 2.0, 6.0, 3.5)),
        (False, "unit", (1 / 11, 2 / 7, 6 / 11, 3.5 / 7)),
        (False, "normalized", (2 / 11 - 1, 4 / 7 - 1, 12 / 11 - 1, 0.0)),
        (True, "unit", (0.1, 2 / 6, 0.6, 3.5 / 6)),
        (True, "normalized", (-0.8, 4 / 6 - 1, 0.2, 7 / 6 - 1)),
    ],
)
def test_coordinates_by_hand(align_corners, coords, expected):
    box = f64(1.0, 2.0, 6.0, 3.5)
    there = convert_boxes(box, (H, W), to_coords=coords, align_corners=align_corners)
    torch.testing.assert_close(there, f64(*expected), rtol=0, atol=1e-15)
    back = convert_boxes(there, (H, W), from_coords=coords, align_corners=align_corners)
    torch.testing.assert_close(back, box, rtol=0, atol=4e-15)


def test_formats_by_hand():
    box = f64(1.0, 2.0, 6.0, 3.5)
    assert convert_boxes(box, to_format="xywh").tolist() == [1.0, 2.0, 5.0, 1.5]
    assert convert_boxes(box, to_format="cxcywh").tolist() == [3.5, 2.75, 5.0, 1.5]
    assert convert_boxes(f64(3.5, 2.75, 5.0, 1.5), from_format="cxcywh", to_format="xywh").tolist() == [
        1.0,
        2.0,
        5.0,
        1.5,
    ]


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_width_is_in_the_units_of_its_coordinates(align_corners):
    """The format is read before the coordinates are changed: w = 2 is the whole image in normalized coordinates."""
    width = W - 1 if align_corners else W
    whole = convert_boxes(
        f64(0, 0, 2, 1),
        (H, W),
        from_format="cxcywh",
        from_coords="normalized",
        to_format="xywh",
        align_corners=align_corners,
    )
    height = H - 1 if align_corners else H
    assert whole.tolist() == [0.0, height / 4, width, height / 2]


def test_signals_and_volumes():
    assert convert_boxes(f64(0.5, 1.0), 8, from_coords="unit").tolist() == [4.0, 8.0]
    volume = convert_boxes(f64(0.5, 0.5, 0.5, 1, 1, 1), (2, 4, 8), from_coords="unit")
    assert volume.tolist() == [4.0, 2.0, 1.0, 8.0, 4.0, 2.0]


coordinate = st.floats(-50, 50, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(coordinate, min_size=12, max_size=12),
    axes=st.sampled_from([1, 2, 3]),
    shape=st.tuples(*[st.integers(2, 300)] * 3),
    kinds=st.tuples(*[st.sampled_from(FORMATS), st.sampled_from(COORDS)] * 2),
    align_corners=st.booleans(),
)
def test_round_trips(numbers, axes, shape, kinds, align_corners):
    """Any format and coordinates to any other and back, mirrored and empty boxes included."""
    boxes = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2 * axes)
    shape = shape[:axes]
    one_format, one, other_format, other = kinds
    there = convert_boxes(
        boxes,
        shape,
        from_format=one_format,
        from_coords=one,
        to_format=other_format,
        to_coords=other,
        align_corners=align_corners,
    )
    back = convert_boxes(
        there,
        shape,
        from_format=other_format,
        from_coords=other,
        to_format=one_format,
        to_coords=one,
        align_corners=align_corners,
    )
    # Coordinates up to 50 units of up to 300 pixels, a few roundings each.
    torch.testing.assert_close(back, boxes, rtol=0, atol=300 * 50 * 1e-15)
    # By way of the recipe's matrix too.
    theta = boxes_to_theta(boxes, shape, box_format=one_format, coords=one, align_corners=align_corners)
    assert theta.shape == (len(boxes), axes, axes + 1)
    back = theta_to_boxes(theta, shape, box_format=one_format, coords=one, align_corners=align_corners)
    torch.testing.assert_close(back, boxes, rtol=0, atol=300 * 50 * 1e-15)


@pytest.mark.parametrize(("given_dtype", "expected"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32), (torch.uint8, torch.float32), (torch.int32, torch.float32),
    (torch.int64, torch.float64),
])  # fmt: skip
def test_dtypes(given_dtype, expected):
    boxes = torch.tensor([[1, 2, 5, 6], [0, 0, 3, 4]]).to(given_dtype)
    exact = boxes.double()
    for result, reference in [
        (convert_boxes(boxes), exact),
        (convert_boxes(boxes, (H, W), to_format="cxcywh", to_coords="normalized"),
         convert_boxes(exact, (H, W), to_format="cxcywh", to_coords="normalized")),
        (boxes_to_theta(boxes, (H, W)), boxes_to_theta(exact, (H, W))),
        (invert_boxes(boxes, (H, W)), invert_boxes(exact, (H, W))),
        (map_points(boxes[:, None, :2], boxes, 4), map_points(exact[:, None, :2], exact, 4)),
        (map_boxes(boxes[:, None], boxes, 4), map_boxes(exact[:, None], exact, 4)),
    ]:  # fmt: skip
        assert result.dtype == expected
        assert torch.equal(result, reference.to(expected)), "rounded once, at the end"


def test_one_float64_argument_makes_a_map_float64():
    points, box = torch.rand(3, 2), torch.rand(4)
    assert map_points(points.double(), box, 4).dtype == torch.float64
    assert map_boxes(torch.rand(3, 4), box.double(), 4).dtype == torch.float64


def test_nothing_is_done_where_nothing_changes():
    box = torch.rand(3, 4)
    assert convert_boxes(box) is box
    assert _boxes.to_pixel(box, (H, W)) is box
    half = box.half()
    assert _boxes.to_pixel(half, (H, W)) is half


def test_internal_conversions_keep_what_float32_would_round():
    box = torch.tensor([0.1, 0.2, 0.3, 0.7])
    pixel = _boxes.to_pixel(box, (1000, 3000), box_format="cxcywh", coords="unit")
    assert pixel.dtype == torch.float64
    exact = convert_boxes(box.double(), (1000, 3000), from_format="cxcywh", from_coords="unit")
    assert torch.equal(pixel, exact)
    assert not torch.equal(pixel.float().double(), exact)
    back = convert_boxes(pixel, (1000, 3000), to_format="cxcywh", to_coords="unit")
    torch.testing.assert_close(back, box.double(), rtol=1e-14, atol=0)


def test_empty_batches():
    assert convert_boxes(torch.zeros(0, 4), (H, W), to_coords="unit").shape == (0, 4)
    assert boxes_to_theta(torch.zeros(2, 0, 4), (H, W)).shape == (2, 0, 2, 3)
    assert theta_to_boxes(torch.zeros(0, 2, 3), (H, W)).shape == (0, 4)
    assert map_points(torch.zeros(3, 0, 2), torch.zeros(3, 4), 4).shape == (3, 0, 2)


# --- Theta against affine_grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("box", [(2.25, 1.5, 8.75, 5.0), (8.75, 1.5, 2.25, 5.0), (-3.0, -4.0, 20.0, 30.0)])
@pytest.mark.parametrize("size", [(5, 3), (2, 4)])
def test_affine_grid_samples_where_the_contract_says(align_corners, box, size):
    theta = boxes_to_theta(f64(*box), (H, W), align_corners=align_corners)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *size], align_corners=align_corners)[0]
    # From the grid's coordinates to continuous pixel coordinates, by the definition of the whole image as [-1, 1].
    x, y = grid[..., 0], grid[..., 1]
    if align_corners:
        x, y = (x + 1) / 2 * (W - 1), (y + 1) / 2 * (H - 1)
    else:
        x, y = (x + 1) / 2 * W, (y + 1) / 2 * H
    x0, y0, x1, y1 = f64(*box)
    expected_x = positions(x0, x1, size[1], align_corners).expand(size)
    expected_y = positions(y0, y1, size[0], align_corners)[:, None].expand(size)
    torch.testing.assert_close(x, expected_x, rtol=0, atol=1e-13)
    torch.testing.assert_close(y, expected_y, rtol=0, atol=1e-13)


def test_volumes_against_affine_grid():
    box = f64(1.0, 2.0, 0.5, 6.0, 3.5, 2.5)
    shape, size = (3, H, W), (2, 4, 5)
    grid = torch.nn.functional.affine_grid(boxes_to_theta(box, shape)[None], [1, 1, *size], align_corners=False)[0]
    for axis in range(3):
        n, extent = size[::-1][axis], shape[::-1][axis]
        along = grid.movedim(2 - axis, 0)[:, 0, 0, axis]
        expected = positions(box[axis], box[axis + 3], n, False) / extent * 2 - 1
        torch.testing.assert_close(along, expected, rtol=0, atol=1e-14)


def test_theta_is_the_recipe():
    x0, y0, x1, y1 = box = (-0.5, -1.0, 0.25, 0.75)
    expected = [[(x1 - x0) / 2, 0, (x0 + x1) / 2], [0, (y1 - y0) / 2, (y0 + y1) / 2]]
    assert boxes_to_theta(f64(*box), coords="normalized").tolist() == expected
    assert boxes_to_theta(f64(0.5, 0, 1, 1), coords="unit").tolist() == [[0.5, 0, 0.5], [0, 1, 0]]


# --- invert_boxes, map_points, map_boxes ------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
def test_inverse_by_hand(align_corners):
    x0, y0, x1, y1 = box = (2.0, 1.5, 8.0, -4.0)
    width, height = (W - 1, H - 1) if align_corners else (W, H)
    expected = f64(-x0 / (x1 - x0), -y0 / (y1 - y0), (width - x0) / (x1 - x0), (height - y0) / (y1 - y0))
    torch.testing.assert_close(
        invert_boxes(f64(*box), (H, W), align_corners=align_corners), expected, rtol=1e-15, atol=0
    )
    for coords, box_format in itertools.product(COORDS, FORMATS):
        given_box = convert_boxes(
            f64(*box), (H, W), to_coords=coords, to_format=box_format, align_corners=align_corners
        )
        inverse = invert_boxes(given_box, (H, W), coords=coords, box_format=box_format, align_corners=align_corners)
        inverse = convert_boxes(inverse, from_format=box_format, from_coords="unit", to_coords="unit")
        torch.testing.assert_close(inverse, expected, rtol=0, atol=1e-14)


def test_inverse_is_an_involution_in_unit_coordinates():
    boxes = torch.rand(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for box_format in FORMATS:
        twice = invert_boxes(
            invert_boxes(boxes, coords="unit", box_format=box_format), coords="unit", box_format=box_format
        )
        torch.testing.assert_close(twice, boxes, rtol=1e-9, atol=1e-12)


def test_inverse_of_a_one_pixel_image_with_aligned_corners():
    assert invert_boxes(f64(2.0, 6.0), 1, align_corners=True).tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_pixel_centres_map_to_sampling_positions(align_corners, n):
    lo, hi = f64(3.25), f64(-5.5)  # mirrored
    centres = torch.arange(n, dtype=torch.float64) + (0.0 if align_corners else 0.5)
    box = torch.cat([lo, hi])
    image = map_points(centres[:, None], box, n, align_corners=align_corners)
    torch.testing.assert_close(image[:, 0], positions(lo, hi, n, align_corners), rtol=0, atol=1e-14)
    back = map_points(image, box, n, to="crop", align_corners=align_corners)
    torch.testing.assert_close(back, centres[:, None], rtol=0, atol=1e-14)


def test_maps_broadcast_and_read_any_coordinates():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    points = torch.rand(3, 2, dtype=torch.float64, generator=generator)
    size = (4, 6)
    moved = map_points(points, boxes, size, coords="unit", image_size=(H, W), box_format="cxcywh")
    assert moved.shape == (5, 3, 2)
    for k, p in itertools.product(range(5), range(3)):
        cx, cy, w, h = boxes[k].tolist()
        expected = f64((cx - w / 2) * W + points[p, 0] * w * W / 6, (cy - h / 2) * H + points[p, 1] * h * H / 4)
        torch.testing.assert_close(moved[k, p], expected, rtol=0, atol=1e-13)


def test_boxes_move_by_their_corners_and_mirrors_stay():
    plain, mirrored = f64(10, 20, 50, 60), f64(50, 20, 10, 60)
    inner, flipped = f64(2, 2, 4, 8), f64(4, 2, 2, 8)
    assert map_boxes(inner[None], plain, 8).tolist() == [[20, 30, 30, 60]]
    assert map_boxes(flipped[None], plain, 8).tolist() == [[30, 30, 20, 60]]
    assert map_boxes(inner[None], mirrored, 8).tolist() == [[40, 30, 30, 60]]
    assert map_boxes(flipped[None], mirrored, 8).tolist() == [[30, 30, 40, 60]]
    assert map_boxes(f64(40, 30, 30, 60)[None], mirrored, 8, to="crop").tolist() == [inner.tolist()]
    assert map_boxes(f64(3, 5, 2, 6)[None], plain, 8, inner_format="cxcywh").tolist() == [[25, 45, 10, 30]]


def test_a_box_of_no_size_has_one_point_and_no_way_back():
    box = f64(3, 4, 3, 4)
    points = f64(1, 2, 5, 6).reshape(2, 2)
    assert map_points(points, box, 8).tolist() == [[3, 4], [3, 4]]
    assert not map_points(points, box, 8, to="crop").isfinite().any()


# --- derivatives and transforms ---------------------------------------------------------------------------------------

FUNCTIONS = [
    lambda b, _: convert_boxes(
        b, (H, W), from_format="cxcywh", from_coords="unit", to_format="xywh", to_coords="normalized"
    ),
    lambda b, _: convert_boxes(b, (H, W), to_coords="normalized", align_corners=True),
    lambda b, _: boxes_to_theta(b, (H, W)),
    lambda b, _: theta_to_boxes(boxes_to_theta(b, (H, W)), (H, W), box_format="cxcywh"),
    lambda b, _: invert_boxes(b, (H, W), box_format="xywh"),
    lambda b, p: map_points(p, b, (3, 5), coords="unit", image_size=(H, W)),
    lambda b, p: map_points(p, b, (3, 1), align_corners=True),
    lambda b, p: map_points(p, b, (3, 5), to="crop"),
    lambda b, p: map_boxes(p.flatten(-2)[..., None, :], b, (3, 5), to="crop", inner_format="cxcywh"),
]
THE_BOX, THE_POINTS = (1.2, 0.9, 4.7, 3.8), ((0.3, 1.9), (2.2, -0.4))


# torch's own forward mode scripts its decompositions.
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradcheck(function):
    box = f64(*THE_BOX).requires_grad_()
    points = torch.tensor(THE_POINTS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (box, points), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (box, points))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functional_transforms(function):
    box, points = f64(*THE_BOX), torch.tensor(THE_POINTS, dtype=torch.float64)
    forward, reverse = torch.func.jacfwd(function)(box, points), torch.func.jacrev(function)(box, points)
    assert forward.abs().max() > 0
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-12)
    several = torch.stack([box, box + 0.25, box * 2])
    batched = torch.func.vmap(function, in_dims=(0, None))(several, points)
    torch.testing.assert_close(batched, torch.stack([function(b, points) for b in several]), rtol=1e-14, atol=1e-14)


def test_gradient_returns_in_the_dtype_of_the_boxes():
    box = torch.tensor(THE_BOX, dtype=torch.float16, requires_grad=True)
    convert_boxes(box, (H, W), from_coords="unit").sum().backward()
    assert box.grad.dtype == torch.float16
    assert box.grad.tolist() == [W, H, W, H]


def test_compiles_without_a_break_for_changing_image_sizes():
    def everything(images, boxes, points, theta):
        shape = images.shape[-2:]
        return (
            convert_boxes(boxes, shape, to_format="cxcywh", to_coords="unit"),
            boxes_to_theta(boxes, shape, align_corners=True),
            theta_to_boxes(theta, shape),
            invert_boxes(boxes, shape),
            map_points(points, boxes, shape, to="crop"),
        )

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend=backend)
    boxes, points = torch.tensor([THE_BOX]), torch.tensor([THE_POINTS])
    theta = torch.tensor([[[0.5, 0.0, 0.1], [0.0, 0.7, 0.2]]])
    for shape in [(7, 11), (13, 6), (20, 31)]:
        images = torch.zeros(1, *shape)
        for got, expected in zip(
            compiled(images, boxes, points, theta), everything(images, boxes, points, theta), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert len(graphs) == 1, "one graph serves every image size"


# --- errors -----------------------------------------------------------------------------------------------------------

BOX = torch.tensor([1.0, 2.0, 3.0, 4.0])
THETA = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
POINTS = torch.zeros(5, 2)


def skewed(row, column, value, dtype=torch.float32):
    theta = torch.stack([THETA, THETA]).to(dtype)
    theta[1, row, column] = value
    return theta


def case(error, call, *message):
    """One wrong call, and how its message starts or goes on; the parts are joined."""
    return pytest.param(error, call, "".join(message), id=message[0][:40])


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        case(
            TypeError,
            lambda: convert_boxes([1.0, 2.0, 3.0, 4.0]),
            "boxes must be a tensor, got [1.0, 2.0, 3.0, 4.0] (list); convert it with torch.as_tensor(boxes, ",
            "dtype=torch.float32)",
        ),
        case(
            TypeError,
            lambda: convert_boxes(np.zeros((3, 4))),
            "boxes must be a tensor, got a float64 ndarray of shape (3, 4); convert",
        ),
        case(TypeError, lambda: convert_boxes(None), "boxes must be a tensor, got None (NoneType)"),
        case(
            TypeError,
            lambda: convert_boxes(BOX.to(torch.complex64)),
            "boxes must hold real numbers (a floating-point or integer dtype), got a torch.complex64 tensor of ",
            "shape (4,)",
        ),
        case(TypeError, lambda: invert_boxes(BOX.bool()), "boxes must hold real numbers"),
        case(
            ValueError,
            lambda: boxes_to_theta(torch.zeros(7, 5)),
            "boxes must have 2 (signals), 4 (images) or 6 (volumes) numbers in its last dimension, got a ",
            "torch.float32 tensor of shape (7, 5); an index in front is no part of a box: pass boxes[..., 1:]; ",
            "rotated boxes (cx, cy, w, h, angle) are for crop_rotated",
        ),
        case(
            ValueError,
            lambda: boxes_to_theta(torch.zeros(7, 3)),
            "numbers in its last dimension, got a torch.float32 tensor of shape (7, 3)",
        ),
        case(ValueError, lambda: convert_boxes(torch.tensor(1.0)), "got a torch.float32 tensor of shape ()"),
        case(
            ValueError,
            lambda: _check.boxes(torch.zeros(3, 6), axes=2),
            "boxes must have 4 numbers in its last dimension (2 spatial axes), got a torch.float32 tensor of ",
            "shape (3, 6)",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, from_format="xyhw"),
            "from_format must be one of 'xyxy', 'xywh', 'cxcywh', got 'xyhw'; did you mean 'xywh'?",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, to_format="YOLO"),
            "to_format must be one of 'xyxy', 'xywh', 'cxcywh', got 'YOLO'; did you mean 'cxcywh'?",
        ),
        case(
            ValueError,
            lambda: map_boxes(BOX[None], BOX, 4, inner_format="XYXY"),
            "inner_format must be one of 'xyxy', 'xywh', 'cxcywh', got 'XYXY'; did you mean 'xyxy'?",
        ),
        case(
            ValueError,
            lambda: invert_boxes(BOX, 8, box_format="?"),
            "box_format must be one of 'xyxy', 'xywh', 'cxcywh', got '?'",
        ),
        case(
            TypeError,
            lambda: invert_boxes(BOX, 8, box_format=4),
            "box_format must be one of 'xyxy', 'xywh', 'cxcywh', got 4 (int)",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, 8, from_coords="pixels"),
            "from_coords must be one of 'pixel', 'unit', 'normalized', got 'pixels'; did you mean 'pixel'?",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, 8, to_coords="normalised"),
            "to_coords must be one of 'pixel', 'unit', 'normalized', got 'normalised'; did you mean 'normalized'?",
        ),
        case(
            ValueError,
            lambda: theta_to_boxes(THETA, 8, coords="relative"),
            "coords must be one of 'pixel', 'unit', 'normalized', got 'relative'; did you mean 'unit'?",
        ),
        case(
            ValueError,
            lambda: map_points(POINTS, BOX, 4, to="images"),
            "to must be one of 'image', 'crop', got 'images'; did you mean 'image'?",
        ),
        case(
            TypeError,
            lambda: boxes_to_theta(BOX, 8, align_corners=None),
            "align_corners must be True or False, got None (NoneType)",
        ),
        case(
            TypeError,
            lambda: map_points(POINTS, BOX, 4, align_corners=1),
            "align_corners must be True or False, got 1 (int)",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, to_coords="unit"),
            "image_size is needed to turn pixel coordinates into unit ones, got None; pass (h, w) of the image, ",
            "for example images.shape[-2:]",
        ),
        case(
            ValueError,
            lambda: boxes_to_theta(torch.zeros(6)),
            "image_size is needed to turn pixel coordinates into normalized ones, got None; pass (d, h, w) of ",
            "the image",
        ),
        case(
            ValueError,
            lambda: theta_to_boxes(THETA),
            "image_size is needed to turn normalized coordinates into pixel ones",
        ),
        case(
            ValueError,
            lambda: invert_boxes(BOX),
            'image_size is needed for boxes with coords="pixel" (the default), got None',
        ),
        case(
            ValueError,
            lambda: map_points(POINTS, BOX, 4, coords="unit"),
            "image_size is needed to turn unit coordinates into pixel ones",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, (3, 20, 30), to_coords="unit"),
            "image_size must be an int or (h, w), as the boxes have 4 numbers (2 spatial axes), got (3, 20, 30) ",
            "(tuple) of length 3; of a tensor's shape pass the spatial part, shape[-2:]",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX[:2], (3, 20), to_coords="unit"),
            "image_size must be an int or (w,), as the boxes have 2 numbers (1 spatial axis)",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, (20, 1), to_coords="unit", align_corners=True),
            "image_size must be at least 2 along every axis to turn pixel into unit coordinates with ",
            "align_corners=True, got (20, 1) (tuple)",
        ),
        case(
            ValueError,
            lambda: convert_boxes(BOX, 0, to_coords="unit"),
            "image_size must be at least 1 along every axis, got 0 (int)",
        ),
        case(
            ValueError,
            lambda: map_points(POINTS, BOX, (4, -1)),
            "size must be at least 1 along every axis, got (4, -1) (tuple)",
        ),
        case(
            TypeError,
            lambda: map_points(POINTS, BOX, (4, 2.5)),
            "size must be an int or (h, w) of whole numbers, got (4, 2.5) (tuple), where 2.5 (float) is not an ",
            "int",
        ),
        case(TypeError, lambda: map_points(POINTS, BOX, 2.5), "size must be an int or (h, w), got 2.5 (float)"),
        case(TypeError, lambda: map_points(POINTS, BOX, True), "size must be an int or (h, w), got True (bool)"),
        case(
            TypeError,
            lambda: map_points(POINTS, BOX, torch.tensor(4)),
            "size must be an int or (h, w), got a torch.int64 tensor of shape ()",
        ),
        case(ValueError, lambda: map_points(POINTS, BOX, (4,)), "got (4,) (tuple) of length 1"),
        case(TypeError, lambda: map_points([[1.0, 2.0]], BOX, 4), "points must be a tensor, got [[1.0, 2.0]] (list)"),
        case(
            ValueError,
            lambda: map_points(POINTS[0], BOX, 4),
            "points must have shape (..., P, 2), as the boxes have 4 numbers, got a torch.float32 tensor of ",
            "shape (2,); a single one is points[None]",
        ),
        case(
            ValueError,
            lambda: map_points(torch.zeros(5, 3), BOX, 4),
            "points must have shape (..., P, 2), as the boxes have 4 numbers, got a torch.float32 tensor of ",
            "shape (5, 3)",
        ),
        case(
            ValueError,
            lambda: map_points(torch.zeros(3, 5, 2), torch.zeros(2, 4), 4),
            "the leading dimensions of points (..., P, 2) and boxes (..., 4) must broadcast, got shapes (3, 5, ",
            "2) and (2, 4)",
        ),
        case(
            ValueError,
            lambda: map_points(POINTS.to("meta"), BOX, 4),
            "points and boxes must be on the same device, got meta and cpu",
        ),
        case(ValueError, lambda: map_boxes(torch.zeros(5, 2), BOX, 4), "inner must have shape (..., P, 4)"),
        case(TypeError, lambda: theta_to_boxes(THETA.tolist(), 8), "theta must be a tensor"),
        case(
            ValueError,
            lambda: theta_to_boxes(torch.eye(3), 8),
            "theta must have shape (..., 1, 2), (..., 2, 3) or (..., 3, 4), got a torch.float32 tensor of shape ",
            "(3, 3); of a homogeneous matrix pass theta[..., :-1, :]",
        ),
        case(
            ValueError,
            lambda: theta_to_boxes(torch.zeros(6), 8),
            "theta must have shape (..., 1, 2), (..., 2, 3) or (..., 3, 4), got a torch.float32 tensor of shape ",
            "(6,)",
        ),
        case(
            ValueError,
            lambda: theta_to_boxes(skewed(0, 1, 0.25), 8),
            "theta must have no rotation or skew to be a box: entries off the diagonal must be 0, got theta[1, ",
            "0, 1] = 0.25 (1 in all are not 0) in a torch.float32 tensor of shape (2, 2, 3)",
        ),
        case(ValueError, lambda: theta_to_boxes(skewed(1, 0, 1e-5), 8), "got theta[1, 1, 0] = 1e-05"),
        case(ValueError, lambda: theta_to_boxes(skewed(1, 0, float("nan")), 8), "got theta[1, 1, 0] = nan"),
        case(ValueError, lambda: theta_to_boxes(torch.tensor([[2, 1, 0], [0, 2, 0]]), 8), "got theta[0, 1] = 1 "),
    ],
)
def test_errors(error, call, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_sizes_of_every_kind():
    expected = (3, 5)
    for given_size in [(3, 5), [3, 5], torch.Size([3, 5]), (np.int64(3), np.int32(5))]:
        got = _check.size(given_size, 2)
        assert got == expected
        assert all(type(n) is int for n in got)
    assert _check.size(np.int64(4), 3) == (4, 4, 4)


def test_unneeded_image_sizes_are_still_checked():
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        convert_boxes(BOX, (0, 4))


def test_unit_and_normalized_need_no_image():
    assert convert_boxes(f64(0, 0.5, 1, 0.75), from_coords="unit", to_coords="normalized").tolist() == [-1, 0, 1, 0.5]


def test_theta_of_rounding_and_of_nan_passes():
    assert theta_to_boxes(skewed(0, 1, 1e-7), 8).isfinite().all()
    assert theta_to_boxes(THETA * float("nan"), 8).isnan().all()


def test_theta_is_looked_at_only_where_that_is_free():
    """Under a transform and on another device the entries off the diagonal are not read."""
    theta = skewed(0, 1, 0.25)
    plain = theta_to_boxes(torch.stack([THETA, THETA]), 8)
    assert torch.equal(torch.func.vmap(lambda t: theta_to_boxes(t, 8))(theta), plain)
    assert theta_to_boxes(theta.to("meta"), 8).shape == (2, 4)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(theta)
        assert theta_to_boxes(fake, 8).shape == (2, 4)
    assert theta_to_boxes(fake, 8).shape == (2, 4)
