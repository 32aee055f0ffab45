"""Features on a coarser grid, and among those of a joined set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import _library, _structs
from ._arrays import FEATURES, Array, Call, array_module, check_together, int3, pointer


def pool_features(
    features: Array,
    weight: Array,
    factor: Sequence[int],
    *,
    offset: Sequence[int] = (0, 0, 0),
    threads: int = 0,
) -> tuple[Array, Array]:
    """Average features with their weights over blocks of `factor` voxels.

    Args:
        features: (z, y, x, channels) float16, with a number of channels that is a multiple of 8.
        weight: (z, y, x) float32.
        factor: Voxels per block along each axis; the last block may hold fewer.
        offset: Voxels that are missing at the start of the first block along each axis, less than
            `factor`.
        threads: CPU threads; 0 takes all.

    Returns:
        The averaged features, (Z, Y, X, channels) float16 with Z = ceil((z + offset) / factor) and
        so on, 0 where nothing has weight; and the mean weight of each block, (Z, Y, X) float32.
    """
    check_together(features=features, weight=weight)
    xp = array_module(features)
    args = _structs.PoolArgs()
    args.features = pointer(features, np.float16, "features", FEATURES)
    *shape, channels = features.shape
    args.weight = pointer(weight, np.float32, "weight", tuple(shape))
    args.shape, args.channels = int3(shape, "shape"), channels
    args.factor, args.offset = int3(factor, "factor"), int3(offset, "offset")
    axes = zip(shape, factor, offset, strict=True)
    blocks = tuple(-(-(n + o) // max(1, f)) for n, f, o in axes)
    out = xp.empty((*blocks, channels), np.float16)
    out_weight = xp.empty(blocks, np.float32)
    args.out = pointer(out, np.float16, "out", FEATURES)
    args.out_weight = pointer(out_weight, np.float32, "out_weight", blocks)
    _library.call("dr_features_pool", Call(features, threads).execution, args)
    return out, out_weight


def join_channels(
    features: Array,
    used: int,
    out: Array,
    *,
    first_channel: int = 0,
    factor: float = 1.0,
    threads: int = 0,
) -> Array:
    """Copy channels to some of those of joined features, times a factor.

    Args:
        features: (z, y, x, stride) float16, with a stride that is a multiple of 8.
        used: Number of leading channels that are copied.
        out: (z, y, x, channels) float16, with a number of channels that is a multiple of 8. Up to
            the next multiple of 8, what follows the copied channels becomes 0.
        first_channel: The first channel of `out` that is written.
        factor: Factor on the features.
        threads: CPU threads; 0 takes all.

    Returns:
        `out`.
    """
    check_together(features=features, out=out)
    args = _structs.JoinArgs()
    args.features = pointer(features, np.float16, "features", FEATURES)
    *shape, args.stride = features.shape
    args.out = pointer(out, np.float16, "out", (*shape, None))
    args.shape, args.channels = int3(shape, "shape"), out.shape[-1]
    args.used, args.first_channel, args.factor = used, first_channel, factor
    _library.call("dr_features_join", Call(features, threads).execution, args)
    return out
