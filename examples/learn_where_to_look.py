r"""Learn where to look from class labels alone: a network finds a digit in clutter because it has to read it.

    python examples/learn_where_to_look.py -o look-out/          (two minutes on two cores; --quick for a few seconds)

A scene of 192 x 192 holds one whole digit, cut-up pieces of others, and noise. The network sees the scene at 16 x 16,
where a digit is three to five pixels, and names a box. The box is cropped out of the full scene, again at 16 x 16,
and the crop is classified. The only loss is the cross entropy of the class: no box is ever told. So what moves the box
is the derivative of the crop by the box, and at the start, when the box is most of the scene, that crop is reduced nine
times.

Compared, with the same scenes, networks, number of steps and optimizer:

* no crop: the 16 x 16 view is classified, by a network with as many parameters as both parts of the others;
* recipe: crops by `affine_grid` and `grid_sample`;
* diffcrop: crops by `diffcrop.crop`;
* true box: crops by `diffcrop.crop` at the true box, the upper bound.

Both croppers were given the same twelve settings to choose from (`--tune`: the classifier's rate, the localiser's
share of it, the size of the box at the start), on seeds that are not among those reported; each runs with its own best.

What comes of it: with diffcrop the boxes shrink around the digits; with the recipe they stay where they start, and no
crop at all does better. It is a matter of the reduction: where a crop of the whole scene is reduced by one and a half
or less, the recipe is as good. docs/learn_where_to_look.md has the figures and the other conditions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, interpolate

import diffcrop

matplotlib.use("Agg")
from matplotlib import pyplot as plt

NAMES = {"no crop": "no crop", "recipe": "affine_grid + grid_sample", "diffcrop": "diffcrop", "true box": "true box"}
COLOURS = {"no crop": "#666666", "recipe": "#D55E00", "diffcrop": "#0072B2", "true box": "#000000"}
VIEW = 16
SMALLEST = 0.15  # of the scene's side: no box is smaller


@dataclass(frozen=True)
class Job:
    """One training run."""

    method: str
    seed: int
    scene: int = 192
    crop: int = 16
    noise: float = 0.1
    rate: float = 2e-3
    box_share: float = 0.3  # the localiser's rate in parts of `rate`
    start: float = 0.75  # the box's side before training, in parts of the scene's
    steps: int = 800
    batch: int = 64
    scenes: int = 4000
    tests: int = 1024


# What `--tune` tries with each method, and the best of it. Without boxes to learn only the rate matters.
GRID = {"rate": (2e-3, 4e-3), "box_share": (0.1, 0.3, 1.0), "start": (0.9, 0.75)}
TUNING_SEEDS, FINALISTS = (100, 101), 4
BEST = {
    "no crop": {"rate": 4e-3},
    "recipe": {"rate": 4e-3, "box_share": 0.3, "start": 0.75},
    "diffcrop": {"rate": 2e-3, "box_share": 0.3, "start": 0.75},
    "true box": {"rate": 2e-3},
}
CROPPERS = ("recipe", "diffcrop")


# What `--others` tries: a gentler rate, no noise, and smaller scenes or larger crops, which means smaller reductions.
OTHERS = ({"rate": 2e-3}, {"noise": 0.0}, {"scene": 96}, {"scene": 48}, {"scene": 48, "crop": 32})


# --- scenes -----------------------------------------------------------------------------------------------------------


def make_scenes(job: Job, count: int, *, test: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(count, 1, S, S) of uint8, the digits' classes, and their true boxes, which only the true-box method uses."""
    digits = load_digits()
    random = np.random.default_rng([job.seed, test])
    # The same digits are kept for testing whatever the seed.
    order = np.random.default_rng(0).permutation(len(digits.images))
    pool = order[1400:] if test else order[:1400]
    side = job.scene
    sides = np.linspace(side / 6, side * 7 / 24, 5).round().astype(int)
    shapes = torch.from_numpy(digits.images[:, None]).float() / 16
    enlarged = {s: (interpolate(shapes, int(s), mode="bicubic").clamp(0, 1) * 170).byte()[:, 0].numpy() for s in sides}
    noises = random.standard_normal((32, side, side), dtype=np.float32) * (255 * job.noise)

    scenes, boxes = np.zeros((count, side, side), np.uint8), np.zeros((count, 4), np.float32)
    classes = random.choice(pool, count)
    for scene, box, digit in zip(scenes, boxes, classes, strict=True):
        s = random.choice(sides)
        piece = int(0.4 * s)
        for other in random.choice(pool, 6):
            row, column = random.integers(0, s - piece + 1, 2)
            paste(scene, enlarged[s][other, row : row + piece, column : column + piece], random)
        x, y = paste(scene, enlarged[s][digit], random)
        box[:] = x, y, x + s, y + s
        noise = np.roll(noises[random.integers(len(noises))], random.integers(0, side, 2), (0, 1))
        scene[:] = np.clip(40 + scene + noise, 0, 255)
    return torch.from_numpy(scenes)[:, None], torch.from_numpy(digits.target[classes]), torch.from_numpy(boxes)


def paste(scene: np.ndarray, patch: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
    y, x = random.integers(0, len(scene) - len(patch) + 1, 2)
    under = scene[y : y + len(patch), x : x + len(patch)]
    np.maximum(under, patch, out=under)
    return x, y


# --- networks ---------------------------------------------------------------------------------------------------------


def features(width: int) -> nn.Sequential:
    """(B, 1, n, n) in 0..255 -> (B, 2 width, n/2, n/2)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class What(nn.Module):
    """A picture -> scores of ten classes, wherever in the picture the digit is (global maximum)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = features(width)
        self.head = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 10))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.features(pictures / 64 - 1).amax((2, 3)))


class Where(nn.Module):
    """A view -> boxes (B, 4) in unit coordinates: square, centred inside the scene, never vanishing.

    The centre is the mean place of an attention map, the side a sigmoid of what is seen there. The last layers start at
    zero, so that every box starts as the middle of the scene with the given side.
    """

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.features = features(width)
        self.attention, self.side = nn.Conv2d(2 * width, 1, 1), nn.Linear(2 * width, 1)
        for layer in (self.attention, self.side):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        share = (start - SMALLEST) / (1 - SMALLEST)
        nn.init.constant_(self.side.bias, math.log(share / (1 - share)))

    def forward(self, view: Tensor) -> Tensor:
        seen = self.features(view / 64 - 1)
        n = seen.shape[-1]
        attention = self.attention(seen).flatten(1).softmax(1).view(-1, n, n)
        places = (torch.arange(n) + 0.5) / n
        centre = torch.stack([attention.sum(1) @ places, attention.sum(2) @ places], 1)
        at_it = (seen * attention[:, None]).sum((2, 3))
        half = (SMALLEST + (1 - SMALLEST) * self.side(at_it).sigmoid()) / 2
        return torch.cat([centre - half, centre + half], 1)


def recipe(scenes: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What everybody pastes: four pixels for each output, whatever the reduction."""
    theta = diffcrop.boxes_to_theta(2 * boxes - 1, coords="normalized")
    grid = affine_grid(theta, [len(boxes), 1, size, size], align_corners=False)
    return grid_sample(scenes.float(), grid, padding_mode="border", align_corners=False)


def ours(scenes: Tensor, boxes: Tensor, size: int) -> Tensor:
    return diffcrop.crop(scenes, boxes, size, coords="unit")


class Network(nn.Module):
    """Scenes -> scores, and the boxes that it looked at."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.where = Where(16, job.start) if job.method in CROPPERS else None
        self.what = What(22 if job.method == "no crop" else 16)
        self.cropper = recipe if job.method == "recipe" else ours

    def forward(self, scenes: Tensor, true_boxes: Tensor) -> tuple[Tensor, Tensor]:
        # The same reduced view for every method: without aliasing.
        view = diffcrop.crop(scenes, torch.tensor([0.0, 0.0, 1.0, 1.0]), VIEW, coords="unit", mode="area")
        if self.job.method == "no crop":
            return self.what(view), torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(view), 4)
        boxes = true_boxes / self.job.scene if self.where is None else self.where(view)
        return self.what(self.cropper(scenes, boxes, self.job.crop)), boxes


# --- training ---------------------------------------------------------------------------------------------------------


def train(job: Job) -> dict:
    """Train and test one network; what came of it, as plain numbers."""
    torch.set_num_threads(1)  # tensors are small: two runs side by side are faster than one on two cores
    began = time.process_time()
    torch.manual_seed(job.seed)
    draw = torch.Generator().manual_seed(job.seed)
    scenes, classes, true_boxes = make_scenes(job, job.scenes, test=False)
    test = make_scenes(replace(job, seed=0), job.tests, test=True)
    network = Network(job)
    groups = [{"params": network.what.parameters(), "lr": job.rate}]
    if network.where is not None:
        groups.append({"params": network.where.parameters(), "lr": job.rate * job.box_share})
    optimizer = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=job.steps, pct_start=0.1
    )
    history = [measure(network, test)]
    for step in range(1, job.steps + 1):
        chosen = torch.randint(job.scenes, (job.batch,), generator=draw)
        scores, _ = network(scenes[chosen], true_boxes[chosen])
        loss = cross_entropy(scores, classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % (job.steps // 8) == 0:
            history.append({"step": step} | measure(network, test))
    with torch.no_grad():
        scores, boxes = network(test[0][:SHOWN], test[2][:SHOWN])
    return {
        "job": asdict(job),
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_seconds": round(time.process_time() - began, 1),
        "history": history,
        "shown": {"boxes": boxes.tolist(), "classes": scores.argmax(1).tolist()},
    }


@torch.no_grad()
def measure(network: Network, test: tuple[Tensor, Tensor, Tensor]) -> dict:
    """Accuracy; the mean side of the boxes in parts of the scene's; how much of the digit they hold, on average."""
    parts = [network(scenes, boxes) for scenes, boxes in zip(test[0].split(128), test[2].split(128), strict=True)]
    scores, boxes = (torch.cat(list(part)) for part in zip(*parts, strict=True))
    truth = test[2] / network.job.scene
    shared = (torch.minimum(boxes[:, 2:], truth[:, 2:]) - torch.maximum(boxes[:, :2], truth[:, :2])).clamp(min=0)
    found = {
        "accuracy": (scores.argmax(1) == test[1]).float().mean(),
        "side": (boxes[:, 2] - boxes[:, 0]).mean(),
        "held": (shared.prod(1) / (truth[:, 2:] - truth[:, :2]).prod(1)).mean(),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def run(jobs: list[Job], workers: int) -> list[dict]:
    """All jobs, `workers` at a time, and a line for each as it ends."""
    if workers == 1:
        return [said(train(job)) for job in jobs]
    # Threads that were started before a fork are lost in it, so the processes are new ones.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return [said(result) for result in pool.map(train, jobs)]


def tune(workers: int, **small: int) -> list[dict]:
    """Every setting on one seed, the best few of each method on another, too; they are ranked by the mean of both."""
    jobs = []
    for method in NAMES:
        grid = GRID if method in CROPPERS else {"rate": GRID["rate"]}
        settings = (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
        jobs += [Job(method, TUNING_SEEDS[0], **small, **setting) for setting in settings]
    first = sorted(run(jobs, workers), key=accuracy, reverse=True)
    best = [[r for r in first if r["job"]["method"] == method][:FINALISTS] for method in NAMES]
    again = [replace(Job(**r["job"]), seed=TUNING_SEEDS[1]) for finalists in best for r in finalists]
    return first + run(again, workers)


def accuracy(result: dict) -> float:
    return result["history"][-1]["accuracy"]


def said(result: dict) -> dict:
    job, last = result["job"], result["history"][-1]
    print(f"{job['method']:9s} seed {job['seed']:3d}  scene {job['scene']:3d} -> {job['crop']}  rate {job['rate']:g} x "
          f"{job['box_share']:g}  start {job['start']:g}:  accuracy {last['accuracy']:.3f}  side {last['side']:.2f}  "
          f"holds {last['held']:.2f}  {result['cpu_seconds']:.0f} s", flush=True)  # fmt: skip
    return result


# --- what came of it --------------------------------------------------------------------------------------------------


def spread(values: list[float], unit: float = 100) -> str:
    """Mean, and the least and the most of them."""
    mean = unit * sum(values) / len(values)
    return f"{mean:.0f} ({unit * min(values):.0f} to {unit * max(values):.0f})"


def table(runs: list[dict]) -> str:
    """The accuracies as Markdown."""
    lines = [
        "| method | parameters | accuracy, % | box side, % of the scene's | of the digit in the box, % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, name in NAMES.items():
        mine = [r for r in runs if r["job"]["method"] == method]
        ends = [r["history"][-1] for r in mine]
        if ends:
            boxes = [spread([end[key] for end in ends]) if method != "no crop" else "" for key in ("side", "held")]
            accuracy = spread([end["accuracy"] for end in ends])
            lines.append(f"| {name} | {mine[0]['parameters']} | {accuracy} | {boxes[0]} | {boxes[1]} |")
    return "\n".join(lines)


SHOWN = 7


def picture(runs: list[dict], path: Path) -> None:
    """Where they looked in the first test scenes, what they saw there, and how it came about."""
    # The seed on which the recipe did middling: neither its best nor its worst.
    by_recipe = sorted((r for r in runs if r["job"]["method"] == "recipe"), key=accuracy)
    seed = by_recipe[len(by_recipe) // 2]["job"]["seed"]
    pictured = {r["job"]["method"]: r for r in runs if r["job"]["seed"] == seed}
    job = Job(**pictured["diffcrop"]["job"])
    scenes, classes, true_boxes = (t[:SHOWN] for t in make_scenes(replace(job, seed=0), job.tests, test=True))
    figure = plt.figure(figsize=(11.5, 9.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 1.35))
    grid = upper.subplots(3, SHOWN, gridspec_kw={"height_ratios": (1.05, 1, 1)})
    for column, (scene, digit, truth) in enumerate(zip(scenes, classes.tolist(), true_boxes, strict=True)):
        axes = grid[0, column]
        axes.imshow(scene[0].numpy(), cmap="gray", vmin=0, vmax=255, extent=(0, job.scene, job.scene, 0))
        outline(axes, truth, "white", 1.2, linestyle=(0, (3, 2)))
        for row, method in enumerate(CROPPERS, 1):
            box = torch.tensor(pictured[method]["shown"]["boxes"][column])
            outline(axes, box * job.scene, COLOURS[method], 2.4)
            guess = pictured[method]["shown"]["classes"][column]
            cropper = recipe if method == "recipe" else ours
            seen = cropper(scene[None], box[None], job.crop)[0, 0]
            grid[row, column].imshow(seen.numpy(), cmap="gray", vmin=0, vmax=255)
            right = "right" if guess == digit else "wrong"
            grid[row, column].set_title(f"reads {guess}: {right}", fontsize=10, color=COLOURS[method])
        axes.set_xlim(0, job.scene)
        axes.set_ylim(job.scene, 0)
        axes.set_title(f"a {digit}", fontsize=10)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0, 0].set_ylabel("scene and boxes", fontsize=10)
    for row, method in enumerate(CROPPERS, 1):
        name = NAMES[method].replace(" + ", " +\n")
        grid[row, 0].set_ylabel(f"{name}\nsees", fontsize=10, color=COLOURS[method])
    upper.suptitle("Where to look, learned from class labels alone (dashed: the true box, which nobody was told)")
    left, right = lower.subplots(1, 2)
    for axes, key, title in ((left, "accuracy", "accuracy on test scenes, by step"),
                             (right, "side", "mean side of the boxes, in parts of the scene's, by step")):  # fmt: skip
        for method in NAMES:
            mine = [r["history"] for r in runs if r["job"]["method"] == method]
            if key == "side" and method == "no crop":
                continue
            steps = [entry.get("step", 0) for entry in mine[0]]
            values = np.array([[entry[key] for entry in history] for history in mine])
            style = "--" if method == "true box" else "-"
            axes.plot(steps, values.mean(0), style, color=COLOURS[method], linewidth=2, label=NAMES[method])
            axes.fill_between(steps, values.min(0), values.max(0), color=COLOURS[method], alpha=0.18, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lower.legend(*left.get_legend_handles_labels(), fontsize=10, frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def outline(axes: plt.Axes, box: Tensor, colour: str, width: float, **style: object) -> None:
    x0, y0, x1, y1 = box.tolist()
    patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width, **style)
    patch.set_path_effects([withStroke(linewidth=width + 1.5, foreground="black" if colour == "white" else "white")])
    axes.add_patch(patch)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn where to look from class labels alone.")
    parser.add_argument("-o", "--output", type=Path, default=Path("look-out"), help="folder for what is written")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="a few steps on few scenes, to see that it runs")
    parser.add_argument("--tune", action="store_true", help="only try the settings, with each cropper, on another seed")
    parser.add_argument("--others", action="store_true", help="only the croppers, at other sizes and without noise")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    small = {"steps": 8, "scenes": 100, "tests": 64} if options.quick else {}
    seeds = range(1 if options.quick else options.seeds)
    workers = 1 if options.quick else options.workers
    began = time.perf_counter()
    if options.tune:
        name, runs = "tuning", tune(workers, **small)
    elif options.others:
        jobs = [Job(m, s, **small, **(BEST[m] | other)) for other in OTHERS for m in CROPPERS for s in seeds]
        name, runs = "others", run(jobs, workers)
    else:
        jobs = [Job(method, seed, **small, **BEST[method]) for seed in seeds for method in NAMES]
        name, runs = "results", run(jobs, workers)
    (options.output / f"{name}.json").write_text(json.dumps({"torch": torch.__version__, "runs": runs}) + "\n")
    if name == "results":
        picture(runs, options.output / "learn_where_to_look.png")
        print(table(runs))
    print(f"{time.perf_counter() - began:.0f} s in all; written to {options.output}")


if __name__ == "__main__":
    main()
