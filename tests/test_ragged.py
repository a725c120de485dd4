"""Images of different sizes and boxes in lists, in tensors of any nesting, and what other functions make of them.

`test_shapes.py` holds the rows of `crop`'s table, lists among them.
"""

from __future__ import annotations

import warnings

import pytest
import torch

import diffcrop
from diffcrop import crop, crop_with_jacobian
from diffcrop._api import ragged

f64 = torch.float64
SIZES = ((7, 9), (12, 5), (6, 6))


def scene(generator, counts=(2, 0, 3), dtype=f64):
    """Images of different sizes and a list of boxes, some reaching out."""
    images = [torch.rand(3, h, w, generator=generator, dtype=dtype) for h, w in SIZES]
    extent = torch.tensor([[w, h, w, h] for h, w in SIZES], dtype=dtype)
    boxes = [torch.rand(k, 4, generator=generator, dtype=dtype) * e for k, e in zip(counts, extent, strict=True)]
    return images, boxes


def nested(parts, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, as it says
        return torch.nested.as_nested_tensor(parts, layout=layout)


def arguments(which, images, boxes):
    """(boxes, batch_index, the pairs of image and box in the order of the result, leading shape)."""
    one = boxes[0][0]
    if which == "one box":
        return one, None, [(i, one) for i in images], (3,)
    if which == "B":
        rows = torch.stack([one, boxes[2][0], boxes[2][1]])
        return rows, None, list(zip(images, rows, strict=True)), (3,)
    if which == "BK":
        rows = torch.stack([boxes[0], boxes[2][:2], boxes[2][1:]])
        return rows, None, [(i, b) for i, mine in zip(images, rows, strict=True) for b in mine], (3, 2)
    if which == "list":
        return boxes, None, [(i, b) for i, mine in zip(images, boxes, strict=True) for b in mine], (5,)
    rows, index = torch.cat(boxes), torch.tensor([2, 0, 2, 0, 0], dtype=torch.int32)
    return rows, index, [(images[i], b) for i, b in zip(index.tolist(), rows, strict=True)], (5,)


ROWS = ["one box", "B", "BK", "list", "R"]


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("convention", [("xyxy", "pixel"), ("cxcywh", "unit")], ids="-".join)
def test_jacobians_of_a_list(impl, which, convention, generator):
    """Value and jacobian of each crop alone; in unit coordinates each image has its own scale."""
    images, listed = scene(generator)
    if convention[1] == "unit":
        listed = [boxes / 20 for boxes in listed]
    boxes, index, pairs, leading = arguments(which, images, listed)
    options = {"box_format": convention[0], "coords": convention[1], "impl": impl}
    found = crop_with_jacobian(images, boxes, (4, 3), batch_index=index, **options)
    assert type(found) is diffcrop.CropWithJacobian
    assert found.crop.shape == (*leading, 3, 4, 3)
    assert found.jacobian.shape == (*leading, 3, 4, 3, 4)
    alone = [crop_with_jacobian(i, b, (4, 3), **options) for i, b in pairs]
    for mine, part in ((found.crop, 0), (found.jacobian, 1)):
        expected = torch.stack([each[part] for each in alone])
        torch.testing.assert_close(mine.flatten(0, len(leading) - 1), expected, rtol=0, atol=1e-13)
        assert not torch.allclose(expected[0], expected[1])


def test_jacobians_of_a_list_of_boxes(impl, generator):
    """One batch: as with the index that the list stands for."""
    images, boxes = torch.rand(3, 2, 8, 9, generator=generator, dtype=f64), scene(generator)[1]
    found = crop_with_jacobian(images, boxes, 4, box_format="xywh", impl=impl)
    index = torch.tensor([0, 0, 2, 2, 2])
    expected = crop_with_jacobian(images, torch.cat(boxes), 4, batch_index=index, box_format="xywh", impl=impl)
    assert torch.equal(found.crop, expected.crop)
    assert torch.equal(found.jacobian, expected.jacobian)


def test_jacobians_of_a_list_are_differentiable(impl, generator):
    images, boxes = scene(generator, (1, 0, 1))
    images = [i.requires_grad_() for i in images]
    boxes = [b.requires_grad_() for b in boxes]
    smooth = {"mode": "gaussian", "padding_mode": "zeros", "impl": impl}

    def function(*tensors):
        return crop_with_jacobian(list(tensors[:3]), list(tensors[3:]), 2, **smooth)

    assert torch.autograd.gradcheck(function, (*images, *boxes), fast_mode=True)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("of_images", ["batch", "list", "nested"])
def test_nested_boxes_are_lists(impl, layout, of_images, generator):
    images, boxes = scene(generator)
    if of_images == "batch":
        images = torch.rand(3, 2, 8, 9, generator=generator, dtype=f64)
    expected = crop(images, boxes, (4, 3), impl=impl)
    if of_images == "nested":
        images = nested(images, torch.strided)
    given = [b.clone().requires_grad_() for b in boxes]
    found = crop(images, nested(given, layout), (4, 3), impl=impl)
    assert not found.is_nested
    assert torch.equal(found, expected)
    weight = torch.rand(found.shape, generator=generator, dtype=f64)
    got = torch.autograd.grad((found * weight).sum(), given)
    leaves = [b.clone().requires_grad_() for b in boxes]
    plain = list(images.unbind()) if of_images == "nested" else images
    want = torch.autograd.grad((crop(plain, leaves, (4, 3), impl=impl) * weight).sum(), leaves)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    assert got[2].abs().min() > 0


def test_gradients_reach_a_nested_batch_of_images(impl, generator):
    images, boxes = scene(generator)
    leaves = [i.clone().requires_grad_() for i in images]
    found = crop(nested(leaves, torch.strided), boxes, 3, impl=impl)
    weight = torch.rand(found.shape, generator=generator, dtype=f64)
    got = torch.autograd.grad((found * weight).sum(), leaves)
    plain = [i.clone().requires_grad_() for i in images]
    want = torch.autograd.grad((crop(plain, boxes, 3, impl=impl) * weight).sum(), plain)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(got[1], torch.zeros_like(got[1]))


def test_jagged_images(impl, generator):
    """Strips of one height, whose widths differ."""
    images = [torch.rand(3, 6, w, generator=generator, dtype=f64) for w in (5, 9)]
    box = torch.tensor([0.5, 1.0, 4.0, 5.0], dtype=f64)
    strips = nested([i.movedim(-1, 0) for i in images], torch.jagged).transpose(1, 2).transpose(2, 3)
    assert strips.shape[:3] == (2, 3, 6)
    found = crop(strips, box, 4, impl=impl)
    torch.testing.assert_close(found, torch.stack([crop(i, box, 4, impl=impl) for i in images]), rtol=0, atol=1e-14)


def test_an_image_without_boxes_gets_zeros(impl, generator):
    """Not None: whoever sums gradients need not tell such images apart, as in a batch."""
    images, boxes = scene(generator)
    images = [i.requires_grad_() for i in images]
    crop(images, boxes, 3, impl=impl).sum().backward()
    assert torch.equal(images[1].grad, torch.zeros_like(images[1]))
    assert images[0].grad.abs().sum() > 0


def test_fill_per_channel(impl, generator):
    images, _ = scene(generator)
    outside = torch.tensor([-9.0, -9.0, -4.0, -4.0], dtype=f64)
    found = crop(images, outside, 2, padding_mode="constant", fill=[1.0, -2.0, 3.0], impl=impl)
    assert torch.equal(found, torch.tensor([1.0, -2.0, 3.0], dtype=f64).reshape(1, 3, 1, 1).expand(3, 3, 2, 2))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_dtypes_of_lists(impl, mode, generator):
    images = [(i * 255).to(torch.uint8) for i in scene(generator)[0]]
    box = torch.tensor([1.0, 1.0, 5.0, 5.0])
    found = crop(images, box, 4, mode=mode, impl=impl)
    assert found.dtype == (torch.uint8 if mode == "nearest" else torch.float32)
    assert torch.equal(found, torch.stack([crop(i, box, 4, mode=mode, impl=impl) for i in images]))


def test_the_layout_is_kept(impl, generator):
    images = [i.contiguous() for i in scene(generator)[0]]
    last = [i.permute(1, 2, 0).contiguous().permute(2, 0, 1) for i in images]
    box = torch.tensor([1.0, 1.0, 5.0, 5.0], dtype=f64)
    for given in (box, [box.expand(2, 4)] * 3):
        assert crop(last, given, 4, impl=impl).is_contiguous(memory_format=torch.channels_last)
        assert crop(images, given, 4, impl=impl).is_contiguous()


def test_a_nan_box_stays_alone(impl, generator):
    images, boxes = scene(generator)
    boxes[2][1, 2] = float("nan")
    images = [i.requires_grad_() for i in images]
    found = crop(images, boxes, 3, impl=impl)
    assert found.isnan().flatten(1).all(1).tolist() == [False, False, False, True, False]
    found.sum().backward()
    assert all(i.grad.isfinite().all() for i in images)


def test_other_functions_of_an_image_and_its_boxes(generator):
    """Boxes of any shape: here quadrilaterals (4, 2), in all arrangements, and results in tuples."""
    images, _ = scene(generator)
    quads = torch.rand(5, 4, 2, generator=generator, dtype=f64)
    index = torch.tensor([2, 0, 2, 1, 0])

    def function(image, mine):
        return mine.sum((1, 2)) * image.sum(), mine * image.shape[1]

    sums = [i.sum() for i in images]
    heights = [i.shape[1] for i in images]
    total, scaled = ragged.over_images(function, images, quads, index, tail=2)
    torch.testing.assert_close(total, torch.stack([q.sum() * sums[i] for q, i in zip(quads, index, strict=True)]))
    assert torch.equal(scaled, torch.stack([q * heights[i] for q, i in zip(quads, index, strict=True)]))

    total, scaled = ragged.over_images(function, images, quads[0], tail=2)
    assert torch.equal(scaled, torch.stack([quads[0] * h for h in heights]))
    total, scaled = ragged.over_images(function, images, quads[:3], tail=2)
    assert torch.equal(scaled, torch.stack([q * h for q, h in zip(quads, heights, strict=False)]))
    both = torch.stack([quads[:3], quads[2:]], 1)
    total, scaled = ragged.over_images(function, images, both, tail=2)
    assert scaled.shape == (3, 2, 4, 2)
    assert torch.equal(scaled, torch.stack([b * h for b, h in zip(both, heights, strict=True)]))
    total, scaled = ragged.over_images(function, images, [quads[:2], quads[:0], quads[2:]], tail=2)
    assert torch.equal(scaled, torch.cat([quads[:2] * heights[0], quads[2:] * heights[2]]))


@pytest.mark.parametrize(("boxes", "said"), [
    (torch.zeros(2, 4, 2), ("B = 3", "(B, 4, 2)", "(2, 4, 2)", "boxes.expand(3, -1, -1, -1)", "batch_index")),
    (torch.zeros(2, 2, 4, 2), ("B = 3", "(B, K, 4, 2)")),
    (torch.zeros(3, 1, 1, 4, 2), ("(4, 2), (B, 4, 2) or (B, K, 4, 2)", "(3, 1, 1, 4, 2)")),
    (torch.zeros(4), ("boxes must have shape",)),
    ([torch.zeros(1, 4, 2)] * 2, ("one tensor per image", "2 for 3 images")),
    ([torch.zeros(1, 4, 2)] * 2 + [torch.zeros(1, 4, 2, device="meta")], ("images and boxes[2]", "boxes[2].to('cpu')")),
    (torch.zeros(3, 4, 2, device="meta"), ("images and boxes", "meta")),
])  # fmt: skip
def test_errors_of_other_functions(boxes, said, generator):
    with pytest.raises(ValueError) as error:
        ragged.over_images(lambda _, mine: mine, scene(generator)[0], boxes, tail=2)
    assert all(part in str(error.value) for part in said), str(error.value)


def test_more_errors_of_lists(generator):
    images, boxes = scene(generator)
    with pytest.raises(ValueError, match="the boxes of a list must agree in dtype and device"):
        crop(images, [boxes[0], torch.zeros(0, 4, device="meta", dtype=f64), boxes[2]], 3)
    with pytest.raises(ValueError, match=r"images and boxes\[0\] must be on the same device"):
        crop(images, [b.to("meta") for b in boxes], 3)
    with pytest.raises(ValueError, match="the boxes of a list must agree in dtype"):
        crop(images, [boxes[0], boxes[1].float(), boxes[2]], 3)
    with pytest.raises(ValueError, match=r"boxes\[0\] must have shape \(K, 4\)"):
        crop(nested(images, torch.strided), [boxes[0][0], *boxes[1:]], 3)
