"""Grids worked on a few z planes at a time: bounds the float64 temporaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .types import AffineTransform, FloatArray, Geometry

#: Voxels worked on at a time: some tens of megabytes of temporaries.
SLAB_VOXELS = 1 << 18


def z_slabs(shape_zyx: Sequence[int]) -> Iterator[slice]:
    """Consecutive ranges of axis z, each of about `SLAB_VOXELS` voxels."""
    depth, height, width = shape_zyx
    step = max(1, SLAB_VOXELS // max(1, height * width))
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


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
