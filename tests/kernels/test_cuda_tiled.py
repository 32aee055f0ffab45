"""Tuned CUDA kernels on the host: bit for bit what the op computes.

Fibres stand for the threads of a block. What only a GPU can show, races and speed, is not tested.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def program(compile_on_host: Callable[[str], Path]) -> Path:
    return compile_on_host("cuda_tiled_check.cpp")


@pytest.mark.parametrize("check", ["costs", "smoothing", "patch_distances", "whole_search"])
def test_tuned_kernels(program: Path, check: str) -> None:
    done = subprocess.run(
        [program, check], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout
