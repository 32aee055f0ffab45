"""Retrieval of tokens: the most similar tokens of the other image in a box around each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Array, FloatArray

#: Similar tokens that are looked up for each token of an organ.
NEIGHBOURS = 3
#: Half the edge of the box in which they are looked up.
REACH_MM = 48.0
#: Tokens of one label, and of the whole image, that are looked up at most: evenly chosen ones.
_MOST = 1000
#: Tokens that are looked up at a time: neighbours in the image, whose boxes overlap.
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of one image that count, slice by slice.

    Attributes:
        chosen: (n, rows, columns) bool, which they are.
        points_mm: (N, 3) their positions in the fixed image's space, LPS.
        labels: (N,) the label at each; 0 everywhere without labels.
    """

    chosen: Array
    points_mm: FloatArray
    labels: Array


def common_labels(fixed: Places, moving: Places) -> list[int]:
    """Labels that tokens of both images carry, in rising order; 0 is background."""
    return [int(label) for label in np.intersect1d(fixed.labels, moving.labels) if label]


def findable(fixed: Places, moving: Places) -> dict[int, Array]:
    """For each common label some fixed tokens that carry it and have it within reach, as indices.

    Where an organ of the moving image lies further away than the probe looks, it says nothing about
    the features that it is not found.
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
    """For each label its share among the tokens within reach, averaged over some fixed tokens."""
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
    """For each label the share of its tokens' `NEIGHBOURS` that carry it, too.

    Args:
        features: (N, K) float32 of the fixed and of the moving tokens that count.
        tokens: which fixed tokens are looked up, see `findable`.
        fixed: where the fixed tokens lie.
        moving: where the moving tokens lie.
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
    """Share of the fixed tokens whose match leads back to within `tolerance_mm` of them.

    Args:
        features: as of `retrieved`.
        fixed: where the fixed tokens lie.
        moving: where the moving tokens lie.
        tolerance_mm: distance that still counts as the same place.
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
    """The most similar tokens of the other image within reach of each chosen one.

    Args:
        features: (N, K) of the tokens here and of those there.
        here: where the chosen ones lie.
        there: where the others lie.
        chosen: (n,) indices of tokens here.
        count: how many are looked up.

    Returns:
        (n, count) indices of tokens there, in no order; -1 where fewer are within reach.
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
        # Without the squares of the tokens here: they change no order.
        distance = squares[others] - 2 * (features[0][some] @ features[1][others].T)
        for axis in range(3):
            offset = points[:, axis, None] - there.points_mm[others, axis]
            distance[np.abs(offset) > REACH_MM] = np.inf
        part = np.argpartition(distance, count - 1, axis=1)[:, :count]
        reached = np.isfinite(np.take_along_axis(distance, part, axis=1))
        found[start : start + len(some)] = np.where(reached, others[part], -1)
    return found


def _evenly(indices: Array) -> Array:
    """At most `_MOST` of them, evenly spread."""
    if len(indices) <= _MOST:
        return indices
    chosen: Array = indices[np.linspace(0, len(indices) - 1, _MOST).astype(int)]
    return chosen
