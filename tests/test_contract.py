"""What the contract promises of every crop: identity, invariants with their negatives, unusual boxes and images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import naive
from diffcrop import crop
from helpers import FILTERS, MODES, PADDINGS, options, rand, random_boxes

f64 = torch.float64
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.uint8, torch.int16, torch.int64, torch.bool)
# 1, primes, a vector width and its neighbours, an image smaller than the filter.
SHAPES = [(1, 1), (1, 7), (13, 1), (2, 3), (15, 16), (17, 31)]
# Every pair of a filter and a padding, each convention of align_corners in turn.
GRID = [(m, a, p, c) for (m, a), p, c in itertools.product(FILTERS, PADDINGS, (False, True))]
BOUNDED = ("border", "reflection", "circular")  # where the weights of the image's pixels sum to 1 for every box


def gradients(image, boxes, size, cotangent, **keywords):
    """Crop, image gradient, box gradient; leaves the arguments' own layouts and views as they are."""
    image, boxes = image.detach().requires_grad_(), boxes.detach().requires_grad_()
    value = crop(image, boxes, size, **keywords)
    by_image, by_boxes = torch.autograd.grad(value, (image, boxes), cotangent)
    return value.detach(), by_image, by_boxes


def close(actual, expected, atol, scale=1.0):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol * scale)


def agrees_with_naive(impl, image, boxes, size, keywords, generator, atol=2e-13):
    """Value and both gradients of each box against brute force. A crop's derivative by the box falls as 1/s."""
    cotangent = rand(len(boxes), image.shape[0], *size, generator=generator) - 0.5
    value, by_image, by_boxes = gradients(image, boxes, size, cotangent, impl=impl, **keywords)
    expected_by_image = 0.0
    for i, box in enumerate(boxes.tolist()):
        close(value[i], naive.crop(image.numpy(), box, size, **keywords), atol)
        one_by_image, one_by_box = naive.gradients(image.numpy(), box, size, cotangent[i].numpy(), **keywords)
        expected_by_image = expected_by_image + one_by_image
        close(by_boxes[i], one_by_box, atol * 10)
    close(by_image, expected_by_image, atol * 10)


# --- brute force ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_brute_force(impl, mode, antialias, padding_mode, align_corners, generator):
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners)
    for shape, size in zip(SHAPES, [(3, 2), (1, 5), (4, 1), (5, 3), (16, 7), (3, 33)], strict=True):
        where = {key: keywords[key] for key in ("mode", "antialias", "padding_mode", "align_corners")}
        boxes = random_boxes(4, size, shape, generator, margin=1e-3 if max(size) < 20 else 1e-4, **where)
        agrees_with_naive(impl, rand(2, *shape, generator=generator), boxes, size, keywords, generator)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 2.5])
def test_other_widths_of_the_gaussian(impl, sigma, generator):
    boxes = torch.tensor([[1.3, -2.2, 14.9, 3.1], [4.4, 8.0, 3.1, 7.1]], dtype=f64)
    for padding_mode in PADDINGS:
        keywords = options("gaussian", True, padding_mode, sigma=sigma)
        agrees_with_naive(impl, rand(2, 9, 11, generator=generator), boxes, (3, 4), keywords, generator)


# --- the identity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), [f for f in FILTERS if f[0] != "gaussian"] + [("nearest", True)])
def test_identity_is_bit_equal(impl, mode, antialias, padding_mode, align_corners, generator):
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, impl=impl)
    if mode == "nearest":
        keywords["fill"] = 0.0
    for shape, dtype in itertools.product(SHAPES, FLOATS + WHOLE):
        noise = rand(3, *shape, generator=generator) * 255
        one_hot = torch.zeros(3, *shape).view(-1).index_fill(0, torch.tensor(shape[1] // 2), 1).view(3, *shape)
        end = [float(n - align_corners) for n in reversed(shape)]
        for image in (noise.to(dtype), one_hot.to(dtype)):
            same = image if dtype.is_floating_point or mode == "nearest" else image.float()
            boxes = {"pixel": [0.0, 0.0, *end]}
            if dtype == f64:
                boxes |= {"unit": [0.0, 0.0, 1.0, 1.0], "normalized": [-1.0, -1.0, 1.0, 1.0]}
            for coords, box in boxes.items():
                result = crop(image, torch.tensor(box), shape, coords=coords, **keywords)
                assert result.dtype == same.dtype
                assert torch.equal(result, same), (shape, dtype, coords)


NUMPY_PADDING = {"border": "edge", "zeros": "constant", "constant": "constant", "circular": "wrap"}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "constant", "circular", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3", "area", "nearest"])
def test_integer_boxes_are_slices_of_the_padded_image(impl, mode, padding_mode, align_corners, generator):
    image, (left, top, right, bottom) = rand(2, 4, 5, generator=generator), (13, 1, 3, 11)
    numpy_mode = NUMPY_PADDING.get(padding_mode) or ("reflect" if align_corners else "symmetric")
    fill = 0.25 if padding_mode == "constant" else 0.0
    extra = {"constant_values": fill} if numpy_mode == "constant" else {}
    padded = np.pad(image.numpy(), ((0, 0), (top, bottom), (left, right)), mode=numpy_mode, **extra)
    box = torch.tensor([-left, -top, 5 + right - align_corners, 4 + bottom - align_corners], dtype=f64)
    result = crop(
        image,
        box,
        padded.shape[1:],
        mode=mode,
        padding_mode=padding_mode,
        fill=fill,
        align_corners=align_corners,
        impl=impl,
    )
    assert torch.equal(result, torch.from_numpy(padded))


# --- invariants, with their negatives ---------------------------------------------------------------------------------


def ulps(actual, expected, of_range=1.0):
    """Largest difference in units in the last place of the range."""
    return float((actual - expected).abs().max()) / (torch.finfo(actual.dtype).eps * of_range)


# float64 images need positions without rounding, float32 images do not see it.
EXACT = (f64, (4, 8), torch.tensor([1.25, -3.5, 9.25, 4.5], dtype=f64))
ROUNDED = (torch.float32, (6, 14), torch.tensor([1.3, -3.7, 10.9, 8.2], dtype=f64))


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
@pytest.mark.parametrize(("dtype", "size", "box"), [EXACT, ROUNDED])
def test_tiles_of_a_crop_and_mirrored_boxes(impl, mode, antialias, padding_mode, dtype, size, box, generator):
    """And neither holds half an output pixel off."""
    image, keywords = (
        rand(2, 11, 13, generator=generator, dtype=dtype),
        options(mode, antialias, padding_mode, impl=impl),
    )
    whole = crop(image, box, size, **keywords)
    x0, y0, x1, y1 = box.tolist()
    half = (x0 + x1) / 2

    def pair(left, right):
        tiles = torch.tensor([left, right], dtype=f64)
        return torch.cat([*crop(image, tiles, (size[0], size[1] // 2), **keywords)], -1)

    assert ulps(pair([x0, y0, half, y1], [half, y0, x1, y1]), whole) <= 4
    mirrored = torch.tensor([[x1, y0, x0, y1], [x0, y1, x1, y0]], dtype=f64)
    for flipped, axis in zip(crop(image, mirrored, size, **keywords), (-1, -2), strict=True):
        assert ulps(flipped.flip(axis), whole) <= 4
    step = (x1 - x0) / size[1] / 2
    off = pair([x0, y0, half, y1], [half + step, y0, x1 + step, y1])
    assert (off - whole)[..., size[1] // 2 :].abs().max() > 0.02
    assert ulps(off[..., : size[1] // 2], whole[..., : size[1] // 2]) <= 4


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_a_whole_image_of_ones_is_ones(impl, mode, antialias, padding_mode, align_corners):
    keywords = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode, "align_corners": align_corners}
    keywords |= {"fill": 1.0} if padding_mode == "constant" else {}
    box = torch.tensor([0.0, 0.0, 11.0 - align_corners, 7.0 - align_corners])
    for size in [(3, 2), (7, 11), (1, 1), (32, 50)]:
        value = crop(torch.ones(1, 7, 11, dtype=f64), box, size, impl=impl, **keywords)
        if padding_mode == "zeros":  # darkens at the edges
            close(value, naive.crop(np.ones((1, 7, 11)), box, size, **keywords), 4e-15)
        else:
            close(value, torch.ones_like(value), 4e-15)


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_linear_in_the_image(impl, mode, antialias, padding_mode, align_corners, generator):
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, impl=impl)
    keywords["fill"] = 0.0
    a, b = rand(2, 2, 9, 11, generator=generator)
    box = torch.tensor([-1.3, 2.2, 14.9, 7.1], dtype=f64)
    total = crop(3 * a - b / 7, box, 4, **keywords)
    close(total, 3 * crop(a, box, 4, **keywords) - crop(b, box, 4, **keywords) / 7, 1e-14)


@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_circular_crops_move_with_the_image(impl, mode, antialias, generator):
    image, box = rand(2, 9, 11, generator=generator), torch.tensor([-1.3, 2.2, 14.9, 7.1], dtype=f64)
    keywords = {"mode": mode, "antialias": antialias, "padding_mode": "circular", "impl": impl}
    still = crop(image, box, 8, **keywords)
    for dx, dy in [(1, 0), (-5, 3), (400, -70)]:
        moved = box + torch.tensor([dx, dy, dx, dy])
        close(crop(image.roll((dy, dx), (-2, -1)), moved, 8, **keywords), still, 1e-12)
        assert (crop(image.roll((dy, dx), (-2, -1)), moved + 0.5, 8, **keywords) - still).abs().max() > 0.05


def test_constant_is_zeros_of_the_difference(impl, generator):
    """One fill per channel, values and image gradient; integer images too."""
    image, fill = rand(3, 9, 11, generator=generator) * 255, torch.tensor([-4.0, 0.0, 260.5], dtype=f64)
    boxes = torch.tensor([[-6.3, 2.2, 14.9, 13.1], [30, 30, 40, 40.0]], dtype=f64)
    constant = {"padding_mode": "constant", "fill": fill.tolist(), "impl": impl}
    for (mode, antialias), dtype in itertools.product(FILTERS, (f64, torch.uint8)):
        keywords, pixels = {"mode": mode, "antialias": antialias}, image.to(dtype).to(f64)
        shifted = pixels - fill[:, None, None]
        zeros = crop(shifted, boxes, (4, 5), padding_mode="zeros", impl=impl, **keywords) + fill[:, None, None]
        result = crop(image.to(dtype), boxes, (4, 5), **constant, **keywords)
        close(result, zeros, 1e-13 if dtype == f64 else 2e-7, scale=260.5)
        assert torch.equal(result[1], fill[:, None, None].expand(3, 4, 5).to(result.dtype))
    cotangent = rand(2, 3, 4, 5, generator=generator)
    _, with_fill, box_with_fill = gradients(image, boxes, (4, 5), cotangent, **constant)
    _, without, box_without = gradients(
        image - fill[:, None, None], boxes, (4, 5), cotangent, padding_mode="zeros", impl=impl
    )
    assert torch.equal(with_fill, without)
    close(box_with_fill, box_without, 1e-12, scale=255)


# --- unusual boxes ----------------------------------------------------------------------------------------------------

BAD_BOXES = [
    *([*good[:i], bad, *good[i + 1 :]]
    for good in ([1.0, 2.0, 8.5, 7.0],) for bad in (math.nan, math.inf, -math.inf) for i in range(4)),
    [-1.7e308, 0.0, 1.7e308, 5.0],
]  # fmt: skip


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_bad_box_poisons_only_itself(impl, mode, padding_mode, generator):
    """NaN, infinite, or of infinite extent."""
    image, keywords = rand(3, 2, 9, 11, generator=generator), options(mode, True, padding_mode, impl=impl)
    good = torch.tensor([[[1.0, 2.0, 8.5, 7.0]] * 2] * 3, dtype=f64)
    cotangent = rand(3, 2, 2, 4, 5, generator=generator)
    quiet = cotangent.clone()
    quiet[1, 0] = 0
    expected = gradients(image, good, (4, 5), quiet, **keywords)
    for bad in BAD_BOXES:
        boxes = good.clone()
        boxes[1, 0] = torch.tensor(bad)
        value, by_image, by_boxes = gradients(image, boxes, (4, 5), cotangent, **keywords)
        assert value[1, 0].isnan().all()
        assert by_boxes[1, 0].isnan().all()
        value[1, 0], by_boxes[1, 0] = expected[0][1, 0], expected[2][1, 0]
        for actual, same in zip((value, by_image, by_boxes), expected, strict=True):
            assert torch.equal(actual, same)


@pytest.mark.parametrize("dtype", [*WHOLE, torch.float32])
def test_a_bad_box_of_whole_numbers_is_fill(impl, dtype):
    image = torch.ones(2, 5, 7).to(dtype)
    for bad, (padding_mode, fill) in itertools.product(BAD_BOXES, (("border", 0), ("constant", 0), ("constant", 1))):
        boxes = torch.tensor([[0, 0, 7, 5], bad], dtype=f64)
        value = crop(image, boxes, (5, 7), mode="nearest", padding_mode=padding_mode, fill=fill, impl=impl)
        assert torch.equal(value[0], image)
        assert value[1].isnan().all() if dtype.is_floating_point else (value[1] == fill).all()


def test_an_unknown_image_is_a_bad_box_where_nobody_may_look(impl, generator):
    """Inside a transform the value of an index cannot be checked, and must not be read out of bounds."""
    images, boxes = rand(2, 1, 5, 7, generator=generator), torch.tensor([[0.5, 0, 7, 5]] * 4, dtype=f64)

    def one(index):
        return crop(images, boxes, (5, 7), batch_index=index, impl=impl)

    value = torch.func.vmap(one)(torch.tensor([[0, 1, 2, -1], [1, 0, 1 << 40, 0]]))
    assert value.flatten(2).isnan().all(-1).tolist() == [[False, False, True, True], [False, False, True, False]]
    assert value.flatten(2).isnan().any(-1).tolist() == value.flatten(2).isnan().all(-1).tolist()
    assert torch.equal(value[1, 0], one(torch.tensor([1, 1, 1, 1]))[0])


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_empty_boxes_and_single_pixels(impl, mode, antialias, padding_mode, align_corners, generator):
    """An empty box samples one point n times; a box with a single output has its centre."""
    image = rand(2, 5, 7, generator=generator)
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners)
    empty = torch.tensor([[2.3, 1.4, 2.3, 1.4], [-4.3, 1.4, -4.3, 1.4], [7.9, 5.1, 7.9, 5.1]], dtype=f64)
    value = crop(image, empty, (2, 3), impl=impl, **keywords)
    assert torch.equal(value, value[:, :, :1, :1].expand_as(value))
    wide = torch.tensor([[1.3, -1.6, 4.6, 0.1], [7.7, 1.2, -2.2, 6.1]], dtype=f64)
    for boxes, size in (
        (empty[:, [0, 1, 0, 3]] + torch.tensor([0, 0, 0, 1.7]), (3, 2)),
        (wide, (1, 1)),
        (wide, (1, 4)),
    ):
        agrees_with_naive(impl, image, boxes, size, keywords, generator)
    close(value[0], naive.crop(image.numpy(), empty[0], (2, 3), **keywords), 1e-14)
    _, by_image, by_box = gradients(image, empty, (2, 3), torch.ones_like(value), impl=impl, **keywords)
    assert by_image.isfinite().all()
    assert by_box.isfinite().all()


@pytest.mark.parametrize("distance", [100.0, 2.0**20, 2.0**40])
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_far_outside(impl, mode, antialias, distance, generator):
    image, box = rand(2, 8, 16, generator=generator), torch.tensor([1.25, 2.5, 9.25, 6.75], dtype=f64)
    keywords = {"mode": mode, "antialias": antialias, "impl": impl}
    for sign in (1.0, -1.0):
        far = box + sign * distance * 32  # a multiple of every period; all positions are exact
        cotangent = rand(2, 2, 4, generator=generator)

        def at(boxes, padding_mode, **more):
            return gradients(image, boxes, (2, 4), cotangent, padding_mode=padding_mode, **more, **keywords)  # noqa: B023

        for padding_mode, more, value in (
            ("zeros", {}, 0.0),
            ("renormalize", {}, 0.0),
            ("constant", {"fill": 0.5}, 0.5),
            ("border", {}, image[:, -1, -1] if sign > 0 else image[:, 0, 0]),
        ):
            crops, by_image, by_box = at(far, padding_mode, **more)
            close(crops, torch.as_tensor(value).view(-1, 1, 1).expand_as(crops), 1e-15)
            assert float(by_box.abs().max()) <= 1e-12
            if padding_mode == "border":
                edge = by_image[:, -1, -1] if sign > 0 else by_image[:, 0, 0]
                close(edge, cotangent.sum((-1, -2)), 1e-13)
                assert torch.equal(edge.sum(), by_image.sum())
            else:
                assert not by_image.any()
        for padding_mode in ("reflection", "circular"):
            for actual, near in zip(at(far, padding_mode), at(box, padding_mode), strict=True):
                close(actual, near, 1e-12)


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_huge_coordinates_are_finite_and_sane(impl, mode, antialias, padding_mode, align_corners, generator):
    image = rand(2, 5, 7, generator=generator, dtype=torch.float32)
    boxes = torch.tensor(
        [[-1e30, 0, 1e30, 5], [1e30, 1e30, 1e30, 1e30], [3e38, 0, -3e38, 5], [1e30, -1e25, 1.5e30, 3e38]]
    )
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, impl=impl)
    value, by_image, by_box = gradients(image, boxes, (3, 4), torch.ones(4, 2, 3, 4), **keywords)
    assert value.isfinite().all()
    assert float(value.abs().max()) <= 2
    assert by_image.isfinite().all()
    assert by_box.isfinite().all()
    if padding_mode in BOUNDED:
        ones = crop(torch.ones_like(image), boxes, (3, 4), **keywords)
        close(ones, torch.ones_like(ones), 1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 5, 7), (2, 0, 5, 7)])
def test_no_images_and_no_channels(impl, shape):
    images, boxes = torch.rand(shape, requires_grad=True), torch.rand(shape[0], 3, 4, requires_grad=True)
    value = crop(images, boxes, (4, 6), impl=impl)
    assert value.shape == (shape[0], 3, shape[1], 4, 6)
    value.sum().backward()
    assert images.grad.shape == images.shape
    assert torch.equal(boxes.grad, torch.zeros_like(boxes))


def test_no_boxes(impl):
    for images, boxes, index in (
        (torch.rand(2, 5, 7), torch.rand(0, 4), None),
        (torch.rand(3, 2, 5, 7), torch.rand(3, 0, 4), None),
        (torch.rand(3, 2, 5, 7), torch.rand(0, 4), torch.zeros(0, dtype=torch.int64)),
    ):
        images.requires_grad_()
        boxes.requires_grad_()
        value = crop(images, boxes, (4, 6), batch_index=index, impl=impl)
        assert value.shape == (*boxes.shape[:-1], 2, 4, 6)
        value.sum().backward()
        assert torch.equal(images.grad, torch.zeros_like(images))
        assert boxes.grad.shape == boxes.shape


# --- wild boxes -------------------------------------------------------------------------------------------------------


def wild_boxes(reduction, size, shape, generator):
    """Around the image, across its edge and mirrored, each with sides of n times the reduction."""
    h, w = (n * reduction for n in size)
    u = rand(3, 2, generator=generator)
    corners = torch.stack([-u[:, 0] * w, -u[:, 1] * h], -1)
    boxes = torch.cat([corners, corners + torch.tensor([w, h])], -1)
    boxes[1] = torch.tensor([shape[1] * 0.37, shape[0] * 0.93 - h, shape[1] * 0.37 + w, shape[0] * 0.93])
    boxes[2] = boxes[2, [2, 1, 0, 3]]
    return boxes


@pytest.mark.parametrize("reduction", [pytest.param(s, marks=pytest.mark.slow) for s in (1.37e2, 2.07e4)] + [1.003e3])
@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_wild_boxes_equal_brute_force(impl, mode, antialias, padding_mode, align_corners, reduction, generator):
    image, size = rand(2, 5, 7, generator=generator), (2, 3)
    boxes = wild_boxes(reduction, size, (5, 7), generator)
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners)
    agrees_with_naive(impl, image, boxes, size, keywords, generator, atol=1e-12 + 2.0**-52 * reduction)


@pytest.mark.parametrize("reduction", [pytest.param(s, marks=pytest.mark.slow) for s in (1e6, 1e9)] + [1e12])
@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_wild_boxes_are_finite_and_normalised(impl, mode, antialias, padding_mode, align_corners, reduction, generator):
    size, boxes = (2, 3), wild_boxes(reduction, (2, 3), (5, 7), generator)
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, impl=impl)
    cotangent = torch.ones(3, 2, *size, dtype=f64)
    value, by_image, by_box = gradients(rand(2, 5, 7, generator=generator), boxes, size, cotangent, **keywords)
    assert float(value.abs().max()) <= 2
    assert by_image.isfinite().all()
    assert by_box.isfinite().all()
    ones, by_image, by_box = gradients(torch.ones(2, 5, 7, dtype=f64), boxes, size, cotangent, **keywords)
    if padding_mode in BOUNDED:
        close(ones, cotangent, 1e-12)
        close(by_image.sum(), cotangent.sum(), 1e-11)
        assert float(by_box.abs().max()) <= 1e-10
    elif padding_mode == "renormalize":
        assert torch.logical_or((ones - 1).abs() < 1e-12, ones == 0).all()
    elif antialias:  # the filter is spread over so many pixels outside that the image does not count
        close(ones, torch.full_like(ones, keywords.get("fill", 0.0)), 1e-4)


# --- memory: guard bands, strides, layouts, dtypes --------------------------------------------------------------------


def guarded(tensor):
    """The same values as a view into a larger buffer of NaN."""
    slices = tuple(slice(3, 3 + n) for n in tensor.shape)
    buffer = torch.full([n + 6 for n in tensor.shape], math.nan, dtype=tensor.dtype)
    buffer[slices] = tensor
    return buffer[slices]


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "padding_mode"), list(itertools.product(MODES, PADDINGS)))
def test_guard_bands(impl, mode, padding_mode, dtype, generator):
    keywords = options(mode, True, padding_mode, impl=impl)
    for shape, size in [((1, 1), (3, 2)), ((5, 17), (16, 3)), ((33, 15), (5, 31))]:
        h, w = shape
        boxes = torch.tensor([[0, 0, w, h], [-5, -7, w + 3, h + 9], [w - 0.3, h - 0.2, w - 2.7, h - 3.3]], dtype=f64)
        inputs = rand(3, 2, *shape, generator=generator, dtype=dtype), boxes
        cotangent = rand(3, 2, *size, generator=generator, dtype=dtype)
        plain = gradients(*inputs, size, cotangent, **keywords)
        assert all(t.isfinite().all() for t in plain)
        for actual, same in zip(
            gradients(*map(guarded, inputs), size, guarded(cotangent), **keywords), plain, strict=True
        ):
            torch.testing.assert_close(actual, same, rtol=0, atol=16 * torch.finfo(dtype).eps * max(shape))


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_a_nan_pixel_spreads_no_further_than_the_support(impl, mode, antialias, padding_mode, generator):
    if impl == "reference":
        pytest.skip("a dense product spreads NaN over the whole row and column; the contract exempts it")
    keywords, (h, w) = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}, (13, 37)
    for size, row, column in [((9, 40), 6, 20), ((5, 6), 0, 36), ((5, 6), 12, 0)]:
        image = rand(1, h, w, generator=generator)
        image[0, row, column] = math.nan
        for box in ([-2.3, -1.2, 39.1, 14.4], [36.2, 1.1, 22.7, 11.8]):
            value = crop(image, torch.tensor(box, dtype=f64), size, impl=impl, **keywords)[0].isnan().numpy()
            (Wy, *_, near_y), (Wx, *_, near_x) = naive.matrices(box, size, (h, w), **keywords)
            weighty = np.outer(np.abs(Wy[:, row]) > 1e-9, np.abs(Wx[:, column]) > 1e-9)
            assert value[weighty].all()
            assert not value[~np.outer(near_y[:, row], near_x[:, column])].any()


def strided(images):
    """The same values under other strides."""
    b, c, h, w = images.shape
    yield "channels_last", images.contiguous(memory_format=torch.channels_last)
    yield "transposed", images.mT.contiguous().mT
    yield "batch inside", images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    yield "every second row and third column", images.new_empty(b, c, 2 * h, 3 * w)[:, :, ::2, ::3].copy_(images)
    yield (
        "channels of a larger channels_last",
        (images.new_empty(b, c + 5, h, w).contiguous(memory_format=torch.channels_last)[:, 2 : 2 + c].copy_(images)),
    )


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize(
    ("mode", "padding_mode"), [("bilinear", "border"), ("lanczos3", "reflection"), ("nearest", "zeros")]
)
def test_any_strides(impl, mode, padding_mode, dtype, generator):
    images = (rand(2, 3, 17, 33, generator=generator) * 255).to(dtype)
    boxes = torch.tensor([[[1.3, -2.2, 30.9, 13.1], [30, 18, 20.5, 2]]] * 2, dtype=f64)
    keywords = {"mode": mode, "padding_mode": padding_mode, "impl": impl}
    expected = crop(images, boxes, (5, 16), **keywords)
    tolerance = 4 * 255 * torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0
    for _, view in strided(images):
        assert torch.equal(view, images)
        close(crop(view, boxes, (5, 16), **keywords), expected, tolerance)
    for view in (
        images[:1, :1].expand(2, 3, 17, 33),
        images[:, :, :1].expand(2, 3, 17, 33),
        images[..., :1].expand(2, 3, 17, 33),
    ):
        close(crop(view, boxes, (5, 16), **keywords), crop(view.contiguous(), boxes, (5, 16), **keywords), tolerance)
    if dtype.is_floating_point and mode != "nearest":
        cotangent = rand(*expected.shape, generator=generator).to(dtype)
        plain = gradients(images, boxes, (5, 16), cotangent, **keywords)
        for _, view in strided(images):
            turned = cotangent.mT.contiguous().mT
            for actual, same in zip(gradients(view, boxes, (5, 16), turned, **keywords), plain, strict=True):
                close(actual, same, 16 * torch.finfo(dtype).eps, scale=max(1.0, float(same.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_channels_last_stays(impl, mode, dtype, generator):
    """For images of both ranks and boxes of every rank, and for the image gradient."""
    batch = (rand(2, 3, 9, 11, generator=generator) * 255).to(dtype).contiguous(memory_format=torch.channels_last)
    box = torch.tensor([1.3, -2.2, 9.9, 7.1])
    cases = [
        (batch, box, None), (batch, box.expand(2, 4), None), (batch, box.expand(2, 3, 4), None),
        (batch, box.expand(3, 4), torch.tensor([1, 0, 1])), (batch[1], box, None), (batch[1], box.expand(3, 4), None),
    ]  # fmt: skip
    for images, boxes, index in cases:
        images = images.detach().requires_grad_(dtype.is_floating_point)
        value = crop(images, boxes, (4, 6), batch_index=index, mode=mode, impl=impl)
        c, h, w = value.shape[-3:]
        assert value.stride()[-3:] == (1, c * w, c), (images.shape, boxes.shape)
        assert all(s in (c * h * w, 3 * c * h * w) for s in value.stride()[:-3])
        plain = crop(images.detach().contiguous(), boxes, (4, 6), batch_index=index, mode=mode, impl=impl)
        close(value.detach(), plain, 255 * 2e-3 if dtype == torch.float16 else 1e-4)
        if dtype.is_floating_point:
            value.sum().backward()
            assert images.grad.stride() == images.stride()


@pytest.mark.parametrize("dtype", [*WHOLE, torch.int8, torch.int32, torch.uint16, torch.uint32, torch.uint64])
def test_whole_numbers(impl, dtype, generator):
    """Float32 crops with the values as they are, and a box gradient; nearest only moves them."""
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    span = min(high - low, 200)
    image = (rand(2, 9, 11, generator=generator) * span - (100 if low < 0 else 0)).round().to(dtype)
    boxes = torch.tensor([[1.3, -2.2, 30.9, 13.1], [10, 8, 2.5, 2]], dtype=f64, requires_grad=True)
    values = [crop(i, boxes, (4, 5), padding_mode="zeros", impl=impl) for i in (image, image.float())]
    assert values[0].dtype == torch.float32
    close(values[0].detach(), values[1].detach(), 1e-4)
    by_box = [torch.autograd.grad(v.sum(), boxes)[0] for v in values]
    close(by_box[0], by_box[1], 1e-3)
    assert by_box[0].abs().min() > 1e-3
    ends = torch.tensor([[[low, high]] * 2], dtype=dtype).expand(1, 2, 2)
    same = crop(ends, torch.tensor([0.0, 0, 2, 2]), (4, 6), mode="nearest", impl=impl)
    assert same.dtype == dtype
    assert same.tolist() == [[[low] * 3 + [high] * 3] * 4]


@pytest.mark.parametrize(("mode", "align_corners"), list(itertools.product([*MODES, "nearest"], (False, True))))
def test_float32_boxes_are_positions_in_float64(impl, mode, align_corners, generator):
    """The same numbers in either dtype give the same crop."""
    image, boxes = rand(2, 9, 11, generator=generator), torch.tensor([[1.3, -2.2, 9.9, 7.1]])
    crops = [crop(image, b, (4, 6), mode=mode, align_corners=align_corners, impl=impl) for b in (boxes, boxes.double())]
    assert torch.equal(*crops)


def test_precision_far_from_the_origin(impl, generator, capsys):
    """float32 near the far corner of a 4096 x 4096 image, as the positions of the recipe lose the most there.

    The image is uniform noise on every fourth pixel, interpolated: no pixel-to-pixel jumps that would flatter us.
    """
    coarse = rand(1, 1, 96, 96, generator=generator)
    content = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)[0]
    image = torch.zeros(1, 4096, 4096)
    image[:, -384:, -384:] = content
    box = torch.tensor([4096 - 300.3, 4096 - 290.7, 4096 - 3.1, 4096 - 11.9])
    size = (250, 260)
    keywords = {"antialias": False, "padding_mode": "border"}
    # Exact: the same values in a small image, and the same box moved, both without rounding.
    exact = naive.crop(
        content.to(torch.float32).double().numpy(), box.double() - (4096 - 384), size, mode="bilinear", **keywords
    )
    ours = crop(image, box, size, impl=impl, **keywords)
    x0, y0, x1, y1 = (box / 2048 - 1).tolist()
    theta = torch.tensor([[[(x1 - x0) / 2, 0, (x1 + x0) / 2], [0, (y1 - y0) / 2, (y1 + y0) / 2]]])
    grid = torch.nn.functional.affine_grid(theta, (1, 1, *size), align_corners=False)
    theirs = torch.nn.functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    error, recipe = (float((v.double() - torch.from_numpy(exact)).abs().max()) for v in (ours, theirs))
    with capsys.disabled():
        print(f"\nfloat32 at 4096 x 4096, {impl}: {error:.1e} of the range, affine_grid + grid_sample {recipe:.1e}")
    assert error <= 2e-6
    assert recipe > 100 * error
