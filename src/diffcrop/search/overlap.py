"""How much boxes have in common."""

from __future__ import annotations

from torch import Tensor

__all__ = ["iou"]


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), whose leading dimensions broadcast."""
    shared = (boxes[..., 2:].minimum(others[..., 2:]) - boxes[..., :2].maximum(others[..., :2])).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)
