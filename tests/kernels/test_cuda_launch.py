"""The CUDA launcher's index arithmetic, run on the host: cuda_shim stands for the runtime.

What only a GPU can show (timing, races, the device compiler's arithmetic) is not tested here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKS = (
    "every_element_once",
    "large_counts",
    "margins",
    "empty_launches_nothing",
    "first_error_is_kept",
    "same_as_cpu",
)


@pytest.fixture(scope="module")
def program(compile_on_host: Callable[[str], Path]) -> Path:
    return compile_on_host("cuda_launch_check.cpp")


@pytest.mark.parametrize("check", CHECKS)
def test_cuda_launcher(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
