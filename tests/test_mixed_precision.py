"""Under autocast a crop keeps the image's dtype, and its positions; docs/mixed_precision.md has the figures."""

from __future__ import annotations

import contextlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.func import jvp

import diffcrop
from diffcrop import compat, crop, crop_with_jacobian
from diffcrop.nn import LearnableBox
from plain import SIZE, SMOOTH, boxes, image, mine

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mixed_precision.md"
HALVES = [torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
PIXELS, OUTPUTS = 1000, 32


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


# --- positions --------------------------------------------------------------------------------------------------------


def position_errors(device, dtype, impl=None):
    """The largest errors of sampling positions over 200 boxes of an image of 1000 pixels whose value is the position.

    Without antialiasing, as the recipe has none. The truth is float64 arithmetic on the float32 boxes.
    """
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(PIXELS, dtype=torch.float32).add(0.5).expand(1, 1, 2, PIXELS).contiguous().to(device)
    u = torch.rand(200, 2, generator=generator)
    lo = 600 * u[:, 0]
    hi = lo + 20 + 370 * u[:, 1]
    box = torch.stack([lo, torch.zeros(200), hi, torch.full((200,), 2.0)], -1).to(device)
    step = (torch.arange(OUTPUTS, dtype=torch.float64) + 0.5) / OUTPUTS
    truth = lo[:, None].double() + step * (hi - lo.double())[:, None].double()
    size, options = (1, OUTPUTS), {"antialias": False, "impl": impl}

    def recipe(box):
        theta = diffcrop.boxes_to_theta(box, (2, PIXELS))
        grid = torch.nn.functional.affine_grid(theta, (len(box), 1, *size), align_corners=False)
        return torch.nn.functional.grid_sample(
            ramp.expand(len(box), -1, -1, -1), grid, padding_mode="border", align_corners=False
        )

    with torch.autocast(device, dtype=dtype):
        found = {
            "diffcrop": crop(ramp, box[None], size, **options),
            "recipe": recipe(box),
            "boxes rounded before": crop(ramp, box[None].to(dtype), size, **options),
        }
    return {name: float((f.reshape(200, -1).cpu().double() - truth).abs().max()) for name, f in found.items()}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("device", DEVICES)
def test_positions_are_kept(impl, device, dtype):
    if device == "cuda" and impl == "cpu":
        pytest.skip("the kernels of the CPU")
    errors = position_errors(device, dtype, impl)
    assert errors["diffcrop"] < 1e-3
    assert errors["recipe"] > 100 * errors["diffcrop"]
    # Half precision has 8 and 11 bits: a box in it is off by half an ulp, at most 2 and 0.25 pixels here.
    half_an_ulp = 512 * torch.finfo(dtype).eps / 2
    assert half_an_ulp / 2 < errors["boxes rounded before"] < half_an_ulp * 1.01


def test_the_page_has_these_figures():
    recorded = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    for dtype in HALVES:
        measured = position_errors("cpu", dtype)
        names = ("diffcrop", "recipe", "boxes rounded before")
        figures = dict(zip(names, map(float, recorded[str(dtype)[6:]].split(" | ")), strict=True))
        assert measured["diffcrop"] <= figures["diffcrop"] < 1e-3
        for name in names[1:]:
            assert measured[name] == pytest.approx(figures[name], rel=0.1)


def test_the_page_runs(monkeypatch):
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert examples
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})


@pytest.mark.parametrize("dtype", HALVES)
def test_boxes_of_half_precision_are_promoted(impl, dtype, generator):
    """Positions and gradients are computed in float32 or better; the gradient comes back in the boxes' dtype."""
    i, b = image(generator).float(), (boxes(generator) * 0.7).to(dtype).requires_grad_()
    wide = b.detach().float().requires_grad_()
    found, expected = mine(impl)(i, b), mine(impl)(i, wide)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert b.grad.dtype == dtype
    assert torch.equal(b.grad, wide.grad.to(dtype))


# --- everything else --------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[512.3, 700.9, 901.7, 903.1], [1.1, 2.2, 333.3, 444.4]])
POINTS = torch.tensor([[[1.7, 3.1]], [[6.3, 2.2]]])
SIZES = {"size": 8, "image_size": (960, 1000)}
FUNCTIONS = {
    "crop": lambda b: crop(ramp(b), b, 8, mode="lanczos3"),
    "crop, lists": lambda b: crop([ramp(b)[0], ramp(b)[0]], [b[:1], b[1:]], 8),
    "crop, indexed list": lambda b: crop([ramp(b)[0], ramp(b)[0]], b, 8, batch_index=torch.tensor([1, 0])),
    "crop_with_jacobian": lambda b: crop_with_jacobian(ramp(b), b / 1000, 8, coords="unit", box_format="cxcywh"),
    "coverage": lambda b: diffcrop.coverage(b - 400, 8, 500),
    "paste": lambda b: diffcrop.paste(crop(ramp(b), b / 9, 8), b / 8, (96, 1000), batch_size=2, return_mask=True),
    "convert_boxes": lambda b: diffcrop.convert_boxes(b, (960, 1000), to_format="cxcywh", to_coords="normalized"),
    "boxes_to_theta": lambda b: diffcrop.boxes_to_theta(b, (960, 1000)),
    "theta_to_boxes": lambda b: diffcrop.theta_to_boxes(diffcrop.boxes_to_theta(b, (960, 1000)), (960, 1000)),
    "invert_boxes": lambda b: diffcrop.invert_boxes(b, (960, 1000)),
    "map_points": lambda b: diffcrop.map_points(POINTS, b, **SIZES),
    "map_points to crop": lambda b: diffcrop.map_points(POINTS, b, to="crop", **SIZES),
    "map_boxes": lambda b: diffcrop.map_boxes(b[:, None] / 200, b, inner_format="cxcywh", **SIZES),
    "roi_align": lambda b: diffcrop.roi_align(ramp(b), [b[:1], b[1:]], 7, 0.5, 2, True),
    "roi_align, exact": lambda b: diffcrop.roi_align(ramp(b), [b[:1], b[1:]], 7, mode="exact"),
    "crop_rotated": lambda b: diffcrop.crop_rotated(ramp(b), turned(b), 8),
    "crop_rotated, lists": lambda b: diffcrop.crop_rotated([ramp(b)[0], ramp(b)[0]], turned(b), 8, coords="unit"),
    "crop_quad": lambda b: diffcrop.crop_quad(ramp(b), b[:, CORNERS], 8, mode="bicubic"),
    "warp": lambda b: diffcrop.warp(ramp(b), diffcrop.boxes_to_theta(b, (960, 1000)), 8, coords="normalized"),
    "warp_with_jacobian": lambda b: diffcrop.warp_with_jacobian(
        ramp(b), diffcrop.boxes_to_theta(b, (960, 1000)), 8, coords="normalized"
    ),
    "rotated_to_quads": lambda b: diffcrop.rotated_to_quads(turned(b), (960, 1000), coords="unit"),
    "rotated_to_matrix": lambda b: diffcrop.rotated_to_matrix(turned(b), 8),
    "quads_to_matrix": lambda b: diffcrop.quads_to_matrix(b[:, CORNERS], 8),
    "warp_points": lambda b: diffcrop.warp_points(POINTS, diffcrop.rotated_to_matrix(turned(b), 8)),
    "compat.torchvision.roi_align": lambda b: compat.torchvision.roi_align(ramp(b), [b[:1], b[1:]], 7, 0.5, 2, True),
    "compat.torchvision.resized_crop": lambda b: compat.torchvision.resized_crop(ramp(b), *b[1] / 7, (8, 9)),
    "compat.tensorflow.crop_and_resize": lambda b: compat.tensorflow.crop_and_resize(
        ramp(b).permute(0, 2, 3, 1), b[:, [1, 0, 3, 2]] / 1000, torch.tensor([1, 0]), (8, 9)
    ),
    "compat.jax.scale_and_translate": lambda b: compat.jax.scale_and_translate(
        ramp(b), (2, 3, 8, 9), (2, 3), b[0, :2] / 9000, -b[1, :2], "linear"
    ),
    "compat.jax.scale_and_translate, by matrices": lambda b: compat.jax.scale_and_translate(
        ramp(b), (2, 3, 8, 9), (2, 3), b[0, :2] / 9000, -b[1, :2], "lanczos5"
    ),
    "compat.kornia.crop_and_resize": lambda b: compat.kornia.crop_and_resize(ramp(b), b[:, CORNERS] / 3, (8, 9)),
    "compat.kornia.crop_by_boxes": lambda b: compat.kornia.crop_by_boxes(
        ramp(b), b[:, CORNERS] / 3, torch.tensor([[0.0, 0.0], [8.0, 0.0], [8.0, 7.0], [0.0, 7.0]]).expand(2, 4, 2)
    ),
    "compat.kornia.crop_by_transform_mat": lambda b: compat.kornia.crop_by_transform_mat(
        ramp(b), diffcrop.boxes_to_theta(b[:, CORNERS[[0, 2]]].flatten(1), (960, 1000)), (8, 9), align_corners=False
    ),
    "compat.kornia.center_crop": lambda b: compat.kornia.center_crop(ramp(b) * b[0, 0], (8, 9)),
    "LearnableBox": lambda b: LearnableBox((960, 1000), init=b, inside=True)(),
    "LearnableBox, aspect": lambda _: LearnableBox(1000, init=[1, 2, 401, 202], aspect=2.0, coords="unit")(),
}


CORNERS = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 3]])


def turned(boxes):
    return torch.cat([boxes, boxes[:, :1] / 7], 1)


def ramp(boxes):
    return torch.linspace(0, 1, 1000, device=boxes.device).expand(2, 3, 96, 1000)


def unlike(crops):
    return -(crops - 0.5).square().mean((1, 2, 3))


# What is not differentiated.
SEARCHES = {
    "normal_equations": lambda i, b: diffcrop.normal_equations(i, b, i[:, 4:12, 4:12], metric="zncc"),
    "normal_equations_of": lambda i, b: diffcrop.normal_equations_of(
        *diffcrop.crop_with_jacobian(i, b, 8), i[:, 4:12, 4:12], metric="zncc"
    ),
    "locate": lambda i, b: diffcrop.locate(i, crop(i, b, 12))[:4],
    "fit_boxes": lambda i, b: diffcrop.fit_boxes(i, unlike, b, 8, steps=5)[:2],
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SEARCHES)
def test_autocast_changes_no_search(name, dtype):
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")[0]
    box = torch.tensor([10.3, 12.1, 44.9, 50.2])
    expected = SEARCHES[name](picture, box)
    with torch.autocast("cpu", dtype=dtype):
        found = SEARCHES[name](picture, box)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_every_public_function_is_among_them():
    named = {name.split(",")[0].split(" ")[0] for name in (*FUNCTIONS, *SEARCHES)}
    functions = {name for name in diffcrop.__all__ if inspect.isfunction(getattr(diffcrop, name))}
    assert functions - named == {"implementations", "kernels", "simd_level"}
    peers = {f"compat.{peer}.{name}" for peer in compat.__all__ for name in getattr(compat, peer).__all__}
    assert len(peers) > 5
    assert peers <= named


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_moves_nothing(name, dtype):
    """Not where backward runs inside of it either, except the derivative of a jacobian, which is plain PyTorch's."""

    def everything(dtype):
        inside = torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)
        with inside:
            b = BOXES.clone().requires_grad_()
            result = FUNCTIONS[name](b)
            result = list(result) if isinstance(result, tuple) else [result]
            loss = sum(t.float().square().sum() for t in result)
        with inside if name != "crop_with_jacobian" else contextlib.nullcontext():
            return [*result, *torch.autograd.grad(loss, b, allow_unused=True, materialize_grads=True)]

    expected, found = everything(None), everything(dtype)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)


# --- training ---------------------------------------------------------------------------------------------------------


class Localiser(torch.nn.Module):
    """Predicts a box, in float32 whatever surrounds it, and looks there."""

    def __init__(self, impl):
        super().__init__()
        self.features = torch.nn.Conv2d(1, 4, 5, stride=2)
        self.head = torch.nn.Linear(4 * 14 * 14, 4)
        torch.nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([7.0, 7, 23, 23]))
        self.crop = diffcrop.nn.Crop(8, impl=impl)

    def forward(self, images):
        features = self.features(images).relu().flatten(1)
        with torch.autocast(features.device.type, enabled=False):
            box = self.head(features.float())
        return self.crop(images, box), box


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES)
def test_training_with_a_grad_scaler(impl, dtype, device):
    """The loss falls, and a step whose gradients overflow is left out while the scale is halved."""
    if device == "cuda" and impl == "cpu":
        pytest.skip("the kernels of the CPU")
    torch.manual_seed(0)
    axis = torch.linspace(-1, 1, 32)
    x, y = torch.tensor([0.1, -0.2]).view(2, 1, 1, 1), torch.tensor([-0.2, 0.15]).view(2, 1, 1, 1)
    images = torch.exp(-8 * ((axis - x) ** 2 + (axis[:, None] - y) ** 2)).to(device)
    targets = crop(images, torch.tensor([[9.0, 5, 26, 20], [5, 10, 20, 27]], device=device), 8)
    model = Localiser(impl).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**12, growth_interval=10)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=dtype):
            crops, box = model(images)
            assert box.dtype == crops.dtype == torch.float32
            loss = (crops - targets).square().mean()
        before, scale = [p.detach().clone() for p in model.parameters()], scaler.get_scale()
        # What overflows in half precision arrives as inf.
        (scaler.scale(loss) * (float("inf") if step == 20 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = any((p != q).any() for p, q in zip(model.parameters(), before, strict=True))
        assert changed == (step != 20)
        assert scaler.get_scale() == scale / 2 if step == 20 else scaler.get_scale() >= scale
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert losses[21] == losses[20]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_scaled_loss_gives_scaled_gradients(impl, dtype, generator):
    """By a power of two, so to the bit, in images of half precision too as long as nothing overflows."""
    i, b = image(generator).to(dtype).requires_grad_(), boxes(generator).float().requires_grad_()
    weight = torch.rand(2, *SIZE, generator=generator)

    def gradients(scale):
        with torch.autocast("cpu", dtype=dtype):
            loss = (crop(i, b, SIZE, impl=impl, **SMOOTH).float() * weight).sum()
        return torch.autograd.grad(loss * scale, (i, b))

    once, scaled = gradients(1.0), gradients(64.0)
    for one, other in zip(once, scaled, strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one.float() * 64, other.float())


def test_an_overflow_is_seen(impl, generator):
    """Infinities in the cotangent reach the gradients, where a scaler looks for them."""
    i, b = image(generator).float().requires_grad_(), boxes(generator).float().requires_grad_()
    crops = mine(impl)(i, b)
    cotangent = torch.zeros_like(crops)
    cotangent[0, 0, 0] = float("inf")
    by_image, by_box = torch.autograd.grad(crops, (i, b), cotangent)
    assert not by_image.isfinite().all()
    assert not by_box.isfinite().all()


def test_a_learnable_box_trains_under_autocast(impl):
    torch.manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6), (64, 64), mode="bicubic")[0]
    target = crop(picture, torch.tensor([12.0, 20, 44, 52]), 12)

    def train(dtype):
        module = LearnableBox(64, init=[16, 15, 50, 46], inside=True)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                loss = (crop(picture, module(), 12, impl=impl) - target).square().mean()
            loss.backward()
            optimizer.step()
        return module().detach(), loss.detach()

    expected = train(None)
    assert expected[1] < 0.01
    for dtype in HALVES:
        assert all(torch.equal(one, other) for one, other in zip(train(dtype), expected, strict=True))
