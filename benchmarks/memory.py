"""The peak of memory of one call over what was there before, each in a process of its own.

python -m benchmarks.memory CASE PEER PASS THREADS [--small]       (prints JSON)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from .cases import OURS, Case
from .peers import PEERS
from .problem import make, wants
from .suites import CASES, shrunk

ROOT = Path(__file__).resolve().parents[1]
# Compiling takes memory of its own in the same process, and the others do not take tensors.
PEERS_MEASURED = (OURS, "recipe", "packed", "slices")
PASSES_MEASURED = ("forward", "boxes", "both")
_STATUS = Path("/proc/self/status")


def peak(case: Case, peer: str, pass_: str, small: bool = False) -> dict[str, int]:
    """Bytes: at the highest, and of the tensors that the call has to return."""
    tiny = make(shrunk(case))
    PEERS[peer].prepare(tiny, pass_).call()  # libraries and pools of threads come first
    made = make(shrunk(case) if small else case)
    prepared = PEERS[peer].prepare(made, pass_)
    gc.collect()
    _trim()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = _resident()
    result = prepared.call()
    highest = int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024
    images, boxes = wants(pass_)
    returned = made.cotangent.nbytes + images * made.images.nbytes + boxes * made.boxes.nbytes
    del result
    return {"peak": highest - before, "returned": returned}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _trim() -> None:
    """Give back what the allocator kept, or the call could use it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure(
    cases: Iterable[Case],
    *,
    peers: tuple[str, ...] | None = None,
    passes: tuple[str, ...] | None = None,
    threads: int = 2,
    small: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda _row: None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows, and who was skipped and why."""
    rows, skipped = [], []
    if not Path("/proc/self/clear_refs").exists():
        return [], [{"case": case.name, "peer": OURS, "reason": "peaks are read from Linux' /proc"} for case in cases]
    for case in cases:
        for name in dict.fromkeys((OURS, *case.peers)):
            if name not in (peers or PEERS_MEASURED) and name != OURS:
                continue
            peer = PEERS[name]
            reason = peer.missing() or peer.refuses(case)
            if reason is not None:
                skipped.append({"case": case.name, "peer": name, "reason": reason})
                continue
            for pass_ in passes or (*PASSES_MEASURED, *(("images",) if name == "slices" else ())):
                if pass_ in peer.passes and pass_ in case.passes:
                    row = {"case": case.name, "peer": name, "pass": pass_, "threads": threads}
                    rows.append(row | _in_process(case, name, pass_, threads, small))
                    told(rows[-1])
    return rows, skipped


def _in_process(case: Case, peer: str, pass_: str, threads: int, small: bool) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.memory", case.name, peer, pass_, str(threads)]
    command += ["--small"] if small else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the peak of {case.name}, {peer}, {pass_} could not be measured: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    for name in ("case", "peer", "pass_"):
        parser.add_argument(name)
    parser.add_argument("threads", type=int)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(json.dumps(peak(CASES[asked.case], asked.peer, asked.pass_, asked.small)))
