"""An encoder's features on another grid, and where its slices show tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import _library, _structs
from ._arrays import (
    FEATURES,
    VOLUME,
    Array,
    Call,
    array_module,
    check_together,
    doubles,
    int3,
    pointer,
)


def sample_tokens(
    tokens: Array,
    size: tuple[int, int],
    places: Array,
    index_map: ArrayLike,
    out: Array,
    *,
    offsets: Array | None = None,
    samples: Sequence[int] = (1, 1, 1),
    factor: float = 1.0,
    first_channel: int = 0,
    threads: int = 0,
) -> Array:
    """Sample the tokens of encoded slices on another grid by linear interpolation.

    Between two encoded slices everything is linear. What is written is ``factor * (token - offset
    of its slice)``, and 0 beyond the tokens' grid.

    Args:
        tokens: (encoded, rows * columns, stride) float32, with a stride that is a multiple of 8.
        size: Rows and columns.
        places: (slices, 2) float32, for each slice of the tokens' grid the number of the last
            encoded one that is not behind it, and the share of the next encoded one.
        index_map: (3, 4), output index to index (slice, row, column) of the tokens' grid.
        out: (z, y, x, channels) float16, with a number of channels that is a multiple of 8.
        offsets: (encoded, stride) float32, or None for 0.
        samples: Points averaged for each output voxel, per axis, as the antialiasing filter.
        factor: Factor on the tokens.
        first_channel: The first channel that is written; as many follow as a token has numbers and
            as there is room for.
        threads: CPU threads; 0 takes all.

    Returns:
        `out`.
    """
    check_together(tokens=tokens, places=places, offsets=offsets, out=out)
    args = _structs.TokensArgs()
    args.tokens = pointer(tokens, np.float32, "tokens", (None, size[0] * size[1], None))
    args.encoded, _, args.stride = tokens.shape
    args.places = pointer(places, np.float32, "places", (None, 2))
    args.shape = int3((len(places), *size), "shape of the tokens' grid")
    if offsets is not None:
        shape = (args.encoded, args.stride)
        args.offsets = pointer(offsets, np.float32, "offsets", shape)
    args.map = doubles(index_map, 12, "index_map")
    args.samples = int3(samples, "samples")
    args.factor = factor
    args.out = pointer(out, np.float16, "out", FEATURES)
    *shape_of_out, args.channels = out.shape
    args.out_shape = int3(shape_of_out, "out.shape")
    args.first_channel = first_channel
    _library.call("dr_tokens_sample", Call(tokens, threads).execution, args)
    return out


def cover_tissue(
    image: Array,
    out_shape: Sequence[int],
    index_map: ArrayLike,
    *,
    above: float,
    box: tuple[Sequence[int], Sequence[int]],
    samples: Sequence[int] = (1, 1, 1),
    threads: int = 0,
) -> Array:
    """Find the voxels of another grid where linear interpolation reads tissue.

    Args:
        image: (z, y, x) float32.
        out_shape: Shape of the result.
        index_map: (3, 4), output index to input index.
        above: A voxel of the image is tissue if it is larger than this.
        box: First and last voxel along each axis of the part of the image that counts.
        samples: Points read for each output voxel, per axis.
        threads: CPU threads; 0 takes all.

    Returns:
        (out_shape) float32: 1 where a voxel of tissue is read, otherwise 0.
    """
    out = array_module(image).empty(tuple(out_shape), np.float32)
    args = _structs.TissueArgs()
    args.image = pointer(image, np.float32, "image", VOLUME)
    args.shape = int3(image.shape, "image.shape")
    args.first, args.last = (int3(corner, "box") for corner in box)
    args.map = doubles(index_map, 12, "index_map")
    args.samples = int3(samples, "samples")
    args.above = above
    args.out = pointer(out, np.float32, "out", VOLUME)
    args.out_shape = int3(out_shape, "out_shape")
    _library.call("dr_tissue_cover", Call(image, threads).execution, args)
    return out
