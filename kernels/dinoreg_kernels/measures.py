"""Measures of a registration's result, and products of weights.

Results stay where the arrays are, and nothing waits for a device, so that a caller can read what
several functions return together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _library
from . import _measure_structs as structs
from ._arrays import (
    FIELD,
    VOLUME,
    Array,
    Call,
    array_module,
    check_together,
    doubles,
    int3,
    pointer,
    workspace,
)
from ._errors import KernelError
from ._measure_structs import BINS, REGIONS, Agreement, Quality

__all__ = [
    "BINS",
    "REGIONS",
    "Agreement",
    "Quality",
    "WeighedImages",
    "agreement_workspace_bytes",
    "measure_agreement",
    "measure_quality",
    "multiply_weights",
    "numbers_of",
    "quality_workspace_bytes",
    "sum_values",
]

_PAIR = ("fixed", "moving")


@dataclass(frozen=True, eq=False)
class WeighedImages:
    """Features, weights and intensities of both images, on grids of equal axes and spacing.

    Attributes:
        fixed: (z, y, x, stride) float16, with a stride that is a multiple of 8.
        moving: (z', y', x', stride) float16.
        fixed_weight: (z, y, x) float32, 0 or more.
        moving_weight: (z', y', x') float32.
        fixed_image: (z, y, x) float32, 0..1.
        moving_image: (z', y', x') float32.
        spacing_mm: Spacing of the grids, z, y, x.
        moving_offset: Index of the moving grid's first voxel on the fixed grid.
    """

    fixed: Array
    moving: Array
    fixed_weight: Array
    moving_weight: Array
    fixed_image: Array
    moving_image: Array
    spacing_mm: Sequence[float]
    moving_offset: Sequence[int] = (0, 0, 0)

    def fill(self, args: Any) -> None:
        """Set the fields of `dr_agreement_args` or `dr_mirror_args` that describe the images."""
        stride = int(self.fixed.shape[-1])
        for side in _PAIR:
            features = getattr(self, side)
            shape = tuple(features.shape[:3])
            setattr(args, side, pointer(features, np.float16, side, (*VOLUME, stride)))
            setattr(args, f"{side}_shape", int3(shape, f"{side}.shape"))
            for name in (f"{side}_weight", f"{side}_image"):
                setattr(args, name, pointer(getattr(self, name), np.float32, name, shape))
        args.stride = stride
        args.moving_offset = int3(self.moving_offset, "moving_offset")
        args.spacing_mm = doubles(self.spacing_mm, 3, "spacing_mm")

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name."""
        names = [f"{side}{part}" for side in _PAIR for part in ("", "_weight", "_image")]
        return {name: getattr(self, name) for name in names}


def numbers_of(kind: type[ctypes.Structure]) -> int:
    """Return the length of a result as an array of float64."""
    return ctypes.sizeof(kind) // 8


def multiply_weights(
    a: Array, b: Array, c: Array | None = None, *, out: Array | None = None, threads: int = 0
) -> Array:
    """Return ``a * (b * c)``.

    Args:
        a: (z, y, x) float32, as all arrays.
        b: The second factor.
        c: The third factor; None is 1.
        out: Receives the result; may be one of the factors. None makes a new array.
        threads: CPU threads; 0 takes all.

    Raises:
        KernelError: The arrays cannot be used.
    """
    out = array_module(a).empty(a.shape, np.float32) if out is None else out
    check_together(a=a, b=b, c=c, out=out)
    args = structs.MultiplyArgs()
    args.a = pointer(a, np.float32, "a", VOLUME)
    for name, array in (("b", b), ("c", c), ("out", out)):
        if array is not None:
            setattr(args, name, pointer(array, np.float32, name, a.shape))
    args.shape = int3(a.shape, "shape")
    _library.call("dr_weights_multiply", Call(a, threads).execution, args)
    return out


def sum_values(arrays: Sequence[Array], *, threads: int = 0) -> Array:
    """Return the sum of each array, finite where all its numbers are.

    Args:
        arrays: float32 of any shape, C-contiguous; at most 16.
        threads: CPU threads; 0 takes all.

    Returns:
        (len(arrays),) float64.

    Raises:
        KernelError: The arrays cannot be used.
    """
    if not arrays:
        raise KernelError("arrays is empty; wanted 1 to 16 arrays")
    check_together(**{f"arrays[{i}]": array for i, array in enumerate(arrays)})
    n, xp = len(arrays), array_module(arrays[0])
    args = structs.SumsArgs(count=n)
    listed = [
        structs.Array(pointer(a, np.float32, f"arrays[{i}]", a.shape), int(a.size))
        for i, a in enumerate(arrays)
    ]
    args.arrays = (structs.Array * n)(*listed)
    out = xp.empty(n, np.float64)
    args.out = pointer(out, np.float64, "out", (n,))
    with workspace("dr_values_workspace_bytes", args, xp):
        _library.call("dr_values_sum", Call(out, threads).execution, args)
    return out


def measure_quality(
    *,
    displacement: Array | None = None,
    index_from_unit: ArrayLike | None = None,
    field: Array | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    inverse: Array | None = None,
    iterations: int = 50,
    tolerance_mm: float = 0.01,
    misses: Array | None = None,
    miss_limit: float = 0.0,
    threads: int = 0,
) -> Array:
    """Measure a field, its Jacobian, and how well it can be inverted.

    Args:
        displacement: (z, y, x, 3) float32, of which the Jacobian is measured.
        index_from_unit: (3, 3), its vectors to index z, y, x; None is the identity.
        field: (z', y', x', 3) float32, mm along its axes, of which the consistency is measured.
        spacing_mm: Spacing of the field's grid, z, y, x.
        inverse: Its inverse on the same grid; None finds it as `invert` does.
        iterations: Most reads of the field per voxel, where the inverse is found.
        tolerance_mm: A voxel is finished once it misses by less, where the inverse is found.
        misses: (z'', y'', x'') float32, the second result of `invert`.
        miss_limit: Larger misses are counted.
        threads: CPU threads; 0 takes all.

    Returns:
        `Quality` as float64, in which what is not measured is 0.

    Raises:
        KernelError: The arrays cannot be used, or none is given.
    """
    given = [a for a in (displacement, field, misses) if a is not None]
    if not given:
        raise KernelError("there is nothing to measure; give displacement, field or misses")
    check_together(displacement=displacement, field=field, inverse=inverse, misses=misses)
    args, xp = structs.QualityArgs(), array_module(given[0])
    if displacement is not None:
        args.displacement = pointer(displacement, np.float32, "displacement", FIELD)
        args.shape = int3(displacement.shape[:3], "displacement.shape")
        matrix = np.eye(3) if index_from_unit is None else index_from_unit
        args.index_from_unit = doubles(matrix, 9, "index_from_unit")
    if field is not None:
        args.field = pointer(field, np.float32, "field", FIELD)
        args.field_shape = int3(field.shape[:3], "field.shape")
        args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
        args.iterations, args.tolerance_mm = iterations, tolerance_mm
        if inverse is not None:
            args.inverse = pointer(inverse, np.float32, "inverse", field.shape)
    if misses is not None:
        args.misses = pointer(misses, np.float32, "misses", VOLUME)
        args.miss_count, args.miss_limit = int(misses.size), miss_limit
    return measured("dr_quality_measure", args, Quality, Call(given[0], threads), xp)


def measure_agreement(
    images: WeighedImages,
    after: Array,
    before: Array | None = None,
    *,
    step: int = 1,
    parts: Sequence[int] = (1, 1, 1),
    region_factor: Sequence[int] = (0, 0, 0),
    reversed_parts: Sequence[int] = (0, 0, 0),
    threads: int = 0,
) -> Array:
    """Measure how well two images agree under two fields, and in which regions.

    Args:
        images: Both images.
        after: (z, y, x, 3) float32, the field after a registration, mm along the grid's axes.
        before: The field before the registration; None is 0 everywhere.
        step: Every step-th voxel along each axis is compared.
        parts: Number of parts of equal weight along each axis, z, y, x.
        region_factor: The number of a region is the sum of these times the numbers of its parts.
        reversed_parts: 1 where parts are numbered against the axis.
        threads: CPU threads; 0 takes all.

    Returns:
        `Agreement` as float64.

    Raises:
        KernelError: The arrays or numbers cannot be used.
    """
    check_together(**images.arrays(), after=after, before=before)
    args = structs.AgreementArgs(step=step)
    images.fill(args)
    shape = (*images.fixed.shape[:3], 3)
    args.after = pointer(after, np.float32, "after", shape)
    if before is not None:
        args.before = pointer(before, np.float32, "before", shape)
    args.parts = int3(parts, "parts")
    args.region_factor = int3(region_factor, "region_factor")
    args.reversed = int3(reversed_parts, "reversed_parts")
    call, xp = Call(images.fixed, threads), array_module(images.fixed)
    return measured("dr_agreement_measure", args, Agreement, call, xp)


def agreement_workspace_bytes(fixed_shape: Sequence[int], step: int) -> int:
    """Predict the bytes that `measure_agreement` needs in addition to its arrays."""
    args = structs.AgreementArgs(stride=8, step=step)
    args.fixed_shape = args.moving_shape = int3(fixed_shape, "fixed_shape")
    args.spacing_mm = doubles((1.0, 1.0, 1.0), 3, "spacing_mm")
    args.parts = int3((1, 1, 1), "parts")
    return _library.workspace_bytes("dr_agreement_workspace_bytes", args)


def quality_workspace_bytes(
    shape: Sequence[int], field_shape: Sequence[int], *, inverted: bool, misses: int = 0
) -> int:
    """Predict the bytes that `measure_quality` needs in addition to its arrays.

    Args:
        shape: Grid of the displacement, z, y, x.
        field_shape: Grid of the field.
        inverted: Whether the field's inverse is given.
        misses: Number of misses; 0 without them.
    """
    some = 8  # any address: only whether there is an array counts
    args = structs.QualityArgs(displacement=some, field=some, iterations=1, tolerance_mm=1.0)
    args.shape, args.field_shape = int3(shape, "shape"), int3(field_shape, "field_shape")
    args.spacing_mm = doubles((1.0, 1.0, 1.0), 3, "spacing_mm")
    args.inverse = some if inverted else None
    if misses:
        args.misses, args.miss_count = some, misses
    return _library.workspace_bytes("dr_quality_workspace_bytes", args)


def measured(name: str, args: Any, kind: type[ctypes.Structure], call: Call, xp: Any) -> Array:
    """Run a call with a workspace and return its result, a struct, as float64."""
    out = xp.empty(numbers_of(kind), np.float64)
    args.out = pointer(out, np.float64, "out", (numbers_of(kind),))
    with workspace(f"{name.rpartition('_')[0]}_workspace_bytes", args, xp):
        _library.call(name, call.execution, args)
    return out
