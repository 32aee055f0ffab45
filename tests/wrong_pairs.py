"""Deliberately wrong images, for the verdict on trust."""

from __future__ import annotations

import dataclasses

import numpy as np
import SimpleITK as sitk

from dinoreg_rt import Volume, io


def mirrored(volume: Volume, axis: int) -> Volume:
    """Flip the array along an axis under the same header."""
    return dataclasses.replace(volume, array=np.ascontiguousarray(np.flip(volume.array, axis)))


def exchanged_sides(volume: Volume, shift_mm: float = 0.0) -> Volume:
    """Shift the content along x and y, then exchange left and right under the same header."""
    if shift_mm:
        image = io.volume_to_sitk(volume)
        outside = float(min(0, volume.array.min()))
        shift = sitk.TranslationTransform(3, (shift_mm, -0.75 * shift_mm, 0.0))
        moved = sitk.Resample(
            sitk.Cast(image, sitk.sitkFloat32), image, shift, sitk.sitkLinear, outside
        )
        array = sitk.GetArrayFromImage(moved).astype(volume.array.dtype)
        volume = dataclasses.replace(volume, array=array)
    return mirrored(volume, 2 - int(np.argmax(np.abs(volume.geometry.direction[0]))))


def shuffled(volume: Volume) -> Volume:
    """Put the slices along the z axis into a random order."""
    order = np.random.default_rng(0).permutation(volume.array.shape[0])
    return dataclasses.replace(volume, array=np.ascontiguousarray(volume.array[order]))


def part(volume: Volume, low: float, high: float) -> Volume:
    """Return the slices between two fractions of the z axis."""
    first, last = (round(volume.array.shape[0] * share) for share in (low, high))
    grid = volume.geometry
    origin = np.asarray(grid.origin_mm) + grid.direction[:, 2] * grid.spacing_mm[2] * first
    shape = (last - first, *grid.shape_zyx[1:])
    grid = dataclasses.replace(grid, shape_zyx=shape, origin_mm=tuple(map(float, origin)))
    return dataclasses.replace(volume, array=volume.array[first:last].copy(), geometry=grid)
