"""`locate`: templates made by others and by ourselves, in every shape and dtype, absent ones, and hostile input."""

from __future__ import annotations

import functools
import io
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffcrop
from diffcrop import locate
from diffcrop.search.matching import exhaustive

PHOTOS = Path(__file__).parent / "photos"
PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
TRUTH = (61.3, 48.9, 182.2, 151.6)


def tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32) / 255


@functools.cache
def photograph(name="chelsea"):
    return Image.open(PHOTOS / f"{name}.jpg").convert("RGB")


def scene(name="chelsea"):
    return tensor(photograph(name))


def template(box=TRUTH, size=(20, 24), mode="lanczos3", name="chelsea"):
    """What an image program cuts out, 8 bits; size (h, w)."""
    return tensor(photograph(name).resize(size[::-1], PILLOW[mode], box=box))


def error(found, truth):
    return float((torch.as_tensor(found) - torch.tensor(truth, dtype=torch.float64)).abs().max())


def deviation(found):
    return found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()


def boxes_inside(name, count, seed, low=60, high=110):
    width, height = photograph(name).size
    draw = random.Random(seed)
    for _ in range(count):
        w, h = draw.uniform(low, high), draw.uniform(low, high)
        x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
        yield x, y, x + w, y + h


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [1, 3, 8])
@pytest.mark.parametrize("mode", PILLOW)
def test_crops_of_an_image_program_are_found_and_their_filter_told(mode, reduction):
    for name in ("chelsea", "rocket"):
        for truth in boxes_inside(name, 2, f"{name}{mode}{reduction}"):
            size = round(80 / reduction)
            found = locate(scene(name), template(truth, (size, size), mode, name))
            assert found.converged
            # In a clear sky 8 bits say less.
            assert error(found.box, truth) < max(0.01 * reduction, 8 * float(deviation(found).max()))
            assert deviation(found).max() < 0.15 * reduction
            if reduction > 1:  # at about 1:1 two filters may be as good
                assert found.trace.names[found.trace.modes] == mode


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos3", "area", "gaussian"])
@pytest.mark.parametrize("metric", ["l2", "zncc"])
def test_our_own_crops_are_found_to_rounding(mode, metric):
    image = scene().double()
    own = diffcrop.crop(image, torch.tensor(TRUTH, dtype=torch.float64), (17, 31), mode=mode)
    found = locate(image, own, mode=mode, metric=metric)
    assert found.converged
    assert error(found.box, TRUTH) < 1e-5
    assert float(found.residual) < 1e-5


def test_without_antialiasing():
    image = scene()
    own = diffcrop.crop(image, torch.tensor(TRUTH), 40, antialias=False)
    assert error(locate(image, own, mode="bilinear", antialias=False).box, TRUTH) < 0.01


def test_another_encoding_of_a_resized_region():
    """JPEG of quality 60, with its chroma at half the resolution."""
    file = io.BytesIO()
    photograph().resize((48, 40), Image.Resampling.BICUBIC, box=TRUTH).save(file, "JPEG", quality=60)
    found = locate(scene(), tensor(Image.open(file)))
    assert found.converged
    assert error(found.box, TRUTH) < 0.5
    # The errors are not independent, so the covariance is only about right.
    assert float(found.covariance.diagonal().sqrt().max()) < 0.5


def test_brightness_and_contrast_do_not_matter_to_zncc():
    darker = template() * 0.6 + 0.2
    found = locate(scene(), darker, metric="zncc")
    assert found.converged
    assert error(found.box, TRUTH) < 0.05
    plain = locate(scene(), darker)
    assert error(plain.box, TRUTH) > 10 * error(found.box, TRUTH)


def test_each_channel_may_have_its_own_brightness():
    shifted = template() + torch.tensor([0.2, 0.0, -0.1])[:, None, None]
    assert error(locate(scene(), shifted, metric="zncc").box, TRUTH) < 0.05


def test_huber_looks_past_what_covers_the_template():
    covered = template(size=(40, 48))
    covered[:, :12, :16] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    found = locate(scene(), covered, huber=0.02)
    assert found.converged
    assert error(found.box, TRUTH) < 0.1
    assert error(locate(scene(), covered).box, TRUTH) > 2 * error(found.box, TRUTH)


def test_what_is_not_there_is_not_found():
    other = template(box=(300.0, 100.0, 400.0, 200.0), name="rocket")
    noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    for absent in (other, noise):
        for metric in ("l2", "zncc"):
            assert not locate(scene(), absent, metric=metric).converged


@pytest.mark.parametrize("name", ["chelsea", "rocket"])
def test_cutouts_are_found_where_scales_say_so(name):
    draw = random.Random(name)
    image = scene(name)
    missed = 0
    for _ in range(8):
        x, y = draw.randrange(image.shape[2] - 30), draw.randrange(image.shape[1] - 30)
        found = locate(image, image[:, y : y + 30, x : x + 30], scales=(0.8, 1.2))
        missed += not found.converged
        assert not found.converged or error(found.box, (x, y, x + 30, y + 30)) < 0.01
    assert missed <= 1  # a lattice against the sky


def test_a_filter_that_none_of_ours_is_converges_too():
    """Pillow's NEAREST: kinks all over, and steps that end nowhere within the tolerance."""
    for truth in boxes_inside("chelsea", 6, 3):
        small = tensor(photograph().resize((48, 44), Image.Resampling.NEAREST, box=truth))
        found = locate(scene(), small)
        assert found.converged
        assert error(found.box, truth) < 2


def test_the_whole_image_is_found():
    image = scene()
    height, width = image.shape[1:]
    small = diffcrop.crop(image, torch.tensor([0.0, 0.0, width, height]), (30, 45))
    assert error(locate(image, small).box, (0, 0, width, height)) < 0.05
    assert error(locate(image, image).box, (0, 0, width, height)) < 0.01


def test_small_boxes_are_searched_where_scales_ask_for_them():
    truth = (163.7, 175.7, 172.2, 184.8)
    small = template(truth, (9, 9), "bilinear")
    assert not locate(scene(), small).converged
    for options in ({"scales": (0.8, 1.2)}, {"scales": (0.9, 1.2), "candidates": 1_000_000}):
        found = locate(scene(), small, **options)
        assert found.converged
        assert error(found.box, truth) < 0.05
    with pytest.raises(ValueError, match="candidates=5000 are too few"):
        locate(scene(), small, scales=(0.8, 1.2), candidates=5000)


def test_a_fixed_aspect_is_kept_and_found():
    truth = (61.3, 48.9, 61.3 + 120, 48.9 + 100)
    own = template(truth, (20, 24), "bilinear")
    found = locate(scene(), own, aspect="fixed", mode="bilinear")
    sides = found.box[2:] - found.box[:2]
    assert error(found.box, truth) < 0.05
    assert float((sides[0] / sides[1] - 1.2).abs()) < 1e-12
    stretched = locate(scene(), template((61.3, 48.9, 200.0, 140.0), (24, 24)), aspect="fixed")
    sides = stretched.box[2:] - stretched.box[:2]
    assert float((sides[0] / sides[1] - 1).abs()) < 1e-12
    assert torch.linalg.matrix_rank(found.covariance) == 3


# --- from a box that is given -----------------------------------------------------------------------------------------


def displaced(truth, share, angle=0.7, stretch=(0.8, -0.6)):
    x0, y0, x1, y1 = truth
    w, h = x1 - x0, y1 - y0
    cx, cy = (x0 + x1) / 2 + share * w * math.cos(angle), (y0 + y1) / 2 + share * h * math.sin(angle)
    w, h = w * math.exp(share * stretch[0]), h * math.exp(share * stretch[1])
    return torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("angle", [0.7, 3.5])
def test_from_a_start_in_reach(share, angle):
    found = locate(scene(), template(), init=displaced(TRUTH, share, angle))
    assert found.converged
    assert error(found.box, TRUTH) < 0.05


def test_without_reach_the_start_alone_is_refined():
    start = displaced(TRUTH, 0.05)
    found = locate(scene(), template(), init=start, reach=0)
    assert error(found.box, TRUTH) < 0.05
    assert found.trace.candidates.tolist() == [start.tolist()]
    assert found.trace.costs.isnan().all()
    assert torch.equal(found.trace.boxes[0], start)
    assert torch.equal(found.trace.boxes[-1], found.box)


def test_what_is_out_of_reach_is_left_alone():
    start = torch.tensor([230.0, 150.0, 290.0, 210.0])
    found = locate(scene(), template(), init=start, reach=0.25)
    centre = (found.trace.candidates[:, :2] + found.trace.candidates[:, 2:]) / 2
    assert float((centre - torch.tensor([260.0, 180.0])).abs().max()) <= 0.25 * 60 + 1e-9
    assert error(found.box, TRUTH) > 20


def test_a_start_of_another_aspect_keeps_its_centre_and_area():
    found = locate(scene(), template(), init=[50.0, 40.0, 150.0, 200.0], reach=0, aspect="fixed")
    start = found.trace.boxes[0]
    sides = start[2:] - start[:2]
    assert float(sides[0] / sides[1]) == pytest.approx(1.2)
    assert float(sides.prod()) == pytest.approx(100 * 160)
    assert ((start[:2] + start[2:]) / 2).tolist() == pytest.approx([100, 120])


# --- shapes, dtypes, devices ------------------------------------------------------------------------------------------


def test_shapes():
    image, other = scene(), scene().flip(-1)
    one, two = template(), template((100.0, 80.0, 190.0, 160.0))
    batch = torch.stack([image, other])
    each = torch.stack([torch.stack([one, two]), torch.stack([two.flip(-1), one.flip(-1)])])
    for pixels, wanted, leading in [
        (image, one, ()),
        (image, torch.stack([one, two]), (2,)),
        (batch, one, (2,)),
        (batch, torch.stack([one, two.flip(-1)]), (2,)),
        (batch, each, (2, 2)),
    ]:
        found = locate(pixels, wanted)
        assert found.box.shape == (*leading, 4)
        assert found.residual.shape == found.converged.shape == found.trace.modes.shape == leading
        assert found.covariance.shape == (*leading, 4, 4)
        assert found.trace.candidates.shape[:-2] == found.trace.costs.shape[:-1] == leading
        assert found.trace.boxes.shape[1:] == (*leading, 4)
        assert found.box.dtype == found.covariance.dtype == torch.float64
    # Many at once are found as each by itself.
    for b in range(2):
        for t in range(2):
            assert error(found.box[b, t], locate(batch[b], each[b, t]).box.tolist()) < 1e-3


def test_many_templates_begin_at_their_own_starts():
    truths = torch.tensor(list(boxes_inside("chelsea", 3, 5)), dtype=torch.float64)
    wanted = torch.stack([template(tuple(box), (16, 16)) for box in truths.tolist()])
    found = locate(scene(), wanted, init=truths + torch.tensor([5.0, -4.0, 3.0, 6.0]))
    assert error(found.box, truths.tolist()) < 0.1
    shared = locate(scene(), wanted[:2], init=truths[0], reach=0)
    assert torch.equal(shared.trace.boxes[0], truths[:1].expand(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int32])
def test_dtypes(dtype):
    whole = (scene() * 255).round()
    image, wanted = whole / (1 if not dtype.is_floating_point else 255), template() * 255
    image = image.to(dtype)
    wanted = wanted.round().to(dtype) if not dtype.is_floating_point else (wanted / 255).to(dtype)
    found = locate(image, wanted)
    assert found.converged
    assert error(found.box, TRUTH) < (0.5 if dtype == torch.bfloat16 else 0.05)


def test_layouts_and_channels():
    image, wanted = scene(), template()
    plain = locate(image, wanted).box
    last = image[None].contiguous(memory_format=torch.channels_last)
    assert error(locate(last, wanted[None]).box[0], plain.tolist()) < 1e-4
    wide = torch.full((3, image.shape[1], 2 * image.shape[2]), math.nan)
    wide[..., ::2] = image
    assert error(locate(wide[..., ::2], wanted).box, plain.tolist()) < 1e-4
    mixed = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    features, cut = (torch.einsum("dc,chw->dhw", mixed, pixels) for pixels in (image, wanted))
    assert error(locate(features, cut).box, TRUTH) < 0.05
    assert error(locate(image[1:2], wanted[1:2]).box, TRUTH) < 0.05


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (1, 31), (31, 1), (7, 16), (17, 33), (64, 8)])
def test_odd_sizes(size):
    image = scene().double()[:, :157, :203]
    box = torch.tensor([30.2, 41.7, 131.4, 118.8], dtype=torch.float64)
    own = diffcrop.crop(image, box, size)
    found = locate(image, own, mode="bilinear", init=box + torch.tensor([2.0, -1.0, 1.0, 2.0]))
    assert found.box.isfinite().all()
    assert found.residual < 0.01
    if min(size) > 2:
        assert error(found.box, box.tolist()) < 1e-3


def test_the_smallest_of_everything():
    image = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    found = locate(image, image)
    assert error(found.box, (0, 0, 2, 2)) < 0.2
    assert found.covariance.isinf().all()  # four numbers from four pixels: nothing is left to tell the noise


@pytest.mark.parametrize("metric", ["l2", "zncc"])
def test_templates_of_other_colours_do_not_mind_one_another(metric):
    """One varies only in the sum of two channels, the other only in their difference."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 2, 12, 24, generator=generator)
    both = torch.nn.functional.interpolate(coarse, (96, 192), mode="bicubic")[0]
    image = torch.where(torch.arange(192) < 96, torch.stack([both[0], -both[0]]), torch.stack([both[1], both[1]]))
    truths = [[20.0, 30.0, 60.0, 70.0], [120.0, 30.0, 160.0, 70.0]]
    wanted = diffcrop.crop(image, torch.tensor(truths), 16)
    found = locate(image, wanted, metric=metric)
    assert found.converged.all()
    assert error(found.box, truths) < 0.01


@pytest.mark.parametrize("metric", ["l2", "zncc"])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 300.0), (1.0, 1000.0), (1e-12, 0.0), (1e12, 1e14)])
def test_units_do_not_matter(metric, gain, offset):
    """Kelvin, elevations, X-ray densities: a mean that is large beside the contrast."""
    image = scene().double() * gain + offset
    wanted = diffcrop.crop(image, torch.tensor(TRUTH), 20)
    found = locate(image, wanted, metric=metric)
    assert found.converged
    assert error(found.box, TRUTH) < 0.01


def test_the_default_dtype_does_not_matter():
    image, wanted = scene(), template()
    before = locate(image, wanted).box
    exhaustive._cells.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(locate(image, wanted).box, before)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(locate(image, wanted).box, before)


@pytest.mark.parametrize("iterations", [1, 3, 4, 5])
def test_few_steps_are_enough_where_the_start_is_right(iterations):
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    own = diffcrop.crop(scene(), truth, 20)
    found = locate(scene(), own, init=truth, iterations=iterations)
    assert found.converged
    assert found.trace.names[found.trace.modes] == "bilinear"
    assert error(found.box, TRUTH) < 1e-3


def test_what_says_nothing_has_infinite_errors():
    """A box beside the image reads one colour."""
    for metric in ("l2", "zncc"):
        found = locate(scene(), template(), init=[1000.0, 1000.0, 1050.0, 1050.0], reach=0, metric=metric)
        assert found.covariance.isinf().all()
        assert not found.converged
        assert found.residual.isfinite()


def test_in_inference_mode():
    exhaustive._cells.cache_clear()
    with torch.inference_mode():
        inside = locate(scene(), template()).box
    assert error(locate(scene(), template()).box, inside.tolist()) < 1e-9


def test_the_reference_agrees():
    image, wanted = scene()[:, 20:180, 40:220], template()
    ours = locate(image, wanted, mode=("bilinear", "lanczos3"))
    reference = locate(image, wanted, mode=("bilinear", "lanczos3"), impl="reference")
    assert error(reference.box, ours.box.tolist()) < 1e-3
    assert error(reference.box, (TRUTH[0] - 40, TRUTH[1] - 20, TRUTH[2] - 40, TRUTH[3] - 20)) < 0.05


def test_nothing_around_it_is_touched():
    image, wanted = scene().requires_grad_(), template().requires_grad_()
    state = torch.random.get_rng_state()
    before = image.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = locate(image, wanted)
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert not found.box.requires_grad
    assert torch.equal(image, before)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(found.box, locate(scene(), template()).box)


# --- how sure it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "huber"), [("l2", None), ("zncc", None), ("l2", 0.05)])
def test_the_covariance_is_that_of_the_errors(metric, huber):
    generator = torch.Generator().manual_seed(3)
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    own = diffcrop.crop(scene().double(), truth, (20, 24))
    noisy = own + 0.05 * torch.randn(60, *own.shape, generator=generator, dtype=torch.float64)
    found = locate(scene().double(), noisy, mode="bilinear", metric=metric, huber=huber, init=truth, reach=0)
    off = found.box - truth
    # The squares of 60 errors of 4 numbers in units of what is claimed: 4 each, within 3 deviations of their mean.
    claimed = (off * torch.linalg.solve(found.covariance, off)).sum(-1).mean() / 4
    assert abs(float(claimed) - 1) < 3 * math.sqrt(2 / 240)
    # What noise leaves unexplained of the template's contrast, which is the crop's and its own.
    contrast = (noisy - noisy.mean((-2, -1), keepdim=True)).square().mean().sqrt()
    expected = 0.05 if metric == "l2" else 0.05 / float(contrast)
    assert float(found.residual.mean()) == pytest.approx(expected, rel=0.05)


def test_the_bound_is_reached_under_noise():
    """Cramer and Rao: no unbiased estimate has less variance than the noise's over J^T J."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.tensor(TRUTH, dtype=torch.float64)
    own, jacobian = diffcrop.crop_with_jacobian(scene().double(), truth, (20, 24))
    bound = 0.05**2 * torch.linalg.inv(jacobian.reshape(-1, 4).T @ jacobian.reshape(-1, 4)).trace()
    noisy = own + 0.05 * torch.randn(60, *own.shape, generator=generator, dtype=torch.float64)
    found = locate(scene().double(), noisy, mode="bilinear", init=truth, reach=0)
    measured = (found.box - truth).square().sum(-1).mean()
    assert float(measured / bound) == pytest.approx(1, abs=0.3)


# --- errors -----------------------------------------------------------------------------------------------------------

IMAGE, SMALL = (torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in ((32, 40), (8, 8)))


@pytest.mark.parametrize(("arguments", "kind", "said"), [
    (([1.0], SMALL), TypeError, "image must be a tensor"),
    ((IMAGE, "cat"), TypeError, "template must be a tensor"),
    ((IMAGE[0], SMALL), ValueError, r"add the channels: image\[None\]"),
    ((IMAGE, SMALL[0]), ValueError, r"add the channels: template\[None\]"),
    ((IMAGE, torch.rand(2, 2, 3, 8, 8)), ValueError, "need a batch of images"),
    ((IMAGE, torch.rand(1, 8, 8)), ValueError, "same number of channels"),
    ((torch.rand(32, 40, 3), torch.rand(8, 9, 3)), ValueError, r"move the channels in front, as in image.permute"),
    ((np.zeros((32, 40, 3)), SMALL), TypeError, r"got ndarray; a picture of Pillow is read by"),
    ((torch.rand(2, 3, 32, 40), torch.rand(3, 3, 8, 8)), ValueError, "a batch of B images takes"),
    ((IMAGE[:, :0], SMALL), ValueError, "image must not be empty"),
    ((IMAGE, torch.rand(0, 3, 8, 8)), ValueError, "template must not be empty"),
    ((IMAGE.to(torch.complex64), SMALL), TypeError, "image must be float64, .* got torch.complex64"),
    ((IMAGE.to(torch.float8_e5m2), SMALL), TypeError, "image must be float64, .* got torch.float8_e5m2"),
    ((IMAGE.to_sparse(), SMALL), TypeError, "image must be a dense tensor"),
    (((IMAGE * 255).to(torch.uint8), SMALL), ValueError, r"same units, got torch.uint8 .* pass image.float"),
    ((IMAGE, (SMALL * 255).to(torch.uint8)), ValueError, r"torch.uint8: .* pass template.float\(\), or template / 255"),
    (([IMAGE, IMAGE], SMALL), TypeError, r"image must .* got a list of 2 tensors; .* torch.stack\(image\), others"),
    ((IMAGE, (SMALL,)), TypeError, r"template must .* got a list of 1 tensors; .* torch.stack\(template\)"),
    ((torch.rand(1, 9, 32, 40), torch.rand(1, 5, 8, 8)), ValueError, r"volumes \(C, D, H, W\) are not searched"),
    ((torch.rand(1, 1, 9, 32, 40), torch.rand(1, 1, 5, 8, 8)), ValueError, "image .*volumes are not searched"),
    ((IMAGE, torch.rand(3, 33, 8)), ValueError, "a height of 33 in an image of 32"),
    ((IMAGE, torch.rand(3, 8, 41)), ValueError, "a width of 41 in an image of 40"),
    ((IMAGE, torch.full((3, 8, 8), 0.5)), ValueError, "must have contrast"),
    ((IMAGE, torch.tensor([0.1, 0.5, 0.9])[:, None, None].expand(3, 8, 8)), ValueError, "must have contrast"),
    ((IMAGE, torch.stack([SMALL, torch.ones(3, 8, 8)])), ValueError, r"at \[0, 1\] of \[1, 2\]"),
    ((IMAGE, torch.full((3, 8, 8), math.nan)), ValueError, "template must be finite, got 192 NaN"),
    ((IMAGE.index_fill(2, torch.tensor([3]), math.inf), SMALL), ValueError, "image must be finite, got 96"),
    ((IMAGE.to("meta"), SMALL), ValueError, "image must be on another device: meta has no pixels"),
])  # fmt: skip
def test_tensors_that_do_not_fit(arguments, kind, said):
    with pytest.raises(kind, match=said):
        locate(*arguments)


@pytest.mark.parametrize(("options", "kind", "said"), [
    ({"mode": "cubic"}, ValueError, "mode must be among"),
    ({"mode": "nearest"}, ValueError, "which has no derivative"),
    ({"mode": ()}, TypeError, "a filter's name or a sequence"),
    ({"mode": 3}, TypeError, "a filter's name or a sequence"),
    ({"metric": "ncc"}, ValueError, "metric must be one of"),
    ({"aspect": 1.5}, TypeError, "aspect must be one of"),
    ({"scales": 2.0}, TypeError, "scales must be two numbers"),
    ({"scales": (2.0, 1.0)}, ValueError, "scales must be"),
    ({"scales": (0.0, 1.0)}, ValueError, r"scales\[0\] must be finite and above 0"),
    ({"scales": (6.0, 8.0)}, ValueError, "up to a scale of 4"),
    ({"candidates": 0}, ValueError, "candidates must be at least 1"),
    ({"candidates": 2.5}, TypeError, "candidates must be an int"),
    ({"candidates": 10}, ValueError, "candidates=10 are too few to search boxes of 4x4"),
    ({"iterations": 0}, ValueError, "iterations must be at least 1"),
    ({"tolerance": -1.0}, ValueError, "tolerance must be finite and above 0"),
    ({"huber": -1.0}, ValueError, "huber"),
    ({"huber": 0.1, "metric": "zncc"}, ValueError, "huber"),
    ({"padding_mode": "mirror"}, ValueError, "reflection"),
    ({"impl": "cuda"}, ValueError, "impl"),
    ({"mode": "area", "antialias": False}, ValueError, "antialias"),
    ({"init": "here"}, TypeError, "init must be a tensor of boxes"),
    ({"init": [1.0, 2.0, 3.0]}, ValueError, "init must have shape"),
    ({"init": torch.zeros(2, 4)}, ValueError, r"init must have shape \(4,\)"),
    ({"init": [1.0, 2.0, math.nan, 4.0]}, ValueError, "init must be finite"),
    ({"init": [5.0, 2.0, 3.0, 4.0]}, ValueError, "x0 < x1"),
    ({"init": [1.0, 2.0, 5.0, 6.0], "scales": (1.0, 2.0)}, ValueError, "scales is for the search"),
    ({"init": [1.0, 2.0, 5.0, 6.0], "candidates": 50}, ValueError, "candidates is for the search"),
    ({"reach": 0.5}, ValueError, "there is no init"),
    ({"init": [1.0, 2.0, 5.0, 6.0], "reach": False}, TypeError, "reach must be a number"),
    ({"init": [1.0, 2.0, 5.0, 6.0], "reach": 3.0}, ValueError, "at most 2"),
    ({"init": [1.0, 2.0, 5.0, 6.0], "reach": -1.0}, ValueError, "reach must be finite"),
])  # fmt: skip
def test_options_that_do_not_fit(options, kind, said):
    with pytest.raises(kind, match=said):
        locate(IMAGE, SMALL, **options)


def test_options_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("diffcrop.search.matching.exhaustive.best_candidates", lambda *_: pytest.fail("searched"))
    with pytest.raises(ValueError, match="padding_mode"):
        locate(IMAGE, SMALL, padding_mode="mirror")
