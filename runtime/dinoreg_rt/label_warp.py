"""Label maps through a chain of transforms.

Everything goes through physical points, slab by slab, so that no more than the labels and one
displacement field ever stand in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from .geometry import (
    compose_affines,
    index_to_lps,
    lps_to_index,
    same_grid,
)
from .quality import z_slabs
from .types import AffineTransform, DisplacementField, FloatArray, Geometry, LabelMap


def warp_labels(
    moving: LabelMap,
    chain: Sequence[AffineTransform | DisplacementField],
    fixed_grid: Geometry,
) -> NDArray[np.int32]:
    """Moving labels on the fixed grid, (D, H, W): the nearest voxel's label, 0 outside.

    As SimpleITK's nearest-neighbour resampling: a point belongs to the voxel whose box it lies in,
    and is outside beyond the borders of the outermost voxels.

    Args:
        moving: the labels.
        chain: fixed points to moving points, applied in order; empty: identity.
        fixed_grid: the grid of the result.
    """
    to_index = lps_to_index(moving.geometry)
    upper = np.asarray(moving.geometry.shape_xyz)
    result = np.zeros(fixed_grid.shape_zyx, np.int32)
    for part in z_slabs(fixed_grid.shape_zyx):
        nearest = np.floor(_map_slab(chain, fixed_grid, part, to_index) + 0.5)
        within = (nearest >= 0) & (nearest < upper)  # False for NaN too
        inside = within[:, 0] & within[:, 1] & within[:, 2]
        x, y, z = nearest[inside].astype(np.intp).T
        result[part].reshape(-1)[inside] = moving.array[z, y, x]
    return result


def chain_to_displacement(
    chain: Sequence[AffineTransform | DisplacementField], fixed_grid: Geometry
) -> DisplacementField:
    """The whole chain as one displacement on the voxel centres of the fixed grid."""
    if len(chain) == 1 and _is_field_on(chain[0], fixed_grid):
        return DisplacementField(np.asarray(chain[0].vectors_mm), fixed_grid)
    vectors = np.empty((*fixed_grid.shape_zyx, 3), np.float32)
    for part in z_slabs(fixed_grid.shape_zyx):
        moved = _map_slab(chain, fixed_grid, part, AffineTransform.identity())
        moved -= slab_affine(index_to_lps(fixed_grid), fixed_grid, part)
        vectors[part] = moved.reshape(vectors[part].shape)
    return DisplacementField(vectors, fixed_grid)


def index_identity(fixed_grid: Geometry, moving_grid: Geometry) -> AffineTransform:
    """The mapping that sends every fixed voxel to the moving voxel with the same index."""
    return compose_affines(index_to_lps(moving_grid), lps_to_index(fixed_grid))


def slab_affine(from_index: AffineTransform, grid: Geometry, part: slice) -> FloatArray:
    """(N, 3): an affine map of the indices (x, y, z) of some z planes of a grid, x fastest."""
    _, height, width = grid.shape_zyx
    column_x, column_y, column_z = from_index.matrix.T
    # Sums of three terms, one per axis: no list of indices, no matrix product per voxel.
    z = np.arange(part.start, part.stop)[:, None, None, None] * column_z + from_index.translation_mm
    y = np.arange(height)[:, None, None] * column_y
    x = np.arange(width)[:, None] * column_x
    return np.asarray(((z + y) + x).reshape(-1, 3))


def apply_matrix(matrix: FloatArray, vectors: NDArray[np.floating]) -> FloatArray:
    """``matrix @ v`` for each of (N, 3) vectors."""
    # A BLAS product of this shape was seen to take 70 times longer than on one thread.
    return np.asarray(np.einsum("ij,nj->ni", matrix, vectors))


def _map_slab(
    chain: Sequence[AffineTransform | DisplacementField],
    grid: Geometry,
    part: slice,
    outer: AffineTransform,
) -> FloatArray:
    """``outer(chain(p))`` for the voxel centres p of some z planes, (N, 3), a new array."""
    from .io import transform_points as transform_through

    first, rest = index_to_lps(grid), tuple(chain)
    if len(rest) == 1 and _is_field_on(rest[0], grid):
        # On its own voxels a field needs no interpolation.
        vectors = np.asarray(rest[0].vectors_mm[part]).reshape(-1, 3)
        moved = slab_affine(compose_affines(outer, first), grid, part)
        moved += apply_matrix(outer.matrix, vectors)
        return moved
    while rest and isinstance(rest[0], AffineTransform):
        first, rest = compose_affines(rest[0], first), rest[1:]
    if not rest:
        return slab_affine(compose_affines(outer, first), grid, part)
    points = np.asarray(transform_through(rest, slab_affine(first, grid, part)))
    return apply_matrix(outer.matrix, points) + outer.translation_mm


def _is_field_on(
    transform: AffineTransform | DisplacementField, grid: Geometry
) -> TypeGuard[DisplacementField]:
    return isinstance(transform, DisplacementField) and same_grid(transform.geometry, grid)
