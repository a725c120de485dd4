"""`normal_equations` against crops and jacobians put together in float64, and against autograd."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch

import diffcrop
from diffcrop import convert_boxes, crop, crop_with_jacobian, normal_equations

from diffcrop import _ops  # isort: skip
from helpers import FILTERS, PADDINGS, options, rand, random_boxes

f64 = torch.float64
SHAPE, SIZE = (13, 17), (4, 5)
METRICS = [("l2", None), ("l2", 0.15), ("zncc", None)]
KERNELS = [name for name in ("cpu", "triton") if diffcrop.implementations()[name] is None]


def expected(images, boxes, targets, metric="l2", huber=None, **keywords):
    """Hessian, gradient and loss from the crop and its jacobian, without any sums of products."""
    value, jacobian = crop_with_jacobian(images, boxes, tuple(targets.shape[-2:]), **keywords)
    target = targets.to(value.dtype).expand_as(value)
    flat = torch.zeros(value.shape[:-3], dtype=torch.bool)
    if metric == "zncc":
        whole = value.square().sum((-3, -2, -1), keepdim=True).sqrt()
        value, norm = normalised(value)
        target, _ = normalised(target)
        jacobian = jacobian - jacobian.mean((-3, -2), keepdim=True)
        along = (value.unsqueeze(-1) * jacobian).sum((-4, -3, -2), keepdim=True)
        jacobian = (jacobian - value.unsqueeze(-1) * along) / norm.unsqueeze(-1)
        flat = (norm <= 1e-9 * whole)[..., 0, 0, 0]  # beside the image
    residual = (value - target).flatten(-3)
    rows = jacobian.flatten(-4, -2)
    weight, loss = torch.ones_like(residual), residual.square() / 2
    if huber is not None:
        weight = (huber / residual.abs()).clamp(max=1)
        loss = torch.where(residual.abs() <= huber, loss, huber * (residual.abs() - huber / 2))
    weighted = rows * weight.unsqueeze(-1)
    hessian, gradient = weighted.mT @ rows, (weighted.mT @ residual.unsqueeze(-1)).squeeze(-1)
    return (
        hessian.masked_fill(flat[..., None, None], 0.0),
        gradient.masked_fill(flat[..., None], 0.0),
        loss.sum(-1).masked_fill(flat, 1.0),
    )


def normalised(value):
    value = value - value.mean((-2, -1), keepdim=True)
    norm = value.square().sum((-3, -2, -1), keepdim=True).sqrt()
    return value / norm, norm


def assert_same(got, want, rtol=1e-10):
    for name, one, other in zip(got._fields, got, want, strict=True):
        assert one.dtype == f64
        assert one.shape == other.shape, name
        if other.numel():
            error, scale = float((one - other).abs().max()), float(other.abs().max())
            assert error <= rtol * scale, f"{name}: {error:.3g} of {scale:.3g}"


def problem(generator, count=3, size=SIZE, channels=2, smooth=True, **keywords):
    """An image, boxes and targets; the boxes ``smooth`` points of the crop, else mostly inside the image."""
    where = {k: v for k, v in keywords.items() if k in ("mode", "antialias", "padding_mode", "align_corners")}
    if smooth:
        boxes = random_boxes(count - 1, size, SHAPE, generator, **({"mode": "bilinear"} | where))
    else:
        corner = rand(count - 1, 2, generator=generator) * 5 - 2
        boxes = torch.cat([corner, corner + 7 + 9 * rand(count - 1, 2, generator=generator)], -1)
    boxes = torch.cat([boxes, torch.tensor([[1.37, 0.71, 12.12, 9.23]], dtype=f64)])
    return rand(channels, *SHAPE, generator=generator), boxes, rand(count, channels, *size, generator=generator)


GRID = list(itertools.product(FILTERS, PADDINGS, (False, True), METRICS))


@pytest.mark.parametrize(("filtered", "padding_mode", "align_corners", "metric"), GRID)
def test_is_made_of_crop_and_jacobian(impl, filtered, padding_mode, align_corners, metric, generator):
    keywords = options(*filtered, padding_mode, align_corners=align_corners)
    images, boxes, targets = problem(generator, **keywords)
    value = crop(images, boxes, SIZE, impl="reference", **keywords)
    share = normalised(value)[1].square() / value.square().sum((-3, -2, -1), keepdim=True).clamp(min=1e-300)
    if metric[0] == "zncc":  # sums of squares lose what contrast a crop beside the image has not
        boxes, targets = (t[share.flatten() > 1e-4] for t in (boxes, targets))
    keywords |= {"metric": metric[0], "huber": metric[1]}
    got = normal_equations(images, boxes, targets, impl=impl, **keywords)
    assert_same(got, expected(images, boxes, targets, impl="reference", **keywords))
    assert (got.hessian.abs().amax((1, 2)) > 1e-4).any()


@pytest.mark.parametrize(("metric", "huber"), METRICS)
@pytest.mark.parametrize(
    ("box_format", "coords"), list(itertools.product(("xyxy", "xywh", "cxcywh"), ("pixel", "unit", "normalized")))
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_gradient_is_that_of_the_loss(impl, metric, huber, box_format, coords, align_corners, generator):
    kind = {"box_format": box_format, "coords": coords, "align_corners": align_corners, "mode": "bicubic"}
    images, pixel, targets = problem(generator, mode="bicubic", align_corners=align_corners)
    boxes = convert_boxes(pixel, SHAPE, to_format=box_format, to_coords=coords, align_corners=align_corners)
    got = normal_equations(images, boxes, targets, metric=metric, huber=huber, impl=impl, **kind)
    want = expected(images, boxes, targets, metric, huber, impl="reference", **kind)
    assert_same(got, want)
    boxes.requires_grad_()
    value = crop(images, boxes, SIZE, impl="reference", **kind)
    if metric == "zncc":
        loss = (normalised(value)[0] - normalised(targets)[0]).square().sum() / 2
    elif huber is None:
        loss = (value - targets).square().sum() / 2
    else:
        loss = torch.nn.functional.huber_loss(value, targets, reduction="sum", delta=huber)
    (gradient,) = torch.autograd.grad(loss, boxes)
    torch.testing.assert_close(got.gradient, gradient, rtol=1e-10, atol=1e-10 * float(gradient.abs().max()))
    torch.testing.assert_close(got.loss.sum(), loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("metric", "huber"), METRICS)
@pytest.mark.parametrize("fill", [0.75, (300.0, -1.0)])
def test_fill(impl, metric, huber, fill, generator):
    images, boxes, targets = problem(generator, smooth=False)
    boxes = torch.cat([boxes, torch.tensor([[-3.3, -2.2, 9.1, 8.4]], dtype=f64)])
    keywords = {"padding_mode": "constant", "fill": fill, "metric": metric, "huber": huber}
    got = normal_equations(images, boxes, targets[:1], impl=impl, **keywords)
    assert_same(got, expected(images, boxes, targets[:1], impl="reference", **keywords))


@pytest.mark.parametrize("impl", [name for name in KERNELS if name == "cpu"])
def test_a_far_fill_does_not_round_the_crop(impl, generator):
    """In the kernels a crop inside the image knows nothing of it, in float32 as well."""
    images, boxes, targets = (t.float() for t in problem(generator))
    keywords = {"padding_mode": "constant", "impl": impl}
    inside = boxes[-1:], targets[-1:]
    got = normal_equations(images, *inside, fill=1e6, **keywords)
    torch.testing.assert_close(got.loss, normal_equations(images, *inside, **keywords).loss, rtol=1e-6, atol=0)


CASES = {
    "one image": ((2,), (4,), None, ()),
    "boxes of one image": ((2,), (3, 4), None, (3,)),
    "no boxes": ((2,), (0, 4), None, (0,)),
    "one box for a batch": ((3, 2), (4,), None, (3,)),
    "a box for each": ((3, 2), (3, 4), None, (3,)),
    "boxes for each": ((3, 2), (3, 5, 4), None, (3, 5)),
    "no boxes for each": ((3, 2), (3, 0, 4), None, (3, 0)),
    "an index": ((3, 2), (4, 4), (2, 0, 0, 1), (4,)),
    "no channels": ((0,), (3, 4), None, (3,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("metric", "huber"), METRICS)
def test_shapes(impl, name, metric, huber, generator):
    front, box_shape, index, leading = CASES[name]
    images = rand(*front, *SHAPE, generator=generator)
    corner = rand(*box_shape[:-1], 2, generator=generator) * 5
    boxes = torch.cat([corner, corner + 6 + rand(*box_shape[:-1], 2, generator=generator)], -1)
    index = None if index is None else torch.tensor(index, dtype=torch.int32)
    channels, keywords = front[-1], {"metric": metric, "huber": huber, "batch_index": index}
    whole = rand(*leading, channels, *SIZE, generator=generator)
    for targets in (whole, whole[(0,) * len(leading)] if 0 not in leading else whole, rand(*SIZE, generator=generator)):
        got = normal_equations(images, boxes, targets, impl=impl, **keywords)
        assert got.hessian.shape == (*leading, 4, 4)
        assert got.gradient.shape == (*leading, 4)
        assert got.loss.shape == leading
        if channels and 0 not in leading:
            assert_same(got, expected(images, boxes, targets, impl="reference", **keywords))
        elif not channels:
            assert (got.loss == (1 if metric == "zncc" else 0)).all()
            assert (got.hessian == 0).all()


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize(("metric", "huber"), METRICS)
def test_signals_and_volumes(axes, metric, huber, generator):
    images, targets = rand(2, *(9, 8, 7)[:axes], generator=generator), rand(2, *(4, 3, 2)[:axes], generator=generator)
    boxes = torch.tensor([[1.2] * axes + [6.3] * axes, [0.4] * axes + [7.7] * axes], dtype=f64, requires_grad=True)
    value = crop(images, boxes, targets.shape[1:])
    dims = tuple(range(-axes, 0))
    if metric == "l2":
        loss = torch.nn.functional.huber_loss(value, targets.expand_as(value), reduction="none", delta=huber or 1e9)
        loss = loss.flatten(1).sum(1)
    else:
        u, t = (x - x.mean(dims, keepdim=True) for x in (value, targets.expand_as(value)))
        loss = 1 - torch.cosine_similarity(u.flatten(1), t.flatten(1))
    (gradient,) = torch.autograd.grad(loss.sum(), boxes)
    got = normal_equations(images, boxes.detach(), targets, metric=metric, huber=huber)
    assert got.hessian.shape == (2, 2 * axes, 2 * axes)
    torch.testing.assert_close(got.loss, loss.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.gradient, gradient, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(got.hessian).min() > -1e-9


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int16]
)
@pytest.mark.parametrize(("metric", "huber"), [("l2", None), ("l2", 30.0), ("zncc", None)])
def test_layouts_and_dtypes(impl, layout, dtype, metric, huber, generator):
    """Sums in float32 or better, of images in any layout; crops are not rounded to a half precision."""
    images = (rand(2, 3, *SHAPE, generator=generator) * 200).to(dtype)
    given = {
        "contiguous": images,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "strided": images.repeat_interleave(2, -1)[..., ::2].flip(1).flip(1),
    }[layout]
    boxes = random_boxes(2, SIZE, SHAPE, generator, mode="bicubic")
    targets = (rand(2, 3, *SIZE, generator=generator) * 200).to(dtype)
    keywords = {"mode": "bicubic", "metric": metric, "huber": huber}
    got = normal_equations(given, boxes, targets, impl=impl, **keywords)
    exact = expected(images.double(), boxes, targets.double(), impl="reference", **keywords)
    assert_same(got, exact, 1e-10 if dtype == f64 else 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32, torch.bool])
def test_targets_of_another_dtype(impl, dtype, generator):
    images, boxes, targets = problem(generator)
    targets = (targets * 2).to(dtype)
    for made in (images, images.float(), (images * 255).to(torch.uint8)):
        got = normal_equations(made, boxes, targets, impl=impl)
        assert_same(got, expected(made.double(), boxes, targets.double(), impl="reference"), 2e-5)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 7), (7, 1), (2, 3), (15, 16), (16, 17), (17, 15), (13, 8), (5, 31), (64, 33)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("metric", "huber"), METRICS)
def test_sizes(impl, size, dtype, metric, huber, generator):
    """Ends of rows, of batches of rows and of pieces."""
    if impl == "triton" and size[0] * size[1] > 100:
        pytest.skip("slow in the interpreter, and the same for all sizes")
    images, boxes, targets = problem(generator, size=size, channels=3, smooth=False)
    keywords = {"metric": metric, "huber": huber}
    got = normal_equations(images.to(dtype), boxes, targets.to(dtype), impl=impl, **keywords)
    if metric == "zncc" and size == (1, 1):
        assert got.loss.tolist() == [1, 1, 1]
        assert not got.hessian.any()
        assert not got.gradient.any()
        return
    want = expected(images, boxes, targets, impl="reference", **keywords)
    assert_same(got, want, 1e-10 if dtype == f64 else 1e-4)


@pytest.mark.parametrize(("metric", "huber"), METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_targets_of_any_strides(impl, metric, huber, dtype, generator):
    images, boxes, targets = (t.to(dtype) for t in problem(generator, channels=3))
    keywords = {"metric": metric, "huber": huber, "impl": impl}
    wide = targets.repeat_interleave(2, -1)[..., ::2]
    last = targets.contiguous(memory_format=torch.channels_last)
    want = normal_equations(images, boxes, targets, **keywords)
    for given in (wide, last, targets.mT.contiguous().mT):
        assert given.stride() != targets.stride()
        assert all(map(torch.equal, normal_equations(images, boxes, given, **keywords), want))
    shared = normal_equations(images, boxes, targets[0], **keywords)
    assert all(
        map(torch.equal, shared, normal_equations(images, boxes, targets[:1].expand(3, -1, -1, -1).clone(), **keywords))
    )


def test_one_target_is_not_copied(generator):
    """It arrives at the operator with stride 0 over the boxes, in the memory that was given."""
    images, boxes, targets = problem(generator)
    with mock.patch.object(_ops, "gram", side_effect=_ops.gram) as gram:
        normal_equations(images, boxes, targets[0])
        assert gram.call_args.args[3].stride(0) == 0
        assert gram.call_args.args[3].data_ptr() == targets.data_ptr()
        batch = images.expand(2, -1, -1, -1)
        normal_equations(batch, boxes.expand(2, -1, -1), targets[0])
        assert gram.call_args.args[3].stride(0) == 0


@pytest.mark.parametrize(("metric", "huber"), METRICS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_bad_boxes_are_nan_alone(impl, metric, huber, bad, generator):
    images, boxes, targets = problem(generator)
    keywords = {"metric": metric, "huber": huber, "impl": impl}
    sound = normal_equations(images, boxes, targets, **keywords)
    boxes[1, 2] = bad
    for mask in (targets, torch.ones_like(targets)):  # constant targets, too
        got = normal_equations(images, boxes, mask, **keywords)
        assert all(part[1].isnan().all() and part[::2].isfinite().all() for part in got)
        if mask is targets:
            assert all(map(torch.equal, (part[::2] for part in got), (part[::2] for part in sound)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
@pytest.mark.parametrize("constant", ["image", "target", "both"])
@pytest.mark.parametrize("value", [0, 1, 77, 0.1])
def test_without_contrast(impl, dtype, constant, value, generator):
    """Up to rounding: a constant image is not exactly constant when it was resampled."""
    images, boxes, targets = problem(generator, size=(9, 11), channels=3, smooth=False, mode="lanczos3")
    images, targets = (images * 200).to(dtype), (targets * 200).to(dtype)
    images = torch.full_like(images, value) if constant != "target" else images
    targets = torch.full_like(targets, value) if constant != "image" else targets
    got = normal_equations(images, boxes, targets, mode="lanczos3", metric="zncc", impl=impl)
    assert got.loss.tolist() == [1, 1, 1]
    assert not got.gradient.any()
    assert not got.hessian.any()


def test_brightness_and_contrast_do_not_count(impl, generator):
    images, boxes, targets = problem(generator)
    change = torch.tensor([2.0, -31.0], dtype=f64)[:, None, None]
    keywords = {"metric": "zncc", "impl": impl}
    want = normal_equations(images, boxes, targets, **keywords)
    assert_same(normal_equations(images, boxes, 200 * targets + change, **keywords), want, 1e-9)
    equal = normal_equations(images, boxes, 3 * crop(images, boxes, SIZE) - change, **keywords)
    assert (equal.loss >= 0).all()
    assert equal.loss.max() < 1e-10
    assert equal.gradient.abs().max() < 1e-9
    low = normal_equations(images * 1e-4 + 1, boxes, targets, **keywords)  # a contrast far above rounding counts
    torch.testing.assert_close(low.loss, want.loss, rtol=1e-6, atol=0)


def test_an_infinite_threshold_is_none(impl, generator):
    arguments = problem(generator)
    want = normal_equations(*arguments, impl=impl)
    assert all(map(torch.equal, normal_equations(*arguments, huber=float("inf"), impl=impl), want))
    assert_same(normal_equations(*arguments, huber=100, impl=impl), want, 1e-14)


@pytest.mark.parametrize(("metric", "huber"), METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("impl", [name for name in KERNELS if name == "cpu"])
def test_same_bits(impl, metric, huber, dtype, generator):
    """For any number of threads, and for a box whatever others are in the call."""
    images = rand(2, 3, 101, 87, generator=generator, dtype=dtype)
    corner = rand(2, 9, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 20 + 20 * rand(2, 9, 2, generator=generator)], -1)
    targets = rand(3, 70, 40, generator=generator)
    keywords, before = {"metric": metric, "huber": huber, "impl": impl}, torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            results.append(normal_equations(images, boxes, targets, **keywords))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    alone = normal_equations(images[1], boxes[1, 4], targets, **keywords)
    sums = [
        (part[1, 4] - one).abs().max() <= 1e-13 * one.abs().max() for part, one in zip(results[0], alone, strict=True)
    ]
    assert all(sums)


@pytest.mark.parametrize(("metric", "huber"), METRICS)
def test_more_boxes_than_are_planned_together(impl, metric, huber, generator):
    images, boxes, targets = problem(generator, count=70, size=(2, 3), smooth=False)
    keywords = {"metric": metric, "huber": huber, "impl": impl}
    got = normal_equations(images, boxes, targets, **keywords)
    parts = [normal_equations(images, b, t, **keywords) for b, t in zip(boxes, targets, strict=True)]
    for part, alone in zip(got, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(part, torch.stack(alone), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("level", ["default", "avx2"])
def test_other_instruction_sets(level, tmp_path, generator):
    """The same numbers from the plain loops: in a process of its own, as the level is chosen once."""
    if "cpu" not in KERNELS:
        pytest.skip("the kernels are not there")
    import os
    import subprocess
    import sys

    images, boxes, targets = problem(generator, size=(9, 19), channels=3, smooth=False)
    torch.save((images, boxes, targets), tmp_path / "given.pt")
    script = f"""
import torch
from diffcrop import normal_equations
images, boxes, targets = torch.load({str(tmp_path / "given.pt")!r})
torch.save([tuple(normal_equations(images.to(d), boxes, targets, metric=m, huber=h, impl="cpu"))
            for d in (torch.float64, torch.float32) for m, h in {METRICS!r}], {str(tmp_path / "made.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"DIFFCROP_SIMD": level})
    made = iter(torch.load(tmp_path / "made.pt"))
    for dtype, (metric, huber) in itertools.product((f64, torch.float32), METRICS):
        want = expected(images, boxes, targets, metric, huber, impl="reference")
        assert_same(diffcrop.NormalEquations(*next(made)), want, 1e-10 if dtype == f64 else 1e-4)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(("metric", "huber"), [("l2", float("inf")), ("l2", 0.2), ("zncc", float("inf"))])
def test_the_operator_is_sound(impl, metric, huber, generator):
    images, boxes, targets = problem(generator)
    overload = torch.ops.diffcrop.crop_gram
    operator = overload.default if impl == "cpu" else overload.triton
    given = (images[None], boxes, None, targets, metric, huber, "bilinear", True, "border", [0.0], 0.5, False)
    torch.library.opcheck(operator, given)
    sums = operator(*given)
    assert torch.equal(sums, sums.mT)
    if metric == "zncc":
        assert (sums[..., -1, -1] == targets[0, 0].numel()).all()


def test_compiled(generator):
    images, boxes, targets = problem(generator)
    compiled = torch.compile(normal_equations, fullgraph=True, backend="aot_eager")
    for metric, huber in METRICS:
        keywords = {"metric": metric, "huber": huber}
        assert_same(compiled(images, boxes, targets, **keywords), normal_equations(images, boxes, targets, **keywords))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode(impl, context, generator):
    images, boxes, targets = problem(generator)
    want = normal_equations(images, boxes, targets, impl=impl)
    with context():
        got = normal_equations(images.requires_grad_(), torch.nn.Parameter(boxes), targets, impl=impl)
    assert all(map(torch.equal, got, want))
    assert not any(part.requires_grad for part in got)


def test_under_autocast(impl, generator):
    images, boxes, targets = problem(generator)
    want = normal_equations(images, boxes, targets, box_format="cxcywh", impl=impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = normal_equations(images, boxes, targets, box_format="cxcywh", impl=impl)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(("metric", "huber"), METRICS)
def test_steps_find_a_box(impl, metric, huber):
    """Levenberg-Marquardt from a box that is 10 % off, also where the target is darker."""
    y, x = torch.meshgrid(torch.arange(40, dtype=f64), torch.arange(50, dtype=f64), indexing="ij")
    image = torch.stack([torch.sin(x / 9) * torch.cos(y / 7), torch.cos(x / 11 + y / 13)])
    truth = torch.tensor([8.3, 6.1, 38.4, 30.2], dtype=f64)
    target = crop(image, truth, 8, mode="bicubic", impl=impl) * (0.5 if metric == "zncc" else 1)
    box = truth + torch.tensor([1.0, -1.5, 2.0, 1.0], dtype=f64)
    for _ in range(12):
        hessian, gradient, _ = normal_equations(
            image, box, target, mode="bicubic", metric=metric, huber=huber, impl=impl
        )
        box = box - torch.linalg.solve(hessian, gradient)
    torch.testing.assert_close(box, truth, rtol=0, atol=1e-7)


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    if "cpu" not in KERNELS:
        pytest.skip("the kernels are not there")
    images, boxes, targets = torch.rand(3, 8, 8), torch.rand(2, 4), torch.rand(3, 4, 4)
    with FlopCounterMode(display=False) as once:
        crop(images, boxes, 4)
    with FlopCounterMode(display=False) as counter:
        normal_equations(images, boxes, targets)
    assert counter.get_total_flops() == 5 * once.get_total_flops() + 2 * 3 * 16 * 5 * 6
