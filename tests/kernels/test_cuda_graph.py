"""Whole solves through the CUDA launcher on the host, with a graph of each level's iterations.

cuda_shim records what is captured and replays it when the graph is launched. Tested are that each
level of two or more iterations is captured once and launched for all but the first, that the bits
are those of the CPU, how many launches an iteration takes, cancellation in the middle, and that
errors are kept. What only a GPU can
show, among it the rules of the driver, is not tested here.
"""

from __future__ import annotations

import pytest

CHECKS = (
    "every_iteration_counts",
    "cancels_in_the_middle",
    "errors_are_kept",
    "errors_within_a_capture",
    "few_launches",
    "few_make_no_graph",
    "rearranges_with_room",
)
REFINEMENTS = ("mse", "search", "velocity", "cosine", "lncc", "images")


@pytest.mark.slow
@pytest.mark.parametrize("check", [*REFINEMENTS, *CHECKS])
def test_graph_of_an_iteration(check_on_host, check: str) -> None:
    check_on_host("cuda_graph_check.cpp", check)
