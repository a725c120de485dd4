"""`diffcrop locate`: the box it finds, what it says of it, what it draws, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from typer.testing import CliRunner

import diffcrop
from diffcrop.cli import locate as command
from diffcrop.cli import overlay
from diffcrop.cli.app import app
from diffcrop.cli.pictures import SEARCH_COLOUR

# Whether the compiled library is there is another test's business.
pytestmark = pytest.mark.filterwarnings("ignore:diffcrop runs on its reference")

PHOTOS = Path(diffcrop.__file__).parent / "cli" / "photos"
BOX = (150.5, 80.25, 390.5, 266.92)
SIZE = (90, 70)


def run(*arguments: object):
    return CliRunner().invoke(app, ["locate", *map(str, arguments)], prog_name="diffcrop")


def facts(*arguments: object) -> dict:
    """What --json prints, which must be all of stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def off(box) -> float:
    """The largest distance of a side from where it should be, in pixels."""
    return max(abs(a - b) for a, b in zip(box, BOX, strict=True))


def cut(image: Image.Image, box=BOX, size=SIZE) -> Image.Image:
    """A part of a picture as an image program makes it."""
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


@pytest.fixture(scope="module")
def coffee() -> Image.Image:
    with Image.open(PHOTOS / "coffee.jpg") as image:
        return image.convert("RGB")


@pytest.fixture
def scene(tmp_path: Path, coffee: Image.Image) -> Path:
    coffee.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def template(tmp_path: Path, coffee: Image.Image) -> Path:
    cut(coffee).save(tmp_path / "template.jpg", quality=60)
    return tmp_path / "template.jpg"


# What is found


@pytest.mark.parametrize(("photo", "box", "size"), [
    ("astronaut", (180.25, 40.5, 300.75, 170.0), (60, 50)),
    ("chelsea", (60.0, 30.5, 400.25, 280.75), (64, 48)),
    ("coffee", BOX, SIZE),
    ("rocket", (250.5, 100.25, 420.0, 400.5), (34, 60)),
])  # fmt: skip
def test_a_compressed_part_of_a_photograph_is_found(tmp_path: Path, photo, box, size) -> None:
    with Image.open(PHOTOS / f"{photo}.jpg") as image:
        cut(image, box, size).save(tmp_path / "template.jpg", quality=60)
        extent = image.size
    found = facts(PHOTOS / f"{photo}.jpg", tmp_path / "template.jpg")
    assert found["converged"] is True
    # A scene pixel is a fifth to a half of a template's, and quality 60 leaves nothing of its colours' details.
    assert max(abs(a - b) for a, b in zip(found["box"], box, strict=True)) < 0.4
    assert found["scale"] == pytest.approx([(box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]], rel=5e-3)
    assert (found["scene"]["width"], found["scene"]["height"]) == extent
    assert (found["template"]["width"], found["template"]["height"]) == size


def test_what_is_printed_is_what_the_library_says(scene: Path, template: Path) -> None:
    found = facts(scene, template)
    tensors = []
    for path in (scene, template):
        with Image.open(path) as image:
            tensors.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float())
    location = diffcrop.locate(*tensors)
    assert set(found) == {"box", "standard_errors", "covariance", "scale", "residual", "explained", "metric", "mode",
                          "converged", "compared", "scene", "template", "output"}  # fmt: skip
    assert found["box"] == location.box.tolist()
    assert found["covariance"] == location.covariance.tolist()
    assert found["standard_errors"] == pytest.approx([math.sqrt(location.covariance[i, i]) for i in range(4)])
    assert found["residual"] == float(location.residual)
    assert found["mode"] == location.trace.names[int(location.trace.modes)]
    assert (found["metric"], found["compared"], found["output"]) == ("l2", "in colour", None)
    assert found["scene"]["path"] == str(scene)
    assert found["template"]["path"] == str(template)

    result = run(scene, template)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(lines) == ["box", "errors", "scale", "residual", "explained", "filter", "compared", "converged"]
    crop = diffcrop.crop(tensors[0], location.box, tensors[1].shape[1:], mode=found["mode"])
    centred = tensors[1] - tensors[1].mean((1, 2), keepdim=True)
    assert found["explained"] == pytest.approx(1 - ((crop - tensors[1]).square().sum() / centred.square().sum()).item())
    assert lines["explained"] == f"{100 * found['explained']:.1f} % of the template's variance"
    assert lines["box"].startswith(",".join(f"{value:.3f}" for value in found["box"]) + " (")
    assert lines["errors"].startswith(",".join(f"{value:.3f}" for value in found["standard_errors"]) + " (")
    assert lines["scale"].startswith(f"{found['scale'][0]:.4f} across, {found['scale'][1]:.4f} down (")
    assert lines["residual"] == f"{found['residual']:.4g} root mean square (255 is white)"
    assert (lines["filter"], lines["compared"], lines["converged"]) == (found["mode"], "in colour", "yes")


def test_a_turned_template_is_found_where_that_is_asked_for(tmp_path: Path, scene: Path, coffee: Image.Image) -> None:
    """Turned counter-clockwise by Pillow, an upright box of the picture is one that was turned clockwise."""
    turned = coffee.rotate(40, Image.Resampling.BICUBIC, center=(300, 200))
    cut(turned, (240, 155, 360, 245), (40, 30)).save(tmp_path / "turned.png")
    found = facts(scene, tmp_path / "turned.png", "--rotation")
    assert found["converged"] is True
    assert found["box"] == pytest.approx([300, 200, 120, 90, -40], abs=0.4)
    assert found["scale"] == pytest.approx([3, 3], rel=5e-3)
    assert len(found["standard_errors"]) == len(found["covariance"]) == 5
    near = facts(scene, tmp_path / "turned.png", "--rotation", "--angles=-60,-20")
    assert near["box"] == pytest.approx(found["box"], abs=0.05)
    result = run(scene, tmp_path / "turned.png", "--rotation", "-o", tmp_path / "out.png")
    assert result.exit_code == 0
    assert "cx,cy,w,h in pixels of the scene, angle in degrees" in result.stdout
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 400
    upright = json.loads(run(scene, tmp_path / "turned.png", "--json").stdout)
    assert upright["residual"] > 5 * found["residual"]


def test_the_options_reach_the_library(scene: Path, template: Path, monkeypatch) -> None:
    seen = {}
    library = diffcrop.locate

    def spy(image, wanted, **options):
        seen.clear()
        seen.update(options)
        return library(image, wanted, **{"mode": "bilinear", **options})

    monkeypatch.setattr(diffcrop, "locate", spy)
    assert run(scene, template).exit_code == 0
    # What is not asked for is the library's business.
    assert seen == {"metric": "l2", "aspect": "free", "candidates": None, "huber": None}
    flags = ["--metric", "l2", "--aspect", "fixed", "--scales", "2,3.5", "--candidates", "90000", "--huber", "20",
             "--mode", "area", "--mode", "lanczos3"]  # fmt: skip
    assert run(scene, template, *flags).exit_code == 0
    assert seen == {"metric": "l2", "aspect": "fixed", "candidates": 90000, "huber": 20.0, "scales": (2.0, 3.5),
                    "mode": ["area", "lanczos3"]}  # fmt: skip
    assert run(scene, template, "--init", "140,70,400,280", "--reach", "0.25").exit_code == 0
    assert seen == {"metric": "l2", "aspect": "free", "candidates": None, "huber": None,
                    "init": (140.0, 70.0, 400.0, 280.0), "reach": 0.25}  # fmt: skip


def test_the_whole_scene_has_a_plain_zero(scene: Path) -> None:
    line = run(scene, scene).stdout.splitlines()[0]
    assert line.split()[1] == "0.000,0.000,600.000,400.000"


def test_the_aspect_can_be_fixed(scene: Path, template: Path) -> None:
    found = facts(scene, template, "--aspect", "fixed")
    assert found["scale"][0] == pytest.approx(found["scale"][1], rel=1e-9)
    assert off(found["box"]) < 0.3


# What the files are


def test_both_are_turned_upright(tmp_path: Path, coffee: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    # Orientation 6: the camera lay on its side; upright is a quarter turn clockwise.
    coffee.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "scene.png", exif=exif)
    cut(coffee).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "template.png", exif=exif)
    found = facts(tmp_path / "scene.png", tmp_path / "template.png")
    assert off(found["box"]) < 0.1
    assert (found["scene"]["width"], found["scene"]["height"]) == coffee.size
    assert (found["template"]["width"], found["template"]["height"]) == SIZE


@pytest.mark.parametrize(("scene_mode", "template_mode", "compared"), [
    ("RGB", "L", "in grey, as the template is"),
    ("L", "RGB", "in grey, as the scene is"),
    ("L", "L", "in grey, as both are"),
    # Grey, saved in colour.
    ("RGB", "L RGB", "in grey, as the template is"),
    ("P", "RGB", "in colour"),
    ("RGBA", "RGB", "in colour"),
    ("I;16", "RGB", "in grey, as the scene is"),
])  # fmt: skip
def test_channels_are_brought_together(
    tmp_path: Path, coffee: Image.Image, scene_mode: str, template_mode: str, compared: str
) -> None:
    image, small = coffee, cut(coffee)
    for mode in template_mode.split():
        small = small.convert(mode)
    if scene_mode == "I;16":
        image = Image.fromarray(np.asarray(coffee.convert("L")).astype(np.uint16) * 257)
    else:
        image = coffee.convert(scene_mode)
    image.save(tmp_path / "scene.png")
    small.save(tmp_path / "template.png")
    found = facts(tmp_path / "scene.png", tmp_path / "template.png")
    assert found["compared"] == compared
    assert off(found["box"]) < 0.1 if scene_mode != "P" else off(found["box"]) < 1
    # In units of 255, whatever the depth; a palette is another picture.
    assert found["residual"] < (2 if scene_mode != "P" else 12)


def test_transparent_pixels_count_as_black(tmp_path: Path, coffee: Image.Image) -> None:
    values = np.dstack([np.asarray(coffee), np.full(coffee.size[::-1], 255, np.uint8)])
    # Invisible red, in a part of the template: it must not be seen.
    values[100:200, 200:300] = (255, 0, 0, 0)
    rgba = Image.fromarray(values)
    rgba.save(tmp_path / "scene.png")
    black = values[..., :3].copy()
    black[100:200, 200:300] = 0
    cut(Image.fromarray(black)).save(tmp_path / "opaque.png")
    # By the command, which averages colours by their opacity.
    crop = CliRunner().invoke(app, ["crop", str(tmp_path / "scene.png"), "--box", ",".join(map(str, BOX)), "--size",
                                    "70x90", "-o", str(tmp_path / "cropped.png")])  # fmt: skip
    assert crop.exit_code == 0
    for name in ("opaque", "cropped"):
        found = facts(tmp_path / "scene.png", tmp_path / f"{name}.png")
        assert off(found["box"]) < 0.1
        assert found["residual"] < 2
        assert found["compared"] == "in colour, transparent pixels as black"


def test_float_photographs_have_units_of_their_own(tmp_path: Path, coffee: Image.Image) -> None:
    grey = np.asarray(coffee.convert("L")).astype(np.float32)
    Image.fromarray(grey / 1000 - 3).save(tmp_path / "scene.tif")
    cut(Image.fromarray(grey / 1000 - 3)).save(tmp_path / "template.tif")
    cut(coffee).save(tmp_path / "template.png")
    found = facts(tmp_path / "scene.tif", tmp_path / "template.tif")
    assert off(found["box"]) < 0.01
    assert found["residual"] < 1e-4
    assert "255" not in run(tmp_path / "scene.tif", tmp_path / "template.tif").stdout

    result = run(tmp_path / "scene.tif", tmp_path / "template.png")
    assert result.exit_code == 2
    assert result.stderr == (
        f"diffcrop locate: {tmp_path / 'scene.tif'}: has float pixels and {tmp_path / 'template.png'} has not, so "
        "their units differ; --metric zncc does not mind\n"
    )
    found = facts(tmp_path / "scene.tif", tmp_path / "template.png", "--metric", "zncc", "-o", tmp_path / "o.png")
    assert off(found["box"]) < 0.1


def test_what_may_be_turned_is_hinted_at(tmp_path: Path, scene: Path, coffee: Image.Image) -> None:
    """Turned by a few degrees it is found, and explained in part: the code is 0 all the same."""
    turned = coffee.rotate(18, Image.Resampling.BICUBIC, center=(300, 200))
    cut(turned, (240, 155, 360, 245), (40, 30)).save(tmp_path / "turned.png")
    result = run(scene, tmp_path / "turned.png", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["converged"]) == (0, True)
    assert 0.5 < found["explained"] < 0.9
    share = math.floor(100 * found["explained"])
    hint = f"the crop explains {share} % of the template; if it may be turned, add --rotation"
    assert result.stderr == f"diffcrop locate: {hint}\n"
    result = run(scene, tmp_path / "turned.png", "--rotation", "--json")
    assert json.loads(result.stdout)["explained"] > 0.95
    assert result.stderr == ""


def test_what_is_explained_by_other_measures(scene: Path, template: Path) -> None:
    """Of the correlation it is its square; of differences that are weighed nothing is said."""
    found = facts(scene, template, "--metric", "zncc")
    assert found["explained"] == pytest.approx(1 - found["residual"] ** 2)
    result = run(scene, template, "--huber", "20")
    assert "explained" not in result.stdout
    assert facts(scene, template, "--huber", "20")["explained"] is None


# What is not found


def test_another_brightness_takes_the_correlation(tmp_path: Path, scene: Path, coffee: Image.Image) -> None:
    dark = cut(coffee).convert("L").point(lambda value: value * 0.5 + 40)
    dark.save(tmp_path / "dark.png")
    result = run(scene, tmp_path / "dark.png")
    assert result.exit_code == 1
    assert "converged  no" in result.stdout
    for remedy in ("not converged", "--metric zncc if", "--scales LO,HI if", "--candidates N if", "turned"):
        assert remedy in result.stderr
    assert len(result.stderr.splitlines()) == 1

    result = run(scene, tmp_path / "dark.png", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["converged"] is False

    found = facts(scene, tmp_path / "dark.png", "--metric", "zncc")
    assert off(found["box"]) < 0.1
    assert found["metric"] == "zncc"
    assert found["residual"] < 0.05
    text = run(scene, tmp_path / "dark.png", "--metric", "zncc").stdout
    assert f"{found['residual']:.4f} of the template's contrast is not explained" in text


def test_remedies_are_not_what_was_done(tmp_path: Path, scene: Path) -> None:
    # Of noise, which is nowhere in the scene.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "noise.png")
    result = run(scene, tmp_path / "noise.png", "--metric", "zncc")
    assert result.exit_code == 1
    assert "zncc" not in result.stderr
    assert "--scales" in result.stderr
    result = run(scene, tmp_path / "noise.png", "--init", "10,10,50,50")
    assert result.exit_code == 1
    assert "--scales" not in result.stderr
    assert "--candidates" not in result.stderr
    assert "leave --init out, which searches the whole scene" in result.stderr


def test_errors_that_cannot_be_given_are_null() -> None:
    location = SimpleNamespace(
        box=torch.tensor([0.0, 0, 4, 4]),
        residual=torch.tensor(0.0),
        converged=torch.tensor(True),
        covariance=torch.full((4, 4), torch.inf),
        trace=SimpleNamespace(names=("area",), modes=torch.tensor(0)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffcrop, "locate", lambda *_, **__: location)
        pair = command.Pair(torch.zeros(1, 8, 8), torch.zeros(1, 2, 2), "in grey", 255.0)
        found = command._search(pair, {})
    assert found.standard_errors == (None,) * 4
    assert found.covariance == [[None] * 4] * 4
    assert "unknown,unknown,unknown,unknown" in "\n".join(command._lines(found, pair, command.Metric.L2, None))


# The picture


@pytest.mark.parametrize(("extent", "box", "size"), [
    ((600, 400), BOX, SIZE),
    # The small pictures go below it.
    ((1200, 300), (700.5, 60.0, 900.0, 240.5), (50, 45)),
    ((200, 500), (30.0, 300.5, 180.25, 420.0), (50, 40)),
])  # fmt: skip
def test_the_box_is_drawn_where_it_is(tmp_path: Path, coffee: Image.Image, extent, box, size) -> None:
    image = coffee.resize(extent)
    cut(image, box, size).save(tmp_path / "template.png")
    # A frame of a colour that is nowhere else tells where in the picture the scene is.
    values = np.array(image)
    for edge in (values[:3], values[-3:], values[:, :3], values[:, -3:]):
        edge[...] = (255, 0, 255)
    Image.fromarray(values).save(tmp_path / "scene.png")
    output = tmp_path / "new" / "overlay.png"
    result = run(tmp_path / "scene.png", tmp_path / "template.png", "-o", output)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].split() == ["drawn", str(output)]
    with Image.open(output) as drawn:
        pixels = np.array(drawn.convert("RGB")).astype(int)
        assert min(drawn.size) > 300
        assert max(drawn.size) < 1300

    def bounds(colour) -> np.ndarray:
        """x0, y0, x1, y1 of all pixels of a colour."""
        rows, columns = np.nonzero(np.abs(pixels - colour).sum(-1) < 12)
        return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])

    scene = bounds((255, 0, 255))
    # All four sides of the frame are there: the scene is neither cut nor shifted under the box.
    inside = np.abs(pixels[scene[1] : scene[3], scene[0] : scene[2]] - (255, 0, 255)).sum(-1) < 12
    assert min(edge.mean() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])) > 0.9
    assert (scene[2] - scene[0] > 0.9 * pixels.shape[1]) == (extent[0] > 2 * extent[1])
    scale = (scene[2] - scene[0]) / extent[0]
    assert scale == pytest.approx((scene[3] - scene[1]) / extent[1], abs=0.02)
    line = bounds(ImageColor.getrgb(SEARCH_COLOUR))
    # The line is three pixels or so wide, and its middle is on the box's side.
    assert np.abs(line - scene[[0, 1, 0, 1]] - np.array(box) * scale).max() < 3.5


def test_a_small_box_is_ringed_and_one_outside_is_still_drawn(tmp_path: Path, coffee: Image.Image) -> None:
    coffee.resize((2400, 1600)).save(tmp_path / "scene.png")
    small = (1200, 700, 1240, 730)
    coffee.resize((2400, 1600)).crop(small).save(tmp_path / "template.png")
    green = ImageColor.getrgb(SEARCH_COLOUR)

    def count(*flags: object) -> int:
        run(tmp_path / "scene.png", tmp_path / "template.png", "-o", tmp_path / "o.png", "--force", *flags)
        with Image.open(tmp_path / "o.png") as drawn:
            return int((np.abs(np.array(drawn).astype(int) - green).sum(-1) < 12).sum())

    # A rectangle of 13 x 10 pixels has 140 at most, three wide.
    assert count("--init", ",".join(map(str, small))) > 300
    # Far outside nothing is found, and there is a picture all the same.
    result = run(tmp_path / "scene.png", tmp_path / "template.png", "--init", "9000,9000,9040,9030", "-o",
                 tmp_path / "far.png")  # fmt: skip
    assert result.exit_code == 1
    with Image.open(tmp_path / "far.png") as drawn:
        assert max(drawn.size) < 1300


@pytest.mark.parametrize(("box", "shown"), [
    ((10.0, 20.0, 30.0, 40.0), (0, 0, 100, 60)),
    ((-5.0, -7.0, 130.0, 70.0), (-5, -7, 130, 70)),
    # Mirrored.
    ((130.0, 70.0, -5.0, -7.0), (-5, -7, 130, 70)),
    ((-1e6, -1e6, 1e6, 1e6), (-50, -30, 150, 90)),
    ((9e5, 9e5, 1e6, 1e6), (0, 0, 150, 90)),
])  # fmt: skip
def test_what_is_shown_is_the_scene_and_what_of_the_box_is_near(box, shown) -> None:
    assert overlay._frame(overlay._corners(box), 100, 60) == shown


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_the_suffix_says_the_format(tmp_path: Path, scene: Path, template: Path, suffix: str) -> None:
    output = tmp_path / f"overlay.{suffix}"
    found = facts(scene, template, "--mode", "bilinear", "-o", output)
    assert found["output"] == str(output)
    with Image.open(output) as image:
        image.load()
        assert image.format == {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())


def test_a_picture_that_cannot_be_written_does_not_hide_the_result(
    tmp_path: Path, scene: Path, template: Path, monkeypatch
) -> None:
    output = tmp_path / "overlay.png"
    output.write_bytes(b"old")

    def full(_image, stream, **_options) -> None:
        stream.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run(scene, template, "-o", output, "--force")
    assert result.exit_code == 1
    assert result.stderr == f"diffcrop locate: {output}: not written (No space left on device)\n"
    assert "converged  yes" in result.stdout
    assert "drawn" not in result.stdout
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.png", "scene.png", "template.jpg"]


def test_files_are_not_overwritten(tmp_path: Path, scene: Path, template: Path) -> None:
    output = tmp_path / "overlay.png"
    output.write_bytes(b"mine")
    result = run(scene, template, "-o", output)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"diffcrop locate: already exists: {output}. Nothing was written; --force overwrites\n"
    assert output.read_bytes() == b"mine"
    assert run(scene, template, "-o", output, "--force").exit_code == 0
    with Image.open(output) as image:
        image.load()
    for path in (scene, template):
        result = run(scene, template, "-o", path, "--force")
        assert result.exit_code == 2
        assert "is one of the photographs to be read; it is not overwritten, not even with --force" in result.stderr


def test_a_file_that_comes_into_being_meanwhile_is_kept(
    tmp_path: Path, scene: Path, template: Path, monkeypatch
) -> None:
    output = tmp_path / "overlay.png"
    library = diffcrop.locate

    def meanwhile(image, wanted, **options):
        output.write_bytes(b"mine")
        return library(image, wanted, mode="bilinear", **options)

    monkeypatch.setattr(diffcrop, "locate", meanwhile)
    result = run(scene, template, "-o", output)
    assert result.exit_code == 1
    assert result.stderr == (
        f"diffcrop locate: {output}: not written ({output} has come into being meanwhile; --force overwrites)\n"
    )
    assert output.read_bytes() == b"mine"


# Refusals


USAGE = {
    "no scene": (["nowhere.png", "template.jpg"], "nowhere.png: cannot be read (No such file or directory)"),
    "no template": (["scene.png", "nowhere.png"], "nowhere.png: cannot be read (No such file or directory)"),
    "no picture": (["scene.png", "text.png"], "text.png: is not a picture in a format that Pillow reads"),
    "the wrong way round": (["template.jpg", "scene.png"],
                            "scene.png: is 600x400, larger than the scene template.jpg of 90x70; swap the two"),
    "too wide": (["scene.png", "wide.png"],
                 "wide.png: is 700x20, larger than the scene scene.png of 600x400; `diffcrop crop` reduces it"),
    "constant": (["scene.png", "flat.png"], "flat.png: is all of one colour; there is nothing to find it by"),
    "invisible": (["scene.png", "clear.png"], "clear.png: is all of one colour; there is nothing to find it by"),
    "not finite": (["nan.tif", "nan.tif"], "nan.tif: has pixels that are not finite, 3 of them"),
    "one scale": (["--scales", "2"], "--scales '2': should be 2 numbers, LO,HI, not 1"),
    "no number": (["--scales", "2,much"], "--scales '2,much': 'much' is not a finite number"),
    "scales in disorder": (["--scales", "3,2"], "scales must be (least, greatest), got (3.0, 2.0)"),
    "no scale": (["--scales", "0,2"], "scales"),
    "scales too large": (["--scales", "50,60"], "scales must leave boxes that fit into the image"),
    "five numbers": (["--init", "1,2,3,4,5"], "should be 4 numbers, X0,Y0,X1,Y1, not 5; add --rotation"),
    "three numbers": (["--init", "1,2,3"], "--init '1,2,3': should be 4 numbers, X0,Y0,X1,Y1, not 3"),
    "empty box": (["--init", "5,5,5,9"], "init must be pixel boxes (x0, y0, x1, y1) with x0 < x1 and y0 < y1"),
    "init and scales": (["--init", "1,2,30,40", "--scales", "1,2"], "scales is for the search of the whole image"),
    "reach of nothing": (["--reach", "0.5"], "reach"),
    "nan reach": (["--init", "1,2,30,40", "--reach", "nan"], "reach"),
    "few candidates": (["--candidates", "3"], "candidates=3 are too few to search boxes"),
    "no candidates": (["--candidates", "0"], "--candidates"),
    "negative huber": (["--huber=-1"], "huber must be more than 0"),
    "nan huber": (["--huber", "nan"], "huber must be more than 0"),
    "huber of a correlation": (["--huber", "3", "--metric", "zncc"], "huber belongs to metric='l2'"),
    "nearest": (["--mode", "nearest"], "nearest"),
    "unknown metric": (["--metric", "l1"], "l1"),
    "unknown suffix": (["-o", "out.doc"], "--output 'out.doc': .doc is not a format that can be written; there are"),
    "no suffix": (["-o", "out"], "--output 'out': no suffix is not a format that can be written; there are"),
    "below a file": (["-o", "scene.png/out.png"], "scene.png is a file, not a folder"),
    "angles upright": (["--angles", "0,3"], "--angles '0,3': are those of a turned template; add --rotation"),
    "three angles": (["--rotation", "--angles", "0,3,4"], "--angles '0,3,4': should be 2 numbers, LO,HI, not 3"),
    "angles the wrong way": (["--rotation", "--angles", "9,3"], "rotation must be (least, greatest) in degrees"),
    "upright init turned": (["--rotation", "--init", "1,2,3,4"], "should be 5 numbers, CX,CY,W,H,ANGLE, not 4"),
    "turned init upright": (["--init", "1,2,3,4,5"], "--init '1,2,3,4,5': should be 4 numbers"),
    "area turned": (["--rotation", "--mode", "gaussian"], "which crops of turned boxes do not have"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), USAGE.values(), ids=USAGE)
def test_usage_errors_write_nothing(
    tmp_path: Path, scene: Path, template: Path, monkeypatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 30), "teal").save("flat.png")
    Image.new("RGB", (700, 20), "teal").save("wide.png")
    values = np.random.default_rng(0).integers(0, 256, (30, 30, 4), np.uint8)
    values[..., 3] = 0
    Image.fromarray(values).save("clear.png")
    values = np.eye(20, dtype=np.float32)
    values[3, 4:7] = np.nan
    Image.fromarray(values).save("nan.tif")
    Path("text.png").write_text("no picture")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    files = [] if arguments[0].endswith((".png", ".jpg", ".tif")) else [scene.name, template.name]
    output = [] if "-o" in arguments else ["-o", "out.png"]
    result = run(*files, *arguments, *output)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_scene_too_large_for_memory(scene: Path, template: Path, monkeypatch) -> None:
    def full(*_arguments, **_options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(diffcrop, "locate", full)
    result = run(scene, template)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "diffcrop locate: not enough memory to search a scene of 600x400\n"

    def defect(*_arguments, **_options):
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(diffcrop, "locate", defect)
    assert isinstance(run(scene, template).exception, RuntimeError)


def test_help_lists_it() -> None:
    text = CliRunner().invoke(app, ["--help"], prog_name="diffcrop").stdout
    assert "locate" in text
    assert "Find the box of a photograph that a picture was cropped from." in text
    text = run("--help").stdout
    for name in (
        "output",
        "json",
        "metric",
        "aspect",
        "scales",
        "init",
        "reach",
        "mode",
        "candidates",
        "huber",
        "force",
    ):
        assert f"--{name}" in text
    assert "Exit codes" in text
