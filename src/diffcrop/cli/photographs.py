"""Photographs in and out: files <-> tensors, by Pillow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


class PhotographError(Exception):
    """A photograph that cannot be read, or a crop that its format cannot hold."""


@dataclass(frozen=True)
class FileFormat:
    """A file format: Pillow's name for it, the modes it holds without loss of channels or depth, and how to save."""

    name: str
    modes: frozenset[str]
    options: dict[str, object] = field(default_factory=dict)


_EIGHT_BIT = frozenset({"L", "LA", "RGB", "RGBA"})

# JPEG and WebP at the quality at which their own error stays near one level.
_FORMATS = {
    ".png": FileFormat("PNG", _EIGHT_BIT | {"I;16"}),
    ".jpg": FileFormat("JPEG", frozenset({"L", "RGB"}), {"quality": 95, "subsampling": 0}),
    ".jpeg": FileFormat("JPEG", frozenset({"L", "RGB"}), {"quality": 95, "subsampling": 0}),
    ".webp": FileFormat("WEBP", _EIGHT_BIT, {"quality": 95}),
    ".tif": FileFormat("TIFF", _EIGHT_BIT | {"I;16", "F"}, {"compression": "tiff_deflate"}),
    ".tiff": FileFormat("TIFF", _EIGHT_BIT | {"I;16", "F"}, {"compression": "tiff_deflate"}),
    ".bmp": FileFormat("BMP", frozenset({"L", "RGB"})),
}


@cache
def writable_formats() -> dict[str, FileFormat]:
    """Suffix -> format, for those that this build of Pillow can write."""
    Image.init()
    return {suffix: format_ for suffix, format_ in _FORMATS.items() if format_.name in Image.SAVE}


@dataclass(frozen=True)
class Photograph:
    """The pixels of a file as (C, H, W), unscaled: uint8, or float32 for 16-bit and float photographs.

    `mode` is Pillow's name for what the pixels are: L, LA, RGB, RGBA, I;16 or F. With alpha (LA, RGBA) the colours are
    straight here, as in the file.
    """

    pixels: Tensor
    mode: str
    icc_profile: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel says how opaque a pixel is."""
        return self.mode in ("LA", "RGBA")


def read_photograph(path: Path) -> Photograph:
    """Read the first picture in a file, turned upright as its EXIF orientation says.

    Palettes become RGB or RGBA, one-bit pictures L, CMYK and the other colour spaces RGB.
    """
    try:
        with Image.open(path) as image:
            icc_profile = image.info.get("icc_profile") if image.mode in ("L", "LA", "RGB", "RGBA") else None
            image = _plain(ImageOps.exif_transpose(image))
            values = np.array(image)
    except UnidentifiedImageError as error:
        raise PhotographError("is not a picture in a format that Pillow reads") from error
    # Pillow's decoders raise nearly anything on a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PhotographError(f"cannot be read ({reason})") from error
    if image.mode == "I;16":
        values = values.astype(np.float32)
    pixels = torch.from_numpy(values)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return Photograph(pixels, image.mode, icc_profile)


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in one of the modes that `Photograph` has."""
    mode = image.mode
    if "transparency" in image.info and mode in ("1", "L", "RGB", "P"):
        return image.convert("LA" if mode in ("1", "L") else "RGBA")
    if mode in ("L", "LA", "RGB", "RGBA", "F", "I;16"):
        return image
    if mode.startswith("I"):
        # Older Pillow opens a 16-bit PNG as I; a TIFF may hold more than 16 bits there, which no format here keeps.
        values = np.array(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its pixels run from {values.min()} to {values.max()}, more than 16 bits")
        return Image.fromarray(values.astype(np.uint16))
    if mode == "1":
        return image.convert("L")
    if mode in ("La", "PA"):
        return image.convert("LA" if mode == "La" else "RGBA")
    return image.convert("RGBA" if mode == "RGBa" else "RGB")


Sampler = Callable[..., Tensor]


def crop_photograph(
    photo: Photograph, crop: Sampler, *, fill: tuple[float, ...] | None, interpolates: bool
) -> Photograph:
    """A crop of the photograph, in its own mode, not yet rounded.

    `crop(images, fill=...)` does the sampling. Colours with alpha are averaged by how opaque they are: premultiplied
    before and divided again after, or a transparent pixel's colour, which nobody sees, would bleed into its neighbours.
    `nearest` averages nothing and keeps the colours as they are. A fill of one number is an opaque grey.
    """
    channels = len(photo.pixels)
    if fill is None:
        fill = (0.0,) * channels
    elif len(fill) == 1:
        fill = (*fill * (channels - 1), 255.0) if photo.has_alpha else fill * channels
    if len(fill) != channels:
        raise PhotographError(f"has {channels} channels ({photo.mode}), --fill has {len(fill)} numbers")

    pixels = photo.pixels
    if not (photo.has_alpha and interpolates):
        return Photograph(crop(pixels, fill=fill), photo.mode, photo.icc_profile)

    pixels = pixels.to(torch.float32)
    colour, alpha = pixels[:-1], pixels[-1:]
    opacity = fill[-1] / 255
    fill = (*(value * opacity for value in fill[:-1]), fill[-1])
    result = crop(torch.cat([colour * (alpha / 255), alpha]), fill=fill)
    colour, alpha = result[:-1], result[-1:]
    # Where less than half a level is left the pixel is written as transparent, and its colour is noise.
    visible = alpha > 0.5
    colour = torch.where(visible, colour * (255 / torch.where(visible, alpha, 1)), 0)
    return Photograph(torch.cat([colour, alpha]), photo.mode, photo.icc_profile)


def to_image(photo: Photograph) -> Image.Image:
    """The picture that is written: rounded half to even and clamped to the range of its mode; F is left as it is."""
    pixels = photo.pixels
    if photo.mode == "F":
        return Image.fromarray(pixels[0].to(torch.float32).numpy())
    top, dtype = (0xFFFF, np.uint16) if photo.mode == "I;16" else (0xFF, np.uint8)
    if pixels.is_floating_point():
        pixels = pixels.round().clamp(0, top)
    values = pixels.permute(1, 2, 0).contiguous().numpy().astype(dtype)
    return Image.fromarray(values[..., 0] if len(pixels) == 1 else values)


def check_holds(format_: FileFormat, suffix: str, photo: Photograph) -> None:
    """Raise where writing would lose channels or depth."""
    if photo.mode not in format_.modes:
        what = {"LA": "transparency", "RGBA": "transparency", "I;16": "16 bits", "F": "float pixels"}.get(photo.mode)
        able = [name for name, other in writable_formats().items() if photo.mode in other.modes]
        raise PhotographError(f"has {what or photo.mode}, which {suffix} cannot hold; {', '.join(able)} can")
