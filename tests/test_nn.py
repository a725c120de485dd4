"""Crop is the function with its options fixed; LearnableBox keeps its promises whatever its parameter is."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffcrop
from diffcrop import convert_boxes
from diffcrop.nn import Crop, LearnableBox

H, W = 48, 64


def pickled(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


# --- Crop -------------------------------------------------------------------------------------------------------------


def images_and_boxes():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 13, 17, generator=generator)
    boxes = torch.tensor([[1.3, 2.1, 12.2, 9.7], [-2.0, 4.0, 8.5, 15.0]])
    return images, boxes


@pytest.mark.parametrize("options", [
    {},
    {"mode": "area", "padding_mode": "reflection"},
    {"mode": "bicubic", "antialias": False, "align_corners": True, "padding_mode": "zeros"},
    {"mode": "gaussian", "sigma": 0.7, "padding_mode": "constant", "fill": (0.1, 0.2, 0.3)},
    {"box_format": "cxcywh", "coords": "unit", "impl": "reference"},
])  # fmt: skip
def test_crop_is_the_function(options):
    images, boxes = images_and_boxes()
    module = Crop((4, 5), **options)
    expected = diffcrop.crop(images, boxes, (4, 5), **options)
    assert torch.equal(module(images, boxes), expected)
    assert not torch.equal(module(images, boxes + 0.3), expected)
    assert torch.equal(copy.deepcopy(module)(images, boxes), expected)
    assert torch.equal(pickled(module)(images, boxes), expected)
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


def test_crop_passes_the_batch_index():
    images, boxes = images_and_boxes()
    index = torch.tensor([1, 1])
    assert torch.equal(Crop(4)(images, boxes, index), diffcrop.crop(images, boxes, 4, batch_index=index))


def test_crop_has_the_defaults_of_the_function():
    function, module = (inspect.signature(f).parameters for f in (diffcrop.crop, Crop.__init__))
    options = {name: p.default for name, p in function.items() if p.kind is p.KEYWORD_ONLY and name != "batch_index"}
    assert {name: p.default for name, p in module.items() if p.kind is p.KEYWORD_ONLY} == options


def test_crop_shows_what_differs_from_the_defaults():
    assert repr(Crop(8)) == "Crop(size=8)"
    assert repr(Crop((8, 9), mode="area", padding_mode="constant", fill=0.5)) == (
        "Crop(size=(8, 9), mode='area', padding_mode='constant', fill=0.5)"
    )


def test_crop_takes_a_fill_from_a_tensor_as_numbers():
    images, boxes = images_and_boxes()
    fill = [0.25, 0.5, 0.75]
    module = Crop(4, padding_mode="constant", fill=torch.tensor(fill))
    assert module.fill == fill
    assert torch.equal(module(images, boxes), diffcrop.crop(images, boxes, 4, padding_mode="constant", fill=fill))


@pytest.mark.parametrize("options", [
    {"size": 0}, {"size": "8"}, {"size": (4, 5), "mode": "bilinaer"}, {"size": 4, "padding_mode": "zero"},
    {"size": 4, "coords": "pixels"}, {"size": 4, "box_format": "xyxyz"}, {"size": 4, "impl": "cuda"},
    {"size": 4, "align_corners": None}, {"size": 4, "sigma": 0.5}, {"size": 4, "mode": "gaussian", "sigma": -1.0},
    {"size": 4, "fill": 1.0}, {"size": 4, "mode": "area", "antialias": False},
])  # fmt: skip
def test_crop_checks_its_options_when_it_is_made(options):
    with pytest.raises((TypeError, ValueError)):
        Crop(**options)


# --- LearnableBox: the start ------------------------------------------------------------------------------------------


def learnable(**options):
    options.setdefault("dtype", torch.float64)
    return LearnableBox((H, W), **options)


def pixels(module):
    """What the module returns, as pixel corners."""
    return convert_boxes(
        module(), (H, W), from_format=module.box_format, from_coords=module.coords, align_corners=module.align_corners
    )


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_default_start_is_the_middle_half(inside, align_corners):
    width, height = (W - 1, H - 1) if align_corners else (W, H)
    expected = torch.tensor([width / 4, height / 4, width * 3 / 4, height * 3 / 4], dtype=torch.float64)
    box = learnable(inside=inside, align_corners=align_corners)()
    assert box.shape == (4,)
    torch.testing.assert_close(box, expected, rtol=0, atol=1e-12)
    several = learnable(inside=inside, align_corners=align_corners, num_boxes=3)()
    torch.testing.assert_close(several, expected.expand(3, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("aspect", "expected"), [(1.0, (20, 12, 44, 36)), (4.0, (16, 20, 48, 28))])
def test_the_default_start_with_an_aspect(inside, aspect, expected):
    box = learnable(inside=inside, aspect=aspect)()
    torch.testing.assert_close(box, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_default_start_of_a_large_min_size():
    sides = learnable(min_size=40.0)()[2:] - learnable(min_size=40.0)()[:2]
    torch.testing.assert_close(sides, torch.full_like(sides, 40.04), rtol=0, atol=1e-9)  # nudged off the bound


@settings(max_examples=60, deadline=None)
@given(
    corners=st.tuples(*[st.floats(0.5, 20.0)] * 2, *[st.floats(24.0, 46.0)] * 2),
    inside=st.booleans(),
    square=st.booleans(),
    align_corners=st.booleans(),
    box_format=st.sampled_from(("xyxy", "xywh", "cxcywh")),
    coords=st.sampled_from(("pixel", "unit", "normalized")),
)
def test_the_start_is_reproduced(corners, inside, square, align_corners, box_format, coords):
    x0, y0, x1, y1 = corners
    options = {"inside": inside, "align_corners": align_corners, "box_format": box_format, "coords": coords}
    if square:
        y1 = min(y0 + (x1 - x0), 45.0)
        x1 = x0 + (y1 - y0)
        options["aspect"] = 1.0
    start = torch.tensor([[x0, y0, x1, y1], [4, 5, 24, 25]], dtype=torch.float64)
    init = convert_boxes(start, (H, W), to_format=box_format, to_coords=coords, align_corners=align_corners)
    torch.testing.assert_close(learnable(init=init, **options)(), init, rtol=1e-12, atol=1e-12)
    single = learnable(init=init, dtype=torch.float32, **options)
    assert single().dtype == torch.float32
    torch.testing.assert_close(pixels(single).double(), start, rtol=0, atol=2e-5)


def test_starts_for_several_boxes():
    one = [10.0, 10.0, 20.0, 30.0]
    two = [[10.0, 10.0, 20.0, 30.0], [1.0, 2.0, 3.0, 9.0]]
    assert learnable(init=one)().shape == (4,)
    torch.testing.assert_close(learnable(init=two)(), torch.tensor(two, dtype=torch.float64))
    torch.testing.assert_close(learnable(init=two, num_boxes=2)(), torch.tensor(two, dtype=torch.float64))
    torch.testing.assert_close(learnable(init=one, num_boxes=2)(), torch.tensor([one, one], dtype=torch.float64))


@pytest.mark.parametrize(("options", "init"), [
    ({"inside": True}, [0.0, 0.0, W, H]),
    ({"inside": True}, [0.0, 5.0, 30.0, H]),
    ({"inside": True, "min_size": 20.0}, [44.0, 0.0, W, 20.0]),
    ({"inside": True, "aspect": W / H}, [0.0, 0.0, W, H]),
    ({"min_size": 8.0}, [3.0, 4.0, 11.0, 30.0]),
    ({"inside": True, "min_size": float(H)}, [8.0, 0.0, 58.0, H]),
    ({"inside": True, "min_size": 4.0}, [60.0, 44.0, W, H]),
])  # fmt: skip
def test_a_start_on_a_bound_is_nudged_off_and_can_leave_it(options, init):
    module = learnable(init=init, **options)
    box = module()
    expected = torch.tensor(init, dtype=torch.float64)
    sides = (expected[2:] - expected[:2]).max()
    assert (box - expected).abs().max() <= 2.01e-3 * sides
    (box * torch.tensor([0.3, 0.7, -1.1, -0.4])).sum().backward()
    grad = module.raw.grad
    assert grad.isfinite().all()
    fixed = options.get("min_size") == H  # a side that can have one length only, and then one place
    assert ((grad != 0) == torch.tensor([True, not fixed, True, not fixed][: len(grad)])).all()


# --- LearnableBox: the promises ---------------------------------------------------------------------------------------

# With aspect 1.39 and 63 pixels (64, aligned corners) aspect * (63 / aspect) rounds to more than 63.
KINDS = [
    {"inside": inside, "aspect": aspect, "min_size": min_size}
    for inside, aspect, min_size in itertools.product([False, True], [None, 0.3, 1.39], [1e-3, 1.0, 7.7])
]
# One ordinary box for each aspect.
ORDINARY = {None: (10.0, 5.0, 30.0, 25.0), 0.3: (10.0, 5.0, 19.0, 35.0), 1.39: (10.0, 5.0, 37.8, 25.0)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_promises_hold_for_any_parameter(kind, dtype, align_corners):
    generator = torch.Generator().manual_seed(0)
    wild = [-1e4, -300.0, -5.0, 0.0, 1.0, 40.0, 1e4]
    for coords, init in itertools.product(("pixel", "unit", "normalized"), (None, "small")):
        start = None
        if init == "small":
            aspect = kind["aspect"] or 1.0
            height = 1.01 * max(kind["min_size"], kind["min_size"] / aspect)
            start = torch.tensor([0.1, 0.2, 0.1 + aspect * height, 0.2 + height], dtype=torch.float64)
            start = convert_boxes(start, (H, W), to_coords=coords, align_corners=align_corners)
        module = learnable(num_boxes=400, init=start, coords=coords, dtype=dtype, align_corners=align_corners, **kind)
        with torch.no_grad():
            module.raw.copy_(torch.randn(module.raw.shape, generator=generator) * 3)
            count = module.raw.shape[1]
            choices = torch.tensor(wild)[torch.randint(len(wild), (300, count), generator=generator)]
            module.raw[:300] = choices
        boxes = module()
        boxes.sum().backward()
        assert module.raw.grad.isfinite().all()
        assert boxes.isfinite().all()
        # Exactly, in the coordinates returned.
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        width, height = (W - 1, H - 1) if align_corners else (W, H)
        if kind["inside"]:
            least, most = {"pixel": (0, (width, height)), "unit": (0, (1, 1)), "normalized": (-1, (1, 1))}[coords]
            assert (boxes[:, :2] >= least).all()
            assert (boxes[:, 2:] <= torch.tensor(most)).all()
        # Up to the rounding of the corners.
        corners = pixels(module).detach()
        ulp = torch.finfo(dtype).eps * corners.abs().amax(-1, keepdim=True).clamp(min=width)
        sides = corners[:, 2:] - corners[:, :2]
        assert (sides >= kind["min_size"] - 4 * ulp).all()
        if kind["aspect"] is not None:
            error = (sides[:, :1] - kind["aspect"] * sides[:, 1:]).abs()
            assert (error <= 8 * (1 + kind["aspect"]) * ulp).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_are_right_and_alive_in_the_ordinary_range(kind):
    module = learnable(init=ORDINARY[kind["aspect"]], **kind)

    def boxes(raw):
        return torch.func.functional_call(module, {"raw": raw}, ())

    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0):
        raw = scale * (2 * torch.rand(module.raw.shape, dtype=torch.float64, generator=generator) - 1)
        raw.requires_grad_()
        assert torch.autograd.gradcheck(boxes, (raw,))
        jacobian = torch.autograd.functional.jacobian(boxes, raw)
        # Moving a place or a side by its unit moves some corner by a sensible part of the side.
        strength = jacobian.abs().amax(0) / 20  # about the side of all of them
        assert (strength > 0.01).all()
        assert (strength < 10).all()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("side", [3.0, 30.0])
def test_one_unit_is_one_side(inside, side):
    """What the documentation says of a step, in the middle of the image: centre and side move by one side per unit."""
    init = [200.0, 200.0, side, side]
    module = LearnableBox(400, init=init, box_format="cxcywh", min_size=1e-3, inside=inside, dtype=torch.float64)

    def boxes(raw):
        return torch.func.functional_call(module, {"raw": raw}, ())

    jacobian = torch.autograd.functional.jacobian(boxes, module.raw)
    torch.testing.assert_close(jacobian.diagonal(), torch.full((4,), side, dtype=torch.float64), rtol=1e-3, atol=0)
    assert (jacobian - torch.diag(jacobian.diagonal())).abs().max() < 1e-3 * side


@pytest.mark.parametrize("lr", [0.01, 0.1])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("start", "target"), [
    ((10.0, 10.0, 26.0, 22.0), (20.0, 15.0, 45.0, 40.0)),
    ((0.0, 0.0, W, H), (20.0, 15.0, 45.0, 40.0)),
    ((30.0, 20.0, 33.0, 22.0), (2.0, 30.0, 6.0, 33.0)),
])  # fmt: skip
def test_adam_moves_it_to_a_target(lr, inside, start, target):
    module = LearnableBox((H, W), init=start, inside=inside)
    optimiser = torch.optim.Adam(module.parameters(), lr=lr)
    target = torch.tensor(target)
    for _ in range(int(20 / lr)):
        optimiser.zero_grad()
        (module() - target).square().sum().backward()
        optimiser.step()
    assert (module() - target).abs().max() < 0.5


# --- LearnableBox: as a module ----------------------------------------------------------------------------------------


def test_one_parameter_that_counts_from_the_start():
    module = LearnableBox((H, W), init=[10, 10, 30, 20])
    (raw,) = module.parameters()
    assert raw.shape == (4,)
    assert not raw.any()
    assert LearnableBox((H, W), num_boxes=5, aspect=1.0).raw.shape == (5, 3)


def test_state_dict_deepcopy_and_pickle():
    module = LearnableBox((H, W), init=[10.0, 10.0, 30.0, 20.0], inside=True)
    with torch.no_grad():
        module.raw.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
    for other in (copy.deepcopy(module), pickled(module)):
        assert torch.equal(other(), module())
    other = LearnableBox((H, W), inside=True)
    assert not torch.equal(other(), module())
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(), module())


def test_half_precision_does_not_move_the_start():
    init = torch.tensor([1001.3, 700.9, 3001.7, 2503.1])
    for convert in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float16)):
        module = convert(LearnableBox(4096, init=init))
        assert module.raw.dtype.itemsize == 2
        assert module().dtype == torch.float32
        torch.testing.assert_close(module(), init, rtol=0, atol=2e-3)
    module = LearnableBox(4096, init=init, dtype=torch.bfloat16)
    torch.testing.assert_close(module(), init, rtol=0, atol=2e-3)
    assert LearnableBox(4096, init=init).double()().dtype == torch.float64


def test_dtype_and_device():
    assert LearnableBox(8)().dtype == torch.float32
    assert LearnableBox(8, dtype=torch.float64)().dtype == torch.float64
    on_meta = LearnableBox(8, device="meta")
    assert {t.device.type for t in (on_meta.raw, on_meta.shift, on_meta.gain)} == {"meta"}
    assert on_meta().shape == (4,)


def test_it_shows_what_differs_from_the_defaults():
    assert repr(LearnableBox((H, W))) == "LearnableBox(image_size=(48, 64))"
    module = LearnableBox(64, num_boxes=3, min_size=2, inside=True, aspect=1.5, coords="unit", dtype=torch.float64)
    assert repr(module) == (
        "LearnableBox(image_size=(64, 64), num_boxes=3, min_size=2.0, inside=True, aspect=1.5, coords='unit', "
        "dtype=torch.float64)"
    )


def test_it_compiles():
    module = LearnableBox((H, W), inside=True, coords="unit")
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(), module(), rtol=0, atol=1e-7)


# --- LearnableBox: errors ---------------------------------------------------------------------------------------------


def case(error, options, *message):
    return pytest.param(error, options, "".join(message), id=message[0][:40])


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        case(TypeError, {"image_size": 2.5}, "image_size must be an int or (h, w), got 2.5 (float)"),
        case(ValueError, {"box_format": "xyhw"}, "did you mean 'xywh'?"),
        case(ValueError, {"coords": "pixels"}, "did you mean 'pixel'?"),
        case(TypeError, {"align_corners": None}, "align_corners must be True or False"),
        case(ValueError, {"image_size": (1, 8), "align_corners": True, "coords": "unit"},
             "image_size must be at least 2"),
        case(TypeError, {"num_boxes": 2.0}, "num_boxes must be None or an int, got 2.0 (float)"),
        case(TypeError, {"num_boxes": True}, "num_boxes must be None or an int, got True (bool)"),
        case(ValueError, {"num_boxes": 0}, "num_boxes must be at least 1, got 0; None gives one box of shape (4,)"),
        case(TypeError, {"min_size": "1"}, "min_size must be a number, got '1' (str)"),
        case(ValueError, {"min_size": 0}, "min_size must be finite and above 0, got 0"),
        case(ValueError, {"min_size": float("nan")}, "min_size must be finite and above 0, got nan"),
        case(ValueError, {"aspect": -1.5}, "aspect must be finite and above 0, got -1.5"),
        case(TypeError, {"aspect": (4, 3)}, "aspect must be a number, got (4, 3) (tuple)"),
        case(TypeError, {"inside": 1}, "inside must be True or False, got 1 (int)"),
        case(ValueError, {"dtype": torch.int64}, "dtype must be a floating-point dtype, got torch.int64"),
        case(TypeError, {"dtype": "float32"}, "dtype must be a torch.dtype, got 'float32' (str)"),
        case(TypeError, {"init": "box"}, "init must be a tensor or nested lists of numbers, got 'box'"),
        case(ValueError, {"init": [1, 2, 3]}, "init must have shape (4,) or (num_boxes, 4), got shape (3,)"),
        case(ValueError, {"init": torch.ones(1, 2, 4)},
             "init must have shape (4,) or (num_boxes, 4), got shape (1, 2, 4)"),
        case(ValueError, {"init": torch.tensor([[1, 1, 9, 9.0]] * 3), "num_boxes": 2},
             "init must have one box or num_boxes=2 of them, got shape (3, 4)"),
        case(ValueError, {"init": [1, 2, 3, float("inf")]}, "init must be finite, got [1.0, 2.0, 3.0, inf]"),
        case(ValueError, {"init": [[1, 1, 9, 9], [5, 2, 3, 9]]},
             "init must be ordered, with x0 < x1 and y0 < y1 (a width and height above 0), got [5.0, 2.0, 3.0, 9.0] ",
             "(shape (2, 4), box_format='xyxy', coords='pixel')"),
        case(ValueError, {"init": [1, 2, 3, 9], "min_size": 2.5},
             "init must have sides of at least min_size=2.5 pixels, got [1.0, 2.0, 3.0, 9.0]"),
        case(ValueError, {"init": [0.5, 0.5, 0.25, 1.5], "inside": True, "box_format": "cxcywh", "coords": "unit"},
             "init must lie inside the image of image_size=(48, 64), as inside=True promises, ",
             "got [0.5, 0.5, 0.25, 1.5] (shape (4,), box_format='cxcywh', coords='unit')"),
        case(ValueError, {"init": [1, 2, 11, 9], "aspect": 1.25},
             "init must have width / height = aspect = 1.25 in pixels, got [1.0, 2.0, 11.0, 9.0]"),
        case(ValueError, {"min_size": 50, "inside": True},
             "min_size must leave room for a box inside the image: no box with min_size=50 ",
             "fits into image_size=(48, 64); lower min_size or use inside=False"),
        case(ValueError, {"min_size": 30, "inside": True, "aspect": 3},
             "no box with min_size=30 and aspect=3 fits into image_size=(48, 64)"),
        case(ValueError, {"min_size": 48, "inside": True, "align_corners": True},
             "fits into image_size=(48, 64) with align_corners=True"),
    ],
)  # fmt: skip
def test_errors(error, options, message):
    options = {"image_size": (H, W), **options}
    with pytest.raises(error, match=re.escape(message)):
        LearnableBox(**options)
