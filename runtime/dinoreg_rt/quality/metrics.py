"""The quality of a registration: overlap, surface distance, regularity, landmark error.

Pure functions on NumPy arrays. Label maps are ``(D, H, W)`` integers on the fixed grid, with 0 as
background. Every definition is stated where it is computed, because published numbers differ more
by definition than by method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..device.choice import Device, choose_device
from ..errors import InputError
from ..geometry import SLAB_VOXELS, lps_to_index, z_slabs
from ..types import Array, DisplacementField, FloatArray, Geometry, Transform
from .surface import Hd95, hd95_of_mask


@dataclass(frozen=True)
class JacobianStatistics:
    """Regularity of a mapping, from the determinant J of its Jacobian matrix.

    Attributes:
        sdlogj: standard deviation of log J over voxels with J > 0; NaN without any.
        sdlogj_learn2reg: the Learn2Reg challenge's number, std(log(clip(J + 3, 1e-9, 1e9))) with 2
            voxels cropped from every face. It is about sd(J) / 4, so several times smaller.
        folded_percent: percentage of voxels with J <= 0.
        minimum: smallest J.
        maximum: largest J.
        voxels: number of voxels evaluated (inside the mask, if given).
    """

    sdlogj: float
    sdlogj_learn2reg: float
    folded_percent: float
    minimum: float
    maximum: float
    voxels: int


def label_counts(labels: Array) -> dict[int, int]:
    """Return the number of voxels of every nonzero label of a map (D, H, W), in ascending order."""
    counts: dict[int, int] = {}
    for part in z_slabs(labels.shape):
        for value, number in _count_values(np.asarray(labels[part]).ravel()):
            counts[value] = counts.get(value, 0) + number
    return {label: counts[label] for label in sorted(counts) if label != 0}


def dice(
    fixed_labels: Array, warped_labels: Array, labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Return the Dice overlap ``2 |A and B| / (|A| + |B|)`` of each label, 0..1.

    Args:
        fixed_labels: (D, H, W) integers.
        warped_labels: (D, H, W) integers on the same grid.
        labels: labels to score (default: those present in both maps). Give the labels shared by the
            fixed and the *unwarped* moving map; otherwise a label that the transform moves out of
            the grid is dropped instead of scoring 0.

    Raises:
        InputError: the two shapes differ.
    """
    _check_same_shape(fixed_labels, warped_labels)
    fixed, warped = label_counts(fixed_labels), label_counts(warped_labels)
    common = label_counts(np.where(fixed_labels == warped_labels, fixed_labels, 0))
    wanted = sorted(fixed.keys() & warped.keys()) if labels is None else labels
    scores = {}
    for label in wanted:
        total = fixed.get(label, 0) + warped.get(label, 0)
        scores[label] = 2 * common.get(label, 0) / total if total else 0.0
    return scores


def hd95(
    fixed_labels: Array,
    warped_labels: Array,
    geometry: Geometry,
    labels: Iterable[int] | None = None,
) -> dict[int, Hd95]:
    """Return the robust Hausdorff distance of each label, in mm and in voxels.

    The surface of a label is its voxels with at least one of the six neighbours outside it (the
    outside of the grid counts as outside). For each surface voxel of one map the distance to the
    nearest surface voxel of the other is taken, then the 95th percentile (linear interpolation) of
    each direction, then the larger of the two, as in Learn2Reg. In voxels all three spacings count
    as 1, which for anisotropic voxels is not a rescaling of the distance in mm.

    A label missing from one map gets the diagonal of the grid's box, the worst possible distance
    (as in the BraTS challenge), so that losing an organ never improves a mean.

    Args:
        fixed_labels: (D, H, W) integers.
        warped_labels: (D, H, W) integers on the same grid.
        geometry: their grid; its direction is assumed to be orthonormal.
        labels: labels to score (default: those present in both maps).

    Raises:
        InputError: the two shapes differ, or differ from the geometry's.
    """
    _check_same_shape(fixed_labels, warped_labels)
    if tuple(fixed_labels.shape) != geometry.shape_zyx:
        raise InputError(
            f"label maps of shape {tuple(fixed_labels.shape)} do not lie on a grid of shape "
            f"{geometry.shape_zyx} (z, y, x)"
        )
    if labels is None:
        labels = sorted(label_counts(fixed_labels).keys() & label_counts(warped_labels).keys())
    return {
        label: hd95_of_mask(fixed_labels == label, warped_labels == label, geometry)
        for label in labels
    }


def jacobian_determinant(field: DisplacementField, device: Device | None = None) -> Array:
    """Return det(d(p + u(p)) / dp) in physical space, (D, H, W) float32, without unit.

    Central differences, one-sided on the faces of the grid; along an axis of one voxel the
    displacement counts as constant. Correct for anisotropic and oblique grids. The result lives on
    `device` (default: the CPU).
    """
    device = device or choose_device("cpu", 0)[0]
    index_from_mm = lps_to_index(field.geometry).matrix[::-1]
    return dinoreg_kernels.jacobian_determinant(
        device.upload(field.vectors_mm, np.float32), index_from_mm, threads=device.threads
    )


def jacobian_statistics(field: DisplacementField, mask: Array | None = None) -> JacobianStatistics:
    """Return the regularity of ``p -> p + u(p)``, as defined in `JacobianStatistics`.

    Args:
        field: mapping on the fixed grid.
        mask: (D, H, W); only nonzero voxels count (default: all).

    Raises:
        InputError: the mask has another shape than the field or is empty.
    """
    determinant = jacobian_determinant(field)
    inside = np.ones(determinant.shape, bool) if mask is None else np.asarray(mask) != 0
    if inside.shape != determinant.shape:
        raise InputError(
            f"the mask has shape {inside.shape}, the displacement field {determinant.shape} "
            "(z, y, x): give a mask on the field's grid"
        )
    if not inside.any():
        raise InputError("the mask is empty; set at least one voxel")
    core = tuple(slice(2, -2) if n > 4 else slice(None) for n in inside.shape)
    shifted = determinant[core][inside[core]].astype(np.float64) + 3
    values = determinant[inside].astype(np.float64)
    positive = values[values > 0]
    return JacobianStatistics(
        sdlogj=_standard_deviation(np.log(positive)),
        sdlogj_learn2reg=_standard_deviation(np.log(np.clip(shifted, 1e-9, 1e9))),
        folded_percent=100.0 * (1 - positive.size / values.size),
        minimum=float(values.min()),
        maximum=float(values.max()),
        voxels=values.size,
    )


def tre_mm(
    fixed_points: FloatArray,
    moving_points: FloatArray,
    chain: Sequence[Transform],
) -> FloatArray:
    """Return each landmark's registration error |T(fixed point) - moving point|, (N,) mm.

    Args:
        fixed_points: (N, 3) LPS mm in the fixed image.
        moving_points: (N, 3) LPS mm, the same landmarks in the moving image, in the same order.
        chain: mapping from fixed to moving points, applied in order; empty for the identity.

    Raises:
        InputError: the two sets differ in number.
    """
    if len(fixed_points) != len(moving_points):
        raise InputError(
            f"{len(fixed_points)} fixed points but {len(moving_points)} moving points: landmarks "
            "are compared one by one and must be in the same order"
        )
    mapped = np.asarray(fixed_points, np.float64)
    if chain:
        from ..io import transform_points

        mapped = transform_points(chain, mapped)
    return np.asarray(np.linalg.norm(mapped - moving_points, axis=1))


def bootstrap_interval(
    values: Sequence[float] | FloatArray, seed: int = 0, samples: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of `values` over cases.

    The same values and seed give the same interval; fewer than two values give (NaN, NaN).
    """
    data = np.asarray(values, np.float64)
    if data.size < 2:
        return (math.nan, math.nan)
    picks = np.random.default_rng(seed).integers(data.size, size=(samples, data.size))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return (float(low), float(high))


def mean_over_labels(scores: Mapping[int, float]) -> float:
    """Return the unweighted mean over the labels of one case; NaN without labels.

    Cases are averaged afterwards, so a case with many labels weighs no more than another.
    """
    return float(np.mean(list(scores.values()))) if scores else math.nan


def _count_values(values: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    if values.min() >= 0 and values.max() < SLAB_VOXELS:  # all usual label codes; no sorting
        numbers = np.bincount(values)
        present = np.flatnonzero(numbers)
        numbers = numbers[present]
    else:
        present, numbers = np.unique(values, return_counts=True)
    yield from zip(present.tolist(), numbers.tolist(), strict=True)


def _check_same_shape(fixed_labels: Array, warped_labels: Array) -> None:
    if fixed_labels.shape != warped_labels.shape:
        raise InputError(
            f"fixed labels have shape {tuple(fixed_labels.shape)}, warped labels "
            f"{tuple(warped_labels.shape)}: warp the moving labels onto the fixed grid first"
        )


def _standard_deviation(values: FloatArray) -> float:
    return float(values.std()) if values.size else math.nan
