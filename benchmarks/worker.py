"""A process of its own for whom this one has no room: a library with its own threads, or another revision of diffcrop.

    python -m benchmarks.worker PEER --threads N [--alone] [--site FOLDER]

It answers one JSON object per line on stdin with one on stdout: ``{"do": "prepare", "case": .., "pass": .., "small":
..}``, ``{"do": "outcome", "job": .., "file": ..}``, ``{"do": "sample", "job": .., "calls": ..}`` and, between cases,
``{"do": "forget"}``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
# The finder of an editable install comes before every path and would bring the wrong diffcrop.
_FINDER = "ScikitBuildRedirectingFinder"


def serve() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker")
    parser.add_argument("peer")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--alone", action="store_true", help="see no more processors than threads")
    parser.add_argument("--site", help="where diffcrop lies, if not where it is installed")
    asked = parser.parse_args()
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if asked.alone:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    if asked.site:
        sys.meta_path[:] = [finder for finder in sys.meta_path if _name(finder) != _FINDER]
        sys.path.insert(0, asked.site)

    # From here on, what is installed; not before, since it looks at the processors as it starts.
    import torch

    import diffcrop
    from benchmarks import problem, suites, timing
    from benchmarks.peers import PEERS

    if asked.site and Path(asked.site).resolve() not in Path(diffcrop.__file__).resolve().parents:
        raise ImportError(f"diffcrop came from {diffcrop.__file__}, not from {asked.site}")
    torch.set_num_threads(asked.threads)
    jobs: list[problem.Prepared] = []

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["do"] == "prepare":
            case = suites.CASES[question["case"]]
            made = problem.make(suites.shrunk(case) if question["small"] else case)
            jobs.append(PEERS[asked.peer].prepare(made, question["pass"]))
            return {"job": len(jobs) - 1}
        job = jobs[question["job"]]
        if question["do"] == "outcome":
            outcome = job.outcome(job.call())
            torch.save((outcome.value, outcome.images, outcome.boxes), question["file"])
            return {}
        return {"seconds": timing.Local(job.call, "").sample(question["calls"])}

    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "forget":
            jobs.clear()
            reply: dict[str, Any] = {}
        else:
            try:
                reply = answer(question)
            except Exception as error:  # whatever it is, the one who asked is told
                reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


def _name(finder: object) -> str:
    return (finder if isinstance(finder, type) else type(finder)).__name__


class WorkerError(RuntimeError):
    """What went wrong in a worker."""


@dataclass
class Worker:
    """The other end: one process per peer and number of threads, started when it is first asked."""

    peer: str
    threads: int
    alone: bool = False
    site: Path | None = None
    _process: subprocess.Popen[str] | None = None
    _errors: IO[str] | None = None

    def ask(self, **question: Any) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            self._process.wait()
            assert self._errors is not None
            self._errors.seek(0)
            raise WorkerError(f"the worker of {self.peer} ended: {self._errors.read()[-2000:]}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.peer}: {reply['error']}")
        return reply

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.worker", self.peer, "--threads", str(self.threads)]
        command += ["--alone"] if self.alone else []
        command += ["--site", str(self.site)] if self.site else []
        pipe = subprocess.PIPE
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the process
        return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None


@dataclass
class Remote:
    """One prepared call in a worker, to be sampled like one that is here."""

    worker: Worker
    job: int
    pool: str

    def sample(self, calls: int) -> float:
        return self.worker.ask(do="sample", job=self.job, calls=calls)["seconds"]


if __name__ == "__main__":
    serve()
