"""`compat.tensorflow` against the published definition, written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import diffcrop
from diffcrop.compat.tensorflow import crop_and_resize

f64 = torch.float64


def by_definition(image, boxes, index, size, method="bilinear", outside=0.0):
    """TensorFlow's loops, in float64."""
    _, height, width, depth = image.shape
    out = torch.zeros(len(boxes), *size, depth, dtype=f64)
    for r, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
        for i in range(size[0]):
            y = place(y1, y2, i, size[0], height)
            for j in range(size[1]):
                x = place(x1, x2, j, size[1], width)
                if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
                    out[r, i, j] = outside
                    continue
                source = image[int(index[r])].to(f64)
                if method == "nearest":
                    out[r, i, j] = source[math.floor(y + 0.5), math.floor(x + 0.5)]
                    continue
                top, left = math.floor(y), math.floor(x)
                below, right = math.ceil(y), math.ceil(x)
                upper = source[top, left] + (source[top, right] - source[top, left]) * (x - left)
                lower = source[below, left] + (source[below, right] - source[below, left]) * (x - left)
                out[r, i, j] = upper + (lower - upper) * (y - top)
    return out


def place(lo, hi, i, n, pixels):
    if n == 1:
        return 0.5 * (lo + hi) * (pixels - 1)
    return lo * (pixels - 1) + i * (hi - lo) * (pixels - 1) / (n - 1)


def scene(generator, rows=7, shape=(3, 6, 8, 2), reach=0.4):
    image = torch.rand(shape, generator=generator, dtype=f64)
    boxes = torch.rand(rows, 4, generator=generator, dtype=f64) * (1 + 2 * reach) - reach
    return image, boxes, torch.randint(shape[0], (rows,), generator=generator, dtype=torch.int32)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (1, 7), (9, 1)], ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 8, 2), (1, 1, 5, 3), (2, 4, 1, 1)], ids=str)
def test_values(method, size, shape, generator):
    image, boxes, index = scene(generator, shape=shape)
    found = crop_and_resize(image, boxes, index, size, method, -7.5)
    expected = by_definition(image, boxes, index, size, method, -7.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert found.is_contiguous()


def test_some_outputs_are_outside(generator):
    """What `test_values` compares is of both kinds, the mixed rows of one box among them."""
    image, boxes, index = scene(generator)
    outside = crop_and_resize(image, boxes, index, (4, 5), "bilinear", -7.5) == -7.5
    assert 0.2 < outside.double().mean() < 0.8
    assert (outside.flatten(1).any(1) & ~outside.flatten(1).all(1)).any()


def test_the_ends_of_the_image_are_inside():
    """Exactly at the first and the last pixel centre, whatever the rounding on the way there."""
    image = torch.ones(1, 7, 11, 1)
    for lo in torch.linspace(0, 1, 50).tolist():
        box = torch.tensor([[lo, lo, 1.0, 1.0], [0.0, 0.0, lo, lo]])
        assert (
            crop_and_resize(image, box, torch.zeros(2, dtype=torch.int64), (6, 13), extrapolation_value=9.0) == 1
        ).all()
    beyond = torch.tensor([[0.0, 0.0, 1.0 + 2**-22, 1.0]])
    found = crop_and_resize(image, beyond, torch.tensor([0]), (3, 3), extrapolation_value=9.0)[0, :, :, 0]
    assert found.tolist() == [[1, 1, 1], [1, 1, 1], [9, 9, 9]]


def test_nearest_takes_halves_away_from_zero():
    image = torch.arange(5.0).reshape(1, 1, 5, 1)
    half = torch.tensor([[0.0, 0.125, 0.0, 0.875]])  # 0.5, 1.5, 2.5, 3.5
    assert crop_and_resize(image, half, torch.tensor([0]), (1, 4), "nearest").flatten().tolist() == [1, 2, 3, 4]


def test_the_box_gradient_is_tensorflows(generator):
    """By TensorFlow's formula: the derivative of the surface at each sample, none of which is on a pixel centre."""
    image, boxes, index = scene(generator)
    boxes = boxes.requires_grad_()
    size = (4, 5)
    weight = torch.rand(7, *size, 2, generator=generator, dtype=f64)
    (crop_and_resize(image, boxes, index, size) * weight).sum().backward()
    expected = torch.zeros_like(boxes)
    _, height, width, _ = image.shape
    for r, (y1, x1, y2, x2) in enumerate(boxes.tolist()):
        for i in range(size[0]):
            y = place(y1, y2, i, size[0], height)
            for j in range(size[1]):
                x = place(x1, x2, j, size[1], width)
                if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
                    continue
                t, u, source = math.floor(y), math.floor(x), image[int(index[r])]
                b, q = math.ceil(y), math.ceil(x)
                by_y = (1 - x + u) * (source[b, u] - source[t, u]) + (x - u) * (source[b, q] - source[t, q])
                by_x = (1 - y + t) * (source[t, q] - source[t, u]) + (y - t) * (source[b, q] - source[b, u])
                dy, dx = ((by * weight[r, i, j]).sum() for by in (by_y, by_x))
                expected[r, 0] += dy * (height - 1) * (1 - i / (size[0] - 1))
                expected[r, 2] += dy * (height - 1) * i / (size[0] - 1)
                expected[r, 1] += dx * (width - 1) * (1 - j / (size[1] - 1))
                expected[r, 3] += dx * (width - 1) * j / (size[1] - 1)
    torch.testing.assert_close(boxes.grad, expected.detach(), rtol=0, atol=1e-11)
    assert (boxes.grad != 0).all(1).any()


def test_gradients_of_both_orders(generator):
    image, boxes, index = scene(generator, 3, (2, 4, 5, 1))
    inputs = (image.requires_grad_(), boxes.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, b: crop_and_resize(i, b, index, (3, 2)), inputs)
    assert torch.autograd.gradgradcheck(lambda i, b: crop_and_resize(i, b, index, (3, 2)), inputs)
    one = torch.func.jacfwd(lambda b: crop_and_resize(image.detach(), b, index, (1, 2)))(boxes.detach())
    other = torch.func.jacrev(lambda b: crop_and_resize(image.detach(), b, index, (1, 2)))(boxes.detach())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert one.abs().sum() > 0


def test_a_box_of_whole_pixels_moves():
    """Where TensorFlow's gradient is 0, ours is the right-hand one."""
    image = torch.arange(8.0, dtype=f64).reshape(1, 1, 8, 1)
    box = torch.tensor([[0.0, 1 / 7, 0.0, 3 / 7]], dtype=f64, requires_grad=True)
    crop_and_resize(image, box, torch.tensor([0]), (1, 3)).sum().backward()
    torch.testing.assert_close(box.grad[0, [1, 3]], torch.tensor([10.5, 10.5], dtype=f64))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_dtypes(dtype, method, generator):
    image, boxes, index = scene(generator)
    image = (image * 100).to(dtype)
    found = crop_and_resize(image, boxes, index, (4, 5), method)
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    expected = by_definition(image, boxes, index, (4, 5), method)
    atol = {torch.float16: 0.05, torch.bfloat16: 0.5}.get(dtype, 1e-4)
    torch.testing.assert_close(found.to(f64), expected, rtol=0, atol=atol)


def test_a_nan_box_stays_alone(generator):
    image, boxes, index = scene(generator)
    boxes[2, 1] = float("nan")
    found = crop_and_resize(image.requires_grad_(), boxes, index, (3, 3))
    assert found.isnan().flatten(1).all(1).tolist() == [r == 2 for r in range(7)]
    found.sum().backward()
    assert image.grad.isfinite().all()


def test_no_boxes(generator):
    image, boxes, index = scene(generator)
    assert crop_and_resize(image, boxes[:0], index[:0], (3, 4)).shape == (0, 3, 4, 2)


def test_sizes_as_tensors_and_names(generator):
    image, boxes, index = scene(generator)
    with torch.profiler.profile() as profile:
        found = crop_and_resize(image, boxes, index, torch.tensor([3, 4]), name="glimpse")
    assert torch.equal(found, crop_and_resize(image, boxes, index, (3, 4)))
    assert "glimpse" in {event.key for event in profile.key_averages()}


IMAGE, BOXES, INDEX = torch.zeros(2, 4, 5, 3), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int32)


@pytest.mark.parametrize(("error", "arguments", "said"), [
    (TypeError, {"image": [1]}, ("image", "(B, H, W, C)", "[1] (list)")),
    (ValueError, {"image": IMAGE[0]}, ("image", "(B, H, W, C)", "(4, 5, 3)")),
    (TypeError, {"boxes": [0, 0, 1, 1]}, ("boxes", "(R, 4)", "torch.as_tensor")),
    (ValueError, {"boxes": BOXES[0]}, ("boxes", "(R, 4)", "(4,)")),
    (ValueError, {"boxes": torch.zeros(3, 5)}, ("boxes", "y1, x1, y2, x2", "(3, 5)")),
    (TypeError, {"box_indices": [0, 0, 0]}, ("box_indices", "(R,)", "[0, 0, 0]")),
    (TypeError, {"box_indices": INDEX.float()}, ("box_indices", "integer", "float32")),
    (ValueError, {"box_indices": INDEX[:2]}, ("box_indices", "3 boxes", "got 2")),
    (ValueError, {"box_indices": INDEX + 2}, ("box_indices must lie in 0..1", "2 images")),
    (ValueError, {"box_indices": INDEX.to("meta")}, ("image and box_indices must be on the same device",)),
    (ValueError, {"boxes": BOXES.to("meta")}, ("image and boxes must be on the same device",)),
    (TypeError, {"boxes": BOXES.bool()}, ("boxes must hold real numbers",)),
    (TypeError, {"image": IMAGE.to(torch.complex64)}, ("image must be floating-point", "(2, 4, 5, 3)")),
    (ValueError, {"image": IMAGE[:, :0]}, ("image must have at least one pixel", "(2, 0, 5, 3)")),
    (TypeError, {"image": np.zeros((2, 4, 5, 3))}, ("image", "got a float64 ndarray of shape (2, 4, 5, 3)")),
    (TypeError, {"crop_size": 3}, ("crop_size", "(h, w)", "3 (int)")),
    (TypeError, {"crop_size": (3, 2.5)}, ("crop_size", "2.5")),
    (ValueError, {"crop_size": (3,)}, ("crop_size", "(3,)")),
    (ValueError, {"crop_size": (0, 3)}, ("crop_size", "at least 1")),
    (ValueError, {"method": "bicubic"}, ("method", "'bilinear', 'nearest'", "'bicubic'")),
    (TypeError, {"method": None}, ("method", "None")),
    (TypeError, {"extrapolation_value": "0"}, ("extrapolation_value", "'0'")),
    (ValueError, {"extrapolation_value": float("nan")}, ("extrapolation_value", "finite", "nan")),
    (TypeError, {"name": 3}, ("name", "3 (int)")),
    (ValueError, {"boxes": BOXES.clone().requires_grad_(), "method": "nearest"}, ("method=", "boxes requires")),
])  # fmt: skip
def test_errors(error, arguments, said):
    given = {"image": IMAGE, "boxes": BOXES, "box_indices": INDEX, "crop_size": (3, 4)} | arguments
    with pytest.raises(error) as caught:
        crop_and_resize(**given)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_it_is_a_public_name():
    assert diffcrop.compat.tensorflow.crop_and_resize is crop_and_resize


@pytest.mark.parametrize("size", [(3, 1), (1, 1), (2, 2)])
def test_no_boxes_have_the_size_asked_for(size):
    found = crop_and_resize(torch.rand(1, 6, 8, 3), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), size)
    assert found.shape == (0, *size, 3)
