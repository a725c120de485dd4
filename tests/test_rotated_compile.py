"""`crop_rotated`, `crop_quad` and `warp` compiled and exported are the eager ones."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import diffcrop
from diffcrop import crop_quad, crop_rotated, quads_to_matrix, rotated_to_matrix, rotated_to_quads, warp, warp_points
from helpers import rand
from plain import agree
from test_rotated import IMPLEMENTATIONS, places

SHAPE, SIZE = (9, 10), (3, 4)
FUNCTIONS = (crop_rotated, crop_quad, warp)
CALLS = {
    "default": {},
    "sharp": {"antialias": False, "mode": "bicubic", "padding_mode": "constant", "fill": 0.25},
    "unit centres": {"coords": "unit", "align_corners": True, "antialias": False},
    "nearest": {"mode": "nearest", "padding_mode": "reflection"},
}


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def unaliased(impl):
    """The reference has a graph for every reduced image that may be read, which take a minute to compile."""
    return {"antialias": False} if impl == "reference" else {}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_forward_and_backward(impl, function, name, generator):
    options = CALLS[name] | unaliased(impl)
    call = torch.compile(lambda i, p: function(i, p, SIZE, impl=impl, **options), fullgraph=True, backend="aot_eager")
    fixed = options.get("mode") == "nearest"
    i = rand(2, 2, *SHAPE, generator=generator).requires_grad_()
    p = places(function, 2, generator, 2).requires_grad_(not fixed)
    expected, result = function(i, p, SIZE, impl=impl, **options), call(i, p)
    agree(result, expected, 1e-13)
    inputs = (i,) if fixed else (i, p)
    agree(
        torch.autograd.grad(result.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs), 1e-11
    )


@pytest.mark.parametrize("row", ["image", "shared", "groups", "list", "index"])
def test_compiled_rows_of_the_table(impl, row, generator):
    i = rand(2, 2, *SHAPE, generator=generator)
    b = places(crop_rotated, 4, generator, 4)
    b = {"image": b, "shared": b[0], "groups": b.view(2, 2, 5), "index": b[:3], "list": [b[:3], b[3:]]}[row]
    index = torch.tensor([1, 0, 1]) if row == "index" else None
    i = i[0] if row == "image" else i

    def call(i, b, index):
        return crop_rotated(i, b, SIZE, batch_index=index, impl=impl, **unaliased(impl))

    agree(torch.compile(call, fullgraph=True, backend="aot_eager")(i, b, index), call(i, b, index), 1e-13)


# The reference takes minutes.
@pytest.mark.parametrize(
    "impl", [n if n == "cpu" else pytest.param(n, marks=pytest.mark.slow) for n in IMPLEMENTATIONS]
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_graph_for_many_sizes(impl, function, generator):
    counter = CompileCounterWithBackend("aot_eager")

    def total(i, p, h, w):
        return function(i, p, (h, w), antialias=False, impl=impl).square().sum()

    compiled = torch.compile(total, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for shape, size, rows in (((9, 10), (3, 4), 2), ((11, 8), (5, 6), 3), ((30, 20), (7, 2), 4)):
        i, p = rand(rows, 2, *shape, generator=generator), places(function, rows, generator, rows)
        agree(compiled(i, p, *size), total(i, p, *size), 1e-12)
        counts.append(counter.frame_count)
    assert counts[1] == counts[2]


def test_compiled_geometry(generator):
    boxes, quads = places(crop_rotated, 3, generator, 3), places(crop_quad, 3, generator, 3)

    def everything(boxes, quads):
        matrix = quads_to_matrix(quads, SIZE, SHAPE, coords="unit")
        return (
            rotated_to_quads(boxes, SHAPE, coords="normalized"),
            rotated_to_matrix(boxes, SIZE, align_corners=True),
            matrix,
            warp_points(quads, matrix),
            warp_points(quads, matrix, to="crop"),
        )

    agree(torch.compile(everything, fullgraph=True, backend="aot_eager")(boxes, quads), everything(boxes, quads), 1e-13)


class Glimpse(torch.nn.Module):
    """A model that predicts a rotated box for each image and looks there."""

    def __init__(self, impl):
        super().__init__()
        self.where = torch.nn.Linear(2, 5).double()
        self.impl = impl

    def forward(self, images):
        box = self.where(images.mean((2, 3))) + torch.tensor([0.5, 0.5, 0.6, 0.6, 10.0], dtype=torch.float64)
        return crop_rotated(images, box, 4, coords="unit", impl=self.impl, **unaliased(self.impl))


@pytest.mark.parametrize("strict", [False, True])
def test_export(impl, strict, generator):
    torch.manual_seed(0)
    model = Glimpse(impl)
    images = rand(2, 2, *SHAPE, generator=generator)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=strict)
    for count in (2, 3, 7):
        given = rand(count, 2, *SHAPE, generator=generator)
        agree(program.module()(given), model(given), 1e-13)


def test_no_values_are_looked_at_in_a_compiled_crop(impl):
    """Corners that are not convex are an error in eager mode, and NaN in a graph."""
    crossed = torch.tensor([[[1.0, 1.0], [6.0, 6.0], [5.0, 0.0], [0.0, 5.0]]])
    image = torch.ones(1, 1, 8, 8)
    call = torch.compile(
        lambda q: crop_quad(image, q, 3, impl=impl, **unaliased(impl)), fullgraph=True, backend="aot_eager"
    )
    assert call(crossed).isnan().all()
    with pytest.raises(ValueError, match="convex"):
        diffcrop.crop_quad(image, crossed, 3, impl=impl)
