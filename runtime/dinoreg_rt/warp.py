"""Moving images and labels through a displacement field onto another grid."""

from __future__ import annotations

import numpy as np

import dinoreg_kernels

from .device import Device, choose_device
from .geometry import (
    index_map,
    index_to_lps,
    kernel_affine,
    lps_to_index,
    same_grid,
)
from .types import DisplacementField, FloatArray, Geometry, LabelMap, Volume


def warp_volume(
    volume: Volume,
    displacement: DisplacementField,
    grid: Geometry | None = None,
    device: Device | None = None,
) -> Volume:
    """`volume` pulled back through `displacement`, linear interpolation.

    Args:
        volume: the moving image.
        displacement: from points of `grid`'s space to points of the volume.
        grid: of the result (default the displacement's own). Between the field's voxels it is
            interpolated, beyond them it is continued by its border.
        device: where to compute (default the CPU).

    Returns:
        float32 values on `grid`; outside the volume its smallest value below 0, else 0.
    """
    device = device or choose_device("cpu", 0)[0]
    grid = grid or displacement.geometry
    values = np.asarray(volume.array) if device.kind == "cpu" else volume.array
    with device.active():
        array = dinoreg_kernels.resample(
            device.upload(values, np.float32),
            grid.shape_zyx,
            kernel_affine(index_map(grid, volume.geometry)),
            field=device.upload(displacement.vectors_mm, np.float32),
            to_field=_to_field(displacement, grid),
            matrix=_vectors_to_index(volume.geometry),
            outside=min(0.0, float(volume.array.min())),
            threads=device.threads,
        )
    return Volume(device.download(array), grid, volume.pixel_type, volume.name)


def warp_labels(
    labels: LabelMap,
    displacement: DisplacementField,
    grid: Geometry | None = None,
    *,
    nearest: bool = False,
    device: Device | None = None,
) -> LabelMap:
    """Labels pulled back through `displacement`; 0 outside.

    The label with the largest sum of linear weights wins, so borders stay smooth and no label is
    invented; with `nearest` the nearest voxel's, as ITK's nearest-neighbour interpolation. Other
    arguments as in `warp_volume`.
    """
    device = device or choose_device("cpu", 0)[0]
    grid = grid or displacement.geometry
    with device.active():
        array = dinoreg_kernels.resample_labels(
            device.upload(labels.array, np.int32),
            grid.shape_zyx,
            kernel_affine(index_map(grid, labels.geometry)),
            field=device.upload(displacement.vectors_mm, np.float32),
            to_field=_to_field(displacement, grid),
            matrix=_vectors_to_index(labels.geometry),
            nearest=nearest,
            threads=device.threads,
        )
    return LabelMap(device.download(array), grid, labels.pixel_type, labels.name)


def identity_field(grid: Geometry) -> FloatArray:
    """(3, 4) with rows x, y, z over (z, y, x, 1): index to LPS mm."""
    affine = index_to_lps(grid)
    return np.column_stack([affine.matrix[:, ::-1], affine.translation_mm])


def _to_field(displacement: DisplacementField, grid: Geometry) -> FloatArray | None:
    if same_grid(displacement.geometry, grid):
        return None
    return kernel_affine(index_map(grid, displacement.geometry))


def _vectors_to_index(grid: Geometry) -> FloatArray:
    """LPS vectors (x, y, z) to index steps (z, y, x)."""
    return np.ascontiguousarray(lps_to_index(grid).matrix[::-1])
