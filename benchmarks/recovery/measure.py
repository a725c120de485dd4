"""Measures cells, each in one thread, as many at once as there are workers, and keeps what was measured as it goes."""

from __future__ import annotations

import datetime
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.results import as_text
from diffcrop.cli.recovery import RECOVERED_IOU, descend, iou, recipe

from . import direction, gate, latency
from .photographs import missing, photograph
from .plan import KNOWN, Cell
from .problems import DISPLACEMENTS, MODE_OF, VARIANTS, make, output_size, standard_errors, targets

FORMAT = "recovery 1"
# What was measured is written down so often; what is lost when a run is stopped is no more than this.
_SAVED_EVERY_S = 5.0


def measure(cell: Cell, count: int, seed: int) -> dict[str, Any]:
    """One row. Without samples where the gate is red."""
    method, variant, size = KNOWN[cell.method], VARIANTS[cell.variant], output_size(cell.reduction)
    problems = make(photograph(cell.photograph), count, seed)
    verdict = gate.check(method, problems, cell.target, size)
    row: dict[str, Any] = {
        **vars(cell),
        "boxes": count,
        "gate": {"green": verdict.green, "said": verdict.said},
        "seconds": None,
        "offsets": [],
        "steps": [],
        "bound": None,
    }
    if not verdict.green:
        return row
    crops = targets(problems, cell.target, variant, size)
    starts = problems.start if method.starts else problems.start[:1]
    repeats = len(starts)
    # What the first call costs (loading, the kernels' memory) is nobody's method; the gate's had two boxes only.
    method.sampler(problems.photograph.pixels, starts.flatten(0, 1), size)
    try:
        answer = method.run(problems.photograph.pixels, starts.flatten(0, 1), crops.repeat(repeats, 1, 1, 1))
    except Exception as error:  # one method that fails must not cost the others their minutes
        row["gate"] = {"green": False, "said": f"{type(error).__name__}: {error}"}
        return row
    offsets = (answer.boxes - problems.truth.repeat(repeats, 1)).unflatten(0, (repeats, count))
    row["seconds"] = round(answer.seconds, 6)
    row["offsets"] = [[[_short(x) for x in box] for box in boxes] for boxes in offsets.tolist()]
    if answer.path is not None:
        steps = _steps_needed(answer.path, problems.truth.repeat(repeats, 1))
        row["steps"] = [steps[i * count : (i + 1) * count] for i in range(repeats)]
    if variant.sigma > 0 and variant.gain == 1:
        errors = standard_errors(problems.photograph, problems.truth, MODE_OF[cell.target], size)
        row["bound"] = [_short(variant.sigma * error) for error in errors.tolist()]
    return row


def _short(value: float) -> float | None:
    """Four digits; None where a box was lost to NaN, which JSON does not know."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _steps_needed(path: Tensor, truth: Tensor) -> list[int | None]:
    """After how many steps a box is recovered for good; None where it is not."""
    found = iou(path, truth) > RECOVERED_IOU
    # From the last step back, how many in a row.
    lasting = found.flip(0).to(torch.uint8).cumprod(0).sum(0)
    return [len(path) - n if n else None for n in lasting.tolist()]


Done = Callable[[dict[str, Any]], None]


def record(
    wanted: Mapping[Cell, int],
    *,
    seed: int,
    directions: Mapping[str, int],
    latencies: int,
    workers: int,
    out: Path | None,
    before: Mapping[str, Any] | None = None,
    order: Iterable[Cell] | None = None,
    told: Done = lambda _: None,
) -> dict[str, Any]:
    """Measure ``wanted`` cells, the direction gate on so many boxes of photographs, and so many calls of each latency.

    ``before`` is a record whose rows are kept: those that are wanted again with more boxes excepted; ``order`` is that
    of all rows, where it is not that of the wanted. ``told`` is given each new row. What is there so far is in ``out``.
    """
    made: dict[str, Any] = {
        "format": FORMAT,
        "seed": seed,
        "displacements": DISPLACEMENTS,
        "runs": list(before["runs"]) if before else [],
        "skipped": [],
        "truth": {},
        "rows": [row for row in before["rows"] if row["boxes"] >= wanted.get(cell_of(row), 0)] if before else [],
        "direction": list(before["direction"]) if before else [],
        "latency": list(before["latency"]) if before else [],
    }
    run = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": machine.versions(),
        "source": machine.commit(),
        "workers": workers,
        "seconds": 0.0,
    }
    number, began, saved = len(made["runs"]), time.perf_counter(), time.perf_counter()
    made["runs"].append(run)
    there = {cell_of(row) for row in made["rows"]}
    reasons = {f"{cell.method}: {why}" for cell in wanted if (why := KNOWN[cell.method].missing())}
    reasons |= {why for cell in wanted if (why := missing(cell.photograph))}
    made["skipped"] = sorted(reasons)
    able = {
        cell: count
        for cell, count in wanted.items()
        if cell not in there and not KNOWN[cell.method].missing() and not missing(cell.photograph)
    }
    pointed = {row["photograph"] for row in made["direction"]}
    aimed = {name: n for name, n in directions.items() if name not in pointed and not missing(name)}

    def save() -> None:
        run["seconds"] = round(time.perf_counter() - began, 1)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(as_text(made))

    jobs: list[Job] = [(_cell, (cell, count, seed)) for cell, count in able.items()]
    jobs += [(_direction, (name, count, seed)) for name, count in aimed.items()]
    for kind, rows in _results(jobs, workers):
        made[kind] += [row | {"run": number} for row in rows]
        for row in rows if kind == "rows" else ():
            told(row)
        if time.perf_counter() - saved > _SAVED_EVERY_S:
            save()
            saved = time.perf_counter()
    # Alone: it is the time that one caller waits, with all threads.
    if latencies and not made["latency"]:
        made["latency"] = [row | {"run": number} for row in latency.measure(latencies)]
    # In the order of the plan, not in that in which workers were done.
    places = {cell: place for place, cell in enumerate(order or wanted)}
    made["rows"].sort(key=lambda row: places.get(cell_of(row), len(places)))
    most: dict[str, int] = {}
    for row in made["rows"]:
        most[row["photograph"]] = max(row["boxes"], most.get(row["photograph"], 0))
    made["truth"] = {
        name: [[round(x, 2) for x in box] for box in make(photograph(name), count, seed).truth.tolist()]
        for name, count in most.items()
        if not missing(name)
    }
    save()
    return made


def cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(*(row[name] for name in ("method", "target", "variant", "reduction", "photograph")))


def read(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none of this format."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found if found.get("format") == FORMAT else None


def _cell(cell: Cell, count: int, seed: int) -> tuple[str, list[dict[str, Any]]]:
    return "rows", [measure(cell, count, seed)]


def _direction(name: str, count: int, seed: int) -> tuple[str, list[dict[str, Any]]]:
    return "direction", direction.measure(photograph(name), count, seed)


def _begin() -> None:
    """One thread; and the first step of an optimizer, which imports for seconds, before any that is timed."""
    torch.set_num_threads(1)
    image, box = torch.zeros(1, 8, 8), torch.tensor([[1.0, 1.0, 7.0, 7.0]])
    descend(recipe, image, box, torch.ones(1, 1, 4, 4), 1)


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def _results(jobs: Sequence[Job], workers: int) -> Iterator[Any]:
    """As they come, from processes of one thread each; or, with one worker, from this process, on one thread."""
    if workers > 1:
        # A forked child of a process that ran threads may wait for them forever.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
            try:
                for job in as_completed([pool.submit(function, *arguments) for function, arguments in jobs]):
                    yield job.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return
    threads = torch.get_num_threads()
    _begin()
    try:
        for function, arguments in jobs:
            yield function(*arguments)
    finally:
        torch.set_num_threads(threads)


def default_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
