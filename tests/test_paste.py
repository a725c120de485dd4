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

IMPLEMENTATIONS = ("reference", "cpu")
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


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["over", "add"])
@pytest.mark.parametrize("matte", [True, False])
def test_gradcheck(impl, blend, matte, generator):
    """First and second derivatives by patches, alpha, boxes and canvas, of result and mask."""
    patches, alpha = rand(1, 2, 1, 3, 2, generator=generator), rand(1, 2, 1, 3, 2, generator=generator)
    boxes = torch.tensor([[[0.31, -0.43, 2.94, 2.21], [3.82, 0.71, 0.93, 3.17]]], dtype=f64)
    canvas = rand(1, 1, 3, 4, generator=generator)
    inputs = [t.requires_grad_() for t in (patches, boxes, canvas, *([alpha] if matte else []))]

    def function(p, b, c, a=None):
        return tuple(paste(p, b, canvas=c, alpha=a, blend=blend, return_mask=True, mode="bicubic", impl=impl))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def derivatives(patches, boxes, canvas, alpha, weight, weight_mask, impl, **options):
    """The results and all derivatives of a weighted sum of them."""
    sources = [t.detach().clone().requires_grad_() for t in (patches, boxes, canvas, alpha)]
    result, mask = paste(
        sources[0], sources[1], canvas=sources[2], alpha=sources[3], return_mask=True, impl=impl, **options
    )
    return [result, mask, *torch.autograd.grad((result * weight).sum() + (mask * weight_mask).sum(), sources)]


@pytest.mark.parametrize("blend", ["over", "add"])
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_kernels_equal_the_reference(mode, antialias, blend, generator):
    """Values and derivatives, of several canvases, by index, with whole boxes and with none."""
    patches, alpha = rand(7, 2, 5, 9, generator=generator), rand(7, 1, 5, 9, generator=generator)
    boxes, canvas = boxes_in(generator, 7, shape=(37, 19)), rand(3, 2, 37, 19, generator=generator)
    boxes[3] = boxes[3].round() if mode != "gaussian" else boxes[3]
    boxes[4] = torch.tensor([-40.0, 0.0, -30.0, 9.0])
    weights = rand(3, 2, 37, 19, generator=generator), rand(3, 1, 37, 19, generator=generator)
    index = torch.tensor([2, 0, 2, 2, 0, 2, 0])
    options = {"mode": mode, "antialias": antialias, "blend": blend, "batch_index": index}
    found = [derivatives(patches, boxes, canvas, alpha, *weights, impl, **options) for impl in IMPLEMENTATIONS]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12 * max(1.0, float(theirs.detach().abs().max())))
    assert found[0][3][4].eq(0).all()


def test_adjoint(impl, generator):
    """<paste(p), g> = <p, derivative of it>, as paste by add is linear in p."""
    patches, boxes = rand(4, 3, 6, 5, generator=generator).requires_grad_(), boxes_in(generator, 4)
    g = rand(3, 11, 13, generator=generator)
    value = (paste(patches, boxes, (11, 13), blend="add", impl=impl) * g).sum()
    (pulled,) = torch.autograd.grad(value, patches)
    torch.testing.assert_close((patches * pulled).sum(), value, rtol=1e-13, atol=0)


# --- order, boxes of every kind, batches ------------------------------------------------------------------------------


def test_later_patches_lie_on_top(impl):
    patches = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 6.0, 6.0]])
    options = {"mode": "nearest", "impl": impl}
    assert paste(patches, boxes, 6, **options)[0].diagonal().tolist() == [1, 2, 3, 3, 3, 3]
    assert paste(patches.flip(0), boxes.flip(0), 6, **options)[0].diagonal().tolist() == [1, 1, 1, 1, 2, 3]
    assert paste(patches, boxes, 6, blend="add", **options)[0].diagonal().tolist() == [1, 3, 6, 6, 5, 3]


def test_what_has_no_place_is_left_out(impl, generator):
    """NaN, infinite and empty boxes paste nothing and leave the others alone; their gradients are NaN and zero."""
    patches, canvas = rand(5, 1, 3, 3, generator=generator), rand(1, 11, 13, generator=generator)
    boxes = boxes_in(generator, 5)
    boxes[1, 2], boxes[2, 0], boxes[3, 3] = torch.nan, torch.inf, boxes[3, 1]
    good = torch.tensor([0, 4])
    weight = rand(1, 11, 13, generator=generator)
    found = []
    for rows in (torch.arange(5), good):
        p, b, c = (t.clone().requires_grad_() for t in (patches[rows], boxes[rows], canvas))
        result, mask = paste(p, b, canvas=c, return_mask=True, impl=impl)
        found.append([result, mask, *torch.autograd.grad((result * weight).sum() + mask.sum(), (p, b, c))])
    (a, m, by_patch, by_box, by_canvas), (a2, m2, by_patch2, by_box2, by_canvas2) = found
    assert a.equal(a2)
    assert m.equal(m2)
    assert by_canvas.equal(by_canvas2)
    assert by_patch[good].equal(by_patch2)
    assert by_box[good].equal(by_box2)
    assert by_box[1:3].isnan().all()
    assert by_box[3].eq(0).all()
    assert by_patch[1:4].eq(0).all()


@pytest.mark.parametrize("way", ["eager", "vmap"])
def test_what_is_not_finite_in_a_patch_stays_within_its_box(impl, way):
    patches = torch.ones(2, 1, 8, 8)
    patches[0, 0, 3, 3], patches[0, 0, 5, 2] = torch.nan, torch.inf
    boxes = torch.tensor([[2.0, 2.0, 9.0, 10.0], [20.0, 20.0, 30.0, 31.0]])
    if way == "eager":
        result = paste(patches, boxes, 40, impl=impl)
    else:
        result = torch.func.vmap(lambda p, b: paste(p, b, 40, impl=impl))(patches[None], boxes[None])[0]
    lost = ~result[0].isfinite()
    assert lost.any()
    lost[1:11, 1:10] = False  # bilinear samples reach half a pixel of the patch beyond the box
    assert not lost.any()
    assert result[0, 21:30, 21:29].allclose(torch.ones(()))


@pytest.mark.parametrize("scale", [1e-25, 1e-9, 1e9, 1e60])
def test_wild_boxes_are_bounded(impl, scale, generator):
    """Tiny boxes fade, huge ones are flat, and derivatives are finite."""
    patches = rand(2, 1, 4, 4, generator=generator).requires_grad_()
    boxes = (torch.tensor([[-1.0, -1.0, 2.0, 1.5], [0.5, 0.2, -1.0, 3.0]], dtype=f64) * scale).requires_grad_()
    result, mask = paste(patches, boxes, (6, 7), return_mask=True, impl=impl)
    grads = torch.autograd.grad(result.sum() + mask.sum(), (patches, boxes))
    assert all(t.isfinite().all() for t in (result, mask, *grads))
    assert mask.max() <= min(1.0, 10 * scale**2) + 1e-12


def test_a_side_too_short_to_divide_by_is_empty(impl):
    """Where quotients by it would overflow: nothing is pasted, and the gradient is zero."""
    patch = torch.ones(1, 2, 2, dtype=f64)
    for side in (1e-31, 1e-200, -5e-324):
        box = torch.tensor([0.0, 0.0, side, 4.0], dtype=f64, requires_grad=True)
        mask = paste(patch, box, (4, 4), return_mask=True, impl=impl).mask
        assert mask.eq(0).all()
        (slope,) = torch.autograd.grad(mask.sum(), box)
        assert slope.eq(0).all()


def test_beyond_1e100_a_box_counts_as_infinite(impl):
    """Its gradient is NaN, also where the mask alone is looked at."""
    patch = torch.ones(1, 2, 2, dtype=f64)
    for far, without in ((9e99, False), (1.1e100, True), (1e200, True), (torch.inf, True), (torch.nan, True)):
        box = torch.tensor([0.0, 0.0, far, 4.0], dtype=f64, requires_grad=True)
        mask = paste(patch, box, (4, 4), return_mask=True, impl=impl).mask
        assert mask.eq(0).all() == without
        (slope,) = torch.autograd.grad(mask.sum(), box)
        assert slope.isnan().all() == without


def test_no_patches(impl):
    canvas = torch.rand(2, 3, 5, 7, requires_grad=True)
    patches, boxes = torch.zeros(2, 0, 3, 2, 2, requires_grad=True), torch.zeros(2, 0, 4, requires_grad=True)
    result, mask = paste(patches, boxes, canvas=canvas, return_mask=True, impl=impl)
    assert result.equal(canvas)
    assert mask.eq(0).all()
    assert mask.shape == (2, 1, 5, 7)
    grads = torch.autograd.grad(result.sum(), (patches, boxes, canvas))
    assert [tuple(g.shape) for g in grads] == [(2, 0, 3, 2, 2), (2, 0, 4), (2, 3, 5, 7)]
    assert grads[2].eq(1).all()
    assert paste(patches[:0], boxes[:0], (5, 7), impl=impl).shape == (0, 3, 5, 7)
    assert paste(patches[0], boxes[0], (5, 7), impl=impl).eq(0).all()


def test_batches_are_their_parts(impl, generator):
    """Every form of batch, of one canvas after the other."""
    patches, boxes = rand(2, 3, 1, 4, 5, generator=generator), boxes_in(generator, 2, 3)
    canvas, alpha = rand(2, 1, 11, 13, generator=generator), rand(2, 3, 1, 4, 5, generator=generator)
    each = [paste(p, b, canvas=c, alpha=a, impl=impl) for p, b, c, a in zip(patches, boxes, canvas, alpha, strict=True)]
    expected = torch.stack(each)
    flat, mattes, rows = patches.flatten(0, 1), alpha.flatten(0, 1), boxes.flatten(0, 1)
    order = torch.tensor([3, 0, 1, 4, 2, 5])
    forms = {
        "B, K": paste(patches, boxes, canvas=canvas, alpha=alpha, impl=impl),
        "list": paste(flat, list(boxes), canvas=canvas, alpha=mattes, impl=impl),
        "index": paste(flat[order], rows[order], canvas=canvas, alpha=mattes[order], batch_index=order // 3, impl=impl),
        "canvases": torch.stack(paste(patches, boxes, canvas=list(canvas), alpha=alpha, impl=impl)),
        "lists": torch.stack(paste(flat, list(boxes), canvas=list(canvas), alpha=mattes, impl=impl)),
    }
    for name, found in forms.items():
        assert found.equal(expected), name
    ragged = [canvas[0], rand(1, 6, 20, generator=generator)]
    found = paste(
        flat[order], rows[order], canvas=ragged, alpha=mattes[order], batch_index=order // 3, return_mask=True,
        impl=impl,
    )  # fmt: skip
    assert found[0].canvas.equal(expected[0])
    assert found[1].canvas.equal(paste(patches[1], boxes[1], canvas=ragged[1], alpha=alpha[1], impl=impl))
    one = [paste(p[0], b[0], (11, 13), impl=impl) for p, b in zip(patches, boxes, strict=True)]
    assert paste(patches[:, 0], boxes[:, 0], (11, 13), batch_size=2, impl=impl).equal(torch.stack(one))
    same = paste(patches[:, 0], boxes[0, 0], canvas=canvas, impl=impl)
    assert same[1].equal(paste(patches[1, 0], boxes[0, 0], canvas=canvas[1], impl=impl))


def test_conventions(impl, generator):
    """Formats, coordinates and corners say where the same box is."""
    patch, box = rand(1, 4, 6, generator=generator), torch.tensor([2.0, 1.0, 10.0, 7.0], dtype=f64)
    expected = paste(patch, box, (11, 13), impl=impl)
    x0, y0, x1, y1 = box
    centre = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
    unit = box / torch.tensor([13.0, 11.0, 13.0, 11.0])
    corner = torch.stack([x0 + 8 / 12, y0 + 6 / 8, x1 - 8 / 12, y1 - 6 / 8]) - 0.5
    for found in (
        paste(patch, centre, (11, 13), box_format="cxcywh", impl=impl),
        paste(patch, unit, (11, 13), coords="unit", impl=impl),
        paste(patch, 2 * unit - 1, (11, 13), coords="normalized", impl=impl),
        paste(patch, corner, (11, 13), align_corners=True, impl=impl),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    pixel = paste(patch[:, :1, :1], corner, (11, 13), align_corners=True, impl=impl)
    shifted = corner + torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert pixel.equal(paste(patch[:, :1, :1], shifted, (11, 13), impl=impl))


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes, generator):
    """As images with axes of one pixel, or as the outer product of signals."""
    if axes == 1:
        signal = paste(rand(2, 5, generator=generator), torch.tensor([1.3, 7.1], dtype=f64), 9)
        generator.manual_seed(generator.initial_seed())
        image = paste(
            rand(2, 5, generator=generator)[:, None], torch.tensor([1.3, 0.0, 7.1, 1.0], dtype=f64), (1, 9), mode="area"
        )
        torch.testing.assert_close(signal, image[:, 0])
        return
    patch = rand(1, 2, 3, 4, generator=generator)
    box = torch.tensor([0.4, 1.2, 1.0, 5.9, 4.0, 3.0], dtype=f64)
    volume = paste(patch, box, (5, 6, 7))
    assert volume.shape == (1, 5, 6, 7)
    for z in range(2):
        flat = paste(patch[:, z], box[[0, 1, 3, 4]], (6, 7))
        torch.testing.assert_close(volume[:, 1 + z], flat)


# --- dtypes, layouts, threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(impl, dtype, generator):
    """Sums in float32: one rounding of the result."""
    patches, canvas = rand(3, 2, 5, 6, generator=generator).to(dtype), rand(2, 11, 13, generator=generator).to(dtype)
    alpha, boxes = rand(3, 1, 5, 6, generator=generator).to(dtype), boxes_in(generator, 3)
    found = paste(patches, boxes, canvas=canvas, alpha=alpha, return_mask=True, impl=impl)
    exact = paste(
        patches.double(), boxes, canvas=canvas.double(), alpha=alpha.double(), return_mask=True, impl="reference"
    )
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).abs().max() <= torch.finfo(dtype).eps * 2


def test_whole_numbers(impl, generator):
    """float32 as in crop; nearest keeps the dtype where it only moves."""
    for dtype in (torch.uint8, torch.int64, torch.bool, torch.int16):
        patches = torch.randint(0, 2, (3, 2, 4, 5), generator=generator).to(dtype)
        canvas, boxes = torch.randint(0, 2, (2, 11, 13), generator=generator).to(dtype), boxes_in(generator, 3)
        smooth = paste(patches, boxes, canvas=canvas, impl=impl)
        assert smooth.dtype == torch.float32
        assert smooth.equal(paste(patches.float(), boxes, canvas=canvas.float(), impl=impl))
        moved = paste(patches, boxes, canvas=canvas, mode="nearest", return_mask=True, impl=impl)
        alike = paste(patches.float(), boxes, canvas=canvas.float(), mode="nearest", return_mask=True, impl=impl)
        assert moved.canvas.dtype == dtype
        assert moved.canvas.float().equal(alike.canvas)
        assert moved.mask.dtype == torch.float32
        assert moved.mask.equal(alike.mask)
        stencil = patches[:, :1] != 0
        found = paste(patches, boxes, canvas=canvas, alpha=stencil, impl=impl)
        assert found.equal(paste(patches, boxes, canvas=canvas, alpha=stencil.float(), impl=impl))
        half = patches.float()[:, :1] / 2
        assert paste(patches, boxes, canvas=canvas, alpha=half, mode="nearest", impl=impl).dtype == torch.float32
    large = torch.full((1, 1, 1), 2**53 + 1)
    assert paste(large, torch.tensor([0, 0, 1, 1]), 1, mode="nearest", impl=impl).item() == 2**53 + 1


def test_the_dtype_that_is_there(impl, generator):
    """Of patches, canvas and alpha the floating-point one; of whole numbers only two that agree are moved."""
    whole = torch.randint(0, 200, (1, 2, 3), generator=generator, dtype=torch.uint8)
    box = torch.tensor([1.0, 0.0, 4.0, 2.0])
    for dtype in (torch.float64, torch.bfloat16):
        canvas = rand(1, 4, 5, generator=generator).to(dtype)
        for mode in ("bilinear", "nearest"):
            found = paste(whole, box, canvas=canvas, mode=mode, impl=impl)
            assert found.dtype == dtype
            assert found.equal(paste(whole.to(dtype), box, canvas=canvas, mode=mode, impl=impl))
    other = torch.randint(-999, 999, (1, 4, 5), generator=generator, dtype=torch.int16)
    found = paste(whole, box, canvas=other, mode="nearest", impl=impl)
    assert found.dtype == torch.float32
    assert found.equal(paste(whole.float(), box, canvas=other.float(), mode="nearest", impl=impl))


def test_third_derivatives(impl, generator):
    """By the boxes, against differences of second ones."""
    patches, boxes = rand(1, 1, 3, 3, generator=generator), torch.tensor([[0.31, -0.43, 2.94, 2.21]], dtype=f64)
    weight, push = rand(1, 4, 4, generator=generator), rand(2, 1, 4, generator=generator) - 0.5

    def second(box):
        value = (paste(patches, box, (4, 4), mode="gaussian", sigma=1.0, impl=impl) * weight).sum()
        for direction in push:
            (slope,) = torch.autograd.grad(value, box, create_graph=True)
            value = (slope * direction).sum()
        return value

    (third,) = torch.autograd.grad(second(box := boxes.clone().requires_grad_()), box)
    moved = [second((boxes + sign * 1e-4 * push[0]).requires_grad_()).detach() for sign in (1, -1)]
    assert third.ne(0).all()
    torch.testing.assert_close((third * push[0]).sum(), (moved[0] - moved[1]) / 2e-4, rtol=1e-5, atol=1e-6)


def test_layouts(impl, generator):
    """Any strides give the same numbers; channels_last canvases stay so."""
    patches, canvas = rand(2, 3, 4, 5, 6, generator=generator), rand(2, 4, 11, 13, generator=generator)
    boxes = boxes_in(generator, 2, 3)
    weight = rand(2, 4, 11, 13, generator=generator)

    def everything(p, c, w):
        p, c, b = (t.detach().requires_grad_() for t in (p, c, boxes))
        result = paste(p, b, canvas=c, impl=impl)
        return result, *torch.autograd.grad((result * w).sum(), (p, b, c))

    expected = everything(patches, canvas, weight)
    last = canvas.contiguous(memory_format=torch.channels_last)
    turned = patches.movedim(2, -1).contiguous().movedim(-1, 2)
    wide = torch.stack([patches, patches], -1).flatten(-2)[..., ::2]
    for p, c, w in (
        (turned, last, weight.contiguous(memory_format=torch.channels_last)),
        (wide, canvas.transpose(2, 3).contiguous().transpose(2, 3), weight.expand(2, 4, 11, 13)),
    ):
        found = everything(p, c, w)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13 * float(theirs.detach().abs().max()))
        assert found[0].is_contiguous(memory_format=torch.channels_last) == (c is last)
    # It is the canvas that says so, where there is one.
    several = turned[:, 0].contiguous(memory_format=torch.channels_last)
    for c in (canvas, last):
        found = paste(several, boxes[:, 0], canvas=c, impl=impl)
        assert found.is_contiguous(memory_format=torch.channels_last) == (c is last)
    made = paste(several, boxes[:, 0], (11, 13), batch_size=2, impl=impl)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_threads_change_no_bit(generator):
    patches, boxes = rand(2, 9, 3, 15, 17, generator=generator).float(), boxes_in(generator, 2, 9, shape=(150, 170))
    canvas, alpha = rand(2, 3, 150, 170, generator=generator).float(), rand(2, 9, 1, 15, 17, generator=generator)
    weights = rand(2, 3, 150, 170, generator=generator).float(), rand(2, 1, 150, 170, generator=generator).float()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for blend in ("over", "add"):
                found.append(derivatives(patches, boxes, canvas, alpha.float(), *weights, "cpu", blend=blend))
    finally:
        torch.set_num_threads(before)
    for k in range(2, 6):
        for mine, theirs in zip(found[k], found[k - 2], strict=True):
            assert mine.equal(theirs)


def test_write_attention(impl, generator):
    """DRAW's write F_y^T p F_x, but for the normalisation, over the patch and not over the canvas: a factor."""
    patch, n, pixels, sigma = rand(1, 4, 4, generator=generator), 4, 90, 0.8
    box = torch.tensor([26.3, 29.1, 46.3, 53.1], dtype=f64)
    k, a = torch.arange(n, dtype=f64)[:, None], torch.arange(pixels, dtype=f64)
    banks, steps = [], []
    for lo, hi in ((box[1], box[3]), (box[0], box[2])):
        step = (hi - lo) / n
        mean = lo + (k + 0.5) * step - 0.5
        bank = torch.exp(-0.5 * ((a - mean) / (sigma * step)) ** 2)
        banks.append(bank / bank.sum(1, keepdim=True))
        steps.append(step)
    expected = banks[0].T @ patch @ banks[1] * steps[0] * steps[1]
    found = paste(patch, box, pixels, mode="gaussian", sigma=sigma, blend="add", impl=impl)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_torch_func_and_the_compiler(generator):
    """Transforms give what autograd gives; a compiled paste is one graph, and the operator says what it is."""
    patches, boxes = rand(2, 1, 3, 4, generator=generator), boxes_in(generator, 2)
    canvas = rand(1, 11, 13, generator=generator)

    def function(p, b, c):
        return paste(p, b, canvas=c, mode="bicubic")

    eager = torch.autograd.functional.jacobian(function, (patches, boxes, canvas))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for mine, theirs in zip(transform(function, (0, 1, 2))(patches, boxes, canvas), eager, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)
    batched = torch.func.vmap(function, (None, 0, None))(patches, boxes.expand(3, 2, 4), canvas)
    torch.testing.assert_close(batched[2], function(patches, boxes, canvas), rtol=0, atol=1e-13)
    b = boxes.clone().requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(patches, b, canvas)
    assert compiled.equal(function(patches, boxes, canvas))
    (found,) = torch.autograd.grad(compiled.sum(), b)
    torch.testing.assert_close(found, eager[1].sum((0, 1, 2)), rtol=0, atol=1e-11)
    arguments = (patches, boxes, None, canvas[None], [1, 1, 11, 13], True, False, False, True, "bilinear", True, 0.5)
    given = tuple(t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments)
    torch.library.opcheck(torch.ops.diffcrop.paste, given)


# --- errors -----------------------------------------------------------------------------------------------------------

P, BOX, CANVAS = torch.zeros(3, 2, 4, 4), torch.zeros(3, 4), torch.zeros(2, 9, 9)
GRAD = BOX[1:].clone().requires_grad_()


@pytest.mark.parametrize(("kind", "words", "call"), [
    (ValueError, "size is needed", lambda: paste(P, BOX)),
    (ValueError, r"size must be that of the canvas, \(9, 9\)", lambda: paste(P, BOX, 8, canvas=CANVAS)),
    (TypeError, "patches must be a tensor", lambda: paste([P[0]], BOX, 8)),
    (ValueError, r"\(K, C, h, w\) or \(B, K", lambda: paste(torch.zeros(4, 4), BOX, 8)),
    (ValueError, "onto one canvas go", lambda: paste(P, BOX[:2], 8)),
    (ValueError, "onto one canvas go", lambda: paste(P, BOX[0], 8)),
    (ValueError, "onto B = 2 canvases", lambda: paste(P, BOX, 8, batch_size=2)),
    (ValueError, "need canvases", lambda: paste(P[None], BOX[None], canvas=CANVAS)),
    (ValueError, "as many channels, got 2 and 1", lambda: paste(P[:, :1], BOX, canvas=CANVAS)),
    (ValueError, "one channel, .*add the channel", lambda: paste(P, BOX, 8, alpha=torch.zeros(3, 4, 4))),
    (TypeError, "alpha must be a tensor", lambda: paste(P, BOX, 8, alpha=0.5)),
    (TypeError, r"alpha must be floating-point.*got a torch.uint8 tensor.*pass alpha / 255, .* alpha\.bool\(\)",
     lambda: paste(P, BOX, 8, alpha=P[:, :1].byte())),
    (TypeError, "alpha must be floating-point.*torch.int64", lambda: paste(P, BOX, canvas=[CANVAS], alpha=P.long())),
    (TypeError, "alpha must be floating-point.*complex64", lambda: paste(P, BOX, 8, alpha=P[:, :1] * 1j)),
    (ValueError, "'screen'", lambda: paste(P, BOX, 8, blend="screen")),
    (ValueError, "mean 'add'", lambda: paste(P, BOX, 8, blend="sum")),
    (TypeError, "return_mask must be", lambda: paste(P, BOX, 8, return_mask=1)),
    (TypeError, "batch_size must be an int", lambda: paste(P, BOX, 8, batch_size=2.0)),
    (ValueError, "not be negative", lambda: paste(P, BOX, 8, batch_size=-1)),
    (ValueError, "leave it out", lambda: paste(P, BOX, canvas=CANVAS, batch_size=3)),
    (TypeError, "must be an integer tensor", lambda: paste(P, BOX, 8, batch_size=2, batch_index=[0, 1, 1])),
    (ValueError, "batch_index needs", lambda: paste(P, BOX, 8, batch_index=torch.zeros(3, dtype=torch.long))),
    (ValueError, r"0\.\.1", lambda: paste(P, BOX, 8, batch_size=2, batch_index=torch.tensor([0, 2, 1]))),
    (ValueError, "one for each of the 2", lambda: paste(P, BOX, 8, batch_size=2, batch_index=torch.tensor([0, 1]))),
    (ValueError, "one for each of the 2", lambda: paste(P, [BOX[:1], BOX[:1]], 8)),
    (ValueError, "one tensor per canvas, got 2 for 3", lambda: paste(P, [BOX[:1], BOX[:2]], 8, batch_size=3)),
    (ValueError, "needs a batch of canvases", lambda: paste(P, [BOX], canvas=CANVAS)),
    (ValueError, "must agree in dtype", lambda: paste(P, BOX, canvas=CANVAS.double())),
    (ValueError, "must agree in dtype", lambda: paste(P, BOX, 8, alpha=P[:, :1].double())),
    (ValueError, "nearest", lambda: paste(P, BOX.clone().requires_grad_(), 8, mode="nearest")),
    (ValueError, "does not paste", lambda: paste(P, BOX, 8, impl="triton")),
    (ValueError, "empty list", lambda: paste(P, BOX, canvas=[])),
    (ValueError, "size must be left out", lambda: paste(P, [BOX], 9, canvas=[CANVAS])),
    (ValueError, "serves images", lambda: paste(torch.zeros(1, 3), torch.zeros(2), 8, impl="cpu")),
    (ValueError, "sigma belongs", lambda: paste(P, BOX, 8, sigma=1.0)),
    (TypeError, "what to paste onto is canvas=", lambda: paste(P, BOX, CANVAS)),
    (TypeError, "what to paste onto is canvas=", lambda: paste(P, BOX, CANVAS.numpy())),
    (TypeError, "what to paste onto is canvas=", lambda: paste(P, [BOX[:1], BOX[1:]], [CANVAS, CANVAS])),
    (TypeError, r"pass size.tolist\(\)", lambda: paste(P, BOX, torch.tensor([9, 9]))),
    (ValueError, "into batch_index: .* are pasted by warp", lambda: paste(P, torch.zeros(3, 5), 8)),
    (ValueError, r"boxes\[1\] must .* are pasted by warp", lambda: paste(P, [BOX[:1], torch.zeros(2, 5)], 8)),
    (ValueError, "impl must be one of 'cpu', 'reference', got 'cuda'", lambda: paste(P, BOX, 8, impl="cuda")),
    (ValueError, r"boxes\[1\].detach", lambda: paste(P, [BOX[:1], GRAD], 8, mode="nearest")),
    (ValueError, r"batch_size must be below 2\*\*31", lambda: paste(P, BOX, 8, batch_size=2**31)),
    (ValueError, r"size must be below 2\*\*31", lambda: paste(P, BOX, (2**31, 8))),
])  # fmt: skip
def test_errors(kind, words, call):
    with pytest.raises(kind, match=words):
        call()
