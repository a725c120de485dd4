"""What `torch.utils.flop_counter` counts for the operators.

What a crop costs depends on the numbers in its boxes, which a counter does not look at. So it is counted as if every
box were the whole image, in a pass of a separable filter for each axis (in the order that saves most). An axis of N
pixels and n outputs then takes ``min(2 r max(N / n, 1), N)`` taps an output, with r the filter's reach (without
antialiasing 1 in place of the reduction N / n), and every tap is a multiplication and an addition.

    crop, crop_grad_images   once: they are each other's transpose
    crop_grad_boxes          for each axis: the derivatives by x, by y, by z
    crop_jacobian            for each number of a box, as many images
    crop_gram                five times: these and the crop, and the products of all columns

Of a list of images as much as of all of them, each with an equal share of the boxes: whose they are is not looked at.

Of a paste, as if every box were its whole canvas:

    paste                    the crop of each patch, with its matte; and to blend it, for each pixel, channel and
                             mask, 3 for one that goes over what is there, 1 for one that is added
    paste_backward           under "over" that once more, and 4 for each of these; the transposed crop by patches,
                             and for each axis a crop by boxes
"""

# The formulas have the arguments of the schemas.
# ruff: noqa: ARG001

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffcrop import _normal
from diffcrop._filters import reach

_registered: set[str] = set()


def ensure() -> None:
    """Tell the counter, once there is one: to import it would take longer than to import this package."""
    if len(_registered) == len(_FORMULAS) or "torch.utils.flop_counter" not in sys.modules:
        return
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
    from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.diffcrop, name, None)
        if operator is None or name in _registered:  # while the package is imported not all of them are there
            continue
        _registered.add(name)
        register_flop_formula(operator)(formula)
        # A counter that is counting already has copied the registry.
        for mode in _get_current_dispatch_mode_stack():
            counter = getattr(mode, "counter", None)
            if isinstance(counter, FlopCounterMode):
                counter.flop_registry.setdefault(operator, flop_registry[operator])


def crop(images: Sequence[int], boxes: Sequence[int], index: Any, size: Sequence[int], *options: Any, **_: Any) -> int:
    """Both passes, once."""
    return _passes(boxes[0] * images[1], images[2:], size, *options[1:])


def crop_grad_images(
    grad: Sequence[int], boxes: Sequence[int], index: Any, image_shape: Sequence[int], *options: Any, **_: Any
) -> int:
    """The transpose of the crop: as much."""
    return _passes(boxes[0] * grad[1], image_shape[2:], grad[2:], *options[1:])


def crop_grad_boxes(
    grad: Sequence[int], images: Sequence[int], boxes: Sequence[int], index: Any, *options: Any, **_: Any
) -> int:
    """The derivative by each of the axes."""
    return len(images[2:]) * _passes(boxes[0] * grad[1], images[2:], grad[2:], *options)


def crop_jacobian(
    images: Sequence[int], boxes: Sequence[int], index: Any, size: Sequence[int], *options: Any, **_: Any
) -> int:
    """An image for each number of a box."""
    return 2 * len(images[2:]) * _passes(boxes[0] * images[1], images[2:], size, *options)


def crop_gram(
    images: Sequence[int],
    boxes: Sequence[int],
    index: Any,
    targets: Sequence[int],
    metric: str,
    huber: float,
    *options: Any,
    **_: Any,
) -> int:
    """The crop, an image for each number of a box, and a product for each pair of columns."""
    n = _normal.columns(metric, 2)
    planes = boxes[0] * images[1]
    return 5 * _passes(planes, images[2:], targets[2:], *options) + planes * math.prod(targets[2:]) * n * (n + 1)


def crop_list(
    images: Sequence[Sequence[int]], boxes: Sequence[int], index: Any, size: Sequence[int], *options: Any, **_: Any
) -> int:
    """Both passes, once."""
    return _of_list(images, boxes[0], size, options)


def crop_list_grad_boxes(
    grad: Sequence[int], images: Sequence[Sequence[int]], boxes: Sequence[int], index: Any, *options: Any, **_: Any
) -> int:
    """The derivative by each of the axes."""
    return 2 * _of_list(images, boxes[0], grad[2:], options)


def crop_list_grad_images(
    grad: Sequence[int],
    images: Sequence[Sequence[int]],
    boxes: Sequence[int],
    index: Any,
    wanted: Sequence[int],
    *options: Any,
    **_: Any,
) -> int:
    """The transpose of the crop, for the boxes of the images that are wanted."""
    rows = boxes[0] * len(wanted) / len(images)
    return _of_list([images[i] for i in wanted], rows, grad[2:], options) if wanted else 0


def paste(
    patches: Sequence[int],
    boxes: Sequence[int],
    index: Any,
    canvas: Any,
    shape: Sequence[int],
    masked: bool,
    channels_last: bool,
    *rules: Any,
    **_: Any,
) -> int:
    """A crop of each patch, and what it is blended with."""
    _, over, *options = rules
    return _pasted(patches, shape, options) + (3 if over else 1) * _blended(patches, shape, masked)


def paste_backward(
    grad: Any,
    grad_mask: Any,
    patches: Sequence[int],
    boxes: Sequence[int],
    index: Any,
    canvas: Any,
    shape: Sequence[int],
    wanted: Sequence[bool],
    *rules: Any,
    **_: Any,
) -> int:
    """The paste once more, what it brought, and the derivatives of the crops."""
    _, over, *options = rules
    crop_again = int(over) + int(wanted[0]) + len(shape[2:]) * int(wanted[1])
    blended = _blended(patches, shape, grad_mask is not None)
    return crop_again * _pasted(patches, shape, options) + (7 * blended if over else 0)


_FORMULAS: dict[str, Callable[..., int]] = {
    f.__name__: f
    for f in (
        *(crop, crop_grad_images, crop_grad_boxes, crop_jacobian, crop_gram),
        *(crop_list, crop_list_grad_images, crop_list_grad_boxes, paste, paste_backward),
    )
}


def _of_list(images: Sequence[Sequence[int]], rows: float, size: Sequence[int], options: Sequence[Any]) -> int:
    """Of ``rows`` boxes, spread evenly over the images (C, H_b, W_b)."""
    once = sum(_passes(image[0], image[1:], size, *options) for image in images)
    return round(once * rows / len(images))


def _pasted(patches: Sequence[int], shape: Sequence[int], options: Sequence[Any]) -> int:
    mode, antialias, parameter = options
    return _passes(patches[0] * patches[1], patches[2:], shape[2:], mode, antialias, "zeros", (), parameter)


def _blended(patches: Sequence[int], shape: Sequence[int], masked: bool) -> int:
    """Pixels of canvases and masks under all patches."""
    return patches[0] * (shape[1] + int(masked)) * math.prod(shape[2:])


def _passes(planes: int, image: Sequence[int], size: Sequence[int], mode: str, antialias: bool, *rest: Any) -> int:
    if mode == "nearest":  # only moves
        return 0
    parameter = rest[2]  # after padding_mode and fill
    taps = [_taps(m / n if antialias else 1.0, m, mode, parameter) for n, m in zip(size, image, strict=True)]

    def passes(order: Sequence[int]) -> int:
        sides, total = list(image), 0
        for axis in order:
            sides[axis] = size[axis]
            total += math.prod(sides) * taps[axis]
        return total

    return 2 * planes * min(map(passes, itertools.permutations(range(len(size)))))


def _taps(reduction: float, pixels: int, mode: str, parameter: float) -> int:
    return max(1, min(math.ceil(2 * reach(mode, max(reduction, 1.0), parameter)), pixels))
