"""Chains of transforms solved backwards: moving points to fixed points.

Matrices are inverted exactly, displacement fields numerically, with the residual reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, RegistrationError
from .geometry import index_to_lps, invert_affine, lps_to_index, shifted_grid, transform_points
from .slices import sample_linear
from .types import AffineTransform, DisplacementField, FloatArray, Geometry

#: Voxels solved at a time: bounds the float64 temporaries to some tens of megabytes.
_CHUNK_VOXELS = 1 << 18


@dataclass(frozen=True)
class Inversion:
    """How well a chain was inverted.

    Attributes:
        residual_mm: largest |chain(result) - wanted| over the points.
        iterations: of the transform that took longest; 0 if only matrices were inverted.
    """

    residual_mm: float
    iterations: int


def invert_points(
    chain: Sequence[AffineTransform | DisplacementField],
    points_lps_mm: FloatArray,
    *,
    tolerance_mm: float = 1e-3,
    max_iterations: int = 200,
) -> tuple[FloatArray, Inversion]:
    """Points (N, 3) of the moving image to points of the fixed image: the chain solved backwards.

    Fields are inverted by fixed-point iteration, preconditioned with the affine part of the field.
    Points whose origin lies outside a field's grid come back as NaN.

    Raises:
        RegistrationError: the iteration does not converge, which means that the field folds.
        InputError: a matrix in the chain is singular.
    """
    points, worst, most = np.asarray(points_lps_mm, np.float64), 0.0, 0
    for transform in reversed(chain):
        if isinstance(transform, AffineTransform):
            points = transform_points(_inverse_of(transform), points)
            continue
        points, residual, iterations = _invert_field(
            transform, points, tolerance_mm, max_iterations
        )
        finite = residual[np.isfinite(residual)]
        largest = float(finite.max()) if finite.size else 0.0
        worst, most = max(worst, largest), max(most, iterations)
        if largest > tolerance_mm:
            raise RegistrationError(
                f"the inverse of the displacement field did not converge for "
                f"{int((finite > tolerance_mm).sum())} of {len(points)} points: residual "
                f"{largest:.3g} mm after {iterations} iterations, wanted {tolerance_mm:g} mm. The "
                "field folds there; register again with a larger --smoothness or --fold-penalty, "
                "or with fixed and moving image swapped"
            )
    return points, Inversion(worst, most)


def invert_chain(
    chain: Sequence[AffineTransform | DisplacementField], grid: Geometry
) -> tuple[DisplacementField, Inversion]:
    """The inverse of a chain as one displacement on the voxel centres of `grid`.

    Vectors are NaN where the origin lies outside a field of the chain.

    Raises:
        RegistrationError: see `invert_points`.
    """
    depth, height, width = grid.shape_zyx
    step = max(1, _CHUNK_VOXELS // (height * width))
    vectors = np.empty((*grid.shape_zyx, 3), np.float32)
    worst = Inversion(0.0, 0)
    for start in range(0, depth, step):
        part = shifted_grid(grid, (start, 0, 0), (min(step, depth - start), height, width))
        points = voxel_centres(part)
        origins, found = invert_points(chain, points)
        vectors[start : start + step] = (origins - points).reshape(*part.shape_zyx, 3)
        worst = Inversion(
            max(worst.residual_mm, found.residual_mm), max(worst.iterations, found.iterations)
        )
    return DisplacementField(vectors, grid), worst


def voxel_centres(grid: Geometry) -> FloatArray:
    """LPS mm of every voxel, (N, 3), in the order of the flattened array."""
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in grid.shape_zyx], indexing="ij")
    index = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    return transform_points(index_to_lps(grid), index)


def _inverse_of(affine: AffineTransform) -> AffineTransform:
    try:
        return invert_affine(affine)
    except np.linalg.LinAlgError as error:
        raise InputError("a transform's matrix is singular and has no inverse") from error


def _invert_field(
    field: DisplacementField, wanted: FloatArray, tolerance_mm: float, max_iterations: int
) -> tuple[FloatArray, FloatArray, int]:
    """Solve ``p + u(p) = wanted``; returns p, the residual of each point, and the iterations.

    ``p <- p + B (wanted - p - u(p))`` with B the inverse of the field's best affine fit: with the
    initial alignment inside the field, plain fixed-point iteration would start outside its grid
    and diverge for large rotations. A step that makes a point's residual grow is halved.
    """
    sample = _field_sampler(field)
    back = _inverse_of(_affine_fit(field))
    points = transform_points(back, wanted)
    error = wanted - points - sample(points)
    residual = np.linalg.norm(error, axis=1)
    damping = np.ones(len(points))
    iterations = 0
    while (active := np.flatnonzero(residual > tolerance_mm)).size and iterations < max_iterations:
        iterations += 1
        trial = points[active] + damping[active, None] * (error[active] @ back.matrix.T)
        trial_error = wanted[active] - trial - sample(trial)
        trial_residual = np.linalg.norm(trial_error, axis=1)
        better = trial_residual < residual[active]
        took, refused = active[better], active[~better]
        points[took], error[took] = trial[better], trial_error[better]
        residual[took] = trial_residual[better]
        damping[refused] *= 0.5
    outside = ~_inside(field.geometry, points)
    points[outside], residual[outside] = np.nan, np.nan
    return points, residual, iterations


def _field_sampler(field: DisplacementField) -> Callable[[FloatArray], FloatArray]:
    """Displacement at points, held constant beyond the border so that iterations can come back."""
    to_index = lps_to_index(field.geometry)
    upper = np.asarray(field.geometry.shape_xyz) - 1

    def sample(points: FloatArray) -> FloatArray:
        index = np.clip(transform_points(to_index, points), 0, upper)
        return np.stack([sample_linear(field.vectors_mm[..., c], index) for c in range(3)], axis=1)

    return sample


def _affine_fit(field: DisplacementField) -> AffineTransform:
    """Least squares through about 1,000 voxels of ``p + u(p)``."""
    steps = [max(1, n // 10) for n in field.geometry.shape_zyx]
    parts = tuple(slice(step // 2, None, step) for step in steps)
    z, y, x = np.meshgrid(
        *[np.arange(n)[part] for n, part in zip(field.geometry.shape_zyx, parts, strict=True)],
        indexing="ij",
    )
    index = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1).astype(np.float64)
    points = transform_points(index_to_lps(field.geometry), index)
    displacement = np.asarray(field.vectors_mm[parts], np.float64).reshape(-1, 3)
    centre = points.mean(axis=0)
    local = np.column_stack([points - centre, np.ones(len(points))])
    # The smallest-norm solution: along an axis of one voxel the displacement counts as constant.
    solution = np.linalg.lstsq(local, displacement, rcond=1e-6)[0]
    matrix = np.eye(3) + solution[:3].T
    if np.linalg.det(matrix) < 0.05:  # a wild field: translation is the safer start
        matrix = np.eye(3)
    return AffineTransform(matrix, centre + solution[3] - matrix @ centre)


def _inside(geometry: Geometry, points: FloatArray) -> NDArray[np.bool_]:
    """Whether points lie in the grid's box, borders of the outer voxels included."""
    index = transform_points(lps_to_index(geometry), points)
    upper = np.asarray(geometry.shape_xyz) - 0.5
    return np.asarray(np.all((index >= -0.5) & (index <= upper), axis=1))
