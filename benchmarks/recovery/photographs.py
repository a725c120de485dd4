"""The photographs, and the sets of them: data.

They are read from the folders that diffcrop and the wheels of scikit-image and scikit-learn bring along; nothing is
fetched. One whose longer side exceeds 512 pixels is first reduced to that by Pillow's LANCZOS, in 8 bits, and what
comes of it is the photograph from there on. Grey ones have one channel.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST = 512
# Where files lie inside an installed package.
_FOLDERS = {
    "diffcrop": "cli/photos",
    "skimage": "data",
    "sklearn": "datasets/images",
}
# Name -> package and file.
FILES = {
    "astronaut": ("diffcrop", "astronaut.jpg"),
    "chelsea": ("diffcrop", "chelsea.jpg"),
    "coffee": ("diffcrop", "coffee.jpg"),
    "rocket": ("diffcrop", "rocket.jpg"),
    "camera": ("skimage", "camera.png"),
    "coins": ("skimage", "coins.png"),
    "hubble": ("skimage", "hubble_deep_field.jpg"),
    "ihc": ("skimage", "ihc.png"),
    "motorcycle": ("skimage", "motorcycle_left.png"),
    "retina": ("skimage", "retina.jpg"),
    "brick": ("skimage", "brick.png"),
    "grass": ("skimage", "grass.png"),
    "gravel": ("skimage", "gravel.png"),
    "moon": ("skimage", "moon.png"),
    "china": ("sklearn", "china.jpg"),
    "flower": ("sklearn", "flower.jpg"),
}
# Numbers (rates, schedules) may be chosen on these, which the wheel brings along.
TUNING = ("astronaut", "chelsea", "coffee", "rocket")
# No number was chosen on these. Of the natural pictures in both packages `cell`, `clock_motion` and `color` are left
# out: most of each is empty, and a box of nothing is nowhere; `page` is smaller than a box.
HELD_OUT = ("camera", "coins", "hubble", "ihc", "motorcycle", "retina", "china", "flower")
# The hard ones: what repeats, and what is nearly empty. Two of them are held out as well.
TEXTURES = ("brick", "grass", "gravel", "moon", "hubble", "retina")
SETS = {"tuning": TUNING, "held-out": HELD_OUT, "textures": TEXTURES}


@dataclass(frozen=True)
class Photograph:
    """``image`` has one channel (L) or three (RGB) of 8 bits, ``pixels`` is the same, (C, H, W), float32, 0 to 1."""

    name: str
    image: Image.Image
    pixels: Tensor


def missing(name: str) -> str | None:
    """Why a photograph cannot be read here, or None."""
    package, file = FILES[name]
    return None if _path(package, file) is not None else f"{package} is not installed or has no {file}"


@cache
def photograph(name: str) -> Photograph:
    package, file = FILES[name]
    path = _path(package, file)
    if path is None:
        raise FileNotFoundError(f"{name}: {missing(name)}; pip install 'diffcrop[bench]'")
    with Image.open(path) as opened:
        image = opened.convert("L" if opened.mode == "L" else "RGB")
    longer = max(image.size)
    if longer > LONGEST:
        width, height = (round(side * LONGEST / longer) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return Photograph(name, image, as_tensor(image))


def as_tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image)).to(torch.float32) / 255
    return (values[None] if values.ndim == 2 else values.permute(2, 0, 1)).contiguous()


def _path(package: str, file: str) -> Path | None:
    # Found without importing it: scikit-learn takes a second to import. An editable install lies in several places.
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return next((path for place in places if (path := Path(place) / _FOLDERS[package] / file).exists()), None)
