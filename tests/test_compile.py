"""A compiled or exported crop is the eager one, in one graph whatever its sizes."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import vjp

import diffcrop
from diffcrop import coverage, crop, crop_with_jacobian
from plain import BOX, IMPLEMENTATIONS, SIZE, SMOOTH, agree, boxes, described, f64, flat, image, mine

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


CALLS = {
    "default": {},
    "bicubic": SMOOTH,
    "nearest": {"mode": "nearest", "padding_mode": "reflection"},
    "unit centres": {"mode": "area", "coords": "unit", "box_format": "cxcywh"},
    "gaussian": {"mode": "gaussian", "padding_mode": "circular", "align_corners": True},
}


# The reference compiles as the plain PyTorch that it is, at length.
COMPILED = [(impl, name) for impl, name in itertools.product(IMPLEMENTATIONS, CALLS)
            if impl == "cpu" or name in ("default", "unit centres")]  # fmt: skip


@pytest.mark.parametrize(("impl", "name"), COMPILED)
def test_compiled_forward_and_backward(impl, name, generator):
    options = CALLS[name]
    function = torch.compile(lambda i, b: crop(i, b, SIZE, impl=impl, **options), fullgraph=True, backend="aot_eager")
    fixed = options.get("mode") == "nearest"
    i, b = image(generator, 2).requires_grad_(), boxes(generator, 2).requires_grad_(not fixed)
    expected, result = crop(i, b, SIZE, impl=impl, **options), function(i, b)
    agree(result, expected, 1e-14)
    inputs = (i,) if fixed else (i, b)
    agree(
        torch.autograd.grad(result.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), inputs), 1e-12
    )


@pytest.mark.parametrize("row", ["image", "shared", "groups", "list of boxes", "index"])
def test_compiled_rows_of_the_table(impl, row, generator):
    i = image(generator, 2)
    b = {"image": boxes(generator, 3), "shared": BOX, "groups": boxes(generator, 2, 3), "index": boxes(generator, 3),
         "list of boxes": [boxes(generator, 2), boxes(generator, 1)]}[row]  # fmt: skip
    index = torch.tensor([1, 0, 1]) if row == "index" else None
    i = i[0] if row == "image" else i

    def call(i, b, index):
        return crop(i, b, SIZE, batch_index=index, impl=impl, **SMOOTH)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    agree(compiled(i, b, index), call(i, b, index), 1e-14)


def test_one_graph_for_many_sizes(impl, generator):
    compilations = 0  # until the first call has been served: the compiler may start over
    counter = CompileCounterWithBackend("aot_eager")

    def total(i, b, h, w):
        return crop(i, b, (h, w), impl=impl).square().sum()

    compiled = torch.compile(total, fullgraph=True, dynamic=True, backend=counter)
    # All different at first: equal sizes would be taken to belong together.
    for count, height, width, h, w in [(6, 8, 9, 5, 7), (3, 12, 5, 4, 11), (5, 5, 17, 11, 2)]:
        i = torch.rand(count, 3, height, width, generator=generator, dtype=f64, requires_grad=True)
        b = (boxes(generator, count) * 1.1).requires_grad_()
        expected, result = total(i, b, h, w), compiled(i, b, h, w)
        compilations = compilations or counter.frame_count
        agree(result, expected, 1e-13)
        agree(torch.autograd.grad(result, (i, b)), torch.autograd.grad(expected, (i, b)), 1e-12)
    assert counter.frame_count == compilations > 0


def test_one_graph_where_only_the_image_changes(impl, generator):
    """Sizes that are marked dynamic rather than all."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda i, b: crop(i, b, SIZE, impl=impl), fullgraph=True, backend=counter)
    for height, width in [(6, 7), (9, 8), (12, 5)]:
        i = torch.rand(3, height, width, generator=generator, dtype=f64)
        torch._dynamo.mark_dynamic(i, 1)
        torch._dynamo.mark_dynamic(i, 2)
        agree(compiled(i, BOX), crop(i, BOX, SIZE, impl=impl), 1e-14)
    assert counter.frame_count == 1


def fresh(code):
    """Run code in a new process and return the JSON that it prints last."""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COMPILED_TRANSFORMS = """
import json, sys, torch, diffcrop
from torch.func import grad, hessian, jacrev, jvp, vmap
torch.manual_seed(0)
picture = torch.rand(2, 4, 5, dtype=torch.float64)
box = torch.tensor([-0.7, 1.3, 5.9, 2.8], dtype=torch.float64)
crop = lambda b: diffcrop.crop(picture, b, (2, 3), mode="bicubic", impl=IMPL)
loss = lambda b: crop(b).square().sum()
cases = {
    "grad": grad(loss),
    "grad of both": grad(lambda b: diffcrop.crop(picture * b[0], b, (2, 3), mode="bicubic", impl=IMPL).square().sum()),
    "jacrev": jacrev(crop),
    "grad of grad": grad(lambda b: grad(loss)(b).square().sum()),
    "hessian": hessian(loss),
    "vmap": lambda b: vmap(crop)(torch.stack([b, b + 0.1])),
    "vmap of grad": lambda b: vmap(grad(loss))(torch.stack([b, b + 0.1])),
    "jvp": lambda b: jvp(loss, (b,), (torch.ones_like(b),))[1],
}
found = {}
names = list(cases) if IMPL == "cpu" else ["grad", "vmap of grad"]  # the reference compiles as plain PyTorch, at length
eager = {name: cases[name](box) for name in names}
for name in names:  # jvp last: its failure leaves the process in a dual level
    torch._dynamo.reset()
    try:
        compiled = torch.compile(cases[name], fullgraph=True, backend="aot_eager")(box)
        found[name] = float((compiled - eager[name]).abs().max() / eager[name].abs().max())
    except Exception as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


def test_compiled_transforms_are_right_or_raise(impl):
    """In a fresh process, which a failed compilation may leave in disorder. Zeros without a word are what to fear."""
    found = fresh(COMPILED_TRANSFORMS.replace("IMPL", repr(impl)))
    wrong = {name: error for name, error in found.items() if not isinstance(error, str) and not error < 1e-11}
    assert not wrong, found
    for name in {"grad", "grad of both", "jacrev"} & set(found):
        assert not isinstance(found[name], str), found


def test_compiled_as_the_first_call_of_a_process():
    found = fresh(
        "import json, torch, diffcrop\n"
        "f = torch.compile(lambda i, b: diffcrop.crop(i, b, 3), fullgraph=True, backend='aot_eager')\n"
        "i = torch.arange(48.0).reshape(1, 6, 8).requires_grad_()\n"
        "b = torch.tensor([1.0, 1, 4, 4], requires_grad=True)\n"
        "out = f(i, b)\n"
        "out.sum().backward()\n"
        "print(json.dumps([out.tolist(), b.grad.tolist(), float(i.grad.sum())]))"
    )
    # Pixels 1..3 of rows 1..3 of a ramp of slope 1 along x and 8 along y; each corner moves them by half on average.
    assert found[0] == [[[9, 10, 11], [17, 18, 19], [25, 26, 27]]]
    assert found[1] == pytest.approx([4.5, 36, 4.5, 36])
    assert found[2] == 9


# --- what runs is compiled --------------------------------------------------------------------------------------------


def slow_reference(impl):
    """The reference's C++ takes long to compile."""
    return pytest.param(impl, marks=pytest.mark.slow if impl == "reference" else ())


INDUCTOR = [slow_reference(impl) for impl in IMPLEMENTATIONS]


@pytest.mark.parametrize("impl", INDUCTOR)
def test_inductor(impl, generator):
    function = torch.compile(mine(impl), fullgraph=True)
    i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
    agree(function(i, b), mine(impl)(i, b), 1e-13)
    agree(
        torch.autograd.grad(function(i, b).square().sum(), (i, b)),
        torch.autograd.grad(mine(impl)(i, b).square().sum(), (i, b)),
        1e-12,
    )


@pytest.mark.parametrize("impl", INDUCTOR)
@pytest.mark.parametrize("cached", [False, True])
def test_inductor_makes_one_graph_for_many_sizes(impl, cached, monkeypatch, tmp_path, generator):
    """Batch, boxes and image, forward and backward; also where code comes from a file, with the guards kept there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(1 + cached):
        torch._dynamo.reset()
        compilations = 0  # until the first call has been served: the compiler may start over
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(lambda i, b: crop(i, b, SIZE, impl=impl).square().sum(), fullgraph=True, dynamic=True,
                                 backend=counter)  # fmt: skip
        # All different at first, as above.
        for count, several, height, width in [(6, 3, 8, 9), (5, 7, 12, 7), (3, 6, 5, 17)]:
            i = torch.rand(count, 2, height, width, generator=generator, dtype=f64, requires_grad=True)
            b = boxes(generator, count, several).requires_grad_()
            expected, result = crop(i, b, SIZE, impl=impl).square().sum(), compiled(i, b)
            compilations = compilations or counter.frame_count
            agree(result, expected, 1e-13)
            agree(torch.autograd.grad(result, (i, b)), torch.autograd.grad(expected, (i, b)), 1e-12)
        assert counter.frame_count == compilations > 0


class Glimpse(torch.nn.Module):
    """Convolution, predicted boxes, their crops, a head."""

    def __init__(self, impl):
        super().__init__()
        self.features = torch.nn.Conv2d(2, 3, 3, padding=1, dtype=f64)
        self.where = torch.nn.Linear(3, 8, dtype=f64)
        self.head = torch.nn.Linear(3 * 16, 2, dtype=f64)
        self.crop = diffcrop.nn.Crop(4, coords="unit", box_format="cxcywh", impl=impl)

    def forward(self, images):
        features = self.features(images)
        where = torch.sigmoid(self.where(features.mean((2, 3)))).unflatten(1, (2, 4))
        return self.head(self.crop(features, where).flatten(2))


@pytest.mark.parametrize("impl", INDUCTOR)
def test_a_compiled_model_trains_as_the_eager_one(impl, generator):
    torch.manual_seed(0)
    model = Glimpse(impl)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True)
    for _ in range(3):
        i = torch.rand(3, 2, 12, 11, generator=generator, dtype=f64)
        for one, call in ((model, model), (twin, compiled)):
            optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
            optimizer.zero_grad()
            (call(i) - 1).square().mean().backward()
            optimizer.step()
    moved = 0.0
    torch.manual_seed(0)
    for start, one, other in zip(Glimpse(impl).parameters(), model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        moved += float((start - one).detach().abs().max() > 0)
    assert moved == 6  # every parameter, those that place the boxes too


@pytest.mark.parametrize("impl", INDUCTOR)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_inductor_by_dtype(impl, dtype, generator):
    i = (255 * image(generator, 2)).to(dtype)
    i = i.requires_grad_(i.is_floating_point())
    b = boxes(generator, 2).float().requires_grad_()
    function = torch.compile(lambda i, b: crop(i, b, SIZE, impl=impl), fullgraph=True)
    expected, result = crop(i, b, SIZE, impl=impl), function(i, b)
    assert result.dtype == expected.dtype
    inputs = [t for t in (i, b) if t.requires_grad]
    cotangent = torch.rand(result.shape, generator=generator).to(result.dtype)
    found = result, *torch.autograd.grad(result, inputs, cotangent)
    wanted = expected, *torch.autograd.grad(expected, inputs, cotangent)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        # A last place of the dtype, where the compiler sums in another order.
        most = 0 if impl == "cpu" else 2 * torch.finfo(one.dtype).eps * float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=most)
        assert other.detach().abs().max() > 0


@pytest.mark.parametrize("impl", INDUCTOR)
@pytest.mark.parametrize("row", ["list of boxes", "index"])
def test_inductor_with_owners(impl, row, generator):
    """Channels last in and out, with gradients, also of what no other test of this backend calls."""
    i = image(generator, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    b = boxes(generator, 3).requires_grad_()

    def call(i, b):
        if row == "index":
            return crop(i, b, SIZE, batch_index=torch.tensor([1, 0, 1]), impl=impl, **SMOOTH)
        return crop(i, [b[:1], b[1:]], SIZE, impl=impl, **SMOOTH)

    expected, result = call(i, b), torch.compile(call, fullgraph=True)(i, b)
    assert result.stride() == expected.stride()
    assert result.is_contiguous(memory_format=torch.channels_last)
    agree(result, expected, 1e-13)
    agree(*(torch.autograd.grad(r.square().sum(), (i, b)) for r in (result, expected)), 1e-12)


@pytest.mark.parametrize("impl", INDUCTOR)
@pytest.mark.parametrize("what", [pytest.param("jacobian", marks=pytest.mark.slow), "coverage", "box"])
def test_inductor_compiles_the_rest(impl, what, generator):
    """`crop_with_jacobian`, `coverage`, and a module that learns its box."""
    i = image(generator)
    module = diffcrop.nn.LearnableBox((4, 5), init=[0.4, 0.7, 3.1, 3.3], inside=True, dtype=f64)
    calls = {
        "jacobian": lambda b: crop_with_jacobian(i, b, SIZE, box_format="cxcywh", impl=impl, **SMOOTH),
        "coverage": lambda b: coverage(b, SIZE, (4, 5), mode="bicubic", impl=impl),
        "box": lambda b: crop(i, module() + 0 * b, SIZE, impl=impl, **SMOOTH),
    }
    b = (BOX if what != "jacobian" else torch.tensor([2.6, 2.1, 6.5, 1.5], dtype=f64)).clone()
    b.requires_grad_(what != "box")
    # A jacobian's derivative is the reference's, four times, for which a C++ compiler takes minutes.
    backend = "aot_eager" if what == "jacobian" else "inductor"
    expected, result = calls[what](b), torch.compile(calls[what], fullgraph=True, backend=backend)(b)
    agree(result, expected, 1e-12)
    if what == "jacobian" and impl == "cpu":
        agree(torch.compile(calls[what], fullgraph=True)(b.detach()), expected, 1e-12)
    inputs = module.raw if what == "box" else b
    agree(*(torch.autograd.grad(flat(r).square().sum(), inputs) for r in (result, expected)), 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reduced_overhead(generator):
    """In CUDA graphs, replayed with other boxes."""
    compiled = torch.compile(lambda i, b: crop(i, b, SIZE), fullgraph=True, mode="reduce-overhead")
    i = image(generator, 2).float().cuda().requires_grad_()
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        b = boxes(generator, 2).float().cuda().requires_grad_()
        expected, result = crop(i, b, SIZE), compiled(i, b).clone()
        agree(result.cpu(), expected.cpu(), 1e-6)
        found, wanted = (torch.autograd.grad(r.square().sum(), (i, b)) for r in (result, expected))
        agree([t.cpu() for t in found], [t.cpu() for t in wanted], 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_layouts(impl, layout, generator):
    """Compiled and transformed crops have the strides of eager ones."""
    i, b = image(generator, 2).contiguous(memory_format=LAYOUTS[layout]), boxes(generator, 2)
    expected = mine(impl)(i, b)
    assert expected.is_contiguous(memory_format=LAYOUTS[layout])
    compiled = torch.compile(mine(impl), fullgraph=True, backend="aot_eager")
    assert described([compiled(i, b)]) == described([expected])
    assert described([vjp(mine(impl), i, b)[0]]) == described([expected])
