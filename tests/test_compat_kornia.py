"""`compat.kornia` against kornia, values and gradients, and where kornia has none."""

from __future__ import annotations

import pytest
import torch

from diffcrop.compat import kornia as ours

f64 = torch.float64
H, W = 7, 9


def theirs():
    return pytest.importorskip("kornia").geometry.transform


def rectangle(x0, y0, x1, y1):
    return torch.tensor([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=f64)


BOXES = {
    "upright": torch.stack([rectangle(1.3, 0.7, 6.1, 4.9), rectangle(-2.2, 1.4, 4.3, 8.6)]),
    "whole pixels and a half": torch.stack([rectangle(1, 1, 4, 5) + 0.25, rectangle(2, 0, 6, 3) + 0.25]),
    "mirrored": torch.stack([rectangle(6.1, 0.7, 1.3, 4.9), rectangle(4.3, 8.6, -2.2, 1.4)]),
    "turned": torch.tensor([[[3, 0.2], [6.3, 3], [3.1, 6.2], [0.3, 3.1]]] * 2, dtype=f64)
    + torch.tensor([0.0, 0.6], dtype=f64)[:, None, None],
    "trapezoids": torch.tensor(
        [[[1.2, 0.4], [5.1, 1.1], [7.9, 5.8], [0.2, 4.7]], [[2, 1], [9.4, -1.2], [6.2, 5.3], [1.1, 7.7]]], dtype=f64
    ),
}
BOXES["one of each"] = torch.stack([BOXES["upright"][0], BOXES["trapezoids"][0]])
# No sample on a pixel's centre or between two, where one of the two would take the other side.
BOXES = {name: boxes + torch.tensor([0.0137, 0.0171], dtype=f64) for name, boxes in BOXES.items()}


def compare(mine, other, inputs, generator, atol=1e-10):
    torch.testing.assert_close(mine, other, rtol=0, atol=atol)
    weight = torch.rand(mine.shape, generator=generator, dtype=mine.dtype)
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (mine, other))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=atol)
        assert one.abs().max() > 0.01


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_crop_and_resize(boxes, padding_mode, align_corners, generator):
    """Values with and without a wish for gradients, which go different ways, and gradients to all eight numbers."""
    image = torch.rand(2, 3, H, W, generator=generator, dtype=f64)
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    expected = theirs().crop_and_resize(image, boxes, (4, 5), **options)
    torch.testing.assert_close(ours.crop_and_resize(image, boxes, (4, 5), **options), expected, rtol=0, atol=1e-11)
    inputs = (image.requires_grad_(), boxes.clone().requires_grad_())
    mine = ours.crop_and_resize(*inputs, (4, 5), **options)
    compare(mine, theirs().crop_and_resize(*inputs, (4, 5), **options), inputs, generator)


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_modes(mode, boxes, generator):
    image = torch.rand(2, 3, H, W, generator=generator, dtype=f64)
    found = ours.crop_and_resize(image, boxes, (4, 5), mode=mode)
    torch.testing.assert_close(found, theirs().crop_and_resize(image, boxes, (4, 5), mode=mode), rtol=0, atol=1e-11)


def test_one_box_for_all_images(generator):
    image = torch.rand(3, 2, H, W, generator=generator, dtype=f64)
    box = BOXES["trapezoids"][:1]
    found = ours.crop_and_resize(image, box, (4, 5))
    torch.testing.assert_close(found, ours.crop_and_resize(image, box.expand(3, 4, 2), (4, 5)), rtol=0, atol=0)


@pytest.mark.parametrize("dst", [
    rectangle(0, 0, 4, 3), rectangle(1, 2, 5, 5), torch.tensor([[0, 0], [4, 0], [3, 3], [1, 4]], dtype=f64),
], ids=["at the origin", "moved", "no rectangle"])  # fmt: skip
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_crop_by_boxes(boxes, dst, generator):
    image = torch.rand(2, 3, H, W, generator=generator, dtype=f64)
    dst = dst.expand(2, 4, 2)
    expected = theirs().crop_by_boxes(image, boxes, dst)
    torch.testing.assert_close(ours.crop_by_boxes(image, boxes, dst), expected, rtol=0, atol=1e-11)
    inputs = (image.requires_grad_(), boxes.clone().requires_grad_(), dst.clone().requires_grad_())
    compare(ours.crop_by_boxes(*inputs), theirs().crop_by_boxes(*inputs), inputs, generator)


def test_sizes_are_those_of_the_second_box(generator):
    image = torch.rand(2, 1, H, W, generator=generator, dtype=f64)
    src = BOXES["upright"]
    assert ours.crop_by_boxes(image, src, rectangle(2, 1, 5, 7).expand(2, 4, 2)).shape == (2, 1, 7, 4)
    different = torch.stack([rectangle(0, 0, 3, 3), rectangle(0, 0, 2, 3)])
    with pytest.raises(ValueError, match=r"dst_box must give one width, .* got \[4.0, 3.0\]"):
        ours.crop_by_boxes(image, src, different)
    assert ours.crop_by_boxes(image, src, different, validate_boxes=False).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match="one height, a whole number"):
        ours.crop_by_boxes(image, src, rectangle(0, 0, 3, 2.5).expand(2, 4, 2))
    assert ours.crop_by_boxes(image, src, rectangle(0, 0, 3, 2.5).expand(2, 4, 2), validate_boxes=False).shape[2] == 3


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("rows", [2, 3])
def test_crop_by_transform_mat(rows, align_corners, generator):
    image = torch.rand(2, 3, H, W, generator=generator, dtype=f64, requires_grad=True)
    matrix = torch.eye(3, dtype=f64) + 0.1 * torch.rand(2, 3, 3, generator=generator, dtype=f64)
    matrix[:, 2, :2] *= 0.1
    matrix[:, :2, 2] *= 8
    matrix = matrix[:, :rows].clone().requires_grad_()
    mine = ours.crop_by_transform_mat(image, matrix, (5, 6), align_corners=align_corners)
    other = theirs().crop_by_transform_mat(image, matrix, (5, 6), align_corners=align_corners)
    compare(mine, other, (image, matrix), generator)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_beyond_the_horizon(padding_mode, generator):
    """Z = 1 - 0.22 u: the middle of eight columns sees the first five, kornia the others as well, upside down."""
    image = torch.rand(1, 2, H, W, generator=generator, dtype=f64) + 1
    inverse = torch.tensor([[[-1.0, 0.03, 3.2], [-0.6, 1.0, 1.1], [-0.22, 0.0, 1.0]]], dtype=f64)
    transform = torch.linalg.inv(inverse)
    found = ours.crop_by_transform_mat(image, transform, (6, 8), padding_mode=padding_mode)
    expected = theirs().crop_by_transform_mat(image, transform, (6, 8), padding_mode=padding_mode)
    torch.testing.assert_close(found[..., :5], expected[..., :5], rtol=0, atol=1e-10)
    assert found[..., :5, :2].min() > 0.5
    assert (found[..., 5:] == 0).all()
    assert (expected[..., 5:] > 0.5).any()


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("size", [(4, 5), (5, 4), (7, 9), (10, 12), (1, 1)], ids=str)
def test_center_crop(size, padding_mode, generator):
    image = torch.rand(2, 3, H, W, generator=generator, dtype=f64, requires_grad=True)
    mine = ours.center_crop(image, size, padding_mode=padding_mode)
    compare(mine, theirs().center_crop(image, size, padding_mode=padding_mode), (image,), generator)


@pytest.mark.parametrize("align_corners", [True, False])
def test_one_pixel(align_corners, generator):
    """Where kornia gives NaN: a crop of one pixel is the middle of its box, and moves with it."""
    image = torch.rand(1, 1, H, W, generator=generator, dtype=f64)
    box = rectangle(1.2, 2.4, 5.4, 5.1)[None]
    assert theirs().crop_and_resize(image, box, (1, 1)).isnan().all()
    middle = ours.crop_and_resize(image, rectangle(3.3, 3.75, 3.3, 3.75)[None], (1, 1), align_corners=align_corners)
    assert middle.isfinite().all()
    found = ours.crop_and_resize(image, box, (1, 1), align_corners=align_corners)
    torch.testing.assert_close(found, middle, rtol=0, atol=1e-12)
    column = ours.crop_and_resize(image, box, (4, 1), align_corners=align_corners)
    wide = ours.crop_and_resize(image, box, (4, 3), align_corners=align_corners)
    torch.testing.assert_close(column, wide[..., 1:2], rtol=0, atol=1e-12)
    point = rectangle(3.3, 3.75, 3.3, 3.75)[None].requires_grad_()
    ours.crop_and_resize(image, point, (1, 1), align_corners=align_corners).sum().backward()
    assert point.grad.isfinite().all()
    assert (point.grad != 0).all()


def test_one_pixel_as_kornia_has_it(generator):
    """Both boxes of one pixel: kornia moves the image by whole numbers."""
    image = torch.rand(1, 1, H, W, generator=generator, dtype=f64)
    src = rectangle(3, 2, 3, 5)[None]
    found = ours.crop_and_resize(image, src, (4, 1))
    torch.testing.assert_close(found, theirs().crop_and_resize(image, src, (4, 1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, image[..., 2:6, 3:4], rtol=0, atol=1e-12)


def test_derivatives_of_both_orders(generator):
    image = torch.rand(1, 1, 5, 6, generator=generator, dtype=f64, requires_grad=True)
    box = BOXES["upright"][:1].clone().requires_grad_()
    quad = (BOXES["trapezoids"][:1] * 0.7).clone().requires_grad_()
    for corners in (box, quad):
        assert torch.autograd.gradcheck(lambda i, b: ours.crop_and_resize(i, b, (3, 2)), (image, corners))
        assert torch.autograd.gradgradcheck(lambda i, b: ours.crop_and_resize(i, b, (3, 2)), (image, corners))


def test_transforms(generator):
    image = torch.rand(2, 1, H, W, generator=generator, dtype=f64)
    one, other = (
        jacobian(lambda b: ours.crop_and_resize(image, b, (3, 2)))(BOXES["upright"])
        for jacobian in (torch.func.jacfwd, torch.func.jacrev)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert one.abs().max() > 0.1


def test_boxes_beside_a_batch_are_looked_at(generator):
    """A box of one row has no projective map, but is defined under vmap of the image alone, too."""
    images = torch.rand(3, 1, 1, H, W, generator=generator, dtype=f64)
    row = rectangle(1, 2, 4, 2)[None]
    expected = torch.stack([ours.crop_and_resize(image, row, (1, 3)) for image in images])
    assert expected.isfinite().all()
    assert torch.equal(torch.func.vmap(lambda i: ours.crop_and_resize(i, row, (1, 3)))(images), expected)


def test_a_nan_box_stays_alone(generator):
    image = torch.rand(2, 1, H, W, generator=generator, dtype=f64, requires_grad=True)
    boxes = BOXES["trapezoids"].clone()
    boxes[1, 2, 0] = float("nan")
    found = ours.crop_and_resize(image, boxes, (3, 4))
    assert found.isnan().flatten(1).all(1).tolist() == [False, True]
    found.sum().backward()
    assert image.grad.isfinite().all()


def test_dtypes(generator):
    image = (torch.rand(2, 3, H, W, generator=generator) * 100).to(torch.uint8)
    found = ours.crop_and_resize(image, BOXES["upright"].float(), (4, 5))
    assert found.dtype == torch.float32
    expected = ours.crop_and_resize(image.to(f64), BOXES["upright"].float().to(f64), (4, 5))
    torch.testing.assert_close(found.to(f64), expected, rtol=0, atol=1e-4)


IMAGE, BOX = torch.zeros(2, 3, H, W), BOXES["upright"]
GRAD, FLAT = BOX.clone().requires_grad_(), rectangle(0, 0, 3, 4)[None]


@pytest.mark.parametrize(("error", "call", "said"), [
    (TypeError, lambda: ours.crop_and_resize([1], BOX, (3, 4)), ("input_tensor", "(B, C, H, W)", "[1]")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE[0], BOX, (3, 4)), ("input_tensor", "(3, 7, 9)")),
    (TypeError, lambda: ours.crop_and_resize(IMAGE, [BOX], (3, 4)), ("boxes", "(B, 4, 2)")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX[0], (3, 4)), ("boxes", "(B, 4, 2)", "(4, 2)")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX.mT, (3, 4)), ("boxes", "clockwise", "(2, 2, 4)")),
    (TypeError, lambda: ours.crop_and_resize(IMAGE, BOX.bool(), (3, 4)), ("boxes", "real numbers")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX[[0, 0, 0]], (3, 4)), ("each of 2 images", "(3, 4, 2)")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX.to("meta"), (3, 4)), ("same device", "meta")),
    (TypeError, lambda: ours.crop_and_resize(IMAGE, BOX, 3), ("size must be (h, w)", "3 (int)")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX, (3, 0)), ("size", "at least 1")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX, (3, 4), "area"), ("mode must be one of", "'area'")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX, (3, 4), "bilinear", "fill"), ("padding_mode", "'fill'")),
    (TypeError, lambda: ours.crop_and_resize(IMAGE, BOX, (3, 4), align_corners=None), ("align_corners", "None")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, BOX[:, [0, 2, 1, 3]], (3, 4)), ("boxes must be convex",)),
    (ValueError, lambda: ours.crop_by_boxes(IMAGE, BOX[:, [0, 2, 1, 3]], FLAT), ("src_box must be convex",)),
    (TypeError, lambda: ours.crop_and_resize(IMAGE.numpy(), BOX, (3, 4)), ("a float32 ndarray of shape (2, 3, 7, 9)",)),
    (TypeError, lambda: ours.center_crop(IMAGE.to(torch.complex64), (3, 4)), ("input_tensor must be floating-point",)),
    (ValueError, lambda: ours.center_crop(IMAGE[:, :, :0], (3, 4)), ("input_tensor must have at least one pixel",)),
    (ValueError, lambda: ours.crop_by_transform_mat(IMAGE, torch.eye(3)[None], (3, 2**27)), ("out_size", "2**27")),
    (ValueError, lambda: ours.crop_and_resize(IMAGE, GRAD, (3, 4), "nearest"), ("boxes requires grad",)),
    (ValueError, lambda: ours.crop_by_boxes(IMAGE, GRAD, BOX, "nearest"), ("src_box requires grad",)),
    (TypeError, lambda: ours.crop_by_boxes(IMAGE, BOX, None), ("dst_box", "None")),
    (TypeError, lambda: ours.crop_by_boxes(IMAGE, BOX, BOX, validate_boxes=1), ("validate_boxes", "1 (int)")),
    (ValueError, lambda: ours.crop_by_boxes(IMAGE, BOX, rectangle(0, 0, -3, 4)[None]), ("one width", "at least 1")),
    (ValueError, lambda: ours.crop_by_transform_mat(IMAGE, torch.eye(3), (3, 4)), ("transform", "(3, 3)")),
    (ValueError, lambda: ours.crop_by_transform_mat(IMAGE, torch.eye(4)[None], (3, 4)), ("transform", "(1, 4, 4)")),
    (ValueError, lambda: ours.crop_by_transform_mat(IMAGE, torch.zeros(1, 3, 3), (3, 4)), ("invertible",)),
    (ValueError, lambda: ours.center_crop(IMAGE, (3,)), ("size", "(3,)")),
])  # fmt: skip
def test_errors(error, call, said):
    with pytest.raises(error) as caught:
        call()
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_fake_tensors_are_not_looked_at():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert ours.crop_and_resize(torch.rand(1, 3, 8, 8), torch.rand(1, 4, 2), (4, 5)).shape == (1, 3, 4, 5)
