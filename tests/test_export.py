"""Exported modules: programs that others run, and ONNX."""

from __future__ import annotations

import torch

import diffcrop
from plain import SIZE, SMOOTH, agree, boxes, image


def test_export(impl, generator):
    """A module with a crop in it becomes a graph that gives the same, also for another batch."""
    module = diffcrop.nn.Crop(SIZE, impl=impl, **SMOOTH)
    given = image(generator, 2), boxes(generator, 2)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(module, given, dynamic_shapes=({0: batch}, {0: batch}, None)[:2])
    for count in (2, 5):
        i, b = image(generator, count), boxes(generator, count)
        agree(exported.module()(i, b), module(i, b), 1e-14)
