"""The command line: `python -m benchmarks run`, `report`, `list`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import report as reports
from benchmarks import show, timing
from benchmarks.cases import OURS, PASSES
from benchmarks.peers import PEERS
from benchmarks.results import FOLDER, Results, as_text, load
from benchmarks.runner import Plan, run
from benchmarks.suites import CASES, SUITES

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure diffcrop beside what people use today, and write what the documentation says of it.",
)
# Ours in every form; a red gate of these is an error of ours.
_OURS = (OURS, "plain")


def _known(option: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not known; there are {', '.join(known)}", param_hint=option)
    return tuple(names) if names else None


@app.command("run")
def _run(
    suite: Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}.")] = "table",
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="Only this peer beside diffcrop; may be repeated.")] = None,
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help=f"Of {', '.join(PASSES)}; may be repeated.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="May be repeated; 1 and 2 by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="At least so many samples of each.")] = timing.ROUNDS,
    budget: Annotated[
        float, typer.Option(min=0, help="Seconds to fill with rounds, per case and number of threads.")
    ] = timing.BUDGET_S,
    base: Annotated[str | None, typer.Option(help="A git revision to build and compare with.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Small copies, to try the machinery: no measurement.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where to record it; a whole suite by default in benchmarks/results.")
    ] = None,
) -> None:
    """Measure a suite, or some of it. Fails if a result of diffcrop itself is wrong."""
    _known("--suite", [suite], list(SUITES))
    names = _known("--case", case, list(CASES))
    plan = Plan(
        suite=suite,
        cases=SUITES[suite] if names is None else tuple(CASES[name] for name in names),
        peers=_known("--peer", peer, list(PEERS)),
        passes=_known("--pass", passes, PASSES),
        threads=tuple(threads or (1, 2)),
        rounds=rounds,
        budget_s=budget,
        small=small,
        base=base,
    )
    # Part of a suite must not stand where the whole of it was.
    if out is None and not (case or peer or passes or threads or base or small):
        out = FOLDER / f"{suite}.json"
    unfinished = out.with_suffix(".json.unfinished") if out else None

    def told(record: dict[str, Any], name: str) -> None:
        show.case(Results([record]), name)
        if unfinished:
            unfinished.write_text(as_text(record))

    record = run(plan, told)
    show.memory(record["memory"])
    show.skipped(record["skipped"])
    if out and unfinished:
        unfinished.write_text(as_text(record))
        unfinished.replace(out)
        show.console.print(f"recorded in {out.name}")
    wrong = [row for row in record["rows"] if not row["gate"]["green"]]
    for row in wrong:
        where = f"{row['case']}, {row['peer']}, {row['pass']}, {row['threads']} threads"
        show.console.print(f"wrong, and not measured: {where}: {row['gate']['said']}")
    if any(row["peer"] in _OURS for row in wrong):
        raise typer.Exit(1)


@app.command("report")
def _report() -> None:
    """Write docs/benchmarks.md, its charts and the section of the README from what is recorded."""
    for path in reports.write(load(), reports.ROOT):
        show.console.print(f"wrote {path.relative_to(reports.ROOT)}")


@app.command("list")
def _list() -> None:
    """Name the suites, cases and peers."""
    show.everything()


if __name__ == "__main__":
    app()
