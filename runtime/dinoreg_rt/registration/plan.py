"""`Plan`: the decisions about one registration, as `planning` makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..align.initial import Alignment
from ..config.decided import DecidedConfig
from ..device.choice import Device
from ..encoder.encoding import EncodingPlan
from ..images.grids import WorkingGrids
from ..images.moving_grids import MovingGrids
from ..images.pair import Pair, Sides, SolverSide
from ..io.hashes import content_hash
from ..summaries import DeviceMemory
from ..types import AffineTransform, Array, Volume
from .memory import describe_device_memory
from .sizes import Sizes


@dataclass(frozen=True, eq=False)
class Plan:
    """What a registration will do, decided before any heavy work; it keeps both images alive.

    Attributes:
        pair: fixed and moving image, on the plan's device; masks and bodies on the host.
        device: the device that the registration runs on.
        config: the parameters of this registration, all of them decided.
        alignment: the initial alignment, how it was found and how certain it is.
        grids: the grids on the fixed image's box.
        moving_grids: the grids on which the moving image is sampled.
        encoding: the slices that an encoder is shown; None without an encoder.
        choices: automatic decisions with their reasons, by the name of the decision.
        warnings: what the images leave open, and the options that settle it.
        memory_bytes: predicted peak on the host in addition to the caller's images.
        device_memory: predicted peak of each stage on the GPU; None on a CPU.
        timings_ms: wall-clock milliseconds of the parts of planning, in order.
        given: returns the voxels of both images as they were given, on the host; call it once. From
            a GPU they are copied beside the work that was queued after planning began.
        start: the initial alignment from which a linear registration was refined; None before it,
            and for registrations that refine a field.
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
    timings_ms: dict[str, float] = field(default_factory=dict)
    given: Callable[[], list[Array]] = list
    start: AffineTransform | None = None

    @property
    def initial(self) -> AffineTransform:
        """The alignment in which features are compared, fixed points to moving points."""
        return self.alignment.transform

    @property
    def sizes(self) -> Sizes:
        """The sizes from which memory and work of each stage follow."""
        return Sizes(
            fixed=self.pair[0].volume.geometry,
            moving=self.pair[1].volume.geometry,
            grids=self.grids,
            moving_grids=self.moving_grids,
            config=self.config,
            encoding=self.encoding,
            on_gpu=self.device.kind == "cuda",
        )

    def sides(self, fixed: Volume, moving: Volume) -> Sides:
        """Pair both images, already on the plan's device, with the grids they are sampled on."""
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

    @property
    def images(self) -> tuple[Volume, Volume]:
        """Fixed and moving image without their padding, on the plan's device."""
        return self.pair[0].volume, self.pair[1].volume

    def hashes(self) -> dict[str, str]:
        """Hash the images as they were given, with their padding."""
        return {
            str(image.role): image.kept.sha256 or content_hash(replace(image.volume, array=array))
            for image, array in zip(self.pair, self.given(), strict=True)
        }

    @property
    def header_notes(self) -> tuple[str, ...]:
        """What the headers of both images leave in doubt."""
        fixed, moving = self.pair
        return (*fixed.volume.geometry.notes, *moving.volume.geometry.notes)

    @property
    def sides_in_doubt(self) -> bool:
        """Whether a header leaves open which side of its image is left."""
        return any(image.volume.geometry.sides_in_doubt for image in self.pair)

    def describe(self) -> str:
        """Return a readable summary of grids, search and memory, a few lines long."""
        search = " x ".join(f"{2 * r + 1}" for r in self.grids.search_radius_zyx[::-1])
        levels = self.grids.search_levels
        further = f", {levels} levels" if levels > 1 else ""
        lines = [
            f"working grid   {self.grids.working.summary()}",
            f"control grid   {self.grids.control.summary()}",
            f"search         {search} shifts of {self.config.search_spacing_mm:g} mm{further}",
            f"memory         about {self.memory_bytes / 2**20:.0f} MiB beside the images",
        ]
        if self.device_memory is not None:
            lines.append(f"GPU memory     {describe_device_memory(self.device_memory)}")
        return "\n".join(lines)
