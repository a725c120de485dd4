"""Boxes that know their format and the size of their image, as `torchvision.tv_tensors.BoundingBoxes`, told by that.

torchvision is not imported: a tensor of a class of its own with the attributes ``format`` and ``canvas_size`` is one of
them. What comes out are plain tensors on the same graph, so the classes' own rules never meet those of other tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _boxes

UPRIGHT = {"XYXY": "xyxy", "XYWH": "xywh", "CXCYWH": "cxcywh"}
# Rotated formats, and the function that takes what they are.
ROTATED = {"XYWHR": "crop_rotated", "CXCYWHR": "crop_rotated", "XYXYXYXY": "crop_quad"}


class Read(NamedTuple):
    """Boxes without their tag, the format to read them in, and the (H, W) that each tensor of them was made for."""

    boxes: Any
    box_format: Any
    canvases: tuple[tuple[int, int] | None, ...] = ()


def is_bounding(value: Any) -> bool:
    """Whether a tensor says its own format and canvas."""
    if type(value) in (Tensor, torch.nn.Parameter) or not isinstance(value, Tensor):
        return False
    return hasattr(value, "canvas_size") and hasattr(value, "format")


def bare(value: Any) -> Any:
    """A tensor of torchvision's classes as a plain one; anything else as it is."""
    if type(value) in (Tensor, torch.nn.Parameter) or not isinstance(value, Tensor):
        return value
    if not any(base.__module__.startswith("torchvision.tv_tensors") for base in type(value).__mro__):
        return value
    return value.as_subclass(Tensor)


def read(boxes: Any, box_format: Any, coords: Any, name: str = "boxes", argument: str = "box_format") -> Read:
    """Boxes, or a list of them, and the format that they are in: their own where they have one.

    ``box_format`` is the caller's: its default, "xyxy", gives way to a tag, any other must be the same.
    """
    if isinstance(boxes, (list, tuple)):
        if not any(map(is_bounding, boxes)):
            return Read(boxes, box_format)
        each = [read(t, box_format, coords, f"{name}[{i}]", argument) for i, t in enumerate(boxes)]
        formats = [one.box_format for one in each]
        for i, other in enumerate(formats):
            if other != formats[0]:
                raise ValueError(
                    f"the boxes of a list must agree in format, got {other!r} for {name}[{i}] and {formats[0]!r} for "
                    f"{name}[0]; convert them first"
                )
        canvases = tuple(one.canvases[0] if one.canvases else None for one in each)
        return Read([one.boxes for one in each], formats[0], canvases)
    if not is_bounding(boxes):
        return Read(boxes, box_format)
    return _read(boxes, box_format, coords, name, argument)


def _read(boxes: Any, box_format: Any, coords: Any, name: str, argument: str) -> Read:
    tag = format_of(boxes, name)
    if tag in ROTATED:
        raise ValueError(f"{name} of format {tag} are no upright boxes; use diffcrop.{ROTATED[tag]}")
    own = UPRIGHT[tag]
    if box_format not in ("xyxy", own):
        raise ValueError(f"{name} say that they are {own!r} themselves, got {argument}={box_format!r}; leave it out")
    if coords != "pixel":
        raise ValueError(
            f"{name} of the class {type(boxes).__name__} are in pixels of their canvas, got coords={coords!r}; leave "
            f"it out, or pass {name}.as_subclass(torch.Tensor)"
        )
    return Read(boxes.as_subclass(Tensor), own, (canvas_of(boxes, name),))


def rotated(
    boxes: Any,
    sizes: Sequence[Sequence[int]],
    coords: Any,
    clockwise: bool,
    angle_unit: str,
    *,
    function: str = "crop_rotated",
    what: str = "images",
    name: str = "boxes",
) -> Any:
    """Boxes of a rotated format as (cx, cy, w, h, angle), or lists of them; plain ones as they are.

    Torchvision's angles are degrees, counter-clockwise on the screen, about the corner (x, y) for XYWHR. ``sizes`` are
    those of ``what`` the caller calls so, ``function``; none where they are not known.
    """

    def convert(one: Any, tag: str, name: str) -> Tensor:
        if clockwise or angle_unit != "degrees":
            raise ValueError(
                f"{name} of format {tag} have angles in degrees, counter-clockwise, got clockwise={clockwise!r} and "
                f"angle_unit={angle_unit!r}; leave them out"
            )
        bare = one.as_subclass(Tensor)
        if bare.shape[-1:] != (5,):
            return bare  # for the caller to refuse
        if tag == "CXCYWHR":
            return _boxes.promote(bare)
        # Half precision does not hold what the centre is made of.
        x, y, w, h, angle = _boxes.widen(bare).unbind(-1)
        turn = torch.deg2rad(angle)
        cos, sin = torch.cos(turn), torch.sin(turn)
        centred = torch.stack([x + (w * cos + h * sin) / 2, y + (h * cos - w * sin) / 2, w, h, angle], -1)
        return centred.to(_boxes.promoted_dtype(bare.dtype))

    return _turned(boxes, sizes, coords, (name, what), (function, "crop_rotated"), convert)


def quads(
    value: Any, sizes: Sequence[Sequence[int]], coords: Any, *, function: str = "crop_quad", what: str = "images"
) -> Any:
    """Boxes of format XYXYXYXY as corners (..., 4, 2), or lists of them; plain ones as they are."""

    def convert(one: Any, *_: Any) -> Tensor:
        bare = one.as_subclass(Tensor)
        return bare.unflatten(-1, (4, 2)) if bare.shape[-1:] == (8,) else bare

    return _turned(value, sizes, coords, ("quads", what), (function, "crop_quad"), convert)


def sizes_of(images: Any) -> list[Sequence[int]]:
    """(H, W) of images, one or a list of them; none where they are no images, which is the caller's error."""
    each = images if isinstance(images, (list, tuple)) else [images]
    if not all(isinstance(image, Tensor) and image.ndim > 1 for image in each):
        return []
    return [image.shape[-2:] for image in each]


def _turned(
    boxes: Any,
    sizes: Sequence[Sequence[int]],
    coords: Any,
    names: tuple[str, str],
    functions: tuple[str, str],
    convert: Callable[..., Tensor],
) -> Any:
    """``names``: of the boxes and of what has the sizes. ``functions``: the caller, and which crops such boxes."""
    (name, what), (function, cropping) = names, functions
    listed = isinstance(boxes, (list, tuple))
    if not any(map(is_bounding, boxes if listed else (boxes,))):
        return boxes
    made, canvases = [], []
    for i, one in enumerate(boxes if listed else (boxes,)):
        mine = f"{name}[{i}]" if listed else name
        if not is_bounding(one):
            # Those of a list agree in dtype, and tagged ones are promoted.
            made.append(_boxes.promote(one) if isinstance(one, Tensor) and one.is_floating_point() else one)
            canvases.append(None)
            continue
        tag = format_of(one, mine)
        if ROTATED.get(tag, "crop") != cropping:
            raise ValueError(f"{mine} of format {tag} are for diffcrop.{ROTATED.get(tag, 'crop')}, not {function}")
        if coords != "pixel":
            raise ValueError(f"{mine} are in pixels of their canvas, got coords={coords!r}; leave it out")
        made.append(convert(one, tag, mine))
        canvases.append(canvas_of(one, mine))
    fits(canvases, sizes, what, name)
    return made if listed else made[0]


def format_of(boxes: Any, name: str = "boxes") -> str:
    """The name of the format, which is a member of an enumeration."""
    tag = getattr(boxes.format, "value", boxes.format)
    known = (*UPRIGHT, *ROTATED)
    if not isinstance(tag, str) or tag.upper() not in known:
        raise ValueError(f"{name}.format must be one of {', '.join(known)}, got {boxes.format!r}")
    return tag.upper()


def canvas_of(boxes: Any, name: str = "boxes") -> tuple[int, int]:
    """(H, W) of the image that the boxes were made for."""
    canvas = boxes.canvas_size
    if not isinstance(canvas, (tuple, list)) or len(canvas) != 2:
        raise ValueError(f"{name}.canvas_size must be (H, W), got {canvas!r}")
    return canvas[0], canvas[1]


def fits(
    canvases: Sequence[tuple[int, int] | None],
    sizes: Sequence[Sequence[int]],
    what: str = "images",
    name: str = "boxes",
) -> None:
    """Every canvas is of its image's size: one for all, or one for each."""
    each = len(canvases) > 1
    for i, canvas in enumerate(canvases):
        for j, shape in enumerate(sizes):
            if canvas is None or tuple(shape) == tuple(canvas) or (each and len(sizes) > 1 and i != j):
                continue
            mine, theirs = (f"{name}[{i}]" if each else name), (f"{what}[{j}]" if len(sizes) > 1 else what)
            raise ValueError(
                f"{mine} were made for a canvas of {tuple(canvas)}, got {theirs} of {tuple(shape)}; resize boxes along "
                "with their image (torchvision.transforms.v2.functional.resize takes both), or set "
                f"{mine}.canvas_size if they are right as they are"
            )
