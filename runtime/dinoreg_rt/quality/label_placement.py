"""Label maps that do not belong to the image that they are warped with."""

from __future__ import annotations

import numpy as np

from ..geometry import index_map, inside_grid, same_grid, transform_points
from ..types import Geometry, LabelMap

#: Label maps often cover a crop or a larger field of view, but their organs are in the image.
_SMALLEST_SHARE = 0.5
#: Labelled voxels that are examined, spread evenly over the map.
_SAMPLES = 100_000


def misplaced(labels: LabelMap, image: Geometry) -> str | None:
    """Return a warning if a label map cannot be that of the image; None if it can.

    Args:
        labels: the label map.
        image: the grid of the image.
    """
    name = labels.name or "the label map"
    if same_grid(labels.geometry, image):
        return None
    array = np.asarray(labels.array)
    flat = np.flatnonzero(array.ravel())
    if not flat.size:
        return None
    flat = flat[:: -(-flat.size // _SAMPLES)]
    index = np.stack(np.unravel_index(flat, array.shape)[::-1], axis=-1).astype(np.float64)
    inside = inside_grid(
        image.shape_zyx, transform_points(index_map(labels.geometry, image), index)
    )
    share = float(inside.mean())
    if share >= _SMALLEST_SHARE:
        return None
    return (
        f"{name}: only {100 * share:.3g} % of its labelled voxels lie within the moving image, "
        "whose grid differs: is it the label map of another image, or is a header wrong?"
    )


def vanished(labels: LabelMap, warped: LabelMap) -> str | None:
    """Return a warning if a label map holds no label, or none after warping; else None."""
    if np.asarray(warped.array).any():
        return None
    name = labels.name or "the label map"
    if not np.asarray(labels.array).any():
        return f"{name}: every voxel is 0, so the warped label map holds no label either"
    return (
        f"{name}: no label is left after warping, every voxel is 0: it lies elsewhere than the "
        "moving image, or the transform does not belong to it"
    )
