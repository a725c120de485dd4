"""What `locate` refuses, and its arguments in one shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _bounding
from diffcrop._check import PICTURE, describe, real_tensor
from diffcrop.search.arguments import number

from .poses import Upright

METRICS = ("l2", "zncc")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ASPECTS = ("free", "fixed")


class Problem(NamedTuple):
    """Images (B, C, H, W), templates (B, T, C, h, w), starts (B, T, 4) or None, and the shape of the answer."""

    images: Tensor
    templates: Tensor
    init: Tensor | None
    leading: tuple[int, ...]


def problem(image: Any, template: Any, init: Any, box_numbers: int) -> Problem:
    """Check the tensors and bring them to one shape. Starts have so many numbers: 4, or 5 of turned boxes."""
    images, templates = _pixels(image, "image", (3, 4)), _pixels(template, "template", (3, 4, 5))
    _finite(images, "image")
    _finite(templates, "template")
    images, templates, leading = _batches(images, templates)
    if images.device != templates.device:
        raise ValueError(
            f"image and template must be on the same device, got {images.device} and {templates.device}; "
            f"move one with template.to({str(images.device)!r})"
        )
    if images.is_floating_point() != templates.is_floating_point():
        integer = "template" if images.is_floating_point() else "image"
        raise ValueError(
            f"image and template must be in the same units, got {images.dtype} and {templates.dtype}: integers are "
            f"taken with their values unscaled, so 255 is not 1.0; pass {integer}.float(), or {integer} / 255 where "
            "white is 1 in the other"
        )
    for i, (extent, own) in enumerate(zip(images.shape[2:], templates.shape[3:], strict=True)):
        if own > extent:
            side = ("height", "width")[i]
            raise ValueError(
                f"template must not be larger than the image, got a {side} of {own} in an image of {extent}; "
                "reduce it, as in diffcrop.crop(template, whole, size), or swap the two"
            )
    _contrast(templates)
    if _bounding.is_bounding(init):
        init = _untagged(init, images.shape[-2:], box_numbers)
        init = init[0] if not leading and len(init) == 1 else init  # their boxes are always rows
    start = None if init is None else _init(init, leading, images.device, box_numbers)
    if start is not None:
        start = start.reshape(*templates.shape[:2], box_numbers)
    return Problem(images, templates, start, leading)


def _pixels(value: Any, name: str, ranks: tuple[int, ...]) -> Tensor:
    shapes = {3: "(C, H, W)", 4: "(B, C, H, W)" if name == "image" else "(T, C, h, w)", 5: "(B, T, C, h, w)"}
    wanted = " or ".join(shapes[rank] for rank in ranks)
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Tensor) for each in value):
        raise TypeError(
            f"{name} must be a tensor of shape {wanted}, got a list of {len(value)} tensors; those of one size are "
            f"torch.stack({name}), others take a call each"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {wanted}, got {type(value).__name__}; {PICTURE}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}; convert with to_dense()")
    if value.is_complex() or (value.is_floating_point() and value.dtype not in _FLOATS):
        raise TypeError(f"{name} must be float64, float32, float16, bfloat16 or integer, got {value.dtype}")
    if value.device.type in ("meta", "mps"):
        why = "has no pixels" if value.device.type == "meta" else "has no float64, in which boxes are found"
        raise ValueError(f"{name} must be on another device: {value.device} {why}; move it to the CPU")
    if value.ndim not in ranks:
        hint = {2: f"; add the channels: {name}[None]", 5: "; volumes are not searched"}.get(value.ndim, "")
        raise ValueError(f"{name} must have shape {wanted}, got shape {tuple(value.shape)}{hint}")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    return value.detach()


def _batches(images: Tensor, templates: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Images (B, ...), templates (B, T, ...), and the shape of the boxes."""
    shapes = f"image of shape {tuple(images.shape)} and template of shape {tuple(templates.shape)}"
    if images.shape[-3] != templates.shape[-3]:
        last = (images.shape[-1], templates.shape[-1])
        hint = "; move the channels in front, as in image.permute(2, 0, 1)" if last in ((3, 3), (4, 4)) else ""
        if images.ndim == templates.ndim == 4:
            hint = hint or "; volumes (C, D, H, W) are not searched, only images and batches of them"
        raise ValueError(f"image and template must have the same number of channels, (C, H, W), got {shapes}{hint}")
    if images.ndim == 3:
        if templates.ndim == 5:
            raise ValueError(f"templates for each image of a batch need a batch of images, got {shapes}")
        leading = tuple(templates.shape[:-3])
        return images[None], templates.reshape(1, -1, *templates.shape[-3:]), leading
    count = images.shape[0]
    if templates.ndim == 3:
        return images, templates.expand(count, 1, *templates.shape), (count,)
    if templates.shape[0] != count:
        raise ValueError(
            f"a batch of B images takes one template (C, h, w) for all, one each (B, C, h, w) or T each "
            f"(B, T, C, h, w), got {shapes}"
        )
    leading = tuple(templates.shape[:-3])
    return images, templates.reshape(count, -1, *templates.shape[-3:]), leading


def _finite(pixels: Tensor, name: str) -> None:
    # A NaN is the least and the greatest: this reads the pixels once.
    if pixels.is_floating_point() and not bool(torch.stack(torch.aminmax(pixels)).isfinite().all()):
        count = int((~torch.isfinite(pixels)).sum())
        raise ValueError(
            f"{name} must be finite, got {count} NaN or infinite pixels of {pixels.numel()} "
            f"(shape {tuple(pixels.shape)}); replace them, as in torch.nan_to_num({name})"
        )


def _contrast(templates: Tensor) -> None:
    pixels = templates.double()
    spread = (pixels - pixels.mean((-2, -1), keepdim=True)).square().mean((-3, -2, -1)).sqrt()
    flat = spread <= 1e-5 * pixels.square().mean((-3, -2, -1)).sqrt()
    if bool(flat.any()):
        where = [int(i) for i in flat.nonzero()[0]]
        place = f"; it is at {where} of {list(flat.shape)}" if flat.numel() > 1 else ""
        raise ValueError(
            "template must have contrast to be found by, got a constant one, with a standard deviation of "
            f"{float(spread[tuple(where)]):.3g}{place}"
        )


def _untagged(init: Any, size: Sequence[int], box_numbers: int) -> Tensor:
    """Starts that say their own format as (x0, y0, x1, y1), or as turned boxes."""
    tag = _bounding.format_of(init, "init")
    wanted = tuple(_bounding.UPRIGHT) if box_numbers == 4 else ("XYWHR", "CXCYWHR")
    if tag not in wanted:
        turned = "; turned boxes need rotation=True" if box_numbers == 4 and tag in _bounding.ROTATED else ""
        turned = "; upright boxes need no rotation" if box_numbers == 5 and tag in _bounding.UPRIGHT else turned
        raise ValueError(f"init must be of format {' or '.join(wanted)} here, got {tag}{turned}")
    if box_numbers == 5:
        return _bounding.rotated(init, [size], "pixel", False, "degrees", function="locate", what="image", name="init")
    boxes, box_format, canvases = _bounding.read(init, "xyxy", "pixel", "init")
    _bounding.fits(canvases, [size], "image", "init")
    return diffcrop.convert_boxes(boxes, from_format=box_format)


def _init(init: Any, leading: tuple[int, ...], device: torch.device, box_numbers: int) -> Tensor:
    numbers = "(x0, y0, x1, y1)" if box_numbers == 4 else "(cx, cy, w, h, angle)"
    if not isinstance(init, Tensor):
        try:
            init = torch.as_tensor(init, dtype=torch.float64, device=device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"init must be a tensor of boxes {numbers}, got {describe(init)}") from error
    real_tensor(init, "init")
    if init.device != device:
        raise ValueError(f"init must be on the image's device {device}, got {init.device}")
    shape = (*leading, box_numbers)
    try:
        boxes = init.detach().double().expand(shape)
    except RuntimeError:
        other = 9 - box_numbers
        hint = {4: "; with rotation boxes have five numbers", 5: "; turned boxes need rotation=True"}[other]
        raise ValueError(
            f"init must have shape {shape}, a box {numbers} for each template, or broadcast to it, "
            f"got shape {tuple(init.shape)}{hint if init.ndim and init.shape[-1] == other else ''}"
        ) from None
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError(f"init must be finite, got {init.tolist()!r:.120}")
    if box_numbers == 5:
        if not bool((boxes[..., 2:4] > 0).all()):
            raise ValueError(f"init must be boxes {numbers} with w > 0 and h > 0, got {init.tolist()!r:.120}")
    elif not bool((boxes[..., 2:] > boxes[..., :2]).all()):
        raise ValueError(
            f"init must be pixel boxes (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {init.tolist()!r:.120}"
        )
    return boxes


def modes(value: Any, filters: tuple[str, ...]) -> tuple[str, ...]:
    """One filter or several."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"mode must be a filter's name or a sequence of names, got {describe(value)}")
    for name in names:
        if name not in filters:
            why = ", which has no derivative" if name == "nearest" else ""
            why = ", which crops of turned boxes do not have" if name in Upright.filters else why
            raise ValueError(f"mode must be among {filters}, got {name!r}{why}")
    return tuple(dict.fromkeys(names))


def scales(value: Any) -> tuple[float, float]:
    """The least and the greatest reduction."""
    try:
        low, high = value
    except (TypeError, ValueError):
        raise TypeError(
            f"scales must be two numbers (least, greatest), image pixels per template pixel, got {describe(value)}"
        ) from None
    low, high = (number(value, f"scales[{i}]", positive=True) for i, value in enumerate((low, high)))
    if low > high:
        raise ValueError(f"scales must be (least, greatest), got {describe(value)}")
    return low, high


def searched(
    image: tuple[int, int],
    template: tuple[int, int],
    fixed: bool,
    limits: tuple[float, float] | None,
    low: Sequence[float],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest sides (width, height) of the boxes to be searched; ``low`` where nobody says."""
    fits = [side / own for side, own in zip(image, template, strict=True)]
    most = [min(fits)] * 2 if fixed else fits
    if limits is None:
        least = [side / own for side, own in zip(low, template, strict=True)]
    else:
        least = [limits[0]] * 2
        if limits[0] > min(fits):
            raise ValueError(
                f"scales must leave boxes that fit into the image: a template of {template[0]}x{template[1]} (width, "
                f"height) fits an image of {image[0]}x{image[1]} up to a scale of {min(fits):g}, "
                f"got at least {limits[0]:g}"
            )
        most = [min(scale, limits[1]) for scale in most]
    least = [min(a, b) for a, b in zip(least, most, strict=True)]
    width, height = template
    return (width * least[0], height * least[1]), (width * most[0], height * most[1])


def rotation(value: Any, init: Any) -> tuple[float, float] | None:
    """The angles that are searched, in degrees; None where the template is upright."""
    if isinstance(value, bool):
        return (-180.0, 180.0) if value else None
    try:
        low, high = value
    except (TypeError, ValueError):
        raise TypeError(
            f"rotation must be True, False or two angles (least, greatest) in degrees, got {describe(value)}"
        ) from None
    low, high = (number(angle, f"rotation[{i}]", signed=True) for i, angle in enumerate((low, high)))
    if init is not None:
        raise ValueError(
            f"rotation=({low:g}, {high:g}) is for the search of the whole image, which init replaces; pass "
            "rotation=True, and reach for how many radians to search"
        )
    if not low <= high <= low + 360:
        raise ValueError(f"rotation must be (least, greatest) in degrees, at most 360 apart, got {describe(value)}")
    return low, high


def with_or_without_init(init: Any, scales: Any, candidates: Any, reach: Any) -> float:
    """What is for the one kind of search must not be given for the other. Returns the reach."""
    if init is None and reach is not None:
        raise ValueError(f"reach is how far from init is searched, but there is no init, got reach={describe(reach)}")
    for name, value in (("scales", scales), ("candidates", candidates)):
        if init is not None and value is not None:
            raise ValueError(f"{name} is for the search of the whole image, which init replaces; drop one of them")
    if reach is None or (reach == 0 and not isinstance(reach, bool)):
        return 0.5 if reach is None else 0.0
    reach = number(reach, "reach", positive=True)
    if reach > 2:
        raise ValueError(f"reach must be at most 2, got {reach:g}; drop init to search the whole image")
    return reach
