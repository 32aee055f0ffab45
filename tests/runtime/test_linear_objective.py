"""The objective of a linear registration against plain float64 sums and finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dinoreg_rt.align.descent import Frame, descend, solved
from dinoreg_rt.align.linear_models import (
    LinearSummary,
    generators,
    nearest_map,
    nearest_matrix,
    rotation_vector,
    stepped,
)
from dinoreg_rt.align.normal_equations import (
    NormalEquations,
    Points,
    Sampled,
    Windows,
    correlation_equations,
    feature_equations,
)
from dinoreg_rt.align.turns import rotation
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.unread import read_all
from dinoreg_rt.geometry import compose_affines, invert_affine, transform_points
from dinoreg_rt.types import AffineTransform

HOST = Device("cpu", threads=1)
SHAPE, SPACING, CHANNELS = (14, 17, 20), (2.0, 1.5, 1.25), 3
CENTRE = np.array([6.2, 8.1, 9.7])
WINDOW, NOISE, UNRELATED = (5, 6, 7), 0.05, 1.7
SHIFT_MM = (0.9, -0.6, 0.4)
MODELS = ("rigid", "similarity", "affine")
PARAMETERS = {"rigid": 6, "similarity": 7, "affine": 12}


def position() -> np.ndarray:
    """Return (x, y, z) in mm from the centre for every voxel, (D, H, W, 3)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return ((index - CENTRE) * SPACING)[..., ::-1]


def values(points: np.ndarray, seed: int, channels: int = CHANNELS) -> np.ndarray:
    """Return smooth functions of points (..., 3); waves of at least 30 mm."""
    rng = np.random.default_rng(seed)
    result = np.zeros((*points.shape[:-1], channels))
    for channel in range(channels):
        for _ in range(4):
            wave = rng.normal(size=3)
            wave *= 2 * np.pi / rng.uniform(30, 60) / np.linalg.norm(wave)
            result[..., channel] += 0.2 * np.sin(points @ wave + rng.uniform(0, 6))
    return result


@dataclass(frozen=True)
class Images:
    """A fixed image, and a moving one as a function of a small step (3, 4)."""

    fixed: Sampled
    points: Points

    def moving(self, step: np.ndarray, other: float = 0.3) -> Sampled:
        """Return the image; `other` is the share of intensities that the fixed image lacks."""
        q = position()
        p = q + q @ step[:, :3].T + step[:, 3]
        image = values(p, 5, 1)[..., 0] + other * values(p, 9, 1)[..., 0]
        return Sampled(
            values(p, 2).astype(np.float32), weights(8), (0.5 - 0.8 * image).astype(np.float32)
        )


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1.0, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> Images:
    q = position() + np.array(SHIFT_MM)
    image = 0.5 + values(q, 5, 1)[..., 0]
    fixed = Sampled(values(q, 2).astype(np.float32), weights(7), image.astype(np.float32))
    return Images(fixed, Points.of(fixed.weight, SPACING, CENTRE, HOST))


def features(images: Images, step: np.ndarray, trust_cost: float = 0.0) -> NormalEquations:
    found = feature_equations(
        images.fixed,
        images.moving(step),
        images.points,
        CHANNELS,
        unrelated=UNRELATED,
        trust_cost=trust_cost,
    )
    return read_all([found], HOST)[0]


def correlation(images: Images, step: np.ndarray) -> NormalEquations:
    windows, moving = Windows.of(images.points, WINDOW), images.moving(step)
    found = correlation_equations(images.fixed, moving, images.points, windows, NOISE)
    return read_all([found], HOST)[0]


TERMS = {
    "features": features,
    "features, outliers": lambda images, step: features(images, step, 0.3),
    "correlation": correlation,
}


@pytest.mark.parametrize("term", TERMS)
def test_gradient_is_that_of_finite_differences(images: Images, term: str) -> None:
    """Waves of 30 mm change by less than 2 % between a slope and the difference of neighbours."""
    found = TERMS[term](images, np.zeros((3, 4))).gradient
    for i, a in np.ndindex(3, 4):
        size = 0.05 if a == 3 else 0.05 / 10
        step = np.zeros((3, 4))
        step[i, a] = size
        ahead, behind = (TERMS[term](images, sign * step).value for sign in (1, -1))
        wanted = (ahead - behind) / (2 * size)
        scale = np.abs(found[:, a]).max()
        assert found[i, a] == pytest.approx(wanted, rel=0.02, abs=0.02 * scale), (i, a)


def inner(array: np.ndarray) -> np.ndarray:
    return array[1:-1, 1:-1, 1:-1]


def slopes(array: np.ndarray) -> np.ndarray:
    """Return the differences of neighbours along x, y, z, inner voxels only, in 1/mm."""
    found = np.gradient(array.astype(np.float64), *SPACING, axis=(0, 1, 2))
    return np.stack([inner(one) for one in found[::-1]])


def summed(weight: np.ndarray, residual: np.ndarray, slope: np.ndarray) -> tuple:
    """Return gradient and curvature of sum weight * residual^2, channel by channel."""
    q = np.concatenate([inner(position()), np.ones((*inner(weights(0)).shape, 1))], axis=-1)
    gradient, curvature = np.zeros((3, 4)), np.zeros((3, 4, 3, 4))
    for c in range(residual.shape[-1]):
        rows = slope[..., c][..., None] * q[None]  # (3, D, H, W, 4)
        gradient += 2 * np.einsum("zyx,izyxa->ia", weight * residual[..., c], rows)
        curvature += 2 * np.einsum("zyx,izyxa,jzyxb->iajb", weight, rows, rows)
    return gradient, curvature


def test_features_equal_the_sums_in_float64(images: Images) -> None:
    moving = images.moving(np.zeros((3, 4)))
    here = inner(images.fixed.weight).astype(np.float64)
    both = here * inner(moving.weight)
    miss = inner(moving.features).astype(np.float64) - inner(images.fixed.features)
    slope = np.stack([slopes(moving.features[..., c]) for c in range(CHANNELS)], axis=-1)
    gradient, curvature = summed(both / here.sum(), miss, slope)
    value = ((both * (miss**2).sum(-1) + (here - both) * UNRELATED) / here.sum()).sum()
    found = features(images, np.zeros((3, 4)))
    assert found.value == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-5 * np.abs(gradient).max())
    np.testing.assert_allclose(found.curvature, curvature, atol=1e-5 * np.abs(curvature).max())


def test_correlation_equals_the_sums_in_float64(images: Images) -> None:
    moving = images.moving(np.zeros((3, 4)))
    here = inner(images.fixed.weight).astype(np.float64)
    both = here * inner(moving.weight)
    f, m = (inner(one.image).astype(np.float64).copy() for one in (images.fixed, moving))
    a, scale, value = np.zeros_like(f), np.zeros_like(f), float((here - both).sum())
    q = inner(np.concatenate([position(), np.ones((*SHAPE, 1))], axis=-1))
    rows = (slopes(moving.image)[..., None] * q).transpose(1, 2, 3, 0, 4).reshape(*f.shape, 12)
    absorbed = np.zeros((12, 12))
    z, y, x = (np.arange(1, n - 1) // w for n, w in zip(SHAPE, WINDOW, strict=True))
    for block in np.ndindex(3, 3, 3):
        part = np.ix_(*(np.flatnonzero(i == b) for i, b in zip((z, y, x), block, strict=True)))
        weight = both[part]
        f[part] -= np.average(f[part], weights=weight)
        m[part] -= np.average(m[part], weights=weight)
        cov, of_f, of_m = (
            np.average(v, weights=weight) for v in (f[part] * m[part], f[part] ** 2, m[part] ** 2)
        )
        of_f, of_m = of_f + NOISE**2, of_m + NOISE**2 / 1000
        value += weight.sum() * (1 - cov**2 / (of_f * of_m))
        a[part], scale[part] = cov / of_m, 1 / of_f
        # The share of each column that a constant and the intensities m explain.
        ridge = np.diag([0.0, weight.sum() * NOISE**2 / 1000])
        basis = np.stack([np.ones(weight.size), m[part].ravel()], axis=1)
        mixed = basis.T @ (weight.ravel()[:, None] * rows[part].reshape(-1, 12))
        solved_for = np.linalg.solve((basis.T * weight.ravel()) @ basis + ridge, mixed)
        absorbed += 2 * (cov / of_m) ** 2 / of_f * mixed.T @ solved_for / here.sum()
    gradient, curvature = summed(
        both * scale / here.sum(), (a * m - f)[..., None], (a * slopes(moving.image))[..., None]
    )
    curvature -= absorbed.reshape(3, 4, 3, 4)
    found = correlation(images, np.zeros((3, 4)))
    assert found.value == pytest.approx(value / here.sum(), rel=1e-6)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-5 * np.abs(gradient).max())
    np.testing.assert_allclose(found.curvature, curvature, atol=1e-5 * np.abs(curvature).max())


def test_a_constant_window_pulls_nowhere(images: Images) -> None:
    flat = Sampled(images.fixed.features, images.fixed.weight, np.full(SHAPE, 0.3, np.float32))
    windows = Windows.of(images.points, WINDOW)
    terms = correlation_equations(flat, flat, images.points, windows, NOISE)
    (found,) = read_all([terms], HOST)
    assert not found.gradient.any()
    assert np.isfinite(found.value)


def test_a_single_slice_has_no_slope_across() -> None:
    weight = np.ones((1, 12, 12), np.float32)
    points = Points.of(weight, (5.0, 1.0, 1.0), np.array([0.0, 5.5, 5.5]), HOST)
    rng = np.random.default_rng(0)
    one, other = (
        Sampled(rng.normal(size=(1, 12, 12, 2)).astype(np.float32), weight, None) for _ in "ab"
    )
    (found,) = read_all([feature_equations(one, other, points, 2, unrelated=1.0)], HOST)
    assert not found.gradient[2].any()
    assert np.isfinite(solved(found, generators("rigid"), 1e-3)).all()


def test_points_are_limited_and_inner() -> None:
    weight = np.ones((30, 30, 30), np.float32)
    points = Points.of(weight, (1.0, 1.0, 1.0), np.full(3, 14.5), HOST, most=1000)
    index = np.array(np.unravel_index(points.flat, weight.shape))
    assert 500 < points.flat.size <= 1000
    assert index.min() == 1
    assert index.max() <= 28


@pytest.mark.parametrize("model", MODELS)
def test_steps_stay_within_the_model(model: str) -> None:
    basis = generators(model)
    assert len(basis) == np.linalg.matrix_rank(basis.reshape(len(basis), -1)) == PARAMETERS[model]
    rng = np.random.default_rng(4)
    step = np.einsum("k,kia->ia", 0.02 * rng.normal(size=len(basis)), basis)
    start = AffineTransform(rotation(np.array([0.3, -0.2, 0.5])), [40.0, 10.0, -5.0])
    centre = np.array([10.0, -20.0, 30.0])
    moved = stepped(start, step, model, centre)
    np.testing.assert_allclose(nearest_matrix(moved.matrix, model), moved.matrix, atol=1e-12)
    change = compose_affines(invert_affine(start), moved)
    points = centre + rng.normal(size=(20, 3)) * 5
    wanted = points + (points - centre) @ step[:, :3].T + step[:, 3]
    np.testing.assert_allclose(transform_points(change, points), wanted, atol=0.02)


def test_nearest_rigid_map_keeps_the_centre() -> None:
    turn = rotation(np.array([0.1, 0.2, -0.3]))
    centre = np.array([5.0, 6.0, 7.0])
    affine = AffineTransform(1.2 * turn, [1.0, 2.0, 3.0])
    near = nearest_map(affine, "rigid", centre)
    np.testing.assert_allclose(near.matrix, turn, atol=1e-12)
    ends = [transform_points(one, centre[None]) for one in (affine, near)]
    np.testing.assert_allclose(*ends, atol=1e-12)
    mirrored = nearest_matrix(np.diag([1.0, 1.0, -1.0]), "rigid")
    assert np.linalg.det(mirrored) == pytest.approx(1.0)


@pytest.mark.parametrize("vector", [(0.0, 0, 0), (0.3, -1.0, 0.4), (0, np.pi, 0), (3.0, 0.1, 0)])
def test_rotation_vector_gives_the_rotation_back(vector: tuple[float, float, float]) -> None:
    turn = rotation(np.array(vector))
    np.testing.assert_allclose(rotation(rotation_vector(turn)), turn, atol=1e-9)


def test_summary_holds_angle_shift_and_scale() -> None:
    centre = np.array([10.0, 0.0, -4.0])
    matrix = 1.1 * rotation(np.deg2rad([0.0, 0.0, 30.0]))
    affine = AffineTransform(matrix, centre + np.array([1.0, 2.0, 3.0]) - matrix @ centre)
    summary = LinearSummary.of(affine, "similarity", centre)
    assert summary.angle_deg == pytest.approx(30, abs=1e-5)
    assert summary.rotation_deg == pytest.approx((0, 0, 30), abs=1e-5)
    assert summary.translation_mm == pytest.approx((1, 2, 3), abs=1e-5)
    assert summary.scale == pytest.approx(1.1, abs=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_descent_finds_the_map(images: Images, model: str) -> None:
    """The fixed image is the moving one after a shift, which every model can undo."""
    frame = Frame(np.zeros(3), np.eye(3), images.points.radius_mm)
    windows = Windows.of(images.points, WINDOW)

    def objective(affine: AffineTransform) -> NormalEquations:
        step = np.column_stack([affine.matrix - np.eye(3), affine.translation_mm])
        moving = images.moving(step, other=0.0)
        first = feature_equations(images.fixed, moving, images.points, CHANNELS, unrelated=0.0)
        noise = correlation_equations(images.fixed, moving, images.points, windows, NOISE)
        one, other = read_all([first, noise], HOST)
        return one + other.scaled(0.5)

    found = descend(
        objective,
        AffineTransform.identity(),
        model,
        frame,
        least_step_mm=1e-3,
        most_evaluations=30,
    )
    assert found.after < found.before
    corners = np.array(np.meshgrid(*[[-10.0, 10.0]] * 3)).reshape(3, -1).T
    moved = transform_points(found.transform, corners) - corners
    np.testing.assert_allclose(moved, np.tile(SHIFT_MM, (8, 1)), atol=0.05)


def test_descent_never_goes_up() -> None:
    """A gradient of the wrong sign must not lead anywhere."""
    curvature = np.einsum("iajb->iajb", np.einsum("ij,ab->iajb", np.eye(3), np.eye(4)))

    def objective(affine: AffineTransform) -> NormalEquations:
        step = np.column_stack([affine.matrix - np.eye(3), affine.translation_mm])
        return NormalEquations(float((step**2).sum()), -np.ones((3, 4)), curvature)

    start = AffineTransform.identity()
    frame = Frame(np.zeros(3), np.eye(3), 1.0)
    found = descend(objective, start, "affine", frame, least_step_mm=1e-4, most_evaluations=9)
    assert found.after == found.before
    assert found.transform.is_identity()
