"""Whatever differentiates, maps, records or compiles a crop gets what plain autograd of plain PyTorch gives.

"Plain" is the reference's forward, called as the ordinary PyTorch code that it is, outside of every operator, Function
and dispatch; that its own derivatives are right is for the other tests to say.
"""

from __future__ import annotations

import copy
import itertools
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import diffcrop
from diffcrop import _ops, coverage, crop, crop_with_jacobian
from diffcrop._options import Options
from plain import BOX, SIZE, SMOOTH, agree, boxes, described, f64, image, loss, mine, needs_kernels, plain

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


# --- shapes without numbers -------------------------------------------------------------------------------------------

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_fake_tensors(impl, layout, dtype, generator):
    """Shapes, strides and dtypes of the crop, its gradients and its jacobian."""
    i = (torch.rand(2, 3, 7, 9, generator=generator) * 200).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    b = boxes(generator, 2, 3).float()

    def everything(i, b):
        inputs = [t.detach().requires_grad_() for t in (i, b) if t.is_floating_point()]
        images = inputs[0] if len(inputs) == 2 else i
        result = crop(images, inputs[-1], (4, 5), impl=impl)
        grads = torch.autograd.grad(result.sum(), inputs)
        nearest = crop(i, b, (4, 5), mode="nearest", impl=impl)
        return [result, *grads, nearest, *crop_with_jacobian(i, b, (4, 5), impl=impl)]

    expected = described(everything(i, b))
    with FakeTensorMode() as mode:
        found = described(everything(mode.from_tensor(i), mode.from_tensor(b)))
    assert found[0] == expected[0]
    if impl == "reference":  # the gradients that autograd makes of plain PyTorch have no layout of their own
        found, expected = ([(shape, dtype) for shape, _, dtype in those] for those in (found, expected))
    assert found == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_meta_tensors(layout, generator):
    """The meta device, which the reference serves; what a large model costs is asked there."""
    i = image(generator, 2).contiguous(memory_format=LAYOUTS[layout])
    b = boxes(generator, 2)
    index = torch.tensor([1, 0])
    expected = crop(i, b, (4, 5), batch_index=index)
    for given in (None, index.to("meta")):
        result = crop(i.to("meta"), b.to("meta"), (4, 5), batch_index=given)
        assert result.is_meta
        assert described([result]) == described([expected])
    assert coverage(b.to("meta"), (4, 5), 8).shape == (2, 4, 5)


def op_arguments(generator, dtype=f64, channels_last=False, requires_grad=False, index=None):
    i = image(generator, 2).to(dtype)
    i = i.contiguous(memory_format=torch.channels_last) if channels_last else i
    options = Options("bicubic", True, "constant", (0.25,))
    b = boxes(generator, 2)
    return i.requires_grad_(requires_grad), b.requires_grad_(requires_grad), index, list(SIZE), channels_last, options


@needs_kernels
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [None, [1, 0]], ids=["in order", "indexed"])
def test_opcheck(dtype, channels_last, index, generator):
    """Schemas, shapes and registrations of the operators; the numbers are for the other tests."""
    index = None if index is None else torch.tensor(index)
    i, b, index, size, layout, options = op_arguments(generator, dtype, channels_last, index=index)
    g = torch.rand(2, 2, *SIZE, generator=generator, dtype=f64).to(dtype)
    ops = torch.ops.diffcrop
    torch.library.opcheck(ops.crop.default, (i, b, index, size, layout, *options))
    torch.library.opcheck(ops.crop_grad_images.default, (g, b, index, i.shape, layout, *options.linear()))
    torch.library.opcheck(ops.crop_grad_boxes.default, (g, i, b, index, *options))
    torch.library.opcheck(ops.crop_jacobian.default, (i, b, index, size, *options))


@needs_kernels
def test_opcheck_with_gradients(generator):
    i, b, index, size, layout, options = op_arguments(generator, requires_grad=True)
    arguments = (i, b, index, size, layout, *options)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.diffcrop.crop.default, arguments, test_utils=tests)
    # It passes for an operator that has no gradient at all, so compare one.
    result = torch.ops.diffcrop.crop(*arguments)
    agree(result, plain(i, b), 1e-14)
    agree(torch.autograd.grad(result.square().sum(), (i, b)), torch.autograd.grad(plain(i, b).square().sum(), (i, b)))


@needs_kernels
@pytest.mark.parametrize("name", ["crop_grad_images", "crop_grad_boxes", "crop_jacobian"])
def test_operators_without_a_derivative_say_so(name, generator):
    """An operator that loses the graph in silence is how a compiled second derivative becomes zero."""
    i, b, index, size, layout, options = op_arguments(generator, requires_grad=True)
    g = torch.rand(2, 2, *SIZE, generator=generator, dtype=f64, requires_grad=True)
    arguments = {
        "crop_grad_images": (g, b, index, i.shape, layout, *options.linear()),
        "crop_grad_boxes": (g, i, b, index, *options),
        "crop_jacobian": (i, b, index, size, *options),
    }[name]
    inputs = [t for t in arguments if isinstance(t, torch.Tensor)]
    result = None
    try:
        result = torch.autograd.grad(getattr(torch.ops.diffcrop, name)(*arguments).square().sum(), inputs)
    except (RuntimeError, NotImplementedError) as error:
        assert "does not require grad" not in str(error)  # noqa: PT017 - the graph was lost
    if result is not None:
        assert all((t != 0).any() for t in result)


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_nothing_is_asked(impl, context, generator):
    i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
    expected = mine(impl)(i, b)
    assert expected.requires_grad
    with context():
        result = mine(impl)(i, b)
        jacobian = crop_with_jacobian(i, b, SIZE, impl=impl, **SMOOTH).jacobian
        nearest = crop(i, b, SIZE, mode="nearest", impl=impl)
    assert torch.equal(result, expected)
    assert not result.requires_grad
    assert not jacobian.requires_grad
    assert not nearest.requires_grad
    assert result.is_inference() == (context is torch.inference_mode)


@pytest.mark.parametrize(("by_image", "by_box"), [(True, True), (True, False), (False, True), (False, False)])
def test_only_what_requires_grad_costs_one(impl, by_image, by_box, generator):
    """A frozen image costs no image gradient, a fixed box no box gradient; boxes come first, see DESIGN.md."""
    i, b = image(generator).requires_grad_(by_image), BOX.clone().requires_grad_(by_box)
    called = []

    def spy(function):
        original = function.forward

        def forward(*arguments):
            called.append(function)
            return original(*arguments)

        return mock.patch.object(function, "forward", staticmethod(forward))

    with spy(_ops._GradImages), spy(_ops._GradBoxes):
        result = mine(impl)(i, b)
        assert result.requires_grad == (by_image or by_box)
        if result.requires_grad:
            result.square().sum().backward()
    assert called == [_ops._GradBoxes] * by_box + [_ops._GradImages] * by_image
    i2, b2 = i.detach().requires_grad_(by_image), b.detach().requires_grad_(by_box)
    if by_image or by_box:
        plain(i2, b2).square().sum().backward()
    for one, other, wanted in ((i, i2, by_image), (b, b2, by_box)):
        assert (one.grad is not None) == wanted
        if wanted:
            agree(one.grad, other.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_but_the_inputs_is_saved(impl, layout, generator):
    i = image(generator, 2).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    b = boxes(generator, 2).requires_grad_()
    index = torch.tensor([1, 0])
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = crop(i, b, SIZE, batch_index=index, impl=impl, **SMOOTH)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in (i, b, index)}
    assert sum(t.numel() for t in saved) == i.numel() + b.numel() + index.numel()
    result.sum().backward()


def test_an_input_that_was_changed_is_noticed(impl, generator):
    """Inputs are saved as themselves, so autograd's version counter watches them."""
    for changed in (0, 1):
        i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
        result = mine(impl)(i, b)
        with torch.no_grad():
            (i, b)[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


def test_a_graph_can_be_used_twice(impl, generator):
    i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
    result = mine(impl)(i, b).square().sum()
    first = torch.autograd.grad(result, (i, b), retain_graph=True)
    second = torch.autograd.grad(result, (i, b))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_autocast_changes_nothing(impl, dtype, generator):
    """Not the image's dtype, no position, no bit of any derivative; also where backward runs inside."""
    i, b = image(generator, 2).to(dtype), boxes(generator, 2).float()
    direction = torch.rand(2, 4, generator=generator)

    def everything():
        x, y = i.clone().requires_grad_(), b.clone().requires_grad_()
        value = mine(impl)(x, y)
        first = torch.autograd.grad(value.float().square().sum(), (x, y), create_graph=True)
        second = torch.autograd.grad(first[1].square().sum() + first[0].float().square().sum(), (x, y))
        _, pushed = jvp(lambda c: mine(impl)(i, c), (b,), (direction,))
        jacobians = [
            crop_with_jacobian(i, b, SIZE, box_format=f, impl=impl, **SMOOTH).jacobian for f in ("xyxy", "cxcywh")
        ]
        return {
            "value": value,
            "by_image": first[0],
            "by_box": first[1],
            "second_by_image": second[0],
            "second_by_box": second[1],
            "pushed": pushed,
            "jacobian": jacobians[0],
            "jacobian_of_centre": jacobians[1],
        }

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # it is on
        result = everything()
    assert expected["value"].dtype == expected["jacobian"].dtype == dtype
    different = [
        name
        for name in expected
        if result[name].dtype != expected[name].dtype or not torch.equal(result[name], expected[name])
    ]
    assert not different


def test_copies_of_a_model_are_independent(impl, generator):
    """`copy.deepcopy` of a module that crops by a box it learns, after a step has been taken."""

    class Glimpse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.box = diffcrop.nn.LearnableBox((4, 5), init=[0.4, 0.7, 3.1, 3.3], dtype=f64)
            self.crop = diffcrop.nn.Crop(SIZE, impl=impl, **SMOOTH)

        def forward(self, picture):
            return self.crop(picture, self.box())

    model, picture = Glimpse(), image(generator)
    model(picture).square().sum().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(picture), model(picture))
    before = model(picture).detach()
    twin(picture).square().sum().backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert torch.equal(model(picture), before)
    assert not torch.equal(twin(picture), before)


def test_checkpointing_recomputes_the_same(impl, generator):
    from torch.utils.checkpoint import checkpoint

    i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
    again = torch.autograd.grad(checkpoint(mine(impl), i, b, use_reentrant=False).square().sum(), (i, b))
    once = torch.autograd.grad(mine(impl)(i, b).square().sum(), (i, b))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
