"""A hundred registrations in one process: memory grows neither on the GPU nor on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from cuda_on_host import DeviceArray

import dinoreg_rt
from dinoreg_rt.device.recording import total_bytes
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

#: The host allocator keeps some memory and returns some; a field of these grids has 1 MB.
_HOST_SLACK = 8 << 20
SHAPE_ZYX = (40, 44, 48)
VALUES = {"threads": 1, "iterations": (6, 3), "inverse": True, "confidence": True, "cache": False}


@pytest.fixture(scope="module")
def pair() -> Any:
    return phantom_pair(phantom_grid(SHAPE_ZYX, 3.0))


def repeat(
    pair: Any, device: str, runs: int, on_device: Callable[[], tuple[int, ...]], **more: Any
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return, for each run, the result of `on_device` and the resident bytes of this process."""
    config = dinoreg_rt.RegistrationConfig(device=device, **VALUES, **more)
    taken, resident, process = [], [], psutil.Process()
    with dinoreg_rt.Registrar(config) as registrar:
        for _ in range(runs):
            registrar.register(*pair)
            taken.append(on_device())
            resident.append(process.memory_info().rss)
    return taken, resident


def check_host(resident: list[int]) -> None:
    """Compare the last tenth of the runs with the second, by when one-time allocations are done."""
    tenth = len(resident) // 10
    begin, end = np.median(resident[tenth : 2 * tenth]), np.median(resident[-tenth:])
    assert end - begin < _HOST_SLACK, [round(size / 2**20, 1) for size in resident]


@pytest.mark.gpu
def test_a_hundred_on_a_gpu(pair) -> None:
    import dinoreg_kernels

    problem = dinoreg_kernels.cuda_devices().problem
    if problem:
        pytest.skip(f"GPU test: {problem}")
    cupy = pytest.importorskip("cupy", reason="GPU test: CuPy is not installed")
    if os.environ.get("DINOREG_TEST_POOL") == "0":
        pytest.skip("measures CuPy's pool, which DINOREG_TEST_POOL=0 has taken away")
    pool = cupy.get_default_memory_pool()

    def on_device() -> tuple[int, int]:
        free, total = cupy.cuda.runtime.memGetInfo()
        return pool.total_bytes() + total_bytes(), total - free

    taken, resident = repeat(pair, "cuda", 100, on_device)
    assert {size for size, _ in taken[1:]} == {taken[1][0]}  # size of the pools
    # Memory of the whole device includes what CUDA itself took, such as leaked graphs.
    assert max(size for _, size in taken[1:]) <= taken[1][1]
    check_host(resident)


def test_twenty_on_the_cpu(pair) -> None:
    _, resident = repeat(pair, "cpu", 20, tuple, initial="none")
    check_host(resident)


@pytest.mark.parametrize("more", [{}, {"transform": "velocity"}, {"feature_similarity": "lncc"}])
def test_nothing_is_held_between_two_runs(cupy, pair, more) -> None:
    """The stand-in for CuPy counts arrays, without a pool that rounds or caches."""
    config = dinoreg_rt.RegistrationConfig(device="cuda", **(VALUES | more))
    peaks = []
    with dinoreg_rt.Registrar(config) as registrar:
        for _ in range(3):
            for pool in cupy.pools:
                pool.peak = pool.used
            result = registrar.register(*pair)
            assert isinstance(result.displacement.vectors_mm, np.ndarray)
            peaks.append(max(pool.peak for pool in cupy.pools))
            assert not any(pool.used for pool in cupy.pools)
    assert peaks[0] > 10 * 4 * np.prod(SHAPE_ZYX)
    assert peaks[1:] == [peaks[0]] * 2


def test_a_result_on_the_device_is_all_that_is_held(cupy, pair) -> None:
    config = dinoreg_rt.RegistrationConfig(device="cuda", **VALUES)
    with dinoreg_rt.Registrar(config) as registrar:
        result = registrar.register(*pair, placement=dinoreg_rt.Placement(on_device=True))
        arrays = [
            result.displacement.vectors_mm,
            result.deformable.vectors_mm,
            result.warped.array,
            result.inverse.vectors_mm,
            result.confidence.array,
        ]
        assert all(isinstance(array, DeviceArray) for array in arrays)
        held = sum(-(-array.host.nbytes // 512) * 512 for array in arrays)
        assert sum(pool.used for pool in cupy.pools) == held
        del result, arrays
        assert not any(pool.used for pool in cupy.pools)
