"""Fields: mapping, Jacobian, composition and inversion against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from phantoms import waves

from dinoreg_kernels import compose, invert, jacobian_determinant, map_field

SPACING = (2.5, 1.25, 1.5)
OBLIQUE = np.array(
    [
        [0.91372943, 0.20713457, -0.10931283, -1.31711979],
        [-0.15313371, 1.12191713, 0.21133529, -0.70579177],
        [0.10391117, -0.25791391, 1.05313733, 2.20933171],
    ]
)
ODD_SHAPES = [(9, 11, 13), (1, 11, 13), (9, 1, 13), (9, 11, 1), (1, 1, 1), (2, 2, 2)]


def smooth_field(shape, amplitude=1.5, seed=3):
    """Make displacements of some millimetres without folds, float32."""
    return np.float32(amplitude * waves(shape, channels=3, seed=seed, wavelengths=(12, 30)))


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_map_field_equals_reference(device, rng, shape):
    field = rng.normal(size=(*shape, 3)).astype(np.float32)
    matrix = rng.normal(size=(3, 3))
    out = map_field((7, 8, 9), OBLIQUE, device.put(field), to_field=0.7 * OBLIQUE, matrix=matrix)
    expected = reference.map_field((7, 8, 9), OBLIQUE, field, to_field=0.7 * OBLIQUE, matrix=matrix)
    device.check(out, expected)


def test_map_field_identity_and_affine(device, rng):
    field = rng.normal(size=(5, 6, 7, 3)).astype(np.float32)
    same = map_field((5, 6, 7), np.zeros((3, 4)), device.put(field))
    device.check(same, field)
    zero = device.xp.zeros((1, 1, 1, 3), np.float32)
    out = map_field((5, 6, 7), OBLIQUE, zero)
    device.check(out, reference.affine(OBLIQUE, reference.indices((5, 6, 7))))


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_jacobian_equals_reference(device, rng, shape):
    field = rng.normal(size=(*shape, 3)).astype(np.float32)
    matrix = np.diag(1 / np.array(SPACING)) + 0.1 * rng.normal(size=(3, 3))
    out = jacobian_determinant(device.put(field), matrix)
    device.check(out, reference.jacobian_determinant(field, matrix))


def test_jacobian_of_an_affine_is_its_determinant_everywhere(device, rng):
    """Including the border, for oblique axes and millimetres."""
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] * SPACING  # index -> mm
    change = 0.3 * rng.normal(size=(3, 3))
    points = reference.indices((6, 7, 8)) @ axes.T
    field = device.put(points @ change.T, np.float32)
    out = jacobian_determinant(field, np.linalg.inv(axes))
    device.check(out, np.full((6, 7, 8), np.linalg.det(np.eye(3) + change)))


def test_jacobian_sees_a_reflection(device):
    field = np.zeros((4, 5, 6, 3), np.float32)
    field[..., 2] = -2 * SPACING[2] * np.arange(6)
    out = jacobian_determinant(device.put(field), np.diag(1 / np.array(SPACING)))
    device.check(out, np.full((4, 5, 6), -1.0))


def test_zero_and_constant_fields_have_determinant_one(device):
    for value in (0, 7.5):
        field = device.put(np.full((5, 6, 7, 3), value, np.float32))
        out = device.get(jacobian_determinant(field, np.diag(1 / np.array(SPACING))))
        np.testing.assert_array_equal(out, np.ones((5, 6, 7)))


def test_compose_equals_reference(device, rng):
    first = (2 * rng.normal(size=(8, 9, 10, 3))).astype(np.float32)
    second = rng.normal(size=(5, 11, 7, 3)).astype(np.float32)
    out = compose(device.put(first), device.put(second), SPACING, to_second=0.6 * OBLIQUE)
    device.check(out, reference.compose(first, second, SPACING, to_second=0.6 * OBLIQUE))


def test_compose_with_zero_and_constants(device, rng):
    field = rng.normal(size=(6, 7, 8, 3)).astype(np.float32)
    zero = np.zeros_like(field)
    put = device.put
    np.testing.assert_array_equal(device.get(compose(put(field), put(zero), SPACING)), field)
    device.check(compose(put(zero), put(field), SPACING), field)
    constant = np.broadcast_to(np.float32([1, 2, 3]), field.shape)
    device.check(compose(put(field), put(constant), SPACING), field + np.float64([1, 2, 3]))


def invert_on_own_grid(device, field, **options):
    """Invert to a displacement in millimetres on the same grid; returns it and its residual."""
    to_index = np.diag(1 / np.array(SPACING))
    to_mm = np.column_stack([np.diag(SPACING), np.zeros(3)])
    return invert(
        device.put(field),
        field.shape[:3],
        spacing_mm=SPACING,
        matrix=to_index,
        target=np.eye(3, 4),
        from_point=to_mm,
        from_index=-to_mm,
        **options,
    )


def test_inverse_residual_equals_reference(device):
    """The residual is that of the returned points and small; its sign marks points outside."""
    field = smooth_field((11, 20, 18))
    inverse, residual = invert_on_own_grid(device, field, tolerance_mm=1e-4)
    grid = reference.indices(field.shape[:3])
    points = grid + device.get(inverse).astype(float) / SPACING
    expected = reference.inverse_residual_mm(
        field, points, grid, np.diag(1 / np.array(SPACING)), SPACING
    )
    residual = device.get(residual)
    device.check(np.abs(residual), expected)
    assert expected.max() < 2e-4
    outside = ~reference.inside(field.shape[:3], points)
    assert 0 < outside.mean() < 0.5
    np.testing.assert_array_equal(residual < 0, outside)


def test_inverse_of_a_constant_is_its_negative(device):
    field = np.broadcast_to(np.float32([1.5, -2, 0.75]), (6, 7, 8, 3))
    inverse, residual = invert_on_own_grid(device, np.ascontiguousarray(field))
    device.check(inverse, -field.astype(float))
    assert np.abs(device.get(residual)).max() <= 1e-3


def test_inverse_undoes_the_field(device):
    field = smooth_field((11, 20, 18))
    inverse, _ = invert_on_own_grid(device, field, tolerance_mm=1e-4)
    both = device.get(compose(inverse, device.put(field), SPACING))
    assert np.abs(both).max() < 2e-4


def test_inverse_on_another_grid_with_an_affine(device):
    """With p + matrix u(p) = target(i) and out = from_point(p) + from_index(i) in general form."""
    field = smooth_field((11, 20, 18))
    matrix = np.diag(1 / np.array(SPACING)) @ np.array([[1, 0.1, 0], [0, 1, -0.1], [0.05, 0, 1]])
    target, from_point, from_index = 0.8 * OBLIQUE, 1.5 * OBLIQUE, -0.25 * OBLIQUE
    out, residual = invert(
        device.put(field),
        (5, 6, 7),
        spacing_mm=SPACING,
        matrix=matrix,
        target=target,
        from_point=from_point,
        from_index=from_index,
        tolerance_mm=1e-4,
    )
    index = reference.indices((5, 6, 7))
    goal = reference.affine(target, index)
    points = goal.copy()
    for _ in range(200):
        points = goal - reference.sample(field, points) @ matrix.T
    assert reference.inverse_residual_mm(field, points, goal, matrix, SPACING).max() < 1e-12
    expected = reference.affine(from_point, points) + reference.affine(from_index, index)
    # The library stops within 1e-4 mm of its target, which from_point at most doubles.
    assert np.abs(device.get(out) - expected).max() < 3e-4
    assert np.abs(device.get(residual)).max() <= 1e-4


def steep_field(shape, matrix):
    """Make a field with gradients of up to 3 that does not fold, not even in the clamped rim.

    matrix @ field stretches z, by up to 4 and also near its border, and shears y and x. Component k
    depends on a single coordinate up to k, so the Jacobian is triangular, also between voxels.
    """
    z, y, _ = np.moveaxis(reference.indices(shape), -1, 0)
    stretch = 6.0 * np.tanh((z - 1.5) / 2.0)
    wanted = np.stack([stretch, 4.0 * np.sin(z / 2.0), 6.0 * np.sin(y / 2.5)], axis=-1)
    return np.float32(wanted @ np.linalg.inv(matrix).T)


OWN_AXES = np.diag(1 / np.array(SPACING))
# Vectors along axes that are rotated against those of the grid.
AXES = np.linalg.qr(np.array([[2.0, 0.7, -0.4], [-0.5, 1.8, 0.9], [0.6, -1.1, 2.2]]))[0]
TURNED = OWN_AXES @ AXES


@pytest.mark.parametrize("matrix", [OWN_AXES, TURNED], ids=["own axes", "turned"])
@pytest.mark.parametrize("shape", [(20, 24, 22), (12, 9, 2), (20, 24, 1)])
def test_inverse_of_a_steep_field(device, rng, shape, matrix):
    """Plain steps, p -= miss, diverge there. Points lie up to half a voxel beyond outer centres."""
    field = steep_field(shape, matrix)
    slopes = np.stack(np.gradient(field @ matrix.T, axis=(0, 1)), axis=-1)
    assert np.linalg.norm(slopes, ord=2, axis=(-2, -1)).max() > 2.0
    points = rng.uniform(-0.49, np.array(shape) - 0.51, (8, 40, 3))
    goal = points + reference.sample(field, points) @ matrix.T
    out, residual = invert(
        device.put(field),
        (1, 8, 40),
        spacing_mm=SPACING,
        matrix=matrix,
        wanted=device.put(goal[None], np.float32),
        from_point=np.eye(3, 4),
        from_index=np.zeros((3, 4)),
        tolerance_mm=1e-4,
    )
    assert np.abs(device.get(residual)).max() <= 1e-4
    # A shear of 3 turns a miss of 1e-4 mm into one of 4e-4 mm; float32 indices add 1e-5.
    assert np.abs(device.get(out)[0] - points).max() < 5e-4


def test_inverse_of_a_fold_is_the_best_there_is(device):
    """The field takes everything to one point, so nothing leads anywhere else."""
    field = np.float32(-reference.indices((6, 7, 8)) * SPACING)
    inverse, residual = invert_on_own_grid(device, field)
    distance = np.linalg.norm(reference.indices((6, 7, 8)) * SPACING, axis=-1)
    residual = device.get(residual)
    assert np.isfinite(device.get(inverse)).all()
    inside = residual >= 0
    assert inside.any()
    device.check(residual[inside], distance[inside])


def test_inversion_reports_what_it_misses(device):
    """One iteration returns the target itself, with the whole displacement as its residual."""
    field = np.full((4, 4, 4, 3), 2.0, np.float32)
    _, residual = invert_on_own_grid(device, field, iterations=1)
    device.check(residual, np.full((4, 4, 4), np.sqrt(12.0)))


def test_nan_displacements_stay_where_they_are(device):
    field = smooth_field((9, 9, 9))
    field[4, 4, 4] = np.nan
    put = device.put(field)
    determinant = device.get(jacobian_determinant(put, np.eye(3)))
    assert np.isnan(determinant).sum() == 6  # the six neighbours; the voxel itself reads only them
    inverse, _ = invert_on_own_grid(device, field)
    inverse = device.get(inverse)
    assert np.isfinite(inverse[[0, -1]]).all()
    assert np.isnan(inverse[4, 4, 4]).all()
