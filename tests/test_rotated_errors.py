"""Every error of crops that are not axis-aligned: its type, the argument it names, what it shows and advises."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch

from diffcrop import (
    _check_warp,
    _ops_warp,
    crop_quad,
    crop_rotated,
    quads_to_matrix,
    rotated_to_matrix,
    rotated_to_quads,
    warp,
    warp_points,
)
from test_errors import NOT_BUILT, THERE, Replicate, Shard, masked, raises_in, shards, with_implementations

IMAGES = torch.zeros(2, 3, 8, 9)
IMAGE = IMAGES[0]
BOX = torch.tensor([4.0, 4.0, 3.0, 5.0, 30.0])
BOXES = torch.stack([BOX, BOX])
QUAD = torch.tensor([[1.0, 1.0], [5.0, 0.0], [6.0, 6.0], [0.0, 5.0]])
QUADS = torch.stack([QUAD, QUAD])
MATRIX = torch.eye(3)
MATRICES = torch.stack([MATRIX, MATRIX])
INDEX = torch.tensor([0, 1])
CROSSED = QUAD[[0, 2, 1, 3]]
HUGE = torch.zeros(1, 1, 1).expand(1, 1, 2**27)
HORIZON = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
ONE = {crop_rotated: BOX, crop_quad: QUAD, warp: MATRIX}
NAMES = {crop_rotated: "boxes", crop_quad: "quads", warp: "matrix"}
TAILS = {crop_rotated: "5", crop_quad: "4, 2", warp: "2, 3"}
FUNCTIONS = tuple(ONE)


def rotated(images=IMAGES, boxes=BOX, size=4, **options):
    return lambda: crop_rotated(images, boxes, size, **options)


def quad(quads=QUAD, images=IMAGES, size=4, **options):
    return lambda: crop_quad(images, quads, size, **options)


def warped(matrix=MATRIX, images=IMAGES, size=4, **options):
    return lambda: warp(images, matrix, size, **options)


def of(function, value=None, images=IMAGES, size=4, **options):
    value = ONE[function] if value is None else value
    return lambda: function(images, value, size, **options)


def several(function, count=2):
    return torch.stack([ONE[function]] * count)


# What is alike for all three, by the name of the argument that says where.
SHARED = [
    case
    for f in FUNCTIONS
    for name, tail in ((NAMES[f], TAILS[f]),)
    for case in (
        # what says where
        (TypeError, of(f, [1.0, 2.0]), f"{name} must be a tensor, or a list", "[1.0, 2.0]", "torch.as_tensor"),
        (TypeError, of(f, ONE[f].tolist()), f"{name} must be a tensor, or a list", "torch.as_tensor"),
        (TypeError, of(f, 3), f"{name} must be a tensor", "3 (int)", f"torch.as_tensor({name}"),
        (TypeError, of(f, ONE[f].numpy()), f"{name} must be a tensor", "ndarray of shape", "torch.as_tensor"),
        (TypeError, of(f, ONE[f].bool()), f"{name} must hold real numbers", "torch.bool"),
        (TypeError, of(f, ONE[f].to(torch.complex64)), f"{name} must hold real numbers", "complex64"),
        (TypeError, of(f, ONE[f].to_sparse()), f"{name} must be a dense tensor", f"{name}.to_dense()"),
        (TypeError, of(f, masked(ONE[f])), f"{name} must be a dense tensor", "MaskedTensor"),
        (ValueError, of(f, torch.tensor(1.0)), f"{name} must have", "shape ()"),
        (ValueError, of(f, torch.zeros(2, 7)), f"{name} must have", "(2, 7)"),
        (ValueError, of(f, ONE[f][None, None], IMAGE), f"{name} must have shape ({tail}", "one image", "batch dim"),
        (ValueError, of(f, ONE[f][None, None, None]), f"{name} must have shape ({tail}", f"(B, K, {tail}"),
        (
            ValueError,
            of(f, several(f, 5)),
            "B = 2",
            f"{name}.expand(2, -1, -1",
            "batch_index of shape (5,)",
            f"of shape (B, {tail}",
        ),
        (ValueError, of(f, several(f, 5)[:, None]), "B = 2", f"{name} of shape (B, {tail}"),
        (ValueError, of(f, several(f, 5), [IMAGE] * 2), "B = 2", f"{name}.expand(2"),
        (
            ValueError,
            of(f, ONE[f].to("meta")),
            f"images and {name}",
            "same device",
            "cpu and meta",
            f"{name}.to('cpu')",
        ),
        (ValueError, of(f, ONE[f].to("meta"), [IMAGE]), f"images and {name}", "same device", f"{name}.to('cpu')"),
        # a list of them
        (ValueError, of(f, []), f"{name} must be a tensor or a list of one tensor per image", "empty list"),
        (ValueError, of(f, [several(f)]), f"a list of {name}", "one tensor per image", "1 for 2 images"),
        (ValueError, of(f, [several(f)], [IMAGE] * 2), f"a list of {name}", "1 for 2 images"),
        (ValueError, of(f, [several(f), ONE[f]]), f"{name}[1] must have shape (K, {tail}"),
        (TypeError, of(f, [several(f), "here"]), f"{name}[1] must be a tensor", "'here' (str)"),
        (ValueError, of(f, [several(f), torch.zeros(2, 7)]), f"{name}[1] must have", "(2, 7)"),
        (ValueError, of(f, [several(f), several(f).double()]), f"the {name} of a list", "float64", f"{name}[1]"),
        (ValueError, of(f, [several(f), several(f).to("meta")]), f"the {name} of a list", "meta", f"{name}[1]"),
        (ValueError, of(f, [several(f)] * 3, IMAGE), f"a list of {name}", "batch of images", "(3, 8, 9)"),
        (ValueError, of(f, [several(f)] * 2, batch_index=INDEX), "batch_index", f"list of {name}", "one of them"),
        (ValueError, of(f, [several(f)] * 2, [IMAGE] * 2, batch_index=INDEX), "batch_index", f"list of {name}"),
        # batch_index
        (TypeError, of(f, several(f), batch_index=[0, 1]), "batch_index must be an integer tensor", "[0, 1]"),
        (TypeError, of(f, several(f), batch_index=INDEX.float()), "batch_index", "torch.float32", ".long()"),
        (
            ValueError,
            of(f, several(f), batch_index=INDEX[:1]),
            "batch_index must have shape (R,)",
            f"(R, {tail}",
            "(1,)",
        ),
        (ValueError, of(f, ONE[f], batch_index=INDEX), "batch_index must have shape (R,)", f"where {name}"),
        (ValueError, of(f, several(f), batch_index=INDEX + 1), "batch_index must lie in 0..1", "got 2"),
        (ValueError, of(f, several(f), [IMAGE] * 2, batch_index=INDEX - 1), "batch_index must lie in 0..1", "got -1"),
        (ValueError, of(f, several(f), IMAGE, batch_index=INDEX), "batch_index needs a batch", "(3, 8, 9)"),
        (ValueError, of(f, several(f), batch_index=INDEX.to("meta")), "images and batch_index", "cpu and meta"),
        # images
        (TypeError, of(f, images=None), "images must be a tensor", "(C, H, W) or (B, C, H, W)", "None"),
        (TypeError, of(f, images=np.zeros((8, 9, 3))), "images", "ndarray of shape (8, 9, 3)"),
        (TypeError, of(f, images=IMAGE.to(torch.complex64)), "images must be floating-point", "complex64"),
        (ValueError, of(f, images=IMAGE[0]), "images must have shape (C, H, W)", "to be warped", "images[None]"),
        (ValueError, of(f, images=IMAGES[None]), "images", "to be warped", "images.flatten(0, 1)"),
        (ValueError, of(f, images=torch.zeros(3, 0, 9)), "images must have at least one pixel", "(3, 0, 9)"),
        (ValueError, of(f, images=[]), "images must not be an empty list"),
        (ValueError, of(f, images=[IMAGE, IMAGE[:1]]), "agree in channels", "channels 1 for images[1]"),
        (ValueError, of(f, images=[IMAGES]), "images[0] must have shape (C, H, W)", "to be warped"),
        (
            TypeError,
            of(f, shards(ONE[f], Replicate()), shards(IMAGES, Shard(0))),
            "images must be a plain tensor",
            "DTen",
        ),
        (TypeError, of(f, shards(ONE[f], Replicate())), f"{name} must be a plain tensor", f"{name}.to_local()"),
        (TypeError, of(f, [shards(several(f), Replicate())] * 2), f"{name} must be a plain tensor"),
        (TypeError, of(f, images=[shards(IMAGE, Replicate())]), "images must be a plain tensor"),
        # size
        (TypeError, of(f, size=4.0), "size must be an int or (h, w)", "4.0 (float)"),
        (ValueError, of(f, size=(4,)), "size must be an int or (h, w), got (4,)", "length 1"),
        (ValueError, of(f, size=IMAGES.shape), "size", "length 4", "shape[-2:]"),
        (ValueError, of(f, size=(4, 0)), "size must be at least 1", "(4, 0)"),
        # options
        (ValueError, of(f, coords="relative"), "coords must be one of", "did you mean 'unit'?"),
        (TypeError, of(f, coords=1), "coords must be one of", "1 (int)"),
        (ValueError, of(f, mode="linear"), "mode must be one of", "did you mean 'bilinear'?"),
        (ValueError, of(f, mode="gaussian"), "mode must be one of 'bilinear', 'bicubic'", "'gaussian'", "only crop"),
        (
            ValueError,
            of(f, mode="blur"),
            "mode must be one of 'bilinear', 'bicubic', 'lanczos3', 'area', 'nearest', got",
        ),
        (ValueError, of(f, padding_mode="pillow"), "'constant', 'reflection', 'circular', got 'pillow'"),
        # what the kernels hold: tensors without memory of their own
        (ValueError, of(f, images=HUGE), "images must have fewer than 2**27 pixels", "(1, 1, 134217728)"),
        (ValueError, of(f, images=HUGE.mT), "images must have fewer than 2**27 pixels", "(1, 134217728, 1)"),
        (ValueError, of(f, images=[IMAGE[:1], HUGE]), "images[1] must have fewer than 2**27 pixels"),
        (ValueError, of(f, size=2**27), "size must be below 2**27", "134217728 (int)"),
        (ValueError, of(f, size=(1, 2**27)), "size must be below 2**27"),
        (ValueError, of(f, padding_mode="reflect"), "padding_mode must be one of", "did you mean 'reflection'?"),
        (
            ValueError,
            of(f, padding_mode="renormalize"),
            "padding_mode must be one of 'border'",
            "'renormalize'",
            "only",
        ),
        (ValueError, of(f, mode="area", antialias=False), "mode='area'", "antialias=True", "'bilinear'"),
        (TypeError, of(f, antialias=1), "antialias must be True or False", "1 (int)"),
        (TypeError, of(f, align_corners=None), "align_corners must be True or False", "None"),
        (ValueError, of(f, fill=1.0), "fill belongs to padding_mode='constant'", "fill=1.0"),
        (ValueError, of(f, padding_mode="constant", fill=(1, 2)), "fill must be one number or one", "3 channels"),
        # a mode without a gradient by where
        (ValueError, of(f, ONE[f].clone().requires_grad_(), mode="nearest"), "mode='nearest' has no gradient", name),
        (
            ValueError,
            of(f, several(f).requires_grad_(), [IMAGE] * 2, mode="nearest"),
            "mode='nearest' has no gradient",
            f"{name}.detach()",
        ),
        (
            ValueError,
            lambda f=f: torch.func.jvp(lambda b: f(IMAGE, b, 4, mode="nearest"), (ONE[f],), (ONE[f],)),
            "mode='nearest' has no gradient",
        ),
        # impl
        (ValueError, of(f, impl="cuda"), "impl must be one of 'cpu', 'reference', got 'cuda'"),
        (ValueError, with_implementations(NOT_BUILT, of(f, impl="cpu")), "impl='cpu' is not available", "no compiler"),
        (
            ValueError,
            with_implementations(THERE, of(f, impl="triton")),
            "impl='triton'",
            "not axis-aligned",
            "impl=None",
        ),
        (
            ValueError,
            with_implementations(THERE, of(f, ONE[f].to("meta"), IMAGES.to("meta"), impl="cpu")),
            "impl='cpu' serves CPU tensors",
            "meta",
        ),
    )
]


def of_any_size():
    """An antialiased warp, exported for images of other sizes."""
    module = torch.nn.Module()
    module.forward = lambda images: crop_rotated(images, BOX, 4)
    sizes = {1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    torch.export.export(module, (torch.zeros(3, 8, 9),), dynamic_shapes={"images": sizes})


CASES = [
    *SHARED,
    # rotated boxes
    (ValueError, rotated(boxes=torch.zeros(7, 4)), "5 numbers (cx, cy, w, h, angle)", "(7, 4)", "box_format='cxcywh'"),
    (ValueError, rotated(boxes=torch.zeros(7, 6)), "5 numbers", "(7, 6)", "batch_index=boxes[:, 0].long()"),
    (ValueError, rotated(boxes=torch.zeros(7, 8)), "5 numbers", "crop_quad", "unflatten(-1, (4, 2))"),
    (TypeError, rotated(clockwise=1), "clockwise must be True or False", "1 (int)"),
    (TypeError, rotated(clockwise=None), "clockwise must be True or False", "None"),
    (
        ValueError,
        rotated(angle_unit="deg"),
        "angle_unit must be one of 'degrees', 'radians'",
        "did you mean 'degrees'?",
    ),
    (ValueError, rotated(angle_unit="turns"), "angle_unit must be one of", "'turns'"),
    (TypeError, rotated(angle_unit=360), "angle_unit must be one of", "360 (int)"),
    # quads
    (ValueError, quad(torch.zeros(7, 8)), "quads must have shape (..., 4, 2)", "(7, 8)", "unflatten(-1, (4, 2))"),
    (ValueError, quad(torch.zeros(2, 4)), "quads must have shape (..., 4, 2)", "quads.mT"),
    (ValueError, quad(torch.zeros(3, 5)), "quads must have shape (..., 4, 2)", "crop_rotated"),
    (ValueError, quad(torch.zeros(3, 2)), "quads must have shape (..., 4, 2)", "(3, 2)"),
    (ValueError, quad(CROSSED), "quads must be convex", "(1, 1), (6, 6), (5, 0), (0, 5)", "another order"),
    (ValueError, quad(torch.stack([QUAD, CROSSED])), "quads must be convex", "1 of 2", "(6, 6)"),
    (ValueError, quad([QUADS, CROSSED[None]]), "quads[1] must be convex", "1 of 1"),
    (ValueError, quad([QUADS, CROSSED[None]], [IMAGE] * 2), "quads[1] must be convex", "1 of 1"),
    (ValueError, quad(torch.zeros(4, 2)), "quads must be convex", "(0, 0), (0, 0)", "no area", "crop_rotated, warp"),
    (ValueError, quad(QUAD.clone().index_fill_(0, torch.tensor([1]), 1.0)), "quads must be convex"),
    (ValueError, quad(CROSSED.clone().requires_grad_()), "quads must be convex"),
    (ValueError, quad(CROSSED.long()), "quads must be convex", "torch.int64"),
    # matrices
    (ValueError, warped(torch.zeros(7, 6)), "matrix must have shape (..., 2, 3) or (..., 3, 3)", "(7, 6)", "(2, 3)"),
    (ValueError, warped(torch.zeros(7, 9)), "matrix must have shape", "unflatten(-1, (3, 3))"),
    (ValueError, warped(torch.zeros(3, 4)), "matrix must have shape", "volumes"),
    (ValueError, warped(torch.zeros(2, 2)), "matrix must have shape", "torch.cat([matrix"),
    (ValueError, warped([MATRICES, MATRICES[:, :2]]), "the matrix of a list must agree", "(2, 2, 3)", "(2, 3, 3)"),
    (ValueError, warped(HORIZON), "matrix must not have a last row of zeros", "1 in all", "(0, 0, 1)"),
    (ValueError, warped([MATRICES, HORIZON[None]]), "matrix[1] must not have a last row of zeros", "(1, 3, 3)"),
    (ValueError, warped([MATRICES, HORIZON[None]], [IMAGE] * 2), "matrix[1] must not have a last row of zeros"),
    (ValueError, lambda: rotated_to_quads(torch.zeros(2, 6)), "5 numbers", "boxes[..., 1:]"),
    # without pixels
    (TypeError, lambda: rotated_to_quads([1, 2, 3, 4, 5]), "boxes must be a tensor", "[1, 2, 3, 4, 5]"),
    (ValueError, lambda: rotated_to_quads(torch.zeros(4)), "5 numbers", "(4,)"),
    (ValueError, lambda: rotated_to_quads(BOX, coords="unit"), "image_size is needed", "unit", "(h, w)"),
    (TypeError, lambda: rotated_to_quads(BOX, "large"), "image_size must be", "'large' (str)"),
    (ValueError, lambda: rotated_to_quads(BOX, coords="px"), "coords must be one of", "did you mean 'pixel'?"),
    (TypeError, lambda: rotated_to_quads(BOX, clockwise="no"), "clockwise must be True or False", "'no' (str)"),
    (ValueError, lambda: rotated_to_quads(BOX, angle_unit="rad"), "did you mean 'radians'?"),
    (TypeError, lambda: rotated_to_quads(BOX, align_corners=0), "align_corners must be True or False", "0 (int)"),
    (
        ValueError,
        lambda: rotated_to_quads(BOX, (1, 5), coords="unit", align_corners=True),
        "image_size must be at least 2",
        "(1, 5)",
    ),
    (ValueError, lambda: rotated_to_matrix(torch.zeros(4), 4), "5 numbers", "(4,)"),
    (ValueError, lambda: rotated_to_matrix(BOX, 0), "size must be at least 1", "0 (int)"),
    (ValueError, lambda: rotated_to_matrix(BOX, 4, coords="normalized"), "image_size is needed", "normalized"),
    (ValueError, lambda: quads_to_matrix(torch.zeros(3, 2), 4), "quads must have shape (..., 4, 2)", "(3, 2)"),
    (ValueError, lambda: quads_to_matrix(CROSSED, 4), "quads must be convex"),
    (ValueError, lambda: quads_to_matrix(QUAD, (4, 4, 4)), "size must be an int or (h, w), got", "length 3"),
    (ValueError, lambda: quads_to_matrix(QUAD, 4, coords="unit"), "image_size is needed"),
    (ValueError, lambda: warp_points(QUAD, torch.zeros(3)), "matrix must have shape", "(3,)"),
    (TypeError, lambda: warp_points([[1, 2]], MATRIX), "points must be a tensor", "[[1, 2]]"),
    (ValueError, lambda: warp_points(QUAD[0], MATRIX), "points must have shape (..., P, 2)", "points[None]"),
    (ValueError, lambda: warp_points(torch.zeros(4, 3), MATRIX), "points must have shape (..., P, 2)", "(4, 3)"),
    (ValueError, lambda: warp_points(QUAD.to("meta"), MATRIX), "points and matrix", "same device", "meta and cpu"),
    (ValueError, lambda: warp_points(QUADS, several(warp, 3)), "must broadcast", "(2, 4, 2)", "(3, 3, 3)"),
    (ValueError, lambda: warp_points(QUAD, MATRIX, to="Image"), "to must be one of 'image', 'crop'", "'Image'"),
    (ValueError, lambda: of_any_size(), "images must have a fixed height and width", "antialias=False"),
]


@pytest.fixture
def no_work(monkeypatch):
    def worked(*args, **options):
        pytest.fail("the warp ran before the error was found")

    monkeypatch.setattr(_ops_warp, "warp", worked)


@pytest.mark.parametrize(("error", "call", "words"), [
    pytest.param(error, call, words, id=f"{i}-{re.sub('[^a-z0-9]+', '-', words[0].lower())[:40]}")
    for i, (error, call, *words) in enumerate(CASES)
])  # fmt: skip
@pytest.mark.usefixtures("no_work")
def test_message(error, call, words):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error  # not a subclass that something deeper raised
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_guard_against_work_works(function):
    with pytest.raises(pytest.fail.Exception, match="ran before"):
        of(function)()


def test_every_raise_has_a_case():
    """Run the cases under a tracer: no `raise` of the checks, or of the functions, is left out."""
    modules = (_check_warp, sys.modules["diffcrop._api.warp"])
    seen = {module.__file__: set() for module in modules}

    def trace(frame, event, argument):
        lines = seen.get(frame.f_code.co_filename)
        if lines is None:
            return None
        if event == "line":
            lines.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    for _, call, *_ in CASES:
        sys.settrace(trace)
        try:
            call()
        except Exception:
            continue
        finally:
            sys.settrace(before)
    for module in modules:
        spans = raises_in(module)
        assert spans
        assert not [span for span in sorted(spans) if not seen[module.__file__] & set(range(span[0], span[1] + 1))]


# --- where values are not looked at, and what is no error -------------------------------------------------------------


def test_values_are_looked_at_only_where_that_is_free():
    """Where nobody may look, what would be an error is a NaN crop for itself alone."""
    both = torch.stack([QUAD, CROSSED])
    found = torch.func.vmap(lambda q: crop_quad(IMAGE, q, 4))(both[None])[0]
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    assert quads_to_matrix(both.to("meta"), 4).shape == (2, 3, 3)
    assert torch.func.vmap(lambda q: quads_to_matrix(q, 4))(both)[1].isnan().all()

    def gradient(quads):
        return torch.func.grad(lambda q: crop_quad(IMAGE + 1, q, 4).sum(), argnums=0)(quads)

    assert gradient(both)[0].isfinite().all()
    assert gradient(both)[1].isnan().any()
    by_image = torch.func.grad(lambda i: crop_quad(i, both, 4).nansum())(IMAGE)
    assert by_image.equal(torch.func.grad(lambda i: crop_quad(i, both[:1], 4).sum())(IMAGE))
    unseen = torch.func.vmap(lambda m: warp(IMAGE + 1, m, 4))(torch.stack([MATRIX, HORIZON]))
    assert unseen[0].eq(1).all()
    assert unseen[1].eq(0).all()
    for f in FUNCTIONS:
        wrong = torch.func.vmap(lambda b, f=f: f(IMAGES, b, 4, batch_index=INDEX + 1))(several(f)[None])[0]
        assert wrong[0].isfinite().all()
        assert wrong[1].isnan().all()
        listed = torch.func.vmap(lambda b, f=f: f([IMAGE] * 2, b, 4, batch_index=INDEX + 1))(several(f)[None])[0]
        assert listed[0].isfinite().all()
        assert listed[1].isnan().all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nan_is_no_error(function):
    place = ONE[function].clone()
    place.view(-1)[0] = torch.nan
    assert function(IMAGES, place, 4).isnan().all()


def test_singular_matrices_are_no_error():
    for matrix in (torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3, 3)):
        assert warp(IMAGES + 1, matrix, 4).isfinite().all()


def test_quads_of_nothing_are_no_error():
    assert crop_quad(IMAGE, torch.zeros(0, 4, 2), 4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("scale", [1e-170, 1e-3, 1.0, 1e150, 1e160])
def test_convex_is_convex_at_any_size(scale):
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    assert crop_quad(torch.rand(1, 8, 8), square * scale, 2).shape == (1, 2, 2)
    with pytest.raises(ValueError, match="quads must be convex"):
        crop_quad(torch.rand(1, 8, 8), square[[0, 2, 1, 3]] * scale, 2)
