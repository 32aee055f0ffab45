"""CUDA streams: a caller's (CuPy, PyTorch, Numba, PyCUDA, a C++ handle), or one of ours."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..errors import DeviceError, InputError
from .choice import Device

#: Attributes in which libraries keep the handle: PyTorch, CuPy, PyCUDA and Numba.
_ATTRIBUTES = ("cuda_stream", "ptr", "handle")
#: Handles of CUDA's default streams: the legacy one under two names, and the per-thread one.
_DEFAULT_STREAMS = (0, 1, 2)
Purpose = Literal["work", "copies", "tokens"]
#: Our idle streams, by device and purpose. They are kept because CuPy's pool hands out memory freed
#: on a stream only on that stream, and apart because each purpose allocates other sizes.
_idle: dict[tuple[int, Purpose], deque[Any]] = defaultdict(deque)


@contextmanager
def caller_stream(stream: Any, device: Device) -> Iterator[None]:
    """Queue this thread's work on `stream` for the block; None changes nothing.

    The caller keeps the stream: it is neither created nor destroyed here, and must outlive the
    block.

    Raises:
        DeviceError: a stream was given but the work runs on the CPU.
        InputError: `stream` is not a stream.
    """
    if stream is None:
        yield
        return
    handle = stream_handle(stream)
    if device.kind == "cpu":
        raise DeviceError(
            f"a CUDA stream ({type(stream).__name__}) was given but the registration runs on the "
            "CPU; set --device cuda (device='cuda'), or leave out the stream"
        )
    with device.active(), device.xp.cuda.Stream.from_external(_Handle(handle)):
        yield


@contextmanager
def working_stream(device: Device) -> Iterator[None]:
    """Queue this thread's work on a non-blocking stream for the block.

    On the default stream it would wait for every blocking stream of the process, and they for it. A
    stream that the caller has made current is kept. Ours starts after the work queued on the
    caller's, and the caller's continues after the block's work.
    """
    if device.kind == "cpu":
        yield
        return
    cuda = device.xp.cuda
    caller = cuda.get_current_stream()
    if caller.ptr not in _DEFAULT_STREAMS:
        yield
        return
    with idle_stream(device, "work") as stream:
        stream.wait_event(caller.record())
        try:
            with stream:
                yield
        finally:
            caller.wait_event(stream.record())


@contextmanager
def idle_stream(device: Device, purpose: Purpose) -> Iterator[Any]:
    """Lend a non-blocking stream of ours that nobody else uses during the block."""
    stream = take_stream(device, purpose)
    try:
        yield stream
    finally:
        give_stream(device, purpose, stream)


def take_stream(device: Device, purpose: Purpose) -> Any:
    """Return a stream as `idle_stream` lends them, until it is given back."""
    try:
        return _idle[device.index, purpose].pop()
    except IndexError:
        return device.xp.cuda.Stream(non_blocking=True)


def give_stream(device: Device, purpose: Purpose, stream: Any) -> None:
    """Give back a stream that was taken."""
    _idle[device.index, purpose].append(stream)


def stream_handle(stream: Any) -> int:
    """Return the ``cudaStream_t`` of a stream object or an integer; 0 is the default stream.

    Raises:
        InputError: `stream` is neither.
    """
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in _ATTRIBUTES:
        if hasattr(stream, name):
            stream = getattr(stream, name)
            break
    # Numba's handle is a ctypes pointer whose value is None for the default stream.
    value = getattr(stream, "value", stream)
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise InputError(
        f"cannot use a {type(stream).__name__} as a CUDA stream; give its handle (int), or a "
        "stream of CuPy, PyTorch, Numba or PyCUDA"
    )


class _Handle:
    """A handle in the form in which CuPy takes foreign streams, the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)
