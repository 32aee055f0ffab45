"""Features of both images on the solver's grids, and the weight of each voxel.

Features are MIND-SSC, an encoder's, or both joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import dinoreg_kernels

from ..config.decided import DecidedConfig
from ..config.feature_parameters import FeatureSet
from ..device.choice import Device, StageTimer
from ..errors import RegistrationError
from ..features.joined import (
    NOTHING_BESIDE,
    Joined,
    add_features,
    join_features,
    joins_in_place,
)
from ..features.mind import (
    FeaturePair,
    MindFeatures,
    WorkingImage,
    control_intensities,
    level_sets,
)
from ..images.fixed_work import grid_key
from ..images.intensity import window
from ..images.pair import Sides, SolverSide
from ..images.resample import resample_volume, weight_on
from ..summaries import EncodingSummary
from ..types import Array, Volume

if TYPE_CHECKING:
    from ..encoder.open_encoders import EncoderPool
    from .plan import Plan


@dataclass(frozen=True, eq=False)
class Extracted:
    """The features and intensities that the solver compares.

    Attributes:
        search: features of both images for each search level.
        features: features of both images for the refinement.
        mind: MIND-SSC alone, for the mirror test; None if trust is not judged.
        intensities: (d, h, w) float32 for each image on its control grid, for the local correlation
            and the mirror test; None if neither is used.
        encoding: returns what an encoder contributed; None without one.
    """

    search: tuple[FeaturePair, ...]
    features: FeaturePair
    mind: FeaturePair | None
    intensities: tuple[Array, Array] | None
    encoding: Callable[[], EncodingSummary] | None


class Weights:
    """The weights of the control voxels, and their products with those of features.

    Args:
        counts: see `field_of_view`.
        device: device that holds them.
    """

    def __init__(self, counts: tuple[Array, Array], device: Device) -> None:
        self._counts, self._device = counts, device
        self._known: list[tuple[FeaturePair, tuple[Array, Array]]] = []

    def of(self, features: FeaturePair) -> tuple[Array, Array]:
        """Multiply the weights of the control voxels by those of their features, once for each."""
        for pair, weights in self._known:
            if pair is features:
                return weights
        fixed, moving = (
            dinoreg_kernels.multiply_weights(count, weight, threads=self._device.threads)
            for count, weight in zip(
                self._counts, (features.fixed_weight, features.moving_weight), strict=True
            )
        )
        self._known.append((features, (fixed, moving)))
        return fixed, moving

    def of_levels(
        self, extracted: Extracted
    ) -> list[tuple[FeaturePair, tuple[Array, Array]]] | None:
        """Return features and weights of each search level; None if they are the refinement's."""
        if all(pair is extracted.features for pair in extracted.search):
            return None
        return [(pair, self.of(pair)) for pair in extracted.search]


def field_of_view(sides: Sides, organ_weight: Array | None, device: Device) -> tuple[Array, Array]:
    """Weigh each control voxel of both images by field of view, masks, bodies and organs.

    Nothing waits for the device.

    Args:
        sides: both images.
        organ_weight: (D, H, W) for the fixed image, 0 or more; None: 1 everywhere.
        device: the device on which the weights are computed.

    Returns:
        (d, h, w) float32 for each image on its control grid.

    Raises:
        RegistrationError: nothing is left to compare. This is only known here on a CPU: on a GPU
            `check_left` raises it at the end of the run.
    """
    fixed, moving = (side_weight(side, device) for side in sides)
    if organ_weight is not None:
        of_organs = weight_by(sides[0], sides[0].image.volume, organ_weight, device)
        dinoreg_kernels.multiply_weights(fixed, of_organs, out=fixed, threads=device.threads)
    if device.kind == "cpu":
        left = [float(weight.any()) for weight in (fixed, moving)]
        check_left(left, sides, weighted=organ_weight is not None)
    return fixed, moving


def check_left(left: Sequence[float], sides: Sequence[SolverSide], *, weighted: bool) -> None:
    """Require that something of both images is left to compare.

    Args:
        left: sums of their weights.
        sides: both images.
        weighted: whether the voxels of the fixed image have weights.

    Raises:
        RegistrationError: nothing is left.
    """
    for side, total in zip(sides, left, strict=True):
        if total == 0:
            raise RegistrationError(nothing_left(side, weighted=weighted))


def nothing_left(side: SolverSide, *, weighted: bool) -> str:
    """Return the error message for an image of which nothing counts.

    Args:
        side: the image.
        weighted: whether the voxels of the fixed image have weights.
    """
    image = side.image
    given = ["mask"] * (image.mask is not None) + ["body mask"] * (image.body is not None)
    given += ["weights"] * (weighted and image.role == "fixed")
    names = " and ".join(given)
    leave = "leaves" if given in (["mask"], ["body mask"]) else "leave"
    part = f"what its {names} {leave}" if given else "it"
    return (
        f"nothing of the {image.role} image is left to compare: the other image does not reach "
        f"{part}; check {f'the {names} and ' if given else ''}the initial alignment"
    )


def side_weight(side: SolverSide, device: Device) -> Array:
    """Return the share of each control voxel that lies in the image, its mask and its body."""
    image = side.image
    if image.role == "fixed" and image.mask is None:  # the grid is the image's own
        weight = device.xp.ones(side.control.shape_zyx, np.float32)
    else:
        weight = weight_by(side, image.volume, image.mask, device)
    if image.body is not None:
        body = weight_by(side, image.body, image.body.array, device)
        dinoreg_kernels.multiply_weights(weight, body, out=weight, threads=device.threads)
    return weight


def weight_by(side: SolverSide, image: Volume, mask: Array | None, device: Device) -> Array:
    """Return the share of each control voxel in an image of the side's space and in `mask`."""
    return weight_on(side.control, image, mask, side.affine, device)


def extract_features(
    sides: Sides,
    plan: Plan,
    timer: StageTimer,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> Extracted:
    """Compute the features and intensities that a plan needs.

    Args:
        sides: both images on the plan's device.
        plan: the plan of the registration.
        timer: measures the stages ``encode`` and ``features``.
        report: called with a stage's name and its finished fraction.
        encoders: keeps the encoder open.
    """
    config = plan.config
    encoded, summary, beside = None, None, NOTHING_BESIDE
    if plan.encoding is not None:
        from ..encoder.features import encoder_features

        if joins_in_place(config):
            beside = Joined(MindFeatures.of(config).channels, config.mind_weight)
        encoded, summary = encoder_features(
            plan.encoding, sides, config, plan.device, timer, report, encoders, beside
        )
    report("features", 0.0)
    sets, mind, intensities = timer.recorded("features", lambda: _computed(sides, plan, encoded))
    report("features", 1.0)
    search = tuple(sets[name] for name in level_sets(config, plan.grids.search_levels))
    _, refinement = config.stage_features
    judged = mind if config.trust else None
    return Extracted(search, sets[refinement], judged, intensities, summary)


def _computed(
    sides: Sides, plan: Plan, encoded: FeaturePair | None
) -> tuple[dict[FeatureSet, FeaturePair], FeaturePair | None, tuple[Array, Array] | None]:
    """Return all feature sets, MIND-SSC by itself, and the intensities, as far as they are used."""
    config, mind, intensities = plan.config, None, None
    correlates = config.correlation_weight > 0
    if config.computes_mind or correlates:
        images = working_images(sides, plan.grids.pool_zyx, plan.device)
    if config.computes_mind:
        mind = MindFeatures.of(config).compute(*images, plan.device)
    if correlates or config.trust:
        intensities = control_intensities(images, plan.device)
    return _feature_sets(encoded, mind, config, plan.device), mind, intensities


def _feature_sets(
    encoded: FeaturePair | None,
    mind: FeaturePair | None,
    config: DecidedConfig,
    device: Device,
) -> dict[FeatureSet, FeaturePair]:
    """Return the feature sets that the search or the refinement compares."""
    sets: dict[FeatureSet, FeaturePair] = {}
    if encoded is not None:
        sets["encoder"] = encoded
    if mind is not None:
        sets["mind"] = mind
    if "joined" in config.feature_sets and encoded is not None and mind is not None:
        weight = config.mind_weight
        if joins_in_place(config):
            factor = (weight / (1.0 + weight)) ** 0.5
            sets["joined"] = add_features(encoded, mind, factor, device)
        else:
            sets["joined"] = join_features([encoded, mind], [1.0, weight], device)
    return {name: pair for name, pair in sets.items() if name in config.feature_sets}


def working_images(
    sides: Sides, pool_zyx: tuple[int, int, int], device: Device
) -> tuple[WorkingImage, WorkingImage]:
    """Resample both images to their working grids, windowed to 0..1.

    Args:
        sides: both images on `device`.
        pool_zyx: working voxels per control voxel.
        device: the device to compute on.
    """
    first, second = (working_image(side, pool_zyx, device) for side in sides)
    return first, second


def working_image(side: SolverSide, pool_zyx: tuple[int, int, int], device: Device) -> WorkingImage:
    """Resample one image to its working grid, windowed to 0..1; see `working_images`."""

    def made() -> WorkingImage:
        image = resample_volume(side.image.volume, side.working, side.affine, device)
        array = window(image, *side.image.window)
        return WorkingImage(array, side.working, pool_zyx, side.image.kept)

    key = (grid_key(side.working), pool_zyx)
    return side.image.kept.once("working image", key, made)
