"""Ops inside the solver, one by one.

Each compiled op is compared with the reference, and the gradients of the reference with finite
differences of its energies.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
from phantoms import waves

SPACING = np.array([2.5, 1.25, 1.5])
SHAPES = [(7, 8, 9), (1, 8, 9), (7, 1, 9), (7, 8, 1), (1, 1, 1), (5, 6, 37)]


def f32(values):
    return np.ascontiguousarray(values, np.float32)


def i32(values):
    return np.ascontiguousarray(values, np.int32)


def numeric_gradient(energy, field, rng, count=60, step=1e-6):
    """Take central differences at some components; returns their flat indices and the values."""
    chosen = rng.choice(field.size, min(count, field.size), replace=False)
    slopes = []
    for i in chosen:
        change = np.zeros(field.size)
        change[i] = step
        change = change.reshape(field.shape)
        slopes.append((energy(field + change) - energy(field - change)) / (2 * step))
    return chosen, np.array(slopes)


# ---- portable.h -----------------------------------------------------------------------------


def test_half_to_float_is_exact_for_every_number(ops):
    halves = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    ops("half_to_float", halves, out, halves.size)
    np.testing.assert_array_equal(out, halves.view(np.float16).astype(np.float32))


def test_float_to_half_rounds_to_nearest_even(ops, rng):
    """Every half, every midpoint between two, their float neighbours, and random numbers."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.unique(halves[np.isfinite(halves)])
    middles = (halves[1:] + halves[:-1]) / 2
    exact = np.concatenate([halves, middles, f32(rng.normal(size=20000) * 1e-4)])
    values = np.concatenate(
        [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, -np.float32(np.inf))]
    )
    extremes = f32([65519, 65520, 1e30, -1e30, np.inf, -np.inf, 1e-40, -0.0])
    values = np.concatenate([values, extremes])
    out = np.empty(values.size, np.uint16)
    ops("float_to_half", values, out, values.size)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(out, expected.view(np.uint16))
    nan = np.empty(1, np.uint16)
    ops("float_to_half", f32([np.nan]), nan, 1)
    assert np.isnan(nan.view(np.float16)).all()


def test_exp2_negative_within_its_stated_error(ops):
    t = f32(np.concatenate([np.linspace(0, 125.5, 200001), [0, 1e-30, 1e4, 3e38, np.inf]]))
    out = np.empty(t.size, np.float32)
    ops("exp2_negative", t, out, t.size)
    expected = np.exp2(-t[:-5].astype(float))
    assert (np.abs(out[:-5] / expected - 1) <= 2e-7).all()
    assert out[0] == 1.0
    assert out[-5] == 1.0
    assert out[-4] == pytest.approx(1.0, abs=1.2e-7)
    assert (out[-3:] < 2e-38).all()


# ---- smooth.h -------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "shape", [(6, 7, 9, 3), (6, 7, 40, 3), (6, 7, 9, 1), (1, 2, 3, 3), (5, 1, 1, 3)]
)
@pytest.mark.parametrize("sigma", [0.4, 1.1, 3.0])
def test_smooth_equals_reference(ops, cpu, rng, shape, axis, sigma):
    """Along each axis, also where the filter is longer than the array and reflected repeatedly."""
    values = f32(rng.normal(size=shape))
    taps = reference.gaussian_taps(sigma, 1.0, max(2, shape[axis]))
    half = f32(taps[taps.size // 2 :])
    out = np.empty_like(values)
    outer, inner = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    ops("smooth", values, out, outer, shape[axis], inner, half, half.size - 1)
    expected = reference.ndimage.correlate1d(values.astype(float), taps, axis=axis, mode="reflect")
    cpu.check(out, expected)


def test_smoothing_keeps_constants_and_is_its_own_transpose(rng):
    """Up to the faces, where a border of zeros would be wrong by a half."""
    shape = (5, 6, 7)
    np.testing.assert_allclose(reference.smooth(np.ones(shape), 3.0, SPACING), 1.0, atol=1e-14)
    a, b = rng.normal(size=(2, *shape))
    left = np.sum(reference.smooth(a, 3.0, SPACING) * b)
    right = np.sum(a * reference.smooth(b, 3.0, SPACING))
    assert left == pytest.approx(right, abs=1e-12)


# ---- pool.h and cost.h ----------------------------------------------------------------------


def planar(features):
    """Reorder (z, y, x, c) to (z, y, c, x)."""
    return f32(np.moveaxis(features, -1, -2))


@pytest.mark.parametrize("offset", [(0, 0, 0), (-3, 2, 5), (40, 0, 0)])
def test_pool_equals_reference(ops, cpu, rng, offset):
    """With partly covered voxels, voxels without weight, and arrays that leave or miss the grid."""
    features = rng.normal(size=(9, 10, 11, 16)).astype(np.float16)
    weight = f32(rng.random((9, 10, 11)) * (rng.random((9, 10, 11)) > 0.6))
    weight[:4, :5, :6] = 0
    factor, margin, shape = (2, 3, 4), (1, 2, 0), (7, 8, 4)
    out = np.empty((7, 8, 16, 4), np.float32)
    out_weight = np.empty(shape, np.float32)
    ops(
        "pool_planar", features, weight, i32(weight.shape), 16, i32(offset), i32(factor),
        i32(margin), out, out_weight, i32(shape),
    )  # fmt: skip
    expected, expected_weight = reference.pool_weighted(
        features, weight, shape, np.array(factor), offset=np.array(offset), margin=np.array(margin)
    )
    cpu.check(out, np.moveaxis(expected, -1, -2))
    cpu.check(out_weight, expected_weight)


@pytest.fixture
def coarse(rng):
    """Make two coarse feature volumes with margins and weights."""
    radius, shape = np.array([1, 2, 1]), np.array([4, 5, 19])
    padded = tuple(shape + 2 * radius)
    features = rng.normal(size=(2, *padded, 16)) + rng.normal(size=(2, 1, 1, 1, 16))
    weight = rng.random((2, *padded)) * (rng.random((2, *padded)) > 0.3)
    return SimpleNamespace(
        radius=radius, shape=tuple(shape), padded=padded, features=features, weight=weight
    )


def unrelated_of(ops, coarse, features, trust_cost=0.0):
    moments = np.empty(coarse.padded[0] * coarse.padded[1] * 16 * 3, np.float32)
    sums = np.empty(2 * 16 * 3)
    out = np.empty(1, np.float32)
    fixed, moving = planar(features[0]), planar(features[1])
    ops(
        "unrelated_cost", fixed, f32(coarse.weight[0]), moving, f32(coarse.weight[1]),
        i32(coarse.padded), 16, moments, sums, trust_cost, out,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("trust_cost", [0.0, 3.0])
def test_unrelated_cost_equals_reference(ops, cpu, coarse, trust_cost):
    out = unrelated_of(ops, coarse, coarse.features, trust_cost)
    fixed, moving = coarse.features
    weights = coarse.weight
    expected = reference.unrelated_cost(fixed, weights[0], moving, weights[1], trust_cost)
    cpu.check(out, np.array([expected]))


def test_unrelated_cost_is_the_mean_over_all_pairs(rng):
    """The moments stand for a comparison of every fixed voxel with every moving one."""
    f, m = rng.normal(size=(2, 1, 1, 30, 8))
    wf, wm = rng.random((2, 1, 1, 30))
    pairs = np.sum((f.reshape(-1, 1, 8) - m.reshape(1, -1, 8)) ** 2, -1)
    mean = np.average(pairs, weights=wf.reshape(-1, 1) * wm.reshape(1, -1))
    assert reference.unrelated_cost(f, wf, m, wm) == pytest.approx(mean, rel=1e-12)


def test_unrelated_cost_of_constant_images_is_not_negative(ops, coarse):
    out = unrelated_of(ops, coarse, np.full(coarse.features.shape, 0.3))
    assert 0 <= out[0] < 1e-4


@pytest.mark.parametrize("trust_cost", [0.0, 3.0])
def test_shift_cost_equals_reference(ops, cpu, coarse, trust_cost):
    fixed, moving = coarse.features
    expected = reference.shift_costs(
        fixed, coarse.weight[0], moving, coarse.weight[1], coarse.radius, 7.0, trust_cost
    )
    first, count = 4, expected.shape[0] - 9
    out = np.empty((count, *coarse.shape), np.float32)
    ops(
        "shift_cost", planar(fixed), f32(coarse.weight[0]), planar(moving), f32(coarse.weight[1]),
        i32(coarse.padded), i32(coarse.shape), 16, i32(coarse.radius), first, count, 7.0,
        trust_cost, out,
    )  # fmt: skip
    cpu.check(out, expected[first : first + count])


@pytest.mark.parametrize("group", [1, 3, 45])
@pytest.mark.parametrize("coupled", [False, True])
def test_best_shift_equals_reference(ops, rng, group, coupled):
    shape, radius, step = (3, 4, 21), (1, 2, 1), (1.0, 0.4, 0.7)
    costs = f32(rng.random((45, *shape)))
    near = rng.normal(size=(*shape, 3)).astype(np.float32)
    best_cost, best = np.empty(shape, np.float32), np.empty(shape, np.int32)
    field = np.empty((*shape, 3), np.float32)
    planes = f32(np.moveaxis(near, -1, 0)) if coupled else None
    ops(
        "best_shift", costs, planes, i32(shape), i32(radius), group, 0.3, f32(step), best_cost,
        best, np.empty((3, *shape), np.float32), field,
    )  # fmt: skip
    expected = reference.best_shift(costs, radius, near if coupled else None, 0.3, step)
    np.testing.assert_array_equal(field, expected)


def test_equal_costs_choose_no_shift(ops):
    """Where nothing favours any shift, the result is none rather than the corner of the search."""
    shape, radius = (2, 3, 21), (1, 1, 1)
    for cost in (0.0, 1e-20, 3.7):
        costs = np.full((27, *shape), cost, np.float32)
        field = np.empty((*shape, 3), np.float32)
        ops(
            "best_shift", costs, None, i32(shape), i32(radius), 3, 0.0, f32([1, 1, 1]),
            np.empty(shape, np.float32), np.empty(shape, np.int32),
            np.empty((3, *shape), np.float32), field,
        )  # fmt: skip
        assert not field.any()


def test_consistency_round_equals_reference(ops, cpu, rng):
    u, v = (3 * rng.normal(size=(2, 6, 7, 8, 3))).astype(np.float32)
    out = np.empty_like(u)
    ops("inverse_consistent", u, v, out, i32(u.shape[:3]), f32(1 / SPACING))
    cpu.check(out, reference.consistency_round(u.astype(float), v.astype(float), SPACING)[0])


def test_warp_vectors_equals_reference(ops, cpu, rng):
    """Warping by a zero field changes nothing but the rounding at the last voxel."""
    vectors, field = (3 * rng.normal(size=(2, 6, 7, 8, 3))).astype(np.float32)
    out = np.empty_like(field)
    shape, unit = i32(field.shape[:3]), f32(1 / SPACING)
    ops("warp_vectors", vectors, field, shape, unit, out)
    points = reference.indices(field.shape[:3]) + field / SPACING
    cpu.check(out, reference.sample(vectors, points))
    ops("warp_vectors", vectors, np.zeros_like(field), shape, unit, out)
    cpu.check(out, vectors)


def test_correct_velocity_adds_what_is_missing(ops, cpu, rng):
    velocity, wanted, reached = f32(rng.normal(size=(3, 1003)))
    expected = velocity + (wanted - reached)
    ops("correct_velocity", velocity, wanted, reached, velocity.size)
    cpu.check(velocity, expected)


# ---- similarity.h ---------------------------------------------------------------------------


@pytest.fixture
def pair(rng):
    """Make features on unequal grids with an offset, weights with holes, and a rough field."""
    shape, moving_shape = (7, 8, 9), (8, 6, 10)
    return SimpleNamespace(
        shape=shape,
        offset=np.array([-1, 2, 1]),
        fixed=rng.normal(size=(*shape, 16)).astype(np.float16),
        moving=rng.normal(size=(*moving_shape, 16)).astype(np.float16),
        fixed_weight=f32(rng.random(shape) * (rng.random(shape) > 0.2)),
        moving_weight=f32(rng.random(moving_shape) * (rng.random(moving_shape) > 0.2)),
        field=f32(3 * rng.normal(size=(*shape, 3))),
    )


def match_weight(pair):
    return reference.match_weight(
        pair.field.astype(float), pair.fixed_weight, pair.moving_weight, SPACING, pair.offset
    )


def check_slopes(pair, moving_shape, energy, gradient, rng, atol=1e-5):
    """Compare a gradient with finite differences where it is exact, see the first use."""
    field = pair.field.astype(float)
    points = reference.indices(pair.shape) - pair.offset + field / SPACING
    last = np.array(moving_shape) - 1
    smooth = (points > 1e-4) & (points < last - 1e-4) & (np.abs(points - np.round(points)) > 1e-4)
    chosen, slopes = numeric_gradient(lambda u: energy(u).sum(), field, rng, count=200)
    kept = smooth.ravel()[chosen]
    assert kept.sum() > 80
    found = gradient(field).ravel()[chosen]
    np.testing.assert_allclose(found[kept], slopes[kept], rtol=1e-5, atol=atol)


def in_blocks(ops, features):
    """Rearrange (z, y, x, channels) to (channels / 8, z, y, x, 8)."""
    *shape, channels = features.shape
    out = np.empty((channels // 8, *shape, 8), np.float16)
    ops("rearrange", features, i32(shape), channels, out)
    return out


def compiled_difference(
    ops, pair, scale=1.0, trust_cost=0.0, norm=0.0, *, blocks=False, known_weight=None
):
    """Run the squared difference or, given a norm, the cosine."""
    energy, overlap = np.empty((2, *pair.shape), np.float32)
    gradient = np.empty((*pair.shape, 3), np.float32)
    fixed, moving = (in_blocks(ops, f) if blocks else f for f in (pair.fixed, pair.moving))
    ops(
        "feature_term", fixed, pair.fixed_weight, i32(pair.shape), moving,
        pair.moving_weight, i32(pair.moving.shape[:3]), f32(pair.offset), pair.fixed.shape[-1],
        pair.field, f32(1 / SPACING), scale, trust_cost, norm, int(blocks), known_weight,
        energy, gradient, overlap,
    )  # fmt: skip
    return energy, gradient, overlap


def test_blocks_of_channels_are_images(ops, pair):
    blocks = in_blocks(ops, pair.fixed)
    np.testing.assert_array_equal(blocks, np.moveaxis(pair.fixed.reshape(*pair.shape, -1, 8), 3, 0))


@pytest.mark.parametrize("norm", [0.0, 16.0])
def test_neither_the_layout_nor_a_known_weight_changes_a_bit(ops, pair, norm):
    plain = compiled_difference(ops, pair, 1.3, 4.0, norm)
    blocks = compiled_difference(ops, pair, 1.3, 4.0, norm, blocks=True)
    known = compiled_difference(ops, pair, 1.3, 4.0, norm, known_weight=plain[2])
    for array, *others in zip(plain, blocks, known, strict=True):
        assert array.any()
        for other in others:
            np.testing.assert_array_equal(array, other)


def test_similarity_equals_reference(ops, cpu, pair):
    energy, gradient, overlap = compiled_difference(ops, pair, 2.5)
    weight = match_weight(pair)
    arguments = (pair.field.astype(float), pair.fixed, pair.moving, weight, SPACING, pair.offset)
    assert 0.2 < (weight > 0).mean() < 0.9
    cpu.check(overlap, weight)
    cpu.check(energy, reference.similarity_energy(*arguments))
    cpu.check(gradient, 2.5 * reference.similarity_gradient(*arguments))


@pytest.mark.parametrize("moving_shape", [(1, 8, 9), (7, 1, 9), (7, 8, 1), (1, 1, 1)])
def test_similarity_on_thin_grids(ops, cpu, pair, rng, moving_shape):
    """An axis of one voxel has no slope."""
    pair.moving = rng.normal(size=(*moving_shape, 16)).astype(np.float16)
    pair.moving_weight = f32(np.ones(moving_shape))
    pair.offset = np.zeros(3, int)
    pair.field *= 0.1
    energy, gradient, overlap = compiled_difference(ops, pair)
    weight = match_weight(pair)
    arguments = (pair.field.astype(float), pair.fixed, pair.moving, weight, SPACING)
    cpu.check(overlap, weight)
    cpu.check(energy, reference.similarity_energy(*arguments))
    cpu.check(gradient, reference.similarity_gradient(*arguments))


def test_similarity_reference_against_finite_differences(pair, rng):
    """At a constant weight, where the voxels around a point do not change.

    That is away from voxel centres and between the outer ones. Beyond them clamping has no slope,
    but the gradient keeps that of the last voxels so that a point can come back.
    """
    settings = (pair.fixed, pair.moving, match_weight(pair), SPACING, pair.offset)
    check_slopes(
        pair,
        pair.moving.shape[:3],
        lambda u: reference.similarity_energy(u, *settings),
        lambda u: reference.similarity_gradient(u, *settings),
        rng,
    )


@pytest.mark.parametrize("norm", [0.0, 16.0])
def test_weightless_and_lost_voxels_have_no_gradient(ops, pair, norm):
    """Nothing pulls a voxel that is masked or has left the moving image, in any direction."""
    pair.fixed_weight[:, :, :4] = 0
    pair.field[:, :, 4:6] = 1000.0
    pair.field[0, 0, 8] = np.nan
    energy, gradient, overlap = compiled_difference(ops, pair, norm=norm)
    for array in (energy, gradient, overlap):
        assert not array[:, :, :6].any()
        assert not array[0, 0, 8].any()
        assert array.any()


def test_cost_is_least_at_the_true_offset():
    """The energy of shifts of the whole volume, in tenths of a voxel around the true one."""
    shape, shift = (10, 11, 12), np.array([1.0, -2.0, 1.0])
    fixed, moving = waves(shape), waves(shape, shift)
    weight = np.zeros(shape)
    weight[3:-3, 3:-3, 3:-3] = 1
    steps = np.arange(-5, 6) / 10
    for axis in range(3):
        energies = []
        for step in steps:
            field = np.tile(shift, (*shape, 1))
            field[..., axis] += step
            energies.append(
                reference.similarity_energy(field, fixed, moving, weight, (1, 1, 1)).sum()
            )
        assert np.argmin(energies) == 5


@pytest.mark.parametrize("trust_cost", [4.0, 40.0])
def test_robust_difference_equals_reference(ops, cpu, pair, trust_cost):
    """The gradient is that of the robust energy, which includes the slope of the factor."""
    energy, gradient, _ = compiled_difference(ops, pair, 1.3, trust_cost)
    arguments = (pair.field.astype(float), pair.fixed, pair.moving)
    difference = reference.similarity_energy(*arguments, np.ones(pair.shape), SPACING, pair.offset)
    factor = reference.robust_factor(difference, trust_cost)
    weight = match_weight(pair)
    assert factor.min() < 0.5
    cpu.check(energy, weight * factor * difference)
    slope = reference.similarity_gradient(*arguments, weight, SPACING, pair.offset)
    cpu.check(gradient, 1.3 * factor[..., None] ** 2 * slope)


def test_robust_reference_against_finite_differences():
    """d/dv of v / (1 + v / c) is the square of the factor."""
    v, step = np.linspace(0, 50, 21), 1e-6
    energy = lambda values: values * reference.robust_factor(values, 7.0)  # noqa: E731
    slope = (energy(v + step) - energy(v - step)) / (2 * step)
    np.testing.assert_allclose(slope, reference.robust_factor(v, 7.0) ** 2, rtol=1e-6)
    assert (reference.robust_factor(v, 0.0) == 1).all()


@pytest.mark.parametrize("channels", [8, 24])
@pytest.mark.parametrize("trust_cost", [0.0, 40.0])
def test_cosine_equals_reference(ops, cpu, pair, rng, channels, trust_cost):
    """With vectors of very unequal lengths, among them zeros."""
    for name in ("fixed", "moving"):
        shape = getattr(pair, name).shape[:3]
        length = np.exp(2 * rng.normal(size=shape)) * (rng.random(shape) > 0.1)
        values = rng.normal(size=(*shape, channels)) * length[..., None]
        setattr(pair, name, values.astype(np.float16))
    norm = float(reference.mean_square(pair.fixed, pair.fixed_weight))
    energy, gradient, overlap = compiled_difference(ops, pair, 1.3, trust_cost, norm)
    arguments = (pair.field.astype(float), pair.fixed, pair.moving)
    place = (SPACING, pair.offset, norm)
    weight = match_weight(pair)
    cost = reference.cosine_energy(*arguments, np.ones(pair.shape), *place)
    factor = reference.robust_factor(cost, trust_cost)
    cpu.check(overlap, weight)
    cpu.check(energy, weight * factor * cost)
    expected = 1.3 * factor[..., None] ** 2 * reference.cosine_gradient(*arguments, weight, *place)
    assert np.abs(expected).max() > 0.5
    cpu.check(gradient, expected)


@pytest.mark.parametrize("moving_shape", [(1, 8, 9), (7, 8, 1), (1, 1, 1)])
def test_cosine_on_thin_grids(ops, cpu, pair, rng, moving_shape):
    pair.moving = rng.normal(size=(*moving_shape, 16)).astype(np.float16)
    pair.moving_weight = f32(np.ones(moving_shape))
    pair.offset = np.zeros(3, int)
    pair.field *= 0.1
    energy, gradient, _ = compiled_difference(ops, pair, norm=16.0)
    weight = match_weight(pair)
    arguments = (pair.field.astype(float), pair.fixed, pair.moving, weight, SPACING, pair.offset)
    cpu.check(energy, reference.cosine_energy(*arguments, 16.0))
    cpu.check(gradient, reference.cosine_gradient(*arguments, 16.0))


def test_cosine_reference_against_finite_differences(pair, rng):
    """Where the gradient is exact, as for the squared difference."""
    settings = (pair.fixed, pair.moving, match_weight(pair), SPACING, pair.offset, 16.0)
    check_slopes(
        pair,
        pair.moving.shape[:3],
        lambda u: reference.cosine_energy(u, *settings),
        lambda u: reference.cosine_gradient(u, *settings),
        rng,
    )


def test_cosine_is_blind_to_length_and_costs_what_the_difference_does_at_equal_lengths(ops, pair):
    pair.moving_weight[:] = pair.fixed_weight[:] = 1
    pair.field[:] = 0
    pair.offset[:] = 0
    pair.moving = pair.moving[:7, :6, :9]
    pair.moving_weight = pair.moving_weight[:7, :6, :9].copy()
    for name in ("fixed", "moving"):
        values = getattr(pair, name).astype(float)
        values *= 4 / np.linalg.norm(values, axis=-1, keepdims=True)
        setattr(pair, name, np.ascontiguousarray(values, np.float16))
    plain = compiled_difference(ops, pair)[0]
    cosine = compiled_difference(ops, pair, norm=16.0)[0]
    # Half precision leaves lengths of 4 +- 0.002, and the guard takes a thousandth of the cosine.
    np.testing.assert_allclose(cosine, plain, rtol=2e-3, atol=0.04)
    pair.moving = np.float16(2 * pair.moving)
    np.testing.assert_allclose(compiled_difference(ops, pair, norm=16.0)[0], cosine, atol=0.04)
    assert np.abs(compiled_difference(ops, pair)[0] - plain).max() > 10


def test_feature_square_and_channel_equal_reference(ops, cpu, pair):
    out = np.empty(pair.shape, np.float32)
    ops("feature_square", pair.fixed, pair.fixed_weight, i32(pair.shape), 16, out)
    cpu.check(out, pair.fixed_weight * np.sum(pair.fixed.astype(float) ** 2, -1))
    for channel in (0, 5, 15):
        ops("feature_channel", pair.fixed, i32(pair.shape), 16, channel, out)
        np.testing.assert_array_equal(out, pair.fixed[..., channel].astype(np.float32))


# ---- correlation.h --------------------------------------------------------------------------

WINDOW_MM, NOISE = 2.5, 0.1


@pytest.fixture
def image_pair(pair, rng):
    """Add smooth intensities to the grids, weights and field of `pair`."""
    pair.images = tuple(
        f32(0.5 + 0.4 * waves(shape, channels=1, wavelengths=(5, 12))[..., 0])
        for shape in (pair.shape, pair.moving.shape[:3])
    )
    return pair


def compiled_correlation(ops, pair, images, scale=1.0, *, squared=True):
    energy, gradient = np.zeros(pair.shape, np.float32), np.zeros((*pair.shape, 3), np.float32)
    taps = [
        reference.gaussian_taps(WINDOW_MM, spacing, n)
        for spacing, n in zip(SPACING, pair.shape, strict=True)
    ]
    weights = f32(np.concatenate([t[t.size // 2 :] for t in taps]))
    ops(
        "correlation", images[0], pair.fixed_weight, i32(pair.shape), images[1],
        pair.moving_weight, i32(images[1].shape), f32(pair.offset), pair.field, f32(1 / SPACING),
        weights, i32([t.size // 2 for t in taps]), NOISE, int(squared), scale,
        energy, gradient,
    )  # fmt: skip
    return energy, gradient


@pytest.mark.parametrize("squared", [True, False])
def test_correlation_equals_reference(ops, cpu, image_pair, squared):
    pair = image_pair
    energy, gradient = compiled_correlation(ops, pair, pair.images, 1.7, squared=squared)
    weight = match_weight(pair)
    arguments = (pair.field.astype(float), pair.images, weight, SPACING, WINDOW_MM, NOISE)
    cpu.check(energy, reference.correlation_energy(*arguments, pair.offset, squared=squared))
    expected = 1.7 * reference.correlation_gradient(*arguments, pair.offset, squared=squared)
    assert np.abs(expected).max() > 0.1
    cpu.check(gradient, expected)


@pytest.mark.parametrize("squared", [True, False])
def test_correlation_reference_against_finite_differences(image_pair, rng, squared):
    """Where the gradient is exact, as for the features."""
    pair = image_pair
    settings = (pair.images, match_weight(pair), SPACING, WINDOW_MM, NOISE, pair.offset)
    check_slopes(
        pair,
        pair.images[1].shape,
        lambda u: reference.correlation_energy(u, *settings, squared=squared),
        lambda u: reference.correlation_gradient(u, *settings, squared=squared),
        rng,
        atol=1e-6,
    )


def test_correlation_is_blind_to_brightness_contrast_and_sign(ops, image_pair):
    """If noise is far below the structure, only the shape of the intensities counts."""
    pair, (fixed, moving) = image_pair, image_pair.images
    pair.fixed_weight[:] = 1
    pair.moving_weight[:] = 1
    plain, _ = compiled_correlation(ops, pair, (f32(30 * fixed), f32(30 * moving)))
    turned, _ = compiled_correlation(ops, pair, (f32(30 * fixed), f32(70 - 60 * moving)))
    # 1 - rho^2 is below 1. Measured: 5e-3, because variances are differences of two sums.
    np.testing.assert_allclose(turned, plain, atol=1e-2)
    assert plain.std() > 0.05
    # 1 - rho depends on the sign: what it gains with one it loses with the other.
    plain, _ = compiled_correlation(ops, pair, (f32(30 * fixed), f32(30 * moving)), squared=False)
    turned, _ = compiled_correlation(
        ops, pair, (f32(30 * fixed), f32(70 - 60 * moving)), squared=False
    )
    weight, _ = compiled_correlation(ops, pair, (f32(0 * fixed), f32(moving)), squared=False)
    np.testing.assert_allclose(plain + turned, 2 * weight, atol=1e-2)


# ---- regularity.h ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_gradient_equals_reference(ops, cpu, rng, shape):
    field, start = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    out = start.copy()
    ops("smoothness_gradient", field, out, i32(shape), f32(2 * 0.7 / SPACING**2))
    cpu.check(out, start + reference.smoothness_gradient(field.astype(float), SPACING, 0.7))


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothness_reference_against_finite_differences(rng, shape):
    field = rng.normal(size=(*shape, 3))
    chosen, slopes = numeric_gradient(
        lambda u: reference.smoothness_energy(u, SPACING, 0.7), field, rng
    )
    gradient = reference.smoothness_gradient(field, SPACING, 0.7)
    np.testing.assert_allclose(gradient.ravel()[chosen], slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_gradient_equals_reference(ops, cpu, rng, shape):
    field, start = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    out = start.copy()
    ops("fold_gradient", field, out, i32(shape), f32(1 / SPACING), 0.6, 1.3)
    cpu.check(out, start + reference.fold_gradient(field.astype(float), SPACING, 0.6, 1.3))


@pytest.mark.parametrize("shape", SHAPES)
def test_fold_reference_against_finite_differences(rng, shape):
    field = rng.normal(size=(*shape, 3))
    if max(shape) > 1:
        assert reference.fold_energy(field, SPACING, 0.6) > 0
    chosen, slopes = numeric_gradient(
        lambda u: reference.fold_energy(u, SPACING, 0.6, 1.3), field, rng
    )
    gradient = reference.fold_gradient(field, SPACING, 0.6, 1.3)
    np.testing.assert_allclose(gradient.ravel()[chosen], slopes, rtol=1e-6, atol=1e-6)


def test_gentle_and_constant_fields_are_not_pushed(ops):
    """There is no fold force above the margin and no smoothness force on constants."""
    shape = (6, 7, 8)
    out = np.zeros((*shape, 3), np.float32)
    gentle = f32(0.2 * waves(shape, channels=3))
    ops("fold_gradient", gentle, out, i32(shape), f32(1 / SPACING), 0.1, 1.0)
    assert not out.any()
    ops("smoothness_gradient", np.full_like(out, 7.5), out, i32(shape), f32([1, 1, 1]))
    assert not out.any()


def test_fold_gradient_descent_unfolds(ops):
    """Descending along the compiled gradient removes a fold."""
    shape = (5, 5, 12)
    field = np.zeros((*shape, 3), np.float32)
    field[:, :, 6:, 2] = -2.0
    assert reference.fold_energy(field.astype(float), (1, 1, 1), 0.1) > 1
    for _ in range(400):
        gradient = np.zeros_like(field)
        ops("fold_gradient", field, gradient, i32(shape), f32([1, 1, 1]), 0.1, 1.0)
        field -= 0.05 * gradient
    determinant = np.linalg.det(reference.forward_jacobian(field.astype(float), (1, 1, 1)))
    assert determinant.min() > 0.05


# ---- adam.h ---------------------------------------------------------------------------------


def test_adam_equals_reference(ops, cpu, rng):
    """Five steps with gradients over many orders of magnitude, among them zeros."""
    count = 1003
    value = f32(rng.normal(size=count))
    expected = reference.Adam(value.astype(float), 0.3)
    first, second = np.zeros((2, count), np.float32)
    for t in range(1, 6):
        gradient = f32(rng.normal(size=count) * 10.0 ** rng.uniform(-6, 6, count))
        gradient[::10] = 0
        step, correction = 0.3 / (1 - 0.9**t), 1 / (1 - 0.999**t)
        ops("adam", value, gradient, first, second, count, step, correction, 1e-8)
        expected.step(gradient.astype(float))
    cpu.check(value, expected.value)


def test_first_adam_step_has_the_learning_rate_as_length(ops):
    value, gradient = np.zeros(4, np.float32), f32([5, -0.01, 1e3, 0])
    first, second = np.zeros((2, 4), np.float32)
    ops("adam", value, gradient, first, second, 4, 0.3 / 0.1, 1 / 0.001, 1e-8)
    np.testing.assert_allclose(value, [-0.3, 0.3, -0.3, 0], rtol=1e-4)


def test_small_gradients_make_small_steps(ops, cpu, rng):
    """A step is half as long where the gradient equals epsilon, a share of a component."""
    shape = (3, 4, 5)
    vectors, epsilon = f32(rng.normal(size=(*shape, 3))), np.empty(1, np.float32)
    squares = np.empty(shape, np.float32)
    ops("epsilon", vectors, i32(shape), 0.3, squares, epsilon)
    cpu.check(squares, (vectors.astype(float) ** 2).sum(-1))
    expected = 0.3 * np.sqrt((vectors.astype(float) ** 2).mean())
    cpu.check(epsilon, np.array([expected]))
    value, gradient = np.zeros(3, np.float32), f32([expected, -expected / 9, 99 * expected])
    first, second = np.zeros((2, 3), np.float32)
    ops("adam", value, gradient, first, second, 3, 1 / 0.1, 1 / 0.001, float(epsilon[0]))
    np.testing.assert_allclose(value, [-0.5, 0.1, -0.99], rtol=1e-4)


def test_factors_of_adam_equal_the_powers(ops):
    """1 / (1 - beta^t) is updated instead of computed as a power; the penalty's share is exact."""
    count, rate, weight, earlier, everything = 1000, 0.3, 30.0, 40, 1040
    factors = np.empty((count, 3), np.float32)
    ops("advance_iteration", 0.9, 0.999, rate, weight, earlier, everything, count, factors)
    beta1, beta2, rate = (float(np.float32(v)) for v in (0.9, 0.999, rate))
    t = np.arange(1, count + 1)
    share = (earlier + t - 1) / everything
    expected = np.stack([rate / (1 - beta1**t), 1 / (1 - beta2**t), weight * share**2], axis=-1)
    # In double precision both ways differ by less than a float resolves.
    np.testing.assert_array_equal(factors, expected.astype(np.float32))


# ---- sum.h ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_sum_equals_reference(ops, rng, shape):
    """To the last digits of a double, with values that cancel to a millionth of their size."""
    values = f32(rng.normal(size=shape))
    values -= values.mean(dtype=np.float64).astype(np.float32)
    out, partial = np.zeros(1), np.zeros(shape[0] * shape[1] + shape[0])
    ops("sum", values, i32(shape), partial, out)
    assert out[0] == pytest.approx(math.fsum(values.ravel()), abs=1e-15 * values.size)


def test_quotient_of_nothing_is_zero(ops):
    out = np.full(1, 7.0)
    for a, b, expected in ((3.0, 4.0, 0.75), (3.0, 0.0, 0.0), (0.0, 0.0, 0.0)):
        ops("quotient", np.array([a]), np.array([b]), out)
        assert out[0] == expected
