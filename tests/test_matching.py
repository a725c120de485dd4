"""What `locate` is made of: the grid, the scores of all its boxes, the choice among them, and the steps after."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import max_pool2d

import diffcrop
from diffcrop.search.matching import exhaustive
from diffcrop.search.matching.coarse_to_fine import Matcher, start
from diffcrop.search.matching.marquardt import levenberg_marquardt
from diffcrop.search.matching.poses import Upright
from test_locate import TRUTH, scene, template

SIDE = exhaustive.SIDE
UNITS = Upright().units


def all_boxes(block):
    x, y = (axis.intervals(torch.device("cpu")) for axis in block)
    x, y = x.expand(len(y), -1, 2), y[:, None].expand(-1, len(x), 2)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


# --- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [(512, 512), (640, 97), (31, 200), (8, 8)])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("candidates", [200_000, 400_000, 3_000_000])
def test_grids_stay_in_the_image_and_reach_its_edges(image, fixed, candidates):
    template_size = (6.0, 4.0)
    low = exhaustive.least_sides(image, template_size, fixed)
    scale = min(image[0] / 6, image[1] / 4)
    high = (6 * scale, 4 * scale) if fixed else (float(image[0]), float(image[1]))
    blocks = exhaustive.grid(image, low, high, fixed, candidates)
    assert blocks is not None
    boxes = torch.cat([all_boxes(block).flatten(0, 1) for block in blocks])
    assert len(boxes) == sum(len(block.x) * len(block.y) for block in blocks) <= candidates
    assert boxes.min() > -1e-9
    assert (boxes[:, 2:] - torch.tensor(image)).max() < 1e-9
    sides = boxes[:, 2:] - boxes[:, :2]
    for axis in (0, 1):
        assert float(sides[:, axis].max()) == pytest.approx(high[axis])
        # Where the sides are free they are rounded to what fits the image evenly.
        assert float(sides[:, axis].min()) == pytest.approx(low[axis], rel=1e-9 if fixed else 0.1)
        smallest = boxes[sides[:, axis] < sides[:, axis].min() * 1.001]
        cell = low[axis] / SIDE
        assert float(smallest[:, axis].min()) < cell
        assert float(smallest[:, axis + 2].max()) > image[axis] - 1.1 * cell
    if fixed:
        assert ((sides[:, 0] / sides[:, 1]) - 1.5).abs().max() < 1e-9


def test_more_candidates_make_finer_grids():
    every = [exhaustive.grid((300, 300), (30.0, 30.0), (300.0, 300.0), False, n) for n in (30_000, 300_000, 3_000_000)]
    counts = [sum(len(b.x) * len(b.y) for b in blocks) for blocks in every]
    assert counts[0] < counts[1] < counts[2]
    assert exhaustive.grid((300, 300), (30.0, 30.0), (300.0, 300.0), False, 1000) is None


@pytest.mark.parametrize("fixed", [False, True])
def test_the_grid_around_a_box(fixed):
    box = [10.0, 20.0, 50.0, 44.0]
    blocks = exhaustive.grid_around((60, 60), box, 0.5, fixed)
    boxes = torch.cat([all_boxes(block).flatten(0, 1) for block in blocks])
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    off = (centre - torch.tensor([30.0, 32.0])).abs() / torch.tensor([40.0, 24.0])
    assert 0.4 < off.max() <= 0.5 + 1e-9
    ratio = sides / torch.tensor([40.0, 24.0])
    assert float(ratio.min()) == pytest.approx(math.exp(-0.5))
    assert float(ratio.max()) == pytest.approx(math.exp(0.5))
    if fixed:
        assert (ratio[:, 0] - ratio[:, 1]).abs().max() < 1e-12
    else:
        assert (ratio[:, 0] - ratio[:, 1]).abs().max() > 0.9


# --- the scores -------------------------------------------------------------------------------------------------------


def huber_sum(off, limit):
    off = off.abs()
    return torch.where(off <= limit, off * off / 2, limit * (off - limit / 2))


@pytest.mark.parametrize("metric", ["l2", "zncc", "huber"])
def test_costs_are_those_of_the_crops(metric):
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(23, 31, generator=generator)
    own = torch.rand(SIDE, SIDE, generator=generator)
    (block,) = exhaustive.grid((31, 23), (9.0, 8.0), (31.0, 23.0), False, 20_000)
    x, y = (exhaustive._cells(axis, axis.extent, torch.device("cpu")) for axis in block)
    if metric == "huber":
        cost = exhaustive._robust_costs(source, own, x, y, 0.1)
    else:
        cost = exhaustive._costs(source, own, x, y, metric)
    boxes = all_boxes(block)
    assert cost.shape == boxes.shape[:2]
    crops = diffcrop.crop(source[None].double(), boxes.flatten(0, 1), SIDE, mode="area")[:, 0]
    own = own.double()
    if metric == "zncc":
        flat = crops.flatten(1) - crops.mean((1, 2))[:, None]
        wanted = (own - own.mean()).flatten()
        expected = 1 - flat @ wanted / (flat.norm(dim=1) * wanted.norm())
    elif metric == "l2":
        expected = (crops - own).square().sum((1, 2)) / 2
    else:
        expected = huber_sum(crops - own, 0.1).sum((1, 2))
    assert (cost.flatten() - expected).abs().max() < 1e-5


def test_a_flat_part_of_the_image_correlates_with_nothing():
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(40, 40, generator=generator)
    source[:20] = 0.7
    (block,) = exhaustive.grid((40, 40), (8.0, 8.0), (40.0, 40.0), False, 100_000)
    x, y = (exhaustive._cells(axis, 40, torch.device("cpu")) for axis in block)
    cost = exhaustive._costs(source, torch.rand(SIDE, SIDE, generator=generator), x, y, "zncc")
    boxes = all_boxes(block)
    flat = boxes[..., 3] < 19.5
    assert flat.any()
    assert cost.isfinite().all()
    assert (cost[flat] - 1).abs().max() < 0.2


def test_neighbours():
    cost = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    kept = cost.clone()
    assert torch.equal(exhaustive._least_around(cost), -max_pool2d(-cost[None], 3, 1, 1)[0])
    assert torch.equal(cost, kept)


def overlap(a, b):
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    shared = (high - low).clamp(min=0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def test_overlapping_boxes_are_dropped_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(4, 60, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 10 + 10 * torch.rand(4, 60, 2, generator=generator)], -1)
    costs = torch.rand(4, 60, generator=generator).sort(1)[0]
    costs[0, 40:] = torch.inf
    for keep in (5, 60):
        places = exhaustive.distinct(boxes, costs, keep, 0.4)
        for problem, row in enumerate(places.tolist()):
            expected = []
            for i in range(60):
                if costs[problem, i].isfinite() and all(
                    overlap(boxes[problem, i], boxes[problem, j]) <= 0.4 for j in expected
                ):
                    expected.append(i)
            expected = expected[:keep]
            assert row == expected + [0] * (keep - len(expected))


def test_the_strongest_channel_is_that_of_the_templates():
    """Noise in other channels of the scene does not drown what the template has."""
    generator = torch.Generator().manual_seed(0)
    image = torch.cat([scene()[:1], 5 * torch.rand(2, *scene().shape[1:], generator=generator)])
    wanted = torch.cat([template()[:1], torch.full((2, 20, 24), 2.5)])
    source, small, _ = exhaustive._one_channel(image, wanted)
    centred = [t - t.mean() for t in (source, image[0])]
    assert abs(float((centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()))) > 0.99
    assert small.shape == (20, 24)


def test_the_channel_has_no_mean_and_the_templates_unit():
    """Sums of squares in float32 are those of the contrast alone."""
    image, wanted = 3 * scene().double() + 1000, 3 * template().double() + 1000
    source, small, unit = exhaustive._one_channel(image, wanted)
    assert abs(float(source.mean())) < 1e-6
    assert float(small.std()) == pytest.approx(1, abs=0.8)
    assert unit == pytest.approx(3 * float((template() - template().mean((1, 2), keepdim=True)).square().mean().sqrt()))


def test_a_template_that_is_flat_when_reduced_costs_the_same_everywhere():
    source = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) - 0.5
    (block,) = exhaustive.grid((40, 40), (8.0, 8.0), (40.0, 40.0), False, 100_000)
    x, y = (exhaustive._cells(axis, 40, torch.device("cpu")) for axis in block)
    assert (exhaustive._costs(source, torch.zeros(SIDE, SIDE), x, y, "zncc") == 1).all()


@pytest.mark.parametrize(("size", "huber", "metric"), [(8, None, "zncc"), (16, None, "l2"), (8, 0.1, "l2")])
def test_small_templates_are_ranked_by_shape(size, huber, metric):
    options = {"metric": "l2", "huber": huber}
    matcher = Matcher(scene()[None], template(size=(size, size))[None], options, False, Upright())
    assert matcher.coarse_metric == metric


def test_costs_are_those_of_normal_equations():
    """On grey crops of the size of the search, in the image's units, but for the reduction of the source."""
    grey = scene().mean(0, keepdim=True).double()
    blocks = exhaustive.grid((451, 300), (60.0, 60.0), (451.0, 300.0), False, 100_000)
    wanted = diffcrop.crop(grey, torch.tensor(TRUTH), 24, mode="area")
    small = exhaustive.resized(wanted, (SIDE, SIDE))
    for metric, huber in (("l2", None), ("zncc", None), ("l2", 0.05)):
        found = exhaustive.best_candidates(grey, wanted, blocks, 6, 0.6, metric, huber)
        different = (found.boxes != found.boxes[:1]).any(1)  # the best is repeated where too few are left
        assert (found.costs[1:][different[1:]] >= found.costs[0]).all()
        assert overlap(found.boxes[0], torch.tensor(TRUTH)) > 0.6
        expected = diffcrop.normal_equations(grey, found.boxes, small, mode="area", metric=metric, huber=huber).loss
        assert torch.allclose(found.costs, expected, rtol=0.2, atol=0.03)


# --- the steps --------------------------------------------------------------------------------------------------------


def equations(image, wanted, **options):
    def evaluate(boxes):
        index = torch.zeros(len(boxes), dtype=torch.int64)
        return diffcrop.normal_equations(image[None], boxes, wanted, batch_index=index, **options)

    return evaluate


def starts(count=12, off=0.15):
    generator = torch.Generator().manual_seed(0)
    away = (torch.rand(count, 4, generator=generator, dtype=torch.float64) - 0.5) * 2 * off * 110
    return torch.tensor(TRUTH, dtype=torch.float64) + away


def test_losses_never_rise_and_steps_are_bounded():
    wanted = diffcrop.crop(scene(), torch.tensor(TRUTH), 12)
    begin = starts(off=0.4)
    pixel = (begin[:, 2:] - begin[:, :2]).repeat(1, 2) / 12
    descent = levenberg_marquardt(equations(scene(), wanted), begin, UNITS, pixel, 15, 1e-6)
    assert (descent.path_losses.diff(dim=0) <= 0).all()
    assert torch.equal(descent.path[0], begin)
    assert torch.equal(descent.path[-1], descent.boxes)
    sides = (descent.path[:-1, :, 2:] - descent.path[:-1, :, :2]).repeat(1, 1, 2)
    assert float((descent.path.diff(dim=0) / sides).abs().max()) <= 0.3 + 1e-9
    assert (descent.boxes[:, 2:] > descent.boxes[:, :2]).all()


def test_close_starts_settle_in_few_steps():
    wanted = diffcrop.crop(scene(), torch.tensor(TRUTH), 12)
    begin = starts(off=0.03)
    pixel = (begin[:, 2:] - begin[:, :2]).repeat(1, 2) / 12
    descent = levenberg_marquardt(equations(scene(), wanted), begin, UNITS, pixel, 30, 1e-4)
    assert descent.settled.all()
    assert len(descent.path) <= 8
    assert (descent.boxes - torch.tensor(TRUTH)).abs().max() < 1e-3


def test_a_box_that_becomes_nan_stays_where_it_was():
    wanted = diffcrop.crop(scene(), torch.tensor(TRUTH), 12)
    begin = starts(2, 0.03)
    first = equations(scene(), wanted)(begin)

    def breaks(boxes):
        found = equations(scene(), wanted)(boxes)
        if torch.equal(boxes, begin):
            return found
        return found._replace(loss=torch.where(torch.tensor([True, False]), torch.nan, found.loss))

    descent = levenberg_marquardt(breaks, begin, UNITS, torch.ones(2, 4), 5, 1e-4)
    assert torch.equal(descent.boxes[0], begin[0])
    assert float(descent.losses[0]) == float(first.loss[0])
    assert not torch.equal(descent.boxes[1], begin[1])


def test_a_direction_without_information_is_left_alone():
    """On a ramp along x, y is free: nothing moves it."""
    ramp = torch.arange(64.0).expand(1, 64, 64) / 64
    wanted = diffcrop.crop(ramp, torch.tensor([20.0, 10.0, 44.0, 40.0]), 8)
    begin = torch.tensor([[22.0, 12.0, 45.0, 41.0]], dtype=torch.float64)
    descent = levenberg_marquardt(equations(ramp, wanted), begin, UNITS, torch.full((1, 4), 3.0), 20, 1e-6)
    assert (descent.boxes[0, 0::2] - torch.tensor([20.0, 44.0])).abs().max() < 1e-3
    assert (descent.boxes[0, 1::2] - begin[0, 1::2]).abs().max() < 0.01


def test_a_basis_keeps_to_its_columns():
    wanted = diffcrop.crop(scene(), torch.tensor(TRUTH), 12)
    begin = starts(3, 0.05)
    only_x = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64).T
    descent = levenberg_marquardt(equations(scene(), wanted), begin, UNITS, torch.full((3, 4), 8.0), 10, 1e-6, only_x)
    moved = descent.boxes - begin
    assert moved[:, 1::2].abs().max() == 0
    assert (moved[:, 0] - moved[:, 2]).abs().max() < 1e-12
    assert moved[:, 0].abs().min() > 0.1


def test_the_path_leads_from_a_candidate_to_the_answer():
    found = diffcrop.locate(scene(), template())
    path = found.trace.boxes
    assert any(torch.equal(path[0], candidate) for candidate in found.trace.candidates)
    assert torch.equal(path[-1], found.box)


def test_small_sizes_do_not_lead_a_given_start_away():
    """A start that only the template's own size can tell from its neighbours is still there at the end."""
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    image = (0.5 + 0.5 * torch.sin(columns * math.pi / 2) * torch.sin(rows * math.pi / 2))[None]
    image = image * torch.linspace(0.8, 1.2, 96)
    truth = torch.tensor([[[20.0, 24.0, 68.0, 72.0]]], dtype=torch.float64)
    wanted = diffcrop.crop(image, truth[0, 0], 48)
    matcher = Matcher(image[None], wanted[None], {"metric": "l2", "huber": None}, False, Upright())
    given = start(truth)
    path = matcher.coarse_to_fine(given, (48.0, 48.0), given)
    refined = path.boxes[0, :-1]  # the last is the start itself
    assert (refined - truth[0, 0]).abs().amax(1).min() < 0.5
    found = diffcrop.locate(image, wanted, init=truth[0, 0] + 0.3, reach=0)
    assert (found.box - truth[0, 0]).abs().max() < 0.01
