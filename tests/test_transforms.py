"""Whatever differentiates or maps a crop gets what plain autograd of plain PyTorch gives.

"Plain" is the reference's forward, called as the ordinary PyTorch code that it is, outside of every operator, Function
and dispatch; that its own derivatives are right is for the other tests to say.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import diffcrop
from diffcrop import crop, crop_with_jacobian
from plain import BOX, SIZE, SMOOTH, agree, boxes, f64, image, loss, mine, plain

# --- torch.func -------------------------------------------------------------------------------------------------------


def plain_jacobian(function, arguments, argnums):
    """Rows by plain `autograd.grad`, with a graph, for one output after another."""

    def rows(*arguments):
        out = function(*arguments)
        result = []
        for k in argnums:
            grads = [
                torch.autograd.grad(o, arguments[k], create_graph=True, materialize_grads=True)[0]
                for o in out.reshape(-1)
            ]
            result.append(torch.stack(grads).reshape(*out.shape, *arguments[k].shape))
        return tuple(result)

    return rows(*(a.detach().requires_grad_() for a in arguments))


def plain_hessian(function, arguments, argnums):
    arguments = [a.detach().requires_grad_() for a in arguments]
    firsts = torch.autograd.grad(function(*arguments), [arguments[k] for k in argnums], create_graph=True)
    result = []
    for first in firsts:
        for k in argnums:
            grads = [
                torch.autograd.grad(o, arguments[k], retain_graph=True, materialize_grads=True)[0]
                for o in first.reshape(-1)
            ]
            result.append(torch.stack(grads).reshape(*first.shape, *arguments[k].shape))
    return tuple(result)


WHICH = {"image": (0,), "box": (1,), "both": (0, 1)}


@pytest.mark.parametrize("argnums", WHICH.values(), ids=WHICH.keys())
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_jacobians(impl, transform, argnums, generator):
    arguments = image(generator), BOX
    expected = plain_jacobian(plain, arguments, argnums)
    agree(transform(mine(impl), argnums)(*arguments), expected)


@pytest.mark.parametrize("argnums", WHICH.values(), ids=WHICH.keys())
def test_grad_vjp_and_jvp(impl, argnums, generator):
    arguments = image(generator), BOX
    tangents = tuple(torch.rand(a.shape, generator=generator, dtype=f64) for a in arguments)
    cotangent = torch.rand(2, *SIZE, generator=generator, dtype=f64)
    expected = plain_jacobian(plain, arguments, argnums)
    pulled = [torch.einsum("chw,chw...->...", cotangent, j) for j in expected]

    def product(*arguments):
        return (cotangent * mine(impl)(*arguments)).sum()

    agree(grad(product, argnums)(*arguments), pulled)
    value, pull = vjp(mine(impl), *arguments)
    agree(value, plain(*arguments), 1e-14)
    agree([pull(cotangent)[k] for k in argnums], pulled)

    def chosen(*those):
        given = list(arguments)
        for k, a in zip(argnums, those, strict=True):
            given[k] = a
        return mine(impl)(*given)

    value, pushed = jvp(chosen, tuple(arguments[k] for k in argnums), tuple(tangents[k] for k in argnums))
    agree(value, plain(*arguments), 1e-14)
    agree(pushed, sum((j * tangents[k]).flatten(3).sum(-1) for j, k in zip(expected, argnums, strict=True)))


SECOND = {
    "hessian": hessian,
    "jacrev of jacrev": lambda f, argnums: jacrev(jacrev(f, argnums), argnums),
    "jacfwd of jacfwd": lambda f, argnums: jacfwd(jacfwd(f, argnums), argnums),
    "jacrev of jacfwd": lambda f, argnums: jacrev(jacfwd(f, argnums), argnums),
    "jacfwd of grad": lambda f, argnums: jacfwd(grad(f, argnums), argnums),
}


@pytest.mark.parametrize("argnums", WHICH.values(), ids=WHICH.keys())
@pytest.mark.parametrize("transform", SECOND.values(), ids=SECOND.keys())
def test_second_order(impl, transform, argnums, generator):
    state = generator.get_state()
    expected = plain_hessian(loss(plain, generator), (image(generator), BOX), argnums)
    generator.set_state(state)
    function = loss(mine(impl), generator)
    agree(transform(function, argnums)(image(generator), BOX), expected)


def third(function, box):
    """The third derivatives along one direction each time, by three plain backwards."""
    direction = torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=f64)
    box = box.detach().requires_grad_()
    value = function(box)
    for _ in range(2):
        (value,) = torch.autograd.grad(value, box, create_graph=True)
        value = value @ direction
    return torch.autograd.grad(value, box)[0]


def test_third_order(impl, generator):
    picture = image(generator)
    weight = torch.rand(2, *SIZE, generator=generator, dtype=f64)

    def with_(function):
        return lambda b: (weight * function(picture, b)).square().sum()

    expected = third(with_(plain), BOX)
    agree(third(with_(mine(impl)), BOX), expected)
    direction = torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=f64)
    for inner in (jacrev(jacrev(with_(mine(impl)))), hessian(with_(mine(impl)))):
        agree(grad(lambda b, inner=inner: direction @ inner(b) @ direction)(BOX), expected)


def test_torch_autograd_functional(impl, generator):
    """The older interface, with and without its own vmap, both strategies."""
    arguments = image(generator), BOX
    weight = torch.rand(2, *SIZE, generator=generator, dtype=f64)

    def weighed(function):
        return lambda i, b: (weight * function(i, b)).square().sum()

    function = weighed(mine(impl))
    expected = plain_hessian(weighed(plain), arguments, (1,))
    jacobian = plain_jacobian(plain, arguments, (1,))
    f = torch.autograd.functional
    agree(f.hessian(lambda b: function(arguments[0], b), BOX), expected)
    # The older vmap knows no rule for the reference: an error, of ours or of PyTorch's, and never zeros.
    with pytest.raises(RuntimeError, match=r"torch\.func\.hessian|Batching rule not implemented"):
        f.hessian(lambda b: function(arguments[0], b), BOX, vectorize=True)
    for options in ({}, {"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}):
        agree(f.jacobian(lambda b: mine(impl)(arguments[0], b), BOX, **options), jacobian)
    direction = torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=f64)
    agree(f.jvp(lambda b: mine(impl)(arguments[0], b), BOX, direction)[1], jacobian[0] @ direction)
    agree(f.hvp(lambda b: function(arguments[0], b), BOX, direction)[1], expected[0] @ direction)


# --- forward mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argnums", WHICH.values(), ids=WHICH.keys())
@pytest.mark.parametrize("recording", [True, False])
def test_dual_numbers(impl, argnums, recording, generator):
    """Forward mode in eager is right, never zero, with grad mode on or off."""
    arguments = image(generator), BOX
    tangents = [torch.rand(a.shape, generator=generator, dtype=f64) for a in arguments]
    jacobians = plain_jacobian(plain, arguments, argnums)
    expected = sum((j * tangents[k]).flatten(3).sum(-1) for j, k in zip(jacobians, argnums, strict=True))
    with torch.set_grad_enabled(recording), forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, t) if k in argnums else a
                 for k, (a, t) in enumerate(zip(arguments, tangents, strict=True))]  # fmt: skip
        value, tangent = forward_ad.unpack_dual(mine(impl)(*duals))
        agree(value, plain(*arguments), 1e-14)
        agree(tangent, expected)


def test_a_difference_quotient_agrees(impl, generator):
    """Independent of every derivative in the package."""
    picture, direction, h = image(generator), torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=f64), 1e-6
    _, pushed = jvp(lambda b: mine(impl)(picture, b), (BOX,), (direction,))
    quotient = (mine(impl)(picture, BOX + h * direction) - mine(impl)(picture, BOX - h * direction)) / (2 * h)
    agree(pushed, quotient, 1e-8)
    curvature = (
        mine(impl)(picture, BOX + 1e-4 * direction)
        - 2 * mine(impl)(picture, BOX)
        + mine(impl)(picture, BOX - 1e-4 * direction)
    ) / 1e-8
    second = jvp(lambda b: jvp(lambda c: mine(impl)(picture, c), (b,), (direction,))[1], (BOX,), (direction,))[1]
    agree(second, curvature, 1e-6)


def test_backward_over_forward_and_forward_over_backward(impl, generator):
    """d/db <w, d crop / d b . v>, both ways, and its mixed derivative by the image."""
    picture, weight = image(generator), torch.rand(2, *SIZE, generator=generator, dtype=f64)
    direction = torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=f64)

    def by_hand(i, b):
        first = torch.autograd.grad((plain(i, b) * weight).sum(), b, create_graph=True)[0]
        return torch.autograd.grad(first @ direction, (i, b))

    i, b = picture.clone().requires_grad_(), BOX.clone().requires_grad_()
    expected = by_hand(i, b)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(b, direction)
        tangent = forward_ad.unpack_dual(mine(impl)(i, dual)).tangent
        agree(torch.autograd.grad((tangent * weight).sum(), (i, b)), expected)

    def pushed(i, b):
        return (jvp(lambda c: mine(impl)(i, c), (b,), (direction,))[1] * weight).sum()

    agree(grad(pushed, (0, 1))(picture, BOX), expected)
    pulled = grad(lambda i, b: (mine(impl)(i, b) * weight).sum(), (0, 1))
    agree(jvp(lambda b: pulled(picture, b), (BOX,), (direction,))[1], expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(b, direction)
        (by_box,) = torch.autograd.grad((mine(impl)(picture, dual) * weight).sum(), dual, create_graph=True)
        agree(forward_ad.unpack_dual(by_box).tangent, expected[1])


def test_the_jacobian_can_be_transformed(impl, generator):
    picture = image(generator)

    def jacobian(b):
        return crop_with_jacobian(picture, b, SIZE, impl=impl, **SMOOTH).jacobian

    agree(jacobian(BOX), plain_jacobian(plain, (picture, BOX), (1,)))
    expected = jacfwd(jacrev(lambda b: plain(picture, b)))(BOX)
    for transform in (jacrev, jacfwd):
        agree(transform(jacobian)(BOX), expected)
    three = boxes(generator, 3)
    agree(vmap(jacobian)(three), torch.stack([jacobian(b) for b in three]))


# --- vmap -------------------------------------------------------------------------------------------------------------

N = 3


@pytest.mark.parametrize(("image_dim", "box_dim"), [(0, None), (None, 0), (0, 0), (1, 0), (3, 1), (-1, -1), (1, None)])
@pytest.mark.parametrize("batch", [None, "image", "batch", "groups"])
def test_vmap(impl, image_dim, box_dim, batch, generator):
    """Over images, boxes or both, along any dimension, alone or with the batch dimensions of the call itself."""
    leading = {None: ((), ()), "image": ((), (4,)), "batch": ((2,), (2,)), "groups": ((2,), (2, 2))}[batch]
    pictures, several = image(generator, N, *leading[0]), boxes(generator, N, *leading[1])
    over_image = pictures[0] if image_dim is None else pictures.movedim(0, image_dim)
    over_boxes = several[0] if box_dim is None else several.movedim(0, box_dim)
    expected = torch.stack([
        mine(impl)(pictures[0 if image_dim is None else n], several[0 if box_dim is None else n]) for n in range(N)
    ])  # fmt: skip
    result = vmap(mine(impl), (image_dim, box_dim))(over_image, over_boxes)
    assert result.shape == expected.shape
    agree(result, expected, 1e-14)
    assert (result[0] != result[1]).any()

    def total(i, b):
        return mine(impl)(i, b).square().sum()

    by_one = [grad(total, (0, 1))(pictures[0 if image_dim is None else n], several[0 if box_dim is None else n])
              for n in range(N)]  # fmt: skip
    by_image, by_box = vmap(grad(total, (0, 1)), (image_dim, box_dim))(over_image, over_boxes)
    agree(by_image, torch.stack([i for i, _ in by_one]))
    agree(by_box, torch.stack([b for _, b in by_one]))


@pytest.mark.parametrize("in_dims", list(itertools.product((0, None), repeat=3))[:-1], ids=str)
def test_vmap_with_batch_index(impl, in_dims, generator):
    pictures, several = image(generator, N, 2), boxes(generator, N, 4)
    index = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 1]])
    stacked = pictures, several, index

    def indexed(i, b, r):
        return crop(i, b, SIZE, batch_index=r, impl=impl, **SMOOTH)

    given = [t if d == 0 else t[0] for t, d in zip(stacked, in_dims, strict=True)]
    each = [[t[n if d == 0 else 0] for t, d in zip(stacked, in_dims, strict=True)] for n in range(N)]
    expected = torch.stack([indexed(*one) for one in each])
    agree(vmap(indexed, in_dims)(*given), expected, 1e-14)
    assert (expected[0] != expected[1]).any()
    total = grad(lambda i, b, r: indexed(i, b, r).square().sum(), (0, 1))
    agree(vmap(total, in_dims)(*given), [torch.stack(g) for g in zip(*[total(*one) for one in each], strict=True)])


def test_nested_vmap(impl, generator):
    pictures, several = image(generator, N), boxes(generator, 2, N)
    expected = torch.stack([torch.stack([mine(impl)(pictures[n], several[m, n]) for n in range(N)]) for m in range(2)])
    agree(vmap(vmap(mine(impl)), (None, 0))(pictures, several), expected, 1e-14)
    across = vmap(vmap(mine(impl), (None, 0)), (0, 1), 1)(pictures, several)
    agree(across.movedim(1, 0)[2, 1], mine(impl)(pictures[2], several[1, 2]), 1e-14)
    every = vmap(vmap(mine(impl), (None, 0)), (0, None))(pictures, several[0])
    assert every.shape == (N, N, 2, *SIZE)
    agree(every[1, 2], mine(impl)(pictures[1], several[0, 2]), 1e-14)


def test_vmap_over_tangents_and_hessians(impl, generator):
    picture, several = image(generator), boxes(generator, N)
    tangents = torch.rand(N, 4, generator=generator, dtype=f64)

    def push(b, t):
        return jvp(lambda c: mine(impl)(picture, c), (b,), (t,))[1]

    agree(vmap(push)(several, tangents), torch.stack([push(b, t) for b, t in zip(several, tangents, strict=True)]))

    def curved(b):
        return mine(impl)(picture, b).square().sum()

    expected = [plain_hessian(lambda b: plain(picture, b).square().sum(), (b,), (0,))[0] for b in several]
    agree(vmap(hessian(curved))(several), torch.stack(expected))


def test_per_sample_gradients(impl, generator):
    """`functional_call` of a module with a box as its parameter: the idiom of per-sample gradients."""
    module = diffcrop.nn.LearnableBox((4, 5), init=[0.4, 0.7, 3.1, 3.3], dtype=f64)
    pictures = image(generator, N)
    parameters = dict(module.named_parameters())

    def one(parameters, picture):
        return mine(impl)(picture, functional_call(module, parameters, ())).square().sum()

    mapped = vmap(grad(one), (None, 0))(parameters, pictures)["raw"]
    loop = []
    for picture in pictures:
        loop.append(torch.autograd.grad(mine(impl)(picture, module()).square().sum(), module.raw)[0])
    agree(mapped, torch.stack(loop))
