"""Theoretical occupancy: the share of a multiprocessor's warps that one kernel can keep resident.

From registers, shared memory and the block's threads alone, as NVIDIA's cuda_occupancy.h computes
it; how many blocks a launch has, and what they wait for, is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

_WARP = 32
# The same for every architecture below: registers of a multiprocessor, which lie in four parts
# and are given to warps in units; all may be used by one block.
_REGISTERS, _PARTS, _REGISTER_UNIT = 65536, 4, 256


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds at most.

    Attributes:
        warps: resident.
        blocks: resident.
        shared: bytes of shared memory, at its largest share of the L1 cache.
        shared_unit: bytes in which it is given to blocks.
        shared_reserved: bytes of each block that the driver takes.
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
    """Of one kernel on one architecture.

    Attributes:
        blocks: resident on a multiprocessor.
        percent: of its warps.
        limit: what allows no more: ``registers``, ``shared``, ``warps`` or ``blocks``.
    """

    blocks: int
    percent: float
    limit: str

    def __str__(self) -> str:
        # A kernel that all warps fit of is limited by nothing.
        return f"{self.percent:.0f} {self.limit[0] if self.percent < 100 else ' '}"


def occupancy(architecture: str, registers: int, shared: int, threads: int) -> Occupancy:
    """What fits.

    Args:
        architecture: such as ``90``.
        registers: of a thread.
        shared: bytes of a block's static shared memory.
        threads: of a block.
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
    # A block is refused where its warps, spread over all parts, take more than there is.
    if per_warp * _rounded(warps, _PARTS) > _REGISTERS:
        fits["registers"] = 0
    limit = min(fits, key=lambda name: fits[name])
    blocks = fits[limit]
    return Occupancy(blocks, 100 * blocks * warps / limits.warps, limit)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit
