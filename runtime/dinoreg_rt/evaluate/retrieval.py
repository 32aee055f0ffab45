"""Retrieval of the most similar tokens of the other image in a box around each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Array, FloatArray

#: Number of similar tokens that are looked up for each token of an organ.
NEIGHBOURS = 3
#: Half the edge of the box in which tokens are looked up.
REACH_MM = 48.0
#: Most tokens looked up for one label, and for a whole image; evenly chosen.
_MOST = 1000
#: Tokens looked up at a time; as neighbours in the image, their boxes overlap.
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Places:
    """The N tokens of one image that count, slice by slice.

    Attributes:
        chosen: (n, rows, columns) bool, whether each token counts.
        points_mm: (N, 3) positions of those tokens in the fixed image's space, LPS.
        labels: (N,) the label at each position; 0 everywhere without labels.
    """

    chosen: Array
    points_mm: FloatArray
    labels: Array


def common_labels(fixed: Places, moving: Places) -> list[int]:
    """Return the labels that tokens of both images carry, in rising order and without 0."""
    return [int(label) for label in np.intersect1d(fixed.labels, moving.labels) if label]


def findable(fixed: Places, moving: Places) -> dict[int, Array]:
    """Return, for each common label, indices of fixed tokens that have the label within reach.

    Missing an organ that is out of reach in the moving image would say nothing about features.
    """
    found = {}
    for label in common_labels(fixed, moving):
        chosen = _evenly(np.flatnonzero(fixed.labels == label))
        others = moving.points_mm[moving.labels == label]
        offset = np.abs(fixed.points_mm[chosen][:, None] - others)
        chosen = chosen[((offset <= REACH_MM).all(axis=2).sum(axis=1) >= NEIGHBOURS)]
        if len(chosen):
            found[label] = chosen
    return found


def chance(tokens: dict[int, Array], fixed: Places, moving: Places) -> dict[int, float]:
    """Return each label's share among the tokens within reach, averaged over its fixed tokens."""
    found = {}
    for label, chosen in tokens.items():
        shares = []
        for point in fixed.points_mm[chosen]:
            reached = (np.abs(moving.points_mm - point) <= REACH_MM).all(axis=1)
            shares.append(float((moving.labels[reached] == label).mean()))
        found[label] = float(np.mean(shares))
    return found


def retrieved(
    features: tuple[FloatArray, FloatArray],
    tokens: dict[int, Array],
    fixed: Places,
    moving: Places,
) -> dict[int, float]:
    """Return, for each label, the share of its tokens' nearest neighbours that carry it too.

    Args:
        features: (N, K) float32 features of the fixed and of the moving tokens that count.
        tokens: indices of the fixed tokens that are looked up (`findable`).
        fixed: positions and labels of the fixed tokens.
        moving: positions and labels of the moving tokens.
    """
    found = {}
    for label, chosen in tokens.items():
        near = nearest(features, fixed, moving, chosen, NEIGHBOURS)
        carried = np.where(near >= 0, moving.labels[near], 0)
        found[label] = float((carried == label).mean())
    return found


def consistent(
    features: tuple[FloatArray, FloatArray], fixed: Places, moving: Places, tolerance_mm: float
) -> float:
    """Return the share of fixed tokens whose match leads back to within `tolerance_mm` of them.

    `features`, `fixed` and `moving` are those of `retrieved`.
    """
    chosen = _evenly(np.arange(len(fixed.labels)))
    there = nearest(features, fixed, moving, chosen, 1)[:, 0]
    chosen, there = chosen[there >= 0], there[there >= 0]
    back = nearest(features[::-1], moving, fixed, there, 1)[:, 0]
    loop = np.linalg.norm(fixed.points_mm[back] - fixed.points_mm[chosen], axis=1)
    return float(((back >= 0) & (loop <= tolerance_mm)).mean()) if len(chosen) else 0.0


def nearest(
    features: tuple[FloatArray, FloatArray],
    here: Places,
    there: Places,
    chosen: Array,
    count: int,
) -> Array:
    """Find the most similar tokens of the other image within reach of each chosen token.

    Args:
        features: (N, K) features of the tokens of `here` and of `there`.
        here: positions of the tokens from which to look.
        there: positions of the other image's tokens.
        chosen: (n,) indices of tokens of `here`.
        count: number of tokens to find for each.

    Returns:
        Indices (n, count) of tokens of `there`, in no order; -1 where fewer are within reach.
    """
    squares = np.square(features[1]).sum(axis=1)
    found = np.full((len(chosen), count), -1)
    for start in range(0, len(chosen), _CHUNK):
        some = chosen[start : start + _CHUNK]
        points = here.points_mm[some]
        low, high = points.min(axis=0) - REACH_MM, points.max(axis=0) + REACH_MM
        box = ((there.points_mm >= low) & (there.points_mm <= high)).all(axis=1)
        others = np.flatnonzero(box)
        if len(others) < count:
            continue
        # The squares of the tokens of `here` are left out; they do not change the order.
        distance = squares[others] - 2 * (features[0][some] @ features[1][others].T)
        for axis in range(3):
            offset = points[:, axis, None] - there.points_mm[others, axis]
            distance[np.abs(offset) > REACH_MM] = np.inf
        part = np.argpartition(distance, count - 1, axis=1)[:, :count]
        reached = np.isfinite(np.take_along_axis(distance, part, axis=1))
        found[start : start + len(some)] = np.where(reached, others[part], -1)
    return found


def _evenly(indices: Array) -> Array:
    """Return at most `_MOST` of the indices, evenly spread."""
    if len(indices) <= _MOST:
        return indices
    chosen: Array = indices[np.linspace(0, len(indices) - 1, _MOST).astype(int)]
    return chosen
