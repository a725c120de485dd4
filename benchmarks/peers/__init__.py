"""Who is measured, by name."""

from __future__ import annotations

from .base import Meaning, Peer, Tolerance
from .jax_image import JAX
from .ours import DIFFCROP, PLAIN
from .resizing import OPENCV_AREA, OPENCV_LINEAR, OPENCV_REMAP, PILLOW, SLICES, SLICING
from .sampling import COMPILED, KORNIA, PACKED, RECIPE

PEERS = {
    peer.name: peer
    for peer in (
        *(DIFFCROP, PLAIN, RECIPE, COMPILED, PACKED, KORNIA),
        *(SLICES, SLICING, PILLOW, OPENCV_LINEAR, OPENCV_AREA, OPENCV_REMAP, JAX),
    )
}

__all__ = ["PEERS", "Meaning", "Peer", "Tolerance"]
