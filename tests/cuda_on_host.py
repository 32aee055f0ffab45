"""CuPy on host memory: the whole CUDA path of a registration runs, with the CPU's kernels.

Arrays behave as CuPy's do where NumPy's would forgive: they are not converted by themselves, do not
mix with NumPy arrays, and reductions give arrays. What only a device shows (speed, races, memory)
this cannot.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_FROM_HOST = {"asarray", "array", "ascontiguousarray"}


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


def _called(function: Any, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
    out = more.get("out")
    result = function(*_unwrapped(args), **{k: _unwrapped(v) for k, v in more.items()})
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return _wrapped(result)


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """`cupy.ndarray`."""

    device = SimpleNamespace(id=0)

    def __init__(self, host: np.ndarray) -> None:
        self.host = host

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
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
        if callable(value):
            return lambda *args, **more: _called(value, args, more)
        return _wrapped(value) if name in ("T", "real", "imag") else value

    def __getitem__(self, item: Any) -> DeviceArray:
        return DeviceArray(np.asarray(self.host[_unwrapped(item)]))

    def __setitem__(self, item: Any, value: Any) -> None:
        self.host[_unwrapped(item)] = _unwrapped(value)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Any:
        return (_wrapped(part) for part in self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
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
            return lambda a, *args, **more: _wrapped(
                value(a.host if isinstance(a, DeviceArray) else np.array(a), *args, **more)
            )
        return lambda *args, **more: _called(value, args, more)

    def asnumpy(self, array: DeviceArray) -> np.ndarray:
        return array.get()


class _Current:
    """What `with` makes current, as CuPy's devices and streams; kept in `entered`."""

    def __init__(self, log: list[tuple[str, int]], kind: str, number: int) -> None:
        self._log, self._kind, self.ptr = log, kind, number
        self.mem_info = (60 << 30, 80 << 30)

    def __enter__(self) -> _Current:
        self._log.append((self._kind, self.ptr))
        return self

    def __exit__(self, *_: Any) -> None:
        self._log.append((f"{self._kind} left", self.ptr))

    def synchronize(self) -> None:
        self._log.append(("synchronize", self.ptr))


def cupy_on_host() -> Any:
    """The module; `entered` holds devices and streams in the order in which they were current."""
    module: Any = _Cupy("cupy")
    module.entered = log = []
    ticks = iter(range(1_000_000))
    module.cuda = SimpleNamespace(
        Device=lambda index: _Current(log, "device", index),
        Stream=SimpleNamespace(
            from_external=lambda other: _Current(log, "stream", other.__cuda_stream__()[1])
        ),
        get_current_stream=lambda: _Current(log, "stream", 0),
        Event=lambda: SimpleNamespace(at=0, **_event(ticks)),
        get_elapsed_time=lambda began, ended: float(ended.when[0] - began.when[0]),
    )
    module.get_default_memory_pool = lambda: SimpleNamespace(total_bytes=lambda: 5 << 20)
    return module


def _event(ticks: Any) -> dict[str, Any]:
    when: list[int] = []
    return {
        "when": when,
        "record": lambda: when.append(next(ticks)),
        "synchronize": lambda: None,
    }
