"""Signals where the kernels cut them into pieces: many outputs, many channels, every layout of rows."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from diffcrop import crop
from helpers import rand
from plain import needs_kernels

pytestmark = needs_kernels

f64 = torch.float64
# Channels and outputs of a crop of 3000 pixels: one piece and many, few channels and enough to lay a plan out for.
SHAPES = {
    "one piece": (3, 100),
    "tiles": (2, 2500),
    "a tile and one": (1, 1025),
    "rows to lay out": (11, 1500),
    "rows to transpose": (26, 1100),
    "groups of channels": (150, 1030),
}
PADDINGS = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
FILTERS = [
    ("bilinear", False),
    ("bilinear", True),
    ("bicubic", False),
    ("bicubic", True),
    ("area", True),
    ("lanczos3", True),
    ("gaussian", True),
]


def results(impl, signals, boxes, cotangent, **how):
    sources = [signals.detach().requires_grad_(), boxes.detach().requires_grad_()]
    value = crop(*sources, (cotangent.shape[-1],), impl=impl, **how)
    return (value.detach(), *torch.autograd.grad(value, sources, cotangent))


@pytest.mark.parametrize("filter_", range(len(FILTERS)))
@pytest.mark.parametrize("name", SHAPES)
def test_pieces_equal_the_reference(name, filter_, generator):
    channels, outputs = SHAPES[name]
    mode, antialias = FILTERS[filter_]
    # Each filter with every padding, and each shape, but not all of them with all.
    padding_mode = PADDINGS[(filter_ + list(SHAPES).index(name)) % len(PADDINGS)]
    how = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}
    if padding_mode == "constant":
        how["fill"] = [float(c) for c in range(channels)]
    signals = torch.rand(1, channels, 3000, generator=generator, dtype=f64)
    # Enlarged, a little reduced (flipped), reaching out on both sides, and on whole pixels at one to one.
    boxes = torch.tensor([[100.3, 900.7], [2900.1, 50.9], [-300.2, 3400.6], [500.0, 500.0 + outputs]], dtype=f64)
    boxes = boxes.expand(1, 4, 2)
    cotangent = torch.rand(1, 4, channels, outputs, generator=generator, dtype=f64) - 0.5
    want = results("reference", signals, boxes, cotangent, **how)
    for dtype, close, loose in ((f64, 1e-13, 1e-12), (torch.float32, 2e-6, 2e-5), (torch.bfloat16, 1.6e-2, 1.6e-2)):
        got = results("cpu", signals.to(dtype), boxes, cotangent.to(dtype), **how)
        for which, one, other in zip(("value", "signal", "box"), got, want, strict=True):
            # bfloat16 moves the signals themselves, of which a derivative is a difference.
            terms = 30 + (how["fill"][-1] if "fill" in how else 0) if which == "box" else 1
            bound = (close if which == "value" else loose) * terms * max(float(other.abs().max()), 1)
            assert float((one.double() - other).abs().max()) <= bound, (which, dtype)


LAYOUTS = {
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "the same for all channels": lambda t: t[:, :1].expand_as(t),
    "backwards in memory": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [2, 9, 30])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_change_nothing(name, channels, dtype, generator):
    signals, cotangent = rand(2, channels, 300, generator=generator), rand(2, 3, channels, 130, generator=generator)
    signals, cotangent = LAYOUTS[name](signals.to(dtype)), LAYOUTS[name](cotangent.to(dtype).flatten(0, 1))
    cotangent = cotangent.unflatten(0, (2, 3))
    boxes = torch.tensor([[10.2, 80.0], [290.5, -3.0], [20.0, 150.0]]).expand(2, 3, 2)
    for mode, antialias in FILTERS:
        how = {"mode": mode, "antialias": antialias}
        want = results("cpu", signals.contiguous(), boxes, cotangent.contiguous(), **how)
        for one, other in zip(results("cpu", signals, boxes, cotangent, **how), want, strict=True):
            assert torch.equal(one, other), mode


@pytest.mark.parametrize("name", SHAPES)
def test_same_bits(name, generator):
    channels, outputs = SHAPES[name]
    signals = rand(1, channels, 3000, generator=generator)
    boxes = torch.tensor([[100.3, 900.7], [2900.1, 50.9], [-300.2, 3400.6]], dtype=f64)[None]
    cotangent = rand(1, 3, channels, outputs, generator=generator)
    threads = torch.get_num_threads()
    try:
        for (mode, antialias), padding_mode in zip(FILTERS, itertools.cycle(("zeros", "reflection"))):
            how = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(results("cpu", signals, boxes, cotangent, **how))
            # And whatever other boxes are there: but for the gradient by the signals.
            alone = results("cpu", signals, boxes[:, 1:2], cotangent[:, 1:2], **how)
            assert torch.equal(alone[0], found[0][0][:, 1:2])
            assert torch.equal(alone[2], found[0][2][:, 1:2])
            for other in found[1:]:
                for one, same in zip(found[0], other, strict=True):
                    assert torch.equal(one, same), how
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize(("mode", "antialias"), FILTERS)
def test_pixels_that_are_not_read_may_be_anything(mode, antialias, channels, dtype, generator):
    clean = rand(1, channels, 64, generator=generator).to(dtype)
    # Outputs on the pixels 8, ..., 23 of signals that are NaN elsewhere: a copy, whatever the filter weighs with 0. Of
    # the filters that weigh neighbours too the taps reach six pixels further.
    margin = 0 if mode != "gaussian" else 7
    dirty = torch.full_like(clean, torch.nan)
    dirty[..., 8 - margin : 24 + margin] = clean[..., 8 - margin : 24 + margin]
    boxes = torch.tensor([[8.0, 24.0]])
    want, got = (crop(x, boxes, (16,), mode=mode, antialias=antialias, impl="cpu") for x in (clean, dirty))
    assert torch.equal(got, want)
    if margin == 0:
        assert torch.equal(got[0], clean[0, :, 8:24])
    # The same of what the crop is not asked about.
    cotangent = torch.zeros_like(clean[..., :16])
    cotangent[..., 5] = torch.nan
    grad = results("cpu", clean, boxes, cotangent, mode=mode, antialias=antialias)[1]
    touched = grad.isnan().nonzero()[:, 2]
    assert 13 in touched
    assert (touched - 13).abs().max() <= margin


def test_the_last_pixels_are_read_within_the_row(generator):
    # Rows that end where their memory ends: the last channel of the last signal, in every precision.
    for dtype, pixels in itertools.product((f64, torch.float32, torch.float16, torch.uint8), (1, 2, 3, 5, 17)):
        signals = (rand(1, 2, pixels, generator=generator) * 100).to(dtype)
        boxes = torch.tensor([[0.0, float(pixels)], [pixels - 0.7, pixels + 3.0]]).expand(1, 2, 2)
        for mode, antialias in FILTERS:
            got = crop(signals, boxes, (33,), mode=mode, antialias=antialias, impl="cpu")
            want = crop(signals, boxes, (33,), mode=mode, antialias=antialias, impl="reference")
            torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def test_sums_that_are_kept_beside_the_result(generator):
    """So many pixels that the gradients of few channels fit there at a time."""
    signals = rand(2, 11, 120_000, generator=generator)
    boxes = torch.tensor([[100.3, 90_000.7], [119_000.1, 50.9]]).expand(2, 2, 2)
    cotangent = rand(2, 2, 11, 70, generator=generator)
    want = results("cpu", signals, boxes, cotangent, mode="bilinear", antialias=True)
    for dtype in (torch.float16, torch.bfloat16):
        got = results("cpu", signals.to(dtype), boxes, cotangent.to(dtype), mode="bilinear", antialias=True)
        torch.testing.assert_close(got[1], want[1].to(dtype), rtol=2e-2, atol=2e-3)
        assert got[1].any(-1).all()


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 12])
def test_a_copy_keeps_the_sign_of_zeros(channels, dtype):
    # The last pixel is the right one of its pair, alone.
    signals = -torch.zeros(1, channels, 35, dtype=dtype)
    boxes = torch.tensor([[0.0, 35.0], [18.0, 35.0], [35.0, 0.0]])
    for (mode, antialias), box in itertools.product(FILTERS[:5], boxes):
        got = crop(signals, box, (int((box[1] - box[0]).abs()),), mode=mode, antialias=antialias, impl="cpu")
        assert got.signbit().all(), mode


@pytest.mark.parametrize("dtype", [f64, torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 12])
def test_the_last_pixel_alone(channels, dtype):
    # It is the right one of the last pair, whose left one is neither read nor added to.
    signals = torch.full((1, channels, 35), torch.nan, dtype=dtype)
    signals[..., 34] = 3
    cotangent = torch.full((1, channels, 1), torch.nan, dtype=dtype)
    boxes = torch.tensor([[34.0, 35.0]])
    for (mode, antialias), padding_mode in itertools.product(FILTERS[:5], ("border", "zeros", "renormalize")):
        how = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}
        value, by_signal, _ = results("cpu", signals, boxes, cotangent, **how)
        assert value.eq(3).all(), how
        assert by_signal[..., :34].eq(0).all(), how
        assert by_signal[..., 34].isnan().all()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux' /proc")
def test_large_plans_do_not_stay_in_memory():
    program = """
import ctypes, torch, diffcrop
def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.set_num_threads(1)
def run(pixels):
    leaves = torch.ones(1, pixels).requires_grad_(), torch.tensor([0.3, pixels - 0.4]).requires_grad_()
    torch.autograd.grad(diffcrop.crop(*leaves, (1024,), mode="bicubic", impl="cpu").sum(), leaves)
run(2000)
before = resident()
run(4_000_000)
print(resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 * 2**20
