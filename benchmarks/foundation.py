"""Measures what the documentation says of accuracy, memory and wild boxes.

    python -m benchmarks.foundation [accuracy] [memory] [wild]      (all where none is named)

Prints tables and writes benchmarks/results/foundation.json. Times are ratios within one process; nothing is a test.
Where box gradients point is measured by `benchmarks.recovery`.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import diffcrop
from benchmarks.peers import sampling

RESULTS = Path(__file__).parent / "results" / "foundation.json"


def recipe(image: Tensor, boxes: Tensor) -> Tensor:
    """What everybody pastes, for boxes in pixels of a square image."""
    images = image.expand(len(boxes), -1, -1, -1)
    return sampling.recipe(images, boxes / image.shape[-1] * 2 - 1, (224, 224), "zeros")


def smooth_noise(side: int, channels: int = 1) -> Tensor:
    """Values in [0, 1] with structure at every scale down to the pixel."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, channels, side, side)
    for level in range(int(math.log2(side)) - 1):
        noise = torch.rand(1, channels, side >> level, side >> level, generator=generator)
        total += torch.nn.functional.interpolate(noise, side, mode="nearest")
    return (total - total.min()) / (total.max() - total.min())


def accuracy() -> dict[str, object]:
    """Float32 against float64 on 4096 x 4096, in parts of the value range; the recipe in the same terms."""
    image = smooth_noise(4096)
    boxes = torch.tensor(
        [[100.3, 200.7, 3900.1, 3800.9], [3000.13, 2900.77, 3100.4, 3001.3], [4000.2, 10.1, 4095.9, 90.5]],
        dtype=torch.float64,
    )
    boxes = boxes.to(torch.float32).to(torch.float64)  # both see the same box
    rows = {}
    for mode in ("bilinear", "bicubic", "lanczos3", "area"):
        want = diffcrop.crop(image.double(), boxes[None], 224, mode=mode, impl="reference")
        got = diffcrop.crop(image, boxes[None].float(), 224, mode=mode)
        rows[f"diffcrop {mode}"] = (got.double() - want).abs().max().item()
    want = recipe(image.double(), boxes)
    rows["recipe bilinear"] = (recipe(image, boxes.float()).double() - want).abs().max().item()
    for name, error in rows.items():
        print(f"  {name:20s} {error:.2e} of the value range")
    return rows


_MEMORY = """
import resource, sys, torch, diffcrop
mib = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
order, impl = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(2)
def work(image, boxes, size):
    image, boxes = image.requires_grad_(), boxes.requires_grad_()
    out = diffcrop.crop(image, boxes, size, impl=impl)
    if order == 1:
        out.sum().backward()
    else:
        grads = torch.autograd.grad(out.sum(), (image, boxes), create_graph=True)
        sum(g.pow(2).sum() for g in grads).backward()
    return out
work(torch.rand(3, 16, 16), torch.rand(2, 4) * 16, 4)  # libraries and thread pools come first
image = torch.rand(3, 1024, 1024)
boxes = torch.rand(64, 4) * 300
boxes[:, 2:] += 600
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = mib()
out = work(image, boxes, 224)
print(peak() - before, out.numel() * 4 / 2**20, image.numel() * 4 / 2**20)
"""


def memory() -> dict[str, object]:
    """Peak of 64 boxes of 3 x 1024 x 1024 at 224 x 224 over what was there before: outputs, gradients and the rest."""
    rows = {}
    for order in (1, 2):
        for impl in ("cpu", "reference"):
            answer = subprocess.run(
                [sys.executable, "-c", _MEMORY, str(order), impl], capture_output=True, text=True, check=True
            ).stdout.split()
            peak, output, image = map(float, answer)
            # First order: the crops, their cotangent (an expanded scalar takes nothing) and the one image gradient.
            needed = output + image if order == 1 else 3 * output + 3 * image
            rows[f"order {order} {impl}"] = {"peak_mib": peak, "needed_mib": needed, "rest_mib": peak - needed}
            print(f"  order {order} {impl:10s} peak {peak:4.0f} MiB: tensors {needed:4.0f}, rest {peak - needed:4.0f}")
    return rows


def wild() -> dict[str, object]:
    """Forward and both gradients at reductions up to 1e12, over the time of a crop of the whole image."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, 1024, 1024)
    reductions = (1024 / 224, 1e2, 1e3, 1e6, 1e12)

    def once(reduction: float, mode: str, padding_mode: str) -> float:
        half = 112 * reduction
        boxes = torch.tensor([[512 - half, 512 - half, 512 + half, 512 + half]], dtype=torch.float64)
        source, boxes = image.detach().requires_grad_(), boxes.requires_grad_()
        start = time.perf_counter()
        result = diffcrop.crop(source, boxes, 224, mode=mode, padding_mode=padding_mode)
        result.backward(result)
        return time.perf_counter() - start

    for reduction in reductions * 3:  # the first calls also pay for the memory that later ones find
        once(reduction, "bilinear", "border")
    rows = {}
    for mode in ("bilinear", "bicubic", "lanczos3", "area", "gaussian"):
        for padding_mode in ("border", "zeros", "reflection", "circular", "renormalize"):
            times = [[once(r, mode, padding_mode) for r in reductions] for _ in range(7)]
            ordinary, *others = (statistics.median(column) for column in zip(*times, strict=True))
            rows[f"{mode} {padding_mode}"] = [other / ordinary for other in others]
            print(f"  {mode:9s} {padding_mode:12s}" + "".join(f"{other / ordinary:8.1f}x" for other in others))
    return rows


def main() -> None:
    wanted = sys.argv[1:] or ["accuracy", "memory", "wild"]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    results["machine"] = {
        "processor": processor,
        "simd_level": diffcrop.simd_level(),
        "torch": torch.__version__,
        "diffcrop": diffcrop.__version__,
        "python": platform.python_version(),
    }
    for name in wanted:
        print(name)
        results[name] = {"accuracy": accuracy, "memory": memory, "wild": wild}[name]()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
