"""Features of both images on the solver's grids, and how much each place counts.

Features are MIND-SSC, an encoder's, or both joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .device import StageTimer
from .errors import RegistrationError
from .features import (
    FeaturePair,
    MindFeatures,
    WorkingImage,
    control_intensities,
    join_features,
)
from .preprocess import required, resample_volume, weight_on, window
from .types import AffineTransform, Array, EncodingSummary, Volume

if TYPE_CHECKING:
    from .encoder.pool import EncoderPool
    from .planning import Plan


@dataclass(frozen=True, eq=False)
class Extracted:
    """What the solver compares.

    Attributes:
        features: of both images.
        mind: MIND-SSC by itself, for the verdict on trust; None where none is asked for.
        intensities: of both images on the control lattices, (d, h, w) float32, for the local
            correlation and the verdict on trust; None where neither is asked for.
        encoding: what an encoder contributed, for when its work is done; None without one.
    """

    features: FeaturePair
    mind: FeaturePair | None
    intensities: tuple[Array, Array] | None
    encoding: Callable[[], EncodingSummary] | None


def field_of_view(
    volumes: tuple[Volume, Volume],
    masks: tuple[Array | None, Array | None],
    organ_weight: Array | None,
    plan: Plan,
) -> tuple[Array, Array]:
    """How much each control voxel of either image counts: field of view, masks, bodies, organs.

    Args:
        volumes: fixed and moving image.
        masks: (D, H, W) of each image, or None.
        organ_weight: (D, H, W) of the fixed image, 0 or more, or None: 1 everywhere.
        plan: the decisions.

    Raises:
        RegistrationError: nothing is left to compare.
    """
    (fixed, moving), device = volumes, plan.device
    grid, lattice = plan.grids.control, plan.lattice.control
    if masks[0] is None:
        fixed_weight = device.xp.ones(grid.shape_zyx, np.float32)
    else:
        fixed_weight = weight_on(grid, fixed, masks[0], AffineTransform.identity(), device)
    if organ_weight is not None:
        fixed_weight *= weight_on(grid, fixed, organ_weight, AffineTransform.identity(), device)
    moving_weight = weight_on(lattice, moving, masks[1], plan.initial, device)
    fixed_body, moving_body = plan.bodies
    if fixed_body is not None:
        fixed_weight *= weight_on(
            grid, fixed_body, fixed_body.array, AffineTransform.identity(), device
        )
    if moving_body is not None:
        moving_weight *= weight_on(lattice, moving_body, moving_body.array, plan.initial, device)
    left = device.numbers(fixed_weight.any(), moving_weight.any())
    for role, any_left in zip(("fixed", "moving"), left, strict=True):
        if not any_left:
            raise RegistrationError(
                f"nothing of the {role} image is left to compare: its mask covers no part that "
                "the other image reaches; check the mask and the initial alignment"
            )
    return fixed_weight, moving_weight


def extract_features(
    volumes: tuple[Volume, Volume],
    masks: tuple[Array | None, Array | None],
    plan: Plan,
    timer: StageTimer,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> Extracted:
    """The features, and the intensities beside them, that a plan asks for.

    Args:
        volumes: fixed and moving image.
        masks: (D, H, W) of each image, or None.
        plan: the decisions.
        timer: receives the stages ``encode`` and ``features``.
        report: called with a stage's name and its finished fraction.
        encoders: lends the encoder.
    """
    sets: list[FeaturePair] = []
    weights: list[float] = []
    summary = None
    if plan.encoding is not None:
        from .encoder.extract import SolverSide, encoder_features

        identity = AffineTransform.identity()
        first, second = (
            SolverSide(volume, mask, body, grid, affine)
            for volume, mask, body, grid, affine in (
                (volumes[0], masks[0], plan.bodies[0], plan.grids.control, identity),
                (volumes[1], masks[1], plan.bodies[1], plan.lattice.control, plan.initial),
            )
        )
        sets, weights, summary = encoder_features(
            plan.encoding, (first, second), plan.config, plan.device, timer, report, encoders
        )
    with timer.stage("features"):
        report("features", 0.0)
        config, mind, intensities = plan.config, None, None
        correlates = required(config.correlation_weight) > 0
        if config.computes_mind or correlates:
            images = working_images(volumes, plan)
        if config.computes_mind:
            mind = MindFeatures.of(config).compute(*images, plan.device)
        if mind is not None and config.uses_mind:
            sets.append(mind)
            weights.append(1.0 if plan.encoding is None else config.mind_weight)
        if correlates or config.trust:
            intensities = control_intensities(images, plan.device)
        features = join_features(sets, weights, plan.device)
        report("features", 1.0)
    return Extracted(features, mind if config.trust else None, intensities, summary)


def working_images(
    volumes: tuple[Volume, Volume], plan: Plan, *, cropped: bool = False
) -> tuple[WorkingImage, WorkingImage]:
    """Both images windowed to 0..1 where features are computed.

    Args:
        volumes: fixed and moving image.
        plan: the decisions.
        cropped: the moving image on the fixed one's working grid, not on its own part of it.
    """
    identity = AffineTransform.identity()
    lattice = plan.grids.working if cropped else plan.lattice.working
    images = []
    for volume, grid, affine, (low, high) in (
        (volumes[0], plan.grids.working, identity, plan.windows[0]),
        (volumes[1], lattice, plan.initial, plan.windows[1]),
    ):
        array = resample_volume(volume, grid, affine, plan.device)
        images.append(WorkingImage(window(array, low, high), grid, plan.grids.pool_zyx))
    return images[0], images[1]
