"""Measures that a run takes of its own result, without labels."""

from __future__ import annotations

import ctypes
import math
from typing import TypeVar

import dinoreg_kernels
from dinoreg_kernels import Quality, Solution

from ..device.choice import Device
from ..fields.solve import INVERSE_MISS_MM
from ..geometry import lps_to_index
from ..summaries import RunQuality
from ..types import Array, DisplacementField, FloatArray, Geometry

_Struct = TypeVar("_Struct", bound=ctypes.Structure)
#: Largest miss of the inverse that is found to measure the consistency, small compared with it.
_TOLERANCE_MM = 0.01


def measure_quality(
    solution: Solution,
    control: Geometry,
    displacement: DisplacementField,
    missed_mm: Array | None,
    device: Device,
) -> Array:
    """Measure a run's result; the host waits for nothing.

    Args:
        solution: result of `dinoreg_kernels.solve`.
        control: grid of its field.
        displacement: whole mapping on the fixed grid.
        missed_mm: (D, H, W) misses of the inverse, as `inverse_displacement` returns them; None if
            nothing was inverted.
        device: device that holds the arrays.

    Returns:
        `dinoreg_kernels.Quality` as float64 on the device, for `run_quality`.
    """
    return dinoreg_kernels.measure_quality(
        displacement=displacement.vectors_mm,
        index_from_unit=lps_to_index(displacement.geometry).matrix[::-1],
        field=solution.field,
        spacing_mm=control.spacing_mm[::-1],
        inverse=solution.inverse,
        tolerance_mm=_TOLERANCE_MM,
        misses=missed_mm,
        miss_limit=INVERSE_MISS_MM,
        threads=device.threads,
    )


def run_quality(
    found: Quality, feature_distance: FloatArray, grid: Geometry, *, inverted: bool
) -> RunQuality:
    """Return what a run can measure of its own result, without labels.

    Args:
        found: result of `measure_quality`, read from the device.
        feature_distance: (3,), that of the solution: before, after and the share that overlaps.
        grid: grid of the displacement.
        inverted: whether the misses of an inverse were measured.
    """
    before, after, overlap = (float(number) for number in feature_distance)
    return RunQuality(
        feature_distance_before=before,
        feature_distance_after=after,
        folded_percent=100.0 * found.folded / math.prod(grid.shape_zyx),
        jacobian_min=-found.largest_negative,
        jacobian_max=found.largest,
        sdlogj=_deviation(found.log_sum, found.log_square_sum, found.regular),
        inverse_consistency_mean_mm=found.consistency_sum / max(found.consistency_count, 1),
        inverse_consistency_max_mm=max(found.consistency_max, 0.0),
        overlap_percent=100.0 * overlap,
        inverse_missed_percent=(
            100.0 * found.missed / max(found.inside, 1) if inverted else math.nan
        ),
        inverse_missed_max_mm=max(found.largest_miss, 0.0) if inverted else math.nan,
    )


def _deviation(total: float, squares: float, count: float) -> float:
    """Return the standard deviation of `count` numbers from their sum and that of their squares."""
    if count <= 0:
        return math.nan
    mean = total / count
    return math.sqrt(max(squares / count - mean * mean, 0.0))


def as_struct(kind: type[_Struct], numbers: FloatArray) -> _Struct:
    """Return a result of the kernels that was read as float64."""
    return kind.from_buffer_copy(numbers.tobytes())
