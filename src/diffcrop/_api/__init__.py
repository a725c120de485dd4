"""The public functions."""

from .crop import CropWithJacobian, coverage, crop, crop_with_jacobian
from .geometry import boxes_to_theta, convert_boxes, invert_boxes, map_boxes, map_points, theta_to_boxes
from .normal import NormalEquations, normal_equations, normal_equations_of
from .paste import Pasted, paste
from .placement import quads_to_matrix, rotated_to_matrix, rotated_to_quads, warp_points
from .roi import roi_align
from .system import implementations, kernels, simd_level
from .warp import crop_quad, crop_rotated, warp
from .warp_jacobian import WarpWithJacobian, warp_with_jacobian

__all__ = [
    "CropWithJacobian",
    "NormalEquations",
    "Pasted",
    "WarpWithJacobian",
    "boxes_to_theta",
    "convert_boxes",
    "coverage",
    "crop",
    "crop_quad",
    "crop_rotated",
    "crop_with_jacobian",
    "implementations",
    "invert_boxes",
    "kernels",
    "map_boxes",
    "map_points",
    "normal_equations",
    "normal_equations_of",
    "paste",
    "quads_to_matrix",
    "roi_align",
    "rotated_to_matrix",
    "rotated_to_quads",
    "simd_level",
    "theta_to_boxes",
    "warp",
    "warp_points",
    "warp_with_jacobian",
]
