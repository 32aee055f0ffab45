"""Contours of images and masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import Array, FloatArray

#: Shades below this are background.
_DARK = 12
#: Histogram bins among which the thresholds are chosen.
_BINS = 64


def contour_levels(stacks: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Return two shades that separate an image's background and tissues, ascending.

    They are the two thresholds of Otsu (IEEE Trans. Syst. Man Cybern. 9, 1979), which maximise the
    variance between three classes, over all shades that are not nearly black.
    """
    counts = np.zeros(256, np.int64)
    for stack in stacks:
        counts += np.bincount(stack[:, ::2, ::2].ravel(), minlength=256)
    counts[:_DARK] = 0
    histogram = counts.reshape(_BINS, -1).sum(axis=1).astype(np.float64)
    if np.count_nonzero(histogram) < 3:
        return [_DARK]
    one, other = np.unravel_index(int(_variance_between(histogram).argmax()), (_BINS, _BINS))
    step = 256 // _BINS
    return [int(one + 1) * step, int(other + 1) * step]


def _variance_between(histogram: FloatArray) -> FloatArray:
    """Return the variance between the classes that end at bins i and j > i, (bins, bins)."""
    weight = np.cumsum(histogram)
    moment = np.cumsum(histogram * np.arange(len(histogram)))

    def share(weights: FloatArray, moments: FloatArray) -> FloatArray:
        return np.divide(moments**2, weights, out=np.zeros_like(weights), where=weights > 0)

    first = share(weight, moment)[:, None]
    second = share(weight[None] - weight[:, None], moment[None] - moment[:, None])
    third = share(weight[-1] - weight, moment[-1] - moment)[None]
    ordered = np.tril(np.ones((len(histogram),) * 2), 0) == 0
    return np.where(ordered, first + second + third, -1.0)


def outline(mask: Array) -> NDArray[np.bool_]:
    """Return the pixels of a mask (rows, columns) that touch pixels outside it."""
    inner = np.ones(mask.shape, np.bool_)
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return np.asarray(mask & ~inner)
