"""Work inside the CUDA context of a C++ host, and buffers that it page-locked, with PyCUDA.

    context = AdoptedContext.current()          # in a thread where the host's context is current
    with Registrar(config, cuda_context=context.entered) as registrar:
        ...
    context.release()

The host keeps its context: it is made current in the threads that work here and removed afterwards,
and nothing here destroys or resets it. It must be the primary context of its device: CuPy and ONNX
Runtime call the CUDA runtime, whose ``cudaSetDevice`` makes the primary context current in place of
any other (CUDA Runtime API, "Interactions with the CUDA Driver API").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, InputError
from ..io.arrays import float32_at

#: Primary context of each adopted device, retained once and for good, as the CUDA runtime does too.
#: PyCUDA pushes a context in order to release it and leaves it current.
_primary: dict[int, Any] = {}


class AdoptedContext:
    """A device's primary CUDA context, shared with another user. Create it with `current`."""

    def __init__(self, context: Any, device_index: int) -> None:
        self._context: Any = context
        self._device_index = device_index

    @classmethod
    def current(cls) -> AdoptedContext:
        """Return the context that is current in this thread.

        Raises:
            DeviceError: PyCUDA or CuPy is missing, no context is current, or it is not a primary
                one.
        """
        driver, cupy = _driver(), _cupy()
        handle = cupy.cuda.driver.ctxGetCurrent()
        if not handle:
            raise DeviceError(
                "no CUDA context is current in this thread; call this where the host has made its "
                "context current (cuCtxSetCurrent)"
            )
        device = driver.Context.get_device()
        index = _index_of(driver, device)
        if index not in _primary:
            _primary[index] = device.retain_primary_context()
        if _primary[index].handle != handle:
            raise DeviceError(
                f"the CUDA context that is current in this thread is not the primary one of "
                f"cuda:{index}, and CuPy and ONNX Runtime work in no other: their first call would "
                "make the primary one current. Use the primary context in the host too, with "
                "cuDevicePrimaryCtxRetain and cuCtxPushCurrent instead of cuCtxCreate, or with the "
                "CUDA runtime API, which uses it by itself"
            )
        return cls(_primary[index], index)

    @property
    def device(self) -> str:
        """Device in the form that `RegistrationConfig` takes, ``cuda:N``."""
        return f"cuda:{self._device_index}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the context current in this thread for the block, then restore what was before.

        Raises:
            DeviceError: the context was released.
        """
        if self._context is None:
            raise DeviceError("the adopted CUDA context was released; adopt it again")
        self._context.push()
        try:
            yield
        finally:
            _driver().Context.pop()

    def release(self) -> None:
        """Release the context; may be called again."""
        self._context = None

    def __enter__(self) -> AdoptedContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def host_buffer(
    address: int, shape: Sequence[int], owner: object | None = None
) -> NDArray[np.float32]:
    """Return float32 memory of the host program as an array, without a copy.

    It can hold the voxels of an image or, in a `Placement`, receive a result.

    Args:
        address: address of the first value; page-locked memory (cuMemHostAlloc) is transferred
            faster.
        shape: shape in C order.
        owner: object kept alive as long as the array; without one the host must keep the memory
            alive.

    Raises:
        InputError: the address is missing or not aligned to float32, or the shape is empty.
    """
    count = math.prod(shape)
    if address <= 0 or address % 4 or count <= 0:
        raise InputError(
            f"cannot make an array of shape {tuple(shape)} at address {address:#x}; give the "
            "address of float32 values (a multiple of 4) and at least one value"
        )
    return float32_at(address, shape, owner)


@contextmanager
def page_locked(*arrays: NDArray[Any]) -> Iterator[None]:
    """Page-lock ordinary memory of the host program for the block.

    Args:
        arrays: C-contiguous arrays that are not page-locked yet.

    Raises:
        DeviceError: CuPy is missing, or CUDA refuses the memory.
        InputError: an array is not contiguous.
    """
    runtime = _cupy().cuda.runtime
    locked: list[int] = []
    try:
        for array in arrays:
            if not array.flags.c_contiguous:
                raise InputError(
                    f"an array of shape {array.shape} is not C-contiguous and cannot be page-locked"
                )
            try:
                runtime.hostRegister(array.ctypes.data, array.nbytes, 0)
            except runtime.CUDARuntimeError as error:
                raise DeviceError(
                    f"{array.nbytes / 2**20:.0f} MiB of host memory cannot be page-locked: "
                    f"{error}; it may be locked already, or the limit on locked memory is too low"
                ) from error
            locked.append(array.ctypes.data)
        yield
    finally:
        for address in reversed(locked):
            runtime.hostUnregister(address)


def _index_of(driver: Any, device: Any) -> int:
    """Return the number of a device; PyCUDA compares devices but does not number them."""
    return next(i for i in range(driver.Device.count()) if driver.Device(i) == device)


def _driver() -> Any:
    try:
        import pycuda.driver as driver

        driver.init()
    except ImportError as error:
        raise DeviceError(
            f"PyCUDA cannot be used ({error}); run pip install '.[pycuda]', which compiles it, and "
            "install an NVIDIA driver (libcuda.so.1)"
        ) from error
    return driver


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"CuPy cannot be used ({error}); run pip install 'dinoreg-rt[gpu]'"
        ) from error
    return cupy
