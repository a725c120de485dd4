"""`crop_with_jacobian` against difference quotients and autograd, and `coverage` against its definition."""

from __future__ import annotations

import itertools

import pytest
import torch

from diffcrop import convert_boxes, coverage, crop, crop_with_jacobian
from helpers import FILTERS, MODES, PADDINGS, options, rand, random_boxes

f64 = torch.float64
SHAPE, SIZE = (7, 9), (3, 4)
FORMATS, COORDS = ("xyxy", "xywh", "cxcywh"), ("pixel", "unit", "normalized")


def quotient(function, boxes, step):
    """d function / d box by central differences, (..., 2A), each box number in a step of its own size."""
    columns = []
    for i in range(boxes.shape[-1]):
        h = torch.zeros_like(boxes)
        h[..., i] = step[i]
        columns.append((function(boxes + h) - function(boxes - h)) / (2 * step[i]))
    return torch.stack(columns, -1)


def smooth_boxes(count, generator, keywords):
    where = {
        name: keywords[name] for name in ("mode", "antialias", "padding_mode", "align_corners") if name in keywords
    }
    return random_boxes(count, SIZE, SHAPE, generator, **where)


def by_autograd(function, boxes):
    """Rows (..., 2A) for one box, by a backward for every output."""
    boxes = boxes.detach().requires_grad_()
    out = function(boxes)
    rows = [torch.autograd.grad(o, boxes, retain_graph=True)[0] for o in out.reshape(-1)]
    return torch.stack(rows).reshape(*out.shape, -1)


# --- crop_with_jacobian -----------------------------------------------------------------------------------------------

GRID = [
    (mode, antialias, padding, align_corners)
    for ((mode, antialias), padding), align_corners in zip(
        itertools.product(FILTERS, PADDINGS), itertools.cycle((False, True, True, False, False)), strict=False
    )
]


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_difference_quotients(impl, mode, antialias, padding_mode, align_corners, generator):
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners)
    image, boxes = rand(2, *SHAPE, generator=generator), smooth_boxes(3, generator, keywords)
    value, jacobian = crop_with_jacobian(image, boxes, SIZE, impl=impl, **keywords)
    assert torch.equal(value, crop(image, boxes, SIZE, impl=impl, **keywords))
    expected = quotient(lambda b: crop(image, b, SIZE, impl=impl, **keywords), boxes, [1e-6] * 4)
    torch.testing.assert_close(jacobian, expected, rtol=1e-6, atol=1e-8)
    assert (jacobian.abs().amax((1, 2, 3)) > 1e-4).any()


@pytest.mark.parametrize(("box_format", "coords"), list(itertools.product(FORMATS, COORDS)))
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "constant", "renormalize"])
def test_in_the_format_and_coordinates_of_the_box(impl, box_format, coords, align_corners, padding_mode, generator):
    kind = {"align_corners": align_corners, "box_format": box_format, "coords": coords}
    keywords = options("bicubic", True, padding_mode, **kind)
    image, pixel = rand(2, *SHAPE, generator=generator), smooth_boxes(1, generator, keywords)
    pixel = torch.cat([pixel, torch.tensor([[1.37, 0.71, 6.12, 5.23]], dtype=f64)])  # one that is inside
    boxes = convert_boxes(pixel, SHAPE, to_format=box_format, to_coords=coords, align_corners=align_corners)
    jacobian = crop_with_jacobian(image, boxes, SIZE, impl=impl, **keywords).jacobian

    def function(b):
        return crop(image, b, SIZE, impl=impl, **keywords)

    unit = {"pixel": (1, 1), "unit": SHAPE[::-1], "normalized": [n / 2 for n in SHAPE[::-1]]}[coords]
    torch.testing.assert_close(jacobian, quotient(function, boxes, [1e-6 / u for u in unit] * 2), rtol=1e-6, atol=1e-6)
    exact = torch.stack([by_autograd(function, b) for b in boxes])
    torch.testing.assert_close(jacobian, exact, rtol=1e-11, atol=1e-11)
    if (box_format, coords) != ("xyxy", "pixel"):
        pixel_corners = options("bicubic", True, padding_mode, align_corners=align_corners)
        in_pixels = crop_with_jacobian(image, pixel, SIZE, impl=impl, **pixel_corners).jacobian
        assert (jacobian - in_pixels).abs().max() > 1e-3


FILLS = {"number": 0.75, "per channel": (0.75, -1.0, 0.25), "tensor": torch.tensor([0.75, -1.0, 0.25])}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
def test_a_fill_moves_with_the_box(impl, fill, generator):
    """Where the box crosses the edge the constant enters as it leaves: the jacobian of fill + W (image - fill)."""
    image = rand(3, *SHAPE, generator=generator)
    keywords = {"padding_mode": "constant", "fill": fill}
    boxes = torch.tensor([[-2.3, 1.2, 4.9, 9.1], [20.0, 20.0, 30.0, 30.0]], dtype=f64)
    jacobian = crop_with_jacobian(image, boxes, SIZE, impl=impl, **keywords).jacobian
    torch.testing.assert_close(
        jacobian, quotient(lambda b: crop(image, b, SIZE, impl=impl, **keywords), boxes, [1e-6] * 4), rtol=0, atol=1e-8
    )
    zeros = crop_with_jacobian(image, boxes, SIZE, impl=impl, padding_mode="zeros").jacobian
    assert (jacobian - zeros)[0].abs().max() > 0.01
    assert torch.equal(jacobian[1], torch.zeros_like(jacobian[1]))  # nothing but fill there


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int16]
)
@pytest.mark.parametrize("box_format", ["xyxy", "cxcywh"])
def test_layouts_and_dtypes(impl, layout, dtype, box_format, generator):
    """The crop's dtype, and as exact as it allows: sums in float32 or better, rounded once."""
    images = (rand(2, 3, *SHAPE, generator=generator) * 200).to(dtype)
    given = {
        "contiguous": images,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "strided": images.repeat_interleave(2, -1)[..., ::2].flip(1),
    }[layout]
    images = given.contiguous()
    boxes = convert_boxes(smooth_boxes(2, generator, {"mode": "bicubic"}), SHAPE, to_format=box_format)
    keywords = {"mode": "bicubic", "box_format": box_format, "impl": impl}
    value, jacobian = crop_with_jacobian(given, boxes, SIZE, **keywords)
    assert torch.equal(value, crop(given, boxes, SIZE, **keywords))
    assert jacobian.dtype == value.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert jacobian.shape == (*value.shape, 4)
    exact = crop_with_jacobian(images.double(), boxes, SIZE, **keywords).jacobian
    eps = torch.finfo(jacobian.dtype).eps
    # Layouts add the taps in different orders.
    torch.testing.assert_close(jacobian.double(), exact, rtol=16 * eps, atol=200 * max(eps, 2e-6 if eps > 1e-10 else 0))


def test_boxes_in_half_precision(impl, generator):
    image = rand(2, *SHAPE, generator=generator)
    boxes = torch.tensor([1.25, 0.75, 6.5, 5.25], dtype=torch.float16)
    for box_format in FORMATS:
        got = crop_with_jacobian(image, boxes, SIZE, box_format=box_format, impl=impl)
        want = crop_with_jacobian(image, boxes.double(), SIZE, box_format=box_format, impl=impl)
        assert torch.equal(got.crop, want.crop)
        assert torch.equal(got.jacobian, want.jacobian)


def test_bad_boxes_are_nan_alone(impl, generator):
    """A box that is not finite poisons its own jacobian and no other."""
    image, boxes = rand(2, *SHAPE, generator=generator), torch.tensor([[1.2, 0.7, 6.3, 5.2]] * 3, dtype=f64)
    boxes[1, 2] = float("nan")
    result = crop_with_jacobian(image, boxes, SIZE, impl=impl)
    sound = crop_with_jacobian(image, boxes[0], SIZE, impl=impl)
    for r in (0, 2):
        torch.testing.assert_close(result.jacobian[r], sound.jacobian, rtol=0, atol=1e-13)
        torch.testing.assert_close(result.crop[r], sound.crop, rtol=0, atol=1e-13)
    assert result.crop[1].isnan().all()
    assert result.jacobian[1].isnan().all()


@pytest.mark.parametrize("requires", ["image", "box", "both"])
def test_both_results_are_differentiable(impl, requires, generator):
    """d jacobian / d box is the second derivative of the crop; d jacobian / d image is linear."""
    keywords = {"mode": "bicubic", "impl": impl}
    image, box = rand(2, *SHAPE, generator=generator), smooth_boxes(1, generator, keywords)[0]
    image.requires_grad_(requires != "box")
    box.requires_grad_(requires != "image")
    weight = rand(2, *SIZE, 4, generator=generator)
    result = crop_with_jacobian(image, box, SIZE, **keywords)
    assert result.crop.requires_grad
    assert result.jacobian.requires_grad
    total = (result.jacobian * weight).sum() + result.crop.square().sum()

    def value(i, b):
        got = crop_with_jacobian(i.detach(), b.detach(), SIZE, **keywords)
        return float((got.jacobian * weight).sum() + got.crop.square().sum())

    for tensor in (image, box):
        if not tensor.requires_grad:
            continue
        (grad,) = torch.autograd.grad(total, tensor, retain_graph=True)
        direction = rand(*tensor.shape, generator=generator) - 0.5
        ahead, behind = ([t + s * direction if t is tensor else t for t in (image, box)] for s in (1e-6, -1e-6))
        expected = (value(*ahead) - value(*behind)) / 2e-6
        assert float((grad * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert (grad != 0).any()


def test_gauss_newton_finds_a_box(impl):
    """What the jacobian is for: a handful of steps to a box that is 10 % off, to rounding."""
    y, x = torch.meshgrid(torch.arange(40, dtype=f64), torch.arange(50, dtype=f64), indexing="ij")
    image = torch.stack([torch.sin(x / 9) * torch.cos(y / 7), torch.cos(x / 11 + y / 13)])
    truth = torch.tensor([8.3, 6.1, 38.4, 30.2], dtype=f64)
    target = crop(image, truth, 8, mode="bicubic", impl=impl)
    centre = convert_boxes(truth * torch.tensor([0.9, 1.1, 1.04, 0.95], dtype=f64), (40, 50), to_format="cxcywh")
    for _ in range(8):
        value, jacobian = crop_with_jacobian(image, centre, 8, mode="bicubic", box_format="cxcywh", impl=impl)
        step = torch.linalg.lstsq(jacobian.reshape(-1, 4), (target - value).reshape(-1, 1)).solution
        centre = centre + step[:, 0]
    found = convert_boxes(centre, (40, 50), from_format="cxcywh")
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)


# --- coverage ---------------------------------------------------------------------------------------------------------

ALL = [*FILTERS, ("nearest", True)]


@pytest.mark.parametrize(("mode", "antialias"), ALL)
@pytest.mark.parametrize("align_corners", [False, True])
def test_coverage_is_the_crop_of_ones_among_zeros(impl, mode, antialias, align_corners, generator):
    keywords = {"mode": mode, "antialias": antialias, "align_corners": align_corners, "impl": impl}
    boxes = torch.tensor([
        [-2.3, 1.2, 4.9, 9.1], [-8.0, -7.0, 17.0, 15.0], [1.7, 0.2, 5.1, 3.3], [9.6, 6.1, -3.0, -2.2], [30, 1, 40, 5],
    ], dtype=f64)  # fmt: skip
    result = coverage(boxes, SIZE, SHAPE, **keywords)
    # An image that really has the zeros around it: the same boxes, moved, in a canvas that no tap leaves.
    margin = 100
    canvas = torch.zeros(1, SHAPE[0] + 2 * margin, SHAPE[1] + 2 * margin, dtype=f64)
    canvas[:, margin:-margin, margin:-margin] = 1
    expected = crop(canvas, boxes + margin, SIZE, **keywords)[:, 0]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)
    # By its other definition: the share that a fill does not have.
    filled = crop(torch.zeros(1, *SHAPE, dtype=f64), boxes, SIZE, padding_mode="constant", fill=1.0, **keywords)[:, 0]
    torch.testing.assert_close(result, 1 - filled, rtol=0, atol=1e-13)
    assert torch.equal(result[-1], torch.zeros_like(result[-1]))
    assert (result[0] > 0.5).any()
    assert (result[0] < 0.5).any()


@pytest.mark.parametrize("mode", [*MODES, "nearest"])
def test_coverage_inside_is_one(impl, mode):
    result = coverage(torch.tensor([40.0, 50, 60, 70], dtype=f64), 5, 100, mode=mode, impl=impl)
    torch.testing.assert_close(result, torch.ones_like(result), rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", ["bilinear", "area", "nearest", "gaussian"])
def test_coverage_is_a_share(impl, mode, generator):
    """In [0, 1] for the filters without negative lobes, wherever the box is."""
    boxes = rand(50, 4, generator=generator) * 40 - 20
    result = coverage(boxes, SIZE, SHAPE, mode=mode, impl=impl)
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-15
    assert ((result > 0.01) & (result < 0.99)).any() or mode == "nearest"


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_coverage_is_differentiable(impl, mode, antialias, generator):
    keywords = {"mode": mode, "antialias": antialias, "impl": impl}
    boxes = torch.tensor([[-2.3, 1.2, 4.9, 9.15], [11.37, 3.3, 5.22, -4.1]], dtype=f64)
    assert torch.autograd.gradcheck(lambda b: coverage(b, SIZE, SHAPE, **keywords), boxes.requires_grad_())
    (grad,) = torch.autograd.grad(coverage(boxes, SIZE, SHAPE, **keywords).sum(), boxes)
    assert (grad != 0).all(1).any()


@pytest.mark.parametrize(("box_format", "coords"), list(itertools.product(FORMATS, COORDS)))
@pytest.mark.parametrize("align_corners", [False, True])
def test_coverage_reads_every_box(impl, box_format, coords, align_corners):
    pixel = torch.tensor([-2.3, 1.2, 4.9, 9.1], dtype=f64)
    kind = {"align_corners": align_corners, "impl": impl}
    expected = coverage(pixel, SIZE, SHAPE, **kind)
    boxes = convert_boxes(pixel, SHAPE, to_format=box_format, to_coords=coords, align_corners=align_corners)
    got = coverage(boxes, SIZE, SHAPE, box_format=box_format, coords=coords, **kind)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("given", "expected"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32), (torch.int64, torch.float64), (torch.int32, torch.float32),
])  # fmt: skip
def test_coverage_has_the_dtype_of_the_boxes(impl, given, expected):
    boxes = torch.tensor([-2, 1, 5, 9])
    result = coverage(boxes.to(given), SIZE, SHAPE, impl=impl)
    assert result.dtype == expected
    torch.testing.assert_close(result.double(), coverage(boxes.double(), SIZE, SHAPE, impl=impl), rtol=0, atol=1e-6)


def test_coverage_by_hand(impl):
    """Four pixels, two outside on the left; halfway for one that is half outside; mirrored with the box."""
    boxes = torch.tensor([[-2.0, 1, 2, 2], [-1.5, 1, 2.5, 2], [2, 1, -2, 2]])
    result = coverage(boxes, (1, 4), 4, impl=impl)[:, 0]
    assert result.tolist() == [[0, 0, 1, 1], [0, 0.5, 1, 1], [1, 1, 0, 0]]
    volume = coverage(torch.tensor([0.0, 0, -1, 2, 2, 1]), 2, 2)
    assert volume.tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]


def test_a_masked_loss_does_not_see_the_outside(impl, generator):
    """Weighted by coverage, and renormalised, what lies outside the image tells nothing to value or gradient."""
    box = torch.tensor([-3.3, 1.2, 4.9, 9.1], dtype=f64, requires_grad=True)
    image = rand(1, *SHAPE, generator=generator) + 0.5
    mask = coverage(box, SIZE, SHAPE, impl=impl)
    clear = mask > 0.999
    assert clear.any()
    assert not clear.all()

    def masked(padding_mode, **more):
        value = crop(image, box, SIZE, padding_mode=padding_mode, impl=impl, **more)[0]
        (grad,) = torch.autograd.grad((value * clear).square().sum(), box)
        return (value * clear).detach(), grad

    zeros, filled = masked("zeros"), masked("constant", fill=9.0)
    for one, other in zip(zeros, filled, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    whole = crop(image, box, SIZE, padding_mode="constant", fill=9.0, impl=impl)
    assert (whole - crop(image, box, SIZE, padding_mode="zeros", impl=impl)).abs().max() > 1
    # crop with zeros = coverage * crop of the inside alone, wherever the filter sees the image.
    inside = crop(image, box, SIZE, padding_mode="renormalize", impl=impl)[0]
    seen = inside != 0
    assert seen.any()
    product = (mask * inside)[seen]
    torch.testing.assert_close(
        product, crop(image, box, SIZE, padding_mode="zeros", impl=impl)[0][seen], rtol=0, atol=1e-13
    )
