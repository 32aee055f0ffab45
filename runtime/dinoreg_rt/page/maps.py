"""Maps of a displacement field on the displayed slices: Jacobian, folds, grid, confidence.

The deformation is shown without the initial alignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..geometry import (
    index_map,
    index_to_lps,
    invert_affine,
    kernel_affine,
    lps_to_index,
    reshaped_grid,
    shifted_grid,
    transform_points,
    z_slabs,
)
from ..quality.metrics import jacobian_determinant
from ..registration.result import RegistrationResult
from ..types import Array, DisplacementField, FloatArray
from .layout import MOST_LINES, MOST_MAP_PIXELS, Indices, PlaneLayout


@dataclass(frozen=True, eq=False)
class PlaneMaps:
    """Maps of one plane, (slices, rows, columns) with larger pixels than the images.

    Attributes:
        jacobian: Jacobian determinant of the mapping over that of the initial alignment.
        folds: where the mapping folds; a pixel shows all voxels of its area that are nearer to its
            slice than to another.
        nodes_mm: (slices, rows, columns, 2), positions of grid lines' crossings after the
            displacement, along rows and columns, from the corner of the first pixel.
        confidence: see `RegistrationResult.confidence`; None if it was not computed.
        inverse_mm: distance of each point from where the mapping and its inverse take it; NaN where
            the inverse is not known, None without one.
    """

    jacobian: FloatArray
    folds: NDArray[np.bool_]
    nodes_mm: FloatArray
    confidence: FloatArray | None = None
    inverse_mm: FloatArray | None = None


def plane_maps(result: RegistrationResult, layouts: Sequence[PlaneLayout]) -> list[PlaneMaps]:
    """Return the maps of each plane."""
    jacobians = _jacobians(result, layouts)
    return [
        PlaneMaps(
            jacobian,
            folds,
            _nodes_mm(result, layout),
            _confidence(result, layout),
            _inverse_mm(result, layout),
        )
        for layout, (jacobian, folds) in zip(layouts, jacobians, strict=True)
    ]


def _jacobians(
    result: RegistrationResult, layouts: Sequence[PlaneLayout]
) -> Iterator[tuple[FloatArray, NDArray[np.bool_]]]:
    """Yield the Jacobian and the folds of each plane, from one pass over the field in slabs."""
    chosen = [layout.voxels(MOST_MAP_PIXELS) for layout in layouts]
    tables = [layout.pixel_of(MOST_MAP_PIXELS) for layout in layouts]
    values = [np.ones([len(axis) for axis in voxels], np.float32) for voxels in chosen]
    folds = [np.zeros(one.shape, np.bool_) for one in values]
    start = np.linalg.det(result.initial.matrix)
    box = layouts[0].box[0]
    for part, determinant in _determinants(result.displacement):
        if part.stop <= box.start or part.start >= box.stop:
            continue
        folded = np.nonzero(determinant <= 0)
        for (z, y, x), table, value, fold in zip(chosen, tables, values, folds, strict=True):
            here = np.flatnonzero((z >= part.start) & (z < part.stop))
            value[here] = determinant[np.ix_(z[here] - part.start, y, x)] / start
            marks = (table[0][folded[0] + part.start], table[1][folded[1]], table[2][folded[2]])
            shown = (marks[0] >= 0) & (marks[1] >= 0) & (marks[2] >= 0)
            fold[tuple(mark[shown] for mark in marks)] = True
    for layout, value, fold in zip(layouts, values, folds, strict=True):
        yield layout.view(value), layout.view(fold)


def _determinants(field: DisplacementField) -> Iterator[tuple[slice, Array]]:
    """Yield ranges of z and the Jacobian determinant there."""
    depth, height, width = field.geometry.shape_zyx
    for part in z_slabs(field.geometry.shape_zyx):
        first, last = max(part.start - 1, 0), min(part.stop + 1, depth)
        grid = shifted_grid(field.geometry, (first, 0, 0), (last - first, height, width))
        slab = DisplacementField(field.vectors_mm[first:last], grid)
        yield part, jacobian_determinant(slab)[part.start - first : part.stop - first]


def _points_mm(layout: PlaneLayout, voxels: tuple[Indices, Indices, Indices]) -> FloatArray:
    """Return the LPS positions of voxels, (z, y, x, 3)."""
    z, y, x = np.meshgrid(*voxels, indexing="ij")
    points = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float64)
    return transform_points(index_to_lps(layout.fixed), points).reshape(*z.shape, 3)


def _nodes_mm(result: RegistrationResult, layout: PlaneLayout) -> FloatArray:
    voxels = layout.voxels(MOST_LINES)
    points = _points_mm(layout, voxels)
    mapped = points + result.displacement.vectors_mm[np.ix_(*voxels)]
    back = transform_points(invert_affine(result.initial), mapped.reshape(-1, 3))
    index = transform_points(lps_to_index(layout.grid), back) + 0.5
    columns_mm, rows_mm = (index[:, axis] * layout.grid.spacing_mm[axis] for axis in (0, 1))
    nodes = np.stack([rows_mm, columns_mm], axis=-1).reshape((*points.shape[:3], 2))
    return np.asarray(layout.view(nodes))


def _confidence(result: RegistrationResult, layout: PlaneLayout) -> FloatArray | None:
    if result.confidence is None:
        return None
    voxels = np.ix_(*layout.voxels(MOST_MAP_PIXELS))
    return np.asarray(layout.view(result.confidence.array[voxels]))


def _inverse_mm(result: RegistrationResult, layout: PlaneLayout) -> FloatArray | None:
    if result.inverse is None:
        return None
    slices, rows, columns = layout.grid.shape_zyx
    scale = max(1.0, max(rows, columns) / MOST_MAP_PIXELS)
    shape = (slices, max(1, round(rows / scale)), max(1, round(columns / scale)))
    grid, forward = reshaped_grid(layout.grid, shape), result.displacement
    field = np.ascontiguousarray(forward.vectors_mm, np.float32)
    to_field = kernel_affine(index_map(grid, forward.geometry))
    lands: dict[str, Any] = {
        "index_map": kernel_affine(index_map(grid, result.inverse.geometry)),
        "field": field,
        "to_field": to_field,
        "matrix": np.ascontiguousarray(lps_to_index(result.inverse.geometry).matrix[::-1]),
    }
    missed = dinoreg_kernels.map_field(
        shape, np.zeros((3, 4)), field, to_field=to_field, matrix=np.eye(3)
    )
    for axis in range(3):
        back = np.ascontiguousarray(result.inverse.vectors_mm[..., axis], np.float32)
        missed[..., axis] += dinoreg_kernels.resample(back, shape, outside=math.nan, **lands)
    return np.asarray(np.linalg.norm(missed, axis=-1))
