"""The same bits with 1, 2 and 4 threads, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch

from diffcrop import crop
from helpers import FILTERS, options, rand

CASES = {
    "one box of a large image": ((1, 3, 301, 257), 1, (64, 80)),
    "many boxes": ((2, 5, 64, 67), 24, (17, 16)),
    "many channels": ((1, 130, 20, 33), 3, (7, 9)),
    "a single pixel": ((3, 1, 1, 1), 2, (1, 1)),
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_same_bits(impl, name, dtype, threads, generator):
    if impl == "reference":
        pytest.skip("its products are the BLAS library's, which may split sums by threads")
    (b, c, h, w), k, size = CASES[name]
    images = rand(b, c, h, w, generator=generator, dtype=dtype).requires_grad_()
    u, v = rand(2, b, k, 2, generator=generator)
    corner, side = u * torch.tensor([w, h]) * 0.8 - 2, v * torch.tensor([w, h])
    boxes = torch.cat([corner, corner + side], -1).requires_grad_()
    cotangent = rand(b, k, c, *size, generator=generator, dtype=dtype)
    for (mode, antialias), padding_mode, layout in itertools.product(
        FILTERS, ("border", "reflection"), (torch.contiguous_format, torch.channels_last)
    ):
        images_in_layout = images.contiguous(memory_format=layout)
        results = []
        for count in (1, 2, 4):
            threads(count)
            value = crop(images_in_layout, boxes, size, impl=impl, **options(mode, antialias, padding_mode))
            results.append((value, *torch.autograd.grad(value, (images, boxes), cotangent)))
        for other in results[1:]:
            for one, same in zip(results[0], other, strict=True):
                assert torch.equal(one, same), (mode, antialias, padding_mode, layout)
