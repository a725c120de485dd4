"""`diffcrop crop` and `diffcrop info`: what they write, what they refuse, and how they say so."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import diffcrop
from diffcrop.cli import outputs
from diffcrop.cli.app import app
from diffcrop.cli.demo import SUBJECTS
from diffcrop.cli.facts import gather

# Whether the compiled library is there is another test's business.
pytestmark = pytest.mark.filterwarnings("ignore:diffcrop runs on its reference")

PHOTOS = Path(diffcrop.__file__).parent / "cli" / "photos"


def run(*arguments: object):
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="diffcrop")


def python(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python that finds the same diffcrop."""
    environment = {**os.environ, "PYTHONPATH": str(Path(diffcrop.__file__).parents[1]), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120, **options
    )


def save(path: Path, values, **options) -> Path:
    """A picture file with these pixels."""
    Image.fromarray(np.asarray(values)).save(path, **options)
    return path


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def noise(*shape: int, seed: int = 0, top: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype)


def expected(values: np.ndarray, box, size, **options) -> np.ndarray:
    """The crop by the library, rounded as the command promises to."""
    pixels = torch.from_numpy(values if values.ndim == 3 else values[..., None]).permute(2, 0, 1)
    crop = diffcrop.crop(pixels, torch.tensor(box, dtype=torch.float64), size, **options)
    return crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().squeeze()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save(tmp_path / "photo.png", noise(23, 31, 3))


# Values


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--mode", "lanczos3"], {"mode": "lanczos3"}),
        (["--mode", "bicubic", "--no-antialias"], {"mode": "bicubic", "antialias": False}),
        (["--mode", "gaussian", "--sigma", "0.8"], {"mode": "gaussian", "sigma": 0.8}),
        (["--mode", "nearest"], {"mode": "nearest"}),
        (["--mode", "area", "--padding", "reflection"], {"mode": "area", "padding_mode": "reflection"}),
        (["--padding", "constant", "--fill", "255,0,7"], {"padding_mode": "constant", "fill": (255.0, 0.0, 7.0)}),
        (["--padding", "constant", "--fill", "90"], {"padding_mode": "constant", "fill": 90.0}),
        (["--padding", "zeros"], {"padding_mode": "zeros"}),
        (["--padding", "renormalize"], {"padding_mode": "renormalize"}),
        (["--align-corners"], {"align_corners": True}),
        (["--impl", "reference"], {"impl": "reference"}),
    ],
    ids=lambda value: " ".join(value) or "defaults" if isinstance(value, list) else "",
)
def test_what_is_written_is_the_crop_rounded(photo: Path, tmp_path: Path, flags, options) -> None:
    box = (-2.5, 3.25, 20.125, 26.5)
    result = run("crop", photo, "--box", ",".join(map(str, box)), "--size", "7x5", "-o", tmp_path / "out.png", *flags)
    assert result.exit_code == 0, result.stderr
    assert (load(tmp_path / "out.png") == expected(load(photo), box, (7, 5), **options)).all()


@pytest.mark.parametrize(
    ("flags", "box"),
    [
        (["--box-format", "xywh"], (4, 5, 12, 10)),
        (["--box-format", "cxcywh"], (10, 10, 12, 10)),
        (["--coords", "unit"], (4 / 31, 5 / 23, 16 / 31, 15 / 23)),
        (["--coords", "normalized"], (8 / 31 - 1, 10 / 23 - 1, 32 / 31 - 1, 30 / 23 - 1)),
    ],
)
def test_formats_and_coordinates_name_the_same_box(photo: Path, tmp_path: Path, flags, box) -> None:
    result = run(
        "crop", photo, "--box", ",".join(map(repr, box)), "--size", "10x12", "-o", tmp_path / "out.png", *flags
    )
    assert result.exit_code == 0, result.stderr
    assert (load(tmp_path / "out.png") == load(photo)[5:15, 4:16]).all()


@pytest.mark.parametrize(("pair", "rounded"), [((0, 1), 0), ((1, 2), 2), ((2, 3), 2), ((254, 255), 254)])
def test_halves_are_rounded_to_even(tmp_path: Path, pair, rounded) -> None:
    save(tmp_path / "in.png", np.array([pair], np.uint8))
    assert (
        run("crop", tmp_path / "in.png", "--box", "0,0,2,1", "--size", "1", "-o", tmp_path / "out.png").exit_code == 0
    )
    assert load(tmp_path / "out.png").item() == rounded


def test_overshoot_is_clamped(tmp_path: Path) -> None:
    edge = np.repeat(np.array([[0, 0, 0, 0, 255, 255, 255, 255]], np.uint8), 8, 0)
    save(tmp_path / "in.png", edge)
    arguments = ["--box", "0,0,8,8", "--size", "24", "--mode", "lanczos3", "-o", tmp_path / "out.png"]
    assert run("crop", tmp_path / "in.png", *arguments).exit_code == 0
    crop = diffcrop.crop(torch.from_numpy(edge)[None], torch.tensor([0.0, 0, 8, 8]), 24, mode="lanczos3")
    # The case is only one if the filter does leave the range.
    assert crop.min() < -1
    assert crop.max() > 256
    written = load(tmp_path / "out.png")
    assert written[0, 0] == 0
    assert written[0, -1] == 255
    assert (np.diff(written[0, 9:15].astype(int)) >= 0).all()


# What a photograph is, it stays


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "F", "CMYK"])
def test_a_whole_photograph_comes_back_in_its_mode(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(noise(9, 11, top=65536, dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32) * 1e3)
    else:
        image = Image.fromarray(noise(9, 11, 4), "RGBA")
        image.putalpha(Image.fromarray(noise(9, 11, seed=1, top=255) + 1))
        image = image if mode == "RGBA" else image.convert(mode) if mode == "LA" else image.convert("RGB").convert(mode)
    image.save(tmp_path / "in.tif")
    result = run("crop", tmp_path / "in.tif", "--box", "0,0,11,9", "--size", "9x11", "-o", tmp_path / "out.tif")
    assert result.exit_code == 0, result.stderr
    kept = {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    with Image.open(tmp_path / "out.tif") as written, Image.open(tmp_path / "in.tif") as read:
        assert written.mode == kept
        assert (np.array(written) == np.array(read.convert(kept) if kept != mode else read)).all()


def test_sixteen_bits_are_averaged_and_clamped_as_sixteen_bits(tmp_path: Path) -> None:
    save(tmp_path / "in.png", np.array([[60000, 65535], [1, 2]], np.uint16))
    result = run("crop", tmp_path / "in.png", "--box", "0,0,2,2", "--size", "2x1", "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    # 62767.5 and 1.5, both to the even neighbour.
    assert load(tmp_path / "out.png").tolist() == [[62768], [2]]


def test_a_transparent_palette_keeps_its_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "in.png", transparency=0)
    assert (
        run("crop", tmp_path / "in.png", "--box", "0,0,4,4", "--size", "4", "-o", tmp_path / "out.png").exit_code == 0
    )
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == "RGBA"
        assert written.getpixel((0, 0))[3] == 0
        assert written.getpixel((3, 3)) == (0, 0, 255, 255)


def test_the_colour_of_transparent_pixels_does_not_bleed(tmp_path: Path) -> None:
    # Opaque red beside invisible green: half as opaque, and still red.
    save(tmp_path / "in.png", np.array([[[255, 0, 0, 255], [0, 255, 0, 0]]], np.uint8))
    arguments = ["--box", "0,0,2,1", "--size", "1", "-o", tmp_path / "out.png"]
    assert run("crop", tmp_path / "in.png", *arguments).exit_code == 0
    assert load(tmp_path / "out.png").tolist() == [[[255, 0, 0, 128]]]


def test_nearest_keeps_the_colour_of_transparent_pixels(tmp_path: Path) -> None:
    values = noise(5, 5, 4)
    values[..., 3] = 0
    save(tmp_path / "in.png", values)
    arguments = ["--box", "0,0,5,5", "--size", "5", "--mode", "nearest", "-o", tmp_path / "out.png"]
    assert run("crop", tmp_path / "in.png", *arguments).exit_code == 0
    assert (load(tmp_path / "out.png") == values).all()


@pytest.mark.parametrize(
    ("padding", "outside"),
    [
        (["zeros"], [0, 0, 0, 0]),
        (["constant", "--fill", "200"], [200, 200, 200, 255]),
        (["constant", "--fill", "9,100,255,51"], [9, 100, 255, 51]),
    ],
)
def test_fill_beside_a_photograph_with_alpha(tmp_path: Path, padding, outside) -> None:
    save(tmp_path / "in.png", np.full((4, 4, 4), 255, np.uint8))
    arguments = ["--box=-8,0,-4,4", "--size", "2", "-o", tmp_path / "out.png", "--padding", *padding]
    assert run("crop", tmp_path / "in.png", *arguments).exit_code == 0
    assert (load(tmp_path / "out.png") == outside).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    values = noise(8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "in.png", values, exif=exif)
    # Orientation 6: the camera lay on its side; upright is a quarter turn clockwise.
    arguments = ["--box", "0,0,8,12", "--size", "12x8", "-o", tmp_path / "out.png"]
    assert run("crop", tmp_path / "in.png", *arguments).exit_code == 0
    assert (load(tmp_path / "out.png") == np.rot90(values, -1)).all()
    with Image.open(tmp_path / "out.png") as written:
        assert 0x0112 not in written.getexif()


def test_the_colour_profile_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "in.png", noise(8, 8, 3), icc_profile=b"a profile")
    assert (
        run("crop", tmp_path / "in.png", "--box", "0,0,8,8", "--size", "4", "-o", tmp_path / "out.jpg").exit_code == 0
    )
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "PNG"])
def test_the_suffix_says_the_format(photo: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out.{suffix}"
    assert run("crop", photo, "--box", "0,0,31,23", "--size", "8", "-o", output).exit_code == 0
    with Image.open(output) as image:
        name = suffix.lower()
        assert image.format == {"jpg": "JPEG", "tif": "TIFF"}.get(name, name.upper())
        assert image.size == (8, 8)


@pytest.mark.parametrize(("shape", "top", "suffix", "says"), [
    ((6, 6, 4), 256, "jpg", "has transparency, which .jpg cannot hold; .png, .webp, .tif, .tiff can"),
    ((6, 6), 65536, "webp", "has 16 bits, which .webp cannot hold; .png, .tif, .tiff can"),
])  # fmt: skip
def test_what_a_format_cannot_hold_is_not_dropped(tmp_path: Path, shape, top, suffix, says) -> None:
    save(tmp_path / "in.png", noise(*shape, top=top, dtype=np.uint8 if top == 256 else np.uint16))
    result = run("crop", tmp_path / "in.png", "--box", "0,0,6,6", "--size", "3", "-o", tmp_path / f"out.{suffix}")
    assert result.exit_code == 1
    assert says in result.stderr
    assert not (tmp_path / f"out.{suffix}").exists()


# Many crops


def test_a_square_and_a_rectangle(photo: Path, tmp_path: Path) -> None:
    for size, shape in (("6", (6, 6)), ("4x9", (4, 9)), ("4X9", (4, 9))):
        assert (
            run("crop", photo, "--box", "0,0,9,9", "--size", size, "-o", tmp_path / "o.png", "--force").exit_code == 0
        )
        assert load(tmp_path / "o.png").shape[:2] == shape


def test_a_folder_gets_one_file_per_photograph(photo: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.jpg", noise(9, 9, 3))
    result = run("crop", photo, other, "--box", "0,0,9,9", "--size", "3", "-o", tmp_path / "new" / "crops")
    assert result.exit_code == 0
    names = [tmp_path / "new" / "crops" / name for name in ("photo.png", "other.png")]
    assert result.stdout.splitlines() == [str(name) for name in names]
    assert result.stderr == ""
    assert [name.exists() for name in names] == [True, True]


def test_several_boxes_are_numbered(photo: Path, tmp_path: Path) -> None:
    boxes = [(0, 0, 9, 9), (3.5, 2, 30, 20)]
    flags = [part for box in boxes for part in ("--box", ",".join(map(str, box)))]
    result = run("crop", photo, *flags, "--size", "3", "-o", tmp_path / "crops/", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    for number, box in enumerate(boxes, 1):
        assert (load(tmp_path / "crops" / f"photo_{number}.png") == expected(load(photo), box, 3)).all()


def test_a_template_names_the_files(photo: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.png", noise(9, 9, 3))
    template = tmp_path / "{stem}" / "{n:03d}-{box}.tif"
    boxes = ["--box", "0,0,9,9", "--box", "1,1,5,5"]
    assert run("crop", photo, other, *boxes, "--size", "3", "-o", template).exit_code == 0
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tif"))
    assert made == ["other/003-1.tif", "other/004-2.tif", "photo/001-1.tif", "photo/002-2.tif"]


# Boxes from a file


CSVS = {
    "plain": "0,0,9,9\n1.5,2,8,7e0\n",
    "header": "x0,y0,x1,y1\n0,0,9,9\n1.5,2,8,7\n",
    "header in another order": "y1,x1,y0,x0\n9,9,0,0\n7,8,2,1.5\n",
    "spreadsheet": "\ufeffX0,Y0,X1,Y1\r\n0,0,9,9\r\n\r\n\"1.5\", 2,8,7\r\n,,,\r\n",
    "photo": "0,0,9,9,photo.png\n1.5,2,8,7,photo.png\n",
    "photo in front": "photo,x0,y0,x1,y1\nphoto.png,0,0,9,9\nphoto.png,1.5,2,8,7\n",
}  # fmt: skip


@pytest.mark.parametrize("text", CSVS.values(), ids=CSVS)
def test_boxes_from_a_file(photo: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "boxes.csv").write_bytes(text.encode())
    result = run("crop", photo, "--boxes", tmp_path / "boxes.csv", "--size", "4", "-o", tmp_path / "crops/")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    for number, box in enumerate([(0, 0, 9, 9), (1.5, 2, 8, 7)], 1):
        assert (load(tmp_path / "crops" / f"photo_{number}.png") == expected(load(photo), box, 4)).all()


def test_a_row_is_for_the_photograph_it_names(photo: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.png", noise(23, 31, 3, seed=1))
    third = save(tmp_path / "third.png", noise(23, 31, 3, seed=2))
    (tmp_path / "boxes.csv").write_text(f"0,0,9,9,other.png\n2,2,9,9,{photo}\n4,4,9,9,other.png\n")
    result = run("crop", photo, other, third, "--boxes", tmp_path / "boxes.csv", "--size", "4", "-o", tmp_path / "c/")
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["other_1.png", "other_2.png", "photo_1.png"]
    assert (load(tmp_path / "c" / "other_2.png") == expected(load(other), (4, 4, 9, 9), 4)).all()
    assert (load(tmp_path / "c" / "photo_1.png") == expected(load(photo), (2, 2, 9, 9), 4)).all()
    assert f"{third}: no box is for it" in result.stderr


def test_rows_of_a_photograph_keep_their_order_however_they_name_it(photo: Path, tmp_path: Path) -> None:
    boxes = [(number, 0, 9 + number, 9) for number in range(1, 7)]
    lines = [",".join([*map(str, box), str(photo) if box[0] % 2 else photo.name]) for box in boxes]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    flags = ["--box", "0,0,9,9", "--boxes", tmp_path / "boxes.csv", "--size", "5", "-o", tmp_path / "c/"]
    assert run("crop", photo, *flags).exit_code == 0
    for number, box in enumerate([(0, 0, 9, 9), *boxes], 1):
        assert (load(tmp_path / "c" / f"photo_{number}.png") == expected(load(photo), box, 5)).all()


HOSTILE = {
    "not a number": ("0,0,9,9\n0,zero,9,9\n", "line 2: y0 is 'zero', not a finite number"),
    "first line": ("0,0,nine,9\n", "line 1: x1 is 'nine', not a finite number"),
    "nan": ("0,0,9,nan\n", "line 1: y1 is 'nan', not a finite number"),
    "infinite": ("0,0,9,9\n\n0,0,1e999,9\n", "line 3: x1 is '1e999', not a finite number"),
    "python only": ("1_0,0,9,9\n", "line 1: x0 is '1_0', not a finite number"),
    "other digits": ("\u0661,0,9,9\n", "line 1: x0 is '\u0661', not a finite number"),
    "empty cell": ("0,,9,9\n", "line 1: y0 is '', not a finite number"),
    "too few": ("0,0,9,9\n0,0,9\n", "line 2: has 3 values, not 4 (x0, y0, x1, y1): '0,0,9'"),
    "too many": ("0,0,9,9\n0,0,9,9,9\n", "line 2: has 5 values, not 4"),
    "semicolons": ("0;0;9;9\n", "line 1: has 1 values, not 4"),
    "unknown column": ("x0,y0,x1,y1,score\n0,0,9,9,1\n", "line 1: unknown column 'score'"),
    "missing column": ("x0,y0,x1\n0,0,9\n", "line 1: there is no column 'y1', only x0, y0, x1"),
    "column twice": ("x0,y0,x1,y1,x0\n0,0,9,9,0\n", "line 1: column 'x0' is there 2 times"),
    "another format's header": ("x,y,w,h\n0,0,9,9\n", "line 1: unknown column 'x'; with --box-format xyxy"),
    "unknown photo": (
        "0,0,9,9,nobody.png\n",
        "line 1: photo is 'nobody.png', which is not among the photographs given",
    ),
    "an angle for a photo": ("15,11,12,8,25\n", "photo is '25', which is not among the photographs given; of turned"),
    "turned header": ("cx,cy,w,h,angle\n1,2,3,4,x\n", "line 2: angle is 'x', not a finite number"),
    "turned without a side": ("cx,cy,w,angle\n1,2,3,4\n", "there is no column 'h', only cx, cy, w, angle"),
    "empty photo": ("0,0,9,9,photo.png\n0,0,9,9,\n", "line 2: photo is empty"),
    "empty file": ("", "holds no boxes"),
    "only a header": ("x0,y0,x1,y1\n", "holds no boxes"),
    "open quote": ('0,0,9,9\n"0,0,9,9\n', "line 2: not comma-separated text"),
    "huge field": ("0,0,9," + "9" * 200_000, "line 1: not comma-separated text"),
    "latin-1": ("0,0,9,9,caf\xe9.png\n".encode("latin-1"), "not UTF-8 text"),
}


@pytest.mark.parametrize(("content", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_line_is_named(photo: Path, tmp_path: Path, content: str | bytes, says: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("crop", photo, "--boxes", path, "--size", "4", "-o", tmp_path / "crops/")
    assert result.exit_code == 2
    assert f"{path}" in result.stderr
    assert says in result.stderr
    assert not (tmp_path / "crops").exists()


def test_columns_follow_the_box_format(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("w,h,cx,cy\n12,10,10,10\n")
    flags = ["--box-format", "cxcywh", "--size", "10x12", "-o", tmp_path / "out.png"]
    assert run("crop", photo, "--boxes", tmp_path / "boxes.csv", *flags).exit_code == 0
    assert (load(tmp_path / "out.png") == load(photo)[5:15, 4:16]).all()


# Turned boxes

TURNED = (15.0, 11.5, 12.0, 8.0, 25.0)


def turned(values: np.ndarray, box, size, **options) -> np.ndarray:
    """The crop by the library, rounded."""
    pixels = torch.from_numpy(values).permute(2, 0, 1)
    crop = diffcrop.crop_rotated(pixels, torch.tensor(box, dtype=torch.float64), size, **options)
    return crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--box-format", "cxcywh"], {}),
        (["--mode", "bicubic", "--padding", "constant", "--fill", "9"],
         {"mode": "bicubic", "padding_mode": "constant", "fill": 9.0}),
        (["--coords", "unit"], {"coords": "unit"}),
        (["--align-corners", "--no-antialias"], {"align_corners": True, "antialias": False}),
    ],
)  # fmt: skip
def test_five_numbers_are_a_turned_box(photo: Path, tmp_path: Path, flags, options) -> None:
    box = (0.5, 0.5, 0.4, 0.3, -30.0) if "unit" in flags else TURNED
    arguments = ["--box", ",".join(map(str, box)), "--size", "8x12", "-o", tmp_path / "out.png", *flags]
    result = run("crop", photo, *arguments)
    assert result.exit_code == 0, result.stderr
    assert (load(tmp_path / "out.png") == turned(load(photo), box, (8, 12), **options)).all()


def test_upright_and_turned_boxes_together(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("angle,cx,cy,w,h\n25,15,11.5,12,8\n0,5,4,6,4\n")
    flags = ["--box", "0,0,9,9", "--boxes", tmp_path / "boxes.csv", "--size", "8x12", "-o", tmp_path / "c/"]
    result = run("crop", photo, *flags)
    assert result.exit_code == 0, result.stderr
    assert (load(tmp_path / "c" / "photo_1.png") == expected(load(photo), (0, 0, 9, 9), (8, 12))).all()
    assert (load(tmp_path / "c" / "photo_2.png") == turned(load(photo), TURNED, (8, 12))).all()
    assert (load(tmp_path / "c" / "photo_3.png") == expected(load(photo), (2, 2, 8, 6), (8, 12))).all()


def test_what_locate_prints_is_cut_out_again(tmp_path: Path) -> None:
    scene = PHOTOS / "chelsea.jpg"
    flags = ["--box", "220,150,160,120,25", "--size", "60x80", "-o", tmp_path / "template.png"]
    assert run("crop", scene, *flags).exit_code == 0
    found = run("locate", scene, tmp_path / "template.png", "--rotation", "--angles", "20,30")
    assert found.exit_code == 0, found.stderr
    box = found.stdout.split()[1]
    assert run("crop", scene, "--box", box, "--size", "60x80", "-o", tmp_path / "again.png").exit_code == 0
    difference = load(tmp_path / "again.png").astype(int) - load(tmp_path / "template.png")
    assert np.abs(difference).max() <= 1


# Refusals


USAGE = {
    "no box": ([], "there is no box"),
    "three numbers": (["--box", "1,2,3"], "has 3 numbers, a box has four: X0,Y0,X1,Y1, and a turned one five: CX,CY"),
    "six numbers": (["--box", "1,2,3,4,5,6"], "has 6 numbers, a box has four"),
    "spaces": (["--box", "1 2 3 4"], "numbers are separated by commas, without spaces: --box 1,2,3,4"),
    "a space that ends it": (["--box", "1,2,"], "'' is not a finite number; numbers are separated by commas"),
    "spaces in fill": (["--box", "0,0,9,9", "--padding", "constant", "--fill", "1 2 3"], "spaces: --fill 1,2,3"),
    "turned in a format": (["--box", "1,2,3,4,5", "--box-format", "xywh"], "five numbers are a turned box, CX,CY,W,H"),
    "turned gaussian": (["--box", "1,2,3,4,5", "--mode", "gaussian"], "for crops that are not axis-aligned"),
    "turned after upright": (
        ["--box", "0,0,9,9", "--box", "1,2,3,4,5", "--padding", "renormalize", "-o", "crops/"],
        "not axis-aligned",
    ),
    "turned sigma": (["--box", "1,2,3,4,5", "--sigma", "1"], "--sigma belongs to --mode gaussian"),
    "three numbers of another format": (["--box", "1,2,3", "--box-format", "cxcywh"], "a box has four: CX,CY,W,H"),
    "not a number": (["--box", "1,2,3,four"], "'four' is not a finite number"),
    "nan box": (["--box", "1,2,3,nan"], "'nan' is not a finite number"),
    "no size": (["--box", "0,0,9,9", "--size", "0x3"], "both sides must be at least 1"),
    "odd size": (["--box", "0,0,9,9", "--size", "3x"], "should be HEIGHTxWIDTH"),
    "missing boxes": (["--boxes", "nowhere.csv"], "nowhere.csv: cannot be read (No such file or directory)"),
    "bad fill": (["--box", "0,0,9,9", "--padding", "constant", "--fill", "white"], "'white' is not a finite number"),
    "fill without constant": (["--box", "0,0,9,9", "--fill", "3"], "fill"),
    "area without antialias": (["--box", "0,0,9,9", "--mode", "area", "--no-antialias"], "antialias"),
    "sigma without gaussian": (["--box", "0,0,9,9", "--sigma", "1"], "sigma"),
    "unknown mode": (
        ["--box", "0,0,9,9", "--mode", "lanczos"],
        "for '--mode': 'lanczos' is not one of 'bilinear', 'bicubic', 'lanczos3', 'area', 'gaussian', 'nearest'; did",
    ),
    "unknown padding": (["--box", "0,0,9,9", "--padding", "x"], "'--padding': 'x' is not one of 'border', 'zeros'"),
    "unknown implementation": (["--box", "0,0,9,9", "--impl", "gpu"], "gpu"),
    "unknown suffix": (["--box", "0,0,9,9", "-o", "out.doc"], ".doc is not a format that can be written; there are"),
    "several into one": (["--box", "0,0,9,9", "--box", "0,0,8,8", "-o", "out.png"], "2 crops do not fit into one file"),
    "unknown field": (["--box", "0,0,9,9", "-o", "{name}.png"], "{name} is unknown"),
    "attribute of a field": (["--box", "0,0,9,9", "-o", "{stem.__class__}.png"], "{stem.__class__} is unknown"),
    "open brace": (["--box", "0,0,9,9", "-o", "{stem.png"], "not a template"),
    "template without suffix": (["--box", "0,0,9,9", "-o", "crops/{stem}"], "no suffix is not a format"),
    "template that repeats": (["--box", "0,0,9,9", "--box", "0,0,8,8", "-o", "n_{stem}.png"], "would be written twice"),
    "onto the photograph": (["--box", "0,0,9,9", "-o", "photo.png", "--force"], "is one of the photographs to be read"),
    "below a file": (["--box", "0,0,9,9", "-o", "photo.png/out.png"], "photo.png is a file, not a folder"),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "says"), USAGE.values(), ids=USAGE)
def test_usage_errors_write_nothing(photo: Path, tmp_path: Path, monkeypatch, flags, says) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    size = [] if "--size" in flags else ["--size", "4"]
    output = [] if "-o" in flags else ["-o", "out.png"]
    result = run("crop", "photo.png", *flags, *size, *output)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_photographs_of_one_name_do_not_overwrite_each_other(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = save(tmp_path / "more" / "PHOTO.jpg", noise(9, 9, 3))
    result = run("crop", photo, other, "--box", "0,0,9,9", "--size", "4", "-o", tmp_path / "crops/")
    assert result.exit_code == 2
    assert "would be written twice" in result.stderr
    assert str(photo) in result.stderr
    assert str(other) in result.stderr


def test_files_are_not_overwritten(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    (folder / "photo_2.png").write_bytes(b"mine")
    arguments = ["crop", photo, "--box", "0,0,9,9", "--box", "0,0,8,8", "--size", "4", "-o", folder]
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"already exists: {folder / 'photo_2.png'}" in result.stderr
    # Not even the one that was free.
    assert [path.name for path in folder.iterdir()] == ["photo_2.png"]
    assert (folder / "photo_2.png").read_bytes() == b"mine"

    assert run(*arguments, "--force").exit_code == 0
    assert (load(folder / "photo_2.png") == expected(load(photo), (0, 0, 8, 8), 4)).all()


def test_a_dangling_link_counts_as_a_file(photo: Path, tmp_path: Path) -> None:
    link = tmp_path / "out.png"
    link.symlink_to(tmp_path / "nowhere.png")
    result = run("crop", photo, "--box", "0,0,9,9", "--size", "4", "-o", link)
    assert result.exit_code == 2
    assert "already exists" in result.stderr
    assert not (tmp_path / "nowhere.png").exists()


# What goes wrong on the way


def test_an_unreadable_photograph_does_not_stop_the_others(photo: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(photo.read_bytes()[:900])
    last = save(tmp_path / "zlast.png", noise(9, 9))
    boxes = ["--box", "0,0,9,9", "--box", "1,1,9,9"]
    result = run(
        "crop", text, photo, truncated, tmp_path / "none.png", last, *boxes, "--size", "4", "-o", tmp_path / "c/"
    )
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 4
    assert (load(tmp_path / "c" / "zlast_2.png") == expected(load(last), (1, 1, 9, 9), 4)).all()
    for path, reason in (
        (text, "is not a picture"),
        (truncated, "cannot be read"),
        (tmp_path / "none.png", "No such file"),
    ):
        lines = [line for line in result.stderr.splitlines() if str(path) in line]
        assert len(lines) == 1
        assert reason in lines[0]
    assert "6 of 10 crops not written" in result.stderr
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_a_fill_that_does_not_fit_one_photograph(photo: Path, tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", noise(9, 9))
    flags = ["--box", "0,0,9,9", "--size", "4", "--padding", "constant", "--fill", "1,2,3", "-o", tmp_path / "c/"]
    result = run("crop", grey, photo, *flags)
    assert result.exit_code == 1
    assert f"{grey}, --box 0,0,9,9: has 1 channels (L), --fill has 3 numbers" in result.stderr
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["photo.png"]


def test_a_failed_write_leaves_nothing_and_the_old_file(photo: Path, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "out.png"
    output.write_bytes(b"old")

    def full(_image, stream, **_options) -> None:
        stream.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("crop", photo, "--box", "0,0,9,9", "--size", "4", "-o", output, "--force")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "photo.png"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_comes_into_being_meanwhile_is_kept(tmp_path: Path, monkeypatch, links: bool) -> None:
    if not links:

        def no_links(*_arguments) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", no_links)
    path = tmp_path / "out.bin"
    outputs.write_whole(path, lambda stream: stream.write(b"first"), force=False)
    assert path.read_bytes() == b"first"
    with pytest.raises(FileExistsError) as caught:
        outputs.write_whole(path, lambda stream: stream.write(b"second"), force=False)
    # Not the file beside it, which is nobody's.
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"first"
    outputs.write_whole(path, lambda stream: stream.write(b"third"), force=True)
    assert path.read_bytes() == b"third"
    assert [item.name for item in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a Unix thing")
@pytest.mark.parametrize(("terminal", "bar"), [("stderr", True), ("both", False), ("none", False)])
def test_the_progress_bar_is_for_terminals_only(photo: Path, tmp_path: Path, terminal: str, bar: bool) -> None:
    code = "import diffcrop.cli.crop as c; c._PATIENCE_S = 0; from diffcrop.cli import main; main()"
    flags = ["--box", "0,0,9,9", "--box", "1,1,9,9", "--box", "2,2,9,9", "--size", "4", "-o", str(tmp_path / "c") + "/"]
    leader, follower = os.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(diffcrop.__file__).parents[1]),
        "TERM": "xterm",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, "crop", str(photo), *flags],
        stdout=follower if terminal == "both" else subprocess.PIPE,
        stderr=subprocess.PIPE if terminal == "none" else follower,
        env=environment,
    )
    os.close(follower)
    out, err = process.communicate(timeout=120)
    seen = err or b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    assert process.returncode == 0, seen
    assert (b"cropping" in seen) == bar
    if terminal != "both":
        assert out.decode().splitlines() == [str(tmp_path / "c" / f"photo_{number}.png") for number in (1, 2, 3)]


# info, and the program itself


def test_info_tells_the_reasons(monkeypatch) -> None:
    reasons = {"reference": None, "cpu": "not built; `pip install diffcrop[cpu]`"}
    monkeypatch.setattr(diffcrop, "implementations", lambda: reasons)
    monkeypatch.setattr(diffcrop, "simd_level", lambda: "avx2")
    result = run("info")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "  reference      available" in [line.rstrip() for line in lines]
    assert any("not available: not built; `pip install diffcrop[cpu]`" in line for line in lines)
    assert any(line.startswith("SIMD level") and "avx2" in line for line in lines)

    facts = json.loads(run("info", "--json").stdout)
    assert facts["implementations"]["reference"] == {"available": True, "reason": None}
    assert facts["implementations"]["cpu"] == {"available": False, "reason": reasons["cpu"]}


def test_info_gathers_what_is_here() -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts == json.loads(json.dumps(gather()))
    assert facts["torch"] == torch.__version__
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["diffcrop"] == diffcrop.__version__
    assert {name: item["reason"] for name, item in facts["implementations"].items()} == diffcrop.implementations()
    assert facts["implementations"]["reference"]["available"] is True


def test_python_dash_m(tmp_path: Path, photo: Path) -> None:
    output = tmp_path / "out.png"
    done = python("-m", "diffcrop", "crop", photo, "--box", "-3.5,0,9,9", "--size", "4", "-o", output)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{output}\n", "")
    assert (load(output) == expected(load(photo), (-3.5, 0, 9, 9), 4)).all()
    again = python("-m", "diffcrop", "crop", photo, "--box", "-3.5,0,9,9", "--size", "4", "-o", output)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"diffcrop crop: already exists: {output}. Nothing was written; --force overwrites\n"
    assert python("-m", "diffcrop", "--version").stdout == f"diffcrop {diffcrop.__version__}\n"
    assert python("-m", "diffcrop").returncode == 2


@pytest.mark.parametrize(("hidden", "named"), [
    (["typer"], "typer"), (["rich", "PIL"], "rich, Pillow"), (["matplotlib"], "matplotlib"),
])  # fmt: skip
def test_without_the_extra_it_says_what_to_install(hidden, named) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); from diffcrop.cli import main; main()"
    done = python("-c", code, "crop", "photo.png")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"diffcrop: the command line also needs {named}, not installed here; "
        '`pip install "diffcrop[cli]"` brings all it needs\n'
    )


def test_info_needs_no_extra() -> None:
    """What is printed is the same, but for its styles."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['typer', 'rich', 'PIL', 'matplotlib']));"
        "from diffcrop.cli import main; main()"
    )
    done = python("-c", code, "info")
    assert (done.returncode, done.stderr) == (0, "")
    rich = run("info").stdout
    plain, styled = ([line.split(maxsplit=1) for line in text.splitlines()] for text in (done.stdout, rich))
    assert plain[:3] == [[part.rstrip() for part in line] for line in styled[:3]]
    assert plain[0] == ["diffcrop", diffcrop.__version__]
    reason = diffcrop.implementations()["cpu"]
    assert ["cpu", "available" if reason is None else f"not available: {reason}"] in plain
    found, wanted = (json.loads(each) for each in (python("-c", code, "info", "--json").stdout, json.dumps(gather())))
    assert {**found, "torch_threads": None} == {**wanted, "torch_threads": None}


def test_the_library_does_not_import_the_command_line() -> None:
    code = "import sys, diffcrop; print({'typer', 'rich', 'PIL', 'matplotlib', 'diffcrop.cli'} & set(sys.modules))"
    assert python("-c", code).stdout.strip() == "set()"


def test_every_shipped_photograph_has_its_terms() -> None:
    terms = (PHOTOS / "LICENSES.md").read_text()
    names = {path.stem for path in PHOTOS.glob("*.jpg")}
    assert names == set(SUBJECTS)
    for path in PHOTOS.glob("*.jpg"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert f"| {path.name} | {image.width}x{image.height} |" in terms
