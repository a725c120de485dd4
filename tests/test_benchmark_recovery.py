"""The benchmark of box recovery: its problems, its gate, what it records and what it says of that."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import diffcrop
from benchmarks import charts as suite_charts
from benchmarks import report as suite_report
from benchmarks.recovery import __main__ as command
from benchmarks.recovery import (
    direction,
    gate,
    goals,
    latency,
    measure,
    methods,
    photographs,
    plan,
    problems,
    report,
    results,
    solvers,
)
from benchmarks.recovery.methods import METHODS
from benchmarks.recovery.plan import KNOWN, Cell
from diffcrop.cli import recovery
from diffcrop.cli.recovery import corner_error, iou

ROOT = Path(__file__).resolve().parents[1]
CLEAN, NOISE, GAIN = (problems.VARIANTS[name] for name in ("clean", "noise", "gain"))


@pytest.fixture(scope="module")
def coffee():
    return problems.make(photographs.photograph("coffee"), 3)


# --- data -------------------------------------------------------------------------------------------------------------


def test_nothing_was_chosen_on_what_is_held_out():
    assert not set(photographs.TUNING) & (set(photographs.HELD_OUT) | set(photographs.TEXTURES))
    assert {name for one in photographs.SETS.values() for name in one} == set(photographs.FILES)
    chosen = {cell.photograph for block in plan.BLOCKS if block.name == "rates" for cell in block.cells()}
    assert chosen == set(photographs.TUNING)


@pytest.mark.parametrize("name", photographs.FILES)
def test_photographs_come_with_the_wheels_and_are_brought_to_size(name):
    assert photographs.missing(name) is None
    found = photographs.photograph(name)
    assert max(found.image.size) <= photographs.LONGEST
    assert found.pixels.shape == ({"L": 1, "RGB": 3}[found.image.mode], *found.image.size[::-1])
    assert 0 <= float(found.pixels.min()) < float(found.pixels.max()) <= 1
    # Every true box fits.
    assert min(found.image.size) > problems.SIDES[1]


def test_the_plan_asks_for_what_exists():
    wanted = plan.cells()
    for cell in wanted:
        assert cell.method in KNOWN
        assert cell.target in problems.TARGETS
        assert cell.variant in problems.VARIANTS
        assert cell.reduction in problems.REDUCTIONS
    assert set(plan.cells(boxes=1).values()) == {1}
    only = plan.cells(wanted=lambda cell: cell.method == "LM")
    assert only
    assert {cell.method for cell in only} == {"LM"}


def test_the_filters_that_locate_tries_are_those_it_tries():
    if hasattr(diffcrop, "locate"):
        assert inspect.signature(diffcrop.locate).parameters["mode"].default == plan.TRIED


def test_every_goal_is_measured_by_the_plan():
    wanted = plan.cells()
    for goal in goals.GOALS:
        if goal.kind in (goals.LATENCY, goals.DIRECTION):
            continue
        for reduction in goal.reductions:
            for photograph in photographs.SETS[goal.photographs]:
                assert Cell(goal.method, goal.target, goal.variant, reduction, photograph) in wanted, goal.about


# --- problems ---------------------------------------------------------------------------------------------------------


def test_problems_are_inside_and_starts_as_far_off_as_they_say(coffee):
    truth, start = coffee.truth, coffee.start
    width, height = coffee.photograph.image.size
    assert bool((truth[:, :2] >= 0).all())
    assert bool((truth[:, 2:] <= torch.tensor([width, height]) + 1e-3).all())
    sides = truth[:, 2:] - truth[:, :2]
    assert bool(((sides >= problems.SIDES[0] - 1e-3) & (sides <= problems.SIDES[1] + 1e-3)).all())
    moved = ((start[..., :2] + start[..., 2:]) - (truth[:, :2] + truth[:, 2:])) / 2 / sides
    displacements = torch.tensor(problems.DISPLACEMENTS)[:, None]
    torch.testing.assert_close(moved.norm(dim=-1), displacements.expand(-1, 3), rtol=1e-4, atol=1e-4)
    stretched = ((start[..., 2:] - start[..., :2]) / sides).log().abs()
    assert bool((stretched <= displacements[..., None] + 1e-4).all())


def test_more_problems_begin_with_the_same_ones_and_seeds_differ(coffee):
    more = problems.make(coffee.photograph, 5)
    assert torch.equal(more.truth[:3], coffee.truth)
    assert torch.equal(more.start[:, :3], coffee.start)
    crops = [problems.targets(one, "diffcrop area", NOISE, 8) for one in (more, coffee)]
    assert torch.equal(crops[0][:3], crops[1])
    other = problems.make(coffee.photograph, 3, seed=1)
    assert not torch.equal(other.truth, coffee.truth)


def test_variants_say_what_they_do(coffee):
    clean, noisy, dim = (problems.targets(coffee, "pillow bicubic", one, 32) for one in (CLEAN, NOISE, GAIN))
    assert float((noisy - clean).std()) == pytest.approx(0.05, rel=0.05)
    assert float((dim - 0.6 * clean - 0.2).std()) == pytest.approx(0.02, rel=0.05)
    assert float((dim - 0.6 * clean - 0.2).mean()) == pytest.approx(0, abs=1e-3)


def test_the_bound_is_the_standard_error_of_a_linear_estimate(coffee):
    """Of many targets with a little noise, one Gauss-Newton step from the truth scatters as much as the bound says."""
    sigma, size = 1e-3, 16
    photograph, truth = coffee.photograph, coffee.truth[:1].double()
    (bound,) = problems.standard_errors(photograph, truth, "bilinear", size)
    crop, jacobian = diffcrop.crop_with_jacobian(photograph.pixels.double(), truth, size)
    generator = torch.Generator().manual_seed(0)
    noise = sigma * torch.randn(4000, crop.numel(), generator=generator, dtype=torch.float64)
    steps = torch.linalg.lstsq(jacobian.reshape(-1, 4), noise.T).solution
    assert float(steps.square().mean().sqrt()) == pytest.approx(sigma * float(bound), rel=0.03)


def test_nothing_bounds_a_box_of_nothing(coffee):
    flat = dataclasses.replace(coffee.photograph, pixels=torch.full_like(coffee.photograph.pixels, 0.5))
    assert torch.isinf(problems.standard_errors(flat, coffee.truth, "bilinear", 8)).all()


@pytest.mark.parametrize("name", [*photographs.HELD_OUT, *photographs.TEXTURES[:4]])
def test_every_crop_determines_its_box(name):
    """Retina and hubble are black in places. No problem is one that nobody could solve, were noise but the rounding."""
    made = problems.make(photographs.photograph(name), 25)
    errors = problems.standard_errors(made.photograph, made.truth, "bilinear", 8) / 255 / math.sqrt(12)
    sides = (made.truth[:, 2:] - made.truth[:, :2]).mean(-1)
    assert float((errors / sides).max()) < 0.015


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_methods_crop_what_they_say(name, coffee):
    if METHODS[name].missing() is not None:
        pytest.skip(f"{METHODS[name].missing()}")
    for size in (8, 32):
        verdict = gate.check(METHODS[name], coffee, "diffcrop area", size)
        assert verdict.green, verdict.said


@pytest.mark.parametrize("target", problems.TARGETS)
def test_targets_are_what_they_say(target, coffee):
    verdict = gate.check(METHODS["LM"], coffee, target, 16)
    assert verdict.green, verdict.said


def test_the_gate_sees_a_sampler_half_a_pixel_off(coffee):
    method = METHODS["recipe + Adam"]
    off = dataclasses.replace(method, sampler=lambda image, boxes, size: method.sampler(image, boxes + 0.5, size))
    assert not gate.check(off, coffee, "pillow lanczos", 16).green
    lost = dataclasses.replace(method, sampler=lambda *given: method.sampler(*given) * math.nan)
    assert not gate.check(lost, coffee, "pillow lanczos", 16).green


def test_the_gate_sees_a_target_from_half_a_pixel_beside(coffee, monkeypatch):
    true = problems.cropped
    monkeypatch.setattr(gate, "cropped", lambda photograph, boxes, *how: true(photograph, boxes - 0.5, *how))
    for target in ("pillow lanczos", "diffcrop area"):
        verdict = gate.check(METHODS["LM"], coffee, target, 16)
        assert not verdict.green, verdict.said


def test_the_gate_sees_a_wrong_derivative(coffee, monkeypatch):
    true = diffcrop.crop_with_jacobian

    def doubled(*given, impl=None, **how):
        crop, jacobian = true(*given, impl=impl, **how)
        return diffcrop.CropWithJacobian(crop, jacobian if impl == "reference" else 2 * jacobian)

    assert gate.check(METHODS["LM"], coffee, "diffcrop area", 8).green
    monkeypatch.setattr(diffcrop, "crop_with_jacobian", doubled)
    assert not gate.check(METHODS["LM"], coffee, "diffcrop area", 8).green


# --- solvers ----------------------------------------------------------------------------------------------------------


def test_levenberg_marquardt_is_exact_where_the_filter_matches(coffee):
    targets = problems.targets(coffee, "diffcrop bilinear", CLEAN, 16)
    answer = METHODS["LM"].run(coffee.photograph.pixels, coffee.start[0], targets)
    assert float(corner_error(answer.boxes, coffee.truth).max()) < 1e-2
    assert len(answer.path) < methods.LM_STEPS


def test_levenberg_marquardt_leaves_a_box_alone_that_is_done(coffee):
    # The lanczos target cannot be met, so there is always something left that a step might still gain.
    targets = problems.targets(coffee, "pillow lanczos", CLEAN, 16)[:1].repeat(2, 1, 1, 1)
    start = torch.cat([coffee.start[0, :1], coffee.start[3, :1]])
    run = METHODS["LM"].run
    near = run.func(*run.args, coffee.photograph.pixels, start, targets, steps=40, done=0.5).path[:, 0]
    moved = (near[1:] - near[:-1]).abs().amax(-1)
    done = int(((moved > 0) & (moved < 0.5)).int().argmax())
    assert 0 < done < len(moved) - 1
    assert float(moved[done + 1 :].max()) == 0


def test_levenberg_marquardt_leaves_a_box_of_nothing_where_it_is():
    image, start = torch.full((1, 40, 40), 0.5), torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    answer = METHODS["LM"].run(image, start, torch.full((1, 1, 8, 8), 0.7))
    assert torch.equal(answer.boxes, start)


def test_a_blur_is_a_gaussian():
    image = torch.zeros(1, 41, 41)
    image[0, 20, 20] = 1
    blurred = solvers.blurred(image, 2.0)[0]
    ratio = float(blurred[20, 23] / blurred[20, 20])
    assert ratio == pytest.approx(math.exp(-(3**2) / (2 * 2**2)), rel=1e-4)
    assert float(blurred.sum()) == pytest.approx(1, rel=1e-4)
    assert solvers.blurred(image, 0) is image


def test_coarse_to_fine_goes_on_where_the_level_before_ended(coffee, monkeypatch):
    targets = problems.targets(coffee, "diffcrop bilinear", CLEAN, 8)
    run = METHODS["blur schedule + Adam"].run
    levels = []

    def descend(sampler, image, start, targets, steps, rate):
        found = recovery.descend(sampler, image, start, targets, steps, rate)
        levels.append((image, start, targets, found.boxes[-1]))
        return found

    monkeypatch.setattr(solvers, "descend", descend)
    short = run.func(*run.args, coffee.photograph.pixels, coffee.start[1], targets, **{**run.keywords, "steps": 40})
    assert short.path.shape == (41, 3, 4)
    assert torch.equal(short.path[0], coffee.start[1])
    assert bool((iou(short.boxes, coffee.truth) > iou(coffee.start[1], coffee.truth)).all())
    starts, ends = [level[1] for level in levels], [level[3] for level in levels]
    assert all(torch.equal(*pair) for pair in zip(starts, [coffee.start[1], *ends[:-1]], strict=True))
    # Both are blurred, less and less.
    for images in ([level[0] for level in levels], [level[2] for level in levels]):
        roughness = [float((image[..., 1:] - image[..., :-1]).abs().mean()) for image in images]
        assert roughness == sorted(roughness)
        assert roughness[0] < 0.7 * roughness[-1]
    assert levels[-1][0] is coffee.photograph.pixels
    assert levels[-1][2] is targets


def test_steps_count_until_a_box_is_recovered_for_good():
    truth = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    near, far = truth + 1, truth + 50
    path = torch.stack([far, near, far, near, near])
    assert measure._steps_needed(path, truth) == [3]
    assert measure._steps_needed(torch.stack([near, near]), truth) == [0]
    assert measure._steps_needed(torch.stack([near, far]), truth) == [None]


# --- what is recorded -------------------------------------------------------------------------------------------------


def small_plan(*reductions):
    return {Cell("LM", "diffcrop bilinear", v, r, "coffee"): 2 for r in reductions for v in ("clean", "noise")}


def recorded(wanted, out=None, before=None, told=lambda _: None, directions=None):
    return measure.record(
        wanted, seed=0, directions=directions or {}, latencies=0, workers=1, out=out, before=before, told=told
    )


def test_a_row_holds_every_sample(coffee):
    made = recorded(small_plan(16), directions={"coffee": 2})
    clean, noise = made["rows"]
    assert clean["gate"]["green"]
    assert [len(boxes) for boxes in clean["offsets"]] == [2] * len(problems.DISPLACEMENTS)
    assert max(abs(x) for box in clean["offsets"][0] for x in box) < 0.02  # 10 % off, and exact
    assert noise["bound"][0] == pytest.approx(
        0.05 * float(problems.standard_errors(coffee.photograph, coffee.truth[:1], "bilinear", 8)), rel=1e-3
    )
    assert clean["bound"] is None
    assert {row["sampler"] for row in made["direction"]} == {"recipe", "diffcrop"}
    read = results.Recorded(json.loads(json.dumps(made)))
    (row,) = [row for row in read.rows.values() if row["variant"] == "clean"]
    solved = read._solve(row)
    assert len(solved) == 2 * len(problems.DISPLACEMENTS)
    assert solved[0].recovered
    assert str(ROOT) not in json.dumps(made)


def test_what_is_wrong_is_not_counted(monkeypatch):
    method = METHODS["LM"]
    off = dataclasses.replace(method, sampler=lambda image, boxes, size: method.sampler(image, boxes + 0.5, size))
    monkeypatch.setitem(plan.KNOWN, "LM", off)
    made = recorded(small_plan(16))
    assert [row["offsets"] for row in made["rows"]] == [[], []]
    assert len(results.Recorded(made).red()) == 2
    assert "crop" in report.section(results.Recorded(made), [])


def test_a_method_that_fails_is_told_of_and_the_others_are_measured(monkeypatch):
    def run(image, start, targets):
        if len(targets[0, 0]) == 8:
            raise ValueError("nothing to go by")
        return METHODS["LM"].run(image, start, targets)

    monkeypatch.setitem(plan.KNOWN, "LM", dataclasses.replace(METHODS["LM"], run=run))
    made = recorded(small_plan(8, 16))
    assert [bool(row["offsets"]) for row in made["rows"]] == [True, True, False, False]
    assert "ValueError: nothing to go by" in report.section(results.Recorded(made), [])


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_SAVED_EVERY_S", 0.0)
    out = tmp_path / "recovery.json.unfinished"
    wanted, told = small_plan(8, 16), []

    def stop(row):
        told.append(row)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(wanted, out, told=stop)
    before = measure.read(out)
    assert len(before["rows"]) == 2
    later = []
    made = recorded(wanted, out, before, later.append)
    assert len(later) == 2
    assert [measure.cell_of(row) for row in made["rows"]] == list(wanted)
    assert [row["run"] for row in made["rows"]] == [0, 0, 1, 1]
    # More boxes are another measurement.
    again = recorded(dict.fromkeys(wanted, 3), None, made)
    assert {row["run"] for row in again["rows"]} == {2}


def test_what_cannot_run_is_named(monkeypatch):
    monkeypatch.setitem(plan.KNOWN, "LM", dataclasses.replace(METHODS["LM"], needs=("no_such_package",)))
    made = recorded(small_plan(16))
    assert made["rows"] == []
    assert made["skipped"] == ["LM: there is no no_such_package"]


def test_another_format_is_not_read(tmp_path):
    assert measure.read(tmp_path / "none.json") is None
    (tmp_path / "other.json").write_text('{"format": 1}')
    assert measure.read(tmp_path / "other.json") is None


# --- the direction gate -----------------------------------------------------------------------------------------------


def test_the_gradient_points_to_the_box_nearby_and_not_by_construction():
    rows = direction.measure(photographs.photograph("coffee"), 6)
    hits = {(row["sampler"], row["reduction"]): row["hits"] for row in rows}
    assert sum(hits["diffcrop", 8][0]) == 6
    assert sum(sum(level) for level in hits["recipe", 16]) < 18


# --- what is said of it -----------------------------------------------------------------------------------------------


def test_wilsons_interval():
    low, high = results.Share(95, 100).interval()
    assert (low, high) == (pytest.approx(88.83, abs=0.01), pytest.approx(97.85, abs=0.01))
    low, high = results.Share(10, 10).interval()
    assert (low, high) == (pytest.approx(72.25, abs=0.01), pytest.approx(100))


def solved(recovered=True, rms=1.0, bound=1.0, side=128.0, at=0.1, error=1.0):
    return results.Solved(at, recovered, error, rms, side, 5, bound)


def test_efficiency_is_of_those_recovered_whose_bound_leaves_room():
    found = results.efficiency([solved(rms=1.0), solved(rms=2.0), solved(recovered=False, rms=99.0),
                                solved(rms=0.1, bound=2.0), solved(bound=None)])  # fmt: skip
    assert found == results.Efficiency(pytest.approx(math.sqrt(2.5)), 2)
    assert results.efficiency([solved(bound=math.inf)]) is None


def made_up(shares, method="bilinear + Adam", target="pillow lanczos", photos="held-out", error=0.5):
    """A record of method -> reduction -> shares recovered at each displacement, ten boxes a photograph."""
    truth = [[10.0, 10.0, 138.0, 138.0]] * 10
    rows = []
    for reduction, levels in shares.items():
        for photograph in photographs.SETS[photos]:
            offsets = [
                [[error, 0.0, error, 0.0] if k < round(10 * p) else [99.0, 0.0, 99.0, 0.0] for k in range(10)]
                for p in levels
            ]
            cell = Cell(method, target, "clean", reduction, photograph)
            more = {"gate": {"green": True, "said": ""}, "seconds": 0.4, "steps": [], "bound": None, "run": 0}
            rows.append({**vars(cell), "boxes": 10, "offsets": offsets, **more})
    return {
        "format": measure.FORMAT,
        "seed": 0,
        "displacements": problems.DISPLACEMENTS,
        "runs": [
            {
                "started": "2026-01-01T00:00:00+00:00",
                "machine": {"processor": "A processor", "cores": 2, "caches": [], "memory_gib": 8.0, "kernel": "Linux",
                            "transparent_hugepages": "never", "governor": None, "simd_level": "avx2"},
                "versions": {"torch": "9.9"},
                "source": {"commit": "0123456789abcdef", "dirty": False},
                "workers": 2,
                "seconds": 60.0,
            }
        ],
        "skipped": ["locate: there is no diffcrop.locate"],
        "truth": {row["photograph"]: truth for row in rows},
        "rows": rows,
        "direction": [
            {"sampler": "diffcrop", "reduction": 2, "photograph": name, "hits": [[1, 1], [1, 0], [0, 0]], "run": 0}
            for name in photographs.HELD_OUT
        ],
        "latency": [{"photograph": "camera", "reduction": 4, "threads": 2, "samples": [0.01, 0.02, 0.04], "run": 0}],
    }  # fmt: skip


SHARES = {4: (1.0, 0.8, 0.5, 0.0), 8: (1.0, 0.7, 0.5, 0.0), 16: (0.9, 0.9, 0.5, 0.0)}


def goal(**how):
    (found,) = [g for g in goals.GOALS if all(getattr(g, name) == value for name, value in how.items())]
    return found


def test_goals_hold_or_are_missed():
    read = results.Recorded(made_up(SHARES))
    ten = goals.check(read, goal(method="bilinear + Adam", at=0.1))
    assert ten.measured == {4: pytest.approx(100), 8: pytest.approx(100), 16: pytest.approx(90)}
    assert (ten.holds_at(4), ten.holds_at(16), ten.holds) == (True, False, False)
    assert ten.of == 10 * len(photographs.HELD_OUT)
    assert goals.check(read, goal(method="bilinear + Adam", at=0.25)).holds is False
    pointing = goals.check(read, goal(kind=goals.DIRECTION, at=0.1))
    assert pointing.measured == {2: pytest.approx(100), 4: None, 8: None, 16: None}
    assert pointing.holds is None  # a part was not measured
    assert goals.check(read, goal(kind=goals.DIRECTION, at=0.25)).holds is False
    waited = goals.check(read, goal(kind=goals.LATENCY))
    assert waited.measured[4] == pytest.approx(20)
    assert waited.holds_at(4) is True


def test_an_error_is_compared_in_units_of_the_reduction():
    found = goal(kind=goals.ERROR, target="diffcrop bicubic")
    read = results.Recorded(made_up({4: (1.0,), 8: (1.0,)}, "locate", found.target, error=0.06))
    assert goals.check(read, found).measured[4] == pytest.approx(0.015)
    assert goals.check(read, found).holds_at(4) is False
    assert goals.check(read, found).holds_at(8) is True


def test_part_of_a_set_is_not_the_set():
    record = made_up(SHARES)
    assert results.Recorded(record).problems("bilinear + Adam", "pillow lanczos", "clean", "held-out", 4)
    assert not results.Recorded(record).problems("bilinear + Adam", "pillow lanczos", "clean", "textures", 4)


def test_the_page_and_its_charts_come_from_the_record(tmp_path):
    page = tmp_path / "docs" / "recovery.md"
    page.parent.mkdir()
    others = [tmp_path / "README.md", tmp_path / "docs" / "box_gradients.md"]
    for one in (page, *others):
        one.write_text(f"before\n{report.BEGIN}\nfrom before\n{report.END}\nafter\n")
    written = report.write(made_up(SHARES), tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "from before" not in text
    assert re.search(r"^\| bilinear \+ Adam \| +\| +\| 100/80/50/0 -> 58 \| 100/70/50/0 -> 55 \|", text, re.MULTILINE)
    assert "| bilinear + Adam, 25 % off | at least 80 % |  |  | 80.0 | **70.0** | 90.0 | 80 | **missed** |" in text
    assert "locate: there is no diffcrop.locate" in text
    assert "0123456789ab" in text
    assert "with 80 problems at each displacement" in text
    assert [path.name for path in written] == [
        "recovery.md", "README.md", "box_gradients.md", "success.svg", "reduction.svg", "error.svg",
    ]  # fmt: skip
    for other in others:
        assert "| bilinear + Adam |" in other.read_text()
        assert "from before" not in other.read_text()
    for path in written[3:]:
        assert f"recovery/{path.name}" in text
        assert "<svg" in path.read_text()
    first = [path.read_text() for path in written]
    assert [path.read_text() for path in report.write(made_up(SHARES), tmp_path)] == first


def test_the_page_is_what_the_record_says():
    page = (ROOT / "docs" / "recovery.md").read_text()
    record = measure.read(command.RESULTS)
    if record is None:
        text = suite_report.NOTHING
    else:
        drawn = [path.stem for path in (ROOT / "docs" / "recovery").glob("*.svg")]
        text = report.section(results.Recorded(record), drawn)
    assert page == suite_report.replaced(page, text, report.BEGIN, report.END)
    summary = suite_report.NOTHING if record is None else report.summary(results.Recorded(record))
    for other in (ROOT / "README.md", ROOT / "docs" / "box_gradients.md"):
        page = other.read_text()
        assert page == suite_report.replaced(page, summary, report.BEGIN, report.END)


def test_charts_are_of_known_methods():
    from benchmarks.recovery import charts

    assert suite_charts.INK
    assert set(charts.FILTERS) <= set(METHODS)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_records_a_part_where_it_is_told(tmp_path):
    out = tmp_path / "part.json"
    words = ["run", "--small", "--method", "LM", "--photos", "tuning", "--workers", "1", "--out", str(out)]
    done = CliRunner().invoke(command.app, [*words, "--reduction", "16"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["rows"] == []  # the plan asks nothing of these photographs but rates
    done = CliRunner().invoke(
        command.app, [*words[:2], "--method", "LM", "--photos", "held-out", "--variant", "noise", "--reduction", "16",
                      "--workers", "1", "--out", str(out)])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {row["photograph"] for row in json.loads(out.read_text())["rows"]} == set(photographs.HELD_OUT)
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_command_goes_on_and_puts_a_part_into_the_whole(tmp_path, monkeypatch):
    wanted = small_plan(8, 16)
    few = dict.fromkeys(wanted, 1)
    monkeypatch.setattr(
        command, "cells", lambda wanted, boxes=None: {cell: boxes or n for cell, n in few.items() if wanted(cell)}
    )
    monkeypatch.setattr(command, "DIRECTIONS", 1)
    monkeypatch.setattr(command, "LATENCIES", 0)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "recovery.json")
    begun = recorded(dict(list(few.items())[:3]))
    stale = {**begun["rows"][0], "method": "recipe + Adam"}  # of a plan that was another
    begun["rows"].append(stale)
    (tmp_path / "recovery.json.unfinished").write_text(json.dumps(begun))

    def run(*words):
        done = CliRunner().invoke(command.app, ["run", "--workers", "1", *words])
        assert done.exit_code == 0, done.output
        record = json.loads(command.RESULTS.read_text())
        assert [measure.cell_of(row) for row in record["rows"]] == list(few)
        return done.output, [row["run"] for row in record["rows"]]

    output, runs = run()
    assert "going on" in output
    assert runs == [0, 0, 0, 1]
    assert run("--record", "--reduction", "16")[1] == [0, 0, 2, 2]
    (tmp_path / "recovery.json.unfinished").write_text(json.dumps(begun))
    assert run("--fresh")[1] == [0, 0, 0, 0]
    assert not list(tmp_path.glob("*.unfinished"))
    # Part of it that nobody asked to record is not.
    before = command.RESULTS.read_text()
    assert CliRunner().invoke(command.app, ["run", "--workers", "1", "--reduction", "8"]).exit_code == 0
    assert command.RESULTS.read_text() == before


@pytest.mark.parametrize("option", [("--method", "magic"), ("--photos", "mine"), ("--reduction", "3")])
def test_the_command_names_what_is_known(option):
    done = CliRunner().invoke(command.app, ["run", *option])
    assert done.exit_code == 2
    assert "there are" in done.output


def test_latency_is_of_one_template(monkeypatch):
    calls = []
    monkeypatch.setattr(diffcrop, "locate", lambda image, crop: calls.append((image.shape, crop.shape)), raising=False)
    rows = latency.measure(2)
    assert [len(row["samples"]) for row in rows] == [2] * len(rows)
    assert {row["reduction"] for row in rows} == set(problems.REDUCTIONS)
    assert all(len(image) == 3 and len(crop) == 3 for image, crop in calls)
    assert all(image[-2:] == (512, 512) for image, _ in calls)
