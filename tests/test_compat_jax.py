"""`compat.jax` against JAX's published definition, values and derivatives, and against JAX itself where it is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import naive_scale
from diffcrop.compat.jax import scale_and_translate

f64 = torch.float64
METHODS = ["linear", "cubic", "cubic-pytorch", "lanczos3", "lanczos5", "area"]


def peer(image, shape, dims, scale, translation, method, antialias, cotangent):
    """JAX's value and its gradients by image, scale and translation, in float64."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        given = [jax.numpy.asarray(t.detach().numpy()) for t in (image, scale, translation)]
        value, pull = jax.vjp(
            lambda i, s, t: jax.image.scale_and_translate(i, shape, dims, s, t, method, antialias=antialias), *given
        )
        grads = pull(jax.numpy.asarray(cotangent.numpy()))
        return [torch.from_numpy(np.array(a)) for a in (value, *grads)]


CASES = {
    "signal": ((9,), (7,), (0,), [0.63], [1.37]),
    "enlarged": ((9,), (23,), (0,), [2.37], [-1.31]),
    "image": ((11, 8), (5, 6), (0, 1), [0.437, 0.713], [0.23, -0.71]),
    "image, x first": ((11, 8), (5, 6), (1, 0), [0.713, 0.437], [-0.71, 0.23]),
    "moved out": ((6, 7), (8, 9), (0, 1), [1.31, 0.77], [-3.4, 4.9]),
    "NHWC": ((2, 11, 8, 3), (2, 5, 6, 3), (1, 2), [0.437, 0.713], [0.23, -0.71]),
    "NCHW": ((2, 3, 11, 8), (2, 3, 5, 13), (-2, -1), [0.437, 1.713], [0.23, -0.71]),
    "many leading": ((2, 1, 3, 5, 8), (2, 1, 3, 4, 6), (3, 4), [0.737, 0.713], [0.23, -0.71]),
    "columns alone": ((4, 9), (4, 5), (1,), [0.517], [0.11]),
    "first and last": ((5, 3, 8), (4, 3, 6), (0, 2), [0.737, 0.713], [0.23, -0.71]),
    "volume": ((2, 5, 6, 7), (2, 4, 3, 5), (1, 2, 3), [0.71, 0.53, 1.13], [0.2, -0.3, 0.4]),
    "one pixel": ((1, 6), (3, 1), (0, 1), [2.7, 0.21], [0.2, -0.13]),
}


EVERY_WAY = [(method, antialias) for method in METHODS for antialias in (True, False)]
# JAX compiles every one of them.
COMPARED = [
    (case, *way)
    for case in CASES
    for way in EVERY_WAY
    if case in ("image", "moved out", "enlarged") or way in (("linear", True), ("cubic", False))
]


def given(case, generator):
    """What a case begins with: all that is differentiated, and what it is differentiated with."""
    before, after, _, scale, translation = CASES[case]
    image = torch.rand(before, generator=generator, dtype=f64, requires_grad=True)
    scale = torch.tensor(scale, dtype=f64, requires_grad=True)
    translation = torch.tensor(translation, dtype=f64, requires_grad=True)
    return (image, scale, translation), torch.rand(after, generator=generator, dtype=f64)


def by_definition(image, shape, dims, scale, translation, method, antialias, cotangent):
    arrays = [t.detach().numpy() for t in (image, scale, translation, cotangent)]
    found = naive_scale.scale_and_translate(arrays[0], shape, dims, *arrays[1:3], method, antialias, arrays[3])
    return [torch.from_numpy(np.asarray(a)) for a in found]


@pytest.mark.parametrize("whose", [by_definition, peer], ids=["definition", "jax"])
@pytest.mark.parametrize(("case", "method", "antialias"), COMPARED)
def test_values_and_gradients(case, method, antialias, whose, generator):
    (image, scale, translation), cotangent = given(case, generator)
    _, after, dims, _, _ = CASES[case]
    found = scale_and_translate(image, after, dims, scale, translation, method, antialias)
    grads = torch.autograd.grad(found, (image, scale, translation), cotangent)
    expected = whose(image, after, dims, scale, translation, method, antialias, cotangent)
    for mine, theirs in zip((found, *grads), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    assert found.shape == after


@pytest.mark.parametrize(("case", "method", "antialias"), COMPARED)
def test_the_definition_is_jaxs(case, method, antialias, generator):
    tensors, cotangent = given(case, generator)
    _, after, dims, _, _ = CASES[case]
    mine, theirs = (
        whose(tensors[0], after, dims, *tensors[1:], method, antialias, cotangent) for whose in (by_definition, peer)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_the_cases_tell_methods_apart(generator):
    """No two of them alike, nor with and without antialiasing."""
    image = torch.rand(11, 8, generator=generator, dtype=f64)
    found = [
        scale_and_translate(image, (5, 6), (0, 1), [0.437, 0.713], [0.23, -0.71], method, antialias)
        for method, antialias in EVERY_WAY
        if (method, antialias) not in (("cubic-pytorch", True), ("area", False))
    ]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-4 for other in found[:i])


@pytest.mark.parametrize("names", [
    ("linear", "bilinear", "trilinear", "triangle"),
    ("cubic", "bicubic", "tricubic"),
    ("cubic-pytorch", "bicubic-pytorch"),
], ids=str)  # fmt: skip
def test_names_of_one_method(names, generator):
    image = torch.rand(9, 7, generator=generator, dtype=f64)
    found = [scale_and_translate(image, (5, 6), (0, 1), [0.6, 0.9], [0.2, 0.1], name, False) for name in names]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_members_of_jaxs_enumeration(generator):
    jax = pytest.importorskip("jax")
    image = torch.rand(9, 7, generator=generator, dtype=f64)
    for member, name in (("LINEAR", "linear"), ("CUBIC_PYTORCH", "cubic-pytorch"), ("LANCZOS5", "lanczos5")):
        method = getattr(jax.image.ResizeMethod, member)
        given = (image, (5, 6), (0, 1), [0.6, 0.9], [0.2, 0.1])
        assert torch.equal(scale_and_translate(*given, method), scale_and_translate(*given, name))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("antialias", [True, False])
def test_derivatives_of_both_orders(method, antialias, generator):
    image = torch.rand(6, 5, generator=generator, dtype=f64, requires_grad=True)
    scale = torch.tensor([0.61, 1.37], dtype=f64, requires_grad=True)
    translation = torch.tensor([0.23, -0.31], dtype=f64, requires_grad=True)

    def function(i, s, t):
        return scale_and_translate(i, (3, 4), (0, 1), s, t, method, antialias)

    assert torch.autograd.gradcheck(function, (image, scale, translation))
    assert torch.autograd.gradgradcheck(function, (image, scale, translation))


@pytest.mark.parametrize("method", ["linear", "lanczos5"])
def test_transforms(method, generator):
    image = torch.rand(6, 5, generator=generator, dtype=f64)
    scale, translation = torch.tensor([0.61, 1.37], dtype=f64), torch.tensor([0.23, -0.31], dtype=f64)

    def function(s, t):
        return scale_and_translate(image, (3, 4), (0, 1), s, t, method)

    one = torch.func.jacfwd(function, (0, 1))(scale, translation)
    other = torch.func.jacrev(function, (0, 1))(scale, translation)
    for forward, backward in zip(one, other, strict=True):
        torch.testing.assert_close(forward, backward, rtol=0, atol=1e-12)
        assert backward.abs().sum() > 0.1
    many = torch.stack([scale, scale * 1.3])
    batched = torch.vmap(lambda s: function(s, translation))(many)
    torch.testing.assert_close(batched, torch.stack([function(s, translation) for s in many]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["linear", "cubic", "lanczos3"])
def test_a_negative_scale_mirrors(method, generator):
    """With the filter of its absolute value, which is where we differ from JAX."""
    image = torch.rand(9, generator=generator, dtype=f64)
    flipped = scale_and_translate(image, (5,), (0,), [-0.6], [5.2], method)
    straight = scale_and_translate(image.flip(0), (5,), (0,), [0.6], [5.2 - 0.6 * 9], method)
    torch.testing.assert_close(flipped, straight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["linear", "area"])
def test_dtypes(dtype, method, generator):
    image = (torch.rand(9, 8, generator=generator) * 100).to(dtype)
    found = scale_and_translate(image, (5, 6), (0, 1), [0.6, 0.7], [0.2, 0.1], method)
    assert found.dtype == (dtype if dtype.is_floating_point else torch.float32)
    expected = scale_and_translate(image.to(f64), (5, 6), (0, 1), [0.6, 0.7], [0.2, 0.1], method)
    atol = {torch.float16: 0.05, torch.bfloat16: 0.5}.get(dtype, 1e-4)
    torch.testing.assert_close(found.to(f64), expected, rtol=0, atol=atol)


def test_no_copy_of_channels_that_are_innermost(generator):
    """NHWC stays NHWC."""
    image = torch.rand(2, 9, 8, 3, generator=generator)
    assert scale_and_translate(image, (2, 5, 6, 3), (1, 2), [0.6, 0.7], [0.2, 0.1], "linear").is_contiguous()


def test_nothing_spatial(generator):
    image = torch.rand(3, 4, generator=generator)
    assert torch.equal(scale_and_translate(image, (3, 4), (), [], [], "linear"), image)


IMAGE, SCALE = torch.zeros(4, 5, 3), torch.ones(2)


@pytest.mark.parametrize(("error", "arguments", "said"), [
    (TypeError, {"image": [1.0]}, ("image must be a tensor", "[1.0]")),
    (TypeError, {"image": IMAGE.numpy()}, ("image must be a tensor", "float32 ndarray of shape (4, 5, 3)")),
    (TypeError, {"image": IMAGE.to(torch.complex64)}, ("image must be floating-point", "complex64")),
    (ValueError, {"shape": (2**31, 2, 3)}, ("shape must be below 2**31",)),
    (TypeError, {"method": IMAGE.numpy()}, ("method must be one of", "ndarray")),
    (TypeError, {"shape": 3}, ("shape must be a tuple", "3 (int)")),
    (ValueError, {"shape": (2, 2)}, ("shape", "3 dimensions", "(2, 2)")),
    (ValueError, {"shape": (2, 2, 4)}, ("keep dimension 2", "3", "got 4")),
    (ValueError, {"shape": (0, 2, 3)}, ("at least 1", "(0, 2, 3)")),
    (TypeError, {"spatial_dims": 0}, ("spatial_dims must be a tuple", "0 (int)")),
    (ValueError, {"spatial_dims": (0, 3)}, ("spatial_dims", "-3..2", "got 3")),
    (ValueError, {"spatial_dims": (0, -3)}, ("different", "(0, -3)")),
    (ValueError, {"image": torch.zeros(2, 2, 2, 2), "shape": (2,) * 4, "spatial_dims": (0, 1, 2, 3)}, ("1 to 3",)),
    (TypeError, {"scale": "1"}, ("scale", "'1'")),
    (TypeError, {"scale": [1, "1"]}, ("scale", "'1'")),
    (ValueError, {"scale": torch.ones(3)}, ("scale must have shape (2,)", "(0, 1)", "(3,)")),
    (ValueError, {"translation": [0.0]}, ("translation must have shape (2,)", "(1,)")),
    (ValueError, {"scale": [1.0, float("inf")]}, ("scale", "finite")),
    (TypeError, {"scale": torch.ones(2, dtype=torch.bool)}, ("scale", "real numbers", "bool")),
    (ValueError, {"scale": torch.ones(2, device="meta")}, ("same device", "cpu and meta")),
    (ValueError, {"method": "nearest"}, ("'nearest'", "use 'linear'")),
    (ValueError, {"method": "gaussian"}, ("method must be one of 'linear'", "'gaussian'")),
    (TypeError, {"method": 3}, ("method must be one of", "3 (int)")),
    (TypeError, {"antialias": 1}, ("antialias", "1 (int)")),
    (ValueError, {"precision": "default"}, ("precision", "'highest'", "'default'")),
])  # fmt: skip
def test_errors(error, arguments, said):
    given = {"image": IMAGE, "shape": (2, 2, 3), "spatial_dims": (0, 1), "scale": SCALE, "translation": SCALE}
    given |= {"method": "linear"} | arguments
    with pytest.raises(error) as caught:
        scale_and_translate(**given)
    assert all(part in str(caught.value) for part in said), str(caught.value)
