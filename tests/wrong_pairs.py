"""Deliberately wrong images, for the verdict on trust."""

from __future__ import annotations

import dataclasses

import numpy as np

from dinoreg_rt import Volume


def mirrored(volume: Volume, axis: int) -> Volume:
    """Flip the array along an axis under the same header."""
    return dataclasses.replace(volume, array=np.ascontiguousarray(np.flip(volume.array, axis)))


def part(volume: Volume, low: float, high: float) -> Volume:
    """Return the slices between two fractions of the z axis."""
    first, last = (round(volume.array.shape[0] * share) for share in (low, high))
    grid = volume.geometry
    origin = np.asarray(grid.origin_mm) + grid.direction[:, 2] * grid.spacing_mm[2] * first
    shape = (last - first, *grid.shape_zyx[1:])
    grid = dataclasses.replace(grid, shape_zyx=shape, origin_mm=tuple(map(float, origin)))
    return dataclasses.replace(volume, array=volume.array[first:last].copy(), geometry=grid)
