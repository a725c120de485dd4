"""The command line: `python -m benchmarks.recovery run` and `report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import ROOT
from benchmarks.results import FOLDER

from . import measure, report
from .photographs import SETS
from .plan import KNOWN, Cell, cells
from .problems import REDUCTIONS, VARIANTS
from .results import Recorded, median_error, share

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure which crop boxes are found again, and write what the documentation says of it.",
)
RESULTS = FOLDER / "recovery.json"
# True boxes of each photograph whose gradient's direction is looked at, and calls of each latency.
DIRECTIONS, LATENCIES = 30, 25


def _known(option: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not known; there are {', '.join(known)}", param_hint=option)
    return tuple(names or ())


@app.command("run")
def _run(
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be repeated.")] = None,
    reduction: Annotated[list[int] | None, typer.Option(help="Only this reduction; may be repeated.")] = None,
    photos: Annotated[str | None, typer.Option(help=f"Only one set: {', '.join(SETS)}.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(VARIANTS)}; may be repeated.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="True boxes of each photograph.")] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread; as many as cores.")] = None,
    small: Annotated[bool, typer.Option("--small", help="One box each, to try the machinery: no measurement.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Measure what is named anew, and put it into what is recorded.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on with a run that was stopped.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to record it; benchmarks/results by default.")] = None,
) -> None:
    """Measure everything, or what is named. A run that was stopped goes on where it was. Fails if a gate is red."""
    names = _known("--method", method, list(KNOWN))
    variants = _known("--variant", variant, list(VARIANTS))
    reductions = _known("--reduction", [str(r) for r in reduction or ()], [str(r) for r in REDUCTIONS])
    chosen = _known("--photos", [photos] if photos else None, list(SETS))
    pictures = {name for one in chosen for name in SETS[one]}

    def wanted(cell: Cell) -> bool:
        return (
            (not names or cell.method in names)
            and (not variants or cell.variant in variants)
            and (not reductions or str(cell.reduction) in reductions)
            and (not pictures or cell.photograph in pictures)
        )

    part = bool(names or variants or reductions or chosen)
    # Part of it must not stand where the whole of it was.
    if out is None and not small and problems is None and seed == 0 and (record or not part):
        out = RESULTS
    plan = cells(boxes=1 if small else problems, wanted=wanted)
    directions = {} if names or variants else {name: DIRECTIONS for one in SETS for name in SETS[one]}
    if small or pictures:
        directions = {name: 2 if small else n for name, n in directions.items() if name in pictures or not pictures}
    # What a part left behind holds rows of the run before it, which are not those of a whole run that goes on.
    unfinished = out.with_suffix(".json.part.unfinished" if part else ".json.unfinished") if out else None
    before = measure.read(unfinished) if unfinished and not fresh else None
    if before is not None and before["seed"] != seed:
        before = None
    if before is not None:
        print(f"going on with what was begun {before['runs'][0]['started']}; --fresh begins anew")
        if not part:
            before |= {"rows": [row for row in before["rows"] if measure.cell_of(row) in plan]}
    elif part and record and out is not None:
        before = _without(measure.read(out), plan)
    made = measure.record(
        plan,
        seed=seed,
        directions=directions,
        latencies=0 if part and "locate" not in names else 3 if small else LATENCIES,
        workers=workers or measure.default_workers(),
        out=unfinished,
        before=before,
        order=cells(wanted=lambda _: True),
        told=_tell,
    )
    if out and unfinished:
        unfinished.replace(out)
        print(f"recorded in {out.name}")
    _summary(made)
    wrong = Recorded(made).red()
    for row in wrong:
        print(f"wrong, and not counted: {row['method']}, {row['target']}, {row['photograph']}: {row['gate']['said']}")
    if wrong:
        raise typer.Exit(1)


def _without(record: dict[str, Any] | None, plan: dict[Cell, int]) -> dict[str, Any] | None:
    """What is recorded beside the plan. Latencies are measured anew with the method they are of."""
    if record is None:
        return None
    rows = [row for row in record["rows"] if measure.cell_of(row) not in plan]
    searched = any(cell.method == "locate" for cell in plan)
    return record | {"rows": rows, "latency": [] if searched else record["latency"]}


def _tell(row: dict[str, Any]) -> None:
    cell = ", ".join(str(value) for value in vars(measure.cell_of(row)).values())
    print(f"{cell}: {row['seconds']:.1f} s" if row["gate"]["green"] else f"{cell}: wrong", flush=True)


def _summary(record: dict[str, Any]) -> None:
    """What was recovered in all, of each set, and the median corner error."""
    recorded = Recorded(record)
    print(f"\n{'method':28} {'target':18} {'variant':8} {'photos':9} {'f':>2} {'n':>5} {'recovered':>10} {'error':>8}")
    seen = dict.fromkeys((c.method, c.target, c.variant, c.reduction) for c in recorded.rows)
    for method, target, variant, reduction in seen:
        for photos in SETS:
            problems = recorded.problems(method, target, variant, photos, reduction)
            found, error = share(problems), median_error(problems)
            if found is not None:
                off = "" if error is None else f"{error:8.4f}"
                head = f"{method:28} {target:18} {variant:8} {photos:9} {reduction:2} {found.of:5}"
                print(f"{head} {found.percent:8.1f} % {off}")


@app.command("report")
def _report() -> None:
    """Write docs/recovery.md and its charts from what is recorded."""
    record = measure.read(RESULTS)
    if record is None:
        raise typer.BadParameter(f"there is no {RESULTS.name} yet; `python -m benchmarks.recovery run` makes it")
    for path in report.write(record):
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    app()
