"""The public functions."""

from .crop import CropWithJacobian, coverage, crop, crop_with_jacobian
from .geometry import boxes_to_theta, convert_boxes, invert_boxes, map_boxes, map_points, theta_to_boxes
from .normal import NormalEquations, normal_equations, normal_equations_of
from .paste import Pasted, paste
from .roi import roi_align
from .system import implementations, simd_level

__all__ = [
    "CropWithJacobian",
    "NormalEquations",
    "Pasted",
    "boxes_to_theta",
    "convert_boxes",
    "coverage",
    "crop",
    "crop_with_jacobian",
    "implementations",
    "invert_boxes",
    "map_boxes",
    "map_points",
    "normal_equations",
    "normal_equations_of",
    "paste",
    "roi_align",
    "simd_level",
    "theta_to_boxes",
]
