"""Work inside a CUDA context that a C++ host made, and buffers that it page-locked, with PyCUDA.

    context = AdoptedContext.current()          # in a thread where the host's context is current
    with Registrar(config, cuda_context=context.entered) as registrar:
        ...
    context.release()

The host keeps its context: it is made current in the threads that work here and taken off again,
and nothing here destroys or resets it. CuPy's pool hands out memory for each device, not for each
context: one process should use one context of a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError, InputError
from .io.arrays import float32_at


class AdoptedContext:
    """A CUDA context of somebody else. Make it with `current`."""

    def __init__(self, context: Any, device_index: int) -> None:
        self._context: Any = context
        self._device_index = device_index

    @classmethod
    def current(cls) -> AdoptedContext:
        """The context that is current in this thread.

        Raises:
            DeviceError: PyCUDA is missing, or no context is current.
        """
        driver = _driver()
        try:
            context = driver.Context.attach()
        except driver.Error as error:
            raise DeviceError(
                f"no CUDA context is current in this thread ({error}); call this where the host "
                "has made its context current (cuCtxSetCurrent)"
            ) from error
        return cls(context, _index_of(driver, driver.Context.get_device()))

    @property
    def device(self) -> str:
        """Its device as `RegistrationConfig` takes it: ``cuda:N``."""
        return f"cuda:{self._device_index}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The context is current in this thread while the block runs; then what was before is.

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
        """Let go of the context, in the thread that adopted it. May be called again."""
        context, self._context = self._context, None
        if context is not None:
            context.detach()

    def __enter__(self) -> AdoptedContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def host_buffer(
    address: int, shape: Sequence[int], owner: object | None = None
) -> NDArray[np.float32]:
    """float32 memory of the host program as an array, without a copy.

    It serves as voxels of an image, and in `Placement` as the place for a result.

    Args:
        address: of the first value; page-locked memory (cuMemHostAlloc) is transferred faster.
        shape: C order.
        owner: kept alive as long as the array; the host must keep the memory alive otherwise.

    Raises:
        InputError: no address, an address that is not aligned to float32, or an empty shape.
    """
    count = math.prod(shape)
    if address <= 0 or address % 4 or count <= 0:
        raise InputError(
            f"cannot make an array of shape {tuple(shape)} at address {address:#x}; wanted is the "
            "address of float32 values (a multiple of 4) and at least one value"
        )
    return float32_at(address, shape, owner)


@contextmanager
def page_locked(*arrays: NDArray[Any]) -> Iterator[None]:
    """Ordinary memory of the host program is page-locked while the block runs.

    Args:
        arrays: C-contiguous; not page-locked already. A context must be current.

    Raises:
        DeviceError: PyCUDA is missing, or the driver refuses the memory.
    """
    driver = _driver()
    locked: list[Any] = []
    try:
        for array in arrays:
            try:
                locked.append(driver.register_host_memory(array))
            except driver.Error as error:
                raise DeviceError(
                    f"{array.nbytes / 2**20:.0f} MiB of host memory cannot be page-locked: "
                    f"{error}; it may be locked already, or the limit of locked memory is too low"
                ) from error
        yield
    finally:
        for part in reversed(locked):
            part.base.unregister()


def _index_of(driver: Any, device: Any) -> int:
    """The number of a device; PyCUDA compares devices but does not number them."""
    return next(i for i in range(driver.Device.count()) if driver.Device(i) == device)


def _driver() -> Any:
    try:
        import pycuda.driver as driver

        driver.init()
    except ImportError as error:
        raise DeviceError(
            f"PyCUDA cannot be used ({error}); pip install '.[pycuda]', which compiles it, and an "
            "NVIDIA driver (libcuda.so.1) are needed"
        ) from error
    return driver
