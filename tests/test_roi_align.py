"""`roi_align` against its definition in plain loops, onnxruntime's operator, values by hand, difference quotients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import diffcrop
import naive_roi
from diffcrop import roi_align

F64 = torch.float64
IMPLS = [name for name in ("cpu", "reference") if diffcrop.implementations()[name] is None]


@pytest.fixture(params=IMPLS)
def impl(request):
    return request.param


def random_rois(count, batch, shape, generator, *, mirrored=True):
    """(count, 5), float64: from a third of a pixel to twice the image, inside and across its edges."""
    h, w = shape
    extent = torch.tensor([w, h], dtype=F64)
    side = torch.rand(count, 2, generator=generator, dtype=F64).mul(3.5).sub(1).exp() * extent / 6
    if mirrored:
        side = torch.where(torch.rand(count, 2, generator=generator) < 0.2, -side, side)
    middle = torch.rand(count, 2, generator=generator, dtype=F64) * (extent + 4) - 2
    index = torch.randint(0, batch, (count, 1), generator=generator).to(F64)
    return torch.cat([index, middle - side / 2, middle + side / 2], 1)


def gradients(images, rois, size, cotangent, *arguments, **keywords):
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    rois = rois.clone().requires_grad_()
    result = roi_align(images, rois, size, *arguments, **keywords)
    return result.detach(), *torch.autograd.grad(result, (images, rois), cotangent)


# --- against the definition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 3, 0, -1])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(9, 11), (1, 6), (2, 1), (17, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_definition(impl, ratio, aligned, shape, layout, generator):
    """Values and both gradients, for boxes anywhere, some mirrored."""
    images = torch.randn(3, 2, *shape, generator=generator, dtype=F64).to(memory_format=layout)
    rois = random_rois(7, 3, shape, generator)
    rois[:, 1:] *= 4
    cotangent = torch.randn(7, 2, 3, 4, generator=generator, dtype=F64)
    found = gradients(images, rois, (3, 4), cotangent, 0.25, ratio, aligned, impl=impl)
    right = naive_roi.roi_align(images.numpy(), rois.numpy(), (3, 4), 0.25, ratio, aligned, cotangent.numpy())
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=0, atol=2e-12)
    assert min(shape) < 3 or (found[2][:, 1:] != 0).any(0).all()
    assert (found[2][:, 0] == 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("ratio", [2, -1])
def test_many_channels_and_larger_boxes(impl, ratio, layout, generator):
    """As feature maps have them, with every remainder of a vector's width among the sizes."""
    images = torch.randn(2, 35, 23, 31, generator=generator, dtype=F64).to(memory_format=layout)
    rois = random_rois(12, 2, (23, 31), generator)
    rois[0, 1:] = torch.tensor([-3.0, -2, 40, 30])
    cotangent = torch.randn(12, 35, 7, 7, generator=generator, dtype=F64)
    found = gradients(images, rois, 7, cotangent, 1.0, ratio, True, impl=impl)
    right = naive_roi.roi_align(images.numpy(), rois.numpy(), (7, 7), 1.0, ratio, True, cotangent.numpy())
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=0, atol=1e-11)


@pytest.mark.parametrize("ratio", [2, -1])
def test_volumes(ratio, generator):
    images = torch.randn(2, 2, 4, 5, 6, generator=generator, dtype=F64)
    rois = torch.tensor([[1, 0.3, -1.2, 0.6, 5.1, 3.9, 2.7], [0, 2.1, 1.3, -1.6, 3.0, 7.4, 4.4]], dtype=F64)
    cotangent = torch.randn(2, 2, 2, 3, 2, generator=generator, dtype=F64)
    found = gradients(images, rois, (2, 3, 2), cotangent, 1.0, ratio, True)
    right = naive_roi.roi_align(images.numpy(), rois.numpy(), (2, 3, 2), 1.0, ratio, True, cotangent.numpy())
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(other), rtol=0, atol=1e-12)
    listed = roi_align(images, [rois[1:, 1:], rois[:1, 1:]], (2, 3, 2), 1.0, ratio, True)
    assert torch.equal(listed.flip(0), found[0])


def test_values_written_down(impl):
    """A plane 5 y + x, of which every bin reads the middle; the published difference of `aligned` is half a pixel."""
    plane = torch.arange(25.0).reshape(1, 1, 5, 5)
    box = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]])
    rows, columns = torch.tensor([0.75, 1.25, 1.75, 2.25])[:, None], torch.tensor([0.75, 1.25, 1.75, 2.25])
    for ratio in (1, 2, -1):
        new = roi_align(plane, box, (4, 4), 1.0, ratio, True, impl=impl)
        torch.testing.assert_close(new[0, 0], 5 * rows + columns, rtol=0, atol=1e-6)
        old = roi_align(plane, box, (4, 4), 1.0, ratio, False, impl=impl)
        torch.testing.assert_close(old[0, 0], 5 * rows + columns + 3, rtol=0, atol=1e-6)
    assert new[0, 0].tolist()[0] == [4.5, 5.0, 5.5, 6.0]


def test_boundaries_written_down(impl):
    """One sample at a time: clamped inside [-1, N], zero beyond, both ends included."""
    line = torch.tensor([[[[3.0, 5.0, 11.0]]]], dtype=F64)
    at = torch.tensor([-1.001, -1.0, -0.5, 0.0, 0.25, 1.5, 2.0, 2.75, 3.0, 3.001], dtype=F64)
    rois = torch.zeros(len(at), 5, dtype=F64)
    rois[:, 1], rois[:, 3] = at, at + 1  # a sample half-way, read half a pixel to the left
    rois[:, 4] = 1
    found = roi_align(line, rois, 1, 1.0, 1, True, impl=impl).flatten()
    assert found.tolist() == [0, 3, 3, 3, 3.5, 8, 11, 11, 11, 0]


def test_adaptive_samples_written_down(impl):
    """Bins 1.5 long have two samples, those of exactly 2 two, and those of 2.1 three."""
    line = torch.tensor([0.0, 1, 4, 9, 16, 25, 36, 49], dtype=F64).reshape(1, 1, 1, 8)
    for size, count in ((0.7, 1), (1.0, 1), (1.5, 2), (2.0, 2), (2.1, 3)):
        box = torch.tensor([[0, 1.5, 0, 1.5 + size, 1]], dtype=F64)
        positions = 1 + size * (np.arange(count) + 0.5) / count
        mean = np.interp(positions, np.arange(8), line.flatten().numpy()).mean()
        assert float(roi_align(line, box, 1, 1.0, -1, True, impl=impl)) == pytest.approx(mean, abs=1e-12)
    empty = torch.tensor([[0, 2.0, 0, 2.0, 1], [0, 4.0, 0, 2.0, 1], [0, 1.0, 1, 2.0, 0]], dtype=F64)
    assert roi_align(line, empty, 1, 1.0, -1, True, impl=impl).flatten().tolist() == [0, 0, 0]
    assert roi_align(line, empty, 1, 1.0, 2, True, impl=impl).flatten().tolist() == [2.5, 6.5, 1.25]


# --- against onnxruntime ----------------------------------------------------------------------------------------------


def onnx_roi_align(images, rois, size, scale, ratio, aligned):
    """ONNX's operator, version 16, by onnxruntime: float32."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    names = {"x": onnx.TensorProto.FLOAT, "rois": onnx.TensorProto.FLOAT, "index": onnx.TensorProto.INT64}
    node = onnx.helper.make_node(
        "RoiAlign", list(names), ["y"], output_height=size[0], output_width=size[1], spatial_scale=scale,
        sampling_ratio=max(ratio, 0), mode="avg",
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
    )  # fmt: skip
    inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in names.items()]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "roi_align", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 16)], ir_version=8,
    )  # fmt: skip
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feed = {"x": images.numpy(), "rois": rois[:, 1:].numpy(), "index": rois[:, 0].long().numpy()}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("ratio", [1, 2, 4, -1])
@pytest.mark.parametrize("aligned", [True, False])
def test_equals_onnxruntime(impl, ratio, aligned, generator):
    images = torch.rand(3, 5, 25, 34, generator=generator)
    rois = random_rois(200, 3, (400, 544), generator, mirrored=False).float()
    size = (7, 5)
    right = onnx_roi_align(images, rois, size, 1 / 16, ratio, aligned)
    found = roi_align(images, rois, size, 1 / 16, ratio, aligned, impl=impl)
    assert (right != 0).float().mean() > 0.5
    torch.testing.assert_close(found, right, rtol=0, atol=2e-5)  # positions there are float32: 2e-6 of 34 pixels
