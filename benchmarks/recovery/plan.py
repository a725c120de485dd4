"""What is measured and what must hold: data.

A block asks for every combination of its methods, targets, variants and photographs. The unit that is measured, and
recorded as a row, is a cell: one method on the problems of one photograph at one reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .methods import METHODS, SWEEP, Method
from .photographs import SETS
from .problems import MODES, REDUCTIONS

KNOWN: dict[str, Method] = METHODS | SWEEP
# The target that diffcrop crops with the method's own filter.
OWN = "own"
LANCZOS = "pillow lanczos"
PILLOW = ("pillow bilinear", "pillow bicubic", LANCZOS)
COARSE = (4, 8, 16)
# The filters that `locate` tries where none is named.
TRIED = ("bilinear", "bicubic", "lanczos3", "area")


@dataclass(frozen=True, order=True)
class Cell:
    method: str
    target: str
    variant: str
    reduction: int
    photograph: str


@dataclass(frozen=True)
class Block:
    """``boxes``: true boxes in each photograph, each with a start at every displacement."""

    name: str
    methods: tuple[str, ...]
    targets: tuple[str, ...]
    sets: tuple[str, ...]
    boxes: int
    variants: tuple[str, ...] = ("clean",)
    reductions: tuple[int, ...] = REDUCTIONS

    def cells(self) -> Iterable[Cell]:
        for reduction in self.reductions:
            for name in self.methods:
                for target in self.targets:
                    cropped = f"diffcrop {KNOWN[name].mode}" if target == OWN else target
                    for variant in self.variants:
                        for photograph in dict.fromkeys(photo for one in self.sets for photo in SETS[one]):
                            yield Cell(name, cropped, variant, reduction, photograph)


_CENTRAL = ("recipe + Adam", "bilinear + Adam", "blur schedule + Adam", "LM", "locate, init")
_FILTERS = tuple(f"{mode} + Adam" for mode in MODES)
_SPOILT = ("locate", "locate bilinear", "locate zncc")
BLOCKS = (
    Block("held out", (*_CENTRAL, "kornia + Adam", *_FILTERS), (LANCZOS,), ("held-out",), 10),
    Block("textures", _CENTRAL, (LANCZOS,), ("textures",), 10, reductions=COARSE),
    # Sixteen starts take eight times as long as one.
    Block("fit", ("fit_boxes",), (LANCZOS,), ("held-out",), 5),
    Block("same filter", (*_FILTERS, "LM"), (OWN,), ("held-out",), 4, reductions=COARSE),
    # With 200 problems one that is missed is half a percent.
    Block("search", ("locate",), PILLOW, ("held-out", "textures"), 25),
    Block("search, our filters", ("locate",), tuple(f"diffcrop {mode}" for mode in TRIED), ("held-out",), 8),
    Block("search, one filter", ("locate bilinear",), (LANCZOS, OWN), ("held-out",), 8),
    Block("spoilt", _CENTRAL, ("diffcrop bilinear",), ("held-out",), 8, ("noise", "gain"), COARSE),
    # A root mean square of 128 times four numbers is known to 3 %.
    Block("search, spoilt", _SPOILT, ("diffcrop bilinear",), ("held-out",), 16, ("noise", "gain"), COARSE),
    Block("rates", tuple(SWEEP), (LANCZOS,), ("tuning",), 4, reductions=(1, 8)),
)


def cells(
    blocks: Sequence[Block] = BLOCKS, *, boxes: int | None = None, wanted: Callable[[Cell], bool] = lambda _: True
) -> dict[Cell, int]:
    """Every cell, and how many true boxes it has: the most that a block asks for, unless ``boxes`` says it."""
    found: dict[Cell, int] = {}
    for block in blocks:
        for cell in block.cells():
            if wanted(cell):
                found[cell] = boxes if boxes is not None else max(block.boxes, found.get(cell, 0))
    return found
