"""Slices of an image as an encoder is shown them."""

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
    """Slices resized over the same box, windowed to 0..1 and normalised, one value in all channels.

    A slice is made of its own voxels alone, linear in between; its border goes on beyond it. NaN
    stays NaN.

    Args:
        image: (slice, row, column) float32, in any order in memory: a transposed or flipped view
            is read as it lies.
        slices: which ones.
        size: height and width of the result.
        window: intensities that become 0 and 1; beyond them it is clipped.
        mean: of each channel, at most four.
        std: of each channel.
        samples: points averaged for each pixel, along rows' and columns' index: the antialiasing
            filter.
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
