"""Stand-ins for torchvision's tensors, which behave as its documentation says: see `test_tv_tensors.py`.

What is made of one is a plain tensor, but for ``clone``, ``to``, ``detach`` and ``requires_grad_``, and tensors of two
of these classes cannot be combined.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

KEPT = {Tensor.clone, Tensor.to, Tensor.detach, Tensor.requires_grad_}


class BoundingBoxFormat(enum.Enum):
    XYXY = "XYXY"
    XYWH = "XYWH"
    CXCYWH = "CXCYWH"
    XYWHR = "XYWHR"
    CXCYWHR = "CXCYWHR"
    XYXYXYXY = "XYXYXYXY"


class TVTensor(Tensor):
    __module__ = "torchvision.tv_tensors._tv_tensor"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if not all(issubclass(cls, t) for t in types):
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            output = func(*args, **(kwargs or {}))
        if func in KEPT and isinstance(args[0], cls):
            return output if isinstance(output, cls) else cls.like(output, args[0])
        return output.as_subclass(Tensor) if isinstance(output, cls) else output

    @classmethod
    def like(cls, output, other):  # noqa: ARG003
        return output.as_subclass(cls)


class Image(TVTensor):
    __module__ = "torchvision.tv_tensors._image"


class BoundingBoxes(TVTensor):
    __module__ = "torchvision.tv_tensors._bounding_boxes"

    def __new__(cls, data, *, format, canvas_size):  # noqa: A002
        data = torch.as_tensor(data)
        made = (data[None] if data.ndim == 1 else data).as_subclass(cls)
        made.format = BoundingBoxFormat[format.upper()] if isinstance(format, str) else format
        made.canvas_size = canvas_size
        return made

    @classmethod
    def like(cls, output, other):
        made = output.as_subclass(cls)
        made.format, made.canvas_size = other.format, other.canvas_size
        return made
