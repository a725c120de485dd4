"""What is measured, as data: shapes, boxes, filter, dtype, layout, passes, peers; and the table of what must hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

# What is asked for: values alone, or values and the gradients by the boxes, by the images, or by both.
PASSES = ("forward", "boxes", "images", "both")
OURS = "diffcrop"
# Stands where a peer would: the target is a share of the copy bandwidth, not a ratio of times.
COPY = "copy bandwidth"


@dataclass(frozen=True)
class Target:
    """``least`` times the speed of a peer, in one pass, at one number of threads."""

    pass_: str
    against: str
    least: float
    # Where the peer is slower than us by nature, such as one without a box gradient: its pass, if not the same.
    against_pass: str | None = None
    threads: int = 2
    # (ms, least): where the peer itself takes less than ms, this holds instead.
    below: tuple[float, float] | None = None


# Numbers of a box, by its shape.
NUMBERS = {"upright": 4, "roi": 4, "rotated": 5, "quad": 8, "paste": 4}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on tensors of one shape. Sides of boxes are a share of the image, or pixels where given."""

    name: str
    about: str
    images: tuple[int, ...]  # (B, C, *spatial): one number for signals, two for images, three for volumes
    size: tuple[int, ...]
    boxes: int = 1  # per image
    share: tuple[float, float] = (0.5, 1.0)
    pixels: tuple[float, float] | None = None
    whole: bool = False  # corners on whole pixels, for everybody
    mode: str = "bilinear"
    antialias: bool = False
    padding_mode: str = "zeros"
    dtype: str = "float32"
    channels_last: bool = False
    # How a box lies: "upright" (or "roi": for RoIAlign, "paste": where patches are pasted), "rotated" (cx, cy, w, h,
    # degrees) or "quad" (four corners); turned by up to so much.
    shape: str = "upright"
    degrees: tuple[float, float] = (0.0, 0.0)
    passes: tuple[str, ...] = PASSES
    peers: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    # Growth curves: which, and where on it.
    series: str | None = None
    at: float = 0.0

    @property
    def axes(self) -> int:
        return len(self.size)

    def is_whole(self) -> bool:
        """Whether every box is the whole image."""
        return self.whole and self.share == (1.0, 1.0) and self.pixels is None

    def rivals(self) -> tuple[str, ...]:
        """The peers that targets name."""
        return tuple(dict.fromkeys(t.against for t in self.targets if t.against != COPY))


def against(peer: str, forward: float, boxes: float, both: float) -> tuple[Target, ...]:
    """One row of the table."""
    return Target("forward", peer, forward), Target("boxes", peer, boxes), Target("both", peer, both)


SAMPLED = ("recipe", "compiled", "kornia", "opencv linear", "opencv remap", "jax")
HALF_COPY = Target("forward", COPY, 0.5)

A = Case(
    name="A",
    about="a batch of small photographs",
    images=(16, 3, 224, 224),
    size=(112, 112),
    peers=SAMPLED,
    targets=(*against("recipe", 10, 6, 6), HALF_COPY),
)
B = Case(
    name="B",
    about="one large photograph",
    images=(1, 3, 2048, 2048),
    size=(224, 224),
    peers=SAMPLED,
    targets=(
        Target("forward", "recipe", 10, below=(1.0, 6.0)),
        Target("boxes", "recipe", 5),
        Target("both", "recipe", 2.5),
    ),
)
C = Case(
    name="C",
    about="feature maps of 256 channels",
    images=(8, 256, 56, 56),
    size=(14, 14),
    peers=SAMPLED,
    targets=against("recipe", 6, 6, 7),
)
D = Case(
    name="D",
    about="a batch of photographs",
    images=(32, 3, 512, 512),
    size=(224, 224),
    peers=SAMPLED,
    targets=(*against("recipe", 8, 6, 4), HALF_COPY),
)
E = Case(
    name="E",
    about="one tiny picture: latency",
    images=(1, 3, 64, 64),
    size=(32, 32),
    peers=SAMPLED,
    targets=against("recipe", 5, 2.5, 2.5),
)
F = Case(
    name="F",
    about="64 boxes of one photograph",
    images=(1, 3, 1024, 1024),
    size=(32, 32),
    boxes=64,
    share=(0.05, 0.25),
    peers=("packed", *SAMPLED),
    targets=against("packed", 6, 5, 3),
)


def antialiased(case: Case, mode: str, least: float) -> Case:
    """G: against `interpolate` on slices, which has an image gradient only; ours includes the box gradient."""
    return replace(
        case,
        name=f"G-{case.name}-{mode}",
        about=f"{case.name} antialiased, {mode}",
        mode=mode,
        antialias=True,
        padding_mode="renormalize",
        peers=("slices", "pillow", "jax"),
        targets=(Target("forward", "slices", least), Target("both", "slices", 2, against_pass="images")),
    )


def single_threaded(case: Case, name: str, mode: str, peer: str, least: float, others: tuple[str, ...] = ()) -> Case:
    """H: against a library without gradients, one thread each."""
    return replace(
        case,
        name=f"H-{name}-{mode}",
        about=f"{case.about}, antialiased, {mode}",
        mode=mode,
        antialias=True,
        padding_mode="renormalize",
        peers=(peer, *others),
        targets=(Target("forward", peer, least, threads=1), HALF_COPY, replace(HALF_COPY, threads=1)),
    )


def variant(case: Case, name: str, least: float, passes: tuple[str, ...] = PASSES, **changes: object) -> Case:
    """I: against the same case of ours, float32 and contiguous."""
    return replace(
        case,
        name=f"I-{case.name}-{name}",
        about=f"{case.name} in {name}",
        peers=("plain",),
        targets=(Target("forward", "plain", least),),
        passes=passes,
        **changes,
    )


LARGE = replace(B, about="one very large photograph", images=(1, 3, 4096, 4096), size=(512, 512))
NO_SLOWER = 1 / 1.2

TABLE = (
    *(A, B, C, D, E, F),
    *(antialiased(case, mode, least) for case in (A, B, C, D) for mode, least in (("bilinear", 3), ("bicubic", 4))),
    single_threaded(D, "D", "bilinear", "pillow", 2, ("slices",)),
    single_threaded(D, "D", "area", "opencv area", 1),
    single_threaded(LARGE, "4096", "bilinear", "pillow", 2, ("slices",)),
    single_threaded(LARGE, "4096", "area", "opencv area", 1),
    variant(A, "channels_last", NO_SLOWER, channels_last=True),
    variant(C, "channels_last", NO_SLOWER, channels_last=True),
    variant(A, "uint8", 1.0, ("forward", "boxes"), dtype="uint8"),
    variant(A, "bfloat16", NO_SLOWER, dtype="bfloat16"),
)
