"""Parity with what others compute: Pillow, torch's own resizing and pooling, OpenCV, kornia."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from diffcrop import crop
from helpers import kink_distance, rand

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
SIZES = [(16, 24), (37, 53), (300, 333), (1, 1)]


def boxes_of(photo):
    """Fractional boxes inside, at every border and corner, the whole photograph, a sliver and less than a pixel."""
    h, w = photo.shape[1:]
    for x0, x1 in ((0, 101.7), (50.3, 150.9), (w - 120.4, w)):
        for y0, y1 in ((0, 90.2), (33.3, 99.9), (h - 77.1, h)):
            yield x0, y0, x1, y1
    yield 0, 0, w, h
    yield 10.2, 3.9, 13.1, h - 5.5
    yield 70.3, 80.1, 70.9, 80.8


def pillow(photo, size, resample, box):
    """Each channel as a mode "F" picture."""
    pictures = (Image.fromarray(channel.numpy()) for channel in photo)
    resized = [np.asarray(p.resize(size[::-1], resample, box=box, reducing_gap=None)) for p in pictures]
    return torch.from_numpy(np.stack(resized))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", PILLOW)
def test_pillow(impl, photo, mode, size):
    """Enlarging and reducing, and one axis enlarged while the other is reduced."""
    boxes = list(boxes_of(photo))
    ours = crop(photo[:1], torch.tensor(boxes), size, mode=mode, padding_mode="renormalize", impl=impl)
    doubles = crop(
        photo[:1], torch.tensor(boxes).double() + 0.25, size, mode=mode, padding_mode="renormalize", impl=impl
    )
    for box, result, moved in zip(boxes, ours, doubles, strict=True):
        box = tuple(torch.tensor(box).tolist())  # the float32 numbers
        expected = pillow(photo[:1], size, PILLOW[mode], box)
        assert (result - expected).abs().max() <= 1e-5 * 255, box
        assert size == (1, 1) or (moved - expected).abs().max() > 0.1  # a quarter of a pixel off is not the same


def test_pillow_box_is_area_at_integer_reductions(impl, photo):
    for box, size in (
        ((0, 0, 120, 90), (30, 40)),
        ((7, 11, 7 + 350, 11 + 200), (40, 50)),
        ((3, 5, 103, 45), (40, 100)),
    ):
        expected = pillow(photo, size, Image.Resampling.BOX, box)
        result = crop(photo, torch.tensor(box), size, mode="area", padding_mode="renormalize", impl=impl)
        assert (result - expected).abs().max() <= 1e-5 * 255


def test_pillow_nearest(impl, photo):
    """Wherever no position lies on the border of two pixels."""
    for box in boxes_of(photo):
        for size in SIZES:
            where = {"mode": "nearest"}
            if (
                min(kink_distance(*box[0::2], size[1], 1, **where), kink_distance(*box[1::2], size[0], 1, **where))
                > 1e-3
            ):
                result = crop(photo, torch.tensor(box, dtype=torch.float64), size, mode="nearest", impl=impl)
                assert torch.equal(result, pillow(photo, size, Image.Resampling.NEAREST, box)), (box, size)


@pytest.mark.parametrize("size", [(16, 24), (37, 53), (450, 601), (1, 1), (3, 500)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_interpolate(impl, photo, mode, size):
    h, w = photo.shape[1:]
    box = torch.tensor([0.0, 0, w, h])
    expected = interpolate(photo[None].double(), size, mode=mode, antialias=True)[0]
    result = crop(photo.double(), box, size, mode=mode, padding_mode="renormalize", impl=impl)
    assert (result - expected).abs().max() <= 1e-11 * 255
    # Without antialiasing it takes the taps outside from the border; both conventions of align_corners.
    for align_corners in (False, True):
        expected = interpolate(photo[None].double(), size, mode=mode, align_corners=align_corners)[0]
        end = torch.tensor([0.0, 0, w - align_corners, h - align_corners])
        if align_corners and 1 in size:
            continue  # interpolate reads the first pixel there, we the middle of the box
        result = crop(photo.double(), end, size, mode=mode, antialias=False, align_corners=align_corners, impl=impl)
        assert (result - expected).abs().max() <= 1e-11 * 255


def test_pooling(impl, generator):
    image = rand(3, 24, 36, generator=generator)
    box = torch.tensor([0.0, 0, 36, 24])
    for kernel in ((1, 1), (2, 2), (3, 4), (24, 36), (8, 1)):
        size = (24 // kernel[0], 36 // kernel[1])
        result = crop(image, box, size, mode="area", impl=impl)
        torch.testing.assert_close(result, avg_pool2d(image, kernel), rtol=0, atol=1e-15)
        torch.testing.assert_close(result, adaptive_avg_pool2d(image, size), rtol=0, atol=1e-15)
    inside = crop(image, torch.tensor([5.0, 3, 35, 21]), (6, 10), mode="area", impl=impl)
    torch.testing.assert_close(inside, avg_pool2d(image[:, 3:21, 5:35], 3), rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [(100, 100), (37, 53), (299, 450), (7, 333), (1, 1)])
def test_opencv_area(impl, photo, size):
    """Fractional reductions of the whole image."""
    photo = photo[:, :300, :451]
    expected = cv2.resize(photo.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_AREA)
    result = crop(photo, torch.tensor([0.0, 0, 451, 300]), size, mode="area", impl=impl)
    assert (result.permute(1, 2, 0) - torch.from_numpy(expected)).abs().max() <= 1e-5 * 255


def test_kornia_inside(impl, photo):
    """kornia's boxes name the centres of the first and last pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia.geometry.transform import crop_and_resize
    for x0, y0, x1, y1 in ((10.0, 20.0, 60.0, 70.0), (33.3, 40.7, 90.2, 99.1)):
        corners = torch.tensor([[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]], dtype=torch.float64)
        expected = crop_and_resize(photo[None].double(), corners, (51, 31))[0]
        box = torch.tensor([x0, y0, x1, y1], dtype=torch.float64)
        result = crop(photo.double(), box, (51, 31), antialias=False, align_corners=True, impl=impl)
        assert (result - expected).abs().max() <= 1e-6 * 255
