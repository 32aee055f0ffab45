"""Facts about the loaded library and the devices it can use."""

from __future__ import annotations

from dataclasses import dataclass

from ._library import library


@dataclass(frozen=True)
class BuildInfo:
    """Facts about libdinoreg on this machine.

    Attributes:
        version: Version of the library, "major.minor".
        isa: Instruction set of calls on this CPU.
        cuda_built: Whether the library was compiled with CUDA.
    """

    version: str
    isa: str
    cuda_built: bool


@dataclass(frozen=True)
class CudaDevices:
    """CUDA devices that libdinoreg can use.

    Attributes:
        count: Number of devices.
        problem: Why there is none; empty if there is one.
    """

    count: int
    problem: str


def build_info() -> BuildInfo:
    """Describe the loaded library.

    Raises:
        KernelUnavailable: The library cannot be loaded.
    """
    lib = library()
    major, minor = divmod(lib.dr_version(), 1000)
    return BuildInfo(
        version=f"{major}.{minor}",
        isa=lib.dr_cpu_isa().decode(),
        cuda_built=bool(lib.dr_cuda_built()),
    )


def cuda_devices() -> CudaDevices:
    """Ask the driver for devices; a library built with CUDA opens libcuda for this."""
    count = int(library().dr_cuda_device_count())
    return CudaDevices(count, "" if count else current_device_problem())


def current_device_problem() -> str:
    """Return why the current CUDA device cannot run the kernels, or an empty string if it can.

    Where there is a device, this makes its context, which takes time and device memory.
    """
    return str(library().dr_cuda_problem().decode())
