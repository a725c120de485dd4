"""What runs recorded, read back: samples by case, peer, pass and threads, and which targets hold."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import COPY, OURS, TABLE, Case, Target
from .suites import CASES
from .timing import Ratio, Spread, ratio, spread
from .warps import WARPS

FORMAT = 1
FOLDER = Path(__file__).parent / "results"
# Ours in another form, which is no rival.
OURSELVES = (OURS, "plain", "base")

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Row:
    """One contestant in one block of rounds; without samples where its gate was red."""

    case: str
    peer: str
    pass_: str
    threads: int
    green: bool
    said: str
    samples: list[float]
    bytes: int
    copy: float | None

    @property
    def key(self) -> Key:
        return self.case, self.peer, self.pass_, self.threads

    @property
    def time(self) -> Spread:
        """Seconds per call."""
        return spread(self.samples)

    @property
    def rate(self) -> float:
        """Bytes per second, of those that must move."""
        return self.bytes / self.time.median

    @property
    def share(self) -> float | None:
        """Of the copy bandwidth."""
        return self.rate / self.copy if self.copy else None


class Results:
    """The rows of some runs; of a case that several measured with as many threads, those of the latest."""

    def __init__(self, runs: Iterable[dict[str, Any]]) -> None:
        self.runs = sorted(runs, key=lambda run: run["started"])
        self.rows: dict[Key, Row] = {}
        self.memory: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.skipped: dict[tuple[str, str], str] = {}
        for run in self.runs:
            again = {(row["case"], row["threads"]) for row in run["rows"]}
            self.rows = {key: row for key, row in self.rows.items() if (row.case, row.threads) not in again}
            cases = {case for case, _ in again}
            self.skipped = {key: why for key, why in self.skipped.items() if key[0] not in cases}
            for row in run["rows"]:
                read = _row(row, run)
                self.rows[read.key] = read
            self.skipped |= {(skip["case"], skip["peer"]): skip["reason"] for skip in run["skipped"]}
            self.memory |= {(m["case"], m["peer"], m["pass"]): m for m in run["memory"]}

    def timed(self, case: str, peer: str, pass_: str, threads: int) -> Row | None:
        """None also where it was red."""
        row = self.rows.get((case, peer, pass_, threads))
        return row if row is not None and row.samples else None

    def of(self, case: str) -> list[Row]:
        return [row for row in self.rows.values() if row.case == case]

    def cases(self) -> list[Case]:
        """Those measured, in the order of the data."""
        measured = {row.case for row in self.rows.values()}
        return [case for name, case in CASES.items() if name in measured]

    def threads(self) -> list[int]:
        return sorted({row.threads for row in self.rows.values()})

    def red(self) -> list[Row]:
        return [row for row in self.rows.values() if not row.green]


def _row(row: dict[str, Any], run: dict[str, Any]) -> Row:
    copy = run["copy"].get(str(row["threads"]))
    return Row(
        case=row["case"],
        peer=row["peer"],
        pass_=row["pass"],
        threads=row["threads"],
        green=row["gate"]["green"],
        said=row["gate"]["said"],
        samples=row["samples"],
        bytes=run["cases"][row["case"]]["bytes"][row["pass"]],
        copy=spread(copy["bytes_per_s"]).median if copy else None,
    )


def load(folder: Path = FOLDER) -> Results:
    """Every file of runs in a folder. What tried the machinery on small copies is not a measurement."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return Results(run for run in runs if run.get("format") == FORMAT and not run["small"])


@dataclass(frozen=True)
class Checked:
    """A target beside what was measured: a ratio of times, or a share of the copy bandwidth. None where nothing was."""

    case: Case
    target: Target
    least: float
    measured: float | None
    by_round: Spread | None

    @property
    def holds(self) -> bool | None:
        return None if self.measured is None else self.measured >= self.least


def check(results: Results, case: Case, target: Target) -> Checked:
    ours = results.timed(case.name, OURS, target.pass_, target.threads)
    if target.against == COPY:
        return Checked(case, target, target.least, ours.share if ours else None, None)
    peer = results.timed(case.name, target.against, target.against_pass or target.pass_, target.threads)
    if ours is None or peer is None:
        return Checked(case, target, target.least, None, None)
    least = target.least
    if target.below is not None and peer.time.median * 1e3 < target.below[0]:
        least = target.below[1]
    found = ratio(peer.samples, ours.samples)
    return Checked(case, target, least, found.of_medians, found.by_round)


def checked(results: Results) -> list[Checked]:
    """Every target of the table, and of the warps."""
    return [check(results, case, target) for case in (*TABLE, *WARPS) for target in case.targets]


def fastest(results: Results, ours: Row) -> tuple[Row, Ratio] | None:
    """The fastest peer at the same pass and threads, and how many times as long as ours it takes."""
    rivals = [
        row
        for row in results.of(ours.case)
        if row.samples and (row.pass_, row.threads) == (ours.pass_, ours.threads) and row.peer not in OURSELVES
    ]
    if not rivals:
        return None
    best = min(rivals, key=lambda row: row.time.median)
    return best, ratio(best.samples, ours.samples)


def as_text(record: dict[str, Any]) -> str:
    """A line for each row: a change shows where it is."""
    lines = []
    for name, value in record.items():
        if isinstance(value, list):
            inner = ",\n  ".join(json.dumps(item) for item in value)
            text = f"[\n  {inner}\n ]" if value else "[]"
        elif isinstance(value, dict):
            inner = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
            text = f"{{\n  {inner}\n }}" if value else "{}"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
