"""The benchmark suite at work: how contestants take turns, and what a run records. Nothing on speed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import machine, memory, report, results, revision, runner, timing
from benchmarks.__main__ import app
from benchmarks.cases import OURS, PASSES
from benchmarks.peers import PEERS
from benchmarks.peers.sampling import RECIPE
from benchmarks.suites import CASES, shrunk
from benchmarks.worker import Worker, WorkerError

ROOT = Path(__file__).resolve().parents[1]


# --- taking turns -----------------------------------------------------------------------------------------------------


class Fake:
    """Takes a made-up time per call, and writes down when it was asked."""

    def __init__(self, log, name, seconds=1e-4, pool="openmp"):
        self.log, self.name, self.seconds, self.pool = log, name, seconds, pool

    def sample(self, calls):
        self.log.append((self.name, calls))
        return self.seconds


def test_each_round_has_one_sample_of_each_in_another_order(monkeypatch):
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    log = []
    fakes = [Fake(log, name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0))]
    samples = timing.interleave(fakes, [1, 2, 3, 4], rounds=20, budget_s=0, seed=1)
    assert samples == [[float(i)] * 20 for i in (1, 2, 3, 4)]
    rounds = [tuple(log[i : i + 4]) for i in range(0, len(log), 4)]
    assert len(rounds) == 20
    assert all(sorted(one) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)] for one in rounds)
    assert len(set(rounds)) > 10
    again = list(log)
    log.clear()
    timing.interleave(fakes, [1, 2, 3, 4], rounds=20, budget_s=0, seed=1)
    assert log == again
    log.clear()
    timing.interleave(fakes, [1, 2, 3, 4], rounds=20, budget_s=0, seed=2)
    assert log != again


def test_rounds_go_on_until_the_budget_is_spent(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(now)))
    (samples,) = timing.interleave([Fake([], "a")], [1], rounds=3, budget_s=10)
    assert len(samples) == 3 + 9  # the clock is looked at once a round, after the minimum


def test_threads_go_to_sleep_where_the_pool_changes(monkeypatch):
    log = []
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: log.append(("sleep", seconds)))
    fakes = [Fake(log, "a"), Fake(log, "b"), Fake(log, "c", pool="opencv")]
    timing.interleave(fakes, [1, 1, 1], rounds=10, budget_s=0, pause_s=0.25)
    before, slept = None, False
    for name, what in log:
        if name == "sleep":
            slept = what == 0.25
            continue
        pool = "opencv" if name == "c" else "openmp"
        assert slept == (before not in (None, pool))
        before, slept = pool, False


@pytest.mark.parametrize("seconds", [1e-7, 1e-5, 9e-4, 1.9e-3, 1.0])
def test_a_sample_takes_long_enough(seconds):
    log = []
    calls = timing.calibrate(Fake(log, "a", seconds), sample_s=2e-3)
    assert calls * seconds >= 2e-3
    assert (calls - 1) * seconds < 3e-3
    assert log[0] == ("a", 1)  # a call to warm up


def test_a_sample_is_warm(monkeypatch):
    monkeypatch.setattr(timing, "WARM_S", 1e-3)
    now, calls = [0.0], []

    def call():
        calls.append(now[0])
        now[0] += 1e-3 if len(calls) <= 2 else 1e-4  # slow at first

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert timing.Local(call, "").sample(5) == pytest.approx(1e-3 / 5 + 1e-4 * 4 / 5)
    calls.clear()
    monkeypatch.setattr(timing, "WARM_S", 2e-3)
    assert timing.Local(call, "").sample(5) == pytest.approx(1e-4)
    assert len(calls) == 7


def test_quartiles():
    assert timing.spread([5.0, 1, 2, 3, 4]) == timing.Spread(3, 2, 4)
    assert timing.spread([7.0]) == timing.Spread(7, 7, 7)


def test_ratios_are_of_medians_and_round_by_round():
    # Ours takes 1, 2, 3 while the machine slows down, the peer twice as long: a ratio of 2 in every round.
    assert timing.ratio([2.0, 4, 6], [1.0, 2, 3]) == timing.Ratio(2.0, timing.Spread(2, 2, 2))
    # One bad round of ours moves neither median.
    found = timing.ratio([6.0, 6, 6, 6, 6], [2.0, 2, 60, 2, 2])
    assert (found.of_medians, found.by_round.median) == (3.0, 3.0)
    # They differ where the two do not slow down in the same rounds.
    found = timing.ratio([1.0, 9, 9], [1.0, 1, 9])
    assert (found.of_medians, found.by_round.median) == (9.0, 1.0)
    with pytest.raises(ValueError, match="same rounds"):
        timing.ratio([1.0], [1.0, 2.0])


# --- runs -------------------------------------------------------------------------------------------------------------


def shifted(made, pass_):
    """The recipe half a pixel off, as a wrong convention would make it."""
    return RECIPE.prepare(dataclasses.replace(made, boxes=made.boxes + 0.5), pass_)


def plan(*names, **changes):
    fixed = {"suite": "table", "threads": (1,), "rounds": 2, "budget_s": 0.0, "small": True}
    return runner.Plan(cases=tuple(CASES[name] for name in names), **(fixed | changes))


def test_no_number_of_a_wrong_peer(monkeypatch):
    monkeypatch.setitem(PEERS, "recipe", dataclasses.replace(RECIPE, prepare=shifted))
    record = runner.run(plan("A"))
    for row in record["rows"]:
        assert row["gate"]["green"] == (row["peer"] == OURS) == bool(row["samples"])
        assert row["peer"] == OURS or row["gate"]["errors"]["value"] > 0.1
    read = results.Results([record])
    assert read.timed("A", OURS, "forward", 1) is not None
    assert read.timed("A", "recipe", "forward", 1) is None
    assert [one.measured for one in results.checked(read)] == [None] * len(results.checked(read))
    assert "| A | recipe | forward | 1 | value" in report.document(read, [])


def test_no_number_of_a_peer_that_fails(monkeypatch):
    def fails(_problem, _pass):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(PEERS, "recipe", dataclasses.replace(RECIPE, prepare=fails))
    record = runner.run(plan("E", passes=("forward",)))
    assert {(row["peer"], row["gate"]["said"], bool(row["samples"])) for row in record["rows"]} >= {
        ("recipe", "RuntimeError: out of luck", False)
    }


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setitem(PEERS, "kornia", dataclasses.replace(PEERS["kornia"], needs=("no_such_thing",)))
    record = runner.run(plan("C", suite="full", peers=("kornia", "opencv linear"), passes=("forward",)))
    assert record["skipped"] == [
        {"case": "C", "peer": "kornia", "reason": "no_such_thing not installed"},
        {"case": "C", "peer": "opencv linear", "reason": "for pictures of up to 4 channels"},
    ]
    assert {row["peer"] for row in record["rows"]} == {OURS}


def run_cli(*words):
    return CliRunner().invoke(app, ["run", "--small", "--threads", "1", "--rounds", "2", "--budget", "0", *words])


def test_the_command_records_everything(tmp_path):
    out = tmp_path / "run.json"
    done = run_cli("--case", "E", "--case", "H-D-area", "--out", str(out))
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    rows = {(row["case"], row["peer"], row["pass"]) for row in record["rows"]}
    assert rows == {
        *(("E", peer, pass_) for peer in (OURS, "recipe") for pass_ in PASSES),
        *(("H-D-area", OURS, pass_) for pass_ in PASSES),
        ("H-D-area", "opencv area", "forward"),
    }
    assert all(len(row["samples"]) == 2 and row["calls"] >= 1 and row["gate"]["green"] for row in record["rows"])
    assert set(record["cases"]["E"]["bytes"]) == set(PASSES)
    assert len(record["copy"]["1"]["bytes_per_s"]) > 2
    assert record["versions"]["torch"] == torch.__version__
    assert record["small"]
    assert not list(tmp_path.glob("*.unfinished"))
    assert "ms [quartiles]" in done.output
    assert results.load(tmp_path).runs == []  # small copies are no measurement


def test_the_command_fails_when_we_are_wrong(monkeypatch, tmp_path):
    ours = PEERS[OURS]
    wrong = dataclasses.replace(ours, prepare=lambda made, pass_: ours.prepare(
        dataclasses.replace(made, boxes=made.boxes + 0.5), pass_))  # fmt: skip
    monkeypatch.setitem(PEERS, OURS, wrong)
    done = run_cli("--case", "E", "--pass", "forward", "--out", str(tmp_path / "run.json"))
    assert done.exit_code == 1
    assert "wrong, and not measured: E, diffcrop, forward" in done.output


def test_the_command_knows_its_words():
    for words in (("--case", "Z"), ("--peer", "nobody"), ("--pass", "backward"), ("--suite", "all")):
        done = run_cli(*words)
        assert done.exit_code == 2
        assert words[1] in done.output


def test_part_of_a_suite_does_not_overwrite_the_whole(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.__main__.FOLDER", tmp_path)
    assert run_cli("--case", "E", "--pass", "forward").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_facts_name_no_host_and_no_folder():
    text = json.dumps([machine.facts(), machine.versions(), machine.commit()])
    assert not platform.node() or f'"{platform.node()}"' not in text
    for folder in (ROOT, Path.home(), Path(sys.executable).parent):
        assert f"{folder}/" not in text
    assert machine._count("0-3,8,10-11") == 7


def test_a_worker_answers_like_this_process():
    worker = Worker("recipe", 1)
    try:
        job = worker.ask(do="prepare", case="E", **{"pass": "forward"}, small=True)["job"]
        assert worker.ask(do="sample", job=job, calls=3)["seconds"] > 0
        with pytest.raises(WorkerError, match="KeyError: 'no such case'"):
            worker.ask(do="prepare", case="no such case", **{"pass": "forward"}, small=True)
        worker.ask(do="forget")
        with pytest.raises(WorkerError, match="IndexError"):
            worker.ask(do="sample", job=job, calls=1)
    finally:
        worker.close()


def test_a_worker_that_ends_says_why(tmp_path):
    worker = Worker(OURS, 1, site=tmp_path)  # where no diffcrop lies
    try:
        with pytest.raises(WorkerError, match="diffcrop"):
            worker.ask(do="forget")
    finally:
        worker.close()


@pytest.mark.slow
def test_another_revision_beside_this_one():
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    record = runner.run(plan("E", base="HEAD", passes=("forward", "both")))
    rows = {(row["peer"], row["pass"]): row for row in record["rows"]}
    assert set(rows) == {(name, pass_) for name in (OURS, "base") for pass_ in ("forward", "both")}
    assert all(row["gate"]["green"] and len(row["samples"]) == 2 for row in rows.values())
    assert record["base"] == {"revision": "HEAD", "commit": head.strip()}


@pytest.mark.parametrize("ends", ["well", "in its build", "where it is used"])
def test_another_revision_leaves_nothing_behind(ends, monkeypatch, tmp_path):
    """Neither a folder nor a worktree. Of the worktrees only its own is looked at: others come and go as they like."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = subprocess.run

    def without_building(command, **options):
        if "pip" in command:
            return run(["false" if ends == "in its build" else "true"], **options)
        return run(command, **options)

    def worktrees():
        return run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(subprocess, "run", without_building)
    expected = {"in its build": subprocess.CalledProcessError, "where it is used": ZeroDivisionError}
    fails = pytest.raises(expected[ends]) if ends in expected else contextlib.nullcontext()
    with fails, revision.revision("HEAD") as (_, site):
        assert site.parent.parent == tmp_path
        assert (site.parent / "tree" / "pyproject.toml").is_file()
        assert site.parent.name in worktrees()
        if ends == "where it is used":
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.name not in worktrees()


@pytest.mark.slow
def test_a_case_has_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(runner.problem, "make", None)  # of this process alone
    record = runner.run(plan("E", "A", small=False, passes=("forward",), peers=()))
    assert [row["case"] for row in record["rows"]] == ["E", "A"]
    assert all(row["gate"]["green"] and row["samples"] for row in record["rows"])


@pytest.mark.slow
def test_a_library_in_a_process_of_its_own():
    if PEERS["jax"].missing():
        pytest.skip("jax is not installed")
    record = runner.run(plan("E", peers=("jax",)))
    assert all(row["gate"]["green"] and row["samples"] for row in record["rows"])
    assert {row["peer"] for row in record["rows"]} == {OURS, "jax"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux' /proc")
def test_a_peak_holds_what_is_returned_and_the_copies_of_the_recipe():
    case = dataclasses.replace(shrunk(CASES["F"]), name="F", boxes=8)
    (ours, theirs), skipped = memory.measure([case], peers=("recipe",), passes=("both",), threads=1, small=True)
    assert not skipped
    assert (ours["peer"], theirs["peer"]) == (OURS, "recipe")
    assert ours["returned"] == theirs["returned"] > 2**20
    assert ours["peak"] >= 0.9 * ours["returned"]
    assert theirs["peak"] > 4 * ours["peak"]  # an image gradient per box
