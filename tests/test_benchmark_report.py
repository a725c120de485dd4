"""What the benchmark suite makes of recorded samples: verdicts, the page, its charts and the section of the README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import report, results
from benchmarks.cases import COPY, OURS, PASSES, Target
from benchmarks.suites import CASES, GROWTH

ROOT = Path(__file__).resolve().parents[1]


def made_up(times, *, case_bytes=10**6, red=(), skipped=(), suite="table", started="2026-01-01T00:00:00+00:00"):
    """A record of (case, peer, pass, threads) -> samples in milliseconds."""
    rows = [
        {
            "case": case,
            "peer": peer,
            "pass": pass_,
            "threads": threads,
            "gate": {"green": (case, peer) not in red, "said": "value 5.0e-01 (at most 1e-03)"},
            "calls": 1,
            "samples": [] if (case, peer) in red else [s / 1e3 for s in samples],
        }
        for (case, peer, pass_, threads), samples in times.items()
    ]
    return {
        "format": results.FORMAT,
        "suite": suite,
        "small": False,
        "started": started,
        "machine": {
            "processor": "A processor",
            "cores": 4,
            "caches": [{"name": "L2", "bytes": 2**20, "shared_by": 1}, {"name": "L3", "bytes": 2**25, "shared_by": 4}],
            "memory_gib": 8.0,
            "kernel": "Linux 1",
            "transparent_hugepages": "madvise",
            "governor": None,
            "simd_level": "avx2",
        },
        "versions": {"torch": "9.9", "jax": None},
        "source": {"commit": "0123456789abcdef", "dirty": True},
        "base": None,
        "method": {"rounds_at_least": 15, "budget_s": 3.0, "sample_s": 2e-3, "warm_s": 1e-2, "pause_s": 5e-3},
        "copy": {"2": {"how": "by hand", "buffer_mib": 256, "bytes_per_s": [9e9, 10e9, 11e9]}},
        "skipped": [{"case": case, "peer": peer, "reason": reason} for case, peer, reason in skipped],
        "cases": {case: {"bytes": dict.fromkeys(PASSES, case_bytes)} for case, _, _, _ in times},
        "rows": rows,
        "memory": [],
    }


def lines_of(text, *beginnings):
    return [line for line in text.splitlines() if all(word in line for word in beginnings)]


def test_targets_and_verdicts():
    read = results.Results([
        made_up({
            ("A", OURS, "forward", 2): [1.0, 1.1, 0.9],
            ("A", "recipe", "forward", 2): [11.0, 12.1, 9.9],
            ("A", OURS, "boxes", 2): [1.0, 1.0, 1.0],
            ("A", "recipe", "boxes", 2): [5.0, 5.0, 5.0],
            ("G-A-bilinear", OURS, "both", 2): [1.0],
            ("G-A-bilinear", "slices", "images", 2): [2.5],
        })
    ])  # fmt: skip
    found = {(one.case.name, one.target.pass_, one.target.against): one for one in results.checked(read)}
    forward, boxes = found["A", "forward", "recipe"], found["A", "boxes", "recipe"]
    assert (forward.measured, forward.holds) == (pytest.approx(11.0), True)
    assert (boxes.measured, boxes.holds) == (pytest.approx(5.0), False)
    assert found["A", "both", "recipe"].holds is None
    assert found["A", "forward", COPY].measured == pytest.approx(10**6 / 1e-3 / 10e9)  # a tenth: 1 GB/s of 10
    assert found["A", "forward", COPY].holds is False
    across = found["G-A-bilinear", "both", "slices"]  # our box gradient included
    assert (across.measured, across.holds) == (2.5, True)
    text = report.document(read, [])
    assert lines_of(text, "| A | forward | recipe | 2 | 10.0x | 11.0x |", "holds")
    assert lines_of(text, "| A | boxes | recipe | 2 | 6.00x | 5.00x |", "**missed**")
    assert lines_of(text, "| A | forward | copy bandwidth | 2 | 50% | 10% |", "**missed**")


@pytest.mark.parametrize(("peer_ms", "least"), [(0.9, 6.0), (1.1, 10.0)])
def test_a_target_that_depends_on_the_peers_own_time(peer_ms, least):
    read = results.Results([made_up({("B", OURS, "forward", 2): [0.1], ("B", "recipe", "forward", 2): [peer_ms]})])
    assert results.check(read, CASES["B"], CASES["B"].targets[0]).least == least
    assert CASES["B"].targets[0] == Target("forward", "recipe", 10, below=(1.0, 6.0))


def test_the_fastest_peer():
    times = {
        ("A", OURS, "forward", 2): [2.0],
        ("A", "recipe", "forward", 2): [9.0],
        ("A", "opencv linear", "forward", 2): [1.0],
        ("A", "plain", "forward", 2): [0.1],  # ours in another form
        ("A", "kornia", "forward", 1): [0.1],  # at another number of threads
        ("A", "jax", "boxes", 2): [0.1],  # in another pass
    }
    read = results.Results([made_up(times)])
    ours = read.timed("A", OURS, "forward", 2)
    assert ours is not None
    best = results.fastest(read, ours)
    assert best is not None
    assert (best[0].peer, best[1].of_medians) == ("opencv linear", 0.5)
    assert lines_of(report.document(read, []), "| A | forward | 2 | opencv linear | 0.50x | **slower** |")


def test_the_page_of_a_made_up_run(tmp_path):
    series = [case for case in GROWTH if case.series == "boxes"]
    times = {("E", OURS, "forward", 2): [0.25, 0.5, 1.0], ("E", "recipe", "forward", 2): [2.0, 2.0, 2.0]}
    times |= {(c.name, peer, "forward", 2): [c.at] for c in series for peer in (OURS, "packed")}
    record = made_up(times | {("E", "kornia", "forward", 2): [1.0]}, red={("E", "kornia")},
                     skipped=[("E", "jax", "jax not installed"), ("F", "jax", "jax not installed")])  # fmt: skip
    record["memory"] = [
        {"case": "F", "peer": OURS, "pass": "both", "threads": 2, "peak": 3 * 2**20, "returned": 2**20},
        {"case": series[0].name, "peer": OURS, "pass": "forward", "threads": 2, "peak": 2**20, "returned": 2**19},
    ]
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    written = report.write(results.Results([record]), tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in written} == {
        "docs/benchmarks.md", "README.md", "docs/benchmarks/ratios.svg", "docs/benchmarks/growth-boxes.svg",
    }  # fmt: skip
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert lines_of(text, "| 2 | forward | diffcrop | 0.500 [0.375, 0.750] |  |  | 2.0 | 20% |")
    assert lines_of(text, "| 2 | forward | recipe | 2.000 [2.000, 2.000] | 4.00x | 3.00 to 6.00 | 0.5 | 5% |")
    assert lines_of(text, "| E | kornia | forward | 2 | value 5.0e-01 (at most 1e-03) |")
    assert lines_of(text, "| jax | jax not installed | E, F |")
    assert lines_of(text, "| F | both | diffcrop | 3.0 | 1.0 | 2.0 |")
    assert lines_of(text, "| diffcrop | forward | 2 | 256x |")  # from 1 to 256 boxes
    assert "A processor (avx2), 4 cores, 1024 KiB L2, 32768 KiB L3 shared, 8.0 GiB, Linux 1" in text
    assert "commit 0123456789ab with changes" in text
    assert "10.0 GB/s on 2 threads" in text
    for name in ("ratios", "growth-boxes"):
        assert f"(benchmarks/{name}.svg)" in text
        assert "<svg" in (tmp_path / "docs" / "benchmarks" / f"{name}.svg").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"before\n{report.BEGIN}\nTime of the peer over ours on 4 cores of an A processor (avx2),")
    assert lines_of(readme, "| E | 1x3x64x64 -> 32x32, bilinear | recipe | 4.00x |  |  |")
    assert readme.endswith(f"{report.END}\nafter\n")
    assert "old" not in readme


def test_charts_are_the_same_bytes_each_time(tmp_path):
    record = made_up({("E", OURS, "forward", 2): [0.25], ("E", "recipe", "forward", 2): [2.0]})
    for name in ("one", "two"):
        (path,) = report.draw(results.Results([record]), tmp_path / name)
        assert path.name == "ratios.svg"
    assert (tmp_path / "one" / "ratios.svg").read_bytes() == (tmp_path / "two" / "ratios.svg").read_bytes()


def test_the_latest_run_of_a_case_counts():
    old = made_up(
        {("E", OURS, "forward", 2): [9.0], ("E", "recipe", "forward", 2): [9.0], ("F", OURS, "both", 1): [9.0]}
    )
    new = made_up({("E", OURS, "forward", 2): [1.0]}, started="2026-02-01T00:00:00+00:00")
    for runs in ([old, new], [new, old]):
        read = results.Results(runs)
        row = read.timed("E", OURS, "forward", 2)
        assert row is not None
        assert row.time.median == pytest.approx(1e-3)
        assert read.timed("E", "recipe", "forward", 2) is None  # not of the same rounds
        assert read.timed("F", OURS, "both", 1) is not None


def test_the_readme_needs_its_markers():
    with pytest.raises(ValueError, match="one pair"):
        report.replaced("no markers here", "text")


def test_nothing_recorded_is_said():
    assert report.section(results.Results([])) == report.NOTHING
    assert report.NOTHING in report.document(results.Results([]), [])


def test_the_documentation_is_what_report_writes():
    """No figure there is typed by hand, or older than what is recorded."""
    recorded = results.load()
    readme = (ROOT / "README.md").read_text()
    assert report.replaced(readme, report.section(recorded)) == readme
    page = ROOT / "docs" / "benchmarks.md"
    drawn = [path.stem for path in (page.parent / "benchmarks").glob("*.svg")]
    assert page.read_text() == report.document(recorded, drawn)
    linked = [line for line in page.read_text().splitlines() if ".svg)" in line]
    assert len(linked) == len(drawn)


def test_numbers_read_well():
    from benchmarks.show import figures

    assert [figures(v) for v in (1234.5, 99.95, 1.23456, 0.012345)] == ["1234", "99.95", "1.235", "0.0123"]
    assert [report.figures3(v) for v in (123.4, 12.34, 1.234, 0.1234)] == ["123", "12.3", "1.23", "0.12"]
    assert np.isclose(float(figures(0.5)), 0.5)
