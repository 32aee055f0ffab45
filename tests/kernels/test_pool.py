"""Features on a coarser grid against the reference, and what holds for any input."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from dinoreg_kernels import pool_features


def some(rng, shape, channels=16):
    weight = rng.random(shape).astype(np.float32)
    return rng.random((*shape, channels)).astype(np.float16), weight


@pytest.mark.parametrize(
    ("shape", "factor", "offset"),
    [
        ((6, 8, 10), (2, 2, 2), (0, 0, 0)),
        ((7, 9, 11), (2, 2, 2), (1, 0, 1)),
        ((5, 6, 7), (1, 3, 4), (0, 2, 3)),
        ((1, 1, 1), (2, 2, 2), (1, 1, 1)),
        ((3, 4, 5), (9, 9, 9), (0, 4, 8)),
    ],
)
def test_equals_reference(device, rng, shape, factor, offset):
    features, weight = some(rng, shape)
    weight[: shape[0] // 2] = 0.0
    found = pool_features(device.put(features), device.put(weight), factor, offset=offset)
    expected = reference.pool_weighted(
        features, weight, found[1].shape, np.array(factor), offset=offset
    )
    device.check(found[0], expected[0])
    device.check(found[1], expected[1])


def test_blocks_of_one_voxel_are_the_voxels(device, rng):
    features, weight = some(rng, (4, 5, 6))
    pooled, means = pool_features(device.put(features), device.put(weight), (1, 1, 1))
    np.testing.assert_allclose(device.get(pooled), features, rtol=1e-3)
    np.testing.assert_array_equal(device.get(means), weight)


def test_blocks_without_weight_hold_zeros(device, rng):
    features, weight = some(rng, (4, 4, 4))
    weight[:2, :2, :2] = 0.0
    pooled, means = pool_features(device.put(features), device.put(weight), (2, 2, 2))
    assert not device.get(pooled)[0, 0, 0].any()
    assert device.get(means)[0, 0, 0] == 0.0
    assert device.get(pooled)[1, 1, 1].any()


def test_an_offset_moves_whole_blocks(device, rng):
    """If the first block lacks one voxel, all other blocks are those of the rest."""
    features, weight = some(rng, (5, 5, 5))
    late = [device.put(a[1:, 1:, 1:]) for a in (features, weight)]
    whole = pool_features(device.put(features), device.put(weight), (2, 2, 2), offset=(1, 1, 1))
    for there, rest in zip(whole, pool_features(*late, (2, 2, 2)), strict=True):
        np.testing.assert_array_equal(device.get(there)[1:, 1:, 1:], device.get(rest))


def test_nan_stays_in_its_block(device, rng):
    features, weight = some(rng, (4, 4, 4))
    features[0, 0, 0, 3] = np.nan
    pooled = device.get(pool_features(device.put(features), device.put(weight), (2, 2, 2))[0])
    assert np.isnan(pooled[0, 0, 0, 3])
    assert np.isnan(pooled).sum() == 1
