"""Arrays of other libraries as NumPy or CuPy arrays that share their memory if possible.

An array on a CUDA device stays there: anything with DLPack or ``__cuda_array_interface__`` (CuPy,
PyTorch, Numba, PyCUDA) becomes a CuPy array. Host arrays are taken through DLPack or NumPy. CuPy is
imported only for arrays that need it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, InputError
from ..types import Array

#: DLPack's device types: CPU and page-locked CUDA memory; CUDA and CUDA managed memory.
_HOST_TYPES, _CUDA_TYPES = (1, 3), (2, 13)


def as_array(values: Any, name: str = "array") -> Array:
    """Return a NumPy or CuPy array over the same memory; only what is not an array is copied.

    Args:
        values: an array of any library, or nested lists.
        name: the name for messages.

    Raises:
        DeviceError: the array lies in CUDA memory and CuPy is not installed.
        InputError: the array lies on another kind of device or cannot be shared.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(
            f"{name}: is a masked array, whose mask would be lost; give array.filled(value), and "
            "the mask separately"
        )
    if isinstance(values, np.ndarray):
        return values
    try:
        # DLPack first: it makes CuPy's stream wait for pending work on the array, which the other
        # interface does for few libraries (PyTorch does not pass its stream).
        if hasattr(values, "__dlpack_device__"):
            return _from_dlpack(values, name)
        if hasattr(values, "__cuda_array_interface__"):
            return _cupy(values, name).asarray(values)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{name}: the {type(values).__name__} cannot be shared: {error}; give a plain float32 "
            "array (PyTorch: tensor.detach().float())"
        ) from error
    return np.asarray(values)


def float32_at(address: int, shape: Sequence[int], owner: object | None) -> NDArray[np.float32]:
    """Return foreign float32 memory as an array without copying it; it keeps `owner` alive."""
    memory = (ctypes.c_float * math.prod(shape)).from_address(address)
    memory._owner = owner  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(memory).reshape(tuple(shape))


def device_of(array: Array) -> str:
    """Return the device of an array: ``cpu`` or ``cuda:N``."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def on_its_device(array: Array) -> AbstractContextManager[Any]:
    """Return a context in which the device of a CuPy array is the current one, as CuPy requires."""
    if isinstance(array, np.ndarray):
        return nullcontext()
    device: AbstractContextManager[Any] = array.device
    return device


def as_numpy(array: Array) -> Any:
    """Return the array as a NumPy array; a CuPy array is downloaded."""
    if isinstance(array, np.ndarray) or not hasattr(array, "get"):
        return np.asarray(array)
    with on_its_device(array):
        return array.get()


def check_device(array: Array, device: str, name: str) -> None:
    """Require that an array lies on the host or on `device`.

    Args:
        array: a NumPy or CuPy array.
        device: ``cpu`` or ``cuda:N``.
        name: the name for messages.

    Raises:
        DeviceError: the array lies on another device.
    """
    place = device_of(array)
    if place not in ("cpu", device):
        raise DeviceError(
            f"{name} lies on {place} and the registration runs on {device}; use --device {place} "
            f"(device='{place}'), or give the image as a host array"
        )


def _from_dlpack(values: Any, name: str) -> Array:
    kind = int(values.__dlpack_device__()[0])
    if kind in _HOST_TYPES:
        return np.from_dlpack(values)
    if kind in _CUDA_TYPES:
        cupy = _cupy(values, name)
        return values if isinstance(values, cupy.ndarray) else cupy.from_dlpack(values)
    raise InputError(
        f"{name}: the {type(values).__name__} lies on a device of DLPack type {kind}; copy it to "
        "host or CUDA memory first"
    )


def _cupy(values: Any, name: str) -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"{name}: the {type(values).__name__} lies on a CUDA device, which requires CuPy "
            "(pip install 'dinoreg-rt[gpu]'); install it, or give a host array"
        ) from error
    return cupy
