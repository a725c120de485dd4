"""Parity with `affine_grid` + `grid_sample`, the recipe that this package replaces, and what happens at its kinks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from diffcrop import convert_boxes, crop
from helpers import FILTERS, PADDINGS, options, rand, random_boxes

SHAPE, SIZE = (7, 9), (5, 6)


def recipe(images, boxes, size, **kwargs):
    (x0, y0, x1, y1), zero = boxes.unbind(-1), torch.zeros_like(boxes[:, 0])
    rows = [(x1 - x0) / 2, zero, (x1 + x0) / 2], [zero, (y1 - y0) / 2, (y1 + y0) / 2]
    theta = torch.stack([torch.stack(row, -1) for row in rows], 1)
    grid = affine_grid(theta, (boxes.shape[0], images.shape[1], *size), kwargs["align_corners"])
    return grid_sample(images, grid, **kwargs)


def assert_same(actual, expected):
    """To 1e-12 of the largest expected value."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * scale)


def some_boxes(mode, padding_mode, align_corners, generator):
    """Normalized boxes in general position: inside, across, outside, mirrored (all by chance), far and tiny."""
    where = {"mode": mode, "antialias": False, "padding_mode": padding_mode, "align_corners": align_corners}
    boxes = torch.cat(
        [
            random_boxes(40, SIZE, SHAPE, generator, margin=1e-3, **where),
            random_boxes(10, SIZE, SHAPE, generator, margin=1e-3, reduction=1e-2, **where),
            random_boxes(10, SIZE, SHAPE, generator, margin=1e-3, reduction=6.0, **where),
            random_boxes(10, SIZE, SHAPE, generator, margin=1e-3, **where) + 64.0,
        ]
    )
    mirrored = boxes[:, 2:] < boxes[:, :2]
    assert mirrored.any()
    assert not mirrored.all()
    return convert_boxes(boxes, SHAPE, to_coords="normalized", align_corners=align_corners)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_values_and_both_gradients(impl, mode, padding_mode, align_corners, generator):
    boxes = some_boxes(mode, padding_mode, align_corners, generator)
    images = rand(1, 2, *SHAPE, generator=generator).expand(len(boxes), -1, -1, -1).contiguous()
    cotangent = rand(len(boxes), 2, *SIZE, generator=generator) - 0.5
    same = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    if mode == "nearest":
        assert torch.equal(
            crop(images, boxes, SIZE, coords="normalized", impl=impl, **same), recipe(images, boxes, SIZE, **same)
        )
        return

    results = []
    for function in (recipe, lambda i, b, s, **o: crop(i, b, s, coords="normalized", antialias=False, impl=impl, **o)):
        inputs = images.clone().requires_grad_(), boxes.clone().requires_grad_()
        value = function(*inputs, SIZE, **same)
        results.append((value.detach(), *torch.autograd.grad(value, inputs, cotangent)))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_same(actual, expected)


# --- at kinks, where most users start ---------------------------------------------------------------------------------

# Image 12 x 24. Whole image 1:1, 2:1 and 3:1, and an integer box inside, each at an integer reduction; x0, y0, x1, y1.
KINKS = {
    "identity": ((0, 0, 24, 12), (12, 24)),
    "integer box": ((3, 2, 11, 7), (5, 8)),
    "across the border": ((-3, -2, 5, 7), (9, 8)),
    "2:1": ((0, 0, 24, 12), (6, 12)),
    "3:1": ((0, 0, 24, 12), (4, 8)),
}
H, W = 12, 24


def right_hand(function, eps=1e-4):
    """The one-sided difference of second order."""
    f0, f1, f2 = (function(i * eps) for i in range(3))
    return (-3 * f0 + 4 * f1 - f2) / (2 * eps)


def loss_along(impl, generator, box, size, keywords):
    """(d box -> <cotangent, crop>), and that loss's gradient by the box."""
    image, cotangent = rand(2, H, W, generator=generator), rand(2, *size, generator=generator)
    box = torch.tensor(box, dtype=torch.float64, requires_grad=True)

    def loss(step):
        return (cotangent * crop(image, box + step, size, impl=impl, **keywords)).sum()

    (gradient,) = torch.autograd.grad(loss(torch.zeros(4, dtype=torch.float64)), box)
    return lambda step: loss(step).detach(), gradient


@pytest.mark.parametrize(
    ("padding_mode", "name"),
    # With "renormalize" the crop jumps where a centre leaves the image: no derivative to compare.
    [pair for pair in itertools.product(PADDINGS, KINKS) if pair != ("renormalize", "across the border")],
)
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_kink_derivative_is_right_hand(impl, mode, antialias, padding_mode, name, generator):
    box, size = KINKS[name]
    loss, gradient = loss_along(impl, generator, box, size, options(mode, antialias, padding_mode))
    directions = {"x": [1, 0, 1, 0], "y": [0, 1, 0, 1]}
    if not antialias:  # every position moves right with each corner
        directions |= {"x0": [1, 0, 0, 0], "y0": [0, 1, 0, 0], "x1": [0, 0, 1, 0], "y1": [0, 0, 0, 1]}
    elif name in ("identity", "integer box", "across the border"):  # moving lo right keeps s <= 1, where width is 1
        directions |= {"x0": [1, 0, 0, 0], "y0": [0, 1, 0, 0]}
    assert gradient.abs().max() > 0.01  # "zero by accident" is what autograd makes of abs, clamp and where
    for direction in directions.values():
        step = torch.tensor(direction, dtype=torch.float64)
        expected = right_hand(lambda t, step=step: loss(t * step))
        actual = (gradient * step).sum()
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["identity", "3:1"])
@pytest.mark.parametrize("mode", ["bilinear", "area"])
def test_those_are_kinks(impl, mode, name, generator):
    """Without this the test above would pass for a two-sided derivative too."""
    box, size = KINKS[name]
    image, box = rand(2, H, W, generator=generator), torch.tensor(box, dtype=torch.float64)
    step = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    right, left = (
        right_hand(lambda t, way=way: crop(image, box + way * t * step, size, mode=mode, impl=impl)) * way
        for way in (1, -1)
    )
    assert (left - right).abs().max() > 0.03


def nice_axes(pixels, n, coords):
    """Axes that put positions on integers, or a rounding beside them: fractions of the image, and an ulp off whole."""
    for r in (0.5, 1, 2, 3):
        if coords == "pixel":
            for whole, ulp in itertools.product((-1, 0, 1, 5), (0, 1e-17, 2**-54, 2**-53, 2**-52)):
                for lo in (whole + ulp, whole - ulp):
                    yield lo, lo + r * n
        else:
            for m in (3, 5, 7, pixels):
                for a in range(-m, 2 * m, 1 + m // 4):
                    yield a / m, a / m + r * n / pixels


@pytest.mark.parametrize("coords", ["pixel", "unit", "normalized"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "reflection", "circular"])
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_no_tap_counts_twice_an_ulp_off_a_kink(impl, mode, antialias, padding_mode, align_corners, coords, generator):
    """A crop of a constant does not depend on the box; a tap in two pieces of a filter, or in none, would show."""
    pixels, size = 21, (7, 3)
    x, y = (torch.tensor(list(nice_axes(pixels, n, coords)), dtype=torch.float64) for n in reversed(size))
    boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], -1)
    boxes = (2 * boxes - 1 if coords == "normalized" else boxes).requires_grad_()
    image = torch.ones(1, pixels, pixels, dtype=torch.float64)
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, coords=coords)
    value = crop(image, boxes, size, impl=impl, **keywords)
    torch.testing.assert_close(value, torch.ones_like(value), rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(value, boxes, rand(*value.shape, generator=generator) - 0.5)
    assert float(gradient.abs().max()) <= 1e-10


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
def test_every_output_moves_along_a_ramp_an_ulp_off_a_kink(impl, mode, align_corners):
    """Where value = column, moving the box by 1 raises each output by 1: a wrong neighbour of an edge would show."""
    n, axes = 3, []
    for r, whole, ulps in itertools.product((0.5, 1, 2, 3), (8, 16), range(-8, 9)):
        first = 0.0 if align_corners else 0.5 - 0.5 * r  # puts the first position on `whole`, but for the ulps
        lo = whole + first + ulps * 2.0**-50
        axes.append((lo, 0.0, lo + r * (n - align_corners), 1.0))
    boxes = torch.tensor(axes, dtype=torch.float64, requires_grad=True)
    ramp = torch.arange(40, dtype=torch.float64).expand(1, 1, 40)
    value = crop(ramp, boxes, (1, n), mode=mode, align_corners=align_corners, impl=impl)
    for j in range(n):
        (gradient,) = torch.autograd.grad(value[..., j].sum(), boxes, retain_graph=True)
        translation = gradient[:, 0] + gradient[:, 2]
        torch.testing.assert_close(translation, torch.ones_like(translation), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection", "circular"])
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_just_left_of_the_first_pixel(impl, mode, antialias, padding_mode, generator):
    """1 - 2^-54 rounds to 1: all breakpoints must agree on a side, and an ulp off a pixel counts as on it."""
    image = rand(1, 9, 9, generator=generator)
    boxes = torch.tensor([[x, 2.3, x + 1, 5.3] for x in (-(2**-54), 0.0)], dtype=torch.float64, requires_grad=True)
    value = crop(image, boxes, (3, 1), impl=impl, **options(mode, antialias, padding_mode))
    (gradient,) = torch.autograd.grad(value.sum(), boxes)
    ulp, on = gradient[:, 0] + gradient[:, 2]
    torch.testing.assert_close(ulp, on, rtol=0, atol=1e-10)
