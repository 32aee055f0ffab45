"""Linear maps from discrete matches: search around a position, fit robustly, repeat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..config.image_parameters import LinearModel
from ..device.choice import Device
from ..geometry import compose_affines, index_to_lps, transform_points
from ..types import AffineTransform, Array, FloatArray
from .coarse import View
from .match import match
from .sides import LEAST_WEIGHT, Side

#: Fewest matched cells (voxels of the coarse alignment grid) that determine a linear map.
_LEAST_MATCHES = 30
#: Bounds on the singular values of the whole map: people differ by less.
_SCALES = (0.7, 1.4)
#: Ridge that pulls affine fits towards the similarity fit, as a standard deviation in cells: a thin
#: slab hardly determines the scale across it.
_RIDGE_CELLS = 4.0
_FIT_ROUNDS = 6
#: A match that misses the fit by this multiple of the typical miss counts half.
_HALF_WEIGHT = 1.5


def matches(fixed: Side, view: View, device: Device) -> Array:
    """Return displacement (z, y, x in mm) and weight of each of `view_cells`, (N, 4) float32.

    The matches between `fixed` and `view`, the moving image as seen through a transform, come from
    the registration's own discrete search, run on cells with coupled-convex rounds in both
    directions, because single best matches between MR and CT are wrong too often.
    """
    xp, weight = device.xp, view.features.weight
    field = match(fixed, view, device, consistency_rounds=5, iterations=0).field
    index = device.upload(view_cells(fixed, view), np.int32)
    here = tuple(index.T)
    vectors = field[here]
    target = xp.rint(vectors / view.cells.spacing_mm[0]).astype(np.int32) + index + view.margin
    there = tuple(column.clip(0, n - 1) for column, n in zip(target.T, weight.shape, strict=True))
    weights = fixed.features.weight[view.box][here] * weight[there]
    return xp.concatenate([vectors, weights[:, None]], axis=1)


def view_cells(fixed: Side, view: View) -> NDArray[np.intp]:
    """Return the indices (N, 3) in `view.cells` of the fixed cells that are matched."""
    lower, upper = ([getattr(b, end) for b in view.box] for end in ("start", "stop"))
    index = fixed.matched_cells
    inside = ((index >= lower) & (index < upper)).all(axis=1)
    return np.asarray(index[inside] - lower)


def fit_matches(
    found: NDArray[np.float32], fixed: Side, view: View, start: AffineTransform, model: LinearModel
) -> AffineTransform | None:
    """Compose `start` with a linear fit to `matches`, on the host; None if they are too few."""
    kept = found[:, 3] > LEAST_WEIGHT
    if np.count_nonzero(kept) < _LEAST_MATCHES:
        return None
    cells, index = view.cells, view_cells(fixed, view)[kept]
    points = transform_points(index_to_lps(cells), index[:, ::-1].astype(np.float64))
    shifts = found[kept, 2::-1].astype(np.float64) @ cells.direction.T
    weights = found[kept, 3].astype(np.float64)
    step, middle = robust_fit(points, points + shifts, weights, model, cells.spacing_mm[0])
    return _within_scales(compose_affines(start, step), middle)


def robust_fit(
    points: FloatArray, targets: FloatArray, weights: FloatArray, model: LinearModel, cell_mm: float
) -> tuple[AffineTransform, FloatArray]:
    """Return the linear map from `points` to `targets` (N, 3) and the points' weighted mean.

    Iteratively reweighted least squares with Cauchy weights: matches that miss the fit lose weight.
    The scale of the misses is their median, but at least a quarter of a cell.
    """
    # Arrays are (3, N) and all sums use einsum: BLAS sums depend on the number of threads, and BLAS
    # threads keep spinning for some time beside the kernels' own.
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
    """Fit a rigid, similarity (Umeyama 1991) or affine map to weighted points (3, N) and (3, N)."""
    share = weights / weights.sum()
    middles = [np.einsum("n,in->i", share, array) for array in (points, targets)]
    p, q = points - middles[0][:, None], targets - middles[1][:, None]
    cross, covariance = (np.einsum("in,jn->ij", share * array, p) for array in (q, p))
    left, values, right = np.linalg.svd(cross)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    matrix = (left * signs) @ right
    if model != "rigid":
        matrix = matrix * float((values * signs).sum() / np.trace(covariance))
    if model == "affine":
        ridge = np.square(_RIDGE_CELLS * cell_mm)
        matrix = (cross + ridge * matrix) @ np.linalg.inv(covariance + ridge * np.eye(3))
    return AffineTransform(matrix, middles[1] - matrix @ middles[0])


def _within_scales(affine: AffineTransform, middle: FloatArray) -> AffineTransform:
    """Bound the singular values of `affine`, keeping the image of the point `middle`."""
    left, values, right = np.linalg.svd(affine.matrix)
    if _SCALES[0] <= values.min() and values.max() <= _SCALES[1]:
        return affine
    matrix = (left * values.clip(*_SCALES)) @ right
    target = transform_points(affine, middle[None])[0]
    return AffineTransform(matrix, target - matrix @ middle)
