"""Chains of transforms applied to points, images and label maps.

A chain is listed in the order in which points pass through it, from the fixed image's space to
the moving image's: ``chain[0]`` first. Images are pulled back: the output voxel at ``p`` shows
the input at ``chain(p)``. To go the other way, invert the chain first (`inversion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from .geometry import lps_to_index, shifted_grid, transform_points
from .inversion import voxel_centres
from .label_warp import warp_labels
from .slices import sample_linear
from .types import AffineTransform, DisplacementField, FloatArray, Geometry, LabelMap, Volume

Transform: TypeAlias = AffineTransform | DisplacementField

#: Voxels mapped at a time: bounds the float64 temporaries to some tens of megabytes.
_CHUNK_VOXELS = 1 << 18


def map_points(chain: Sequence[Transform], points_lps_mm: FloatArray) -> FloatArray:
    """Points (N, 3) of the fixed image to points of the moving image, LPS mm.

    Outside its grid a displacement field moves nothing, as in ITK.
    """
    from .io import transform_points as through

    return np.asarray(through(tuple(chain), points_lps_mm)) if chain else points_lps_mm


def warp_image(image: Volume, chain: Sequence[Transform], grid: Geometry) -> Volume:
    """`image` on `grid`, trilinear; outside it 0 or, as on a CT, its smallest value below 0."""
    background = float(min(0.0, image.array.min()))
    to_index = lps_to_index(image.geometry)
    # On its own voxels a field needs no interpolation, which would spread the NaN of an inverse.
    only = chain[0] if len(chain) == 1 else None
    on_grid = only if isinstance(only, DisplacementField) and only.geometry is grid else None
    depth, height, width = grid.shape_zyx
    step = max(1, _CHUNK_VOXELS // (height * width))
    array = np.empty(grid.shape_zyx, np.float32)
    for start in range(0, depth, step):
        part = shifted_grid(grid, (start, 0, 0), (min(step, depth - start), height, width))
        points = voxel_centres(part)
        if on_grid is not None:
            points += np.asarray(on_grid.vectors_mm[start : start + step]).reshape(-1, 3)
        else:
            points = map_points(chain, points)
        values = sample_linear(image.array, transform_points(to_index, points))
        values = np.where(np.isfinite(values), values, background)
        array[start : start + step] = values.reshape(part.shape_zyx)
    return Volume(array, grid, image.pixel_type, image.name)


def warp_label_map(labels: LabelMap, chain: Sequence[Transform], grid: Geometry) -> LabelMap:
    """`labels` on `grid`: the nearest voxel's label, 0 outside."""
    return LabelMap(warp_labels(labels, chain, grid), grid, labels.pixel_type, labels.name)
