"""Fixtures shared by all tests: seeded random numbers, devices, tolerances."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

# Some tests import ONNX Runtime themselves.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Lets any test `import reference`, which `--import-mode=importlib` does not.
sys.path.insert(0, str(Path(__file__).parent))

#: Largest error allowed against the float64 reference, relative to max(1, largest reference value),
#: by device and type of the result. "field_mm" is the field of a whole solve, in millimetres.
TOLERANCES = {
    # float32 indices of about 30 voxels are good to 2e-6, times image slopes of a few units per
    # voxel. Measured: 5.0e-6 (slices, which are divided by window and deviation), 2.7e-6 (inverse
    # residual), 2.4e-6 (Adam), below 1e-6 in all other operations.
    ("cpu", "float32"): 1e-5,
    # Half a unit in the last place of half precision below 1 is 2.44e-4; the same was measured.
    ("cpu", "float16"): 2.6e-4,
    # Adam divides by the gradient's own size, so rounding errors are carried along at full step
    # length where the gradient nearly vanishes, and a weight is read at the nearest voxel.
    # Measured: 1e-6 after the search, 1e-5 after 12 steps of 0.5 mm, 1.6e-4 after 8 steps on three
    # levels.
    ("cpu", "field_mm"): 2e-3,
    # Fused multiply-adds run in another order; same bounds. No GPU has run these tests yet.
    ("cuda", "float32"): 1e-5,
    ("cuda", "float16"): 2.6e-4,
    ("cuda", "field_mm"): 2e-3,
}


@dataclass(frozen=True)
class Device:
    """The device that a test runs on, with transfers of arrays."""

    name: str
    xp: ModuleType

    def put(self, array, dtype=None):
        """Copy to the device, C-contiguous."""
        return self.xp.asarray(np.ascontiguousarray(array, dtype))

    def get(self, array) -> np.ndarray:
        """Copy to NumPy."""
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def check(self, actual, expected, kind: str | None = None) -> float:
        """Assert the table's tolerance and return the relative error."""
        actual = self.get(actual)
        expected = np.asarray(expected, np.float64)
        assert actual.shape == expected.shape
        assert np.all(np.isfinite(actual))
        kind = kind or str(actual.dtype)
        size = 1.0 if kind == "field_mm" else max(1.0, np.abs(expected).max(initial=0.0))
        error = np.abs(actual.astype(np.float64) - expected).max(initial=0.0) / size
        limit = TOLERANCES[self.name, kind]
        assert error <= limit, f"maximum error {error:.3g}; allowed {limit:.3g}"
        return float(error)


def _cuda_device() -> Device:
    import dinoreg_kernels

    problem = dinoreg_kernels.cuda_devices().problem
    if problem:
        pytest.skip(f"GPU test: {problem}")
    cupy = pytest.importorskip("cupy", reason="GPU test: CuPy is not installed")
    return Device("cuda", cupy)


@pytest.fixture(scope="session", autouse=True)
def _pool() -> None:
    """Disable CuPy's memory pool and those of sessions if DINOREG_TEST_POOL is 0.

    Each array is then an allocation of its own, whose end compute-sanitizer sees
    (tests/bench/sanitizer.sh).
    """
    if os.environ.get("DINOREG_TEST_POOL") == "0":
        import dinoreg_kernels

        pytest.importorskip("cupy").cuda.set_allocator(None)
        dinoreg_kernels.Session.memory = lambda _: contextlib.nullcontext()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> Device:
    """Every device of the library; CUDA is skipped with a reason if there is none."""
    return Device("cpu", np) if request.param == "cpu" else _cuda_device()


@pytest.fixture
def gpu() -> Device:
    """The CUDA device alone; skipped with a reason if there is none."""
    return _cuda_device()


@pytest.fixture
def cpu() -> Device:
    """The CPU alone, for tests that do not depend on the device."""
    return Device("cpu", np)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20250814)
