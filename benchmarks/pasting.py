"""Measures `paste` beside the recipe: time, how it grows with the canvas, memory.

    python -m benchmarks.pasting [threads]

Nothing is timed before values and gradients agree with the float64 reference. Both methods take turns in one process,
and of each the median counts. Prints tables and writes benchmarks/results/pasting.json; nothing is a test.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

RESULTS = Path(__file__).parent / "results" / "pasting.json"
# Canvases, patches of each, channels, side of a patch, side of a canvas, sides of boxes.
CASES = {
    "64 x 1 x 64 x 64, 5 patches of 20 x 20": (64, 5, 1, 20, 64, (20, 28)),
    "64 x 3 x 128 x 128, 3 patches of 32 x 32": (64, 3, 3, 32, 128, (24, 48)),
    "1 x 3 x 1024 x 1024, 64 patches of 64 x 64": (1, 64, 3, 64, 1024, (50, 100)),
}
PASSES = ("forward", "both")


def recipe(patches: Tensor, boxes: Tensor, canvas: Tensor) -> Tensor:
    """Each patch on a canvas of its own, and one of ones for its mask; then one over the other."""
    (count, _, channels, *_), (height, width) = patches.shape, canvas.shape[-2:]
    (x0, y0, x1, y1), zero = boxes.flatten(0, 1).unbind(-1), torch.zeros_like(boxes[..., 0]).flatten()
    wide, high = x1 - x0, y1 - y0
    rows = [width / wide, zero, (width - x0 - x1) / wide], [zero, height / high, (height - y0 - y1) / high]
    theta = torch.stack([torch.stack(row, -1) for row in rows], 1)
    layers = torch.cat([patches, torch.ones_like(patches[:, :, :1])], 2).flatten(0, 1)
    grid = affine_grid(theta, [*layers.shape[:2], height, width], align_corners=False)
    placed = grid_sample(layers, grid, align_corners=False).unflatten(0, (count, -1))
    for k in range(placed.shape[1]):
        canvas = (1 - placed[:, k, channels:]) * canvas + placed[:, k, :channels]
    return canvas


def ours(patches: Tensor, boxes: Tensor, canvas: Tensor) -> Tensor:
    """Without antialiasing, as the recipe has none."""
    return diffcrop.paste(patches, boxes, canvas=canvas, antialias=False)


def antialiased(patches: Tensor, boxes: Tensor, canvas: Tensor) -> Tensor:
    """As it comes."""
    return diffcrop.paste(patches, boxes, canvas=canvas)


METHODS = {"diffcrop": ours, "diffcrop, antialiased": antialiased, "recipe": recipe}


def problem(count, several, channels, patch, side, sides) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    lo = rand(count, several, 2) * (side - sides[0])
    boxes = torch.cat([lo, lo + sides[0] + (sides[1] - sides[0]) * rand(count, several, 2)], -1)
    return rand(count, several, channels, patch, patch), boxes, rand(count, channels, side, side)


def run(method: Callable, tensors: tuple[Tensor, ...], passed: str) -> list[Tensor]:
    """The values, and of "both" the gradients of their weighted sum by patches and boxes."""
    if passed == "forward":
        with torch.no_grad():
            return [method(*tensors)]
    patches, boxes = (t.clone().requires_grad_() for t in tensors[:2])
    value = method(patches, boxes, tensors[2])
    weight = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view(value.shape)
    return [value, *torch.autograd.grad(value, (patches, boxes), weight)]


def gate(tensors: tuple[Tensor, ...]) -> None:
    """Of the first canvas: the reference is slow."""
    first = tuple(t[:1] for t in tensors)
    exact = run(lambda p, b, c: diffcrop.paste(p, b, canvas=c, antialias=False, impl="reference"),
                tuple(t.double() for t in first), "both")  # fmt: skip
    for name in ("diffcrop", "recipe"):
        # The recipe's positions are float32: at 1024 pixels they are off by some 1e-4 of one.
        allowed = 1e-4 if name == "diffcrop" else 2e-2
        for found, true in zip(run(METHODS[name], first, "both"), exact, strict=True):
            error = float((found.double() - true).abs().max() / true.abs().max())
            if error > allowed:
                raise SystemExit(f"{name} is off by {error:.2g}: nothing is timed")


def times(methods: dict[str, Callable], tensors: tuple[Tensor, ...], passed: str, seconds: float) -> dict[str, float]:
    """Medians in milliseconds, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in methods}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, samples.values())) < 3:
        for name, method in methods.items():
            start = time.perf_counter()
            run(method, tensors, passed)
            samples[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in samples.items()}


def growth() -> dict[str, dict[str, float]]:
    """The same 64 boxes on canvases of growing width: paste less one copy of the canvas."""
    patches, boxes, _ = problem(1, 64, 3, 64, 1024, (50, 100))
    rows = {}
    for width in (1024, 2048, 4096):
        canvas = torch.rand(1, 3, 1024, width)
        both = {"paste": ours, "copy": lambda *tensors: tensors[2].clone()}
        found = times(both, (patches, boxes, canvas), "forward", 2)
        rows[str(width)] = {**found, "difference": found["paste"] - found["copy"]}
        print(f"  1024 x {width}: " + ", ".join(f"{name} {value:.2f} ms" for name, value in rows[str(width)].items()))
    return rows


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    results: dict[str, object] = {
        "torch": torch.__version__,
        "diffcrop": diffcrop.__version__,
        "simd_level": diffcrop.simd_level(),
        "threads": torch.get_num_threads(),
    }
    for name, numbers in CASES.items():
        tensors = problem(*numbers)
        gate(tensors)
        rows = {passed: times(METHODS, tensors, passed, 3) for passed in PASSES}
        results[name] = rows
        print(name)
        for passed, row in rows.items():
            ratio = row["recipe"] / row["diffcrop"]
            print(f"  {passed:8s}" + ", ".join(f"{m} {ms:.2f} ms" for m, ms in row.items()) + f": {ratio:.1f}x")
    results["growth"] = growth()
    results["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
