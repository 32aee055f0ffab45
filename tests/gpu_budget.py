"""What a registration asks of a GPU and its host, counted without one.

The CPU computes the results (`cuda_on_host`). The library with its CUDA back end, compiled for the
host (`kernels/cuda_counting.cpp`), receives every call as well and counts what it would launch.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cuda_on_host
import numpy as np
import pytest
from captures import Capture
from cuda_on_host import DeviceArray, Event, Pool
from page_locked import PageLocked

from dinoreg_kernels import _library, _structs
from dinoreg_rt.device.choice import StageTimer

ROOT = Path(__file__).parents[1]
#: Seconds of the host for a launch, a call of CuPy, a node that is captured and set in a graph that
#: is kept, and a wait for the device. Rules of thumb, not measured here.
LAUNCH_S, CALL_S, NODE_S, WAIT_S = 3e-6, 12e-6, 1e-6, 10e-6
#: Seconds of the device from one dependent kernel to the next, also a rule of thumb.
KERNEL_S = 2e-6
#: Bytes a second: of the device's memory (H200), and between page-locked memory and the device.
MEMORY_BYTES_S, TRANSFER_BYTES_S = 4.3e12, 50e9


@dataclass
class Counts:
    """What a stage asks of the host and the device.

    Attributes:
        calls: calls of CuPy.
        launches: launches of kernels, memory operations and graphs.
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
        """Milliseconds of the host; a call of CuPy includes its launch."""
        seconds = CALL_S * self.calls + LAUNCH_S * max(self.launches - self.calls, self.graphs)
        return 1e3 * (seconds + NODE_S * self.nodes + WAIT_S * self.waits)

    @property
    def transfer_ms(self) -> float:
        """Milliseconds of transfers between page-locked memory and the device."""
        return 1e3 * (self.uploaded + self.downloaded) / TRANSFER_BYTES_S


@dataclass(frozen=True)
class Budget:
    """Counts by stage, and the bytes that each stage must move in the device's memory."""

    counts: dict[str, Counts]
    moved: dict[str, float]

    def total(self, leaving_out: Sequence[str] = ()) -> Counts:
        """Return the sum of all stages but some."""
        return sum((n for s, n in self.counts.items() if s not in leaving_out), Counts())

    def device_ms(self, stage: str) -> float:
        """Return the milliseconds in which the device could move a stage's bytes in its kernels."""
        counts = self.counts[stage]
        kernels = counts.launches - counts.graphs + counts.nodes
        return 1e3 * (self.moved.get(stage, 0.0) / MEMORY_BYTES_S + KERNEL_S * kernels)

    def milliseconds(self, leaving_out: Sequence[str] = ()) -> float:
        """Return the sum of host, transfers and device, as if nothing ran beside anything else."""
        stages = [stage for stage in self.counts if stage not in leaving_out]
        whole = self.total(leaving_out)
        return whole.host_ms + whole.transfer_ms + sum(map(self.device_ms, stages))


def table(budget: Budget) -> str:
    """Return the table of the documentation."""
    lines = [
        "| stage | CuPy calls | launches | of them graphs | nodes | waits | MB to and fro "
        "| MB on the device | host, ms | transfers, ms | device, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, counts in budget.counts.items():
        lines.append(_row(stage, counts, budget.moved.get(stage, 0.0), budget.device_ms(stage)))
    whole, moved = budget.total(), sum(budget.moved.get(stage, 0.0) for stage in budget.counts)
    lines.append(_row("**sum**", whole, moved, sum(map(budget.device_ms, budget.counts))))
    return "\n".join(lines)


def _row(name: str, counts: Counts, moved: float, device_ms: float) -> str:
    numbers = (counts.calls, counts.launches, counts.graphs, counts.nodes, counts.waits)
    transferred = (counts.uploaded + counts.downloaded) / 1e6
    times = (counts.host_ms, counts.transfer_ms, device_ms)
    cells = [*map(str, numbers), f"{transferred:.1f}", f"{moved / 1e6:.0f}"]
    return f"| {name} | {' | '.join(cells)} | {' | '.join(f'{t:.2f}' for t in times)} |"


def build_counting_library(folder: Path) -> Path:
    """Compile the library with its CUDA back end for the host; skips without a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (CXX, c++ or g++)")
    kernels, checks = ROOT / "kernels", ROOT / "tests" / "kernels"
    flags = ["-std=gnu++20", "-O0", "-shared", "-fPIC", "-pthread", "-w", "-DDR_HAVE_CUDA"]
    flags += ["-DDR_ISA=generic", "-DDR_ISA_IS_GENERIC", f"-I{checks / 'cuda_shim'}"]
    flags += [f"-I{kernels / part}" for part in ("", "include", "src", "cpu", "cuda")]
    sources = [checks / "cuda_counting.cpp", kernels / "src" / "capi.cpp"]
    sources += [kernels / "cpu" / "backend.cpp", kernels / "cpu" / "threads.cpp"]
    output = folder / "libcounting.so"
    command = [*compiler.split(), *flags, "-x", "c++", *map(str, sources), "-o", str(output)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return output


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
            here.calls += kind in ("CuPy", "memory")
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

        copy = PageLocked.copy

        def copies(memory: Any, source: Any, out: np.ndarray, stream: int) -> None:
            self._here.downloaded += out.nbytes
            copy(memory, source, out, stream)

        monkeypatch.setattr(PageLocked, "copy", copies)
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
