"""Derivatives against finite differences, to third order; which of them are computed at all, and in how much memory."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import diffcrop
import naive
from diffcrop import _ops, convert_boxes, crop
from diffcrop._impl import reference
from helpers import FILTERS, MODES, PADDINGS, kink_distance, options, rand, random_axis, random_boxes
from plain import needs_kernels

GRID = [(m, a, p, c) for (m, a), p, c in itertools.product(FILTERS, PADDINGS, (False, True))]
SHAPE, SIZE = (5, 6), (3, 4)
# Coordinates and formats take turns: they are affine maps in front of everything else.
FORMATS = [("pixel", "xyxy"), ("unit", "cxcywh"), ("normalized", "xywh"), ("unit", "xyxy"), ("normalized", "cxcywh")]


# --- the instrument: boxes away from kinks ----------------------------------------------------------------------------


def derivative_gap(axis, n, keywords, h=1e-3):
    """Largest difference between the exact and the central derivative of W: O(h^2) where W is smooth, O(1) at kinks."""
    gap = 0.0
    for which in (0, 1):
        ends = [[v + sign * h * (i == which) for i, v in enumerate(axis)] for sign in (1, -1)]
        (above, *_), (below, *_) = (naive.axis(*pair, n, 9, **keywords) for pair in ends)
        gap = max(gap, np.abs((above - below) / (2 * h) - naive.axis(*axis, n, 9, **keywords)[1 + which]).max())
    return gap


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_random_boxes_are_smooth_points(mode, antialias, padding_mode, align_corners, generator):
    keywords = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode, "align_corners": align_corners}
    for n in (1, 2, 5):
        axis = random_axis(9, n, generator, **keywords)
        assert kink_distance(*axis, n, 9, **keywords) >= 0.02
        assert derivative_gap(axis, n, keywords) < 1e-3


@pytest.mark.parametrize("mode", ["bilinear", "area"])
def test_kinks_are_recognised(mode):
    for lo, hi, n in ((0.0, 9.0, 9), (2.0, 5.0, 3), (0.0, 9.0, 3), (1.0, 4.0, 1), (4.0, 2.0, 2)):
        keywords = {"mode": mode, "antialias": True, "padding_mode": "border"}
        assert kink_distance(lo, hi, n, 9, **keywords) == 0
        assert derivative_gap((lo, hi), n, keywords) > 0.05
    assert kink_distance(0.3, 9.3, 9, 9, mode=mode, antialias=mode == "area") == pytest.approx(0.3 * (mode != "area"))


# --- first and second order -------------------------------------------------------------------------------------------


def example(mode, antialias, padding_mode, align_corners, generator, margin=0.02):
    """A function of (image, boxes), and such inputs: three boxes on two images, in one of `FORMATS`."""
    where = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode, "align_corners": align_corners}
    coords, box_format = FORMATS[GRID.index(tuple(where.values())) % len(FORMATS)]
    boxes = random_boxes(3, SIZE, SHAPE, generator, margin=margin, **where)
    boxes = convert_boxes(boxes, SHAPE, to_format=box_format, to_coords=coords, align_corners=align_corners)
    images, index = rand(2, 2, *SHAPE, generator=generator), torch.tensor([1, 0, 1])
    keywords = options(**where, coords=coords, box_format=box_format, batch_index=index)
    return images.requires_grad_(), boxes.requires_grad_(), keywords


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_gradcheck(impl, mode, antialias, padding_mode, align_corners, generator):
    images, boxes, keywords = example(mode, antialias, padding_mode, align_corners, generator)
    fast = impl == "reference"
    assert gradcheck(lambda i, b: crop(i, b, SIZE, impl=impl, **keywords), (images, boxes), fast_mode=fast, atol=1e-6)


THIN = [(*GRID[i][:2], PADDINGS[i % 6], bool(i % 2)) for i in range(0, len(GRID), 7)]


@pytest.mark.parametrize(
    ("mode", "antialias", "padding_mode", "align_corners"),
    [pytest.param(*g, marks=() if g in THIN else pytest.mark.slow) for g in GRID],
)
def test_gradgradcheck(impl, mode, antialias, padding_mode, align_corners, generator):
    images, boxes, keywords = example(mode, antialias, padding_mode, align_corners, generator)
    assert gradgradcheck(
        lambda i, b: crop(i, b, SIZE, impl=impl, **keywords), (images, boxes), fast_mode=True, atol=1e-6
    )


def test_the_thin_grid_has_every_filter_and_padding():
    assert {g[:2] for g in THIN} == set(FILTERS)
    assert {g[2] for g in THIN} == set(PADDINGS)
    assert {g[3] for g in THIN} == {False, True}


@pytest.mark.parametrize(
    ("images", "boxes", "index"),
    [
        ((2, 5, 6), (4,), None),
        ((2, 5, 6), (3, 4), None),
        ((2, 1, 5, 6), (4,), None),
        ((2, 1, 5, 6), (2, 4), None),
        ((2, 1, 5, 6), (2, 2, 4), None),
        ((3, 1, 5, 6), (4, 4), [2, 0, 2, 2]),
    ],
)
def test_every_row_of_the_shape_table(impl, images, boxes, index, generator):
    """A box that serves several images, or an image that several boxes read, collects all their gradients."""
    count = math.prod(boxes[:-1])
    rows = random_boxes(count, SIZE, SHAPE, generator, mode="bicubic").reshape(boxes).requires_grad_()
    pixels = rand(*images, generator=generator).requires_grad_()
    index = None if index is None else torch.tensor(index)
    assert gradcheck(
        lambda i, b: crop(i, b, SIZE, batch_index=index, mode="bicubic", impl=impl), (pixels, rows), atol=1e-6
    )


@pytest.mark.parametrize("with_index", [False, True])
def test_box_by_box_is_all_at_once(impl, with_index, monkeypatch, generator):
    """Large calls go box by box, to bound the memory; here a small one does, and to second order."""
    images, boxes = rand(2, 2, *SHAPE, generator=generator), random_boxes(4, SIZE, SHAPE, generator, mode="bicubic")
    index = torch.tensor([1, 0, 1, 1]) if with_index else None
    boxes = boxes if with_index else boxes.reshape(2, 2, 4)
    cotangent = rand(*boxes.shape[:-1], 2, *SIZE, generator=generator) - 0.5
    results = []
    for budget in (reference.BUDGET, 0):
        monkeypatch.setattr(reference, "BUDGET", budget)
        inputs = [t.clone().requires_grad_() for t in (images, boxes, cotangent)]
        value = crop(*inputs[:2], SIZE, batch_index=index, mode="bicubic", impl=impl)
        first = torch.autograd.grad(value, inputs[:2], inputs[2], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([t.detach() for t in (value, *first, *second)])
    for once, stepwise in zip(*results, strict=True):
        torch.testing.assert_close(once, stepwise, rtol=0, atol=1e-11)
        assert once.abs().max() > 0.01


def test_third_order(impl, generator):
    """By the box, against differences of the second; smooth enough a filter, away from its kinks."""
    for mode in ("bicubic", "lanczos3", "gaussian"):
        image = rand(1, *SHAPE, generator=generator)
        box = random_boxes(1, SIZE, SHAPE, generator, mode=mode, reduction=1.5)[0].requires_grad_()
        cotangent, directions = rand(1, *SIZE, generator=generator), rand(3, 4, generator=generator) - 0.5

        def derivative(order, at):
            value = (cotangent * crop(image, at, SIZE, mode=mode, impl=impl)).sum()  # noqa: B023
            for direction in directions[:order]:  # noqa: B023
                (gradient,) = torch.autograd.grad(value, at, create_graph=True)
                value = gradient @ direction
            return value.detach()

        step = 1e-5 * directions[2]
        above, below = (derivative(2, (box + s).detach().requires_grad_()) for s in (step, -step))
        torch.testing.assert_close(derivative(3, box), (above - below) / 2e-5, rtol=1e-5, atol=1e-6)


PATHS = {
    "crop": lambda x, b, **o: crop(x, b, SIZE, mode="gaussian", **o),
    "list": lambda x, b, **o: crop(list(x), [b[:1], b[1:]], SIZE, mode="gaussian", **o),
    "crop of a crop": lambda x, b, **o: crop(crop(x, b, (7, 8), mode="gaussian", **o), b, SIZE, mode="gaussian", **o),
    "jacobian": lambda x, b, **o: diffcrop.crop_with_jacobian(x, b, SIZE, mode="gaussian", **o).jacobian,
    "crop_rotated": lambda x, b, **o: diffcrop.crop_rotated(x, torch.cat([b, b[:, :1] * 9], 1), SIZE, **o),
    "roi_align": lambda x, b, **o: diffcrop.roi_align(x, [b[:1], b[1:]], SIZE, aligned=True, mode="exact", **o),
    "paste": lambda x, b, **o: diffcrop.paste(x[:, :1], b, canvas=x[:, 1:], mode="gaussian", **o),
}


@pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_kernels)])
@pytest.mark.parametrize("name", PATHS)
def test_every_path_is_counted_once(impl, name, generator):
    """In second and third derivatives with a graph, where cotangents, and images, depend on the boxes themselves."""
    x = rand(2, 2, 8, 9, generator=generator)
    b = torch.tensor([[1.317, 1.723, 6.129, 6.971], [0.641, 2.217, 7.353, 6.437]], dtype=torch.float64)
    push = [rand(*t.shape, generator=generator) - 0.5 for t in (x, b)]

    def derivatives(x, b):
        """Of the cubes' sum by both; of those derivatives' squares' sum; of the latter along a direction."""
        leaves = [t.clone().requires_grad_() for t in (x, b)]
        value = PATHS[name](*leaves, impl=impl).pow(3).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        penalty = sum(t.square().sum() for t in first)
        second = torch.autograd.grad(penalty, leaves, create_graph=True)
        slope = sum((t * p).sum() for t, p in zip(second, push, strict=True))
        third = torch.autograd.grad(slope, leaves)
        return penalty.detach(), slope.detach(), sum((t * p).sum() for t, p in zip(third, push, strict=True))

    h = 1e-5
    above, below = (derivatives(*[t + sign * h * p for t, p in zip((x, b), push, strict=True)]) for sign in (1, -1))
    _, *found = derivatives(x, b)
    for mine, high, low in zip(found, above, below, strict=False):
        torch.testing.assert_close(mine, (high - low) / (2 * h), rtol=1e-5, atol=0)


# --- only what is asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_only_the_image_or_only_the_box(impl, mode, generator):
    image, boxes = rand(2, 9, 11, generator=generator), torch.tensor([[1.3, -2.2, 9.9, 7.1], [2, 3, 4, 8.5]])
    cotangent = rand(2, 2, 4, 6, generator=generator)
    both = []
    for wanted in ((True, True), (True, False), (False, True)):
        inputs = [t.clone().requires_grad_(w) for t, w in zip((image, boxes), wanted, strict=True)]
        value = crop(*inputs, (4, 6), mode=mode, impl=impl)
        value.backward(cotangent)
        both = both or [t.grad for t in inputs]
        for tensor, w, gradient in zip(inputs, wanted, both, strict=True):
            assert torch.equal(tensor.grad, gradient) if w else tensor.grad is None
    assert not crop(image, boxes, (4, 6), mode=mode, impl=impl).requires_grad
    with torch.no_grad():
        assert not crop(image.requires_grad_(), boxes, (4, 6), mode=mode, impl=impl).requires_grad


@pytest.mark.parametrize("frozen", ["image", "box"])
def test_what_is_frozen_costs_nothing(impl, frozen, monkeypatch, generator):
    def unwanted(*_):
        raise AssertionError("this gradient was not asked for")

    operation = {"image": _ops._GradImages, "box": _ops._GradBoxes}[frozen]
    monkeypatch.setattr(operation, "forward", staticmethod(unwanted))
    image = rand(2, 9, 11, generator=generator).requires_grad_(frozen != "image")
    box = torch.tensor([1.3, -2.2, 9.9, 7.1], requires_grad=frozen != "box")
    crop(image, box, 5, impl=impl).sum().backward()
    with pytest.raises(AssertionError, match="not asked for"):
        crop(image.requires_grad_(), box.requires_grad_(), 5, impl=impl).sum().backward()


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
    import sys, torch
    import torch._dynamo  # which checkpoints bring in, once in a process
    from diffcrop import crop

    impl, order = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(2)

    def kilobytes(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field))

    def derivatives(image, boxes, size, cotangent):
        value = crop(image, boxes, size, impl=impl)
        gradients = torch.autograd.grad(value, (image, boxes), cotangent, create_graph=order == 2)
        if order == 1:
            return value, gradients
        seconds = torch.autograd.grad(gradients[1].square().sum(), (image, boxes, cotangent))
        return value, [g.detach() for g in gradients], seconds

    def inputs(count, pixels, size):
        image = torch.rand(3, pixels, pixels).requires_grad_()
        corner, side = torch.rand(2, count, 2)
        boxes = torch.cat([corner * 0.4, corner * 0.4 + 0.2 + 0.4 * side], -1) * pixels
        cotangent = torch.rand(count, 3, size, size).requires_grad_(order == 2)
        return image, boxes.requires_grad_(), size, cotangent

    derivatives(*inputs(2, 64, 16))
    given = inputs(64, 1024, 224)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = kilobytes("VmRSS")
    result = derivatives(*given)
    print(kilobytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("order", [1, 2])
def test_peak_memory(impl, order):
    """64 boxes of a 3 x 1024 x 1024 image to 224 x 224; the inputs are there before."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), impl, str(order)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    crops, image = 64 * 3 * 224**2 * 4, 3 * 1024**2 * 4
    print(f"{impl}, order {order}: {peak / 2**20:.0f} MiB above the inputs")
    if order == 2:  # by the image and the cotangent too: each result twice
        assert peak <= 2 * (crops + image) + 256 * 2**20
    elif impl == "reference":
        assert peak <= crops + image + 256 * 2**20
    else:
        assert peak <= crops + image + 12 * 2**20
