"""How a command stops: a sentence on stderr and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

OK, FAILED, USAGE = 0, 1, 2

_P = ParamSpec("_P")


class UsageError(Exception):
    """The command cannot do what it was asked; nothing has been written. The text is for the person at the keyboard."""


def complain(command: str, message: str) -> None:
    """One line on stderr, unwrapped, so that a name in it can be copied."""
    print(f"diffcrop {command}: {message}", file=sys.stderr)


def stops_on_usage_problems(command: str) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Turn a `UsageError` that leaves the command into its text and exit code 2."""

    def decorate(function: Callable[_P, None]) -> Callable[_P, None]:
        @functools.wraps(function)
        def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except UsageError as problem:
                complain(command, str(problem))
                leave(USAGE)

        return wrapped

    return decorate


def leave(code: int) -> NoReturn:
    """End the command with this exit code."""
    raise typer.Exit(code)


def reason(error: Exception) -> str:
    """Why something could not be written, for a sentence's end."""
    if isinstance(error, FileExistsError):
        return f"{error.filename} has come into being meanwhile; --force overwrites"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch ran out of memory, which it says with a RuntimeError."""
    # "can't allocate memory" where PyTorch itself allocates; out of the kernels comes the call that failed.
    return "alloc" in str(error) or "aten::empty" in str(error)
