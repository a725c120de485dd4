"""The ascent: stages of optimiser steps, with what each start found on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import diffcrop
from diffcrop._check import describe
from diffcrop.search.arguments import Problem, make_optimizer
from diffcrop.search.progress import Progress
from diffcrop.search.results import FitStep, FittedBoxes, Trace
from diffcrop.search.schedule import Sources, Stage
from diffcrop.search.starts import distinct_best, offsets, spread_out

__all__ = ["Search", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How to climb: arguments of `fit_boxes` that hold in all stages."""

    steps: int
    starts: int
    learning_rate: float
    optimizer: Any
    patience: int | None
    tolerance: float
    callback: Callable[[FitStep], object] | None


class Search:
    """The state of one call: what was found so far, and what is to be told of it.

    S counts starts, K boxes; rows of the objective are S * K, boxes fastest.
    """

    def __init__(
        self,
        problem: Problem,
        sources: Sources,
        objective: Callable[[Tensor], Tensor],
        size: Any,
        settings: Settings,
        bar: Progress,
    ) -> None:
        self.problem, self.sources, self.objective, self.size = problem, sources, objective, size
        self.settings, self.bar = settings, bar
        # Positions are kept in float64, where the device has it: a stage begins where the one before ended.
        self.wide = torch.float32 if problem.device.type == "mps" else torch.float64
        self.init = problem.boxes.to(problem.device, self.wide)
        self.every = torch.arange(len(self.init), device=problem.device)
        self.taken = 0
        self.evaluated = False
        self.stopped = ""
        self.best_boxes = self.init.clone()
        # Scores are compared in one dtype and reported in their own.
        self.best_scores = torch.full_like(self.init[:, 0], -torch.inf)
        self.score_dtype = torch.float32
        self.best_starts = torch.zeros_like(self.every)
        # Of every evaluation: boxes, scores, stage and blur.
        self.rows: list[tuple[Tensor, Tensor, int, float]] = []

    def run(
        self, stages: Sequence[Stage], counts: Sequence[int], spread: float, generator: torch.Generator | None
    ) -> FittedBoxes:
        """All stages, with so many steps each."""
        boxes, ids, waiting = self._begin(stages, spread, generator)
        scores: Tensor | None = None
        if stages[0].blur and not waiting:
            self._consider_sharp(self.init, self.best_starts)
        for number, (stage, count) in enumerate(zip(stages, counts, strict=True)):
            if stage.keep is not None and scores is not None and stage.keep < len(ids):
                chosen = distinct_best(boxes, scores, stage.keep)
                boxes, ids = boxes.gather(0, chosen[..., None].expand(-1, -1, 4)), ids.gather(0, chosen)
            if waiting and not stage.blur:
                boxes = torch.cat([self.init[None], boxes])
                ids = torch.cat([torch.zeros_like(ids[:1]), ids])
                waiting = False
            boxes, scores = self._ascend(number, stage, count, boxes, ids)
            if not stage.blur:
                self._consider(boxes, scores, ids)
            if self.stopped == "callback":
                if stage.blur:
                    self._consider_sharp(self.init, torch.zeros_like(self.every))
                    top = scores.argmax(0)
                    self._consider_sharp(boxes[top, self.every], ids[top, self.every])
                break
        return self._result()

    def _begin(
        self, stages: Sequence[Stage], spread: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, bool]:
        """Pixel boxes (S, K, 4) of the first stage, which starts they are, (S, K), and whether start 0 waits."""
        waiting = self.settings.starts > 1 and stages[0].blur > 0
        exact = 2 if waiting else 1
        moves = offsets(max(self.settings.starts - exact, 0), spread, generator)
        height, width = self.problem.image_size
        less = int(self.problem.convention["align_corners"])
        others = spread_out(self.problem.boxes, moves, (width - less, height - less), **self.problem.constraints)
        boxes = torch.cat([self.problem.boxes[None], others]).to(self.init.device, self.wide)
        ids = torch.arange(int(waiting), self.settings.starts, device=self.init.device)
        return boxes, ids[:, None].expand(-1, len(self.init)), waiting

    def _ascend(self, number: int, stage: Stage, count: int, boxes: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """One stage from ``boxes`` (S, K, 4) on: the best boxes and scores (S, K) of every start."""
        box = diffcrop.nn.LearnableBox(
            self.problem.image_size,
            init=boxes.flatten(0, 1),
            align_corners=self.problem.convention["align_corners"],
            dtype=self.wide,
            device=self.init.device,
            **self.problem.constraints,
        )
        optimizer, rates = make_optimizer(self.settings.optimizer, box.raw, self.settings.learning_rate)
        crop = self._cropper(stage.blur, len(ids))
        best_boxes = boxes.flatten(0, 1)
        best_scores = torch.full_like(best_boxes[:, 0], -torch.inf)
        reference, since = best_scores, 0
        for update in range(count + 1):
            now = box()
            scores = self._scores(crop(now))
            seen = scores.detach().to(self.wide)
            usable = torch.where(seen.isfinite(), seen, -torch.inf)
            better = usable > best_scores
            best_scores = torch.where(better, usable, best_scores)
            best_boxes = torch.where(better[:, None], now.detach(), best_boxes)
            if self._tell(number, stage, ids, now.detach(), seen, best_boxes, best_scores):
                self.stopped = "callback"
                break
            if self.settings.patience is not None:
                improved = usable > reference + self.settings.tolerance
                reference = torch.where(improved, usable, reference)
                since = 0 if bool(improved.any()) else since + 1
                if since >= self.settings.patience:
                    self.stopped = "patience"
                    break
            if update == count:
                self.stopped = "steps"
                break
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (stage.rate * (1 + math.cos(math.pi * update / count)) / 2)
            box.raw.grad = _uphill(scores, box.raw)
            optimizer.step()
            self.taken += 1
        return best_boxes.unflatten(0, ids.shape), best_scores.unflatten(0, ids.shape)

    def _cropper(self, blur: float, starts: int) -> Callable[[Tensor], Tensor]:
        """The crops of boxes (starts * K, 4) from images that are blurred in proportion to the box."""
        sides = self.problem.boxes[:, 2:] - self.problem.boxes[:, :2]
        levels = self.sources.level(blur * sides.prod(-1).sqrt()).repeat(starts)
        owner = None if self.problem.owner is None else self.problem.owner.repeat(starts)
        distinct = levels.unique().tolist()
        if len(distinct) == 1:
            return lambda boxes: self.sources.crop(boxes, self.size, distinct[0], owner)
        rows = [(levels == level).nonzero()[:, 0] for level in distinct]
        back = torch.cat(rows).argsort().to(self.init.device)
        rows = [row.to(self.init.device) for row in rows]

        def crop(boxes: Tensor) -> Tensor:
            parts = [
                self.sources.crop(boxes[row], self.size, level, None if owner is None else owner[row])
                for level, row in zip(distinct, rows, strict=True)
            ]
            return torch.cat(parts)[back]

        return crop

    def _scores(self, crops: Tensor) -> Tensor:
        scores = self.objective(crops)
        count = len(crops)
        if not isinstance(scores, Tensor):
            raise TypeError(f"objective must return a tensor, got {describe(scores)}")
        if scores.shape != (count,):
            hint = "it is called with all boxes of all starts at once"
            if scores.ndim == 0:
                hint = "average over dimensions 1, 2 and 3, not over the crops"
            elif scores.numel() == count:
                hint = "return scores.flatten()"
            raise ValueError(
                f"objective must return one score for each of the {count} crops, shape ({count},), got shape "
                f"{tuple(scores.shape)}; {hint}"
            )
        if not scores.is_floating_point():
            raise TypeError(f"objective must return real floating-point scores, got {scores.dtype}")
        if not self.evaluated:
            self.evaluated = True
            if not scores.requires_grad:
                raise ValueError(
                    "objective must be differentiable in the crops, but its scores have no graph; look for detach(), "
                    "item(), NumPy, argmax, rounding or torch.no_grad() in it"
                )
            if not bool(scores.isfinite().any()):
                raise ValueError(
                    f"objective must be finite somewhere, but none of the {count} scores of the first evaluation is: "
                    f"{_few(scores)}; check the images for NaN and the objective's range"
                )
        if scores.dtype.itemsize < 4:
            scores = scores.to(torch.float32)
        self.score_dtype = scores.dtype
        return scores

    def _tell(
        self, number: int, stage: Stage, ids: Tensor, boxes: Tensor, scores: Tensor, best: Tensor, best_scores: Tensor
    ) -> bool:
        """Write down an evaluation, and show it to whoever asked. Whether the callback wants to stop."""
        by_box = boxes.unflatten(0, ids.shape)
        all_boxes = boxes.new_full((self.settings.starts, len(self.init), 4), torch.nan)
        all_boxes.scatter_(0, ids[..., None].expand(-1, -1, 4), by_box)
        all_scores = scores.new_full((self.settings.starts, len(self.init)), torch.nan)
        all_scores.scatter_(0, ids, scores.unflatten(0, ids.shape))
        trial_boxes, trial_scores = self.problem.report(all_boxes), self._report_scores(all_scores)
        self.rows.append((trial_boxes, trial_scores, number, stage.blur))
        best, best_scores = best.unflatten(0, ids.shape), best_scores.unflatten(0, ids.shape)
        self.bar.update(self.taken, lambda: f"best {float(best_scores.amax(0).mean()):.4g}")
        if self.settings.callback is None:
            return False
        top = best_scores.argmax(0)
        answer = self.settings.callback(
            FitStep(
                self.taken,
                self.settings.steps,
                number,
                self.problem.report(best[top, self.every]),
                self._report_scores(best_scores[top, self.every]),
                trial_boxes.clone(),
                trial_scores.clone(),
            )
        )
        if answer is None or isinstance(answer, bool):
            return bool(answer)
        if isinstance(answer, Tensor) and answer.dtype == torch.bool and answer.numel() == 1:
            return bool(answer)
        raise TypeError(f"callback must return None, True or False, got {describe(answer)}")

    def _consider_sharp(self, boxes: Tensor, starts: Tensor) -> None:
        """Let boxes (K, 4) compete with what a blurred stage has to say of them left out."""
        scores = self._scores(self._cropper(0.0, 1)(boxes.clone().requires_grad_())).detach().to(self.wide)
        self._consider(boxes[None], torch.where(scores.isfinite(), scores, -torch.inf)[None], starts[None])

    def _consider(self, boxes: Tensor, scores: Tensor, ids: Tensor) -> None:
        """Keep what is better than all so far: boxes (S, K, 4), scores and starts (S, K)."""
        top = scores.argmax(0)
        boxes, scores, ids = boxes[top, self.every], scores[top, self.every], ids[top, self.every]
        better = scores > self.best_scores
        self.best_boxes = torch.where(better[:, None], boxes, self.best_boxes)
        self.best_scores = torch.where(better, scores, self.best_scores)
        self.best_starts = torch.where(better, ids, self.best_starts)

    def _report_scores(self, scores: Tensor) -> Tensor:
        """(*any, K) as (*any, *leading), in the dtype of the objective."""
        return self.problem.shaped(scores.to(self.score_dtype))

    def _result(self) -> FittedBoxes:
        boxes, scores, stages, blurs = zip(*self.rows, strict=True)
        convention = {
            "image_size": self.problem.image_size,
            "from_format": self.problem.convention["box_format"],
            "from_coords": self.problem.convention["coords"],
            "align_corners": self.problem.convention["align_corners"],
        }
        trace = Trace(
            torch.stack(boxes),
            torch.stack(scores),
            torch.tensor(stages, dtype=torch.int64, device="cpu"),
            torch.tensor(blurs, dtype=torch.float32, device="cpu"),
            convention,
        )
        found = torch.where(self.best_scores.isfinite(), self.best_scores, torch.nan)
        return FittedBoxes(
            self.problem.report(self.best_boxes),
            self._report_scores(found),
            self.problem.shaped(self.best_starts),
            self.taken,
            self.stopped,
            trace,
        )


def _uphill(scores: Tensor, raw: Tensor) -> Tensor:
    """What an optimiser, which descends, is to be given so that the scores rise; 0 for rows that are not finite.

    ``autograd.grad`` and not ``backward``: the objective's own parameters must not gather gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), [raw], allow_unused=True)
    if gradient is None:
        raise ValueError("objective must depend on the crops, but its scores have a graph that does not lead to them")
    return torch.where(gradient.isfinite().all(1, keepdim=True), -gradient, 0.0)


def _few(values: Tensor) -> str:
    shown = ", ".join(f"{v:g}" for v in values.detach().flatten()[:4].tolist())
    return shown + (", ..." if values.numel() > 4 else "")
