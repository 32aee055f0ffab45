"""`Plan`: what a registration will do, decided before any heavy work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..align.initial import Alignment
from ..config.decided import DecidedConfig
from ..device.choice import Device
from ..encoder.encoding import EncodingPlan
from ..geometry import describe
from ..images.grids import WorkingGrids
from ..images.moving_grids import MovingGrids
from ..images.pair import Pair, Sides, SolverSide
from ..images.resample import uploaded
from ..types import AffineTransform, DeviceMemory, Volume
from .device_memory import describe_device_memory


@dataclass(frozen=True, eq=False)
class Plan:
    """What a registration will do, decided before any heavy work.

    Attributes:
        pair: fixed and moving image, on the host.
        device: where the registration will run.
        config: the parameters of this registration.
        alignment: the initial alignment, how it was found and how sure it is.
        grids: the grids on the fixed image's box.
        moving_grids: where the moving image is looked at.
        encoding: what an encoder will be shown; None without one.
        choices: what was decided for the user, and why.
        warnings: what is open about the images, and the options that settle it.
        memory_bytes: predicted peak on the host beside what the caller holds.
        device_memory: the same on the GPU, stage by stage; None on a CPU.
    """

    pair: Pair
    device: Device
    config: DecidedConfig
    alignment: Alignment
    grids: WorkingGrids
    moving_grids: MovingGrids
    encoding: EncodingPlan | None
    choices: dict[str, str]
    warnings: tuple[str, ...]
    memory_bytes: int
    device_memory: DeviceMemory | None = None

    @property
    def initial(self) -> AffineTransform:
        """Fixed points to moving points where the registration begins."""
        return self.alignment.transform

    def sides(self, fixed: Volume, moving: Volume) -> Sides:
        """Where both images are looked at; the images themselves are on the plan's device here."""
        first, second = self.pair
        identity, grids, moving_grids = AffineTransform.identity(), self.grids, self.moving_grids
        return (
            SolverSide(replace(first, volume=fixed), grids.working, grids.control, identity),
            SolverSide(
                replace(second, volume=moving),
                moving_grids.working,
                moving_grids.control,
                self.initial,
            ),
        )

    def uploaded(self, fixed: Volume, moving: Volume) -> tuple[Volume, Volume]:
        """Return the given images, without their padding, on the plan's device."""
        one, other = self.pair
        return (
            uploaded(one.volume if one.padded else fixed, self.device),
            uploaded(other.volume if other.padded else moving, self.device),
        )

    def describe(self) -> str:
        """Several lines for people: grids, search, memory."""
        search = " x ".join(f"{2 * r + 1}" for r in self.grids.search_radius_zyx[::-1])
        levels = self.grids.search_levels
        further = f", {levels} levels" if levels > 1 else ""
        lines = [
            f"working grid   {describe(self.grids.working)}",
            f"control grid   {describe(self.grids.control)}",
            f"search         {search} shifts of {self.config.search_spacing_mm:g} mm{further}",
            f"memory         about {self.memory_bytes / 2**20:.0f} MiB beside the images",
        ]
        if self.device_memory is not None:
            lines.append(f"GPU memory     {describe_device_memory(self.device_memory)}")
        return "\n".join(lines)
