"""Mutual information and correlation of two images' intensities, from a joint histogram."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from ..types import Array, FloatArray

_BINS = 32
#: Length of a joint histogram.
HISTOGRAM = _BINS * _BINS
#: Weights are counted in this many steps: sums of whole numbers are exact, so the order in which a
#: GPU adds them does not matter.
WEIGHT_STEPS = 255


def joint_histogram(
    first: Array,
    second: Array,
    weight: Array,
    xp: ModuleType,
    *,
    group: Array | int = 0,
    groups: int = 1,
) -> Array:
    """Sum `weight` by the intensities (0..1) of both images, and by group.

    Args:
        first: first image, of any shape.
        second: second image, of the same shape.
        weight: weights >= 0 of the same shape.
        xp: NumPy or CuPy; with CuPy nothing waits for the device.
        group: group of each voxel, int32, from 0 to `groups` - 1.
        groups: number of groups.

    Returns:
        (groups * HISTOGRAM,) uint64, a type that CUDA adds atomically: one group after the other,
        each row by row of `first`.
    """

    def bins(image: Array) -> Array:
        return xp.clip((image * _BINS).astype(np.int32), 0, _BINS - 1)

    total = xp.zeros(groups * HISTOGRAM, np.uint64)
    counts = xp.rint(weight * WEIGHT_STEPS).astype(np.uint64)
    index = (group * _BINS + bins(first)) * _BINS + bins(second)
    xp.add.at(total, index.ravel(), counts.ravel())
    return total


def mutual_information(histogram: FloatArray) -> float:
    """Return the mutual information of a joint histogram in nats; 0 if it is empty."""
    total = float(histogram.sum())
    if total <= 0:
        return 0.0
    joint = histogram.reshape(_BINS, _BINS) / total
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def correlation(histogram: FloatArray) -> float:
    """Return the correlation of both intensities of a joint histogram; NaN if one is constant."""
    total = float(histogram.sum())
    if total <= 0:
        return float("nan")
    joint = histogram.reshape(_BINS, _BINS) / total
    bins = np.arange(_BINS)
    first, second = (joint.sum(axis=axis) for axis in (1, 0))
    means = float(first @ bins), float(second @ bins)
    apart = [bins - mean for mean in means]
    deviations = float(first @ apart[0] ** 2) * float(second @ apart[1] ** 2)
    if deviations <= 0:
        return float("nan")
    covariance = float(apart[0] @ joint @ apart[1])
    return covariance / math.sqrt(deviations)
