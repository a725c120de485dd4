"""`warp_with_jacobian`: the derivative of every pixel of a warp, against autograd, the reference and differences."""

from __future__ import annotations

import itertools

import pytest
import torch

import diffcrop
from diffcrop import warp, warp_with_jacobian

f64 = torch.float64
KERNELS = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="no compiled library")


def images(count=2, dtype=f64):
    return torch.rand(count, 3, 23, 29, generator=torch.Generator().manual_seed(0), dtype=f64).to(dtype)


def matrices(rows, reduction=1.0):
    """Four of them: turned, sheared, leaving the image, and the last one four times as wide as high."""
    generator = torch.Generator().manual_seed(1)
    found = torch.zeros(4, 3, 3, dtype=f64)
    found[:, :2] = torch.tensor([[1.0, 0.2, 4.0], [-0.3, 0.9, 5.0]]) * reduction
    found[:, :2] += 0.4 * torch.rand(4, 2, 3, generator=generator, dtype=f64) * reduction
    found[3, :2, 0] *= 4
    found[:, 2, 2] = 1
    if rows == 3:
        found[:, 2, :2] = 0.02 * torch.rand(4, 2, generator=generator, dtype=f64)
        found[1] *= -0.5  # means the same, and its derivative does not
    return found[:, :rows]


@KERNELS
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3", "area"])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "constant", "reflection", "circular"])
@pytest.mark.parametrize("rows", [2, 3])
def test_kernel_is_reference(mode, padding_mode, rows):
    fill = (0.5, 0.25, 1.0) if padding_mode == "constant" else 0.0
    index = torch.tensor([1, 0, 0, 1])
    for antialias, reduction in itertools.product((True, False), (1.0, 3.7)):
        if mode == "area" and not antialias:
            continue
        options = {"mode": mode, "padding_mode": padding_mode, "antialias": antialias, "fill": fill}
        given = images(), matrices(rows, reduction), (5, 7)
        crop, jacobian = warp_with_jacobian(*given, batch_index=index, impl="cpu", **options)
        wanted = warp_with_jacobian(*given, batch_index=index, impl="reference", **options)
        torch.testing.assert_close(crop, wanted.crop, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(jacobian, wanted.jacobian, rtol=1e-10, atol=1e-11)
        assert torch.equal(crop, warp(*given, batch_index=index, impl="cpu", **options))


@pytest.mark.parametrize("impl", [pytest.param("cpu", marks=KERNELS), "reference"])
@pytest.mark.parametrize(("coords", "align_corners"), [
    ("pixel", False), ("pixel", True), ("unit", False), ("normalized", False), ("normalized", True),
])  # fmt: skip
@pytest.mark.parametrize("rows", [2, 3])
def test_against_autograd(impl, coords, align_corners, rows):
    matrix = matrices(3, 2.3)[0]
    matrix = (
        torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.05], [0.03, 0.02, 1.0]], dtype=f64)
        if coords != "pixel"
        else matrix
    )
    matrix = matrix[:rows]
    options = {"coords": coords, "align_corners": align_corners, "impl": impl}
    found = warp_with_jacobian(images()[0], matrix, (4, 5), **options).jacobian
    wanted = torch.autograd.functional.jacobian(lambda m: warp(images()[0], m, (4, 5), **options), matrix)
    assert found.shape == (3, 4, 5, rows, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64])
def test_dtypes(dtype):
    source = images() * (255 if not dtype.is_floating_point else 1)
    source = source.to(dtype)
    found = warp_with_jacobian(source, matrices(2)[:2], 5).jacobian
    wanted = warp_with_jacobian(source.to(f64), matrices(2)[:2], 5).jacobian
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    tolerance = 1e-5 if dtype not in (torch.float16, torch.bfloat16) else 2 * torch.finfo(dtype).eps
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_layouts_and_shapes():
    one = matrices(2)
    plain = warp_with_jacobian(images(), one, 6, batch_index=torch.tensor([0, 1, 1, 0])).jacobian
    last = images().to(memory_format=torch.channels_last)
    again = warp_with_jacobian(last, one, 6, batch_index=torch.tensor([0, 1, 1, 0])).jacobian
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)
    assert warp_with_jacobian(images(), one.view(2, 2, 2, 3), 6).jacobian.shape == (2, 2, 3, 6, 6, 2, 3)
    assert warp_with_jacobian(images()[0], one[:0], 6).jacobian.shape == (0, 3, 6, 6, 2, 3)
    assert warp_with_jacobian(images()[:, :0], one[:2], 6).jacobian.shape == (2, 0, 6, 6, 2, 3)


def test_a_nan_matrix_stands_for_itself():
    given = matrices(2)
    given[1, 0, 0] = torch.nan
    found = warp_with_jacobian(images()[0], given, 5).jacobian
    sound = warp_with_jacobian(images()[0], matrices(2), 5).jacobian
    assert found[1].isnan().all()
    for r in (0, 2, 3):
        assert torch.equal(found[r], sound[r])


def test_the_derivative_of_the_derivative():
    matrix = matrices(2)[0].requires_grad_()
    small = images()[0, :1, :9, :9].requires_grad_()

    def function(i, m):
        return warp_with_jacobian(i, m, 2, padding_mode="zeros", mode="bicubic").jacobian

    torch.autograd.gradcheck(function, (small, matrix), atol=1e-4)


@KERNELS
def test_the_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(warp_with_jacobian(images(dtype=torch.float32)[0], matrices(3, 3.0), 40).jacobian)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("error", "call", "words"), [
    (TypeError, lambda: warp_with_jacobian([images()[0]], matrices(2)[0], 4), ("images must be", "no lists")),
    (TypeError, lambda: warp_with_jacobian(images(), [matrices(2)] * 2, 4), ("matrix must be", "no lists")),
    (ValueError, lambda: warp_with_jacobian(images()[0], matrices(2)[0], 4, mode="nearest"), ("no derivative",)),
    (ValueError, lambda: warp_with_jacobian(images()[0], torch.rand(4, 4), 4), ("matrix", "(4, 4)")),
])  # fmt: skip
def test_errors(error, call, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
