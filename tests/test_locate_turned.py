"""`locate(rotation=...)`: templates that were turned, by ourselves and by Pillow, and what is refused."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from PIL import Image

import diffcrop
from diffcrop import crop_rotated, locate
from diffcrop.search.matching import proposals, turns
from diffcrop.search.matching.coarse_to_fine import Matcher
from diffcrop.search.matching.poses import Turned, Upright, matrices
from test_locate import photograph, scene, tensor

f64 = torch.float64
BOX = (190.5, 130.2, 120.0, 90.0, 33.0)


def box_of(numbers=BOX):
    return torch.tensor(numbers, dtype=f64)


def off(found, truth):
    """Pixels and degrees, the largest of each."""
    away = found - torch.as_tensor(truth, dtype=f64)
    turn = torch.remainder(away[..., 4] + 180, 360) - 180
    return float(away[..., :4].abs().max()), float(turn.abs().max())


def inside(name, count, seed):
    """Turned boxes that lie in a photograph."""
    width, height = photograph(name).size
    draw = random.Random(seed)
    for _ in range(count):
        w, h = draw.uniform(60, 110), draw.uniform(60, 110)
        far = math.hypot(w, h) / 2
        yield draw.uniform(far, width - far), draw.uniform(far, height - far), w, h, draw.uniform(-180, 180)


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chelsea", "rocket"])
@pytest.mark.parametrize("size", [20, 32])
def test_crops_of_any_angle_are_found(name, size):
    for truth in inside(name, 2, f"{name}{size}"):
        for mode in ("bilinear", "bicubic"):
            wanted = crop_rotated(scene(name), box_of(truth), size, mode=mode)
            found = locate(scene(name), wanted, rotation=True)
            assert found.converged
            assert found.box.shape == (5,)
            assert found.covariance.shape == (5, 5)
            assert max(off(found.box, truth)) < 1e-3
            assert found.trace.names[found.trace.modes] == mode


@pytest.mark.parametrize("angle", [-150.0, -90.0, 37.5, 180.0])
def test_what_another_program_turned_is_found(angle):
    """Pillow turns the picture counter-clockwise, so the box that is upright there was turned the other way."""
    centre = (200.0, 150.0)
    turned = photograph().rotate(angle, Image.Resampling.BICUBIC, center=centre)
    box = (centre[0] - 60, centre[1] - 45, centre[0] + 60, centre[1] + 45)
    wanted = tensor(turned.resize((40, 30), Image.Resampling.LANCZOS, box=box))
    found = locate(scene(), wanted, rotation=True)
    assert found.converged
    pixels, degrees = off(found.box, (*centre, 120, 90, -angle))
    assert pixels < 0.3
    assert degrees < 0.1


@pytest.mark.parametrize("metric", ["l2", "zncc"])
def test_to_rounding(metric):
    image = scene().double()
    found = locate(image, crop_rotated(image, box_of(), (21, 28)), rotation=True, metric=metric, mode="bilinear")
    assert found.converged
    assert max(off(found.box, BOX)) < 1e-6


def test_upright_is_an_angle_too():
    box = torch.tensor([130.0, 80.0, 250.0, 175.0], dtype=f64)
    wanted = diffcrop.crop(scene(), box, (19, 24))
    assert max(off(locate(scene(), wanted, rotation=True).box, (190.0, 127.5, 120.0, 95.0, 0.0))) < 0.2


def test_brightness_contrast_and_what_covers_a_part():
    wanted = crop_rotated(scene(), box_of(), (24, 32))
    assert max(off(locate(scene(), 0.3 + 0.5 * wanted, rotation=True, metric="zncc").box, BOX)) < 0.01
    covered = wanted.clone()
    covered[:, 4:10, 5:12] = 1.0
    robust = locate(scene(), covered, rotation=True, huber=0.02)
    assert max(off(robust.box, BOX)) < 0.2


def test_the_covariance_is_that_of_the_errors():
    """Over templates with noise, errors divided by what the covariance says have about unit variance."""
    wanted = crop_rotated(scene(), box_of(), (20, 26))
    ratios = []
    for seed in range(12):
        noise = 0.02 * torch.randn(wanted.shape, generator=torch.Generator().manual_seed(seed))
        found = locate(scene(), wanted + noise, init=box_of(), reach=0, rotation=True, mode="bilinear")
        ratios.append((found.box - box_of()) / found.covariance.diagonal().sqrt())
    spread = torch.stack(ratios).square().mean().sqrt()
    assert 0.75 < float(spread) < 1.3


def test_a_range_of_angles():
    wanted = crop_rotated(scene(), box_of(), (24, 32))
    assert max(off(locate(scene(), wanted, rotation=(20, 45)).box, BOX)) < 1e-3
    elsewhere = locate(scene(), wanted, rotation=(-100, -60))
    assert not elsewhere.converged


def test_around_a_start():
    image = scene()
    wanted = crop_rotated(image, box_of(), (24, 32))
    start = box_of((205.0, 120.0, 100.0, 100.0, 15.0))
    found = locate(image, wanted, init=start, rotation=True)
    assert found.converged
    assert max(off(found.box, BOX)) < 1e-3
    refined = locate(image, wanted, init=box_of((192.0, 131.0, 118.0, 92.0, 31.0)), reach=0, rotation=True)
    assert max(off(refined.box, BOX)) < 1e-3
    assert refined.trace.costs.isnan().all()


def test_around_a_long_start():
    """Twelve times as long as wide, off by parts of its width."""
    truth = box_of((225.0, 150.0, 300.0, 25.0, 12.0))
    found = locate(scene(), crop_rotated(scene(), truth, (12, 144)), rotation=True, init=[231, 146, 330, 22, 17])
    assert found.converged
    assert max(off(found.box, truth)) < 1e-2


@pytest.mark.parametrize("sides", [(40.0, 40.0), (1200.0, 8.0), (44.0, 5.5e9)], ids=str)
def test_a_long_start_is_searched_in_no_more_pixels(sides, monkeypatch):
    """Each side of what is turned has as many as its own cells need."""
    sizes, warp = [], diffcrop.warp
    monkeypatch.setattr(diffcrop, "warp", lambda i, m, size, **o: sizes.append(size) or warp(i, m, size, **o))
    options = {"antialias": True, "padding_mode": "border", "metric": "l2", "huber": None, "impl": None}
    matcher = Matcher(scene()[None], scene()[None, :, 20:40, 30:60], options, False, Turned())
    proposals.around(matcher, box_of((90, 90, *sides, 5))[None], 0.5)
    assert len(sizes) == 8
    assert set(sizes) == {(sizes[0][0], sizes[0][1])}
    assert max(sizes[0]) <= 56


def test_a_fixed_aspect_is_kept():
    image = scene()
    wanted = crop_rotated(image, box_of((190.5, 130.2, 120.0, 90.0, 50.0)), (24, 32))
    for init in (None, box_of((200.0, 125.0, 100.0, 100.0, 40.0))):
        found = locate(image, wanted, rotation=True, aspect="fixed", init=init)
        assert max(off(found.box, (190.5, 130.2, 120.0, 90.0, 50.0))) < 1e-3
        assert float(found.box[2] / found.box[3]) == pytest.approx(32 / 24, rel=1e-9)


def test_batches():
    truths = [box_of(), box_of((150.0, 150.0, 100.0, 110.0, -120.0))]
    templates = torch.stack([crop_rotated(scene(), truth, 24) for truth in truths])
    found = locate(scene(), templates, rotation=True, mode="bilinear")
    assert found.box.shape == (2, 5)
    assert found.trace.candidates.shape[::2] == (2, 5)
    assert max(off(found.box, torch.stack(truths))) < 1e-3
    images = torch.stack([scene(), scene().flip(2)])
    pairs = templates[:, None]
    found = locate(images, pairs[[0, 0]], rotation=True, mode="bilinear")
    assert found.box.shape == (2, 1, 5)
    assert max(off(found.box[0], truths[0])) < 1e-3
    assert not found.converged[1]  # mirrored


def test_what_is_not_there_is_not_found():
    noise = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(3))
    assert not locate(scene(), noise, rotation=True).converged


# --- its parts --------------------------------------------------------------------------------------------------------


def test_angles_are_even_and_close_a_turn_once():
    whole = turns.angles(-180.0, 180.0)
    assert len(whole) == 40
    assert whole[0] == -180.0
    assert whole[-1] < 180.0
    some = turns.angles(-10.0, 15.0)
    assert (some[0], some[-1]) == (-10.0, 15.0)
    assert max(b - a for a, b in itertools.pairwise(some)) <= turns.STEP
    assert turns.angles(7.0, 7.0) == [7.0]


def test_matrices_are_those_of_crop_rotated():
    boxes = torch.stack([box_of(), box_of((40.0, 50.0, 30.0, 80.0, -100.0))])
    found, slopes = matrices(boxes, (9, 12), (1.0, 1.0))
    torch.testing.assert_close(found, diffcrop.rotated_to_matrix(boxes, (9, 12))[:, :2], rtol=1e-12, atol=1e-10)
    wanted = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda b: matrices(b[None], (9, 12), (0.5, 0.25))[0][0], box)
            for box in boxes
        ]
    )
    torch.testing.assert_close(matrices(boxes, (9, 12), (0.5, 0.25))[1], wanted, rtol=1e-12, atol=1e-12)
    assert slopes.shape == (2, 2, 3, 5)
    assert matrices(boxes[:0], (9, 12), (1.0, 1.0))[1].shape == (0, 2, 3, 5)


def test_candidates_lie_in_the_image_where_the_template_comes_from():
    image = scene()
    wanted = crop_rotated(image, box_of(), (24, 32))
    options = {"antialias": True, "padding_mode": "border", "metric": "l2", "huber": None, "impl": None}
    matcher = Matcher(image[None], wanted[None], options, False, Turned())
    found, least = proposals.of_the_whole(matcher, None, [400_000], (-180.0, 180.0))
    boxes, costs = found.boxes[0], found.costs[0]
    assert (costs[1:] >= costs[:-1]).all()
    quads = diffcrop.rotated_to_quads(boxes)
    height, width = image.shape[1:]
    margin = 0.06 * boxes[:, 2:4].amax(1)[:, None]
    assert (quads[..., 0] >= -margin).all()
    assert (quads[..., 0] <= width + margin).all()
    assert (quads[..., 1] >= -margin).all()
    assert (quads[..., 1] <= height + margin).all()
    best = boxes[:5]
    assert float(Turned().overlap(best, box_of().expand(5, 5)).max()) > 0.6
    assert least[0] == least[1]


def test_overlap_is_that_of_upright_boxes_in_their_own_frame():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 80.0], [20.0, 30.0, 55.0, 70.0]], dtype=f64)
    wanted = Upright().overlap(boxes[0], boxes[1])
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for angle in (0.0, 40.0, -130.0):
        turn = torch.deg2rad(torch.tensor(angle, dtype=f64))
        rotation = torch.stack([torch.stack([turn.cos(), turn.sin()]), torch.stack([-turn.sin(), turn.cos()])])
        moved = torch.cat([centres @ rotation.T, sides, torch.full((2, 1), angle, dtype=f64)], 1)
        torch.testing.assert_close(Turned().overlap(moved[0], moved[1]), wanted)
    other = moved[1] + torch.tensor([0, 0, 0, 0, 20.0])
    assert float(Turned().overlap(moved[0], other)) == 0
    again = moved[1] + torch.tensor([0, 0, 0, 0, 360.0])
    torch.testing.assert_close(Turned().overlap(moved[0], again), wanted)


# --- what is refused --------------------------------------------------------------------------------------------------

WANTED = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("error", "options", "words"), [
    (TypeError, {"rotation": 3.0}, ("rotation", "two angles", "3.0")),
    (TypeError, {"rotation": "any"}, ("rotation", "two angles", "'any'")),
    (TypeError, {"rotation": ("0", 9)}, ("rotation[0]", "'0'")),
    (ValueError, {"rotation": (10, -10)}, ("rotation", "(least, greatest)", "(10, -10)")),
    (ValueError, {"rotation": (-200, 200)}, ("at most 360 apart",)),
    (ValueError, {"rotation": (0, math.nan)}, ("rotation[1]", "nan")),
    (ValueError, {"rotation": (0, 10), "init": BOX}, ("rotation=(0, 10)", "init", "rotation=True")),
    (ValueError, {"rotation": True, "init": BOX[:4]}, ("init", "(5,)", "five numbers")),
    (ValueError, {"init": BOX}, ("init", "(4,)", "rotation=True")),
    (ValueError, {"rotation": True, "init": (9, 9, -3, 4, 0)}, ("w > 0",)),
    (ValueError, {"rotation": True, "mode": "gaussian"}, ("mode", "crops of turned boxes do not have")),
    (ValueError, {"rotation": True, "padding_mode": "renormalize"}, ("padding_mode", "renormalize")),
])  # fmt: skip
def test_errors(error, options, words):
    with pytest.raises(error) as raised:
        locate(scene(), WANTED, **options)
    for word in words:
        assert word in str(raised.value)
