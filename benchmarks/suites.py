"""The cases beyond the table, growth curves, and which suite holds what."""

from __future__ import annotations

from dataclasses import replace

from .cases import SAMPLED, TABLE, A, Case, D, antialiased
from .pastes import PASTES
from .rois import ROIS
from .warps import WARPS

RESIZED = ("slices", "pillow", "jax")
MORE = (
    Case(
        name="enlarging",
        about="small pictures made larger",
        images=(8, 3, 64, 64),
        size=(224, 224),
        peers=SAMPLED,
    ),
    *(
        Case(
            name=f"reduction-{r}",
            about=f"antialiased, {r} pixels to one",
            images=(4, 3, 1024, 1024),
            size=(896 // r, 896 // r),
            pixels=(896.0, 914.0),
            antialias=True,
            padding_mode="renormalize",
            peers=RESIZED,
        )
        for r in (1, 4, 16)
    ),
    replace(
        antialiased(D, "lanczos3", 0),
        name="lanczos3",
        about="half of D with Lanczos' filter",
        images=(16, 3, 512, 512),
        peers=("pillow", "jax"),
        targets=(),
    ),
    replace(
        antialiased(D, "area", 0),
        name="area",
        about="half of D averaged",
        images=(16, 3, 512, 512),
        peers=("opencv area",),
        targets=(),
    ),
    replace(A, name="border", about="A with border padding", padding_mode="border", targets=()),
    replace(A, name="float64", about="A in float64", dtype="float64", peers=("recipe", "compiled"), targets=()),
    replace(A, name="float16", about="A in float16", dtype="float16", peers=("recipe",), targets=()),
    Case(
        name="many-boxes",
        about="512 boxes of one feature map",
        images=(1, 256, 56, 56),
        size=(7, 7),
        boxes=512,
        share=(0.1, 0.5),
        peers=("packed", "recipe", "compiled"),
    ),
    Case(
        name="one-to-one",
        about="as many outputs as pixels, between pixels",
        images=(8, 3, 512, 512),
        size=(224, 224),
        pixels=(224.0, 224.0),
        peers=SAMPLED,
    ),
    Case(
        name="whole-pixels",
        about="as many outputs as pixels, on the pixels: a copy",
        images=(8, 3, 512, 512),
        size=(224, 224),
        pixels=(224.0, 224.0),
        whole=True,
        peers=("slicing", "opencv linear"),
    ),
    replace(D, name="grey", about="grey photographs", images=(16, 1, 512, 512), targets=()),
    replace(A, name="small-images", about="512 tiny pictures", images=(512, 3, 32, 32), size=(16, 16), targets=()),
)

_VOLUMES = Case(
    name="volume",
    about="a volume, bilinear",
    images=(1, 1, 128, 128, 128),
    size=(64, 64, 64),
    share=(0.6, 0.9),
    peers=("recipe", "compiled"),
)
_WHOLE = replace(_VOLUMES, share=(1.0, 1.0), whole=True, padding_mode="border", peers=("interpolate",))
_SIGNALS = replace(_VOLUMES, name="signals", about="64 signals of 8 channels", images=(64, 8, 4096), size=(256,))
# Signals and volumes: what is reduced antialiased has no peer there but for averages of whole pixels.
OTHER_AXES = (
    _VOLUMES,
    replace(
        _VOLUMES,
        name="volume-boxes",
        about="16 boxes on each of two volumes of features",
        images=(2, 16, 64, 64, 64),
        size=(16, 16, 16),
        boxes=16,
        share=(0.2, 0.6),
        peers=("packed", "recipe"),
    ),
    replace(
        _VOLUMES,
        name="volume-enlarged",
        about="a small volume enlarged",
        images=(1, 4, 32, 32, 32),
        size=(96, 96, 96),
        peers=("recipe",),
    ),
    replace(_WHOLE, name="volume-whole", about="a whole volume halved, without antialiasing"),
    replace(_WHOLE, name="volume-means", about="a whole volume averaged", mode="area", antialias=True),
    _SIGNALS,
    replace(
        _SIGNALS,
        name="signals-whole",
        about="whole signals, without antialiasing",
        share=(1.0, 1.0),
        whole=True,
        padding_mode="border",
        peers=("interpolate",),
    ),
    replace(
        _SIGNALS,
        name="signals-means",
        about="whole signals averaged",
        share=(1.0, 1.0),
        whole=True,
        padding_mode="border",
        mode="area",
        antialias=True,
        peers=("interpolate",),
    ),
)

# At a point of a growth curve everything is fixed but one number.
_LINE = Case(
    name="", about="", images=(1, 3, 1024, 1024), size=(64, 64), peers=("recipe",), passes=("forward", "boxes", "both")
)


def _series(name: str, points: tuple[int, ...], **how: object) -> tuple[Case, ...]:
    """``how`` names fields, with a function of the point for each."""
    made = []
    for point in points:
        fields = {field: value(point) if callable(value) else value for field, value in how.items()}
        made.append(replace(_LINE, name=f"growth-{name.replace(' ', '-')}-{point}", series=name, at=point, **fields))
    return tuple(made)


GROWTH = (
    *_series(
        "boxes", (1, 4, 16, 64, 256), boxes=lambda k: k, size=(32, 32), share=(0.05, 0.25), peers=("packed", "recipe")
    ),
    *_series("image side", (256, 512, 1024, 2048, 4096), images=lambda n: (1, 3, n, n), pixels=(192.0, 256.0)),
    *_series("crop side", (16, 32, 64, 128, 256, 512), size=lambda n: (n, n)),
    *_series("channels", (1, 4, 16, 64, 256), images=lambda c: (1, c, 256, 256)),
    *_series(
        "reduction",
        (1, 2, 4, 8, 16, 32),
        images=(1, 3, 2112, 2112),
        pixels=lambda r: (64.0 * r, 65.0 * r),
        antialias=True,
        padding_mode="renormalize",
        passes=("forward", "images", "both"),
        peers=("slices",),
    ),
)

_SOME = {"A", "B", "D", "F", "G-B-bilinear", "many-boxes"}
SUITES = {
    "table": TABLE,
    "full": (*TABLE, *MORE),
    "warp": WARPS,
    "roi": ROIS,
    "paste": PASTES,
    "axes": OTHER_AXES,
    "growth": GROWTH,
    "memory": tuple(case for case in (*TABLE, *MORE) if case.name in _SOME),
}
CASES = {case.name: case for case in (*TABLE, *MORE, *WARPS, *ROIS, *PASTES, *OTHER_AXES, *GROWTH)}


def shrunk(case: Case) -> Case:
    """The same at a scale at which nothing takes time, to try the machinery on."""
    count, channels, *spatial = case.images
    n = case.size[0]
    least = min(n, 12)

    def scaled(pixels: float) -> float:
        return pixels * least / n

    sides = tuple(round(scaled(side)) for side in spatial)
    return replace(
        case,
        images=(min(count, 3), min(channels, 5), *sides),
        size=(least, *(round(scaled(side)) for side in case.size[1:])),
        boxes=min(case.boxes, 5),
        pixels=None if case.pixels is None else (scaled(case.pixels[0]), scaled(case.pixels[1])),
    )
