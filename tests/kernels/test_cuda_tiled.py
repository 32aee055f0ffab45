"""Tuned CUDA kernels on the host: bit for bit what the op computes.

Fibres stand for the threads of a block. What only a GPU can show, races and speed, is not tested.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path


def test_tiled_cost(compile_on_host: Callable[[str], Path]) -> None:
    program = compile_on_host("cuda_tiled_check.cpp")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
