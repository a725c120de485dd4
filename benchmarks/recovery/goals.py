"""What must hold, as data, beside what was measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from . import direction
from .plan import COARSE, LANCZOS, PILLOW, TRIED
from .problems import REDUCTIONS
from .results import Recorded, efficiency, median_error, share

# What is compared, whether more of it is better, and how it is said.
SUCCESS, ERROR, BOUND, DIRECTION, LATENCY = "recovered", "error", "bound", "direction", "latency"
_MORE_IS_BETTER = {SUCCESS: True, ERROR: False, BOUND: False, DIRECTION: True, LATENCY: False}


@dataclass(frozen=True)
class Goal:
    """``at`` is a displacement, None for all problems. It must hold at each of ``reductions``."""

    about: str
    kind: str
    limit: float
    method: str = ""
    target: str = LANCZOS
    variant: str = "clean"
    photographs: str = "held-out"
    reductions: tuple[int, ...] = REDUCTIONS
    at: float | None = None

    def limit_in_words(self) -> str:
        return {
            SUCCESS: f"at least {self.limit:g} %",
            DIRECTION: f"at least {self.limit:g} %",
            ERROR: f"at most {self.limit:g} px x reduction",
            BOUND: f"at most {self.limit:g} x the bound",
            LATENCY: f"at most {self.limit:g} ms",
        }[self.kind]


GOALS = (
    *(
        Goal(f"locate, target by {target}", SUCCESS, 99.5, "locate", target)
        for target in PILLOW
    ),
    *(
        Goal(f"locate on textures, target by {target}", SUCCESS, 97, "locate", target, photographs="textures")
        for target in PILLOW
    ),
    *(
        Goal(f"locate, target by diffcrop {mode}: median error", ERROR, 0.01, "locate", f"diffcrop {mode}")
        for mode in TRIED
    ),
    *(
        Goal(f"{name} under noise: rms error", BOUND, 1.1, name, "diffcrop bilinear", "noise", reductions=COARSE)
        for name in ("locate", "locate bilinear")
    ),
    Goal("locate zncc, gain changed", SUCCESS, 97, "locate zncc", "diffcrop bilinear", "gain", reductions=COARSE),
    Goal("locate, one template, median time", LATENCY, 30),
    Goal("bilinear + Adam, 10 % off", SUCCESS, 95, "bilinear + Adam", reductions=COARSE, at=0.1),
    Goal("bilinear + Adam, 25 % off", SUCCESS, 80, "bilinear + Adam", reductions=COARSE, at=0.25),
    Goal("gradient points to the truth, 10 % off", DIRECTION, 95, "diffcrop", reductions=REDUCTIONS[1:], at=0.1),
    Goal("gradient points to the truth, 25 % off", DIRECTION, 90, "diffcrop", reductions=REDUCTIONS[1:], at=0.25),
    Goal("fit_boxes with its shipped schedule, all starts", SUCCESS, 85, "fit_boxes"),
)  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """``measured`` by reduction, in the units of the limit, and of how many problems; None where nothing was."""

    goal: Goal
    measured: dict[int, float | None]
    of: int

    def holds_at(self, reduction: int) -> bool | None:
        value = self.measured[reduction]
        if value is None:
            return None
        return value >= self.goal.limit if _MORE_IS_BETTER[self.goal.kind] else value <= self.goal.limit

    @property
    def holds(self) -> bool | None:
        """None where a part of it was not measured and what was holds."""
        verdicts = [self.holds_at(reduction) for reduction in self.goal.reductions]
        return False if False in verdicts else None if None in verdicts else True


def check(recorded: Recorded, goal: Goal) -> Checked:
    found = {reduction: _measured(recorded, goal, reduction) for reduction in goal.reductions}
    values = {reduction: one[0] if one else None for reduction, one in found.items()}
    return Checked(goal, values, min((one[1] for one in found.values() if one), default=0))


def _measured(recorded: Recorded, goal: Goal, reduction: int) -> tuple[float, int] | None:
    """The value, and of how many."""
    if goal.kind == LATENCY:
        samples = recorded.latency(reduction)
        return (1e3 * statistics.median(samples), len(samples)) if samples else None
    if goal.kind == DIRECTION and goal.at is not None:
        level = direction.DISPLACEMENTS.index(goal.at)
        found = recorded.direction(goal.method, reduction, level, goal.photographs)
        return (found.percent, found.of) if found else None
    problems = recorded.problems(goal.method, goal.target, goal.variant, goal.photographs, reduction, goal.at)
    if goal.kind == SUCCESS:
        found = share(problems)
        return (found.percent, found.of) if found else None
    if goal.kind == ERROR:
        error = median_error(problems)
        return (error / reduction, sum(one.recovered for one in problems)) if error is not None else None
    ratio = efficiency(problems)
    return (ratio.ratio, ratio.of) if ratio else None
