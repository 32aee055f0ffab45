"""The mirror test: a null distribution from mirrored images tells what a match is worth.

Any two images can be matched somehow, and how well depends on their contrast, noise and field of
view, so a residual says little by itself. A mirror image of the moving image has all of these but
the wrong anatomy. If one of them matches the fixed image as well as the moving image does, the
match means nothing: another organ, another region, upside down, or left for right.

The test compares MIND-SSC, whatever the registration compares: mirroring only permutes its
channels, and the measures mean the same with and without an encoder.
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
from ..types import Array, FloatArray
from .mutual_information import joint_histogram, mutual_information

#: Control voxels per voxel of the mirror test's grid along each axis. With 2 the four searches take
#: 0.2 s of CPU time for a 192 x 160 x 192 pair, and they reach twice as far.
COARSER = 2
#: Power of the mutual information in a misfit. With 0.1 to 0.3 right and wrong pairs are equally
#: well separated; without it they mix: MIND-SSC sees every structure by itself, and an image and
#: its mirror image have the same structures, but not at the same intensities of the other image.
_INFORMATION_POWER = 0.2


@dataclasses.dataclass(frozen=True)
class DecoyMeasures:
    """Results of the mirror test; lower is better.

    Attributes:
        decoy_ratio: misfit of the moving image over the least misfit of its mirror images, see
            `_misfit`. At 1 the moving image fits no better than a wrong image. NaN if the image is
            too small to be mirrored.
        unrelated_ratio: feature difference after the search over that of unrelated images.
    """

    decoy_ratio: float
    unrelated_ratio: float


@dataclasses.dataclass(frozen=True, eq=False)
class DecoySearches:
    """Results of the mirror test's searches on the device, where they may still be running.

    Attributes:
        found: for each search the three numbers of a `Solution`'s feature distance, and the joint
            histogram of intensities after it. The first search is in the moving image, the others
            are in its mirror images.
        unrelated: feature difference of unrelated images, see `_unrelated`.
        device: device that holds these arrays.
    """

    found: tuple[tuple[Array, Array], ...]
    unrelated: Array
    device: Device

    def measures(self) -> DecoyMeasures:
        """Wait once for all searches and return the measures."""
        arrays = [array for pair in self.found for array in pair]
        *flat, unrelated = self.device.numbers(*arrays, self.unrelated)
        own, *mirrored = np.array(flat).reshape(len(self.found), -1)
        # An image of one voxel has no mirror image, so nothing can be concluded.
        best = min((_misfit(numbers) for numbers in mirrored), default=math.nan)
        after = float(own[1]) if own[2] > 0 else math.inf
        return DecoyMeasures(_ratio(_misfit(own), best), _ratio(after, unrelated))


def search_decoys(
    features: FeaturePair,
    images: tuple[Array, Array],
    weights: tuple[Array, Array],
    grids: WorkingGrids,
    moving_offset_zyx: tuple[int, int, int],
    options: SolverOptions,
    device: Device,
) -> DecoySearches | None:
    """Search once in the moving image and once in each of its three mirror images.

    On a GPU the searches are queued without waiting for them.

    Args:
        features: MIND-SSC, with or without local intensities, on the control grid.
        images: intensities 0..1 on the same grids, (d, h, w) float32.
        weights: weights of both images there.
        grids: grids of the fixed image.
        moving_offset_zyx: offset of the moving grid, in control voxels.
        options: options of the registration, whose search is used at twice the step.
        device: device that holds the arrays.

    Returns:
        None if there is no search.
    """
    if not any(options.search_radius):
        return None
    fixed = _TestImage.of(features.fixed, images[0], weights[0], (0, 0, 0), device)
    moving = _TestImage.of(features.moving, images[1], weights[1], moving_offset_zyx, device)
    spacing_mm = [COARSER * mm for mm in grids.control.spacing_mm[::-1]]

    def search(tested: _TestImage) -> tuple[Array, Array]:
        solution = dinoreg_kernels.solve(
            fixed.features,
            tested.features,
            fixed.weight,
            tested.weight,
            spacing_mm=spacing_mm,
            moving_offset=tested.offset_zyx,
            channels=features.channels,
            options=_once(options),
            threads=device.threads,
        )
        image, seen = tested.warped(solution.field, spacing_mm, device)
        joint = joint_histogram(fixed.image, image, fixed.weight * seen, device.xp)
        return solution.feature_distance, joint

    found = [search(moving)]
    for axis, order in enumerate(MIND_MIRRORED):
        if moving.weight.shape[axis] > 1:
            found.append(search(moving.mirrored(axis, order, device)))
    return DecoySearches(tuple(found), _unrelated(fixed, moving, device), device)


@dataclasses.dataclass(frozen=True, eq=False)
class _TestImage:
    """An image on the mirror test's grid.

    Its voxels begin at multiples of `COARSER` on the fixed image's control grid.

    Attributes:
        features: (d, h, w, stored) float16.
        weight: (d, h, w) float32.
        image: intensities, (d, h, w) float32.
        offset_zyx: index of the first voxel on that grid.
    """

    features: Array
    weight: Array
    image: Array
    offset_zyx: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        features: Array,
        image: Array,
        weight: Array,
        offset_zyx: tuple[int, int, int],
        device: Device,
    ) -> _TestImage:
        """Average an image from the control grid, where its first voxel has index `offset_zyx`."""
        lead = [o % COARSER for o in offset_zyx]
        averaged, share = dinoreg_kernels.pool_features(
            features, weight, (COARSER,) * 3, offset=lead, threads=device.threads
        )
        # Sample each voxel's control voxels at their centres.
        matrix = np.column_stack([COARSER * np.eye(3), (COARSER - 1) / 2 - np.array(lead)])
        grey = dinoreg_kernels.resample(
            image * weight, share.shape, matrix, samples=(COARSER,) * 3, threads=device.threads
        )
        grey /= device.xp.maximum(share, 1e-6)
        z, y, x = ((o - a) // COARSER for o, a in zip(offset_zyx, lead, strict=True))
        return cls(averaged, share, grey, (z, y, x))

    def mirrored(self, axis: int, order: Sequence[int], device: Device) -> _TestImage:
        """Flip along an axis; `order` lists the channels that replace the first ones."""
        xp, others = device.xp, range(len(order), self.features.shape[-1])
        flipped = xp.flip(self.features, axis)[..., [*order, *others]]
        features, weight, image = (
            xp.ascontiguousarray(array)
            for array in (flipped, xp.flip(self.weight, axis), xp.flip(self.image, axis))
        )
        return _TestImage(features, weight, image, self.offset_zyx)

    def warped(
        self, field: Array, spacing_mm: Sequence[float], device: Device
    ) -> tuple[Array, Array]:
        """Return image and weight warped by `field`, (d, h, w, 3) mm on the fixed voxels."""
        image, weight = (
            dinoreg_kernels.resample(
                array,
                field.shape[:3],
                np.column_stack([np.eye(3), np.negative(self.offset_zyx)]),
                field=field,
                matrix=np.diag(1.0 / np.array(spacing_mm)),
                threads=device.threads,
            )
            for array in (self.image, self.weight)
        )
        return image, weight


def coarser(counts_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Return counts of control voxels as counts of voxels of the mirror test's grid, rounded up."""
    z, y, x = (-(-n // COARSER) for n in counts_zyx)
    return z, y, x


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


def _misfit(found: FloatArray) -> float:
    """Return the difference after a search times the one before, over a power of the information.

    A brain deforms into its own mirror image as easily as into another brain: the difference after
    the search then says nothing, but before it the right image fits better.

    Args:
        found: mean squared feature difference before and after, overlap, joint histogram.
    """
    before, after, overlap = (float(number) for number in found[:3])
    information = mutual_information(found[3:])
    if overlap <= 0 or information <= 0:
        return math.inf
    return after * before / math.pow(information, _INFORMATION_POWER)


def _unrelated(fixed: _TestImage, moving: _TestImage, device: Device) -> Array:
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
