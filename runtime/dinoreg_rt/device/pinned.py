"""Page-locked host memory, and downloads into it beside the work of a CUDA device.

Copies from a device to ordinary memory make the host wait and pass through a buffer of the driver;
copies to page-locked memory run beside the work of both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..types import Array
from .choice import Device

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
    stream = device.xp.cuda.Stream(non_blocking=True)
    stream.wait_event(filled)
    rows = max(1, PART_BYTES // max(1, array[:1].nbytes))
    ring = [page_locked(device, (rows, *array.shape[1:]), array.dtype) for _ in range(2)]
    copied: deque[tuple[NDArray[Any], Any]] = deque()
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
