"""`diffcrop locate`: where in a photograph a smaller picture was cropped from."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import diffcrop
from diffcrop.cli.boxes import parse_numbers
from diffcrop.cli.choices import one_of
from diffcrop.cli.outputs import check_format, check_names, write_whole
from diffcrop.cli.photographs import Photograph, PhotographError, read_photograph, writable_formats
from diffcrop.cli.problem import (
    FAILED,
    UsageError,
    complain,
    is_out_of_memory,
    leave,
    reason,
    stops_on_usage_problems,
)

# What Pillow weighs the colours with for its mode L (ITU-R 601): most grey templates were made so.
_LUMA = (0.299, 0.587, 0.114)
_WHITE = 255.0
# With less than this share of its variance explained, a template may be turned. (Noise and compression leave more.)
_WELL_EXPLAINED = 0.9


class Metric(str, Enum):
    """What makes two pictures alike."""

    L2, ZNCC = "l2", "zncc"


class Aspect(str, Enum):
    """Whether width and height are scaled alike."""

    FREE, FIXED = "free", "fixed"


class Filter(str, Enum):
    """The filters that have a derivative."""

    BILINEAR, BICUBIC, LANCZOS3 = "bilinear", "bicubic", "lanczos3"
    AREA, GAUSSIAN = "area", "gaussian"


@dataclass(frozen=True)
class Pair:
    """Scene and template in the same channels and units, (C, H, W) and (C, h, w), float32.

    `compared` says what was done for that. `unit` is 255 where that is white, None for float photographs.
    """

    scene: Tensor
    template: Tensor
    compared: str
    unit: float | None


@dataclass(frozen=True)
class Found:
    """A `diffcrop.Location` in plain numbers. What is not finite there (no errors can be given) is None.

    The box is (x0, y0, x1, y1), or (cx, cy, w, h, angle) where it may be turned. `explained` is the share of the
    template's variance that the crop explains; None where differences are weighed (--huber).
    """

    box: tuple[float, ...]
    standard_errors: tuple[float | None, ...]
    covariance: list[list[float | None]]
    scale: tuple[float, float]
    residual: float
    explained: float | None
    mode: str
    converged: bool


@stops_on_usage_problems("locate")
def locate(
    scene: Annotated[Path, typer.Argument(metavar="SCENE", help="The photograph to search.", show_default=False)],
    template: Annotated[
        Path, typer.Argument(metavar="TEMPLATE", help="The picture that was cropped from it.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Draw the box on the scene, and template, crop and their difference beside it, into this file.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    metric: Annotated[
        Metric,
        typer.Option(
            help="The squared difference, or the correlation, which does not mind brightness and contrast.",
            **one_of(Metric),
        ),
    ] = Metric.L2,
    aspect: Annotated[
        Aspect,
        typer.Option(
            help="Whether width and height are scaled each for itself or by the same factor.", **one_of(Aspect)
        ),
    ] = Aspect.FREE,
    rotation: Annotated[
        bool,
        typer.Option("--rotation", help="Find templates that are turned, too: the box has five numbers then."),
    ] = False,
    angles: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            help="With --rotation: the least and the greatest angle of the box in the scene that is searched, in "
            "degrees, counter-clockwise. What was turned by +30 before it was cut out is found at -30.",
            show_default="any",
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            help="Scene pixels for a template pixel, least and greatest. If not given: boxes from a twelfth of the "
            "scene's sides up to all of it.",
            show_default=False,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="X0,Y0,X1,Y1",
            help="A box to search around, instead of the whole scene; with --rotation CX,CY,W,H,ANGLE.",
            show_default=False,
        ),
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option(
            help="With --init: how far around it, in sides of the box; 0 only refines it.", show_default="0.5"
        ),
    ] = None,
    mode: Annotated[
        list[Filter] | None,
        typer.Option(
            help="The filter that made the template. May be repeated: that which fits best is kept.",
            show_default="bilinear, bicubic, lanczos3, area",
            **one_of(Filter),
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many boxes the search scores at most.", show_default="400000, or as many as --scales needs"
        ),
    ] = None,
    huber: Annotated[
        float | None,
        typer.Option(
            help="With --metric l2: differences beyond this (255 is white) count less, for templates that are covered "
            "in part.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Find the box of a photograph that a picture was cropped from.

    The picture may be smaller, of any scale, compressed, and with --rotation turned. Both are set upright first (EXIF).
    Where one of the two is grey both are compared in grey. Transparent pixels count as black. 16 bits are brought to
    0 to 255. The standard errors hold where template and crop differ by noise that is independent from pixel to pixel.

    Exit codes: 0, found; 1, not found (the search did not converge), or the picture of --output could not be written;
    2, something about the command is wrong and nothing was written.
    """  # fmt: skip
    if output is not None:
        check_format(output, str(output))
        check_names([output], [str(scene)], [scene, template], force=force)
    options: dict[str, Any] = {"metric": metric.value, "aspect": aspect.value, "candidates": candidates, "huber": huber}
    if angles is not None and not rotation:
        raise UsageError(f"--angles {angles!r}: are those of a turned template; add --rotation")
    if rotation:
        options["rotation"] = angles is None or _numbers(angles, "--angles", 2, "LO,HI")
    if scales is not None:
        options["scales"] = _numbers(scales, "--scales", 2, "LO,HI")
    if init is not None:
        wanted_numbers = (5, "CX,CY,W,H,ANGLE") if rotation else (4, "X0,Y0,X1,Y1")
        hints = {4: "its angle may be 0"} if rotation else {5: "add --rotation"}
        options["init"] = _numbers(init, "--init", *wanted_numbers, hints)
    if reach is not None:
        options["reach"] = reach
    if mode:
        options["mode"] = [item.value for item in mode]

    photo, wanted = _read(scene), _read(template)
    _check_sizes(scene, photo, template, wanted)
    pair = _pair(scene, photo, template, wanted, metric)
    found = _search(pair, options)
    hint = None
    if not rotation and found.explained is not None and found.explained < _WELL_EXPLAINED:
        share = math.floor(100 * found.explained)
        hint = f"the crop explains {share} % of the template; if it may be turned, add --rotation"
    failure = None
    if output is not None:
        try:
            _draw(output, photo, pair, found, metric, force=force)
        except (OSError, MemoryError) as error:
            failure = f"{output}: not written ({reason(error)})"
    written = None if failure else output
    if as_json:
        print(json.dumps(_facts(found, scene, photo, template, wanted, pair, metric, written), indent=2))
    else:
        print("\n".join(_lines(found, pair, metric, written)))
    if failure:
        complain("locate", failure)
    if not found.converged:
        complain("locate", _remedies(metric, searched=init is None, turned=rotation))
    elif hint is not None:
        complain("locate", hint)
    if failure or not found.converged:
        leave(FAILED)


def _numbers(text: str, option: str, count: int, wanted: str, hints: dict[int, str] | None = None) -> tuple[float, ...]:
    """So many numbers; ``hints`` say what others may have been meant for."""
    numbers = parse_numbers(text, option)
    if len(numbers) != count:
        hint = (hints or {}).get(len(numbers))
        raise UsageError(
            f"{option} {text!r}: should be {count} numbers, {wanted}, not {len(numbers)}{f'; {hint}' if hint else ''}"
        )
    return numbers


def _read(path: Path) -> Photograph:
    try:
        return read_photograph(path)
    except PhotographError as error:
        raise UsageError(f"{path}: {error}") from error


def _size(photo: Photograph) -> tuple[int, int]:
    """(width, height)."""
    return photo.pixels.shape[2], photo.pixels.shape[1]


def _check_sizes(scene: Path, photo: Photograph, template: Path, wanted: Photograph) -> None:
    (width, height), (w, h) = _size(photo), _size(wanted)
    if w > width or h > height:
        remedy = "swap the two" if w >= width and h >= height else "`diffcrop crop` reduces it"
        raise UsageError(f"{template}: is {w}x{h}, larger than the scene {scene} of {width}x{height}; {remedy}")


def _pair(scene: Path, photo: Photograph, template: Path, wanted: Photograph, metric: Metric) -> Pair:
    """Bring both to the same channels and units."""
    floats = [item.mode == "F" for item in (photo, wanted)]
    if floats[0] != floats[1] and metric is Metric.L2:
        name, other = (scene, template) if floats[0] else (template, scene)
        raise UsageError(
            f"{name}: has float pixels and {other} has not, so their units differ; --metric zncc does not mind"
        )
    image, small = _visible(photo), _visible(wanted)
    for name, pixels in ((scene, image), (template, small)):
        if not bool(pixels.isfinite().all()):
            raise UsageError(f"{name}: has pixels that are not finite, {int((~pixels.isfinite()).sum())} of them")
    grey = [_is_grey(image), _is_grey(small)]
    if any(grey):
        image, small = _to_grey(image), _to_grey(small)
        compared = f"in grey, as {'both are' if all(grey) else 'the scene is' if grey[0] else 'the template is'}"
    else:
        compared = "in colour"
    if any(item.has_alpha and bool((item.pixels[-1] < _WHITE).any()) for item in (photo, wanted)):
        compared += ", transparent pixels as black"
    if torch.equal(small.amax((1, 2)), small.amin((1, 2))):
        raise UsageError(f"{template}: is all of one colour; there is nothing to find it by")
    return Pair(image, small, compared, None if any(floats) else _WHITE)


def _visible(photo: Photograph) -> Tensor:
    """The colours, float32, 0 to 255, times their opacity: that is how `diffcrop crop` averages them."""
    pixels = photo.pixels.to(torch.float32)
    if photo.mode == "I;16":
        pixels = pixels * (_WHITE / 0xFFFF)
    return pixels[:-1] * (pixels[-1:] / _WHITE) if photo.has_alpha else pixels


def _is_grey(pixels: Tensor) -> bool:
    """Whether there is one channel, or three of which each is the same, as of a grey picture saved in colour."""
    return all(torch.equal(pixels[0], channel) for channel in pixels[1:])


def _to_grey(pixels: Tensor) -> Tensor:
    if len(pixels) == 1:
        return pixels
    return torch.tensordot(torch.tensor(_LUMA), pixels, 1)[None]


def _search(pair: Pair, options: dict[str, Any]) -> Found:
    try:
        result = diffcrop.locate(pair.scene, pair.template, **options)
    except ValueError as error:
        # The library's rules are in one place, and its names for the options are those of the command line.
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        height, width = pair.scene.shape[1:]
        complain("locate", f"not enough memory to search a scene of {width}x{height}")
        leave(FAILED)
    box = tuple(result.box.tolist())
    height, width = pair.template.shape[1:]
    sides = box[2:4] if len(box) == 5 else (box[2] - box[0], box[3] - box[1])
    return Found(
        box=box,
        standard_errors=tuple(_finite(value) for value in result.covariance.diagonal().sqrt().tolist()),
        covariance=[[_finite(value) for value in row] for row in result.covariance.tolist()],
        scale=(sides[0] / width, sides[1] / height),
        residual=float(result.residual),
        explained=_explained(pair.template, float(result.residual), options),
        mode=result.trace.names[int(result.trace.modes)],
        converged=bool(result.converged),
    )


def _explained(template: Tensor, residual: float, options: dict[str, Any]) -> float | None:
    """The share of the template's variance that the crop explains, as `diffcrop.locate` counts it for ``converged``."""
    if options.get("metric") == Metric.ZNCC.value:
        return 1 - residual**2
    energy = (template.double() - template.double().mean((1, 2), keepdim=True)).square().mean().item()
    if options.get("huber") is not None or energy == 0:
        return None
    return max(1 - residual**2 / energy, 0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _box_text(found: Found, digits: int) -> str:
    # + 0.0 makes a plain zero of a negative one.
    return ",".join(f"{round(value, digits) + 0.0:.{digits}f}" for value in found.box)


def _numbers_text(found: Found) -> str:
    if len(found.box) == 5:
        return "cx,cy,w,h in pixels of the scene, angle in degrees, counter-clockwise"
    return "x0,y0,x1,y1 in pixels of the scene"


def _residual_text(found: Found, pair: Pair, metric: Metric) -> str:
    if metric is Metric.ZNCC:
        return f"{found.residual:.4f} of the template's contrast is not explained"
    unit = " (255 is white)" if pair.unit is not None else ""
    return f"{found.residual:.4g} root mean square{unit}"


def _lines(found: Found, pair: Pair, metric: Metric, written: Path | None) -> list[str]:
    """The result for a person. An upright box is written as `diffcrop crop --box` reads it."""
    errors = ",".join("unknown" if value is None else f"{value:.3f}" for value in found.standard_errors)
    lines = {
        "box": f"{_box_text(found, 3)} ({_numbers_text(found)})",
        "errors": f"{errors} (standard errors, px{' and degrees' if len(found.box) == 5 else ''})",
        "scale": f"{found.scale[0]:.4f} across, {found.scale[1]:.4f} down (scene pixels to a template pixel)",
        "residual": _residual_text(found, pair, metric),
        "explained": "" if found.explained is None else f"{100 * found.explained:.1f} % of the template's variance",
        "filter": found.mode,
        "compared": pair.compared,
        "converged": "yes" if found.converged else "no",
    }
    if written is not None:
        lines["drawn"] = str(written)
    return [f"{name:<10} {value}" for name, value in lines.items() if value]


def _facts(
    found: Found,
    scene: Path,
    photo: Photograph,
    template: Path,
    wanted: Photograph,
    pair: Pair,
    metric: Metric,
    written: Path | None,
) -> dict[str, object]:
    """The result for a program. What is not finite is null."""
    sizes = {
        name: {"path": str(path), "width": _size(item)[0], "height": _size(item)[1]}
        for name, path, item in (("scene", scene, photo), ("template", template, wanted))
    }
    return {
        "box": list(found.box),
        "standard_errors": list(found.standard_errors),
        "covariance": found.covariance,
        "scale": list(found.scale),
        "residual": found.residual,
        "explained": found.explained,
        "metric": metric.value,
        "mode": found.mode,
        "converged": found.converged,
        "compared": pair.compared,
        **sizes,
        "output": None if written is None else str(written),
    }


def _remedies(metric: Metric, *, searched: bool, turned: bool) -> str:
    """What may help. What was done already is not among it."""
    remedies = []
    if metric is Metric.L2:
        remedies.append("--metric zncc if the template is brighter, darker or of another contrast")
    if searched:
        remedies += ["--scales LO,HI if its box is small in the scene", "--candidates N if textures repeat themselves"]
    else:
        remedies.append("to leave --init out, which searches the whole scene")
    if not turned:
        remedies.append("--rotation if it is turned")
    return (
        f"not converged: the box is the best one seen, but the crop there is not the template; try "
        f"{'; '.join(remedies)}. A template that is mirrored is not found"
    )


def _draw(output: Path, photo: Photograph, pair: Pair, found: Found, metric: Metric, *, force: bool) -> None:
    # matplotlib takes a second to import, which is not to be paid where nothing is drawn.
    from diffcrop.cli import overlay

    texts = (
        f"box {_box_text(found, 2)}; scale {found.scale[0]:.3f} x {found.scale[1]:.3f}",
        f"{_residual_text(found, pair, metric)}; {found.mode}; compared {pair.compared}",
    )
    title = "Found" if found.converged else "Not found (not converged): the best box seen"
    picture = overlay.overlay_picture(
        _visible(photo),
        pair.scene,
        pair.template,
        found.box,
        found.mode,
        title,
        texts,
        found=found.converged,
        unit=pair.unit,
        matched=metric is Metric.ZNCC,
    )
    format_ = writable_formats()[output.suffix.lower()]
    save = functools.partial(picture.save, format=format_.name, **format_.options)
    write_whole(output, save, force=force)
