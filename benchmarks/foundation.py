"""Measures what the documentation says of accuracy, memory, wild boxes and the direction of box gradients.

    python benchmarks/foundation.py [accuracy] [memory] [wild] [direction]      (all where none is named)

Prints tables and writes benchmarks/results/foundation.json. Times are ratios within one process; nothing is a test.
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

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

import diffcrop

RESULTS = Path(__file__).parent / "results" / "foundation.json"
PHOTOS = Path(diffcrop.__file__).parent / "cli" / "photos"


def recipe(image: Tensor, boxes: Tensor, size: tuple[int, int], padding_mode: str = "zeros") -> Tensor:
    """What everybody pastes: Theta from the corners in pixels, `affine_grid`, `grid_sample`."""
    height, width = image.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    theta = diffcrop.boxes_to_theta(boxes / scale * 2 - 1, coords="normalized").to(image.dtype)
    grid = affine_grid(theta, [len(boxes), image.shape[-3], *size], align_corners=False)
    batch = image.expand(len(boxes), -1, -1, -1)
    return grid_sample(batch, grid, padding_mode=padding_mode, align_corners=False)


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
    want = recipe(image.double(), boxes, (224, 224))
    rows["recipe bilinear"] = (recipe(image, boxes.float(), (224, 224)).double() - want).abs().max().item()
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


def direction() -> dict[str, object]:
    """Share of displaced starts at which the negative gradient of the squared difference points toward the truth."""
    generator = torch.Generator().manual_seed(1)
    names = ("astronaut", "chelsea", "coffee", "rocket")
    photos = [torch.from_numpy(np.array(Image.open(PHOTOS / f"{n}.jpg"))).permute(2, 0, 1) / 255 for n in names]
    count, rows = 60, {}
    methods = {
        "recipe": lambda i, b, n: recipe(i, b, (n, n), "border"),
        "diffcrop": lambda i, b, n: diffcrop.crop(i, b, n),
    }
    for reduction in (1, 2, 4, 8, 16):
        for name, method in methods.items():
            shares = []
            for displacement in (0.1, 0.25, 0.5):
                hits = 0
                for k in range(count):
                    image = photos[k % len(photos)]
                    side = 96 + 64 * torch.rand(2, generator=generator)
                    room = torch.tensor([image.shape[2], image.shape[1]]) - side
                    corner = torch.rand(2, generator=generator) * room
                    truth = torch.cat([corner, corner + side])[None]
                    away = torch.randn(1, 4, generator=generator)
                    away = away / away.norm() * displacement * side.mean() * math.sqrt(2)
                    box = (truth + away).requires_grad_()
                    n = round(128 / reduction)
                    with torch.no_grad():
                        target = method(image, truth, n)
                    (grad,) = torch.autograd.grad((method(image, box, n) - target).pow(2).mean(), box)
                    hits += int((-grad * (truth - box)).sum() > 0)
                shares.append(round(100 * hits / count))
            rows[f"{name} {reduction}"] = shares
            print(f"  reduction {reduction:2d}  {name:9s}" + " / ".join(f"{share:3d}" for share in shares) + " %")
    return rows


def main() -> None:
    wanted = sys.argv[1:] or ["accuracy", "memory", "wild", "direction"]
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
        results[name] = {"accuracy": accuracy, "memory": memory, "wild": wild, "direction": direction}[name]()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
