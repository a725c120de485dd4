"""A progress bar by whichever library is there, and only for what takes long."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from diffcrop._check import describe

__all__ = ["Progress", "check_progress"]

# What is over sooner shows no bar unless it was asked for.
_DELAY = 2.0


def check_progress(value: Any) -> None:
    """None, True or False, and for True a library that draws."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"progress must be None, True or False, got {describe(value)}")
    if value and _library() is None:
        raise ImportError(
            "progress=True needs tqdm or rich, and neither is installed; `pip install diffcrop[cli]` brings rich, "
            "and progress=None shows a bar only where it can"
        )


class Progress:
    """A bar for ``total`` steps: at once (True), after two seconds (None) or never (False)."""

    def __init__(self, total: int, wanted: bool | None, title: str) -> None:
        self._total, self._title = total, title
        self._wait = None if wanted is False else 0.0 if wanted else _DELAY
        self._began = time.monotonic()
        self._bar: _Bar | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: Callable[[], str]) -> None:
        """``done`` steps are over; ``note`` is asked for a few words only if there is a bar to show them."""
        if self._bar is None:
            if self._wait is None or time.monotonic() - self._began < self._wait:
                return
            library = _library()
            if library is None:
                self._wait = None
                return
            self._bar = library(self._total, self._title)
        self._bar.show(done, note())


class _Bar:
    def __init__(self, total: int, title: str) -> None:
        raise NotImplementedError

    def show(self, done: int, note: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Tqdm(_Bar):
    def __init__(self, total: int, title: str) -> None:
        self._bar = importlib.import_module("tqdm.auto").tqdm(total=total, desc=title)
        self._done = 0

    def show(self, done: int, note: str) -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        self._bar.close()


class _Rich(_Bar):
    def __init__(self, total: int, title: str) -> None:
        # Beside what the program prints, as tqdm does it.
        console = importlib.import_module("rich.console").Console(stderr=True)
        self._bar = importlib.import_module("rich.progress").Progress(console=console)
        self._title = title
        self._bar.start()
        self._task = self._bar.add_task(title, total=total)

    def show(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, description=f"{self._title} {note}")

    def close(self) -> None:
        self._bar.stop()


def _library() -> type[_Bar] | None:
    for module, bar in (("tqdm.auto", _Tqdm), ("rich.progress", _Rich)):
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        return bar
    return None
