"""The index arithmetic of the CUDA launcher on the host, with cuda_shim as the CUDA runtime.

What only a GPU can show (timing, races, the device compiler's arithmetic) is not tested here.
"""

from __future__ import annotations

import pytest

CHECKS = (
    "every_element_once",
    "large_counts",
    "margins",
    "empty_launches_nothing",
    "first_error_is_kept",
    "same_as_cpu",
)


@pytest.mark.parametrize("check", CHECKS)
def test_cuda_launcher(check_on_host, check: str) -> None:
    check_on_host("cuda_launch_check.cpp", check)
