"""Crops of lists of images in one call of the kernels: the bits of a call for each image, whatever the list holds."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import diffcrop
from diffcrop import _ops_list, crop
from diffcrop._options import Options
from plain import needs_kernels

pytestmark = needs_kernels

f64 = torch.float64
MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
LAYOUTS = ("contiguous", "channels_last", "slice", "gaps", "transposed")
OPTIONS = Options("bicubic", True, "constant", (0.25,))


class Calls(TorchDispatchMode):
    """The names of our operators, as they are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "diffcrop":
            self.names.append(function._opname)
        return function(*args, **(kwargs or {}))


def laid_out(image, layout):
    """The same values (C, H, W) in other places of memory."""
    if layout == "channels_last":
        return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if layout == "slice":
        wide = torch.zeros(*image.shape[1:], image.shape[0] + 2, dtype=image.dtype)
        wide[..., 1:-1] = image.permute(1, 2, 0)
        return wide[..., 1:-1].permute(2, 0, 1)
    if layout == "gaps":
        wide = torch.zeros(image.shape[0], 2 * image.shape[1], 3 * image.shape[2], dtype=image.dtype)
        wide[:, ::2, ::3] = image
        return wide[:, ::2, ::3]
    return image.mT.contiguous().mT if layout == "transposed" else image


def pictures(generator, sizes, channels=3, dtype=f64, layouts=("contiguous",)):
    images = [torch.rand(channels, h, w, generator=generator) for h, w in sizes]
    images = [(i * 200).to(dtype) if not dtype.is_floating_point else i.to(dtype) for i in images]
    return [laid_out(i, layout) for i, layout in zip(images, itertools.cycle(layouts), strict=False)]


SIZES = ((7, 9), (12, 5), (1, 1), (30, 41), (6, 6))
COUNTS = (2, 0, 3, 9, 1)


def list_of_boxes(generator, counts=COUNTS, dtype=torch.float32):
    """Inside and outside, one mirrored, one empty, one without a place, one on whole pixels."""
    boxes = [torch.rand(k, 4, generator=generator).to(dtype) * 30 - 4 for k in counts]
    if len(boxes) > 3 and counts[3] > 3:
        boxes[3][0, 1] = float("nan")
        boxes[3][1, 2] = boxes[3][1, 0]
        boxes[3][2] = boxes[3][2].round()
        boxes[3][3, 3] = float("inf")
    return boxes


def arranged(which, generator, dtype=torch.float32):
    """(boxes, batch_index) for images of SIZES."""
    if which == "one":
        return list_of_boxes(generator, (1,), dtype)[0][0], None
    if which == "B":
        return list_of_boxes(generator, (5,), dtype)[0], None
    if which == "BK":
        return torch.stack(list_of_boxes(generator, (2,) * 5, dtype)), None
    if which == "list":
        return list_of_boxes(generator, dtype=dtype), None
    return list_of_boxes(generator, (9,), dtype)[0], torch.tensor([3, 0, 3, 4, 0, 2, 2, 4, 3], dtype=torch.int32)


ARRANGEMENTS = ("one", "B", "BK", "list", "R")


@pytest.fixture
def compared(monkeypatch):
    """Calls a function with the operator on lists, and with one call an image."""
    serves = _ops_list.serves

    def call(function):
        with Calls() as calls:
            found = function()
        assert set(calls.names) <= {"crop_list", "crop_list_grad_boxes", "crop_list_grad_images"}, calls.names
        monkeypatch.setattr(_ops_list, "serves", lambda *_: False)
        expected = function()
        monkeypatch.setattr(_ops_list, "serves", serves)
        return found, expected

    return call


def same(found, expected):
    """Bit for bit; NaN is NaN."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def everything(images, boxes, size, wanted=None, cotangent=None, **options):
    """The crop, and its gradients by the boxes (if not of nearest) and by the images that are `wanted`."""
    floating = images[0].is_floating_point()
    wanted = [floating] * len(images) if wanted is None else wanted
    images = [i.detach().requires_grad_(w) for i, w in zip(images, wanted, strict=True)]
    listed = boxes if isinstance(boxes, list) else [boxes]
    listed = [b.detach().requires_grad_(options.get("mode") != "nearest") for b in listed]
    result = crop(images, listed if isinstance(boxes, list) else listed[0], size, **options)
    inputs = [t for t in (*listed, *images) if t.requires_grad]
    if not inputs:
        return [result]
    if cotangent is None:
        cotangent = torch.linspace(-1, 1, result.numel()).to(result.dtype).view(result.shape)
    return [result.detach(), *torch.autograd.grad(result, inputs, cotangent)]


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["B", "BK", "list", "R"])
def test_bits_of_all_options(which, mode, padding_mode, compared, generator):
    for antialias, align_corners, dtype in ((True, False, torch.float32), (mode == "area", True, f64)):
        images = pictures(generator, SIZES, dtype=dtype)
        boxes, index = arranged(which, generator, dtype)
        fill = [0.5, -1.0, 2.0] if padding_mode == "constant" else 0.0
        options = {"mode": mode, "padding_mode": padding_mode, "fill": fill, "align_corners": align_corners}
        options |= {"antialias": antialias, "batch_index": index}
        same(*compared(lambda i=images, b=boxes, o=options: everything(i, b, (5, 19), **o)))


@pytest.mark.parametrize("layouts", [*((one,) for one in LAYOUTS), LAYOUTS, LAYOUTS[1:3]], ids="-".join)
@pytest.mark.parametrize(
    "dtype", [torch.float32, f64, torch.float16, torch.bfloat16, torch.uint8, torch.int16], ids=str
)
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_bits_of_all_layouts(channels, dtype, layouts, compared, generator):
    """Also of a mixture, in which each image is read as it lies."""
    images = pictures(generator, SIZES, channels, dtype, layouts)
    for which, mode, antialias in (("list", "bilinear", False), ("BK", "bicubic", True), ("B", "nearest", True)):
        boxes, _ = arranged(which, generator)
        for fill in (0.0, 2.0):
            options = {"mode": mode, "antialias": antialias, "fill": fill}
            options["padding_mode"] = "constant" if fill else "border"
            found, expected = compared(lambda b=boxes, o=options: everything(images, b, (5, 19), **o))
            same(found, expected)
            # Gradients lie as their images do.
            for mine, theirs in zip(found[1:], expected[1:], strict=True):
                assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("coords", ["pixel", "unit", "normalized"])
@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bits_of_all_conventions(align_corners, box_format, coords, compared, generator):
    """In all arrangements, with boxes of every dtype; each image is its own unit."""
    images = pictures(generator, SIZES, dtype=torch.float32)
    convention = {"box_format": box_format, "coords": coords, "align_corners": align_corners}
    for which, dtype in itertools.product(ARRANGEMENTS, (torch.float32, f64, torch.float16, torch.int64)):
        boxes, index = arranged(which, generator)
        if coords != "pixel":
            boxes = [b / 20 for b in boxes] if which == "list" else boxes / 20
        boxes = [b.to(dtype) for b in boxes] if which == "list" else boxes.to(dtype)
        options = convention | {"batch_index": index}
        same(*compared(lambda b=boxes, o=options: [crop(images, b, (4, 3), **o)]))
        if dtype == torch.int64:
            continue
        found, expected = compared(lambda b=boxes, o=options: everything(images, b, (4, 3), **o))
        if which == "one":  # its gradient is a sum over the images, which PyTorch makes in another order
            mine, theirs = found.pop(1), expected.pop(1)
            rtol = 1e-5 if dtype != torch.float16 else 1e-2
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()), equal_nan=True)
        same(found, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("of", ["contiguous", "channels_last", "expanded"])
def test_bits_of_cotangents(of, layout, generator):
    """Boxes that name their images in any order: each image's own crop, with the rows of the cotangent as they lie."""
    images = pictures(generator, SIZES, dtype=torch.float32, layouts=(layout,))
    boxes, index = arranged("R", generator)
    cotangent = torch.rand(9, 3, 5, 19, generator=generator)
    if of == "channels_last":
        cotangent = cotangent.contiguous(memory_format=torch.channels_last)
    elif of == "expanded":
        cotangent = cotangent[:, :, :1, :1].expand(cotangent.shape)
    mode = {"mode": "bilinear", "antialias": False}
    value, by_boxes, *by_images = everything(images, boxes, (5, 19), cotangent=cotangent, batch_index=index, **mode)
    for k, image in enumerate(images):
        mine = torch.nonzero(index == k)[:, 0]
        if mine.numel() == 0:
            assert torch.equal(by_images[k], torch.zeros_like(image))
            continue
        rows = cotangent[mine]
        if of == "channels_last":
            rows = rows.contiguous(memory_format=torch.channels_last)
        elif of == "expanded":
            rows = rows[:, :, :1, :1].expand(rows.shape)
        alone = [image.detach().requires_grad_(), boxes[mine].requires_grad_()]
        result = crop(alone[0], alone[1], (5, 19), **mode)
        same([value[mine]], [result.detach()])
        same([by_images[k], by_boxes[mine]], torch.autograd.grad(result, alone, rows))


@pytest.mark.parametrize("mode", ["bilinear", "lanczos3"])
def test_bits_for_any_number_of_threads(mode, generator):
    sizes = [(40 + 13 * k % 90, 30 + 29 * k % 110) for k in range(70)]
    images = pictures(generator, sizes, dtype=torch.float32)
    boxes = [torch.rand(k % 4, 4, generator=generator) * 90 for k in range(70)]
    boxes[7] = torch.rand(90, 4, generator=generator) * 90  # more than are planned together
    results = []
    for threads in (1, 2, 3, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            results.append(everything(images, boxes, (37, 33), mode=mode))
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        same(other, results[0])


def test_many_images_and_many_boxes(compared, generator):
    """More of both than are planned at a time, in runs that begin and end within an image's boxes."""
    images = pictures(generator, [(3 + k % 7, 4 + k % 5) for k in range(200)], dtype=torch.float32)
    index = torch.randint(200, (500,), generator=generator)
    index[100:230] = 17
    boxes = torch.rand(500, 4, generator=generator) * 8 - 1
    wanted = [k % 3 != 1 for k in range(200)]
    same(*compared(lambda: everything(images, boxes, (3, 5), wanted, batch_index=index)))
    many = [torch.rand(150, 4, generator=generator) * 8, *[torch.zeros(0, 4)] * 198, torch.rand(1, 4) * 8]
    same(*compared(lambda: everything(images, many, (3, 5), wanted)))


# --- what needs a gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("by_boxes", [False, True])
def test_gradients_where_they_are_asked_for(by_boxes, wanted, generator):
    images = pictures(generator, SIZES[:3], dtype=torch.float32)
    images = [i.requires_grad_(w) for i, w in zip(images, wanted, strict=True)]
    boxes = [b.requires_grad_(by_boxes) for b in list_of_boxes(generator, (2, 0, 1))]
    with Calls() as calls:
        result = crop(images, boxes, 4)
        assert result.requires_grad == (by_boxes or any(wanted))
        if result.requires_grad:
            result.sum().backward()
    expected = ["crop_list"] + ["crop_list_grad_boxes"] * by_boxes + ["crop_list_grad_images"] * any(wanted)
    assert calls.names == expected
    assert [i.grad is not None for i in images] == list(wanted)
    assert all((b.grad is not None) == by_boxes for b in boxes)
    if wanted[1]:
        assert torch.equal(images[1].grad, torch.zeros_like(images[1]))
    if wanted[0]:
        assert images[0].grad.abs().sum() > 0


def test_nothing_to_crop(generator):
    images = pictures(generator, SIZES)
    for boxes, index in (
        (torch.zeros(0, 4, dtype=f64), torch.zeros(0, dtype=torch.int64)),
        ([torch.zeros(0, 4, dtype=f64)] * 5, None),
        (torch.zeros(5, 0, 4, dtype=f64), None),
    ):
        leading = (5, 0) if isinstance(boxes, torch.Tensor) and boxes.ndim == 3 else (0,)
        value, *grads = everything(images, boxes, (4, 3), batch_index=index)
        assert value.shape == (*leading, 3, 4, 3)
        for image, grad in zip(images, grads[-5:], strict=True):
            assert torch.equal(grad, torch.zeros_like(image))
    empty = [i[:0] for i in images]
    boxes = torch.rand(5, 4, generator=generator, dtype=f64)
    boxes[2, 0] = float("nan")
    value, by_boxes, *by_images = everything(empty, boxes, (4, 3))
    assert value.shape == (5, 0, 4, 3)
    assert [g.shape for g in by_images] == [i.shape for i in empty]
    assert by_boxes.isnan().any(1).tolist() == [False, False, True, False, False]
    assert (by_boxes.nan_to_num() == 0).all()


def test_a_box_without_a_place_stays_alone(generator):
    images = [i.requires_grad_() for i in pictures(generator, SIZES, dtype=torch.float32)]
    boxes = list_of_boxes(generator)
    boxes[0][1, 0] = float("nan")
    leaves = [b.requires_grad_() for b in boxes]
    found = crop(images, leaves, 3)
    lost = torch.zeros(15, dtype=torch.bool)
    lost[[1, 5, 8]] = True  # in the fourth image the first and the fourth as well
    assert torch.equal(found.isnan().flatten(1).all(1), lost)
    assert torch.equal(found.isnan().flatten(1).any(1), lost)
    found.sum().backward()
    assert all(i.grad.isfinite().all() for i in images)
    assert torch.equal(torch.cat([b.grad for b in leaves]).isnan().all(1), lost)


@pytest.mark.parametrize("which", ["list", "R"])
def test_derivatives_of_every_order(which, generator):
    images = [i.requires_grad_() for i in pictures(generator, ((4, 5), (3, 4), (5, 3)), 2)]
    if which == "list":
        boxes, index = list_of_boxes(generator, (1, 0, 2), f64), None
        leaves = [b.mul_(0.15).requires_grad_() for b in boxes]
    else:
        leaves = [(torch.rand(3, 4, generator=generator, dtype=f64) * 4).requires_grad_()]
        index = torch.tensor([2, 0, 2])
    smooth = {"mode": "gaussian", "padding_mode": "zeros", "batch_index": index}

    def function(*tensors):
        given = list(tensors[3:]) if which == "list" else tensors[3]
        return crop(list(tensors[:3]), given, 2, **smooth)

    with Calls() as calls:
        function(*images, *leaves)
    assert calls.names == ["crop_list"]
    assert torch.autograd.gradcheck(function, (*images, *leaves))
    assert torch.autograd.gradgradcheck(function, (*images, *leaves))


def test_second_derivatives_are_those_of_the_loop(monkeypatch, generator):
    images = pictures(generator, SIZES, layouts=("contiguous", "channels_last"))
    rows, index = torch.rand(6, 4, generator=generator, dtype=f64) * 9, torch.tensor([3, 1, 4, 4, 0, 3])
    weight = torch.rand(6, 3, 4, 4, generator=generator, dtype=f64)

    def second():
        leaves = [rows.clone().requires_grad_(), *(i.detach().requires_grad_() for i in images)]
        value = crop(leaves[1:], leaves[0], 4, batch_index=index, padding_mode="zeros", mode="bicubic")
        first = torch.autograd.grad((value.square() * weight).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    found = second()
    monkeypatch.setattr(_ops_list, "serves", lambda *_: False)
    expected = second()
    for mine, theirs in zip(found, expected, strict=True):  # which PyTorch adds up in another order
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13 * float(theirs.abs().max()))
    assert all(t.abs().sum() > 0 for t in (expected[0], expected[1], expected[4]))


def test_batched_cotangents(generator):
    """`is_grads_batched` runs an older vmap through the backward pass, one image at a time."""
    images = [i.requires_grad_() for i in pictures(generator, SIZES[:2])]
    boxes = (torch.rand(3, 4, generator=generator, dtype=f64) * 5).requires_grad_()
    value = crop(images, boxes, 2, batch_index=torch.tensor([1, 0, 1]))
    cotangents = torch.rand(4, *value.shape, generator=generator, dtype=f64)
    found = torch.autograd.grad(value, [boxes, *images], cotangents, retain_graph=True, is_grads_batched=True)
    for k, cotangent in enumerate(cotangents):
        expected = torch.autograd.grad(value, [boxes, *images], cotangent, retain_graph=True)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[k], theirs, rtol=1e-12, atol=1e-12)


def test_images_changed_before_the_backward_pass_are_noticed(generator):
    images = [i.requires_grad_() for i in pictures(generator, SIZES)]
    boxes = torch.rand(5, 4, generator=generator, dtype=f64).requires_grad_()
    value = crop(images, boxes, 2)
    with torch.no_grad():
        images[3].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_checkpointed(generator):
    images = [i.requires_grad_() for i in pictures(generator, SIZES)]
    boxes = torch.rand(5, 4, generator=generator, dtype=f64).requires_grad_()
    expected = torch.autograd.grad(crop(images, boxes, 2).square().sum(), [boxes, *images])
    value = torch.utils.checkpoint.checkpoint(lambda b, *i: crop(i, b, 2), boxes, *images, use_reentrant=False)
    same(torch.autograd.grad(value.square().sum(), [boxes, *images]), expected)


# --- where the loop goes on -------------------------------------------------------------------------------------------


def names(function):
    with Calls() as calls:
        function()
    return set(calls.names)


def test_the_operator_serves_eager_images_on_the_cpu(generator):
    images, boxes = pictures(generator, SIZES), torch.rand(5, 4, generator=generator, dtype=f64)
    assert names(lambda: crop(images, boxes, 3)) == {"crop_list"}
    assert names(lambda: crop(tuple(images), boxes, 3, impl="cpu")) == {"crop_list"}
    with torch.inference_mode():
        assert names(lambda: crop(images, boxes, 3)) == {"crop_list"}
    assert names(lambda: crop(images, boxes, 3, impl="reference")) == set()
    signals = [i[:, 0] for i in images]
    assert names(lambda: crop(signals, boxes[:, :2], 3)) == {"crop"}

    def along(b):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(b, torch.ones_like(b))
            return torch.autograd.forward_ad.unpack_dual(crop(images, dual, 3)).tangent

    tangent = torch.func.jvp(lambda b: crop(images, b, 3), (boxes,), (torch.ones_like(boxes),))[1]
    assert tangent.abs().sum() > 0
    torch.testing.assert_close(along(boxes), tangent, rtol=1e-12, atol=1e-12)
    assert "crop_list" not in names(lambda: along(boxes))
    assert "crop_list" not in names(lambda: torch.func.grad(lambda b: crop(images, b, 3).sum())(boxes))


def test_transforms_go_image_by_image(generator):
    images, boxes = pictures(generator, SIZES), torch.rand(4, 5, 4, generator=generator, dtype=f64) * 5
    many = torch.func.vmap(lambda b: crop(images, b, 3))(boxes)
    torch.testing.assert_close(many, torch.stack([crop(images, b, 3) for b in boxes]), rtol=0, atol=1e-13)
    leaf = boxes[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(crop(images, leaf, 3).square().sum(), leaf)
    found = torch.func.grad(lambda b: crop(images, b, 3).square().sum())(boxes[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    rows = torch.func.jacrev(lambda i: crop([i, *images[1:]], boxes[0], 2).sum((1, 2, 3)))(images[0])
    assert rows[0].abs().sum() > 0
    assert rows[1:].abs().sum() == 0


def test_compiled(generator):
    images, boxes = pictures(generator, SIZES), torch.rand(5, 4, generator=generator, dtype=f64) * 5
    expected = everything(images, boxes, 3)

    def function(images, boxes):
        return crop(images, boxes, 3)

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    leaves = [t.clone().requires_grad_() for t in (boxes, *images)]
    value = torch.compile(function, backend=backend, fullgraph=True)(leaves[1:], leaves[0])
    cotangent = torch.linspace(-1, 1, value.numel()).to(f64).view(value.shape)
    same([value.detach(), *torch.autograd.grad(value, leaves, cotangent)], expected)
    assert graphs
    assert not any("crop_list" in str(node.target) for graph in graphs for node in graph.graph.nodes)


def test_fake_tensors_go_image_by_image(generator):
    images, boxes = pictures(generator, SIZES, layouts=("channels_last",)), torch.rand(5, 4, dtype=f64)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = crop([mode.from_tensor(i) for i in images], mode.from_tensor(boxes), (4, 3))
    real = crop(images, boxes, (4, 3))
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_autocast_changes_nothing(generator):
    images = pictures(generator, SIZES, dtype=torch.float32)
    for which in ARRANGEMENTS:
        boxes, index = arranged(which, generator)
        for coords in ("pixel", "unit"):
            expected = everything(images, boxes, 4, coords=coords, batch_index=index)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = everything(images, boxes, 4, coords=coords, batch_index=index)
            same(found, expected)


# --- the result -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layouts", [("channels_last",), ("slice",), ("channels_last", "contiguous"), ("gaps",)])
def test_channels_last_in_and_out(layouts, generator):
    images = pictures(generator, SIZES[:2], layouts=layouts)
    for boxes in (torch.rand(2, 4, dtype=f64), [torch.zeros(0, 4, dtype=f64), torch.rand(3, 4, dtype=f64)]):
        found = crop(images, boxes, (4, 3))
        last = layouts in (("channels_last",), ("slice",))
        assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def arguments(generator, dtype=f64, layouts=("contiguous",), requires_grad=False):
    images = [i.requires_grad_(requires_grad) for i in pictures(generator, SIZES, dtype=dtype, layouts=layouts)]
    boxes = (torch.rand(6, 4, generator=generator, dtype=f64) * 5).requires_grad_(requires_grad)
    return images, boxes, torch.tensor([3, 1, 4, 4, 0, 3]), [4, 3], OPTIONS


@pytest.mark.parametrize("layouts", [("contiguous",), ("channels_last",), LAYOUTS], ids="-".join)
@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, layouts, generator):
    images, boxes, index, size, options = arguments(generator, dtype, layouts)
    grad = torch.rand(6, 3, *size, generator=generator).to(dtype)
    ops, rest = torch.ops.diffcrop, options.linear()
    torch.library.opcheck(ops.crop_list.default, (images, boxes, index, size, *options))
    torch.library.opcheck(ops.crop_list_grad_boxes.default, (grad, images, boxes, index, *options))
    for wanted in ([], [4, 0, 2], [0, 1, 2, 3, 4]):
        torch.library.opcheck(ops.crop_list_grad_images.default, (grad, images, boxes, index, wanted, *rest))


def test_opcheck_with_gradients(generator):
    images, boxes, index, size, options = arguments(generator, requires_grad=True)
    given = (images, boxes, index, size, *options)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.diffcrop.crop_list.default, given, test_utils=tests)
    # It passes for an operator that has no gradient at all, so compare one, and one of that.
    how = {"mode": "bicubic", "padding_mode": "constant", "fill": 0.25, "batch_index": index}
    results = []
    for value in (torch.ops.diffcrop.crop_list(*given), crop(images, boxes, size, **how)):
        first = torch.autograd.grad(value.square().sum(), (boxes, *images), create_graph=True)
        results.append([value, *first, *torch.autograd.grad(first[0].square().sum(), (boxes, *images))])
    same(*([t.detach() for t in result] for result in results))
    assert all(t.abs().sum() > 0 for t in results[0][:2])


def test_operators_refuse_what_they_cannot_read(generator):
    """Called without the checks of the public functions."""
    images, boxes, index, size, options = arguments(generator)
    ops = torch.ops.diffcrop
    grad = torch.rand(6, 3, *size, dtype=f64)
    for wrong, said in (
        (([], boxes, index, size), "empty list"),
        (([*images[:4], images[4][:2]], boxes, index, size), "agree in channels"),
        (([*images[:4], images[4].float()], boxes, index, size), "agree in channels and dtype"),
        (([*images[:4], images[4][:, :0]], boxes, index, size), "not empty"),
        (([i[None] for i in images], boxes, index, size), "shape"),
        ((images, boxes, index[:5], size), "index must have shape"),
        ((images, boxes, index.int(), size), "int64"),
        ((images, boxes[:, :3], index, size), "boxes must have shape"),
        ((images, boxes, index, [4]), "size"),
        ((images, boxes, index, [4, 0]), "size"),
    ):
        with pytest.raises(RuntimeError, match=said):
            ops.crop_list(*wrong, *options)
    with pytest.raises(RuntimeError, match="fill"):
        ops.crop_list(images, boxes, index, size, *options._replace(fill=(1.0, 2.0)))
    for wrong, said in ((grad[:5], "shape"), (grad[:, :2], "shape"), (grad.float(), "dtype")):
        with pytest.raises(RuntimeError, match=said):
            ops.crop_list_grad_boxes(wrong, images, boxes, index, *options)
    for wrong in ([5], [-1], [1, 1]):
        with pytest.raises(RuntimeError, match="wanted"):
            ops.crop_list_grad_images(grad, images, boxes, index, wrong, *options)


def test_an_index_of_no_image_is_a_box_without_a_place(generator):
    """In the operators; the public functions say which it is."""
    images, boxes, index, size, options = arguments(generator)
    ops, lost = torch.ops.diffcrop, index.clone()
    lost[1], lost[4] = 5, -1
    grad = torch.rand(6, 3, *size, generator=generator, dtype=f64)
    bad = torch.tensor([False, True, False, False, True, False])
    for one, other in (
        (ops.crop_list(images, boxes, lost, size, *options), ops.crop_list(images, boxes, index, size, *options)),
        (
            ops.crop_list_grad_boxes(grad, images, boxes, lost, *options),
            ops.crop_list_grad_boxes(grad, images, boxes, index, *options),
        ),
    ):
        assert one[bad].isnan().all()
        assert torch.equal(one[~bad], other[~bad])
    nearest = options._replace(mode="nearest")
    assert ops.crop_list(images, boxes, lost, size, *nearest)[bad].isnan().all()
    grads = ops.crop_list_grad_images(grad, images, boxes, lost, [0, 1, 2, 3, 4], *options)
    assert torch.equal(grads[0], torch.zeros_like(grads[0]))
    assert torch.equal(grads[1], torch.zeros_like(grads[1]))
    assert grads[3].abs().sum() > 0


# --- the same errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"size": 0}, {"size": (3, -1)}, {"size": "big"}, {"mode": "cubic"}, {"mode": "area", "antialias": False},
    {"antialias": 1}, {"padding_mode": "edge"}, {"fill": 1.0}, {"padding_mode": "constant", "fill": [1.0, 2.0]},
    {"padding_mode": "constant", "fill": float("nan")}, {"sigma": 1.0}, {"coords": "unity"}, {"box_format": "yxyx"},
    {"align_corners": None}, {"impl": "gpu"}, {"impl": "triton"}, {"size": 0, "mode": "cubic"},
    {"mode": "cubic", "impl": "gpu"}, {"coords": "unity", "mode": "cubic"}, {"mode": "nearest", "boxes": "leaf"},
], ids=str)  # fmt: skip
def test_errors_are_those_of_the_loop(wrong, monkeypatch, generator):
    images, boxes = pictures(generator, SIZES), torch.rand(5, 4, dtype=f64)
    wrong = dict(wrong)
    if wrong.pop("boxes", None):
        boxes.requires_grad_()
    said = []
    for serves in (_ops_list.serves, lambda *_: False):
        monkeypatch.setattr(_ops_list, "serves", serves)
        with pytest.raises((TypeError, ValueError)) as error:
            crop(images, boxes, **({"size": 4} | wrong))
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_kernels_that_are_not_there_are_asked_for_in_vain(monkeypatch, generator):
    there = diffcrop._ops.implementations()
    monkeypatch.setattr(diffcrop._ops, "implementations", lambda: there | {"cpu": "it was never built"})
    with pytest.raises(ValueError, match="impl='cpu' is not available: it was never built"):
        crop(pictures(generator, SIZES), torch.rand(5, 4, dtype=f64), 4, impl="cpu")


# --- cost -------------------------------------------------------------------------------------------------------------


def test_flops(generator):
    """Those of a call for each image; of boxes that name their image, an equal share each."""
    images = pictures(generator, ((16, 12), (8, 40), (16, 12)), dtype=torch.float32)

    def counted(function):
        with FlopCounterMode(display=False) as counter:
            function()
        return {str(k).removeprefix("diffcrop."): n for k, n in counter.get_flop_counts()["Global"].items()}

    def alone(k, count):
        return counted(lambda: crop(images[k], torch.rand(count, 4), (4, 6)))["crop"]

    once = alone(0, 2) + alone(1, 2) + alone(2, 2)
    leaf = torch.rand(3, 2, 4, requires_grad=True)
    assert counted(lambda: crop(images, leaf.detach(), (4, 6))) == {"crop_list": once}
    first = images[0].requires_grad_()
    assert counted(lambda: crop(images, leaf, (4, 6)).sum().backward()) == {
        "crop_list": once, "crop_list_grad_boxes": 2 * once, "crop_list_grad_images": alone(0, 2)
    }  # fmt: skip
    assert first.grad is not None
    rows, index = torch.rand(6, 4), torch.tensor([0, 0, 0, 2, 2, 1])
    assert counted(lambda: crop(images, rows, (4, 6), batch_index=index)) == {"crop_list": once}
    assert counted(lambda: crop(images, rows, (4, 6), batch_index=index, mode="nearest")) == {"crop_list": 0}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_peak_memory():
    """The crops, the gradients, and little more: no padded batch, no second result."""
    program = """
        import torch, diffcrop
        torch.set_num_threads(2)
        def kilobytes(name):
            return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
        def peak_of(function):
            before = kilobytes("VmRSS")
            with open("/proc/self/clear_refs", "w") as peak:
                peak.write("5")
            result = function()
            return result, kilobytes("VmHWM") - before
        images = [torch.rand(3, 400 + 7 * k, 700 - 9 * k).requires_grad_() for k in range(32)]
        boxes = (torch.rand(32, 4) * 100 + torch.tensor([0, 0, 200, 200])).requires_grad_()
        warm = diffcrop.crop([images[0][:, :30, :30], images[1][:, :9]], boxes[:2], 8)
        torch.autograd.grad(warm, [boxes, *images[:2]], torch.ones_like(warm))
        result, forward = peak_of(lambda: diffcrop.crop(images, boxes, 400))
        cotangent = torch.rand(result.shape)
        grads, backward = peak_of(lambda: torch.autograd.grad(result, [boxes, *images], cotangent))
        print(forward, backward)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True)
    forward, backward = (int(n) * 1024 for n in run.stdout.split())
    crops = 32 * 3 * 400**2 * 4
    images = sum(3 * (400 + 7 * k) * (700 - 9 * k) * 4 for k in range(32))
    assert 0.9 * crops < forward <= crops + 12 * 2**20
    assert 0.9 * images < backward <= images + 12 * 2**20
