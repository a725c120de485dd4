"""`paste`: against brute force and the recipe, what comes back from `crop`, order, masks, boxes of every kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

import naive
from diffcrop import crop, paste
from helpers import FILTERS, rand

IMPLEMENTATIONS = ("reference",)
f64 = torch.float64


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def boxes_in(generator, *leading, shape=(11, 13), least=1.5):
    """Boxes in and around a canvas, a third of them mirrored in one axis or both."""
    u = torch.rand(*leading, 6, generator=generator, dtype=f64)
    (height, width), result = shape, []
    for k, n in ((0, width), (1, height)):
        lo = u[..., k] * (n + 2) - 3
        side = least + u[..., 2 + k] * n * 0.7
        mirrored = u[..., 4 + k] < 1 / 3
        result += [(torch.where(mirrored, lo + side, lo), torch.where(mirrored, lo, lo + side))]
    (x0, x1), (y0, y1) = result
    return torch.stack([x0, y0, x1, y1], -1)


def oracle(patches, boxes, canvas, alpha=None, blend="over", **filters):
    """One canvas (C, H, W), by NumPy, and its mask, in the order of the patches."""
    canvas, mask = canvas.numpy().copy(), np.zeros((1, *canvas.shape[1:]))
    options = {"mode": "bilinear", "antialias": True, "padding_mode": "zeros", **filters}
    for k, box in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = box
        patch = patches[k].numpy()
        matte = np.ones((1, *patch.shape[1:])) if alpha is None else alpha[k].numpy()
        (h, w), (height, width) = patch.shape[1:], canvas.shape[1:]
        inverse = (
            -x0 * w / (x1 - x0), -y0 * h / (y1 - y0), (width - x0) * w / (x1 - x0), (height - y0) * h / (y1 - y0)
        )  # fmt: skip
        v = naive.crop(patch * matte, inverse, canvas.shape[1:], **options)
        m = naive.crop(matte, inverse, canvas.shape[1:], **options)
        canvas, mask = ((1 - m) * canvas + v, (1 - m) * mask + m) if blend == "over" else (canvas + v, mask + m)
    return torch.from_numpy(canvas), torch.from_numpy(mask)


@pytest.mark.parametrize("blend", ["over", "add"])
@pytest.mark.parametrize(("mode", "antialias"), [*FILTERS, ("nearest", True)])
def test_equals_brute_force(impl, mode, antialias, blend, generator):
    """Every filter, enlarging and reducing, with alpha and without, on a canvas and on none."""
    patches, alpha = rand(6, 2, 5, 7, generator=generator), rand(6, 1, 5, 7, generator=generator)
    canvas, boxes = rand(2, 11, 13, generator=generator), boxes_in(generator, 6)
    filters = {"mode": mode, "antialias": antialias}
    for matte, onto in itertools.product((None, alpha), (canvas, None)):
        start = torch.zeros_like(canvas) if onto is None else onto
        value, mask = oracle(patches, boxes, start, matte, blend, **filters)
        size = (11, 13) if onto is None else None
        found = paste(
            patches, boxes, size, canvas=onto, alpha=matte, blend=blend, return_mask=True, impl=impl, **filters
        )
        torch.testing.assert_close(found.canvas, value, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.mask, mask, rtol=0, atol=1e-12)
        alone = paste(patches, boxes, size, canvas=onto, alpha=matte, blend=blend, impl=impl, **filters)
        assert alone.equal(found.canvas)


def recipe(patches, boxes, size, align_corners=False):
    """The patches on a canvas each, by `affine_grid` with the inverse Theta and `grid_sample`."""
    (x0, y0, x1, y1), zero = boxes.unbind(-1), torch.zeros_like(boxes[:, 0])
    height, width = size
    sx, sy = width / (x1 - x0), height / (y1 - y0)
    tx, ty = (width - x0 - x1) / (x1 - x0), (height - y0 - y1) / (y1 - y0)
    theta = torch.stack([torch.stack(row, -1) for row in ([sx, zero, tx], [zero, sy, ty])], 1)
    grid = affine_grid(theta, (len(boxes), patches.shape[1], *size), align_corners=align_corners)
    return grid_sample(patches, grid, align_corners=align_corners, padding_mode="zeros")


def test_equals_the_recipe(impl, generator):
    """Values and gradients by patches and boxes, enlarging and, without antialiasing, reducing."""
    patches, boxes = rand(5, 3, 4, 6, generator=generator), boxes_in(generator, 5)
    weight = rand(3, 11, 13, generator=generator)
    found = []
    for method in (
        lambda p, b: paste(p, b, (11, 13), blend="add", antialias=False, impl=impl),
        lambda p, b: recipe(p, b, (11, 13)).sum(0),
    ):
        p, b = patches.clone().requires_grad_(), boxes.clone().requires_grad_()
        value = method(p, b)
        found.append((value, *torch.autograd.grad((value * weight).sum(), (p, b))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("align_corners", [False, True])
def test_what_was_cropped_comes_back(impl, align_corners, generator):
    """Bit for bit, for boxes on whole pixels, also over the edge, one of them mirrored."""
    x = rand(2, 3, 20, 30, generator=generator)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        image = x.to(dtype)
        boxes = torch.tensor([[3.0, 4.0, 13.0, 12.0], [25.0, 14.0, 35.0, 22.0]])
        boxes = torch.stack([boxes, boxes.flip(0)[:, [2, 1, 0, 3]]], 1)
        if align_corners:
            mirrored = boxes[..., 2] < boxes[..., 0]
            boxes = boxes - torch.stack([mirrored, mirrored & False, ~mirrored, mirrored | True], -1).float()
        patches = crop(image, boxes, (8, 10), align_corners=align_corners, padding_mode="zeros")
        back = paste(patches, boxes, canvas=image, align_corners=align_corners, impl=impl)
        assert back.equal(image)
        moved = paste(patches, boxes + 0.5, canvas=image, align_corners=align_corners, impl=impl)
        assert (moved - image).abs().max() > 0.1
