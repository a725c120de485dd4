"""Where results go: names, the refusal to overwrite, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from diffcrop.cli.photographs import writable_formats
from diffcrop.cli.problem import UsageError

# What a name template may ask for.
FIELDS = {"stem": "the photograph's name without its suffix", "box": "the box's number for this photograph, from 1",
          "n": "the crop's number in all, from 1"}  # fmt: skip
_SHOWN = 5


def plan_names(output: str, photos: Sequence[Path]) -> list[Path]:
    """One path per crop. `photos` names the photograph of each crop, those of one photograph together.

    `output` is a file (for a single crop), a template with `{stem}`, `{box}`, `{n}`, or a folder, in which the crops
    are called `{stem}.png`, or `{stem}_{box}.png` if a photograph has several.
    """
    counts = Counter(photos)
    folder = output.endswith(("/", os.sep)) or Path(output).is_dir() or Path(output).suffix == ""
    if "{" in output or "}" in output:
        template = output
    elif folder:
        template = str(Path(output, "{stem}.png" if max(counts.values()) == 1 else "{stem}_{box}.png"))
    elif len(photos) == 1:
        return [Path(output)]
    else:
        example = Path(output).with_name("{stem}_{box}" + Path(output).suffix)
        raise UsageError(
            f"--output {output!r}: {len(photos)} crops do not fit into one file; give a folder, or a template such as "
            f"{str(example)!r}"
        )

    names, seen = [], dict.fromkeys(counts, 0)
    for number, photo in enumerate(photos, 1):
        seen[photo] += 1
        try:
            names.append(Path(_Template().format(template, stem=photo.stem, box=seen[photo], n=number)))
        except ValueError as error:
            fields = "; ".join(f"{{{name}}}: {what}" for name, what in FIELDS.items())
            raise UsageError(f"--output {output!r}: not a template of names ({error}). It may hold {fields}") from error
    return names


class _Template(string.Formatter):
    """`str.format` without attributes and indices: a name is made from the three fields and nothing else."""

    def get_field(self, field_name: str, args: Sequence[object], kwargs: object) -> tuple[object, str]:  # noqa: ARG002
        if field_name not in FIELDS or not isinstance(kwargs, dict):
            raise ValueError(f"{{{field_name}}} is unknown")
        return kwargs[field_name], field_name


def check_format(name: Path, output: str) -> None:
    """Refuse a suffix that stands for nothing that can be written. `output` is what was asked for."""
    formats = writable_formats()
    if name.suffix.lower() not in formats:
        raise UsageError(
            f"--output {output!r}: {name.suffix or 'no suffix'} is not a format that can be written; "
            f"there are {', '.join(formats)}"
        )


def check_names(names: Sequence[Path], origins: Sequence[str], inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse, before any work, what would lose a file.

    That is: two crops of one name, a crop with the name of a photograph, a file that is there already.
    """
    taken: dict[str, str] = {}
    sources = {_key(path): path for path in inputs}
    for name, origin in zip(names, origins, strict=True):
        key = _key(name)
        if key in taken:
            raise UsageError(
                f"{name}: would be written twice, for {taken[key]} and for {origin}; "
                "a template with {n} gives each crop a name of its own"
            )
        if key in sources:
            raise UsageError(
                f"{name}: is one of the photographs to be read; it is not overwritten, not even with --force"
            )
        if name.is_dir():
            raise UsageError(f"{name}: is a folder")
        _check_folder(name)
        taken[key] = origin
    # lexists: a dangling link is somebody's, too.
    there = [] if force else [name for name in names if os.path.lexists(name)]
    if there:
        listed = ", ".join(map(str, there[:_SHOWN])) + (
            f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
        )
        verb = "exists" if len(there) == 1 else "exist"
        raise UsageError(f"already {verb}: {listed}. Nothing was written; --force overwrites")


def _key(path: Path) -> str:
    # casefold: on the file systems of macOS and Windows A.png and a.png are one file.
    return str(path.resolve()).casefold()


def _check_folder(name: Path) -> None:
    for parent in name.parents:
        if parent.exists():
            if not parent.is_dir():
                raise UsageError(f"{name}: {parent} is a file, not a folder")
            return


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, force: bool) -> None:
    """Let `write` fill a file beside `path`, then give it its name: at no time is there half a file of that name.

    Without `force` a file that has come into being since the names were checked is not replaced: `FileExistsError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # Not a temporary file of `tempfile`: that is 0600 whatever the umask.
        with part.open("xb") as stream:
            write(stream)
        if not force:
            _claim(part, path)
        else:
            part.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _claim(part: Path, path: Path) -> None:
    """Rename that fails where there is a file already, which a plain rename replaces on most systems."""
    try:
        path.hardlink_to(part)
    except FileExistsError as error:
        # The system's names the part first, which is not the file that is in the way.
        raise FileExistsError(17, "File exists", str(path)) from error
    except OSError as error:
        # No hard links here (FAT, some network drives): a look before the rename is the best there is.
        if os.path.lexists(path):
            raise FileExistsError(17, "File exists", str(path)) from error
        part.replace(path)
