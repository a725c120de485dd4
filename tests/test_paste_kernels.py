"""The kernels of `paste`: every size and layout, what they read and keep, other instruction sets."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffcrop
from diffcrop import paste
from helpers import rand

pytestmark = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="the library is not built")

MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest")
SIDES = (1, 2, 3, 7, 15, 16, 17, 31)
f64 = torch.float64


def draw(choose, generator, whole):
    """Patches in some layout, boxes that enlarge and reduce them up to sixteen times, canvases."""
    count, several, channels = choose((1, 2)), choose((1, 2, 5)), choose((1, 2, 3, 17))
    height, width = choose((1, 5, 16, 33)), choose((1, 15, 16, 17, 70))
    side = choose(SIDES), choose(SIDES)
    patches = rand(count, several, channels, *side, generator=generator)
    alpha = rand(count, several, 1, *side, generator=generator) if choose((True, False)) else None
    canvas = rand(count, channels, height, width, generator=generator) if choose((True, True, False)) else None
    layout = choose(("contiguous", "channels_last", "transposed", "sliced"))
    if layout == "channels_last":
        patches = patches.movedim(2, -1).contiguous().movedim(-1, 2)
        canvas = None if canvas is None else canvas.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        patches = patches.transpose(3, 4).contiguous().transpose(3, 4)
        canvas = None if canvas is None else canvas.transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "sliced":
        patches = patches.repeat(1, 1, 2, 2, 2)[:, :, ::2, 1 : side[0] + 1, ::2]
    extent = torch.tensor([width, height], dtype=f64)
    centre = rand(count, several, 2, generator=generator) * extent
    half = 2.0 ** (8 * rand(count, several, 2, generator=generator) - 4) * torch.tensor([side[1], side[0]]) / 2
    half = torch.where(rand(count, several, 2, generator=generator) < 0.2, -half, half)
    boxes = torch.cat([centre - half, centre + half], -1)
    boxes = torch.where(rand(count, several, 1, generator=generator) < whole, boxes.round(), boxes)
    return patches, boxes, canvas, alpha, (height, width)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_kernels_equal_the_reference(mode, dtype, generator, request):
    """Values, masks and all derivatives."""
    choose = random.Random(request.node.nodeid).choice
    # A Gaussian is cut off, where pixels may lie on either side by rounding, and its derivative is 1e-7 there.
    whole = 0.0 if mode == "gaussian" else 0.2
    allowed = 1e-11 if dtype == f64 else 1e-4
    for _ in range(12):
        patches, boxes, canvas, alpha, size = draw(choose, generator, whole)
        options = {"mode": mode, "antialias": mode == "area" or choose((True, False)), "blend": choose(("over", "add"))}
        masked = choose((True, False))
        found = {}
        for impl in ("reference", "cpu"):
            kind = f64 if impl == "reference" else dtype
            sources = [None if t is None else t.to(dtype).to(kind).requires_grad_() for t in (patches, canvas, alpha)]
            b = boxes.clone().requires_grad_(mode != "nearest")
            given = {"size": size, "batch_size": len(boxes)} if canvas is None else {"canvas": sources[1]}
            result = paste(sources[0], b, alpha=sources[2], return_mask=masked, impl=impl, **given, **options)
            parts = list(result) if masked else [result]
            total = sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in parts)
            leaves = [t for t in (*sources, b) if t is not None and t.requires_grad]
            found[impl] = parts + list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
        for k, (mine, theirs) in enumerate(zip(found["cpu"], found["reference"], strict=True)):
            scale = max(1.0, float(theirs.detach().abs().max()))
            error = float((mine.double() - theirs).detach().abs().max())
            assert error <= allowed * scale, (k, error, patches.shape, size, options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.int64], ids=str)
def test_what_is_moved_stays_on_its_canvas(dtype, generator):
    """By nearest, of several canvases: each patch on its own, in their order, and the mask of one channel or many."""
    index = torch.tensor([2, 0, 2, 1, 0, 2])
    for channels, onto in itertools.product((1, 3), (True, False)):
        patches = (rand(6, channels, 3, 5, generator=generator) * 100).to(dtype)
        canvas = (rand(3, channels, 9, 17, generator=generator) * 100).to(dtype)
        boxes = rand(6, 4, generator=generator) * torch.tensor([17, 9, 17, 9])
        given = {"canvas": canvas} if onto else {"size": (9, 17), "batch_size": 3}
        options = {"batch_index": index, "mode": "nearest", "return_mask": True, **given}
        mine, theirs = (paste(patches, boxes, impl=impl, **options) for impl in ("cpu", "reference"))
        assert mine.canvas.dtype == dtype
        assert mine.canvas.equal(theirs.canvas)
        assert mine.mask.equal(theirs.mask)
        for b in range(3):
            options["batch_index"] = index[index == b]
            alone = paste(patches[index == b], boxes[index == b], impl="cpu", **options)
            assert alone.canvas[b].equal(mine.canvas[b])
            assert alone.mask[b].equal(mine.mask[b])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "area"])
def test_pixels_at_the_limit_of_a_patch(mode, generator):
    """Where a filter ends on a pixel, within rounding, the derivative is that to the right, as in the reference."""
    patches, counts = rand(1, 3, 3, generator=generator), range(1, 8)
    weight = rand(1, 45, 45, generator=generator)
    for p, q in itertools.product(counts, counts):
        # A step is p / q pixels of the canvas. A filter reaches that far from the centre of a pixel of the patch.
        step = p / q
        reach = {"bilinear": 1, "bicubic": 2, "area": 0.5}[mode] * max(1, step) + (step / 2 if mode == "area" else 0)
        first, last = 14.5 + reach - step / 2, 30.5 - reach + step / 2
        found = []
        for impl in ("cpu", "reference"):
            box = torch.tensor([first, last - 3 * step, first + 3 * step, last], dtype=f64, requires_grad=True)
            value = paste(patches, box, 45, mode=mode, impl=impl)
            found.append((value.detach(), *torch.autograd.grad((value * weight).sum(), box)))
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_canvases_that_are_differentiated_apart(generator):
    """What is kept for the derivatives is bounded: of large canvases one after the other, with the same bits."""
    patches, boxes = rand(12, 1, 3, 4, generator=generator).float(), rand(12, 4, generator=generator) * 2000
    index = torch.tensor([2, 0, 1, 2, 2, 0, 1, 1, 0, 2, 0, 1])
    weight = torch.linspace(-1, 1, 2000, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (patches, boxes)]

    def gradients(rows, which, count):
        size = {"size": 2000, "batch_size": count, "mode": "bicubic", "impl": "cpu"}
        value = paste(patches[rows], boxes[rows], batch_index=which, **size)
        total = (value.sum((0, 1, 2)) * weight).sum() + (value.sum((0, 1, 3)) * weight).sum()
        return torch.autograd.grad(total, leaves)

    together = gradients(torch.arange(12), index, 3)
    for b in range(3):
        rows = (index == b).nonzero().squeeze(1)
        for mine, alone in zip(together, gradients(rows, torch.zeros_like(rows), 1), strict=True):
            assert mine[rows].equal(alone[rows])
            assert mine[rows].ne(0).any()


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by Linux's own calls")
def test_nothing_beyond_a_tensor_is_touched():
    program = Path(__file__).with_name("guarded_pastes.py")
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:] or f"ended by signal {-run.returncode}"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux' /proc")
def test_plans_of_many_patches_do_not_stay_in_memory():
    program = """
import ctypes, torch, diffcrop
def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.set_num_threads(1)
def run(count):
    patches, boxes = torch.ones(count, 1, 8, 8), torch.tensor([[1.0, 1.0, 10.0, 10.0]]).repeat(count, 1)
    leaves = patches.requires_grad_(), boxes.requires_grad_()
    torch.autograd.grad(diffcrop.paste(*leaves, 64, impl="cpu").sum(), leaves)
run(8)
before = resident()
run(20_000)
print(resident() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 16 * 2**20


@pytest.mark.parametrize("level", ["avx2", "default"])
def test_older_instruction_sets(level):
    """The kernels of a processor that has less than this one, in a process of their own."""
    names = ("default", "avx2", "avx512")
    expected = min(level, diffcrop.simd_level(), key=names.index)
    environment = os.environ | {"DIFFCROP_SIMD": level}
    ask = [sys.executable, "-c", "import diffcrop; print(diffcrop.simd_level())"]
    asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == expected
    files = [__file__, str(Path(__file__).with_name("test_paste.py"))]
    chosen = "kernels_equal or equals_brute_force and cpu or what_was_cropped or beyond_a_tensor"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
