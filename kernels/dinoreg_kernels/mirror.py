"""The mirror test: searches in the moving image and in mirror images."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _library
from . import _measure_structs as structs
from ._arrays import Array, Call, array_module, check_together, doubles, int3, int32s
from ._measure_structs import MirrorSearch, MirrorTest
from .measures import WeighedImages, measured
from .options import SolverOptions

__all__ = ["MirrorSearch", "MirrorTest", "compare_mirrored", "mirror_workspace_bytes"]


def compare_mirrored(
    images: WeighedImages,
    *,
    options: SolverOptions,
    order: ArrayLike,
    sides: int,
    factor: int,
    channels: int | None = None,
    threads: int = 0,
) -> Array:
    """Search in the moving image, and in mirror images of both, on a coarser grid.

    Args:
        images: Both images.
        options: The first level of their search is used, with `SolverOptions.search_factor` and
            `SolverOptions.search_radius` on the coarser grid, and without consistency.
        order: (3, n), channel c of an image mirrored along z, y, x is channel ``order[axis][c]``.
        sides: The axis from left to right.
        factor: Voxels per voxel of the coarser grid along each axis.
        channels: Number of stored channels that are used, the first ones; None uses all.
        threads: CPU threads; 0 takes all.

    Returns:
        `MirrorTest` as float64.

    Raises:
        KernelError: The arrays or numbers cannot be used.
    """
    check_together(**images.arrays())
    args = structs.MirrorArgs(sides=sides)
    images.fill(args)
    stride = int(images.fixed.shape[-1])
    kept = _fill_search(args, options, factor, channels or stride)
    orders = np.atleast_2d(np.asarray(order, dtype=np.int64))
    args.ordered = orders.shape[1]
    flat = int32s(orders.ravel().tolist(), 3 * args.ordered, "order")
    args.order = ctypes.cast(flat, ctypes.POINTER(ctypes.c_int32))
    call, xp = Call(images.fixed, threads), array_module(images.fixed)
    out = measured("dr_mirror_compare", args, MirrorTest, call, xp)
    del kept, flat  # the library reads them during the call
    return out


def mirror_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    moving_offset: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
    factor: int,
) -> int:
    """Predict the bytes that `compare_mirrored` needs in addition to its arrays."""
    args = structs.MirrorArgs(stride=stride)
    args.fixed_shape = int3(fixed_shape, "fixed_shape")
    args.moving_shape = int3(moving_shape, "moving_shape")
    args.moving_offset = int3(moving_offset, "moving_offset")
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    _fill_search(args, options, factor, stride)
    return _library.workspace_bytes("dr_mirror_workspace_bytes", args)


def _fill_search(args: Any, options: SolverOptions, factor: int, channels: int) -> Any:
    """Set the fields of the search, and return what must live until the call."""
    args.factor, args.channels = factor, channels
    args.search_factor = int3(options.search_factor, "search_factor")
    args.search_radius = int3(options.search_radius, "search_radius")
    args.cost_smoothing_mm = options.cost_smoothing_mm
    args.field_smoothing_mm = options.field_smoothing_mm
    args.smoothing_mm = options.smoothing_mm
    args.coupling_rounds, args.kept_costs_mb = len(options.coupling), options.kept_costs_mb
    coupling = (ctypes.c_double * max(1, len(options.coupling)))(*options.coupling)
    args.coupling = ctypes.cast(coupling, ctypes.POINTER(ctypes.c_double))
    return coupling
