"""Image gradients of warps are made band by band, of the columns that boxes reach: what joins, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch

import diffcrop
from diffcrop import _ops_warp
from diffcrop._options import WarpOptions
from warps import placed, reduced, tilted

pytestmark = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="no compiled library")

SIZE = (23, 32)
# Several bands of rows, and whole and broken registers of columns.
SHAPE = (150, 277)
OPTIONS = WarpOptions("bilinear", True, "zeros", (0.0,), False)


def boxes():
    """Inside, across every edge, outside on every side, at angles that put many rows above each other."""
    centres = [(140.2, 75.3), (2.3, 40.7), (270.6, 60.2), (100.4, -3.2), (60.7, 151.6), (-90.2, 70.1), (400.3, 80.4)]
    angles = [33.0, 90.0, 0.0, 61.0, -135.0, 12.0, 180.0]
    steps = [(1.2, 0.9), (0.7, 1.4), (2.1, 1.1), (1.1, 0.6), (0.4, 0.5), (1.3, 1.3), (0.9, 1.6)]
    upright = [placed(a, s, c, SIZE) for a, s, c in zip(angles, steps, centres, strict=True)]
    return torch.stack([*upright, tilted(upright[0], (0.008, -0.006), SIZE), upright[0] * math.nan])


def gradient(cotangents, matrices, index, opts, impl, layout, images=2, reductions=None):
    channels = cotangents.shape[1]
    leaf = torch.zeros(images, channels, *SHAPE, dtype=cotangents.dtype).contiguous(memory_format=layout)
    leaf.requires_grad_()
    value = _ops_warp.sampled(leaf, matrices, index, reductions, SIZE, opts, impl)
    return torch.autograd.grad(value, leaf, cotangents.contiguous(memory_format=layout))[0]


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("mode", "channels"), [("bilinear", 1), ("bilinear", 3), ("bicubic", 2), ("lanczos3", 9)])
def test_bands_and_columns_make_the_whole_gradient(mode, channels, padding_mode, layout, generator):
    matrices, opts = boxes(), OPTIONS._replace(mode=mode, padding_mode=padding_mode)
    # The last image has no boxes.
    index = torch.arange(len(matrices)) % 2
    cotangents = torch.randn(len(matrices), channels, *SIZE, dtype=torch.float64, generator=generator)
    for reductions in (None, reduced(*[(1.7, 2.3)] * len(matrices))):
        expected = gradient(cotangents, matrices, index, opts, "reference", layout, 3, reductions)
        found = gradient(cotangents, matrices, index, opts, "cpu", layout, 3, reductions)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        # Where float32 has vectors of its own.
        single = gradient(cotangents.float(), matrices, index, opts, "cpu", layout, 3, reductions)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=4e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_columns_of_other_boxes_change_no_bit(channels, layout, generator):
    matrices, whole = boxes()[:-1], placed(0.0, (9.0, 7.0), (138.0, 75.0), SIZE)
    cotangents = torch.randn(len(matrices), channels, *SIZE, generator=generator)
    for k in range(len(matrices)):
        alone = gradient(cotangents[k : k + 1], matrices[k : k + 1], None, OPTIONS, "cpu", layout, 1)
        # A box that reaches every column and adds nothing.
        two = torch.stack([matrices[k], whole])
        both = torch.stack([cotangents[k], torch.zeros_like(cotangents[k])])
        beside = gradient(both, two, torch.zeros(2, dtype=torch.int64), OPTIONS, "cpu", layout, 1)
        assert torch.equal(alone, beside)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "circular", "constant"])
@pytest.mark.parametrize(("implementation", "channels"), [("cpu", 1), ("cpu", 3), ("cpu", 17), ("reference", 2)])
def test_nearest_gives_back_to_the_pixels_that_it_reads(
    implementation, channels, padding_mode, align_corners, layout, generator
):
    matrices, index = boxes()[:-1], torch.arange(8) % 2
    opts = WarpOptions("nearest", True, padding_mode, (0.0,), align_corners)
    # The pixels by their numbers, which are exact: those that are read, and 0 for the fill.
    numbers = torch.arange(1.0, 1 + SHAPE[0] * SHAPE[1], dtype=torch.float64).view(1, 1, *SHAPE).expand(2, 1, *SHAPE)
    read = _ops_warp.sampled(numbers, matrices, index, None, SIZE, opts, "cpu")
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        cotangents = torch.randn(8, channels, *SIZE, generator=generator).to(dtype)
        expected = torch.zeros(2, channels, 1 + SHAPE[0] * SHAPE[1], dtype=torch.float64)
        for k in range(8):
            places = read[k].long().flatten().expand(channels, -1)
            expected[k % 2].scatter_add_(1, places, cotangents[k].double().flatten(1))
        found = gradient(cotangents, matrices, index, opts, implementation, layout)
        expected = expected[..., 1:].view(found.shape)
        torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (5, 16), (70, 33)])
@pytest.mark.parametrize("channels", [1, 4, 17])
def test_images_that_no_box_reaches_have_zeros(channels, shape, layout):
    grad = torch.ones(1, channels, 2, 20)
    far = torch.tensor([[[1.0, 0, 1e6], [0, 1, 1e6], [0, 0, 1]]], dtype=torch.float64)
    last = layout == torch.channels_last
    arguments = (torch.zeros(1, dtype=torch.int64), None, (2, channels, *shape), last, *OPTIONS)
    found = torch.ops.diffcrop.warp_grad_images(grad, far, *arguments)
    assert torch.equal(found, torch.zeros_like(found))
