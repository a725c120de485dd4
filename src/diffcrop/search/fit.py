"""`fit_boxes`: boxes whose crops score best, by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcrop._check import describe
from diffcrop.search.arguments import check_images, check_optimizer, count, number, pose
from diffcrop.search.ascent import Search, Settings
from diffcrop.search.progress import Progress, check_progress
from diffcrop.search.results import FitStep, FittedBoxes
from diffcrop.search.schedule import Sources, Stage, stages_of, steps_of

__all__ = ["fit_boxes"]


def fit_boxes(
    images: Tensor,
    objective: Callable[[Tensor], Tensor],
    init: Tensor | Sequence[Any] | None,
    size: int | Sequence[int],
    *,
    steps: int = 200,
    learning_rate: float = 0.03,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adam",
    schedule: str | Sequence[Stage] | None = None,
    starts: int = 1,
    spread: float = 1.0,
    generator: torch.Generator | None = None,
    min_size: float = 1.0,
    inside: bool = False,
    aspect: float | None = None,
    patience: int | None = None,
    tolerance: float = 0.0,
    callback: Callable[[FitStep], object] | None = None,
    progress: bool | None = None,
    box_format: str = "xyxy",
    coords: str = "pixel",
    mode: str = "bilinear",
    antialias: bool = True,
    padding_mode: str = "border",
    fill: float | Sequence[float] | Tensor = 0.0,
    sigma: float | None = None,
    align_corners: bool = False,
    impl: str | None = None,
) -> FittedBoxes:
    """Move boxes so that their crops score as high as possible under any differentiable objective.

    The objective is whatever gives a crop a number: a classifier's logit, the similarity to a text, an aesthetic
    score, minus a difference from a target. Its sum over all boxes and starts is maximised by gradient ascent on the
    numbers of a `diffcrop.nn.LearnableBox`, which count in sides of the box and keep the constraints by construction.
    Each box and start is a problem of its own, and all of them are one batch.

    >>> import torch, diffcrop
    >>> image = torch.zeros(1, 48, 64)
    >>> image[:, 20:30, 30:45] = 1.0  # bright from x = 30 to 45 and y = 20 to 30
    >>> target = diffcrop.crop(image, torch.tensor([24.0, 16.0, 56.0, 40.0]), 8)
    >>> def alike(crops):  # (N, 1, 8, 8) -> (N,)
    ...     return -(crops - target).square().mean((1, 2, 3))
    >>> fit = diffcrop.fit_boxes(image, alike, [20.0, 10.0, 50.0, 40.0], 8, inside=True)
    >>> fit.boxes.round().tolist()
    [24.0, 16.0, 56.0, 40.0]
    >>> fit.steps, fit.stopped
    (200, 'steps')

    **How far off a start may be.** Without a schedule a box comes home from about a quarter of its side. What is
    farther away needs blur, which gives it a slope to go by, and several starts: ``schedule="coarse-to-fine",
    starts=16`` finds most boxes that start a whole side away. docs/recovery.md measures how many, from how far.
    Starts share one batch, so time and memory grow with them.

    Args:
        images: (C, H, W), or (B, C, H, W) of one size; any dtype that `diffcrop.crop` reads. Never changed, and given
            no gradient.
        objective: called with crops (N, C, h, w), it returns one score for each, (N,), differentiable in the crops;
            larger is better. N counts every box of every start, boxes fastest: with a target for each of K boxes,
            ``crops.unflatten(0, (-1, K))`` broadcasts against them. N varies if a schedule drops starts. The score of a
            crop should depend on that crop alone (a network belongs into ``eval()``). Parameters of the objective get
            no gradient.
        init: the boxes to start from, a tensor or nested lists: (4,) or (K, 4) for one image, (4,), (B, 4) or (B, K, 4)
            for B of them. None: the middle of each image, as in `diffcrop.nn.LearnableBox`.
        size: h and w of the crops, or one int for both, as for `diffcrop.crop`.
        steps: how many steps the optimiser takes in all, divided among the stages.
        learning_rate: about how far a step moves a box, in sides of its own. Falls to 0 on a half cosine.
        optimizer: ``"adam"``, a class (``torch.optim.SGD``), called as ``optimizer(params, lr=learning_rate)``, or any
            other function of the parameters that returns an optimiser, whose own learning rates then count instead.
            They fall as ``learning_rate`` does. A new one is made for each stage. It must not need a closure.
        schedule: None, the image itself throughout; ``"coarse-to-fine"``; or a sequence of `diffcrop.search.Stage`,
            the last without blur.
        starts: how many starts each box has; the best one wins. The first is ``init``. If the schedule begins with
            blur, the first waits for the first stage without, so that a good ``init`` is not lost, and the second
            begins at ``init`` too.
        spread: how far the other starts are from ``init``: centres by up to ``spread`` sides along each axis, sides by
            factors of up to exp(+-spread).
        generator: for the other starts. None: the same ones in every call, and the same for every box.
        min_size: least length of a side in pixels, at every step, as in `diffcrop.nn.LearnableBox`.
        inside: keep the boxes in the image at every step.
        aspect: width / height in pixels, kept at every step, or None for free sides.
        patience: end a stage when no score of any box and start has improved for so many steps. None: never. The last
            steps of a stage are small and make a box exact, so a small patience costs accuracy.
        tolerance: by how much a score must rise to have improved, in its own units.
        callback: called with a `diffcrop.search.FitStep` after every evaluation; returning True ends the search.
        progress: True: a progress bar, by tqdm or rich. None: one where either is installed, once two seconds
            have passed. False: none.
        box_format: of ``init`` and of all boxes returned, as for `diffcrop.crop`, like all that follow.
        coords: see there.
        mode: see there; not ``"nearest"``, which has no derivative by the box.
        antialias: see there.
        padding_mode: see there.
        fill: see there.
        sigma: see there.
        align_corners: see there.
        impl: see there.

    Returns:
        `FittedBoxes`: the best boxes, their scores, and the way there, detached, on the device of the images. The best
        are the best ever seen without blur, not the last, so a score is never below that of ``init``. A score that is
        not finite never wins, and its box is given no gradient.

    Raises:
        TypeError, ValueError: for wrong arguments; when the objective returns something else than N real numbers, when
            no score is finite at the first evaluation, or when scores do not depend on the crops.
        ImportError: for ``progress=True`` without tqdm and rich.

    It works under ``torch.no_grad()``, ``torch.inference_mode()`` and autocast, and touches neither the global random
    numbers nor any ``.grad``. Runs of one machine are repeatable, if the objective is.

    """
    crop_options: dict[str, Any] = {
        "mode": mode,
        "antialias": antialias,
        "padding_mode": padding_mode,
        "fill": fill,
        "sigma": sigma,
        "align_corners": align_corners,
        "impl": impl,
    }
    convention = {"box_format": box_format, "coords": coords, "align_corners": align_corners}
    constraints = {"min_size": min_size, "inside": inside, "aspect": aspect}
    check_images(images, size, crop_options, convention)
    if not callable(objective):
        raise TypeError(f"objective must be a function of the crops, got {describe(objective)}")
    steps, starts = count(steps, "steps"), count(starts, "starts")
    patience = None if patience is None else count(patience, "patience")
    learning_rate = number(learning_rate, "learning_rate", positive=True)
    spread, tolerance = number(spread, "spread"), number(tolerance, "tolerance")
    stages = stages_of(schedule)
    counts = steps_of(stages, steps)
    check_optimizer(optimizer)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {describe(generator)}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a FitStep, got {describe(callback)}")
    check_progress(progress)

    # enable_grad alone does nothing in inference mode, whose tensors no graph can hold.
    with torch.inference_mode(False), torch.enable_grad(), Progress(steps, progress, "fit_boxes") as bar:
        images = images.clone() if images.is_inference() else images.detach()
        problem = pose(images, init, convention, constraints)
        settings = Settings(steps, starts, learning_rate, optimizer, patience, tolerance, callback)
        search = Search(problem, Sources(images, crop_options), objective, size, settings, bar)
        return search.run(stages, counts, spread, generator)
