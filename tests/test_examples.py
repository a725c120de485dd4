"""The examples run, say what their pages say, and show what they claim."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import diffcrop

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SECONDS = 600


def load(path):
    """The module of an example, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def run(script, *arguments):
    """What it printed."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_picture(path, least=50):
    """It has many colours, so that something was drawn."""
    with Image.open(path) as image:
        assert min(image.size) > 300
        return len(set(image.convert("RGB").resize((200, 200)).get_flattened_data())) > least


@pytest.fixture(scope="module")
def look():
    pytest.importorskip("sklearn")
    return load(ROOT / "examples" / "learn_where_to_look.py")


# --- learn_where_to_look ----------------------------------------------------------------------------------------------


def test_where_to_look_runs(look, tmp_path):
    said = run("examples/learn_where_to_look.py", "--quick", "-o", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["job"]["method"] for r in results["runs"]] == list(look.NAMES)
    assert look.table(results["runs"]) in said
    assert is_picture(tmp_path / "learn_where_to_look.png")


def test_scenes_hold_what_they_say(look):
    job = look.Job("diffcrop", 0, noise=0.0)
    scenes, classes, boxes = look.make_scenes(job, 40, test=True)
    again = look.make_scenes(job, 40, test=True)
    assert torch.equal(scenes, again[0])
    assert not torch.equal(scenes[:40], look.make_scenes(job, 40, test=False)[0])
    assert len(set(classes.tolist())) > 5
    assert boxes.min() >= 0
    assert boxes.max() <= job.scene
    # The digit is what is most of the ink there, and elsewhere is mostly nothing.
    for scene, box in zip(scenes[:, 0].float() - 40, boxes.int().tolist(), strict=True):
        x0, y0, x1, y1 = box
        assert scene[y0:y1, x0:x1].mean() > 4 * scene.mean()


def test_the_croppers_differ_in_antialiasing_alone(look):
    scenes, _, boxes = look.make_scenes(look.Job("recipe", 0), 4, test=True)
    unit = boxes / 192
    large = look.recipe(scenes, unit, 64)  # larger than the boxes: nothing is reduced
    assert torch.allclose(look.ours(scenes, unit, 64), large, atol=1e-2)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    assert (look.ours(scenes, whole, 16) - look.recipe(scenes, whole, 16)).abs().max() > 20


def test_boxes_start_in_the_middle(look):
    where = look.Where(16, 0.75)
    boxes = where(torch.rand(3, 1, look.VIEW, look.VIEW) * 255)
    assert torch.allclose(boxes, torch.tensor([0.125, 0.125, 0.875, 0.875]).expand(3, 4), atol=1e-5)


@pytest.fixture(scope="module")
def pages(look):
    return load(DOCS / "make_learn_where_to_look.py")


def test_the_page_has_the_recorded_tables(pages):
    found = pages.PAGE.read_text()
    for table in pages.tables(json.loads(pages.RECORD.read_text())).values():
        assert table in found


def test_the_record_is_of_this_example(pages):
    """Made with the settings that stand in the example, which are the best that its tuning found."""
    look, record = pages.look, json.loads(pages.RECORD.read_text())
    asked = [look.Job(method, seed, **look.BEST[method]) for seed in range(3) for method in look.NAMES]
    assert [r["job"] for r in record["results"]] == [look.asdict(job) for job in asked]
    best = pages.best_settings(record["tuning"])
    found = {method: {name: best[method][name] for name in setting} for method, setting in look.BEST.items()}
    assert found == look.BEST


@pytest.mark.slow
def test_looking_beats_not_looking(look):
    runs = [look.train(look.Job(m, 7, **look.BEST[m])) for m in ("no crop", "diffcrop")]  # a seed that is not recorded
    without, with_crop = (look.accuracy(r) for r in runs)
    assert with_crop > without + 0.1
    assert runs[1]["history"][-1]["side"] < 0.65  # it zoomed in,
    assert runs[1]["history"][-1]["held"] > 0.9  # and on the digit


# --- the others -------------------------------------------------------------------------------------------------------


def test_zoom_video(tmp_path):
    said = run("examples/zoom_video.py", "-o", tmp_path, "--frames", 24)
    smooth, cut = map(float, re.search(r"neighbours: ([\d.]+) .* ([\d.]+)$", said, re.MULTILINE).groups())
    assert 0 < smooth < cut
    with Image.open(tmp_path / "zoom.gif") as video:
        assert video.n_frames == 2 * 24 - 2
        assert is_picture(tmp_path / "zoom.png")


def test_the_zoom_is_even_and_its_fixed_point_fixed():
    zoom = load(ROOT / "examples" / "zoom_video.py")
    start, end = torch.tensor(zoom.START), torch.tensor(zoom.END)
    path = zoom.zoom_path(start, end, 30).double()
    assert torch.allclose(path[0], start.double())
    assert torch.allclose(path[-1], end.double(), atol=1e-3)
    sides = path[:, 2:] - path[:, :2]
    assert torch.allclose(sides[1:] / sides[:-1], (sides[1] / sides[0]).expand(29, 2), atol=1e-4)
    eye = (torch.tensor(zoom.EYE).double() - path[:, :2]) / sides
    assert torch.allclose(eye, eye[:1].expand(30, 2), atol=5e-3)


def test_refine_roi_runs(tmp_path):
    said = run("examples/refine_roi.py", "-o", tmp_path, "--steps", 10, "--scenes", 100, "--tests", 8)
    assert re.findall(r"^(start|refined)", said, re.MULTILINE) == ["start", "refined", "refined", "refined"]
    assert is_picture(tmp_path / "refined.png")


@pytest.mark.slow
def test_refine_roi_refines(tmp_path):
    said = run("examples/refine_roi.py", "-o", tmp_path, "--steps", 400, "--tests", 100)
    start, refined, _ = map(float, re.findall(r"mean IoU ([\d.]+)", said))
    assert refined > start + 0.15


def test_fit_sprites_runs(tmp_path):
    """And a few steps bring the boxes nearer, from a start of a tenth of a side."""
    said = run("examples/fit_sprites.py", "-o", tmp_path, "--steps", 25, "--pictures", 1)
    assert said.count("median error") == 6
    assert is_picture(tmp_path / "fit_sprites.png")
    near = json.loads((tmp_path / "fit_sprites.json").read_text())["starts"]["0.1"]
    assert near["diffcrop.paste"]["median"] < 0.5 * near["start"]["median"]


def test_the_sprites_of_the_page():
    example = load(ROOT / "examples" / "fit_sprites.py")
    said = re.search(r"<!-- sprites:begin -->\n(.*)<!-- sprites:end -->", (DOCS / "paste.md").read_text(), re.DOTALL)
    assert said[1] == example.table(json.loads((DOCS / "fit_sprites.json").read_text()))


def test_the_picture_of_pastes(tmp_path):
    run("docs/make_paste.py", "-o", tmp_path)
    assert is_picture(tmp_path / "paste.png")


def test_the_landscapes(tmp_path):
    said = run("docs/make_landscapes.py", "-o", tmp_path)
    found = re.findall(r"^reduction +(\d+)  (\S+).* ([\d.]+) of", said, re.MULTILINE)
    shares = {(int(reduction), name): float(share) for reduction, name, share in found}
    for reduction in (4, 16):
        assert shares[reduction, "diffcrop"] < 0.6 * shares[reduction, "affine_grid"]
    assert is_picture(tmp_path / "loss_landscapes.png")


def test_the_volumes(tmp_path):
    said = run("docs/make_volumes.py", "-o", tmp_path, "--count", 24)
    found = {name: (int(right), float(off)) for name, right, off in re.findall(
        r"^(\w+): (\d+) % .* by ([\d.]+)$", said, re.MULTILINE)}  # fmt: skip
    assert found["diffcrop"][0] > found["grid_sample"][0]
    assert found["diffcrop"][1] < 0.4 * found["grid_sample"][1]
    assert is_picture(tmp_path / "volumes.png")


PAGES = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if "```python\n" in path.read_text()]
PAGES = [path for path in PAGES if path.name != "onnx.md"]  # which tests/test_export.py runs


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_the_pages_runs(path, tmp_path, monkeypatch):
    """Every block as it stands, in a module of its own."""
    monkeypatch.chdir(tmp_path)  # for what they write
    for example in blocks(path):
        exec(compile(example, path.name, "exec"), {})


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def test_there_is_code_on_the_pages():
    assert {"README.md", "compat.md", "locate.md", "paste.md", "rotated.md", "volumes.md"} < {p.name for p in PAGES}
    assert len(blocks(DOCS / "compat.md")) == 4


def test_the_turned_box_of_the_page_is_fitted():
    (example,) = [each for each in blocks(DOCS / "rotated.md") if "Adam" in each]
    names = {}
    exec(compile(example, "rotated.md", "exec"), names)
    assert torch.allclose(names["box"].detach(), torch.tensor([150.0, 110.0, 90.0, 60.0, 25.0]), atol=0.05)


def test_the_turned_sprite_of_the_page_is_a_paste():
    """With an angle of 0, and without antialiasing, that of an upright box."""
    (example,) = [each for each in blocks(DOCS / "paste.md") if "rotated_to_matrix" in each]
    upright = example.replace("40.0, 30.0]", "40.0, 0.0]").replace('"zeros")', '"zeros", antialias=False)')
    names = {}
    exec(compile(upright, "paste.md", "exec"), names)
    sprite, box, canvas = names["sprite"], names["box"][:4], names["canvas"]
    pasted = diffcrop.paste(sprite, box, canvas=canvas, box_format="cxcywh", antialias=False)
    assert torch.allclose(names["picture"], pasted, atol=1e-4)
    turned = {}
    exec(compile(example, "paste.md", "exec"), turned)
    assert turned["box"].grad.isfinite().all()
    assert (turned["picture"] != turned["canvas"]).any(0).sum() == pytest.approx(60 * 40, rel=0.2)


@pytest.mark.parametrize(
    "name", ["loss_landscapes.png", "learn_where_to_look.png", "paste.png", "fit_sprites.png", "volumes.png"]
)
def test_the_pictures_of_the_pages_are_small(name):
    path = DOCS / "images" / name
    assert path.stat().st_size < 300_000
    assert is_picture(path)
