"""Charts of what was recovered: by displacement, by reduction, and how exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.charts import INK, STYLE, save

from .plan import LANCZOS
from .problems import DISPLACEMENTS, REDUCTIONS
from .results import Recorded, median_error, share

# Those drawn, in the order of the legend; of medium lightness, for white and for black.
COLORS = {
    "locate": "#8a63c9",
    "fit_boxes": "#c25a8a",
    "blur schedule + Adam": "#5a9e4b",
    "bilinear + Adam": "#2f8fd0",
    "LM": "#b0982e",
    "kornia + Adam": "#c9736b",
    "recipe + Adam": "#d9792b",
}
FILTERS = {
    "lanczos3 + Adam": "#8a63c9",
    "bicubic + Adam": "#5a9e4b",
    "gaussian + Adam": "#c25a8a",
    "bilinear + Adam": "#2f8fd0",
    "area + Adam": "#b0982e",
    "recipe + Adam": "#d9792b",
}
Line = list[tuple[float, float]]


def draw(recorded: Recorded, folder: Path) -> Iterator[Path]:
    """The charts for which there are figures; what an earlier report drew is gone."""
    for old in folder.glob("*.svg"):
        old.unlink()
    for name, drawn in (("success", success), ("reduction", by_reduction), ("error", error)):
        path = folder / f"{name}.svg"
        with matplotlib.rc_context(STYLE):
            if drawn(recorded, path):
                yield path


def success(recorded: Recorded, path: Path) -> bool:
    """Recovered against the displacement: a panel for each reduction."""
    lines = {r: {m: _by_displacement(recorded, m, r) for m in COLORS} for r in REDUCTIONS}
    panels = {r: {m: line for m, line in found.items() if line} for r, found in lines.items()}
    panels = {r: found for r, found in panels.items() if found}
    if not panels:
        return False
    figure = Figure(figsize=(1.75 * len(panels) + 1.8, 2.4), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (reduction, found) in zip(grid, panels.items(), strict=True):
        # Displacements double, roughly: steps of the same width.
        _lines(axes, {m: [(DISPLACEMENTS.index(x), y) for x, y in line] for m, line in found.items()}, COLORS)
        axes.set_title(f"reduction {reduction}", fontsize=9, loc="left")
        axes.set_xticks(range(len(DISPLACEMENTS)), [f"{100 * d:g}" for d in DISPLACEMENTS], fontsize=7)
        axes.set_xlim(-0.2, len(DISPLACEMENTS) - 0.8)
    _percent(grid[0])
    grid[len(grid) // 2].set_xlabel("start off by, % of the side")
    _legend(figure, {m for found in panels.values() for m in found}, COLORS)
    save(figure, path)
    return True


def _by_displacement(recorded: Recorded, method: str, reduction: int) -> Line:
    found = {d: share(recorded.problems(method, LANCZOS, "clean", "held-out", reduction, d)) for d in DISPLACEMENTS}
    return [(d, one.percent) for d, one in found.items() if one]


def by_reduction(recorded: Recorded, path: Path) -> bool:
    """Recovered of all problems against the reduction: photographs, and textures."""
    figure = Figure(figsize=(6.8, 2.6), layout="constrained")
    grid = figure.subplots(1, 2, sharey=True)
    drawn: set[str] = set()
    for axes, photographs in zip(grid, ("held-out", "textures"), strict=True):
        found = _against_reduction(recorded, photographs, COLORS, _share)
        _lines(axes, found, COLORS)
        _reductions(axes)
        axes.set_title(f"{photographs}, all starts", fontsize=9, loc="left")
        drawn |= set(found)
    _percent(grid[0])
    _legend(figure, drawn, COLORS)
    if drawn:
        save(figure, path)
    return bool(drawn)


def error(recorded: Recorded, path: Path) -> bool:
    """Median corner error of the recovered against the reduction, where the target is of another filter."""
    found = _against_reduction(recorded, "held-out", FILTERS, _error)
    if not found:
        return False
    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    axes = figure.subplots()
    _lines(axes, found, FILTERS)
    _reductions(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("median corner error, pixels", fontsize=9, loc="left")
    _legend(figure, set(found), FILTERS)
    save(figure, path)
    return True


Value = Callable[[Recorded, str, str, int], float | None]


def _share(recorded: Recorded, method: str, photographs: str, reduction: int) -> float | None:
    found = share(recorded.problems(method, LANCZOS, "clean", photographs, reduction))
    return found.percent if found else None


def _error(recorded: Recorded, method: str, photographs: str, reduction: int) -> float | None:
    return median_error(recorded.problems(method, LANCZOS, "clean", photographs, reduction))


def _against_reduction(
    recorded: Recorded, photographs: str, methods: Sequence[str] | dict[str, str], value: Value
) -> dict[str, Line]:
    lines = {}
    for method in methods:
        points = [(r, value(recorded, method, photographs, r)) for r in REDUCTIONS]
        line = [(float(r), y) for r, y in points if y is not None]
        if line:
            lines[method] = line
    return lines


def _lines(axes: Axes, lines: dict[str, Line], colors: dict[str, str]) -> None:
    for method, line in lines.items():
        axes.plot(*zip(*line, strict=True), "o-", color=colors[method], markersize=3, linewidth=1.3)


def _reductions(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(REDUCTIONS, [str(r) for r in REDUCTIONS])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("reduction")


def _percent(axes: Axes) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel("recovered, %")


def _legend(figure: Figure, drawn: set[str], colors: dict[str, str]) -> None:
    shown = [name for name in colors if name in drawn]
    handles = [Line2D([], [], color=colors[name], marker="o", markersize=3) for name in shown]
    figure.legend(handles, shown, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
