"""Measures the GPU kernels beside the recipe, the compiled recipe and torchvision's RoIAlign, and records it.

    python -m benchmarks.gpu [--small] [--device cuda]

Prints a table and writes benchmarks/results/gpu.json, with the name of the device. Contestants take turns; times are of
the device, between two events around as many calls as make two milliseconds. Nothing is timed before its values and
gradients agree with the reference. ``--small --device cpu`` tries the machinery and records nothing.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import diffcrop

from . import gate, machine, problem, timing, traffic
from .cases import LARGE, A, B, C, Case, D, F
from .peers import PEERS, Meaning, Peer, Tolerance
from .peers.base import torch_call
from .problem import Outcome, Prepared, Problem
from .suites import shrunk

RESULTS = Path(__file__).parent / "results" / "gpu.json"
ROUNDS = 15

FEATURES = Case(
    name="features",
    about="512 boxes of 7x7 on feature maps of 256 channels",
    images=(2, 256, 50, 68),
    size=(7, 7),
    boxes=256,
    share=(0.1, 0.5),
)
BATCH = replace(D, name="batch", about="a large batch", images=(64, 3, 1024, 1024), size=(512, 512))
WIDE = replace(C, name="wide", about="a large batch of 64 channels", images=(32, 64, 256, 256), size=(128, 128))
CASES = (
    *(A, B, C, D, F, FEATURES, BATCH, WIDE),
    *(replace(c, name=f"{c.name}-channels_last", channels_last=True) for c in (C, WIDE)),
    *(replace(c, name=f"{c.name}-bfloat16", dtype="bfloat16") for c in (D, WIDE)),
    *(replace(c, name=f"{c.name}-antialiased", antialias=True, padding_mode="border") for c in (D, LARGE, BATCH)),
    replace(D, name="D-lanczos3", mode="lanczos3", antialias=True, padding_mode="border"),
)


def _prepare_roi_align(made: Problem, pass_: str) -> Prepared:
    """One sample to a bin, at its centre: inside the image that is our crop without antialiasing."""
    torchvision: Any = importlib.import_module("torchvision")
    rows = torch.cat([made.owner[:, None].to(made.boxes), made.boxes], 1)

    def function(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torchvision.ops.roi_align(images, rows, made.case.size, sampling_ratio=1, aligned=True)

    return torch_call(function, made.images, made.boxes, made.cotangent, pass_, made)


def _refuses_roi_align(case: Case) -> str | None:
    return "does not antialias" if case.antialias or case.mode != "bilinear" else None


ROI_ALIGN = Peer(
    "roi_align",
    "torchvision's RoIAlign with one sample to a bin; no box gradient",
    _prepare_roi_align,
    lambda made: Meaning(made.boxes.double(), made.options() | {"padding_mode": "border"}),
    Tolerance(2e-3, 2e-3, 2e-3, "positions in float32"),
    passes=("forward", "images"),
    needs=("torchvision",),
    refuses=_refuses_roi_align,
)
CONTESTANTS = (PEERS["diffcrop"], PEERS["recipe"], PEERS["compiled"], PEERS["packed"], ROI_ALIGN)


@dataclass
class OnDevice:
    """A call whose time is the device's."""

    call: Callable[[], Any]
    device: torch.device
    pool: str = "gpu"

    def sample(self, calls: int) -> float:
        self.call()
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                self.call()
            return (time.perf_counter() - start) / calls
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(calls):
            self.call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / calls


def moved(made: Problem, device: torch.device) -> Problem:
    tensors = {name: getattr(made, name).to(device) for name in ("images", "boxes", "owner", "cotangent")}
    return replace(made, **tensors)


def fetched(outcome: Outcome) -> Outcome:
    values = (outcome.value, outcome.images, outcome.boxes)
    return Outcome(*(None if t is None else t.cpu() for t in values))  # pyright: ignore[reportArgumentType]


def ours_with_index(made: Problem, pass_: str) -> Prepared:
    """Boxes of several images that name theirs."""

    def function(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return diffcrop.crop(images, boxes, made.case.size, batch_index=made.owner, **made.options())

    return torch_call(function, made.images, made.boxes, made.cotangent, pass_, made)


def prepared(peer: Peer, made: Problem, pass_: str) -> Prepared:
    if peer.name == "diffcrop" and made.case.boxes > 1 and len(made.images) > 1:
        return ours_with_index(made, pass_)
    return peer.prepare(made, pass_)


def captured(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one replay of a graph: what is left is the device's own time."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Every contestant and pass of a case."""
    made = problem.make(case)
    there = moved(made, device)
    rows, entered = [], []
    for peer in CONTESTANTS:
        reason = peer.missing() or peer.refuses(case)
        if reason is not None:
            rows.append({"case": case.name, "peer": peer.name, "skipped": reason})
            continue
        wanted = gate.expected(made, peer.meaning(made))
        for pass_ in (p for p in case.passes if p in peer.passes):
            row: dict[str, Any] = {"case": case.name, "peer": peer.name, "pass": pass_}
            rows.append(row)
            try:
                ready = prepared(peer, there, pass_)
                verdict = gate.compare(made, peer, pass_, fetched(ready.outcome(ready.call())), wanted)
                calls = {"": ready.call}
                if device.type == "cuda" and peer.name == "diffcrop":
                    calls[" graph"] = captured(ready.call)
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                row["gate"] = {"green": False, "problem": f"{type(error).__name__}: {error}"[:300]}
                continue
            row["gate"] = verdict.as_json()
            if verdict.green:
                for name, call in calls.items():
                    mine = row if not name else {**row, "peer": peer.name + name}
                    if name:
                        rows.append(mine)
                    entered.append((mine, OnDevice(call, device)))
    calls = [timing.calibrate(contestant) for _, contestant in entered]
    samples = timing.interleave([c for _, c in entered], calls, rounds=rounds, budget_s=0.5, pause_s=0.0)
    for (row, _), taken in zip(entered, samples, strict=True):
        row["samples"] = [float(f"{s:.5g}") for s in taken]
        row["bytes"] = traffic.bytes_moved(made)[row["pass"]]
    return rows


def copy_bandwidth(device: torch.device, bytes_: int) -> float:
    """Bytes read and written in a second by a copy of a large buffer."""
    source = torch.ones(bytes_ // 4, device=device)
    contestant = OnDevice(functools.partial(torch.empty_like(source).copy_, source), device)
    return 2 * bytes_ / timing.spread([contestant.sample(10) for _ in range(7)]).median


def show(rows: Sequence[dict[str, Any]], copy: float) -> None:
    ours = {(r["case"], r["pass"]): timing.spread(r["samples"]).median for r in rows
            if r.get("samples") and r["peer"] == "diffcrop"}  # fmt: skip
    print(f"{'case':20} {'pass':8} {'who':16} {'ms':>9} {'ratio':>7} {'of copy':>8}")
    for r in rows:
        if "skipped" in r:
            continue
        head = f"{r['case']:20} {r['pass']:8} {r['peer']:16}"
        if not r.get("samples"):
            print(f"{head} wrong: {r['gate'].get('problem') or r['gate'].get('errors')}")
            continue
        median = timing.spread(r["samples"]).median
        mine = ours.get((r["case"], r["pass"]), median)
        print(f"{head} {median * 1e3:9.4f} {median / mine:7.2f} {r['bytes'] / median / copy:8.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small copies of the cases; records nothing")
    parser.add_argument("--case", action="append", help="only this one; may be repeated; records nothing")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    copy = copy_bandwidth(device, 2**20 if chosen.small else 2**30)
    record: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": machine.facts(),
        "versions": machine.versions()
        | {"triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None},
        "source": machine.commit(),
        "copy_bytes_per_s": copy,
        "cases": {},
        "rows": [],
    }
    for case in CASES:
        if chosen.case and case.name not in chosen.case:
            continue
        rows = measure(shrunk(case) if chosen.small else case, device, chosen.rounds)
        record["cases"][case.name] = {"about": case.about, "images": case.images, "size": case.size}
        record["rows"] += rows
        show(rows, copy)
        if not chosen.small and not chosen.case:
            RESULTS.with_suffix(".json.unfinished").write_text(json.dumps(record, indent=1) + "\n")
    if not chosen.small and not chosen.case:
        RESULTS.with_suffix(".json.unfinished").replace(RESULTS)
    wrong = [r for r in record["rows"] if r["peer"] == "diffcrop" and "gate" in r and not r["gate"]["green"]]
    if wrong:
        raise SystemExit(f"{len(wrong)} results of diffcrop are wrong")


if __name__ == "__main__":
    main()
