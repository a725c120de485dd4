"""`diffcrop info`: what is installed, and what of it can be used."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from diffcrop.cli import facts


def info(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say what is installed and which implementations work.

    For those that do not the reason stands beside them.
    """
    if as_json:
        facts.show(as_json)
        return
    # No markup: a reason may hold brackets, such as an extra's name.
    Console(markup=False, highlight=False).print(*map(_table, facts.tables()))


def _table(rows: list[tuple[str, str]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
