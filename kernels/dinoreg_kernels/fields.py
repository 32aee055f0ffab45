"""Displacement fields: evaluation on other grids, Jacobian, composition, inversion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import _library, _structs
from ._arrays import (
    FIELD,
    VOLUME,
    Array,
    Call,
    array_module,
    check_together,
    doubles,
    int3,
    point_map,
    pointer,
)


def map_field(
    out_shape: Sequence[int],
    index_map: ArrayLike,
    field: Array,
    *,
    to_field: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
    threads: int = 0,
) -> Array:
    """Evaluate ``index_map @ (i, 1) + matrix @ field(to_field @ (i, 1))`` at every index i.

    The result is a field on another grid (with an `index_map` of zero), an affine mapping as a
    field, or the sum of both.

    Args:
        out_shape: Shape of the result's grid.
        index_map: (3, 4).
        field: (z, y, x, 3) float32, interpolated linearly and clamped at its border.
        to_field: (3, 4), output index to index of the field; None is the identity.
        matrix: (3, 3), applied to the field's vectors; None is the identity.
        threads: CPU threads; 0 takes all.

    Returns:
        (out_shape, 3) float32.
    """
    out = array_module(field).empty((*out_shape, 3), np.float32)
    args = _structs.MapArgs()
    args.out = pointer(out, np.float32, "out", FIELD)
    args.out_shape = int3(out_shape, "out_shape")
    args.map = point_map(index_map, field, to_field, matrix)
    _library.call("dr_field_map", Call(field, threads).execution, args)
    return out


def jacobian_determinant(field: Array, index_from_unit: ArrayLike, *, threads: int = 0) -> Array:
    """Compute det(I + du/dp) by central differences, one-sided at the border.

    Args:
        field: (z, y, x, 3) float32.
        index_from_unit: (3, 3), the field's vectors to index (z, y, x); for displacements in mm
            along the grid's axes, diag(1 / spacing).
        threads: CPU threads; 0 takes all.

    Returns:
        (z, y, x) float32.
    """
    out = array_module(field).empty(field.shape[:3], np.float32)
    args = _structs.JacobianArgs()
    args.field = pointer(field, np.float32, "field", FIELD)
    args.out = pointer(out, np.float32, "out", VOLUME)
    args.shape = int3(field.shape[:3], "field.shape")
    args.index_from_unit = doubles(index_from_unit, 9, "index_from_unit")
    _library.call("dr_field_jacobian", Call(field, threads).execution, args)
    return out


def compose(
    first: Array,
    second: Array,
    spacing_mm: Sequence[float],
    *,
    to_second: ArrayLike | None = None,
    threads: int = 0,
) -> Array:
    """Compute ``first(p) + second(p + first(p))`` on the grid of `first`.

    Args:
        first: (z, y, x, 3) float32, mm along the grid's axes.
        second: (z, y, x, 3) float32, mm along the same axes.
        spacing_mm: Spacing of the first grid, z, y, x.
        to_second: (3, 4), index of the first grid to index of the second; None is the identity.
        threads: CPU threads; 0 takes all.

    Returns:
        A field with the shape of `first`.
    """
    check_together(first=first, second=second)
    out = array_module(first).empty_like(first)
    args = _structs.ComposeArgs()
    args.first = pointer(first, np.float32, "first", FIELD)
    args.shape = int3(first.shape[:3], "first.shape")
    args.second = pointer(second, np.float32, "second", FIELD)
    args.second_shape = int3(second.shape[:3], "second.shape")
    args.to_second = doubles(np.eye(3, 4) if to_second is None else to_second, 12, "to_second")
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    args.out = pointer(out, np.float32, "out", FIELD)
    _library.call("dr_field_compose", Call(first, threads).execution, args)
    return out


def invert(
    field: Array,
    out_shape: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    matrix: ArrayLike,
    target: ArrayLike | None = None,
    wanted: Array | None = None,
    from_point: ArrayLike,
    from_index: ArrayLike,
    iterations: int = 50,
    tolerance_mm: float = 1e-3,
    threads: int = 0,
) -> tuple[Array, Array]:
    """Solve ``p + matrix @ field(p) = target @ (i, 1)`` for p by damped Newton steps.

    Args:
        field: (z, y, x, 3) float32, interpolated linearly and clamped at its border.
        out_shape: Shape of the grid whose indices are i.
        spacing_mm: Spacing of the field's grid, z, y, x, in which the tolerance is measured.
        matrix: (3, 3), the field's vectors to index of the field's grid.
        target: (3, 4), output index to index of the field's grid; None is the identity.
        wanted: (out_shape, 3) float32, the targets of all output voxels instead of `target`.
        from_point: (3, 4); the result is ``from_point @ (p, 1) + from_index @ (i, 1)``.
        from_index: (3, 4).
        iterations: How often the field is read at most, 1 to 10000.
        tolerance_mm: A voxel is finished once it misses its target by less.
        threads: CPU threads; 0 takes all.

    Returns:
        The result, (out_shape, 3) float32, NaN where the field is NaN at the target; and the miss
        of each voxel in mm, (out_shape) float32, negative where p lies outside the field's voxels.
    """
    check_together(field=field, wanted=wanted)
    xp = array_module(field)
    out = xp.empty((*out_shape, 3), np.float32)
    residual = xp.empty(tuple(out_shape), np.float32)
    args = _structs.InvertArgs()
    args.field = pointer(field, np.float32, "field", FIELD)
    args.field_shape = int3(field.shape[:3], "field.shape")
    args.matrix = doubles(matrix, 9, "matrix")
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    args.target = doubles(np.eye(3, 4) if target is None else target, 12, "target")
    if wanted is not None:
        args.wanted = pointer(wanted, np.float32, "wanted", (*out_shape, 3))
    args.from_point = doubles(from_point, 12, "from_point")
    args.from_index = doubles(from_index, 12, "from_index")
    args.out = pointer(out, np.float32, "out", FIELD)
    args.residual_mm = pointer(residual, np.float32, "residual_mm", VOLUME)
    args.out_shape = int3(out_shape, "out_shape")
    args.iterations = iterations
    args.tolerance_mm = tolerance_mm
    _library.call("dr_field_invert", Call(field, threads).execution, args)
    return out, residual
