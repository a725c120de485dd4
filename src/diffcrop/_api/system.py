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


def simd_level() -> str | None:
    """The instructions that the CPU kernels chose on this processor: ``"avx512"``, ``"avx2"`` or ``"default"``.

    None without the compiled library. The environment variable ``DIFFCROP_SIMD`` asks for one of the last two where the
    processor has more; it is read once, when it is first needed.
    """
    return _ops.simd_level()
