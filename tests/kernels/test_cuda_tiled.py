"""The tuned CUDA kernels on the host, bit for bit against the ops they replace.

Fibres stand for the threads of a block. What only a GPU can show, races and speed, is not tested.
"""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "check",
    [
        *("costs", "smoothing", "correlation", "patch_distances", "mind_features"),
        pytest.param("whole_search", marks=pytest.mark.slow),
    ],
)
def test_tuned_kernels(check_on_host, check: str) -> None:
    check_on_host("cuda_tiled_check.cpp", check)
