"""docs/transforms.md says what is so: every entry is measured again."""

from __future__ import annotations

import pytest
import torch

import transforms_table
from transforms_table import COMPILED, PAGE, document, on_cpu, parsed, verdict


@pytest.fixture
def recorded():
    return parsed(PAGE.read_text())


def test_the_page_is_what_the_generator_writes(recorded):
    assert PAGE.read_text() == document(recorded)
    assert set(recorded) >= set(on_cpu())


@pytest.mark.parametrize("impl", on_cpu())
def test_eager_entries(impl, recorded):
    measured = transforms_table.eager(impl)
    assert measured == {name: entry for name, entry in recorded[impl].items() if name not in COMPILED}
    assert set(recorded[impl]) == {*measured, *COMPILED}


# Each takes seconds, in a process of its own.
SLOW = [pytest.param(name, marks=[] if name == "compile(grad)" else pytest.mark.slow) for name in COMPILED]


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("impl", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_compiled_entries(impl, name, recorded):
    if impl not in on_cpu():
        pytest.skip("the kernels are not there")
    assert transforms_table.in_a_new_process(impl, name) == recorded[impl][name]


def test_what_is_wrong_is_no_entry():
    """The measurement itself: numbers that differ, zeros for numbers, and what should have been refused."""
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert verdict(lambda: one, lambda: one) == "yes"
    for found, expected in ((zero, one), (one + 1e-9, one), (zero, zero), (one[:1], one), (one * torch.nan, one)):
        with pytest.raises(AssertionError):
            verdict(lambda found=found: found, lambda expected=expected: expected)
    with pytest.raises(AssertionError):
        verdict(lambda: one, None)

    def refuses():
        raise ValueError("a|b:\nuse c")

    entry = verdict(refuses, lambda: one)
    assert entry == r"raises ValueError: a\|b: use c"
    page = document({"cpu": {"grad": "yes", "jvp": entry}, "reference": {"grad": entry, "jvp": "yes"}})
    assert parsed(page) == {"cpu": {"grad": "yes", "jvp": entry}, "reference": {"grad": entry, "jvp": "yes"}}
