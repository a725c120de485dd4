"""The benchmark of the GPU kernels, on small copies of its cases and a CPU: what it says, not how fast it is."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu, problem
from benchmarks.peers import PEERS


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--device", "cpu", "--rounds", "1", *words])
    monkeypatch.setattr(gpu, "CONTESTANTS", (PEERS["diffcrop"], PEERS["recipe"], gpu.ROI_ALIGN))
    gpu.main()


@pytest.mark.parametrize("name", ["A", "features", "D-antialiased", "wide-bfloat16"])
def test_every_contestant_is_right_and_measured(name, monkeypatch, capsys):
    run(monkeypatch, "--case", name)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    found = {(line[1], line[2]) for line in lines if line[0] == name}
    whom = {"diffcrop"} if name == "D-antialiased" else {"diffcrop", "recipe"}
    assert found >= {(pass_, who) for pass_ in ("forward", "boxes", "images", "both") for who in whom}
    assert all(float(line[3]) > 0 for line in lines)
    assert not any("wrong" in line for line in lines)


def test_what_is_wrong_is_not_measured_and_fails(monkeypatch, capsys):
    def prepare(peer, made, pass_):
        made_up = peer.prepare(made, pass_)
        if peer.name != "diffcrop":
            return made_up
        return problem.Prepared(made_up.call, lambda result: made_up.outcome([1.01 * t for t in result]))

    monkeypatch.setattr(gpu, "prepared", prepare)
    with pytest.raises(SystemExit, match="4 results of diffcrop are wrong"):
        run(monkeypatch, "--case", "A")
    assert "diffcrop         wrong: " in capsys.readouterr().out


def test_cases_have_names_of_their_own():
    assert len({case.name for case in gpu.CASES}) == len(gpu.CASES)


def test_the_terms_of_roi_align_are_ours():
    """One sample to a bin, at its centre, is our crop without antialiasing where the box lies inside."""
    made = problem.make(gpu.FEATURES)
    assert float(made.boxes.min()) >= 0
    meaning = gpu.ROI_ALIGN.meaning(made)
    assert meaning.options["padding_mode"] == "border"
    assert gpu.ROI_ALIGN.refuses(gpu.CASES[-1]) is not None
