"""The kernels of warps equal their reference: values and both gradients, in every mode and padding."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffcrop
from diffcrop import _ops_warp
from diffcrop._options import WarpOptions
from warps import boxed, placed, reduced, some, tilted

pytestmark = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="no compiled library")

MODES = ("bilinear", "bicubic", "lanczos3", "area")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular")


def options(mode, antialias, padding_mode, align_corners=False):
    return WarpOptions(mode, antialias, padding_mode, (0.3,) if padding_mode == "constant" else (0.0,), align_corners)


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(images, matrices, index, reductions, size, opts, *, cotangent=None):
    """(value, image gradient, matrix gradient) of the kernels and of the reference."""
    results = []
    for impl in ("cpu", "reference"):
        leaves = [images.clone().requires_grad_(images.is_floating_point()), matrices.clone().requires_grad_()]
        value = _ops_warp.sampled(*leaves, index, reductions, size, opts, impl)
        g = rand(*value.shape, seed=5, dtype=value.dtype) - 0.5 if cotangent is None else cotangent
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        results.append((value.detach(), *torch.autograd.grad(value, wanted, g)))
    return zip(*results, strict=True)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_kernels_equal_the_reference(mode, padding_mode, antialias, align_corners):
    for size, image in (((7, 19), (23, 37)), ((1, 1), (5, 1)), ((3, 40), (70, 90))):
        matrices, opts = some(size, image), options(mode, antialias, padding_mode, align_corners)
        reductions = reduced((1, 1), (2, 1.01), (3, 3.7), (1.3, 2.9), (5, 2), (0, 3)) if antialias else None
        for mine, expected in both(rand(6, 3, *image), matrices, None, reductions, size, opts):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 17])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(9, 21), (18, 32)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_number_of_channels(channels, channels_last, size, dtype):
    """In rows of whole and of part of a register; in float32 all is read by vectors, with many rows by channel."""
    image, near = (40, 1033) if channels > 4 else (40, 33), 1e-10 if dtype == torch.float64 else 1e-4
    images = rand(2, channels, *image).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    matrices, index = some(size, image), torch.tensor([0, 1, 1, 0, 0, 1])
    for reductions in (None, reduced(*[(2, 1.5)] * 6)):
        for mine, expected in both(images, matrices, index, reductions, size, options("bilinear", True, "zeros")):
            torch.testing.assert_close(mine, expected, rtol=near, atol=near * float(expected.abs().max()))
    value = _ops_warp.sampled(images, matrices, index, None, size, options("bilinear", True, "zeros"), "cpu")
    assert value.is_contiguous(memory_format=torch.channels_last) == (channels_last or channels == 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2), (torch.uint8, 2e-6)
])  # fmt: skip
def test_every_dtype(dtype, tolerance):
    size, image = (11, 35), (50, 60)
    images = (rand(6, 3, *image) * 255).to(dtype) if dtype == torch.uint8 else rand(6, 3, *image, dtype=dtype)
    scale = 255 if dtype == torch.uint8 else 1
    for matrices in (some(size, image), some(size, image).float()):
        for mode, reductions in itertools.product(("bilinear", "bicubic"), (None, reduced(*[(2, 2.4)] * 6))):
            pairs = both(images, matrices, None, reductions, size, options(mode, True, "border"))
            for mine, expected in pairs:
                assert mine.dtype == expected.dtype
                size_of = expected.abs().max().clamp_min(scale)
                torch.testing.assert_close(mine / size_of, expected / size_of, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_nearest_moves_elements(dtype, padding_mode):
    size, image = (11, 35), (50, 60)
    images = (rand(6, 3, *image) * 250).to(dtype)
    opts = WarpOptions("nearest", False, padding_mode, (1.0,) if padding_mode == "constant" else (0.0,))
    matrices = some(size, image)
    matrices[1, 0, 0] = float("nan")
    mine, expected = (_ops_warp.warp(images, matrices, None, size, opts, impl) for impl in ("cpu", "reference"))
    assert mine.dtype == dtype
    assert torch.equal(mine.nan_to_num(77) if mine.is_floating_point() else mine,
                       expected.nan_to_num(77) if mine.is_floating_point() else expected)  # fmt: skip


coordinate = st.floats(-60, 60)


@given(
    corners=st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=3),
    tilt=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    image=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    reductions=st.none() | st.tuples(st.integers(0, 4200), st.integers(0, 4200)),
    mode=st.sampled_from(MODES),
    padding_mode=st.sampled_from(PADDINGS),
    align_corners=st.booleans(),
    whole=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_kernels_equal_the_reference_anywhere(
    corners, tilt, size, image, reductions, mode, padding_mode, align_corners, whole
):
    """Any parallelogram or what is behind it, also where positions coincide with pixels."""
    points = torch.tensor(corners, dtype=torch.float64)
    points = points.round() if whole else points
    h, w = size
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, 0], matrix[:2, 1] = (points[1] - points[0]) / w, (points[2] - points[0]) / h
    matrix[:2, 2] = points[0]
    matrix = matrix if whole else tilted(matrix, (tilt[0] / w, tilt[1] / h), size)
    counts = None if reductions is None else torch.tensor([reductions])
    opts = options(mode, True, padding_mode, align_corners)
    value, by_image, by_matrix = both(rand(1, 2, *image), matrix[None], None, counts, size, opts)
    torch.testing.assert_close(*value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*by_image, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*by_matrix, rtol=1e-8, atol=1e-7)


def test_kinks_are_right_hand():
    """Whole positions: derivatives of the kernels, of the reference, and differences to the right agree."""
    image, size = rand(1, 1, 12, 14), (5, 6)
    matrix = boxed((3.0, 4.0, 9.0, 9.0), size)[None]
    for impl in ("cpu", "reference"):
        leaf = matrix.clone().requires_grad_()
        opts = options("bilinear", False, "border")
        value = _ops_warp.warp(image, leaf, None, size, opts, impl)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        for row in (0, 1):
            moved = matrix.clone()
            moved[0, row, 2] += 1e-4
            difference = (_ops_warp.warp(image, moved, None, size, opts, impl) - value.detach()).sum() / 1e-4
            torch.testing.assert_close(gradient[0, row, 2], difference, rtol=1e-6, atol=1e-6)
            assert abs(difference) > 1e-3


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_what_is_not_finite_stays_alone(padding_mode):
    size, image = (7, 9), (13, 17)
    images, matrices = rand(2, 2, *image), some(size, image).repeat(2, 1, 1)
    matrices[2, 0, 1], matrices[3, 2, 2], matrices[6, 1, 1] = float("nan"), float("inf"), 1e200
    index = torch.tensor([0, 1, 0, 1, 0, 1, 0, 2, -1, 0, 0, 0])
    for reductions in (None, reduced(*[(1.7, 1)] * 12)):
        for mine, expected in both(images, matrices, index, reductions, size, options("bilinear", True, padding_mode)):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10, equal_nan=True)
            assert mine.isnan().any() == (mine.shape != images.shape)


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_behind_the_horizon_and_beyond_all_bounds(padding_mode):
    size, image = (9, 21), (13, 17)
    horizon = tilted(placed(5.0, (1.0, 1.0), (8.0, 6.0), size), (0.02, -0.3), size)
    matrices = torch.stack([
        horizon, -horizon, placed(20.0, (1e12, 1e12), (3.0, 4.0), size), placed(20.0, (1.0, 1.0), (1e90, -1e90), size),
        torch.zeros(3, 3, dtype=torch.float64), 1e-300 * some(size, image)[4],
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, -0.5]], dtype=torch.float64),
    ])  # fmt: skip
    pairs = both(rand(7, 2, *image), matrices, None, None, size, options("bilinear", False, padding_mode))
    for number, (mine, expected) in enumerate(pairs):
        assert mine.isfinite().all() or number == 2
        if number != 1:
            # Where a pixel is smaller than the rounding of a position the value is whatever it is.
            far = padding_mode in ("reflection", "circular")
            keep = torch.tensor([0, 1, 4, 5, 6] if far else [0, 1, 3, 4, 5, 6])
            keep = keep if number == 0 else keep[:2]
            torch.testing.assert_close(mine[keep], expected[keep], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reductions", [None, (2, 2.6)])
def test_the_same_bits_for_any_number_of_threads(reductions):
    size, image = (90, 70), (200, 150)
    images, matrices = rand(2, 5, *image, dtype=torch.float32), some(size, image).repeat(4, 1, 1)
    index = torch.arange(24) % 2
    counts = None if reductions is None else reduced(*[reductions] * 24)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(images, matrices, index, counts, size))
    finally:
        torch.set_num_threads(before)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def run(images, matrices, index, reductions, size, opts=None):
    leaves = [images.clone().requires_grad_(), matrices.clone().requires_grad_()]
    value = _ops_warp.sampled(*leaves, index, reductions, size, opts or options("bilinear", True, "border"), "cpu")
    g = rand(*value.shape, seed=5, dtype=value.dtype) - 0.5
    return [value.detach(), *torch.autograd.grad(value, leaves, g)]


def test_a_box_has_the_same_bits_whatever_boxes_are_beside_it():
    size, image = (33, 41), (100, 90)
    images, matrices = rand(1, 3, *image, dtype=torch.float32), some(size, image)
    value, _, by_matrix = run(images, matrices, None, None, size)
    for r in range(6):
        alone, *_ = run(images, matrices[r : r + 1], None, None, size)
        assert torch.equal(value[r], alone[0])
        # Cotangents differ by box: compare with those of the same box.
        leaf = matrices[r : r + 1].clone().requires_grad_()
        single = _ops_warp.sampled(images, leaf, None, None, size, options("bilinear", True, "border"), "cpu")
        g = (rand(6, 3, *size, seed=5, dtype=torch.float32) - 0.5)[r : r + 1]
        assert torch.equal(by_matrix[r], torch.autograd.grad(single, leaf, g)[0][0])


@pytest.mark.parametrize("what", ["warp", "jacobian"])
def test_zeros_keep_their_sign_beside_boxes_of_other_levels(what):
    def cropped(boxes):
        options = {"batch_index": torch.zeros(len(boxes), dtype=torch.int64), "antialias": True, "impl": "cpu"}
        if what == "warp":
            return diffcrop.crop_rotated(images, boxes, (8, 8), **options)
        matrix = diffcrop.rotated_to_matrix(boxes, (8, 8))
        return diffcrop.warp_with_jacobian(images, matrix, (8, 8), **options)[0]

    images = -torch.zeros(1, 2, 1024, 1024)
    boxes = torch.tensor([[100.0, 100.0, 10.0, 10.0, 10.0], [512.0, 512.0, 900.0, 900.0, 10.0]])
    beside, alone = cropped(boxes), cropped(boxes[:1])
    assert alone.signbit().all()
    assert beside[:1].signbit().equal(alone.signbit())


def test_strides():
    size, image = (13, 35), (40, 50)
    base, matrices = rand(6, 6, 2 * image[0], 2 * image[1], dtype=torch.float32), some(size, image)
    some_rows = (slice(None), slice(3), slice(image[0]), slice(image[1]))
    views = [base[:, ::2, ::2, ::2], base[some_rows], base[:1].expand_as(base)[some_rows]]
    views.append(base.transpose(2, 3)[some_rows])
    for view in views:
        for a, b in zip(
            run(view, matrices, None, None, size), run(view.contiguous(), matrices, None, None, size), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_nothing_at_all():
    opts = options("bilinear", True, "border")
    none = torch.zeros(0, 3, 3)
    for impl in ("cpu", "reference"):
        images = rand(2, 3, 8, 9).requires_grad_()
        value = _ops_warp.sampled(
            images, none.requires_grad_(), torch.zeros(0, dtype=torch.int64), None, (4, 5), opts, impl
        )
        assert value.shape == (0, 3, 4, 5)
        assert torch.equal(torch.autograd.grad(value.sum(), images)[0], torch.zeros(2, 3, 8, 9, dtype=torch.float64))
        assert _ops_warp.warp(rand(0, 3, 8, 9), none, None, (4, 5), opts, impl).shape == (0, 3, 4, 5)
        assert _ops_warp.warp(rand(2, 0, 8, 9), torch.eye(3).expand(2, 3, 3), None, (4, 5), opts, impl).shape == (
            2,
            0,
            4,
            5,
        )


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_no_channels_have_no_gradient(impl):
    images, matrices = rand(2, 0, 8, 9).requires_grad_(), torch.eye(3).repeat(2, 1, 1).requires_grad_()
    for antialias in (False, True):
        value = _ops_warp.warp(images, matrices * 3, None, (4, 5), options("bilinear", antialias, "border"), impl)
        by_image, by_matrix = torch.autograd.grad(value.sum(), (images, matrices))
        assert by_image.shape == images.shape
        assert torch.equal(by_matrix, torch.zeros(2, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levels_are_not_rounded(dtype):
    """Half precision is rounded once, at the end."""
    images, size = rand(1, 1, 256, 256).to(dtype), (8, 8)
    matrix = placed(20.0, (15.0, 15.0), (128.0, 128.0), size)[None]
    value = _ops_warp.warp(images, matrix, None, size, options("bilinear", True, "border"), "cpu")
    exact = _ops_warp.warp(images.double(), matrix, None, size, options("bilinear", True, "border"), "cpu")
    assert value.dtype == dtype
    torch.testing.assert_close(value, exact.to(dtype), rtol=0, atol=torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_far_from_the_origin(channels, layout):
    """Positions are float64: near the end of a wide image all is as exact as in the part of it that is read."""
    size, part, wide = (19, 48), (90, 100), 20_000
    content = rand(1, channels, *part, dtype=torch.float32)
    images = torch.zeros(1, channels, part[0], wide).contiguous(memory_format=layout)
    images[..., wide - part[1] :] = content
    turned = placed(31.0, (0.9, 1.1), (50.2, 45.3), size)
    matrices = torch.stack([turned, tilted(turned, (0.004, -0.003), size)])
    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2] = wide - part[1]
    index = torch.zeros(2, dtype=torch.int64)
    opts = options("bilinear", False, "zeros")
    for reductions in (None, reduced((1.6, 1.3), (1.2, 2.0))):
        found = []
        for source, boxes in ((images, shift @ matrices), (content.double(), matrices)):
            leaves = [source.clone().requires_grad_(), boxes.requires_grad_()]
            value = _ops_warp.sampled(*leaves, index, reductions, size, opts, "cpu")
            g = rand(*value.shape, seed=5, dtype=torch.float32) - 0.5
            by_image, by_matrix = torch.autograd.grad(value, leaves, g.to(value.dtype))
            found.append((value.detach(), by_image[..., -part[1] :], by_matrix))
        (value, by_image, by_matrix), exact = found
        # By the entries of the shifted matrix: those of the other, once the shift is taken along.
        by_matrix = shift.T @ by_matrix
        for mine, expected in zip((value, by_image, by_matrix), exact, strict=True):
            near = 3e-6 * float(expected.abs().max())
            torch.testing.assert_close(mine.double(), expected, rtol=0, atol=near)


def test_sums_of_matrix_gradients_are_double():
    """Over very many outputs of an image in float32 whose slopes are exact."""
    size = (400, 432)
    images = torch.arange(600.0)[:, None] + 2 * torch.arange(620.0)
    matrix = placed(7.0, (1.1, 1.05), (310.0, 300.0), size)[None].requires_grad_()
    value = _ops_warp.sampled(images[None, None], matrix, None, None, size, options("bilinear", False, "border"), "cpu")
    g = rand(*value.shape, dtype=torch.float32)
    (found,) = torch.autograd.grad(value, matrix, g)
    v, u = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in size), indexing="ij")
    sums = (torch.stack([u, v, torch.ones_like(u)]) * g[0, 0].double()).sum((1, 2))
    torch.testing.assert_close(found[0, :2], torch.stack([2 * sums, sums]), rtol=1e-8, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="memory that is not written to takes none there")
def test_offsets_are_wide():
    """Rows that lie further apart than 32 bits can say."""
    size, image = (7, 32), (50, 60)
    base = torch.empty(image[0], 45_000_000, dtype=torch.uint8)
    matrices = placed(3.0, (1.0, 1.0), (30.0, 45.0), size)[None]  # the last rows but one, of whole registers
    near = (rand(1, 1, *image) * 255).to(torch.uint8)
    far = base[None, None, :, : image[1]]
    far.copy_(near)
    assert far.stride(2) * image[0] > 2**31
    for mode, reductions in itertools.product(("bilinear", "bicubic"), (None, reduced((2, 1.5)))):
        found = []
        for images in (near, far):
            leaf = matrices.clone().requires_grad_()
            value = _ops_warp.sampled(images, leaf, None, reductions, size, options(mode, True, "border"), "cpu")
            found.append((value.detach(), *torch.autograd.grad(value.square().sum(), leaf)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding_mode", ["zeros", "constant", "border"])
def test_behind_the_horizon_in_float32(padding_mode, layout):
    """Whole registers of samples that would lie inside, were it not for their sign."""
    size, image = (9, 48), (40, 60)
    images = rand(1, 3, *image, dtype=torch.float32).contiguous(memory_format=layout)
    matrix = tilted(placed(5.0, (0.1, 0.1), (30.0, 20.0), size), (0.0, -0.3), size)[None]
    behind = matrix[0, 2, 1] * 8.5 + matrix[0, 2, 2]
    assert behind < -0.1
    opts = options("bilinear", False, padding_mode)
    found = list(both(images, matrix, None, None, size, opts))
    for mine, expected in found:
        torch.testing.assert_close(mine, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    fill = 0.3 if padding_mode == "constant" else 0.0
    torch.testing.assert_close(found[0][0][0, :, 8], torch.full((3, 48), fill))
