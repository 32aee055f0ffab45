"""What the loaded library is, and which devices it can use."""

from __future__ import annotations

from dataclasses import dataclass

from ._library import library


@dataclass(frozen=True)
class BuildInfo:
    """Facts about libdinoreg on this machine.

    Attributes:
        version: of the library, "major.minor".
        isa: instruction set that CPU calls use here.
        cuda_built: whether the CUDA half was compiled in.
    """

    version: str
    isa: str
    cuda_built: bool


@dataclass(frozen=True)
class CudaDevices:
    """CUDA devices that libdinoreg can use.

    Attributes:
        count: of them.
        problem: why there is none; empty where there is one.
    """

    count: int
    problem: str


def build_info() -> BuildInfo:
    """Facts about the loaded library; raises `KernelError` when it cannot be loaded."""
    lib = library()
    major, minor = divmod(lib.dr_version(), 1000)
    return BuildInfo(
        version=f"{major}.{minor}",
        isa=lib.dr_cpu_isa().decode(),
        cuda_built=bool(lib.dr_cuda_built()),
    )


def cuda_devices() -> CudaDevices:
    """Ask the driver; with a library that was built with CUDA this opens libcuda."""
    lib = library()
    return CudaDevices(int(lib.dr_cuda_device_count()), lib.dr_cuda_problem().decode())
