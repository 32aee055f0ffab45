"""Sampling of tokens, tissue and joined features against float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from dinoreg_kernels import cover_tissue, join_channels, sample_tokens

SHAPE, OUT = (7, 5, 6), (6, 9, 11)
#: Index maps: finer and coarser, flipped, turned about all axes, and mostly outside.
TURN, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
MAPS = [
    np.column_stack([np.diag([1.2, 0.6, 0.5]), [-0.6, 0.1, 0.3]]),
    np.column_stack([np.diag([-1.0, 1.0, -0.5]), [6.0, -1.5, 5.0]]),
    np.column_stack([0.7 * TURN, [3.0, 2.0, 2.5]]),
    np.column_stack([np.diag([2.5, 0.5, 0.5]), [-3.0, 3.0, 0.0]]),
]
#: Encoded slices: all, with gaps of different widths, at one end only, and a single one.
ENCODED = [(0, 1, 2, 3, 4, 5, 6), (0, 3, 4, 6), (1, 2), (4,)]


def places_of(encoded):
    before = [max([i for i, e in enumerate(encoded) if e <= z], default=0) for z in range(SHAPE[0])]
    share = [0.0] * SHAPE[0]
    for z, i in enumerate(before):
        if i + 1 < len(encoded):
            share[z] = max(0.0, (z - encoded[i]) / (encoded[i + 1] - encoded[i]))
    return np.column_stack([before, share])


def dense(tokens, encoded):
    """Interpolate encoded slices to all slices, (slices, rows, columns, stride)."""
    flat = tokens.reshape(len(encoded), -1)
    columns = [np.interp(np.arange(SHAPE[0]), encoded, column) for column in flat.T]
    return np.stack(columns, -1).reshape(SHAPE[0], *tokens.shape[1:])


@pytest.mark.parametrize("samples", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("index_map", MAPS)
@pytest.mark.parametrize("encoded", ENCODED)
def test_tokens_are_interpolated_between_encoded_slices(device, rng, encoded, index_map, samples):
    tokens = rng.uniform(-1, 1, size=(len(encoded), *SHAPE[1:], 24)).astype(np.float32)
    offsets = rng.uniform(-1, 1, size=(len(encoded), 24)).astype(np.float32)
    out = device.put(np.full((*OUT, 32), 9, np.float16))
    sample_tokens(
        device.put(tokens.reshape(len(encoded), -1, 24)),
        SHAPE[1:],
        device.put(places_of(encoded), np.float32),
        index_map,
        out,
        offsets=device.put(offsets),
        samples=samples,
        factor=0.5,
        first_channel=8,
    )
    exact = dense(tokens.astype(float) - offsets[:, None, None], encoded)
    for channel in range(24):
        expected, share = reference.resample(
            exact[..., channel], OUT, index_map, samples=samples, outside=0.0
        )
        device.check(out[..., 8 + channel], 0.5 * expected)
    assert np.any(share == 0)
    assert np.any(share == 1)
    assert np.all(device.get(out)[..., :8] == 9)


@pytest.mark.parametrize(("first", "stride"), [(0, 16), (3, 8), (12, 16), (17, 8)])
def test_channels_beyond_a_block(device, rng, first, stride):
    """Any first channel; as many are written as there is room for."""
    tokens = rng.uniform(-1, 1, size=(3, 30, stride)).astype(np.float32)
    places = device.put(places_of((0, 3, 6)), np.float32)
    out = device.put(np.full((*SHAPE, 24), 9, np.float16))
    sample_tokens(device.put(tokens), SHAPE[1:], places, np.eye(3, 4), out, first_channel=first)
    written = device.get(out)[..., first : first + stride]
    expected = dense(tokens.reshape(3, 5, 6, stride), (0, 3, 6))[..., : 24 - first]
    device.check(written, expected)
    assert np.all(device.get(out)[..., :first] == 9)
    assert np.all(device.get(out)[..., first + stride :] == 9)


@pytest.mark.parametrize("samples", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("index_map", MAPS)
@pytest.mark.parametrize("box", [((0, 0, 0), (6, 4, 5)), ((2, 0, 0), (4, 4, 5))])
def test_tissue_is_what_interpolation_reads(device, rng, box, index_map, samples):
    image = rng.normal(size=SHAPE).astype(np.float32)
    found = cover_tissue(device.put(image), OUT, index_map, above=1.0, box=box, samples=samples)
    tissue = np.zeros(SHAPE)
    part = tuple(slice(a, b + 1) for a, b in zip(*box, strict=True))
    tissue[part] = image[part] > 1.0
    expected, _ = reference.resample(tissue, OUT, index_map, samples=samples, outside=0.0)
    # Where a point meets a voxel's centre, float32 and float64 may differ in what they read.
    clear = (expected == 0) | (expected > 1e-5)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(device.get(found)[clear], (expected > 0)[clear])
    assert 0 < expected.astype(bool).mean() < 1


@pytest.mark.parametrize(("first", "used"), [(0, 12), (8, 12), (5, 16), (22, 3)])
def test_joined_channels(device, rng, first, used):
    features = rng.uniform(-1, 1, size=(*SHAPE, 16)).astype(np.float16)
    out = device.put(np.full((*SHAPE, 24), 9, np.float16))
    join_channels(device.put(features), used, out, first_channel=first, factor=0.7)
    got, end = device.get(out), min(24, first + used)
    device.check(got[..., first:end], 0.7 * features[..., : end - first].astype(float))
    until = min(24, first + 8 * -(-used // 8))
    assert not got[..., end:until].any()
    assert np.all(got[..., :first] == 9)
    assert np.all(got[..., until:] == 9)
