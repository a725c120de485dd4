"""The animation of the demonstration: both boxes on their way, and what each method sees. By Pillow alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from diffcrop.cli.outputs import write_whole
from diffcrop.cli.pictures import COLOURS, NAMES, START_COLOUR, TRUTH_COLOUR, pale
from diffcrop.cli.recovery import Settings, Story

_PHOTO_WIDTH = 380
_CROP_SIDE = 120
_MARGIN = 10
_LINE = 20
# Drawn so much larger and then reduced: Pillow's lines have no antialiasing of their own.
_OVERSAMPLING = 2
_FRAMES = 48
_COLOURS = 224
_FRAME_MS, _LAST_MS = 90, 2500


def frame_steps(steps: int) -> list[int]:
    """The steps that are shown: every one at first, then ever fewer, as the box settles."""
    shares = np.linspace(0, 1, _FRAMES) ** 1.8
    return sorted({int(step) for step in np.round(shares * steps)})


def write_animation(story: Story, settings: Settings, path: Path) -> None:
    """Write it as a GIF that repeats."""
    steps = frame_steps(settings.steps)
    crops = {method: story.crops(method, steps, settings.size) for method in story.boxes}
    frames = [_frame(story, settings, step, {m: crops[m][i] for m in crops}) for i, step in enumerate(steps)]
    palette = _palette(frames)
    images = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * (len(images) - 1) + [_LAST_MS]
    write_whole(
        path,
        lambda stream: images[0].save(
            stream, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
        ),
        force=True,
    )


def _palette(frames: list[Image.Image]) -> Image.Image:
    """One palette for all frames: without dithering, what does not move is the same in each of them.

    It leaves entries free, of which Pillow takes one for "as in the frame before"; with 256 colours the file is three
    times larger. The colours of the lines are in it exactly; a palette made from the photograph alone would bend them.
    """
    both_ends = Image.new("RGB", (frames[0].width, 2 * frames[0].height))
    both_ends.paste(frames[0], (0, 0))
    both_ends.paste(frames[-1], (0, frames[0].height))
    found = both_ends.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    exact = [ImageColor.getrgb(colour) for colour in ("white", "black", START_COLOUR, *COLOURS.values())]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found[: 3 * _COLOURS], *(value for colour in exact for value in colour)])
    return palette


def _frame(story: Story, settings: Settings, step: int, crops: dict[str, Tensor]) -> Image.Image:
    photo = story.scene.image
    scale = _PHOTO_WIDTH / photo.width
    photo_height = round(photo.height * scale)
    width = 2 * _PHOTO_WIDTH + 3 * _MARGIN
    top = _MARGIN + _LINE + 2
    below = top + photo_height + _MARGIN
    height = below + _LINE + _CROP_SIDE + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    small = pale(photo).resize((_PHOTO_WIDTH, photo_height), Image.Resampling.LANCZOS)
    for column, method in enumerate(story.boxes):
        left = _MARGIN + column * (_PHOTO_WIDTH + _MARGIN)
        panel = _draw_boxes(small, story, method, step, scale)
        canvas.paste(panel, (left, top))
        draw = ImageDraw.Draw(canvas)
        draw.text((left, _MARGIN), NAMES[method], fill=COLOURS[method], font=_font(15, bold=True))
        text = f"{float(story.errors[method][step]):.1f} px off"
        if step == settings.steps:
            text = f"{text}: {'recovered' if story.recovered[method] else 'lost'}"
        draw.text((left + _PHOTO_WIDTH, _MARGIN + 1), text, fill=COLOURS[method], font=_font(14), anchor="ra")
        _paste_crop(canvas, crops[method], (left, below), "it sees", COLOURS[method])
        _paste_crop(canvas, story.target, (left + _CROP_SIDE + _MARGIN, below), "target", "black")
        legend = left + 2 * (_CROP_SIDE + _MARGIN) + 4
        draw.text((legend, below + _LINE), f"step {step}", fill="black", font=_font(18, bold=True))
        _legend(draw, (legend, below + _LINE + 40), method)
    return canvas


def _draw_boxes(photo: Image.Image, story: Story, method: str, step: int, scale: float) -> Image.Image:
    factor = _OVERSAMPLING
    large = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    boxes = story.boxes[method] * (scale * factor)
    centres = [tuple(centre) for centre in ((boxes[: step + 1, :2] + boxes[: step + 1, 2:]) / 2).tolist()]
    _dashed(draw, boxes[0], START_COLOUR, 2 * factor, 3 * factor)
    if len(centres) > 1:
        draw.line(centres, fill="white", width=4 * factor, joint="curve")
        draw.line(centres, fill=COLOURS[method], width=2 * factor, joint="curve")
    _outline(draw, boxes[step], "white", 5 * factor)
    _outline(draw, boxes[step], COLOURS[method], 3 * factor)
    _dashed(draw, story.truth * (scale * factor), TRUTH_COLOUR, 2 * factor, 6 * factor)
    return large.resize(photo.size, Image.Resampling.BOX)


def _outline(draw: ImageDraw.ImageDraw, box: Tensor, colour: str, width: int) -> None:
    x0, y0, x1, y1 = box.tolist()
    draw.line([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0), (x1, y0)], fill=colour, width=width, joint="curve")


def _dashed(draw: ImageDraw.ImageDraw, box: Tensor, colour: str, width: int, dash: int) -> None:
    x0, y0, x1, y1 = box.tolist()
    for ax, ay, bx, by in ((x0, y0, x1, y0), (x1, y0, x1, y1), (x1, y1, x0, y1), (x0, y1, x0, y0)):
        length = max(abs(bx - ax), abs(by - ay), 1.0)
        at = 0.0
        while at < length:
            s, e = at / length, min(at + dash, length) / length
            draw.line([(ax + s * (bx - ax), ay + s * (by - ay)), (ax + e * (bx - ax), ay + e * (by - ay))],
                      fill=colour, width=width)  # fmt: skip
            at += 2 * dash


def _paste_crop(canvas: Image.Image, crop: Tensor, at: tuple[int, int], title: str, colour: str) -> None:
    pixels = crop.clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    large = Image.fromarray(pixels).resize((_CROP_SIDE, _CROP_SIDE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    draw.text(at, title, fill=colour, font=_font(13))
    x, y = at[0], at[1] + _LINE
    canvas.paste(large, (x, y))
    draw.rectangle((x, y, x + _CROP_SIDE - 1, y + _CROP_SIDE - 1), outline=colour, width=2)


def _legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], method: str) -> None:
    x, y = at
    for text, colour, dash in (("start", START_COLOUR, 3), ("truth", TRUTH_COLOUR, 6), ("box", COLOURS[method], 0)):
        for begin in range(0, 24, 2 * dash) if dash else [0]:
            draw.line([(x + begin, y), (x + (begin + dash if dash else 24), y)], fill=colour, width=2 if dash else 3)
        draw.text((x + 32, y), text, fill="black", font=_font(12), anchor="lm")
        y += 22


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along, so the pictures look the same everywhere.
    return ImageFont.truetype(findfont(f"DejaVu Sans:{'bold' if bold else 'regular'}"), size)
