"""docs/rotated.md: its examples run, its tables are measured again, its picture shows what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import cv2
import pytest
import torch
from PIL import Image

from diffcrop import crop_quad, crop_rotated, rotated_to_quads

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "rotated.md"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_rotated", DOCS / "make_rotated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="the page was written with OpenCV 5")
def test_the_equalities_are_those_of_the_page(script):
    """The same rows; differences of rounding may be another's, those of fixed point may not."""
    recorded = cells(re.search(r"<!-- equality:begin -->\n(.*?)\n<!-- equality:end -->", PAGE.read_text(), re.S)[1])
    found = cells(script.equality_table())
    assert [row[:3] for row in found] == [row[:3] for row in recorded]
    for (ours, theirs, how, now), (*_, written) in zip(found, recorded, strict=True):
        assert float(now) <= max(10 * float(written), 1e-12), (ours, theirs)
        if "float64" in ours or "reduced" in how:
            assert float(now) == pytest.approx(float(written), rel=0.3)


def test_the_quality_is_that_of_the_page(script):
    recorded = cells(re.search(r"<!-- quality:begin -->\n(.*?)\n<!-- quality:end -->", PAGE.read_text(), re.S)[1])
    assert len(recorded) == len(script.CASES)
    for reductions, row in list(zip(script.CASES, recorded, strict=True))[::3]:
        assert row[0] == f"{reductions[0]:g} x {reductions[1]:g}"
        errors = [script.quality(reductions, 30.0, "bilinear", antialias) for antialias in (True, False)]
        assert errors[0] == pytest.approx(float(row[2]), rel=0.05, abs=1e-4)
        assert errors[1] == pytest.approx(float(row[4]), rel=0.05)
        assert errors[0] < errors[1] / 2.5


def test_nearness_to_the_filter_is_that_of_the_page(script):
    recorded = cells(re.search(r"<!-- filter:begin -->\n(.*?)\n<!-- filter:end -->", PAGE.read_text(), re.S)[1])
    assert [row[0] for row in recorded] == [f"{w:g} x {h:g}" for w, h in script.NEAR]
    for number, column, how in ((1, 1, "bilinear"), (3, 1, "bilinear"), (3, 4, "bicubic"), (4, 2, "supersampled")):
        found = script.distance(script.NEAR[number], how)
        assert found == pytest.approx(float(recorded[number][column]), rel=0.05, abs=1e-4)
    for _, ours, supersampled, none, _ in recorded[1:7]:
        assert float(ours) <= float(supersampled) / 2
        assert float(ours) < float(none)


def test_the_jumps_are_those_of_the_page(script):
    recorded = cells(re.search(r"<!-- jump:begin -->\n(.*?)\n<!-- jump:end -->", PAGE.read_text(), re.S)[1])
    assert [row[0] for row in recorded] == [f"{name:.3g}" for name, _ in script.STEPS]
    assert float(recorded[0][1]) < 0.1
    for number, mode, column in ((0, "bilinear", 1), (2, "bilinear", 1), (5, "area", 4)):
        found = 255 * script.jump(script.STEPS[number][1], mode)
        assert found == pytest.approx(float(recorded[number][column]), rel=0.05, abs=0.01)


def test_the_page_runs():
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})


def test_the_picture_is_there_and_of_that_page():
    assert "images/rotated.png" in PAGE.read_text()
    assert (DOCS / "images" / "rotated.png").stat().st_size < 1_000_000


def test_the_picture_has_all_its_colours():
    """A palette made the orange outlines dull and the sky banded."""
    with Image.open(DOCS / "images" / "rotated.png") as picture:
        assert picture.mode == "RGB"
        assert len(picture.getcolors(1 << 24)) > 10_000


def test_the_corners_of_the_rectified_picture_are_its_own(script):
    """The scene is made by a warp of the photograph; its crop is the photograph again, a little softer."""
    picture = script.photograph("coffee")
    scene, corners = script.seen_at_an_angle(picture)
    height, width = picture.shape[-2:]
    found = crop_quad(scene, corners, (height // 2, width // 2))
    expected = torch.nn.functional.avg_pool2d(picture[None], 2)[0]
    assert (found - expected).abs().mean() < 0.02
    assert (found.flip(2) - expected).abs().mean() > 0.1


def test_antialiasing_is_nearer_to_supersampling(script):
    image = script.photograph("astronaut")
    box = torch.tensor([256.0, 256.0, 448.0, 448.0, 30.0])
    truth = script.supersampled(image, box, 56, 16)
    ours, sharp = (crop_rotated(image, box, 56, antialias=a) for a in (True, False))
    errors = [(each - truth).square().mean().sqrt() for each in (ours, sharp)]
    assert errors[0] < 0.03
    assert errors[1] > 2 * errors[0]


def test_the_drawing_is_right():
    """Of the page: corner 0 is left of the centre, 1 above it, 2 right and 3 below."""
    corners = rotated_to_quads(torch.tensor([0.0, 0.0, 10.0, 5.0, 30.0]))
    assert corners[0, 0] < 0
    assert corners[1, 1] == corners[:, 1].min()
    assert corners[2, 0] == corners[:, 0].max()
    assert corners[3, 1] == corners[:, 1].max()
