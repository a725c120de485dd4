"""Signals and volumes: the kernels equal the reference, and both equal what others compute for them."""

from __future__ import annotations

import itertools
import random

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate

import diffcrop
from diffcrop import boxes_to_theta, coverage, crop, crop_with_jacobian
from helpers import FILTERS, options, random_axis
from plain import needs_kernels

f64 = torch.float64
SERVING = [name for name, reason in diffcrop.implementations().items() if reason is None and name != "triton"]
MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
SIDES = (1, 2, 3, 7, 15, 16, 17, 33)
# Of values and Jacobians, and of gradients, in parts of what a sum of their terms may be.
TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-6, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
    torch.uint8: (1e-6, 2e-5),
    torch.int16: (1e-6, 2e-5),
}


@pytest.fixture(params=SERVING)
def serving(request):
    return request.param


def last(tensor):
    """Channels innermost; PyTorch has a name for that of volumes alone."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": last,
    "transposed": lambda t: t.transpose(2, -1).contiguous().transpose(2, -1),
    "sliced": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
}


def draw(choose, axes, generator, dtype):
    """A batch in some layout, boxes of every kind, and a size."""
    spatial = [choose(SIDES) for _ in range(axes)]
    size = tuple(choose((1, 2, 5, 8, 17)) for _ in range(axes))
    count, channels = choose((1, 2)), choose((1, 2, 3, 17))
    images = torch.rand(count, channels, *spatial, generator=generator, dtype=f64)
    images = images.to(dtype) if dtype.is_floating_point else (images * 200).to(dtype)
    images = LAYOUTS[choose(tuple(LAYOUTS))](images)
    rows = count * choose((1, 3))
    centre = torch.rand(rows, axes, generator=generator, dtype=f64) * torch.tensor(spatial[::-1], dtype=f64)
    reduction = 2.0 ** (torch.rand(rows, axes, generator=generator, dtype=f64) * 8 - 3)  # 1/8 .. 32
    half = reduction * torch.tensor(size[::-1]) / 2
    half = torch.where(torch.rand(rows, axes, generator=generator) < 0.15, -half, half)
    boxes = torch.cat([centre - half, centre + half], -1)
    whole = torch.rand(rows, 1, generator=generator) < 0.3
    boxes = torch.where(whole, boxes.round(), boxes)
    return images, boxes.view(count, -1, 2 * axes), size


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", [1, 3])
def test_kernels_equal_the_reference(axes, mode, padding_mode, dtype, generator, request):
    choose = random.Random(request.node.nodeid).choice
    close, loose = TOLERANCE[dtype]
    for _ in range(3):
        images, boxes, size = draw(choose, axes, generator, dtype)
        kept = {
            "mode": mode,
            "padding_mode": padding_mode,
            "antialias": mode == "area" or choose((True, False)),
            "align_corners": choose((True, False, False)),
        }
        if padding_mode == "constant":
            kept["fill"] = [float(7 * c) for c in range(images.shape[1])]
        found = {}
        for impl in ("reference", "cpu"):
            sources = [images.detach().requires_grad_(dtype.is_floating_point)]
            sources.append(boxes.detach().requires_grad_(mode != "nearest"))
            value = crop(*sources, size, impl=impl, **kept)
            cotangent = torch.linspace(-1, 1, value.numel(), dtype=f64).reshape(value.shape).to(value.dtype)
            wanted = [s for s in sources if s.requires_grad]
            found[impl] = [value.detach(), *(torch.autograd.grad(value, wanted, cotangent) if wanted else ())]
            if mode != "nearest":
                found[impl].append(crop_with_jacobian(images, boxes, size, impl=impl, **kept).jacobian)
        terms = float(images.double().abs().max()) + 7 * images.shape[1]
        scales = [terms, terms * value[0, 0].numel(), terms * value[0, 0].numel(), terms]
        names = ["value", "image", "box", "jacobian"]
        if not dtype.is_floating_point:
            scales.pop(1), names.pop(1)
        for name, got, want, scale in zip(names, found["cpu"], found["reference"], scales, strict=False):
            assert got.dtype == want.dtype
            error = (got.double() - want.double()).abs().max().item()
            bound = (close if name == "value" else loose) * max(scale, want.double().abs().max().item())
            assert error <= bound, f"{name}: {error:.2e} > {bound:.2e} for {images.shape} -> {size} with {kept}"


# Pixels and outputs of z, y, x for which every way to make a volume's crop and its gradients is the cheapest of some.
WAYS = {
    "enlarged": ((9, 8, 7), (40, 33, 50)),
    "reduced a little": ((40, 41, 42), (21, 22, 20)),
    "reduced much": ((48, 50, 60), (3, 4, 5)),
    "thick slices": ((6, 70, 64), (30, 9, 16)),
    "thin slices": ((70, 20, 18), (5, 60, 40)),
    "large planes": ((2, 700, 600), (3, 5, 4)),
}


@needs_kernels
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "constant"])
@pytest.mark.parametrize(("mode", "antialias"), [("bilinear", False), ("bilinear", True), ("bicubic", True)])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_make_a_volume(name, mode, antialias, padding_mode, generator):
    spatial, size = WAYS[name]
    boxes = torch.tensor([-0.03, 0.02, 0.04, 0.93, 1.01, 1.02], dtype=f64).view(2, 3) * torch.tensor(spatial[::-1])
    boxes = torch.stack([boxes, boxes.flip(0) + 0.3]).flatten(1)[None]  # and mirrored
    kept = options(mode, antialias, padding_mode)
    for layout, dtype in itertools.product(("contiguous", "channels last", "sliced"), (torch.float32, f64)):
        images = torch.rand(1, 2, *spatial, generator=generator, dtype=f64).to(dtype)
        cotangent = torch.rand(1, 2, 2, *size, generator=generator, dtype=f64).to(dtype)
        found = {}
        for impl in ("reference", "cpu"):
            pixels = images.double() if impl == "reference" else LAYOUTS[layout](images)
            sources = [pixels.requires_grad_(), boxes.clone().requires_grad_()]
            value = crop(*sources, size, impl=impl, **kept)
            found[impl] = [value, *torch.autograd.grad(value, sources, cotangent.to(value.dtype))]
        for part, got, want in zip(("value", "image", "box"), found["cpu"], found["reference"], strict=True):
            error = (got.double() - want).abs().max() / want.abs().max()
            # Box gradients are sums over all outputs, each of all pixels, of terms that cancel.
            room = {"box": 100 if name == "large planes" else 10}.get(part, 1)
            bound = (2e-5 if dtype == torch.float32 else 1e-12) * room
            assert error <= bound, f"{part}: {error:.1e}, {layout}"


# --- against others ---------------------------------------------------------------------------------------------------


def far_from_kinks(count, spatial, size, generator, **where):
    rows = []
    for _ in range(count):
        axes = [random_axis(p, n, generator, **where) for p, n in zip(spatial[::-1], size[::-1], strict=True)]
        rows.append([lo for lo, _ in axes] + [hi for _, hi in axes])
    return torch.tensor(rows, dtype=f64)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
def test_volumes_are_the_recipe(serving, padding_mode, align_corners, generator):
    """`affine_grid` and 5-D `grid_sample`: values and both gradients."""
    spatial, size, kept = (6, 7, 9), (4, 5, 3), {"padding_mode": padding_mode, "align_corners": align_corners}
    pixel = far_from_kinks(4, spatial, size, generator, mode="bilinear", antialias=False, **kept)
    boxes = diffcrop.convert_boxes(pixel, spatial, to_coords="normalized", align_corners=align_corners)
    images = torch.rand(4, 2, *spatial, generator=generator, dtype=f64)
    weight = torch.rand(4, 2, *size, generator=generator, dtype=f64)
    found = []
    for mine in (True, False):
        i, b = images.clone().requires_grad_(), boxes.clone().requires_grad_()
        if mine:
            value = crop(i, b, size, coords="normalized", mode="bilinear", antialias=False, impl=serving, **kept)
        else:
            half, middle = (b[:, 3:] - b[:, :3]) / 2, (b[:, 3:] + b[:, :3]) / 2
            theta = torch.cat([torch.diag_embed(half), middle[..., None]], -1)
            torch.testing.assert_close(theta, boxes_to_theta(b, spatial, coords="normalized"), rtol=0, atol=1e-14)
            grid = affine_grid(theta, [4, 2, *size], align_corners=align_corners)
            value = grid_sample(i, grid, mode="bilinear", **kept)
        found.append((value.detach(), *torch.autograd.grad(value, (i, b), weight)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("axes", "theirs"), [(1, "linear"), (3, "trilinear")])
def test_whole_resizing_is_interpolate(serving, axes, theirs, mode, generator):
    """`interpolate` without antialiasing, the value and the gradient by the pixels, enlarging and reducing."""
    for spatial, size, align_corners in itertools.product(
        [(7, 6, 9)[:axes], (12, 5, 8)[:axes]], [(4, 3, 8)[:axes], (15, 7, 9)[:axes]], [False, True]
    ):
        if mode == "nearest" and align_corners:
            continue
        images = torch.rand(2, 3, *spatial, generator=generator, dtype=f64, requires_grad=True)
        whole = torch.tensor([0.0] * axes + [n - 1.0 if align_corners else n for n in spatial[::-1]], dtype=f64)
        kept = {"mode": mode, "antialias": False, "align_corners": align_corners, "impl": serving}
        value = crop(images, whole, size, **kept)
        how = {"mode": "nearest-exact"} if mode == "nearest" else {"mode": theirs, "align_corners": align_corners}
        expected = interpolate(images, size, **how)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)
        weight = torch.rand(value.shape, generator=generator, dtype=f64)
        pair = [torch.autograd.grad(v, images, weight)[0] for v in (value, expected)]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", [1, 3])
def test_integer_reductions_are_area(serving, axes, generator):
    spatial, size = (12, 9, 8)[:axes], (4, 3, 4)[:axes]
    images = torch.rand(2, 2, *spatial, generator=generator, dtype=f64)
    whole = torch.tensor([0.0] * axes + [float(n) for n in spatial[::-1]], dtype=f64)
    expected = interpolate(images, size, mode="area")
    torch.testing.assert_close(crop(images, whole, size, mode="area", impl=serving), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_antialiased_volumes_are_resampled_axis_by_axis(serving, mode, generator):
    """`interpolate(antialias=True)`, which has two axes: z with one, then y and x."""
    images = torch.rand(2, 3, 11, 14, 17, generator=generator, dtype=f64)
    d, h, w = size = (4, 14, 5)
    planes = images.flatten(0, 1).flatten(2)[:, None]  # each volume as an image of D rows
    planes = interpolate(planes, (d, planes.shape[-1]), mode=mode, antialias=True)
    planes = planes.reshape(-1, 1, 14, 17)
    expected = interpolate(planes, (h, w), mode=mode, antialias=True).reshape(2, 3, *size)
    whole = torch.tensor([0.0, 0, 0, 17, 14, 11], dtype=f64)
    found = crop(images, whole, size, mode=mode, padding_mode="renormalize", impl=serving)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", ["area", "lanczos3", "gaussian"])
def test_signals_are_rows_of_images(serving, mode, generator):
    """The image of one row, at a box over all of it: y reads that row alone where the filter does no more than that."""
    signals = torch.rand(3, 2, 40, generator=generator, dtype=f64, requires_grad=True)
    boxes = torch.tensor([[3.3, 31.9], [45.0, -4.0], [-20.0, 90.0]], dtype=f64, requires_grad=True)
    rows = torch.stack([torch.full((3,), 0.0), torch.full((3,), 1.0)]).to(f64)
    as_image = torch.stack([boxes[:, 0], rows[0], boxes[:, 1], rows[1]], -1)
    kept = {"mode": mode, "padding_mode": "border", "impl": serving}
    value = crop(signals, boxes, 9, **kept)
    expected = crop(signals[:, :, None], as_image, (1, 9), **kept)[:, :, 0]
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    weight = torch.rand(value.shape, generator=generator, dtype=f64)
    for got, want in zip(*(torch.autograd.grad(v, (signals, boxes), weight) for v in (value, expected)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_a_signal_has_no_second_axis(serving, mode, padding_mode):
    """No filter, padding or convention dims it: a constant stays, also where it would smooth or see the outside."""
    signals = torch.full((1, 1, 16), 3.0, dtype=f64)
    for align_corners in (False, True):
        box = torch.tensor([4.5, 11.5], dtype=f64)
        found = crop(signals, box, 7, mode=mode, padding_mode=padding_mode, align_corners=align_corners, impl=serving)
        torch.testing.assert_close(found, torch.full((1, 1, 7), 3.0, dtype=f64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["sample", "exact"])
def test_roi_align_of_volumes(serving, mode, generator):
    """The reference's by the kernels; with one or two samples a bin the means of 5-D `grid_sample`."""
    features = torch.rand(2, 3, 7, 8, 9, generator=generator, dtype=f64, requires_grad=True)
    corners = torch.tensor([[0.7, 1.2, 0.9, 7.9, 6.1, 5.8], [-3.0, 2.2, 4.4, 5.1, 11.3, 6.6]], dtype=f64)
    boxes = torch.cat([torch.tensor([[1.0], [0.0]], dtype=f64), corners], 1).requires_grad_()
    for ratio in (1, 2, -1) if mode == "sample" else (-1,):
        kept = {"sampling_ratio": ratio, "aligned": True, "mode": mode}
        weight = torch.rand(2, 3, 2, 4, 3, generator=generator, dtype=f64)
        found = []
        for impl in (serving, "reference"):
            value = diffcrop.roi_align(features, boxes, (2, 4, 3), impl=impl, **kept)
            found.append((value, *torch.autograd.grad(value, (features, boxes), weight)))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        if ratio > 0:  # of the box inside, whose samples are those of a finer crop
            fine = [n * ratio for n in (2, 4, 3)]
            grid = affine_grid(boxes_to_theta(corners[:1], (7, 8, 9)), [1, 3, *fine], align_corners=False)
            means = torch.nn.functional.avg_pool3d(grid_sample(features[1:], grid, align_corners=False), ratio)
            torch.testing.assert_close(found[0][0][:1], means, rtol=0, atol=1e-13)


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axes", [1, 3])
def test_the_whole_is_itself_bit_for_bit(serving, axes, dtype, generator):
    spatial = (5, 17, 33)[-axes:]
    images = torch.randn(2, 3, *spatial, generator=generator, dtype=f64).to(dtype)
    whole = torch.tensor([0.0] * axes + [float(n) for n in spatial[::-1]])
    for (mode, antialias), padding_mode in itertools.product(FILTERS, PADDINGS):
        if mode != "gaussian":
            found = crop(images, whole, spatial, impl=serving, **options(mode, antialias, padding_mode))
            assert torch.equal(found, images), (mode, antialias, padding_mode)


def test_channels_last_3d_stays(serving, generator):
    images = torch.rand(2, 3, 6, 7, 8, generator=generator, dtype=f64).contiguous(memory_format=torch.channels_last_3d)
    images.requires_grad_()
    boxes = torch.rand(2, 2, 6, generator=generator, dtype=f64) * 4 + torch.tensor([0, 0, 0, 3, 3, 2])
    for mode in ("bilinear", "area", "nearest"):
        found = crop(images, boxes, (3, 4, 5), mode=mode, impl=serving)
        assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)
        plain = crop(images.detach().contiguous(), boxes, (3, 4, 5), mode=mode, impl=serving)
        assert plain.is_contiguous()
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)
        (grad,) = torch.autograd.grad(found.sum(), images)
        assert grad.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
                                   torch.uint32, torch.uint64, torch.uint8, torch.float16, f64], ids=str)  # fmt: skip
@pytest.mark.parametrize("axes", [1, 3])
def test_nearest_moves_every_dtype(serving, axes, dtype, generator):
    spatial = (4, 5, 6)[-axes:]
    images = (torch.rand(2, 2, *spatial, generator=generator) * 100).to(dtype)
    whole = torch.tensor([0.0] * axes + [float(n) for n in spatial[::-1]])
    assert torch.equal(crop(images, whole, spatial, mode="nearest", impl=serving), images)
    fill = 1 if dtype == torch.bool else 7
    kept = {"mode": "nearest", "padding_mode": "constant", "fill": fill, "impl": serving}
    shifted = crop(images, whole + 1, spatial, **kept)
    inner = (..., *[slice(1, None)] * axes)
    assert torch.equal(shifted[(..., *[slice(0, -1)] * axes)], images[inner])
    assert (shifted[..., -1] == fill).all()


@pytest.mark.parametrize("axes", [1, 3])
def test_a_box_that_is_not_finite_harms_itself_alone(serving, axes, generator):
    spatial = (5, 6, 7)[-axes:]
    images = torch.rand(1, 2, *spatial, generator=generator, dtype=f64, requires_grad=True)
    good = torch.tensor([0.3] * axes + [4.1] * axes, dtype=f64)
    for place, wrong in itertools.product(range(2 * axes), (torch.nan, torch.inf, 1e200)):
        bad = good.clone()
        bad[place] = wrong
        boxes = torch.stack([good, bad])[None].requires_grad_()
        value = crop(images, boxes, 3, impl=serving)
        assert value[0, 1].isnan().all()
        torch.testing.assert_close(value[0, 0], crop(images, good, 3, impl=serving)[0], rtol=0, atol=1e-15)
        by_images, by_boxes = torch.autograd.grad(value.nan_to_num().sum(), (images, boxes))
        alone = torch.autograd.grad(crop(images, good, 3, impl=serving).sum(), images)[0]
        torch.testing.assert_close(by_images, alone, rtol=0, atol=1e-14)
        assert by_boxes[0, 1].isnan().all()
        assert by_boxes[0, 0].isfinite().all()
        assert (crop(images, boxes.detach(), 3, mode="nearest", impl=serving)[0, 1]).isnan().all()
        assert (crop(images.to(torch.int32), boxes.detach(), 3, mode="nearest", impl=serving)[0, 1] == 0).all()


@needs_kernels
@pytest.mark.parametrize("mode", ["bilinear", "lanczos3", "gaussian", "area"])
@pytest.mark.parametrize("axes", [1, 3])
def test_wild_boxes(axes, mode, generator):
    """Far, huge, of no size: as the reference has them."""
    spatial = (4, 5, 6)[-axes:]
    images = torch.rand(1, 2, *spatial, generator=generator, dtype=f64)
    for lo, hi in [(-1e9, 1e9), (1e12, 1e12 + 3), (2.25, 2.25), (-50.0, -40.0), (1e6, -1e6)]:
        box = torch.tensor([lo] * axes + [hi] * axes, dtype=f64)
        for padding_mode in PADDINGS:
            found = [
                crop(images, box, (3, 2, 4)[-axes:], impl=impl, **options(mode, True, padding_mode))
                for impl in ("cpu", "reference")
            ]
            torch.testing.assert_close(*found, rtol=0, atol=1e-10)


@pytest.mark.parametrize("axes", [1, 3])
def test_nothing_of_nothing(serving, axes):
    size, spatial = (2, 3, 4)[-axes:], (4, 5, 6)[-axes:]
    for count, channels, rows in [(0, 2, 0), (2, 0, 1), (2, 2, 0)]:
        images = torch.zeros(count, channels, *spatial, requires_grad=True)
        boxes = torch.zeros(count, rows, 2 * axes, requires_grad=True)
        value = crop(images, boxes, size, impl=serving)
        assert value.shape == (count, rows, channels, *size)
        by_images, by_boxes = torch.autograd.grad(value.sum(), (images, boxes), materialize_grads=True)
        assert by_images.shape == images.shape
        assert not by_images.any()
        assert not by_boxes.any()


@pytest.mark.parametrize("axes", [1, 3])
def test_coverage_is_a_product_of_axes(serving, axes):
    box = torch.tensor([-2.0, -1.0, 2.5, 6.0, 4.0, 5.0], dtype=f64)[[0, 3] if axes == 1 else slice(None)]
    found = coverage(box, (5, 4, 8)[-axes:], 4, impl=serving)
    parts = [coverage(box[[i, i + axes]], n, 4, impl=serving) for i, n in enumerate((5, 4, 8)[-axes:][::-1])]
    expected = parts[0]
    for part in parts[1:]:
        expected = part.reshape(-1, *[1] * expected.ndim) * expected
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert 0 < float(found.mean()) < 1


BOX = st.lists(st.floats(-12, 24, allow_nan=False).map(lambda v: round(v * 4) / 4 + 0.03), min_size=6, max_size=6)


@needs_kernels
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    spatial=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    size=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    box=BOX,
    channels=st.sampled_from([1, 2, 9]),
    filter_=st.sampled_from(FILTERS),
    padding_mode=st.sampled_from(PADDINGS),
    align_corners=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    axes=st.sampled_from([1, 3]),
)
def test_fuzz(spatial, size, box, channels, filter_, padding_mode, align_corners, layout, axes):
    spatial, size, box = spatial[:axes], size[:axes], box[: 2 * axes]
    images = torch.rand(1, channels, *spatial, generator=torch.Generator().manual_seed(channels), dtype=f64)
    kept = options(*filter_, padding_mode, align_corners=align_corners)
    found = []
    for impl in ("cpu", "reference"):
        i = LAYOUTS[layout](images).detach().requires_grad_()
        b = torch.tensor([box], dtype=f64, requires_grad=True)
        value = crop(i, b, size, impl=impl, **kept)
        weight = torch.linspace(-1, 2, value.numel(), dtype=f64).reshape(value.shape)
        found.append((value.detach(), *torch.autograd.grad(value, (i, b), weight)))
    for got, want in zip(*found, strict=True):
        scale = max(1.0, float(want.abs().max())) * value.numel() ** 0.5
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * scale)


# --- derivatives of every order, transforms, compilers ----------------------------------------------------------------

BOXES = {1: [[1.3, 6.2], [7.1, 0.4]], 3: [[0.7, 1.2, 0.4, 4.1, 3.3, 3.6], [3.2, -0.6, 0.3, 0.9, 3.9, 5.1]]}


def smooth(axes, generator):
    """Images and boxes away from kinks, a crop with every derivative."""
    images = torch.rand(1, 1, *(8,) if axes == 1 else (4, 4, 5), generator=generator, dtype=f64, requires_grad=True)
    boxes = torch.tensor([BOXES[axes]], dtype=f64, requires_grad=True)
    return images, boxes, {"mode": "bicubic", "padding_mode": "constant", "fill": 0.25}


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("axes", [1, 3])
def test_gradcheck(serving, axes, antialias, generator):
    images, boxes, kept = smooth(axes, generator)
    boxes = boxes[:, :1].detach().requires_grad_()

    def function(i, b):
        return crop(i, b, (2, 1, 2)[-axes:], antialias=antialias, impl=serving, **kept)

    assert torch.autograd.gradcheck(function, (images, boxes))
    assert torch.autograd.gradgradcheck(function, (images, boxes))


@pytest.mark.parametrize("axes", [1, 3])
def test_second_order_is_the_reference(serving, axes, generator):
    images, boxes, kept = smooth(axes, generator)

    def found(impl):
        value = crop(images, boxes, 3, impl=impl, **kept)
        first = torch.autograd.grad(value.square().sum(), (images, boxes), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (images, boxes))

    for got, want in zip(found(serving), found("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-11)
        assert (want != 0).any()


@pytest.mark.parametrize("axes", [1, 3])
def test_transforms(serving, axes, generator):
    images, boxes, kept = smooth(axes, generator)
    image, box = images[0].detach(), boxes[0, 0].detach()

    def function(b):
        return crop(image, b, 3, impl=serving, **kept)

    jacobian = crop_with_jacobian(image, box, 3, impl=serving, **kept).jacobian
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(function)(box), jacobian, rtol=0, atol=1e-11)
    stacked = torch.func.vmap(lambda i, b: crop(i, b, 3, impl=serving, **kept))(
        images.expand(2, -1, *image.shape[1:]), boxes[0]
    )
    torch.testing.assert_close(stacked, crop(image, boxes[0], 3, impl=serving, **kept), rtol=0, atol=1e-13)
    plain = torch.autograd.functional.hessian(lambda b: function(b).square().sum(), box)
    torch.testing.assert_close(
        torch.func.hessian(lambda b: function(b).square().sum())(box), plain, rtol=1e-11, atol=1e-10
    )


@needs_kernels
@pytest.mark.parametrize("axes", [1, 3])
def test_compiled_with_other_sizes(axes, generator):
    def function(i, b, n):
        return crop(i, b, n, impl="cpu", mode="bicubic")

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, n in (((9, 8, 11), 3), ((7, 12, 6), 5)):
        images = torch.rand(2, 3, *shape[-axes:], generator=generator, dtype=f64)
        if axes == 3:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        images.requires_grad_()
        boxes = (torch.rand(2, 2 * axes, generator=generator, dtype=f64) * 6).requires_grad_()
        value, expected = compiled(images, boxes, n), function(images, boxes, n)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
        assert value.stride() == expected.stride()
        pair = [torch.autograd.grad(v.square().sum(), (images, boxes)) for v in (value, expected)]
        for got, want in zip(*pair, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    torch._dynamo.reset()


@needs_kernels
@pytest.mark.parametrize("axes", [1, 3])
def test_exported(axes, generator):
    class Module(torch.nn.Module):
        def forward(self, i, b):
            return crop(i, b, 3)

    images = torch.rand(2, 3, *(9, 8, 11)[-axes:], generator=generator)
    boxes = torch.rand(2, 2 * axes, generator=generator) * 6
    program = torch.export.export(Module(), (images, boxes))
    assert torch.equal(program.module()(images, boxes), crop(images, boxes, 3))


@needs_kernels
@pytest.mark.parametrize("axes", [1, 3])
def test_operators_pass_opcheck(axes, generator):
    images, boxes, _ = smooth(axes, generator)
    size, rest = [3, 2, 4][-axes:], ("bicubic", True, "border", [0.0], 0.5, False)
    boxes = boxes[0].detach().requires_grad_()
    grad = torch.rand(2, 1, *size, generator=generator, dtype=f64)
    ops = torch.ops.diffcrop
    torch.library.opcheck(ops.crop.default, (images, boxes, None, size, axes == 3, *rest))
    given = (grad, boxes.detach(), None, list(images.shape), axes == 3, *rest)
    torch.library.opcheck(ops.crop_grad_images.default, given)
    torch.library.opcheck(ops.crop_grad_boxes.default, (grad, images.detach(), boxes.detach(), None, *rest))
    torch.library.opcheck(ops.crop_jacobian.default, (images.detach(), boxes.detach(), None, size, *rest))


@needs_kernels
def test_operators_refuse_what_does_not_fit():
    """Also where they are called without the checks of the public functions."""
    rest = ("bilinear", False, "zeros", [0.0], 0.5, False)
    for images, boxes, size in [
        (torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 4), [2, 2, 2]),
        (torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 6), [2, 2]),
        (torch.rand(1, 1, 4, 4), torch.zeros(1, 6), [2, 2]),
        (torch.rand(1, 1, 4), torch.zeros(1, 4), [2]),
        (torch.rand(1, 1, 4, 0, 4), torch.zeros(1, 6), [2, 2, 2]),
        (torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 6), [2, 0, 2]),
        (torch.rand(1, 1, 4, 4, 4, 4), torch.zeros(1, 8), [2, 2, 2, 2]),
    ]:
        with pytest.raises(RuntimeError, match="diffcrop: "):
            torch.ops.diffcrop.crop(images, boxes, None, size, False, *rest)


@needs_kernels
@pytest.mark.parametrize("axes", [1, 3])
def test_kernels_are_chosen_and_normal_equations_are_the_reference(axes, generator):
    """Of normal equations the kernels are those of images: what names them is refused."""
    images, boxes, kept = smooth(axes, generator)
    with torch.no_grad():
        assert torch.equal(crop(images, boxes, 3, **kept), crop(images, boxes, 3, impl="cpu", **kept))
        targets = torch.rand(1, 2, 1, *[3] * axes, generator=generator, dtype=f64)
        found = [diffcrop.normal_equations(images, boxes, targets, impl=impl, **kept) for impl in (None, "reference")]
        for given in (images, [*images]):
            with pytest.raises(
                ValueError, match=rf"impl='cpu' serves images .* of {2 * axes} numbers; leave impl=None"
            ):
                diffcrop.normal_equations(given, boxes, targets, impl="cpu", **kept)
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, f64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axes", [1, 3])
def test_same_bits_for_any_number_of_threads(axes, dtype, generator):
    spatial, size = ((37, 70, 65), (33, 40, 36)) if axes == 3 else ((5000,), (900,))
    before = torch.get_num_threads()
    images = torch.rand(2, 3, *spatial, generator=generator, dtype=f64).to(dtype)
    corners = torch.rand(2, 3, 2, axes, generator=generator, dtype=f64) * torch.tensor(spatial[::-1])
    boxes = corners.flatten(-2).requires_grad_()
    cotangent = torch.rand(2, 3, 3, *size, generator=generator, dtype=f64).to(dtype)
    try:
        for (mode, antialias), layout in itertools.product(
            [("bilinear", False), ("bilinear", True), ("bicubic", True)], ("contiguous", "channels last")
        ):
            source = LAYOUTS[layout](images).detach().requires_grad_()
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                value = crop(source, boxes, size, mode=mode, antialias=antialias, impl="cpu")
                results.append((value, *torch.autograd.grad(value, (source, boxes), cotangent)))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), (mode, layout)
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, f64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", [0.3, 1.9, 3.6])
@pytest.mark.parametrize("axes", [1, 3])
def test_no_other_pixel_is_read(axes, reduction, dtype, generator):
    """Pixels without a weight may be anything: crops and box gradients are the same bits."""
    size = (4, 3, 21)[-axes:]
    spatial = [int(n * reduction) + 7 for n in size]
    extent = torch.tensor([n * reduction for n in size[::-1]])
    corner = torch.rand(4, axes, generator=generator) * 8 - 4
    for mode, layout in itertools.product(("bilinear", "bicubic"), ("contiguous", "channels last", "sliced")):
        kept = {"mode": mode, "antialias": False, "padding_mode": "zeros"}
        images = torch.rand(1, 3, *spatial, generator=generator).to(dtype)
        for box in torch.cat([corner, corner + extent], 1):
            probe = images.double().requires_grad_()
            value = crop(probe, box.double(), size, impl="reference", **kept)
            (weights,) = torch.autograd.grad(value.sum(), probe)
            found = []
            for pixels in (images, torch.where(weights != 0, images, torch.nan)):
                source, wanted = LAYOUTS[layout](pixels), box.clone().requires_grad_()
                value = crop(source, wanted, size, impl="cpu", **kept)
                cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(dtype)
                found.append((value.detach(), *torch.autograd.grad(value, wanted, cotangent)))
            assert all(part.isfinite().all() for part in found[1]), (mode, layout, box)
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), (mode, layout, box)
