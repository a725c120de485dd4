"""Options that take one of a few names."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from enum import Enum
from typing import Any, TypedDict, TypeVar

import typer

_Kind = TypeVar("_Kind", bound=Enum)


class Choice(TypedDict):
    """What makes an option one of a few names: arguments of `typer.Option`."""

    parser: Callable[[Any], Any]
    metavar: str


def one_of(kind: type[_Kind]) -> Choice:
    """The members of an enumeration by their values. A name that is none of them is told the one that is meant."""
    names = [str(member.value) for member in kind]

    def parse(value: Any) -> _Kind:
        if isinstance(value, kind):
            return value
        if value in names:
            return kind(value)
        near = difflib.get_close_matches(str(value).lower(), names, n=1, cutoff=0.5)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise typer.BadParameter(f"{str(value)!r} is not one of {', '.join(map(repr, names))}{meant}")

    return {"parser": parse, "metavar": f"[{'|'.join(names)}]"}
