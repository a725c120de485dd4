"""The functions of `compat` compile into one graph each, with the values and the gradients that they have without."""

from __future__ import annotations

import pytest
import torch

from diffcrop import compat
from helpers import rand
from plain import agree, f64

SHAPE, SIZE = (2, 2, 9, 10), (3, 4)
# Corners of an upright box and of one that is not, from the top-left one clockwise, on the axes of pixel indices.
QUADS = torch.tensor(
    [[[1.2, 1.1], [7.4, 1.1], [7.4, 6.3], [1.2, 6.3]], [[2.1, 1.3], [8.2, 0.4], [7.7, 7.1], [1.6, 5.9]]], dtype=f64
)
BOXES = torch.tensor([[1.3, 0.7, 8.1, 6.9], [-0.8, 2.2, 5.3, 9.1]], dtype=f64)
TARGET = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 2.0], [0.0, 2.0]]], dtype=f64)
MATRIX = torch.tensor([[[0.6, 0.1, -0.4], [-0.2, 0.7, 0.3], [0.01, -0.02, 1.0]]], dtype=f64)

# Name -> (function of an image and of what places the crop, what places it).
CALLS = {
    "torchvision.roi_align": (lambda i, b: compat.torchvision.roi_align(i, [b[:1], b[1:]], 3, 0.9, 2, True), BOXES),
    "torchvision.resized_crop": (lambda i, b: compat.torchvision.resized_crop(i * b[0, 0], 1, -2, 6, 7, SIZE), BOXES),
    "tensorflow.crop_and_resize": (
        lambda i, b: compat.tensorflow.crop_and_resize(i.permute(0, 2, 3, 1), b / 10, torch.tensor([1, 0]), SIZE),
        BOXES,
    ),
    "jax.scale_and_translate": (
        lambda i, b: compat.jax.scale_and_translate(i, (2, 2, *SIZE), (2, 3), b[0, 2:] / 15, b[1, :2], "linear"),
        BOXES,
    ),
    "jax.scale_and_translate, by matrices": (
        lambda i, b: compat.jax.scale_and_translate(i, (2, 2, *SIZE), (2, 3), b[0, 2:] / 15, b[1, :2], "area"),
        BOXES,
    ),
    "kornia.crop_and_resize": (lambda i, q: compat.kornia.crop_and_resize(i, q, SIZE), QUADS),
    "kornia.crop_by_transform_mat": (lambda i, m: compat.kornia.crop_by_transform_mat(i, m, SIZE), MATRIX),
    "kornia.center_crop": (lambda i, b: compat.kornia.center_crop(i * b[0, 0], SIZE), BOXES),
}
# The size of the result is read from values there, as it is in kornia.
READS_VALUES = {"kornia.crop_by_boxes"}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


def test_every_function_is_among_them():
    named = {name.split(",")[0] for name in CALLS} | READS_VALUES
    assert named == {f"{peer}.{name}" for peer in compat.__all__ for name in getattr(compat, peer).__all__}


@pytest.mark.parametrize("name", CALLS)
def test_compiled_forward_and_backward(name, generator):
    function, places = CALLS[name]
    i, p = rand(*SHAPE, generator=generator).requires_grad_(), places.clone().requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected, result = function(i, p), compiled(i, p)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    agree(result, expected, 1e-13)
    by_compiled, by_eager = (torch.autograd.grad(r.square().sum(), (i, p)) for r in (result, expected))
    for mine, theirs in zip(by_compiled, by_eager, strict=True):
        agree(mine, theirs, 1e-11)


def test_what_reads_values_says_so_in_a_graph(generator):
    i = rand(*SHAPE, generator=generator)
    compiled = torch.compile(compat.kornia.crop_by_boxes, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(i, QUADS, TARGET)
    broken = torch.compile(compat.kornia.crop_by_boxes, backend="aot_eager")
    agree(broken(i, QUADS, TARGET), compat.kornia.crop_by_boxes(i, QUADS, TARGET), 1e-13)
