"""Whole solves through the CUDA launcher on the host, with the graph of an iteration.

cuda_shim records what is captured and plays it when the graph is launched. Captured once for each
level of two iterations or more, launched for all but the first; the CPU's bits; cancelled in the
middle; errors kept. What only a GPU can show, the driver's own rules among it, is not tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
CHECKS = (
    "every_iteration_counts",
    "cancels_in_the_middle",
    "errors_are_kept",
    "errors_within_a_capture",
    "few_make_no_graph",
)
REFINEMENTS = ("mse", "search", "velocity", "cosine", "lncc", "images")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: set CXX or install g++")
    path = tmp_path_factory.mktemp("cuda_graph") / "check"
    flags = ["-std=gnu++17", "-fopenmp", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    # Both must round alike to be compared bit for bit.
    flags += ["-ffp-contract=off", f"-I{HERE / 'cuda_shim'}", f"-I{KERNELS}"]
    flags += [f"-I{KERNELS / folder}" for folder in ("include", "src", "cpu", "cuda")]
    built = subprocess.run(
        [compiler, *flags, str(HERE / "cuda_graph_check.cpp"), "-o", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return path


@pytest.mark.parametrize("check", [*REFINEMENTS, *CHECKS])
def test_graph_of_an_iteration(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
