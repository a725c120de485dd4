"""Writes what was recorded: docs/benchmarks.md with its charts, and the section of the README between its markers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import charts
from .cases import COPY, OURS, Case
from .peers import PEERS
from .results import Results, Row, checked, fastest
from .show import milliseconds
from .suites import CASES, GROWTH
from .timing import ratio

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "Not recorded yet."
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
_HEAD = "<!-- Written by `python -m benchmarks report` from benchmarks/results: do not edit. -->\n\n# Benchmarks\n\n"
_THREADS = 2


def write(results: Results, root: Path) -> list[Path]:
    """All of it, below ``root``; what was written."""
    page, readme = root / "docs" / "benchmarks.md", root / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    drawn = list(draw(results, root / "docs" / "benchmarks"))
    page.write_text(document(results, [path.stem for path in drawn]))
    readme.write_text(replaced(readme.read_text(), section(results)))
    return [page, readme, *drawn]


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """The charts for which there are figures; what an earlier report drew is gone."""
    for old in folder.glob("*.svg"):
        old.unlink()
    path = folder / "ratios.svg"
    if charts.ratios(checked(results), path):
        yield path
    for series in _series():
        path = folder / f"growth-{series.replace(' ', '-')}.svg"
        if charts.growth(results, series, _THREADS, path):
            yield path


def replaced(text: str, inner: str, begin: str = BEGIN, end: str = END) -> str:
    """The text with what stands between the markers replaced."""
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"the page needs one pair of {begin} and {end}")
    return found.sub(lambda _: f"{begin}\n{inner.strip()}\n{end}", text)


# --- the README -------------------------------------------------------------------------------------------------------


def section(results: Results) -> str:
    """How many times as long the peer of each case takes; of G the least of its cases, I not at all."""
    found = [one for one in checked(results) if one.measured is not None and one.target.against != COPY]
    lines: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in found:
        if one.case.name.startswith("I-") or one.measured is None:
            continue
        letter, _, rest = one.case.name.partition("-")
        name, what = one.case.name, _operation(one.case)
        if letter == "G":
            mode = rest.partition("-")[2]
            name, what = f"G, {mode}", f"the least of A to D, antialiased, {mode}"
        line = lines.setdefault((name, what, one.target.against), {})
        line[one.target.pass_] = min(one.measured, line.get(one.target.pass_, one.measured))
    if not lines:
        return NOTHING
    rows = [
        (*line, *(f"{figures3(times[p])}x" if p in times else "" for p in ("forward", "boxes", "both")))
        for line, times in lines.items()
    ]
    run = next(run for run in reversed(results.runs) if run["rows"])
    facts = run["machine"]
    lead = (
        f"Time of the peer over ours on {facts['cores']} cores of an {facts['processor']} ({facts['simd_level']}),"
        f" torch {run['versions']['torch']}: ratios of medians, two threads (one for H). What each case and peer is,"
        " with all figures and what they must reach, is in [docs/benchmarks.md](docs/benchmarks.md)."
    )
    head = ("case", "crop", "against", "forward", "with the gradient by boxes", "by both")
    return textwrap.fill(lead, 120, break_on_hyphens=False) + "\n\n" + table(head, rows)


def figures3(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _operation(case: Case) -> str:
    """Such as 16x3x224x224 -> 112x112, bilinear."""
    boxes = f"{case.boxes} boxes of " if case.boxes > 1 else ""
    if case.shape == "paste":
        boxes = f"{case.boxes} patches of "
    how = [case.mode, *(["antialiased"] if case.antialias else [])]
    how += [case.dtype] if case.dtype != "float32" else []
    how += ["channels_last"] if case.channels_last else []
    sizes = case.images, case.size
    of, to = ("x".join(map(str, shape)) for shape in (sizes[::-1] if case.shape == "paste" else sizes))
    return f"{boxes}{of} -> {to}, {', '.join(how)}"


# --- the page ---------------------------------------------------------------------------------------------------------


def document(results: Results, drawn: Iterable[str]) -> str:
    if not results.runs:
        return _HEAD + NOTHING + "\n"
    drawn = list(drawn)
    parts = [
        ("Targets", _targets(results, drawn)),
        ("Beside the fastest peer", _beside_fastest(results)),
        ("Every measurement", _everything(results)),
        ("Growth", _growth(results, drawn)),
        ("Memory", _memory(results)),
        ("Wrong, or not run", _left_out(results)),
        ("The peers", _peers()),
        ("How it was measured", _how(results)),
    ]
    return _HEAD + "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in parts if text) + "\n"


def _targets(results: Results, drawn: list[str]) -> str:
    rows = []
    for one in checked(results):
        target = one.target
        copy = target.against == COPY
        against = target.against + (f" ({target.against_pass})" if target.against_pass else "")
        measured = "" if one.measured is None else f"{one.measured:.0%}" if copy else f"{figures3(one.measured)}x"
        spread = f"{figures3(one.by_round.low)} to {figures3(one.by_round.high)}" if one.by_round else ""
        least = f"{one.least:.0%}" if copy else f"{figures3(one.least)}x"
        verdict = {True: "holds", False: "**missed**", None: "not measured"}[one.holds]
        rows.append((one.case.name, target.pass_, against, str(target.threads), least, measured, spread, verdict))
    text = (
        "Time of the peer over ours: the ratio of the medians, and the quartiles of the ratios round by round; or our"
        " share of the bandwidth at which this machine copies.\n\n"
    )
    text += "![Ratios and targets](benchmarks/ratios.svg)\n\n" if "ratios" in drawn else ""
    return text + table(("case", "pass", "against", "threads", "target", "measured", "quartiles", ""), rows)


def _beside_fastest(results: Results) -> str:
    rows = []
    for row in results.rows.values():
        if row.peer != OURS or not row.samples or CASES[row.case].series:
            continue
        found = fastest(results, row)
        if found is not None:
            best, times = found
            verdict = "" if times.of_medians >= 1 else "**slower**"
            rows.append((row.case, row.pass_, str(row.threads), best.peer, f"{figures3(times.of_medians)}x", verdict))
    if not rows:
        return ""
    slower = sum(bool(row[-1]) for row in rows)
    lead = f"Of {len(rows)} combinations of case, pass and threads ours is the slower one in {slower or 'none'}.\n\n"
    return lead + table(("case", "pass", "threads", "fastest peer", "its time over ours", ""), rows)


def _everything(results: Results) -> str:
    parts = []
    for case in results.cases():
        if case.series:
            continue
        rows = sorted(results.of(case.name), key=lambda row: (row.threads, case.passes.index(row.pass_)))
        padding = f"padding {case.padding_mode}"
        parts.append(f"### {case.name}: {case.about}\n\n{_operation(case)}, {padding}.\n\n{_rows(results, rows)}")
    return "\n\n".join(parts)


def _rows(results: Results, rows: Iterable[Row]) -> str:
    return table(
        ("threads", "pass", "peer", "ms [quartiles]", "over ours", "quartiles", "GB/s", "of copy"),
        [_row(results, row) for row in rows if row.samples],
    )


def _row(results: Results, row: Row) -> tuple[str, ...]:
    times = spread = ""
    ours = results.timed(row.case, OURS, row.pass_, row.threads)
    if ours is not None and row.peer != OURS:
        found = ratio(row.samples, ours.samples)
        times = f"{figures3(found.of_medians)}x"
        spread = f"{figures3(found.by_round.low)} to {figures3(found.by_round.high)}"
    peer = PEERS.get(row.peer)
    threads = "1" if peer is not None and peer.single else str(row.threads)
    share = "" if row.share is None else f"{row.share:.0%}"
    return threads, row.pass_, row.peer, milliseconds(row.time), times, spread, f"{row.rate / 1e9:.1f}", share


def _growth(results: Results, drawn: list[str]) -> str:
    parts = []
    for series in _series():
        names = {case.name: case for case in GROWTH if case.series == series}
        rows = []
        for row in results.rows.values():
            if row.case in names and row.samples:
                at = f"{names[row.case].at:g}"
                rows.append((at, str(row.threads), row.pass_, row.peer, milliseconds(row.time)))
        if rows:
            name = f"growth-{series.replace(' ', '-')}"
            chart = f"![Time and memory against {series}](benchmarks/{name}.svg)\n\n" if name in drawn else ""
            figures = table((series, "threads", "pass", "peer", "ms [quartiles]"), rows)
            chart += _factors(results, list(names.values())) + "\n\n"
            parts.append(
                f"### {series.capitalize()}\n\n{chart}<details><summary>Figures</summary>\n\n{figures}\n\n</details>"
            )
    return "\n\n".join(parts)


def _factors(results: Results, cases: list[Case]) -> str:
    """The last point over the first."""
    rows = []
    for threads in results.threads():
        for pass_ in cases[0].passes:
            for peer in (OURS, *cases[0].peers):
                ends = [results.timed(case.name, peer, pass_, threads) for case in (cases[0], cases[-1])]
                if ends[0] is not None and ends[1] is not None:
                    times = ends[1].time.median / ends[0].time.median
                    rows.append((peer, pass_, str(threads), f"{figures3(times)}x"))
    over = f"time at {cases[-1].at:g} over that at {cases[0].at:g}"
    return table(("peer", "pass", "threads", over), rows)


def _memory(results: Results) -> str:
    rows = []
    for (case, peer, pass_), row in results.memory.items():
        peak, returned = row["peak"] / 2**20, row["returned"] / 2**20
        rows.append((case, pass_, peer, f"{peak:.1f}", f"{returned:.1f}", f"{peak - returned:.1f}"))
    if not rows:
        return ""
    lead = "The peak of one call over what was there before it (MiB), and of it the tensors that the call returns.\n\n"
    return lead + table(("case", "pass", "peer", "peak", "returned", "rest"), rows)


def _left_out(results: Results) -> str:
    red = [(r.case, r.peer, r.pass_, str(r.threads), r.said) for r in results.red()]
    found: dict[tuple[str, str], list[str]] = {}
    for (case, peer), reason in results.skipped.items():
        found.setdefault((peer, reason), []).append(case)
    parts = []
    if red:
        parts.append(table(("case", "peer", "pass", "threads", "error, in parts of the largest value"), red))
    if found:
        skips = [(peer, reason, ", ".join(cases)) for (peer, reason), cases in found.items()]
        parts.append(table(("peer", "why it did not run", "cases"), skips))
    return "\n\n".join(parts)


def _peers() -> str:
    rows = []
    for peer in PEERS.values():
        limits = peer.tolerance
        errors = f"{limits.value:.0e}, {limits.images:.0e}, {limits.boxes:.0e}"
        rows.append((peer.name, peer.about, errors, limits.reason))
    lead = (
        "Before anything is timed, the very call that will be is compared with diffcrop's reference in float64 under"
        " the peer's own terms. The errors allowed, in float32 and in parts of the largest expected value, are those of"
        " the values, of the image gradient and of the box gradient.\n\n"
    )
    return lead + table(("peer", "what is called", "errors allowed", "why"), rows)


def _how(results: Results) -> str:
    parts = []
    for run in results.runs:
        method, source = run["method"], run["source"]
        commit = (source["commit"] or "unknown")[:12] + (" with changes" if source["dirty"] else "")
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        copies = [
            f"{_median(copy['bytes_per_s']) / 1e9:.1f} GB/s on {threads} thread{'s' if threads != '1' else ''}"
            for threads, copy in run["copy"].items()
        ]
        parts.append(
            f"* Suite {run['suite']}, {run['started']}, commit {commit}, {in_words(run['machine'])}; {versions}."
            f" At least {method['rounds_at_least']} rounds and {method['budget_s']:g} s for each case and number of"
            f" threads; a sample repeats its call for {method['sample_s'] * 1e3:g} ms, after"
            f" {method['warm_s'] * 1e3:g} ms that are not counted."
            + (f" Copies: {' and '.join(copies)}." if copies else "")
        )
    first = next((copy for run in results.runs for copy in run["copy"].values()), None)
    text = _HOW + (f" It is that of {first['how']}, {first['buffer_mib']} MiB each.\n\n" if first else "\n\n")
    return text + "\n".join(parts)


_HOW = """\
All contestants of a case run in turns in one process: in each round one sample of each, in an order that is shuffled
anew. What has threads of its own and no room beside torch's (jax) runs in a process of its own and takes its turns as
well; it sees as many processors as there are threads. Pillow runs on one thread always. Where the threads change hands,
those of the last are left to go to sleep. Each contestant is given boxes in its own convention, pictures in its own
format, and is compiled, beforehand; each call allocates its results anew. The cotangent is the same for all.

GB/s count the bytes that must move, whoever computes: the pixels that the crops depend on, in whole cache lines, and
the cotangent, read once; crops and the gradients asked for, an image gradient as a whole, written once. Pastes read
patches and canvases and write canvases; their "images" are the patches. What fits into the caches may exceed the
bandwidth at which memory is copied."""


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def in_words(facts: dict[str, object]) -> str:
    """In words."""
    told = [f"{facts['processor']} ({facts['simd_level']}), {facts['cores']} cores"]
    for cache in facts["caches"] if isinstance(facts["caches"], list) else []:
        shared = " shared" if cache["shared_by"] > 1 else ""
        told.append(f"{cache['bytes'] // 2**10} KiB {cache['name']}{shared}")
    told += [f"{facts['memory_gib']} GiB", str(facts["kernel"]), f"huge pages {facts['transparent_hugepages']}"]
    told += [f"governor {facts['governor']}"] if facts["governor"] else []
    return ", ".join(told)


def _series() -> list[str]:
    return list(dict.fromkeys(case.series for case in GROWTH if case.series))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
