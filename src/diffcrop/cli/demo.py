"""`diffcrop demo`: crop boxes find their place by gradient descent, with the plain recipe and with diffcrop.

Where descent fails, `diffcrop.locate` searches.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import diffcrop
from diffcrop.cli.outputs import write_whole
from diffcrop.cli.photographs import PhotographError, read_photograph, to_image
from diffcrop.cli.problem import FAILED, UsageError, complain, leave, stops_on_usage_problems
from diffcrop.cli.recovery import (
    LEARNING_RATE,
    RECOVERED_IOU,
    SAMPLERS,
    TARGETS,
    Problems,
    Scene,
    Settings,
    Story,
    Trial,
    make_problems,
    one_thread,
    run_search,
    run_trial,
    tell_failure,
    tell_story,
)

# Where the subject of each shipped photograph is, as fractions of its sides: a face, a cup, an eye, a rocket.
SUBJECTS = {"astronaut": (0.43, 0.22), "coffee": (0.47, 0.37), "chelsea": (0.38, 0.39), "rocket": (0.5, 0.52)}

FILES = (
    "overview.png",
    "scene.png",
    "strip.png",
    "curves.png",
    "problems.png",
    "search.png",
    "target.png",
    "animation.gif",
    "outcome.json",
)

_DEFAULT = Settings()

# Said wherever its errors are told: descent has diffcrop's own filter alone, and smaller boxes have to be asked for.
_SEARCH = (
    "locate: no start, the whole photograph, boxes from a twelfth of its sides on; of the four filters it tries "
    "Pillow's is one."
)

# On the reference implementation, which is the slower one, the demonstration should not take minutes either.
_FEW_STARTS = 1


def _has_kernels() -> bool:
    return diffcrop.implementations().get("cpu", "") is None


@stops_on_usage_problems("demo")
def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the pictures; made if need be.", show_default=False
        ),
    ],
    photo: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A photograph: {', '.join(SUBJECTS)}, or a file of yours. May be repeated.", show_default="all four"
        ),
    ] = None,
    size: Annotated[int, typer.Option(min=4, max=256, help="Side of the crops, in pixels.")] = _DEFAULT.size,
    reduction: Annotated[
        float,
        typer.Option(min=0.25, max=64, help="Photograph pixels to a crop pixel; a box is about size x reduction wide."),
    ] = _DEFAULT.reduction,
    displacement: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0,
            max=2.0,
            help="How far off a start is, in box sides. May be repeated; the pictures show the middle one.",
            show_default=", ".join(f"{value:g}" for value in _DEFAULT.displacements),
        ),
    ] = None,
    starts: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            help="Problems per photograph.",
            show_default=f"{_DEFAULT.starts}, or {_FEW_STARTS} without compiled kernels",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps of gradient descent.")] = _DEFAULT.steps,
    seed: Annotated[int, typer.Option(help="Of the boxes and starts.")] = _DEFAULT.seed,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write into a folder that is not empty; pictures of an earlier demo are replaced."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Recover crop boxes by gradient descent and draw it.

    A small crop of a photograph is the target. The box starts beside the true one; Adam moves it to make the crop look
    like the target. Both methods get the same problems, loss, optimiser, steps and learning rate, and differ in the
    sampler alone: affine_grid + grid_sample, or diffcrop.crop. diffcrop.locate gets the same targets and no start.
    """  # fmt: skip
    if starts is None:
        starts = _DEFAULT.starts if _has_kernels() else _FEW_STARTS
    settings = Settings(size, reduction, tuple(displacement or _DEFAULT.displacements), starts, steps, seed)
    if len(set(settings.displacements)) < len(settings.displacements):
        raise UsageError(f"--displacement: {', '.join(map(str, settings.displacements))} holds one twice")
    _check_folder(output, force=force)
    scenes = [_scene(name) for name in photo or SUBJECTS]
    for scene in scenes:
        if settings.side > min(scene.image.size):
            raise UsageError(
                f"--size {size} and --reduction {reduction:g} make boxes of {settings.side:g} px, more than "
                f"{scene.name} has ({scene.image.width}x{scene.image.height})"
            )

    # Before the work and not after it: a folder that cannot be made should not cost a minute to find out.
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be made ({error.strerror or error})") from error

    began = time.perf_counter()
    problems = [make_problems(scene, settings, f"{seed} {index} {scene.name}") for index, scene in enumerate(scenes)]
    console = Console(stderr=True)
    silent = quiet or not console.is_terminal
    with one_thread(), Progress(console=console, transient=True, disable=silent) as progress:
        task = progress.add_task("descending", total=len(scenes) * len(TARGETS) * (len(SAMPLERS) + 1) + 1)
        trials = {
            target: {
                method: run_trial(method, target, scenes, problems, settings, lambda: progress.advance(task))
                for method in SAMPLERS
            }
            for target in TARGETS
        }
        progress.update(task, description="searching")
        searches = {
            target: run_search(target, scenes, problems, settings, lambda: progress.advance(task)) for target in TARGETS
        }
        story = tell_story(scenes, problems, trials["resized"], settings)
        progress.update(task, description="drawing")
        try:
            _write(output, scenes, problems, trials, searches, story, settings)
        except OSError as error:
            complain("demo", f"{error.filename or output}: cannot be written ({error.strerror or error})")
            leave(FAILED)
        progress.advance(task)
    if not quiet:
        _print(trials, searches, story, settings, output, time.perf_counter() - began)


def _check_folder(folder: Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: is a file")
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise UsageError(
            f"--output {folder}: is not empty. Nothing was written; --force writes into it, "
            f"replacing {', '.join(FILES)}"
        )
    for name in FILES:
        if (folder / name).is_dir():
            raise UsageError(f"{folder / name}: is a folder")


def _scene(name: str) -> Scene:
    if name in SUBJECTS:
        resource = files("diffcrop.cli") / "photos" / f"{name}.jpg"
        with resource.open("rb") as stream, Image.open(stream) as image:
            return Scene(name, image.convert("RGB"), SUBJECTS[name])
    try:
        return Scene(name, to_image(read_photograph(Path(name))).convert("RGB"))
    except PhotographError as error:
        known = ", ".join(SUBJECTS)
        raise UsageError(f"--photo {name}: {error}; it should be a file, or one of {known}") from error


def _write(
    folder: Path,
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    trials: dict[str, dict[str, Trial]],
    searches: dict[str, Trial],
    story: Story,
    settings: Settings,
) -> None:
    # matplotlib takes a second to import, which `diffcrop crop` need not pay.
    from diffcrop.cli import animation, pictures

    shown = trials["resized"]
    search = searches["resized"]
    caption = f"{_how(settings)}\n{_target_text()}\n{_SEARCH}\n{_pictured(story, shown, settings)}"
    pictures.overview_picture(story, shown, search, settings, caption, folder / "overview.png")
    pictures.scene_picture(story, folder / "scene.png")
    pictures.strip_picture(story, settings, folder / "strip.png")
    pictures.curves_picture(story, shown, settings, folder / "curves.png")
    pictures.problems_picture(scenes, problems, shown, story, settings, folder / "problems.png")
    failure = tell_failure(scenes, problems, shown, settings)
    pictures.search_picture(failure, shown, search, settings, _failed(failure, shown), folder / "search.png")
    animation.write_animation(story, settings, folder / "animation.gif")
    target = Image.fromarray((story.target * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    write_whole(folder / "target.png", lambda stream: target.save(stream, format="PNG"), force=True)
    text = json.dumps(_outcome(scenes, problems, trials, searches, story, settings), indent=1, allow_nan=False)
    write_whole(folder / "outcome.json", lambda stream: stream.write(text.encode() + b"\n"), force=True)


def _how(settings: Settings) -> str:
    return (
        f"Both: Adam, {settings.steps} steps, learning rate {LEARNING_RATE:g} box sides (of five, the best for "
        f"grid_sample); the same starts and loss. Recovered: IoU > {RECOVERED_IOU}."
    )


def _target_text() -> str:
    return f"Target: {TARGETS['resized']}."


def _pictured(story: Story, trials: dict[str, Trial], settings: Settings) -> str:
    """How the pictured problem was chosen, and how all of its displacement went."""
    level = settings.displacements.index(story.displacement)
    theirs, us = (trials[method].recovered(level) for method in ("recipe", "diffcrop"))
    counts = (
        f"recovered by both {int((theirs & us).sum())}, by diffcrop only {int((us & ~theirs).sum())}, "
        f"by grid_sample only {int((theirs & ~us).sum())}, by neither {int((~theirs & ~us).sum())}"
    )
    rule = "the first one" if bool((theirs == us).all()) else "the first on which the outcomes differ"
    which = f"problem {story.number + 1} of the {len(us)} that start {story.displacement:.0%} off"
    return f"Pictured: {which}, {rule} ({counts})."


def _failed(failure: Story, trials: dict[str, Trial]) -> str:
    """How the problem of the search's picture was chosen."""
    count = len(trials["recipe"].recovered(0))
    lost = not any(failure.recovered.values())
    rule = "the first that both descents lose" if lost else "the first that the fewer of both descents recover"
    return f"{_target_text()} Pictured: problem {failure.number + 1} of {count}, {rule}.\n{_SEARCH}"


def _print(
    trials: dict[str, dict[str, Trial]],
    searches: dict[str, Trial],
    story: Story,
    settings: Settings,
    folder: Path,
    seconds: float,
) -> None:
    console = Console(markup=False, highlight=False)
    for target, by_method in trials.items():
        table = Table(title=f"Target: {TARGETS[target]}", title_justify="left")
        table.add_column("start")
        table.add_column("method")
        table.add_column("recovered", justify="right")
        table.add_column("median error", justify="right")
        table.add_column("seconds", justify="right")
        for level, displacement in enumerate(settings.displacements):
            for method, trial in by_method.items():
                start = f"{displacement:.0%} off" if method == "recipe" else ""
                _add_row(table, start, trial, level, timed=level == 0, last=method == "diffcrop")
        _add_row(table, "none", searches[target], 0, timed=True, last=True)
        console.print(table)
    console.print("recipe: affine_grid + grid_sample. diffcrop: diffcrop.crop with its defaults.", soft_wrap=True)
    console.print(_SEARCH, soft_wrap=True)
    console.print(_how(settings), soft_wrap=True)
    console.print(
        "Error: mean distance of the box's corners from the true ones, in pixels of the photograph. "
        "Seconds: for all starts, on one thread.",
        soft_wrap=True,
    )
    console.print(_pictured(story, trials["resized"], settings), soft_wrap=True)
    console.print(f"{', '.join(FILES)} are in {folder} ({seconds:.0f} s)", soft_wrap=True)


def _add_row(table: Table, start: str, trial: Trial, level: int, *, timed: bool, last: bool) -> None:
    recovered = trial.recovered(level)
    table.add_row(
        start,
        trial.method,
        f"{int(recovered.sum())} of {len(recovered)} = {float(recovered.float().mean()):4.0%}",
        f"{trial.median_error(level):.2f} px",
        f"{trial.seconds:.1f}" if timed else "",
        end_section=last,
    )


def _outcome(
    scenes: Sequence[Scene],
    problems: Sequence[Problems],
    trials: dict[str, dict[str, Trial]],
    searches: dict[str, Trial],
    story: Story,
    settings: Settings,
) -> dict[str, object]:
    """All the numbers. What is not finite is null."""
    return {
        "versions": {"diffcrop": diffcrop.__version__, "torch": str(torch.__version__)},
        "threads": 1,
        "settings": {
            "size": settings.size,
            "reduction": settings.reduction,
            "displacements": list(settings.displacements),
            "starts": settings.starts,
            "steps": settings.steps,
            "seed": settings.seed,
            "learning_rate": LEARNING_RATE,
            "recovered_iou": RECOVERED_IOU,
            "photos": [scene.name for scene in scenes],
        },
        "targets": TARGETS,
        "pictured": {
            "rule": _pictured(story, trials["resized"], settings),
            "photo": story.scene.name,
            "problem": story.number,
            "displacement": story.displacement,
            "methods": {
                method: {
                    "recovered": story.recovered[method],
                    "boxes": _listed(story.boxes[method]),
                    "losses": _listed(story.losses[method]),
                    "corner_errors": _listed(story.errors[method]),
                }
                for method in story.boxes
            },
        },
        "problems": [
            {
                "photo": scene.name,
                "start_number": number,
                "displacement": displacement,
                "truth": _listed(problem.truth[level, number]),
                "start": _listed(problem.start[level, number]),
                "ends": {
                    target: {
                        method: {
                            "box": _listed(trial.boxes[photo][-1, level, number]),
                            "iou": _listed(trial.overlaps[photo][-1, level, number]),
                            "corner_error": _listed(trial.errors[photo][-1, level, number]),
                            "loss": _listed(trial.losses[photo][-1, level, number]),
                        }
                        for method, trial in {**by_method, "locate": searches[target]}.items()
                    }
                    for target, by_method in trials.items()
                },
            }
            for photo, (scene, problem) in enumerate(zip(scenes, problems, strict=True))
            for level, displacement in enumerate(settings.displacements)
            for number in range(settings.starts)
        ],
        # A search has no displacement.
        "summary": [
            _summary(trial, level, displacement)
            for by_method in trials.values()
            for trial in by_method.values()
            for level, displacement in enumerate(settings.displacements)
        ]
        + [_summary(search, 0, None) for search in searches.values()],
        "seconds": {
            target: {method: trial.seconds for method, trial in {**by, "locate": searches[target]}.items()}
            for target, by in trials.items()
        },
    }


def _summary(trial: Trial, level: int, displacement: float | None) -> dict[str, object]:
    recovered = trial.recovered(level)
    return {
        "target": trial.target,
        "method": trial.method,
        "displacement": displacement,
        "problems": len(recovered),
        "recovered": int(recovered.sum()),
        "median_corner_error": _finite(trial.median_error(level)),
    }


def _listed(values: Tensor) -> object:
    """A tensor as nested lists for JSON, which has no NaN."""
    return _finite(float(values)) if values.ndim == 0 else [_listed(value) for value in values]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
