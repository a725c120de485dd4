"""Warps in what surrounds a call: transforms, the compiler, the operators' own checks, guarded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffcrop
from diffcrop import _ops_warp
from diffcrop._options import WarpOptions
from warps import placed, tilted

needs_kernels = pytest.mark.skipif(diffcrop.implementations()["cpu"] is not None, reason="no compiled library")
IMPLS = [pytest.param("cpu", marks=needs_kernels), "reference"]
SIZE, IMAGE = (4, 5), (9, 11)
f64 = torch.float64


def inputs(requires_grad=True, dtype=f64):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 2, *IMAGE, generator=generator, dtype=f64).to(dtype)
    matrices = torch.stack([
        tilted(placed(33.0, (2.7, 2.3), (4.9, 4.6), SIZE), (0.03, -0.02), SIZE),
        placed(-10.0, (1.6, 0.7), (8.6, 2.2), SIZE),
    ])  # fmt: skip
    return images.requires_grad_(requires_grad), matrices.requires_grad_(requires_grad)


def run(images, matrices, impl, antialias=True, index=None):
    return _ops_warp.warp(images, matrices, index, SIZE, WarpOptions("bilinear", antialias), impl)


def graph(images, matrices, antialias=True):
    """The reference as plain PyTorch, through which autograd can be trusted."""
    from diffcrop import _pyramid
    from diffcrop._impl import warp as reference

    reductions = _pyramid.plan(matrices, SIZE, IMAGE).reductions if antialias else None
    assert int(_pyramid.plan(matrices, SIZE, IMAGE).level.max()) == 0
    return reference.warp(images, matrices, None, reductions, SIZE, WarpOptions("bilinear", antialias))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("antialias", [False, True])
def test_transforms(impl, antialias):
    images, matrices = inputs(False)
    d_images, d_matrices = torch.rand_like(images), 0.01 * torch.rand_like(matrices)

    def ours(i, m):
        return run(i, m, impl, antialias)

    def plain(i, m):
        return graph(i, m, antialias)

    def agree(mine, expected):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)

    agree(
        torch.func.jacrev(ours, (0, 1))(images, matrices), torch.autograd.functional.jacobian(plain, (images, matrices))
    )
    agree(
        torch.func.jacfwd(ours, 1)(images, matrices),
        torch.autograd.functional.jacobian(lambda m: plain(images, m), matrices),
    )
    _, tangent = torch.func.jvp(ours, (images, matrices), (d_images, d_matrices))
    agree(tangent, torch.autograd.functional.jvp(plain, (images, matrices), (d_images, d_matrices))[1])
    hessian = torch.func.hessian(lambda m: ours(images, m).square().sum())(matrices)
    agree(hessian, torch.autograd.functional.hessian(lambda m: plain(images, m).square().sum(), matrices))
    several = torch.stack([matrices, matrices + 0.01, matrices - 0.02])
    agree(torch.func.vmap(lambda m: ours(images, m))(several), torch.stack([ours(images, m) for m in several]))
    stacked = torch.stack([images, 1 - images])
    agree(torch.func.vmap(lambda i: ours(i, matrices))(stacked), torch.stack([ours(i, matrices) for i in stacked]))


@pytest.mark.parametrize("impl", IMPLS)
def test_second_derivatives(impl):
    leaves = inputs()
    results = []
    for function in (lambda i, m: run(i, m, impl), graph):
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("antialias", [False, True])
def test_compiled(impl, antialias):
    torch._dynamo.reset()
    compiled = torch.compile(lambda i, m: run(i, m, impl, antialias), backend="aot_eager", fullgraph=True)
    leaves = inputs()
    results = []
    for function in (compiled, lambda i, m: run(i, m, impl, antialias)):
        value = function(*leaves)
        results.append((value, *torch.autograd.grad(value.square().sum(), leaves)))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@needs_kernels
@pytest.mark.parametrize("reductions", [None, (512, 700)])
def test_opcheck(reductions):
    images, matrices = inputs()
    counts = None if reductions is None else torch.tensor([reductions, (0, 1)])
    options = WarpOptions("bilinear", True, "constant", (0.5,))
    ops = torch.ops.diffcrop
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.warp.default, (images, matrices, None, counts, SIZE, False, *options), test_utils=tests)
    plain = [t.detach() for t in (images, matrices)]
    g = torch.rand(2, 2, *SIZE, dtype=f64)
    torch.library.opcheck(
        ops.warp_grad_images.default, (g, plain[1], None, counts, images.shape, True, *options.linear())
    )
    torch.library.opcheck(ops.warp_grad_matrices.default, (g, *plain, None, counts, *options))
    value = ops.warp(images, matrices, None, counts, SIZE, False, *options)
    expected = _ops_warp.sampled(images, matrices, None, counts, SIZE, options, "reference")
    leaves = (images, matrices)
    for mine, other in zip(
        torch.autograd.grad(value.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@needs_kernels
def test_autocast_changes_nothing():
    images, matrices = inputs(dtype=torch.float32)
    expected = run(images, matrices, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for impl in ("cpu", "reference"):
            torch.testing.assert_close(run(images, matrices, impl), expected, rtol=0, atol=1e-6)


@needs_kernels
def test_nothing_beyond_a_tensor_is_touched():
    script = Path(__file__).with_name("guarded_warps.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
