"""fit_boxes climbs to known optima, keeps its constraints at every step, and disturbs nobody."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffcrop
from diffcrop.search import SCHEDULES, FitStep, Stage
from diffcrop.search import starts as starts_module
from diffcrop.search.schedule import Sources, steps_of

PHOTOS = Path(__file__).parent / "photos"
H, W = 48, 64
TRUTH = torch.tensor([20.0, 12.0, 44.0, 32.0])
NEAR = torch.tensor([17.0, 14.0, 40.0, 36.0])


def picture(height=H, width=W, channels=2, seed=0):
    """Smooth noise between 0 and 1."""
    noise = torch.rand(1, channels, 7, 8, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0]
    return image.clamp(0, 1)


IMAGE = picture()


def alike(target):
    """Minus the squared difference from a target (C, h, w), or from one target for each of K boxes."""
    targets = target[None] if target.ndim == 3 else target

    def objective(crops):
        return -(crops.unflatten(0, (-1, len(targets))) - targets).square().mean((2, 3, 4)).flatten()

    return objective


def fit(init=NEAR, *, image=IMAGE, truth=TRUTH, size=8, **options):
    return diffcrop.fit_boxes(image, alike(diffcrop.crop(image, truth, size)), init, size, **options)


def xyxy(boxes, **convention):
    return diffcrop.convert_boxes(boxes, (H, W), **convention)


# --- optima -----------------------------------------------------------------------------------------------------------


def test_a_box_comes_home():
    result = fit()
    assert (result.boxes - TRUTH).abs().max() < 0.1
    assert (NEAR - TRUTH).abs().max() > 2
    assert result.boxes.shape == (4,)
    assert result.scores.shape == result.starts.shape == ()
    assert (result.steps, result.stopped) == (200, "steps")
    assert -1e-5 < float(result.scores) <= 0


def test_larger_is_better():
    """The mean is largest on the bright square, which the box must not leave."""
    image = torch.zeros(1, H, W)
    image[:, 10:30, 20:50] = 1.0
    inside = diffcrop.fit_boxes(image, lambda c: c.mean((1, 2, 3)), [10.0, 5.0, 30.0, 25.0], 6, min_size=12)
    assert inside.scores > 0.999
    outside = diffcrop.fit_boxes(image, lambda c: -c.mean((1, 2, 3)), [10.0, 5.0, 30.0, 25.0], 6, min_size=12)
    assert outside.scores > -0.001


@pytest.mark.parametrize(("box_format", "coords", "align_corners"), [
    ("cxcywh", "pixel", False), ("xywh", "unit", False), ("xyxy", "normalized", True), ("cxcywh", "unit", True),
])  # fmt: skip
@pytest.mark.parametrize("schedule", [None, "coarse-to-fine"])
def test_conventions(box_format, coords, align_corners, schedule):
    there = {"to_format": box_format, "to_coords": coords, "align_corners": align_corners}
    back = {"from_format": box_format, "from_coords": coords, "align_corners": align_corners}
    options = {"box_format": box_format, "coords": coords, "align_corners": align_corners}
    objective = alike(diffcrop.crop(IMAGE, xyxy(TRUTH, **there), 8, **options))
    result = diffcrop.fit_boxes(IMAGE, objective, xyxy(NEAR, **there), 8, schedule=schedule, **options)
    assert (xyxy(result.boxes, **back) - TRUTH).abs().max() < 0.1
    # The first box of a start is where it starts, whatever it is written in.
    assert torch.allclose(result.trace.boxes[0, 0], xyxy(NEAR, **there), atol=1e-5)


@pytest.mark.parametrize("mode", ["area", "gaussian", "bicubic"])
def test_options_reach_the_crop(mode):
    target = diffcrop.crop(IMAGE, TRUTH, (5, 7), mode=mode, padding_mode="zeros")
    seen = []

    def objective(crops):
        seen.append(crops.detach())
        return alike(target)(crops)

    result = diffcrop.fit_boxes(IMAGE, objective, NEAR, (5, 7), mode=mode, padding_mode="zeros", steps=3)
    expected = diffcrop.crop(IMAGE, result.trace.boxes[:, 0], (5, 7), mode=mode, padding_mode="zeros")
    assert torch.allclose(torch.cat(seen), expected, atol=1e-5)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, "coarse-to-fine"])
@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_a_batch_is_its_parts(schedule, shape):
    """Boxes of unlike sizes, so that each has its own blur."""
    images = torch.stack([IMAGE, picture(seed=1)])
    scale = torch.tensor([[1.0], [0.5], [0.4]])[: math.prod(shape[1:])]
    truths = torch.stack([TRUTH, TRUTH + 3]).reshape(2, 1, 4)
    truths = (truths.reshape(2, 1, 2, 2).mean(2).repeat(1, 1, 2) * (1 - scale) + truths * scale).reshape(*shape, 4)
    init = truths + torch.tensor([-2.0, 1.0, -2.5, 2.0])
    targets = diffcrop.crop(images, truths, 6).flatten(0, len(shape) - 1)
    options = {"steps": 24, "starts": 3, "schedule": schedule}
    whole = diffcrop.fit_boxes(images, alike(targets), init, 6, **options)
    assert whole.boxes.shape == init.shape
    assert whole.scores.shape == shape
    flat, owner = init.reshape(-1, 4), [i for i in range(2) for _ in range(len(targets) // 2)]
    paths = whole.trace.boxes.flatten(2, -2)
    for k, b in enumerate(owner):
        one = diffcrop.fit_boxes(images[b], alike(targets[k]), flat[k], 6, **options)
        assert torch.allclose(paths[:, :, k], one.trace.boxes, atol=1e-2, equal_nan=True)
        assert torch.allclose(whole.boxes.reshape(-1, 4)[k], one.boxes, atol=1e-2)
        assert torch.allclose(whole.scores.flatten()[k], one.scores, atol=1e-5)
        assert whole.starts.flatten()[k] == one.starts


def test_one_box_for_all_images_becomes_one_each():
    images = torch.stack([IMAGE, picture(seed=1)])
    truths = torch.stack([TRUTH, TRUTH + 2])
    result = diffcrop.fit_boxes(images, alike(diffcrop.crop(images, truths, 8)), NEAR, 8)
    assert result.boxes.shape == (2, 4)
    assert (result.boxes - truths).abs().max() < 0.2


def test_many_boxes_of_one_image_may_be_lists():
    truths = torch.stack([TRUTH, TRUTH - 5])
    result = fit((truths + 1.5).tolist(), truth=truths)
    assert (result.boxes - truths).abs().max() < 0.1


@pytest.mark.parametrize("batch", [(), (3,)])
def test_without_init_boxes_start_in_the_middle(batch):
    images = IMAGE.expand(*batch, *IMAGE.shape)
    result = diffcrop.fit_boxes(images, lambda c: c.mean((1, 2, 3)), None, 4, steps=1)
    assert result.boxes.shape == (*batch, 4)
    middle = diffcrop.nn.LearnableBox((H, W))()
    assert torch.allclose(result.trace.boxes[0], middle.expand(1, *batch, 4))


# --- constraints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, "coarse-to-fine"])
@pytest.mark.parametrize("aspect", [None, 1.5])
def test_constraints_hold_at_every_step(schedule, aspect):
    """Brightness pulls out of the image on the right and makes the box small; neither is allowed."""
    image = torch.linspace(0, 1, W).expand(1, H, W).contiguous()
    init = [[30.0, 10.0, 45.0, 20.0], [50.0, 30.0, 63.5, 39.0]] if aspect is None else [[30.0, 10.0, 45.0, 20.0]] * 2
    result = diffcrop.fit_boxes(
        image, lambda c: c.mean((1, 2, 3)), init, 4, steps=80, starts=6, schedule=schedule, spread=2.0, min_size=9.0,
        inside=True, aspect=aspect, learning_rate=0.2,
    )  # fmt: skip
    boxes = result.trace.boxes.reshape(-1, 4)
    boxes = torch.cat([boxes[boxes.isfinite().all(-1)], result.boxes])
    assert len(boxes) > 2 * 80
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= W
    assert boxes[:, 3].max() <= H
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() > 9 - 1e-4
    if aspect is not None:
        assert (sides[:, 0] / sides[:, 1] - aspect).abs().max() < 1e-4
    assert result.boxes[:, 2].min() > W - 1.5  # and it went as far as it may


def test_starts_stay_within_the_bounds():
    moves = starts_module.offsets(63, 3.0, None)
    boxes = torch.tensor([[0.0, 0.0, 12.0, 10.0], [50.0, 40.0, 64.0, 48.0]], dtype=torch.float64)
    spread = starts_module.spread_out(boxes, moves, (W, H), min_size=8, inside=True, aspect=None)
    assert spread.shape == (63, 2, 4)
    assert spread[..., :2].min() >= -1e-9
    assert spread[..., 2].max() <= W + 1e-9
    assert spread[..., 3].max() <= H + 1e-9
    assert (spread[..., 2:] - spread[..., :2]).min() >= 8 - 1e-9
    free = starts_module.spread_out(boxes, moves, (W, H), min_size=8, inside=False, aspect=None)
    assert free.max() > W
    centre = (free[..., :2] + free[..., 2:]) / 2
    assert centre.min() >= 0
    assert (centre <= torch.tensor([W, H])).all()


def test_starts_move_as_far_as_said():
    """Positions by up to `spread` sides, sides by up to exp(+-spread), evenly."""
    moves = starts_module.offsets(255, 0.5, None)
    boxes = torch.tensor([[200.0, 200.0, 240.0, 220.0]], dtype=torch.float64)
    moved = starts_module.spread_out(boxes, moves, (500, 500), min_size=1, inside=False, aspect=None)[:, 0]
    off = (moved[:, :2] + moved[:, 2:] - boxes[0, :2] - boxes[0, 2:]) / 2 / torch.tensor([40.0, 20.0])
    growth = ((moved[:, 2:] - moved[:, :2]) / torch.tensor([40.0, 20.0])).log()
    for values in (off, growth):
        assert 0.48 < values.max() <= 0.5 + 1e-6
        assert -0.5 - 1e-6 <= values.min() < -0.48
        assert values.mean(0).abs().max() < 0.02


# --- starts -----------------------------------------------------------------------------------------------------------


def test_starts_are_the_same_in_every_call():
    one, two = fit(starts=5, steps=4), fit(starts=5, steps=4)
    assert torch.equal(one.trace.boxes, two.trace.boxes)
    assert torch.allclose(one.trace.boxes[0, 0], NEAR, atol=1e-4)
    assert (one.trace.boxes[0, 1:] - NEAR).abs().amax(-1).min() > 0.5
    more = fit(starts=7, steps=4)
    assert torch.equal(more.trace.boxes[0, :5], one.trace.boxes[0])
    seeded = [fit(starts=5, steps=4, generator=torch.Generator().manual_seed(s)).trace.boxes for s in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert not torch.equal(seeded[0], one.trace.boxes)


def test_the_best_start_wins():
    far = TRUTH + torch.tensor([-20.0, 10.0, -22.0, 13.0])
    alone, many = fit(far), fit(far, starts=24)
    assert (alone.boxes - TRUTH).abs().max() > 5
    assert (many.boxes - TRUTH).abs().max() < 0.1
    assert many.starts > 0
    path = many.trace.boxes[:, int(many.starts)]
    assert (path - many.boxes).abs().amax(-1).min() < 1e-5
    assert torch.equal(many.trace.scores.max(), many.scores)


def test_the_best_seen_is_kept_though_the_steps_go_astray():
    result = fit(TRUTH + 0.3, learning_rate=1.5, steps=6)
    assert torch.equal(result.scores, result.trace.scores.max())
    assert result.trace.scores[-1, 0] < result.scores
    assert result.scores >= result.trace.scores[0, 0]


def test_nan_never_wins():
    """The first and the last evaluations are NaN for one start, infinite for another, and the graph with them."""
    objective = alike(diffcrop.crop(IMAGE, TRUTH, 8))
    calls = []

    def broken(crops):
        calls.append(len(crops))
        bad = torch.zeros(len(crops))
        if len(calls) in (1, 11):
            bad[0], bad[1] = torch.nan, torch.inf
        return objective(crops) + bad * crops.sum((1, 2, 3))

    result = diffcrop.fit_boxes(IMAGE, broken, NEAR, 8, steps=10, starts=3, spread=0.1)
    assert calls == [3] * 11
    assert result.scores.isfinite()
    assert result.scores == result.trace.scores[result.trace.scores.isfinite()].max()
    assert result.boxes.isfinite().all()
    assert result.trace.boxes.isfinite().all()
    # Without a gradient in the first step these two do not move, and the third does.
    moved = (result.trace.boxes[1] - result.trace.boxes[0]).abs().amax(-1)
    assert moved[0] == moved[1] == 0 < moved[2]


def test_a_box_that_never_scored_stays_at_init():
    objective = alike(torch.stack([diffcrop.crop(IMAGE, TRUTH, 8)] * 2))
    nan = torch.tensor([0.0, torch.nan])
    init = torch.stack([NEAR, NEAR])
    result = diffcrop.fit_boxes(IMAGE, lambda c: objective(c) + nan, init, 8, steps=5)
    assert torch.allclose(result.boxes[1], NEAR)
    assert result.scores[0].isfinite()
    assert result.scores[1].isnan()
    assert not torch.allclose(result.boxes[0], NEAR, atol=0.1)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cat():
    with Image.open(PHOTOS / "chelsea.jpg") as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def test_coarse_to_fine_finds_more(cat):
    """Boxes of a photograph, half a side away in all directions."""
    angle = 2 * math.pi * torch.arange(8) / 8
    truths = torch.tensor([120.0, 90.0, 216.0, 186.0]) + 10 * torch.arange(8)[:, None]
    init = truths + 48 * torch.stack([angle.cos(), angle.sin()], -1).repeat(1, 2)

    def found(**options):
        boxes = fit(init, image=cat, truth=truths, size=8, **options).boxes
        return int(((boxes - truths).abs().amax(-1) < 2).sum())

    plain, one, many = found(), found(schedule="coarse-to-fine"), found(schedule="coarse-to-fine", starts=12)
    assert plain < one <= many
    assert many == 8


def test_the_shipped_schedule_in_the_trace():
    result = fit(starts=16, schedule="coarse-to-fine", steps=20)
    stages = SCHEDULES["coarse-to-fine"]
    counts = steps_of(stages, 20)
    assert counts == [5, 5, 10]
    trace = result.trace
    assert len(trace) == 23
    assert trace.stage.tolist() == [0] * 6 + [1] * 6 + [2] * 11
    assert trace.blur.tolist() == [stages[s].blur for s in trace.stage.tolist()]
    taking_part = trace.scores.isfinite()
    assert taking_part.sum(1).tolist() == [15] * 6 + [8] * 6 + [5] * 11
    assert torch.equal(taking_part, trace.boxes.isfinite().all(-1))
    # init waits, begins the sharp stage, and the second start has begun there as well.
    assert taking_part[:, 0].tolist() == [False] * 12 + [True] * 11
    assert torch.allclose(trace.boxes[12, 0], NEAR, atol=1e-4)
    assert torch.allclose(trace.boxes[0, 1], NEAR, atol=1e-4)
    assert result.scores == trace.scores[12:].nan_to_num(-9).max()
    # Where a stage ends the next one begins: at the best box of the start.
    for s in taking_part[6].nonzero()[:, 0].tolist():
        best = trace.boxes[trace.scores[:6, s].argmax(), s]
        assert torch.allclose(trace.boxes[6, s], best, atol=1e-4)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("starts", [1, 4])
def test_a_blur_that_leads_away_does_not_lose_init(starts, stop):
    """The objective asks something else of blurred crops: the result is never below init."""
    target = diffcrop.crop(IMAGE, TRUTH, 8)
    sharp = float(target.std())

    def objective(crops):
        blurred = crops.std((1, 2, 3)) < 0.8 * sharp
        return torch.where(blurred, crops.mean((1, 2, 3)) - 10, alike(target)(crops))

    schedule = [Stage(blur=1.0, rate=5.0), Stage(rate=1e-3, share=0.1)]
    result = diffcrop.fit_boxes(IMAGE, objective, TRUTH + 0.5, 8, starts=starts, schedule=schedule, steps=50,
                                callback=lambda info: stop and info.step == 30)  # fmt: skip
    before = objective(diffcrop.crop(IMAGE, TRUTH + 0.5, 8)[None])[0]
    assert result.scores >= before - 1e-7
    assert (result.boxes - TRUTH).abs().max() <= 0.51


def test_scores_of_blurred_images_do_not_compete():
    """Blur makes crops smoother than any crop of the image is."""

    def smooth(crops):
        return -crops.std((1, 2, 3))

    result = diffcrop.fit_boxes(IMAGE, smooth, NEAR, 8, min_size=16, schedule=[Stage(blur=0.7), Stage()], steps=20)
    assert result.trace.scores[:5].max() > result.scores
    assert torch.allclose(smooth(diffcrop.crop(IMAGE, result.boxes, 8)[None])[0], result.scores, atol=1e-6)


def test_the_rate_of_a_stage_is_a_factor():
    twice = fit(steps=5, schedule=[Stage(rate=2.0)], learning_rate=0.01)
    assert torch.equal(twice.trace.boxes, fit(steps=5, learning_rate=0.02).trace.boxes)


def test_the_blur_is_a_gaussian_of_the_source():
    """One bright pixel becomes the bell; outside of the crop as well, whose box does not hold the pixel."""
    image = torch.zeros(1, 96, 96, dtype=torch.float64)
    image[0, 48, 40] = 1.0
    options = {"mode": "bilinear", "antialias": True, "padding_mode": "border", "fill": 0.0, "sigma": None}
    sources = Sources(image, {**options, "align_corners": False, "impl": None})
    sigma = 8.0
    (level,) = sources.level(torch.tensor([sigma])).tolist()
    boxes = torch.tensor([[44.5, 40.5, 60.5, 56.5]], dtype=torch.float64)
    crop = sources.crop(boxes, 16, level, None)[0, 0]
    y, x = (torch.arange(16) + 0.5 + low - at for low, at in ((40.5, 48.5), (44.5, 40.5)))
    bell = torch.exp(-(y[:, None] ** 2 + x**2) / 2 / sigma**2) / (2 * math.pi * sigma**2)
    # Bilinear reading of pixels as large as sigma widens it: sigma^2 (1 + 1/6) at most.
    assert (crop - bell).abs().max() < 0.2 * bell.max()
    assert torch.equal(sources.level(torch.tensor([0.0, 0.49])), sources.level(torch.tensor([0.1, 0.2])))
    assert torch.equal(sources.crop(boxes, 16, int(sources.level(torch.tensor(0.0))), None),
                       diffcrop.crop(image, boxes, 16))  # fmt: skip


@pytest.mark.parametrize("align_corners", [False, True])
def test_boxes_mean_the_same_in_blurred_images(align_corners):
    """A ramp is its own blur, far from the edges. Coarse pixels are read a little beside the place."""
    ramp = torch.arange(200.0).expand(1, 200, 200).contiguous()
    options = {"mode": "bilinear", "antialias": True, "padding_mode": "border", "fill": 0.0, "sigma": None}
    sources = Sources(ramp, {**options, "align_corners": align_corners, "impl": None})
    boxes = torch.tensor([[70.0, 80.0, 133.0, 120.0]])
    expected = diffcrop.crop(ramp, boxes, (3, 33), align_corners=align_corners)
    for sigma in (0.6, 1.0, 3.0, 7.0):
        crop = sources.crop(boxes, (3, 33), int(sources.level(torch.tensor(sigma))), None)
        assert (crop - expected).abs().max() < 0.1 * max(sigma, 1), sigma
        assert (crop - expected).mean().abs() < 0.05, sigma


@pytest.mark.parametrize(("padding", "outside"), [
    ({"padding_mode": "zeros", "fill": 0.0}, 0.0), ({"padding_mode": "constant", "fill": 3.0}, 3.0),
    ({"padding_mode": "border", "fill": 0.0}, 1.0), ({"padding_mode": "renormalize", "fill": 0.0}, 1.0),
])  # fmt: skip
def test_what_surrounds_the_image_is_blurred_into_it(padding, outside):
    """A bright image: half a sigma from its edge 31 % of the bell are outside, far from it nothing is."""
    image = torch.ones(1, 100, 100)
    sources = Sources(image, {"mode": "bilinear", "antialias": True, "sigma": None, "align_corners": False,
                              "impl": None, **padding})  # fmt: skip
    boxes = torch.tensor([[1.0, 49.0, 3.0, 51.0], [49.0, 49.0, 51.0, 51.0]])
    near, middle = sources.crop(boxes, 1, int(sources.level(torch.tensor(4.0))), None).flatten().tolist()
    assert near == pytest.approx(0.691 + 0.309 * outside, abs=0.02)
    assert middle == pytest.approx(1.0, abs=1e-5)


def test_steps_are_shared_out():
    assert steps_of([Stage(), Stage(share=2.0)], 9) == [3, 6]
    assert steps_of([Stage(share=100), Stage(), Stage()], 4) == [2, 1, 1]
    assert steps_of([Stage()], 1) == [1]
    assert fit(schedule=[Stage(blur=0.1), Stage(share=3)], steps=8).trace.stage.tolist() == [0] * 3 + [1] * 7


def test_distinct_best():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.5, 0, 10, 10], [30, 0, 40, 10], [60, 0, 70, 10], [90, 0, 99, 9]])[
        :, None
    ]
    scores = torch.tensor([3.0, 4.0, torch.nan, 1.0, 2.0])[:, None]
    pick = starts_module.distinct_best
    assert pick(boxes, scores, 1).tolist() == [[1]]
    assert pick(boxes, scores, 3).tolist() == [[1], [4], [3]]
    assert pick(boxes, scores, 4).tolist() == [[1], [4], [3], [0]]  # the copy, before what is not finite
    assert pick(boxes, scores, 5).tolist() == [[1], [4], [3], [0], [2]]
    two = pick(boxes.repeat(1, 2, 1), torch.cat([scores, -scores], 1), 2)
    assert two.T.tolist() == [[1, 4], [3, 4]]


# --- optimisers -------------------------------------------------------------------------------------------------------


def test_the_learning_rate_is_a_step_in_sides_and_falls_to_nothing():
    result = fit(torch.stack([NEAR, NEAR / 2]), truth=torch.stack([TRUTH, TRUTH]), steps=40, learning_rate=0.05)
    centre = (result.trace.boxes[:, 0, :, :2] + result.trace.boxes[:, 0, :, 2:]) / 2
    sides = result.trace.boxes[0, 0, :, 2:] - result.trace.boxes[0, 0, :, :2]
    first = (centre[1] - centre[0]).abs() / sides  # Adam's first step is its learning rate
    assert torch.allclose(first, torch.full_like(first, 0.05), rtol=1e-2)
    last = (centre[-1] - centre[-2]).abs() / sides
    assert last.max() < 0.002


def test_optimisers_of_every_kind():
    """Classes take `learning_rate`; functions bring their own, which falls as well."""
    made = []

    def own(params):
        made.append(torch.optim.SGD(params, lr=0.3))
        return made[-1]

    by_class = fit(optimizer=torch.optim.SGD, learning_rate=0.3, steps=30)
    by_function = fit(optimizer=own, learning_rate=1e-9, steps=30)
    assert torch.equal(by_class.trace.boxes, by_function.trace.boxes)
    assert by_class.scores > by_class.trace.scores[0, 0] / 4
    assert len(made) == 1
    assert 0 < made[0].param_groups[0]["lr"] < 0.01
    assert torch.equal(fit(optimizer=torch.optim.Adam, steps=5).boxes, fit(steps=5).boxes)
    fit(optimizer=own, steps=5, schedule=[Stage(blur=0.2), Stage()])
    assert len(made) == 3


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_patience_ends_a_search_in_which_nothing_improves():
    result = fit(TRUTH, patience=7)
    assert (result.steps, result.stopped) == (7, "patience")
    assert len(result.trace) == 8
    long = fit(NEAR, patience=7)
    assert 9 < long.steps < 60
    # Of a batch, whoever still improves goes on for all.
    both = fit(torch.stack([TRUTH, NEAR]), truth=TRUTH.expand(2, 4), patience=7)
    assert both.steps == long.steps
    # Rises of no more than the tolerance are none.
    assert fit(NEAR, patience=7, tolerance=10.0).steps == 7


def test_patience_ends_each_stage():
    result = fit(TRUTH, patience=3, tolerance=10.0, schedule=[Stage(blur=0.1), Stage()], steps=40)
    assert result.trace.stage.tolist() == [0] * 4 + [1] * 4
    assert (result.steps, result.stopped) == (6, "patience")


@pytest.mark.parametrize("yes", [True, torch.tensor(True)], ids=["bool", "tensor"])
def test_a_callback_may_stop(yes):
    seen = []

    def callback(info):
        assert isinstance(info, FitStep)
        seen.append(info)
        return yes if info.step == 5 else None

    result = fit(torch.stack([NEAR, NEAR + 1]), truth=TRUTH.expand(2, 4), starts=3, callback=callback)
    assert [info.step for info in seen] == list(range(6))
    assert (result.steps, result.stopped) == (5, "callback")
    assert seen[-1].steps == 200
    for i, info in enumerate(seen):
        assert torch.equal(info.trial_boxes, result.trace.boxes[i])
        assert torch.equal(info.trial_scores, result.trace.scores[i])
        assert torch.equal(info.scores, result.trace.scores[: i + 1].flatten(0, 1).amax(0))
        assert not info.boxes.requires_grad
    assert torch.equal(seen[-1].boxes, result.boxes)
    assert torch.equal(seen[-1].scores, result.scores)


@pytest.mark.parametrize("starts", [1, 4])
def test_a_stop_in_a_blurred_stage_scores_the_image_itself(starts):
    result = fit(starts=starts, schedule="coarse-to-fine", callback=lambda info: info.step == 40)
    assert (result.steps, result.stopped) == (40, "callback")
    assert result.trace.blur[-1] > 0
    objective = alike(diffcrop.crop(IMAGE, TRUTH, 8))
    assert torch.allclose(objective(diffcrop.crop(IMAGE, result.boxes, 8)[None])[0], result.scores, atol=1e-6)
    assert result.scores >= objective(diffcrop.crop(IMAGE, NEAR, 8)[None])[0]


def test_what_a_callback_keeps_and_changes_does_not_change_the_trace():
    kept = []

    def callback(info):
        kept.append(info.trial_boxes.clone())
        info.trial_boxes.zero_()
        info.boxes.zero_()

    result = fit(steps=4, callback=callback)
    assert torch.equal(result.trace.boxes, torch.stack(kept))
    assert (result.boxes != 0).all()


# --- it disturbs nobody -----------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(4 * 64, 3)
    )


def test_a_network_as_objective_gets_no_gradient():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    image = IMAGE.clone().requires_grad_()
    init = NEAR.clone().requires_grad_()
    result = diffcrop.fit_boxes(image, lambda c: net(c)[:, 1], init, 8, steps=20, starts=3, schedule="coarse-to-fine")
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert torch.equal(p.grad, torch.ones_like(p))
    assert image.grad is None
    assert init.grad is None
    assert torch.equal(image, IMAGE)
    assert torch.equal(init, NEAR)
    for tensor in (*result[:3], result.trace.boxes, result.trace.scores):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None
    assert result.scores > net(diffcrop.crop(IMAGE, NEAR, 8)[None])[0, 1]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("schedule", [None, "coarse-to-fine"])
def test_without_grad_outside(context, schedule):
    expected = fit(steps=8, schedule=schedule)
    with context():
        images, init = IMAGE.clone(), NEAR.clone()
        target = diffcrop.crop(IMAGE, TRUTH, 8)
    with context():
        result = diffcrop.fit_boxes(images, alike(target.clone()), init, 8, steps=8, schedule=schedule)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    assert torch.equal(result.trace.boxes, expected.trace.boxes)
    batch = diffcrop.fit_boxes(images[None], alike(torch.zeros(2, 8, 8)), init, 8, steps=3, schedule=schedule)
    assert batch.boxes.shape == (1, 4)


def test_random_numbers_are_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fit(starts=6, steps=3, schedule="coarse-to-fine")
    assert torch.equal(torch.get_rng_state(), state)
    fit(starts=6, steps=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast():
    net = network()
    with torch.autocast("cpu", torch.bfloat16):
        result = diffcrop.fit_boxes(IMAGE, lambda c: net(c)[:, 0], NEAR, 8, steps=20, schedule="coarse-to-fine")
    assert result.scores.dtype == torch.float32
    assert result.boxes.dtype == torch.float32
    assert result.scores > net(diffcrop.crop(IMAGE, NEAR, 8)[None])[0, 0]


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [None, "coarse-to-fine"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8])
def test_image_dtypes(dtype, schedule):
    image = (IMAGE * 255).to(dtype)
    kept = image.clone()
    target = diffcrop.crop(image, TRUTH, 8).to(torch.float32)
    result = diffcrop.fit_boxes(
        image, lambda c: -(c.float() - target).square().mean((1, 2, 3)), NEAR, 8, schedule=schedule
    )
    assert torch.equal(image, kept)
    assert result.boxes.dtype == torch.float32
    assert (result.boxes - TRUTH).abs().max() < 0.3


@pytest.mark.parametrize(("init", "dtype"), [
    (NEAR.double(), torch.float64), (NEAR, torch.float32), (NEAR.half(), torch.float32), (NEAR.int(), torch.float32),
    (NEAR.tolist(), torch.float32), (None, torch.float32),
])  # fmt: skip
def test_boxes_have_the_dtype_of_init(init, dtype):
    result = fit(init, steps=2)
    assert result.boxes.dtype == result.trace.boxes.dtype == dtype


def test_scores_have_the_dtype_of_the_objective():
    image = IMAGE.double()
    result = fit(image=image, truth=TRUTH.double(), steps=2)
    assert result.scores.dtype == result.trace.scores.dtype == torch.float64


# --- progress ---------------------------------------------------------------------------------------------------------


class FakeBar:
    made: list[FakeBar] = []  # noqa: RUF012

    def __init__(self, total, desc):
        self.total, self.desc, self.done, self.notes, self.closed = total, desc, 0, [], False
        FakeBar.made.append(self)

    def update(self, count):
        self.done += count

    def set_postfix_str(self, text, **_):
        self.notes.append(text)

    def close(self):
        self.closed = True


@pytest.fixture
def fake_tqdm(monkeypatch):
    FakeBar.made = []
    package, auto = types.ModuleType("tqdm"), types.ModuleType("tqdm.auto")
    auto.tqdm = FakeBar
    monkeypatch.setitem(sys.modules, "tqdm", package)
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    return FakeBar.made


@pytest.fixture
def clock(monkeypatch):
    """A clock that the objective can set."""
    from diffcrop.search import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_that_was_asked_for(fake_tqdm, clock):
    fit(steps=6, progress=True)
    (bar,) = fake_tqdm
    assert (bar.total, bar.done, bar.desc, bar.closed) == (6, 6, "fit_boxes", True)
    assert len(bar.notes) == 7
    assert bar.notes[-1].startswith("best -")


def test_a_bar_appears_after_two_seconds_and_counts_from_the_start(fake_tqdm, clock):
    def slow(info):
        clock[0] += 0.5

    fit(steps=10, callback=slow)
    (bar,) = fake_tqdm
    assert bar.done == 10
    assert len(bar.notes) == 7  # from step 4 on
    fake_tqdm.clear()
    fit(steps=10)
    assert not fake_tqdm
    fit(steps=10, callback=slow, progress=False)
    assert not fake_tqdm


def test_a_bar_is_closed_when_the_objective_fails(fake_tqdm, clock):
    calls = []

    def fails(crops):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no more")
        return crops.mean((1, 2, 3))

    with pytest.raises(RuntimeError, match="no more"):
        diffcrop.fit_boxes(IMAGE, fails, NEAR, 8, progress=True)
    assert fake_tqdm[0].closed


def test_rich_serves_without_tqdm(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    fit(steps=3, progress=True)
    said = capsys.readouterr()
    assert "fit_boxes" in said.err
    assert not said.out


def test_without_any_library(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"diffcrop\[cli\]"):
        fit(progress=True)

    def slow(info):
        clock[0] += 3

    assert fit(steps=3, callback=slow).steps == 3


# --- the trace --------------------------------------------------------------------------------------------------------


def test_a_result_can_be_printed():
    assert "trace=Trace(boxes of shape (7, 1, 4))" in repr(fit(steps=6))


def test_plots():
    figure = pytest.importorskip("matplotlib.figure")
    result = fit(torch.stack([NEAR, NEAR + 2]), truth=TRUTH.expand(2, 4), starts=3, schedule="coarse-to-fine", steps=8)
    ax = figure.Figure().subplots()
    assert result.trace.plot(ax) is ax
    lines = [line for line in ax.lines if len(line.get_xdata()) == len(result.trace)]
    assert len(lines) == 3 * 2
    assert lines[2].get_ydata() == pytest.approx(result.trace.scores[:, 1, 0].tolist(), nan_ok=True)
    assert [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2] == [2.5, 5.5]

    ax = figure.Figure().subplots()
    assert result.trace.plot_boxes(ax) is ax
    assert len(ax.lines) == 2 * 3 * 2
    assert all(math.isfinite(v) for line in ax.lines for v in (*line.get_xdata(), *line.get_ydata()))
    last = result.trace.boxes[-1, 0, 0].tolist()
    assert list(ax.lines[1].get_xdata()) == pytest.approx([last[i] for i in (0, 2, 2, 0, 0)])
    assert list(ax.lines[1].get_ydata()) == pytest.approx([last[i] for i in (1, 1, 3, 3, 1)])


def test_plots_make_their_own_axes_in_pixels():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    init = xyxy(NEAR, to_format="cxcywh", to_coords="unit")
    objective = alike(diffcrop.crop(IMAGE, TRUTH, 8))
    result = diffcrop.fit_boxes(IMAGE, objective, init, 8, steps=2, box_format="cxcywh", coords="unit")
    ax = result.trace.plot_boxes()
    assert ax.yaxis_inverted()
    assert ax.lines[0].get_xdata()[0] == pytest.approx(float(NEAR[0] + NEAR[2]) / 2, abs=1e-3)
    assert result.trace.plot() is not ax
    pyplot.close("all")


def test_plots_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trace = fit(steps=1).trace
    for plot in (trace.plot, trace.plot_boxes):
        with pytest.raises(ImportError, match=r"diffcrop\[cli\]"):
            plot()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"images": [IMAGE]}, TypeError, "images.*torch.stack"),
    ({"images": IMAGE.numpy()}, TypeError, "images"),
    ({"images": IMAGE[0]}, ValueError, "images"),
    ({"images": IMAGE[None][:0]}, ValueError, "images.*at least one"),
    ({"objective": 3}, TypeError, "objective.*int"),
    ({"init": NEAR[:3]}, ValueError, r"init.*\(4,\).*\(3,\)"),
    ({"init": NEAR.expand(2, 3, 4)}, ValueError, r"init must have shape \(4,\) or \(K, 4\)"),
    ({"init": NEAR.expand(0, 4)}, ValueError, "init"),
    ({"images": IMAGE.expand(2, 2, H, W), "init": NEAR.expand(3, 4)}, ValueError, r"init.*\(2, 4\) or \(2, K, 4\)"),
    ({"init": "middle"}, TypeError, "init"),
    ({"init": NEAR > 3}, TypeError, "init"),
    ({"init": NEAR.flip(0)}, ValueError, "init must be ordered"),
    ({"init": NEAR - 30, "inside": True}, ValueError, "init must lie inside"),
    ({"init": NEAR, "aspect": 3.0}, ValueError, "aspect"),
    ({"min_size": 0}, ValueError, "min_size"),
    ({"inside": 1}, TypeError, "inside"),
    ({"size": 0}, ValueError, "size"),
    ({"steps": 0}, ValueError, "steps.*at least 1"),
    ({"steps": 2.0}, TypeError, "steps"),
    ({"steps": 2, "schedule": "coarse-to-fine"}, ValueError, "steps.*3 stages.*2"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate"),
    ({"optimizer": "lbfgs"}, ValueError, "optimizer.*'lbfgs'"),
    ({"optimizer": torch.optim.Adam([torch.zeros(1)])}, TypeError, "optimizer.*lambda params: Adam"),
    ({"optimizer": 3}, TypeError, "optimizer"),
    ({"optimizer": lambda _: None}, TypeError, "optimizer.*None"),
    ({"optimizer": lambda _: torch.optim.Adam([torch.zeros(1)])}, ValueError, "optimizer.*others"),
    ({"optimizer": torch.optim.LBFGS}, ValueError, "optimizer.*LBFGS"),
    ({"schedule": "fine"}, ValueError, "schedule.*'coarse-to-fine'.*'fine'"),
    ({"schedule": Stage()}, TypeError, "schedule"),
    ({"schedule": 3}, TypeError, "schedule"),
    ({"schedule": []}, ValueError, "schedule"),
    ({"schedule": [0.1]}, TypeError, "Stage"),
    ({"schedule": [Stage(), Stage(blur=0.1)]}, ValueError, "schedule.*blur=0.1"),
    ({"starts": 0}, ValueError, "starts"),
    ({"starts": True}, TypeError, "starts"),
    ({"spread": -1.0}, ValueError, "spread"),
    ({"spread": math.nan}, ValueError, "spread"),
    ({"generator": 3}, TypeError, "generator"),
    ({"patience": 0}, ValueError, "patience"),
    ({"patience": 1.5}, TypeError, "patience"),
    ({"tolerance": -1}, ValueError, "tolerance"),
    ({"callback": 3}, TypeError, "callback"),
    ({"progress": "yes"}, TypeError, "progress"),
    ({"box_format": "yolo"}, ValueError, "box_format"),
    ({"coords": "px"}, ValueError, "coords"),
    ({"mode": "nearest"}, ValueError, "nearest.*derivative"),
    ({"mode": "bilinaer"}, ValueError, "mode"),
    ({"antialias": 1}, TypeError, "antialias"),
    ({"padding_mode": "none"}, ValueError, "padding_mode"),
    ({"padding_mode": "constant", "fill": (1.0, 2.0, 3.0)}, ValueError, "fill"),
    ({"sigma": 1.0}, ValueError, "sigma"),
    ({"align_corners": None}, TypeError, "align_corners"),
    ({"impl": "fast"}, ValueError, "impl"),
])  # fmt: skip
def test_wrong_arguments(change, error, text):
    """Before the objective is called."""

    def never(crops):
        raise AssertionError("called")

    arguments = {"images": IMAGE, "objective": never, "init": NEAR, "size": 8, **change}
    with pytest.raises(error, match=text):
        diffcrop.fit_boxes(**arguments)


@pytest.mark.parametrize(("objective", "error", "text"), [
    (lambda c: c.mean(), ValueError, r"3 crops, shape \(3,\), got shape \(\).*not over the crops"),
    (lambda c: c.mean((2, 3))[:, :1], ValueError, r"\(3, 1\).*flatten"),
    (lambda c: c.mean((1, 2, 3))[:2], ValueError, r"\(2,\)"),
    (lambda _: 1.0, TypeError, "float"),
    (lambda c: c.mean((1, 2, 3)).to(torch.complex64), TypeError, "complex64"),
    (lambda c: (c.mean((1, 2, 3)) * 10).round().long(), TypeError, "int64"),
    (lambda c: c.detach().mean((1, 2, 3)), ValueError, "no graph.*detach"),
    (lambda c: torch.ones(len(c), requires_grad=True) * 2, ValueError, "does not lead to them"),
    (lambda c: c.mean((1, 2, 3)) * torch.nan, ValueError, "none of the 3 scores.*nan, nan, nan"),
])  # fmt: skip
def test_objectives_that_cannot_be_climbed(objective, error, text):
    with pytest.raises(error, match=text) as caught:
        diffcrop.fit_boxes(IMAGE, objective, NEAR, 8, starts=3)
    assert "objective" in str(caught.value)


def test_a_callback_must_answer_clearly():
    with pytest.raises(TypeError, match="callback must return None, True or False, got 3"):
        fit(callback=lambda _: 3)


@pytest.mark.parametrize(("change", "error"), [
    ({"blur": -1.0}, ValueError), ({"blur": "much"}, TypeError), ({"blur": math.inf}, ValueError),
    ({"share": 0.0}, ValueError), ({"rate": 0}, ValueError), ({"rate": None}, TypeError),
    ({"keep": 0}, ValueError), ({"keep": 1.5}, TypeError), ({"keep": True}, TypeError),
])  # fmt: skip
def test_stages_are_checked(change, error):
    with pytest.raises(error, match=f"{next(iter(change))} of a Stage"):
        Stage(**change)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stage().blur = 1.0
