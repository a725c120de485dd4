"""`diffcrop info`: what is installed, and what of it can be used."""

from __future__ import annotations

import json
import platform
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import diffcrop


def info(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say what is installed and which implementations work.

    For those that do not the reason stands beside them.
    """
    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = _table()
    for name in ("diffcrop", "torch", "python", "platform"):
        table.add_row(name, str(facts[name]))
    table.add_row("SIMD level", str(facts["simd_level"]) if facts["simd_level"] is not None else "none")
    table.add_row("torch threads", str(facts["torch_threads"]))
    table.add_row("implementations", "")
    for name, reason in diffcrop.implementations().items():
        table.add_row(f"  {name}", "available" if reason is None else f"not available: {reason}")
    # No markup: a reason may hold brackets, such as an extra's name.
    served = _table()
    served.add_row("kernels", "elsewhere the reference serves")
    for name, there in diffcrop.kernels().items():
        served.add_row(f"  {name}", ", ".join(there))
    Console(markup=False, highlight=False).print(table, served)


def _table() -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    return table


def gather() -> dict[str, object]:
    """The facts, fit for JSON. A reason is None where the implementation is available."""
    return {
        "diffcrop": diffcrop.__version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "simd_level": diffcrop.simd_level(),
        "torch_threads": torch.get_num_threads(),
        "implementations": {
            name: {"available": reason is None, "reason": reason} for name, reason in diffcrop.implementations().items()
        },
        "kernels": {name: list(there) for name, there in diffcrop.kernels().items()},
    }
