"""Conversion between index and physical coordinates, which happens nowhere else.

Index coordinates are continuous and written ``xyz`` (fast axis first) as in ITK, with voxel centres
at integers. Physical coordinates are LPS in millimetres. `dinoreg_rt.io` converts the file formats'
own frames, such as NIfTI's RAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from .types import AffineTransform, FloatArray, Geometry


def index_to_lps(geometry: Geometry) -> AffineTransform:
    """Return the map from continuous index (x, y, z) to LPS mm."""
    matrix = geometry.direction * np.asarray(geometry.spacing_mm)
    return AffineTransform(matrix, np.asarray(geometry.origin_mm))


def lps_to_index(geometry: Geometry) -> AffineTransform:
    """Return the map from LPS mm to continuous index (x, y, z)."""
    return invert_affine(index_to_lps(geometry))


def compose_affines(outer: AffineTransform, inner: AffineTransform) -> AffineTransform:
    """Return the map ``x -> outer(inner(x))``."""
    return AffineTransform(
        outer.matrix @ inner.matrix, outer.matrix @ inner.translation_mm + outer.translation_mm
    )


def invert_affine(affine: AffineTransform) -> AffineTransform:
    """Return the inverse map; raise `numpy.linalg.LinAlgError` if the matrix is singular."""
    inverse: FloatArray = np.linalg.inv(affine.matrix).astype(np.float64, copy=False)
    return AffineTransform(inverse, -inverse @ affine.translation_mm)


def transform_points(affine: AffineTransform, points: FloatArray) -> FloatArray:
    """Apply `affine` to `points` (N, 3), components x, y, z."""
    return np.asarray(points @ affine.matrix.T + affine.translation_mm)


def file_axes(direction: FloatArray) -> tuple[int, int, int]:
    """Return the index axes (0 is x) closest to L, P and S: the best of the six assignments."""
    along = np.abs(direction)
    x, y, z = max(
        permutations((0, 1, 2)), key=lambda axes: sum(along[a, f] for a, f in enumerate(axes))
    )
    return x, y, z


def index_map(
    from_grid: Geometry, to_grid: Geometry, affine: AffineTransform | None = None
) -> AffineTransform:
    """Return the map of indices of one grid to another, through `affine` in LPS mm if given."""
    inner = index_to_lps(from_grid)
    if affine is not None:
        inner = compose_affines(affine, inner)
    return compose_affines(lps_to_index(to_grid), inner)


def kernel_affine(index_affine: AffineTransform) -> FloatArray:
    """Return a map of (x, y, z) as a (3, 4) matrix over (z, y, x, 1), the kernels' axis order."""
    matrix = index_affine.matrix[::-1, ::-1]
    return np.ascontiguousarray(np.column_stack([matrix, index_affine.translation_mm[::-1]]))


def resampled_grid(geometry: Geometry, spacing_mm: tuple[float, float, float]) -> Geometry:
    """Return a grid over the same box (voxel borders, not centres) with about this spacing.

    The box is kept exactly and the number of voxels is rounded, to at least one, so the spacing
    differs from the wanted one by at most half a voxel over the whole axis.
    """
    x, y, z = (
        max(1, round(n * have / want))
        for n, have, want in zip(geometry.shape_xyz, geometry.spacing_mm, spacing_mm, strict=True)
    )
    return reshaped_grid(geometry, (z, y, x))


def reshaped_grid(geometry: Geometry, shape_zyx: tuple[int, int, int]) -> Geometry:
    """Return a grid of this shape over the same box (voxel borders, not centres)."""
    exact = [
        n * have / new
        for n, have, new in zip(
            geometry.shape_xyz, geometry.spacing_mm, shape_zyx[::-1], strict=True
        )
    ]
    first_centre = np.array(exact) / np.asarray(geometry.spacing_mm) / 2 - 0.5
    origin = transform_points(index_to_lps(geometry), first_centre[None])[0]
    spacing = (exact[0], exact[1], exact[2])
    return Geometry(shape_zyx, spacing, tuple(origin), geometry.direction)


def coarsened_grid(geometry: Geometry, factor_zyx: tuple[int, int, int]) -> Geometry:
    """Return a grid with one voxel for each block of `factor_zyx` voxels, at its centre.

    If the shape is not a multiple of the factor, the last block reaches beyond the grid: nothing is
    cropped or stretched.
    """
    shape = tuple(math.ceil(n / f) for n, f in zip(geometry.shape_zyx, factor_zyx, strict=True))
    factor_xyz = np.asarray(factor_zyx[::-1], dtype=np.float64)
    origin = transform_points(index_to_lps(geometry), ((factor_xyz - 1) / 2)[None])[0]
    spacing = tuple(float(v) for v in np.asarray(geometry.spacing_mm) * factor_xyz)
    return Geometry(
        (shape[0], shape[1], shape[2]),
        (spacing[0], spacing[1], spacing[2]),
        tuple(origin),
        geometry.direction,
    )


def shifted_grid(
    geometry: Geometry, offset_zyx: tuple[int, int, int], shape_zyx: tuple[int, int, int]
) -> Geometry:
    """Return the part (or extension) of a grid that starts at voxel `offset_zyx`."""
    offset_xyz = np.asarray(offset_zyx[::-1], dtype=np.float64)
    origin = transform_points(index_to_lps(geometry), offset_xyz[None])[0]
    return Geometry(shape_zyx, geometry.spacing_mm, tuple(origin), geometry.direction)


def centre_lps_mm(geometry: Geometry) -> FloatArray:
    """Return the LPS position of the centre of the grid's box, (3,)."""
    middle = (np.asarray(geometry.shape_xyz, dtype=np.float64) - 1) / 2
    return np.asarray(transform_points(index_to_lps(geometry), middle[None])[0])


def corners_lps_mm(geometry: Geometry) -> FloatArray:
    """Return the LPS positions of the corners of the grid's box (voxel borders), (8, 3)."""
    upper = np.asarray(geometry.shape_xyz, dtype=np.float64) - 0.5
    corners = np.array(np.meshgrid(*[(-0.5, u) for u in upper], indexing="ij")).reshape(3, -1).T
    return transform_points(index_to_lps(geometry), corners)


def same_grid(a: Geometry, b: Geometry, tolerance_voxel: float = 1e-3) -> bool:
    """Return whether shapes are equal and all corners agree within the tolerance in voxels."""
    if a.shape_zyx != b.shape_zyx:
        return False
    corners = corners_lps_mm(a)
    index_difference = transform_points(lps_to_index(b), corners) - transform_points(
        lps_to_index(a), corners
    )
    return bool(np.max(np.abs(index_difference)) < tolerance_voxel)


def index_identity(from_grid: Geometry, to_grid: Geometry) -> AffineTransform:
    """Return the map in LPS mm from every voxel to the other grid's voxel of the same index."""
    return compose_affines(index_to_lps(to_grid), lps_to_index(from_grid))


def centres_within(grid: Geometry, box: Geometry, affine: AffineTransform) -> bool:
    """Return whether `affine` takes all voxel centres of `grid` into the voxels of `box`."""
    upper = [(0, n - 1) for n in grid.shape_xyz]
    corners = np.array(np.meshgrid(*upper, indexing="ij"), np.float64).reshape(3, -1).T
    index = transform_points(index_map(grid, box, affine), corners)
    sizes = np.asarray(box.shape_xyz)
    # The margin is for rounding, by which the grid of a field in a file differs from an image's.
    return bool(np.all((index > -0.501) & (index < sizes - 0.499)))


def inside_grid(shape_zyx: tuple[int, ...], index_xyz: FloatArray) -> NDArray[np.bool_]:
    """Return which continuous indices (N, 3) lie in the grid's box; NaN does not.

    As in ITK, the box reaches half a voxel beyond the outer centres and excludes its upper border.
    """
    upper = np.array(shape_zyx[::-1]) - 0.5
    return np.asarray(np.all((index_xyz >= -0.5) & (index_xyz < upper), axis=1))


def sample_linear(
    array: NDArray[np.float32], index_xyz: FloatArray, outside: float = math.nan
) -> FloatArray:
    """Interpolate an array linearly at continuous indices.

    Args:
        array: (D, H, W) or (D, H, W, C).
        index_xyz: (N, 3). As in ITK, a point in the outer half of a border voxel has that voxel's
            value.
        outside: the value beyond the grid's box and at NaN.

    Returns:
        (N,) or (N, C).
    """
    inside = inside_grid(array.shape[:3], index_xyz)
    last = np.array(array.shape[2::-1]) - 1
    index = np.clip(np.where(inside[:, None], index_xyz, 0.0), 0, last)
    low = np.minimum(index.astype(np.intp), np.maximum(last - 1, 0))
    part = index - low
    # All channels of a point share one weight.
    channels = (1,) * (array.ndim - 3)
    value = np.zeros((len(index), *array.shape[3:]))
    for corner in np.ndindex(2, 2, 2):
        x, y, z = np.minimum(low + corner, last).T
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        value += weight.reshape(-1, *channels) * array[z, y, x]
    value[~inside] = outside
    return value


def describe_position(position_mm: Sequence[float]) -> str:
    """Describe a position for messages, such as ``(1.5, -20, 300)``."""
    return "(" + ", ".join(f"{v:.4g}" for v in position_mm) + ")"


#: Voxels processed at a time; their temporaries take tens of megabytes.
SLAB_VOXELS = 1 << 18


def z_slabs(shape_zyx: Sequence[int]) -> Iterator[slice]:
    """Yield consecutive ranges of axis z of about `SLAB_VOXELS` voxels each."""
    depth, height, width = shape_zyx
    step = max(1, SLAB_VOXELS // max(1, height * width))
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


def slab_affine(from_index: AffineTransform, grid: Geometry, part: slice) -> FloatArray:
    """Return an affine map of the indices (x, y, z) in a range of z, (N, 3), x fastest."""
    _, height, width = grid.shape_zyx
    column_x, column_y, column_z = from_index.matrix.T
    # A sum of one term per axis avoids a list of indices and a matrix product per voxel.
    z = np.arange(part.start, part.stop)[:, None, None, None] * column_z + from_index.translation_mm
    y = np.arange(height)[:, None, None] * column_y
    x = np.arange(width)[:, None] * column_x
    return np.asarray(((z + y) + x).reshape(-1, 3))


def apply_matrix(matrix: FloatArray, vectors: NDArray[np.floating]) -> FloatArray:
    """Return ``matrix @ v`` for each of the (N, 3) vectors."""
    # A BLAS product of this shape has taken 70 times as long on several threads as on one.
    return np.asarray(np.einsum("ij,nj->ni", matrix, vectors))
