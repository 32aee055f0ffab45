"""A host's CUDA context and buffers, through a stand-in for PyCUDA that keeps the driver's stacks.

What only a driver shows (whether CuPy's work really lands in the adopted context) it cannot.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import dinoreg_rt
from dinoreg_rt.errors import DeviceError, InputError
from dinoreg_rt.phantom import phantom_grid, phantom_pair
from dinoreg_rt.pycuda_context import AdoptedContext, host_buffer, page_locked


class Driver(ModuleType):
    """`pycuda.driver`: `stack` is the calling thread's stack of current contexts."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self._local = threading.local()
        self.detached: list[object] = []
        self.locked: list[int] = []
        self.Device = Device
        driver = self

        class Context:
            def push(self) -> None:
                driver.stack.append(self)

            def detach(self) -> None:
                driver.detached.append(self)

            @staticmethod
            def pop() -> None:
                driver.stack.pop()

            @staticmethod
            def get_device() -> Device:
                return Device(1)

            @staticmethod
            def attach(flags: int = 0) -> object:
                if not driver.stack:
                    raise driver.Error("invalid device context")
                return driver.stack[-1]

        self.Context = Context

    @property
    def stack(self) -> list[object]:
        return self._local.__dict__.setdefault("stack", [])

    def init(self) -> None:
        pass

    def register_host_memory(self, array: np.ndarray, flags: int = 0) -> SimpleNamespace:
        address = array.ctypes.data
        if address in self.locked:
            raise self.Error("already registered")
        self.locked.append(address)
        base = SimpleNamespace(unregister=lambda: self.locked.remove(address))
        return SimpleNamespace(base=base)


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.index == self.index

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def count() -> int:
        return 3


@pytest.fixture
def driver(monkeypatch) -> Driver:
    driver, package = Driver(), ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver


def test_worker_threads_work_in_the_hosts_context(driver) -> None:
    theirs = driver.Context()
    driver.stack.append(theirs)  # the host has made it current here
    seen: list[list[object]] = []
    config = dinoreg_rt.RegistrationConfig(device="cpu", threads=1, iterations=(1,))
    pair = phantom_pair(phantom_grid((16, 16, 16), 4.0))
    with AdoptedContext.current() as context:
        assert context.device == "cuda:1"
        with dinoreg_rt.Registrar(config, workers=2, cuda_context=context.entered) as registrar:
            look = lambda *_: seen.append(list(driver.stack))  # noqa: E731
            futures = [registrar.submit(*pair, progress=look) for _ in range(2)]
            for future in futures:
                future.result(30)
            left = registrar._workers.submit(lambda: list(driver.stack)).result(5)
            registrar.register(*pair, progress=look)
    assert left == []  # a worker thread has no context between two registrations
    assert [theirs] in seen  # in a worker thread
    assert [theirs, theirs] in seen  # in the host's thread, on top of its own
    assert driver.stack == [theirs]
    assert driver.detached == [theirs]


def test_context_is_left_after_an_error(driver) -> None:
    driver.stack.append(driver.Context())
    context, depth = AdoptedContext.current(), []

    def fail() -> None:
        with context.entered():
            depth.append(len(driver.stack))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert depth == [2]
    assert len(driver.stack) == 1


def test_released_once_and_never_again(driver) -> None:
    driver.stack.append(driver.Context())
    context = AdoptedContext.current()
    context.release()
    context.release()
    assert len(driver.detached) == 1
    with pytest.raises(DeviceError, match="was released; adopt it again"), context.entered():
        pass


def test_no_context_is_current(driver) -> None:
    with pytest.raises(DeviceError, match=r"no CUDA context .* \(invalid device context\); call"):
        AdoptedContext.current()


def test_without_pycuda(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(DeviceError, match=r"PyCUDA cannot be used .* pip install '.\[pycuda\]'"):
        AdoptedContext.current()


def test_page_locked_while_the_block_runs(driver) -> None:
    first, second = np.zeros(8, np.float32), np.zeros(4, np.float32)
    with page_locked(first, second):
        assert driver.locked == [first.ctypes.data, second.ctypes.data]
    assert driver.locked == []
    with (
        pytest.raises(DeviceError, match=r"cannot be page-locked: already registered; it may"),
        page_locked(first, first),
    ):
        pass
    assert driver.locked == []


def test_memory_of_the_host_is_used_where_it_is() -> None:
    memory = (ctypes.c_float * 24)(*range(24))
    array = host_buffer(ctypes.addressof(memory), (2, 3, 4), owner=memory)
    assert array[1, 2, 3] == 23
    array[0, 0, 0] = 7
    assert memory[0] == 7
    address = ctypes.addressof(memory)
    del memory  # the array keeps it
    assert host_buffer(address, (24,))[23] == 23


@pytest.mark.parametrize(("address", "shape"), [(0, (2, 2)), (4098, (2, 2)), (4096, (2, 0))])
def test_impossible_memory_of_the_host(address, shape) -> None:
    with pytest.raises(InputError, match="wanted is the address of float32 values"):
        host_buffer(address, shape)
