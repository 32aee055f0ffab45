"""The files of a result and of a run: their names, and functions that write a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import io
from ..types import Array, DisplacementField, Geometry, Volume

#: A function that writes one file to the given path.
Writer = Callable[[Path], None]

WARPED, TRANSFORM, DISPLACEMENT = "warped.nii.gz", "transform.h5", "displacement.nii.gz"
LINEAR = "transform.tfm"
INVERSE, CONFIDENCE = "inverse.nii.gz", "confidence.nii.gz"
FIXED_FEATURES, MOVING_FEATURES = "features_fixed.nrrd", "features_moving.nrrd"
#: What a run writes besides: the report as JSON and as a page, and the pictures.
REPORT, PAGE, PICTURE, FEATURE_PICTURE = "report.json", "report.html", "qc.png", "features.png"


def result_names(
    *, displacement: bool, inverse: bool, confidence: bool, features: bool, linear: bool
) -> list[str]:
    """Return the names of the files that `RegistrationResult.writers` writes."""
    transform = LINEAR if linear else TRANSFORM
    names = [WARPED, transform, *[DISPLACEMENT] * displacement, *[INVERSE] * inverse]
    return [*names, *[CONFIDENCE] * confidence, *[FIXED_FEATURES, MOVING_FEATURES] * features]


def field_writer(field: DisplacementField) -> Writer:
    """Return a function that writes a displacement field."""
    return lambda path: io.write_displacement(path, field)


def volume_writer(volume: Volume) -> Writer:
    """Return a function that writes an image."""
    return lambda path: io.write_volume(path, volume)


def features_writer(features: Array, grid: Geometry) -> Writer:
    """Return a function that writes features (D, H, W, K) as a vector image."""
    return lambda path: io.write_vectors(path, features, grid)
