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
from dinoreg_kernels import MirrorSearch, MirrorTest, SolverOptions, WeighedImages

from ..device.choice import Device
from ..features.mind import MIND_MIRRORED
from ..images.grids import WorkingGrids
from ..summaries import RegionQuality
from ..types import Array, Geometry
from .agreement import Agreement, agreement_by_region, measure_agreement
from .mutual_information import correlation, histogram_of, mutual_information

#: Control voxels per voxel of the mirror test's grid along each axis. With 2 a search takes 0.05 s
#: of CPU time for a 192 x 160 x 192 pair and reaches twice as far as the registration's.
COARSER = 2
#: Power of the mutual information in a misfit. With 0.1 to 0.3 right and wrong pairs are equally
#: well separated; without it they mix: MIND-SSC sees every structure by itself, and an image and
#: its mirror image have the same structures, but not at the same intensities of the other image.
_INFORMATION_POWER = 0.2
#: Bytes of `DecoySearches`, which wait on the device.
HELD_BYTES = 8 * sum(map(dinoreg_kernels.numbers_of, (MirrorTest, dinoreg_kernels.Agreement)))


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
        searches: `dinoreg_kernels.MirrorTest` as float64.
        agreement: result of `measure_agreement`.
        sides: axis from left to right.
    """

    searches: Array
    agreement: Array
    sides: int

    def measures(
        self, searches: MirrorTest, found: dinoreg_kernels.Agreement
    ) -> tuple[DecoyMeasures, tuple[RegionQuality, ...]]:
        """Return the measures of the images, and those of regions of the body.

        Args:
            searches: `searches`, read from the device.
            found: `agreement`, read from the device.
        """
        own = searches.own
        tested = [*enumerate(searches.mirrored), (self.sides, searches.about_middle)]
        ratios = [(axis, _ratio(_misfit(own), _misfit(one))) for axis, one in tested if _done(one)]
        exchanged = [ratio for axis, ratio in ratios if axis == self.sides]
        turned = [ratio for axis, ratio in ratios if axis != self.sides]
        after = _mean(own.after, own.after_weight) if own.after_weight > 0 else math.inf
        measures = DecoyMeasures(
            **vars(Agreement.of(found)),
            decoy_ratio=_worst(exchanged + turned),
            sides_ratio=_worst(exchanged),
            turned_ratio=_worst(turned),
            symmetry=correlation(histogram_of(searches.itself.joint)),
            unrelated_ratio=_ratio(after, searches.unrelated),
        )
        return measures, agreement_by_region(found)


def search_decoys(
    images: WeighedImages,
    channels: int,
    grids: WorkingGrids,
    options: SolverOptions,
    device: Device,
    field: Array,
    *,
    back: Array | None = None,
) -> DecoySearches | None:
    """Search in the moving image, in its three mirror images, and in that of the fixed image.

    On a GPU the searches are queued without waiting for them.

    Args:
        images: MIND-SSC, with or without local intensities, with weights and intensities of both
            images on the control grid.
        channels: number of channels that are used.
        grids: grids of the fixed image.
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
    sides = _left_to_right(grids.control)
    agreement = measure_agreement(images, back, field, grids.control, device)
    searches = dinoreg_kernels.compare_mirrored(
        images,
        options=_coarser(options),
        order=MIND_MIRRORED,
        sides=sides,
        factor=COARSER,
        channels=channels,
        threads=device.threads,
    )
    return DecoySearches(searches, agreement, sides)


def decoy_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    moving_offset: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
) -> int:
    """Predict the bytes that the searches take besides the arrays of both images.

    Args:
        fixed_shape: shape of the control grid.
        moving_shape: shape of the moving control grid.
        moving_offset: offset of the moving control grid, in control voxels.
        stride: stored channels of the features.
        spacing_mm: spacing of the control grid, z, y, x.
        options: solver options of the registration.
    """
    return dinoreg_kernels.mirror_workspace_bytes(
        fixed_shape, moving_shape, moving_offset, stride, spacing_mm, _coarser(options), COARSER
    )


def coarser(counts_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Return counts of control voxels as counts of voxels of the mirror test's grid, rounded up."""
    z, y, x = (-(-n // COARSER) for n in counts_zyx)
    return z, y, x


def _coarser(options: SolverOptions) -> SolverOptions:
    """Return the options of a search at twice the registration's step."""
    return dataclasses.replace(options, search_factor=coarser(options.search_factor))


def _left_to_right(grid: Geometry) -> int:
    """Return the axis (z, y, x) of a grid that is closest to the direction from left to right."""
    return 2 - int(np.argmax(np.abs(grid.direction[0])))


def _done(found: MirrorSearch) -> bool:
    """Return whether there was such a search: an image of one voxel has no mirror image."""
    return bool(found.fixed_weight > 0)


def _misfit(found: MirrorSearch) -> float:
    """Return the difference after a search times the one before, over a power of the information.

    A brain deforms into its own mirror image as easily as into another brain: the difference after
    the search then says nothing, but before it the right image fits better. Before the search
    means where the image lies or after the shift, whichever is better.
    """
    information = mutual_information(histogram_of(found.joint))
    if found.after_weight <= 0 or information <= 0:
        return math.inf
    before = _mean(found.before, found.before_weight)
    if found.shifted_weight > 0:
        before = min(before, found.shifted / found.shifted_weight)
    after = _mean(found.after, found.after_weight)
    return after * before / math.pow(information, _INFORMATION_POWER)


def _mean(total: float, weight: float) -> float:
    """Return a weighted mean; 0 without weight."""
    return total / weight if weight > 0 else 0.0


def _worst(ratios: list[float]) -> float:
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return max(known, default=math.nan)


def _ratio(value: float, other: float) -> float:
    return value / other if other > 0 else float("nan")
