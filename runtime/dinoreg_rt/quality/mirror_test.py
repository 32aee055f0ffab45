"""The mirror test: a null distribution from mirrored images tells what a match is worth.

Any two images can be matched somehow, and how well depends on their contrast, noise and field of
view, so a residual says little by itself. A mirror image of the moving image has all of these but
the wrong anatomy. If one of them matches the fixed image as well as the moving image does, the
match means nothing: another organ, another region, upside down, or left for right.

The test compares MIND-SSC, whatever the registration compares: mirroring only permutes its
channels, and the measures mean the same with and without an encoder.

An image is mirrored about the centroid of its content: about the middle of its grid, a body that
lies off it would be thrown to the other side, out of the search's reach. Left and right are
exchanged about both, and the better match counts: each alone misses some exchanged sides.

Every image is compared where it lies and shifted to where its own search took it, and the better
place counts: otherwise an exact match that lies elsewhere would lose to a poor one in place.

Some anatomy, such as a brain, is nearly its own mirror image. Then left and right exchanged match
about as well, and that proves nothing. So the fixed image is searched in its own mirror image, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

import dinoreg_kernels
from dinoreg_kernels import SolverOptions

from ..device.choice import Device
from ..features.mind import MIND_MIRRORED, FeaturePair
from ..images.grids import WorkingGrids
from ..summaries import RegionQuality
from ..types import Array, FloatArray, Geometry
from .agreement import NUMBERS, Agreement, agreement_by_region, measure_agreement
from .mirror_images import COARSER, MirrorTestImage, coarser, coarser_index
from .mutual_information import HISTOGRAM, correlation, joint_histogram, mutual_information

#: Power of the mutual information in a misfit. With 0.1 to 0.3 right and wrong pairs are equally
#: well separated; without it they mix: MIND-SSC sees every structure by itself, and an image and
#: its mirror image have the same structures, but not at the same intensities of the other image.
_INFORMATION_POWER = 0.2
#: Numbers of a search before its joint histogram: the three of a `Solution`'s feature distance,
#: then sum of weighted differences and sum of weights after the shift.
_LEADING = 5
#: Bytes of `DecoySearches`, whose six searches and agreement wait on the device.
HELD_BYTES = 8 * (6 * (_LEADING + HISTOGRAM) + NUMBERS + 1)


@dataclasses.dataclass(frozen=True)
class DecoyMeasures(Agreement):
    """Results of the mirror test, and how well the images agree.

    Attributes:
        decoy_ratio: misfit of the moving image over the least misfit of its mirror images, see
            `_misfit`. At 1 the moving image fits no better than a wrong image. NaN if the image is
            too small to be mirrored.
        sides_ratio: the same over the misfit of the image mirrored from left to right alone.
        turned_ratio: the same over the least misfit of the other two mirror images.
        symmetry: correlation of the fixed image with its own mirror image, left to right, after a
            search; 1 for an image that is its own mirror image.
        unrelated_ratio: feature difference after the search over that of unrelated images.
    """

    decoy_ratio: float
    sides_ratio: float
    turned_ratio: float
    symmetry: float
    unrelated_ratio: float


@dataclasses.dataclass(frozen=True, eq=False)
class DecoySearches:
    """Results of the mirror test on the device, where it may still be running.

    Attributes:
        own: numbers of the search in the moving image, see `_LEADING`, and the joint histogram.
        mirrored: the same for its mirror images, each after its axis (z, y, x); axes of one voxel
            are missing, and that of the sides has two.
        itself: the same for the fixed image in its own mirror image; None where it has none.
        sides: axis from left to right.
        unrelated: feature difference of unrelated images, see `_unrelated`.
        agreement: result of `measure_agreement`.
        device: device that holds these arrays.
    """

    own: Array
    mirrored: list[tuple[int, Array]]
    itself: Array | None
    sides: int
    unrelated: Array
    agreement: Array
    device: Device

    def measures(self) -> tuple[DecoyMeasures, tuple[RegionQuality, ...]]:
        """Wait once for all searches; return the measures, and those of regions of the body."""
        itself = [] if self.itself is None else [self.itself]
        searches = [self.own, *(numbers for _, numbers in self.mirrored), *itself]
        flat = np.array(self.device.numbers(*searches, self.agreement, self.unrelated))
        own, *found = flat[: -NUMBERS - 1].reshape(len(searches), -1)
        # An image of one voxel has no mirror image, so nothing can be concluded.
        ratios = [
            (axis, _ratio(_misfit(own), _misfit(numbers)))
            for (axis, _), numbers in zip(self.mirrored, found, strict=False)
        ]
        exchanged = [ratio for axis, ratio in ratios if axis == self.sides]
        turned = [ratio for axis, ratio in ratios if axis != self.sides]
        after = float(own[1]) if own[2] > 0 else math.inf
        agreement = flat[-NUMBERS - 1 : -1]
        measures = DecoyMeasures(
            **vars(Agreement.of(agreement)),
            decoy_ratio=_worst(exchanged + turned),
            sides_ratio=_worst(exchanged),
            turned_ratio=_worst(turned),
            symmetry=correlation(found[-1][_LEADING:]) if itself else math.nan,
            unrelated_ratio=_ratio(after, float(flat[-1])),
        )
        return measures, agreement_by_region(agreement)


def search_decoys(  # noqa: PLR0913 - the arrays of one call
    features: FeaturePair,
    images: tuple[Array, Array],
    weights: tuple[Array, Array],
    grids: WorkingGrids,
    moving_offset_zyx: tuple[int, int, int],
    moving_middle_zyx: tuple[float, float, float],
    options: SolverOptions,
    device: Device,
    field: Array,
    *,
    back: Array | None = None,
) -> DecoySearches | None:
    """Search in the moving image, in its three mirror images, and in that of the fixed image.

    On a GPU the searches are queued without waiting for them.

    Args:
        features: MIND-SSC, with or without local intensities, on the control grid.
        images: intensities 0..1 on the same grids, (d, h, w) float32.
        weights: weights of both images there.
        grids: grids of the fixed image.
        moving_offset_zyx: offset of the moving grid, in control voxels.
        moving_middle_zyx: `content_middle` of the moving image, about which it is mirrored.
        options: options of the registration, whose search is used at twice the step.
        device: device that holds the arrays.
        field: result of the registration, (d, h, w, 3) mm on the fixed control grid.
        back: like `field`, from where the images lie to where they lay before the registration, for
            a linear one, whose features are already compared in its result; None otherwise.

    Returns:
        None if there is no search.
    """
    if not any(options.search_radius):
        return None
    spacing_mm = grids.control.spacing_mm[::-1]
    agreement = measure_agreement(
        features,
        images,
        weights,
        back,
        field,
        grids.control,
        moving_offset_zyx,
        device,
    )
    fixed = MirrorTestImage.of(features.fixed, images[0], weights[0], (0, 0, 0), device)
    moving = MirrorTestImage.of(features.moving, images[1], weights[1], moving_offset_zyx, device)
    search = _Search(fixed, [COARSER * mm for mm in spacing_mm], features.channels, options, device)
    own, mirrored, itself = search.numbers(moving), [], None
    sides = _left_to_right(grids.control)
    for axis, order in enumerate(MIND_MIRRORED):
        if (n := moving.weight.shape[axis]) <= 1:
            continue
        planes = [coarser_index(moving_middle_zyx[axis], moving_offset_zyx[axis])]
        planes += [(n - 1) / 2] * (axis == sides)
        for middle in planes:
            tested = moving.mirrored(axis, order, middle, device)
            mirrored.append((axis, search.numbers(tested)))
    if fixed.weight.shape[sides] > 1:
        middle = (fixed.weight.shape[sides] - 1) / 2
        itself = search.numbers(fixed.mirrored(sides, MIND_MIRRORED[sides], middle, device))
    unrelated = _unrelated(fixed, moving, device)
    return DecoySearches(own, mirrored, itself, sides, unrelated, agreement, device)


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """A search from the fixed image in other images.

    Attributes:
        fixed: fixed image.
        spacing_mm: spacing of the test's grid, z, y, x.
        channels: number of channels used.
        options: solver options of the registration.
        device: device that holds the arrays.
    """

    fixed: MirrorTestImage
    spacing_mm: Sequence[float]
    channels: int
    options: SolverOptions
    device: Device

    def numbers(self, tested: MirrorTestImage) -> Array:
        """Search in `tested`; return the numbers as `DecoySearches` holds them, float64."""
        fixed, device = self.fixed, self.device
        solution = dinoreg_kernels.solve(
            fixed.features,
            tested.features,
            fixed.weight,
            tested.weight,
            spacing_mm=self.spacing_mm,
            moving_offset=tested.offset_zyx,
            channels=self.channels,
            options=_once(self.options),
            threads=device.threads,
        )
        image, seen = tested.warped(solution.field, self.spacing_mm, device)
        seen *= fixed.weight
        joint = joint_histogram(fixed.image, image, seen, device.xp)
        shifts = self._shift(solution.field, seen)
        shifted = tested.shifted_difference(fixed, shifts, device)
        parts = [solution.feature_distance, shifted, joint.astype(np.float64)]
        return device.xp.concatenate(parts)

    def _shift(self, field: Array, weight: Array) -> list[Array]:
        """Return the mean displacement along z, y, x in whole voxels; scalars on the device."""
        xp, total = self.device.xp, self.device.xp.maximum(weight.sum(dtype=np.float64), 1e-6)
        means = [(field[..., axis] * weight).sum(dtype=np.float64) / total for axis in range(3)]
        return [
            xp.rint(m / mm).astype(np.int64) for m, mm in zip(means, self.spacing_mm, strict=True)
        ]


def decoy_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
) -> int:
    """Predict the bytes that one search takes besides its arrays.

    Args:
        fixed_shape: shape of the fixed image on the mirror test's grid.
        moving_shape: shape of the moving image on that grid.
        stride: stored channels of the features.
        spacing_mm: spacing of the control grid, z, y, x.
        options: solver options of the registration.
    """
    coarse_mm = [COARSER * mm for mm in spacing_mm]
    return dinoreg_kernels.solver_workspace_bytes(
        fixed_shape, moving_shape, stride, coarse_mm, _once(options)
    )


def _once(options: SolverOptions) -> SolverOptions:
    """Return the options of a single search at twice the registration's step."""
    return dataclasses.replace(
        options,
        search_factor=coarser(options.search_factor),
        search_levels=1,
        search_trust_cost=0.0,
        consistency_rounds=0,
        iterations=(0,),
        feature_similarity="mse",
        correlation_weight=0.0,
        squarings=0,
    )


def _left_to_right(grid: Geometry) -> int:
    """Return the axis (z, y, x) of a grid that is closest to the direction from left to right."""
    return 2 - int(np.argmax(np.abs(grid.direction[0])))


def _misfit(found: FloatArray) -> float:
    """Return the difference after a search times the one before, over a power of the information.

    A brain deforms into its own mirror image as easily as into another brain: the difference after
    the search then says nothing, but before it the right image fits better. Before the search
    means where the image lies or after the shift, whichever is better.

    Args:
        found: numbers of a search, see `_LEADING`, and its joint histogram.
    """
    before, after, overlap, shifted, weight = (float(number) for number in found[:_LEADING])
    information = mutual_information(found[_LEADING:])
    if overlap <= 0 or information <= 0:
        return math.inf
    if weight > 0:
        before = min(before, shifted / weight)
    return after * before / math.pow(information, _INFORMATION_POWER)


def _worst(ratios: list[float]) -> float:
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return max(known, default=math.nan)


def _unrelated(fixed: MirrorTestImage, moving: MirrorTestImage, device: Device) -> Array:
    """Return the mean squared difference of independent draws, E|f|^2 + E|m|^2 - 2 Ef Em."""
    xp, moments = device.xp, []
    for one in (fixed, moving):
        values = one.features.reshape(-1, one.features.shape[-1]).astype(np.float32)
        share = one.weight.reshape(-1, 1) / xp.maximum(one.weight.sum(), 1e-6)
        # No matrix product: BLAS threads would keep spinning beside the kernels' own.
        moments.append(((share * values).sum(axis=0), (share * xp.square(values)).sum(axis=0)))
    (first, first_square), (second, second_square) = moments
    return (first_square + second_square - 2 * first * second).sum()


def _ratio(value: float, other: float) -> float:
    return value / other if other > 0 else float("nan")
