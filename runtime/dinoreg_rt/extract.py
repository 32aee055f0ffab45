"""Features of both images on the solver's grids: MIND-SSC, an encoder's, or both joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .device import StageTimer
from .features import (
    FeaturePair,
    MindFeatures,
    WorkingImage,
    control_intensities,
    join_features,
)
from .preprocess import required, resample_volume, window
from .types import AffineTransform, Array, EncodingSummary, Volume

if TYPE_CHECKING:
    from .registration import Plan


@dataclass(frozen=True, eq=False)
class Extracted:
    """What the solver compares.

    Attributes:
        features: of both images.
        intensities: of both images on the control lattices, (d, h, w) float32, for the local
            correlation; None where it takes no part.
        encoding: what an encoder contributed; None without one.
    """

    features: FeaturePair
    intensities: tuple[Array, Array] | None
    encoding: EncodingSummary | None


def extract_features(
    volumes: tuple[Volume, Volume],
    masks: tuple[Array | None, Array | None],
    plan: Plan,
    timer: StageTimer,
    report: Callable[[str, float], None],
) -> Extracted:
    """The features, and the intensities beside them, that a plan asks for.

    Args:
        volumes: fixed and moving image.
        masks: (D, H, W) of each image, or None.
        plan: the decisions.
        timer: receives the stages ``encode`` and ``features``.
        report: called with a stage's name and its finished fraction.
    """
    sets: list[FeaturePair] = []
    weights: list[float] = []
    summary = None
    if plan.encoding is not None:
        from .encoder.extract import SolverSide, encoder_features

        sides = (
            SolverSide(masks[0], plan.bodies[0], plan.grids.control, AffineTransform.identity()),
            SolverSide(masks[1], plan.bodies[1], plan.lattice.control, plan.initial),
        )
        sets, weights, summary = encoder_features(
            plan.encoding, sides, plan.config, plan.device, timer, report
        )
    with timer.stage("features"):
        report("features", 0.0)
        correlates = required(plan.config.correlation_weight) > 0
        intensities = None
        if plan.config.uses_mind or correlates:
            images = _working_images(volumes, plan)
        if plan.config.uses_mind:
            sets.append(_mind(plan).compute(*images, plan.device))
            weights.append(1.0 if plan.encoding is None else plan.config.mind_weight)
        if correlates:
            intensities = control_intensities(images, plan.device)
        features = join_features(sets, weights, plan.device)
        report("features", 1.0)
    return Extracted(features, intensities, summary)


def _mind(plan: Plan) -> MindFeatures:
    config = plan.config
    return MindFeatures(
        required(config.mind_radius_mm),
        required(config.mind_dilation_mm),
        config.feature_scale,
        config.intensity_windows_mm or () if config.intensity == "on" else (),
        config.intensity_scale,
    )


def _working_images(
    volumes: tuple[Volume, Volume], plan: Plan
) -> tuple[WorkingImage, WorkingImage]:
    identity = AffineTransform.identity()
    images = []
    for volume, grid, affine, (low, high) in (
        (volumes[0], plan.grids.working, identity, plan.windows[0]),
        (volumes[1], plan.lattice.working, plan.initial, plan.windows[1]),
    ):
        array = resample_volume(volume, grid, affine, plan.device)
        images.append(WorkingImage(window(array, low, high), grid, plan.grids.pool_zyx))
    return images[0], images[1]
