"""What this installation can do."""

from __future__ import annotations

from diffcrop import _ops


def implementations() -> dict[str, str | None]:
    """The implementations by name, each with None if it is there or the reason why it is not.

    >>> import diffcrop
    >>> diffcrop.implementations()["reference"] is None
    True
    """
    return _ops.implementations()


# Where it is not named here, the reference serves.
_KERNELS = {
    "crop of images": ("cpu", "triton"),
    "crop of signals and volumes": ("cpu",),
    "normal_equations of images": ("cpu",),
    "roi_align": ("cpu",),
    "warp, crop_rotated, crop_quad": ("cpu",),
    "paste of images": ("cpu",),
}


def kernels() -> dict[str, tuple[str, ...]]:
    """For each kind of operation the implementations that have kernels for it; elsewhere the reference serves.

    >>> import diffcrop
    >>> diffcrop.kernels()["roi_align"]
    ('cpu',)
    """
    return dict(_KERNELS)


def simd_level() -> str | None:
    """The instructions that the CPU kernels chose on this processor: ``"avx512"``, ``"avx2"`` or ``"default"``.

    None without the compiled library. The environment variable ``DIFFCROP_SIMD`` asks for one of the last two where the
    processor has more; it is read once, when it is first needed.
    """
    return _ops.simd_level()
