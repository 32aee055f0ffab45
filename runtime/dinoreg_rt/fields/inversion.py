"""Chains of transforms solved backwards, from moving points to fixed points.

Matrices are inverted exactly, displacement fields with the kernel that also computes the inverse of
a registration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..device.choice import kernel_errors
from ..errors import InputError, RegistrationError
from ..geometry import (
    compose_affines,
    index_to_lps,
    invert_affine,
    kernel_affine,
    lps_to_index,
    shifted_grid,
    transform_points,
    z_slabs,
)
from ..types import AffineTransform, DisplacementField, FloatArray, Geometry
from .solve import INVERSE_MISS_MM

#: Points per row for the kernel, whose axes end at 32768.
_ROW = 4096
#: Points at folds need most of these iterations, others about four.
_ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Inversion:
    """How well a chain was inverted.

    Attributes:
        residual_mm: largest |chain(result) - wanted| over the points that were found.
        failed: indices of points that were not found although their origin seems to lie within the
            fields: no known point maps to within 0.1 mm of them.
        found: number of points that were found.
    """

    residual_mm: float
    failed: NDArray[np.int64]
    found: int

    def describe(self, what: str) -> str:
        """Return how many of the `what` failed, and why."""
        return (
            f"{self.failed.size} of {self.failed.size + self.found} {what} have no inverse: no "
            f"point was found that maps to within {INVERSE_MISS_MM:g} mm of them; the displacement "
            "field folds or nearly folds there"
        )

    def check(self) -> None:
        """Raise `RegistrationError` if more points failed than were found."""
        if self.failed.size > self.found:
            raise RegistrationError(
                f"{self.describe('points')}. Register again with a larger --smoothness or "
                "--fold-penalty, or with the fixed and moving images swapped"
            )


@kernel_errors()
def invert_points(
    chain: Sequence[AffineTransform | DisplacementField],
    points_lps_mm: FloatArray,
    *,
    tolerance_mm: float = 1e-3,
) -> tuple[FloatArray, Inversion]:
    """Map points (N, 3) of the moving image to the fixed image by solving the chain backwards.

    Points whose origin lies outside a field's grid are NaN, and so are points without an origin
    within 0.1 mm; `Inversion.failed` lists the latter.

    Raises:
        RegistrationError: more than half of the points inside the fields have no inverse.
        InputError: a matrix in the chain is singular.
    """
    points, inversion = _solve_backwards(_steps(chain, tolerance_mm), points_lps_mm)
    inversion.check()
    return points, inversion


@kernel_errors()
def invert_chain(
    chain: Sequence[AffineTransform | DisplacementField],
    grid: Geometry,
    *,
    tolerance_mm: float = 1e-3,
) -> tuple[DisplacementField, Inversion]:
    """Return the inverse of a chain as one displacement on the voxel centres of `grid`.

    Vectors are NaN where `invert_points` returns NaN.

    Raises:
        RegistrationError: more than half of the points inside the fields have no inverse.
        InputError: a matrix in the chain is singular.
    """
    steps = _steps(chain, tolerance_mm)
    vectors = np.empty((*grid.shape_zyx, 3), np.float32)
    height, width = grid.shape_zyx[1:]
    largest, failed, found = 0.0, [np.empty(0, np.int64)], 0
    for slab in z_slabs(grid.shape_zyx):
        part = shifted_grid(grid, (slab.start, 0, 0), (slab.stop - slab.start, height, width))
        points = voxel_centres(part)
        origins, one = _solve_backwards(steps, points)
        vectors[slab] = (origins - points).reshape(*part.shape_zyx, 3)
        largest, found = max(largest, one.residual_mm), found + one.found
        failed.append(one.failed + slab.start * height * width)
    inversion = Inversion(largest, np.concatenate(failed), found)
    inversion.check()
    return DisplacementField(vectors, grid), inversion


def voxel_centres(grid: Geometry) -> FloatArray:
    """Return the LPS mm of every voxel, (N, 3), in the order of the flattened array."""
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in grid.shape_zyx], indexing="ij")
    index = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    return transform_points(index_to_lps(grid), index)


@dataclass(frozen=True, eq=False)
class _FieldSolver:
    """The remainder of a displacement field behind its best affine fit, as the kernel takes it.

    If the initial alignment were left in the field, iterations would start outside its grid, where
    the field is unknown, and with large rotations never return. So ``p + u(p) = wanted`` is solved
    as ``p + v(p) = back(wanted)``, where ``back`` is the inverse of the affine fit.

    Attributes:
        geometry: grid of the field.
        grid: the same, one voxel larger on each side: ITK keeps the displacement constant for half
            a voxel beyond the outer centres.
        rest: v, (z, y, x, 3) float32 in indices (z, y, x) of `grid`.
        start: map from wanted points (LPS mm) to the index (x, y, z) of ``back(wanted)`` on `grid`.
        stretch: largest factor by which ``back`` shortens a distance.
        tolerance_mm: tolerance before ``back``.
    """

    geometry: Geometry
    grid: Geometry
    rest: NDArray[np.float32]
    start: AffineTransform
    stretch: float
    tolerance_mm: float

    @classmethod
    def of(cls, field: DisplacementField, tolerance_mm: float) -> _FieldSolver:
        vectors = np.ascontiguousarray(field.vectors_mm, np.float32)
        depth, height, width = field.geometry.shape_zyx
        grid = shifted_grid(field.geometry, (-1, -1, -1), (depth + 2, height + 2, width + 2))
        forth = _affine_fit(field)
        start = compose_affines(lps_to_index(grid), _inverse_of(forth))
        rest = dinoreg_kernels.map_field(
            grid.shape_zyx,
            kernel_affine(compose_affines(start, index_to_lps(grid))) - np.eye(3, 4),
            vectors,
            to_field=np.column_stack([np.eye(3), [-1.0, -1.0, -1.0]]),
            matrix=np.ascontiguousarray(start.matrix[::-1]),
        )
        stretch = float(np.linalg.norm(forth.matrix, 2))
        return cls(field.geometry, grid, rest, start, stretch, tolerance_mm)

    def __call__(self, wanted: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return points p (N, 3) with ``p + u(p) = wanted``, and largest misses (N,) in mm."""
        index = transform_points(self.start, wanted)[:, ::-1]
        rows = -(-len(index) // _ROW)
        target = np.zeros((rows * _ROW, 3), np.float32)
        target[: len(index)] = index
        found, missed = dinoreg_kernels.invert(
            self.rest,
            (1, rows, _ROW),
            spacing_mm=self.grid.spacing_mm[::-1],
            matrix=np.eye(3),
            wanted=target.reshape(1, rows, _ROW, 3),
            from_point=np.eye(3, 4),
            from_index=np.zeros((3, 4)),
            iterations=_ITERATIONS,
            tolerance_mm=self.tolerance_mm / self.stretch,
        )
        origins = found.reshape(-1, 3)[: len(index), ::-1].astype(np.float64)
        missed_mm = np.abs(missed.reshape(-1)[: len(index)]).astype(np.float64) * self.stretch
        return transform_points(index_to_lps(self.grid), origins), missed_mm


def _steps(
    chain: Sequence[AffineTransform | DisplacementField], tolerance_mm: float
) -> list[AffineTransform | _FieldSolver]:
    """Return the chain in reverse, with its matrices inverted."""
    return [
        _inverse_of(step)
        if isinstance(step, AffineTransform)
        else _FieldSolver.of(step, tolerance_mm)
        for step in reversed(chain)
    ]


def _solve_backwards(
    steps: Sequence[AffineTransform | _FieldSolver], points_lps_mm: FloatArray
) -> tuple[FloatArray, Inversion]:
    """Apply the result of `_steps` to points (N, 3)."""
    points = np.array(points_lps_mm, np.float64)
    failed, largest = np.zeros(len(points), bool), 0.0
    for step in steps:
        if isinstance(step, AffineTransform):
            points = transform_points(step, points)
            continue
        known = np.flatnonzero(np.isfinite(points).all(axis=1))
        origins, missed_mm = step(points[known])
        inside = _inside(step.geometry, origins)
        right = missed_mm <= INVERSE_MISS_MM
        failed[known[inside & ~right]] = True
        origins[~(inside & right)] = np.nan
        points[known] = origins
        largest = max(largest, float(missed_mm[inside & right].max(initial=0.0)))
    found = int(np.isfinite(points).all(axis=1).sum())
    return points, Inversion(largest, np.flatnonzero(failed), found)


def _inverse_of(affine: AffineTransform) -> AffineTransform:
    try:
        return invert_affine(affine)
    except np.linalg.LinAlgError as error:
        raise InputError("a transform's matrix is singular and has no inverse") from error


def _affine_fit(field: DisplacementField) -> AffineTransform:
    """Fit an affine map to ``p + u(p)`` at about 1,000 voxels, by least squares."""
    steps = [max(1, n // 10) for n in field.geometry.shape_zyx]
    parts = tuple(slice(step // 2, None, step) for step in steps)
    z, y, x = np.meshgrid(
        *[np.arange(n)[part] for n, part in zip(field.geometry.shape_zyx, parts, strict=True)],
        indexing="ij",
    )
    index = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1).astype(np.float64)
    points = transform_points(index_to_lps(field.geometry), index)
    displacement = np.asarray(field.vectors_mm[parts], np.float64).reshape(-1, 3)
    known = np.isfinite(displacement).all(axis=1)  # an inverse holds NaN where there is none
    if not known.any():
        return AffineTransform.identity()
    points, displacement = points[known], displacement[known]
    centre = points.mean(axis=0)
    local = np.column_stack([points - centre, np.ones(len(points))])
    # The least-norm solution keeps the displacement constant along an axis of one voxel.
    solution = np.linalg.lstsq(local, displacement, rcond=1e-6)[0]
    matrix = np.eye(3) + solution[:3].T
    if np.linalg.det(matrix) < 0.05:  # a wild field: translation is the safer start
        matrix = np.eye(3)
    return AffineTransform(matrix, centre + solution[3] - matrix @ centre)


def _inside(geometry: Geometry, points: FloatArray) -> NDArray[np.bool_]:
    """Return whether points lie in the grid's box, borders of the outer voxels included."""
    index = transform_points(lps_to_index(geometry), points)
    upper = np.asarray(geometry.shape_xyz) - 0.5
    return np.asarray(np.all((index >= -0.5) & (index <= upper), axis=1))
