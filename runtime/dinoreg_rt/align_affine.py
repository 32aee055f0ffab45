"""A linear map from discrete matches: search around a position, fit robustly, repeat."""

from __future__ import annotations

import numpy as np

from .align_match import Match, common_part, match
from .align_search import Candidate, Centred, Side, centre, similarity
from .coarse import cell_features
from .config import LinearModel
from .device import Device
from .geometry import (
    compose_affines,
    index_to_lps,
    transform_points,
)
from .types import AffineTransform, FloatArray

#: Fewer matched cells than this determine no linear map.
_LEAST_MATCHES = 30
#: Singular values of the whole map; people do not differ by more.
_SCALES = (0.7, 1.4)
#: Affine fits lean towards the similarity fit as if the matches spread this much less, in cells:
#: a slab says little about the scale across it.
_RIDGE_CELLS = 4.0
_FIT_ROUNDS = 6
#: A match that misses the fit by so many times the median counts half.
_HALF_WEIGHT = 1.5


def improve(
    fixed: Side,
    moving: Side,
    start: AffineTransform,
    model: LinearModel,
    reach: int,
    device: Device,
) -> AffineTransform | None:
    """`start` followed by the fit to the matches around it; None where too little matches.

    The matches come from the discrete search of the registration itself, on cells: coupled-convex
    rounds and both directions, because single best matches of MR and CT are wrong too often.
    """
    found = match(fixed, moving, start, reach, device, consistency_rounds=5, iterations=0)
    if found is None:
        return None
    points, shifts, weights = _matches(found)
    if weights.size < _LEAST_MATCHES:
        return None
    cell_mm = found.cells.spacing_mm[0]
    step, middle = robust_fit(points, points + shifts, weights, model, cell_mm)
    return _within_scales(compose_affines(start, step), middle)


def evaluate(fixed: Side, moving: Side, transform: AffineTransform, device: Device) -> Candidate:
    """The position with its similarity."""
    cells, box = common_part(fixed, moving, transform, 0)
    if cells is None:
        return Candidate(transform, -1.0, 0.0)
    there = centre(cell_features(moving.coarse, cells, transform, device), moving.level)
    side = fixed.centred
    here = Centred(side.mind[box], side.weight[box], side.silhouette[box], side.seen[box])
    return Candidate(transform, *similarity(here, there, (fixed.level, moving.level)))


def _matches(found: Match) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points (N, 3) and their displacements (N, 3), LPS mm, with weights (N,) above 0.05."""
    cells = found.cells
    index = np.argwhere(found.fixed_weight > 0.05)
    vectors = found.solution.field[tuple(index.T)]
    target = np.rint(vectors / cells.spacing_mm[0]).astype(int) + index + found.margin
    target = target.clip(0, np.asarray(found.moving_weight.shape) - 1)
    weights = found.fixed_weight[tuple(index.T)] * found.moving_weight[tuple(target.T)]
    kept = weights > 0.05
    points = transform_points(index_to_lps(cells), index[kept][:, ::-1].astype(np.float64))
    shifts = vectors[kept][:, ::-1].astype(np.float64) @ cells.direction.T
    return points, shifts, weights[kept].astype(np.float64)


def robust_fit(
    points: FloatArray, targets: FloatArray, weights: FloatArray, model: LinearModel, cell_mm: float
) -> tuple[AffineTransform, FloatArray]:
    """The linear map from `points` to `targets` (N, 3), and where those that count lie in mean.

    Iteratively reweighted least squares with Cauchy's weights: matches that miss the fit count
    less and less. The scale of the misses is their weighted median, at least a quarter cell.
    """
    current = weights
    for _ in range(_FIT_ROUNDS):
        fitted = _least_squares(points, targets, current, model, cell_mm)
        misses = np.linalg.norm(targets - transform_points(fitted, points), axis=1)
        typical = max(1.4826 * float(np.median(misses)), cell_mm / 4)
        current = weights / (1 + np.square(misses / (_HALF_WEIGHT * typical)))
    return fitted, current @ points / current.sum()


def _least_squares(
    points: FloatArray, targets: FloatArray, weights: FloatArray, model: LinearModel, cell_mm: float
) -> AffineTransform:
    """Weighted fit of a rigid, similarity (Umeyama 1991) or affine map."""
    share = weights / weights.sum()
    middles = share @ points, share @ targets
    p, q = points - middles[0], targets - middles[1]
    cross = (q * share[:, None]).T @ p
    left, values, right = np.linalg.svd(cross)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    matrix = (left * signs) @ right
    if model != "rigid":
        matrix = matrix * float((values * signs).sum() / (share @ np.square(p).sum(axis=1)))
    if model == "affine":
        ridge = np.square(_RIDGE_CELLS * cell_mm)
        spread = (p * share[:, None]).T @ p + ridge * np.eye(3)
        matrix = (cross + ridge * matrix) @ np.linalg.inv(spread)
    return AffineTransform(matrix, middles[1] - matrix @ middles[0])


def _within_scales(affine: AffineTransform, middle: FloatArray) -> AffineTransform:
    """`affine` with bounded singular values; the point `middle` goes where it went."""
    left, values, right = np.linalg.svd(affine.matrix)
    if _SCALES[0] <= values.min() and values.max() <= _SCALES[1]:
        return affine
    matrix = (left * values.clip(*_SCALES)) @ right
    target = transform_points(affine, middle[None])[0]
    return AffineTransform(matrix, target - matrix @ middle)
