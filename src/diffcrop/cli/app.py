"""The commands, together."""

from __future__ import annotations

from typing import Annotated

import typer

import diffcrop
from diffcrop.cli.crop import crop
from diffcrop.cli.demo import demo
from diffcrop.cli.info import info
from diffcrop.cli.locate import locate

app = typer.Typer(
    no_args_is_help=True,
    # Plain help and messages: words keep together at any width, and a name in a message can be copied.
    rich_markup_mode=None,
    # A defect of ours should come as a plain traceback, which can be pasted into an issue.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(crop)
app.command()(locate)
app.command()(info)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"diffcrop {diffcrop.__version__}")
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Differentiable cropping of images, from the command line."""
