"""How a box is improved from where it starts, given a sampler: Adam, coarse to fine, Levenberg and Marquardt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import diffcrop
from diffcrop.cli.recovery import Sampler, descend

# (image, boxes, size) -> the crop and its derivative by the corners.
Linearized = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Answer:
    """The boxes found, (K, 4), and how long all of them together took.

    ``path`` (steps + 1, K, 4) holds where they were on the way, starts first; None where that is not known. A box that
    was done before the others stays where it was.
    """

    boxes: Tensor
    seconds: float
    path: Tensor | None = None


def adam(sampler: Sampler, image: Tensor, start: Tensor, targets: Tensor, *, steps: int, rate: float) -> Answer:
    """That of the demonstration."""
    descent = descend(sampler, image, start, targets, steps, rate)
    return Answer(descent.boxes[-1], descent.seconds, descent.boxes)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """By a Gaussian of sigma pixels, its edge pixels repeated outside."""
    if sigma == 0:
        return image
    height, width = image.shape[-2:]
    whole = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64)
    return diffcrop.crop(image, whole, (height, width), mode="gaussian", sigma=sigma)


def coarse_to_fine(
    sampler: Sampler,
    image: Tensor,
    start: Tensor,
    targets: Tensor,
    *,
    steps: int,
    rate: float,
    fractions: Sequence[float],
) -> Answer:
    """Adam anew at each level, on photograph and targets blurred by sigmas that are fractions of a box's side.

    The photographs of a batch are blurred alike: by fractions of the median side of the starts.
    """
    began = time.perf_counter()
    side = float((start[:, 2:] - start[:, :2]).median())
    size = targets.shape[-1]
    paths = [start[None]]
    for fraction in fractions:
        level = blurred(image, fraction * side), blurred(targets, fraction * size)
        path = descend(sampler, level[0], paths[-1][-1], level[1], steps // len(fractions), rate).boxes
        paths.append(path[1:])
    path = torch.cat(paths)
    return Answer(path[-1], time.perf_counter() - began, path)


def levenberg_marquardt(
    linearized: Linearized, image: Tensor, start: Tensor, targets: Tensor, *, steps: int, done: float = 1e-4
) -> Answer:
    """On (cx / w0, cy / h0, log w, log h), as Adam is; damped by the diagonal, ten times less after each success.

    A problem is over when a step that helps is shorter than ``done`` pixels, or when even tiny steps do not help.
    """
    began = time.perf_counter()
    count, size = len(start), targets.shape[-1]
    scale = start[:, 2:] - start[:, :2]
    state = torch.cat([(start[:, :2] + start[:, 2:]) / 2 / scale, scale.log()], -1).double()
    scale = scale.double()

    def corners(state: Tensor) -> Tensor:
        half = state[:, 2:].exp() / 2
        return torch.cat([state[:, :2] * scale - half, state[:, :2] * scale + half], -1)

    def look(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its gradient and the Gauss-Newton matrix by the state."""
        crop, jacobian = linearized(image, corners(state).float(), size)
        residual, rows = (crop - targets).flatten(1).double(), jacobian.flatten(1, -2).double()
        half = state[:, 2:].exp() / 2
        by_state = torch.cat([
            (rows[..., :2] + rows[..., 2:]) * scale[:, None],
            (rows[..., 2:] - rows[..., :2]) * half[:, None],
        ], -1)  # fmt: skip
        loss = residual.square().sum(-1)
        return loss, (by_state.mT @ residual[..., None])[..., 0], by_state.mT @ by_state

    loss, gradient, normal = look(state)
    damping = torch.full((count,), 1e-2, dtype=torch.float64)
    over = torch.zeros(count, dtype=torch.bool)
    path = [corners(state).float()]
    for _ in range(steps):
        if over.all():
            break
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        # A direction in which nothing changes is not gone along.
        lifted = damping[:, None] * diagonal + 1e-12 * diagonal.sum(-1, keepdim=True) + 1e-30
        step = -torch.linalg.solve(normal + torch.diag_embed(lifted), gradient)
        # No step of more than the side, as a linear model knows nothing of what is there.
        trial = state + step.clamp(-1, 1)
        new_loss, new_gradient, new_normal = look(trial)
        better = (new_loss < loss) & ~over
        moved = (corners(trial) - corners(state)).abs().amax(-1)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e12)
        over = over | (better & (moved < done)) | (~better & (moved < done / 100))
        state = torch.where(better[:, None], trial, state)
        loss = torch.where(better, new_loss, loss)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        normal = torch.where(better[:, None, None], new_normal, normal)
        path.append(corners(state).float())
    return Answer(path[-1], time.perf_counter() - began, torch.stack(path))
