"""The kernels read what the crop needs and nothing else: no other pixel, and nothing beyond the tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffcrop

pytestmark = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="the library is not built")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("beside", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", [0.3, 1.9, 2.8, 3.6, 9.0])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_no_other_pixel_is_read(mode, reduction, dtype, beside, generator):
    """Pixels without a weight may be anything: crops, box gradients and normal equations are the same bits."""
    rows, columns = 6, 37
    height, width = int(rows * reduction) + 9, int(columns * reduction) + 9
    for channels, layout in ((2, torch.contiguous_format), (3, torch.channels_last), (20, torch.channels_last)):
        images = torch.rand(1, channels, height, width, generator=generator).to(dtype)
        h, w = rows * reduction, columns * reduction
        corner = torch.rand(6, 2, generator=generator) * 8 - torch.tensor([[0.0, 0.0]] * 3 + [[8.0, 8.0]] * 3)
        boxes = torch.cat([corner, corner + torch.tensor([w, h])], 1)
        boxes[1] = boxes[1, [2, 1, 0, 3]]
        for box in boxes:
            options = {"mode": mode, "antialias": False, "padding_mode": "zeros"}
            probe = images.double().requires_grad_()
            value = diffcrop.crop(probe, box.double(), (rows, columns), impl="reference", **options)
            (weights,) = torch.autograd.grad(value.sum(), probe)
            found = []
            for pixels in (images, torch.where(weights != 0, images, beside)):
                source = pixels.contiguous(memory_format=layout)
                wanted = box.clone().requires_grad_()
                value = diffcrop.crop(source, wanted, (rows, columns), impl="cpu", **options)
                cotangent = torch.linspace(-1, 1, value.numel()).view(value.shape).to(dtype)
                gradients = torch.autograd.grad(value, wanted, cotangent)
                equations = diffcrop.normal_equations(
                    source.detach(), box, cotangent.contiguous(), impl="cpu", **options
                )
                found.append((value.detach(), *gradients, *equations))
            assert all(torch.isfinite(part).all() for part in found[1])
            assert all(torch.equal(mine, other) for mine, other in zip(*found, strict=True)), (channels, box)


def test_fill_has_a_number_for_every_channel():
    """Also where the operators are called without the checks of the public functions."""
    images, boxes = torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    for fill in ([], [1.0, 2.0], [1.0] * 4):
        for mode in ("bilinear", "nearest"):
            with pytest.raises(RuntimeError, match="fill"):
                torch.ops.diffcrop.crop(images, boxes, None, [4, 4], False, mode, False, "constant", fill, 0.5, False)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux' /proc")
def test_plans_of_many_boxes_do_not_stay_in_memory():
    program = """
import ctypes, torch, diffcrop
def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.set_num_threads(1)
def run(boxes, n):
    grad = torch.ones(1, 1, 1, 1).expand(len(boxes), 1, n, n)
    torch.ops.diffcrop.crop_grad_images(grad, boxes, torch.zeros(len(boxes), dtype=torch.int64), [1, 1, 64, 64], False,
                                        "bilinear", False, "zeros", [0.0], 0.5, False)
run(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), 8)
before = resident()
run(torch.tensor([[-50.0, -50.0, -10.0, -10.0]]).repeat(20_000, 1), 64)
run(torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(60_000, 1), 1)
print(resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by Linux's own calls")
def test_nothing_is_read_beyond_the_tensor():
    program = Path(__file__).with_name("guarded.py")
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:] or f"ended by signal {-run.returncode}"
