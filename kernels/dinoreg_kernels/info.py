"""What the loaded library is and can do."""

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
        cuda_devices: number of CUDA devices that it can use; 0 without a driver.
        cuda_problem: why it can use none; empty when it can.
    """

    version: str
    isa: str
    cuda_built: bool
    cuda_devices: int
    cuda_problem: str


def build_info() -> BuildInfo:
    """Facts about the loaded library; raises `KernelError` when it cannot be loaded."""
    lib = library()
    major, minor = divmod(lib.dr_version(), 1000)
    return BuildInfo(
        version=f"{major}.{minor}",
        isa=lib.dr_cpu_isa().decode(),
        cuda_built=bool(lib.dr_cuda_built()),
        cuda_devices=int(lib.dr_cuda_device_count()),
        cuda_problem=lib.dr_cuda_problem().decode(),
    )
