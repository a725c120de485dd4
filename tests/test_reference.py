"""The reference as other devices get it: in pieces that bound its memory, and with positions in float32."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import diffcrop
from diffcrop import _axis, _boxes, crop
from diffcrop._impl import reference
from diffcrop._options import Options
from helpers import FILTERS, PADDINGS, options, rand, random_boxes

SIZE, SHAPE = (7, 5), (37, 23)
# Inside, past either end or both, mirrored, empty, far away, and of every reduction.
ENDS = [(3.3, 17.9), (-4.2, 8.1), (15.0, 31.7), (-9.1, 40.2), (19.3, 2.1), (6.5, 6.5), (-80.1, -60.3), (90.2, 97.1),
        (-400.3, 500.9), (-1e9, 1e9), (1e12, 1e12 + 7), (-23.0, -5.5), (24.0, 30.0)]  # fmt: skip


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_a_piece_misses_nothing(mode, antialias, padding_mode):
    """Where the band of some outputs ends, their weights are zero; and a piece is that part of the whole matrix."""
    inside = 0
    for align_corners in (False, True):
        given = Options(mode, antialias, padding_mode, align_corners=align_corners)
        for lo, hi in ENDS:
            ends = (torch.tensor([lo], dtype=torch.float64), torch.tensor([hi], dtype=torch.float64), 6, 23, given)
            whole = _axis.weights(*ends)
            for outputs in ((0, 6), (0, 2), (2, 3), (3, 6)):
                first, last = _axis.touched(*ends, outputs)
                rows = whole[:, slice(*outputs)]
                assert not rows[..., :first].any()
                assert not rows[..., last:].any()
                piece = _axis.weights(*ends, (first, last), outputs)
                torch.testing.assert_close(piece, rows[..., first:last], rtol=0, atol=1e-15)
                inside += last - first < 23
    assert inside >= 10


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_pieces_are_the_whole(padding_mode, dtype, monkeypatch, generator):
    """Value and gradients of one box whose axes are cut into many pieces."""
    images = (200 * rand(1, 2, *SHAPE, generator=generator)).to(dtype)
    where = options("bicubic", True, padding_mode)
    box = random_boxes(1, SIZE, SHAPE, generator, mode="bicubic", padding_mode=padding_mode)
    cotangent = rand(1, 2, *SIZE, generator=generator).to(torch.float64 if dtype == torch.float64 else torch.float32)
    found, counts = [], []
    for budget in (2**40, 2**12):
        monkeypatch.setattr(reference, "BUDGET", budget)
        inputs = [t.clone().requires_grad_() for t in (images, box) if t.is_floating_point()]
        value = crop(inputs[0] if len(inputs) == 2 else images, inputs[-1], SIZE, impl="reference", **where)
        found.append([value, *torch.autograd.grad(value, inputs, cotangent)])
        given = Options(*(where[name] for name in ("mode", "antialias", "padding_mode")))
        counts.append([len(axis.pieces) for axis in reference._axes(box, SHAPE, SIZE, given)])
    assert counts[0] == [1, 1]
    assert min(counts[1]) > 1
    for whole, pieces in zip(*found, strict=True):
        assert float(whole.detach().abs().max()) > 0.01
        atol = (1e-13 if dtype == torch.float64 else 1e-5) * float(whole.detach().abs().max())
        torch.testing.assert_close(whole, pieces, rtol=0, atol=atol)


PEAK = """
import json, sys, torch, diffcrop
from pathlib import Path
torch.set_num_threads(1)
pixels, size, index, given = json.loads(sys.argv[1])

def step(pixels, size):
    images = torch.rand(2 if index else 1, 3, pixels, pixels, requires_grad=True)
    box = torch.tensor([[3.7, 5.1, pixels - 2.2, pixels - 7.9]], requires_grad=True)
    owner = {"batch_index": torch.tensor([1])} if index else {}
    boxes = box if index or images.shape[0] == 1 else box.expand(2, 4)
    cotangent = torch.rand(1, 3, size, size)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = memory("VmRSS")
    result = diffcrop.crop(images, boxes, size, impl="reference", **owner, **given)
    forward = memory("VmHWM") - before
    result.backward(cotangent)
    assert images.grad.any() and box.grad.all()
    return forward, memory("VmHWM") - before - images.grad.nbytes

def memory(name):
    return 1024 * int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

step(1024, 128)  # libraries come first, those of checkpoints too
print(json.dumps(step(pixels, size)))
"""
MIB = 2**20


def peaks(pixels, size, index=False, **given):
    """Bytes over the inputs and the image gradient: of the forward pass, and of both."""
    arguments = json.dumps([pixels, size, index, given])
    done = subprocess.run([sys.executable, "-c", PEAK, arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux' /proc")
@pytest.mark.parametrize(("pixels", "size", "most"), [
    pytest.param(2560, 256, 130, id="2560"),
    pytest.param(8192, 512, 600, id="8192", marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.parametrize("given", [{}, {"index": True}, {"mode": "lanczos3", "padding_mode": "reflection"}], ids=str)
def test_a_large_image_takes_little_more_memory_than_its_gradient(pixels, size, most, given):
    """All outputs at once would take 170 MiB for the smaller one, and 1 GiB for the other."""
    # What the system takes from the process meanwhile counts as new when it is wanted again: the least of some runs.
    least = [math.inf, math.inf]
    for _ in range(4):
        least = [min(pair) for pair in zip(least, peaks(pixels, size, **given), strict=True)]
        if max(least) <= most * MIB:
            break
    assert max(least) <= most * MIB


def test_a_small_box_touches_its_band_only(monkeypatch, generator):
    """However large the image: its dense weights are never made."""
    made = []
    original = _axis.weights
    monkeypatch.setattr(_axis, "weights", lambda *args: made.append(original(*args)) or made[-1])
    images = torch.rand(1, 5000, 4000, generator=generator, requires_grad=True)
    box = torch.tensor([3000.3, 70.1, 3040.7, 101.9], requires_grad=True)
    crop(images, box, 16, mode="lanczos3", impl="reference").sum().backward()
    assert len(made) == 6  # two axes each time
    assert max(matrix.shape[-1] for matrix in made) < 80
    assert images.grad[0, 60:110, 2990:3050].any()


# --- devices without float64 ------------------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Like a device that cannot hold float64: it is an error for an operator to make one."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                raise TypeError(f"{function} made a float64 tensor")
        return result


@pytest.fixture
def single(monkeypatch):
    monkeypatch.setattr(reference, "position_dtype", lambda _device: torch.float32)
    monkeypatch.setattr(_boxes, "widen", lambda boxes: boxes.to(torch.float32))


def test_the_mode_notices():
    with NoFloat64(), pytest.raises(TypeError, match="made a float64 tensor"):
        crop(torch.rand(1, 4, 4), torch.tensor([0.3, 0.2, 3, 3]), 2, impl="reference")


# float32 rounds a position of up to 64 by 2^-19, four operations make it; the crop's slope by it is 4 at most here.
ROUNDING = 4 * 2.0**-19


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize(("mode", "antialias"), [*FILTERS, ("nearest", True)])
def test_positions_in_float32(mode, antialias, padding_mode, single, monkeypatch, generator):
    """No float64 is made, and values and gradients are as near as rounded positions can be."""
    where = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}
    given = options(**where)
    boxes = random_boxes(4, SIZE, SHAPE, generator, **where).float()
    images, cotangent = torch.rand(4, 2, *SHAPE, generator=generator), torch.rand(4, 2, *SIZE, generator=generator)

    unit = diffcrop.convert_boxes(boxes, SHAPE, to_format="cxcywh", to_coords="unit")

    def everything(images, boxes, cotangent, unit):
        inputs = [images.clone().requires_grad_(), boxes.clone().requires_grad_(mode != "nearest")]
        value = crop(*inputs, SIZE, impl="reference", **given)
        inputs = [t for t in inputs if t.requires_grad]
        grads = torch.autograd.grad(value, inputs, cotangent, create_graph=True)
        if mode == "nearest":
            return [value, *grads]
        convention = {"coords": "unit", "box_format": "cxcywh"}
        jacobian = diffcrop.crop_with_jacobian(images, unit, SIZE, impl="reference", **convention, **given)
        return [value, *grads, *torch.autograd.grad(grads[1].square().sum(), inputs), jacobian.jacobian]

    with NoFloat64():
        found = everything(images, boxes, cotangent, unit)
    monkeypatch.undo()
    expected = everything(*(t.double() for t in (images, boxes, cotangent, unit)))
    for which, (one, other) in enumerate(zip(found, expected, strict=True)):
        # Each derivative has the slope of the one before once more.
        most = ROUNDING * (1 if which == 0 else 40) * float(other.detach().abs().max())
        assert float((one - other).detach().abs().max()) <= most, which
        assert float(other.detach().abs().max()) > 0.01


def test_wild_boxes_in_float32(single):
    """What is too far for float32 counts as infinite; the rest stays finite, and so do its gradients."""
    images = torch.rand(1, 3, 20, 30)
    with NoFloat64():
        for padding_mode in PADDINGS:
            for box, sound in [
                ([math.nan, 1, 5, 5], False), ([1, 1, math.inf, 5], False), ([-1e20, 1, 5, 5], False),
                ([-1e8, -3e5, 1e9, 4e6], True), ([1e7, 3, 1e7 + 30, 21], True), ([9, 4, 9, 4], True),
                ([3e7, 3, 3e7 + 4, 21], True),
            ]:  # fmt: skip
                for mode in ("bilinear", "lanczos3", "area", "gaussian"):
                    corners = torch.tensor([box], dtype=torch.float32, requires_grad=True)
                    value = crop(images, corners, 6, mode=mode, padding_mode=padding_mode, impl="reference")
                    value.sum().backward()
                    assert bool(value.isfinite().all()) == sound, (padding_mode, box, mode)
                    assert bool(corners.grad.isfinite().all()) == sound, (padding_mode, box, mode)


def test_an_identity_in_float32_is_exact(single):
    images = torch.rand(2, 60, 50)
    box = torch.tensor([3.0, 5, 33, 45], requires_grad=True)
    with NoFloat64():
        value = crop(images, box, (40, 30), impl="reference")
        value.sum().backward()
    assert torch.equal(value, images[:, 5:45, 3:33])
    thirds = torch.tensor([1 / 3, 2 / 7, 30 + 1 / 3, 40 + 2 / 7], requires_grad=True)
    constant = crop(torch.ones(1, 50, 60), thirds, (40, 30), impl="reference")
    assert torch.autograd.grad(constant.sum(), thirds)[0].abs().max() < 1e-3


def test_a_reduction_of_one_in_float32():
    """Boxes of thirds whose sides are rounded: the width's derivative is 0 there, as it is for what was meant."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 110, 90, generator=generator)
    for third in range(7):
        meant = torch.tensor([40 + third / 3, 50 + third / 7, 70 + third / 3, 90 + third / 7], dtype=torch.float64)
        meant = meant + 1e-3 * (third % 3 == 0)  # away from kinks of the position
        results = []
        for dtype in (torch.float32, torch.float64):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(reference, "position_dtype", lambda _device, dtype=dtype: dtype)
                box = meant.to(dtype).requires_grad_()
                crop(images.to(dtype), box, (40, 30), impl="reference").square().sum().backward()
            results.append(box.grad.double())
        torch.testing.assert_close(*results, rtol=1e-3, atol=0.05)


def test_beside_a_kink_in_float32(single, monkeypatch):
    """The margin of kinks is narrow: a pixel's thousandth beside one, the crop is that of float64."""
    images = torch.rand(1, 60, 50, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([20.999, 30.999, 29.999, 38.999])
    found = crop(images, box, (8, 9), impl="reference")
    monkeypatch.undo()
    torch.testing.assert_close(found, crop(images, box, (8, 9), impl="reference"), rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", ["lanczos3", "gaussian"])
def test_outputs_beyond_the_image_do_not_move(mode):
    """Under border padding they are the last pixel, also where the support ends on a pixel's centre."""
    image = torch.linspace(0, 1, 17, dtype=torch.float64).square()[None, None]
    for lo, hi in [(-36.95693207367417, 43.670542558121696), (-20.5, 61.25), (61.25, -20.5), (-90.0, 100.0)]:
        box = torch.tensor([lo, 0.0, hi, 1.0], dtype=torch.float64)
        jacobian = diffcrop.crop_with_jacobian(image, box, (1, 17), mode=mode, impl="reference").jacobian[0, 0]
        position = lo + (torch.arange(17) + 0.5) * (hi - lo) / 17
        reach = 3 * abs(hi - lo) / 17 + 1
        beyond = (position < -reach) | (position > 17 + reach)
        assert beyond.any()
        assert float(jacobian[beyond].abs().max()) < 1e-13
