"""`diffcrop demo`: the experiment is fair, its numbers agree with each other, and it does not overwrite."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from typer.testing import CliRunner

import diffcrop
from diffcrop.cli import recovery
from diffcrop.cli.animation import frame_steps
from diffcrop.cli.app import app
from diffcrop.cli.demo import FILES, SUBJECTS
from diffcrop.cli.pictures import SEARCH_COLOUR
from diffcrop.cli.recovery import Problems, Scene, Settings, Trial

# Whether the compiled library is there is another test's business.
pytestmark = pytest.mark.filterwarnings("ignore:diffcrop runs on its reference")

SHORT = ("--size", 8, "--reduction", 4, "--steps", 5)


def run(*arguments: object):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)], prog_name="diffcrop")


@pytest.fixture(scope="module")
def scene() -> Scene:
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    # Smooth on purpose: on noise no method has a gradient that points anywhere.
    return Scene("clouds", Image.fromarray(values).resize((160, 120), Image.Resampling.BICUBIC), (0.3, 0.6))


# The parts


def test_the_recipe_is_grid_sample_in_pixels(scene: Scene) -> None:
    image = scene.pixels()
    whole = torch.tensor([[0.0, 0, 160, 120]])
    square = recovery.recipe(image, torch.tensor([[16.0, 8, 48, 40]]), 32)[0]
    assert torch.allclose(square, image[:, 8:40, 16:48], atol=1e-5)
    plain = diffcrop.crop(image, whole, 24, antialias=False)
    assert torch.allclose(recovery.recipe(image, whole, 24), plain, atol=1e-5)
    # It must not be antialiased, or the demonstration compares nothing.
    assert (recovery.ours(image, whole, 10) - recovery.recipe(image, whole, 10)).abs().max() > 0.02


def test_problems_are_where_they_are_said_to_be(scene: Scene) -> None:
    settings = Settings(size=10, reduction=4, displacements=(0.0, 0.2, 0.7), starts=40)
    problems = recovery.make_problems(scene, settings, "a seed")
    truth, start = problems.truth, problems.start
    assert truth.shape == start.shape == (3, 40, 4)
    assert torch.equal(truth[0], truth[1])
    assert truth[..., :2].min() >= 0
    assert truth[..., 2].max() <= 160
    assert truth[..., 3].max() <= 120
    sides = truth[0, :, 2:] - truth[0, :, :2]
    assert sides.min() >= 40 * math.exp(-0.2) - 1e-3
    assert sides.max() <= 40 * math.exp(0.2) + 1e-3
    assert sides.std() > 2
    # The first is on the subject, the others are all over the photograph.
    assert torch.allclose((truth[0, 0, :2] + truth[0, 0, 2:]) / 2, torch.tensor([48.0, 72.0]), atol=1e-3)
    assert (truth[0, :, 0].max() - truth[0, :, 0].min()) > 60

    assert torch.allclose(start[0], truth[0], atol=1e-4)
    moved = ((start[..., :2] + start[..., 2:]) - (truth[..., :2] + truth[..., 2:])) / 2 / sides
    for level, displacement in enumerate(settings.displacements):
        assert torch.allclose(moved[level].norm(dim=-1), torch.tensor(displacement), atol=1e-4)
        stretch = ((start[level, :, 2:] - start[level, :, :2]) / sides).log()
        assert stretch.abs().max() <= displacement + 1e-4
    assert torch.allclose(moved[2] * (0.2 / 0.7), moved[1], atol=1e-4)

    again = recovery.make_problems(scene, settings, "a seed")
    assert torch.equal(again.start, start)
    assert not torch.equal(recovery.make_problems(scene, settings, "another").start, start)


def test_overlap_and_error() -> None:
    truth = torch.tensor([0.0, 0, 10, 10])
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [3, 4, 13, 14], [20, 20, 30, 30], [0, 0, 10, 5]])
    assert torch.allclose(recovery.iou(boxes, truth), torch.tensor([1, 50 / 150, 42 / 158, 0, 0.5]))
    assert torch.allclose(recovery.corner_error(boxes, truth), torch.tensor([0, 5, 5, math.hypot(20, 20), 2.5]))


def test_targets_are_pillows(scene: Scene) -> None:
    box = (3.25, 10.5, 60.75, 90.0)
    target = recovery.resized(scene, torch.tensor([box]), 12)[0]
    resized = scene.image.resize((12, 12), Image.Resampling.LANCZOS, box=box)
    assert torch.equal((target * 255).round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(np.array(resized)))
    # A box that is over the edge by a rounding is no reason to stop.
    recovery.resized(scene, torch.tensor([[-1e-5, -1e-5, 160.00002, 120.00002]]), 12)


@pytest.mark.parametrize("method", recovery.SAMPLERS)
def test_descent_takes_each_problem_by_itself(scene: Scene, method: str) -> None:
    sampler, image = recovery.SAMPLERS[method], scene.pixels()
    problems = recovery.make_problems(scene, Settings(size=8, reduction=5, displacements=(0.15,), starts=3), "seed")
    start, truth = problems.start[0], problems.truth[0]
    targets = recovery.resized(scene, truth, 8)
    together = recovery.descend(sampler, image, start, targets, 6)
    alone = recovery.descend(sampler, image, start[1:2], targets[1:2], 6)
    assert together.boxes.shape == (7, 3, 4)
    assert torch.allclose(together.boxes[:, 1:2], alone.boxes, atol=1e-3)
    assert torch.allclose(together.boxes[0], start, atol=1e-3)
    assert torch.allclose(
        together.losses[-1], (sampler(image, together.boxes[-1], 8) - targets).square().mean((1, 2, 3))
    )
    assert (together.boxes[1] - together.boxes[0]).abs().min(1).values.max() > 0.1


def test_diffcrop_descends_to_its_own_target(scene: Scene) -> None:
    settings = Settings(size=10, reduction=4, displacements=(0.1,), starts=3, steps=80)
    problems = [recovery.make_problems(scene, settings, "seed")]
    trial = recovery.run_trial("diffcrop", "own", [scene], problems, settings)
    assert trial.recovered(0).all()
    assert trial.median_error(0) < 0.05
    assert trial.seconds > 0


def _trial(method: str, overlaps: list[list[float]], errors: list[float] | None = None) -> Trial:
    """A trial with these final overlaps, (displacements, starts), on one photograph."""
    final = torch.tensor([overlaps])
    error = torch.zeros_like(final) if errors is None else torch.tensor(errors).expand_as(final)
    return Trial(method, "resized", (torch.zeros(*final.shape, 4),), (final,), (error,), (final,), 0.0)


def test_the_story_is_the_first_difference_whoever_wins(scene: Scene) -> None:
    settings = Settings(size=4, reduction=2, displacements=(0.1, 0.2, 0.3), starts=3, steps=0)
    boxes = torch.rand(3, 3, 4).sort(-1).values * 50
    problems = [Problems(boxes, boxes)]
    none, last, first = [0.1, 0.1, 0.1], [0.1, 0.1, 0.95], [0.95, 0.1, 0.1]
    for recipe, ours, index in ((none, last, 2), (last, none, 2), (first, last, 0), (last, last, 0), (none, none, 0)):
        # Only the middle displacement counts.
        trials = {
            "recipe": _trial("recipe", [first, recipe, none]),
            "diffcrop": _trial("diffcrop", [none, ours, first]),
        }
        story = recovery.tell_story([scene], problems, trials, settings)
        assert story.number == index
        assert story.displacement == 0.2
        assert story.recovered == {"recipe": recipe[index] > 0.9, "diffcrop": ours[index] > 0.9}
        assert torch.equal(story.truth, boxes[1, index])


def test_the_failure_is_the_first_that_the_fewest_recover_at_the_largest_displacement(scene: Scene) -> None:
    settings = Settings(size=4, reduction=2, displacements=(0.3, 0.1, 0.2), starts=3, steps=0)
    boxes = torch.rand(3, 3, 4).sort(-1).values * 50
    problems = [Problems(boxes, boxes)]
    none, all_, first, last = [0.1, 0.1, 0.1], [0.95, 0.95, 0.95], [0.95, 0.1, 0.1], [0.1, 0.1, 0.95]
    for recipe, ours, index in ((none, none, 0), (first, none, 1), (first, last, 1), (all_, last, 0), (last, first, 1)):
        trials = {
            "recipe": _trial("recipe", [recipe, none, all_]),
            "diffcrop": _trial("diffcrop", [ours, all_, none]),
        }
        failure = recovery.tell_failure([scene], problems, trials, settings)
        assert (failure.number, failure.displacement) == (index, 0.3)
        assert failure.recovered == {"recipe": recipe[index] > 0.9, "diffcrop": ours[index] > 0.9}
        assert torch.equal(failure.truth, boxes[0, index])


def test_a_search_finds_what_it_is_given_no_start_for(scene: Scene) -> None:
    settings = Settings(size=10, reduction=4, displacements=(0.1, 0.6), starts=4)
    problems = recovery.make_problems(scene, settings, "seed")
    # Starts that say nothing: a search that looks at them is lost.
    problems = Problems(problems.truth, torch.full_like(problems.start, math.nan))
    advanced = []
    for target, error in (("resized", 0.5), ("own", 0.01)):
        search = recovery.run_search(target, [scene], [problems], settings, lambda: advanced.append(None))
        assert (search.method, search.target) == ("locate", target)
        for level in range(2):
            assert search.recovered(level).tolist() == [True] * 4
            assert search.final_errors(level).max() < error
        assert torch.equal(search.boxes[0][-1, 0], search.boxes[0][-1, 1])
        assert search.losses[0].shape == (1, 2, 4)
        assert search.seconds > 0
    assert len(advanced) == 2


def test_a_search_does_not_find_a_target_of_one_colour() -> None:
    image = Image.new("RGB", (64, 64), "teal")
    image.paste(Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)), (40, 40))
    truth = torch.tensor([[[0.0, 0, 24, 24], [40.0, 40, 64, 64]]])
    settings = Settings(size=12, reduction=2, displacements=(0.1,), starts=2)
    search = recovery.run_search("resized", [Scene("half", image)], [Problems(truth, truth)], settings)
    assert search.recovered(0).tolist() == [False, True]
    assert search.boxes[0][-1, 0, 0].isnan().all()


def test_a_lost_box_is_not_recovered_and_infinitely_far() -> None:
    trial = _trial("recipe", [[float("nan"), 0.95, 0.2, 0.91]], [float("nan"), 1.0, float("nan"), 3.0])
    assert trial.recovered(0).tolist() == [False, True, False, True]
    assert trial.median_error(0) == math.inf
    assert _trial("recipe", [[1.0, 1.0, 1.0, 1.0]], [4.0, 1.0, 2.0, 7.0]).median_error(0) == 3.0


@pytest.mark.parametrize("steps", [1, 2, 7, 200, 5000])
def test_the_animation_begins_at_the_start_and_ends_at_the_end(steps: int) -> None:
    shown = frame_steps(steps)
    assert (shown[0], shown[-1]) == (0, steps)
    assert len(shown) == len(set(shown)) <= 60


# The command


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory):
    """A short demonstration: its folder, what was printed and its numbers."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "demo"
    result = run("-o", folder, *SHORT, "--starts", 2, "--photo", "coffee", "--photo", "rocket", "--displacement", 0.1,
                 "--displacement", 0.3)  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result, json.loads((folder / "outcome.json").read_text())


def test_every_file_is_there_and_can_be_seen(short) -> None:
    folder, result, _ = short
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert name in result.stdout
        if name.endswith(".json"):
            continue
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) >= (8 if name == "target.png" else 300)
            # A blank picture has one colour.
            assert len(image.convert("RGB").getcolors(image.width * image.height)) > 20
            assert getattr(image, "n_frames", 1) == (6 if name.endswith(".gif") else 1)
    assert "recipe" in result.stdout
    assert "Target: Pillow's LANCZOS crop at the true box, 8 bits" in result.stdout
    assert result.stderr == ""


def test_the_numbers_agree_with_each_other(short) -> None:
    _, result, outcome = short
    problems = outcome["problems"]
    assert len(problems) == 2 * 2 * 2
    assert outcome["settings"]["photos"] == ["coffee", "rocket"]
    assert outcome["settings"]["displacements"] == [0.1, 0.3]
    assert len(outcome["summary"]) == 2 * 2 * 2 + 2
    for line in outcome["summary"]:
        # A search has no displacement: its ends are the same for each.
        displacement = 0.1 if line["displacement"] is None else line["displacement"]
        ends = [
            (problem["truth"], problem["ends"][line["target"]][line["method"]])
            for problem in problems
            if problem["displacement"] == displacement
        ]
        assert line["problems"] == len(ends) == 4
        boxes, truth = torch.tensor([end["box"] for _, end in ends]), torch.tensor([truth for truth, _ in ends])
        overlaps, errors = recovery.iou(boxes, truth), recovery.corner_error(boxes, truth)
        assert torch.allclose(overlaps, torch.tensor([end["iou"] for _, end in ends]), atol=1e-5)
        assert torch.allclose(errors, torch.tensor([end["corner_error"] for _, end in ends]), atol=1e-3)
        assert line["recovered"] == int((overlaps > 0.9).sum())
        assert line["median_corner_error"] == pytest.approx(float(np.median(errors.numpy())), abs=1e-3)
        assert f"{line['recovered']} of 4 = {line['recovered'] / 4:4.0%}" in result.stdout
        assert (line["method"] == "locate") == (line["displacement"] is None)
    assert [line["target"] for line in outcome["summary"] if line["method"] == "locate"] == ["resized", "own"]
    for problem, farther in zip(problems[:2] + problems[4:6], problems[2:4] + problems[6:], strict=True):
        assert (problem["photo"], problem["start_number"]) == (farther["photo"], farther["start_number"])
        for target, ends in problem["ends"].items():
            assert farther["ends"][target]["locate"] == ends["locate"]

    pictured = outcome["pictured"]
    assert pictured["displacement"] == 0.3
    assert pictured["rule"] in result.stdout
    photo, number = divmod(pictured["problem"], 2)
    [shown] = [p for p in problems if p["displacement"] == 0.3 and p["start_number"] == number
               and p["photo"] == ["coffee", "rocket"][photo]]  # fmt: skip
    assert pictured["photo"] == shown["photo"]
    for method, path in pictured["methods"].items():
        assert len(path["boxes"]) == len(path["losses"]) == len(path["corner_errors"]) == 6
        assert path["boxes"][-1] == shown["ends"]["resized"][method]["box"]
        assert path["boxes"][0] == pytest.approx(shown["start"], abs=1e-3)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    def numbers(folder: str, seed: int) -> dict:
        arguments = (*SHORT, "--starts", 1, "--photo", "chelsea", "--displacement", 0.2, "--seed", seed, "--quiet")
        result = run("-o", tmp_path / folder, *arguments)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
        outcome = json.loads((tmp_path / folder / "outcome.json").read_text())
        del outcome["seconds"]
        return outcome

    first = numbers("a", 3)
    assert numbers("b", 3) == first
    assert numbers("c", 4)["problems"] != first["problems"]


def test_a_photograph_of_ones_own(tmp_path: Path, scene: Scene) -> None:
    # With alpha and in a subfolder: what people have.
    (tmp_path / "mine").mkdir()
    scene.image.convert("RGBA").save(tmp_path / "mine" / "clouds.png")
    photo = tmp_path / "mine" / "clouds.png"
    result = run("-o", tmp_path / "out", "--photo", photo, *SHORT, "--starts", 1, "--displacement", 0.1, "--steps", 1)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "outcome.json").read_text())["pictured"]["photo"] == str(photo)


@pytest.mark.parametrize(("flags", "says"), [
    (["--photo", "nobody"], "--photo nobody: cannot be read (No such file or directory); it should be a file, or"),
    (["--size", 64, "--reduction", 8], "make boxes of 512 px, more than coffee has (600x400)"),
    (["--displacement", 0.1, "--displacement", 0.1], "--displacement: 0.1, 0.1 holds one twice"),
    (["--steps", 0], "--steps"),
    (["--size", 3], "--size"),
    (["--displacement", "nan"], "--displacement"),
    (["--reduction", "nan"], "--reduction"),
])  # fmt: skip
def test_usage_errors(tmp_path: Path, flags, says) -> None:
    result = run("-o", tmp_path / "out", *flags)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "overview.png").write_text("also mine")
    arguments = ("-o", tmp_path, *SHORT, "--starts", 1, "--photo", "rocket", "--displacement", 0.1)
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"--output {tmp_path}: is not empty. Nothing was written" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "overview.png"]
    assert (tmp_path / "overview.png").read_text() == "also mine"

    assert run(*arguments, "--force").exit_code == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "notes.txt"])

    result = run("-o", tmp_path / "notes.txt", *SHORT, "--force")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_a_folder_that_cannot_be_made_or_written(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("mine")
    arguments = (*SHORT, "--starts", 1, "--photo", "rocket", "--displacement", 0.1)
    result = run("-o", tmp_path / "file" / "demo", *arguments)
    assert result.exit_code == 2
    assert f"--output {tmp_path / 'file' / 'demo'}: cannot be made (Not a directory)" in result.stderr

    def full(_image, stream, **_options) -> None:
        stream.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("-o", tmp_path / "demo", *arguments)
    assert result.exit_code == 1
    assert f"{tmp_path / 'demo'}: cannot be written (No space left on device)" in result.stderr
    assert list((tmp_path / "demo").iterdir()) == []


def test_defaults_are_those_of_the_settings() -> None:
    assert dataclasses.asdict(Settings()) == {
        "size": 20, "reduction": 8.0, "displacements": (0.1, 0.25, 0.5), "starts": 6, "steps": 200, "seed": 0,
    }  # fmt: skip
    assert set(SUBJECTS) == {"astronaut", "coffee", "chelsea", "rocket"}


def test_diffcrop_recovers_more_than_the_recipe(tmp_path: Path) -> None:
    result = run("-o", tmp_path / "out", "--starts", 3, "--seed", 1, "--displacement", 0.1, "--displacement", 0.25)
    assert result.exit_code == 0, result.output
    outcome = json.loads((tmp_path / "out" / "outcome.json").read_text())
    shares = {(s["target"], s["displacement"], s["method"]): s["recovered"] / s["problems"] for s in outcome["summary"]}
    for target in ("resized", "own"):
        assert shares[target, 0.1, "diffcrop"] >= 0.9
        assert shares[target, 0.1, "diffcrop"] >= shares[target, 0.1, "recipe"] + 0.15
        assert shares[target, 0.25, "diffcrop"] >= 0.7
        assert shares[target, 0.25, "diffcrop"] >= shares[target, 0.25, "recipe"] + 0.15
        # A search that is given no start finds all, those that descent loses among them.
        assert shares[target, 0.25, "diffcrop"] < shares[target, None, "locate"] == 1
    errors = {
        (s["displacement"], s["method"]): s["median_corner_error"]
        for s in outcome["summary"]
        if s["target"] == "resized"
    }
    assert errors[0.1, "diffcrop"] < 0.5 < errors[0.1, "recipe"]
    [searched] = [s for s in outcome["summary"] if (s["target"], s["method"]) == ("resized", "locate")]
    assert searched["median_corner_error"] < 0.05
    # The bar and the box of the search are in the pictures, the box on the left, where nothing else is so green.
    for name, columns, least in (("overview.png", slice(None), 2000), ("search.png", slice(490), 400)):
        with Image.open(tmp_path / "out" / name) as image:
            pixels = np.array(image.convert("RGB"))[:, columns].astype(int)
            assert (np.abs(pixels - ImageColor.getrgb(SEARCH_COLOUR)).sum(-1) < 12).sum() > least
    # The tables' last rows, one for each target, are its numbers.
    rows = [line for line in result.stdout.splitlines() if line.startswith("│ none")]
    searches = [line for line in outcome["summary"] if line["method"] == "locate"]
    assert len(rows) == len(searches) == 2
    for row, search in zip(rows, searches, strict=True):
        assert f" {search['median_corner_error']:.2f} px " in row
    # Pictures for a README, and not a download.
    assert (tmp_path / "out" / "animation.gif").stat().st_size < 3e6
    assert (tmp_path / "out" / "overview.png").stat().st_size < 2e6
