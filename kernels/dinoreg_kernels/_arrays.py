"""NumPy and CuPy arrays as pointers, and the device and stream that a call runs on."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _library
from ._errors import KernelError
from ._structs import PROGRESS, Execution, PointMap

#: A NumPy or CuPy array.
Array = Any
#: Called with the name of the stage and the fraction of it that is done.
Progress = Callable[[str, float], None]
_STAGES = ("search", "refine")


def is_device_array(array: Array) -> bool:
    """Return whether the array lives on a CUDA device."""
    return hasattr(array, "__cuda_array_interface__")


def place_of(array: Array) -> str:
    """Name the place where the array lives, for messages and comparisons."""
    return f"CUDA device {array.device.id}" if is_device_array(array) else "the host"


def array_module(array: Array) -> Any:
    """Return NumPy for a host array and CuPy for a device array."""
    if not is_device_array(array):
        return np
    import cupy

    return cupy


def host_numbers(array: Array) -> list[float]:
    """Copy a small vector to the host, waiting for the device if it lives there."""
    return list((array.get() if is_device_array(array) else array).tolist())


class _Recording(threading.local):
    """What this thread records at the moment, see `Session`.

    Attributes:
        events: events that are wanted behind the recorded work, which has not been launched yet;
            None if nothing is being recorded.
    """

    events: list[Any] | None = None


_recording = _Recording()


@contextlib.contextmanager
def recording() -> Iterator[list[Any]]:
    """Note that this thread records for the block, and collect events to be recorded behind it."""
    events: list[Any] = []
    _recording.events = events
    try:
        yield events
    finally:
        _recording.events = None


def queued(array: Array) -> Any:
    """Record an event behind everything on the current stream; None for a host array."""
    if not is_device_array(array):
        return None
    done = array_module(array).cuda.Event(disable_timing=True)
    if _recording.events is None:
        done.record()
    else:
        _recording.events.append(done)
    return done


#: Shapes with a given rank (and number of components) and any lengths.
VOLUME = (None, None, None)
FIELD = (None, None, None, 3)
FEATURES = (None, None, None, None)


def pointer(
    array: Array,
    dtype: DTypeLike,
    name: str,
    shape: Sequence[int | None],
    *,
    in_order: bool = True,
) -> int:
    """Check an array and return the address of its first number.

    Args:
        array: A NumPy or CuPy array.
        dtype: The type it must have.
        name: What messages call it.
        shape: The shape it must have; None stands for any length.
        in_order: Whether it must be C-contiguous.

    Raises:
        KernelError: It is no such array, or not aligned to its type.
    """
    if not hasattr(array, "dtype"):
        raise KernelError(f"{name} is a {type(array).__name__}; wanted a NumPy or CuPy array")
    if array.dtype != np.dtype(dtype):
        raise KernelError(f"{name} is {array.dtype}; wanted {np.dtype(dtype)}")
    if in_order and not array.flags.c_contiguous:
        raise KernelError(f"{name} is not C-contiguous; copy it with `ascontiguousarray`")
    fits = len(array.shape) == len(shape) and all(
        wanted is None or n == wanted for n, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise KernelError(f"{name} has shape {tuple(array.shape)}; wanted ({text})")
    if is_device_array(array):
        address = int(array.__cuda_array_interface__["data"][0])
    else:
        address = int(array.ctypes.data)
    # A CPU tolerates it; on a GPU it is a fault after which the process cannot use the device.
    if address % array.dtype.itemsize:
        raise KernelError(f"{name} begins at {address:#x}, unaligned for {array.dtype}; copy it")
    return address


def steps(array: Array, name: str) -> list[int]:
    """Return the stride of each axis in numbers; 0 along an axis of length one."""
    size = array.dtype.itemsize
    strides = [s if n > 1 else 0 for n, s in zip(array.shape, array.strides, strict=True)]
    if any(s % size for s in strides):
        raise KernelError(f"{name} has strides of {strides} bytes; wanted multiples of {size}")
    return [s // size for s in strides]


def check_together(**arrays: Array | None) -> None:
    """Raise `KernelError` unless all arrays live on the host or all on one device."""
    places = {name: place_of(a) for name, a in arrays.items() if a is not None}
    if len(set(places.values())) > 1:
        text = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise KernelError(f"all arrays of a call must be on the host or on one device; got {text}")


def int3(values: Sequence[int], name: str) -> Any:
    """Convert three integers for the library."""
    return int32s(values, 3, name)


def int32s(values: Sequence[int], count: int, name: str) -> Any:
    """Convert `count` integers of 32 bits for the library."""
    if len(values) != count:
        raise KernelError(f"{name} has {len(values)} numbers; wanted {count}")
    numbers = [int(v) for v in values]
    if any(abs(v) >= 2**31 for v in numbers):  # ctypes would truncate them
        raise KernelError(f"{name} = {numbers}; wanted 32-bit integers")
    return (ctypes.c_int32 * count)(*numbers)


def doubles(values: ArrayLike, count: int, name: str) -> Any:
    """Convert `count` doubles for the library, a matrix row by row."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size != count:
        raise KernelError(f"{name} has {flat.size} numbers; wanted {count}")
    return (ctypes.c_double * count)(*flat)


def point_map(
    affine: ArrayLike,
    field: Array | None = None,
    to_field: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
) -> PointMap:
    """Make a `dr_point_map`; `dinoreg_kernels.map_field` explains the arguments."""
    args = PointMap()
    args.affine = doubles(affine, 12, "index_map")
    if field is not None:
        args.field = pointer(field, np.float32, "field", FIELD)
        args.field_shape = int3(field.shape[:3], "field.shape")
        args.to_field = doubles(np.eye(3, 4) if to_field is None else to_field, 12, "to_field")
        args.matrix = doubles(np.eye(3) if matrix is None else matrix, 9, "matrix")
    return args


#: The host workspace of the last call within `shared_workspace`; None outside of it.
_spare: ContextVar[deque[Any] | None] = ContextVar("spare", default=None)


@contextlib.contextmanager
def shared_workspace() -> Iterator[None]:
    """Let the calls within it, on this thread, use one workspace after each other.

    The system zeroes every page of fresh memory, which takes as long as a good part of a small
    solve. The memory is that of the call that needs the most.
    """
    token = _spare.set(deque(maxlen=1))
    try:
        yield
    finally:
        _spare.reset(token)


@contextlib.contextmanager
def _host_memory(size: int) -> Iterator[Any]:
    """Lend at least `size` bytes of any content."""
    spare = _spare.get()
    memory = spare.pop() if spare else None
    if memory is None or memory.size < size:
        memory = None  # given back before more is taken
        memory = np.empty(size, np.uint8)
    yield memory
    if spare is not None:
        spare.append(memory)


@contextlib.contextmanager
def workspace(name: str, args: Any, xp: Any, useful: int = 0) -> Iterator[None]:
    """Provide a call with the workspace whose size the library function `name` returns.

    Args:
        name: The library function.
        args: The arguments of the call, which receive the workspace.
        xp: The array module of the call.
        useful: Bytes to provide where the call needs less but would use more.
    """
    size = max(useful, _library.workspace_bytes(name, args))
    lent = _host_memory(size) if xp is np else contextlib.nullcontext(xp.empty(size, np.uint8))
    with lent as memory:
        args.workspace = pointer(memory, np.uint8, "workspace", (None,))
        args.workspace_bytes = memory.size
        yield


class Call:
    """Execution of one call: device and stream of an array, and the progress callback.

    An exception in the callback stops the solve; `reraising` raises it again. While a `Session`
    records, nothing is reported: the work has not run yet.
    """

    def __init__(self, like: Array, threads: int = 0, progress: Progress | None = None) -> None:
        self.execution = Execution()
        self.execution.threads = threads
        self._error: BaseException | None = None
        if is_device_array(like):
            import cupy

            current = cupy.cuda.runtime.getDevice()
            if like.device.id != current:
                raise KernelError(
                    f"the arrays are on {place_of(like)} and device {current} is the current one; "
                    f"call this within `cupy.cuda.Device({like.device.id})`"
                )
            self.execution.device = 1
            self.execution.stream = cupy.cuda.get_current_stream().ptr
        if progress is not None and _recording.events is None:

            def report(_user: int | None, stage: int, fraction: float) -> int:
                try:
                    progress(_STAGES[stage], fraction)
                except BaseException as error:
                    self._error = error
                    return 1
                return 0

            self._callback = PROGRESS(report)
            self.execution.progress = self._callback

    @contextlib.contextmanager
    def reraising(self) -> Iterator[None]:
        """Raise the callback's exception instead of the library's "cancelled"."""
        try:
            yield
        except KernelError:
            if self._error is not None:
                raise self._error from None
            raise
