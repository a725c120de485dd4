"""The experiment of the demonstration: find the box that a small picture was cropped from, by gradient descent.

A crop of a photograph, much reduced, is the target. The box starts beside the true one, and Adam moves it so that the
crop at the box looks like the target. The only difference between the methods is the sampler, the function that crops:

* `recipe`: `affine_grid` and `grid_sample`, which read four pixels for each pixel of the crop, whatever the reduction;
* `diffcrop`: `diffcrop.crop`, whose filter grows with the reduction and whose derivative is exact.

`diffcrop.locate` gets the same targets and no start: where descent ends in the wrong valley, a search does not.

Nothing here draws or prints.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

# A box counts as recovered when it overlaps the true one so much (intersection over union).
RECOVERED_IOU = 0.9

# Adam's step in units of the box's sides, falling to zero on a half cosine. Of 0.01, 0.02, 0.05, 0.1 and 0.2 it is the
# one with which the recipe recovers most boxes in all: over the seeds 0 to 7 with the default settings, 192 problems
# for each displacement, 69 / 43 / 17 % at 10 / 25 / 50 % off, where diffcrop recovers 99 / 85 / 39 %.
LEARNING_RATE = 0.05

# How much the true boxes differ from the nominal side: a factor of exp(+-this), each side for itself.
_SIDE_SPREAD = 0.2

Sampler = Callable[[Tensor, Tensor, int], Tensor]


def recipe(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The crop that everybody pastes: a box becomes a Theta, Theta a grid, and the grid reads the image."""
    height, width = image.shape[-2:]
    x0, y0, x1, y1 = boxes.unbind(-1)
    zero = torch.zeros_like(x0)
    # Pixel p is at 2 p / side - 1 in the recipe's coordinates.
    row_x = torch.stack([(x1 - x0) / width, zero, (x1 + x0) / width - 1], -1)
    row_y = torch.stack([zero, (y1 - y0) / height, (y1 + y0) / height - 1], -1)
    theta = torch.stack([row_x, row_y], -2)
    grid = affine_grid(theta, [len(boxes), len(image), size, size], align_corners=False)
    images = image.expand(len(boxes), -1, -1, -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def ours(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The same crop by diffcrop, with its defaults."""
    return diffcrop.crop(image, boxes, size)


SAMPLERS: dict[str, Sampler] = {"recipe": recipe, "diffcrop": ours}


@dataclass(frozen=True)
class Settings:
    """What the experiment is made of. Displacements are in units of the box's sides."""

    size: int = 20
    reduction: float = 8.0
    displacements: tuple[float, ...] = (0.1, 0.25, 0.5)
    starts: int = 6
    steps: int = 200
    seed: int = 0

    @property
    def side(self) -> float:
        """The nominal side of a true box, in pixels of the photograph."""
        return self.size * self.reduction


@dataclass(frozen=True)
class Scene:
    """A photograph, and where its subject is, as fractions of its sides."""

    name: str
    image: Image.Image
    subject: tuple[float, float] = (0.5, 0.5)

    def pixels(self) -> Tensor:
        """(3, H, W), float32, 0 to 1."""
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1).to(torch.float32).div(255).contiguous()


@dataclass(frozen=True)
class Problems:
    """The problems on one photograph: true boxes and starts, (displacements, starts, 4), in pixels."""

    truth: Tensor
    start: Tensor


def make_problems(scene: Scene, settings: Settings, seed: str) -> Problems:
    """True boxes inside the photograph, the first on its subject, the others anywhere; and a start for each.

    A start is off by `displacement` sides in a random direction, and each of its sides by a factor between
    exp(-displacement) and exp(displacement). The draws are the same at every displacement, only longer.
    """
    draw = random.Random(seed)
    width, height = scene.image.size
    truths, starts = [], []
    for number in range(settings.starts):
        w, h = (settings.side * math.exp(draw.uniform(-_SIDE_SPREAD, _SIDE_SPREAD)) for _ in range(2))
        w, h = min(w, width), min(h, height)
        anywhere = draw.random(), draw.random()
        if number == 0:
            cx = min(max(scene.subject[0] * width, w / 2), width - w / 2)
            cy = min(max(scene.subject[1] * height, h / 2), height - h / 2)
        else:
            cx, cy = w / 2 + anywhere[0] * (width - w), h / 2 + anywhere[1] * (height - h)
        angle = draw.uniform(0, 2 * math.pi)
        stretch = draw.uniform(-1, 1), draw.uniform(-1, 1)
        truths.append(_corners(cx, cy, w, h))
        starts.append([displaced(cx, cy, w, h, d, angle, stretch) for d in settings.displacements])
    truth = torch.tensor(truths).expand(len(settings.displacements), -1, -1).contiguous()
    return Problems(truth, torch.tensor(starts).transpose(0, 1).contiguous())


def displaced(
    cx: float, cy: float, w: float, h: float, displacement: float, angle: float, stretch: tuple[float, float]
) -> tuple[float, float, float, float]:
    """The corners of a box that is moved by `displacement` sides and stretched by exp(displacement * stretch)."""
    return _corners(
        cx + displacement * w * math.cos(angle),
        cy + displacement * h * math.sin(angle),
        w * math.exp(displacement * stretch[0]),
        h * math.exp(displacement * stretch[1]),
    )


def _corners(cx: float, cy: float, w: float, h: float) -> tuple[float, float, float, float]:
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run what is inside on one thread of PyTorch.

    The tensors of the experiment are so small that threads would mostly wait for each other: on a busy machine of two
    cores it was measured to take ten times longer with both.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resized(scene: Scene, boxes: Tensor, size: int) -> Tensor:
    """What an image program writes for these boxes: Pillow's LANCZOS, 8 bits a channel. Neither method's own filter."""
    crops = []
    for x0, y0, x1, y1 in boxes.tolist():
        # A box that touches the photograph's edge may be over it by a rounding, which Pillow refuses.
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, scene.image.width), min(y1, scene.image.height))
        crop = scene.image.resize((size, size), Image.Resampling.LANCZOS, box=box)
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops).to(torch.float32) / 255


@dataclass(frozen=True)
class Descent:
    """One method on K problems of one photograph: boxes (steps + 1, K, 4), losses (steps + 1, K), and how long."""

    boxes: Tensor
    losses: Tensor
    seconds: float


def descend(
    sampler: Sampler, image: Tensor, start: Tensor, targets: Tensor, steps: int, rate: float = LEARNING_RATE
) -> Descent:
    """Adam on (cx / w0, cy / h0, log w, log h), where w0 and h0 are the sides of the start.

    So a step means the same for boxes of any size, and sides stay positive. The loss is the mean squared difference
    of crop and target. The problems are summed, and Adam treats each number by itself: none of them sees another.
    """
    began = time.perf_counter()
    size = targets.shape[-1]
    scale = start[:, 2:] - start[:, :2]
    centre = (start[:, :2] + start[:, 2:]) / 2
    position = (centre / scale).requires_grad_()
    log_sides = scale.log().requires_grad_()
    optimizer = torch.optim.Adam([position, log_sides], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    boxes, losses = [], []
    for step in range(steps + 1):
        half = log_sides.exp() / 2
        box = torch.cat([position * scale - half, position * scale + half], -1)
        loss = (sampler(image, box, size) - targets).square().mean((1, 2, 3))
        boxes.append(box.detach())
        losses.append(loss.detach())
        if step < steps:
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
    return Descent(torch.stack(boxes), torch.stack(losses), time.perf_counter() - began)


def iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union, (..., 4) and (..., 4) -> (...)."""
    low, high = torch.maximum(boxes[..., :2], truth[..., :2]), torch.minimum(boxes[..., 2:], truth[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(-1) for corners in (boxes, truth)]
    return shared / (areas[0] + areas[1] - shared)


def corner_error(boxes: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of the four corners from the true ones, in pixels of the photograph."""
    off = boxes - truth
    dx, dy = off[..., (0, 2, 0, 2)], off[..., (1, 1, 3, 3)]
    return torch.hypot(dx, dy).mean(-1)


@dataclass(frozen=True)
class Trial:
    """One method against one kind of target, on all photographs.

    Per photograph: `boxes` (steps + 1, displacements, starts, 4), `losses` (steps + 1, displacements, starts).
    """

    method: str
    target: str
    boxes: tuple[Tensor, ...]
    losses: tuple[Tensor, ...]
    errors: tuple[Tensor, ...]
    overlaps: tuple[Tensor, ...]
    seconds: float

    def final_errors(self, level: int) -> Tensor:
        """Corner errors after the last step at one displacement, photograph after photograph."""
        return torch.cat([errors[-1, level] for errors in self.errors])

    def median_error(self, level: int) -> float:
        """The middle one of `final_errors`, the mean of the two in the middle. NaN counts as infinitely far."""
        errors = self.final_errors(level).tolist()
        return statistics.median(math.inf if math.isnan(error) else error for error in errors)

    def recovered(self, level: int) -> Tensor:
        """Whether each problem was solved. A box that went to NaN was not."""
        return torch.cat([overlap[-1, level] > RECOVERED_IOU for overlap in self.overlaps])


# The kinds of target, with what they are called for people.
TARGETS = {
    "resized": "Pillow's LANCZOS crop at the true box, 8 bits: neither method's own filter",
    "own": "each method's own crop at the true box",
}


def run_trial(
    method: str,
    target: str,
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    settings: Settings,
    advance: Callable[[], object] = lambda: None,
) -> Trial:
    """One method on every problem. `advance` is called after each photograph."""
    sampler = SAMPLERS[method]
    boxes, losses, errors, overlaps, seconds = [], [], [], [], 0.0
    for scene, problem in zip(scenes, problems, strict=True):
        image = scene.pixels()
        truth = problem.truth.flatten(0, 1)
        if target == "resized":
            targets = resized(scene, truth, settings.size)
        else:
            targets = sampler(image, truth, settings.size)
        # What the first call costs (loading, thread start) is nobody's method.
        descend(sampler, image, problem.start.flatten(0, 1), targets, 1)
        descent = descend(sampler, image, problem.start.flatten(0, 1), targets, settings.steps)
        path = descent.boxes.unflatten(1, problem.truth.shape[:2])
        boxes.append(path)
        losses.append(descent.losses.unflatten(1, problem.truth.shape[:2]))
        errors.append(corner_error(path, problem.truth))
        overlaps.append(iou(path, problem.truth))
        seconds += descent.seconds
        advance()
    return Trial(method, target, tuple(boxes), tuple(losses), tuple(errors), tuple(overlaps), seconds)


def run_search(
    target: str,
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    settings: Settings,
    advance: Callable[[], object] = lambda: None,
) -> Trial:
    """`diffcrop.locate` with its defaults on every target. `advance` is called after each photograph.

    It is given no start, so a box is searched for once and stands for all displacements; the trial has no steps. What
    it refuses, such as a target of one colour, is not found.
    """
    boxes, losses, errors, overlaps, seconds = [], [], [], [], 0.0
    for scene, problem in zip(scenes, problems, strict=True):
        image, truth = scene.pixels(), problem.truth[0]
        targets = resized(scene, truth, settings.size) if target == "resized" else ours(image, truth, settings.size)
        found, loss = torch.full_like(truth, math.nan), torch.full((len(truth),), math.nan)
        began = time.perf_counter()
        for number, wanted in enumerate(targets):
            with contextlib.suppress(ValueError):
                location = diffcrop.locate(image, wanted)
                found[number], loss[number] = location.box, location.residual.square()
        seconds += time.perf_counter() - began
        path = found.expand(1, *problem.truth.shape)
        boxes.append(path)
        losses.append(loss.expand(path.shape[:-1]))
        errors.append(corner_error(path, problem.truth))
        overlaps.append(iou(path, problem.truth))
        advance()
    return Trial("locate", target, tuple(boxes), tuple(losses), tuple(errors), tuple(overlaps), seconds)


@dataclass(frozen=True)
class Story:
    """One problem as both methods lived it: what the pictures show.

    Per method: boxes (steps + 1, 4), losses and errors (steps + 1,). `target` is (3, size, size).
    """

    scene: Scene
    number: int
    displacement: float
    truth: Tensor
    target: Tensor
    boxes: dict[str, Tensor]
    losses: dict[str, Tensor]
    errors: dict[str, Tensor]
    recovered: dict[str, bool]

    def crops(self, method: str, steps: Sequence[int], size: int) -> Tensor:
        """What the method saw at some steps, (steps, 3, size, size)."""
        return SAMPLERS[method](self.scene.pixels(), self.boxes[method][list(steps)], size)


def tell_story(
    scenes: Sequence[Scene], problems: Sequence[Problems], trials: dict[str, Trial], settings: Settings
) -> Story:
    """The first problem, at the middle displacement, on which the methods' outcomes differ, whichever of them succeeds.

    If they agree on all problems it is the first one.
    """
    level = len(settings.displacements) // 2
    outcomes = torch.stack([trial.recovered(level) for trial in trials.values()])
    differs = (outcomes != outcomes[0]).any(0)
    # argmax of booleans is the first True, and 0 where there is none.
    return _story(int(differs.to(torch.uint8).argmax()), level, scenes, problems, trials, settings)


def tell_failure(
    scenes: Sequence[Scene], problems: Sequence[Problems], trials: dict[str, Trial], settings: Settings
) -> Story:
    """The first problem, at the largest displacement, that the fewest of the methods recover."""
    level = settings.displacements.index(max(settings.displacements))
    recovered = torch.stack([trial.recovered(level) for trial in trials.values()]).sum(0)
    return _story(int(recovered.argmin()), level, scenes, problems, trials, settings)


def _story(
    index: int,
    level: int,
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    trials: dict[str, Trial],
    settings: Settings,
) -> Story:
    photo, number = divmod(index, settings.starts)
    truth = problems[photo].truth[level, number]
    return Story(
        scene=scenes[photo],
        number=index,
        displacement=settings.displacements[level],
        truth=truth,
        target=resized(scenes[photo], truth[None], settings.size)[0],
        boxes={name: trial.boxes[photo][:, level, number] for name, trial in trials.items()},
        losses={name: trial.losses[photo][:, level, number] for name, trial in trials.items()},
        errors={name: trial.errors[photo][:, level, number] for name, trial in trials.items()},
        recovered={name: bool(trial.recovered(level)[index]) for name, trial in trials.items()},
    )
