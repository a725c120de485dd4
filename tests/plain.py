"""Plain autograd of plain PyTorch: the reference's forward, outside of every operator, Function and dispatch.

One small image and box with every derivative non-zero, for the tests of transforms and of compilers.
"""

from __future__ import annotations

import pytest
import torch

import diffcrop
from diffcrop import crop
from diffcrop._impl import cpu, reference
from diffcrop._options import Options

f64 = torch.float64
IMPLEMENTATIONS = [name for name, reason in diffcrop.implementations().items() if reason is None]
SIZE = (2, 3)
# A reduction along x and an enlargement along y, some taps outside; smooth there, with every derivative non-zero.
BOX = torch.tensor([-0.7, 1.3, 5.9, 2.8], dtype=f64)
SMOOTH = {"mode": "bicubic", "padding_mode": "constant", "fill": 0.25}
needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the kernels are not there")


def image(generator, *leading):
    return torch.rand(*leading, 2, 4, 5, generator=generator, dtype=f64)


def boxes(generator, *leading):
    return BOX + 0.2 * torch.rand(*leading, 4, generator=generator, dtype=f64)


def plain(images, box, options=None):
    """One image (C, H, W) and one box, or a batch and its boxes, by the reference as plain PyTorch."""
    options = options or Options("bicubic", True, "constant", (0.25,))
    if images.ndim == 3:
        return reference._crop(images[None], box[None], None, SIZE, options)[0]
    return reference._crop(images, box, None, SIZE, options)


def loss(function, generator):
    weight = torch.rand(2, *SIZE, generator=generator, dtype=f64)
    return lambda i, b: (weight * function(i, b)).square().sum()


def mine(impl):
    return lambda i, b: crop(i, b, SIZE, impl=impl, **SMOOTH)


def flat(tree):
    return torch.cat([t.reshape(-1) for t in torch.utils._pytree.tree_leaves(tree)])


def agree(actual, expected, atol=1e-11):
    actual, expected = flat(actual).detach(), flat(expected).detach()
    assert (expected != 0).any()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


def described(tensors):
    return [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]
