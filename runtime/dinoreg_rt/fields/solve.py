"""From features to displacement fields: calls of the solver and conversion of its results.

Inside the solver a displacement is in millimetres along the control grid's own axes, relative to
the initial alignment. Here it becomes vectors in LPS mm that hold the whole mapping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

import dinoreg_kernels
from dinoreg_kernels import Progress, SearchFeatures, Solution, SolverOptions

from ..config.decided import DecidedConfig
from ..config.feature_parameters import FeatureSet
from ..console.interruption import deferred_signals
from ..device.choice import Device
from ..features.mind import FeaturePair, level_sets
from ..geometry import (
    compose_affines,
    index_map,
    index_to_lps,
    invert_affine,
    kernel_affine,
    lps_to_index,
)
from ..images.grids import WorkingGrids
from ..types import AffineTransform, Array, DisplacementField, FloatArray, Geometry

#: Squarings of the velocity: displacements of 64 control voxels begin with steps of one.
_SQUARINGS = 6
#: Largest miss of a point that still counts as inverted.
INVERSE_MISS_MM = 0.1


def solver_options(config: DecidedConfig, grids: WorkingGrids) -> SolverOptions:
    """Return the part of the configuration that concerns the solver, on these grids."""
    return SolverOptions(
        search_factor=grids.search_factor_zyx,
        search_radius=grids.search_radius_zyx,
        search_levels=grids.search_levels,
        search_trust_cost=config.search_trust_cost,
        cost_smoothing_mm=config.cost_smoothing * config.search_spacing_mm,
        field_smoothing_mm=config.field_smoothing * config.search_spacing_mm,
        coupling=config.coupling,
        kept_costs_mb=config.search_memory_mb,
        consistency_rounds=config.inverse_consistency_rounds,
        iterations=config.iterations,
        learning_rate_mm=config.learning_rate_mm,
        adam_epsilon=config.adam_epsilon,
        smoothing_mm=config.smoothing_mm,
        smoothness=config.smoothness,
        fold_penalty=config.fold_penalty,
        feature_weight=config.feature_weight,
        feature_similarity=config.feature_similarity,
        trust_cost=config.trust_cost,
        correlation_weight=config.correlation_weight,
        correlation_window_mm=config.correlation_window_mm,
        correlation_noise=config.correlation_noise,
        fold_margin=config.fold_margin,
        squarings=_SQUARINGS if config.transform == "velocity" else 0,
    )


def without_steps(options: SolverOptions) -> SolverOptions:
    """Return options that only compare the images where they are: the field is zero."""
    return replace(
        options,
        search_radius=(0, 0, 0),
        search_levels=1,
        consistency_rounds=0,
        iterations=(0,),
        squarings=0,
    )


def solver_workspace_bytes(
    config: DecidedConfig,
    grids: WorkingGrids,
    moving: Geometry,
    strides: Mapping[FeatureSet, int],
    *,
    on_gpu: bool,
) -> int:
    """Return the bytes that a solve takes besides its arrays.

    `moving` is the control grid of the moving image; `strides` holds the stored channels of each
    feature set.
    """
    _, refinement = config.stage_features
    options = solver_options(config, grids)
    return dinoreg_kernels.solver_workspace_bytes(
        grids.control.shape_zyx,
        moving.shape_zyx,
        strides[refinement],
        grids.control.spacing_mm[::-1],
        options if config.linear_transform is None else without_steps(options),
        search_strides=[strides[name] for name in level_sets(config, grids.search_levels)],
        on_gpu=on_gpu,
    )


def solution_fields(config: DecidedConfig) -> int:
    """Count the vector fields of a solution, including the optional ones."""
    return 1 + (config.transform == "velocity") + config.confidence


def solve(  # noqa: PLR0913 - the arrays of one call, the last by name
    features: FeaturePair,
    weights: tuple[Array, Array],
    grids: WorkingGrids,
    moving_offset_zyx: tuple[int, int, int],
    options: SolverOptions,
    device: Device,
    progress: Progress | None = None,
    *,
    images: tuple[Array, Array] | None = None,
    search: Sequence[tuple[FeaturePair, tuple[Array, Array]]] | None = None,
    spread: bool = False,
) -> Solution:
    """Call libdinoreg once; see `dinoreg_kernels.solve`. Ctrl-C and SIGTERM stop it.

    `search` holds features and weights for each level of the search; by default they are those of
    the refinement. `spread` asks for the standard deviation of the search.
    """
    levels = None
    if search is not None:
        levels = [SearchFeatures(f.fixed, f.moving, *w, channels=f.channels) for f, w in search]
    with deferred_signals() as deliver:

        def report(stage: str, fraction: float) -> None:
            deliver()
            if progress is not None:
                progress(stage, fraction)

        return dinoreg_kernels.solve(
            features.fixed,
            features.moving,
            *weights,
            images=images,
            spacing_mm=grids.control.spacing_mm[::-1],
            moving_offset=moving_offset_zyx,
            channels=features.channels,
            search=levels,
            options=options,
            spread=spread,
            threads=device.threads,
            progress=report,
        )


def _axis_to_lps(grid: Geometry) -> FloatArray:
    """Return the matrix from mm along the grid's axes (z, y, x) to LPS (x, y, z)."""
    return np.ascontiguousarray(grid.direction[:, ::-1])


def _by_index(affine: AffineTransform) -> FloatArray:
    """Return a map of indices (x, y, z) as a (3, 4) matrix over (z, y, x, 1)."""
    return np.column_stack([affine.matrix[:, ::-1], affine.translation_mm])


def _displacement(
    grid: Geometry,
    affine: AffineTransform,
    field: Array,
    to_field: AffineTransform,
    matrix: FloatArray,
    device: Device,
) -> DisplacementField:
    """Return ``affine(index) + matrix @ field(to_field(index))`` as a displacement on `grid`."""
    vectors = dinoreg_kernels.map_field(
        grid.shape_zyx,
        _by_index(affine) - _by_index(index_to_lps(grid)),
        field,
        to_field=kernel_affine(to_field),
        matrix=matrix,
        threads=device.threads,
    )
    return DisplacementField(vectors, grid)


def affine_field(affine: AffineTransform, control: Geometry, device: Device) -> Array:
    """Return ``affine(p) - p`` as a field of the solver, (d, h, w, 3) mm along z, y, x."""
    there = compose_affines(affine, index_to_lps(control))
    change = _by_index(there) - _by_index(index_to_lps(control))
    return dinoreg_kernels.map_field(
        control.shape_zyx,
        control.direction.T[::-1] @ change,
        device.xp.zeros((1, 1, 1, 3), np.float32),
        to_field=np.zeros((3, 4)),
        matrix=np.eye(3),
        threads=device.threads,
    )


def whole_displacement(
    field: Array, control: Geometry, grid: Geometry, initial: AffineTransform, device: Device
) -> DisplacementField:
    """Return the whole mapping from fixed to moving points on `grid`, ``initial(p + u(p)) - p``.

    u is `field` (d, h, w, 3) on `control`, as the solver returned it; `initial` maps fixed points
    to moving points.
    """
    there = compose_affines(initial, index_to_lps(grid))
    matrix = initial.matrix @ _axis_to_lps(control)
    return _displacement(grid, there, field, index_map(grid, control), matrix, device)


def deformable_displacement(field: Array, control: Geometry, device: Device) -> DisplacementField:
    """Return the solver's `field` (d, h, w, 3) as displacements d in LPS mm on the control grid.

    The whole mapping is ``initial(p + d(p))``, with d linear between the control voxels.
    """
    vectors = dinoreg_kernels.map_field(
        control.shape_zyx,
        np.zeros((3, 4)),
        field,
        matrix=_axis_to_lps(control),
        threads=device.threads,
    )
    return DisplacementField(vectors, control)


def inverse_displacement(
    field: Array, control: Geometry, grid: Geometry, initial: AffineTransform, device: Device
) -> tuple[DisplacementField, Array]:
    """Return the map from moving to fixed points on the moving `grid`, and the misses in mm.

    Solves ``p + u(p) = initial^-1(q)`` for every voxel centre q. Misses are negative where p lies
    outside the control grid; a miss above `INVERSE_MISS_MM` counts.
    """
    back = compose_affines(invert_affine(initial), index_to_lps(grid))
    to_control = compose_affines(lps_to_index(control), back)
    vectors, residual = dinoreg_kernels.invert(
        field,
        grid.shape_zyx,
        spacing_mm=control.spacing_mm[::-1],
        matrix=np.diag(1.0 / np.asarray(control.spacing_mm[::-1])),
        target=kernel_affine(to_control),
        from_point=_by_index(index_to_lps(control)),
        from_index=-_by_index(index_to_lps(grid)),
        threads=device.threads,
    )
    return DisplacementField(vectors, grid), residual


def negative_displacement(
    inverse: Array, control: Geometry, grid: Geometry, initial: AffineTransform, device: Device
) -> DisplacementField:
    """Return the map from moving to fixed points on the moving `grid`, for a velocity field.

    ``p(q) - q`` with ``p = r + v(r), r = initial^-1(q)``: v, the exponential of the negative
    velocity, is `inverse` (d, h, w, 3) on `control`. There is no iteration.
    """
    back = compose_affines(invert_affine(initial), index_to_lps(grid))
    to_control = compose_affines(lps_to_index(control), back)
    return _displacement(grid, back, inverse, to_control, _axis_to_lps(control), device)


def confidence(
    deviation: Array, grids: WorkingGrids, options: SolverOptions, grid: Geometry, device: Device
) -> Array:
    """Return how well the search determined each voxel's match, (D, H, W) float32 on `grid`.

    It is 1 - s / s_0, where s is the standard deviation over all axes of the shifts that match
    nearly as well as the best (`deviation` from the solver, (d, h, w, 3) mm on the control grid),
    and s_0 that of all shifts of the search: 1 where one shift stands out, 0 where all are equally
    good (or without a search).
    """
    step_mm = np.asarray(options.search_factor) * grids.control.spacing_mm[::-1]
    radius = np.asarray(options.search_radius)
    # The integers from -r to r have the variance r (r + 1) / 3.
    largest = float(np.sqrt(np.sum(step_mm**2 * radius * (radius + 1) / 3)))
    if largest == 0:
        return device.xp.zeros(grid.shape_zyx, np.float32)
    vectors = dinoreg_kernels.map_field(
        grid.shape_zyx,
        np.zeros((3, 4)),
        deviation,
        to_field=kernel_affine(index_map(grid, grids.control)),
        matrix=np.eye(3),
        threads=device.threads,
    )
    xp = device.xp
    length = xp.sqrt(xp.square(vectors, out=vectors).sum(axis=-1))
    return xp.clip(1 - length / np.float32(largest), 0, 1)
