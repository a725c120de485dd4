"""Modules of RoIAlign, for `nn`: one map, and a pyramid of maps of which each box reads one."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop

from . import _bounding, _check_crop, _check_roi
from ._check import describe


class RoIAlign(nn.Module):
    r"""`diffcrop.roi_align` with its options fixed: ``forward(input, boxes)``, as torchvision's module of this name.

    The options are those of `diffcrop.roi_align`, where they are explained, and checked when the module is made. It has
    no parameters and nothing in its ``state_dict``.

    >>> import torch
    >>> from diffcrop.nn import RoIAlign
    >>> head = RoIAlign(7, spatial_scale=1 / 16, sampling_ratio=2, aligned=True)
    >>> head
    RoIAlign(output_size=7, spatial_scale=0.0625, sampling_ratio=2, aligned=True)
    >>> boxes = torch.tensor([[0, 30.0, 40.0, 200.0, 180.0]], requires_grad=True)
    >>> head(torch.rand(1, 8, 50, 68), boxes).shape
    torch.Size([1, 8, 7, 7])
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        aligned: bool = False,
        *,
        mode: str = "sample",
        impl: str | None = None,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.mode = mode
        self.impl = impl
        # No boxes of a one-pixel image, for the sake of the checks.
        axes = len(output_size) if isinstance(output_size, Sequence) and 2 <= len(output_size) <= 3 else 2
        self(torch.zeros(1, 1, *(1,) * axes, device="cpu"), torch.zeros(0, 2 * axes + 1, device="cpu"))

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:  # noqa: A002
        """Shapes as in `diffcrop.roi_align`."""
        return diffcrop.roi_align(
            input,
            boxes,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            mode=self.mode,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """The arguments, those after a ``*`` where they differ from their defaults."""
        text = (
            f"output_size={self.output_size!r}, spatial_scale={self.spatial_scale!r}, "
            f"sampling_ratio={self.sampling_ratio!r}, aligned={self.aligned!r}"
        )
        return text + _beyond_defaults(self, mode="sample", impl=None)


class MultiScaleRoIAlign(nn.Module):
    r"""RoIAlign from a pyramid of feature maps, each box from the level that fits its size; as torchvision's module.

    A box of area A in the images reads level ``floor(canonical_level + log2(sqrt(A) / canonical_scale) + 1e-6)``,
    where level l has a stride of 2^l, clamped to the levels that are there (Lin et al. 2017, "Feature pyramid networks
    for object detection", eq. 1). The stride of a map is the power of two nearest to (largest image) / (map), by
    heights. Results come in the order of the boxes. The box gradient goes through the level that was chosen; the choice
    itself has none.

    >>> import torch
    >>> from diffcrop.nn import MultiScaleRoIAlign
    >>> pool = MultiScaleRoIAlign(["fine", "coarse"], 7, sampling_ratio=2)
    >>> maps = {"fine": torch.rand(1, 8, 64, 64), "coarse": torch.rand(1, 8, 32, 32), "other": torch.rand(1, 8, 9, 9)}
    >>> boxes = torch.tensor([[10.0, 20.0, 70.0, 90.0], [0.0, 0.0, 250.0, 250.0]], requires_grad=True)
    >>> pool(maps, [boxes], [(256, 256)]).shape
    torch.Size([2, 8, 7, 7])

    Args:
        featmap_names: the maps that are used, by their names. They come in the order of the mapping that ``forward``
            is given, from the finest to the coarsest, each half as large as the one before.
        output_size: h and w of the result, or one int for both.
        sampling_ratio: as for `diffcrop.roi_align`, like ``aligned``, ``mode`` and ``impl``. In torchvision's module
            it must be given.
        canonical_scale: the side of a box, in pixels of the images, that reads ``canonical_level``.
        canonical_level: see there.
        aligned: see there; torchvision's module has no such argument, and is as False.
        mode: see there.
        impl: see there.

    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int | Sequence[int],
        sampling_ratio: int = -1,
        *,
        canonical_scale: float = 224,
        canonical_level: int = 4,
        aligned: bool = False,
        mode: str = "sample",
        impl: str | None = None,
    ) -> None:
        super().__init__()
        names = featmap_names if isinstance(featmap_names, Sequence) else [None]
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"featmap_names must be a list of names, got {describe(featmap_names)}")
        if not featmap_names:
            raise ValueError("featmap_names must name at least one feature map, got none")
        if isinstance(canonical_scale, bool) or not isinstance(canonical_scale, numbers.Real):
            raise TypeError(f"canonical_scale must be a number, got {describe(canonical_scale)}")
        if not 0 < canonical_scale < math.inf:
            raise ValueError(f"canonical_scale must be finite and more than 0, got {describe(canonical_scale)}")
        if isinstance(canonical_level, bool) or not isinstance(canonical_level, numbers.Integral):
            raise TypeError(f"canonical_level must be an int, got {describe(canonical_level)}")
        RoIAlign(output_size, 1.0, sampling_ratio, aligned, mode=mode, impl=impl)  # for its checks
        self.featmap_names = list(featmap_names)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.canonical_scale = canonical_scale
        self.canonical_level = canonical_level
        self.aligned = aligned
        self.mode = mode
        self.impl = impl

    def forward(
        self, x: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The features (sum K_b, C, h, w) of all boxes.

        Args:
            x: feature maps (B, C, H, W) by name; others than ``featmap_names`` may be among them.
            boxes: a list, or a nested tensor, with (K_b, 4) corners for each image, in pixels of the images.
                torchvision's ``BoundingBoxes`` among them are read in their own format.
            image_shapes: (h, w) of each image before they were padded to one size. A canvas of ``BoundingBoxes`` must
                be of that size.

        """
        if not isinstance(x, Mapping):
            raise TypeError(f"x must be a mapping of names to feature maps, got {describe(x)}")
        missing = [name for name in self.featmap_names if name not in x]
        if missing:
            raise ValueError(f"x must hold the feature maps {self.featmap_names}, got {list(x)}")
        maps = {name: value for name, value in x.items() if name in self.featmap_names}
        _check_roi.maps(maps)
        maps = list(maps.values())
        box_format, canvases = "xyxy", ()
        if isinstance(boxes, (list, tuple)):
            boxes, box_format, canvases = _bounding.read(boxes, box_format, "pixel")
        boxes = _check_roi.box_list(boxes, len(maps[0]))
        for i, each in enumerate(boxes):
            _check_crop.same_device(maps[0], each, None, f"boxes[{i}]", "x")
        scales = self.scales(maps, image_shapes)
        if len(image_shapes) != len(boxes):
            raise ValueError(
                f"image_shapes must have (h, w) of each of the {len(boxes)} images that there are boxes of, "
                f"got {len(image_shapes)}"
            )
        _bounding.fits(canvases, image_shapes, "image_shapes")
        if box_format != "xyxy":
            boxes = [diffcrop.convert_boxes(each, from_format=box_format) for each in boxes]
        if len(maps) == 1:
            return self._align(maps[0], boxes, scales[0])
        for i, scale in enumerate(scales[1:], 1):
            if scale != scales[0] / 2**i:
                raise ValueError(
                    f"x must hold feature maps from the finest to the coarsest, each half as large as the one before, "
                    f"got scales {scales} for {[tuple(m.shape[-2:]) for m in maps]}"
                )
        finest = round(-math.log2(scales[0]))
        levels = [self.levels(each, finest, finest + len(maps) - 1) - finest for each in boxes]
        parts, places = [], []
        offsets = [sum(len(t) for t in boxes[:b]) for b in range(len(boxes))]
        for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
            rows = [(mine == level).nonzero().squeeze(1) for mine in levels]
            chosen = [each[row] for each, row in zip(boxes, rows, strict=True)]
            parts.append(self._align(feature, chosen, scale))
            places += [row + offset for row, offset in zip(rows, offsets, strict=True)]
        return torch.cat(parts)[torch.argsort(torch.cat(places))]

    def scales(self, maps: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]) -> list[float]:
        """What box coordinates are multiplied with on each map: a power of two."""
        if isinstance(image_shapes, Tensor):
            raise TypeError(
                "image_shapes must be a list with (h, w) of each image, got a tensor; pass image_shapes.tolist()"
            )
        if isinstance(image_shapes, Sequence) and not image_shapes:
            raise ValueError("image_shapes must have (h, w) of each image, got none")
        if not isinstance(image_shapes, Sequence) or not all(map(_is_shape, image_shapes)):
            raise TypeError(f"image_shapes must hold (h, w) of each image, got {describe(image_shapes)}")
        height = max(int(shape[0]) for shape in image_shapes)
        if min(min(shape) for shape in image_shapes) < 1:
            raise ValueError(f"image_shapes must be at least 1 along every axis, got {describe(image_shapes)}")
        return [2.0 ** round(math.log2(m.shape[-2] / height)) for m in maps]

    def levels(self, boxes: Tensor, finest: int, coarsest: int) -> Tensor:
        """The level of each box (K, 4), within those given; what has no area, or is not finite, has the finest."""
        x0, y0, x1, y1 = boxes.detach().to(torch.float64 if boxes.device.type != "mps" else torch.float32).unbind(-1)
        side = torch.sqrt((x1 - x0) * (y1 - y0))
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_scale) + 1e-6)
        return torch.where(level >= finest, level, float(finest)).clamp(max=coarsest).to(torch.int64)

    def extra_repr(self) -> str:
        """The arguments that torchvision's module shows, and others where they differ from their defaults."""
        text = (
            f"featmap_names={self.featmap_names!r}, output_size={self.output_size!r}, "
            f"sampling_ratio={self.sampling_ratio!r}"
        )
        defaults = {"canonical_scale": 224, "canonical_level": 4, "aligned": False, "mode": "sample", "impl": None}
        return text + _beyond_defaults(self, **defaults)

    def _align(self, feature: Tensor, boxes: Sequence[Tensor], scale: float) -> Tensor:
        return diffcrop.roi_align(
            feature,
            boxes,
            self.output_size,
            scale,
            self.sampling_ratio,
            self.aligned,
            mode=self.mode,
            impl=self.impl,
        )


def _beyond_defaults(module: nn.Module, **defaults: object) -> str:
    """The attributes that are not these, as arguments."""
    found = {name: getattr(module, name) for name in defaults}
    return "".join(f", {name}={value!r}" for name, value in found.items() if value != defaults[name])


def _is_shape(value: object) -> bool:
    """Whether this is (h, w), in numbers."""
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(n, numbers.Real) for n in value)
