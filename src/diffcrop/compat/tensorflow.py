"""`tf.image.crop_and_resize`, with torch's tensors and with gradients that every transform of torch can use.

What differs from TensorFlow:

* The box gradient exists to every order, in forward mode and under `torch.func`. Where a sample lies on a pixel centre
  TensorFlow's first derivative is 0 (its two neighbours are the same pixel); here it is the right-hand one, so a box of
  whole pixels can be moved.
* ``method="nearest"`` refuses boxes that require grad; TensorFlow gives them the gradient of "bilinear".
* Positions are computed in float64 and hit both ends of the box exactly, so the last row of a box that ends at 1 is
  never outside by rounding.
* Floating-point images keep their dtype, where TensorFlow always gives float32.
* A NaN or infinite box gives NaN for itself alone, where TensorFlow raises.
* Neither reads between the pixels of a reduction, so a reduction is aliased. `diffcrop.crop` with ``coords="unit",
  align_corners=True`` takes the same boxes, x first, and antialiases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

# The package, not its names: they are looked up when called, so either may be imported first.
import diffcrop
from diffcrop import _bounding, _check, _check_crop

from . import _arguments

__all__ = ["crop_and_resize"]


def crop_and_resize(
    image: Tensor,
    boxes: Tensor,
    box_indices: Tensor,
    crop_size: Sequence[int] | Tensor,
    method: str = "bilinear",
    extrapolation_value: float = 0.0,
    name: str | None = None,
) -> Tensor:
    r"""Crops at boxes of normalised corners, as ``tf.image.crop_and_resize`` gives them.

    Along an axis of N pixels with ends lo and hi (y1 and y2, or x1 and x2), output j of n reads the image at

    .. code-block:: text

        p_j = (N - 1) (lo + j (hi - lo) / (n - 1))         n > 1;  pixel k has its centre at k
        p_0 = (N - 1) (lo + hi) / 2                        n = 1

    between the two pixels beside it, or at the nearest one. An output whose p_j leaves [0, N - 1] on either axis is the
    extrapolation value: a jump, of which no gradient takes notice.

    Args:
        image: (B, H, W, C), floating-point, or integers, which give float32.
        boxes: (R, 4), y1, x1, y2, x2; 0 and 1 are the centres of the first and last pixel. y1 > y2 mirrors. Boxes that
            say their own format, as torchvision's, are in pixels and refused.
        box_indices: (R,) integers 0..B-1.
        crop_size: (h, w), or a tensor of these two.
        method: ``"bilinear"`` or ``"nearest"`` (halves away from zero).
        extrapolation_value: what lies outside the image; not differentiable.
        name: a label for `torch.profiler`.

    Returns:
        (R, h, w, C), differentiable in ``image`` and, with ``"bilinear"``, in ``boxes``.

    Raises:
        TypeError, ValueError: for a wrong argument, and for boxes that require grad with ``method="nearest"``.

    >>> import torch
    >>> from diffcrop.compat.tensorflow import crop_and_resize
    >>> image = torch.arange(12.0).reshape(1, 3, 4, 1)
    >>> box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> crop_and_resize(image, box, torch.tensor([0]), (2, 2)).squeeze(-1)
    tensor([[[ 0.,  3.],
             [ 8., 11.]]])
    >>> crop_and_resize(image, box + torch.tensor([0.0, 0.5, 0.0, 0.5]), torch.tensor([0]), (1, 3), "bilinear", -1.0)
    tensor([[[[ 5.5000],
              [ 7.0000],
              [-1.0000]]]])

    """
    _arguments.tensor(image, "image", "(B, H, W, C)", 4)
    _check_crop.pixels(image, "image")
    if 0 in image.shape[1:3]:
        raise ValueError(f"image must have at least one pixel along both axes, got {_arguments.describe(image)}")
    if _bounding.is_bounding(boxes):
        raise TypeError(
            f"boxes must be a plain tensor with rows (y1, x1, y2, x2), where 0 and 1 are the centres of the first and "
            f"last pixel, got {type(boxes).__name__} of format {_bounding.format_of(boxes)} in pixels; diffcrop.crop "
            "takes those"
        )
    _arguments.tensor(boxes, "boxes", "(R, 4)", 2)
    _arguments.last(boxes, "boxes", "(R, 4), rows of (y1, x1, y2, x2)", (4,))
    _check.real_tensor(boxes, "boxes")
    _check_crop.index_kind(box_indices, "box_indices")
    _arguments.tensor(box_indices, "box_indices", "(R,)", 1)
    if box_indices.shape[0] != boxes.shape[0]:
        raise ValueError(f"box_indices must have one number for each of {len(boxes)} boxes, got {len(box_indices)}")
    size = _arguments.size(crop_size, "crop_size", "(h, w)", 2)
    _arguments.choice(method, "method", ("bilinear", "nearest"))
    for name_of, tensor in (("boxes", boxes), ("box_indices", box_indices)):
        _check_crop.same_device(image, tensor, None, name_of, "image")
    _check_crop.index_range(box_indices, image.shape[0], "box_indices")
    _check_crop.differentiable(boxes, method, argument="method")
    outside = _arguments.number(extrapolation_value, "extrapolation_value")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string or None, got {_arguments.describe(name)}")
    with torch.profiler.record_function(name) if name is not None else contextlib.nullcontext():
        crops = diffcrop.crop(
            image.permute(0, 3, 1, 2),
            boxes[:, [1, 0, 3, 2]],
            size,
            batch_index=box_indices,
            coords="unit",
            align_corners=True,
            mode=method,
            antialias=False,
        ).permute(0, 2, 3, 1)
        if not crops.is_floating_point():
            crops = crops.to(torch.float32)
        inside_y, inside_x = (
            _inside(boxes.detach()[:, axis], boxes.detach()[:, axis + 2], n, pixels)
            for axis, n, pixels in zip((0, 1), size, image.shape[1:3], strict=True)
        )
        return torch.where(inside_y[:, :, None, None] & inside_x[:, None, :, None], crops, outside)


def _inside(lo: Tensor, hi: Tensor, n: int, pixels: int) -> Tensor:
    """Which outputs lie between the first and the last pixel centre (R, n); those of NaN boxes do, and stay NaN."""
    if pixels == 1:  # every position is that pixel's
        return torch.ones(lo.shape[0], n, dtype=torch.bool, device=lo.device)
    lo, hi = (end.to(torch.float32 if lo.device.type == "mps" else torch.float64)[:, None] for end in (lo, hi))
    middle = torch.full((1,), 0.5, dtype=lo.dtype, device=lo.device)
    share = torch.arange(n, device=lo.device, dtype=lo.dtype) / (n - 1) if n > 1 else middle
    # Exact at both ends, and between them for all others.
    position = torch.lerp(lo, hi, share)
    return ~((position < 0) | (position > 1))
