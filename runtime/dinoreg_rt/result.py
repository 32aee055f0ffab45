"""What `register` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .config import RegistrationConfig
from .types import AffineTransform, DisplacementField, RunQuality, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk


@dataclass(frozen=True, eq=False)
class RegistrationResult:
    """The outcome of one registration, with everything needed to explain and repeat it.

    Attributes:
        displacement: the whole mapping, initial alignment included, from fixed to moving points,
            on the fixed image's grid.
        initial: the initial alignment alone (fixed points to moving points).
        warped: the moving image on the fixed image's grid.
        inverse: moving points to fixed points, on the moving image's grid; None unless asked for.
        quality: see `RunQuality`.
        config: the configuration that was used, nothing left at ``auto``.
        choices: what was decided for the user and why, one entry a decision.
        alignment: similarity, confidence and overlap of the initial alignment, 0..1 but for the
            similarity; empty where it was given, not searched.
        timings_ms: wall-clock milliseconds of each stage, in order.
        versions: of dinoreg-rt, its kernel library and the packages that took part.
        hashes: sha256 of the voxels and header of each input.
    """

    displacement: DisplacementField
    initial: AffineTransform
    warped: Volume
    inverse: DisplacementField | None
    quality: RunQuality
    config: RegistrationConfig
    choices: dict[str, str] = field(default_factory=dict)
    alignment: dict[str, float] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def warped_sitk(self) -> sitk.Image:
        """The warped moving image as a SimpleITK image on the fixed grid."""
        from .io import volume_to_sitk

        return volume_to_sitk(self.warped)

    def displacement_sitk(self) -> sitk.Image:
        """The displacement as a SimpleITK vector image (float32, mm, LPS) on the fixed grid."""
        from .io import displacement_to_sitk

        return displacement_to_sitk(self.displacement)

    def transform_sitk(self) -> sitk.Transform:
        """The mapping from fixed to moving points as a SimpleITK composite transform.

        It equals `displacement` on the fixed grid; outside the grid it is `initial` alone.
        """
        from .io import composite_to_sitk

        return composite_to_sitk(self.initial, self.displacement)
