"""`normal_equations_of` is what `normal_equations` makes, of crops and derivatives that are there."""

from __future__ import annotations

import pytest
import torch

import diffcrop

BOXES = torch.tensor([[3.2, 4.1, 20.7, 18.3], [6.0, 2.5, 12.0, 25.5]], dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(metric, huber=None, images=None, boxes=BOXES, size=(5, 7)):
    images = noise(3, 30, 31) if images is None else images
    targets = noise(len(boxes), images.shape[-boxes.shape[1] // 2 - 1], *size, seed=1)
    made = diffcrop.normal_equations(images, boxes, targets, metric=metric, huber=huber)
    crop, jacobian = diffcrop.crop_with_jacobian(images, boxes, size)
    return made, diffcrop.normal_equations_of(
        crop, jacobian, targets, metric=metric, huber=huber, axes=boxes.shape[1] // 2
    )


@pytest.mark.parametrize(("metric", "huber"), [("l2", None), ("l2", 0.2), ("zncc", None)])
def test_the_same_as_of_boxes(metric, huber):
    for wanted, found in zip(*both(metric, huber), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_signals_and_volumes():
    for images, boxes, size in [
        (noise(2, 40), torch.tensor([[3.5, 30.2], [5.0, 12.0]], dtype=torch.float64), (6,)),
        (noise(2, 9, 10, 11), torch.tensor([[1.5, 2.0, 1.0, 9.2, 8.1, 7.7]], dtype=torch.float64), (3, 4, 5)),
    ]:
        for wanted, found in zip(*both("zncc", None, images, boxes, size), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_numbers_of_ones_own():
    """A basis of the box's numbers is one of the normal equations."""
    basis = torch.tensor([[1.0, 0, 1, 0], [0, 1.0, 0, 1]], dtype=torch.float64).T
    image, targets = noise(3, 30, 31), noise(2, 3, 5, 7, seed=1)
    crop, jacobian = diffcrop.crop_with_jacobian(image, BOXES, (5, 7))
    whole = diffcrop.normal_equations_of(crop, jacobian, targets)
    part = diffcrop.normal_equations_of(crop, jacobian @ basis, targets)
    torch.testing.assert_close(part.hessian, basis.T @ whole.hessian @ basis)
    torch.testing.assert_close(part.gradient, whole.gradient @ basis)


def test_one_target_for_all_and_none_at_all():
    crop, jacobian = diffcrop.crop_with_jacobian(noise(3, 30, 31), BOXES, 5)
    one = noise(3, 5, 5, seed=2)
    found = diffcrop.normal_equations_of(crop, jacobian, one)
    torch.testing.assert_close(found.loss[1], (crop[1] - one).square().sum() / 2)
    empty = diffcrop.normal_equations_of(crop[:0], jacobian[:0], one)
    assert [tuple(part.shape) for part in empty] == [(0, 4, 4), (0, 4), (0,)]
    single = diffcrop.normal_equations_of(crop[0], jacobian[0], one)
    assert [tuple(part.shape) for part in single] == [(4, 4), (4,), ()]


CROPS, SLOPES = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7, 4)


@pytest.mark.parametrize(
    ("error", "arguments", "options", "words"),
    [
        (TypeError, ([1.0], SLOPES, CROPS), {}, ("crops", "list")),
        (TypeError, (CROPS.int(), SLOPES, CROPS), {}, ("crops", "int32")),
        (ValueError, (CROPS[0, 0], SLOPES[0, 0], CROPS), {}, ("crops", "(..., C, h, w)")),
        (ValueError, (CROPS[..., :0], SLOPES[..., :0, :], CROPS), {}, ("crops", "at least one pixel")),
        (ValueError, (CROPS, SLOPES[:1], CROPS), {}, ("jacobian", "(2, 3, 5, 7, m)")),
        (ValueError, (CROPS, CROPS[..., None, None].expand(*CROPS.shape, 2, 3), CROPS), {}, ("jacobian.flatten(-2)",)),
        (TypeError, (CROPS, "J", CROPS), {}, ("jacobian", "'J'")),
        (ValueError, (CROPS, SLOPES, CROPS[..., :3]), {}, ("targets", "(2, 3, 5, 7)")),
        (TypeError, (CROPS, SLOPES, None), {}, ("targets", "None")),
        (ValueError, (CROPS, SLOPES, CROPS.to("meta")), {}, ("targets", "device")),
        (ValueError, (CROPS, SLOPES.to("meta"), CROPS), {}, ("jacobian", "device")),
        (ValueError, (CROPS, SLOPES, CROPS), {"metric": "l1"}, ("metric", "'l1'")),
        (ValueError, (CROPS, SLOPES, CROPS), {"metric": "zncc", "huber": 1.0}, ("huber",)),
        (ValueError, (CROPS, SLOPES, CROPS), {"axes": 4}, ("axes", "4")),
        (TypeError, (CROPS, SLOPES, CROPS), {"axes": True}, ("axes", "True")),
        (ValueError, (CROPS.clone().requires_grad_(), SLOPES, CROPS), {}, ("not differentiable", "crops.detach()")),
    ],
)
def test_errors(error, arguments, options, words):
    with pytest.raises(error) as raised:
        diffcrop.normal_equations_of(*arguments, **options)
    for word in words:
        assert word in str(raised.value)
