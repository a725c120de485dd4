"""The cases of crops that do not lie upright."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case, Target

PEERS = ("warp recipe", "warp kornia", "warp opencv")


def _targets(*peers: str) -> tuple[Target, ...]:
    return tuple(Target(pass_, peer, 3) for peer in peers for pass_ in ("forward", "both"))


_TURNED = Case(
    name="W-turned",
    about="photographs turned by 30 degrees",
    images=(8, 3, 512, 512),
    size=(224, 224),
    shape="rotated",
    degrees=(30.0, 30.0),
    share=(0.4, 0.7),
    peers=PEERS,
    targets=_targets("warp recipe", "warp kornia"),
)
_MANY = replace(
    _TURNED,
    name="W-many",
    about="64 rotated boxes of one photograph",
    images=(1, 3, 1024, 1024),
    size=(64, 64),
    boxes=64,
    degrees=(-180.0, 180.0),
    share=(0.05, 0.25),
)
_QUADS = replace(_TURNED, name="W-quads", about="quadrilaterals in photographs", shape="quad", degrees=(-30.0, 30.0))
_NO_PEERS = {"antialias": True, "peers": (), "targets": ()}

WARPS = (
    _TURNED,
    _MANY,
    _QUADS,
    replace(
        _TURNED,
        name="W-turned-uint8",
        about="the same of bytes",
        dtype="uint8",
        passes=("forward", "boxes"),
        peers=("warp recipe", "warp opencv"),
        targets=(Target("forward", "warp recipe", 3), Target("boxes", "warp recipe", 3)),
    ),
    replace(
        _MANY,
        name="W-features",
        about="64 rotated boxes of feature maps",
        images=(1, 256, 64, 64),
        size=(7, 7),
        share=(0.1, 0.5),
        peers=("warp recipe", "warp kornia"),
    ),
    *(
        replace(case, name=f"{case.name}-antialiased", about=f"{case.about}, antialiased", **_NO_PEERS)
        for case in (_TURNED, _MANY, _QUADS)
    ),
    replace(
        _TURNED,
        name="W-reduced-antialiased",
        about="a large photograph turned and reduced by 8",
        images=(1, 3, 2048, 2048),
        size=(128, 128),
        share=(0.5, 0.5),
        **_NO_PEERS,
    ),
)
