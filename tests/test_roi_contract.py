"""What `roi_align` promises beside its values: derivatives, the exact mean, layouts, boxes that are none, errors."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import diffcrop
import naive_roi
from diffcrop import roi_align
from diffcrop._ops import implementations

F64 = torch.float64
IMPLS = [name for name in ("cpu", "reference") if implementations()[name] is None]
# Away from all kinks and jumps: inside, across the edges, smaller than a pixel, mirrored.
SMOOTH = torch.tensor(
    [
        [0, 0.63, 1.17, 4.91, 3.29],
        [1, -1.23, -0.61, 2.77, 6.13],
        [1, 2.13, 2.21, 2.89, 2.82],
        [0, 4.63, 0.47, 1.31, 3.7],
    ],
    dtype=F64,
)


@pytest.fixture(params=IMPLS)
def impl(request):
    return request.param


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{"sampling_ratio": 2}, {"sampling_ratio": -1}, {"mode": "exact"}])
@pytest.mark.parametrize("aligned", [True, False])
def test_first_and_second_derivatives(impl, mode, aligned, generator):
    images = torch.rand(2, 2, 4, 5, generator=generator, dtype=F64, requires_grad=True)
    rois = SMOOTH.clone().requires_grad_()

    def function(i, r):
        return roi_align(i, torch.cat([SMOOTH[:, :1], r[:, 1:]], 1), (2, 3), 1.0, aligned=aligned, impl=impl, **mode)

    assert gradcheck(function, (images, rois), check_forward_ad=True)
    assert gradgradcheck(function, (images, rois))


def test_second_derivatives_of_volumes(generator):
    volumes = torch.rand(1, 1, 3, 4, 4, generator=generator, dtype=F64, requires_grad=True)
    boxes = torch.tensor([[0.23, 0.61, 0.47, 3.31, 3.13, 2.61]], dtype=F64, requires_grad=True)
    for mode in ({"sampling_ratio": 2}, {"mode": "exact"}):
        function = lambda v, b, mode=mode: roi_align(v, [b], 2, aligned=True, **mode)  # noqa: E731
        assert gradcheck(function, (volumes, boxes))
        assert gradgradcheck(function, (volumes, boxes))


@pytest.mark.parametrize("ratio", [1, 2, -1])
def test_the_derivative_at_a_kink_is_the_right_hand_one(impl, ratio, generator):
    """A box whose samples lie on pixels: moved to the right a little, not to the left."""
    images = torch.rand(1, 3, 8, 8, generator=generator, dtype=F64)
    kinks = 0
    for box in ([2.0, 2, 5, 5], [1.0, 3, 7, 6], [1 / 3, 1, 3 + 1 / 3, 4]):
        box = torch.tensor([box], dtype=F64, requires_grad=True)
        value = roi_align(images, [box], 3, 1.0, ratio, True, impl=impl).sum()
        (slope,) = torch.autograd.grad(value, box)
        step = 1e-6

        def moved(by, box=box):
            return roi_align(images, [box.detach() + by], 3, 1.0, ratio, True, impl=impl).sum()

        for axis in (0, 1):
            shift = torch.zeros(4, dtype=F64)
            shift[axis] = shift[axis + 2] = step
            right, left = (moved(shift) - value) / step, (value - moved(-shift)) / step
            found = float(slope[0, axis] + slope[0, axis + 2])
            assert found == pytest.approx(float(right.detach()), abs=1e-5)
            kinks += abs(float(left.detach()) - found) > 1e-3
    assert kinks >= 2 or ratio == 2


def test_the_gradient_knows_nothing_of_jumps(impl):
    """A sample that leaves [-1, N] takes its value with it; a bin that gets a sample more jumps."""
    ones = torch.ones(1, 1, 4, 4, dtype=F64)
    for edge in (-1.0, 4.0):
        box = torch.tensor([[0, edge, 1, edge + 1, 2]], dtype=F64, requires_grad=True)
        inside = roi_align(ones, box, 1, 1.0, 1, True, impl=impl)
        assert inside.item() == 1
        assert torch.autograd.grad(inside.sum(), box)[0].abs().sum() == 0
        outward = torch.tensor([0, 1, 0, 1, 0]) * math.copysign(1e-9, edge)
        assert roi_align(ones, box.detach() + outward, 1, 1.0, 1, True, impl=impl).item() == 0


@pytest.mark.parametrize("impl", IMPLS)
def test_a_side_that_is_clamped_has_no_gradient(impl, generator):
    images = torch.rand(1, 2, 6, 6, generator=generator, dtype=F64)
    box = torch.tensor([[0, 1.3, 2.1, 1.9, 4.3]], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(roi_align(images, box, 2, 1.0, 2, False, impl=impl).square().sum(), box)
    assert slope[0, 3] == 0
    assert (slope[0, [1, 2, 4]] != 0).all()
    longer = box.detach() + torch.tensor([0, 0, 0, 0.39, 0])
    assert torch.equal(*(roi_align(images, b, 2, 1.0, 2, False, impl=impl) for b in (box.detach(), longer)))


def test_descent_finds_a_box():
    """What the gradient is for: the box of a template, from 20 % away."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.stack([torch.exp(-((x - 15) ** 2 + (y - 12) ** 2) / 40), torch.sin(x / 5) * torch.cos(y / 6)])[None]
    target = roi_align(image, [torch.tensor([[8.0, 6, 22, 20]])], 7, 1.0, 2, True)
    box = torch.tensor([[10.5, 4.0, 24.0, 23.0]], requires_grad=True)
    optimizer = torch.optim.Adam([box], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        (roi_align(image, [box], 7, 1.0, 2, True) - target).square().mean().backward()
        optimizer.step()
    assert (box - torch.tensor([[8.0, 6, 22, 20]])).abs().max() < 0.05


# --- the exact mean ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [(0.6, 1.2, 4.9, 5.3), (-2.2, -1.3, 9.1, 3.7), (3.1, 2.2, 3.4, 2.5), (5.2, 3.9, 1.1, 0.3)]
)
def test_exact_is_the_mean_over_each_bin(impl, box, generator):
    plane = torch.rand(5, 6, generator=generator, dtype=F64)
    cotangent = torch.rand(2, 3, generator=generator, dtype=F64)
    right, by_box = naive_roi.precise(plane.numpy(), box, (2, 3), cotangent.numpy())
    roi = torch.tensor([box], dtype=F64, requires_grad=True)
    found = roi_align(plane[None, None], [roi], (2, 3), aligned=True, mode="exact", impl=impl)
    torch.testing.assert_close(found[0, 0].detach(), torch.from_numpy(right), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(found, roi, cotangent[None, None])
    torch.testing.assert_close(slope[0], torch.from_numpy(by_box), rtol=0, atol=1e-11)


def test_samples_tend_to_the_exact_mean(impl, generator):
    images = torch.rand(1, 3, 9, 9, generator=generator, dtype=F64)
    box = [torch.tensor([[1.2, 0.9, 7.7, 8.1]], dtype=F64)]
    exact = roi_align(images, box, 3, aligned=True, mode="exact", impl=impl)
    errors = [
        (roi_align(images, box, 3, 1.0, g, True, impl=impl) - exact).abs().max().item() for g in (4, 40, 400, 4000)
    ]
    assert errors[0] > 1e-4
    assert errors[1] < errors[0] / 20
    assert errors[3] < 1e-7
    # Whatever their number: in time that does not depend on it.
    many = roi_align(images, box, 3, 1.0, 10**9, True, impl=impl)
    torch.testing.assert_close(many, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [1e-2, 1e-6, 1e-10, 1e-14, 0.0])
def test_a_narrow_bin_is_a_point(impl, width, generator):
    """No digit is lost on the way to it, in the value or in the derivatives."""
    images = torch.rand(1, 2, 6, 6, generator=generator, dtype=F64)
    point = torch.tensor([2.8, 3.4])
    half = width / 2
    box = torch.cat([point - half, point + half])[None].to(F64).requires_grad_()
    value = roi_align(images, [box], 1, aligned=True, mode="exact", impl=impl)
    right = roi_align(images, [torch.cat([point - 0.1, point + 0.1])[None].to(F64)], 1, 1.0, 1, True, impl=impl)
    torch.testing.assert_close(value.detach(), right, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), box)
    cell = images[0, :, 2:4, 2:4].sum(0)
    x, y = (point - 2.5).tolist()
    by_x = (1 - y) * (cell[0, 1] - cell[0, 0]) + y * (cell[1, 1] - cell[1, 0])
    by_y = (1 - x) * (cell[1, 0] - cell[0, 0]) + x * (cell[1, 1] - cell[0, 1])
    torch.testing.assert_close(slope[0], torch.stack([by_x, by_y, by_x, by_y]) / 2, rtol=0, atol=1e-7)


def test_the_convention_of_precise_roi_pooling(impl, generator):
    """Without `aligned` positions are half a pixel farther, and no side is clamped."""
    images = torch.rand(1, 2, 6, 6, generator=generator, dtype=F64)
    box = torch.tensor([[1.3, 2.1, 1.9, 4.3]], dtype=F64)
    old = roi_align(images, [box], 2, mode="exact", impl=impl)
    assert torch.equal(old, roi_align(images, [box + 0.5], 2, aligned=True, mode="exact", impl=impl))


def test_mirrored_boxes(impl, generator):
    images = torch.rand(1, 2, 6, 6, generator=generator, dtype=F64)
    box, back = (torch.tensor([b], dtype=F64) for b in ([1.3, 2.1, 4.9, 4.3], [4.9, 2.1, 1.3, 4.3]))
    for mode in ({"mode": "exact"}, {"sampling_ratio": 3}):
        one, other = (roi_align(images, [b], (2, 3), aligned=True, impl=impl, **mode) for b in (box, back))
        torch.testing.assert_close(one.flip(-1), other, rtol=0, atol=1e-15)
    assert (roi_align(images, [back], (2, 3), aligned=True, impl=impl) == 0).all()


# --- boxes that are none, and boxes from anywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_box_that_is_not_finite_is_alone(impl, layout, bad, generator):
    images = torch.rand(2, 17, 6, 7, generator=generator, dtype=F64).to(memory_format=layout).requires_grad_()
    rois = SMOOTH.repeat(3, 1)
    broken = rois.clone()
    broken[5, 3] = bad
    keep = torch.arange(len(rois)) != 5
    cotangent = torch.rand(len(rois), 17, 3, 3, generator=generator, dtype=F64)

    def both(rois, cotangent):
        rois = rois.clone().requires_grad_()
        value = roi_align(images, rois, 3, 1.0, 2, True, impl=impl)
        return value.detach(), *torch.autograd.grad(value, (images, rois), cotangent)

    value, by_image, by_rois = both(broken, cotangent)
    right, right_image, right_rois = both(rois[keep], cotangent[keep])
    assert value[5].isnan().all()
    assert by_rois[5, 1:].isnan().all()
    torch.testing.assert_close(value[keep], right, rtol=0, atol=1e-14)
    torch.testing.assert_close(by_rois[keep], right_rois, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_image, right_image, rtol=0, atol=1e-13)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9, 1e14, 1e30, 1e90])
@pytest.mark.parametrize("ratio", [2, -1])
def test_wild_boxes_are_cheap_and_finite(impl, far, ratio, generator):
    """Where adaptive sampling would take a billion samples; the mean over all is that of a plane of zeros."""
    images = torch.rand(1, 3, 32, 32, generator=generator, dtype=F64, requires_grad=True)
    boxes = torch.tensor([[-far, -far, far, 1.5 * far], [far, far, far + 10, far + 10], [-far, 3, far, 20]], dtype=F64)
    boxes.requires_grad_()
    value = roi_align(images, [boxes], 7, 1.0, ratio, True, impl=impl)
    slopes = torch.autograd.grad(value.sum(), (images, boxes))
    assert all(t.isfinite().all() for t in (value, *slopes))
    assert (value[1] == 0).all()
    assert value.abs().max() <= 1 + 1e-12


def test_the_mean_over_a_wild_box_written_down(impl):
    """Of ten million samples a pixel apart five lie in [-1, 4], and with both ends six."""
    line = torch.ones(1, 1, 1, 4, dtype=F64)
    length = 1e7
    for shift, count in ((0.3, 5), (0.0, 6)):
        box = torch.tensor([[shift - length / 2, 0, shift + length / 2, 1]], dtype=F64)
        value = roi_align(line, [box], 1, aligned=True, impl=impl).item()
        assert value == pytest.approx(count / length, rel=1e-6, abs=0)


# --- forms of the arguments -------------------------------------------------------------------------------------------


def test_lists_are_rows(impl, generator):
    images = torch.rand(3, 2, 8, 9, generator=generator)
    lists = [torch.rand(n, 4, generator=generator) * 6 for n in (2, 0, 3)]
    rois = torch.cat([torch.tensor([[0.0], [0], [2], [2], [2]]), torch.cat(lists)], 1)
    assert torch.equal(*(roi_align(images, b, 3, 0.5, 2, impl=impl) for b in (lists, rois)))
    none = roi_align(images, [torch.zeros(0, 4)] * 3, 3, impl=impl)
    assert none.shape == (0, 2, 3, 3)
    assert roi_align(images[:0], [], 3, impl=impl).shape == (0, 2, 3, 3)
    assert roi_align(images[:0], torch.zeros(0, 5), 3, impl=impl).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int32])
def test_dtypes(impl, dtype, generator):
    images = (torch.rand(2, 20, 12, 13, generator=generator, dtype=F64) * 200).to(dtype)
    rois = torch.tensor([[0, 1.25, 2.5, 9.75, 8.0], [1, -3, 0.5, 20, 10]])
    right = roi_align(images.double(), rois.double(), 5, 1.0, 2, True, impl=impl)
    for form in (rois, rois.double(), rois.half()):
        found = roi_align(images, form, 5, 1.0, 2, True, impl=impl)
        assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), right, rtol=2 * max(eps, 2**-22), atol=1e-4)
    whole = rois.round()
    assert torch.equal(*(roi_align(images, r, 5, 1.0, 2, impl=impl) for r in (whole, whole.int())))


@pytest.mark.parametrize("channels", [3, 40])
def test_layouts(impl, channels, generator):
    """The result has the layout of the input, the gradient as well; any strides give the same numbers."""
    rois = torch.cat(
        [torch.randint(0, 2, (40, 1), generator=generator), torch.rand(40, 4, generator=generator) * 16], 1
    )
    base = torch.rand(2, channels, 16, 18, generator=generator)
    last = base.contiguous(memory_format=torch.channels_last)
    strided = torch.rand(2, 2 * channels, 16, 36, generator=generator)[:, ::2, :, ::2].copy_(base)
    results = []
    for images in (base, last, strided):
        images = images.detach().requires_grad_()
        value = roi_align(images, rois, 4, 1.0, 2, True, impl=impl)
        (slope,) = torch.autograd.grad(value.square().sum(), images)
        results.append((value.detach(), slope))
    assert results[0][0].is_contiguous()
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 40])
def test_the_same_bits_for_any_number_of_threads(channels, generator):
    rois = torch.cat(
        [torch.randint(0, 2, (60, 1), generator=generator), torch.rand(60, 4, generator=generator) * 30], 1
    )
    images = torch.rand(2, channels, 31, 33, generator=generator, requires_grad=True)
    rois.requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            value = roi_align(images, rois, 7, 1.0, 2, True)
            results.append((value, *torch.autograd.grad(value.sin().sum(), (images, rois))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("mode", [{"sampling_ratio": 2}, {}, {"mode": "exact"}])
def test_compiles(mode, generator):
    images = torch.rand(2, 20, 16, 18, generator=generator, requires_grad=True)
    rois = torch.cat([torch.tensor([[0.0], [1]]), torch.rand(2, 4, generator=generator) * 16], 1)

    def function(images, rois):
        return roi_align(images, rois, 5, 0.5, aligned=True, **mode).sin()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for count in (2, 1):
        some, results = rois[:count].clone().requires_grad_(), []
        for f in (compiled, function):
            value = f(images, some)
            results.append((value, *torch.autograd.grad(value.sum(), (images, some))))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_operators_keep_their_rules(generator):
    """PyTorch's own checks of a registered operator, with these filters."""
    if "cpu" not in IMPLS:
        pytest.skip("the kernels are not there")
    images = torch.rand(2, 3, 8, 9, generator=generator, requires_grad=True)
    boxes = SMOOTH[:, 1:].clone().requires_grad_()
    index = SMOOTH[:, 0].long()
    for mode, padding, parameter in (("samples", "roi", 2.0), ("integral", "zeros", 0.0)):
        options = (mode, True, padding, [0.0], parameter, False)
        torch.library.opcheck(torch.ops.diffcrop.crop.default, (images, boxes, index, [3, 2], False, *options))
        assert gradcheck(
            lambda i, b, o=options: torch.ops.diffcrop.crop(i, b, index, [3, 2], False, *o),
            (images.detach().double().requires_grad_(), boxes),
        )


# --- errors -----------------------------------------------------------------------------------------------------------

IMAGE, BOX = torch.zeros(2, 3, 8, 8), torch.tensor([[0.0, 1, 1, 4, 4]])
ERRORS = [
    ({"input": IMAGE.numpy()}, TypeError, "input must be a tensor of shape (B, C, H, W)"),
    ({"input": IMAGE[0]}, ValueError, "a single image is a batch of one: input[None]; signals are not served"),
    ({"input": IMAGE.to(torch.complex64)}, TypeError, "input must be floating-point"),
    ({"input": torch.zeros(2, 3, 0, 8)}, ValueError, "input must have at least one pixel"),
    ({"boxes": BOX.tolist()}, TypeError, "boxes"),
    ({"boxes": 3}, TypeError, "boxes must be a tensor (K, 5) with rows (index, x0, y0, x1, y1)"),
    ({"boxes": BOX[:, 1:]}, ValueError, "without the column of indices pass a list"),
    ({"boxes": BOX[0]}, ValueError, "boxes must have shape (K, 5)"),
    ({"boxes": [BOX[:, 1:]]}, ValueError, "one tensor per image, got 1 for 2 images"),
    ({"boxes": [BOX, BOX]}, ValueError, "boxes[0] must have 2 (signals), 4 (images)"),
    ({"boxes": [BOX[:, 1:3]] * 2}, ValueError, "boxes[0] must have 4 numbers"),
    ({"boxes": BOX.to(torch.complex64)}, TypeError, "boxes must hold real numbers"),
    ({"boxes": BOX + torch.tensor([2.0, 0, 0, 0, 0])}, ValueError, "whole numbers in 0..1, got 2 in row 0 (1 of 1"),
    ({"boxes": BOX - torch.tensor([1.0, 0, 0, 0, 0])}, ValueError, "got -1 in row 0"),
    ({"boxes": BOX + torch.tensor([0.5, 0, 0, 0, 0])}, ValueError, "got 0.5 in row 0"),
    ({"boxes": BOX * math.nan}, ValueError, "got nan in row 0"),
    ({"input": IMAGE[:0]}, ValueError, "an empty batch has none of"),
    ({"boxes": BOX.to("meta")}, ValueError, "input and boxes must be on the same device"),
    ({"output_size": 0}, ValueError, "output_size must be at least 1"),
    ({"output_size": (3, 4, 5)}, ValueError, "output_size must be an int or (h, w)"),
    ({"output_size": 2.5}, TypeError, "output_size"),
    ({"spatial_scale": 0.0}, ValueError, "spatial_scale must be finite and more than 0"),
    ({"spatial_scale": math.inf}, ValueError, "spatial_scale must be finite"),
    ({"spatial_scale": "1/16"}, TypeError, "spatial_scale must be a number"),
    ({"spatial_scale": 10**400}, ValueError, "spatial_scale must be finite"),
    ({"sampling_ratio": 2**31}, ValueError, "sampling_ratio must be below 2**31, got 2147483648"),
    ({"sampling_ratio": 1.5}, TypeError, "sampling_ratio must be an int"),
    ({"sampling_ratio": True}, TypeError, "sampling_ratio must be an int"),
    ({"aligned": 1}, TypeError, "aligned must be True or False"),
    ({"mode": "integral"}, ValueError, "did you mean 'exact'?"),
    ({"mode": None}, TypeError, "mode must be one of 'sample', 'exact'"),
    ({"mode": "exact", "sampling_ratio": 2}, ValueError, "sampling_ratio belongs to mode='sample'"),
    ({"impl": "triton"}, ValueError, "impl='triton' does not serve roi_align"),
    ({"impl": "cuda"}, ValueError, "impl must be one of 'cpu', 'reference', got 'cuda'"),
    ({"boxes": [BOX] * 2}, ValueError, "rows (index, ...) are one tensor and no list: pass torch.cat(boxes); rotated"),
    ({"input": [*IMAGE], "boxes": BOX.to("meta")}, ValueError, "input and boxes must be on the same device"),
    ({"input": [*IMAGE], "boxes": [BOX[:, 1:].to("meta")] * 2}, ValueError, "input and boxes[0] must be on the same"),
    ({"input": [IMAGE[0], IMAGE[1, :1]]}, ValueError, "the input of a list must agree in channels"),
    ({"output_size": 2**31}, ValueError, "output_size must be below 2**31 along every axis"),
    ({"output_size": IMAGE}, TypeError, "of an image pass its shape[-2:]"),
    ({"input": torch.zeros(1, 1, 4, 4, 4), "boxes": BOX}, ValueError, "(index, x0, y0, z0, x1, y1, z1)"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "kind", "text"), ERRORS, ids=lambda v: str(v)[:40] if isinstance(v, str) else "")
def test_errors(wrong, kind, text):
    given = {"input": IMAGE, "boxes": BOX, "output_size": 3, **wrong}
    with pytest.raises(kind, match=re.escape(text)):
        roi_align(**given)


def test_an_index_that_is_not_looked_at_makes_a_nan_box(generator):
    """Under a transform values may not be seen."""
    images = torch.rand(2, 3, 8, 8, generator=generator)
    rois = torch.tensor([[0.0, 1, 1, 4, 4], [2, 1, 1, 4, 4], [-1, 1, 1, 4, 4]])
    found = torch.func.vmap(lambda r: roi_align(images, r[None], 2, aligned=True))(rois)
    assert found[0].isfinite().all()
    assert found[1:].isnan().all()


def test_torchvisions_order_of_arguments():
    import inspect

    parameters = list(inspect.signature(diffcrop.roi_align).parameters.values())
    names = ["input", "boxes", "output_size", "spatial_scale", "sampling_ratio", "aligned"]
    assert [p.name for p in parameters[:6]] == names
    assert [p.default for p in parameters[3:6]] == [1.0, -1, False]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[6:])
