"""The CUDA path on host memory, for the tests of the runtime."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from cuda_on_host import cupy_on_host

from dinoreg_kernels import _arrays


@pytest.fixture
def cupy(monkeypatch) -> Any:
    """CuPy and a CUDA device, played by the host."""
    module = cupy_on_host()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr("dinoreg_rt.device._cuda_problem", lambda index: None)
    real = _arrays.Call.__init__

    def on_the_cpu(self, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        self.execution.device, self.execution.stream = 0, None

    monkeypatch.setattr(_arrays.Call, "__init__", on_the_cpu)
    return module
