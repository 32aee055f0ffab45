"""The measures with the CUDA launcher on the host, with cuda_shim as the CUDA runtime."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("check", ["sums", "quality", "agreement", "mirror_test"])
def test_same_bits_as_on_the_cpu(check_on_host, check: str) -> None:
    check_on_host("cuda_measures_check.cpp", check)
