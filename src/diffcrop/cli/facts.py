"""What `diffcrop info` says, without what the rest of the command line needs."""

from __future__ import annotations

import json
import platform

import torch

import diffcrop


def gather() -> dict[str, object]:
    """The facts, fit for JSON. A reason is None where the implementation is available."""
    return {
        "diffcrop": diffcrop.__version__,
        "torch": str(torch.__version__),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "simd_level": diffcrop.simd_level(),
        "torch_threads": torch.get_num_threads(),
        "implementations": {
            name: {"available": reason is None, "reason": reason} for name, reason in diffcrop.implementations().items()
        },
        "kernels": {name: list(there) for name, there in diffcrop.kernels().items()},
    }


def tables() -> list[list[tuple[str, str]]]:
    """The facts for a person, as rows of two tables: what is installed, and the kernels of each function."""
    facts = gather()
    rows = [(name, str(facts[name])) for name in ("diffcrop", "torch", "python", "platform")]
    rows.append(("SIMD level", str(facts["simd_level"]) if facts["simd_level"] is not None else "none"))
    rows.append(("torch threads", str(facts["torch_threads"])))
    rows.append(("implementations", ""))
    for name, reason in diffcrop.implementations().items():
        rows.append((f"  {name}", "available" if reason is None else f"not available: {reason}"))
    kernels = [("kernels", "elsewhere the reference serves")]
    kernels += [(f"  {name}", ", ".join(there)) for name, there in diffcrop.kernels().items()]
    return [rows, kernels]


def show(as_json: bool) -> None:
    """Print them without styles."""
    if as_json:
        print(json.dumps(gather(), indent=2))
        return
    for rows in tables():
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows))
