"""The compiled kernels equal the reference: values, both gradients and the Jacobian, for every dtype and layout.

Sizes include 1, primes, a vector width and its neighbours, images smaller than the filter; boxes reduce up to 64 times,
enlarge up to 16 times, leave the image, are mirrored, and lie on whole pixels.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch

import diffcrop

pytestmark = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="the library is not built")

MODES = ("bilinear", "bicubic", "lanczos3", "area", "gaussian", "nearest")
PADDINGS = ("border", "zeros", "constant", "reflection", "circular", "renormalize")
SIDES = (1, 2, 3, 7, 15, 16, 17, 31, 64)
# Units in the last place of the dtype that holds the result, on sums kept in float32 (float64 for float64).
TOLERANCE = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-6, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
    torch.uint8: (1e-6, 2e-5),
    torch.int16: (1e-6, 2e-5),
}


def draw(choose, generator, dtype):
    """An image batch in some layout, boxes of every kind, and a size."""
    count, channels, height, width = choose((1, 2)), choose((1, 2, 3, 17)), choose(SIDES), choose(SIDES)
    images = torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)
    images = images.to(dtype) if dtype.is_floating_point else (images * 200).to(dtype)
    layout = choose(("contiguous", "channels_last", "transposed", "sliced"))
    if layout == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        images = images.transpose(2, 3)
    elif layout == "sliced":
        images = images.repeat(1, 2, 2, 2)[:, ::2, 1 : height + 1, ::2]
    height, width = images.shape[2:]
    extent = torch.tensor([width, height], dtype=torch.float64)
    size = (choose((1, 2, 5, 8, 9, 16)), choose((1, 3, 8, 16, 17)))
    rows = count * choose((1, 3))
    centre = torch.rand(rows, 2, generator=generator, dtype=torch.float64) * extent
    reduction = 2.0 ** (torch.rand(rows, 2, generator=generator, dtype=torch.float64) * 10 - 4)  # 1/16 .. 64
    half = reduction * torch.tensor([size[1], size[0]]) / 2
    half = torch.where(torch.rand(rows, 2, generator=generator) < 0.15, -half, half)
    boxes = torch.cat([centre - half, centre + half], -1)
    whole = torch.rand(rows, 1, generator=generator) < 0.3
    boxes = torch.where(whole, boxes.round(), boxes)
    return images, boxes.view(count, -1, 4), size


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_kernels_equal_the_reference(mode, padding_mode, dtype, generator, request):
    choose = random.Random(request.node.nodeid).choice
    close, loose = TOLERANCE[dtype]
    for _ in range(4):
        images, boxes, size = draw(choose, generator, dtype)
        options = {
            "mode": mode,
            "padding_mode": padding_mode,
            "antialias": mode == "area" or choose((True, False)),
            "align_corners": choose((True, False, False)),
        }
        if padding_mode == "constant":
            options["fill"] = [float(7 * c) for c in range(images.shape[1])]
        found = {}
        for impl in ("reference", "cpu"):
            sources = [images.detach().requires_grad_(dtype.is_floating_point)]
            sources.append(boxes.detach().requires_grad_(mode != "nearest"))
            value = diffcrop.crop(*sources, size, impl=impl, **options)
            cotangent = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).reshape(value.shape).to(value.dtype)
            wanted = [s for s in sources if s.requires_grad]
            found[impl] = [value.detach(), *(torch.autograd.grad(value, wanted, cotangent) if wanted else ())]
            if mode != "nearest":
                found[impl].append(diffcrop.crop_with_jacobian(images, boxes, size, impl=impl, **options).jacobian)
        # What a sum of that many terms may round to where the terms cancel.
        terms = float(images.double().abs().max()) + 7 * images.shape[1]
        scales = [terms, terms * value[0, 0].numel(), terms * value[0, 0].numel(), terms]
        names = ["value", "image", "box", "jacobian"]
        if not dtype.is_floating_point:
            scales.pop(1), names.pop(1)
        for name, got, want, scale in zip(names, found["cpu"], found["reference"], scales, strict=False):
            assert got.dtype == want.dtype
            error = (got.double() - want.double()).abs().max().item()
            bound = (close if name == "value" else loose) * max(scale, want.double().abs().max().item())
            assert error <= bound, f"{name}: {error:.2e} > {bound:.2e} for {images.shape} -> {size} with {options}"


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "circular"])
@pytest.mark.parametrize(
    ("mode", "antialias"), [("bilinear", False), ("bicubic", False), ("bilinear", True), ("area", True)]
)
@pytest.mark.parametrize("reduction", [0.2, 0.9, 1.7, 3.1, 6.3, 21.0])
def test_every_way_to_find_the_taps(reduction, mode, antialias, padding_mode, generator):
    """Sixteen neighbouring outputs lie within one, two or four registers of the row, or further apart, or overlap."""
    n, rows = 37, 21
    width = max(int(reduction * n * 1.2), 40)
    for channels, layout in ((3, torch.contiguous_format), (3, torch.channels_last), (11, torch.channels_last)):
        images = torch.rand(2, channels, 70, width, generator=generator)
        half = reduction * n / 2
        x, y = width / 2 + 0.3, 35.2
        tall = rows * min(reduction, 3.0) / 2
        boxes = torch.tensor([[x - half, y - tall, x + half, y + tall], [x + half + 5, y - tall / 2, x - half, y + 40]])
        options = {"mode": mode, "antialias": antialias, "padding_mode": padding_mode}
        cotangent = torch.rand(2, channels, rows, n, generator=generator)
        found = {}
        for impl in ("reference", "cpu"):
            kept = images.double() if impl == "reference" else images.contiguous(memory_format=layout)
            sources = [kept.requires_grad_(), boxes.double().requires_grad_()]
            value = diffcrop.crop(*sources, (rows, n), impl=impl, **options)
            found[impl] = [value, *torch.autograd.grad(value, sources, cotangent.to(value.dtype))]
        for name, got, want in zip(("value", "image", "box"), found["cpu"], found["reference"], strict=True):
            error = (got.double() - want).abs().max() / want.abs().max()
            assert error <= 2e-5, f"{name}: {error:.1e} with {channels} channels, {layout}"


@pytest.mark.parametrize("level", ["avx2", "default"])
def test_older_instruction_sets(level):
    """The kernels of a processor that has less than this one, in a process of their own."""
    names = ("default", "avx2", "avx512")
    expected = min(level, diffcrop.simd_level(), key=names.index)
    environment = os.environ | {"DIFFCROP_SIMD": level}
    asked = subprocess.run(
        [sys.executable, "-c", "import diffcrop; print(diffcrop.simd_level())"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == expected
    chosen = "every_way and circular or equal and (border or circular) and (float32 or uint8 or bfloat16)"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", __file__, "-k", chosen],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
