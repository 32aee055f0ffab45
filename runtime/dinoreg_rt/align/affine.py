"""A linear map from discrete matches: search around a position, fit robustly, repeat."""

from __future__ import annotations

import numpy as np

from ..config.image_parameters import LinearModel
from ..device.choice import Device
from ..geometry import compose_affines, index_to_lps, transform_points
from ..types import AffineTransform, Array, FloatArray
from .coarse import View
from .match import match
from .shifts import Side

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
    fixed: Side, view: View, start: AffineTransform, model: LinearModel, device: Device
) -> AffineTransform | None:
    """`start` followed by the fit to the matches around it; None where too little matches.

    The matches come from the discrete search of the registration itself, on cells: coupled-convex
    rounds and both directions, because single best matches of MR and CT are wrong too often.

    Args:
        fixed: the fixed image.
        view: of the moving image through `start`.
        start: fixed points to moving points.
        model: of the fit.
        device: the host.
    """
    found = match(fixed, view, device, consistency_rounds=5, iterations=0)
    points, shifts, weights = _matches(found.field, fixed.features.weight[view.box], view)
    if weights.size < _LEAST_MATCHES:
        return None
    step, middle = robust_fit(points, points + shifts, weights, model, view.cells.spacing_mm[0])
    return _within_scales(compose_affines(start, step), middle)


def _matches(
    field: Array, fixed_weight: Array, view: View
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points (N, 3) and their displacements (N, 3), LPS mm, with weights (N,) above 0.05."""
    cells, moving_weight = view.cells, view.features.weight
    index = np.argwhere(fixed_weight > 0.05)
    vectors = field[tuple(index.T)]
    target = np.rint(vectors / cells.spacing_mm[0]).astype(int) + index + view.margin
    target = target.clip(0, np.asarray(moving_weight.shape) - 1)
    weights = fixed_weight[tuple(index.T)] * moving_weight[tuple(target.T)]
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
    # By coordinates, and all sums by einsum: those of BLAS depend on its number of threads, which
    # go on spinning for some time beside the kernels' own.
    p, q = (np.ascontiguousarray(array.T) for array in (points, targets))
    current = weights
    for _ in range(_FIT_ROUNDS):
        fitted = _least_squares(p, q, current, model, cell_mm)
        there = np.einsum("ij,jn->in", fitted.matrix, p) + fitted.translation_mm[:, None]
        misses = np.linalg.norm(q - there, axis=0)
        typical = max(1.4826 * float(np.median(misses)), cell_mm / 4)
        current = weights / (1 + np.square(misses / (_HALF_WEIGHT * typical)))
    return fitted, np.einsum("n,in->i", current, p) / current.sum()


def _least_squares(
    points: FloatArray, targets: FloatArray, weights: FloatArray, model: LinearModel, cell_mm: float
) -> AffineTransform:
    """Weighted fit of a rigid, similarity (Umeyama 1991) or affine map to (3, N) and (3, N)."""
    share = weights / weights.sum()
    middles = [np.einsum("n,in->i", share, array) for array in (points, targets)]
    p, q = points - middles[0][:, None], targets - middles[1][:, None]
    cross, spread = (np.einsum("in,jn->ij", share * array, p) for array in (q, p))
    left, values, right = np.linalg.svd(cross)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    matrix = (left * signs) @ right
    if model != "rigid":
        matrix = matrix * float((values * signs).sum() / np.trace(spread))
    if model == "affine":
        ridge = np.square(_RIDGE_CELLS * cell_mm)
        matrix = (cross + ridge * matrix) @ np.linalg.inv(spread + ridge * np.eye(3))
    return AffineTransform(matrix, middles[1] - matrix @ middles[0])


def _within_scales(affine: AffineTransform, middle: FloatArray) -> AffineTransform:
    """`affine` with bounded singular values; the point `middle` goes where it went."""
    left, values, right = np.linalg.svd(affine.matrix)
    if _SCALES[0] <= values.min() and values.max() <= _SCALES[1]:
        return affine
    matrix = (left * values.clip(*_SCALES)) @ right
    target = transform_points(affine, middle[None])[0]
    return AffineTransform(matrix, target - matrix @ middle)
