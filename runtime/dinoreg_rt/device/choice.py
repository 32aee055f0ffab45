"""The device of a registration: the CPU, or one CUDA device through CuPy."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from ..errors import DeviceError, DinoregError
from ..types import Array
from .limits import usable_cpus

if TYPE_CHECKING:
    from dinoreg_kernels import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """A device that computes.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        index: number of the CUDA device.
        threads: CPU threads that the kernels use.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """Name as on the command line, ``cpu`` or ``cuda:N``."""
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
        """This device if it is the CPU, else the CPU beside it."""
        return self if self.kind == "cpu" else Device("cpu", threads=self.threads)

    def active(self) -> Any:
        """Return a context in which arrays are created on this device."""
        return nullcontext() if self.kind == "cpu" else self.xp.cuda.Device(self.index)

    def upload(self, array: Array, dtype: DTypeLike) -> Array:
        """Return a C-contiguous array on this device, without a copy if possible."""
        xp = self.xp
        if isinstance(array, xp.ndarray) and array.dtype == dtype and array.flags.c_contiguous:
            return array  # CuPy takes microseconds to find out the same
        return xp.asarray(array, dtype=dtype, order="C")

    def download(self, array: Array) -> Any:
        """Return the values as a NumPy array."""
        return array if self.kind == "cpu" else self.xp.asnumpy(array)

    def downloading(self, *arrays: Array) -> Callable[[], list[Any]]:
        """Return a function that downloads the arrays; call it once, in this thread.

        It waits only for work queued so far: more can be queued before the call and runs meanwhile.
        It returns NumPy arrays; inputs that are NumPy arrays are returned as they are.
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
        """Return the values of small arrays on this device as one list, waiting once for all."""
        flat = [self.xp.asarray(value, dtype=np.float64).ravel() for value in values]
        return list(self.download(self.xp.concatenate(flat)).tolist())

    def synchronize(self) -> None:
        """Wait until all work started so far has finished."""
        if self.kind == "cuda":
            self.xp.cuda.get_current_stream().synchronize()


def choose_device(wanted: str, threads: int) -> tuple[Device, str]:
    """Return the device for ``auto``, ``cpu`` or ``cuda[:N]``, and the reason.

    No more threads are used than there are CPUs; the results do not depend on their number.

    Raises:
        DeviceError: a CUDA device was asked for by name and cannot be used.
    """
    usable, _ = usable_cpus()
    count = min(threads or usable, usable)  # more would only wait for each other
    if wanted == "cpu":
        return Device("cpu", threads=count), "cpu, as asked"
    index = _index(wanted)
    problem = cuda_problem(index)
    if problem is None:
        reason = "as asked" if wanted.startswith("cuda") else "because a CUDA device is available"
        return Device("cuda", index, count), f"cuda:{index}, {reason}"
    if wanted == "auto":
        return Device("cpu", threads=count), f"cpu, because {problem}"
    raise DeviceError(
        f"--device {wanted}: {problem}. `dinoreg-rt doctor` shows what is missing; "
        "--device cpu runs without a GPU"
    )


def cuda_problem(index: int) -> str | None:
    """Return why CUDA device `index` cannot be used; None if it can."""
    from dinoreg_kernels import cuda_devices, current_device_problem

    devices = cuda_devices()
    if devices.problem:
        return devices.problem
    if index >= devices.count:
        return f"there is no device {index}, only {devices.count} (numbered from 0)"
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed"
    with cupy.cuda.Device(index):
        return current_device_problem() or None


def require_device(wanted: str) -> None:
    """Raise `DeviceError` unless ``cpu`` or ``cuda[:N]`` can be used here, kernels included."""
    from dinoreg_kernels import build_info

    with kernel_errors():
        build_info()
        problem = None if wanted == "cpu" else cuda_problem(_index(wanted))
    if problem is not None:
        raise DeviceError(f"{wanted} cannot be used: {problem}")


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Translate errors of libdinoreg and CuPy; also usable as a decorator.

    A GPU reports a failure to whoever calls it next, which may be CuPy.

    Raises:
        DeviceError: the library or its device cannot be used here, or the device failed.
        DinoregError: the library refused a call that should have been checked before.
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
            f"the kernels refused a call ({error}); this is a bug: please report it with the sizes "
            "of the images and the configuration"
        ) from error
    except Exception as error:
        if not type(error).__module__.startswith("cupy"):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"the GPU failed ({reason}); after such an error a process often cannot use it any "
            "more: start it again, and report the error if it returns"
        ) from error


@contextmanager
def library_errors(device: Device) -> Iterator[None]:
    """Report a CUDA library that CuPy cannot load, which it tries only on first use.

    Raises:
        DeviceError: a library is missing; the message says what to install.
    """
    try:
        yield
    except ImportError as error:
        if device.kind == "cpu":
            raise
        from .packages import toolkit_command

        raise DeviceError(
            f"{device.name}: CuPy cannot load a CUDA library "
            f"({str(error).strip().splitlines()[0]}); {toolkit_command()}"
        ) from error


@dataclass
class StageTimer:
    """Wall-clock milliseconds of the stages of a run, in order."""

    device: Device
    timings_ms: dict[str, float] = field(default_factory=dict)
    #: Stage entered last, for messages.
    running: str = "field of view"
    #: Records stages as CUDA graphs; None runs them as they are.
    session: Session | None = None
    #: What decides, beside its name, which kernels a stage queues.
    key: Hashable = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        self.running = name
        began = time.perf_counter()
        yield
        self._add(name, (time.perf_counter() - began) * 1e3)

    def recorded(self, name: str, work: Callable[[], T]) -> T:
        """Time a stage whose work may be recorded; `Session` says what it must not do.

        Each stage is a graph of its own: the device works on it while the next one is recorded, and
        the events that time it lie between the graphs.
        """
        with self.stage(name):
            return work() if self.session is None else self.session.run((name, self.key), work)

    def finish(self) -> dict[str, float]:
        """Return the milliseconds of each stage; call it once, at the end."""
        return self.timings_ms

    def _add(self, name: str, elapsed_ms: float) -> None:
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + elapsed_ms


@dataclass
class EventTimer(StageTimer):
    """Stage timer based on CUDA events, which does not wait for the GPU before `finish`.

    A stage lasts from the moment the current stream reaches its beginning until it reaches its end.
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
        """Wait for the last stage and return the milliseconds of each."""
        for name, began, ended in self._events:
            ended.synchronize()
            self._add(name, float(self.device.xp.cuda.get_elapsed_time(began, ended)))
        self._events.clear()
        return self.timings_ms


def stage_timer(device: Device) -> StageTimer:
    """Return the timer that suits a device."""
    return StageTimer(device) if device.kind == "cpu" else EventTimer(device)
