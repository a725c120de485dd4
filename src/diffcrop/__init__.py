"""diffcrop: image crops whose gradient reaches the box.

>>> import torch, diffcrop
>>> image = torch.rand(3, 480, 640)
>>> box = torch.tensor([100.0, 50.0, 420.0, 290.0], requires_grad=True)  # x0, y0, x1, y1 in pixels
>>> glimpse = diffcrop.crop(image, box, (60, 80))  # antialiased
>>> glimpse.mean().backward()
>>> box.grad.shape
torch.Size([4])
"""

from importlib import metadata as _metadata

from ._api import (
    CropWithJacobian,
    NormalEquations,
    Pasted,
    WarpWithJacobian,
    boxes_to_theta,
    convert_boxes,
    coverage,
    crop,
    crop_quad,
    crop_rotated,
    crop_with_jacobian,
    implementations,
    invert_boxes,
    kernels,
    map_boxes,
    map_points,
    normal_equations,
    normal_equations_of,
    paste,
    quads_to_matrix,
    roi_align,
    rotated_to_matrix,
    rotated_to_quads,
    simd_level,
    theta_to_boxes,
    warp,
    warp_points,
    warp_with_jacobian,
)

from . import compat, nn  # isort: skip - they use the names above
from .search import FittedBoxes, Location, fit_boxes, locate  # isort: skip - and so does this

try:
    __version__ = _metadata.version("diffcrop")
except _metadata.PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0.0.0"

__all__ = [
    "CropWithJacobian",
    "FittedBoxes",
    "Location",
    "NormalEquations",
    "Pasted",
    "WarpWithJacobian",
    "boxes_to_theta",
    "compat",
    "convert_boxes",
    "coverage",
    "crop",
    "crop_quad",
    "crop_rotated",
    "crop_with_jacobian",
    "fit_boxes",
    "implementations",
    "invert_boxes",
    "kernels",
    "locate",
    "map_boxes",
    "map_points",
    "nn",
    "normal_equations",
    "normal_equations_of",
    "paste",
    "quads_to_matrix",
    "roi_align",
    "rotated_to_matrix",
    "rotated_to_quads",
    "search",
    "simd_level",
    "theta_to_boxes",
    "warp",
    "warp_points",
    "warp_with_jacobian",
]
