"""How the kernels are launched, as pure functions of sizes: tiles, and how large their tables must be.

Nothing is timed and no box is looked at, so the same call gives the same bits on the same machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffcrop._filters import GAUSSIAN_CUT
from diffcrop._options import Options

# Bytes of tables that a call may take beside its results; more boxes are worked off in turns.
BUDGET = 64 * 2**20
# Arguments of kernels that are compiled as they come, not anew where one is 1 or a multiple of 16: sizes vary.
AS_THEY_COME = (
    *("rows", "images", "per_image", "channels", "in_y", "in_x", "out_y", "out_x", "scale_bits", "edges"),
    *("capacity_y", "capacity_x", "to_capacity_y", "to_capacity_x"),
)
# Boxes of an image that are looked through together, for those that touch a tile: few kinds, each is compiled.
BOXES = (16, 128)
# Parts of a box gradient that are summed at a time.
PARTS = 1024
# The numbers of a tile: eight for each thread of four warps; derivatives keep three sums for each instead of one.
_NUMBERS, _NUMBERS_OF_SLOPES = 1024, 512
_WARPS = 4
_MOST_TAPS = 16
_WIDEST = 32
_MOST_OUTPUTS = 64
_MOST_CHANNELS = 64


@dataclass(frozen=True)
class Tile:
    """What one program makes: ``rows`` x ``columns`` outputs of ``channels`` channels, ``taps`` along x at a time."""

    rows: int
    columns: int
    taps: int
    channels: int
    warps: int = _WARPS

    def count(self, size: tuple[int, int], channels: int) -> int:
        """Programs for one box (or image)."""
        return math.ceil(size[0] / self.rows) * math.ceil(size[1] / self.columns) * math.ceil(channels / self.channels)


def edges(size: tuple[int, int]) -> int:
    """How many pixels of an image lie at its edges."""
    return size[0] * size[1] - max(size[0] - 2, 0) * max(size[1] - 2, 0)


@dataclass(frozen=True)
class Planning:
    """What one program of a planning kernel makes: ``block`` runs, ``taps`` weights of each at a time."""

    block: int
    taps: int
    warps: int = _WARPS


def planning(runs: int) -> Planning:
    """For axes of so many runs at most: few kinds, each is compiled."""
    return Planning(16, 16) if runs <= 16 else Planning(64, 4)


def together(boxes: int) -> int:
    """How many boxes are looked through together."""
    return BOXES[0] if boxes <= BOXES[0] else BOXES[1]


def power(n: float) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(math.ceil(n) - 1, 0).bit_length()


def reach(options: Options) -> float:
    """Half the width of the filter where nothing is reduced; see `_filters.reach`."""
    return {"gaussian": GAUSSIAN_CUT * options.parameter, "bicubic": 2.0, "lanczos3": 3.0}.get(options.mode, 1.0)


def expected_taps(outputs: int, pixels: int, options: Options) -> int:
    """Pixels that an output reads along an axis, if boxes are about half as wide as the image."""
    reduction = max(0.5 * pixels / outputs, 1.0) if options.antialias else 1.0
    return min(power(min(2 * reach(options) * reduction, _MOST_TAPS)), _MOST_TAPS)


def expected_readers(outputs: int, pixels: int, options: Options) -> int:
    """Outputs that read a pixel along an axis, if boxes are about half as wide as the image."""
    reduction = max(0.5 * pixels / outputs, 1 / _MOST_TAPS)
    if options.antialias:
        reduction = min(reduction, 1.0)
    return min(power(min(2 * reach(options) / reduction, _MOST_TAPS)), _MOST_TAPS)


def tile(size: tuple[int, int], channels: int, taps: int, last: bool, slopes: bool = False) -> Tile:
    """``last``: channels are the innermost dimension in memory, so that neighbouring threads should share a pixel."""
    numbers = (_NUMBERS_OF_SLOPES if slopes else _NUMBERS) // taps
    together = min(power(channels), _MOST_CHANNELS if last else 4, numbers)
    # Fewer outputs than threads: then each thread loads what an output needs, and nothing passes through shared memory.
    columns = min(power(size[1]), _WIDEST, numbers // together)
    rows = min(power(size[0]), numbers // together // columns, max(_MOST_OUTPUTS // columns, 1))
    together = min(power(channels), numbers // rows // columns)
    return Tile(rows, columns, taps, together)


def forward_capacity(outputs: int, pixels: int, options: Options) -> int:
    """Weights that the runs of one axis may have.

    A run has at most a = 2 reach w + 3 pixels, or all N. With w = s no more than N / s + 2 reach + 5 of them touch the
    image, so a of each are fewer than (4 reach + 16) N; with w = 1 all n may. An output beside the image has one more.
    """
    if options.mode == "nearest":
        return 2 * outputs
    span = 2 * reach(options)
    touching = outputs * min(span + 4, pixels)
    if options.antialias:
        touching += (2 * span + 16) * pixels
    periodic = options.padding_mode in ("reflection", "circular") and options.antialias
    whole = outputs * pixels
    return math.ceil(outputs + (whole if periodic else min(touching, whole)))


def transposed_capacity(outputs: int, pixels: int, options: Options) -> int:
    """Weights that the runs of one axis turned round may have: see `plan.transposed_runs`.

    The pixels at both ends may be read by every output. One between is read by 2 reach w / s + 3 of them at most, or
    all n: where w = s that is 2 reach + 3 for each of N pixels; where s < 1 fewer than s n + 2 reach + 5 are touched.
    """
    whole = outputs * pixels
    if options.padding_mode in ("reflection", "circular"):
        return whole
    span = 2 * reach(options)
    return math.ceil(2 * outputs + min(whole, (span + 4) * pixels + (2 * span + 9) * outputs))
