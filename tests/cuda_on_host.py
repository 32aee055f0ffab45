"""CuPy in host memory: the whole CUDA path of a registration runs with the CPU's kernels.

Arrays are as strict as CuPy's where NumPy's would be lenient: they are not converted implicitly, do
not mix with NumPy arrays, and reductions return arrays. Memory is counted as CuPy's pool would
count it, and so is every read of a value by the host, which would wait for a device. The order of
the streams is followed, and uses of an array without one are races (`happens_before`). Speed and
fragmentation of the pool show only on a device.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from captures import Capture, CUDARuntimeError
from happens_before import HappensBefore
from page_locked import PageLocked

#: CuPy refuses them while a stream is captured, because they are cuBLAS.
_CUBLAS = {"matmul", "dot", "vdot", "inner", "tensordot", "einsum"}
_FROM_HOST = {"asarray", "array", "ascontiguousarray"}
#: What CuPy's arrays hold: no objects, texts, dates or extended precision.
_DTYPES = "?bhilqBHILQefdFD"


def _unwrapped(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray) and value.ndim > 0:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(_unwrapped(v) for v in value)
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return DeviceArray(np.asarray(value))
    if isinstance(value, tuple | list):
        return type(value)(_wrapped(v) for v in value)
    return value


def _root(host: np.ndarray) -> np.ndarray:
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def _buffers(value: Any) -> set[int]:
    """Return the identities of the memory of all device arrays in a value."""
    if isinstance(value, DeviceArray):
        return {id(_root(value.host))}
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(_buffers, value)) if isinstance(value, tuple | list) else set()


def _used(result: Any, reads: set[int], writes: set[int], kind: str = "CuPy") -> None:
    """Note work on the current stream; a result in the memory of an argument is a view of it."""
    made = _buffers(result) - reads
    if made or writes or not _buffers(result):
        DeviceArray.order.use(Stream.current().ptr, reads - writes, made | writes)
        Capture.queue(kind)
        capture = Capture.current()
        if capture is not None and not writes <= set(capture.made):  # done twice if it is lost
            Capture.forbid("a change of an array from outside")


def uploaded(size: int) -> None:
    """Called with the bytes of each upload, for those who count them."""


def _called(function: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
    out = more.pop("out", None)
    name = getattr(function, "__name__", "")
    if name in _CUBLAS or getattr(function, "__self__", None) is np.matmul:
        Capture.forbid("cuBLAS")
    if name in ("concatenate", "stack") and len(args[0]) > 8:  # copies a list of pointers
        Capture.forbid("an upload of pointers")
    reads, writes = _buffers(args) | _buffers(more), _buffers(out)
    result = _computed(function, args, more if out is None else more | {"out": out})
    _used(result, reads, writes, "memory" if name in ("empty", "empty_like") else "CuPy")
    return result


def _computed(function: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
    out = more.get("out")
    result = function(*_unwrapped(args), **{k: _unwrapped(v) for k, v in more.items()})
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return _wrapped(result)


def _called_with(function: Any, *args: Any, **more: Any) -> Any:
    return _called(function, args, more)


def _fft(function: Any, array: DeviceArray, shape: Any, axes: Any) -> DeviceArray:
    return _called(function, (array, shape, axes), {})


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`."""


class Pool:
    """Bytes of live arrays in blocks of 512, with peaks and host reads and their bytes by stage."""

    def __init__(self) -> None:
        self.used = self.peak = self.reserved = 0
        self.limit: int | None = None
        self.stage: Callable[[], str] = str
        self.peaks: dict[str, int] = {}
        self.reads: dict[str, int] = {}
        self.read_bytes: dict[str, int] = {}

    _local = threading.local()

    @classmethod
    def current(cls) -> Pool:
        return cls._local.__dict__.get("pool") or DeviceArray.pool

    @classmethod
    @contextmanager
    def using_allocator(cls, malloc: Any) -> Iterator[None]:
        """`cupy.cuda.using_allocator`, for the `malloc` of a pool."""
        before, cls._local.pool = cls._local.__dict__.get("pool"), malloc.__self__
        try:
            yield
        finally:
            cls._local.pool = before

    def malloc(self, size: int) -> None:
        raise NotImplementedError  # only names the pool

    def hold(self, host: np.ndarray) -> None:
        host = _root(host)
        if id(host) in DeviceArray.known:
            return
        size = -(-host.nbytes // 512) * 512
        capture = Capture.current()
        if capture is not None and self.used + size > self.reserved:  # cudaMalloc
            capture.invalid = True
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: allocation in a capture")
        if self.limit is not None and self.used + size > self.limit:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        DeviceArray.known.add(id(host))
        if capture is not None:
            capture.made[id(host)] = weakref.ref(host)
        self.used += size
        self.peak = max(self.peak, self.used)
        self.reserved = max(self.reserved, self.used)
        self.peaks[self.stage()] = max(self.peaks.get(self.stage(), 0), self.used)
        weakref.finalize(host, self._let_go, id(host), size, Stream.current().ptr)

    def read(self, size: int) -> None:
        stage = self.stage()
        self.reads[stage] = self.reads.get(stage, 0) + 1
        self.read_bytes[stage] = self.read_bytes.get(stage, 0) + size

    def _let_go(self, key: int, size: int, allocated_on: int) -> None:
        DeviceArray.known.discard(key)
        DeviceArray.order.free(key, allocated_on)
        self.used -= size

    def total_bytes(self) -> int:
        return self.reserved

    def free_bytes(self) -> int:
        return self.reserved - self.used

    def free_all_blocks(self) -> None:
        self.reserved = self.used


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """`cupy.ndarray`."""

    device: Any = None
    page_locked: PageLocked
    pool = Pool()
    order = HappensBefore()
    #: Identities of the memory that any pool holds.
    known: set[int]

    def __init__(self, host: np.ndarray) -> None:
        if host.dtype.char not in _DTYPES:
            raise ValueError(f"Unsupported dtype {host.dtype}")
        self.host = host
        Pool.current().hold(host)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self.order.use(Stream.current().ptr, _buffers(self))  # our kernels read through it
        return {"data": (self.host.ctypes.data, False), "shape": self.host.shape, "version": 3}

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **more: Any) -> Any:
        return _called(getattr(ufunc, method), inputs, more)

    def __array_function__(self, function: Any, _: Any, args: Any, more: Any) -> Any:
        return _called(function, tuple(args), more)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("tobytes", "ctypes"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        if name in ("item", "tolist"):
            self._read_by_host()
        if callable(value):
            return lambda *args, **more: self._method(value, args, more)
        return _wrapped(value) if name in ("T", "real", "imag") else value

    def __getitem__(self, item: Any) -> DeviceArray:
        if getattr(item, "dtype", None) == np.bool_:  # CuPy counts the elements
            self._read_by_host(size=8)
        if any(
            isinstance(i, list | np.ndarray) for i in (item if isinstance(item, tuple) else [item])
        ):
            Capture.forbid("an upload of an index")
        result = DeviceArray(np.asarray(self.host[_unwrapped(item)]))
        _used(result, _buffers((self, item)), set())
        return result

    def __setitem__(self, item: Any, value: Any) -> None:
        self.host[_unwrapped(item)] = _unwrapped(value)
        _used(None, _buffers((item, value)), _buffers(self))

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (_wrapped(part) for part in self.host)

    def _method(self, method: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        out = more.get("out")
        result = _computed(method, args, more)
        inputs = {name: value for name, value in more.items() if name != "out"}
        _used(result, _buffers((self, args, inputs)), _buffers(out))
        return result

    def _read_by_host(self, stream: Stream | None = None, size: int | None = None) -> None:
        Capture.forbid("a read by the host")
        self.pool.read(self.host.nbytes if size is None else size)
        ptr = (stream or Stream.current()).ptr
        self.order.use(ptr, _buffers(self))
        self.order.wait_on_host(self.order.record(ptr))

    def __bool__(self) -> bool:
        self._read_by_host()
        return bool(self.host)

    def __float__(self) -> float:
        self._read_by_host()
        return float(self.host)

    def __int__(self) -> int:
        self._read_by_host()
        return int(self.host)

    def get(
        self, stream: Any = None, out: np.ndarray | None = None, *, blocking: bool = True
    ) -> np.ndarray:
        if not blocking:
            assert out is not None
            self.order.use((stream or Stream.current()).ptr, _buffers(self))
            self.page_locked.copy(self, out, (stream or Stream.current()).ptr)
            return out
        self._read_by_host(stream)
        if out is None:
            return self.host.copy()
        out[...] = self.host
        return out


class _Cupy(ModuleType):
    """`cupy`: NumPy's functions on device arrays."""

    ndarray = DeviceArray

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value
        if name in _FROM_HOST:

            def upload(a: Any, *args: Any, **more: Any) -> Any:
                if not isinstance(a, DeviceArray):
                    Capture.forbid("an upload")
                    uploaded(np.asarray(a).nbytes)
                host = a.host if isinstance(a, DeviceArray) else np.array(a)
                result = _wrapped(value(host, *args, **more))
                _used(result, _buffers(a), set())
                return result

            return upload

        def call(*args: Any, **more: Any) -> Any:
            return _called(value, args, more)

        if isinstance(value, np.ufunc):
            call.at = lambda *args: value.at(*_unwrapped(args))
            if name == "add":
                call.reduceat = functools.partial(_called_with, value.reduceat)
        return call

    def asnumpy(self, array: DeviceArray) -> np.ndarray:
        return array.get()


class _Place:
    """`cupy.cuda.Device`, which logs when it becomes current and when it ceases to be."""

    mem_info = (60 << 30, 80 << 30)

    def __init__(self, log: list[tuple[str, int]], index: int) -> None:
        self._log, self.id = log, index

    def __enter__(self) -> _Place:
        self._log.append(("device", self.id))
        return self

    def __exit__(self, *_: Any) -> None:
        self._log.append(("device left", self.id))


class Event:
    """`cupy.cuda.Event`: `at` is the tick at which it was recorded, `stream` the stream."""

    _ticks = itertools.count()

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self._log = log

    def record(self, stream: Stream | None = None) -> None:
        Capture.forbid("an event")
        self.at, self.stream = next(self._ticks), stream or Stream.current()
        self.clock = DeviceArray.order.record(self.stream.ptr)

    def synchronize(self) -> None:
        Capture.forbid("a wait of the host")
        DeviceArray.order.wait_on_host(self.clock)
        self._log.append(("event", self.stream.ptr))


class Stream:
    """`cupy.cuda.Stream`: the innermost ``with`` is the thread's current stream."""

    _local = threading.local()
    null: Stream

    def __init__(self, log: list[tuple[str, int]], ptr: int, *, non_blocking: bool = False) -> None:
        self._log, self.ptr, self.non_blocking = log, ptr, non_blocking

    @classmethod
    def stack(cls) -> list[Stream]:
        return cls._local.__dict__.setdefault("stack", [])

    @classmethod
    def current(cls) -> Stream:
        return cls.stack()[-1] if cls.stack() else cls.null

    def __enter__(self) -> Stream:
        self.stack().append(self)
        self._log.append(("stream", self.ptr))
        return self

    def __exit__(self, *_: Any) -> None:
        self.stack().pop()
        self._log.append(("stream left", self.ptr))

    def record(self) -> Event:
        event = Event(self._log)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        Capture.forbid("a wait for another stream")
        self._log.append((f"{event.stream.ptr:#x} awaited", self.ptr))
        DeviceArray.order.wait(self.ptr, event.clock)

    def synchronize(self) -> None:
        Capture.forbid("a wait of the host")
        self._log.append(("synchronize", self.ptr))
        DeviceArray.order.wait_on_host(DeviceArray.order.record(self.ptr))


class _Streams:
    """The constructor `cupy.cuda.Stream`, for external and new streams."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self._log, self._handles = log, itertools.count(0x1000, 0x10)

    def from_external(self, other: Any) -> Stream:
        return Stream(self._log, other.__cuda_stream__()[1])

    def __call__(self, *, non_blocking: bool) -> Stream:
        assert non_blocking, "a blocking stream and the default stream wait for each other"
        return Stream(self._log, next(self._handles), non_blocking=True)


def _cusolver(function: Any) -> Any:
    def call(a: DeviceArray) -> Any:
        Capture.forbid("cuSOLVER")
        return _wrapped(tuple(function(a.host)))

    return call


def cupy_on_host() -> Any:
    """Return the module.

    `entered` logs devices and streams in the order in which they were current, and all waits
    between streams; `launches` counts what was queued outside of captures, and `forbidden` names
    what may not happen in one.
    """
    module: Any = _Cupy("cupy")
    module.entered = log = []
    Stream.null = Stream(log, 0)

    def memory_pool(allocator: Any) -> Pool:
        module.pools.append(Pool())
        return module.pools[-1]

    module.cuda = SimpleNamespace(
        Device=lambda index: _Place(log, index),
        Stream=_Streams(log),
        get_current_stream=Stream.current,
        Event=lambda **_: Event(log),
        runtime=SimpleNamespace(getDevice=lambda: DeviceArray.device.id),
        get_elapsed_time=lambda began, ended: float(ended.at - began.at),
        MemoryPool=memory_pool,
        using_allocator=Pool.using_allocator,
    )
    DeviceArray.known = set()
    module.fft = SimpleNamespace(
        **{name: functools.partial(_fft, getattr(np.fft, name)) for name in ("rfftn", "irfftn")}
    )
    DeviceArray.pool = pool = Pool()
    module.pools = [pool]
    module.linalg = SimpleNamespace(eigh=_cusolver(np.linalg.eigh), qr=_cusolver(np.linalg.qr))
    Capture.forbidden = module.forbidden = []
    Capture.launches = module.launches = Counter()
    DeviceArray.order = order = HappensBefore()
    module.races = order.races
    module.page_locked = DeviceArray.page_locked = PageLocked(order)
    module.cuda.alloc_pinned_memory = module.page_locked.allocate
    module.cuda.runtime.pointerGetAttributes = module.page_locked.kind
    DeviceArray.device = _Place(log, 0)
    module.pool_asked_within_a_device = False

    def get_default_memory_pool() -> Pool:
        kinds = [kind for kind, _ in log]
        module.pool_asked_within_a_device = kinds.count("device") > kinds.count("device left")
        return pool

    module.get_default_memory_pool = get_default_memory_pool
    return module
