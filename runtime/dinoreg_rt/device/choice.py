"""Where a registration runs: the CPU, or one CUDA device through CuPy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DeviceError, DinoregError
from ..types import Array
from .limits import usable_cpus


@dataclass(frozen=True)
class Device:
    """One place to compute.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        index: of the CUDA device.
        threads: CPU threads that the kernels use.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """As on the command line: ``cpu`` or ``cuda:N``."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"

    @property
    def xp(self) -> Any:
        """NumPy or CuPy."""
        if self.kind == "cpu":
            return np
        import cupy

        return cupy

    @property
    def host(self) -> Device:
        """The CPU beside it, or itself."""
        return self if self.kind == "cpu" else Device("cpu", threads=self.threads)

    def active(self) -> Any:
        """Context in which arrays are made on this device."""
        return nullcontext() if self.kind == "cpu" else self.xp.cuda.Device(self.index)

    def upload(self, array: Array, dtype: DTypeLike) -> Array:
        """C-contiguous array on this device; no copy where none is needed."""
        return self.xp.ascontiguousarray(self.xp.asarray(array, dtype=dtype))

    def download(self, array: Array) -> Any:
        """The same values as a NumPy array."""
        return array if self.kind == "cpu" else self.xp.asnumpy(array)

    def downloading(self, *arrays: Array) -> Callable[[], list[Any]]:
        """A function that gives the arrays' values as NumPy arrays; call it once, in this thread.

        It waits for what is queued by now alone: more can be queued before it is called, and is
        worked on meanwhile. NumPy arrays are given as they are.
        """
        if self.kind == "cpu":
            return lambda: list(arrays)
        cuda = self.xp.cuda
        queued = cuda.Event(disable_timing=True)
        queued.record()

        def values() -> list[Any]:
            stream = cuda.Stream(non_blocking=True)
            stream.wait_event(queued)
            return [a if isinstance(a, np.ndarray) else a.get(stream=stream) for a in arrays]

        return values

    def numbers(self, *values: Array) -> list[float]:
        """The values of small arrays on this device, one after the other; waits once for all."""
        flat = [self.xp.asarray(value, dtype=np.float64).ravel() for value in values]
        return list(self.download(self.xp.concatenate(flat)).tolist())

    def synchronize(self) -> None:
        """Wait until everything that was started has finished."""
        if self.kind == "cuda":
            self.xp.cuda.get_current_stream().synchronize()


def choose_device(wanted: str, threads: int) -> tuple[Device, str]:
    """The device for ``auto``, ``cpu`` or ``cuda[:N]``, and why.

    Of the threads no more are used than there are CPUs; the results are the same.

    Raises:
        DeviceError: a CUDA device was asked for by name and cannot be used.
    """
    usable, _ = usable_cpus()
    count = min(threads or usable, usable)  # more would wait for one another
    if wanted == "cpu":
        return Device("cpu", threads=count), "cpu, as asked"
    index = int(wanted.partition(":")[2] or 0) if wanted.startswith("cuda") else 0
    problem = _cuda_problem(index)
    if problem is None:
        reason = "as asked" if wanted.startswith("cuda") else "because a CUDA device is there"
        return Device("cuda", index, count), f"cuda:{index}, {reason}"
    if wanted == "auto":
        return Device("cpu", threads=count), f"cpu, because {problem}"
    raise DeviceError(
        f"--device {wanted}: {problem}. `dinoreg-rt doctor` shows what is missing; "
        "--device cpu runs without a GPU"
    )


def _cuda_problem(index: int) -> str | None:
    """Why CUDA device `index` cannot be used; None when it can."""
    from dinoreg_kernels import cuda_devices

    devices = cuda_devices()
    if devices.problem:
        return devices.problem
    if index >= devices.count:
        return f"there is no device {index}, only {devices.count} (numbered from 0)"
    try:
        import cupy  # noqa: F401
    except ImportError:
        return "CuPy is not installed (pip install '.[gpu]')"
    return None


@contextmanager
def kernel_errors() -> Iterator[None]:
    """What libdinoreg refuses or fails in is ours to report; also a decorator.

    Raises:
        DeviceError: the library or its device cannot be used here.
        DinoregError: it refused a call, which should have been checked before.
    """
    from dinoreg_kernels import KernelCancelled, KernelError, KernelUnavailable

    try:
        yield
    except KernelCancelled:
        raise
    except KernelUnavailable as error:
        raise DeviceError(str(error)) from error
    except KernelError as error:
        raise DinoregError(
            f"the kernels refused a call ({error}); this should have been found before: please "
            "report it with the images' sizes and the configuration"
        ) from error


@contextmanager
def library_errors(device: Device) -> Iterator[None]:
    """A library of CUDA that CuPy misses, which it loads when it first needs it, is ours to report.

    Raises:
        DeviceError: says what to install.
    """
    try:
        yield
    except ImportError as error:
        if device.kind == "cpu":
            raise
        from .packages import toolkit_command

        raise DeviceError(
            f"{device.name}: CuPy misses a library of CUDA ({str(error).strip().splitlines()[0]}); "
            f"{toolkit_command()}"
        ) from error


@dataclass
class StageTimer:
    """Wall-clock milliseconds of the stages of one run, in order."""

    device: Device
    timings_ms: dict[str, float] = field(default_factory=dict)
    #: The stage that was entered last, for messages.
    running: str = "field of view"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        self.running = name
        began = time.perf_counter()
        yield
        self._add(name, (time.perf_counter() - began) * 1e3)

    def finish(self) -> dict[str, float]:
        """Milliseconds of each stage; call it once, at the end."""
        return self.timings_ms

    def _add(self, name: str, elapsed_ms: float) -> None:
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + elapsed_ms


@dataclass
class EventTimer(StageTimer):
    """The same from CUDA events on the current stream: nothing waits for the GPU before `finish`.

    A stage lasts from where the stream reaches its begin to where it reaches its end.
    """

    _events: list[tuple[str, Any, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        self.running = name
        cuda = self.device.xp.cuda
        began, ended = cuda.Event(), cuda.Event()
        began.record()
        yield
        ended.record()
        self._events.append((name, began, ended))

    def finish(self) -> dict[str, float]:
        """Milliseconds of each stage; waits for the last one."""
        for name, began, ended in self._events:
            ended.synchronize()
            self._add(name, float(self.device.xp.cuda.get_elapsed_time(began, ended)))
        self._events.clear()
        return self.timings_ms


def stage_timer(device: Device) -> StageTimer:
    """The timer that suits a device."""
    return StageTimer(device) if device.kind == "cpu" else EventTimer(device)
