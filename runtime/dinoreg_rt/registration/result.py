"""`RegistrationResult`, which `register` returns, and the features that it can keep."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .. import io
from ..align.linear_models import LinearSummary
from ..config.parameters import RegistrationConfig
from ..geometry import centre_lps_mm
from ..quality.regions import region_warning
from ..quality.trust import Trust, judge, quality_warnings
from ..summaries import DeviceMemory, EncodingSummary, RegionQuality, RunQuality
from ..types import AffineTransform, Array, DisplacementField, Geometry, Volume
from . import result_files as files
from .result_files import Writer

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..features.mind import FeaturePair
    from .decisions import Decisions
    from .plan import Plan


#: Confidence of the initial alignment below which the result deserves a look. Four of 28 right
#: pairs lie below it; on three of these the worst organ has a Dice of 0.01, 0.30 and 0.61.
_CLOSE_CALL = 0.03


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """The features that the first search level compared, for inspection.

    Attributes:
        fixed: (d, h, w, K) float16, features of the fixed image on `fixed_geometry`.
        moving: (d, h, w, K) float16, features of the moving image on `moving_geometry`, after the
            initial alignment.
        fixed_weight: (d, h, w) float32, weight of each voxel; 0 outside masks and bodies, and where
            features are uninformative.
        moving_weight: the same for the moving image.
        fixed_geometry: the control grid, in the fixed image's space.
        moving_geometry: the part or extension of the control grid on which the moving image is
            sampled.
        moving_offset_zyx: index of the first voxel of `moving_geometry` on the control grid.
        displacement_mm: (d, h, w, 3) float32 along the control grid's axes z, y, x, from a fixed
            point to its match on `moving_geometry`.
        encoder_channels: number of leading channels that come from an encoder; 0 without one.
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
        """Copy the features to the host, without padding.

        Args:
            features: the features that the first search level compared.
            weights: (d, h, w) for each image, the weights of its control voxels.
            field: the solver's result on the control grid.
            plan: the plan of the registration.
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
        displacement: the whole mapping from fixed to moving points, initial alignment included, on
            the fixed image's grid.
        initial: the initial alignment alone, fixed points to moving points.
        deformable: displacements d of fixed points on the control grid, with which the whole
            mapping is ``initial(p + d(p))``; None for a linear registration.
        affine: the whole mapping of a linear registration; None if a field was refined.
        warped: the moving image on the fixed image's grid.
        inverse: moving points to fixed points on the moving image's grid; None unless requested.
        quality: measures of the result that need no labels.
        config: the configuration that was used, all of it decided.
        encoding: what an encoder contributed; None without an encoder.
        features: the features of both images; None unless requested.
        choices: automatic decisions with their reasons, by the name of the decision.
        decisions: the same decisions as values.
        plan_warnings: what the headers and the values of the images leave in doubt.
        water: intensity of water in the fixed and the moving image; None for images not in HU.
        alignment: similarity, confidence and overlap of the initial alignment, the last two 0..1;
            empty if it was given instead of searched for.
        device_memory: the prediction for the GPU's memory; None on a CPU.
        timings_ms: milliseconds of each stage, in order, planning included: by CUDA events for
            what a GPU does, else wall clock.
        versions: versions of dinoreg-rt, its kernel library and the packages that took part.
        hashes: SHA-256 of the voxels and header of each input.
        confidence: how well each voxel's match is determined, 0..1 on the fixed grid (see
            `dinoreg_rt.fields.solve.confidence`); None unless requested.
        regions: how well the images agree in each region of the body; empty unless the images were
            tested (`trust`).
    """

    displacement: DisplacementField
    initial: AffineTransform
    warped: Volume
    inverse: DisplacementField | None
    quality: RunQuality
    config: RegistrationConfig
    deformable: DisplacementField | None = None
    encoding: EncodingSummary | None = None
    features: KeptFeatures | None = None
    choices: dict[str, str] = field(default_factory=dict)
    decisions: Decisions | None = None
    plan_warnings: tuple[str, ...] = ()
    water: tuple[float | None, float | None] = (None, None)
    alignment: dict[str, float] = field(default_factory=dict)
    device_memory: DeviceMemory | None = None
    timings_ms: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    confidence: Volume | None = None
    regions: tuple[RegionQuality, ...] = ()
    affine: AffineTransform | None = None

    @property
    def trust(self) -> Trust:
        """Whether to use the result: the verdict, and the reasons against it."""
        return judge(self.quality)

    @property
    def warnings(self) -> list[str]:
        """What to check before using the result, one sentence each."""
        found = [*self.plan_warnings, *quality_warnings(self.quality)]
        certainty = self.alignment.get("confidence", 1.0)
        if certainty < _CLOSE_CALL:
            found.append(
                f"the initial alignment was a close call, with a confidence of {certainty:.2f} "
                f"(limit {_CLOSE_CALL:g}): another position matches about as well; look for organs "
                "that were missed, or give another --initial"
            )
        if self.encoding is not None and self.encoding.random_weights:
            found.append("the encoder's weights are random: its features mean nothing")
        badly_matched = region_warning(self.regions)
        return found if badly_matched is None else [*found, badly_matched]

    def __repr__(self) -> str:
        before, after = self.quality.feature_distance_before, self.quality.feature_distance_after
        distance = f"{after:.4g}" if self.affine is not None else f"{before:.4g} -> {after:.4g}"
        return (
            f"<RegistrationResult {self.displacement.geometry.summary()}: {self.trust.verdict}, "
            f"feature distance {distance}, {self.quality.folded_percent:.3f} % folded>"
        )

    def save(self, folder: str | os.PathLike[str], *, displacement: bool = False) -> list[Path]:
        """Write what `dinoreg-rt run` writes of a result into a folder, all of it or nothing.

        These are ``warped.nii.gz``, ``transform.h5`` (of a linear registration ``transform.tfm``)
        and, if the result holds them, ``inverse.nii.gz``, ``confidence.nii.gz``,
        ``features_fixed.nrrd`` and ``features_moving.nrrd``. Files of these names are replaced.

        Args:
            folder: created if it is missing.
            displacement: also write ``displacement.nii.gz``, the mapping on the fixed grid.

        Returns:
            The paths of the files.

        Raises:
            OutputError: the files cannot be written.
        """
        writers = self.writers(displacement=displacement)
        with io.staged_folder(folder) as staging:
            for name, write in writers.items():
                write(staging / name)
        return [Path(folder) / name for name in writers]

    def writers(self, *, displacement: bool) -> dict[str, Writer]:
        """Return the functions that write all that the result holds by file name, slowest first.

        The `displacement` on the fixed grid is optional, because the transform holds the mapping.
        """
        writers: dict[str, Writer] = {}
        if displacement:
            writers[files.DISPLACEMENT] = files.field_writer(self.displacement)
        if self.inverse is not None:
            writers[files.INVERSE] = files.field_writer(self.inverse)
        if self.confidence is not None:
            writers[files.CONFIDENCE] = files.volume_writer(self.confidence)
        if self.features is not None:
            kept = self.features
            writers[files.FIXED_FEATURES] = files.features_writer(kept.fixed, kept.fixed_geometry)
            writers[files.MOVING_FEATURES] = files.features_writer(
                kept.moving, kept.moving_geometry
            )
        writers[files.WARPED] = files.volume_writer(self.warped)
        if self.affine is not None:
            writers[files.LINEAR] = lambda path: io.write_linear(path, self.transform_sitk())
        else:
            writers[files.TRANSFORM] = lambda path: io.write_composite_h5(
                path, self.initial, self.deformable, self.displacement.geometry
            )
        return writers

    def linear_summary(self) -> LinearSummary | None:
        """Return the numbers of a linear registration; None if a field was refined."""
        model = self.config.linear_transform
        if self.affine is None or model is None:
            return None
        return LinearSummary.of(self.affine, model, centre_lps_mm(self.displacement.geometry))

    def warped_sitk(self) -> sitk.Image:
        """Return the warped moving image as a SimpleITK image on the fixed grid."""
        return io.volume_to_sitk(self.warped)

    def displacement_sitk(self) -> sitk.Image:
        """Return the displacement as a SimpleITK vector image (float32, mm, LPS)."""
        return io.displacement_to_sitk(self.displacement)

    def transform_sitk(self) -> sitk.Transform:
        """Return the mapping from fixed to moving points as a SimpleITK transform.

        A linear one is ``Euler3DTransform``, ``Similarity3DTransform`` or ``AffineTransform``,
        centred on the fixed image. Otherwise it is a composite of `initial` and `deformable`, which
        equals `displacement` at the voxel centres of the fixed grid; outside the control grid it is
        `initial` alone.
        """
        if self.affine is not None and self.config.linear_transform is not None:
            centre = centre_lps_mm(self.displacement.geometry)
            return io.linear_to_sitk(self.affine, self.config.linear_transform, centre)
        return io.composite_to_sitk(self.initial, self.deformable)
