"""What `register` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..config.parameters import RegistrationConfig
from ..quality.trust import Trust, judge, quality_warnings
from ..types import (
    AffineTransform,
    Array,
    DeviceMemory,
    DisplacementField,
    EncodingSummary,
    Geometry,
    RunQuality,
    Volume,
)

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..features.mind import FeaturePair
    from .plan import Plan


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """The features that were compared, for people who want to look at them.

    Attributes:
        fixed: (d, h, w, K) float16 on `fixed_geometry`.
        moving: the same of the moving image on `moving_geometry`, after the initial alignment.
        fixed_weight: (d, h, w) float32, 0 where nothing is compared: beyond masks and bodies, and
            where the features say nothing.
        moving_weight: the same of the moving image.
        fixed_geometry: control moving_grids, in the fixed image's space.
        moving_geometry: its part or extension where the moving image is looked at.
        moving_offset_zyx: index of its first voxel on the control grid.
        displacement_mm: (d, h, w, 3) float32 along the control grid's axes z, y, x: from a fixed
            point to the point of `moving_geometry` that was found to match it.
        encoder_channels: of the K channels those of an encoder, which are the first; 0 without one.
    """

    fixed: Array
    moving: Array
    fixed_weight: Array
    moving_weight: Array
    fixed_geometry: Geometry
    moving_geometry: Geometry
    moving_offset_zyx: tuple[int, int, int]
    displacement_mm: Array
    encoder_channels: int

    @classmethod
    def of(
        cls,
        features: FeaturePair,
        weights: tuple[Array, Array],
        field: Array,
        plan: Plan,
    ) -> KeptFeatures:
        """Copies on the host, without padding.

        Args:
            features: that the first level of the search compared.
            weights: (d, h, w) of both images, how much each control voxel counted.
            field: the solver's result on the control grid.
            plan: the decisions.
        """
        download = plan.device.download
        leading = plan.config.stage_features[0][0]
        return cls(
            download(features.fixed[..., : features.channels]),
            download(features.moving[..., : features.channels]),
            download(weights[0]),
            download(weights[1]),
            plan.grids.control,
            plan.moving_grids.control,
            plan.moving_grids.offset_zyx,
            download(field),
            0 if plan.encoding is None or leading == "mind" else plan.encoding.channels,
        )


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
        encoding: what an encoder contributed; None without one.
        features: of both images; None unless asked for.
        choices: what was decided for the user and why, one entry a decision.
        alignment: similarity, confidence and overlap of the initial alignment, 0..1 but for the
            similarity; empty where it was given, not searched.
        device_memory: what was predicted of the GPU's memory; None on a CPU.
        timings_ms: wall-clock milliseconds of each stage, in order.
        versions: of dinoreg-rt, its kernel library and the packages that took part.
        hashes: sha256 of the voxels and header of each input.
        confidence: how well each voxel's match is determined, 0..1 on the fixed grid (see
            `dinoreg_rt.fields.solve.confidence`); None unless asked for.
    """

    displacement: DisplacementField
    initial: AffineTransform
    warped: Volume
    inverse: DisplacementField | None
    quality: RunQuality
    config: RegistrationConfig
    encoding: EncodingSummary | None = None
    features: KeptFeatures | None = None
    choices: dict[str, str] = field(default_factory=dict)
    alignment: dict[str, float] = field(default_factory=dict)
    device_memory: DeviceMemory | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    confidence: Volume | None = None

    @property
    def trust(self) -> Trust:
        """Whether to use the result: the verdict, and the reasons against it."""
        return judge(self.quality)

    @property
    def warnings(self) -> list[str]:
        """What to check before using the result, one sentence each."""
        found = quality_warnings(self.quality)
        if self.encoding is not None and self.encoding.random_weights:
            found.append("the encoder's weights are random: its features mean nothing")
        return found

    def warped_sitk(self) -> sitk.Image:
        """The warped moving image as a SimpleITK image on the fixed grid."""
        from ..io import volume_to_sitk

        return volume_to_sitk(self.warped)

    def displacement_sitk(self) -> sitk.Image:
        """The displacement as a SimpleITK vector image (float32, mm, LPS) on the fixed grid."""
        from ..io import displacement_to_sitk

        return displacement_to_sitk(self.displacement)

    def transform_sitk(self) -> sitk.Transform:
        """The mapping from fixed to moving points as a SimpleITK composite transform.

        It equals `displacement` on the fixed grid; outside the grid it is `initial` alone.
        """
        from ..io import composite_to_sitk

        return composite_to_sitk(self.initial, self.displacement)
