"""The GPU kernels equal the reference: on a GPU where there is one, else in Triton's interpreter, on small cases.

The interpreter takes milliseconds for each program. Compiling the kernels for processors that are not there finds what
it lets pass.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys

import pytest
import torch

import diffcrop
from diffcrop import crop, crop_with_jacobian
from diffcrop._impl import reference
from diffcrop._impl import triton as kernels
from diffcrop._impl.triton import config
from diffcrop._options import Options
from helpers import FILTERS, PADDINGS, rand

pytest.importorskip("triton")

f64, f32 = torch.float64, torch.float32
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
SHAPE, SIZE = (7, 9), (4, 5)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """Only while these tests run: to all others the kernels are not there."""
    if not GPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(kernels, "_reason", None)


@pytest.fixture
def launch():
    from diffcrop._impl.triton import launch

    return launch


def some(generator, count=3):
    """A reduction within the image, a mirrored one that leaves it, an enlargement; no two tests have the same."""
    boxes = torch.tensor([[1.2, 0.7, 7.3, 6.1], [8.3, 9.2, -3.1, 1.9], [3.1, 2.2, 5.0, 4.4]], dtype=f64)
    return (boxes + 0.3 * torch.rand(3, 4, generator=generator, dtype=f64))[:count].to(DEVICE)


def both(images, boxes, index, size, opts, grad=None):
    """Crop, image gradient and box gradient by the kernels and by the reference."""
    from diffcrop._impl.triton import launch

    last = images.dim() == 4 and images.stride(1) == 1 and images.shape[1] > 1
    linear = opts.linear()
    mine = [launch.crop(images, boxes, index, size, last, *opts)]
    theirs = [reference.crop(images, boxes, index, size, opts)]
    if grad is None:
        grad = torch.rand_like(theirs[0])
    mine.append(launch.crop_grad_images(grad, boxes, index, tuple(images.shape), last, *linear))
    theirs.append(reference.grad_images(grad, boxes, index, tuple(images.shape), linear).to(grad.dtype))
    mine.append(launch.crop_grad_boxes(grad, images, boxes, index, *opts))
    theirs.append(reference.grad_boxes(grad, images, boxes, index, opts))
    return mine, theirs


def agree(mine, theirs, rtol=1e-12):
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        a, b = a.detach(), b.detach()
        scale = float(b.double().nan_to_num().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * max(scale, 0.1), equal_nan=True)


# --- values and gradients ---------------------------------------------------------------------------------------------

GRID = [
    pytest.param(
        mode, antialias, padding, align, id=f"{mode}-{antialias}-{padding}-{align}",
        marks=[pytest.mark.slow] if (i + j) % 2 != align or (mode == "lanczos3" and not antialias) else [],
    )
    for (i, (mode, antialias)), (j, padding), align in itertools.product(
        enumerate(FILTERS), enumerate(PADDINGS), (False, True)
    )
]  # fmt: skip


@pytest.mark.parametrize(("mode", "antialias", "padding_mode", "align_corners"), GRID)
def test_values_and_gradients(mode, antialias, padding_mode, align_corners, generator):
    opts = Options(mode, antialias, padding_mode, (0.25,) if padding_mode == "constant" else (0.0,), 0.5, align_corners)
    images = rand(2, 1, *SHAPE, generator=generator).to(DEVICE)
    boxes = some(generator)[1 - align_corners :][:2]
    agree(*both(images, boxes, torch.tensor([1, 0], device=DEVICE), SIZE, opts))


BOXES = {
    "wild": [[-1e6, -3e4, 2e6, 1e5], [1e9, 1e9, 1e9 + 4, 1e9 + 3], [-4e12, 2.0, 5e12, 3.0]],
    "beside": [[-40.3, -30.2, -20.1, -9.3], [20.5, 1.0, 31.5, 6.0], [1.0, 9.2, 7.0, 14.0]],
    "empty": [[3.2, 2.1, 3.2, 2.1], [3.0, 2.0, 3.0, 6.0], [-7.0, -7.0, -7.0, -7.0]],
    "on pixels": [[0.0, 0.0, 9.0, 7.0], [1.0, 1.0, 6.0, 5.0], [9.0, 7.0, 0.0, 0.0]],
    # Over one edge by more than the image's side, and not over the other.
    "a period wide": [[-6.75, -5.3, 45.75, 27.5], [15.75, 12.3, -36.75, -20.5]],
    "long": [[-58.1, -40.2, 67.3, 55.1]],  # some hundred taps
    "thirds": [[1 / 3, 0.0, 9 - 1 / 3, 7.0], [0.0, 2 / 3, 15.0, 2 / 3 + 8], [-1.0, -1.0, 14.0, 11.0]],
}


@pytest.mark.parametrize(
    ("name", "mode", "padding_mode"),
    [
        *itertools.product(BOXES, ("bilinear", "area"), ("border", "reflection", "circular", "renormalize")),
        ("long", "gaussian", "border"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("wild", "gaussian", "border"),
                ("long", "lanczos3", "border"),
                ("long", "lanczos3", "reflection"),
            )
        ),
    ],
)
def test_boxes_of_all_kinds(name, mode, padding_mode, generator):
    opts = Options(mode, True, padding_mode)
    images = rand(1, 1, *SHAPE, generator=generator).to(DEVICE)
    boxes = torch.tensor(BOXES[name], dtype=f64, device=DEVICE)
    agree(*both(images, boxes, None, SIZE, opts), rtol=1e-9 if name == "wild" else 1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area", "nearest"])
def test_the_whole_image_is_itself(mode, generator):
    images = rand(1, 3, *SHAPE, generator=generator, dtype=f32).to(DEVICE)
    box = torch.tensor([0.0, 0.0, 9.0, 7.0], device=DEVICE)
    assert torch.equal(crop(images, box, SHAPE, mode=mode, impl="triton"), images)


def test_boxes_that_are_not_sound(generator):
    """NaN for themselves alone, and nothing to the image gradient."""
    images = rand(2, 2, *SHAPE, generator=generator).to(DEVICE)
    boxes = some(generator).repeat(2, 1)
    boxes[1, 2], boxes[3, 0], boxes[4, 1] = math.nan, math.inf, -2e100
    index = torch.tensor([0, 1, 1, 0, 1, 7], device=DEVICE)
    mine, theirs = both(images, boxes, index, SIZE, Options("bicubic", True, "constant", (0.5,)))
    agree(mine, theirs)
    assert mine[0].isnan().flatten(1).all(1).tolist() == [False, True, False, True, True, True]
    assert mine[2].isnan().all(1).tolist() == [False, True, False, True, True, True]
    assert not mine[1].isnan().any()


@pytest.mark.parametrize("padding_mode", ["border", "constant", "renormalize"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3"])
def test_pixels_that_are_not_finite_stay_where_they_are_read(mode, padding_mode, generator):
    """Also where taps of weight zero would read them."""
    images = rand(1, 1, 8, 9, generator=generator, dtype=f32).to(DEVICE)
    images[0, 0, 3, 4] = math.nan
    box = torch.tensor([0.0, 0, 9, 8], device=DEVICE)
    result = crop(images, box, (8, 9), impl="triton", mode=mode, padding_mode=padding_mode)
    assert torch.equal(result.nan_to_num(7), images.nan_to_num(7))
    halved = crop(images, torch.tensor([0.0, 0, 8, 8], device=DEVICE), 4, impl="triton", mode="area")
    assert halved.isnan().nonzero().tolist() == [[0, 0, 1, 2]]


# --- dtypes, layouts, sizes -------------------------------------------------------------------------------------------

# Parts of the result: float32 sums, then the rounding to the image's dtype. The interpreter cuts bfloat16 off instead.
EPS = {f32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3 if GPU else 1.6e-2}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", [f32, torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_dtypes(kind, channels_last, generator):
    images = (rand(2, 3, *SHAPE, generator=generator) * 200).to(kind).to(DEVICE)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    boxes = some(generator).to(f32)[:2]
    opts = Options("bilinear", True, "constant", (3.0, 7.0, 1.0))
    grad = rand(2, 3, *SIZE, generator=generator).to(kind if kind.is_floating_point else f32).to(DEVICE)
    agree(*both(images, boxes, None, SIZE, opts, grad), rtol=EPS.get(kind, 2e-6))


@pytest.mark.parametrize(
    "kind",
    [torch.bool, torch.uint8, torch.int16, torch.int64, torch.uint32, torch.float16, torch.bfloat16, f32, f64],
    ids=str,
)
def test_nearest_moves_every_dtype(kind, generator):
    images = (rand(2, 2, *SHAPE, generator=generator) * (2 if kind == torch.bool else 250)).to(kind).to(DEVICE)
    boxes = some(generator)
    boxes[2, 0] = math.nan
    index = torch.tensor([1, 0, 0], device=DEVICE)
    keywords = {"mode": "nearest", "padding_mode": "constant", "fill": [1.0, 0.0]}
    mine, theirs = (
        crop(images, boxes, SIZE, batch_index=index, impl=impl, **keywords) for impl in ("triton", "reference")
    )
    assert mine.dtype == kind
    assert mine.float().nan_to_num(-1).tolist() == theirs.float().nan_to_num(-1).tolist()
    assert len(set(theirs[:2].float().flatten().tolist())) > 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "flipped", "expanded"])
def test_layouts_and_guard_bands(layout, generator):
    """Nothing beside the image is read, and every element of the results is written."""
    band = torch.full((4, 5, 13, 15), math.nan, dtype=f64, device=DEVICE)
    if layout == "channels_last":
        band = band.contiguous(memory_format=torch.channels_last)
    images = band[1:3, 1:4, 3:10, 3:12]
    images.copy_(rand(2, 3, *SHAPE, generator=generator))
    grad = rand(2, 3, *SIZE, generator=generator).to(DEVICE)
    if layout == "contiguous":
        images = images.contiguous()
    elif layout == "flipped":
        images = images.transpose(2, 3).flip(2).contiguous().flip(2).transpose(2, 3)
    elif layout == "expanded":
        images, grad = images[:, :1].expand(2, 3, *SHAPE), grad[:1, :1, :1, :1].expand(2, 3, *SIZE)
    mine, theirs = both(images, some(generator)[:2], None, SIZE, Options("bilinear"), grad)
    agree(mine, theirs)
    assert mine[0].is_contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 1), (1, 1)), ((1, 1), (3, 2)), ((2, 1), (1, 5)), ((1, 17), (13, 1)), ((5, 67), (3, 70)), ((33, 2), (17, 9))],
    ids=str,
)
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_sizes(shape, size, padding_mode, generator):
    images = rand(1, 1, *shape, generator=generator).to(DEVICE)
    boxes = torch.tensor([[-0.3, 0.2, shape[1] * 0.83, shape[0] + 0.4]], dtype=f64, device=DEVICE)
    for align in (False, True):
        agree(*both(images, boxes, None, size, Options("bicubic", True, padding_mode, (0.0,), 0.5, align)))


def test_edge_pixels_that_many_outputs_read(generator):
    """More than a tile of them, along both axes: the outputs beside the image."""
    images = rand(1, 1, 3, 4, generator=generator).to(DEVICE)
    boxes = torch.tensor([[-9.1, -7.2, 2.3, 1.9], [30.2, 1.4, 4.7, 9.3]], dtype=f64, device=DEVICE)
    agree(*both(images, boxes, torch.tensor([0, 0], device=DEVICE), (9, 70), Options()))


@pytest.mark.parametrize(("batch", "channels", "rows"), [(0, 2, 0), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_do(batch, channels, rows):
    images = torch.rand(batch, channels, *SHAPE, device=DEVICE, requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 5, 5]], device=DEVICE).repeat(rows, 1).requires_grad_()
    index = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    result = crop(images, boxes, SIZE, batch_index=index, impl="triton")
    assert result.shape == (rows, channels, *SIZE)
    by_images, by_boxes = torch.autograd.grad(result.sum(), (images, boxes))
    assert by_images.shape == images.shape
    assert not by_images.any()
    assert by_boxes.shape == boxes.shape
    assert not by_boxes.any()


# --- many boxes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("indexed", "padding_mode"), [(False, "constant"), (True, "constant"), (True, "border")])
def test_turns_change_nothing(indexed, padding_mode, generator, launch, monkeypatch):
    """Where tables would grow too large, boxes are worked off in turns."""
    images = rand(2, 2, *SHAPE, generator=generator).to(DEVICE)
    boxes = torch.cat([some(generator), some(generator)])
    index = torch.tensor([1, 0, 1, 1, 0, 1], device=DEVICE) if indexed else None
    opts = Options("bilinear", True, padding_mode, (0.5 * (padding_mode == "constant"),))
    grad = rand(6, 2, *SIZE, generator=generator).to(DEVICE)
    whole, theirs = both(images, boxes, index, SIZE, opts, grad)
    each = sum(launch._capacity(config.forward_capacity, SIZE, SHAPE, opts)) * 8
    monkeypatch.setattr(config, "BUDGET", 2 * each)
    parts, _ = both(images, boxes, index, SIZE, opts, grad)
    agree(parts, theirs)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[2], whole[2])


def test_indices_of_any_strides(generator):
    images, boxes = rand(3, 1, *SHAPE, generator=generator).to(DEVICE), some(generator)
    columns = torch.tensor([[1, 7], [0, 7], [2, 7]], device=DEVICE)
    for index in (columns[:, 0], columns[:1, 0].expand(3)):
        assert not index.is_contiguous()
        opts = Options("bilinear", True, "zeros")
        agree(*both(images, boxes, index, SIZE, opts))


@pytest.mark.parametrize("name", ["crop_grad_boxes", "crop_jacobian"])
def test_nearest_has_no_derivative_here_either(name):
    images, boxes = torch.rand(1, 1, 4, 4, device=DEVICE), torch.tensor([[0.0, 0, 4, 4]], device=DEVICE)
    arguments = (images, boxes, None) if name == "crop_grad_boxes" else (boxes, None, [4, 4])
    with pytest.raises(ValueError, match="no derivative by the box"):
        getattr(torch.ops.diffcrop, name).triton(images, *arguments, *Options("nearest"))


def test_more_boxes_than_are_looked_at_together(generator, launch, monkeypatch):
    """Boxes of an image are looked through a block at a time; those that touch no pixel of a tile are left out."""
    monkeypatch.setattr(config, "BOXES", (4, 4))
    low = torch.rand(14, 2, generator=generator, dtype=f64) * torch.tensor([44.0, 8.0]) - torch.tensor([2.0, 1.0])
    boxes = torch.cat([low, low + 3.3], 1).to(DEVICE)
    index = torch.randint(0, 2, (14,), generator=generator).to(DEVICE)
    grad = rand(14, 1, 1, 2, generator=generator).to(DEVICE)
    opts = Options("bilinear", True, "zeros")
    mine = launch.crop_grad_images(grad, boxes, index, (2, 1, 6, 40), False, *opts)
    agree([mine], [reference.grad_images(grad, boxes, index, (2, 1, 6, 40), opts)])


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection", "circular", "renormalize"])
@pytest.mark.parametrize(
    "mode", ["bilinear", "nearest", *(pytest.param(m, marks=pytest.mark.slow) for m in ("area", "bicubic"))]
)
def test_tables_are_large_enough_and_their_runs_apart(mode, padding_mode, generator, launch):
    rows = 6
    numbers = torch.rand(rows, 8, generator=generator, dtype=f64)
    middle = (numbers[:, :2] * 40 - 14) * 10 ** (numbers[:, 6:7] > 0.8)
    extent = 10 ** (numbers[:, 2:4] * 5 - 2) * torch.where(numbers[:, 4:6] < 0.3, -1, 1)
    extent[0], middle[1] = 0, 0.0
    boxes = torch.cat([middle - extent / 2, middle + extent / 2], 1).to(DEVICE)
    for antialias, size in itertools.product({True, mode == "area"}, [(5, 3), (1, 40)]):
        opts = Options(mode, antialias, padding_mode)
        images = torch.zeros(1, 1, 23, 11, dtype=f64, device=DEVICE)
        runs = launch._plan(boxes, None, images, size, opts, derivatives=False)
        apart(runs.count, runs.offset, size, runs.capacity)
        if mode != "nearest":
            _, count, offset, _, _, capacity = launch._transposed(boxes, runs, (23, 11), opts)
            apart(count, offset, (23, 11), capacity)


def apart(count, offset, sizes, capacities):
    for c, o, capacity in zip(count.split(sizes, 1), offset.split(sizes, 1), capacities, strict=True):
        for counts, offsets in zip(c.tolist(), o.tolist(), strict=True):
            ends = 0
            for first, length in sorted(
                (first, length) for first, length in zip(offsets, counts, strict=True) if length
            ):
                assert first >= ends
                ends = first + length
            assert ends <= capacity


def test_offsets_of_64_bits(generator, launch, monkeypatch):
    images = rand(1, 3, *SHAPE, generator=generator).to(DEVICE)
    monkeypatch.setattr(launch, "_farthest", lambda _: 2**31)
    mine, theirs = both(images, some(generator), None, SIZE, Options())
    agree(mine, theirs)


@pytest.mark.skipif(not GPU, reason="takes 9 GiB of a GPU")
def test_images_of_more_than_2_31_elements():
    images = torch.zeros(1, 1, 2, 2**31 + 5 - 2**30, dtype=torch.uint8, device=DEVICE)
    images[..., -8:] = 200
    end = float(images.shape[-1])
    result = crop(images, torch.tensor([end - 8, 0.0, end, 2.0], dtype=f64, device=DEVICE), (2, 8), antialias=False)
    assert (result == 200).all()


# --- as an operator of PyTorch ----------------------------------------------------------------------------------------


FEW = (1, 2)


def mine(i, b):
    return crop(i, b, FEW, impl="triton", mode="bicubic", padding_mode="zeros")


def plain(i, b):
    return reference._crop(i[None], b[None], None, FEW, Options("bicubic", True, "zeros"))[0]


def test_transforms(generator):
    image, box = rand(1, *SHAPE, generator=generator).to(DEVICE), some(generator)[0]
    direction = torch.rand_like(box)
    calls = {
        "jacrev": lambda f: torch.func.jacrev(f, (0, 1))(image, box),
        "jvp": lambda f: torch.func.jvp(lambda b: f(image, b), (box,), (direction,))[1],
        "hessian": lambda f: torch.func.hessian(lambda b: f(image, b).square().sum())(box),
        "vmap": lambda f: torch.func.vmap(f, (None, 0))(image, torch.stack([box, box + 0.1])),
        "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(lambda b: f(image, b).square().sum()))(
            torch.stack([box, box + 0.1])
        ),
    }
    for name, call in calls.items():
        a, b = call(mine), call(plain)
        for one, other in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(other.abs().max()), msg=name)


def test_jacobian(generator):
    image, box = rand(1, *SHAPE, generator=generator).to(DEVICE), some(generator)[0]
    keywords = {"coords": "pixel", "padding_mode": "constant", "fill": 0.7}
    for antialias in (True, False):
        ours, theirs = (
            crop_with_jacobian(image, box, SIZE, impl=impl, antialias=antialias, **keywords)
            for impl in ("triton", "reference")
        )
        agree(ours, theirs)
        assert theirs.jacobian.abs().min(dim=-1).values.max() > 0


def test_second_order_by_autograd(generator):
    image, box = rand(1, *SHAPE, generator=generator).to(DEVICE).requires_grad_(), some(generator)[0]
    box.requires_grad_()
    seconds = []
    for function in (mine, plain):
        firsts = torch.autograd.grad(function(image, box).square().sum(), (image, box), create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in firsts), (image, box)))
    agree(*seconds, rtol=1e-10)


def test_compiled(generator):
    image, box = (
        rand(2, *SHAPE, generator=generator).to(DEVICE).requires_grad_(),
        some(generator)[0].requires_grad_(),
    )
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    results = [f(image, box) for f in (compiled, mine)]
    agree(results[:1], results[1:])
    agree(*(torch.autograd.grad(r.square().sum(), (image, box)) for r in results))
    torch._dynamo.reset()


def test_opcheck(generator):
    image, boxes = rand(1, 2, *SHAPE, generator=generator).to(DEVICE).requires_grad_(), some(generator)
    arguments = (image, boxes.requires_grad_(), None, list(SIZE), False, *Options())
    torch.library.opcheck(torch.ops.diffcrop.crop.triton, arguments)


@pytest.mark.skipif(not GPU, reason="captures a CUDA graph")
@pytest.mark.parametrize("indexed", [False, True])
def test_a_graph_can_be_captured(indexed, generator):
    """Nothing waits for the device, and nothing is copied to it."""
    images, boxes = rand(2, 3, *SHAPE, generator=generator).to(DEVICE).requires_grad_(), some(generator)[:2]
    boxes.requires_grad_()
    index = torch.tensor([1, 0], device=DEVICE) if indexed else None

    def step():
        result = crop(images, boxes, SIZE, batch_index=index, padding_mode="constant", fill=[0.1, 0.2, 0.3])
        return (result, *torch.autograd.grad(result.square().sum(), (images, boxes)))

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for a, b in zip(captured, expected, strict=True):
        assert torch.equal(a, b)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- what can be said without running ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 7), (3, 3), (4, 9)])
def test_edges(size):
    assert config.edges(size) == sum(
        y in (0, size[0] - 1) or x in (0, size[1] - 1) for y in range(size[0]) for x in range(size[1])
    )


@pytest.mark.parametrize("slopes", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_tiles(last, slopes):
    for size, channels, taps in itertools.product(
        [(1, 1), (7, 7), (224, 224), (1, 4099), (5000, 3)], [1, 3, 64, 1000], [1, 2, 16]
    ):
        tile = config.tile(size, channels, taps, last, slopes)
        numbers = tile.rows * tile.columns * tile.channels * tile.taps
        assert all(n & (n - 1) == 0 for n in (tile.rows, tile.columns, tile.channels, tile.taps))
        assert numbers <= 1024
        assert tile.count(size, channels) >= 1
        assert tile == config.tile(size, channels, taps, last, slopes)


def test_expected_taps_follow_the_filter_and_the_reduction():
    antialiased, plain = Options("bilinear"), Options("bilinear", False)
    assert config.expected_taps(224, 224, antialiased) == config.expected_taps(224, 4096, plain) == 2
    assert config.expected_taps(224, 1024, antialiased) == 8
    assert config.expected_taps(16, 4096, antialiased) == 16
    assert config.expected_readers(224, 1024, antialiased) == 2
    assert config.expected_readers(224, 64, antialiased) == 16
    assert config.expected_taps(10, 10, Options("lanczos3")) == 8


def test_the_reason_is_told(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_reason", kernels._UNKNOWN)
    if not GPU:
        assert "no GPU" in str(diffcrop.implementations()["triton"])
        with pytest.raises(ValueError, match="impl='triton' is not available: PyTorch sees no GPU"):
            crop(torch.rand(1, 4, 4), torch.tensor([0.0, 0, 4, 4]), 2, impl="triton")
    monkeypatch.setattr(kernels, "_reason", None)
    with pytest.raises(ValueError, match="impl='triton' serves tensors on a GPU, got images on cpu"):
        crop(torch.rand(1, 4, 4), torch.tensor([0.0, 0, 4, 4]), 2, impl="triton")
    monkeypatch.setattr(kernels, "_reason", kernels._UNKNOWN)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda _: None)
    assert "not installed" in str(diffcrop.implementations()["triton"])


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_does_not_import_triton():
    assert run("import sys, json, diffcrop; print(json.dumps('triton' in sys.modules))") is False


# Which kernels, for which of their constants. A constant that is not named has the value of `base`.
COMPILED = """
import itertools, json, sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from diffcrop._impl.triton import config, plan, resample

target = GPUTarget(*TARGET)
POINTERS = {
    "boxes": "fp32", "index": "i64", "images": IMAGE, "start": "i32", "count": "i32", "offset": "i32", "share": SUM,
    "weights": SUM, "hull": "i32", "sounds": "i32", "slopes": "fp64", "to_start": "i32", "to_count": "i32",
    "to_offset": "i32", "to_weights": SUM, "to_places": "i32", "places": "i32", "fill": SUM, "invalid": IMAGE,
    "out": IMAGE, "grad": IMAGE, "order": "i64", "bounds": "i64", "parts": SUM,
}
how = config.planning(100)
accumulate = tl.float64 if SUM == "fp64" else tl.float32
common = {"ACCUMULATE": accumulate, "WIDE": False, "ALIGN": False, "WIDENING": True, "INDEXED": not ONES, "BOXES": 128}
done = 0

def compile_(kernel, scalars=(), fuse=True, **constants):
    global done
    constants = {n: {**common, **constants}[n] for n in kernel.arg_names if n in {**common, **constants}}
    types = {}
    for name in kernel.arg_names:
        pointer = name in POINTERS and name not in scalars
        if ONES and name in ("index", "order", "bounds"):
            constants[name] = None
        elif ONES and not pointer and name not in constants and name != "scale_bits":
            constants[name] = 1  # as what a call passes is taken where it is 1
        types[name] = "constexpr" if name in constants else "*" + POINTERS[name] if pointer else "i32"
        if name == "scale_bits":
            types[name] = "i64"
    source = ASTSource(kernel, types, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    triton.compile(source, target=target, options={"num_warps": how.warps, "enable_fp_fusion": fuse})
    done += 1

for mode, padding in CASES:
    compile_(plan.forward_runs, ("images",), False, MODE=mode, A=-0.5, PADDING=padding, DERIVATIVES=True, TRIM=True,
             ALIGN=padding == "reflection", BLOCK=how.block, TAPS=how.taps)
for listed in (False, True):
    compile_(plan.transposed_runs, (), False, MODE="bilinear", LISTED=listed, BLOCK=how.block, TAPS=how.taps)
for last in (False, True):
    for places in (resample.FORWARD, resample.WRAPPED, resample.LISTED):
        tile = config.tile((100, 200), 64, 4, last)
        shape = {"LAST": last, "TILE_Y": tile.rows, "TILE_X": tile.columns, "CHANNELS": tile.channels, "TAPS": 4}
        if places != resample.LISTED:
            compile_(resample.crop_kernel, FILL=2, PLACES=places, **shape)
            tile = config.tile((100, 200), 64, 4, last, slopes=True)
            halved = {**shape, "TILE_Y": tile.rows, "TILE_X": tile.columns, "CHANNELS": tile.channels}
            POINTERS["out"] = SUM
            for jacobian in (False, True):
                compile_(resample.box_kernel, FILL=1, PLACES=places, JACOBIAN=jacobian, **halved)
            POINTERS["out"] = IMAGE
        if places != resample.WRAPPED:
            compile_(resample.grad_images_kernel, PLACES=places, INNER=True, ADD=True, **shape)
    compile_(resample.grad_edges_kernel, ADD=True, **shape)
    POINTERS["fill"] = IMAGE
    compile_(resample.nearest_kernel, FILL=1, **shape)
    POINTERS["fill"] = SUM
compile_(resample.sum_kernel, ("count",), BLOCK=256)
print(json.dumps(done))
"""
SOME = [("bilinear", "border"), ("lanczos3", "reflection"), ("area", "circular"), ("gaussian", "renormalize")]
ALL = list(itertools.product(("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest"), PADDINGS))


@pytest.mark.parametrize(
    ("target", "image", "sums", "cases", "ones"),
    [
        pytest.param(("cuda", 90, 32), "fp32", "fp32", SOME, False, id="sm_90"),
        pytest.param(("cuda", 90, 32), "fp16", "fp32", SOME, True, id="sm_90-ones"),
        pytest.param(("cuda", 90, 32), "bf16", "fp32", ALL, False, id="sm_90-bf16-all", marks=pytest.mark.slow),
        pytest.param(("cuda", 80, 32), "fp64", "fp64", ALL, False, id="sm_80-fp64-all", marks=pytest.mark.slow),
        pytest.param(("hip", "gfx942", 64), "fp32", "fp32", ALL, False, id="gfx942-all", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile(target, image, sums, cases, ones, tmp_path):
    """To machine code, with no GPU at hand: the interpreter forgives much that the compiler does not."""
    code = COMPILED.replace("TARGET", repr(target)).replace("IMAGE", repr(image)).replace("SUM", repr(sums))
    code = code.replace("CASES", repr(cases)).replace("ONES", repr(ones))
    assert run(code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) == len(cases) + 2 + 2 * 10 + 1
