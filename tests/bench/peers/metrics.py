"""Measures of a registration, shared by the peer scripts.

Every array is in (z, y, x) order. A displacement is in voxels, shape (D, H, W, 3), component i
along array axis i, and `fixed(p) ~ moving(p + displacement(p))`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Labels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def shared_labels(fixed: Labels, moving: Labels) -> list[int]:
    """Return the label values, background excluded, that occur in both maps."""
    return [int(value) for value in np.intersect1d(fixed, moving) if value != 0]


def dice(fixed: Labels, moving: Labels, label: int) -> float:
    """Return the Dice overlap of one label."""
    a, b = fixed == label, moving == label
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else float("nan")


def hd95_mm(
    fixed: Labels, moving: Labels, label: int, spacing_zyx_mm: tuple[float, float, float]
) -> float:
    """Return the larger of both directed 95th percentiles of the surface distance of one label.

    Surface voxels are those removed by one 6-neighbour erosion. NaN if a side lacks the label.
    """
    a, b = fixed == label, moving == label
    if not a.any() or not b.any():
        return float("nan")
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    a, b = a[box], b[box]
    surface_a = a & ~ndimage.binary_erosion(a)
    surface_b = b & ~ndimage.binary_erosion(b)
    to_b = ndimage.distance_transform_edt(~surface_b, sampling=spacing_zyx_mm)[surface_a]
    to_a = ndimage.distance_transform_edt(~surface_a, sampling=spacing_zyx_mm)[surface_b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def mean_dice(fixed: Labels, moving: Labels, labels: list[int]) -> float:
    """Return the mean Dice over `labels`; a label lost by the warp counts as 0."""
    return float(np.mean([dice(fixed, moving, label) for label in labels]))


def mean_hd95_mm(
    fixed: Labels,
    moving: Labels,
    labels: list[int],
    spacing_zyx_mm: tuple[float, float, float],
) -> float:
    """Return the mean HD95 over those of `labels` that both maps still hold."""
    return float(np.nanmean([hd95_mm(fixed, moving, label, spacing_zyx_mm) for label in labels]))


def warp_labels(moving: Labels, displacement_vox: Floats) -> Labels:
    """Sample `moving` at `p + displacement_vox(p)`, nearest neighbour, background outside.

    Inside reaches half a voxel beyond the outermost centres, as in ITK ("constant" would not).
    """
    grid = np.indices(moving.shape, dtype=np.float32)
    positions = grid + np.moveaxis(displacement_vox, -1, 0)
    return ndimage.map_coordinates(moving, positions, order=0, mode="grid-constant", cval=0)


def jacobian_determinant(displacement_vox: Floats) -> Floats:
    """Return det(I + grad u): central differences, one-sided on the outermost voxels."""
    columns = [np.gradient(displacement_vox[..., i]) for i in range(3)]
    a, b, c = (columns[0][0] + 1, columns[0][1], columns[0][2])
    d, e, f = (columns[1][0], columns[1][1] + 1, columns[1][2])
    g, h, i = (columns[2][0], columns[2][1], columns[2][2] + 1)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def folded_share_percent(jacobian: Floats) -> float:
    """Return the share of all voxels whose Jacobian determinant is not positive, in percent."""
    return float(100.0 * np.mean(jacobian <= 0))


def sdlogj_official(jacobian: Floats) -> float:
    """Return the Learn2Reg SDLogJ: 2 voxels cropped, std(log(clip(J + 3, 1e-9, 1e9))), no mask."""
    inner = jacobian[2:-2, 2:-2, 2:-2].astype(np.float64)
    return float(np.log(np.clip(inner + 3.0, 1e-9, 1e9)).std())
