"""Tuned CUDA kernels on the host: bit for bit what the op computes.

Fibres stand for the threads of a block. What only a GPU can show, races and speed, is not tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"


def test_tiled_cost(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: set CXX or install g++")
    path = tmp_path / "check"
    flags = ["-std=gnu++17", "-fopenmp", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    # Both must round alike to be compared bit for bit.
    flags += ["-ffp-contract=off"]
    flags += [f"-I{folder}" for folder in (HERE / "cuda_shim", KERNELS, KERNELS / "include")]
    flags.append(f"-I{KERNELS / 'cuda'}")
    source = str(HERE / "cuda_tiled_check.cpp")
    built = subprocess.run(
        [compiler, *flags, source, "-o", str(path)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([path], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
