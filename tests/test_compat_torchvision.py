"""`compat.torchvision`: what its functions are defined as, slice and `interpolate`, and what continues them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

import diffcrop
from diffcrop.compat.torchvision import resized_crop, roi_align

f64 = torch.float64


def by_definition(img, top, left, height, width, size, interpolation="bilinear", antialias=True):
    """Pad where the slice leaves the image, slice, resize."""
    h, w = img.shape[-2:]
    margins = (max(-left, 0), max(left + width - w, 0), max(-top, 0), max(top + height - h, 0))
    padded = functional.pad(img, margins)
    region = padded[..., top + margins[2] :, left + margins[0] :][..., :height, :width]
    options = {} if interpolation.startswith("nearest") else {"antialias": antialias, "align_corners": False}
    return functional.interpolate(region[None], size, mode=interpolation, **options)[0]


SLICES = {
    "inside": (2, 3, 7, 5),
    "whole": (0, 0, 12, 11),
    "one pixel": (4, 6, 1, 1),
    "over the corner": (-3, -2, 9, 7),
    "over the other": (7, 8, 9, 6),
    "around": (-2, -1, 17, 15),
    "outside": (20, 3, 4, 4),
    "left of it": (2, -9, 4, 4),
}


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "nearest-exact"])
@pytest.mark.parametrize("size", [(3, 2), (9, 14), (1, 1)], ids=str)
@pytest.mark.parametrize("where", SLICES.values(), ids=SLICES)
def test_whole_numbers(where, size, interpolation, antialias, generator):
    img = torch.rand(3, 12, 11, generator=generator, dtype=f64)
    found = resized_crop(img, *where, size, interpolation, antialias)
    torch.testing.assert_close(found, by_definition(img, *where, size, interpolation, antialias), rtol=0, atol=1e-13)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 2), (9, 14)], ids=str)
@pytest.mark.parametrize("where", SLICES.values(), ids=SLICES)
def test_real_numbers_continue_them(where, size, interpolation, generator):
    """At whole numbers, and a little to the right of them."""
    img = torch.rand(3, 12, 11, generator=generator, dtype=f64)
    expected = by_definition(img, *where, size, interpolation)
    real = [torch.tensor(float(v), dtype=f64) for v in where]
    torch.testing.assert_close(resized_crop(img, *real, size, interpolation), expected, rtol=0, atol=1e-12)
    near = [v + 1e-9 for v in real]
    torch.testing.assert_close(resized_crop(img, *near, size, interpolation), expected, rtol=0, atol=1e-7)
    near = [v - 1e-9 for v in real]
    torch.testing.assert_close(resized_crop(img, *near, size, interpolation), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [(3, 2), (9, 14)], ids=str)
def test_bilinear_without_antialiasing_continues_too(size, generator):
    img = torch.rand(3, 12, 11, generator=generator, dtype=f64)
    for where in SLICES.values():
        found = resized_crop(img, *map(float, where), size, antialias=False)
        torch.testing.assert_close(found, by_definition(img, *where, size, antialias=False), rtol=0, atol=1e-12)


def padded(img, first, last):
    """Zeros as if the image went from (first, first) to (last, last)."""
    h, w = img.shape[-2:]
    return functional.pad(img, (-first, last - w, -first, last - h))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_slices_that_leave_the_image_see_zeros(interpolation, whole, antialias, generator):
    """Values and gradients are those of an image that has these zeros, of which the slice leaves nothing out."""
    if interpolation == "bicubic" and not antialias and not whole:
        pytest.skip("refused")
    for where in [(-3.25, -2.5, 9.75, 7.25), (7.5, 8.25, 9.0, 6.5), (-30.0, -1.25, 55.5, 16.0), (-9.5, 3.0, 4.0, 5.5)]:
        img = torch.rand(2, 12, 11, generator=generator, dtype=f64, requires_grad=True)
        wide = padded(img, -40, 60)
        at = [int(v) if whole else torch.tensor(v, dtype=f64, requires_grad=True) for v in where]
        there = [at[0] + 40, at[1] + 40, *at[2:]]
        found = resized_crop(img, *at, (4, 5), interpolation, antialias)
        expected = resized_crop(wide, *there, (4, 5), interpolation, antialias)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        weight = torch.rand(found.shape, generator=generator, dtype=f64)
        inputs = [img] if whole else [img, *at]
        if found.requires_grad:
            mine, theirs = (
                torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True) for out in (found, expected)
            )
            for one, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("interpolation", "antialias", "kind"), [
    ("bilinear", True, int), ("bilinear", False, int), ("bicubic", False, int), ("nearest", True, int),
    ("nearest-exact", True, int), ("bilinear", True, float), ("bilinear", False, float), ("bicubic", True, float),
])  # fmt: skip
def test_no_more_than_the_image_is_made(interpolation, antialias, kind):
    """A slice of 2^30 rows, of which the image has the first, is one of 2^16 rows but for its scale."""
    img = torch.ones(1, 64, 8)
    long, short = (
        resized_crop(img, kind(0), kind(0), kind(rows), kind(8), (8, 1), interpolation, antialias)
        for rows in (2**30, 2**16)
    )
    averaged = antialias and not interpolation.startswith("nearest")
    assert short[0, 0].item() > 0.004 or interpolation == "nearest-exact" or not antialias
    torch.testing.assert_close(long * (2**14 if averaged else 1), short, rtol=0.02, atol=1e-6)


def test_pixels_beside_the_slice_are_not_seen(generator):
    """Only those that the box touches count, and one that it covers by a quarter counts for a quarter."""
    img = torch.rand(1, 12, 11, generator=generator, dtype=f64).requires_grad_()
    resized_crop(img, 2.25, 3.0, 6.75, 5.0, (2, 2)).sum().backward()
    assert (img.grad[0, 2:9, 3:8] > 0).all()
    img.grad[0, 2:9, 3:8] = 0
    assert torch.equal(img.grad, torch.zeros_like(img))
    white = torch.zeros(1, 4, 4, dtype=f64)
    white[:, :, 1] = 1
    # One output over columns 1.75 to 4: a triangle of half-width 2.25 around 2.375.
    taps = torch.tensor([0.25, 1.0, 1.0], dtype=f64) * (1 - (torch.tensor([1.0, 2, 3], dtype=f64) - 2.375).abs() / 2.25)
    found = resized_crop(white, 0, 1.75, 4, 2.25, (1, 1)).item()
    assert found == pytest.approx((taps[0] / taps.sum()).item(), abs=1e-12)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_derivatives_of_both_orders(interpolation, generator):
    img = torch.rand(2, 7, 6, generator=generator, dtype=f64, requires_grad=True)
    numbers = [torch.tensor(v, dtype=f64, requires_grad=True) for v in (0.63, -0.71, 4.27, 5.13)]

    def function(i, *n):
        return resized_crop(i, *n, (3, 2), interpolation)

    assert torch.autograd.gradcheck(function, (img, *numbers))
    assert torch.autograd.gradgradcheck(function, (img, *numbers))


def test_whole_numbers_have_the_right_hand_derivative(generator):
    img = torch.rand(1, 12, 11, generator=generator, dtype=f64)
    weight = torch.rand(1, 3, 3, generator=generator, dtype=f64)

    def loss(*numbers):
        return (resized_crop(img, *numbers, (3, 3)) * weight).sum()

    at = [torch.tensor(v, dtype=f64, requires_grad=True) for v in (2.0, 3.0, 6.0, 5.0)]
    grads = torch.autograd.grad(loss(*at), at)
    for i, grad in enumerate(grads):
        step = 1e-6
        moved = [v.detach() + step * (j == i) for j, v in enumerate(at)]
        right = (loss(*moved) - loss(*(v.detach() for v in at))) / step
        assert grad.item() == pytest.approx(right.item(), abs=2e-5), i
        assert abs(grad.item()) > 1e-3


@pytest.mark.parametrize("size", [(4, 3), (9, 14)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bytes_are_rounded_once(interpolation, size, generator):
    img = (torch.rand(3, 12, 11, generator=generator) * 256).to(torch.uint8)
    found = resized_crop(img, 2, 3, 7, 6, size, interpolation)
    assert found.dtype == torch.uint8
    expected = by_definition(img, 2, 3, 7, 6, size, interpolation)
    assert interpolation == "bicubic" or (found.int() - expected.int()).abs().max() == 1
    exact = by_definition(img.to(f64), 2, 3, 7, 6, size, interpolation).clamp(0, 255)
    assert (found - exact).abs().max() < 0.5 + 1e-4
    assert resized_crop(img, 2.0, 3, 7, 6, size, interpolation).dtype == torch.float32


@pytest.mark.parametrize(("size", "height", "width", "shape"), [
    (4, 6, 9, (4, 6)), ([4], 9, 6, (6, 4)), (5, 5, 5, (5, 5)), ((3,), 7, 10, (3, 4)), (2, 6.3, 9.9, (2, 3)),
])  # fmt: skip
def test_one_number_is_the_shorter_side(size, height, width, shape, generator):
    img = torch.rand(1, 12, 11, generator=generator)
    assert resized_crop(img, 0, 0, height, width, size).shape == (1, *shape)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("top", [2, 2.5])
def test_leading_dimensions(leading, top, generator):
    img = torch.rand(*leading, 12, 11, generator=generator, dtype=f64)
    found = resized_crop(img, top, 3, 7, 6, (3, 4))
    assert found.shape == (*leading, 3, 4)
    flat = img.reshape(-1, 1, 12, 11)
    for one, other in zip(found.reshape(-1, 1, 3, 4), flat, strict=True):
        torch.testing.assert_close(one, resized_crop(other, top, 3, 7, 6, (3, 4)), rtol=0, atol=1e-14)


def test_other_names_of_interpolations(generator):
    img = torch.rand(1, 12, 11, generator=generator)
    for given, name in ((2, "bilinear"), (3, "bicubic"), (0, "nearest"), (SimpleNamespace(value="bicubic"), "bicubic")):
        expected = resized_crop(img, 1, 1, 6, 7, (3, 4), name)
        assert torch.equal(resized_crop(img, 1, 1, 6, 7, (3, 4), given), expected)
    assert torch.equal(resized_crop(img, 1, 1, 6, 7, 3, "bilinear", None), resized_crop(img, 1, 1, 6, 7, 3, 2, False))


def test_a_tv_tensor_gives_one(generator):
    """A class of that module, as `torchvision.tv_tensors.Image` is, gives its own; other classes a plain tensor."""

    class Image(torch.Tensor):
        __module__ = "torchvision.tv_tensors._image"

    class Other(torch.Tensor):
        pass

    assert "torchvision" not in sys.modules
    img = torch.rand(1, 12, 11, generator=generator)
    expected = resized_crop(img, 1, 1, 6, 7, (3, 4))
    found = resized_crop(img.as_subclass(Image), 1, 1, 6, 7, (3, 4))
    assert type(found) is Image
    assert torch.equal(found.as_subclass(torch.Tensor), expected)
    assert type(resized_crop(img.as_subclass(Other), 1, 1, 6, 7, (3, 4))) is torch.Tensor


IMAGE = torch.zeros(3, 8, 9)


@pytest.mark.parametrize(("error", "arguments", "said"), [
    (TypeError, {"img": [[1]]}, ("img must be a tensor", "pil_to_tensor")),
    (TypeError, {"img": IMAGE.numpy()}, ("img must be a tensor", "float32 ndarray of shape (3, 8, 9)")),
    (TypeError, {"img": IMAGE.to(torch.complex64)}, ("img must be floating-point", "complex64")),
    (TypeError, {"top": 1.5, "left": None}, ("left must be a number", "None")),
    (ValueError, {"height": 10**400}, ("height must be finite and below 2**31", "(int)")),
    (ValueError, {"img": torch.zeros(4)}, ("img must have shape (..., C, H, W)", "(4,)")),
    (ValueError, {"img": torch.zeros(3, 0, 4)}, ("at least one pixel", "(3, 0, 4)")),
    (TypeError, {"top": "1"}, ("top must be a number", "'1'")),
    (ValueError, {"left": torch.zeros(2)}, ("left must be one real number", "(2,)")),
    (ValueError, {"left": float("nan")}, ("left must be finite", "nan")),
    (ValueError, {"left": torch.tensor(float("inf"))}, ("left must be finite", "inf")),
    (ValueError, {"height": 0}, ("height must be more than 0", "got 0")),
    (ValueError, {"width": -2.0}, ("width must be more than 0", "-2.0")),
    (ValueError, {"size": (3, 4, 5)}, ("size", "(h, w)", "(3, 4, 5)")),
    (TypeError, {"size": 3.5}, ("size", "3.5")),
    (ValueError, {"size": (0, 4)}, ("size", "at least 1")),
    (ValueError, {"interpolation": "lanczos"}, ("interpolation", "'bicubic'", "'lanczos'")),
    (TypeError, {"interpolation": 1}, ("interpolation", "1 (int)")),
    (ValueError, {"interpolation": "nearest", "top": 1.5}, ("'nearest'", "whole numbers")),
    (ValueError, {"interpolation": "bicubic", "top": 1.5, "antialias": False}, ("'bicubic'", "antialias=True")),
    (TypeError, {"antialias": "warn"}, ("antialias", "'warn'")),
])  # fmt: skip
def test_errors(error, arguments, said):
    given = {"img": IMAGE, "top": 1, "left": 1, "height": 4, "width": 5, "size": (3, 4)} | arguments
    with pytest.raises(error) as caught:
        resized_crop(**given)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def by_loops(features, boxes, size, scale, ratio, aligned):
    """RoIAlign as torchvision documents it: the mean of ratio x ratio bilinear samples of each bin."""
    offset = 0.5 if aligned else 0.0
    out = torch.zeros(len(boxes), features.shape[1], *size, dtype=f64)

    def sample(image, y, x):
        if not (-1 <= y <= image.shape[1] and -1 <= x <= image.shape[2]):
            return 0.0
        y, x = min(max(y, 0.0), image.shape[1] - 1), min(max(x, 0.0), image.shape[2] - 1)
        t, l = int(y), int(x)  # noqa: E741
        b, r = min(t + 1, image.shape[1] - 1), min(l + 1, image.shape[2] - 1)
        upper = image[:, t, l] * (1 - x + l) + image[:, t, r] * (x - l)
        return upper * (1 - y + t) + (image[:, b, l] * (1 - x + l) + image[:, b, r] * (x - l)) * (y - t)

    for k, (index, *corners) in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = (c * scale - offset for c in corners)
        height, width = y1 - y0, x1 - x0
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        for i in range(size[0]):
            for j in range(size[1]):
                for a in range(ratio):
                    for c in range(ratio):
                        y = y0 + (i + (a + 0.5) / ratio) * height / size[0]
                        x = x0 + (j + (c + 0.5) / ratio) * width / size[1]
                        out[k, :, i, j] += sample(features[int(index)], y, x) / ratio**2
    return out


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(aligned, generator):
    """In torchvision's order of arguments."""
    features = torch.rand(2, 3, 6, 7, generator=generator, dtype=f64)
    boxes = torch.tensor([[1, 2.2, 3.4, 9.6, 11.8], [0, -3.1, 1.3, 6.2, 4.4], [1, 4, 4, 4.5, 4.6]], dtype=f64)
    found = roi_align(features, boxes, (2, 3), 0.5, 2, aligned)
    torch.testing.assert_close(found, by_loops(features, boxes, (2, 3), 0.5, 2, aligned), rtol=0, atol=1e-12)
    assert torch.equal(roi_align(features, boxes, 2), diffcrop.roi_align(features, boxes, 2))
    listed = [boxes[1:2, 1:], boxes[[0, 2], 1:]]
    assert torch.equal(roi_align(features, listed, 2), roi_align(features, boxes[[1, 0, 2]], 2))


@pytest.mark.parametrize("number", [2**31 - 1, -(2**31), 2**24 + 1, 2**63 - 1, -(2**63)])
def test_wide_integers_are_kept(number):
    dtype = torch.int32 if abs(number) < 2**32 else torch.int64
    image = torch.full((1, 4, 4), number, dtype=dtype)
    assert torch.equal(resized_crop(image, 0, 0, 4, 4, (2, 2)), image[:, :2, :2])
    with pytest.raises(TypeError, match="img must not be bool"):
        resized_crop(torch.ones(1, 4, 4, dtype=torch.bool), 0, 0, 4, 4, (2, 2))
