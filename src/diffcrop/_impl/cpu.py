"""Finds and loads the compiled library of CPU kernels, and says why it is absent when it is.

The library registers its kernels with PyTorch when it is opened; nothing else here knows what is in it. Whatever goes
wrong is kept as a text for :func:`reason` and never raised, because the reference can always serve.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import torch
from torch.torch_version import TorchVersion

DISABLE = "DIFFCROP_DISABLE_CPU"
OLDEST_TORCH = "2.10"

# A fragment, because the real ops are defined elsewhere in the same namespace.
_fragment = torch.library.Library("diffcrop", "FRAGMENT")
_fragment.define("simd_level() -> str")

# Plain variables and not functools.cache, because torch.compile looks through that, with a warning, into the loading.
_loaded = False
_reason: str | None = None


def load() -> None:
    """Load the library, once; call it where nothing is being compiled or traced, and it costs nothing later."""
    global _loaded, _reason
    if not _loaded:
        _reason = _open()
        _loaded = True


def available() -> bool:
    """Whether the compiled kernels can be called."""
    return reason() is None


def reason() -> str | None:
    """Why the compiled kernels cannot be called, or None if they can."""
    if not _loaded:
        load()
    return _reason


def build_info() -> dict[str, str | None]:
    """What the build recorded: `compiler`, the `torch` built against, and the `reason` if no library was built."""
    try:
        recorded = importlib.import_module("diffcrop._build_info")
    except ImportError:
        return {
            "compiler": None,
            "torch": None,
            "reason": "diffcrop is used from a source tree that was never installed (`pip install -e .` builds it)",
        }
    return {"compiler": recorded.COMPILER, "torch": recorded.TORCH, "reason": recorded.REASON}


def simd_level() -> str | None:
    """The instruction set the kernels chose on this processor: avx512, avx2 or default. None without the library."""
    return torch.ops.diffcrop.simd_level() if available() else None


def library_path() -> Path | None:
    """Where the library lies, or None if there is none."""
    # Python's own search, because in an editable install the library lies far from this file.
    try:
        spec = importlib.util.find_spec("diffcrop._C")
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    # A Python whose extension modules end otherwise (as some do that are not CPython) does not see a plain _C.so.
    for folder in getattr(sys.modules.get("diffcrop"), "__path__", []):
        for path in sorted(Path(folder).glob("_C.*")):
            if path.suffix in (".so", ".dylib", ".pyd", ".dll"):
                return path
    return None


def _open() -> str | None:
    """Load the library and return None, or return the likely cause why it cannot be loaded."""
    if os.environ.get(DISABLE, "") not in ("", "0"):
        return f"the environment variable {DISABLE} is set"
    path = library_path()
    if path is None:
        return build_info()["reason"] or "it was built, but its file diffcrop/_C.so is missing; reinstall diffcrop"
    if not path.is_file():
        return f"its file {path} is missing; reinstall diffcrop"
    try:
        torch.ops.load_library(path)
    # Opening runs foreign code (static initialisers, torch's registration), which may raise anything.
    except Exception as error:
        return f"{path} could not be loaded ({error}). {_likely_causes()}"
    return None


def _likely_causes() -> str:
    release = TorchVersion(torch.__version__)
    # TorchVersion compares with a string as versions do, not letter by letter.
    if release < OLDEST_TORCH:
        return f"It needs torch {OLDEST_TORCH} or newer, this is {release}"
    return (
        "Likely causes, in this order: torch was changed or damaged since diffcrop was installed (built against"
        f" {build_info()['torch']}, this is {release}); the C++ run-time library is older than the compiler that built"
        " diffcrop; it was built for another processor. Reinstalling diffcrop from source settles each of them"
    )
