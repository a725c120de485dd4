"""Every row of the shape table, for signals, images and volumes, equals crops of one image at one box."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import diffcrop
from diffcrop import convert_boxes, coverage, crop, crop_with_jacobian

f64 = torch.float64
B, C, K, R = 3, 2, 2, 5
SPATIAL = {1: (9,), 2: (7, 9), 3: (5, 7, 9)}
SIZE = {1: (5,), 2: (4, 5), 3: (3, 4, 5)}
INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def images(axes, generator, *leading, spatial=None):
    return torch.rand(*leading, *(spatial or SPATIAL[axes]), generator=generator, dtype=f64)


def boxes(axes, generator, *leading):
    """Inside, across and outside, some mirrored, about twice reduced or enlarged."""
    extent = torch.tensor(SPATIAL[axes][::-1], dtype=f64)
    corners = torch.rand(*leading, 2, axes, generator=generator, dtype=f64) * 1.4 - 0.2
    return (corners * extent).flatten(-2)


def row_of_table(name, axes, generator):
    """(images, boxes, batch_index, leading shape of the result, the image and the box of each of its crops)."""
    batch, image = images(axes, generator, B, C), images(axes, generator, C)
    ragged = [images(axes, generator, C, spatial=[n + b for n in SPATIAL[axes]]) for b in range(B)]
    index = torch.tensor([2, 0, 0, 2, 1])
    given = {
        "one box": boxes(axes, generator, 1)[0],
        "K": boxes(axes, generator, K),
        "B": boxes(axes, generator, B),
        "BK": boxes(axes, generator, B, K),
        "list": [boxes(axes, generator, n) for n in (2, 0, 3)],
        "R": boxes(axes, generator, R),
    }
    kind, _, which = name.partition(", ")
    source = {"image": image, "batch": batch, "ragged": ragged}[kind]
    box = given[which]
    if kind == "image":
        rows = [box] if box.ndim == 1 else list(box)
        return image, box, None, tuple(box.shape[:-1]), [(image, b) for b in rows]
    if which == "one box":
        return source, box, None, (B,), [(i, box) for i in source]
    if which == "B":
        return source, box, None, (B,), list(zip(source, box, strict=True))
    if which == "BK":
        return source, box, None, (B, K), [(i, b) for i, mine in zip(source, box, strict=True) for b in mine]
    if which == "list":
        return source, box, None, (R,), [(i, b) for i, mine in zip(source, box, strict=True) for b in mine]
    return source, box, index, (R,), [(source[i], b) for i, b in zip(index.tolist(), box, strict=True)]


TABLE = [
    "image, one box", "image, K",
    "batch, one box", "batch, B", "batch, BK", "batch, list", "batch, R",
    "ragged, one box", "ragged, B", "ragged, BK", "ragged, list", "ragged, R",
]  # fmt: skip


def leaves(value):
    """The tensors of an argument, as leaves of a new graph, and the argument made of them."""
    if isinstance(value, (list, tuple)):
        made = [t.clone().requires_grad_() for t in value]
        return made, made
    made = value.clone().requires_grad_()
    return [made], made


# Triton's kernels serve images alone.
IMPLEMENTATIONS = [name for name, reason in diffcrop.implementations().items() if reason is None]
SERVED = [(impl, axes) for impl in IMPLEMENTATIONS for axes in (1, 2, 3) if axes == 2 or impl != "triton"]
EVERY_ROW = [(impl, axes, row) for (impl, axes), row in itertools.product(SERVED, TABLE)]
SOME_ROWS = ("image, K", "batch, BK", "batch, R", "ragged, list")
FEWER_ROWS = [(impl, axes, row) for impl, axes, row in EVERY_ROW if axes == 2 or row in SOME_ROWS]


def same(impl, actual, expected):
    """The kernels do each crop alone, so bit for bit; the reference's sums are batched."""
    if impl == "reference":
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("impl", "axes", "row"), EVERY_ROW)
def test_rows_of_the_table(impl, axes, row, generator):
    source, given, index, leading, pairs = row_of_table(row, axes, generator)
    expected = torch.stack([crop(i, b, SIZE[axes], impl=impl) for i, b in pairs])
    result = crop(source, given, SIZE[axes], batch_index=index, impl=impl)
    assert result.shape == (*leading, C, *SIZE[axes])
    same(impl, result.reshape(expected.shape), expected)
    # Not the crops of other boxes, so that the order is what is tested.
    assert len(pairs) == 1 or not torch.equal(result.reshape(expected.shape), expected.flip(0))


@pytest.mark.parametrize(("impl", "axes", "row"), FEWER_ROWS)
def test_gradients_reach_every_image_and_box(impl, axes, row, generator):
    """They are the sums of those of the single crops."""
    source, given, index, leading, _ = row_of_table(row, axes, generator)
    source_leaves, source = leaves(source)
    box_leaves, given = leaves(given)
    weight = torch.rand(*leading, C, *SIZE[axes], generator=generator, dtype=f64)
    loss = (crop(source, given, SIZE[axes], batch_index=index, impl=impl) * weight).sum()
    got = torch.autograd.grad(loss, source_leaves + box_leaves)

    flat = [(source, given)]
    if row.startswith("image"):
        flat = [(source, b) for b in given.reshape(-1, 2 * axes)]
    elif row.endswith("one box"):
        flat = [(i, given) for i in source]
    elif index is not None:
        flat = [(source[i], b) for i, b in zip(index.tolist(), given, strict=True)]
    else:
        flat = [(i, b) for i, mine in zip(source, given, strict=True) for b in mine.reshape(-1, 2 * axes)]
    single = torch.stack([crop(i, b, SIZE[axes], impl=impl) for i, b in flat])
    expected = torch.autograd.grad(
        single, source_leaves + box_leaves, weight.reshape(single.shape), materialize_grads=True
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    # Only an image without boxes (the second one of "ragged, list") and a box of no rows have nothing to say.
    silent = [g for g in got if not (g != 0).any()]
    assert len(silent) == {"ragged, list": 2, "batch, list": 1}.get(row, 0)


@pytest.mark.parametrize(("impl", "axes"), SERVED)
def test_lists_without_boxes(impl, axes, generator):
    """K_b = 0 for some, for all, and a batch of lists: nothing of nothing, with a gradient of nothing."""
    batch = images(axes, generator, B, C).requires_grad_()
    for source in (batch, list(batch)):
        none = [boxes(axes, generator, 0).requires_grad_() for _ in range(B)]
        result = crop(source, none, SIZE[axes], impl=impl)
        assert result.shape == (0, C, *SIZE[axes])
        assert result.dtype == f64
        by_batch, *by_boxes = torch.autograd.grad(result.sum(), [batch, *none], materialize_grads=True)
        assert torch.equal(by_batch, torch.zeros_like(batch))
        assert all(g.shape == (0, 2 * axes) for g in by_boxes)


@pytest.mark.parametrize("shape", [(0, 4), (B, 0, 4)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_zero_boxes(impl, shape, mode, generator):
    source = images(2, generator, *(() if len(shape) == 2 else (B,)), C).requires_grad_()
    given = torch.zeros(shape, dtype=f64, requires_grad=mode != "nearest")
    result = crop(source, given, SIZE[2], mode=mode, impl=impl)
    assert result.shape == (*shape[:-1], C, *SIZE[2])
    result.sum().backward()
    assert torch.equal(source.grad, torch.zeros_like(source))
    index = torch.zeros(0, dtype=torch.int64)
    batch = images(2, generator, B, C)
    for each in (batch, list(batch)):
        assert crop(each, given[:0].reshape(0, 4), 3, batch_index=index, mode=mode, impl=impl).shape == (0, C, 3, 3)


@pytest.mark.parametrize(("boxes_shape", "leading"), [((4,), (0,)), ((0, 4), (0,)), ((0, K, 4), (0, K))])
def test_zero_images(impl, boxes_shape, leading):
    source = torch.zeros(0, C, 7, 9, requires_grad=True)
    given = torch.zeros(boxes_shape, requires_grad=True)
    result = crop(source, given, (4, 5), impl=impl)
    assert result.shape == (*leading, C, 4, 5)
    by_images, by_boxes = torch.autograd.grad(result.sum(), (source, given))
    assert by_images.shape == source.shape
    assert torch.equal(by_boxes, torch.zeros(boxes_shape))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("kind", ["batch", "ragged"])
def test_batch_index_in_any_integer_dtype_and_order(impl, dtype, kind, generator):
    source, given, index, _, _ = row_of_table(f"{kind}, R", 2, generator)
    expected = crop(source, given, 4, batch_index=index, impl=impl)
    assert torch.equal(crop(source, given, 4, batch_index=index.to(dtype), impl=impl), expected)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = crop(source, given[order], 4, batch_index=index[order].to(dtype), impl=impl)
    same(impl, shuffled, expected[order])
    assert not torch.equal(shuffled, expected)
    strided = index.to(dtype).repeat_interleave(2)[::2]
    assert torch.equal(crop(source, given, 4, batch_index=strided, impl=impl), expected)


# --- other spellings of a call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [
    (4, (4, 4)), ((4, 5), (4, 5)), ([4, 5], (4, 5)), (torch.Size([4, 5]), (4, 5)),
    ((np.int64(4), np.int32(5)), (4, 5)), (torch.zeros(4, 5).shape, (4, 5)), (np.int16(4), (4, 4)),
])  # fmt: skip
def test_sizes(impl, given, expected, generator):
    image, box = images(2, generator, C), boxes(2, generator, 1)[0]
    result = crop(image, box, given, impl=impl)
    assert result.shape == (C, *expected)
    assert torch.equal(result, crop(image, box, expected, impl=impl))


def test_a_size_of_one_number_is_for_every_axis(generator):
    for axes in (1, 2, 3):
        result = crop(images(axes, generator, C), boxes(axes, generator, K), 2)
        assert result.shape == (K, C, *[2] * axes)


KINDS = list(itertools.product(("xyxy", "xywh", "cxcywh"), ("pixel", "unit", "normalized"), (False, True)))
# For signals and volumes one of them, with every axis in it.
SPELLINGS = [
    (impl, axes, *kind) for (impl, axes), kind in itertools.product(SERVED, KINDS) if axes == 2 or kind == KINDS[-1]
]


@pytest.mark.parametrize(("impl", "axes", "box_format", "coords", "align_corners"), SPELLINGS)
def test_formats_and_coordinates_equal_converted_boxes(impl, axes, box_format, coords, align_corners, generator):
    """Value, image gradient, and box gradient by the chain rule of `convert_boxes`."""
    image = images(axes, generator, C).requires_grad_()
    pixel = boxes(axes, generator, K)
    kind = {"align_corners": align_corners}
    given = convert_boxes(pixel, SPATIAL[axes], to_format=box_format, to_coords=coords, **kind).requires_grad_()
    back = convert_boxes(given, SPATIAL[axes], from_format=box_format, from_coords=coords, **kind)
    expected = crop(image, back, SIZE[axes], impl=impl, **kind)
    result = crop(image, given, SIZE[axes], box_format=box_format, coords=coords, impl=impl, **kind)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-13)
    weight = torch.rand(result.shape, generator=generator, dtype=f64)
    for mine, theirs in zip(
        torch.autograd.grad(result, (image, given), weight),
        torch.autograd.grad(expected, (image, given), weight),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    if (box_format, coords) != ("xyxy", "pixel"):  # the same numbers read otherwise are another crop
        assert (result - crop(image, given, SIZE[axes], impl=impl, **kind)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [
    torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64,
])  # fmt: skip
@pytest.mark.parametrize("box_format", ["xyxy", "cxcywh"])
def test_half_and_whole_boxes_are_promoted(impl, dtype, box_format, generator):
    """Whatever a box is made of, its numbers are what counts; half precision gets its gradient in half precision."""
    image = images(2, generator, C)
    numbers = torch.tensor([[1, 2, 6, 7], [3, 2, 4, 2]], dtype=f64)
    if dtype.is_floating_point:
        numbers = numbers + 0.25
    expected = crop(image, numbers, 4, box_format=box_format, impl=impl)
    given = numbers.to(dtype).requires_grad_(dtype.is_floating_point)
    result = crop(image, given, 4, box_format=box_format, impl=impl)
    assert result.dtype == f64
    assert torch.equal(result, expected)
    if dtype.is_floating_point:
        exact = numbers.clone().requires_grad_()
        crop(image, exact, 4, box_format=box_format, impl=impl).sum().backward()
        result.sum().backward()
        assert given.grad.dtype == dtype
        torch.testing.assert_close(given.grad.double(), exact.grad, rtol=0.01, atol=0.01)


def test_whole_boxes_beyond_float32(impl):
    """int64 is read in float64: a column number that float32 cannot hold names its column."""
    wide = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, 1, 2**24 + 3).contiguous()
    wide[..., -2:] = torch.tensor([7, 9], dtype=torch.uint8)
    box = torch.tensor([2**24 + 1, 0, 2**24 + 3, 1])
    assert crop(wide, box, (1, 2), mode="nearest", impl=impl).tolist() == [[[7, 9]]]


@pytest.mark.parametrize(("dtype", "fill"), [(torch.int32, 2**24 + 1), (torch.int64, 2**40 + 1), (torch.uint8, 255)])
def test_whole_fills_beyond_float32(impl, dtype, fill):
    """A fill that the image's dtype holds is what stands outside of it, to the last digit."""
    outside = torch.tensor([-9.0, -9, -5, -5])
    options = {"mode": "nearest", "padding_mode": "constant", "fill": fill, "impl": impl}
    result = crop(torch.ones(1, 4, 4, dtype=dtype), outside, 1, **options)
    assert result.dtype == dtype
    assert result.item() == fill


# --- layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bilinear", "area", "nearest"])
def test_channels_last_of_each_crop(impl, mode, generator):
    """(B, K, C, h, w) cannot be channels_last, but each [b, k] is, and so is the image's gradient."""
    source = images(2, generator, B, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    given = boxes(2, generator, B, K)
    contiguous = crop(source.detach().contiguous(), given, (4, 5), mode=mode, impl=impl)
    result = crop(source, given, (4, 5), mode=mode, impl=impl)
    assert result.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    for b, k in itertools.product(range(B), range(K)):
        assert result[b, k].stride() == (1, 5 * 3, 3)
    torch.testing.assert_close(result, contiguous, rtol=0, atol=1e-15)
    assert contiguous.is_contiguous()
    (grad,) = torch.autograd.grad(result.sum(), source)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    for k in ((4,), (B, 4)):
        result = crop(source, boxes(2, generator, *k[:-1], 1).reshape(k), (4, 5), mode=mode, impl=impl)
        assert result.is_contiguous(memory_format=torch.channels_last)


# --- the other functions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("impl", "axes", "row"), [case for case in FEWER_ROWS if "list" not in case[2] and "ragged" not in case[2]]
)
def test_jacobians_follow_the_table(impl, axes, row, generator):
    source, given, index, leading, pairs = row_of_table(row, axes, generator)
    value, jacobian = crop_with_jacobian(source, given, SIZE[axes], batch_index=index, impl=impl)
    assert torch.equal(value, crop(source, given, SIZE[axes], batch_index=index, impl=impl))
    assert jacobian.shape == (*leading, C, *SIZE[axes], 2 * axes)
    expected = torch.stack([crop_with_jacobian(i, b, SIZE[axes], impl=impl).jacobian for i, b in pairs])
    torch.testing.assert_close(jacobian.reshape(expected.shape), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("impl", "axes"), SERVED)
@pytest.mark.parametrize("leading", [(), (K,), (2, B, K), (0,), (2, 0)])
def test_coverage_takes_any_leading_shape(impl, axes, leading, generator):
    given = boxes(axes, generator, *leading, 1).reshape(*leading, 2 * axes)
    result = coverage(given, SIZE[axes], SPATIAL[axes], impl=impl)
    assert result.shape == (*leading, *SIZE[axes])
    flat = given.reshape(-1, 2 * axes)
    expected = [coverage(b, SIZE[axes], SPATIAL[axes], impl=impl) for b in flat]
    if expected:
        same(impl, result.reshape(-1, *SIZE[axes]), torch.stack(expected))


def test_the_module_takes_every_row(impl, generator):
    for row in TABLE:
        source, given, index, _, _ = row_of_table(row, 2, generator)
        expected = crop(source, given, SIZE[2], batch_index=index, impl=impl)
        assert torch.equal(diffcrop.nn.Crop(SIZE[2], impl=impl)(source, given, index), expected)


def test_the_choice_of_an_implementation_changes_no_shape(generator):
    """impl=None takes every row and gives what a named implementation gives."""
    for axes, row in itertools.product((1, 2, 3), TABLE):
        source, given, index, leading, _ = row_of_table(row, axes, generator)
        result = crop(source, given, SIZE[axes], batch_index=index)
        assert result.shape == (*leading, C, *SIZE[axes])
        reference = crop(source, given, SIZE[axes], batch_index=index, impl="reference")
        torch.testing.assert_close(result, reference, rtol=0, atol=1e-13)
