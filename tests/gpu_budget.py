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
from cuda_on_host import Capture, DeviceArray, Event, Pool

from dinoreg_kernels import _library, _structs
from dinoreg_rt.device.choice import StageTimer

#: Seconds of the host: a launch, a call of CuPy, a node that is captured and set in a graph that is
#: kept, and a wait for the device. Rules of thumb, not measured here.
LAUNCH_S, CALL_S, NODE_S, WAIT_S = 3e-6, 12e-6, 1e-6, 10e-6
#: Bytes a second: of the device's memory (H200), and between page-locked memory and the device.
MEMORY_BYTES_S, TRANSFER_BYTES_S = 4.3e12, 50e9


@dataclass
class Counts:
    """What a stage asks for.

    Attributes:
        calls: calls of CuPy.
        launches: launches of kernels, memory operations and graphs, each of which is a launch.
        graphs: graphs among the launches.
        nodes: nodes in these graphs.
        waits: times that the host waits for the device.
        uploaded: bytes from the host to the device.
        downloaded: bytes from the device to the host.
        allocated: bytes by which the memory pools grew.
    """

    calls: int = 0
    launches: int = 0
    graphs: int = 0
    nodes: int = 0
    waits: int = 0
    uploaded: int = 0
    downloaded: int = 0
    allocated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def host_ms(self) -> float:
        """Milliseconds of the host that the counts imply."""
        others = self.launches - self.graphs
        seconds = LAUNCH_S * max(self.graphs, 0) + WAIT_S * self.waits + NODE_S * self.nodes
        seconds += CALL_S * self.calls + LAUNCH_S * max(others - self.calls, 0)
        return 1e3 * seconds

    @property
    def transfer_ms(self) -> float:
        """Milliseconds of transfers between page-locked memory and the device."""
        return 1e3 * (self.uploaded + self.downloaded) / TRANSFER_BYTES_S


class Counter:
    """Counts by stage while the simulated device works (`install`)."""

    def __init__(self, counting_library: Path) -> None:
        self._library = ctypes.CDLL(str(counting_library))
        self._library.make_stream.restype = ctypes.c_void_p
        self._library.end_capture.restype = ctypes.c_longlong
        for name in ("begin_capture", "end_capture"):
            getattr(self._library, name).argtypes = [ctypes.c_void_p]
        self._library.count_only()
        self._stream = self._library.make_stream()
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
        for timer in (StageTimer, *StageTimer.__subclasses__()):
            monkeypatch.setattr(timer, "stage", self._named(timer.stage))

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
        queue = Capture.queue

        def queued(kind: str) -> None:
            queue(kind)
            here, captured = self._here, Capture.current() is not None
            here.calls += kind == "CuPy"
            here.graphs += kind == "graph"
            here.nodes += kind == "CuPy" and captured
            here.launches += kind == "graph" or (kind == "CuPy" and not captured)

        monkeypatch.setattr(Capture, "queue", queued)

    def _count_transfers(self, monkeypatch: Any) -> None:
        read, hold = DeviceArray._read_by_host, Pool.hold
        synchronize, upload = Event.synchronize, cuda_on_host.uploaded

        def reads(of: Any, stream: Any = None) -> None:
            self._here.waits += 1
            self._here.downloaded += of.host.nbytes
            read(of, stream)

        def holds(of: Any, host: np.ndarray) -> None:
            before = of.reserved
            hold(of, host)
            self._here.allocated += of.reserved - before

        def waits(event: Event) -> None:
            self._here.waits += not DeviceArray.order.passed(event.clock)
            synchronize(event)

        def uploads(size: int) -> None:
            self._here.uploaded += size
            upload(size)

        monkeypatch.setattr(DeviceArray, "_read_by_host", reads)
        monkeypatch.setattr(Pool, "hold", holds)
        monkeypatch.setattr(Event, "synchronize", waits)
        monkeypatch.setattr(cuda_on_host, "uploaded", uploads)

    def _count_launches(self, monkeypatch: Any) -> None:
        call = _library.call

        def counted(name: str, execution: _structs.Execution, args: ctypes.Structure) -> None:
            call(name, execution, args)
            stream = getattr(execution, "simulated_stream", None)
            if stream is not None:
                self._ask(name, execution, args)

        monkeypatch.setattr(_library, "call", counted)

    def _ask(self, name: str, execution: _structs.Execution, args: Any) -> None:
        """Let the counting library do what the device's would do, and add what it launches."""
        asked = _structs.Execution()
        asked.device, asked.stream = 1, self._stream
        if execution.progress:
            asked.progress = _GO_ON
        captured = Capture.current() is not None
        if captured:
            self._library.begin_capture(self._stream)
        before = self._counted()
        status = getattr(self._library, name)(ctypes.byref(asked), ctypes.byref(args))
        assert status == 0, name
        if captured:
            self._here.nodes += self._library.end_capture(self._stream)
            return
        launches, graphs, nodes = (
            after - earlier for after, earlier in zip(self._counted(), before, strict=True)
        )
        self._here.launches += launches + graphs
        self._here.graphs += graphs
        self._here.nodes += nodes

    def _counted(self) -> list[int]:
        numbers = (ctypes.c_longlong * 3)()
        self._library.counted(numbers)
        return list(numbers)


#: A caller's progress that lets the work go on.
_GO_ON = _structs.PROGRESS(lambda *_: 0)
