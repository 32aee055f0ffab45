"""Chains solved backwards: forward after inverse is the identity, and failures are reported."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import rotation

from dinoreg_rt.errors import InputError, RegistrationError
from dinoreg_rt.fields.inversion import Inversion, invert_chain, invert_points, voxel_centres
from dinoreg_rt.geometry import index_to_lps, lps_to_index, sample_linear, transform_points
from dinoreg_rt.types import AffineTransform, DisplacementField, FloatArray, Geometry

GRID = Geometry((20, 24, 28), (2.0, 1.5, 3.0), (-40.0, 12.0, 5.0), rotation(np.deg2rad(12.0), 0, 0))


def smooth_field(amplitude_mm: float, start: AffineTransform) -> DisplacementField:
    """Return `start` followed by smooth waves, as one displacement on `GRID`."""
    points = voxel_centres(GRID)
    phase = (points - points.mean(axis=0)) / 12.0
    waves = amplitude_mm * np.stack(
        [np.sin(phase[:, 1]), np.cos(phase[:, 2]), np.sin(phase[:, 0] + 1)], axis=1
    )
    vectors = transform_points(start, points) + waves - points
    return DisplacementField(vectors.reshape(*GRID.shape_zyx, 3).astype(np.float32), GRID)


def forward(field: DisplacementField, points: FloatArray) -> FloatArray:
    index = transform_points(lps_to_index(field.geometry), points)
    moved = [sample_linear(field.vectors_mm[..., c], index) for c in range(3)]
    return points + np.stack(moved, axis=1)


def inner_points(number: int = 200) -> FloatArray:
    rng = np.random.default_rng(1)
    index = rng.uniform(2, np.array(GRID.shape_xyz) - 3, (number, 3))
    return transform_points(index_to_lps(GRID), index)


STARTS = {
    "identity": AffineTransform.identity(),
    "far": AffineTransform(np.eye(3), np.array([150.0, -80.0, 30.0])),
    "rotated": AffineTransform(rotation(0, 0, np.deg2rad(100.0)), np.array([10.0, 5.0, -3.0])),
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
    assert inversion.residual_mm == 0


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


@pytest.mark.parametrize("start", STARTS)
def test_borders_are_those_of_itk(start: str) -> None:
    """The displacement continues for half a voxel beyond the outer centres and ends there."""
    field = smooth_field(1.0, STARTS[start])
    rng = np.random.default_rng(2)
    upper = np.array(GRID.shape_xyz) - 1
    index = rng.uniform(-0.45, upper + 0.45, (400, 3))
    rim = np.any((index < 0) | (index > upper), axis=1)
    assert 20 < rim.sum() < 300
    points = transform_points(index_to_lps(GRID), index)
    moved = forward(field, points)
    found, inversion = invert_points([field], moved)
    known = np.isfinite(found).all(axis=1)
    assert np.abs(forward(field, found[known]) - moved[known]).max() < 2e-3
    # Rotated by 100 degrees the rim folds over the inside and beyond: some points have another
    # origin.
    assert known.mean() == 1 if start != "rotated" else known.mean() > 0.9
    assert inversion.residual_mm <= 1e-3


def steep_field() -> DisplacementField:
    """Return a field with stretches of 4 and shears of 2 but a triangular Jacobian, so no folds."""
    index = transform_points(lps_to_index(GRID), voxel_centres(GRID))
    x, y, _ = index.T
    moved = np.stack([6 * np.tanh((x - 2) / 2), 3 * np.sin(x / 1.5), 4 * np.sin(y / 2)], axis=1)
    vectors = moved * GRID.spacing_mm @ GRID.direction.T
    return DisplacementField(vectors.reshape(*GRID.shape_zyx, 3).astype(np.float32), GRID)


def test_steep_gradients_are_not_folds() -> None:
    points = inner_points()
    found, inversion = invert_points([steep_field()], forward(steep_field(), points))
    assert inversion.failed.size == 0
    assert inversion.found == len(points)
    assert np.abs(found - points).max() < 5e-3


def crumpled_field() -> DisplacementField:
    """Return noise between neighbours: much of it folds, and a few points are not found."""
    noise = np.random.default_rng(4).normal(scale=4.0, size=(*GRID.shape_zyx, 3))
    return DisplacementField(noise.astype(np.float32), GRID)


def test_few_failures_are_reported() -> None:
    field = crumpled_field()
    inverse, inversion = invert_chain([field], GRID)
    vectors = inverse.vectors_mm.reshape(-1, 3)
    # Measured: 35 of 12387.
    assert 0 < inversion.failed.size < 0.01 * inversion.found
    assert np.isnan(vectors[inversion.failed]).all()
    known = np.isfinite(vectors).all(axis=1)
    assert known.sum() == inversion.found
    points = voxel_centres(GRID)[known]
    assert np.abs(forward(field, points + vectors[known]) - points).max() < 0.11


def test_more_failures_than_finds_are_an_error() -> None:
    Inversion(1e-3, np.arange(2), found=2).check()
    with pytest.raises(RegistrationError, match=r"3 of 5 points have no inverse.*folds.*swapped"):
        Inversion(1e-3, np.arange(3), found=2).check()


def test_singular_matrix_is_an_error() -> None:
    flat = AffineTransform(np.diag([1.0, 1.0, 0.0]), np.zeros(3))
    with pytest.raises(InputError, match="singular"):
        invert_points([flat], inner_points())
