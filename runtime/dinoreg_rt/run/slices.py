"""The middle slices of a registration in anatomical orientation, for pictures.

Rows and columns of a plane run towards the patient's left (+x), posterior (+y) and superior (+z).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ..fields.inversion import voxel_centres
from ..geometry import invert_affine, lps_to_index, sample_linear, shifted_grid, transform_points
from ..quality.metrics import jacobian_determinant
from ..registration.result import RegistrationResult
from ..types import DisplacementField, FloatArray, Geometry, Volume

#: Name of each plane, the LPS axis normal to it, and the LPS axes of its columns and rows.
_PLANES = (("axial", 2, 0, 1), ("coronal", 1, 0, 2), ("sagittal", 0, 1, 2))


@dataclass(frozen=True, eq=False)
class PlaneSlices:
    """One plane in patient orientation; arrays are (rows, columns).

    Attributes:
        name: axial, coronal or sagittal.
        column_axis: LPS axis (0, 1, 2) along which the column index increases.
        row_axis: LPS axis along which the row index increases.
        spacing_mm: distance between rows, and between columns.
        position_mm: LPS coordinate along the plane's normal, at its middle.
        fixed: the fixed image.
        before: the moving image after the initial alignment; NaN outside its field of view.
        after: the warped moving image; NaN outside its field of view.
        offset_mm: (rows, columns, 2), in-plane displacement along rows and columns without the
            initial alignment.
        jacobian: Jacobian determinant of the mapping, divided by that of the initial alignment.
    """

    name: str
    column_axis: int
    row_axis: int
    spacing_mm: tuple[float, float]
    position_mm: float
    fixed: FloatArray
    before: FloatArray
    after: FloatArray
    offset_mm: FloatArray
    jacobian: FloatArray


def extract_planes(result: RegistrationResult, fixed: Volume, moving: Volume) -> list[PlaneSlices]:
    """Extract three planes through the middle of the fixed image's content."""
    return [_extract(result, fixed, moving, plane) for plane in _PLANES]


def content_centre_zyx(volume: Volume) -> tuple[int, int, int]:
    """Return the median index of the voxels that are brighter than the mean."""
    step = max(1, round((volume.array.size / 2e5) ** (1 / 3)))
    coarse = np.asarray(volume.array[::step, ::step, ::step])
    bright = np.nonzero(coarse > coarse.mean())
    middle = [int(np.median(axis)) * step if axis.size else 0 for axis in bright]
    z, y, x = (min(m, n - 1) for m, n in zip(middle, volume.array.shape, strict=True))
    return (z, y, x)


def anatomical_axes(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    """Return the index axis (0 x, 1 y, 2 z) closest to each of L, P, S, and its sign, +1 or -1."""
    direction = geometry.direction
    best = max(
        permutations(range(3)), key=lambda p: sum(abs(direction[lps, p[lps]]) for lps in range(3))
    )
    return tuple((axis, 1 if direction[lps, axis] >= 0 else -1) for lps, axis in enumerate(best))


@dataclass(frozen=True)
class _Cut:
    """The position of a plane in the index grid: index axes (0 x, 1 y, 2 z) and their signs."""

    name: str
    across_lps: int
    column_lps: int
    row_lps: int
    across: int
    column: tuple[int, int]
    row: tuple[int, int]
    position: int

    def take(self, array: NDArray[np.float32]) -> FloatArray:
        """Take the slice from a volume (D, H, W, ...); the axis across it keeps the length 1."""
        return np.asarray(np.take(array, [self.position], axis=2 - self.across))

    def view(self, values: FloatArray) -> FloatArray:
        """Turn (D, H, W) of one slice into (rows, columns), both along positive LPS axes."""
        axes = [2 - axis for axis in (self.across, self.row[0], self.column[0])]
        return values.transpose(axes)[0, :: self.row[1], :: self.column[1]]


def _make_cut(plane: tuple[str, int, int, int], volume: Volume) -> _Cut:
    name, across_lps, column_lps, row_lps = plane
    order = anatomical_axes(volume.geometry)
    across = order[across_lps][0]
    position = content_centre_zyx(volume)[2 - across]
    column, row = order[column_lps], order[row_lps]
    return _Cut(name, across_lps, column_lps, row_lps, across, column, row, position)


def _extract(
    result: RegistrationResult, fixed: Volume, moving: Volume, plane: tuple[str, int, int, int]
) -> PlaneSlices:
    cut = _make_cut(plane, fixed)
    geometry = fixed.geometry
    grid = _slab(geometry, cut.across, cut.position)
    points = voxel_centres(grid)
    mapped = points + cut.take(result.displacement.vectors_mm).reshape(-1, 3)
    started = transform_points(result.initial, points)
    to_index = lps_to_index(moving.geometry)
    added = transform_points(invert_affine(result.initial), mapped) - points

    def view(values: FloatArray) -> FloatArray:
        return cut.view(values.reshape(grid.shape_zyx))

    def along(axis: tuple[int, int]) -> FloatArray:
        return view(added @ geometry.direction[:, axis[0]]) * axis[1]

    return PlaneSlices(
        name=cut.name,
        column_axis=cut.column_lps,
        row_axis=cut.row_lps,
        spacing_mm=(geometry.spacing_mm[cut.row[0]], geometry.spacing_mm[cut.column[0]]),
        position_mm=float(points[:, cut.across_lps].mean()),
        fixed=view(cut.take(fixed.array)),
        before=view(sample_linear(moving.array, transform_points(to_index, started))),
        after=view(sample_linear(moving.array, transform_points(to_index, mapped))),
        offset_mm=np.stack([along(cut.row), along(cut.column)], axis=-1),
        jacobian=view(_jacobian(result, cut)),
    )


def _slab(geometry: Geometry, axis: int, position: int, thickness: int = 1) -> Geometry:
    offset, shape = [0, 0, 0], list(geometry.shape_zyx)
    offset[2 - axis], shape[2 - axis] = position, thickness
    return shifted_grid(geometry, (offset[0], offset[1], offset[2]), (shape[0], shape[1], shape[2]))


def _jacobian(result: RegistrationResult, cut: _Cut) -> FloatArray:
    """Compute the Jacobian on one slice, from it and its two neighbours."""
    field = result.displacement
    size = field.geometry.shape_zyx[2 - cut.across]
    first, last = max(cut.position - 1, 0), min(cut.position + 1, size - 1)
    slab = DisplacementField(
        np.take(field.vectors_mm, range(first, last + 1), axis=2 - cut.across),
        _slab(field.geometry, cut.across, first, last + 1 - first),
    )
    determinant = np.take(jacobian_determinant(slab), [cut.position - first], axis=2 - cut.across)
    return np.asarray(determinant / np.linalg.det(result.initial.matrix), np.float64)
