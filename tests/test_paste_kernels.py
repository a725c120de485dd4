"""The kernels of `paste`: every size and layout, what they read and keep, other instruction sets."""

from __future__ import annotations

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
