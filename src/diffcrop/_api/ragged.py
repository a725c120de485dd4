"""Images of different sizes and boxes in lists: how they are told, taken apart, and how results come back together.

A function of one image (C, *spatial) and its boxes (K, ...) becomes one of B images by `over_images`; a list of boxes
for a batch of one size becomes rows that name their image by `flattened`. Nested tensors are lists of their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcrop import _boxes, _check_crop
from diffcrop._context import full_precision, parts, plain


class Rows(NamedTuple):
    """Which boxes each of ``images`` is read at: as they were given, checked, and the result's leading shape.

    ``boxes``: (...) where they are ``shared``, (B, ...), (B, K, ...), a list of B tensors (K_b, ...), or (R, ...) and
    the image of each, ``owners``.
    """

    boxes: Any
    owners: Tensor | None
    images: int
    leading: tuple[int, ...]
    shared: bool = False

    def each(self) -> tuple[Sequence[Tensor], Tensor | None]:
        """The boxes (K_b, ...) of every image, and the places among all of these; None where they come in order."""
        if isinstance(self.boxes, (list, tuple)):
            return self.boxes, None
        if self.owners is not None:
            order = torch.argsort(self.owners, stable=True)
            counts = torch.bincount(self.owners, minlength=self.images).tolist()
            return self.boxes[order].split(counts), order
        if self.shared:
            return [self.boxes.unsqueeze(0)] * self.images, None
        return (self.boxes.unsqueeze(1) if len(self.leading) == 1 else self.boxes).unbind(), None

    def flat(self) -> tuple[Tensor, Tensor]:
        """All boxes (R, ...), and the image that each reads, int64."""
        if isinstance(self.boxes, (list, tuple)):
            device = self.boxes[0].device
            counts = torch.tensor([len(mine) for mine in self.boxes], device=device)
            owners = torch.arange(self.images, device=device).repeat_interleave(counts)
            return torch.cat([plain(mine) for mine in self.boxes]), owners
        boxes = plain(self.boxes)
        if self.owners is not None:
            return boxes, self.owners
        if self.shared:
            boxes = boxes.expand(self.images, *boxes.shape)
        owners = torch.arange(self.images, device=boxes.device)
        if len(self.leading) == 1:
            return boxes, owners
        return boxes.flatten(0, 1), owners.repeat_interleave(self.leading[1])


def is_list(value: Any) -> bool:
    """Whether this is several tensors: a list, a tuple or a nested tensor."""
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.is_nested)


def flattened(boxes: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """A list of B tensors (K_b, ...) as rows (sum K_b, ...) and the image that each belongs to, int64."""
    owners = [torch.full((len(t),), b, device=device) for b, t in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(owners)


def over_images(
    function: Callable[..., Any],
    images: Any,
    boxes: Any,
    batch_index: Any = None,
    *,
    axes: int = 2,
    tail: int = 1,
    along: Callable[[tuple[int, ...]], Tensor] | None = None,
    at_once: Callable[[list[Tensor], Rows], Tensor | None] | None = None,
) -> Any:
    """What ``function`` makes of each image (C, *spatial) of a list and its boxes (K_b, ...), as one tensor.

    Args:
        function: of an image and its boxes; returns a tensor, or a tuple of tensors, with K_b in front.
        images: a list of B images, or a nested tensor; checked here.
        boxes: (...) the same for all images, (B, ...), (B, K, ...), (R, ...) with a batch_index, or a list of B tensors
            (K_b, ...). Their trailing dimensions are for the caller, or ``function``, to check.
        batch_index: (R,) integers.
        axes: the number of spatial axes.
        tail: how many dimensions one box has.
        along: of the leading shape of the result makes a tensor that begins with it. Its rows go to ``function`` as a
            third argument, with the boxes that they belong to.
        at_once: makes the result (R, ...) of all images and boxes; or None, where it cannot serve.

    Returns:
        The tensor, or the tuple of them, with the leading dimensions of `diffcrop.crop`'s table.

    """
    tensors = _check_crop.image_list(parts(images), axes)
    rows = _rows(parts(boxes), batch_index, tensors, tail)
    made = None if at_once is None else at_once(tensors, rows)
    if made is not None:
        return _shaped(made, rows)
    each, order = rows.each()
    given = [tensors, each]
    if along is not None:
        beside = along(rows.leading).flatten(0, len(rows.leading) - 1)
        beside = beside if order is None else beside[order]
        given.append(beside.split([len(mine) for mine in each]))
    results = [function(*one) for one in zip(*given, strict=True)]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        result = torch.cat(list(parts))
        return _shaped(result if order is None else result[torch.argsort(order)], rows)

    with full_precision(tensors[0]):
        if isinstance(results[0], tuple):
            made = [joined(each) for each in zip(*results, strict=True)]
            return type(results[0])(*made) if hasattr(results[0], "_fields") else tuple(made)
        return joined(results)


def _shaped(result: Tensor, rows: Rows) -> Tensor:
    return result if len(rows.leading) == 1 else result.unflatten(0, rows.leading)


def _rows(boxes: Any, batch_index: Any, images: Sequence[Tensor], tail: int) -> Rows:
    count = len(images)
    if isinstance(boxes, (list, tuple)):
        _check_crop.box_count(boxes, count)
        if batch_index is not None:
            raise ValueError("batch_index says what a list of boxes says already; pass one of them")
        for i, mine in enumerate(boxes):
            _check_crop.same_device(images[0], mine, None, f"boxes[{i}]")
        return Rows(boxes, None, count, (sum(t.shape[0] for t in boxes),))
    if batch_index is not None:
        return _named(boxes, batch_index, images[0], count, tail)
    _check_crop.box_batch(boxes, count, tail)
    _check_crop.same_device(images[0], boxes, None)
    shared = boxes.ndim == tail
    return Rows(boxes, None, count, (count,) if shared else tuple(boxes.shape[:-tail]), shared)


def _named(boxes: Tensor, batch_index: Any, image: Tensor, count: int, tail: int) -> Rows:
    """Boxes that name their image. An index of no image makes a NaN box, for which any image will do."""
    index = plain(_check_crop.batch_index(batch_index, boxes, count, tail)).to(torch.int64)
    _check_crop.same_device(image, boxes, index)
    known = (index >= 0) & (index < count)
    known_boxes = known.reshape(-1, *[1] * (boxes.ndim - 1))
    boxes = torch.where(known_boxes, _boxes.promote(plain(boxes)), torch.nan)
    return Rows(boxes, torch.where(known, index, 0), count, (index.shape[0],))
