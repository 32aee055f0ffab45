"""Retrieval of the most similar tokens of the other image in a box around each token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..types import Array, FloatArray

#: Number of similar tokens that are retrieved for each token of an organ.
NEIGHBOURS = 3
#: Half the edge length of the box in which they are searched.
REACH_MM = 48.0
#: Largest number of query tokens per label, and per image; they are chosen evenly.
_MOST = 1000
#: Number of query tokens per step; neighbours in the image have overlapping boxes.
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Places:
    """The N tokens of one image that count, slice by slice.

    Attributes:
        chosen: which tokens count, (n, rows, columns) bool.
        points_mm: their positions in the fixed image's space, (N, 3), LPS.
        labels: the label at each of them, (N,); 0 everywhere without labels.
    """

    chosen: Array
    points_mm: FloatArray
    labels: Array


def common_labels(fixed: Places, moving: Places) -> list[int]:
    """Return the labels that tokens of both images carry, in rising order, without background."""
    return [int(label) for label in np.intersect1d(fixed.labels, moving.labels) if label]


def findable(fixed: Places, moving: Places) -> dict[int, Array]:
    """Choose, for each common label, fixed tokens (as indices) that have the label within reach.

    A failure to find an organ beyond the reach of the search would say nothing about the features.
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
    """Return each label's share among the tokens within reach, averaged over the query tokens."""
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
    """Return, for each label, the share of its tokens' `NEIGHBOURS` that carry it as well.

    Args:
        features: features (N, K), float32, of the fixed and of the moving tokens that count.
        tokens: the query tokens, see `findable`.
        fixed: positions of the fixed tokens.
        moving: positions of the moving tokens.
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
    """Return the share of the fixed tokens whose match leads back to near where it began.

    Args:
        features: as in `retrieved`.
        fixed: positions of the fixed tokens.
        moving: positions of the moving tokens.
        tolerance_mm: largest distance that still counts as the same position.
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
    """Retrieve the most similar tokens of the other image within reach of each query token.

    Args:
        features: features (N, K) of the tokens here and there.
        here: positions of the tokens of the query image.
        there: positions of the tokens of the other image.
        chosen: indices (n,) of the query tokens here.
        count: number of tokens to retrieve for each of them.

    Returns:
        Indices (n, count) of tokens there, in no particular order; -1 if fewer are within reach.
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
        # The squares of the query tokens are left out; they do not change the order.
        distance = squares[others] - 2 * (features[0][some] @ features[1][others].T)
        for axis in range(3):
            offset = points[:, axis, None] - there.points_mm[others, axis]
            distance[np.abs(offset) > REACH_MM] = np.inf
        part = np.argpartition(distance, count - 1, axis=1)[:, :count]
        reached = np.isfinite(np.take_along_axis(distance, part, axis=1))
        found[start : start + len(some)] = np.where(reached, others[part], -1)
    return found


def _evenly(indices: Array) -> Array:
    """Choose at most `_MOST` of the indices, evenly spread."""
    if len(indices) <= _MOST:
        return indices
    chosen: Array = indices[np.linspace(0, len(indices) - 1, _MOST).astype(int)]
    return chosen
