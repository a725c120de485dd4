"""What the figures depend on: the machine, the versions, the commit, and how fast memory can be copied."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import diffcrop

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("torch", "numpy", "pillow", "opencv-python-headless", "kornia", "jax", "jaxlib"),
    *("scikit-image", "scikit-learn"),  # for their photographs
)
_LEAST_BUFFER = 256 * 2**20


def facts() -> dict[str, Any]:
    """Of the machine; nothing that names it or where things lie on it."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches(),
        "memory_gib": round(_memory() / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "transparent_hugepages": _chosen(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "simd_level": diffcrop.simd_level(),
    }


def versions() -> dict[str, str | None]:
    """None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "diffcrop": diffcrop.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> dict[str, Any]:
    """Which source was measured, and whether it differs from what that commit holds."""
    sources = ["src", "csrc", "CMakeLists.txt", "benchmarks", ":!benchmarks/results", ":!benchmarks/NOTES.md"]
    changed = git("status", "--porcelain", "--", *sources)
    revision = git("rev-parse", "HEAD")
    return {"commit": revision, "dirty": bool(changed) if changed is not None else None}


def git(*words: str) -> str | None:
    """The answer, or None where there is no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def copy_bandwidth(repeats: int = 7, bytes_: int | None = None) -> dict[str, Any]:
    """Of `Tensor.copy_` between two buffers far larger than the last cache, on the threads that are set.

    Bytes count twice, read and written. What the processor fetches before it writes does not count, as it does not in
    the figures that are compared with this one.
    """
    largest = max((cache["bytes"] for cache in caches()), default=0)
    size = bytes_ or max(_LEAST_BUFFER, 8 * largest)
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        samples.append(2 * size / (time.perf_counter() - start))
    return {
        "how": "Tensor.copy_ between two float32 buffers, bytes read and bytes written",
        "buffer_mib": size // 2**20,
        "bytes_per_s": samples,
    }


def caches() -> list[dict[str, Any]]:
    """Of the first core, each with how many bytes it holds and how many cores share it."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size, kind, level = (_read(folder / name) for name in ("size", "type", "level"))
        if size is None or kind == "Instruction" or not size.endswith("K"):
            continue
        shared = _count(_read(folder / "shared_cpu_list") or "0")
        found.append({"name": f"L{level}", "bytes": int(size[:-1]) * 1024, "shared_by": shared})
    return found


def _count(cpus: str) -> int:
    """How many numbers a list such as 0-3,8 holds."""
    ends = [part.split("-") for part in cpus.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _processor() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _chosen(path: Path) -> str | None:
    """Of "always [madvise] never" the one in brackets."""
    text = _read(path)
    return None if text is None else text.partition("[")[2].partition("]")[0] or text


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
