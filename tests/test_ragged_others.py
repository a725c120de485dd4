"""`normal_equations`, `roi_align` and `paste` of lists: as of each image alone; and what takes none."""

from __future__ import annotations

import re

import pytest
import torch

import diffcrop
from diffcrop import _ops_paste, normal_equations, roi_align
from diffcrop.compat import kornia, tensorflow
from test_ragged import ROWS, SIZES, arguments, nested, scene

f64 = torch.float64
SERVING = [name for name, reason in diffcrop.implementations().items() if reason is None and name != "triton"]


@pytest.fixture(params=SERVING)
def serving(request):
    return request.param


# --- normal_equations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ROWS)
@pytest.mark.parametrize("shared", [False, True], ids=["a target each", "one target"])
@pytest.mark.parametrize("metric", ["l2", "zncc"])
def test_normal_equations_of_a_list(serving, which, shared, metric, generator):
    """In unit coordinates, where each image has its own scale."""
    images, listed = scene(generator)
    boxes, index, pairs, leading = arguments(which, images, [b / 20 for b in listed])
    targets = torch.rand(*(() if shared else leading), 3, 4, 3, generator=generator, dtype=f64)
    options = {"box_format": "cxcywh", "coords": "unit", "metric": metric, "impl": serving}
    found = normal_equations(images, boxes, targets, batch_index=index, **options)
    assert type(found) is diffcrop.NormalEquations
    assert [t.shape for t in found] == [(*leading, 4, 4), (*leading, 4), leading]
    each = [targets] * len(pairs) if shared else targets.reshape(-1, 3, 4, 3)
    alone = [normal_equations(i, b, t, **options) for (i, b), t in zip(pairs, each, strict=True)]
    for mine, theirs in zip(found, zip(*alone, strict=True), strict=True):
        expected = torch.stack(theirs)
        torch.testing.assert_close(mine.flatten(0, len(leading) - 1), expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(expected[0], expected[1])


def test_normal_equations_of_a_list_of_boxes(serving, generator):
    """One batch of one size: as with the index that the list stands for; nested boxes are a list."""
    images, boxes = torch.rand(3, 2, 8, 9, generator=generator, dtype=f64), scene(generator)[1]
    targets = torch.rand(5, 2, 4, 4, generator=generator, dtype=f64)
    expected = normal_equations(
        images, torch.cat(boxes), targets, batch_index=torch.tensor([0, 0, 2, 2, 2]), huber=0.2, impl=serving
    )
    for given in (boxes, nested(boxes, torch.jagged)):
        found = normal_equations(images, given, targets, huber=0.2, impl=serving)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_targets_of_a_list_are_not_copied_when_shared(generator):
    """They broadcast over boxes as for a batch, also (K, C, h, w) over the images of (B, K, 4)."""
    images, listed = scene(generator)
    rows, *_ = arguments("BK", images, listed)
    targets = torch.rand(2, 3, 4, 4, generator=generator, dtype=f64)
    found = normal_equations(images, rows, targets)
    for b, image in enumerate(images):
        for mine, theirs in zip(found, normal_equations(image, rows[b], targets), strict=True):
            torch.testing.assert_close(mine[b], theirs, rtol=0, atol=1e-12)


def test_a_nan_box_of_a_list_stays_alone(generator):
    images, boxes = scene(generator)
    boxes[2][1, 2] = float("nan")
    found = normal_equations(images, boxes, torch.zeros(3, 4, 4, dtype=f64))
    assert found.loss.isnan().tolist() == [False, False, False, True, False]


# --- roi_align --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"sampling_ratio": 2, "aligned": True}, {}, {"mode": "exact", "aligned": True}], ids=str
)
@pytest.mark.parametrize("form", ["list", "rows", "nested"])
def test_roi_align_of_a_list(serving, given, form, generator):
    maps, listed = scene(generator)
    index = torch.tensor([2, 0, 2, 0, 2])
    rows = torch.cat([index[:, None].to(f64), torch.cat(listed)], 1)
    maps, listed, rows = [m.requires_grad_() for m in maps], [b.requires_grad_() for b in listed], rows.requires_grad_()
    given = {"spatial_scale": 0.7, "impl": serving} | given
    cotangent = torch.rand(5, 3, 2, 3, generator=generator, dtype=f64)
    if form == "rows":
        found = roi_align(maps, rows, (2, 3), **given)
        expected = torch.cat(
            [roi_align(maps[i][None], [row[None, 1:]], (2, 3), **given) for i, row in zip(index, rows, strict=True)]
        )
        places = [rows]
    else:
        found = roi_align(maps if form == "list" else nested(maps, torch.strided), listed, (2, 3), **given)
        expected = torch.cat([roi_align(m[None], [b], (2, 3), **given) for m, b in zip(maps, listed, strict=True)])
        places = listed
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    used = [maps[0], maps[2], *places]
    for mine, theirs in zip(
        torch.autograd.grad(found, used, cotangent, retain_graph=True),
        torch.autograd.grad(expected, used, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert mine.numel() == 0 or mine.abs().max() > 0
    (empty,) = torch.autograd.grad(roi_align(maps, listed, 2, **given).sum(), maps[1])
    assert torch.equal(empty, torch.zeros_like(empty))


def test_roi_align_of_volumes_of_different_sizes(generator):
    maps = [torch.rand(2, *size, generator=generator, dtype=f64) for size in ((5, 6, 7), (4, 9, 5))]
    boxes = torch.tensor([[1, 0.5, 1, 1, 4, 5, 3], [0, 1, 0, 1, 6, 4, 4.5]], dtype=f64)
    found = roi_align(maps, boxes, 2, 1.0, 2, True)
    expected = [roi_align(maps[int(b[0])][None], [b[None, 1:]], 2, 1.0, 2, True)[0] for b in boxes]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-14)
    assert found.std() > 0.01


MAPS = [torch.zeros(3, h, w) for h, w in SIZES]
BOXES = [torch.zeros(1, 4)] * 3


@pytest.mark.parametrize(("maps", "boxes", "error", "said"), [
    ([], [], ValueError, ("input must not be an empty list",)),
    ([1.0], [], TypeError, ("input[0] must be a tensor", "1.0")),
    ([torch.zeros(2, 3)], [torch.zeros(1, 4)], ValueError, ("a list of input must hold tensors (C, H, W)", "(2, 3)")),
    ([*MAPS[:2], torch.zeros(2, 5, 5)], BOXES, ValueError, ("channels 2 for input[2]", "3 for input[0]")),
    ([MAPS[0], MAPS[1][None]], BOXES[:2], ValueError, ("input[1] must have shape (C, H, W) in a list", "(1, 3,")),
    (MAPS, BOXES[:2], ValueError, ("one tensor per image", "2 for 3 images")),
    (MAPS, torch.tensor([[3.0, 0, 0, 1, 1]]), ValueError, ("boxes[:, 0]", "0..2", "got 3")),
    (MAPS, torch.zeros(2, 4), ValueError, ("boxes must have shape (K, 5)", "without the column of indices")),
])  # fmt: skip
def test_errors_of_roi_align(maps, boxes, error, said):
    with pytest.raises(error) as caught:
        roi_align(maps, boxes, 2)
    assert all(part in str(caught.value) for part in said), str(caught.value)


# --- paste ------------------------------------------------------------------------------------------------------------


def pastes(generator):
    """Patches, boxes and canvases of three sizes."""
    canvases, boxes = scene(generator)
    return torch.rand(5, 3, 2, 4, generator=generator, dtype=f64), boxes, canvases


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_boxes_and_canvases_of_paste(serving, layout, generator):
    """As lists of their parts, with their gradients; nested canvases have boxes of every form."""
    patches, boxes, canvases = pastes(generator)
    leaves = [t.clone().requires_grad_() for t in (*boxes, *canvases)]
    listed = diffcrop.paste(patches, leaves[:3], canvas=leaves[3:], impl=serving)
    found = diffcrop.paste(patches, nested(leaves[:3], layout), canvas=nested(leaves[3:], torch.strided), impl=serving)
    assert type(found) is list
    weights = [torch.rand(c.shape, generator=generator, dtype=f64) for c in canvases]
    for mine, theirs in zip(found, listed, strict=True):
        assert torch.equal(mine, theirs)
    slopes = [
        torch.autograd.grad(sum((r * w).sum() for r, w in zip(results, weights, strict=True)), leaves)
        for results in (found, listed)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        assert torch.equal(mine, theirs)
    assert slopes[0][0].ne(0).all()
    onto = nested(canvases, torch.strided)
    index = torch.tensor([2, 0, 2, 0, 0])
    found = diffcrop.paste(patches, torch.cat(boxes), canvas=onto, batch_index=index, impl=serving)
    listed = diffcrop.paste(patches, torch.cat(boxes), canvas=canvases, batch_index=index, impl=serving)
    assert all(torch.equal(*pair) for pair in zip(found, listed, strict=True))
    batch = diffcrop.paste(patches, nested(boxes, layout), (7, 9), impl=serving)
    assert torch.equal(batch, diffcrop.paste(patches, boxes, (7, 9), impl=serving))


WRONG = {
    "channels": ({"canvas": lambda c: [c[0], c[1][:1], c[2]]}, "canvas[1] and patches must have as many channels"),
    "dtype": ({"canvas": lambda c: [c[0], c[1], c[2].float()]}, "patches and canvas[2] must agree in dtype"),
    "device": ({"canvas": lambda c: [c[0], c[1].to("meta"), c[2]]}, "patches and canvas[1] must be on the same device"),
    "boxes": ({"boxes": lambda b: [t.to("meta") for t in b]}, "patches and boxes[0] must be on the same device"),
    "nearest": ({"boxes": lambda b: [*b[:2], b[2].requires_grad_()], "mode": lambda _: "nearest"}, "boxes[2].detach()"),
}


@pytest.mark.parametrize("what", WRONG)
def test_canvases_of_a_list_are_checked_before_any_work(what, monkeypatch, generator):
    patches, boxes, canvases = pastes(generator)
    change, text = WRONG[what]
    given = {"boxes": boxes, "canvas": canvases, "mode": "bilinear"}
    given |= {name: function(given[name]) for name, function in change.items()}
    monkeypatch.setattr(_ops_paste, "paste", lambda *_: pytest.fail("pasted before the error was found"))
    with pytest.raises(ValueError, match=re.escape(text)):
        diffcrop.paste(patches, **given)
    with pytest.raises(pytest.fail.Exception, match="pasted before"):
        diffcrop.paste(patches, boxes, canvas=canvases)
    index = torch.tensor([2, 0, 2, 0, 0])
    with pytest.raises(ValueError, match=r"patches and batch_index must be on the same device"):
        diffcrop.paste(patches, torch.cat(boxes), canvas=canvases, batch_index=index.to("meta"))


# --- what is no list --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_boxes_of_a_pyramid(layout, generator):
    maps = {name: torch.rand(2, 3, n, n, generator=generator, dtype=f64) for name, n in (("fine", 32), ("coarse", 16))}
    boxes = [torch.rand(k, 4, generator=generator, dtype=f64) * 64 for k in (3, 2)]
    pool = diffcrop.nn.MultiScaleRoIAlign(["fine", "coarse"], 3, 2, canonical_scale=20, canonical_level=1)
    expected = pool(maps, boxes, [(64, 64)] * 2)
    assert expected.ne(0).any()
    assert torch.equal(pool(maps, nested(boxes, layout), [(64, 64)] * 2), expected)


X, BOX, TWO = torch.zeros(2, 3, 8, 9), torch.zeros(2, 4), torch.zeros(2, 2, 3)
NOT_LISTS = {
    "images of warp_with_jacobian": (lambda n: diffcrop.warp_with_jacobian(n(X), TWO[0], 4), "images must be"),
    "matrix": (lambda n: diffcrop.warp_with_jacobian(X, n(TWO), 4), "matrix must be"),
    "size": (lambda n: diffcrop.crop(X, BOX, n(BOX)), "size must be"),
    "batch_index": (lambda n: diffcrop.crop(X, BOX, 4, batch_index=n(BOX)), "batch_index must be"),
    "patches": (lambda n: diffcrop.paste(n(X[None].expand(2, 2, 3, 8, 9)), BOX, 9), "patches must be"),
    "alpha": (lambda n: diffcrop.paste(X, BOX, 9, alpha=n(X[:, :1])), "alpha must be"),
    "maps": (
        lambda n: diffcrop.nn.MultiScaleRoIAlign(["a"], 3)({"a": n(X)}, [BOX], [(8, 9)]),
        "x must hold feature maps",
    ),
    "tensorflow": (lambda n: tensorflow.crop_and_resize(X, n(BOX[None]), torch.tensor([0]), (3, 3)), "boxes must be"),
    "kornia": (lambda n: kornia.crop_and_resize(X, n(BOX.reshape(1, 2, 2, 2)), (3, 3)), "boxes must be"),
}


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("what", NOT_LISTS)
def test_nested_tensors_elsewhere_are_named(what, layout):
    """By their number of parts, not by an internal error of PyTorch's."""
    call, text = NOT_LISTS[what]
    with pytest.raises(TypeError, match=re.escape(text)) as caught:
        call(lambda tensor: nested([*tensor], layout))
    assert re.search("nested tensor of 2 parts|nested tensor of 1 parts|got a nested one", str(caught.value))
