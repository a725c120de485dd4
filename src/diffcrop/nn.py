"""Modules: `Crop`, the crop as a layer, and `LearnableBox`, a box that an optimiser can move without breaking it."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop

from . import _check
from ._check import describe, real, real_tensor
from ._nn_roi import MultiScaleRoIAlign, RoIAlign

__all__ = ["Crop", "LearnableBox", "MultiScaleRoIAlign", "RoIAlign"]


class Crop(nn.Module):
    r"""`diffcrop.crop` with its options fixed: ``forward(images, boxes, batch_index=None)``.

    The options are those of `diffcrop.crop`, where they are explained. They are checked here, when the module is made,
    except for what only the images can tell: that a per-channel ``fill`` fits their channels. The module has no
    parameters and nothing in its ``state_dict``.

    >>> import torch
    >>> from diffcrop.nn import Crop
    >>> Crop(8, mode="area")
    Crop(size=8, mode='area')
    >>> Crop(8)(torch.rand(2, 3, 32, 32), torch.tensor([4.0, 4.0, 28.0, 28.0])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        box_format: str = "xyxy",
        coords: str = "pixel",
        mode: str = "bilinear",
        antialias: bool = True,
        padding_mode: str = "border",
        fill: float | Sequence[float] | Tensor = 0.0,
        sigma: float | None = None,
        align_corners: bool = False,
        impl: str | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.box_format = box_format
        self.coords = coords
        self.mode = mode
        self.antialias = antialias
        self.padding_mode = padding_mode
        # As numbers a fill follows the module to any device; one that requires grad is left for `crop` to refuse.
        self.fill = fill.tolist() if isinstance(fill, Tensor) and not fill.requires_grad else fill
        self.sigma = sigma
        self.align_corners = align_corners
        self.impl = impl
        self._dry_run()

    def forward(
        self, images: Tensor | Sequence[Tensor], boxes: Tensor | Sequence[Tensor], batch_index: Tensor | None = None
    ) -> Tensor:
        """The crops; shapes as in `diffcrop.crop`."""
        return diffcrop.crop(images, boxes, self.size, batch_index=batch_index, **self._options())

    def extra_repr(self) -> str:
        """The size, and the options that differ from their defaults."""
        changed = [f"{name}={value!r}" for name, value in self._options().items() if value != _default(Crop, name)]
        return ", ".join([f"size={self.size!r}", *changed])

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}

    def _dry_run(self) -> None:
        """Crop nothing (no boxes of a one-pixel image) for the sake of the checks that `diffcrop.crop` makes."""
        axes = len(self.size) if isinstance(self.size, Sequence) and 1 <= len(self.size) <= 3 else 2
        channels = len(self.fill) if isinstance(self.fill, Sequence) else 1
        images = torch.zeros(channels, *(1,) * axes, device="cpu", dtype=torch.float32)
        boxes = torch.zeros(0, 2 * axes, device="cpu", dtype=torch.float32)
        diffcrop.crop(images, boxes, self.size, **self._options())


_OPTIONS = tuple(name for name in inspect.signature(Crop.__init__).parameters if name not in ("self", "size"))


class LearnableBox(nn.Module):
    r"""One box, or several, as a parameter that stays a box whatever the optimiser does to it.

    By construction, for every value of the parameter,

    * the box is ordered, x0 <= x1 and y0 <= y1, and both sides are at least ``min_size`` pixels long;
    * with ``inside=True`` it lies in the image: x0 >= 0, y0 >= 0, x1 <= W, y1 <= H;
    * with ``aspect`` given, width / height = ``aspect`` in pixels.

    In ``"xyxy"`` order and bounds hold exactly, in any coordinates; a length is a difference of two rounded numbers and
    may fall short of ``min_size`` (and the ratio differ from ``aspect``) by the rounding of its ends, as may ``"xywh"``
    and ``"cxcywh"``.

    **The parameter** is ``raw``, 4 numbers (x, y, width, height) per box, or 3 (x, y, height) with ``aspect``. They
    count from the start, ``init``, which is raw = 0 (so weight decay pulls to the start), in units of the starting box:
    with s the starting side along an axis, to first order

    .. code-block:: text

        centre = start + s raw          side = s (1 + g raw),  g <= 1

    so a step of 0.01, which is about what Adam takes with lr=0.01, moves the box by a hundredth of its side whatever
    its size, and 0.01 to 0.1 are good learning rates. g is 1 unless the side starts close to a bound; near an edge that
    it must not cross the centre moves less as well.

    **The map**, in pixels, with N the length of the image and f = s / 4:

    .. code-block:: text

        free:    side   = min + N softplus(u)
                 centre = v
        inside:  side   = min + (N - min) sigmoid(u)
                 centre = side / 2 + f softplus(z / f) - f softplus((z - room) / f)
                          with z = v - side / 2 and room = N - side

    where u and v are affine in ``raw`` with constants that come from ``init`` (buffers, so that they are saved along).
    So sides grow exponentially while they are smaller than the image, linearly beyond, and centres move linearly, bent
    only within about one starting side from an edge of the image that they must not cross.

    A bound is reached only in the limit, and there the gradient is 0. So an ``init`` that lies on a bound, or nearer to
    it than 0.001 of the box's side (of the range left, for the upper bound of a side), starts at that distance from it,
    which moves a corner by 0.002 of the side at most; a box outside of the bounds by more than rounding is an error.
    All other starts are reproduced to float precision.

    Args:
        image_size: (h, w) of the image in pixels, or an int.
        num_boxes: None for one box of shape (4,), K for shape (K, 4).
        init: the box to start from, or one for each of ``num_boxes``, as a tensor or nested lists in ``box_format`` and
            ``coords``; (K, 4) without ``num_boxes`` means K boxes. Default: the middle of the image, with half its
            sides (the largest of that size with the wanted ``aspect``). All boxes start there: under an objective that
            treats them alike they also move alike, so give such boxes different starts.
        min_size: the least length of a side in pixels, above 0.
        inside: keep the box in the image.
        aspect: width / height in pixels, or None for free sides.
        box_format: the format of ``init`` and of the boxes returned, as in `diffcrop.convert_boxes`.
        coords: the coordinates of both.
        align_corners: the convention of the coordinates; with True the image runs from 0 to W - 1 and H - 1.
        dtype: of ``raw``. The boxes have its dtype, but never less than float32, also after ``.half()``.
        device: of ``raw``.

    Raises:
        TypeError, ValueError: for wrong arguments, an ``init`` outside of the bounds, and bounds that leave no box.

    >>> import torch
    >>> from diffcrop.nn import LearnableBox
    >>> box = LearnableBox((480, 640), init=[100, 100, 300, 200], inside=True)
    >>> box
    LearnableBox(image_size=(480, 640), inside=True)
    >>> optimiser = torch.optim.Adam(box.parameters(), lr=0.1)
    >>> target = torch.tensor([200.0, 120.0, 640.0, 400.0])
    >>> for _ in range(200):
    ...     optimiser.zero_grad()
    ...     (box() - target).abs().mean().backward()
    ...     optimiser.step()
    >>> bool((box() - target).abs().max() < 20)
    True

    """

    shift: Tensor
    gain: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        num_boxes: int | None = None,
        init: Tensor | Sequence[Any] | None = None,
        min_size: float = 1.0,
        inside: bool = False,
        aspect: float | None = None,
        box_format: str = "xyxy",
        coords: str = "pixel",
        align_corners: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = _floating(dtype)
        self.min_size = _positive(min_size, "min_size")
        self.aspect = None if aspect is None else _positive(aspect, "aspect")
        self.inside = _check.flag(inside, "inside")
        self.box_format = box_format
        self.coords = coords
        self.align_corners = align_corners

        _check.size(image_size, 2, "image_size")
        _check.box_format(box_format)
        _check.coords(coords)
        given = _boxes(init)
        start = diffcrop.convert_boxes(
            given if given is not None else torch.zeros(4, dtype=torch.float64, device="cpu"),
            image_size,
            from_format=box_format,
            from_coords=coords,
            align_corners=align_corners,
        )
        # The other direction, for what it may refuse: forward must not be the first to say so.
        diffcrop.convert_boxes(start, image_size, to_format=box_format, to_coords=coords, align_corners=align_corners)
        # convert_boxes has checked the size, so it is an int or two of them.
        height, width = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
        self.image_size = (int(height), int(width))

        self._ranges = self._side_ranges()
        if given is None:
            start = self._default_start()
        else:
            self._check_start(start, given)
        start = _repeat(start, num_boxes)

        shift, gain = self._solve(start)
        self.raw = nn.Parameter(torch.zeros(shift.shape, dtype=dtype, device=device))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.register_buffer("shift", shift.to(device=self.raw.device, dtype=wide))
        self.register_buffer("gain", gain.to(device=self.raw.device, dtype=wide))

    def forward(self) -> Tensor:
        """The boxes, (4,) or (num_boxes, 4), in ``box_format`` and ``coords``; differentiable in ``raw``."""
        wide = torch.float32 if self.raw.device.type == "mps" else torch.float64
        gain = self.gain.to(wide)
        moved = self.shift.to(wide) + gain * self.raw.to(wide)
        sides = self._sides(moved[..., 2:].unbind(-1))
        lows, highs = [], []
        for axis, (side, extent) in enumerate(zip(sides, self._extents(), strict=True)):
            centre = moved[..., axis]
            if self.inside:
                room = (extent - side).relu()
                low = _soft_clamp(centre - side / 2, room, gain[..., axis] * _SOFTNESS)
                high = low + side
                high = high - (high - extent).relu().detach()  # rounding only, so the gradient passes
            else:
                low, high = centre - side / 2, centre + side / 2
            lows.append(low)
            highs.append(high)
        boxes = diffcrop.convert_boxes(
            torch.stack(lows + highs, -1),
            self.image_size,
            to_format=self.box_format,
            to_coords=self.coords,
            align_corners=self.align_corners,
        )
        return boxes.to(torch.float64 if self.raw.dtype == torch.float64 else torch.float32)

    def extra_repr(self) -> str:
        """The image size, and the options that differ from their defaults."""
        parts = [f"image_size={self.image_size}"]
        if self.raw.ndim == 2:
            parts.append(f"num_boxes={self.raw.shape[0]}")
        for name in ("min_size", "inside", "aspect", "box_format", "coords", "align_corners"):
            value = getattr(self, name)
            if value != _default(LearnableBox, name):
                parts.append(f"{name}={value!r}")
        if self.raw.dtype != torch.float32:
            parts.append(f"dtype={self.raw.dtype}")
        return ", ".join(parts)

    def _apply(self, fn: Callable, recurse: bool = True) -> LearnableBox:
        """Convert as every module does, but never round the start to half precision: that is up to a pixel or more."""
        kept = {"shift": self.shift, "gain": self.gain}
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            now = getattr(self, name)
            if now.dtype.itemsize < 4:
                setattr(self, name, tensor.to(now.device))
        return self

    def _extents(self) -> tuple[int, int]:
        """Length of the image along x and y."""
        height, width = self.image_size
        return (width - 1, height - 1) if self.align_corners else (width, height)

    def _side_ranges(self) -> tuple[tuple[float, float], ...]:
        """(least, reach) of each free side: of width and height, or of the height alone where the aspect is fixed.

        Inside, a side runs over least .. least + reach. Free, reach is where its growth turns from exponential to
        linear.
        """
        extents = self._extents()
        ratios = (1.0, 1.0) if self.aspect is None else (self.aspect, 1.0)
        least = [self.min_size / ratio for ratio in ratios]
        most = [extent / ratio for extent, ratio in zip(extents, ratios, strict=True)]
        if self.aspect is not None:
            least, most = [max(least)], [min(most)]
        if not self.inside:
            return tuple((low, max(high, 1.0)) for low, high in zip(least, most, strict=True))
        if any(low > high for low, high in zip(least, most, strict=True)):
            ratio = "" if self.aspect is None else f" and aspect={self.aspect:g}"
            raise ValueError(
                f"min_size must leave room for a box inside the image: no box with min_size={self.min_size:g}{ratio} "
                f"fits into image_size={self.image_size}{' with align_corners=True' if self.align_corners else ''}; "
                "lower min_size or use inside=False"
            )
        return tuple((low, high - low) for low, high in zip(least, most, strict=True))

    def _default_start(self) -> Tensor:
        extents = self._extents()
        width, height = (max(extent / 2, self.min_size) for extent in extents)
        if self.aspect is not None:
            height = max(min(width / self.aspect, height), self._ranges[0][0])
            width = self.aspect * height
        x, y = extents[0] / 2, extents[1] / 2
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        return torch.tensor(corners, dtype=torch.float64, device="cpu")

    def _check_start(self, start: Tensor, given: Tensor) -> None:
        """Refuse a start (pixel ``xyxy``) that breaks a promise by more than rounding."""
        extents = torch.tensor(self._extents(), dtype=torch.float64, device="cpu")
        sides = start[..., 2:] - start[..., :2]
        # The rounding of float32 unit coordinates of the image, with some margin.
        slack = 1e-5 * (1 + extents)

        def refuse(bad: Tensor, what: str) -> None:
            if bad.any():
                # The bad condition is per number or per box; either way the first axis, if any, counts boxes.
                worst = given[bad.flatten(1).any(1).nonzero()[0, 0]] if given.ndim == 2 else given
                raise ValueError(
                    f"init must {what}, got {[float(f'{v:.7g}') for v in worst.tolist()]} "
                    f"(shape {tuple(given.shape)}, box_format={self.box_format!r}, coords={self.coords!r})"
                )

        refuse(~start.isfinite(), "be finite")
        refuse(sides <= 0, "be ordered, with x0 < x1 and y0 < y1 (a width and height above 0)")
        refuse(sides < self.min_size - slack, f"have sides of at least min_size={self.min_size:g} pixels")
        if self.inside:
            outside = (start[..., :2] < -slack) | (start[..., 2:] > extents + slack)
            refuse(outside, f"lie inside the image of image_size={self.image_size}, as inside=True promises")
        if self.aspect is not None:
            off = (sides[..., :1] - self.aspect * sides[..., 1:]).abs() > 1e-4 * sides[..., :1] + slack.max()
            refuse(off, f"have width / height = aspect = {self.aspect:g} in pixels")

    def _solve(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """(shift, gain) with which raw = 0 is the box ``start``, nudged off the bounds, and raw counts in its sides."""
        lo, hi = start[..., :2], start[..., 2:]
        shifts, gains = [], []
        free = (hi - lo) if self.aspect is None else (hi - lo)[..., 1:]
        for side, (least, reach) in zip(free.unbind(-1), self._ranges, strict=True):
            share = (side - least).maximum(_NUDGE * side) / (reach or 1.0)
            if self.inside:
                share = share.clamp(max=1 - _NUDGE)
                shift, slope = share.logit(), reach * share * (1 - share)
            else:
                shift = share + (-torch.expm1(-share)).log()  # the inverse of softplus
                slope = reach * shift.sigmoid()
            shifts.append(shift)
            # Near a bound the slope vanishes; a gain without limit there would overshoot everywhere else.
            gains.append((side / slope).clamp(max=_MAX_GAIN))
        places, units = [], []
        for axis, (side, extent) in enumerate(zip(self._sides(shifts), self._extents(), strict=True)):
            centre = (lo[..., axis] + hi[..., axis]) / 2
            if self.inside:
                softness = side * _SOFTNESS
                room = (extent - side).relu()
                margin = _NUDGE * side.minimum(room)
                low = (centre - side / 2).clamp(margin, room - margin)
                centre = side / 2 + torch.where(room > 0, _soft_clamp_inverse(low, room, softness), room)
            places.append(centre)
            units.append(side)
        return torch.stack(places + shifts, -1), torch.stack(units + gains, -1)

    def _sides(self, moved: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(width, height) from the numbers that stand for the free sides."""
        sides = []
        for u, (least, reach) in zip(moved, self._ranges, strict=True):
            # The default threshold of softplus would replace it by u from 20 on, with a jump of 2e-9.
            sides.append(least + reach * (u.sigmoid() if self.inside else functional.softplus(u, threshold=40.0)))
        return tuple(sides) if self.aspect is None else (self.aspect * sides[0], sides[0])


_NUDGE = 1e-3
_SOFTNESS = 0.25
_MAX_GAIN = 2.0


def _soft_clamp(z: Tensor, room: Tensor, softness: Tensor) -> Tensor:
    """A smooth increasing map of all z onto 0 .. room, z itself farther than a few ``softness`` from both ends.

    y = t (softplus(z / t) - softplus((z - room) / t)) with t the softness. The closing corrections undo rounding only.
    """
    y = softness * (
        functional.softplus(z / softness, threshold=40.0) - functional.softplus((z - room) / softness, threshold=40.0)
    )
    return y + (-y).relu().detach() - (y - room).relu().detach()


def _soft_clamp_inverse(y: Tensor, room: Tensor, softness: Tensor) -> Tensor:
    """With S = exp(z / t), exp(y / t) = (1 + S) / (1 + S exp(-room / t)), solved for S."""
    below, above = -torch.expm1(-y / softness), -torch.expm1((y - room) / softness)
    return y + softness * (below.log() - above.log())


def _boxes(init: Any) -> Tensor | None:
    """The start as float64 boxes (4,) or (K, 4) on the CPU, or None."""
    if init is None:
        return None
    if not isinstance(init, Tensor):
        try:
            init = torch.tensor(init, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"init must be a tensor or nested lists of numbers, got {describe(init)}") from error
    real_tensor(init, "init")
    if init.device.type == "meta":
        raise ValueError(f"init must have values, got {describe(init)} on the device meta")
    if init.ndim not in (1, 2) or init.shape[-1] != 4:
        raise ValueError(f"init must have shape (4,) or (num_boxes, 4), got shape {tuple(init.shape)}")
    return init.detach().to(device="cpu", dtype=torch.float64)


def _repeat(start: Tensor, num_boxes: int | None) -> Tensor:
    """One start for every box."""
    if num_boxes is None:
        return start
    if isinstance(num_boxes, bool) or not isinstance(num_boxes, numbers.Integral):
        raise TypeError(f"num_boxes must be None or an int, got {describe(num_boxes)}")
    if num_boxes >= _check.LONGEST:
        raise ValueError(f"num_boxes must be below 2**31, got {describe(num_boxes)}")
    if num_boxes < 1:
        raise ValueError(f"num_boxes must be at least 1, got {num_boxes}; None gives one box of shape (4,)")
    if start.ndim == 2 and start.shape[0] != num_boxes:
        raise ValueError(f"init must have one box or num_boxes={num_boxes} of them, got shape {tuple(start.shape)}")
    return start.expand(int(num_boxes), 4)


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    value = real(value)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and above 0, got {value:g}")
    return value


def _floating(dtype: Any) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {describe(dtype)}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    return dtype


def _default(module: type, name: str) -> Any:
    return inspect.signature(module.__init__).parameters[name].default
