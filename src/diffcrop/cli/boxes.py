"""Boxes and sizes as a person writes them: on the command line and in a CSV file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffcrop.cli.problem import UsageError

# What the four numbers of a box are called, per format. The same names head the columns of a CSV file.
COLUMNS = {
    "xyxy": ("x0", "y0", "x1", "y1"),
    "xywh": ("x", "y", "w", "h"),
    "cxcywh": ("cx", "cy", "w", "h"),
}
# A box that may be turned, as `diffcrop locate --rotation` prints it: degrees, counter-clockwise.
TURNED = ("cx", "cy", "w", "h", "angle")
_PHOTO = "photo"

# Narrower than float(), which also reads "1_000", "nan" and Arabic digits.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SIZE = re.compile(r"(\d+)(?:[xX×](\d+))?", re.ASCII)


@dataclass(frozen=True)
class BoxRow:
    """Four numbers, or five of a turned box, the photograph they are for (None: every one), where they were written."""

    numbers: tuple[float, ...]
    photo: str | None
    origin: str

    @property
    def turned(self) -> bool:
        """Whether these are centre, sides and angle."""
        return len(self.numbers) == len(TURNED)


def parse_number(text: str) -> float | None:
    """The finite number that `text` is, or None."""
    if _NUMBER.fullmatch(text.strip()) is None:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """`"1,2.5"` -> (1.0, 2.5); `option` names the culprit in the message."""
    values = []
    for part in text.split(","):
        value = parse_number(part)
        if value is None:
            hint = ""
            if not part.strip() or all(parse_number(word) is not None for word in part.split()):
                words = [word for piece in text.split(",") for word in piece.split()]
                hint = f"; numbers are separated by commas, without spaces: {option} {','.join(words) or '1,2,3,4'}"
            raise UsageError(f"{option} {text!r}: {part.strip()!r} is not a finite number{hint}")
        values.append(value)
    return tuple(values)


def parse_box(text: str, box_format: str) -> BoxRow:
    """`"1,2.5,30,40"` -> a row for every photograph."""
    numbers = parse_numbers(text, "--box")
    if len(numbers) not in (4, len(TURNED)):
        wanted = ",".join(COLUMNS[box_format]).upper()
        raise UsageError(
            f"--box {text!r}: has {len(numbers)} numbers, a box has four: {wanted}, and a turned one five: "
            f"{','.join(TURNED).upper()}"
        )
    return _told(BoxRow(numbers, None, f"--box {text}"), box_format)


def _told(row: BoxRow, box_format: str) -> BoxRow:
    """Turned boxes have a format of their own."""
    if row.turned and box_format == "xywh":
        raise UsageError(
            f"{row.origin}: five numbers are a turned box, {','.join(TURNED).upper()}, got --box-format xywh; leave it "
            "out"
        )
    return row


def parse_size(text: str) -> tuple[int, int]:
    """`"240x320"` -> (240, 320), height first; `"224"` -> (224, 224)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--size {text!r}: should be HEIGHTxWIDTH such as 240x320, or one number for a square")
    height = int(match[1])
    width = height if match[2] is None else int(match[2])
    if height == 0 or width == 0:
        raise UsageError(f"--size {text!r}: both sides must be at least 1")
    return height, width


def read_boxes(path: Path, box_format: str) -> list[BoxRow]:
    """The boxes of a comma-separated file, one to a line.

    With a header the columns may stand in any order: the four of the box format, or those of turned boxes (cx, cy, w,
    h, angle), and, optionally, `photo`. Without one the four numbers come first and the photograph's name may follow.
    Empty lines are skipped. Every complaint names the file, the line and the value.
    """
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
            except csv.Error as error:
                raise UsageError(f"{path}, line {reader.line_num}: not comma-separated text ({error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error})") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error

    lines = [(number, cells) for number, cells in lines if any(cells)]
    box: Sequence[str] = COLUMNS[box_format]
    columns = box
    if lines and _is_header(lines[0][1]):
        number, cells = lines.pop(0)
        box = TURNED if TURNED[-1] in map(str.lower, cells) else box
        columns = _header(cells, box, box_format, f"{path}, line {number}")
    elif lines and len(lines[0][1]) == 5:
        columns = (*columns, _PHOTO)
    if not lines:
        raise UsageError(f"{path}: holds no boxes")
    rows = [_row(cells, columns, box, f"{path}, line {number}") for number, cells in lines]
    return [_told(row, box_format) for row in rows]


def _is_header(cells: list[str]) -> bool:
    # A bad number in the first line must be reported as one, so only a line of mere names is taken for a header.
    return all(re.fullmatch(r"[A-Za-z_]\w*", cell) for cell in cells)


def _header(cells: list[str], box: Sequence[str], box_format: str, where: str) -> list[str]:
    names = [cell.lower() for cell in cells]
    allowed = [*box, _PHOTO]
    for name in names:
        if name not in allowed:
            raise UsageError(f"{where}: unknown column {name!r}; with --box-format {box_format} the columns are "
                               f"{', '.join(box)} and, optionally, {_PHOTO}")  # fmt: skip
        if names.count(name) > 1:
            raise UsageError(f"{where}: column {name!r} is there {names.count(name)} times")
    for name in box:
        if name not in names:
            raise UsageError(f"{where}: there is no column {name!r}, only {', '.join(names)}")
    return names


def _row(cells: list[str], columns: Sequence[str], box: Sequence[str], where: str) -> BoxRow:
    if len(cells) != len(columns):
        raise UsageError(
            f"{where}: has {len(cells)} values, not {len(columns)} ({', '.join(columns)}): {','.join(cells)!r}"
        )
    values = dict(zip(columns, cells, strict=True))
    numbers = []
    for name in box:
        value = parse_number(values[name])
        if value is None:
            raise UsageError(f"{where}: {name} is {values[name]!r}, not a finite number")
        numbers.append(value)
    photo = values.get(_PHOTO)
    if photo == "":
        raise UsageError(f"{where}: {_PHOTO} is empty; leave the column out for boxes that are for every photograph")
    return BoxRow(tuple(numbers), photo, where)
