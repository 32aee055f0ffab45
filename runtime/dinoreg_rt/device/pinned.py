"""Page-locked host memory, and downloads into it beside the work of a CUDA device.

The arrays of results lie in it as well, up to `MOST_BYTES` in all results that are alive.

Copies from a device to ordinary memory make the host wait and pass through a buffer of the driver;
copies to page-locked memory run beside the work of both.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..types import Array
from .choice import Device
from .streams import idle_stream

#: Most bytes of page-locked memory in all results that are alive; the system cannot swap it out.
MOST_BYTES = 1 << 30
#: ``cudaMemoryTypeHost``.
_HOST_MEMORY = 1
#: Bytes of each of the two buffers of a download in parts.
PART_BYTES = 32 << 20


def page_locked(device: Device, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array in page-locked memory; its values are undefined.

    The memory comes from CuPy's pool and returns there when the array and its views are freed.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = device.xp.cuda.alloc_pinned_memory(size)
    # The pool rounds sizes up.
    whole: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, size)
    return whole.view(dtype).reshape(shape)


def download_in_parts(array: Array, filled: Any, device: Device) -> Iterator[NDArray[Any]]:
    """Yield an array on the device in consecutive parts along its first axis.

    One part is copied while the caller uses another, which is overwritten after the next one was
    asked for.

    Args:
        array: C-contiguous array on `device`, which is current.
        filled: event after which the array is complete.
        device: a CUDA device.
    """
    rows = max(1, PART_BYTES // max(1, array[:1].nbytes))
    ring = [page_locked(device, (rows, *array.shape[1:]), array.dtype) for _ in range(2)]
    copied: deque[tuple[NDArray[Any], Any]] = deque()
    with idle_stream(device, "copies") as stream:
        stream.wait_event(filled)
        try:
            for number, start in enumerate(range(0, len(array), rows)):
                part = array[start : start + rows]
                host = ring[number % 2][: len(part)]
                part.get(out=host, stream=stream, blocking=False)
                copied.append((host, stream.record()))
                if len(copied) == 2:
                    yield _waited(*copied.popleft())
            while copied:
                yield _waited(*copied.popleft())
        finally:
            stream.synchronize()  # the buffers go back to the pool


def _waited(host: NDArray[Any], done: Any) -> NDArray[Any]:
    done.synchronize()
    return host


class _Budget:
    """The page-locked bytes of all results that are alive."""

    def __init__(self) -> None:
        self._used = 0
        # Reentrant, because an array may be freed, and so `_give` called, at any line.
        self._lock = threading.RLock()

    def array(self, device: Device, like: Array) -> NDArray[Any] | None:
        """Return an array for a download; None beyond the limit or where the system has no more."""
        size = 1 << max(0, int(like.nbytes) - 1).bit_length()  # as CuPy's pool rounds it
        with self._lock:
            if self._used + size > MOST_BYTES:
                return None
            self._used += size
        try:
            made = page_locked(device, like.shape, like.dtype)
        except Exception:  # CuPy's errors share no base class; ordinary memory will do
            self._give(size)
            return None
        weakref.finalize(made.base, self._give, size).atexit = False
        return made

    def _give(self, size: int) -> None:
        with self._lock:
            self._used -= size


_results = _Budget()


def _is_page_locked(array: NDArray[Any], device: Device) -> bool:
    """Return whether CUDA knows an array's memory as page-locked, whoever allocated it."""
    runtime = device.xp.cuda.runtime
    return bool(runtime.pointerGetAttributes(array.ctypes.data).type == _HOST_MEMORY)


@contextmanager
def downloads(
    device: Device, arrays: Sequence[Array], into: Sequence[NDArray[Any] | None]
) -> Iterator[Callable[..., list[NDArray[Any]]]]:
    """Download arrays beside the work that is queued during the block.

    Args:
        device: a CUDA device.
        arrays: C-contiguous arrays on it, complete on its current stream. They must not change.
        into: for each, the caller's array to fill, or None for a new one, in page-locked memory
            where possible (`MOST_BYTES`).

    Yields:
        A function that takes further arrays, complete on the current stream by then, waits for all
        downloads and returns the host's arrays, in order. Copies to ordinary memory are made only
        then, because the host has to wait for them.
    """
    with idle_stream(device, "copies") as stream:
        current = device.xp.cuda.get_current_stream()

        def begin(array: Array, wanted: NDArray[Any] | None) -> NDArray[Any] | None:
            host = wanted
            if wanted is None:
                host = _results.array(device, array)
            elif not _is_page_locked(wanted, device):
                host = None
            if host is not None:
                array.get(out=host, stream=stream, blocking=False)
            return host

        stream.wait_event(current.record())
        waited = False
        try:
            begun = [begin(*both) for both in zip(arrays, into, strict=True)]

            def values(*others: Array) -> list[NDArray[Any]]:
                nonlocal waited
                if others:
                    stream.wait_event(current.record())
                everything = [*arrays, *others], [*into, *[None] * len(others)]
                hosts = [*begun, *(begin(other, None) for other in others)]
                copied = stream.record()
                current.wait_event(copied)  # it may reuse the memory of the arrays
                copied.synchronize()
                waited = True
                return [
                    array.get(out=wanted, stream=stream) if host is None else host
                    for array, wanted, host in zip(*everything, hosts, strict=True)
                ]

            yield values
        finally:
            if not waited:  # after an error: the memory is about to be freed
                stream.synchronize()
