"""Who is measured, by name."""

from __future__ import annotations

from .base import Meaning, Peer, Tolerance
from .jax_image import JAX
from .ours import DIFFCROP, PLAIN
from .pasting import PASTE_KORNIA, PASTE_RECIPE
from .pooling import ONNXRUNTIME, ROI_RECIPE
from .resizing import OPENCV_AREA, OPENCV_LINEAR, OPENCV_REMAP, PILLOW, SLICES, SLICING, WHOLE
from .sampling import COMPILED, KORNIA, PACKED, RECIPE
from .warping import WARP_KORNIA, WARP_OPENCV, WARP_RECIPE

PEERS = {
    peer.name: peer
    for peer in (
        *(DIFFCROP, PLAIN, RECIPE, COMPILED, PACKED, KORNIA),
        *(SLICES, SLICING, WHOLE, PILLOW, OPENCV_LINEAR, OPENCV_AREA, OPENCV_REMAP, JAX),
        *(ONNXRUNTIME, ROI_RECIPE),
        *(WARP_RECIPE, WARP_KORNIA, WARP_OPENCV),
        *(PASTE_RECIPE, PASTE_KORNIA),
    )
}

__all__ = ["PEERS", "Meaning", "Peer", "Tolerance"]
