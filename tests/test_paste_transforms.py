"""`paste` under transforms: the kernels serve `vmap` and reverse mode, the numbers are those of plain autograd."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

import diffcrop
from diffcrop import paste
from helpers import rand
from plain import needs_kernels

IMPLEMENTATIONS = [pytest.param("cpu", marks=needs_kernels), "reference"]
f64 = torch.float64
SMOOTH = {"mode": "bicubic", "return_mask": True}
BOXES = torch.tensor([[0.3, 0.4, 4.9, 3.2], [5.7, 1.8, 2.2, 4.6], [-1.2, -0.7, 3.3, 2.1]], dtype=f64)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def inputs(generator, *leading):
    """Patches of two canvases, their alpha, boxes, canvases and which of them each patch goes to."""
    patches, alpha = (rand(*leading, 3, c, 3, 4, generator=generator) for c in (2, 1))
    boxes = BOXES + 0.3 * rand(*leading, 3, 4, generator=generator)
    return patches, alpha, boxes, rand(*leading, 2, 2, 5, 6, generator=generator), torch.tensor([1, 0, 1])


def pasted(impl, **options):
    """As one tensor; the options may name `index`."""
    index = options.pop("index", None)

    def function(p, a, b, c, i=index):
        one = c.ndim == 3
        return torch.cat(
            paste(p, b, canvas=c, alpha=a, batch_index=None if one else i, impl=impl, **SMOOTH | options), -3
        )

    return function


def agree(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * max(1.0, float(other.abs().max())))
        assert (other != 0).any()


@pytest.mark.parametrize("blend", ["over", "add"])
@pytest.mark.parametrize("dims", [
    (0, 0, 0, 0), (None, None, 0, None), (0, None, None, None), (None, None, None, 0), (1, 0, 2, 3),
    (None, None, None, None),
])  # fmt: skip
def test_vmap(impl, dims, blend, generator):
    """Each argument batched or shared, in any dimension; a batch of batches of canvases, with an index and without."""
    *stacks, index = inputs(generator, 4)
    function = pasted(impl, blend=blend)
    given = [t[0] if d is None else t.movedim(0, d) for t, d in zip(stacks, dims, strict=True)]
    several = torch.stack([index, index.flip(0), index * 0, index * 0 + 1])
    for by_index in (None, 0):
        rows = [[t[0 if d is None else k] for t, d in zip(stacks, dims, strict=True)] for k in range(4)]
        expected = [function(*row, several[k if by_index == 0 else 0]) for k, row in enumerate(rows)]
        if by_index is None and set(dims) == {None}:
            continue
        found = vmap(function, (*dims, by_index))(*given, several if by_index == 0 else several[0])
        agree(found, expected)


def test_vmap_of_one_canvas_and_of_groups(impl, generator):
    """Without an index patches keep to their canvases: one each, or K to a canvas."""
    *stacks, _ = inputs(generator, 4)
    patches, alpha, boxes, canvas = stacks
    one = pasted(impl)
    given = patches, alpha, boxes, canvas[:, 0]
    each = [one(*row) for row in zip(*given, strict=True)]
    agree(vmap(one)(*given), each)
    grouped = [t.unflatten(0, (2, 2)) for t in given]
    found = vmap(one, (0, 0, 0, 0))(*[t[:, 0] for t in grouped])
    agree(found, [one(*[t[k, 0] for t in grouped]) for k in range(2)])

    def several(p, b):
        return paste(p, b, (5, 6), blend="add", impl=impl)

    found = vmap(several)(*(t.unflatten(0, (2, 2)) for t in (patches, boxes)))
    agree(found, [several(patches[:2], boxes[:2]), several(patches[2:], boxes[2:])])
    nested = vmap(vmap(one))(*grouped)
    agree(nested.flatten(0, 1), each)
    none = vmap(one)(*[t[:0] for t in stacks[:3]], canvas[:0, 0])
    assert none.shape == (0, 3, 5, 6)
    assert vmap(several)(patches[:, :0], boxes[:, :0]).eq(0).all()


@pytest.mark.parametrize("blend", ["over", "add"])
def test_gradients_under_vmap(impl, blend, generator):
    """vmap(grad) by everything, with shared arguments, and grad(vmap)."""
    *stacks, index = inputs(generator, 3)
    weight = rand(2, 3, 5, 6, generator=generator)
    function = pasted(impl, blend=blend, index=index)

    def loss(p, a, b, c):
        return (function(p, a, b, c) * weight).square().sum()

    def by_hand(*row):
        leaves = [t.clone().requires_grad_() for t in row]
        return torch.autograd.grad(loss(*leaves), leaves)

    each = [by_hand(*row) for row in zip(*stacks, strict=True)]
    expected = [torch.stack(parts) for parts in zip(*each, strict=True)]
    agree(vmap(grad(loss, (0, 1, 2, 3)))(*stacks), expected)
    agree(grad(lambda *t: vmap(loss)(*t).sum(), (0, 1, 2, 3))(*stacks), expected)
    for k in range(4):  # one argument alone in a batch, the gradient by all
        dims = tuple(0 if i == k else None for i in range(4))
        given = [t if i == k else t[0] for i, t in enumerate(stacks)]
        each = [by_hand(*[t[j] if i == k else t for i, t in enumerate(given)]) for j in range(3)]
        agree(vmap(grad(loss, (0, 1, 2, 3)), dims)(*given), [torch.stack(parts) for parts in zip(*each, strict=True)])


@pytest.mark.parametrize(("impl", "masks", "blend"), [
    pytest.param("cpu", True, "over", marks=needs_kernels),
    pytest.param("cpu", False, "over", marks=needs_kernels),
    pytest.param("cpu", True, "add", marks=needs_kernels),
    ("reference", True, "over"),
])  # fmt: skip
def test_second_derivatives(impl, masks, blend, generator):
    """hessian, jacrev(jacrev), vmap(hessian) and forward over reverse, against autograd."""
    *given, index = inputs(generator)
    weight = rand(2, 3 if masks else 2, 5, 6, generator=generator)
    function = pasted(impl, blend=blend, index=index)

    def loss(b, c):
        value = function(given[0], given[1], b, c)
        return ((value if masks else value[:, :2]) * weight).square().sum()

    b, c = given[2:]
    expected = torch.autograd.functional.hessian(loss, (b, c))
    for transform in (hessian, lambda f, n: jacrev(jacrev(f, n), n)):
        found = transform(loss, (0, 1))(b, c)
        for mine, theirs in zip(found, expected, strict=True):
            agree(mine, theirs)
    stack = torch.stack([b, b + 0.1])
    found = vmap(hessian(loss), (0, None))(stack, c)
    agree(found, [torch.autograd.functional.hessian(lambda b: loss(b, c), one) for one in stack])
    push = rand(3, 4, generator=generator)
    _, tangent = jvp(grad(lambda b: loss(b, c)), (b,), (push,))
    agree([tangent], [torch.tensordot(expected[0][0], push, 2)])


NOWHERE = {
    "beside": [[30.0, 34.0, 40.0, 41.0]],
    "empty": [[1.0, 1.0, 1.0, 3.0]],
    "nan": [[1.0, 1.0, torch.nan, 3.0]],
    "none": [],
}


@pytest.mark.parametrize("blend", ["over", "add"])
@pytest.mark.parametrize("where", NOWHERE)
@pytest.mark.parametrize(("impl", "axes"), [
    pytest.param("cpu", 2, marks=needs_kernels), ("reference", 2), ("reference", 1)
])  # fmt: skip
def test_derivatives_where_nothing_is_pasted(impl, axes, where, blend, generator):
    """The canvas is the result: of its third power all derivatives are those of a power, to every order."""
    b = torch.tensor(NOWHERE[where], dtype=f64).reshape(-1, 4)[:, [0, 2] if axes == 1 else slice(None)]
    p = rand(len(b), 2, *(3, 4)[:axes], generator=generator)
    c, push = (rand(2, *(5, 6)[:axes], generator=generator) + 0.5 for _ in range(2))

    def loss(c, b=b):
        result, mask = paste(p, b, canvas=c, blend=blend, return_mask=True, impl=impl)
        return (result**3).sum() + mask.sum()

    leaves = [t.clone().requires_grad_() for t in (c, b)]
    first, by_box = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    assert by_box.isnan().all() if where == "nan" else by_box.eq(0).all()
    (second,) = torch.autograd.grad((first * push).sum(), leaves[0], create_graph=True)
    (third,) = torch.autograd.grad((second * push).sum(), leaves[0])
    agree((first, second, third), (3 * c**2, 6 * c * push, 6 * push**2))
    _, slope = jvp(grad(loss), (c,), (push,))
    agree((slope, hessian(loss)(c).flatten(axes + 1).sum(-1)), (6 * c * push, 6 * c))
    agree(vmap(grad(loss))(torch.stack([c, push])), (3 * c**2, 3 * push**2))


@needs_kernels
def test_the_kernels_serve(monkeypatch, generator):
    """Under vmap and reverse mode; the reference serves forward mode and second derivatives."""
    from diffcrop._impl import pasting

    *stacks, index = inputs(generator, 3)
    function = pasted("cpu", index=index)
    calls = []
    right = pasting.paste
    monkeypatch.setattr(pasting, "paste", lambda *a: calls.append(1) or right(*a))
    vmap(function)(*stacks)
    vmap(grad(lambda *t: function(*t).sum(), (0, 1, 2, 3)))(*stacks)
    vmap(vmap(lambda b: function(stacks[0][0], stacks[1][0], b, stacks[3][0])))(stacks[2][None])
    vjp(lambda b: function(stacks[0][0], stacks[1][0], b, stacks[3][0]), stacks[2][0])[1](
        torch.ones(2, 3, 5, 6, dtype=f64)
    )
    assert not calls
    jvp(lambda b: function(stacks[0][0], stacks[1][0], b, stacks[3][0]), (stacks[2][0],), (stacks[2][1],))
    assert calls


def test_whole_numbers_and_boxes_without_a_place(impl, generator):
    """What is moved, canvases that there are not, and boxes that are not finite, one of each under vmap."""
    patches = torch.randint(0, 200, (4, 3, 2, 3, 4), generator=generator, dtype=torch.uint8)
    boxes, index = BOXES.expand(4, 3, 4).clone(), torch.tensor([[0, 1, 0], [1, 2, -1], [0, 0, 0], [1, 1, 0]])
    boxes[2, 1, 0] = torch.nan
    options = {"mode": "nearest", "batch_size": 2, "return_mask": True, "impl": impl}

    def move(p, b, i):
        return tuple(paste(p, b, (5, 6), batch_index=i, **options))

    found, mask = vmap(move)(patches, boxes, index)
    assert found.dtype == torch.uint8
    for k in range(4):
        kept = (index[k] >= 0) & (index[k] < 2) & boxes[k].isfinite().all(-1)
        one, its_mask = move(patches[k][kept], boxes[k][kept], index[k][kept])
        assert found[k].equal(one)
        assert mask[k].equal(its_mask)

    boxes[3, 2, 2] = boxes[3, 2, 0]  # empty
    canvas = rand(2, 2, 5, 6, generator=generator)
    lay = pasted(impl)

    def over(p, b, i):
        return lay(p.double(), p[:, :1].double() / 255, b, canvas, i)

    found = vmap(over)(patches, boxes, index)
    for k in range(4):
        kept = (index[k] >= 0) & (index[k] < 2) & boxes[k].isfinite().all(-1)
        agree([found[k]], [over(patches[k][kept], boxes[k][kept], index[k][kept])])

    def total(b, i):
        return paste(patches[0].double(), b, (5, 6), batch_index=i, batch_size=2, impl=impl).square().sum()

    slopes = vmap(grad(total))(boxes, index)
    lost = ~((index >= 0) & (index < 2) & boxes.isfinite().all(-1))
    assert slopes[lost].isnan().all()
    assert slopes[~lost].isfinite().all()
    assert (slopes[~lost] != 0).any()


def test_layouts(impl, generator):
    """Canvases in channels_last, in a transform: the same numbers."""
    *given, index = inputs(generator)
    function = pasted(impl, index=index)
    last = given[3].contiguous(memory_format=torch.channels_last)
    push = rand(2, 3, 5, 6, generator=generator)
    for canvas in (given[3], last):
        _, pull = vjp(function, *given[:3], canvas)
        leaves = [t.clone().requires_grad_() for t in (*given[:3], canvas)]
        agree(pull(push), torch.autograd.grad((function(*leaves) * push).sum(), leaves))
    stack = torch.stack([last, last + 1])
    agree(vmap(function, (None, None, None, 0))(*given[:3], stack), [function(*given[:3], c) for c in stack])


def test_per_sample_gradients_of_a_module(impl, generator):
    """vmap over the parameters of a module whose boxes are learned."""
    module = diffcrop.nn.LearnableBox((5, 6), init=[0.4, 0.7, 4.1, 3.3], dtype=f64)
    patches = rand(3, 2, 3, 4, generator=generator)

    def loss(parameters, patch):
        box = functional_call(module, parameters, ())
        return paste(patch, box, (5, 6), impl=impl).square().sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    found = vmap(grad(loss), (None, 0))(parameters, patches)["raw"]
    expected = [grad(loss)(parameters, patch)["raw"] for patch in patches]
    agree(found, expected)
    raw = parameters["raw"].clone().requires_grad_()
    (by_hand,) = torch.autograd.grad(loss({"raw": raw}, patches[0]), raw)
    agree([found[0]], [by_hand])


@pytest.mark.parametrize(
    "transform", ["grad", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap", "vmap(grad)", "jvp"))]
)
def test_compiled_transforms(transform, generator):
    """One graph, and no derivative that is silently zero."""
    torch._dynamo.reset()
    *stacks, index = inputs(generator, 2)
    function = pasted(None, index=index)

    def loss(p, a, b, c):
        return function(p, a, b, c).square().sum()

    calls = {
        "grad": lambda *t: grad(loss, (0, 1, 2, 3))(*[one[0] for one in t]),
        "vmap": lambda *t: (vmap(function)(*t),),
        "vmap(grad)": lambda *t: vmap(grad(loss, (0, 1, 2, 3)))(*t),
        "jvp": lambda *t: jvp(lambda b: function(t[0][0], t[1][0], b, t[3][0]), (t[2][0],), (t[2][1],)),
    }
    found = torch.compile(calls[transform], fullgraph=True, backend="aot_eager")(*stacks)
    agree(found, calls[transform](*stacks))


# --- flops ------------------------------------------------------------------------------------------------------------


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(k).removeprefix("diffcrop."): n for k, n in counter.get_flop_counts().get("Global", {}).items()}


@needs_kernels
def test_flops_are_counted_from_shapes(generator):
    """Patches of 16 x 12 on canvases of 4 x 6, bilinear: reductions 4 and 2, so 8 and 4 taps an output."""
    p = torch.rand(2, 3, 16, 12, generator=generator).requires_grad_()
    a = torch.rand(2, 1, 16, 12, generator=generator)
    b = torch.tensor([[1.0, 1, 3, 4], [0, 0, 6, 4]], requires_grad=True)

    def crops(planes):
        return 2 * planes * min(12 * 4 * 8 + 4 * 6 * 4, 16 * 6 * 4 + 6 * 4 * 8)

    pixels = 2 * 4 * 6
    given = {"size": (4, 6), "impl": "cpu"}
    detached = p.detach(), b.detach()
    assert counted(lambda: paste(*detached, **given)) == {"paste": crops(6) + 3 * 3 * pixels}
    assert counted(lambda: paste(*detached, **given, blend="add")) == {"paste": crops(6) + 3 * pixels}
    assert counted(lambda: paste(*detached, **given, alpha=a)) == {"paste": crops(8) + 3 * 3 * pixels}
    assert counted(lambda: paste(*detached, **given, return_mask=True)) == {"paste": crops(6) + 3 * 4 * pixels}
    assert counted(lambda: paste(*detached, **given, mode="nearest")) == {"paste": 3 * 3 * pixels}
    unaliased = 2 * 6 * min(12 * 4 * 2 + 4 * 6 * 2, 16 * 6 * 2 + 6 * 4 * 2)
    assert counted(lambda: paste(*detached, **given, antialias=False, blend="add")) == {"paste": unaliased + 3 * pixels}
    over = crops(6) + 3 * 3 * pixels
    assert counted(lambda: paste(p, b, **given).sum().backward()) == {
        "paste": over, "paste_backward": 4 * crops(6) + 7 * 3 * pixels
    }  # fmt: skip
    assert counted(lambda: paste(p, b.detach(), **given, blend="add").sum().backward()) == {
        "paste": crops(6) + 3 * pixels, "paste_backward": crops(6)
    }  # fmt: skip
    result = counted(lambda: sum(t.sum() for t in paste(p.detach(), b, **given, return_mask=True)).backward())
    assert result == {"paste": crops(6) + 3 * 4 * pixels, "paste_backward": 3 * crops(6) + 7 * 4 * pixels}


COUNTED_FIRST = """
from torch.utils.flop_counter import FlopCounterMode
import torch, diffcrop
patches, box = torch.rand(1, 3, 8, 8), torch.tensor([[1.0, 1, 7, 7]], requires_grad=True)
with FlopCounterMode(display=False) as counter:
    diffcrop.paste(patches, box, 9, impl="cpu").sum().backward()
print(*sorted(map(str, counter.get_flop_counts()["Global"])))
"""


@needs_kernels
def test_flops_are_counted_where_the_counter_came_first():
    done = subprocess.run([sys.executable, "-c", COUNTED_FIRST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["diffcrop.paste", "diffcrop.paste_backward"]
