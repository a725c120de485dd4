"""The still pictures of the demonstration, by matplotlib.

Every picture says which method a line belongs to in words and colour; the colours (blue and vermilion of Okabe and Ito)
differ for every kind of colour vision. Photographs are paled so that lines stand out; crops are shown as they are, each
pixel a square.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Polygon, Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from diffcrop.cli.outputs import write_whole
from diffcrop.cli.recovery import SAMPLERS, Problems, Scene, Settings, Story, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"recipe": "#D55E00", "diffcrop": "#0072B2"}
NAMES = {"recipe": "affine_grid + grid_sample", "diffcrop": "diffcrop"}
SHORT = {"recipe": "grid_sample", "diffcrop": "diffcrop"}
TRUTH_COLOUR = "#000000"
START_COLOUR = "#666666"
# Of the same palette: bluish green.
SEARCH_COLOUR = "#009E73"
DPI = 100


def pale(image: Image.Image) -> Image.Image:
    """The photograph as a background: half its colour gone, and lighter."""
    grey = image.convert("L").convert("RGB")
    return Image.blend(Image.blend(image, grey, 0.6), Image.new("RGB", image.size, "white"), 0.35)


def strip_steps(steps: int) -> list[int]:
    """The steps that are shown: dense at the beginning, where the box moves."""
    wanted = {0, *(round(steps * share) for share in (0.025, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0))}
    return sorted(wanted)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, replacing what is there: the caller has asked before."""
    FigureCanvasAgg(figure)
    write_whole(path, lambda stream: figure.savefig(stream, format="png", dpi=DPI), force=True)


def outcome_text(story: Story, method: str) -> str:
    """How it ended, in words."""
    error = float(story.errors[method][-1])
    return f"{'recovered' if story.recovered[method] else 'not recovered'}, corners {error:.1f} px off"


def _tensor_image(crop: Tensor) -> np.ndarray:
    return crop.detach().clamp(0, 1).permute(1, 2, 0).numpy()


def draw_box(axes: Axes, box: Tensor, *, halo: bool = True, **style: object) -> None:
    """Outline a box, over a white line that is a little wider."""
    x0, y0, x1, y1 = box.tolist()
    patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style)  # type: ignore[arg-type]
    if halo:
        patch.set_path_effects([withStroke(linewidth=patch.get_linewidth() + 2, foreground="white")])
    axes.add_patch(patch)


def draw_quad(axes: Axes, corners: Tensor, **style: object) -> None:
    """The same of four corners (4, 2), with a thick line along the crop's top where that is not level."""
    patch = Polygon(corners.tolist(), closed=True, fill=False, **style)
    patch.set_path_effects([withStroke(linewidth=patch.get_linewidth() + 2, foreground="white")])
    axes.add_patch(patch)
    (x0, y0), (x1, y1) = corners[:2].tolist()
    if y0 != y1 or x0 > x1:
        line = {"color": style["edgecolor"], "linewidth": 2 * float(style["linewidth"])}  # type: ignore[arg-type]
        axes.plot([x0, x1], [y0, y1], clip_on=bool(style.get("clip_on", True)), **line)


def bare(axes: Axes) -> None:
    """Take ticks and frame away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _photograph(axes: Axes, scene: Scene) -> None:
    width, height = scene.image.size
    # This extent puts pixel (r, c) on [c, c+1] x [r, r+1], which is what a box's numbers mean.
    axes.imshow(np.asarray(pale(scene.image)), extent=(0, width, height, 0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    bare(axes)


def show_crop(axes: Axes, crop: Tensor, title: str, colour: str = "black") -> None:
    """Draw a small picture, (3, h, w) from 0 to 1, each pixel a square."""
    axes.imshow(_tensor_image(crop), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor(colour)
        spine.set_linewidth(2)
    axes.set_title(title, fontsize=10, color=colour)


def _path(axes: Axes, story: Story, method: str) -> None:
    """The photograph with the box of one method on its way."""
    _photograph(axes, story.scene)
    boxes, colour = story.boxes[method], COLOURS[method]
    for step in strip_steps(len(boxes) - 1)[1:-1]:
        draw_box(axes, boxes[step], halo=False, edgecolor=colour, linewidth=0.8, alpha=0.7)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    axes.plot(centres[:, 0], centres[:, 1], color=colour, linewidth=1.2,
              path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    axes.plot(*centres[-1].tolist(), "o", color=colour, markersize=5, markeredgecolor="white")
    draw_box(axes, boxes[0], edgecolor=START_COLOUR, linewidth=1.8, linestyle=":", label="start")
    draw_box(axes, boxes[-1], edgecolor=colour, linewidth=3, label="end (thin: on the way)")
    draw_box(axes, story.truth, halo=False, edgecolor=TRUTH_COLOUR, linewidth=1.8, linestyle=(0, (4, 3)), label="truth")


def scene_picture(story: Story, path: Path) -> None:
    """The photograph twice, with the way of the box by each method."""
    width, height = story.scene.image.size
    figure = Figure(figsize=(13, 13 / 2 * height / width + 0.95), layout="constrained")
    for axes, method in zip(figure.subplots(1, 2), story.boxes, strict=True):
        _path(axes, story, method)
        axes.set_title(f"{NAMES[method]}: {outcome_text(story, method)}", fontsize=12, color=COLOURS[method])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=9, frameon=False)
    figure.suptitle(f"The way of the box, {story.displacement:.0%} off at the start", fontsize=14)
    save(figure, path)


def strip_picture(story: Story, settings: Settings, path: Path) -> None:
    """What each method saw at some steps, with the target at the end."""
    steps = strip_steps(settings.steps)
    figure = Figure(figsize=(1.45 * (len(steps) + 1) + 0.5, 4.3), layout="constrained")
    grid = figure.subplots(2, len(steps) + 1, squeeze=False)
    for row, method in zip(grid, story.boxes, strict=True):
        for axes, step, crop in zip(row, steps, story.crops(method, steps, settings.size), strict=False):
            show_crop(axes, crop, f"step {step}\n{float(story.errors[method][step]):.1f} px off", COLOURS[method])
        show_crop(row[-1], story.target, "target\n")
        row[0].set_ylabel(NAMES[method].replace(" + ", " +\n"), fontsize=11, color=COLOURS[method])
    figure.suptitle("What each method sees on its way (corner error in pixels of the photograph)", fontsize=12)
    save(figure, path)


def _curves(axes: Axes, story: Story, trials: dict[str, Trial], level: int, quantity: str) -> None:
    for method, trial in trials.items():
        every = torch.cat([values[:, level] for values in getattr(trial, quantity)], 1)
        axes.plot(every, color=COLOURS[method], linewidth=0.6, alpha=0.3)
    for method in trials:
        axes.plot(getattr(story, quantity)[method], color=COLOURS[method], linewidth=2.5, label=NAMES[method],
                  path_effects=[withStroke(linewidth=4.5, foreground="white")])  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(0, len(story.losses["recipe"]) - 1)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def curves_picture(story: Story, trials: dict[str, Trial], settings: Settings, path: Path) -> None:
    """Loss and corner error by step: the pictured problem thick, all problems of its displacement thin."""
    level = settings.displacements.index(story.displacement)
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, story, trials, level, "losses")
    left.set_title("Loss: mean squared difference of crop and target")
    _curves(right, story, trials, level, "errors")
    right.set_title("Error: distance of the corners from the true ones, px")
    left.legend(frameon=False, loc="lower left")
    figure.suptitle(
        f"Thick: the pictured problem; thin: all {len(trials['recipe'].recovered(level))} problems that start "
        f"{story.displacement:.0%} off. Each method sees its own crop, so the losses' floors differ.",
        fontsize=11,
    )
    save(figure, path)


def problems_picture(
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    trials: dict[str, Trial],
    story: Story,
    settings: Settings,
    path: Path,
) -> None:
    """Every problem at the pictured displacement and how both methods ended, so that nothing is left out."""
    level = settings.displacements.index(story.displacement)
    heights = [2.3 * scene.image.height / scene.image.width + 0.3 for scene in scenes]
    # Never so narrow that the title does not fit, nor so wide that nobody can open it.
    columns = min(max(settings.starts, 3), 8)
    rows = math.ceil(settings.starts / columns)
    heights = [height for height in heights for _ in range(rows)]
    figure = Figure(figsize=(2.35 * columns + 0.2, sum(heights) + 0.8), layout="constrained")
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    outcomes = {method: trial.recovered(level) for method, trial in trials.items()}
    for photo, scene in enumerate(scenes):
        for number in range(settings.starts):
            axes = grid[photo * rows + number // columns, number % columns]
            axes.set_axis_on()
            index = photo * settings.starts + number
            _photograph(axes, scene)
            draw_box(
                axes,
                problems[photo].start[level, number],
                halo=False,
                edgecolor=START_COLOUR,
                linewidth=1,
                linestyle=":",
            )
            for method, trial in trials.items():
                draw_box(axes, trial.boxes[photo][-1, level, number], edgecolor=COLOURS[method], linewidth=2)
            draw_box(
                axes,
                problems[photo].truth[level, number],
                halo=False,
                edgecolor="black",
                linewidth=1,
                linestyle=(0, (4, 3)),
            )
            winners = [method for method in trials if outcomes[method][index]]
            verdict = {0: "neither", 1: f"only {winners[0]}" if winners else "", 2: "both"}[len(winners)]
            colour = COLOURS[winners[0]] if len(winners) == 1 else "black"
            star = " (pictured)" if index == story.number else ""
            axes.set_title(f"{index + 1}: {verdict}{star}", fontsize=9, color=colour)
    figure.suptitle(
        f"All problems that start {story.displacement:.0%} off: who recovered the box?\n"
        "dashed: truth, dotted: start, vermilion: grid_sample, blue: diffcrop",
        fontsize=12,
    )
    save(figure, path)


def search_picture(
    failure: Story, trials: dict[str, Trial], search: Trial, settings: Settings, caption: str, path: Path
) -> None:
    """One box that descent lost and `diffcrop.locate` finds, and how far off each method is on all of them."""
    level = settings.displacements.index(failure.displacement)
    photo, number = divmod(failure.number, settings.starts)
    found = search.boxes[photo][-1, level, number]
    wide, margin, gap, right = 11.5, 0.25, 0.35, 6.0
    left = wide - right - 2 * margin - gap
    panel = min(left * failure.scene.image.height / failure.scene.image.width, 7.0)
    top = 1.0
    tall = top + max(panel, 4.4) + 1.05
    figure = Figure(figsize=(wide, tall))
    figure.suptitle(
        "The same targets and no start: diffcrop.locate searches the whole photograph\n"
        f"Descent began {failure.displacement:.0%} off",
        fontsize=15, y=1 - 0.1 / tall, va="top", linespacing=1.3,
    )  # fmt: skip

    def axes_at(x: float, y: float, width: float, height: float) -> Axes:
        return figure.add_axes((x / wide, 1 - (y + height) / tall, width / wide, height / tall))

    scene = axes_at(margin, top, left, panel)
    _photograph(scene, failure.scene)
    draw_box(scene, failure.boxes["diffcrop"][0], edgecolor=START_COLOUR, linewidth=1.8, linestyle=":", label="start")
    ends = {method: boxes[-1] for method, boxes in failure.boxes.items()}
    for method, box in ends.items():
        draw_box(scene, box, edgecolor=COLOURS[method], linewidth=2.5)
    draw_box(scene, found, edgecolor=SEARCH_COLOUR, linewidth=3.5)
    draw_box(scene, failure.truth, halo=False, edgecolor=TRUTH_COLOUR, linewidth=1.8, linestyle=(0, (4, 3)),
             label="truth")  # fmt: skip
    scene.legend(loc="upper center", bbox_to_anchor=(0.5, -0.005), ncols=2, fontsize=10, frameon=False)

    x, side = margin + left + gap, (right - 3 * 0.12) / 4
    image = failure.scene.pixels()
    crops = [(failure.target, "target", "black")] + [
        (SAMPLERS[method](image, box[None], settings.size)[0], f"{SHORT[method]}, end", COLOURS[method])
        for method, box in ends.items()
    ]
    crops.append((SAMPLERS["diffcrop"](image, found[None], settings.size)[0], "locate", SEARCH_COLOUR))
    for column, (crop, title, colour) in enumerate(crops):
        show_crop(axes_at(x + column * (side + 0.12), top + 0.1, side, side), crop, title, colour)

    below = top + side + 0.55
    chart = axes_at(x + 1.45, below, right - 1.5, top + max(panel, 4.4) - 0.05 - below)
    rows = [(SHORT[method], trial, COLOURS[method]) for method, trial in trials.items()]
    figure.text(margin / wide, 0.12 / tall, caption, fontsize=9.5, va="bottom", color="#333333", linespacing=1.4)
    _errors(chart, [*rows, ("locate", search, SEARCH_COLOUR)], level)
    chart.set_title(f"corner error of all {len(search.recovered(level))} boxes, px (bar: the median)", fontsize=10)
    save(figure, path)


def _errors(axes: Axes, rows: Sequence[tuple[str, Trial, str]], level: int) -> None:
    """A dot for each problem, hollow where the box was not recovered, and a bar at the median."""
    for place, (name, trial, colour) in enumerate(rows):
        errors, recovered = trial.final_errors(level), trial.recovered(level)
        # Spread over the row, so that dots do not hide each other; by golden steps, not by chance.
        spread = place + 0.5 * ((torch.arange(len(errors)) * 0.618) % 1 - 0.5)
        for mask, face in ((recovered, colour), (~recovered, "white")):
            axes.plot(errors[mask], spread[mask], "o", color=colour, markerfacecolor=face, markersize=5)
        median, share = trial.median_error(level), float(recovered.float().mean())
        if math.isfinite(median):
            axes.plot([median, median], [place - 0.38, place + 0.38], color=colour, linewidth=3)
        text = f"{name}\n{share:.0%} recovered\nmedian {median:.2f} px"
        axes.text(-0.03, place, text, color=colour, fontsize=10, ha="right", va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "left", "right"]].set_visible(False)


def _bars(axes: Axes, trials: dict[str, Trial], search: Trial, settings: Settings) -> None:
    places = np.arange(len(settings.displacements))
    for offset, (method, trial) in zip((-0.2, 0.2), trials.items(), strict=True):
        shares = [100 * float(trial.recovered(level).float().mean()) for level in range(len(places))]
        bars = axes.bar(places + offset, shares, 0.38, color=COLOURS[method], label=NAMES[method])
        axes.bar_label(bars, [f"{share:.0f}%" for share in shares], fontsize=8.5, color=COLOURS[method], padding=1)
    share = 100 * float(search.recovered(0).float().mean())
    bar = axes.bar([len(places)], [share], 0.38, color=SEARCH_COLOUR)
    axes.bar_label(bar, [f"{share:.0f}%"], fontsize=8.5, color=SEARCH_COLOUR, padding=1)
    labels = [f"{displacement:.0%}\noff" for displacement in settings.displacements]
    axes.set_xticks(np.arange(len(places) + 1), [*labels, "locate:\nno start"])
    axes.set_ylim(0, 112)
    axes.set_yticks([])
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def overview_picture(
    story: Story, trials: dict[str, Trial], search: Trial, settings: Settings, caption: str, path: Path
) -> None:
    """The whole demonstration on one page."""
    level = settings.displacements.index(story.displacement)
    count = len(trials["recipe"].recovered(level))
    wide, margin, gap = 11.5, 0.25, 0.3
    panel = min((wide - 2 * margin - gap) / 2 * story.scene.image.height / story.scene.image.width, 7.0)
    # Inches from the top: titles, photographs, legend, crops and charts, caption.
    scene_top = 1.0
    scene_bottom = scene_top + panel
    small_top = scene_bottom + 0.95
    small_bottom = small_top + 1.75
    tall = small_bottom + 1.53
    figure = Figure(figsize=(wide, tall))
    figure.suptitle(
        f"Which part of the photograph does this {settings.size}x{settings.size} picture show?\n"
        "Gradient descent on the crop box, by two samplers",
        fontsize=15, y=1 - 0.1 / tall, va="top", linespacing=1.3,
    )  # fmt: skip

    def grid(columns: int, left: float, right: float, top: float, bottom: float, wspace: float,
             ratios: Sequence[float] | None = None) -> GridSpec:  # fmt: skip
        return figure.add_gridspec(1, columns, left=left / wide, right=right / wide, top=1 - top / tall,
                                   bottom=1 - bottom / tall, wspace=wspace, width_ratios=ratios)  # fmt: skip

    scenes = grid(2, margin, wide - margin, scene_top, scene_bottom, 0.04)
    for column, method in enumerate(story.boxes):
        axes = figure.add_subplot(scenes[column])
        _path(axes, story, method)
        axes.set_title(f"{NAMES[method]}: {outcome_text(story, method)}", fontsize=12, color=COLOURS[method])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.005), ncols=3, fontsize=10, frameon=False)
    crops = grid(4, margin, 6.0, small_top, small_bottom, 0.08)
    last = settings.steps
    for column, (crop, title, colour) in enumerate(
        [
            (story.target, "target", "black"),
            (story.crops("diffcrop", [0], settings.size)[0], "start", START_COLOUR),
            (story.crops("recipe", [last], settings.size)[0], "grid_sample, end", COLOURS["recipe"]),
            (story.crops("diffcrop", [last], settings.size)[0], "diffcrop, end", COLOURS["diffcrop"]),
        ]
    ):
        show_crop(figure.add_subplot(crops[column]), crop, title, colour)
    charts = grid(2, 6.6, wide - margin, small_top, small_bottom, 0.16, (0.8, 1.2))
    error = figure.add_subplot(charts[0])
    _curves(error, story, trials, level, "errors")
    error.set_title("corner error by step, px", fontsize=10)
    bars = figure.add_subplot(charts[1])
    _bars(bars, trials, search, settings)
    bars.set_title(f"share of {count} boxes recovered", fontsize=10)
    figure.text(margin / wide, 0.12 / tall, caption, fontsize=9.5, va="bottom", color="#333333", linespacing=1.4)
    save(figure, path)
