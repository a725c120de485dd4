"""Many processes: DTensors by their sharding rules, DistributedDataParallel and FSDP2, and the example of them.

The checks stand in `distributed_worker.py` and are launched once for two processes and once for four.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import diffcrop

ROOT = Path(__file__).parent.parent
WORKER = ROOT / "tests" / "distributed_worker.py"
EXAMPLE = ROOT / "examples" / "distributed_localiser.py"
SECONDS = 300
CHECKS = {
    2: ("batch", "channels", "rows", "layouts_and_dtypes", "other_functions", "compiled", "errors", "ddp", "fsdp2"),
    4: ("grid",),
}

needs_gloo = pytest.mark.skipif(
    sys.platform == "win32" or not (dist.is_available() and dist.is_gloo_available()),
    reason="torch was built without torch.distributed and gloo, or torchrun has no free port to offer here",
)


def launch(processes, *arguments):
    """Run a script by torchrun, on a port that it finds; all that it said, and its exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = run.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # the processes that torchrun started as well
        said = f"stopped after {SECONDS} seconds:\n{run.communicate()[0]}"
    return said, run.returncode


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By number of processes: what each of them says of each check. Launched by the first test that asks."""
    made = {}

    def of(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("results")
            said, status = launch(processes, WORKER, folder)
            files = [folder / f"{rank}.json" for rank in range(processes)]
            made[processes] = [json.loads(f.read_text()) if f.exists() else {} for f in files], said, status
        return made[processes]

    return of


@needs_gloo
@pytest.mark.parametrize(("processes", "check"), [(n, check) for n, checks in CHECKS.items() for check in checks])
def test_across_processes(results, processes, check):
    by_rank, said, status = results(processes)
    wrong = [
        f"process {rank}:\n{checks.get(check, 'not reached')}"
        for rank, checks in enumerate(by_rank)
        if checks.get(check, "not reached") is not None
    ]
    assert not wrong, "\n".join([*wrong, said[-2000:]])
    if all(text is None for checks in by_rank for text in checks.values()) and check == CHECKS[processes][-1]:
        assert status == 0, said


@needs_gloo
@pytest.mark.parametrize("options", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_the_example_on_two_processes_says_what_one_process_says(options):
    small = ("--steps", "30", "--batch", "16", "--every", "10", "--device", "cpu")
    alone = subprocess.run(
        [sys.executable, EXAMPLE, *small], cwd=ROOT, text=True, capture_output=True, timeout=SECONDS, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    said, status = launch(2, EXAMPLE, *small, *options)
    assert status == 0, said

    def figures(text):
        found = re.findall(r"step +(\d+)  loss ([0-9.]+)  IoU ([0-9.]+)", text)
        return torch.tensor([[float(x) for x in line] for line in found], dtype=torch.float64)

    expected = figures(alone.stdout)
    assert expected[:, 0].tolist() == [1, 10, 20, 30]
    assert expected[-1, 1] < 0.5 * expected[0, 1]
    assert expected[-1, 2] > expected[0, 2] + 0.05
    torch.testing.assert_close(figures(said), expected, rtol=0, atol=2e-3)


def test_the_example_needs_torchrun_to_split_parameters():
    run = subprocess.run(
        [sys.executable, EXAMPLE, "--fsdp"], cwd=ROOT, text=True, capture_output=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 1
    assert "torchrun" in run.stderr


ALONE = """
import sys, torch
sys.modules["torch.distributed.tensor"] = None  # importing it raises from here on
import diffcrop
box = torch.tensor([1.0, 1.0, 3.0, 3.0], requires_grad=True)
for impl in (None, "reference"):
    diffcrop.crop(torch.arange(16.0).reshape(1, 4, 4), box, 2, impl=impl).sum().backward()
assert box.grad.tolist() == [4.0, 16.0, 4.0, 16.0], box.grad
diffcrop.nn.Crop(2)(torch.nn.Parameter(torch.rand(1, 4, 4)), box)
"""
LAZY = """
import sys, torch, diffcrop
box = torch.tensor([1.0, 1.0, 3.0, 3.0], requires_grad=True)
diffcrop.crop(torch.rand(1, 4, 4), box, 2).sum().backward()
assert "torch.distributed.tensor" not in sys.modules
"""


@pytest.mark.parametrize("source", [ALONE, LAZY], ids=["absent", "not imported"])
def test_without_dtensors(source):
    run = subprocess.run([sys.executable, "-c", source], text=True, capture_output=True, timeout=SECONDS, check=False)
    assert run.returncode == 0, run.stderr


def test_only_dtensors_are_sharded():
    from diffcrop._context import is_sharded

    for value in (None, [torch.rand(2)], torch.rand(2), torch.nn.Parameter(torch.rand(2)), diffcrop):
        assert not is_sharded(value)
