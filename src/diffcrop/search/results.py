"""What a search for boxes tells: of its steps, at its end, and in pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import diffcrop

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FitStep", "FittedBoxes", "Trace"]


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Every box that `diffcrop.fit_boxes` looked at, and its score.

    A stage of n steps looks at n + 1 boxes for each start, so T is the number of steps plus that of stages.

    Attributes:
        boxes: (T, starts, ..., 4), with the leading shape, the format and the coordinates of the result. NaN while a
            start does not take part.
        scores: (T, starts, ...), on the image as it was blurred at the time. NaN while a start does not take part.
        stage: (T,), the number of the stage, int64, on the CPU.
        blur: (T,), its `Stage.blur`, on the CPU. Scores can be compared where it is the same.

    """

    boxes: Tensor
    scores: Tensor
    stage: Tensor
    blur: Tensor
    # How to read `boxes`: what convert_boxes needs to make pixel corners of them.
    convention: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        # All the numbers would bury a result that is printed.
        return f"Trace(boxes of shape {tuple(self.boxes.shape)})"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the scores by step, a line for each start of each box, dashed where a stage begins. Needs matplotlib.

        ``ax`` are the axes to draw into, or None for new ones; returned either way.
        """
        ax = _axes(ax)
        lines = self.scores.detach().to("cpu", torch.float64).flatten(1)
        for line in lines.unbind(1):
            ax.plot(range(len(self)), line.tolist(), linewidth=1, alpha=0.7)
        for begin in (self.stage.diff().nonzero()[:, 0] + 0.5).tolist():
            ax.axvline(begin, color="0.7", linewidth=1, linestyle="--")
        ax.set_xlabel("step")
        ax.set_ylabel("score")
        return ax

    def plot_boxes(self, ax: Axes | None = None) -> Axes:
        """Draw the last box of each start and the way its centre took, in pixels. Needs matplotlib.

        ``ax`` are the axes to draw into, or None for new ones with y pointing down; returned either way. The picture
        that fits below is ``ax.imshow(picture, extent=(0, W, H, 0))``.
        """
        new = ax is None
        ax = _axes(ax)
        corners = diffcrop.convert_boxes(self.boxes.detach().to("cpu", torch.float64), **self.convention)
        for path in corners.flatten(1, -2).unbind(1):
            path = path[path.isfinite().all(-1)]
            if not len(path):
                continue
            x, y = ((path[:, i] + path[:, i + 2]) / 2 for i in (0, 1))
            (line,) = ax.plot(x.tolist(), y.tolist(), linewidth=1, alpha=0.7)
            x0, y0, x1, y1 = path[-1].tolist()
            ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=line.get_color())
        ax.set_aspect("equal")
        if new:
            ax.invert_yaxis()
        ax.set_xlabel("x")
        ax.set_ylabel("y")
        return ax


class FittedBoxes(NamedTuple):
    """What `fit_boxes` returns. ``...`` is the leading shape, that of ``init``, or (B,) if it is one box for B images.

    Attributes:
        boxes: (..., 4), the best found, in ``box_format`` and ``coords``.
        scores: (...), what the objective said of them, without blur. NaN where it never said anything finite; the box
            is the one of ``init`` then.
        starts: (...), int64, which start found them; 0 is ``init`` itself.
        steps: how many steps the optimiser took, over all stages.
        stopped: why it took no more. ``"steps"``: there were no more; ``"patience"``: nothing improved; ``"callback"``.
        trace: all boxes and scores on the way, a `diffcrop.search.Trace`; ``trace.plot()`` draws it.

    """

    boxes: Tensor
    scores: Tensor
    starts: Tensor
    steps: int
    stopped: str
    trace: Trace


class FitStep(NamedTuple):
    """What the callback of `fit_boxes` is told after every evaluation. Tensors are detached and may be kept.

    Attributes:
        step: the steps taken so far, from 0 on.
        steps: the steps there may be.
        stage: the number of the stage.
        boxes: (..., 4), the best of this stage so far, in ``box_format`` and ``coords``.
        scores: (...), theirs, under the blur of this stage; -inf where none was finite.
        trial_boxes: (starts, ..., 4), those that were just evaluated. NaN for starts that do not take part.
        trial_scores: (starts, ...), theirs.

    """

    step: int
    steps: int
    stage: int
    boxes: Tensor
    scores: Tensor
    trial_boxes: Tensor
    trial_scores: Tensor


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "drawing a trace needs matplotlib, which is not installed; `pip install diffcrop[cli]` brings it"
        ) from error
    return pyplot.subplots()[1]
