"""What a record says: which problems were solved, how exactly, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffcrop.cli.recovery import RECOVERED_IOU, corner_error, iou

from .measure import cell_of
from .photographs import SETS
from .plan import Cell
from .problems import DISPLACEMENTS

# The bound is compared where a box recovered may still be off by three standard deviations: with corner numbers off by
# this share of the side the overlap is 95 % on average. Elsewhere successes are those that chance favoured.
_DETERMINED = 0.015
_Z = 1.959964  # of a normal distribution 95 % lie within so many standard deviations


@dataclass(frozen=True)
class Solved:
    """One problem as a method left it. ``at`` is the displacement, None where no start was used.

    ``error``: mean distance of the corners in pixels; ``rms``: of the four corner numbers; ``steps``: until it was
    recovered for good; ``bound``: the least standard error possible, like ``rms``; ``side``: of the true box.
    """

    at: float | None
    recovered: bool
    error: float
    rms: float
    side: float
    steps: int | None
    bound: float | None


@dataclass(frozen=True)
class Share:
    hits: int
    of: int

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.of

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the probability behind it, in percent."""
        p, n = self.hits / self.of, self.of
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return 100 * (middle - half), 100 * (middle + half)


class Recorded:
    """A record, by cells."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.rows: dict[Cell, dict[str, Any]] = {cell_of(row): row for row in record["rows"]}
        self._solved: dict[Cell, list[Solved]] = {}

    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.rows))

    def red(self) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if not row["gate"]["green"]]

    def _found(self, method: str, target: str, variant: str, photographs: str, reduction: int) -> list[Cell]:
        """None where a part of the set was not measured: the rest of it is another set."""
        cells = [Cell(method, target, variant, reduction, name) for name in SETS[photographs]]
        if not all(cell in self.rows for cell in cells):
            return []
        return [cell for cell in cells if self.rows[cell]["offsets"]]

    def problems(
        self, method: str, target: str, variant: str, photographs: str, reduction: int, at: float | None = None
    ) -> list[Solved]:
        """Of a set of photographs; at one displacement, or at all. Without a start they are the same at any."""
        found = []
        for cell in self._found(method, target, variant, photographs, reduction):
            if cell not in self._solved:
                self._solved[cell] = self._solve(self.rows[cell])
            found += [one for one in self._solved[cell] if at is None or one.at in (None, at)]
        return found

    def _solve(self, row: dict[str, Any]) -> list[Solved]:
        count = row["boxes"]
        truth = torch.tensor(self.record["truth"][row["photograph"]][:count], dtype=torch.float64)
        sides = (truth[:, 2:] - truth[:, :2]).mean(-1).tolist()
        bounds = row["bound"] or [None] * count
        found = []
        for level, boxes in enumerate(row["offsets"]):
            lost = [[math.nan if x is None else x for x in box] for box in boxes]
            box = truth + torch.tensor(lost, dtype=torch.float64)
            recovered = (iou(box, truth) > RECOVERED_IOU).tolist()
            errors, squares = corner_error(box, truth).tolist(), (box - truth).square().mean(-1).sqrt().tolist()
            steps = row["steps"][level] if row["steps"] else [None] * count
            at = DISPLACEMENTS[level] if len(row["offsets"]) > 1 else None
            columns = zip(recovered, errors, squares, sides, steps, bounds, strict=True)
            found += [Solved(at, *column) for column in columns]
        return found

    def milliseconds(self, method: str, target: str, variant: str, photographs: str, reduction: int) -> float | None:
        """For each problem, when those of a photograph are one batch."""
        rows = [self.rows[cell] for cell in self._found(method, target, variant, photographs, reduction)]
        count = sum(row["boxes"] * len(row["offsets"]) for row in rows)
        return 1e3 * sum(row["seconds"] for row in rows) / count if count else None

    def direction(self, sampler: str, reduction: int, level: int, photographs: str) -> Share | None:
        hits = [
            hit
            for row in self.record["direction"]
            if (row["sampler"], row["reduction"]) == (sampler, reduction) and row["photograph"] in SETS[photographs]
            for hit in row["hits"][level]
        ]
        return Share(sum(hits), len(hits)) if hits else None

    def latency(self, reduction: int) -> list[float]:
        """Samples in seconds, of all photographs."""
        rows = [row for row in self.record["latency"] if row["reduction"] == reduction]
        return [sample for row in rows for sample in row["samples"]]


def share(problems: Sequence[Solved]) -> Share | None:
    return Share(sum(one.recovered for one in problems), len(problems)) if problems else None


def median_error(problems: Sequence[Solved]) -> float | None:
    """Of the recovered, in pixels."""
    errors = [one.error for one in problems if one.recovered]
    return statistics.median(errors) if errors else None


def median_steps(problems: Sequence[Solved]) -> float | None:
    steps = [one.steps for one in problems if one.recovered and one.steps is not None]
    return statistics.median(steps) if steps else None


@dataclass(frozen=True)
class Efficiency:
    """Root mean square error of the recovered, each in units of its own bound, over ``of`` problems."""

    ratio: float
    of: int


def efficiency(problems: Sequence[Solved]) -> Efficiency | None:
    """Of problems whose bound leaves room for three standard deviations within what counts as recovered."""
    ratios = [
        one.rms / one.bound
        for one in problems
        if one.recovered and one.bound is not None and one.bound < _DETERMINED * one.side
    ]
    return Efficiency(math.sqrt(statistics.fmean(r * r for r in ratios)), len(ratios)) if ratios else None
