"""The cases of RoIAlign: features of a detector, two samples to a bin."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case

# What torchvision's and mmcv's kernels, which are not measured here, are quoted with for this size.
_VARIED = Case(
    name="R-varied",
    about="256 boxes of each of two feature maps, from a twentieth to a half of their sides",
    images=(2, 256, 50, 68),
    size=(7, 7),
    boxes=256,
    share=(0.05, 0.5),
    shape="roi",
    peers=("onnxruntime", "roi recipe"),
)
ROIS = (
    _VARIED,
    replace(_VARIED, name="R-large", about="the same with boxes of half the map and more", share=(0.5, 1.0)),
    replace(_VARIED, name="R-last", about="R-varied in channels_last", channels_last=True),
)
