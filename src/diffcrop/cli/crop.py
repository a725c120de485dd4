"""`diffcrop crop`: crops of photographs, written as photographs."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress

import diffcrop
from diffcrop.cli.boxes import TURNED, BoxRow, parse_box, parse_number, parse_numbers, parse_size, read_boxes
from diffcrop.cli.choices import one_of
from diffcrop.cli.outputs import check_format, check_names, plan_names, write_whole
from diffcrop.cli.photographs import (
    Photograph,
    PhotographError,
    Sampler,
    check_holds,
    crop_photograph,
    read_photograph,
    to_image,
    writable_formats,
)
from diffcrop.cli.problem import (
    FAILED,
    UsageError,
    complain,
    is_out_of_memory,
    leave,
    reason,
    stops_on_usage_problems,
)

# A bar for what is over in a moment is a flicker.
_PATIENCE_S = 2.0


class BoxFormat(str, Enum):
    """What a box's four numbers are."""

    XYXY, XYWH, CXCYWH = "xyxy", "xywh", "cxcywh"


class Coords(str, Enum):
    """What a box's numbers are measured in."""

    PIXEL, UNIT, NORMALIZED = "pixel", "unit", "normalized"


class Mode(str, Enum):
    """The filter."""

    BILINEAR, BICUBIC, LANCZOS3 = "bilinear", "bicubic", "lanczos3"
    AREA, GAUSSIAN, NEAREST = "area", "gaussian", "nearest"


class Padding(str, Enum):
    """What lies outside the photograph."""

    BORDER, ZEROS, CONSTANT = "border", "zeros", "constant"
    REFLECTION, CIRCULAR, RENORMALIZE = "reflection", "circular", "renormalize"


@dataclass(frozen=True)
class Crop:
    """One file to be written."""

    photo: Path
    row: BoxRow
    output: Path


@stops_on_usage_problems("crop")
def crop(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="The photographs to crop.", show_default=False)
    ],
    size: Annotated[str, typer.Option(metavar="HxW", help="Size of a crop in pixels, height first; N is a square.")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A file, for one crop; for more a folder, or a template such as 'crops/{stem}_{box}.png' "
            "({stem}: the photograph's name, {box}: the box's number for it, {n}: the crop's number in all). "
            "The suffix says the format; into a folder PNG is written.",
        ),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1",
            help="A box, for every photograph; fractions are welcome. May be repeated. Five numbers CX,CY,W,H,ANGLE "
            "are a turned box, in degrees counter-clockwise, as `diffcrop locate --rotation` prints it.",
            show_default=False,
        ),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Boxes, one to a line: four numbers and, optionally, the photograph they are for. "
            "A header (x0,y0,x1,y1,photo) may come first; turned boxes need theirs (cx,cy,w,h,angle).",
            show_default=False,
        ),
    ] = None,
    box_format: Annotated[
        BoxFormat,
        typer.Option(
            help="What the four numbers are: two corners, or a corner or the centre with width and height.",
            **one_of(BoxFormat),
        ),
    ] = BoxFormat.XYXY,
    coords: Annotated[
        Coords,
        typer.Option(
            help="What they are measured in: pixels ((0,0) is the photograph's corner, not a pixel's centre), "
            "the photograph's sides (0 to 1), or -1 to 1.",
            **one_of(Coords),
        ),
    ] = Coords.PIXEL,
    mode: Annotated[Mode, typer.Option(help="The filter.", **one_of(Mode))] = Mode.BILINEAR,
    antialias: Annotated[bool, typer.Option(help="Let the filter grow with the reduction.")] = True,
    padding: Annotated[
        Padding, typer.Option(help="What lies outside the photograph.", **one_of(Padding))
    ] = Padding.BORDER,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="V[,V...]",
            help="With --padding constant: the value outside, one or one per channel, "
            "in the photograph's own range (255 is white).",
            show_default=False,
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="With --mode gaussian: its width in crop pixels, 0.5 if not given.", show_default=False),
    ] = None,
    align_corners: Annotated[
        bool,
        typer.Option(
            "--align-corners",
            help="A box names the centres of its outermost pixels, as in grid_sample(align_corners=True).",
        ),
    ] = False,
    impl: Annotated[
        str | None, typer.Option(help="The implementation; `diffcrop info` lists them.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not list the files written.")] = False,
) -> None:
    """Crop photographs to a size, with sub-pixel boxes.

    Photographs are turned upright first (EXIF). Grey, 16-bit grey, colour and transparency stay what they are; colours
    are averaged by their opacity. Values are rounded half to even. Colour profiles are kept, other metadata is not.

    Exit codes: 0, all crops are written; 1, some photograph could not be read or some crop not be written, the
    others are; 2, something about the command is wrong and nothing was written.
    """  # fmt: skip
    photos = list(dict.fromkeys(photos))
    height_width = parse_size(size)
    fill_values = None if fill is None else parse_numbers(fill, "--fill")
    rows = _rows(box or [], boxes, box_format.value)
    crops = _plan(photos, rows, output)
    check_names(
        [item.output for item in crops], [f"{item.photo} {item.row.origin}" for item in crops], photos, force=force
    )
    options: dict[str, object] = {
        "box_format": box_format.value,
        "coords": coords.value,
        "mode": mode.value,
        "antialias": antialias,
        "padding_mode": padding.value,
        "align_corners": align_corners,
    }
    if sigma is not None:
        options["sigma"] = sigma
    if impl is not None:
        options["impl"] = impl
    for turned in (False, True):
        for row in [row for row in rows if row.turned == turned][:1]:
            _probe(row, fill_values, options)

    failed = 0
    with _Bar(len(crops), quiet=quiet) as bar:
        for item, photo in _with_photographs(crops, bar):
            if isinstance(photo, PhotographError):
                failed += 1
            else:
                try:
                    _write(item, photo, height_width, fill_values, options, force=force)
                except (PhotographError, OSError, MemoryError) as error:
                    failed += 1
                    bar.complain(f"{item.photo}, {item.row.origin}: {reason(error)}")
                else:
                    bar.tell(item.output)
            bar.advance()
    if failed:
        complain("crop", f"{failed} of {len(crops)} crops not written")
        leave(FAILED)


def _rows(box: Sequence[str], boxes: Path | None, box_format: str) -> list[BoxRow]:
    rows = [parse_box(text, box_format) for text in box]
    if boxes is not None:
        rows += read_boxes(boxes, box_format)
    if not rows:
        raise UsageError("there is no box: give --box X0,Y0,X1,Y1 or --boxes FILE.csv")
    return rows


def _plan(photos: Sequence[Path], rows: Sequence[BoxRow], output: str) -> list[Crop]:
    """Which box goes with which photograph, and the file each crop goes to."""
    # A file of boxes may name a photograph as the command line does, or by its last part.
    known = {name for photo in photos for name in (str(photo), photo.name)}
    rows_of: dict[str | None, list[int]] = {}
    for number, row in enumerate(rows):
        if row.photo is not None and row.photo not in known:
            raise UsageError(
                f"{row.origin}: photo is {row.photo!r}, which is not among the photographs given{_or_an_angle(row)}"
            )
        rows_of.setdefault(row.photo, []).append(number)
    pairs = []
    for photo in photos:
        own = sorted(number for name in {None, str(photo), photo.name} for number in rows_of.get(name, []))
        if not own:
            complain("crop", f"{photo}: no box is for it")
        pairs += [(photo, rows[number]) for number in own]
    names = plan_names(output, [photo for photo, _ in pairs])
    for name in names:
        check_format(name, output)
    return [Crop(photo, row, name) for (photo, row), name in zip(pairs, names, strict=True)]


def _or_an_angle(row: BoxRow) -> str:
    if parse_number(row.photo or "") is None:
        return ""
    return f"; of turned boxes the first line is {','.join(TURNED)}"


def _probe(row: BoxRow, fill: tuple[float, ...] | None, options: dict[str, object]) -> None:
    """Let the library judge the options on one black pixel before any file is touched: its rules are in one place."""
    images = torch.zeros(1 if fill is None else len(fill), 1, 1)
    try:
        _sampler(row, (1, 1), options)(images, fill=fill)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from error


def _sampler(row: BoxRow, size: tuple[int, int], options: dict[str, object]) -> Sampler:
    box = torch.tensor(row.numbers, dtype=torch.float64)
    function = diffcrop.crop
    if row.turned:
        if "sigma" in options:
            raise UsageError("--sigma belongs to --mode gaussian, which turned boxes do not have; leave it out")
        function, options = diffcrop.crop_rotated, {key: o for key, o in options.items() if key != "box_format"}

    def sample(images: torch.Tensor, *, fill: tuple[float, ...] | None) -> torch.Tensor:
        more = {} if fill is None else {"fill": fill}
        return function(images, box, size, **options, **more)  # type: ignore[arg-type]

    return sample


def _with_photographs(crops: Sequence[Crop], bar: _Bar) -> Iterator[tuple[Crop, Photograph | PhotographError]]:
    """Each crop with its photograph, read once for all its boxes; no two are in memory at a time."""
    path, photo = None, None
    for item in crops:
        if item.photo != path:
            path, photo = item.photo, None
            try:
                photo = read_photograph(path)
            except PhotographError as error:
                photo = error
                bar.complain(f"{path}: {error}")
        if photo is not None:
            yield item, photo


def _write(
    item: Crop,
    photo: Photograph,
    size: tuple[int, int],
    fill: tuple[float, ...] | None,
    options: dict[str, object],
    *,
    force: bool,
) -> None:
    suffix = item.output.suffix.lower()
    format_ = writable_formats()[suffix]
    check_holds(format_, suffix, photo)
    sampler = _sampler(item.row, size, options)
    try:
        result = crop_photograph(photo, sampler, fill=fill, interpolates=options["mode"] != "nearest")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"not enough memory for a crop of {size[0]}x{size[1]}") from error
    icc = {} if result.icc_profile is None else {"icc_profile": result.icc_profile}
    save = functools.partial(to_image(result).save, format=format_.name, **format_.options, **icc)
    write_whole(item.output, save, force=force)


class _Bar:
    """A progress bar on stderr, once it takes long, if that is a terminal and the files are not listed there anyway."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total, self._done, self._quiet = total, 0, quiet
        self._console = Console(stderr=True)
        self._wanted = self._console.is_terminal and (quiet or not sys.stdout.isatty())
        self._start = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self) -> None:
        """One crop more is done with."""
        self._done += 1
        if self._progress is None and self._wanted and time.monotonic() - self._start > _PATIENCE_S:
            # Standard output may be a file; redirecting it through this console would send its lines to stderr.
            self._progress = Progress(
                console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._progress.add_task("cropping", total=self._total)
            self._progress.start()
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done)

    def tell(self, path: Path) -> None:
        """A file is written."""
        if not self._quiet:
            print(path, flush=True)

    def complain(self, message: str) -> None:
        """Say what went wrong, above the bar."""
        if self._progress is None:
            complain("crop", message)
        else:
            self._console.print(f"diffcrop crop: {message}", markup=False, highlight=False, soft_wrap=True)
