"""The solver: two feature volumes in, a displacement field out."""

from __future__ import annotations

import ctypes
import functools
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
    pointer,
    queued,
)
from ._errors import KernelError
from .options import FeatureSimilarity, SolverOptions


@dataclass(frozen=True, eq=False)
class SearchFeatures:
    """What one level of the discrete search compares, on the grids of `solve`.

    Attributes:
        fixed: (z, y, x, stride) float16, stride a multiple of 8, of any number of channels.
        moving: (z', y', x', stride) float16.
        fixed_weight: (z, y, x) float32, 0..1.
        moving_weight: (z', y', x') float32, 0..1; where it is 0 nothing matches.
        channels: how many of the stored channels are used, the first ones (default all).
    """

    fixed: Array
    moving: Array
    fixed_weight: Array
    moving_weight: Array
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` found.

    Attributes:
        field: (z, y, x, 3) float32, mm along the fixed grid's axes.
        feature_distance: (3,) float64, as the three properties: on a device the first of them
            that is asked for waits for the solve, which itself does not.
        inverse: as `field`, the exponential of the negative velocity; only with squarings.
        spread: (z, y, x, 3) float32, mm: standard deviation along each axis of the shifts that
            match nearly as well as the best of the discrete search; None unless asked for.
        done: CUDA event behind the solve, whichever stream the similarity is read on; None for
            arrays on the host.
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
        """Mean weighted squared feature difference without displacement."""
        return self._numbers[0]

    @property
    def feature_distance_after(self) -> float:
        """The same with it."""
        return self._numbers[1]

    @property
    def overlap(self) -> float:
        """Share of the fixed weight whose match has moving weight."""
        return self._numbers[2]


def _feature_similarity(name: str) -> int:
    """The number in `dr_features`."""
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
    args = _structs.SolverArgs()
    args.fixed_shape = int3(fixed_shape, "fixed_shape")
    args.moving_shape = int3(moving_shape, "moving_shape")
    args.stride = stride
    args.channels = channels
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    args.search_factor = int3(options.search_factor, "search_factor")
    args.search_radius = int3(options.search_radius, "search_radius")
    args.search_levels = options.search_levels
    args.coupling_rounds = len(options.coupling)
    args.kept_costs_mb = options.kept_costs_mb
    args.consistency_rounds = options.consistency_rounds
    args.levels = len(options.iterations)
    args.squarings = options.squarings
    args.feature_similarity = _feature_similarity(options.feature_similarity)
    args.iterations = (ctypes.c_int32 * max(1, len(options.iterations)))(*options.iterations)
    for name in (
        "search_trust_cost",
        "cost_smoothing_mm",
        "field_smoothing_mm",
        "search_edges",
        "learning_rate_mm",
        "adam_epsilon",
        "smoothing_mm",
        "smoothness",
        "feature_weight",
        "trust_cost",
        "correlation_weight",
        "correlation_window_mm",
        "correlation_noise",
        "fold_penalty",
        "fold_margin",
    ):
        setattr(args, name, getattr(options, name))
    return args


_SIDES = ("fixed", "moving")
_ARRAYS = ("fixed", "moving", "fixed_weight", "moving_weight")
#: (z, y, x) of the fixed and of the moving grid, None for any length.
_Grids = tuple[Sequence[int | None], Sequence[int | None]]


def _pair(features: SearchFeatures, of: str, grids: _Grids) -> _structs.FeaturePair:
    """Addresses and channels; `of` precedes the arrays' names in messages."""
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
    """What the levels of the search compare, as the library takes it."""
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
) -> int:
    """Bytes that `solve` takes beside its arrays, for a prediction before any work.

    Args:
        fixed_shape: z, y, x.
        moving_shape: z, y, x.
        stride: stored channels of the features.
        spacing_mm: of the lattice, z, y, x.
        options: see `SolverOptions`.
        search_strides: stored channels of the `SearchFeatures` of each level; None without.
    """
    args = _sizes(fixed_shape, moving_shape, stride, stride, spacing_mm, options)
    if search_strides is not None:
        args.search_features = _levels(
            [_structs.FeaturePair(stride=n, channels=n) for n in search_strides], options
        )
    return _library.workspace_bytes("dr_solver_workspace_bytes", args)


def solve(
    fixed: Array,
    moving: Array,
    fixed_weight: Array,
    moving_weight: Array,
    *,
    images: tuple[Array, Array] | None = None,
    spacing_mm: Sequence[float],
    moving_offset: Sequence[int] = (0, 0, 0),
    channels: int | None = None,
    search: Sequence[SearchFeatures] | None = None,
    options: SolverOptions | None = None,
    spread: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Find u with ``fixed(p) ~ moving(p + u(p))``.

    Args:
        fixed: (z, y, x, stride) float16, stride a multiple of 8.
        moving: (z', y', x', stride) float16 on the same lattice.
        fixed_weight: (z, y, x) float32, 0..1.
        moving_weight: (z', y', x') float32, 0..1; where it is 0 nothing matches.
        images: both images on the two lattices, float32, for `correlation_weight`.
        spacing_mm: of the lattice, z, y, x.
        moving_offset: index of the moving grid's first voxel on the fixed grid.
        channels: how many of the stored channels are used, the first ones (default all).
        search: what each level of the search compares instead, on the same grids.
        options: see `SolverOptions`.
        spread: also tell how well the search determined each voxel's match, see `Solution`.
        threads: CPU threads; 0 takes all.
        progress: called with ("search" | "refine", fraction); an exception stops the solve.

    Raises:
        KernelError: arrays or options that cannot be used.
    """
    options = options or SolverOptions()
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
    deviation = xp.zeros((*fixed.shape[:3], 3), np.float32) if spread else None
    if deviation is not None:
        args.spread = pointer(deviation, np.float32, "spread", FIELD)
    distance = xp.empty(3, np.float64)
    args.feature_distance = pointer(distance, np.float64, "feature_distance", (3,))
    size = _library.workspace_bytes("dr_solver_workspace_bytes", args)
    workspace = xp.empty(size, np.uint8)
    args.workspace = pointer(workspace, np.uint8, "workspace", (None,))
    args.workspace_bytes = size
    call = Call(fixed, threads, progress)
    with call.reraising():
        _library.call("dr_solver_run", call.execution, args)
    return Solution(out, distance, inverse, deviation, queued(out))
