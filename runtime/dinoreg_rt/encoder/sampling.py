"""From projected tokens of some slices to features on the solver's grids."""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..images.resample import resample_volume
from ..types import AffineTransform, Array, Geometry, Volume
from .slice_stack import SliceStack


def neighbours(encoded: tuple[int, ...], count: int) -> tuple[Array, Array, Array]:
    """For each of `count` slices the encoded ones around it, and the weight of the later one.

    Positions in `encoded` (int, int) and float32 weights. Beyond the first and the last encoded
    slice theirs goes on.
    """
    where = np.asarray(encoded)
    index = np.arange(count)
    after = np.clip(np.searchsorted(where, index), 0, len(where) - 1)
    before = np.maximum(after - (where[after] > index), 0)
    gap = np.maximum(where[after] - where[before], 1)
    share = np.clip((index - where[before]) / gap, 0, 1) * (after > before)
    return before, after, share.astype(np.float32)


def sample_features(
    planes: Array,
    stack: SliceStack,
    grid: Geometry,
    affine: AffineTransform,
    out: Array,
    device: Device,
) -> None:
    """Features of a stack's encoded slices on `grid`: linear between slices, then between tokens.

    A channel at a time, so that the volume of all slices and channels never exists.

    Args:
        planes: (n, rows, columns, K) float32 of ``stack.encoded``, centred, on `device`.
        stack: where they lie.
        grid: in the fixed image's space.
        affine: fixed points to the image's points.
        out: (d, h, w, K) float16, on `grid`; may be a part of a larger array.
        device: where `out` lives.
    """
    around = neighbours(stack.encoded, stack.tokens.shape_zyx[0])
    before, after = (device.upload(where, np.int64) for where in around[:2])
    share = device.upload(around[2], np.float32)[:, None, None]
    for channel in range(planes.shape[-1]):
        values = device.xp.ascontiguousarray(planes[..., channel])
        dense = values[before]
        dense += share * (values[after] - dense)
        volume = Volume(dense, stack.tokens)
        out[..., channel] = resample_volume(volume, grid, affine, device, outside=0.0)
