"""Theoretical occupancy: the share of a multiprocessor's warps that one kernel can keep resident.

It follows from registers, shared memory and threads per block alone, as in NVIDIA's
cuda_occupancy.h. The number of blocks of a launch, and what they wait for, does not enter.
"""

from __future__ import annotations

from dataclasses import dataclass

_WARP = 32
# The same for every architecture below: the registers of a multiprocessor, which lie in four parts
# and are given to warps in units. One block may use all of them.
_REGISTERS, _PARTS, _REGISTER_UNIT = 65536, 4, 256


@dataclass(frozen=True)
class Limits:
    """Limits of one multiprocessor.

    Attributes:
        warps: Resident warps.
        blocks: Resident blocks.
        shared: Bytes of shared memory, at its largest share of the L1 cache.
        shared_unit: Bytes in which it is given to blocks.
        shared_reserved: Bytes of each block that the driver takes.
    """

    warps: int
    blocks: int
    shared: int
    shared_unit: int = 128
    shared_reserved: int = 1024


# By architecture: "Technical Specifications per Compute Capability" of the CUDA programming guide,
# and arch_traits.h of NVIDIA's libcu++; units from cuda_occupancy.h of CUDA 13.0.
LIMITS = {
    "75": Limits(32, 16, 64 << 10, shared_unit=256, shared_reserved=0),
    "80": Limits(64, 32, 164 << 10),
    "86": Limits(48, 16, 100 << 10),
    "89": Limits(48, 24, 100 << 10),
    "90": Limits(64, 32, 228 << 10),
    "100": Limits(64, 32, 228 << 10),
    "120": Limits(48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Occupancy:
    """Occupancy of one kernel on one architecture.

    Attributes:
        blocks: Blocks resident on a multiprocessor.
        percent: Share of its warps that they have.
        limit: What allows no more of them: ``registers``, ``shared``, ``warps`` or ``blocks``.
    """

    blocks: int
    percent: float
    limit: str

    def __str__(self) -> str:
        # Nothing limits a kernel that has all warps resident.
        return f"{self.percent:.0f} {self.limit[0] if self.percent < 100 else ' '}"


def occupancy(architecture: str, registers: int, shared: int, threads: int) -> Occupancy:
    """Compute how many blocks of a kernel fit on a multiprocessor.

    Args:
        architecture: A key of `LIMITS`, such as ``90``.
        registers: Registers per thread.
        shared: Bytes of static shared memory per block.
        threads: Threads per block.

    Returns:
        The occupancy, and what limits it.
    """
    limits = LIMITS[architecture]
    warps = -(-threads // _WARP)
    per_warp = _rounded(registers * _WARP, _REGISTER_UNIT)
    per_block = _rounded(shared + limits.shared_reserved, limits.shared_unit)
    fits = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": _REGISTERS // _PARTS // max(per_warp, 1) * _PARTS // warps,
        "shared": limits.shared // max(per_block, 1),
    }
    # A block is refused if its warps, spread over all parts, take more registers than there are.
    if per_warp * _rounded(warps, _PARTS) > _REGISTERS:
        fits["registers"] = 0
    limit = min(fits, key=lambda name: fits[name])
    blocks = fits[limit]
    return Occupancy(blocks, 100 * blocks * warps / limits.warps, limit)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
