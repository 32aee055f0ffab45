"""Mutual information and correlation of two images' intensities, from a joint histogram.

The histograms come from `dinoreg_kernels`: weights in steps of 1/255, by the bins of the fixed
image (rows) and of the moving image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dinoreg_kernels import BINS

from ..types import FloatArray


def histogram_of(counts: Any) -> FloatArray:
    """Return the counts of a result, one or several histograms, as float64 in one dimension."""
    return np.frombuffer(counts, np.uint64).astype(np.float64)


def mutual_information(histogram: FloatArray) -> float:
    """Return the mutual information of a joint histogram in nats; 0 if it is empty."""
    total = float(histogram.sum())
    if total <= 0:
        return 0.0
    joint = histogram.reshape(BINS, BINS) / total
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())


def correlation(histogram: FloatArray) -> float:
    """Return the correlation of both intensities of a joint histogram; NaN if one is constant."""
    total = float(histogram.sum())
    if total <= 0:
        return float("nan")
    joint = histogram.reshape(BINS, BINS) / total
    bins = np.arange(BINS)
    first, second = (joint.sum(axis=axis) for axis in (1, 0))
    means = float(first @ bins), float(second @ bins)
    apart = [bins - mean for mean in means]
    deviations = float(first @ apart[0] ** 2) * float(second @ apart[1] ** 2)
    if deviations <= 0:
        return float("nan")
    covariance = float(apart[0] @ joint @ apart[1])
    return covariance / math.sqrt(deviations)
