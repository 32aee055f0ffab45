"""Streams of a caller (CuPy, PyTorch, Numba, PyCUDA, or a handle from C++) as the current one, and
ours where the caller has none."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DeviceError, InputError
from .choice import Device

#: Where libraries keep the handle: PyTorch, CuPy, PyCUDA and Numba.
_ATTRIBUTES = ("cuda_stream", "ptr", "handle")
#: Handles of CUDA's default streams: the legacy one by two names, and that of each thread.
_DEFAULT_STREAMS = (0, 1, 2)
#: Streams of ours by device that no thread works on. They are kept: what CuPy's pool has freed on a
#: stream it hands out on that stream alone.
_idle: dict[int, deque[Any]] = defaultdict(deque)


@contextmanager
def caller_stream(stream: Any, device: Device) -> Iterator[None]:
    """Work of this thread goes onto `stream` while the block runs; None changes nothing.

    The stream stays the caller's: it is neither made nor destroyed here, and must live as long as
    the block.

    Raises:
        DeviceError: a stream was given and the work runs on the CPU.
        InputError: `stream` is no stream.
    """
    if stream is None:
        yield
        return
    handle = stream_handle(stream)
    if device.kind == "cpu":
        raise DeviceError(
            f"a CUDA stream ({type(stream).__name__}) was given and the registration runs on the "
            "CPU; ask for --device cuda (device='cuda'), or leave the stream out"
        )
    with device.active(), device.xp.cuda.Stream.from_external(_Handle(handle)):
        yield


@contextmanager
def working_stream(device: Device) -> Iterator[None]:
    """Work of this thread goes onto a non-blocking stream while the block runs.

    On the default stream it would wait for every blocking stream of the process, and they for it. A
    stream that the caller has made current is kept. Ours begins behind what is on the caller's, and
    the caller's goes on behind the block's work.
    """
    if device.kind == "cpu":
        yield
        return
    cuda = device.xp.cuda
    caller = cuda.get_current_stream()
    if caller.ptr not in _DEFAULT_STREAMS:
        yield
        return
    idle = _idle[device.index]
    try:
        stream = idle.pop()
    except IndexError:
        stream = cuda.Stream(non_blocking=True)
    try:
        stream.wait_event(caller.record())
        try:
            with stream:
                yield
        finally:
            caller.wait_event(stream.record())
    finally:
        idle.append(stream)


def stream_handle(stream: Any) -> int:
    """The ``cudaStream_t`` of a stream object, or of a whole number; 0 is the default stream.

    Raises:
        InputError: neither.
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
    """A handle as CuPy takes streams of others: through the CUDA stream protocol."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self._handle)
