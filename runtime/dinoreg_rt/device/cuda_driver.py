"""Queries of the CUDA driver through its C interface, with or without CuPy or a driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_MAJOR_ATTRIBUTE, _MINOR_ATTRIBUTE = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    compute_capability: str
    memory_bytes: int

    def describe(self) -> str:
        """Describe the device in one readable line."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        return f"{self.name}, compute capability {self.compute_capability}, {memory}"


@dataclass(frozen=True)
class CudaDriver:
    """The driver's answer.

    Attributes:
        version: newest CUDA version it supports (major, minor); None without a driver.
        gpus: devices that can be used.
        problem: reason why there are none.
    """

    version: tuple[int, int] | None
    gpus: tuple[Gpu, ...]
    problem: str = ""


def query_cuda_driver() -> CudaDriver:
    """Query the driver; anything missing or failing is reported in the result."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return CudaDriver(None, (), "no NVIDIA driver (libcuda.so.1 was not found)")
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return CudaDriver(None, (), "the NVIDIA driver does not answer")
    version = (number.value // 1000, number.value % 1000 // 10)
    status = cuda.cuInit(0)
    if status != 0:
        return CudaDriver(version, (), f"cuInit returned {_error_name(cuda, status)}")
    status = cuda.cuDeviceGetCount(ctypes.byref(number))
    if status != 0 or number.value == 0:
        return CudaDriver(version, (), "it lists no device")
    return CudaDriver(version, tuple(_describe(cuda, i) for i in range(number.value)))


def _describe(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, number, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    capability = []
    for attribute in (_MAJOR_ATTRIBUTE, _MINOR_ATTRIBUTE):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(capability), size.value)


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) != 0 or text.value is None:
        return f"error {status}"
    return text.value.decode()
