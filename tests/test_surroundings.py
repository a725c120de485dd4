"""A crop inside of what can stand around it: fake tensors, modes, checkpoints, subclasses, files, workers, threads."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import diffcrop
from diffcrop import _ops, coverage, crop, crop_with_jacobian
from diffcrop._options import Options
from plain import BOX, SIZE, SMOOTH, agree, boxes, described, f64, image, mine, needs_kernels, plain

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
    i, b = image(generator).requires_grad_(), BOX.clone().requires_grad_()
    again = torch.autograd.grad(checkpoint(mine(impl), i, b, use_reentrant=False).square().sum(), (i, b))
    once = torch.autograd.grad(mine(impl)(i, b).square().sum(), (i, b))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def gradients(function, *inputs):
    return torch.autograd.grad(function(*inputs).square().sum(), inputs)


def leaves(generator):
    return image(generator).requires_grad_(), BOX.clone().requires_grad_()


def same(one, other):
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_crops_twice_and_gives_the_same(impl, reentrant, generator):
    i, b = leaves(generator)
    calls = []

    def counted(i, b):
        calls.append(1)
        return mine(impl)(i, b)

    again = gradients_by_backward(lambda i, b: checkpoint(counted, i, b, use_reentrant=reentrant), i, b)
    assert same(again, gradients(mine(impl), i, b))
    assert len(calls) == 2


def gradients_by_backward(function, *inputs):
    """`checkpoint` of the older kind knows `backward` alone."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    function(*inputs).square().sum().backward()
    return [t.grad for t in inputs]


@needs_kernels
@pytest.mark.parametrize(("policy", "crops"), [("MUST_SAVE", 1), ("MUST_RECOMPUTE", 2)])
def test_a_selective_checkpoint_knows_the_operator(policy, crops, generator):
    """The operator can be named in a policy: crops are kept, or made again, as that says."""
    i, b = leaves(generator)
    seen = Operators()

    def choose(context, operator, *arguments, **more):
        if operator is torch.ops.diffcrop.crop.default:
            return CheckpointPolicy[policy]
        return CheckpointPolicy.PREFER_RECOMPUTE

    def two(i, b):
        return mine("cpu")(i, b).sin().sin()

    def contexts():
        return create_selective_checkpoint_contexts(choose)

    with seen:
        again = gradients(lambda i, b: checkpoint(two, i, b, use_reentrant=False, context_fn=contexts), i, b)
    assert same(again, gradients(two, i, b))
    assert seen.count("diffcrop.crop.default") == crops


def test_saved_tensors_may_be_packed(impl, generator):
    i, b = leaves(generator)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.numpy(force=True).copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        found = gradients(mine(impl), i, b)
    assert same(found, gradients(mine(impl), i, b))
    assert (1, *i.shape) in packed
    with torch.autograd.graph.save_on_cpu():
        assert same(gradients(mine(impl), i, b), found)


# --- modes that watch -------------------------------------------------------------------------------------------------


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    def count(self, name):
        return self.names.count(name)


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@needs_kernels
def test_modes_see_the_operators(generator):
    i, b = leaves(generator)
    expected = gradients(mine("cpu"), i, b)
    with Operators() as operators:
        found = gradients(mine("cpu"), i, b)
        jacobian = crop_with_jacobian(i.detach(), BOX, SIZE, impl="cpu", **SMOOTH).jacobian
    assert same(found, expected)
    assert jacobian.any()
    ours = [name.removeprefix("diffcrop.").removesuffix(".default") for name in operators.names if "diffcrop" in name]
    assert ours == ["crop", "crop_grad_boxes", "crop_grad_images", "crop", "crop_jacobian"]
    # Functions that a backward calls are not shown, ours or PyTorch's: the mode is off inside of `autograd.grad`.
    with Functions() as functions:
        gradients(mine("cpu"), i, b)
    assert [name for name in functions.names if "diffcrop" in name] == ["diffcrop.crop.default"]


def test_a_mode_changes_no_reference(generator):
    i, b = leaves(generator)
    expected = gradients(mine("reference"), i, b)
    for mode in (Operators(), Functions(), FlopCounterMode(display=False)):
        with mode:
            agree(gradients(mine("reference"), i, b), expected, 1e-14)


# --- flops ------------------------------------------------------------------------------------------------------------


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(k).removeprefix("diffcrop."): n for k, n in counter.get_flop_counts().get("Global", {}).items()}


@needs_kernels
def test_flops_are_counted_from_shapes(generator):
    """16 x 12 to 4 x 6, bilinear: reductions 4 and 2, so 8 and 4 taps an output."""
    i = torch.rand(2, 3, 16, 12, generator=generator).requires_grad_()
    b = torch.tensor([[1.0, 2, 9, 11], [0, 0, 12, 16]], requires_grad=True)
    rows_first = 2 * 6 * (12 * 4 * 8 + 4 * 6 * 4)  # 2 flops a tap, 6 planes: 4 rows of 12, then 6 columns of 4
    columns_first = 2 * 6 * (16 * 6 * 4 + 6 * 4 * 8)
    once = min(rows_first, columns_first)
    assert counted(lambda: crop(i, b, (4, 6), impl="cpu")) == {"crop": once}
    assert counted(lambda: crop(i.mT, b, (6, 4), impl="cpu")) == {"crop": once}
    assert counted(lambda: crop(i, b, (4, 6), impl="cpu").sum().backward()) == {
        "crop": once, "crop_grad_boxes": 2 * once, "crop_grad_images": once
    }  # fmt: skip
    given = i.detach(), b.detach(), (4, 6)
    assert counted(lambda: crop_with_jacobian(*given, impl="cpu")) == {"crop": once, "crop_jacobian": 4 * once}
    assert counted(lambda: crop(*given, mode="nearest", impl="cpu")) == {"crop": 0}  # it only moves
    unaliased = 2 * 6 * min(12 * 4 * 2 + 4 * 6 * 2, 16 * 6 * 2 + 6 * 4 * 2)
    assert counted(lambda: crop(*given, antialias=False, impl="cpu")) == {"crop": unaliased}
    wide = 2 * 6 * min(12 * 4 * 16 + 4 * 6 * 12, 16 * 6 * 12 + 6 * 4 * 16)  # never more taps than pixels
    assert counted(lambda: crop(*given, mode="gaussian", sigma=50.0, impl="cpu")) == {"crop": wide}


@needs_kernels
def test_flops_of_signals_and_volumes(generator):
    """An axis is 16 -> 4, another 12 -> 6: 8 and 4 taps, the cheapest order of passes."""
    i = torch.rand(2, 3, 16, generator=generator).requires_grad_()
    b = torch.tensor([[1.0, 9], [0, 12]], requires_grad=True)
    once = 2 * 6 * 4 * 8
    assert counted(lambda: crop(i, b, 4, impl="cpu").sum().backward()) == {
        "crop": once, "crop_grad_boxes": once, "crop_grad_images": once
    }  # fmt: skip
    i, b = torch.rand(1, 2, 16, 12, 16, generator=generator), torch.tensor([[0.0, 0, 0, 16, 12, 16]])
    once = (
        2
        * 2
        * min(
            4 * 12 * 16 * 8 + 4 * 12 * 4 * 8 + 4 * 6 * 4 * 4,
            4 * 12 * 16 * 8 + 4 * 6 * 16 * 4 + 4 * 6 * 4 * 8,
            16 * 6 * 16 * 4 + 4 * 6 * 16 * 8 + 4 * 6 * 4 * 8,
        )
    )
    assert counted(lambda: crop_with_jacobian(i, b, (4, 6, 4), impl="cpu")) == {"crop": once, "crop_jacobian": 6 * once}


@needs_kernels
def test_flops_of_a_model_without_memory(generator):
    with FakeTensorMode():
        i, b = torch.empty(8, 3, 4096, 4096), torch.empty(8, 4)
        assert counted(lambda: crop(i, b, 224, impl="cpu"))["crop"] > 2 * i.numel()


FLOPS_IN_A_NEW_PROCESS = """
import json, sys, torch, diffcrop
assert "torch.utils.flop_counter" not in sys.modules  # 0.15 s, for something that is rarely asked for
i, b = torch.rand(1, 3, 8, 8), torch.tensor([[1.0, 1, 7, 7]], requires_grad=True)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    diffcrop.crop(i, b, 4, impl="cpu").sum().backward()
print(json.dumps(sorted(map(str, counter.get_flop_counts()["Global"]))))
"""


@needs_kernels
def test_flops_are_counted_from_the_first_crop_on():
    """The counter is imported after the package, and its registry copied before the package knows of it."""
    done = subprocess.run([sys.executable, "-c", FLOPS_IN_A_NEW_PROCESS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["diffcrop.crop", "diffcrop.crop_grad_boxes"]


# --- subclasses -------------------------------------------------------------------------------------------------------


class Image(torch.Tensor):
    """A tag, with the rules that PyTorch gives every subclass."""


class Boxes(torch.Tensor):
    pass


class Unwrapping(torch.Tensor):
    """As torchvision.tv_tensors: what is made of one is a plain tensor."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


class UnwrappingBoxes(Unwrapping):
    pass


CLASSES = {
    "tagged": (Image, Boxes, Image),
    "the same tag": (Image, Image, Image),
    "tagged image": (Image, torch.Tensor, Image),
    "tagged boxes": (torch.Tensor, Boxes, torch.Tensor),
    "unwrapping": (Unwrapping, UnwrappingBoxes, torch.Tensor),
    "tagged and unwrapping": (Image, UnwrappingBoxes, None),  # which of them has its way is up to PyTorch
}


@pytest.mark.parametrize("layout", ["one each", "indexed", "lists"])
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_subclasses_pass_through(impl, classes, layout, generator):
    """The crop is of the image's class; values and gradients are those of plain tensors."""
    of_image, of_boxes, of_result = classes
    i, b = image(generator, 2).requires_grad_(), boxes(generator, 2).requires_grad_()
    index = torch.tensor([1, 0])

    def call(i, b, index):
        if layout == "lists":
            return crop(i, [b[:1], b[1:]], SIZE, impl=impl, **SMOOTH)
        return crop(i, b, SIZE, batch_index=index if layout == "indexed" else None, impl=impl, **SMOOTH)

    expected = call(i, b, index)
    expected.square().sum().backward()
    tagged = i.detach().as_subclass(of_image).requires_grad_(), b.detach().as_subclass(of_boxes).requires_grad_()
    found = call(*tagged, index.as_subclass(of_boxes))
    assert of_result is None or type(found) is of_result
    found.square().sum().backward()
    assert torch.equal(found.as_subclass(torch.Tensor), expected)
    agree([t.grad.as_subclass(torch.Tensor) for t in tagged], [i.grad, b.grad], 1e-14)


@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_subclasses_in_other_functions(impl, classes, generator):
    of_image, of_boxes, of_result = classes
    i, b = image(generator, 2), boxes(generator, 2)
    tagged = i.as_subclass(of_image), b.as_subclass(of_boxes)
    found = crop_with_jacobian(*tagged, SIZE, box_format="cxcywh", impl=impl, **SMOOTH)
    expected = crop_with_jacobian(i, b, SIZE, box_format="cxcywh", impl=impl, **SMOOTH)
    assert of_result is None or [type(t) for t in found] == [of_result] * 2
    assert all(torch.equal(one.as_subclass(torch.Tensor), other) for one, other in zip(found, expected, strict=True))
    assert type(coverage(tagged[1], SIZE, 8, impl=impl)) is torch.Tensor
    nearest = crop(*tagged, SIZE, mode="nearest", impl=impl).as_subclass(torch.Tensor)
    assert torch.equal(nearest, crop(i, b, SIZE, mode="nearest", impl=impl))
    points = i[:, 0, :3, :2]
    moved = diffcrop.map_points(points.as_subclass(of_image), tagged[1], SIZE)
    assert torch.equal(moved.as_subclass(torch.Tensor), diffcrop.map_points(points, b, SIZE))
    agree(diffcrop.nn.Crop(SIZE, impl=impl)(*tagged).as_subclass(torch.Tensor), diffcrop.nn.Crop(SIZE, impl=impl)(i, b))


def test_parameters(impl, generator):
    i, b = torch.nn.Parameter(image(generator)), torch.nn.Parameter(BOX)
    found = mine(impl)(i, b)
    assert type(found) is torch.Tensor
    found.square().sum().backward()
    agree([i.grad, b.grad], gradients(plain, i.detach().requires_grad_(), BOX.clone().requires_grad_()))


def test_a_subclass_that_dispatches(impl, generator):
    """A wrapper of two tensors, every operator applied to both."""
    firsts, seconds = leaves(generator), (image(generator).requires_grad_(), (BOX + 0.1).requires_grad_())
    pairs = [TwoTensor(one.detach(), other.detach()).requires_grad_()
             for one, other in zip(firsts, seconds, strict=True)]  # fmt: skip
    found = mine(impl)(*pairs)
    assert type(found) is TwoTensor
    grads = gradients(mine(impl), *pairs)
    for side, inputs in (("a", firsts), ("b", seconds)):
        agree(getattr(found, side), plain(*inputs), 1e-14)
        agree([getattr(g, side) for g in grads], gradients(plain, *inputs))


# --- copies and files -------------------------------------------------------------------------------------------------


def test_a_state_dict_through_a_file_of_weights_alone(impl, generator):
    def model():
        return torch.nn.ModuleDict({"box": diffcrop.nn.LearnableBox((4, 5), init=[0.4, 0.7, 3.1, 3.3], dtype=f64),
                                    "crop": diffcrop.nn.Crop(SIZE, impl=impl, **SMOOTH)})  # fmt: skip

    def result(m):
        return m["crop"](picture, m["box"]())

    picture, trained, fresh = image(generator), model(), model()
    result(trained).square().sum().backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    assert not torch.equal(result(fresh), result(trained))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(result(fresh), result(trained))
    whole = io.BytesIO()
    torch.save(trained, whole)
    whole.seek(0)
    for other in (copy.deepcopy(trained), torch.load(whole, weights_only=False)):
        assert torch.equal(result(other), result(trained))
        assert str(other) == str(trained)


@pytest.mark.parametrize("made_inside", [True, False])
def test_inference_tensors(impl, made_inside, generator):
    """They can be cropped in inference mode and out of it, and refuse to be saved for a gradient, as anywhere."""
    with torch.inference_mode(made_inside):
        i, b = image(generator), BOX.clone()
    expected = plain(i.clone(), b.clone())
    agree(mine(impl)(i, b), expected, 1e-14)
    with torch.inference_mode():
        agree(mine(impl)(i, b), expected, 1e-14)
    box = BOX.clone().requires_grad_()
    if not made_inside:
        assert mine(impl)(i, box).requires_grad
        return
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        mine(impl)(i, box)


# --- processes and threads --------------------------------------------------------------------------------------------

WORKERS = """
import faulthandler, sys, torch, diffcrop
faulthandler.dump_traceback_later(100, exit=True)

class Crops(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        image = torch.arange(3 * 256 * 256.0).reshape(3, 256, 256).add(i).sin().requires_grad_()
        box = torch.tensor([1.5, 2.5, 200, 230.0], requires_grad=True)
        crop = diffcrop.crop(image, box, 96)
        crop.square().mean().backward()
        return crop.detach(), box.grad, image.grad

if __name__ == "__main__":
    torch.set_num_threads(4)
    here = [Crops()[i] for i in range(6)]  # with threads, before there are workers
    loader = torch.utils.data.DataLoader(
        Crops(), batch_size=None, num_workers=2, multiprocessing_context=sys.argv[1], timeout=60
    )
    there = list(loader)
    assert len(there) == 6
    assert all(torch.equal(a, b) for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True))
    assert not torch.equal(there[0][0], there[1][0])
    print("the same")
"""


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader(context, tmp_path):
    """With one thread each, as `DataLoader` sets: a forked process that asks for more waits for threads it lost.

    That is so for every operator of PyTorch whose build uses GNU OpenMP.
    """
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run([sys.executable, str(script), context], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"


@pytest.mark.parametrize("sizes", ["alike", "different"])
def test_several_python_threads_at_once(impl, sizes, generator):
    """Each has its own plans; the bits are those of one after another."""
    jobs = []
    for k in range(12):
        shape = (3, 41, 37) if sizes == "alike" else (1 + k % 3, 23 + 5 * k, 61 - 4 * k)
        i = torch.rand(1, *shape, generator=generator)
        b = torch.rand(1, 3, 4, generator=generator) * 20 + torch.tensor([0.0, 0, 10, 10])
        jobs.append((i, b, (16, 12) if sizes == "alike" else (5 + k, 17 - k), ("bilinear", "bicubic", "area")[k % 3]))

    def work(job):
        i, b, size, mode = job
        results = []
        for _ in range(6 if impl == "cpu" else 1):
            inputs = i.clone().requires_grad_(), b.clone().requires_grad_()
            value = crop(*inputs, size, mode=mode, impl=impl)
            results.append((value.detach(), *torch.autograd.grad(value.square().sum(), inputs)))
        return results

    expected = [work(job)[0] for job in jobs]
    together = threading.Barrier(4)

    def at_once(part):
        together.wait()
        return [work(job) for job in jobs[part:] + jobs[:part]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(at_once, (0, 3, 6, 9)))
    for part, those in zip((0, 3, 6, 9), found, strict=True):
        for repeated, once in zip(those, expected[part:] + expected[:part], strict=True):
            assert all(same(one, once) for one in repeated)
