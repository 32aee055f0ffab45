"""Feature sets: MIND-SSC of a working image, and joined sets."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_grid

from dinoreg_rt.device.choice import Device
from dinoreg_rt.features.joined import add_features, join_features
from dinoreg_rt.features.mind import (
    FeaturePair,
    MindFeatures,
    WorkingImage,
    padded_channels,
    patch_radius,
)

CPU = Device("cpu", threads=1)
SHAPE = (3, 4, 5)


def pair(rng: np.random.Generator, channels: int) -> FeaturePair:
    def features() -> np.ndarray:
        array = np.full((*SHAPE, padded_channels(channels)), 9, np.float16)  # arbitrary padding
        array[..., :channels] = rng.uniform(0, 1, (*SHAPE, channels))
        return array

    def weight() -> np.ndarray:
        return rng.uniform(0, 1, SHAPE).astype(np.float32)

    return FeaturePair(features(), features(), weight(), weight(), channels)


def squared_distance(features: FeaturePair) -> np.ndarray:
    used = slice(None, features.channels)
    difference = features.fixed[..., used].astype(float) - features.moving[..., used]
    return np.square(difference).sum(-1)


def test_padded_channels() -> None:
    assert [padded_channels(n) for n in (1, 8, 9, 12, 24)] == [8, 8, 16, 16, 24]


def test_joined_distance_is_the_weighted_mean(rng: np.random.Generator) -> None:
    sets, weights = [pair(rng, n) for n in (12, 5, 24)], [1.0, 0.25, 3.0]
    joined = join_features(sets, weights, CPU)
    assert joined.channels == 41
    expected = sum(w * squared_distance(s) for w, s in zip(weights, sets, strict=True)) / 4.25
    # Half precision. Measured: 7e-4.
    np.testing.assert_allclose(squared_distance(joined), expected, rtol=2e-3)


def test_joined_padding_is_zero(rng: np.random.Generator) -> None:
    joined = join_features([pair(rng, 12), pair(rng, 5)], [1.0, 2.0], CPU)
    for array in (joined.fixed, joined.moving):
        assert array.dtype == np.float16
        assert array.shape == (*SHAPE, 24)
        assert not array[..., joined.channels :].any()


def test_joined_weight_is_the_larger(rng: np.random.Generator) -> None:
    first, second = pair(rng, 3), pair(rng, 4)
    joined = join_features([first, second], [1.0, 1.0], CPU)
    expected = np.maximum(first.fixed_weight, second.fixed_weight)
    np.testing.assert_array_equal(joined.fixed_weight, expected)


@pytest.mark.parametrize("first", [8, 5])
def test_adding_in_place_is_joining(rng: np.random.Generator, first: int) -> None:
    """Features that were made with room for others, and their own factor, give the same bits."""
    sets = [pair(rng, first), pair(rng, 12)]
    expected = join_features(sets, [1.0, 3.0], CPU)
    arrays = [np.zeros((*SHAPE, padded_channels(first + 12)), np.float16) for _ in range(2)]
    for array, own in zip(arrays, (sets[0].fixed, sets[0].moving), strict=True):
        array[..., :first] = np.float16(0.5) * own[..., :first]  # the root of 1 / (1 + 3)
    room = FeaturePair(*arrays, sets[0].fixed_weight, sets[0].moving_weight, first)
    joined = add_features(room, sets[1], 0.75**0.5, CPU)
    for name in ("fixed", "moving", "fixed_weight", "moving_weight"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(expected, name))
    assert joined.channels == expected.channels


def test_one_set_is_passed_on(rng: np.random.Generator) -> None:
    one = pair(rng, 12)
    for weight in (1.0, 0.25):
        assert join_features([one], [weight], CPU) is one


def mind_of(array: np.ndarray, pool: tuple[int, int, int], scale: float = 1.0) -> FeaturePair:
    grid = make_grid(array.shape, (2.0, 2.0, 2.0))
    image = WorkingImage(array.astype(np.float32), grid, pool)
    return MindFeatures(2.0, 4.0, scale).compute(image, image, CPU)


@pytest.mark.parametrize("pool", [(1, 1, 1), (2, 2, 2), (1, 3, 2)])
def test_mind_on_the_control_grid(rng: np.random.Generator, pool: tuple[int, int, int]) -> None:
    features = mind_of(rng.random((9, 14, 11)), pool)
    control = tuple(-(-n // p) for n, p in zip((9, 14, 11), pool, strict=True))
    assert features.fixed.shape == (*control, 16)
    assert features.fixed_weight.shape == control
    assert features.channels == 12
    assert features.fixed.min() >= 0
    assert features.fixed.max() <= 1
    assert not features.fixed[..., 12:].any()
    np.testing.assert_array_equal(features.fixed, features.moving)


def test_mind_does_not_see_the_contrast(rng: np.random.Generator) -> None:
    """An inverted and stretched image has the same features."""
    image = rng.random((10, 12, 14))
    first, second = mind_of(image, (2, 2, 2)), mind_of(3 - 2 * image, (2, 2, 2))
    difference = first.fixed.astype(float) - second.fixed
    # Measured: 0; another order of operations may round differently.
    assert np.abs(difference).max() < 1e-3


def test_mind_scale(rng: np.random.Generator) -> None:
    image = rng.random((10, 12, 14))
    one, half = mind_of(image, (2, 2, 2)), mind_of(image, (2, 2, 2), 0.5)
    np.testing.assert_allclose(half.fixed.astype(float), 0.5 * one.fixed, atol=5e-4)
    np.testing.assert_array_equal(half.fixed_weight, one.fixed_weight)


def test_flat_places_have_no_weight(rng: np.random.Generator) -> None:
    image = np.zeros((12, 12, 40))
    image[..., 24:] = rng.random((12, 12, 16))
    weight = mind_of(image, (2, 2, 2)).fixed_weight
    assert not weight[..., :9].any()  # at least 6 voxels away from all structure
    assert weight[..., 12:].all()


def test_a_patch_does_not_reach_across_thick_slices() -> None:
    grid = make_grid((9, 40, 40), (1.25, 1.25, 7.7))
    assert patch_radius(1.25, grid) == (0, 1, 1)
    assert patch_radius(2.5, grid) == (0, 2, 2)
    assert patch_radius(2.5, make_grid((40, 40, 40), (1.25, 1.25, 1.25))) == (2, 2, 2)
