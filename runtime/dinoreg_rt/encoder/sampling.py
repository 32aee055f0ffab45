"""Interpolation of the encoded slices' projected tokens to features on the control grid."""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..images.resample import resample_volume
from ..types import AffineTransform, Array, Geometry, Volume
from .slice_stack import SliceStack


def neighbours(encoded: tuple[int, ...], count: int) -> tuple[Array, Array, Array]:
    """Find the encoded slices before and after each of `count` slices.

    Returns:
        Their positions in `encoded` (int, int), and the weight of the later one (float32). Slices
        beyond the first or the last encoded one take that one.
    """
    slices = np.asarray(encoded)
    index = np.arange(count)
    after = np.clip(np.searchsorted(slices, index), 0, len(slices) - 1)
    before = np.maximum(after - (slices[after] > index), 0)
    gap = np.maximum(slices[after] - slices[before], 1)
    share = np.clip((index - slices[before]) / gap, 0, 1) * (after > before)
    return before, after, share.astype(np.float32)


def sample_features(
    planes: Array,
    stack: SliceStack,
    grid: Geometry,
    affine: AffineTransform,
    out: Array,
    device: Device,
) -> None:
    """Interpolate the features of a stack's encoded slices linearly onto `grid`.

    Channels are sampled one at a time, so the features of all slices never exist at once.

    Args:
        planes: (n, rows, columns, K) float32, centred features of ``stack.encoded`` on `device`.
        stack: gives the positions of the slices and tokens.
        grid: a grid in the fixed image's space.
        affine: maps fixed points to points of the stack's image.
        out: (d, h, w, K) float16 on `grid`; may be part of a larger array.
        device: where `out` lives.
    """
    around = neighbours(stack.encoded, stack.tokens.shape_zyx[0])
    before, after = (device.upload(positions, np.int64) for positions in around[:2])
    share = device.upload(around[2], np.float32)[:, None, None]
    for channel in range(planes.shape[-1]):
        values = device.xp.ascontiguousarray(planes[..., channel])
        dense = values[before]
        dense += share * (values[after] - dense)
        volume = Volume(dense, stack.tokens)
        out[..., channel] = resample_volume(volume, grid, affine, device, outside=0.0)
