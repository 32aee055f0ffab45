"""Whole solves through the CUDA launcher on the host, with the graph of an iteration.

cuda_shim records what is captured and plays it when the graph is launched. Captured once for each
level of two iterations or more, launched for all but the first; the CPU's bits; cancelled in the
middle; errors kept. What only a GPU can show, the driver's own rules among it, is not tested here.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKS = (
    "every_iteration_counts",
    "cancels_in_the_middle",
    "errors_are_kept",
    "errors_within_a_capture",
    "few_make_no_graph",
)
REFINEMENTS = ("mse", "search", "velocity", "cosine", "lncc", "images")


@pytest.fixture(scope="module")
def program(compile_on_host: Callable[[str], Path]) -> Path:
    return compile_on_host("cuda_graph_check.cpp")


@pytest.mark.parametrize("check", [*REFINEMENTS, *CHECKS])
def test_graph_of_an_iteration(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
