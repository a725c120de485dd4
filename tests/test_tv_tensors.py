"""Boxes that know their format and canvas, as torchvision's do; torchvision itself is not needed."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import diffcrop
from diffcrop import convert_boxes, coverage, crop, crop_with_jacobian, normal_equations, paste, roi_align
from diffcrop.compat.tensorflow import crop_and_resize
from tv_tensors import BoundingBoxes, Image

f64 = torch.float64
H, W = 8, 11
SIZE = (4, 3)
FORMATS = ["XYXY", "XYWH", "CXCYWH"]


@pytest.fixture
def corners(generator):
    """Pixel corners (3, 4), some outside of the image."""
    lo = torch.rand(3, 2, generator=generator, dtype=f64) * 5 - 1
    return torch.cat([lo, lo + 2 + torch.rand(3, 2, generator=generator, dtype=f64) * 5], 1)


@pytest.fixture
def image(generator):
    return torch.rand(2, H, W, generator=generator, dtype=f64)


def bounding(corners, form, canvas=(H, W)):
    """Boxes of a format, leaves of a graph, and those leaves."""
    leaf = convert_boxes(corners, to_format=form.lower()).clone().requires_grad_()
    return BoundingBoxes(leaf, format=form, canvas_size=canvas), leaf


def test_the_stand_in_does_what_torchvision_does(corners):
    """Tags survive a clone and nothing else, classes do not mix, and torchvision is not imported."""
    assert "torchvision" not in sys.modules
    boxes, _ = bounding(corners, "XYWH")
    assert type(boxes) is BoundingBoxes
    assert boxes.clone().canvas_size == (H, W)
    assert type(boxes + 1) is type(boxes[0]) is torch.Tensor
    with pytest.raises(TypeError):
        torch.add(boxes, torch.zeros(3, 4).as_subclass(Image))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tagged", [False, True], ids=["plain image", "tv image"])
@pytest.mark.parametrize("layout", ["K", "B", "index", "lists", "list of boxes", "ragged B"])
def test_crop(impl, form, tagged, layout, corners, image, generator):
    """The format is theirs, and the gradient arrives in it."""
    tag = Image if tagged else torch.Tensor
    batch = torch.rand(3, 2, H, W, generator=generator, dtype=f64)
    pixels = (image if layout == "K" else batch).clone().requires_grad_()
    plain = convert_boxes(corners, to_format=form.lower()).clone().requires_grad_()
    boxes, leaf = bounding(corners, form)
    options = {"impl": impl, "mode": "bicubic"}
    index = torch.tensor([2, 0, 0]) if layout == "index" else None
    given, theirs, source, wrapped = boxes, plain, pixels, pixels.as_subclass(tag)
    if layout.startswith(("lists", "ragged")):
        source, wrapped = list(pixels), [i.as_subclass(tag) for i in pixels]
    if "list" in layout:
        given = [BoundingBoxes(leaf[i : i + 1], format=form, canvas_size=(H, W)) for i in range(3)]
        theirs = [plain[i : i + 1] for i in range(3)]
    found = crop(wrapped, given, SIZE, batch_index=index, **options)
    assert type(found) is torch.Tensor
    expected = crop(source, theirs, SIZE, batch_index=index, box_format=form.lower(), **options)
    assert torch.equal(found, expected)
    weight = torch.rand(found.shape, generator=generator, dtype=f64)
    mine = torch.autograd.grad((found * weight).sum(), (leaf, pixels))
    other = torch.autograd.grad((expected * weight).sum(), (plain, pixels))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one.as_subclass(torch.Tensor), two, rtol=0, atol=1e-13)
    assert (mine[0] != 0).all()


def test_tagged_leaves_get_their_gradient(impl, corners, image):
    """Boxes and an image that are leaves themselves."""
    boxes = BoundingBoxes(corners.clone(), format="XYXY", canvas_size=(H, W)).requires_grad_()
    tagged = image.clone().as_subclass(Image).requires_grad_()
    crop(tagged, boxes, SIZE, impl=impl).square().sum().backward()
    plain, pixels = corners.clone().requires_grad_(), image.clone().requires_grad_()
    crop(pixels, plain, SIZE, impl=impl).square().sum().backward()
    assert torch.equal(boxes.grad.as_subclass(torch.Tensor), plain.grad)
    assert torch.equal(tagged.grad.as_subclass(torch.Tensor), pixels.grad)


@pytest.mark.parametrize("form", FORMATS)
def test_jacobians_are_by_the_numbers_of_the_format(impl, form, corners, image):
    boxes, leaf = bounding(corners, form)
    found = crop_with_jacobian(image.as_subclass(Image), boxes, SIZE, impl=impl)
    expected = crop_with_jacobian(image, leaf, SIZE, box_format=form.lower(), impl=impl)
    assert torch.equal(found.jacobian, expected.jacobian)
    listed = crop_with_jacobian([image] * 3, boxes, SIZE, impl=impl)
    torch.testing.assert_close(listed.jacobian, expected.jacobian, rtol=0, atol=1e-13)
    with torch.no_grad():
        target = torch.zeros(2, *SIZE, dtype=f64)
        mine = normal_equations(image, boxes, target, impl=impl)
        other = normal_equations(image, leaf, target, box_format=form.lower(), impl=impl)
    assert torch.equal(mine.hessian, other.hessian)


@pytest.mark.parametrize("form", FORMATS)
def test_functions_of_boxes_alone(form, corners):
    boxes, leaf = bounding(corners, form)
    lower = form.lower()
    assert torch.equal(coverage(boxes, SIZE, (H, W)), coverage(leaf, SIZE, (H, W), box_format=lower))
    assert torch.equal(convert_boxes(boxes), convert_boxes(leaf, from_format=lower))
    unit = convert_boxes(leaf, (H, W), from_format=lower, to_coords="unit")
    assert torch.equal(convert_boxes(boxes, to_coords="unit"), unit)  # the canvas says the size
    assert torch.equal(convert_boxes(boxes, (H, W), to_coords="unit"), unit)
    assert torch.equal(diffcrop.boxes_to_theta(boxes), diffcrop.boxes_to_theta(leaf, (H, W), box_format=lower))
    assert torch.equal(diffcrop.invert_boxes(boxes), diffcrop.invert_boxes(leaf, (H, W), box_format=lower))
    points = torch.rand(3, 2, 2, dtype=f64)
    assert torch.equal(
        diffcrop.map_points(points, boxes, SIZE), diffcrop.map_points(points, leaf, SIZE, box_format=lower)
    )
    inner = BoundingBoxes(leaf.detach() / 4, format=form, canvas_size=SIZE)
    found = diffcrop.map_boxes(inner, boxes[0].expand(1, 4), SIZE, box_format=lower)
    assert torch.equal(found, diffcrop.map_boxes(leaf / 4, leaf[:1], SIZE, inner_format=lower, box_format=lower))
    convert_boxes(boxes).sum().backward()
    assert (leaf.grad != 0).any()


@pytest.mark.parametrize("form", FORMATS)
def test_paste(form, corners, generator):
    patches = torch.rand(3, 2, 5, 4, generator=generator, dtype=f64)
    boxes, leaf = bounding(corners, form)
    expected = paste(patches, leaf, (H, W), batch_size=1, batch_index=torch.tensor([0, 0, 0]), box_format=form.lower())
    found = paste(patches.as_subclass(Image), boxes, (H, W), batch_size=1, batch_index=torch.tensor([0, 0, 0]))
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)
    canvases = [torch.zeros(2, H, W, dtype=f64)] * 3
    onto = paste(patches, boxes, canvas=canvases)
    for mine, theirs in zip(onto, paste(patches, leaf, canvas=canvases, box_format=form.lower()), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("form", FORMATS)
def test_roi_align(form, corners, generator):
    """A list of them; in pixels of the canvas, which ``spatial_scale`` takes to those of the features."""
    features = torch.rand(2, 3, H // 2, W // 2, generator=generator, dtype=f64)
    boxes, leaf = bounding(corners, form)
    none = BoundingBoxes(torch.zeros(0, 4, dtype=f64), format=form, canvas_size=(H, W))
    found = roi_align(features.as_subclass(Image), [none, boxes], 2, 0.5, 2, True)
    plain = convert_boxes(leaf, from_format=form.lower())
    expected = roi_align(features, [plain[:0], plain], 2, 0.5, 2, True)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    (grad,) = torch.autograd.grad(found.square().sum(), leaf)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.square().sum(), leaf)[0], rtol=0, atol=1e-12)
    assert (grad != 0).any()


def turned_corners(x, y, w, h, degrees):
    """torchvision's own way from XYWHR to the four corners."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return [x, y, x + w * c, y - w * s, x + w * c + h * s, y - w * s + h * c, x + h * s, y + h * c]


@pytest.mark.parametrize("several", [False, True], ids=["image", "lists"])
def test_rotated_formats(several, image):
    """All three name the same crop, and each has its own gradient."""
    numbers = [2.3, 4.1, 5.2, 3.3, 24.0]
    eight = turned_corners(*numbers)
    centre = [(eight[0] + eight[4]) / 2, (eight[1] + eight[5]) / 2, *numbers[2:]]
    found = []
    for form, row, function in (
        ("XYWHR", numbers, diffcrop.crop_rotated),
        ("CXCYWHR", centre, diffcrop.crop_rotated),
        ("XYXYXYXY", eight, diffcrop.crop_quad),
    ):
        leaf = torch.tensor([row], dtype=f64, requires_grad=True)
        boxes = BoundingBoxes(leaf, format=form, canvas_size=(H, W))
        tagged = image.as_subclass(Image)
        made = function([tagged], [boxes], SIZE) if several else function(tagged, boxes, SIZE)
        assert type(made) is torch.Tensor
        found.append(made)
        (grad,) = torch.autograd.grad(made.square().sum(), leaf)
        assert (grad != 0).all()
    plain = diffcrop.crop_rotated(image, torch.tensor([centre], dtype=f64), SIZE)
    for one in found:
        torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("image_size", [None, (H, W)])
def test_placement(image_size, image):
    """The corners and matrices of a tagged box are those of what `crop_rotated` and `crop_quad` crop there."""
    numbers = [2.3, 4.1, 5.2, 3.3, 24.0]
    eight = torch.tensor([turned_corners(*numbers)], dtype=f64)
    centre = [*(eight[0, :2] + eight[0, 4:6]).div(2).tolist(), *numbers[2:]]
    for form, row in (("XYWHR", numbers), ("CXCYWHR", centre)):
        leaf = torch.tensor([row], dtype=f64, requires_grad=True)
        boxes = BoundingBoxes(leaf, format=form, canvas_size=(H, W))
        quads = diffcrop.rotated_to_quads(boxes, image_size)
        torch.testing.assert_close(quads, eight.unflatten(1, (4, 2)), rtol=0, atol=1e-12)
        (grad,) = torch.autograd.grad(quads.square().sum(), leaf)
        assert (grad != 0).all()
        matrix = diffcrop.rotated_to_matrix(boxes, SIZE, image_size)
        expected = diffcrop.crop_rotated(image, boxes, SIZE)
        torch.testing.assert_close(diffcrop.warp(image, matrix, SIZE), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(diffcrop.crop_quad(image, quads, SIZE), expected, rtol=0, atol=1e-12)
    tagged = BoundingBoxes(eight, format="XYXYXYXY", canvas_size=(H, W))
    expected = diffcrop.quads_to_matrix(eight.unflatten(1, (4, 2)), SIZE)
    assert torch.equal(diffcrop.quads_to_matrix(tagged, SIZE, image_size), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centres_of_half_precision(dtype):
    """What the numbers say is computed from them, not rounded to their dtype again; also beside plain boxes."""
    numbers = torch.tensor([[301.0, 254.0, 151.0, 87.0, 33.0]]).to(dtype)
    boxes = BoundingBoxes(numbers, format="XYWHR", canvas_size=(500, 600))
    expected = torch.tensor([turned_corners(*numbers[0].tolist())]).unflatten(1, (4, 2))
    torch.testing.assert_close(diffcrop.rotated_to_quads(boxes), expected, rtol=0, atol=1e-4)
    image = torch.arange(600.0).expand(1, 500, 600)
    plain = torch.tensor([[200.0, 200.0, 100.0, 60.0, 5.0]]).to(dtype)
    centred = BoundingBoxes(plain, format="CXCYWHR", canvas_size=(500, 600))
    found = diffcrop.crop_rotated([image] * 3, [boxes, plain, centred], 1, antialias=False)
    middle = float(expected[0, :, 0].mean()) - 0.5
    assert found.flatten().tolist() == pytest.approx([middle, 199.5, 199.5], abs=1e-3)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("levels", [1, 2])
def test_multi_scale_roi_align(form, levels, generator):
    """Format and level are theirs, and the gradient arrives in it."""
    pool = diffcrop.nn.MultiScaleRoIAlign(["fine", "coarse"][:levels], 2, 2, canonical_scale=16, canonical_level=3)
    maps = {"fine": torch.rand(2, 3, 16, 16, generator=generator, dtype=f64)}
    maps["coarse"] = torch.rand(2, 3, 8, 8, generator=generator, dtype=f64)
    plain = torch.tensor([[3.3, 4.1, 11.7, 12.9], [2.2, 1.3, 27.8, 29.4], [20.4, 8.1, 25.3, 15.7]], dtype=f64)
    shapes = [(32, 32), (32, 30)]
    pairs = [bounding(plain + i, form, shape) for i, shape in enumerate(shapes)]
    corners = [(plain + i).requires_grad_() for i in range(2)]
    expected = pool(maps, corners, shapes)
    found = pool(maps, [boxes for boxes, _ in pairs], shapes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(found.square().sum(), pairs[1][1])
    again = convert_boxes(corners[1].detach(), to_format=form.lower()).requires_grad_()
    other = convert_boxes(again, from_format=form.lower())
    (wanted,) = torch.autograd.grad(pool(maps, [corners[0], other], shapes).square().sum(), again)
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-11)
    assert (grad != 0).any()


def waves():
    """An image whose place is told by what is there."""
    x = torch.arange(64.0) * torch.linspace(0.15, 0.4, 64)
    return (x.cos() + x.sin()[:, None])[None]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("several", [False, True])
def test_locate(form, several):
    """A start is read in its own format, one box for one template, or one for each."""
    image, box = waves(), torch.tensor([30.0, 26.0, 54.0, 45.0], dtype=f64)
    template = crop(image, box, 12)
    start, _ = bounding(box[None] + torch.tensor([0.6, -0.4, 0.5, 0.7], dtype=f64), form, (64, 64))
    found = diffcrop.locate(image, template[None] if several else template, init=start, reach=0)
    torch.testing.assert_close(found.box.reshape(4), box, rtol=0, atol=1e-2)
    assert torch.equal(found.trace.boxes[0].reshape(4), convert_boxes(start)[0].detach())


@pytest.mark.parametrize("form", ["CXCYWHR", "XYWHR"])
def test_locate_turned(form):
    image, box = waves(), torch.tensor([32.0, 30.0, 26.0, 20.0, 25.0], dtype=f64)
    template = diffcrop.crop_rotated(image, box, 12)
    near = box + torch.tensor([0.5, -0.4, 0.5, 0.4, 1.0], dtype=f64)
    given = near.clone()
    if form == "XYWHR":
        given[:2] = diffcrop.rotated_to_quads(near)[0]
    start = BoundingBoxes(given, format=form, canvas_size=(64, 64))
    found = diffcrop.locate(image, template, init=start, reach=0, rotation=True)
    torch.testing.assert_close(found.box, box, rtol=0, atol=2e-2)
    torch.testing.assert_close(found.trace.boxes[0], near, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMATS)
def test_fit_boxes(form):
    """The first box that is looked at is the start, in corners, as ``box_format`` says."""
    image, box = waves(), torch.tensor([[30.0, 26.0, 54.0, 45.0]], dtype=f64)
    start, _ = bounding(box, form, (64, 64))
    seen = []
    diffcrop.search.fit_boxes(
        image,
        lambda crops: crops.flatten(1).sum(1),
        start,
        8,
        steps=1,
        progress=False,
        callback=lambda step: seen.append(step.boxes),
    )
    torch.testing.assert_close(seen[0].reshape(-1, 4)[:1].double(), box, rtol=0, atol=1e-4)


def test_compiled(corners, image):
    """The tag breaks the graph, and is respected."""
    leaf = convert_boxes(corners, to_format="cxcywh")
    boxes = BoundingBoxes(leaf.clone(), format="CXCYWH", canvas_size=(H, W))
    compiled = torch.compile(lambda i, b: crop(i, b, SIZE).square(), backend="aot_eager")
    expected = crop(image, leaf, SIZE, box_format="cxcywh").square()
    torch.testing.assert_close(compiled(image, boxes), expected, rtol=0, atol=1e-12)


BOXES, IMAGE = torch.tensor([[1.0, 1.0, 5.0, 6.0]] * 2), torch.zeros(3, H, W)


def tv(form="XYWH", canvas=(H, W), data=BOXES):
    return BoundingBoxes(data, format=form, canvas_size=canvas)


def pooled(boxes):
    pool = diffcrop.nn.MultiScaleRoIAlign(["fine"], 2, 2)
    return pool({"fine": torch.zeros(2, 1, H, W)}, boxes, [(H, W)] * 2)


def search(init, **options):
    image = waves()
    return diffcrop.locate(image, image[:, 10:20, 10:20], init=init, **options)


def strange(**attributes):
    boxes = tv()
    vars(boxes).update(attributes)
    return boxes


@pytest.mark.parametrize(("call", "said"), [
    (lambda: crop(IMAGE, tv(), 4, box_format="cxcywh"), ("boxes say", "'xywh'", "box_format='cxcywh'", "leave it out")),
    (lambda: crop(IMAGE, tv(), 4, coords="unit"), ("pixels of their canvas", "coords='unit'", "as_subclass")),
    (lambda: crop(IMAGE, tv(canvas=(9, W)), 4), ("of (9, 11)", "images of (8, 11)", "resize", "boxes.canvas_size")),
    (lambda: crop([IMAGE, IMAGE[:, :5]], tv(), 4), ("boxes were made for a canvas of (8, 11)", "images[1] of (5, 11)")),
    (lambda: crop([IMAGE, IMAGE[:, :5]], [tv(), tv()], 4), ("boxes[1]", "(8, 11)", "images[1] of (5, 11)")),
    (lambda: crop(IMAGE.expand(2, 3, H, W), [tv(), tv(canvas=(4, 4))], 4), ("boxes[1]", "(4, 4)", "images of (8, 11)")),
    (lambda: crop([IMAGE, IMAGE], [tv(), tv("XYXY")], 4), ("agree", "'xyxy' for boxes[1]", "'xywh' for boxes[0]")),
    (lambda: crop(IMAGE, tv("CXCYWHR", data=torch.ones(1, 5)), 4), ("CXCYWHR", "use diffcrop.crop_rotated")),
    (lambda: crop(IMAGE, tv("XYWHR", data=torch.ones(1, 5)), 4), ("XYWHR", "use diffcrop.crop_rotated")),
    (lambda: crop(IMAGE, tv("XYXYXYXY", data=torch.ones(1, 8)), 4), ("XYXYXYXY", "use diffcrop.crop_quad")),
    (lambda: crop(IMAGE, strange(format="YXYX"), 4), ("boxes.format must be one of XYXY", "'YXYX'")),
    (lambda: crop(IMAGE, strange(format=None), 4), ("boxes.format must be one of XYXY", "None")),
    (lambda: crop(IMAGE, strange(canvas_size=8), 4), ("boxes.canvas_size must be (H, W)", "got 8")),
    (lambda: crop_with_jacobian(IMAGE, tv(canvas=(9, W)), 4), ("canvas of (9, 11)",)),
    (lambda: coverage(tv(), 4, (H, H)), ("canvas of (8, 11)", "image_size of (8, 8)")),
    (lambda: convert_boxes(tv(), from_format="cxcywh"), ("'xywh'", "from_format='cxcywh'")),
    (lambda: convert_boxes(tv(), (4, 4), to_coords="unit"), ("canvas of (8, 11)", "image_size of (4, 4)")),
    (lambda: convert_boxes(tv(), from_coords="unit"), ("coords='unit'",)),
    (lambda: diffcrop.map_boxes(tv(canvas=(5, 5)), BOXES[:1], 4), ("inner", "canvas of (5, 5)", "pixels of (4, 4)")),
    (lambda: paste(torch.zeros(2, 3, 4, 4), tv(), (4, 4), batch_size=2), ("canvas of (8, 11)", "canvases of (4, 4)")),
    (lambda: diffcrop.crop_rotated(IMAGE, tv(), 4), ("boxes of format XYWH", "diffcrop.crop, not crop_rotated")),
    (lambda: diffcrop.crop_quad(IMAGE, tv("XYWHR", data=torch.ones(1, 5)), 4), ("quads", "diffcrop.crop_rotated")),
    (lambda: diffcrop.crop_rotated(IMAGE, tv("XYWHR", data=torch.ones(1, 5)), 4, coords="unit"), ("coords='unit'",)),
    (lambda: diffcrop.crop_rotated(IMAGE, tv("XYWHR", (4, 4), torch.ones(1, 5)), 4), ("canvas of (4, 4)", "(8, 11)")),
    (
        lambda: diffcrop.crop_rotated(IMAGE, tv("CXCYWHR", data=torch.ones(1, 5)), 4, clockwise=True),
        ("counter-clockwise", "clockwise=True"),
    ),
    (lambda: roi_align(IMAGE[None], [tv("CXCYWHR", data=torch.ones(1, 5))], 2), ("boxes[0]", "crop_rotated")),
    (lambda: diffcrop.rotated_to_quads(tv()), ("boxes of format XYWH", "diffcrop.crop, not rotated_to_quads")),
    (
        lambda: diffcrop.rotated_to_matrix(tv("XYWHR", data=torch.ones(1, 5)), 4, clockwise=True),
        ("counter-clockwise", "clockwise=True"),
    ),
    (
        lambda: diffcrop.rotated_to_matrix(tv("CXCYWHR", data=torch.ones(1, 5)), 4, (4, W)),
        ("canvas of (8, 11)", "image_size of (4, 11)"),
    ),
    (
        lambda: diffcrop.rotated_to_quads(tv("XYWHR", data=torch.ones(1, 5)), (H, W), coords="unit"),
        ("pixels of their canvas", "coords='unit'"),
    ),
    (
        lambda: diffcrop.quads_to_matrix(tv("XYXYXYXY", data=torch.ones(1, 8)), 4, (4, W)),
        ("quads were made for a canvas of (8, 11)", "image_size of (4, 11)"),
    ),
    (lambda: diffcrop.quads_to_matrix(tv(), 4), ("quads of format XYWH", "diffcrop.crop, not quads_to_matrix")),
    (lambda: pooled([tv(), tv(canvas=(H, 5))]), ("boxes[1]", "canvas of (8, 5)", "image_shapes[1] of (8, 11)")),
    (lambda: pooled([tv(), tv("XYWHR", data=torch.ones(1, 5))]), ("boxes[1] of format XYWHR", "no upright boxes")),
    (lambda: search(tv(canvas=(8, 8))), ("init were made for a canvas of (8, 8)", "image of (64, 64)")),
    (lambda: search(tv("XYWHR", data=torch.ones(1, 5))), ("init must be of format XYXY", "XYWHR", "rotation=True")),
    (lambda: search(tv("XYXY"), rotation=True), ("init must be of format XYWHR or CXCYWHR", "XYXY", "no rotation")),
    (
        lambda: search(tv("XYXYXYXY", data=torch.ones(1, 8)), rotation=True),
        ("init must be of format XYWHR or CXCYWHR here, got XYXYXYXY",),
    ),
    (
        lambda: diffcrop.search.fit_boxes(IMAGE, lambda c: c.sum((1, 2, 3)), tv(canvas=(4, 4)), 4),
        ("init were made for a canvas of (4, 4)", "images of (8, 11)"),
    ),
])  # fmt: skip
def test_errors(call, said):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_tensorflow_refuses_them():
    """Its numbers are y first, and 0 to 1."""
    image, index = torch.rand(1, H, W, 2), torch.tensor([0, 0])
    with pytest.raises(TypeError, match=r"y1, x1, y2, x2.*BoundingBoxes of format XYXY in pixels"):
        crop_and_resize(image, tv("XYXY"), index, (2, 2))


def test_roi_align_takes_them_in_a_list():
    with pytest.raises(TypeError, match="pass a list with one of them for each image"):
        roi_align(IMAGE[None], tv("CXCYWHR", data=torch.ones(1, 5)), 2)
