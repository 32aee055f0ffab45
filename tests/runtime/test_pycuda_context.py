"""A host's CUDA context and buffers, with a stand-in for PyCUDA that keeps the driver's stacks.

Whether CuPy's work really lands in the adopted context shows only with a driver.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dinoreg_rt
from dinoreg_rt.device import pycuda_context
from dinoreg_rt.device.pycuda_context import AdoptedContext, host_buffer, page_locked
from dinoreg_rt.errors import DeviceError, InputError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair


class Driver(ModuleType):
    """`pycuda.driver`: `stack` is the driver's stack of the calling thread, `known` PyCUDA's own.

    As in PyCUDA 2026.1, at most one of the contexts that it knows is on the driver's stack, and to
    release a context it pushes it and leaves it there.
    """

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self._local = threading.local()
        self.retained: list[int] = []
        driver = self

        class Context:
            def __init__(self, index: int) -> None:
                self.index = index
                self.handle = next(handles)

            def push(self) -> None:
                if driver.known:
                    driver.stack.pop()
                driver.stack.append(self.handle)
                driver.known.append(self)

            def detach(self) -> None:
                driver.stack.append(self.handle)

            @staticmethod
            def pop() -> None:
                driver.known.pop()
                driver.stack.pop()
                if driver.known:
                    driver.stack.append(driver.known[-1].handle)

            @staticmethod
            def get_device() -> Device:
                return Device(driver.device_of[driver.stack[-1]])

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Device) and other.index == self.index

            __hash__ = None  # type: ignore[assignment]

            @staticmethod
            def count() -> int:
                return 3

            def make_context(self) -> Context:
                made = Context(self.index)
                driver.device_of[made.handle] = self.index
                made.push()
                return made

            def retain_primary_context(self) -> Context:
                driver.retained.append(self.index)
                context = Context(self.index)
                context.handle = driver.primary(self.index)
                return context

        handles = iter(range(0x500, 0x900))
        self._primary: dict[int, int] = {}
        self.device_of: dict[int, int] = {}
        self._handles = handles
        self.Context, self.Device = Context, Device

    @property
    def stack(self) -> list[int]:
        return self._local.__dict__.setdefault("stack", [])

    @property
    def known(self) -> list[object]:
        return self._local.__dict__.setdefault("known", [])

    def primary(self, index: int) -> int:
        """Return the handle of a device's primary context, which a host pushes."""
        if index not in self._primary:
            self._primary[index] = next(self._handles)
            self.device_of[self._primary[index]] = index
        return self._primary[index]

    def init(self) -> None:
        pass


class Runtime:
    """`cupy.cuda.runtime` of a process, acting on the driver's stack."""

    class CUDARuntimeError(RuntimeError):
        pass

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.locked: dict[int, int] = {}

    def setDevice(self, index: int) -> None:
        stack = self._driver.stack
        stack[-1:] = [self._driver.primary(index)]

    def hostRegister(self, address: int, size: int, flags: int) -> None:
        if address in self.locked:
            raise self.CUDARuntimeError("cudaErrorHostMemoryAlreadyRegistered")
        self.locked[address] = size

    def hostUnregister(self, address: int) -> None:
        del self.locked[address]


@pytest.fixture
def driver(monkeypatch) -> Driver:
    driver, package = Driver(), ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    cupy: Any = ModuleType("cupy")
    current = SimpleNamespace(ctxGetCurrent=lambda: driver.stack[-1] if driver.stack else 0)
    cupy.cuda = SimpleNamespace(driver=current, runtime=Runtime(driver))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(pycuda_context, "_primary", {})
    driver.runtime = cupy.cuda.runtime  # type: ignore[attr-defined]
    return driver


def test_worker_threads_work_in_the_hosts_context(driver) -> None:
    theirs = driver.primary(1)
    driver.stack.append(theirs)  # the host has made it current here
    seen: list[list[int]] = []
    config = dinoreg_rt.RegistrationConfig(device="cpu", threads=1, iterations=(1,))
    pair = phantom_pair(phantom_grid((16, 16, 16), 4.0))

    def look(*_: object) -> None:
        driver.runtime.setDevice(1)  # as CuPy does all the time
        seen.append(list(driver.stack))

    with AdoptedContext.current() as context:
        assert context.device == "cuda:1"
        with dinoreg_rt.Registrar(config, workers=2, cuda_context=context.entered) as registrar:
            futures = [registrar.submit(*pair, progress=look) for _ in range(2)]
            for future in futures:
                future.result(30)
            left = registrar._workers.submit(lambda: list(driver.stack)).result(5)
            registrar.register(*pair, progress=look)
    assert left == []  # a worker thread has no context between two registrations
    assert [theirs] in seen  # in a worker thread
    assert [theirs, theirs] in seen  # in the host's thread, on top of its own
    assert driver.stack == [theirs]
    with AdoptedContext.current():
        pass
    assert driver.stack == [theirs]
    assert driver.retained == [1]


def test_a_host_of_pycuda(driver) -> None:
    """The host's context was pushed by PyCUDA itself."""
    host = driver.Device(0).retain_primary_context()
    host.push()
    with AdoptedContext.current() as context, context.entered():
        assert driver.stack == [host.handle]
    assert driver.stack == [host.handle]
    host.pop()
    assert driver.stack == []


def test_a_context_that_is_not_the_primary_one_is_refused(driver) -> None:
    made = driver.Device(2).make_context()
    wanted = r"not the primary one of cuda:2, .* cuDevicePrimaryCtxRetain and cuCtxPushCurrent"
    with pytest.raises(DeviceError, match=wanted):
        AdoptedContext.current()
    assert driver.stack == [made.handle]


def test_context_is_left_after_an_error(driver) -> None:
    driver.stack.append(driver.primary(0))
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
    driver.stack.append(driver.primary(0))
    context = AdoptedContext.current()
    context.release()
    context.release()
    assert driver.stack == [driver.primary(0)]
    with pytest.raises(DeviceError, match="was released; adopt it again"), context.entered():
        pass


def test_no_context_is_current(driver) -> None:
    with pytest.raises(DeviceError, match=r"no CUDA context is current in this thread; call"):
        AdoptedContext.current()


def test_without_pycuda(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(DeviceError, match=r"PyCUDA cannot be used .* pip install '.\[pycuda\]'"):
        AdoptedContext.current()


def test_page_locked_while_the_block_runs(driver) -> None:
    first, second = np.zeros(8, np.float32), np.zeros(4, np.float32)
    locked = driver.runtime.locked
    with page_locked(first, second):
        assert locked == {first.ctypes.data: 32, second.ctypes.data: 16}
    assert locked == {}
    with (
        pytest.raises(DeviceError, match=r"cannot be page-locked: cudaError\w+; it may"),
        page_locked(first, first),
    ):
        pass
    with pytest.raises(InputError, match="not C-contiguous"), page_locked(first[::2]):
        pass
    assert locked == {}


def test_page_locking_needs_cupy(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="CuPy cannot be used"), page_locked(np.zeros(4)):
        pass


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
    with pytest.raises(InputError, match="give the address of float32 values"):
        host_buffer(address, shape)
