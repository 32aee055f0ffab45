"""The solver: two feature volumes in, a displacement field out."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from . import _library, _structs
from ._arrays import (
    FEATURES,
    FIELD,
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

FeatureSimilarity = Literal["mse", "cosine", "lncc"]


@dataclass(frozen=True)
class SolverOptions:
    """Parameters of `solve`; lengths in mm along the grid's axes, sigma for smoothing widths.

    Attributes:
        search_factor: voxels per cell of the discrete search, z, y, x.
        search_radius: reach of the search in cells; all 0 skips it.
        search_levels: every further one halves the cells, to whole voxels, and searches two of them
            around what was found; smoothing widths shrink with the cells.
        cost_smoothing_mm: of the search's costs.
        field_smoothing_mm: of the search's displacements between coupled rounds.
        coupling: weights of the coupled-convex rounds.
        kept_costs_mb: where the costs of all shifts take no more (MiB), they are kept in memory for
            those rounds, which else compute them again: the same result, slower.
        consistency_rounds: of inverse consistency; 0 searches in one direction only.
        iterations: of Adam, one number for each level from coarse to fine; every level halves the
            voxel size of the one before and the last works on the grid itself.
        learning_rate_mm: of Adam on the last level; coarser ones use as much more.
        adam_epsilon: gradients smaller than this share of those with the images one voxel off make
            shorter steps, so that what matches stays; with 0 all steps are as long.
        smoothing_mm: the displacement is the smoothed variable that Adam changes; of the last
            level, as the learning rate.
        smoothness: weight of mean |du/dp|^2 (lambda).
        feature_weight: of the difference of features.
        feature_similarity: what that difference is: "mse", |M - F|^2; "cosine", s (1 - cos of the
            angle between F and M); "lncc", s (1 - rho), rho the local correlation of each channel,
            its mean over channels. s is twice the mean of |F|^2, so that vectors of this length
            cost the same by "mse" and "cosine".
        trust_cost: a voxel whose features differ by v costs v / (1 + v / trust_cost): what
            disagrees pulls less; 0 trusts all alike, which "lncc" must.
        correlation_weight: of 1 - rho^2, rho the local correlation of the images; 0 needs no
            images.
        correlation_window_mm: sigma of its windows, and those of "lncc", on the last level;
            coarser ones use as much more.
        correlation_noise: in units of the images, or of the channels' root mean square; structure
            weaker than this fades out.
        fold_penalty: weight of mean max(0, fold_margin - det J)^2 at the last iteration; it grows
            from 0 with the square of the share of iterations done.
        fold_margin: det J below it is penalised.
        squarings: 0 refines a displacement; K > 0 a stationary velocity, whose exponential by K
            squarings is the displacement and whose negative gives the inverse.
    """

    search_factor: tuple[int, int, int] = (3, 3, 3)
    search_radius: tuple[int, int, int] = (4, 4, 4)
    search_levels: int = 1
    cost_smoothing_mm: float = 14.0
    field_smoothing_mm: float = 10.0
    coupling: tuple[float, ...] = field(default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0))
    kept_costs_mb: int = 256
    consistency_rounds: int = 15
    iterations: tuple[int, ...] = (80,)
    learning_rate_mm: float = 4.0
    adam_epsilon: float = 0.0
    smoothing_mm: float = 5.66
    smoothness: float = 1.25
    feature_weight: float = 1.0
    feature_similarity: FeatureSimilarity = "mse"
    trust_cost: float = 0.0
    correlation_weight: float = 0.0
    correlation_window_mm: float = 4.0
    correlation_noise: float = 0.1
    fold_penalty: float = 1.0
    fold_margin: float = 0.1
    squarings: int = 0


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
        "cost_smoothing_mm",
        "field_smoothing_mm",
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


def solver_workspace_bytes(
    fixed_shape: Sequence[int],
    moving_shape: Sequence[int],
    stride: int,
    spacing_mm: Sequence[float],
    options: SolverOptions,
) -> int:
    """Bytes that `solve` takes beside its arrays, for a prediction before any work."""
    args = _sizes(fixed_shape, moving_shape, stride, stride, spacing_mm, options)
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
        options: see `SolverOptions`.
        spread: also tell how well the search determined each voxel's match, see `Solution`.
        threads: CPU threads; 0 takes all.
        progress: called with ("search" | "refine", fraction); an exception stops the solve.

    Raises:
        KernelError: arrays or options that cannot be used.
    """
    options = options or SolverOptions()
    fixed_image, moving_image = images or (None, None)
    check_together(
        fixed=fixed,
        moving=moving,
        fixed_weight=fixed_weight,
        moving_weight=moving_weight,
        fixed_image=fixed_image,
        moving_image=moving_image,
    )
    addresses = [
        pointer(a, np.float16, name, FEATURES) for name, a in (("fixed", fixed), ("moving", moving))
    ]
    xp = array_module(fixed)
    stride = int(fixed.shape[-1])
    args = _sizes(
        fixed.shape[:3], moving.shape[:3], stride, channels or stride, spacing_mm, options
    )
    args.fixed = addresses[0]
    args.fixed_weight = pointer(fixed_weight, np.float32, "fixed_weight", fixed.shape[:3])
    args.moving = pointer(moving, np.float16, "moving", (*moving.shape[:3], stride))
    args.moving_weight = pointer(moving_weight, np.float32, "moving_weight", moving.shape[:3])
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
