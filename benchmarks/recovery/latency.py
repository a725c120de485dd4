"""How long one caller waits for `diffcrop.locate`: one template, one photograph of 512 x 512, all threads."""

from __future__ import annotations

import time
from typing import Any

import torch

import diffcrop

from .photographs import missing, photograph
from .problems import REDUCTIONS, VARIANTS, make, output_size, targets

PHOTOGRAPHS = ("camera", "astronaut")  # grey and colour
THREADS = 2
_WARM = 2


def measure(calls: int) -> list[dict[str, Any]]:
    """A row for each photograph and reduction: seconds of so many calls, each with the next of eight templates."""
    locate = getattr(diffcrop, "locate", None)
    if locate is None:
        return []
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        for name in PHOTOGRAPHS:
            if missing(name):
                continue
            problems = make(photograph(name), 8)
            for reduction in REDUCTIONS:
                crops = targets(problems, "pillow lanczos", VARIANTS["clean"], output_size(reduction))
                samples = []
                for call in range(_WARM + calls):
                    start = time.perf_counter()
                    locate(problems.photograph.pixels, crops[call % len(crops)])
                    samples.append(round(time.perf_counter() - start, 6))
                row = {"photograph": name, "reduction": reduction, "threads": THREADS, "samples": samples[_WARM:]}
                rows.append(row)
    finally:
        torch.set_num_threads(before)
    return rows
