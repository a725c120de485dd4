"""Charts as SVG: small, the same bytes for the same figures, and readable on light and on dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import COPY, OURS, Case
from .results import Checked, Results
from .suites import GROWTH

# Of medium lightness: they keep their contrast on white and on black.
INK = "#7d7d7d"
COLORS = {OURS: "#2f8fd0", "recipe": "#d9792b", "packed": "#c25a8a", "slices": "#5a9e4b"}
# The rest of a place on the page for the labels at the ends of lines.
_ROOM = 1.5
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffcrop",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    # matplotlib ends some lines in spaces.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def ratios(checked: Sequence[Checked], path: Path) -> bool:
    """How many times as fast as the peer of each target, a dot, and the target, a tick."""
    found = [one for one in checked if one.measured is not None and one.target.against != COPY]
    if not found:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 0.22 * len(found) + 0.8), layout="constrained")
        axes = figure.subplots()
        for row, one in enumerate(found):
            assert one.measured is not None
            axes.plot([one.least], [row], "|", color=INK, markersize=9)
            axes.plot([one.measured], [row], "o" if one.holds else "x", color=COLORS[OURS], markersize=4)
            axes.annotate(
                f"{one.measured:.1f}", (one.measured, row), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
        names = [f"{one.case.name}  {one.target.pass_}, {one.target.against}" for one in found]
        axes.set_yticks(range(len(found)), names)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(_plain))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.axvline(1, color=INK, linewidth=0.6)
        axes.set_xlabel("time of the peer over ours; | is the target, x a target missed")
        save(figure, path)
    return True


def growth(results: Results, series: str, threads: int, path: Path) -> bool:
    """Time, and below it memory, of each pass against what grows."""
    cases = [case for case in GROWTH if case.series == series]
    passes = [p for p in cases[0].passes if any(results.timed(case.name, OURS, p, threads) for case in cases)]
    if not passes:
        return False
    rows = [[(f"{pass_}, ms", _times(results, cases, pass_, threads)) for pass_ in passes]]
    peaks = [(f"{pass_}, peak MiB", _peaks(results, cases, pass_)) for pass_ in passes]
    rows += [peaks] if any(lines for _, lines in peaks) else []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(passes), 2.1 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(passes), squeeze=False)
        for panels, row in zip(grid, rows, strict=True):
            for axes, (title, lines) in zip(panels, row, strict=True):
                _panel(axes, title, series, lines)
        save(figure, path)
    return True


def _times(results: Results, cases: Iterable[Case], pass_: str, threads: int) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        for peer in (OURS, *case.peers):
            row = results.timed(case.name, peer, pass_, threads)
            if row is not None:
                lines.setdefault(peer, []).append((case.at, row.time.median * 1e3))
    return lines


def _peaks(results: Results, cases: Iterable[Case], pass_: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        for peer in (OURS, *case.peers):
            row = results.memory.get((case.name, peer, pass_))
            if row is not None:
                lines.setdefault(peer, []).append((case.at, max(row["peak"], 2**16) / 2**20))
    return lines


def _panel(axes: Axes, title: str, series: str, lines: dict[str, list[tuple[float, float]]]) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(series)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for peer, points in lines.items():
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS.get(peer, INK), markersize=2.5, linewidth=1.2)
    places = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(places, [_plain(x) for x in places], fontsize=7)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    # Never less than a decade: what hardly changes must look as if it hardly changed.
    low, high = (f(y for points in lines.values() for _, y in points) for f in (min, max))
    middle, half = math.log10(low * high) / 2, max(math.log10(high / low) * 1.15, 1.0) / 2
    low, high = 10 ** (middle - half), 10 ** (middle + 1.2 * half)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 3) if half < 1 else (1,)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    ends = {peer: points[-1] for peer, points in lines.items()}
    # Labels that would lie upon each other are moved apart, by a share of the height.
    least = math.log(high / low) * 0.1
    last = -math.inf
    for peer, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(math.log(y), last + least)
        at, color = (x, math.exp(last)), COLORS.get(peer, INK)
        axes.annotate(
            peer, at, (4, 0), textcoords="offset points", va="center", color=color, fontsize=8, annotation_clip=False
        )
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** (_ROOM - 1))


def _plain(value: float, _: Any = None) -> str:
    """Numbers as one says them: 0.25, 4, 1024."""
    return f"{value:g}"
