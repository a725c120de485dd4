"""`crop_rotated`, `crop_quad` and `warp`: what must hold of their values, whatever computes them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffcrop
from diffcrop import (
    crop,
    crop_quad,
    crop_rotated,
    quads_to_matrix,
    rotated_to_matrix,
    rotated_to_quads,
    warp,
    warp_points,
)
from diffcrop._options import WARP_MODES, WARP_PADDING_MODES
from helpers import options, rand, random_boxes
from test_placement import centres_of, some_boxes, some_quads

f64 = torch.float64
SHAPE, SIZE = (11, 13), (5, 7)
IMPLEMENTATIONS = [n for n, reason in diffcrop.implementations().items() if reason is None and n != "triton"]


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def same(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


def whole(shape):
    """The whole image three times over: as a rotated box, corners and a matrix."""
    h, w = shape
    return {
        crop_rotated: torch.tensor([w / 2, h / 2, w, h, 0.0]),
        crop_quad: torch.tensor([[0.0, 0.0], [w, 0.0], [w, h], [0.0, h]]),
        warp: torch.eye(3)[:2],
    }


def ways(boxes, size, **convention):
    """The same rotated boxes, three times over."""
    return {
        crop_rotated: boxes,
        crop_quad: rotated_to_quads(boxes),
        warp: rotated_to_matrix(boxes, size, **convention),
    }


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", WARP_MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.int32])
def test_the_identity_is_exact(impl, mode, antialias, dtype, generator):
    if mode == "area" and not antialias:
        pytest.skip("not a filter")
    for shape in (SHAPE, (1, 1), (49, 3)):
        image = (rand(2, *shape, generator=generator) * 200).to(dtype)
        for function, place in whole(shape).items():
            found = function(image, place, shape, mode=mode, antialias=antialias, impl=impl)
            assert found.equal(image if mode == "nearest" else image.to(found.dtype))
            assert found.dtype == (dtype if dtype.is_floating_point or mode == "nearest" else torch.float32)


@pytest.mark.parametrize("padding_mode", WARP_PADDING_MODES)
@pytest.mark.parametrize("mode", WARP_MODES)
def test_quarter_turns_are_exact(impl, mode, padding_mode, generator):
    """A box that is turned counter-clockwise shows the image turned clockwise."""
    h, w = SHAPE
    image = rand(2, *SHAPE, generator=generator)
    how = options(mode, True, padding_mode, impl=impl)
    for turns in range(-4, 5):
        sides = (w, h) if turns % 2 == 0 else (h, w)
        box = torch.tensor([w / 2, h / 2, *sides, 90.0 * turns])
        expected = torch.rot90(image, -turns, (1, 2))
        assert crop_rotated(image, box, sides[::-1], **how).equal(expected)
        assert crop_rotated(image, box * torch.tensor([1, 1, 1, 1, -1]), sides[::-1], clockwise=True, **how).equal(
            expected
        )
        assert crop_quad(image, rotated_to_quads(box), sides[::-1], **how).equal(expected)
        assert warp(image, rotated_to_matrix(box, sides[::-1]), sides[::-1], **how).equal(expected)


def test_radians_are_degrees(impl, generator):
    image, boxes = rand(2, *SHAPE, generator=generator), some_boxes(10, generator)
    radians = boxes * torch.tensor([1, 1, 1, 1, math.pi / 180], dtype=f64)
    found = crop_rotated(image, radians, SIZE, angle_unit="radians", antialias=False, impl=impl)
    same(found, crop_rotated(image, boxes, SIZE, antialias=False, impl=impl))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", WARP_MODES)
def test_negative_sides_mirror(impl, mode, align_corners, generator):
    """At any angle; so do the corners and the matrices that belong to them."""
    image = rand(2, *SHAPE, generator=generator)
    boxes = some_boxes(6, generator)
    boxes[:, :4] = boxes[:, :4].abs() + 0.3
    how = {"mode": mode, "align_corners": align_corners, "impl": impl, "padding_mode": "reflection"}
    if mode == "nearest":
        boxes = boxes.mul(16).round().add(0.3).div(16)  # no position on an edge of a pixel, where it would be chance
    upright = crop_rotated(image, boxes, SIZE, **how)
    for axis, sign in ((-1, [1, 1, -1, 1, 1]), (-2, [1, 1, 1, -1, 1])):
        turned = boxes * torch.tensor(sign, dtype=f64)
        for function, place in ways(turned, SIZE, align_corners=align_corners).items():
            same(function(image, place, SIZE, **how), upright.flip(axis), atol=1e-11)


# --- one another, and crop --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", WARP_MODES)
def test_the_three_agree(impl, mode, antialias, align_corners, generator):
    if mode == "area" and not antialias:
        pytest.skip("not a filter")
    image = rand(2, *SHAPE, generator=generator)
    how = {"mode": mode, "antialias": antialias, "align_corners": align_corners, "impl": impl}
    boxes = some_boxes(20, generator)
    boxes[:, 2:4] += boxes[:, 2:4].sign()  # a side of next to nothing has corners on a line
    one, two, three = (f(image, p, SIZE, **how) for f, p in ways(boxes, SIZE, align_corners=align_corners).items())
    same(two, one, atol=1e-10)
    same(three, one, atol=1e-10)
    quads = some_quads(20, generator)
    matrices = quads_to_matrix(quads, SIZE, align_corners=align_corners)
    same(warp(image, -3 * matrices, SIZE, **how), crop_quad(image, quads, SIZE, **how), atol=1e-10)
    assert crop_rotated(image, boxes, SIZE, **how).equal(one)


@pytest.mark.parametrize("coords", ["pixel", "unit", "normalized"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", WARP_PADDING_MODES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3", "nearest"])
def test_angle_0_is_a_crop(impl, mode, padding_mode, align_corners, coords, generator):
    """Without antialiasing, in value and both gradients."""
    images = rand(3, 2, *SHAPE, generator=generator)
    where = {"mode": mode, "antialias": False, "padding_mode": padding_mode, "align_corners": align_corners}
    convention = {"coords": coords, "align_corners": align_corners}
    for size in (SIZE, (1, 6), (4, 1)):
        corners = torch.cat([random_boxes(2, size, SHAPE, generator, margin=1e-3, **where) for _ in range(3)])
        boxes = diffcrop.convert_boxes(
            corners.view(3, 2, 4), SHAPE, to_format="cxcywh", to_coords=coords, align_corners=align_corners
        )
        how = options(mode, False, padding_mode, **convention, impl=impl)
        turned = torch.cat([boxes, torch.zeros(3, 2, 1, dtype=f64)], -1)
        if mode == "nearest":
            assert crop_rotated(images, turned, size, **how).equal(
                crop(images, boxes, size, box_format="cxcywh", **how)
            )
            continue
        cotangent = rand(3, 2, 2, *size, generator=generator) - 0.5
        results = []
        for function, given_, more in ((crop, boxes, {"box_format": "cxcywh"}), (crop_rotated, turned, {})):
            inputs = images.clone().requires_grad_(), given_.clone().requires_grad_()
            value = function(*inputs, size, **how, **more)
            results.append([value.detach(), *torch.autograd.grad(value, inputs, cotangent)])
        for expected, found in zip(*results, strict=True):
            same(found[..., :4] if found.shape[-1] == 5 and expected.shape[-1] == 4 else found, expected)


# --- what is linear is warped exactly ---------------------------------------------------------------------------------


def ramps(shape):
    """x and y of every pixel's centre, as two channels: bilinear interpolation of it is exact inside the centres."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=f64) + 0.5 for n in shape), indexing="ij")
    return torch.stack([x, y])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), SIZE, (17, 16)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_outputs_look_where_the_documentation_says(impl, mode, size, generator):
    image = ramps((40, 50))
    quads = some_quads(10, generator) * 2 + torch.tensor([12, 10])
    if mode == "bilinear":
        found = crop_quad(image, quads, size, antialias=False, mode=mode, impl=impl)
        same(found.flatten(2).mT, warp_points(centres_of(size, False), quads_to_matrix(quads, size)), atol=1e-12)
    cx, cy, w, h, degrees = (t[:, None] for t in (rand(10, 5, generator=generator)
                                                  * torch.tensor([10, 10, 16, 12, 360]) + 15).unbind(-1))  # fmt: skip
    boxes = torch.cat([cx, cy, w / 2, h / 2, degrees], -1)
    j, i = centres_of(size, False).unbind(-1)
    a, b = w / 2 * (j / size[1] - 0.5), h / 2 * (i / size[0] - 0.5)
    cos, sin = torch.cos(degrees * math.pi / 180), torch.sin(degrees * math.pi / 180)
    expected = torch.stack([cx + a * cos + b * sin, cy - a * sin + b * cos], -1)
    found = crop_rotated(image, boxes, size, antialias=False, mode="bilinear", impl=impl)
    same(found.flatten(2).mT, expected)


def test_the_middle_of_a_quad_is_where_its_diagonals_meet(impl, generator):
    image = ramps((40, 50))
    for quad in some_quads(20, generator) * 2 + torch.tensor([12, 10]):
        p0, p1, p2, p3 = quad
        # p0 + a (p2 - p0) = p1 + b (p3 - p1)
        a, _ = torch.linalg.solve(torch.stack([p2 - p0, p1 - p3], 1), p1 - p0)
        expected = p0 + a * (p2 - p0)
        for align_corners in (False, True):
            shift = 0.5 if align_corners else 0.0
            found = crop_quad(image, quad - shift, 1, antialias=False, align_corners=align_corners, impl=impl)
            same(found.flatten(), expected)


def test_warps_compose(impl, generator):
    """A warp of a warp is the warp by the product, where interpolation is exact."""
    image, size = ramps((40, 50)), (30, 36)
    first = quads_to_matrix(torch.tensor([[3, 2], [46, 4], [44, 37], [5, 33]], dtype=f64), size)
    second = rotated_to_matrix(torch.tensor([18, 15, 12, 11, 25.0], dtype=f64), SIZE)
    bottom = torch.tensor([[0, 0, 1]], dtype=f64)
    # The first is seen through a homography, so its ramps are bent: only affine maps keep them exact.
    affine = rotated_to_matrix(torch.tensor([25, 20, 30, 26, -20.0], dtype=f64), size)
    how = {"antialias": False, "impl": impl}
    twice = warp(warp(image, affine, size, **how), second, SIZE, **how)
    once = warp(image, affine @ torch.cat([second, bottom]), SIZE, **how)
    same(twice, once)
    bent = warp(warp(image, first, size, **how), second, SIZE, **how)
    straight = warp(image, first @ torch.cat([second, bottom]), SIZE, **how)
    assert 1e-6 < float((bent - straight).abs().max()) < 0.1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3"])
def test_turning_image_and_box_together_changes_nothing(impl, mode, generator):
    """About the middle of a square image, by quarters."""
    n = 12
    image = rand(2, n, n, generator=generator)
    boxes = some_boxes(10, generator)
    upright = crop_rotated(image, boxes, SIZE, mode=mode, padding_mode="zeros", impl=impl)
    for turns in range(1, 4):
        x, y = boxes[:, 0] - n / 2, boxes[:, 1] - n / 2
        cos, sin = [1, 0, -1, 0][turns], [0, 1, 0, -1][turns]
        moved = torch.stack([x * cos + y * sin + n / 2, -x * sin + y * cos + n / 2, boxes[:, 2], boxes[:, 3],
                             boxes[:, 4] + 90 * turns], -1)  # fmt: skip
        found = crop_rotated(torch.rot90(image, turns, (1, 2)), moved, SIZE, mode=mode, padding_mode="zeros", impl=impl)
        same(found, upright, atol=1e-11)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3", "area"])
def test_it_is_continuous_where_antialiasing_sets_in(impl, mode, generator):
    """And nearly so where a sample is added, for noise. Reductions count in parts of 1/256."""
    image, size = rand(3, 64, 64, generator=generator), (6, 9)
    for whole, most in ((1, 0.02), (2, 0.15), (3, 0.15), (4, 0.15)):
        s = (whole + 1 / 512) * (1 + torch.tensor([-1e-7, 1e-7], dtype=f64))
        centre = torch.tensor([[31.3, 32.6]], dtype=f64).expand(2, 2)
        turned = torch.full((2, 1), 33.0, dtype=f64)
        boxes = torch.cat([centre, s[:, None] * torch.tensor([[9.0, 6.0]], dtype=f64), turned], 1)
        below, above = crop_rotated(image, boxes, size, mode=mode, impl=impl)
        assert 0 < (above - below).abs().max() < most


@pytest.mark.parametrize("antialias", [True, False])
def test_shifting_image_and_box_together_changes_nothing(impl, antialias, generator):
    """By whole pixels, and by half of one it does."""
    image = torch.zeros(1, 64, 64, dtype=f64)
    image[:, 20:36, 20:36] = rand(16, 16, generator=generator)
    boxes = some_boxes(10, generator) / torch.tensor([2, 2, 2, 2, 1]) + torch.tensor([25, 25, 0, 0, 0])
    how = {"antialias": antialias, "padding_mode": "zeros", "impl": impl}
    before = crop_rotated(image, boxes, SIZE, **how)
    shift = torch.tensor([8.0, -16, 0, 0, 0])
    after = crop_rotated(image.roll((-16, 8), (1, 2)), boxes + shift, SIZE, **how)
    same(after, before, atol=1e-10)
    assert (crop_rotated(image, boxes + 0.5 * torch.tensor([1.0, 1, 0, 0, 0]), SIZE, **how) - before).abs().max() > 0.01


# --- shapes, dtypes, layouts ------------------------------------------------------------------------------------------

B, K, C = 3, 4, 2
PLACES = {crop_rotated: some_boxes, crop_quad: some_quads}


def places(function, count, generator, *leading):
    if function is warp:
        return quads_to_matrix(some_quads(count, generator), SIZE).reshape(*leading, 3, 3)
    made = PLACES[function](count, generator)
    return made.reshape(*leading, *made.shape[1:])


@pytest.mark.parametrize("function", [crop_rotated, crop_quad, warp])
def test_shapes(impl, function, generator):
    """Every row of crop's table, against one crop after another."""
    images = rand(B, C, *SHAPE, generator=generator)
    ragged = [rand(C, 6 + b, 9 - b, generator=generator) for b in range(B)]

    def one(image, place):
        return function(image, place, SIZE, impl=impl)

    def alike(found, expected):
        """To the bit in the kernels; the reference sums several at once in another order."""
        assert found.shape == expected.shape
        same(found, expected, atol=1e-14 if impl == "reference" else 0)

    def each(*pairs):
        return torch.stack([one(i, p) for i, p in pairs])

    single, several = places(function, 1, generator), places(function, K, generator, K)
    batch, groups = places(function, B, generator, B), places(function, B * K, generator, B, K)
    assert one(images[0], single).shape == (C, *SIZE)
    alike(one(images[0], several), each(*((images[0], p) for p in several)))
    for source in (images, ragged):
        alike(one(source, single), each(*((i, single) for i in source)))
        alike(one(source, batch), each(*zip(source, batch, strict=True)))
        expected = torch.stack([each(*((i, p) for p in ps)) for i, ps in zip(source, groups, strict=True)])
        assert expected.shape == (B, K, C, *SIZE)
        alike(one(source, groups), expected)
        lists = [groups[0, :1], groups[1, :0], groups[2]]
        expected = each((source[0], lists[0][0]), *((source[2], p) for p in lists[2]))
        alike(one(source, lists), expected)
        index = torch.tensor([2, 0, 0, 1], dtype=torch.int32)
        found = function(source, several, SIZE, batch_index=index, impl=impl)
        alike(found, each(*((source[b], p) for b, p in zip(index.tolist(), several, strict=True))))


@pytest.mark.parametrize("function", [crop_rotated, crop_quad, warp])
def test_nothing_to_crop(impl, function, generator):
    image, place = rand(C, *SHAPE, generator=generator).requires_grad_(), places(function, 1, generator)
    none = place[None][:0].clone().requires_grad_()
    found = function(image, none, SIZE, impl=impl)
    assert found.shape == (0, C, *SIZE)
    found.sum().backward()
    assert not image.grad.any()
    assert none.grad.shape == none.shape
    empty = torch.zeros(0, C, *SHAPE)
    assert function(empty, place, SIZE, impl=impl).shape == (0, C, *SIZE)
    assert function(empty, place[None][:0], SIZE, impl=impl).shape == (0, C, *SIZE)
    assert function([image.detach()] * 2, [none.detach()] * 2, SIZE, impl=impl).shape == (0, C, *SIZE)


@pytest.mark.parametrize("function", [crop_rotated, crop_quad, warp])
def test_channels_last_stays(impl, function, generator):
    images = rand(B, C, *SHAPE, generator=generator)
    last = images.contiguous(memory_format=torch.channels_last)
    groups = places(function, B * K, generator, B, K)
    found, expected = (function(i, groups, SIZE, impl=impl) for i in (last, images))
    same(found, expected)
    for part in found.flatten(0, 1):
        assert part[None].is_contiguous(memory_format=torch.channels_last)
    strided = rand(B, C, 2 * SHAPE[0], 3 * SHAPE[1], generator=generator)[..., ::2, ::3]
    same(function(strided, groups, SIZE, impl=impl), function(strided.contiguous(), groups, SIZE, impl=impl))


@pytest.mark.parametrize("function", [crop_rotated, crop_quad, warp])
def test_dtypes(impl, function, generator):
    """Positions are computed in float64 from whatever comes; the crop has the images' dtype."""
    images, place = rand(B, C, *SHAPE, generator=generator) * 200, places(function, B, generator, B)
    exact = function(images, place.float(), SIZE, impl=impl)
    assert function(images, place.float().double(), SIZE, impl=impl).equal(exact)
    for half in (torch.float16, torch.bfloat16):
        assert function(images, place.to(half), SIZE, impl=impl).equal(
            function(images, place.to(half).float(), SIZE, impl=impl)
        )
        found = function(images.to(half), place, SIZE, impl=impl)
        assert found.dtype == half
        same(found.double(), function(images.to(half).double(), place, SIZE, impl=impl), atol=torch.finfo(half).eps)
    for whole_ in (torch.uint8, torch.int16, torch.int64, torch.bool):
        found = function(images.to(whole_), place, SIZE, impl=impl)
        assert found.dtype == torch.float32
        same(found.double(), function(images.to(whole_).double(), place, SIZE, impl=impl), atol=1e-6)
    found = function(images.float(), place, SIZE, impl=impl)
    assert found.dtype == torch.float32
    same(found.double(), function(images.float().double(), place, SIZE, impl=impl), atol=2e-6)


def test_integer_boxes(impl, generator):
    image = rand(C, *SHAPE, generator=generator)
    box = torch.tensor([6, 5, 4, 3, 30])
    assert crop_rotated(image, box, SIZE, impl=impl).equal(crop_rotated(image, box.double(), SIZE, impl=impl))
    matrix = torch.tensor([[0, -1, 8], [1, 0, 2]])
    assert warp(image, matrix, SIZE, impl=impl).equal(warp(image, matrix.double(), SIZE, impl=impl))


# --- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("function", [crop_rotated, crop_quad, warp])
def test_what_is_not_finite_is_nan_for_itself_alone(impl, function, value, generator):
    image, several = rand(C, *SHAPE, generator=generator), places(function, K, generator, K)
    for entry in range(several[0].numel()):
        place = several.clone()
        place[1].view(-1)[entry] = value
        picture, place = image.clone().requires_grad_(), place.requires_grad_()
        found = function(picture, place, SIZE, impl=impl)
        assert found[1].isnan().all()
        rest = [0, 2, 3]
        assert found[rest].equal(function(image, several[rest], SIZE, impl=impl))
        by_image, by_place = torch.autograd.grad(found.nansum(), (picture, place))
        clean = several[rest].requires_grad_()
        expected = torch.autograd.grad(function(picture, clean, SIZE, impl=impl).sum(), (picture, clean))
        same(by_image, expected[0])
        same(by_place[rest], expected[1])
        whole_gradient = torch.autograd.grad(function(image, place, SIZE, impl=impl).sum(), place)[0]
        assert whole_gradient[1].isnan().any()
        assert whole_gradient[rest].isfinite().all()
        assert function(image.to(torch.uint8), place.detach(), SIZE, mode="nearest", impl=impl)[1].eq(0).all()


def test_wild_boxes_are_finite(impl, generator):
    """Far away, huge, tiny and flat; what is bounded is bounded in time as well, or this would not end."""
    image = rand(C, *SHAPE, generator=generator)
    for scale in (1e-300, 1e-30, 1e-9, 1e4, 1e9, 1e30):
        boxes = some_boxes(20, generator) * torch.tensor([scale, scale, scale, scale, 1], dtype=f64)
        for padding_mode in WARP_PADDING_MODES:
            how = options("bicubic", True, padding_mode, impl=impl)
            boxes.requires_grad_()
            found = crop_rotated(image, boxes, SIZE, **how)
            assert found.isfinite().all(), (scale, padding_mode)
            assert torch.autograd.grad(found.sum(), boxes)[0].isfinite().all(), (scale, padding_mode)
            boxes = boxes.detach()


def test_flat_boxes_sample_a_line_or_a_point(impl, generator):
    image = ramps((20, 20))
    box = torch.tensor([8.0, 9.0, 0.0, 0.0, 33.0], dtype=f64)
    how = {"antialias": False, "impl": impl}
    same(crop_rotated(image, box, 3, **how), torch.tensor([8.0, 9.0], dtype=f64)[:, None, None].expand(2, 3, 3))
    line = crop_rotated(image, torch.tensor([8.0, 9.0, 4.0, 0.0, 90.0], dtype=f64), (3, 4), **how)
    same(line[0], torch.full((3, 4), 8.0, dtype=f64))
    same(line[1], torch.tensor([10.5, 9.5, 8.5, 7.5], dtype=f64).expand(3, 4))
    singular = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 3.0]], dtype=f64)
    same(warp(image, singular, (1, 2), **how)[:, 0, 0], torch.tensor([3.0, 4.0], dtype=f64))


def test_beyond_the_horizon_there_is_nothing(impl):
    """Of a plane seen at an angle: Z = 0 at v = 3, and the middle of the output is below."""
    image = torch.full((1, 20, 20), 7.0)
    matrix = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 10.0], [0.0, 1.0, -3.0]])
    found = warp(image, matrix, (10, 4), antialias=False, impl=impl)
    assert found[0, :3].eq(0).all()
    same(found[0, 3:], torch.full((7, 4), 7.0), atol=1e-6)
    constant = warp(image, -matrix, (10, 4), padding_mode="constant", fill=5.0, antialias=False, impl=impl)
    assert constant[0, :3].eq(5).all()
    assert constant[0, 3:].ne(5).any()


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-30, 30, width=32)] * 4, st.floats(-1000, 1000, width=32)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
    st.sampled_from(WARP_PADDING_MODES),
    st.booleans(),
)
def test_fuzz(box, shape, size, mode, padding_mode, align_corners):
    """All implementations, against a sampler that is written one number at a time."""
    image = rand(1, *shape, generator=torch.Generator().manual_seed(1))
    how = options(mode, False, padding_mode, align_corners=align_corners)
    matrix = rotated_to_matrix(torch.tensor(box, dtype=f64), size, align_corners=align_corners)
    for name in IMPLEMENTATIONS:
        found = crop_rotated(image, torch.tensor(box, dtype=f64), size, impl=name, **how)[0]
        for i in range(size[0]):
            for j in range(size[1]):
                offset = 0.0 if align_corners else 0.5
                x = float(matrix[0] @ torch.tensor([j + offset, i + offset, 1], dtype=f64)) - offset
                y = float(matrix[1] @ torch.tensor([j + offset, i + offset, 1], dtype=f64)) - offset
                if mode == "nearest" and min(abs(t + 0.5 - round(t + 0.5)) for t in (x, y)) < 1e-9:
                    continue  # on an edge between two pixels
                expected = naive(image[0].tolist(), x, y, mode, padding_mode, align_corners)
                assert float(found[i, j]) == pytest.approx(expected, abs=1e-9), (name, i, j)


def naive(image, x, y, mode, padding_mode, align_corners):
    """The value of the image at (x, y) on the axes of pixel indices."""
    n, m = len(image), len(image[0])
    fill = 0.25 if padding_mode == "constant" else 0.0

    def folded(k, count):
        if align_corners and count == 1:
            return 0
        if padding_mode == "border":
            return min(max(k, 0), count - 1)
        if padding_mode == "circular":
            return k % count
        if padding_mode == "reflection":
            period = 2 * count - 2 if align_corners else 2 * count
            k %= period
            return k if k < count else (period - k if align_corners else period - 1 - k)
        return k if 0 <= k < count else None

    def pixel(r, c):
        r, c = folded(r, n), folded(c, m)
        return fill if r is None or c is None else image[r][c]

    def weights(t):
        if mode == "nearest":
            return {math.floor(t + 0.5): 1.0}
        first = math.floor(t)
        f = t - first
        if mode == "bilinear":
            return {first: 1 - f, first + 1: f}
        a = -0.75

        def near(d):
            return (a + 2) * d**3 - (a + 3) * d**2 + 1

        def far(d):
            return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a

        return {first - 1: far(1 + f), first: near(f), first + 1: near(1 - f), first + 2: far(2 - f)}

    if align_corners and m == 1:
        x = 0.0
    if align_corners and n == 1:
        y = 0.0
    return sum(wy * wx * pixel(r, c) for r, wy in weights(y).items() for c, wx in weights(x).items())
