"""What a registration asks of a GPU and its host, counted without one.

The CPU computes the results (`cuda_on_host`). The library with its CUDA back end, compiled for the
host (`kernels/cuda_counting.cpp`), receives every call as well and counts what it would launch.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cuda_on_host
import numpy as np

from dinoreg_kernels import _library, _structs
from dinoreg_rt.device.choice import StageTimer

#: Seconds that the host spends on each, as a rule: https://cupy.dev measures 12 us for a call of
#: CuPy; NVIDIA documents some 3 us for a launch and less than 1 us for a captured node.
LAUNCH_S, CALL_S, NODE_S, WAIT_S = 3e-6, 12e-6, 1e-6, 10e-6


@dataclass
class Counts:
    """What a stage asks for.

    Attributes:
        calls: calls of CuPy, each of which launches at least one kernel.
        launches: launches of kernels and memory operations by libdinoreg, outside of graphs.
        graphs: launches of graphs.
        nodes: nodes in these graphs.
        made: graphs that were instantiated.
        waits: times that the host waits for the device.
        uploaded: bytes from the host to the device.
        downloaded: bytes from the device to the host.
        allocated: bytes by which the memory pool grew.
    """

    calls: int = 0
    launches: int = 0
    graphs: int = 0
    nodes: int = 0
    made: int = 0
    waits: int = 0
    uploaded: int = 0
    downloaded: int = 0
    allocated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Counter:
    """Counts by stage while the simulated device works (`install`)."""

    def __init__(self, counting_library: Path) -> None:
        self._library = ctypes.CDLL(str(counting_library))
        self._library.make_stream.restype = ctypes.c_void_p
        self._library.count_only()
        self._streams: dict[int, int] = {}
        self._stage = "between stages"
        self._by_stage: defaultdict[str, Counts] = defaultdict(Counts)

    def take(self) -> dict[str, Counts]:
        """Return the counts so far by stage, in order, and begin anew."""
        found = dict(self._by_stage)
        self._by_stage.clear()
        return found

    def install(self, monkeypatch: Any) -> None:
        """Count in the simulated device (the fixture ``cupy``) from now on."""
        self._count_calls(monkeypatch)
        self._count_transfers(monkeypatch)
        self._count_launches(monkeypatch)
        entered = StageTimer.stage
        for timer in (StageTimer, *StageTimer.__subclasses__()):
            monkeypatch.setattr(timer, "stage", self._named(timer.stage))
        assert entered is not StageTimer.stage

    @property
    def _here(self) -> Counts:
        return self._by_stage[self._stage]

    def _named(self, stage: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def named(timer: StageTimer, name: str) -> Iterator[None]:
            before, self._stage = self._stage, name
            try:
                with stage(timer, name):
                    yield
            finally:
                self._stage = before

        return named

    def _count_calls(self, monkeypatch: Any) -> None:
        used = cuda_on_host._used

        def counted(*args: Any) -> None:
            self._here.calls += 1
            used(*args)

        monkeypatch.setattr(cuda_on_host, "_used", counted)

    def _count_transfers(self, monkeypatch: Any) -> None:
        array, pool = cuda_on_host.DeviceArray, cuda_on_host.Pool
        read, hold = array._read_by_host, pool.hold

        def reads(of: Any, stream: Any = None) -> None:
            self._here.waits += 1
            self._here.downloaded += of.host.nbytes
            read(of, stream)

        def holds(of: Any, host: np.ndarray) -> None:
            before = of.peak
            hold(of, host)
            self._here.allocated += of.peak - before

        monkeypatch.setattr(array, "_read_by_host", reads)
        monkeypatch.setattr(pool, "hold", holds)

    def _count_launches(self, monkeypatch: Any) -> None:
        call = _library.call

        def counted(name: str, execution: _structs.Execution, args: ctypes.Structure) -> None:
            call(name, execution, args)
            stream = getattr(execution, "simulated_stream", None)
            if stream is not None:
                self._ask(name, execution, args, stream)

        monkeypatch.setattr(_library, "call", counted)

    def _ask(self, name: str, execution: _structs.Execution, args: Any, stream: int) -> None:
        """Let the counting library do what the device's would do, and add what it launches."""
        asked = _structs.Execution()
        asked.device, asked.stream = 1, self._stream(stream)
        if execution.progress:
            asked.progress = _GO_ON
        before = self._counted()
        function = getattr(self._library, name)
        status = function(ctypes.byref(asked), ctypes.byref(args))
        assert status == 0, name
        launches, graphs, nodes, made = (
            after - earlier for after, earlier in zip(self._counted(), before, strict=True)
        )
        here = self._here
        here.launches += launches
        here.graphs += graphs
        here.nodes += nodes
        here.made += made

    def _counted(self) -> list[int]:
        numbers = (ctypes.c_longlong * 4)()
        self._library.counted(numbers)
        return list(numbers)

    def _stream(self, handle: int) -> int:
        if handle not in self._streams:
            self._streams[handle] = self._library.make_stream()
        return self._streams[handle]


_GO_ON = _structs.PROGRESS(lambda *_: 0)
