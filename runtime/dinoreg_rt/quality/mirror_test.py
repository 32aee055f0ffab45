"""A null distribution for the similarity: how well mirror images of the moving image match.

Any two images can be matched somehow, and how well depends on their contrast, noise and field of
view, so a residual says little by itself. A mirror image of the moving image has all of these and
the wrong anatomy. Where one of them matches the fixed image as well as the moving image does, the
match means nothing: another organ, another region, upside down, or left for right.

Compared is MIND-SSC, whatever the registration compares: its channels have a rule for mirror
images, and what is measured means the same with an encoder and without.
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

#: Cells of the decoys' lattice are so many control voxels long: with that the four searches take
#: 0.2 s of CPU time for a 192 x 160 x 192 pair, and they reach twice as far.
_COARSER = 2
#: Power of the mutual information in a misfit. With 0.1 to 0.3 right and wrong pairs lie as far
#: apart; without it they mix: MIND-SSC sees every structure by itself, and an image and its mirror
#: image have the same structures, but not at the same intensities of the other image.
_INFORMATION_POWER = 0.2


@dataclasses.dataclass(frozen=True)
class DecoyMeasures:
    """What a coarse search finds in the moving image and in its mirror images; lower is better.

    Attributes:
        decoy_ratio: misfit of the moving image over the least of the mirror images', see
            `_misfit`. At 1 the moving image fits no better than a wrong image. NaN: it is so small
            that it has no mirror image.
        unrelated_ratio: the difference after the search over what features without any relation
            would give.
    """

    decoy_ratio: float
    unrelated_ratio: float


@dataclasses.dataclass(frozen=True, eq=False)
class DecoySearches:
    """What the searches found, on the device: they may be under way still.

    Attributes:
        found: of each search the three numbers of a `Solution`'s feature distance and the joint
            histogram of intensities after it; the first is in the moving image, the others are in
            its mirror images.
        unrelated: see `_unrelated`.
        device: where these live.
    """

    found: tuple[tuple[Array, Array], ...]
    unrelated: Array
    device: Device

    def measures(self) -> DecoyMeasures:
        """The measures; waits for the searches, once."""
        arrays = [array for pair in self.found for array in pair]
        *flat, unrelated = self.device.numbers(*arrays, self.unrelated)
        own, *mirrored = np.array(flat).reshape(len(self.found), -1)
        # One cell has no mirror image: then nothing can be said.
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

    On a GPU the searches are queued and not waited for.

    Args:
        features: MIND-SSC, with or without local intensities, on the control grid.
        images: intensities 0..1 there, (d, h, w) float32.
        weights: of both images there.
        grids: the control grid.
        moving_offset_zyx: of the moving grid, in control voxels.
        options: of the registration; its search is used, at twice the step.
        device: where the arrays live.

    Returns:
        None where nothing is searched for.
    """
    if not any(options.search_radius):
        return None
    fixed = _Cells.of(features.fixed, images[0], weights[0], (0, 0, 0), device)
    moving = _Cells.of(features.moving, images[1], weights[1], moving_offset_zyx, device)
    spacing_mm = [_COARSER * mm for mm in grids.control.spacing_mm[::-1]]

    def search(candidate: _Cells) -> tuple[Array, Array]:
        solution = dinoreg_kernels.solve(
            fixed.features,
            candidate.features,
            fixed.weight,
            candidate.weight,
            spacing_mm=spacing_mm,
            moving_offset=candidate.offset_zyx,
            channels=features.channels,
            options=_once(options),
            threads=device.threads,
        )
        image, seen = candidate.warped(solution.field, spacing_mm, device)
        joint = joint_histogram(fixed.image, image, fixed.weight * seen, device.xp)
        return solution.feature_distance, joint

    found = [search(moving)]
    for axis, order in enumerate(MIND_MIRRORED):
        if moving.weight.shape[axis] > 1:
            found.append(search(moving.mirrored(axis, order, device)))
    return DecoySearches(tuple(found), _unrelated(fixed, moving, device), device)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cells:
    """An image on the decoys' lattice, whose cells begin at multiples of `_COARSER` on the fixed
    image's control grid.

    Attributes:
        features: (d, h, w, stored) float16.
        weight: (d, h, w) float32.
        image: (d, h, w) float32, intensities.
        offset_zyx: of the first cell.
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
    ) -> _Cells:
        """From the control grid, where its first voxel has that index."""
        lead = [o % _COARSER for o in offset_zyx]
        pooled, cells = dinoreg_kernels.pool_features(
            features, weight, (_COARSER,) * 3, offset=lead, threads=device.threads
        )
        # Each cell's voxels, whose values are read where they stand.
        matrix = np.column_stack([_COARSER * np.eye(3), (_COARSER - 1) / 2 - np.array(lead)])
        grey = dinoreg_kernels.resample(
            image * weight, cells.shape, matrix, samples=(_COARSER,) * 3, threads=device.threads
        )
        grey /= device.xp.maximum(cells, 1e-6)
        z, y, x = ((o - a) // _COARSER for o, a in zip(offset_zyx, lead, strict=True))
        return cls(pooled, cells, grey, (z, y, x))

    def mirrored(self, axis: int, order: Sequence[int], device: Device) -> _Cells:
        """Turned round along an axis; `order`: the channels that take the first ones' places."""
        xp, others = device.xp, range(len(order), self.features.shape[-1])
        flipped = xp.flip(self.features, axis)[..., [*order, *others]]
        features, weight, image = (
            xp.ascontiguousarray(array)
            for array in (flipped, xp.flip(self.weight, axis), xp.flip(self.image, axis))
        )
        return _Cells(features, weight, image, self.offset_zyx)

    def warped(
        self, field: Array, spacing_mm: Sequence[float], device: Device
    ) -> tuple[Array, Array]:
        """Image and weight where `field`, (d, h, w, 3) mm on the fixed cells, leads to."""
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


def decoy_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
) -> int:
    """Of one search, for a prediction; shapes in cells, `spacing_mm` of the control grid."""
    coarse_mm = [_COARSER * mm for mm in spacing_mm]
    return dinoreg_kernels.solver_workspace_bytes(
        fixed_shape, moving_shape, stride, coarse_mm, _once(options)
    )


def _once(options: SolverOptions) -> SolverOptions:
    """The search of a registration at twice its step, and nothing after it."""
    z, y, x = (max(1, (f + 1) // _COARSER) for f in options.search_factor)
    return dataclasses.replace(
        options,
        search_factor=(z, y, x),
        search_levels=1,
        search_trust_cost=0.0,
        search_edges=0.0,
        consistency_rounds=0,
        iterations=(0,),
        feature_similarity="mse",
        correlation_weight=0.0,
        squarings=0,
    )


def _misfit(found: FloatArray) -> float:
    """What is left after a search, times the difference before it, over the information's power.

    A brain deforms into its own mirror image as easily as into another brain: what is left after
    the search says nothing then, but at the start the right one fits better.

    Args:
        found: mean squared feature difference before and after, overlap, joint histogram.
    """
    before, after, overlap = (float(number) for number in found[:3])
    information = mutual_information(found[3:])
    if overlap <= 0 or information <= 0:
        return math.inf
    return after * before / math.pow(information, _INFORMATION_POWER)


def _unrelated(fixed: _Cells, moving: _Cells, device: Device) -> Array:
    """Mean squared difference of independent draws from both images: E|f|^2 + E|m|^2 - 2 Ef Em."""
    xp, moments = device.xp, []
    for cells in (fixed, moving):
        values = cells.features.reshape(-1, cells.features.shape[-1]).astype(np.float32)
        share = cells.weight.reshape(-1, 1) / xp.maximum(cells.weight.sum(), 1e-6)
        # No matrix product: BLAS's threads would go on spinning beside the kernels' own.
        moments.append(((share * values).sum(axis=0), (share * xp.square(values)).sum(axis=0)))
    (first, first_square), (second, second_square) = moments
    return (first_square + second_square - 2 * first * second).sum()


def _ratio(value: float, other: float) -> float:
    return value / other if other > 0 else float("nan")
