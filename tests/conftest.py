"""Every test of the crop runs over the implementations that are there, with its own seeded generator."""

from __future__ import annotations

import collections
import importlib.util
import os
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import diffcrop

# Of a test with more cases than this, `make test` runs as many, chosen by name, and `make test-slow` the others.
MOST_CASES = 48
PHOTOS = Path(__file__).parent / "photos"
AVAILABLE = [name for name, reason in diffcrop.implementations().items() if reason is None]


if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    # Whether Triton interprets its functions is decided when they are defined, its own included; who asks
    # afterwards (`test_triton` alone) must not see the variable before.
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        import diffcrop._impl.triton.launch

torch.set_num_threads(1)  # the suite itself runs in parallel; what depends on threads sets its own


def pytest_collection_modifyitems(items):
    grids = collections.defaultdict(list)
    for item in items:
        if "impl" in item.fixturenames or "dtype" in item.fixturenames:  # the others take no time
            grids[item.nodeid.partition("[")[0]].append(item)
    for cases in grids.values():
        for item in sorted(cases, key=lambda case: zlib.crc32(case.nodeid.encode()))[MOST_CASES:]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=AVAILABLE)
def impl(request):
    return request.param


@pytest.fixture
def generator(request):
    """Seeded by the test's name: adding a test changes no other, and a failure repeats."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def poisoned_outputs():
    """Fresh tensors hold NaN, so that an element that is never written shows."""
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filling


@pytest.fixture(scope="session", params=["chelsea", "rocket"])
def photo(request):
    """(3, H, W) float32 in [0, 255]: values that are exact in every format."""
    with Image.open(PHOTOS / f"{request.param}.jpg") as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float()
