"""Upload and resampling of scanned images to the working grid, and coverage of its voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

import dinoreg_kernels

from ..device.choice import Device
from ..geometry import index_map, kernel_affine, same_grid
from ..types import AffineTransform, Array, Geometry, Volume


def uploaded(volume: Volume, device: Device) -> Volume:
    """Return the image on a CUDA device, uploaded once for all stages; unchanged on a CPU."""
    if device.kind == "cpu":
        return volume
    return replace(volume, array=device.upload(volume.array, np.float32))


def resample_volume(
    volume: Volume,
    grid: Geometry,
    affine: AffineTransform,
    device: Device,
    outside: float | None = None,
) -> Array:
    """Resample `volume` onto `grid`, (D, H, W) float32, antialiased where the grid is coarser.

    The result is always a new array.

    Args:
        volume: image.
        grid: grid in the fixed image's space.
        affine: map from fixed points to the image's points.
        device: device that holds the result.
        outside: value beyond the image (default: the border voxels are continued). Such voxels have
            no weight, but they enter the features near the border: with black beyond the last
            slice, those of two slices showed little else.
    """
    image = device.upload(volume.array, np.float32)
    if same_grid(volume.geometry, grid) and affine.is_identity():
        return image.copy()
    matrix = kernel_affine(index_map(grid, volume.geometry, affine))
    return dinoreg_kernels.resample(
        image,
        grid.shape_zyx,
        matrix,
        samples=antialiasing_samples(matrix),
        outside=outside,
        threads=device.threads,
    )


def antialiasing_samples(matrix: np.ndarray) -> tuple[int, int, int]:
    """Return samples per output voxel and axis (at most 8) that skip no input voxel."""
    steps = np.linalg.norm(matrix[:, :3], axis=0)
    z, y, x = (int(min(8, max(1, math.floor(s + 0.25)))) for s in steps)
    return (z, y, x)


def weight_on(
    grid: Geometry,
    image: Volume,
    mask: Array | None,
    affine: AffineTransform,
    device: Device,
) -> Array:
    """Return the share (0..1, float32) of each voxel of `grid` that image and mask cover."""
    if mask is not None:
        return weights_on(grid, image, (mask,), affine, device)[0]
    inside = device.xp.empty(grid.shape_zyx, np.float32)
    matrix = kernel_affine(index_map(grid, image.geometry, affine))
    return dinoreg_kernels.coverage(
        inside, image.geometry.shape_zyx, matrix, samples=(2, 2, 2), threads=device.threads
    )


def weights_on(
    grid: Geometry,
    image: Volume,
    masks: Sequence[Array],
    affine: AffineTransform,
    device: Device,
) -> list[Array]:
    """Return for each mask the share (0..1, float32) of each voxel of `grid` that it covers."""
    inside = device.xp.empty(grid.shape_zyx, np.float32)
    matrix = kernel_affine(index_map(grid, image.geometry, affine))
    values = [
        dinoreg_kernels.resample(
            device.upload(mask, np.float32),
            grid.shape_zyx,
            matrix,
            samples=antialiasing_samples(matrix),
            inside=inside if number == 0 else None,  # the same for all
            threads=device.threads,
        )
        for number, mask in enumerate(masks)
    ]
    return [
        dinoreg_kernels.multiply_weights(inside, value, out=value, threads=device.threads)
        for value in values
    ]
