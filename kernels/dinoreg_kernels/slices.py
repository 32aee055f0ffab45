"""Slices of an image, prepared as the input of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import _library, _structs
from ._arrays import VOLUME, Array, Call, array_module, doubles, int3, int32s, pointer, steps


def cut_slices(
    image: Array,
    slices: Sequence[int],
    size: tuple[int, int],
    *,
    window: tuple[float, float],
    mean: Sequence[float],
    std: Sequence[float],
    samples: tuple[int, int] = (1, 1),
    threads: int = 0,
) -> Array:
    """Cut slices, resize them, window them to 0..1 and normalise each channel.

    Pixels and voxels cover the same extent, and all channels start from the same value. A slice is
    made of its own voxels alone, by linear interpolation; beyond its border it keeps the value
    there. NaN stays NaN.

    Args:
        image: (slice, row, column) float32 in any memory order; a transposed or flipped view is
            read without a copy.
        slices: Indices of the slices.
        size: Height and width of the result.
        window: Intensities that become 0 and 1; values beyond them are clipped.
        mean: Mean of each channel, at most four.
        std: Standard deviation of each channel.
        samples: Points averaged for each pixel, along the row and the column index, as the
            antialiasing filter.
        threads: CPU threads; 0 takes all.

    Returns:
        (len(slices), len(mean), height, width) float32, C-contiguous.
    """
    args = _structs.SlicesArgs()
    args.image = pointer(image, np.float32, "image", VOLUME, in_order=False)
    args.shape = int3(image.shape, "image.shape")
    args.strides = int3(steps(image, "image"), "steps of image")
    args.slices, args.count = int32s(slices, len(slices), "slices"), len(slices)
    args.size = int32s(size, 2, "size")
    args.samples = int32s(samples, 2, "samples")
    args.window = doubles(window, 2, "window")
    args.channels = len(mean)
    args.mean = doubles(mean, len(mean), "mean")
    args.std = doubles(std, len(mean), "std")
    shape = (len(slices), len(mean), *size)
    out = array_module(image).empty(shape, np.float32)
    args.out = pointer(out, np.float32, "out", shape)
    _library.call("dr_slices_cut", Call(image, threads).execution, args)
    return out
