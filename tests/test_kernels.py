"""The compiled kernels equal the reference: values, both gradients and the Jacobian, for every dtype and layout.

Sizes include 1, primes, a vector width and its neighbours, images smaller than the filter; boxes reduce up to 64 times,
enlarge up to 16 times, leave the image, are mirrored, and lie on whole pixels.
"""

from __future__ import annotations

import random

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
