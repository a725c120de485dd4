"""The cases of pastes: ``images`` are canvases, ``size`` is that of a patch, ``boxes`` are those of a canvas."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case

_SPRITES = Case(
    name="P-sprites",
    about="five sprites on each of 64 small canvases",
    images=(64, 1, 64, 64),
    size=(20, 20),
    boxes=5,
    share=(20 / 64, 28 / 64),
    shape="paste",
    peers=("paste recipe", "paste kornia"),
)
_MANY = replace(
    _SPRITES,
    name="P-many",
    about="32 patches on one larger canvas",
    images=(1, 3, 512, 512),
    size=(32, 32),
    boxes=32,
    share=(0.05, 0.1),
)
PASTES = (
    _SPRITES,
    replace(
        _SPRITES,
        name="P-pictures",
        about="three small pictures on each of 64",
        images=(64, 3, 128, 128),
        size=(32, 32),
        boxes=3,
        share=(24 / 128, 48 / 128),
    ),
    _MANY,
    # Without the recipe, which takes 16 times the time and memory of P-many.
    replace(
        _MANY,
        name="P-wide",
        about="as many patches of that size on one of 16 times the area",
        images=(1, 3, 2048, 2048),
        share=(0.0125, 0.025),
        peers=(),
    ),
    *(
        replace(case, name=f"{case.name}-antialiased", about=f"{case.about}, antialiased", antialias=True, peers=())
        for case in (_SPRITES, _MANY)
    ),
)
