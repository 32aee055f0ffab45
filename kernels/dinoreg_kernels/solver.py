"""The solver: two feature volumes in, a displacement field out."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from . import _library, _structs
from ._arrays import (
    FIELD,
    VOLUME,
    Array,
    Call,
    Progress,
    array_module,
    check_together,
    doubles,
    host_numbers,
    int3,
    is_device_array,
    pointer,
    queued,
    workspace,
)
from ._errors import KernelError
from .options import FeatureSimilarity, SolverOptions


@dataclass(frozen=True, eq=False)
class SearchFeatures:
    """Features that one level of the discrete search compares, on the grids of `solve`.

    Attributes:
        fixed: (z, y, x, stride) float16, with a stride that is a multiple of 8.
        moving: (z', y', x', stride) float16.
        fixed_weight: (z, y, x) float32, 0..1.
        moving_weight: (z', y', x') float32, 0..1; nothing matches where it is 0.
        channels: Number of stored channels that are used, the first ones; None uses all.
    """

    fixed: Array
    moving: Array
    fixed_weight: Array
    moving_weight: Array
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """Result of `solve`.

    On a device, `solve` does not wait for its work; the first access to one of the three
    properties does.

    Attributes:
        field: (z, y, x, 3) float32, displacement in mm along the fixed grid's axes.
        feature_distance: (3,) float64, the values of the three properties.
        inverse: The exponential of the negative velocity, like `field`; None without squarings.
        spread: (z, y, x, 3) float32, standard deviation in mm along each axis of the shifts that
            match nearly as well as the best one of the discrete search; None unless asked for.
        done: CUDA event recorded behind the solve, so that the distances can be read from any
            stream; None for arrays on the host.
    """

    field: Array
    feature_distance: Array
    inverse: Array | None = None
    spread: Array | None = None
    done: Any = None

    @functools.cached_property
    def _numbers(self) -> list[float]:
        if self.done is not None:
            self.done.synchronize()
        return host_numbers(self.feature_distance)

    @property
    def feature_distance_before(self) -> float:
        """Weighted mean of the squared feature difference without displacement."""
        return self._numbers[0]

    @property
    def feature_distance_after(self) -> float:
        """Weighted mean of the squared feature difference with the displacement."""
        return self._numbers[1]

    @property
    def overlap(self) -> float:
        """Share of the fixed weight whose match has moving weight."""
        return self._numbers[2]


def _feature_similarity(name: str) -> int:
    """Return the number of a similarity in `dr_features`."""
    names = get_args(FeatureSimilarity)
    if name not in names:
        raise KernelError(f"feature_similarity is {name!r}; wanted one of {', '.join(names)}")
    return names.index(name)


def _sizes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    stride: int,
    channels: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
) -> _structs.SolverArgs:
    """Set all arguments but the arrays."""
    args = _structs.SolverArgs(stride=stride, channels=channels)
    args.fixed_shape = int3(fixed_shape, "fixed_shape")
    args.moving_shape = int3(moving_shape, "moving_shape")
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    args.search_factor = int3(options.search_factor, "search_factor")
    args.search_radius = int3(options.search_radius, "search_radius")
    args.coupling_rounds = len(options.coupling)
    args.levels = len(options.iterations)
    args.feature_similarity = _feature_similarity(options.feature_similarity)
    args.iterations = (ctypes.c_int32 * max(1, len(options.iterations)))(*options.iterations)
    for name in ("search_levels", "kept_costs_mb", "consistency_rounds", "squarings"):
        setattr(args, name, getattr(options, name))
    for name, kind, *_ in _structs.SolverArgs._fields_:
        if kind is ctypes.c_double:  # every single double is an option
            setattr(args, name, getattr(options, name))
    return args


_SIDES = ("fixed", "moving")
_ARRAYS = ("fixed", "moving", "fixed_weight", "moving_weight")
#: (z, y, x) of the fixed and of the moving grid, None for any length.
_Grids = tuple[Sequence[int | None], Sequence[int | None]]


def _pair(features: SearchFeatures, of: str, grids: _Grids) -> _structs.FeaturePair:
    """Check features and return their addresses; `of` precedes the arrays' names in messages."""
    for side, grid in zip(_SIDES, grids, strict=True):
        pointer(getattr(features, side), np.float16, f"{of}{side}", (*grid, None))
    stride = int(features.fixed.shape[-1])
    pair = _structs.FeaturePair(stride=stride, channels=features.channels or stride)
    for side in _SIDES:
        volume, weight = getattr(features, side), f"{side}_weight"
        shape = volume.shape[:3]
        setattr(pair, side, pointer(volume, np.float16, f"{of}{side}", (*shape, stride)))
        values = getattr(features, weight)
        setattr(pair, weight, pointer(values, np.float32, f"{of}{weight}", shape))
    return pair


def _levels(pairs: Sequence[_structs.FeaturePair], options: SolverOptions) -> Any:
    """Return the features of all search levels as a C array."""
    if len(pairs) != options.search_levels:
        raise KernelError(
            f"search has features for {len(pairs)} levels; wanted them for"
            f" search_levels = {options.search_levels}"
        )
    return (_structs.FeaturePair * len(pairs))(*pairs)


def _arrays(features: SearchFeatures, of: str) -> dict[str, Array]:
    return {f"{of}{name}": getattr(features, name) for name in _ARRAYS}


def solver_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
    *,
    search_strides: Sequence[int] | None = None,
    on_gpu: bool = False,
) -> int:
    """Predict the bytes that `solve` takes in addition to its arrays.

    Args:
        fixed_shape: z, y, x.
        moving_shape: z, y, x.
        stride: Stored channels of the features.
        spacing_mm: Spacing of the grids, z, y, x.
        options: See `SolverOptions`.
        search_strides: Stored channels of each level's `SearchFeatures`; None without them.
        on_gpu: Whether the arrays live on a CUDA device, where `solve` takes more than it needs.

    Returns:
        Bytes.

    Raises:
        KernelError: `solve` would refuse the sizes.
    """
    args = _sizes(fixed_shape, moving_shape, stride, stride, spacing_mm, options)
    if search_strides is not None:
        args.search_features = _levels(
            [_structs.FeaturePair(stride=n, channels=n) for n in search_strides], options
        )
    needed = _library.workspace_bytes("dr_solver_workspace_bytes", args)
    return needed + on_gpu * _copies_bytes((fixed_shape, moving_shape), stride, options)


def _copies_bytes(shapes: Sequence[Sequence[int]], stride: int, options: SolverOptions) -> int:
    """Return the bytes of copies of the features in blocks of channels, each block an image.

    With room for them, a GPU loads the features of neighbouring voxels from neighbouring addresses.
    Like the costs that the search keeps, they cost memory and save time.
    """
    if stride <= 8 or options.kept_costs_mb == 0:  # one block, or memory is short
        return 0
    return sum(-(-2 * stride * math.prod(shape) // 256) * 256 for shape in shapes)


def solve(
    fixed: Array,
    moving: Array,
    fixed_weight: Array,
    moving_weight: Array,
    *,
    options: SolverOptions,
    spacing_mm: Sequence[float],
    moving_offset: Sequence[int] = (0, 0, 0),
    channels: int | None = None,
    images: tuple[Array, Array] | None = None,
    search: Sequence[SearchFeatures] | None = None,
    spread: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Find the displacement u with ``fixed(p) ~ moving(p + u(p))``.

    Args:
        fixed: (z, y, x, stride) float16, with a stride that is a multiple of 8.
        moving: (z', y', x', stride) float16 on a grid with the same axes and spacing.
        fixed_weight: (z, y, x) float32, 0..1.
        moving_weight: (z', y', x') float32, 0..1; nothing matches where it is 0.
        options: See `SolverOptions`.
        spacing_mm: Spacing of the grids, z, y, x.
        moving_offset: Index of the moving grid's first voxel on the fixed grid.
        channels: Number of stored channels that are used, the first ones; None uses all.
        images: Both images on the two grids, float32, for `SolverOptions.correlation_weight`.
        search: Features that each level of the search compares, on the same grids; None compares
            those above.
        spread: Whether to measure how well the search determined each match, see `Solution`.
        threads: CPU threads; 0 takes all.
        progress: Called with ("search" | "refine", fraction). An exception stops the solve and is
            raised again.

    Returns:
        The displacement and the feature distances before and after it.

    Raises:
        KernelError: The arrays or options cannot be used.
    """
    fixed_image, moving_image = images or (None, None)
    features = SearchFeatures(fixed, moving, fixed_weight, moving_weight, channels)
    levels = {f"search[{i}].": level for i, level in enumerate(search or ())}
    check_together(
        **_arrays(features, ""),
        **{k: a for of, level in levels.items() for k, a in _arrays(level, of).items()},
        fixed_image=fixed_image,
        moving_image=moving_image,
    )
    pair = _pair(features, "", (VOLUME, VOLUME))
    grids = fixed.shape[:3], moving.shape[:3]
    xp = array_module(fixed)
    args = _sizes(*grids, pair.stride, pair.channels, spacing_mm, options)
    for name in _ARRAYS:
        setattr(args, name, getattr(pair, name))
    if search is not None:
        pairs = [_pair(level, of, grids) for of, level in levels.items()]
        args.search_features = _levels(pairs, options)
    if images is not None:
        args.fixed_image = pointer(fixed_image, np.float32, "fixed_image", fixed.shape[:3])
        args.moving_image = pointer(moving_image, np.float32, "moving_image", moving.shape[:3])
    args.moving_offset = int3(moving_offset, "moving_offset")
    coupling = (ctypes.c_double * max(1, len(options.coupling)))(*options.coupling)
    args.coupling = ctypes.cast(coupling, ctypes.POINTER(ctypes.c_double))
    out = xp.empty((*fixed.shape[:3], 3), np.float32)
    args.field = pointer(out, np.float32, "field", FIELD)
    inverse = xp.empty_like(out) if options.squarings > 0 else None
    if inverse is not None:
        args.inverse = pointer(inverse, np.float32, "inverse", FIELD)
    deviation = xp.zeros_like(out) if spread else None
    if deviation is not None:
        args.spread = pointer(deviation, np.float32, "spread", FIELD)
    distance = xp.empty(3, np.float64)
    args.feature_distance = pointer(distance, np.float64, "feature_distance", (3,))
    call, name, useful = Call(fixed, threads, progress), "dr_solver_workspace_bytes", 0
    if is_device_array(fixed):
        useful = _library.workspace_bytes(name, args) + _copies_bytes(grids, pair.stride, options)
    with workspace(name, args, xp, useful), call.reraising():
        _library.call("dr_solver_run", call.execution, args)
    return Solution(out, distance, inverse, deviation, queued(out))
