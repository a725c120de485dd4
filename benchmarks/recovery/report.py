"""Writes what was recorded into docs/recovery.md, between its markers, with its charts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import NOTHING, ROOT, in_words, replaced, table

from . import charts, direction
from .goals import BOUND, ERROR, GOALS, LATENCY, check
from .methods import METHODS, SWEEP
from .photographs import FILES, SETS
from .plan import COARSE, KNOWN, LANCZOS
from .problems import DISPLACEMENTS, REDUCTIONS, TARGETS, VARIANTS
from .results import Recorded, Share, Solved, efficiency, median_error, median_steps, share

BEGIN, END = "<!-- recovery:begin -->", "<!-- recovery:end -->"
_SUMMARY = ("recipe + Adam", "kornia + Adam", "bilinear + Adam", "blur schedule + Adam", "fit_boxes", "locate")
_ALL = " / ".join(f"{100 * d:g}" for d in DISPLACEMENTS)


def write(record: dict[str, Any], root: Path = ROOT) -> list[Path]:
    """The page and the charts; what was written."""
    page, recorded = root / "docs" / "recovery.md", Recorded(record)
    drawn = list(charts.draw(recorded, root / "docs" / "recovery"))
    text = section(recorded, [path.stem for path in drawn])
    page.write_text(replaced(page.read_text(), text, BEGIN, END))
    others = [root / "README.md", root / "docs" / "box_gradients.md"]
    for other in others:
        other.write_text(replaced(other.read_text(), summary(recorded), BEGIN, END))
    return [page, *others, *drawn]


def summary(recorded: Recorded) -> str:
    """The two tables that other pages show: where gradients point, and how often who arrives."""
    names = [name for name in _SUMMARY if name in recorded.methods()]
    rows = _success_rows(recorded, names, LANCZOS, "clean", "held-out", REDUCTIONS)
    arrived = (
        f"Boxes found again (IoU > 0.9), in percent: starts {_ALL} % of the side off -> all; `locate` has no start."
        " Targets by Pillow's LANCZOS, 8 bits.\n\n"
    )
    parts = [_direction(recorded, ("held-out",)), arrived + table(_head("method"), rows) if rows else ""]
    return "\n\n".join(part for part in parts if part) or NOTHING


def section(recorded: Recorded, drawn: Iterable[str]) -> str:
    drawn = set(drawn)
    parts = [
        ("Targets", _goals(recorded)),
        ("Recovered", _recovered(recorded, drawn)),
        ("Textures", _textures(recorded)),
        ("How exactly", _errors(recorded, drawn)),
        ("Searches, by who cropped the target", _filters(recorded)),
        ("Noise, and changed gain", _spoilt(recorded)),
        ("Does the gradient point toward the box?", _direction(recorded)),
        ("Time and steps", _time(recorded)),
        ("The rate of Adam", _rates(recorded)),
        ("Wrong, or not run", _left_out(recorded)),
        ("The methods", _methods(recorded)),
        ("How it was measured", _how(recorded)),
    ]
    found = [f"## {title}\n\n{text.strip()}" for title, text in parts if text]
    return "\n\n".join(found) if recorded.rows else NOTHING


def _goals(recorded: Recorded) -> str:
    rows = []
    for goal in GOALS:
        found = check(recorded, goal)
        cells = []
        for reduction in REDUCTIONS:
            value = found.measured.get(reduction)
            text = "" if value is None else _value(goal.kind, value)
            cells.append(
                f"**{text}**" if found.measured.get(reduction) is not None and not found.holds_at(reduction) else text
            )
        verdict = {True: "holds", False: "**missed**", None: "not measured"}[found.holds]
        rows.append((goal.about, goal.limit_in_words(), *cells, str(found.of or ""), verdict))
    head = ("what", "target", *(f"f = {r}" for r in REDUCTIONS), "n", "")
    return (
        "Measured at each reduction f, of at least n problems (of calls, for a time); what misses is set in bold.\n\n"
        + table(head, rows)
    )


def _value(kind: str, value: float) -> str:
    return {ERROR: f"{value:.4f}", BOUND: f"{value:.2f}", LATENCY: f"{value:.0f}"}.get(kind, f"{value:.1f}")


def _recovered(recorded: Recorded, drawn: set[str]) -> str:
    lead = (
        f"Share of problems with IoU > 0.9 at the end, in percent: starts {_ALL} % off -> all. Photographs held out,"
        " targets by Pillow's LANCZOS.\n\n"
    )
    rows = _success_rows(recorded, _shown(recorded), LANCZOS, "clean", "held-out", REDUCTIONS)
    pictures = "".join(
        f"![{alt}](recovery/{name}.svg)\n\n"
        for name, alt in (("success", "Recovered against displacement"), ("reduction", "Recovered against reduction"))
        if name in drawn
    )
    return (
        lead + table(_head("method"), rows) + "\n\n" + _sure(recorded, "held-out") + "\n\n" + pictures if rows else ""
    )


def _shown(recorded: Recorded) -> list[str]:
    """The methods in their order, without those at other rates."""
    return [name for name in METHODS if name in recorded.methods()]


def _head(first: str, reductions: Sequence[int] = REDUCTIONS) -> tuple[str, ...]:
    return (first, *(f"f = {r}" for r in reductions))


def _success_rows(
    recorded: Recorded, names: Sequence[str], target: str, variant: str, photographs: str, reductions: Sequence[int]
) -> list[tuple[str, ...]]:
    rows = []
    for name in names:
        cells = [_successes(recorded, name, target, variant, photographs, r) for r in reductions]
        if any(cells):
            rows.append((name, *cells))
    return rows


def _successes(recorded: Recorded, name: str, target: str, variant: str, photographs: str, reduction: int) -> str:
    every = share(recorded.problems(name, target, variant, photographs, reduction))
    if every is None:
        return ""
    if not KNOWN[name].starts:
        return f"{every.percent:.1f}"
    found = [share(recorded.problems(name, target, variant, photographs, reduction, d)) for d in DISPLACEMENTS]
    return "/".join(f"{one.percent:.0f}" for one in found if one) + f" -> {every.percent:.0f}"


def _sure(recorded: Recorded, photographs: str) -> str:
    """How many problems, and what Wilson's interval makes of that."""
    counts: dict[int, list[str]] = {}
    for name in _shown(recorded):
        starts = KNOWN[name].starts
        at = DISPLACEMENTS[0] if starts else None
        found = [share(recorded.problems(name, LANCZOS, "clean", photographs, r, at)) for r in REDUCTIONS]
        of = min((one.of for one in found if one), default=0)
        if of:
            counts.setdefault(of, []).append(name)
    told = []
    for of, names in counts.items():
        what = "at each displacement" if any(KNOWN[name].starts for name in names) else "in all, without a start"
        limits = [Share(round(p * of), of).interval() for p in (0.5, 0.95, 1.0)]
        half, most, full = (f"{low:.0f} to {high:.0f}" for low, high in limits)
        told.append(f"with {of} problems {what}, 50 % means {half}, 95 % {most}, and 100 % {full}")
    return f"Wilson's 95 % intervals: {'; '.join(told)}." if told else ""


def _textures(recorded: Recorded) -> str:
    names = ", ".join(SETS["textures"])
    rows = _success_rows(recorded, _shown(recorded), LANCZOS, "clean", "textures", REDUCTIONS)
    return f"The same of {names}.\n\n{table(_head('method'), rows)}\n\n{_sure(recorded, 'textures')}" if rows else ""


def _errors(recorded: Recorded, drawn: set[str]) -> str:
    other = _each(recorded, lambda name, r: _error(recorded.problems(name, LANCZOS, "clean", "held-out", r)))
    same = _each(
        recorded,
        lambda name, r: _error(
            recorded.problems(name, f"diffcrop {KNOWN[name].mode}", "clean", "held-out", r), by_reduction=r
        ),
    )
    parts = []
    if other:
        parts.append(
            "Median corner error of the recovered in pixels of the photograph, targets by Pillow's LANCZOS, 8 bits: it"
            " is mostly that of the filter.\n\n" + table(_head("method"), other)
        )
        parts += ["![Median corner error against reduction](recovery/error.svg)"] if "error" in drawn else []
    if same:
        parts.append(
            "Where the filters match, in units of the reduction (0.01 is a hundredth of an output pixel):\n\n"
            + table(_head("method"), same)
        )
    return "\n\n".join(parts)


def _each(recorded: Recorded, cell: Callable[[str, int], str]) -> list[tuple[str, ...]]:
    rows = [(name, *(cell(name, r) for r in REDUCTIONS)) for name in _shown(recorded)]
    return [row for row in rows if any(row[1:])]


def _error(problems: Sequence[Solved], by_reduction: int = 1) -> str:
    error = median_error(problems)
    if error is None:
        return ""
    # A corner at 300 pixels is rounded to 3e-5 of them in float32.
    return f"{error / by_reduction:.2g}" if error > 1e-4 else "0"


def _filters(recorded: Recorded) -> str:
    rows = []
    for photographs in ("held-out", "textures"):
        for target in TARGETS:
            for name in _shown(recorded):
                if KNOWN[name].starts:
                    continue
                found = {r: recorded.problems(name, target, "clean", photographs, r) for r in REDUCTIONS}
                cells = []
                for problems in found.values():
                    one = share(problems)
                    cells.append(f"{one.percent:.1f} ({_error(problems)})" if one else "")
                if any(cells):
                    rows.append((photographs, target, name, *cells))
    head = ("photographs", "target by", "method", *(f"f = {r}" for r in REDUCTIONS))
    lead = "Searches without a start, recovered in percent, and in brackets the median corner error in pixels.\n\n"
    return lead + table(head, rows) if rows else ""


def _spoilt(recorded: Recorded) -> str:
    parts = []
    target = "diffcrop bilinear"
    for variant in ("noise", "gain"):
        rows = _success_rows(recorded, _shown(recorded), target, variant, "held-out", COARSE)
        if rows:
            about = VARIANTS[variant].about
            parts.append(
                f"Targets by {target}, {about}: recovered, starts {_ALL} % off -> all.\n\n"
                + table(_head("method", COARSE), rows)
            )
    rows = []
    for name in _shown(recorded):
        found = [efficiency(recorded.problems(name, target, "noise", "held-out", r)) for r in COARSE]
        if any(found):
            rows.append((name, *(f"{one.ratio:.2f} (n = {one.of})" if one else "" for one in found)))
    if rows:
        parts.append(
            "Root mean square error under noise over the Cramer-Rao bound, the least possible without bias, from the"
            " exact derivative at the truth: of the recovered, each in units of its own bound, where the bound is below"
            " 1.5 % of the side. (Where it is not, those recovered are those that chance favoured. Of"
            " methods with a start the same noise counts once for each displacement.)\n\n"
            + table(_head("method", COARSE), rows)
        )
    return "\n\n".join(parts)


def _direction(recorded: Recorded, sets: Iterable[str] = SETS) -> str:
    rows, of = [], 0
    for photographs in sets:
        for name in direction.SAMPLERS:
            cells = []
            for reduction in REDUCTIONS:
                levels = range(len(direction.DISPLACEMENTS))
                found = [recorded.direction(name, reduction, level, photographs) for level in levels]
                of = max([of, *(one.of for one in found if one)])
                cells.append(" / ".join(f"{one.percent:.0f}" for one in found if one))
            if any(cells):
                rows.append((photographs, name, *cells))
    displacements = " / ".join(f"{100 * d:g}" for d in direction.DISPLACEMENTS)
    lead = (
        "Share of starts at which the negative gradient of the squared difference points toward the truth, displaced by"
        f" {displacements} % of the side in a random direction of all four numbers; each sampler's own target; up to"
        f" {of} starts each.\n\n"
    )
    return lead + table(("photographs", "sampler", *(f"f = {r}" for r in REDUCTIONS)), rows) if rows else ""


def _time(recorded: Recorded) -> str:
    def cell(name: str, reduction: int) -> str:
        taken = recorded.milliseconds(name, LANCZOS, "clean", "held-out", reduction)
        if taken is None:
            return ""
        steps = median_steps(recorded.problems(name, LANCZOS, "clean", "held-out", reduction))
        return f"{taken:.1f}" + (f" ({steps:.0f})" if steps is not None else "")

    rows = _each(recorded, cell)
    parts = []
    if rows:
        parts.append(
            "Milliseconds for each problem on one thread, all problems of a photograph in one batch; in brackets after"
            " how many steps a box is recovered for good, the median of those that are.\n\n"
            + table(_head("method"), rows)
        )
    taken = {r: recorded.latency(r) for r in REDUCTIONS}
    if any(taken.values()):
        line = ["locate, one template"]
        for samples in taken.values():
            if len(samples) < 2:
                line.append("")
                continue
            low, middle, high = (1e3 * q for q in statistics.quantiles(samples, n=4, method="inclusive"))
            line.append(f"{middle:.1f} [{low:.1f}, {high:.1f}]")
        parts.append(
            "One call with one template on a photograph of 512 x 512, grey or colour, two threads, warm: median"
            " milliseconds and quartiles.\n\n" + table(_head(""), [tuple(line)])
        )
    return "\n\n".join(parts)


def _rates(recorded: Recorded) -> str:
    found = [name for name in SWEEP if name in recorded.methods()]
    rows = _success_rows(recorded, found, LANCZOS, "clean", "tuning", (1, 8))
    lead = (
        "First steps of Adam in units of the side, falling to zero on a half cosine, on the tuning photographs:"
        f" recovered, starts {_ALL} % off -> all.\n\n"
    )
    return lead + table(_head("", (1, 8)), rows) if rows else ""


def _left_out(recorded: Recorded) -> str:
    red = [
        (row["method"], row["target"], str(row["reduction"]), row["photograph"], row["gate"]["said"])
        for row in recorded.red()
    ]
    parts = [table(("method", "target by", "f", "photograph", "error"), red)] if red else []
    parts += ["\n".join(f"* {reason}" for reason in recorded.record["skipped"])] if recorded.record["skipped"] else []
    return "\n\n".join(parts)


def _methods(recorded: Recorded) -> str:
    rows = [(name, METHODS[name].about, f"{METHODS[name].tolerance:.0e}") for name in _shown(recorded)]
    lead = (
        "Before anything is counted, what a method crops with is compared at true boxes with diffcrop's reference in"
        " float64 under the method's own terms, its derivative by the box too where it uses that, and the target with"
        " the reference in float64 of whoever cropped it. The errors allowed are in parts of the value range.\n\n"
    )
    return lead + table(("method", "what it does", "error allowed"), rows)


def _how(recorded: Recorded) -> str:
    sets = "\n".join(f"* {name}: {', '.join(photos)}" for name, photos in SETS.items())
    parts = [_HOW + "\n\n" + sets]
    counts: dict[int, int] = {}
    for row in recorded.rows.values():
        counts[row["run"]] = counts.get(row["run"], 0) + 1
    for number, run in enumerate(recorded.record["runs"]):
        if number not in counts:
            continue
        source = run["source"]
        commit = (source["commit"] or "unknown")[:12] + (" with changes" if source["dirty"] else "")
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        parts.append(
            f"* {counts[number]} cells, {run['started']}, commit {commit}, seed {recorded.record['seed']},"
            f" {run['workers']} processes of one thread, {run['seconds'] / 60:.1f} minutes,"
            f" {in_words(run['machine'])}; {versions}."
        )
    return "\n".join(parts)


_HOW = f"""\
True boxes lie anywhere in a photograph, with sides from 96 to 160 pixels; a crop at reduction f has 128 / f pixels a
side, so f is a reduction on average. A start is off by a share of the box's sides in a random direction, and its sides
by a factor between exp(-share) and exp(share). The same problems are put to every method. All of a photograph are one
batch: the loss is their sum, and Adam treats each number by itself, as Levenberg and Marquardt's method does each box.
Photographs longer than 512 pixels are first reduced to that by Pillow's LANCZOS ({len(FILES)} in all); grey ones have
one channel. No number was chosen on what is held out, but two of the textures count there as well, and the grid and the
stages of `locate` were chosen with the textures at other seeds in view: its figures on textures are of fresh boxes in
known pictures. Those on photographs are of pictures that were not looked at before, hubble and retina apart."""
