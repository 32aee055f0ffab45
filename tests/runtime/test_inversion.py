"""Chains solved backwards: forward after inverse is the identity, and folds are an error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinoreg_rt.errors import InputError, RegistrationError
from dinoreg_rt.geometry import index_to_lps, transform_points
from dinoreg_rt.inversion import invert_chain, invert_points, voxel_centres
from dinoreg_rt.slices import sample_linear
from dinoreg_rt.types import AffineTransform, DisplacementField, FloatArray, Geometry


def rotation(degrees: float, axis: int = 2) -> FloatArray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    first, second = [a for a in range(3) if a != axis]
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix


GRID = Geometry((20, 24, 28), (2.0, 1.5, 3.0), (-40.0, 12.0, 5.0), rotation(12.0, axis=0))


def smooth_field(amplitude_mm: float, start: AffineTransform) -> DisplacementField:
    """`start` followed by smooth waves, as one displacement on `GRID`."""
    points = voxel_centres(GRID)
    phase = (points - points.mean(axis=0)) / 12.0
    waves = amplitude_mm * np.stack(
        [np.sin(phase[:, 1]), np.cos(phase[:, 2]), np.sin(phase[:, 0] + 1)], axis=1
    )
    vectors = transform_points(start, points) + waves - points
    return DisplacementField(vectors.reshape(*GRID.shape_zyx, 3).astype(np.float32), GRID)


def forward(field: DisplacementField, points: FloatArray) -> FloatArray:
    index = transform_points(AffineTransform(*_inverse(index_to_lps(field.geometry))), points)
    moved = [sample_linear(field.vectors_mm[..., c], index) for c in range(3)]
    return points + np.stack(moved, axis=1)


def _inverse(affine: AffineTransform) -> tuple[FloatArray, FloatArray]:
    matrix = np.linalg.inv(affine.matrix)
    return matrix, -matrix @ affine.translation_mm


def inner_points(number: int = 200) -> FloatArray:
    rng = np.random.default_rng(1)
    index = rng.uniform(2, np.array(GRID.shape_xyz) - 3, (number, 3))
    return transform_points(index_to_lps(GRID), index)


STARTS = {
    "identity": AffineTransform.identity(),
    "far": AffineTransform(np.eye(3), np.array([150.0, -80.0, 30.0])),
    "rotated": AffineTransform(rotation(100.0), np.array([10.0, 5.0, -3.0])),
    "scaled": AffineTransform(np.diag([1.4, 0.7, 2.5]), np.zeros(3)),
}


@pytest.mark.parametrize("start", STARTS)
def test_recovers_the_points(start: str) -> None:
    field = smooth_field(2.0, STARTS[start])
    points = inner_points()
    found, inversion = invert_points([field], forward(field, points))
    assert inversion.residual_mm <= 1e-3
    assert np.abs(found - points).max() < 5e-3


def test_inverts_a_chain_in_the_reverse_order() -> None:
    field, affine = smooth_field(2.0, STARTS["identity"]), STARTS["rotated"]
    points = inner_points()
    there = transform_points(affine, forward(field, points))
    back, _ = invert_points([field, affine], there)
    assert np.abs(back - points).max() < 5e-3
    wrong, _ = invert_points([affine, field], there)
    assert not np.allclose(np.nan_to_num(wrong), points, atol=1)


def test_matrices_are_exact() -> None:
    points = inner_points()
    back, inversion = invert_points([STARTS["scaled"]], transform_points(STARTS["scaled"], points))
    assert np.abs(back - points).max() < 1e-10
    assert inversion.iterations == 0


def test_points_without_origin_are_nan() -> None:
    field = smooth_field(1.0, STARTS["far"])
    inside = forward(field, inner_points(1))
    found, _ = invert_points([field], np.concatenate([inside, inside + 500.0]))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_field_on_a_grid() -> None:
    field = smooth_field(2.0, STARTS["identity"])
    inverse, inversion = invert_chain([field], GRID)
    points = voxel_centres(GRID)
    origins = points + inverse.vectors_mm.reshape(-1, 3)
    again = forward(field, origins)
    known = np.isfinite(again).all(axis=1)
    assert known.mean() > 0.7
    assert np.abs(again[known] - points[known]).max() < 2e-3
    assert inversion.residual_mm <= 1e-3


def test_folded_field_is_an_error() -> None:
    with pytest.raises(RegistrationError, match=r"did not converge for \d+ of 200 points.*folds"):
        invert_points([smooth_field(40.0, STARTS["identity"])], inner_points())


def test_singular_matrix_is_an_error() -> None:
    flat = AffineTransform(np.diag([1.0, 1.0, 0.0]), np.zeros(3))
    with pytest.raises(InputError, match="singular"):
        invert_points([flat], inner_points())
