"""The CUDA path in host memory, for the tests of the runtime."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import pytest
from captures import Capture, Graphs
from cuda_on_host import cupy_on_host

from dinoreg_kernels import _arrays


@pytest.fixture
def cupy(monkeypatch) -> Iterator[Any]:
    """CuPy and a CUDA device simulated by the host; `launched_on` holds our kernels' streams.

    A test fails in which streams use an array without an order, or which does within recorded work
    what may not be done there.
    """
    module = cupy_on_host()
    module.launched_on = set()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr("dinoreg_rt.device.choice.cuda_problem", lambda index: None)
    monkeypatch.setattr("dinoreg_rt.device.streams._idle", defaultdict(deque))
    real = _arrays.Call.__init__

    def on_the_cpu(self, *args: Any, **more: Any) -> None:
        real(self, *args, **more)
        if self.execution.device:
            self.execution.simulated_stream = self.execution.stream or 0
            module.launched_on.add(self.execution.simulated_stream)
            Capture.queue("library")
        self.execution.device, self.execution.stream = 0, None

    monkeypatch.setattr(_arrays.Call, "__init__", on_the_cpu)
    monkeypatch.setattr("dinoreg_kernels.session._Graphs", Graphs)
    yield module
    assert module.races == []
    assert module.forbidden == []
