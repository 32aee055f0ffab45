"""The files of a result: their names, and the functions that write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .. import io
from ..types import Array, DisplacementField, Geometry, Volume

if TYPE_CHECKING:
    from .result import RegistrationResult

#: A function that writes one file to the given path.
Writer = Callable[[Path], None]

DISPLACEMENT, INVERSE, CONFIDENCE = "displacement.nii.gz", "inverse.nii.gz", "confidence.nii.gz"
TRANSFORM, WARPED = "transform.h5", "warped.nii.gz"
FEATURES = ("features_fixed.nrrd", "features_moving.nrrd")


def result_names(
    *, displacement: bool, inverse: bool, confidence: bool, features: bool
) -> list[str]:
    """Return the names of the files that `result_writers` writes."""
    names = [WARPED, TRANSFORM, *[DISPLACEMENT] * displacement, *[INVERSE] * inverse]
    return [*names, *[CONFIDENCE] * confidence, *FEATURES * features]


def result_writers(result: RegistrationResult, *, displacement: bool) -> dict[str, Writer]:
    """Return the writers of all that `result` holds, the slowest first.

    The `displacement` on the fixed grid is optional because ``transform.h5`` holds the mapping.
    """
    writers: dict[str, Writer] = {}
    if displacement:
        writers[DISPLACEMENT] = _vectors(result.displacement)
    if result.inverse is not None:
        writers[INVERSE] = _vectors(result.inverse)
    if result.confidence is not None:
        writers[CONFIDENCE] = _voxels(result.confidence)
    if result.features is not None:
        kept = result.features
        writers[FEATURES[0]] = _channels(kept.fixed, kept.fixed_geometry)
        writers[FEATURES[1]] = _channels(kept.moving, kept.moving_geometry)
    writers[WARPED] = _voxels(result.warped)
    writers[TRANSFORM] = lambda path: io.write_composite_h5(
        path, result.initial, result.deformable, result.displacement.geometry
    )
    return writers


def _vectors(field: DisplacementField) -> Writer:
    return lambda path: io.write_displacement(path, field)


def _channels(array: Array, grid: Geometry) -> Writer:
    return lambda path: io.write_vectors(path, array, grid)


def _voxels(volume: Volume) -> Writer:
    return lambda path: io.write_volume(path, volume)
