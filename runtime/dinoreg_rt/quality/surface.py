"""Distances between the surfaces of two masks, for `dinoreg_rt.quality.metrics.hd95`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..images.body import bounding_box
from ..types import Geometry


class Hd95(NamedTuple):
    """95 % Hausdorff distance of one label, in both units in which it is published."""

    mm: float
    voxels: float


def hd95_of_mask(fixed: NDArray[np.bool_], warped: NDArray[np.bool_], geometry: Geometry) -> Hd95:
    """Return the robust Hausdorff distance of two (D, H, W) masks, defined in `metrics.hd95`."""
    shape_xyz = np.asarray(geometry.shape_xyz, np.float64)
    spacing = geometry.spacing_mm
    if not fixed.any() or not warped.any():
        worst_mm = float(np.linalg.norm(shape_xyz * spacing))
        return Hd95(worst_mm, float(np.linalg.norm(shape_xyz)))
    # Distances between voxels of the masks depend on nothing outside their common box.
    box = bounding_box(fixed | warped, margin=0)
    surface_a, surface_b = _surface(fixed[box]), _surface(warped[box])
    voxels = _percentile_distance(surface_a, surface_b, (1.0, 1.0, 1.0))
    if np.ptp(spacing) < 1e-6 * max(spacing):  # isotropic: one distance serves both units
        return Hd95(voxels * spacing[0], voxels)
    return Hd95(_percentile_distance(surface_a, surface_b, spacing), voxels)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels of `mask` with a 6-neighbour outside, on a grid padded by one voxel."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        # The margin is background, so what wraps around is background too.
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return padded & ~inner


def _percentile_distance(
    a: NDArray[np.bool_], b: NDArray[np.bool_], spacing_xyz: tuple[float, float, float]
) -> float:
    """Return the larger 95th percentile of the distances from a to b and from b to a."""
    return max(
        float(np.percentile(_distance_to(b, spacing_xyz)[a], 95)),
        float(np.percentile(_distance_to(a, spacing_xyz)[b], 95)),
    )


def _distance_to(
    mask: NDArray[np.bool_], spacing_xyz: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Return the distance of every voxel to the nearest voxel of `mask`, 0 inside, (D, H, W)."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_xyz)
    # Negative inside thick parts of the mask, which belong to it like the rest.
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    values: NDArray[np.float32] = sitk.GetArrayFromImage(distance)
    return np.maximum(values, np.float32(0))
