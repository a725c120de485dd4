"""The reference of warps against `grid_sample`, against `crop` and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import grid_sample

from diffcrop import _ops, _ops_warp, _pyramid
from diffcrop._options import Options, WarpOptions
from warps import boxed, grid_of, placed, some, tilted

IMAGE, SIZE = (13, 17), (7, 9)
MODES = ("bilinear", "bicubic", "lanczos3")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular")


def options(mode, antialias, padding_mode, align_corners=False):
    return WarpOptions(mode, antialias, padding_mode, (0.3,) if padding_mode == "constant" else (0.0,), align_corners)


def rand(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(images, matrices, size, opts, index=None):
    return _ops_warp.warp(images, matrices, index, size, opts, "reference")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_reference_is_grid_sample(mode, padding_mode, align_corners):
    images, matrices = rand(6, 3, *IMAGE), some(SIZE, IMAGE)
    expected = grid_sample(
        images, grid_of(matrices, SIZE, IMAGE, align_corners), mode, padding_mode, align_corners=align_corners
    )
    result = reference(images, matrices, SIZE, options(mode, False, padding_mode, align_corners))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_reference_gradients_are_those_of_grid_sample(mode, padding_mode):
    inputs = [rand(6, 3, *IMAGE).requires_grad_(), some(SIZE, IMAGE).requires_grad_()]
    cotangent = rand(6, 3, *SIZE, seed=1) - 0.5
    theirs = grid_sample(inputs[0], grid_of(inputs[1], SIZE, IMAGE, False), mode, padding_mode, align_corners=False)
    ours = reference(*inputs, SIZE, options(mode, False, padding_mode))
    for mine, expected in zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(theirs, inputs, cotangent), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


# Inside, across every edge, mirrored, far outside, of no size, and one where positions and pixels coincide.
BOXES = [
    (1.3, 2.1, 8.2, 9.9), (-3.1, 4.0, 5.0, 20.0), (12.0, -2.0, 3.0, 5.5), (100.0, 3.0, 120.0, 4.0),
    (4.2, 5.1, 4.2, 5.1), (2.0, 3.0, 11.0, 10.0),
]  # fmt: skip


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("image", [IMAGE, (1, 5)])
def test_a_diagonal_matrix_is_a_crop(mode, padding_mode, align_corners, image):
    images, opts = rand(6, 2, *image).requires_grad_(), options(mode, False, padding_mode, align_corners)
    boxes = torch.tensor(BOXES, dtype=torch.float64).requires_grad_()
    x0, y0, x1, y1 = boxes.unbind(-1)
    u, v = (x1 - x0) / SIZE[1], (y1 - y0) / SIZE[0]
    if align_corners:  # corners are centres of outputs, and numbered as pixels are
        u, v = (x1 - x0) / (SIZE[1] - 1), (y1 - y0) / (SIZE[0] - 1)
        x0, y0 = x0 + 0.5 - 0.5 * u, y0 + 0.5 - 0.5 * v
    zero = torch.zeros_like(u)
    matrices = torch.stack([u, zero, x0, zero, v, y0, zero, zero, zero + 1], -1).unflatten(-1, (3, 3))
    result = reference(images, matrices, SIZE, opts)
    crop = _ops.crop(
        images, boxes, None, SIZE, Options(mode, False, padding_mode, opts.fill, 0.5, align_corners), "reference"
    )
    torch.testing.assert_close(result, crop, rtol=0, atol=1e-12)
    cotangent = rand(*crop.shape, seed=2) - 0.5
    for mine, expected in zip(
        torch.autograd.grad(result, (images, boxes), cotangent),
        torch.autograd.grad(crop, (images, boxes), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_nearest_of_a_diagonal_matrix_is_that_of_crop():
    images = (rand(6, 2, *IMAGE) * 1000).to(torch.int16)
    boxes = torch.tensor(BOXES, dtype=torch.float64)
    matrices = torch.stack([boxed(box, SIZE) for box in BOXES])
    for padding_mode in PADDINGS:
        fill = (7.0,) if padding_mode == "constant" else (0.0,)
        crop = _ops.crop(images, boxes, None, SIZE, Options("nearest", False, padding_mode, fill), "reference")
        result = reference(images, matrices, SIZE, WarpOptions("nearest", False, padding_mode, fill))
        assert result.dtype == torch.int16
        assert torch.equal(result, crop)


@pytest.mark.parametrize("reduction", [1, 2, 3])
@pytest.mark.parametrize("mode", [*MODES, "area"])
def test_an_aligned_reduction_by_a_whole_number_is_a_crop(mode, reduction):
    """Samples and surface together have the crop's weights there; nearly so where the filter is no piece of lines."""
    images = rand(1, 2, 40, 44)
    box = (5.0, 7.0, 5.0 + 9 * reduction, 7.0 + 7 * reduction)
    boxes = torch.tensor([box], dtype=torch.float64)
    expected = _ops.crop(images, boxes, None, SIZE, Options(mode, True), "reference")
    result = reference(images, boxed(box, SIZE)[None], SIZE, WarpOptions(mode, True))
    near = 0.02 if mode in ("bicubic", "lanczos3") and reduction > 1 else 1e-12
    torch.testing.assert_close(result, expected, rtol=0, atol=near)
    plain = reference(images, boxed(box, SIZE)[None], SIZE, WarpOptions("bilinear", False))
    assert reduction < 3 or (result - plain).abs().max() > 0.1


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_paddings_hold_on_every_level(padding_mode):
    """An image that its padding continues seamlessly has the same warp as the larger image that it is a part of."""
    size, reduction = (4, 4), 21.0
    matrix = placed(20.0, (reduction, reduction), (32.0, 32.0), size)[None]
    opts = options("bilinear", True, padding_mode)
    chosen = _pyramid.plan(matrix, size, (64, 64))
    assert chosen.level.item() >= 2
    value = opts.fill[0]
    image = rand(1, 1, 64, 64)
    if padding_mode in ("zeros", "constant"):
        whole = torch.nn.functional.pad(image, (64,) * 4, value=value)
    elif padding_mode == "border":
        whole = torch.nn.functional.pad(image, (64,) * 4, mode="replicate")
    elif padding_mode == "circular":
        whole = torch.nn.functional.pad(image, (64,) * 4, mode="circular")
    else:
        mirrored = torch.cat([image.flip(-1), image, image.flip(-1)], -1)
        whole = torch.cat([mirrored.flip(-2), mirrored, mirrored.flip(-2)], -2)
    shifted = matrix.clone()
    shifted[:, :2, 2] += 64
    torch.testing.assert_close(reference(image, matrix, size, opts), reference(whole, shifted, size, opts))


@pytest.mark.parametrize("opts", [
    WarpOptions("bilinear", False), WarpOptions("bicubic", False, "reflection"),
    WarpOptions("lanczos3", False, "zeros"), WarpOptions("bilinear", True, "constant", (0.3,)),
    WarpOptions("bicubic", True, "circular"), WarpOptions("area"),
], ids=lambda o: f"{o.mode}-{o.antialias}-{o.padding_mode}")  # fmt: skip
def test_derivatives_are_those_of_differences(opts):
    size, image = (3, 4), (7, 8)
    matrices = torch.stack([
        tilted(placed(33.0, (1.7, 1.3), (3.9, 3.6), size), (0.03, -0.02), size),
        placed(-10.0, (2.6, 0.7), (6.6, 1.2), size),
    ])  # fmt: skip
    inputs = (rand(2, 1, *image).requires_grad_(), matrices.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, m: reference(i, m, size, opts), inputs)
    assert torch.autograd.gradgradcheck(lambda i, m: reference(i, m, size, opts), inputs)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_what_is_not_finite_stays_alone(padding_mode):
    images, matrices = rand(2, 2, *IMAGE).requires_grad_(), some(SIZE, IMAGE).repeat(2, 1, 1)
    good = torch.tensor([0, 1, 4, 5])
    matrices[2, 0, 1], matrices[3, 2, 2], matrices[6, 1, 1] = float("nan"), float("inf"), 1e200
    index = torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, -1, 0, 0, 0])
    bad = torch.tensor([2, 3, 6, 7, 8])
    matrices.requires_grad_()
    opts = options("bilinear", False, padding_mode)
    result = reference(images, matrices, SIZE, opts, index)
    assert result[bad].isnan().all()
    assert not result[good].isnan().any()
    by_image, by_matrix = torch.autograd.grad(result.sum(), (images, matrices))
    assert by_matrix[bad].isnan().all()
    assert not by_matrix[good].isnan().any()
    keep = torch.tensor([r for r in range(12) if r not in bad.tolist()])
    alone = reference(images, matrices[keep], SIZE, opts, index[keep])
    assert torch.equal(by_image, torch.autograd.grad(alone.sum(), images)[0])


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_nothing_is_seen_behind_the_horizon(padding_mode):
    size = (8, 8)
    matrix = tilted(placed(0.0, (1.0, 1.0), (8.0, 6.0), size), (0.0, -0.3), size)  # Z < 0 from v = 7.33 on
    for sign in (1, -1):
        inputs = rand(1, 1, *IMAGE).requires_grad_(), (sign * matrix[None]).requires_grad_()
        result = reference(*inputs, size, options("bilinear", False, padding_mode))
        assert (result[..., 7, :] == (0.3 if padding_mode == "constant" else 0)).all()
        assert (result[..., :4, :].detach() > 0).all()
        for gradient in torch.autograd.grad(result.sum(), inputs):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_wild_matrices_are_finite(padding_mode):
    matrices = torch.stack([
        placed(20.0, (1e12, 1e12), (3.0, 4.0), SIZE), placed(20.0, (1.0, 1.0), (1e90, -1e90), SIZE),
        torch.zeros(3, 3, dtype=torch.float64), 1e-300 * some(SIZE, IMAGE)[4],
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, -0.5]], dtype=torch.float64),
    ]).requires_grad_()  # fmt: skip
    for antialias in (False, True):
        images = rand(5, 1, *IMAGE).requires_grad_()
        result = reference(images, matrices, SIZE, options("bilinear", antialias, padding_mode))
        assert result.isfinite().all()
        assert torch.autograd.grad(result.sum(), images)[0].isfinite().all()
