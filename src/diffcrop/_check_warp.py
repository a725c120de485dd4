"""The errors of crops that are not axis-aligned: rotated boxes, quadrilaterals and matrices, one function per argument.

Those three are one argument by three names and shapes, so the functions here are told its `Kind`.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _check, _check_crop, _homography
from ._context import is_sharded
from ._filters import MODES
from ._options import PADDING_MODES, WARP_MODES, WARP_PADDING_MODES, WarpOptions

# Positions are held in 32 bits, with fractions.
LONGEST = 2**27


class Kind(NamedTuple):
    """An argument that says where crops lie."""

    name: str
    tails: tuple[tuple[int, ...], ...]  # the shapes of one
    text: str
    hints: dict[tuple[int, ...], str]  # what other last dimensions are taken for

    @property
    def dims(self) -> int:
        """How many dimensions one has."""
        return len(self.tails[0])

    def leading(self, value: Tensor) -> tuple[int, ...]:
        """The dimensions that count them."""
        return tuple(value.shape[: value.ndim - self.dims])

    def shape(self, *leading: str) -> str:
        """As it is written: "(B, K, 4, 2)"."""
        shapes = [", ".join([*leading, *map(str, tail)]) + ("," if not leading and self.dims == 1 else "")
                  for tail in self.tails]  # fmt: skip
        return " or ".join(f"({shape})" for shape in shapes)


ROTATED = Kind(
    "boxes",
    ((5,),),
    "5 numbers (cx, cy, w, h, angle) in its last dimension",
    {
        (4,): "boxes without an angle are crop's: crop(images, boxes, size, box_format='cxcywh')",
        (8,): "four corners are crop_quad's: crop_quad(images, boxes.unflatten(-1, (4, 2)), size)",
        (6,): "a leading batch-index column goes into batch_index: pass boxes[:, 1:] and "
              "batch_index=boxes[:, 0].long()",
    },
)  # fmt: skip
# Of functions without images.
ROTATED_ALONE = ROTATED._replace(
    hints={
        (4,): "those without an angle have one of 0: torch.cat([boxes, torch.zeros_like(boxes[..., :1])], -1)",
        (6,): "a leading index of an image is no part of a box: pass boxes[..., 1:]",
    }
)
QUADS = Kind(
    "quads",
    ((4, 2),),
    "shape (..., 4, 2), the corners (x, y) in the order top-left, top-right, bottom-right, bottom-left",
    {
        (8,): "pass quads.unflatten(-1, (4, 2))",
        (2, 4): "pass quads.mT",
        (5,): "rotated boxes are crop_rotated's",
    },
)
MATRIX = Kind(
    "matrix",
    ((2, 3), (3, 3)),
    "shape (..., 2, 3) or (..., 3, 3)",
    {
        (6,): "pass matrix.unflatten(-1, (2, 3))",
        (9,): "pass matrix.unflatten(-1, (3, 3))",
        (3, 4): "volumes are not warped",
        (2, 2): "append the translation: torch.cat([matrix, offset[..., None]], -1)",
    },
)


def described(value: Any, kind: Kind, name: str | None = None) -> Tensor:
    """A real tensor whose last dimensions are those of its kind."""
    name = kind.name if name is None else name
    _check.real_tensor(value, name)
    shape = tuple(value.shape)
    if len(shape) >= kind.dims and shape[len(shape) - kind.dims :] in kind.tails:
        return value
    near = (text for tail, text in kind.hints.items() if shape[-len(tail) :] == tail)
    hint = next(near, "")
    raise ValueError(f"{name} must have {kind.text}, got {_check.describe(value)}{'; ' + hint if hint else ''}")


def many(value: Sequence[Any], kind: Kind) -> None:
    """A list of one tensor (K_b, ...) per image."""
    name = kind.name
    if not value:
        raise ValueError(
            f"{name} must be a tensor or a list of one tensor per image, got an empty list; none at all are a tensor "
            f"of shape {kind.shape('0')}"
        )
    if all(isinstance(v, (numbers.Real, list, tuple)) for v in value):
        raise TypeError(
            f"{name} must be a tensor, or a list of one tensor per image, got {_check.describe(value)}; "
            f"convert it with torch.as_tensor({name}, dtype=torch.float32)"
        )
    for i, t in enumerate(value):
        described(t, kind, f"{name}[{i}]")
        if t.ndim != 1 + kind.dims:
            raise ValueError(f"{name}[{i}] must have shape {kind.shape('K')}, got {_check.describe(t)}")
        if (t.device, t.dtype, t.shape[1:]) != (value[0].device, value[0].dtype, value[0].shape[1:]):
            raise ValueError(
                f"the {name} of a list must agree in dtype, device and the shape of one, got {_check.describe(t)} on "
                f"{t.device} for {name}[{i}] and {_check.describe(value[0])} on {value[0].device} for {name}[0]"
            )


def count(value: Sequence[Any], kind: Kind, images: int) -> None:
    """A list has one tensor for each image."""
    if len(value) != images:
        raise ValueError(f"a list of {kind.name} must have one tensor per image, got {len(value)} for {images} images")


def rows(value: Tensor, kind: Kind, images: int | None) -> None:
    """The shapes without batch_index: for one image (``images`` None) or a batch of so many."""
    name, leading, shape = kind.name, kind.leading(value), tuple(value.shape)
    if images is None:
        if len(leading) > 1:
            raise ValueError(
                f"{name} must have shape {kind.shape()} or {kind.shape('K')} for one image, got {shape}; {name} of "
                "several images need images with a batch dimension"
            )
        return
    if len(leading) > 2:
        raise ValueError(
            f"{name} must have shape {kind.shape()}, {kind.shape('B')} or {kind.shape('B', 'K')}, got {shape}"
        )
    if leading and leading[0] != images:
        hint = ""
        if len(leading) == 1:
            ones = ", ".join(["-1"] * (kind.dims + 1))
            hint = (
                f"; for the same {leading[0]} on every image pass {name}.expand({images}, {ones}), "
                f"for {name} that name their image add batch_index of shape ({leading[0]},)"
            )
        raise ValueError(
            f"{name} of shape {kind.shape('B')} or {kind.shape('B', 'K')} must have B = {images} as images do, "
            f"got {shape}{hint}"
        )


def batch_index(index: Any, value: Tensor, kind: Kind, images: int) -> Tensor:
    """(R,) of any integer dtype, 0..B-1, one for each."""
    _check_crop.index_kind(index)
    leading = kind.leading(value)
    if len(leading) != 1 or tuple(index.shape) != leading:
        raise ValueError(
            f"batch_index must have shape (R,) where {kind.name} have shape {kind.shape('R')}, "
            f"got {tuple(index.shape)} and {tuple(value.shape)}"
        )
    _check_crop.index_range(index, images)
    return index


def points(value: Any, matrix: Tensor) -> Tensor:
    """A real tensor (..., P, 2) whose leading dimensions broadcast with those of ``matrix``."""
    _check.real_tensor(value, "points")
    if value.ndim < 2 or value.shape[-1] != 2:
        hint = "; a single one is points[None]" if tuple(value.shape) == (2,) else ""
        raise ValueError(f"points must have shape (..., P, 2), got {_check.describe(value)}{hint}")
    if value.device != matrix.device:
        raise ValueError(f"points and matrix must be on the same device, got {value.device} and {matrix.device}")
    for m, n in zip(reversed(value.shape[:-2]), reversed(matrix.shape[:-2]), strict=False):
        if m != n and m != 1 and n != 1:
            raise ValueError(
                "the leading dimensions of points (..., P, 2) and matrix must broadcast, "
                f"got shapes {tuple(value.shape)} and {tuple(matrix.shape)}"
            )
    return value


def whole(**tensors: Any) -> None:
    """DTensors have no rule here."""
    for name, value in tensors.items():
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if is_sharded(tensor):
                raise TypeError(
                    f"{name} must be a plain tensor, got a DTensor: only axis-aligned crops are made of shards; "
                    f"pass {name}.to_local() or {name}.full_tensor()"
                )


def clockwise(value: Any) -> bool:
    """True or False."""
    return _check.flag(value, "clockwise")


def angle_unit(value: Any) -> str:
    """The name of a unit of angles."""
    hints = {"deg": "degrees", "degree": "degrees", "rad": "radians", "radian": "radians"}
    return _check.choice(value, "angle_unit", _homography.ANGLE_UNITS, hints)


def options(
    mode: Any,
    antialias: Any,
    padding_mode: Any,
    fill: Any,
    align_corners: Any,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> WarpOptions:
    """As those of a crop, but for what only separable crops have."""
    _own(mode, "mode", WARP_MODES, MODES)
    _check.choice(mode, "mode", WARP_MODES, _check_crop.MODE_HINTS)
    _own(padding_mode, "padding_mode", WARP_PADDING_MODES, PADDING_MODES)
    _check.choice(padding_mode, "padding_mode", WARP_PADDING_MODES, _check_crop.PADDING_HINTS)
    checked = _check_crop.options(mode, antialias, padding_mode, fill, None, align_corners, channels, dtype)
    return WarpOptions(checked.mode, checked.antialias, checked.padding_mode, checked.fill, checked.align_corners)


def exported_size(images: Tensor, checked: WarpOptions) -> None:
    """Graphs of antialiased warps hold so many levels as the image has, which a size that may change does not tell."""
    if not torch.compiler.is_exporting() or not checked.antialias or checked.mode == "nearest":
        return
    if any(isinstance(n, torch.SymInt) for n in images.shape[-2:]):
        raise ValueError(
            "images must have a fixed height and width to be exported with antialias=True, as the graph depends on "
            f"them, got shape {tuple(images.shape)} with sizes that may change; leave dimensions {images.ndim - 2} and "
            f"{images.ndim - 1} of images out of dynamic_shapes, or use antialias=False"
        )


def _own(value: Any, name: str, allowed: Sequence[str], every: Sequence[str]) -> None:
    """None of those that crop has and warps have not."""
    if isinstance(value, str) and value in every and value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))} for crops that are not axis-aligned, "
            f"got {value!r}, which only crop has"
        )


def derivable(mode: Any) -> None:
    """The name of a filter that has a derivative by the matrix."""
    _own(mode, "mode", WARP_MODES[:-1], [each for each in MODES if each != "nearest"])
    _check_crop.derivable(mode, WARP_MODES, "the matrix")


def quads_are_convex(value: Tensor, name: str) -> None:
    """Where looking costs nothing: no corner between two others on a line, none inside the rest, no crossed sides."""
    if value.numel() == 0 or not _check.may_look(value):
        return
    quads = value.detach().to(torch.float64).reshape(-1, 4, 2)
    wrong = (~_homography.convex(quads) & quads.isfinite().all(-1).all(-1)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        corners = ", ".join(f"({x:.6g}, {y:.6g})" for x, y in quads[first].tolist())
        raise ValueError(
            f"{name} must be convex, with corners in the order top-left, top-right, bottom-right, bottom-left of the "
            "crop (or mirrored) and no three of them on a line, "
            f"got {corners} ({len(wrong)} of {len(quads)} in {_check.describe(value)}); sides that cross come from "
            "another order of the corners, and what has no area is a rotated box or a matrix: crop_rotated, warp"
        )


def last_row_is_not_zero(value: Tensor, name: str) -> None:
    """Where looking costs nothing: there are points in front of the horizon, as Z is not 0 for all of them."""
    if value.shape[-2] != 3 or value.numel() == 0 or not _check.may_look(value):
        return
    wrong = (value.detach().reshape(-1, 3, 3)[:, 2] == 0).all(-1).nonzero()
    if len(wrong):
        raise ValueError(
            f"{name} must not have a last row of zeros, which sends every point to infinity, got one "
            f"({len(wrong)} in all) in {_check.describe(value)}; of an affine map it is (0, 0, 1)"
        )


def differentiable(value: Tensor, name: str, mode: Any) -> None:
    """Nearest has no gradient by where it looks; None without a word would be worse than an error."""
    if not isinstance(mode, str) or mode != "nearest":
        return
    dual = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if (value.requires_grad and torch.is_grad_enabled()) or (
        dual and forward_ad.unpack_dual(value).tangent is not None
    ):
        raise ValueError(
            f"mode='nearest' has no gradient by {name}, but {name} requires grad or has a tangent; "
            f"use {name}.detach(), or another mode"
        )


def impl(value: Any, images: Tensor, implementations: dict[str, str | None]) -> None:
    """An explicit implementation must be there and able to serve."""
    if isinstance(value, str) and value == "triton":
        raise ValueError(
            "impl='triton' has no kernels for crops that are not axis-aligned; leave impl=None, which on a GPU takes "
            "the reference"
        )
    _check.choice(value, "impl", [name for name in implementations if name != "triton"])
    reason = implementations[value]
    if reason is not None:
        raise ValueError(f"impl={value!r} is not available: {reason}; leave impl=None to use what is")
    if value == "cpu" and images.device.type != "cpu":
        raise ValueError(f"impl='cpu' serves CPU tensors, got images on {images.device}; leave impl=None")
