"""One runner for every suite: a gate before each contestant, then all of a case in turns, then the record of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import gate, machine, memory, problem, timing, traffic
from .cases import OURS, Case
from .peers import PEERS, Peer
from .problem import Outcome, Problem
from .results import FORMAT
from .revision import revision
from .suites import shrunk
from .worker import Remote, Worker

BASE = "base"
# Digits that a clock can stand for; the files are kept.
_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure. ``peers`` None: those that the targets of the table suite name, elsewhere all of each case."""

    suite: str
    cases: tuple[Case, ...]
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] | None = None
    passes: tuple[str, ...] | None = None
    rounds: int = timing.ROUNDS
    budget_s: float = timing.BUDGET_S
    small: bool = False
    base: str | None = None

    def names(self, case: Case) -> tuple[str, ...]:
        """Whom to measure beside us."""
        if self.peers is not None:
            return tuple(name for name in self.peers if name != OURS)
        if self.base is not None:
            return ()
        return case.rivals() if self.suite == "table" else case.peers


@dataclass
class Run:
    """A case in progress and its record."""

    plan: Plan
    record: dict[str, Any]
    site: Path | None = None
    workers: dict[tuple[str, int], Worker] = field(default_factory=dict)

    def worker(self, name: str, threads: int) -> Worker:
        key = (name, threads)
        if key not in self.workers:
            peer = OURS if name == BASE else name
            site = self.site if name == BASE else None
            self.workers[key] = Worker(peer, threads, alone=PEERS[peer].alone, site=site)
        return self.workers[key]

    def enter(self, name: str, made: Problem, pass_: str, threads: int) -> tuple[timing.Contestant, Outcome]:
        """Prepared, with the outcome of its first call; in a worker where it needs or shares one."""
        peer = PEERS[OURS if name == BASE else name]
        # With another revision beside us both pay for a worker alike.
        if not (peer.alone or (self.plan.base is not None and name in (OURS, BASE))):
            prepared = peer.prepare(made, pass_)
            return timing.Local(prepared.call, peer.pool), prepared.outcome(prepared.call())
        worker = self.worker(name, threads)
        job = worker.ask(do="prepare", case=made.case.name, **{"pass": pass_}, small=self.plan.small)["job"]
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            worker.ask(do="outcome", job=job, file=file.name)
            value, images, boxes = torch.load(file.name)
        return Remote(worker, job, f"process of {name}"), Outcome(value, images, boxes)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def run(plan: Plan, told: Callable[[dict[str, Any], str], None] = lambda _record, _case: None) -> dict[str, Any]:
    """Measures it all; ``told`` hears of the record after each case."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "suite": plan.suite,
        "small": plan.small,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": machine.versions(),
        "source": machine.commit(),
        "base": None,
        "method": {
            "rounds_at_least": plan.rounds,
            "budget_s": plan.budget_s,
            "sample_s": timing.SAMPLE_S,
            "warm_s": timing.WARM_S,
            "pause_s": timing.PAUSE_S,
        },
        "copy": {},
        "skipped": [],
        "cases": {},
        "rows": [],
        "memory": [],
    }
    with contextlib.ExitStack() as stack:
        stack.callback(_set_threads, torch.get_num_threads())
        site = None
        if plan.base is not None:
            commit, site = stack.enter_context(revision(plan.base))
            record["base"] = {"revision": plan.base, "commit": commit}
        if plan.suite != "memory":
            _time(plan, record, site, told)
        if plan.suite in ("memory", "growth"):
            peers = None if plan.peers is None else (OURS, *plan.peers)
            rows, skipped = memory.measure(plan.cases, peers=peers, passes=plan.passes, small=plan.small)
            record["memory"] = rows
            record["skipped"] += [skip for skip in skipped if skip not in record["skipped"]]
    return record


def _time(plan: Plan, record: dict[str, Any], site: Path | None, told: Callable[[dict[str, Any], str], None]) -> None:
    for threads in plan.threads:
        _copy(record, threads, plan.small)
    for case in plan.cases:
        measured = _measure(plan, case, site) if plan.small else _in_a_process(plan, case, site)
        record["cases"][case.name] = measured["case"]
        record["rows"] += measured["rows"]
        record["skipped"] += measured["skipped"]
        told(record, case.name)
    # Once more: what the machine did meanwhile shows in these.
    for threads in plan.threads:
        _copy(record, threads, plan.small)


def _in_a_process(plan: Plan, case: Case, site: Path | None) -> dict[str, Any]:
    """`_measure` in a process that has done nothing else.

    Where memory that earlier cases gave back serves again, it costs nothing to get: that made a gradient of 50 MB four
    times faster for whoever met it, and depended on the cases before.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(_measure, plan, case, site).result()


def _measure(plan: Plan, case: Case, site: Path | None) -> dict[str, Any]:
    """All contestants of a case: what is recorded of it."""
    record: dict[str, Any] = {"rows": [], "skipped": []}
    this = Run(plan, record, site)
    try:
        made = problem.make(shrunk(case) if plan.small else case)
        record["case"] = _described(made)
        entered = [*_contestants(this, case)]
        wanted = {name: gate.expected(made, peer.meaning(made)) for name, peer in entered}
        for threads in plan.threads:
            _set_threads(threads)
            record["rows"] += _block(this, made, entered, wanted, threads)
    finally:
        this.close()
    return record


def _contestants(this: Run, case: Case) -> Iterator[tuple[str, Peer]]:
    """Ourselves, the other revision, and whoever can; the others are recorded with the reason."""
    yield OURS, PEERS[OURS]
    if this.plan.base is not None:
        yield BASE, PEERS[OURS]
    for name in this.plan.names(case):
        peer = PEERS[name]
        reason = peer.missing() or peer.refuses(case)
        if reason is None:
            yield name, peer
        else:
            this.record["skipped"].append({"case": case.name, "peer": name, "reason": reason})


def _block(
    this: Run, made: Problem, entered: list[tuple[str, Peer]], wanted: dict[str, gate.Expected], threads: int
) -> list[dict[str, Any]]:
    """One case on so many threads: the rows, those of the red ones without samples."""
    plan = this.plan
    rows, green = [], []
    for name, peer in entered:
        for pass_ in plan.passes or made.case.passes:
            if pass_ not in peer.passes or pass_ not in made.case.passes:
                continue
            try:
                contestant, outcome = this.enter(name, made, pass_, threads)
                verdict = gate.compare(made, peer, pass_, outcome, wanted[name])
            except (RuntimeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
                verdict, contestant = gate.Verdict(False, {}, {}, f"{type(error).__name__}: {error}"), None
            row = {
                "case": made.case.name,
                "peer": name,
                "pass": pass_,
                "threads": threads,
                "gate": verdict.as_json() | {"said": str(verdict), "reason": peer.tolerance.reason},
                "calls": 0,
                "samples": [],
            }
            rows.append(row)
            if verdict.green and contestant is not None:
                green.append((row, contestant))
    contestants = [contestant for _, contestant in green]
    calls = [timing.calibrate(contestant) for contestant in contestants]
    samples = timing.interleave(contestants, calls, rounds=plan.rounds, budget_s=plan.budget_s)
    for (row, _), count, taken in zip(green, calls, samples, strict=True):
        row["calls"], row["samples"] = count, [float(f"{s:.{_DIGITS}g}") for s in taken]
    for worker in this.workers.values():
        worker.ask(do="forget")
    return rows


def _described(made: Problem) -> dict[str, Any]:
    case = made.case
    told = ("about", "images", "size", "boxes", "mode", "antialias", "padding_mode", "dtype", "channels_last")
    return {name: getattr(case, name) for name in told} | {"bytes": traffic.bytes_moved(made)}


def _copy(record: dict[str, Any], threads: int, small: bool) -> None:
    """Measured once more it joins what is there."""
    _set_threads(threads)
    measured = machine.copy_bandwidth(bytes_=2**20 if small else None)
    before = record["copy"].setdefault(str(threads), measured | {"bytes_per_s": []})
    before["bytes_per_s"] += measured["bytes_per_s"]


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    if importlib.util.find_spec("cv2") is not None:
        cv2: Any = importlib.import_module("cv2")
        cv2.setNumThreads(threads)
