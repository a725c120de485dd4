"""What a run says while it goes on, and the lists of what can be run."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from .cases import OURS, PASSES
from .peers import PEERS
from .results import Results, Row
from .suites import CASES, SUITES
from .timing import Spread, ratio

console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 140)


def milliseconds(time: Spread) -> str:
    return f"{figures(time.median * 1e3)} [{figures(time.low * 1e3)}, {figures(time.high * 1e3)}]"


def figures(value: float) -> str:
    """Three digits, and never an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}" if value >= 0.1 else f"{value:.4f}"


def case(results: Results, name: str) -> None:
    rows = results.of(name)
    table = Table("threads", "pass", "peer", "ms [quartiles]", "times ours", "GB/s", "of copy", title=name, box=None)
    for row in sorted(rows, key=lambda row: (row.threads, PASSES.index(row.pass_))):
        table.add_row(str(row.threads), row.pass_, row.peer, *_figures(results, row))
    console.print(table)


def _figures(results: Results, row: Row) -> tuple[str, ...]:
    if not row.samples:
        return f"red: {row.said}", "", "", ""
    ours = results.timed(row.case, OURS, row.pass_, row.threads)
    times = ""
    if ours is not None and row.peer != OURS:
        found = ratio(row.samples, ours.samples)
        times = f"{found.of_medians:.2f} [{found.by_round.low:.2f}, {found.by_round.high:.2f}]"
    share = "" if row.share is None else f"{row.share:.0%}"
    return milliseconds(row.time), times, f"{row.rate / 1e9:.1f}", share


def skipped(skips: Iterable[dict[str, str]]) -> None:
    """Each peer and reason once, with the cases."""
    found: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        found.setdefault((skip["peer"], skip["reason"]), []).append(skip["case"])
    for (peer, reason), names in found.items():
        console.print(f"skipped: {peer}: {reason} ({', '.join(names)})")


def everything() -> None:
    """Cases, with the suites that they are in, and peers."""
    columns = ("case", "suites", "what", "images", "crop", "how", "peers")
    table = Table(*columns, title="cases", box=None, title_justify="left")
    for one in CASES.values():
        suites = ", ".join(name for name, cases in SUITES.items() if one in cases)
        how = f"{one.mode}{' antialiased' if one.antialias else ''}, {one.padding_mode}"
        shapes = ("x".join(map(str, shape)) for shape in (one.images, one.size))
        table.add_row(one.name, suites, one.about, *shapes, how, ", ".join(one.peers))
    console.print(table)
    table = Table("peer", "what", "here", title="peers", box=None, title_justify="left")
    for peer in PEERS.values():
        table.add_row(peer.name, peer.about, peer.missing() or "yes")
    console.print(table)


def memory(rows: Iterable[dict[str, object]]) -> None:
    rows = list(rows)
    if not rows:
        return
    table = Table("case", "pass", "peer", "peak MiB", "of it returned", title="memory", box=None)
    for row in rows:
        sizes = (f"{int(str(row[name])) / 2**20:.1f}" for name in ("peak", "returned"))
        table.add_row(str(row["case"]), str(row["pass"]), str(row["peer"]), *sizes)
    console.print(table)
