"""Does the gradient point toward the box? The gate of every other figure: it takes seconds and needs no optimizer.

A start is off in all four numbers at once, in a random direction of that space, and the target is each sampler's own
crop. Counted is at how many starts the negative gradient of the squared difference has a positive product with the way
to the truth; half of them would by chance.
"""

from __future__ import annotations

import math
import random

import torch

from diffcrop.cli.recovery import Sampler, recipe

from .methods import ours
from .photographs import Photograph
from .problems import REDUCTIONS, make, output_size

DISPLACEMENTS = (0.1, 0.25, 0.5)
SAMPLERS: dict[str, Sampler] = {"recipe": recipe, "diffcrop": ours("bilinear")}


def measure(photograph: Photograph, count: int, seed: int = 0) -> list[dict[str, object]]:
    """For each sampler and reduction a row: of each displacement, which of ``count`` starts point to the truth."""
    truth = make(photograph, count, seed).truth
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {photograph.name} directions").getrandbits(63))
    away = torch.randn(truth.shape, generator=generator)
    sides = (truth[:, 2:] - truth[:, :2]).mean(-1, keepdim=True)
    away = away / away.norm(dim=-1, keepdim=True) * sides * math.sqrt(2)
    rows: list[dict[str, object]] = []
    for name, sampler in SAMPLERS.items():
        for reduction in REDUCTIONS:
            size = output_size(reduction)
            target = sampler(photograph.pixels, truth, size)
            hits = []
            for displacement in DISPLACEMENTS:
                boxes = (truth + displacement * away).requires_grad_()
                # A sum over boxes: the gradient of each depends on itself alone.
                loss = (sampler(photograph.pixels, boxes, size) - target).square().mean((1, 2, 3)).sum()
                (gradient,) = torch.autograd.grad(loss, boxes)
                hits.append(((gradient * away).sum(-1) > 0).int().tolist())
            rows.append({"sampler": name, "reduction": reduction, "photograph": photograph.name, "hits": hits})
    return rows
