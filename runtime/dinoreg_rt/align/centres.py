"""Centres of mass of windowed images."""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..geometry import centre_lps_mm, index_to_lps, transform_points
from ..images.pair import PairImage
from ..io.arrays import as_numpy
from ..types import Array, FloatArray, Volume


def centre_of_image(image: PairImage, device: Device) -> FloatArray:
    """Return the centre of mass of an image within its mask, LPS mm."""
    counts = None if image.mask is None else device.upload(image.mask != 0, np.bool_)
    return centre_of_mass(image.volume, image.window, counts)


def centre_of_mass(
    volume: Volume, window: tuple[float, float], mask: Array | None = None
) -> FloatArray:
    """Return the centre of mass of the windowed intensities (inside `mask`, if given) in LPS mm.

    A mask is bool and lies beside the image.
    """
    low, high = window
    scaled = volume.array.clip(low, high) - np.float32(low)
    if mask is not None:
        scaled *= mask
    # Two sums over all voxels instead of three: they dominate the time to plan a pair.
    summed = scaled.sum(axis=0, dtype=np.float64)
    by_axis = [scaled.sum(axis=(1, 2), dtype=np.float64), summed.sum(axis=1), summed.sum(axis=0)]
    ends = np.cumsum(volume.geometry.shape_zyx)[:2]
    planes, rows, columns = np.split(as_numpy(np.concatenate(by_axis)), ends)
    if planes.sum() <= 0:
        return centre_lps_mm(volume.geometry)
    index_xyz = [
        float(sums @ np.arange(sums.size)) / float(sums.sum()) for sums in (columns, rows, planes)
    ]
    return np.asarray(transform_points(index_to_lps(volume.geometry), np.array([index_xyz]))[0])
