"""What is not an upright crop of an image, by the kernels of processors that have less than this one.

Each in a process of its own, as the instruction set is chosen when the library is loaded; `test_kernels` has the crops.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import diffcrop
from plain import needs_kernels

HERE = Path(__file__).resolve().parent
# Those tests of a file that compare the kernels with the reference or with definitions.
CHOSEN = {
    "test_warp_kernels.py": "equal_the_reference or any_number or every_dtype or not_finite or strides",
    "test_warp_jacobian.py": "kernel_is_reference and (zeros or reflection) or dtypes",
    "test_roi_align.py": "cpu and (definition or many_channels or test_volumes or written_down)",
    "test_roi_contract.py": "cpu and (exact_is_the_mean or layouts or dtypes or not_finite)",
    "test_volumes.py": "every_way or signals_are or equal and (border or circular) and (float64 or uint8 or bfloat16)",
}
RUN = """
import sys, diffcrop, pytest
print("level", diffcrop.simd_level())
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-m", "not slow", *sys.argv[1:]]))
"""


@needs_kernels
@pytest.mark.parametrize("level", ["avx2", "default"])
@pytest.mark.parametrize("name", CHOSEN)
def test_older_instruction_sets(name, level):
    run = subprocess.run(
        [sys.executable, "-c", RUN, HERE / name, "-k", CHOSEN[name]],
        env=os.environ | {"DIFFCROP_SIMD": level},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    expected = min(level, diffcrop.simd_level(), key=("default", "avx2", "avx512").index)
    assert f"level {expected}\n" in run.stdout
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout
