"""Resampling of images and labels against the reference, and what holds for any input."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from dinoreg_kernels import resample, resample_labels

IDENTITY = np.eye(3, 4)
#: Rotation, shear, scale and shift, which take some of the points out of the image. There are no
#: round numbers, because a point exactly on a boundary may fall to either side.
OBLIQUE = np.array(
    [
        [0.91372943, 0.20713457, -0.10931283, -1.31711979],
        [-0.15313371, 1.12191713, 0.21133529, -0.70579177],
        [0.10391117, -0.25791391, 1.05313733, 2.20933171],
    ]
)
TO_FIELD = np.array([[0.5, 0.02, 0, 0.3], [0, 0.4, 0.03, -0.2], [0.01, 0, 0.6, -0.4]])


def shift_map(*offset):
    return np.column_stack([np.eye(3), offset])


@pytest.fixture
def image(rng):
    return rng.normal(size=(12, 14, 16)).astype(np.float32)


@pytest.fixture
def mapping(rng):
    """Make a field on a coarser grid, and a full matrix on its vectors."""
    field = rng.normal(size=(7, 6, 10, 3)).astype(np.float32)
    return {"field": field, "to_field": TO_FIELD, "matrix": rng.normal(size=(3, 3))}


def on(device, mapping):
    return {k: device.put(v) if k == "field" else v for k, v in mapping.items()}


@pytest.mark.parametrize("samples", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("with_field", [False, True])
def test_resample_equals_reference(device, image, mapping, samples, with_field):
    shape = (11, 13, 9)
    mapping = mapping if with_field else {}
    share = device.xp.empty(shape, np.float32)
    out = resample(
        device.put(image),
        shape,
        OBLIQUE,
        samples=samples,
        outside=-7.5,
        inside=share,
        **on(device, mapping),
    )
    expected, expected_share = reference.resample(
        image, shape, OBLIQUE, samples=samples, outside=-7.5, **mapping
    )
    device.check(out, expected)
    device.check(share, expected_share)
    assert 0 < expected_share.mean() < 1


def assert_equal_but_for_the_far_faces(device, actual, expected):
    """Compare all bits, but for the last voxel of an axis: a + 1 (b - a) is rounded once."""
    actual = device.get(actual)
    np.testing.assert_array_equal(actual[:-1, :-1, :-1], expected[:-1, :-1, :-1])
    assert np.abs(actual - expected).max() <= 1e-6


def test_identity_keeps_the_image(device, image):
    put = device.put(image)
    assert_equal_but_for_the_far_faces(device, resample(put, image.shape, IDENTITY), image)
    zero = device.xp.zeros((2, 2, 2, 3), np.float32)
    out = resample(put, image.shape, IDENTITY, field=zero)
    assert_equal_but_for_the_far_faces(device, out, image)


def test_constant_field_is_a_shift(device, image):
    field = device.put(np.broadcast_to(np.float32([1, -2, 3]), (3, 3, 3, 3)))
    out = device.get(resample(device.put(image), image.shape, IDENTITY, field=field, outside=9))
    device.check(out[:-1, 2:, :-3], image[1:, :-2, 3:])
    assert (out[-1] == 9).all()
    assert (out[:, :2] == 9).all()
    assert (out[:, :, -3:] == 9).all()


def test_warp_is_linear_in_the_image(device, image, mapping, rng):
    other = rng.normal(size=image.shape).astype(np.float32)

    def warp(values):
        put = device.put(values, np.float32)
        return device.get(resample(put, image.shape, OBLIQUE, **on(device, mapping)))

    device.check(warp(2 * image - 3 * other), 2.0 * warp(image) - 3.0 * warp(other))


def test_linear_image_is_sampled_exactly_at_full_scale(device):
    """Coordinates are scaled by n / n, not n / (n - 1): a shift of 5.25 voxels stays one."""
    ramp = reference.indices((4, 5, 40)) @ [100.0, 10.0, 1.0]
    out = device.get(resample(device.put(ramp, np.float32), ramp.shape, shift_map(0, 0, 5.25)))
    device.check(out[:, :, :34], ramp[:, :, :34] + 5.25)


def test_border_half_voxel_is_inside_and_clamped(device, image):
    """The image reaches half a voxel beyond the outer centres, and no further."""
    put = device.put(image)
    within = device.get(resample(put, image.shape, shift_map(0, 0, 0.5), outside=9))
    beyond = device.get(resample(put, image.shape, shift_map(0, 0, 0.501), outside=9))
    device.check(within[:, :, -1], image[:, :, -1])
    assert (beyond[:, :, -1] == 9).all()


@pytest.mark.parametrize("samples", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("matrix", [OBLIQUE, shift_map(-5.2, 6.1, 20.4)])
def test_the_border_is_continued_if_requested(device, image, samples, matrix):
    shape = (11, 13, 23)
    out = resample(device.put(image), shape, matrix, samples=samples, outside=None)
    expected, share = reference.resample(image, shape, matrix, samples=samples, outside=None)
    device.check(out, expected)
    assert share.min() == 0


def test_antialiasing_averages_whole_blocks(device, image):
    """Two points per axis on a grid of half the resolution give the mean over 2 x 2 x 2 voxels."""
    halve = np.column_stack([2 * np.eye(3), [0.5] * 3])
    out = resample(device.put(image), (6, 7, 8), halve, samples=(2, 2, 2))
    device.check(out, image.reshape(6, 2, 7, 2, 8, 2).astype(float).mean((1, 3, 5)))


@pytest.mark.parametrize("shape", [(1, 14, 16), (12, 1, 16), (12, 14, 1), (1, 1, 1), (3, 5, 7)])
def test_thin_and_odd_images(device, rng, shape):
    image = rng.normal(size=shape).astype(np.float32)
    matrix = shift_map(0.2, -0.3, 0.4)
    out = resample(device.put(image), shape, matrix, outside=-1)
    device.check(out, reference.resample(image, shape, matrix, outside=-1)[0])


def test_constant_image_stays_constant(device, mapping):
    image = device.put(np.full((12, 14, 16), 3.25, np.float32))
    out = device.get(resample(image, (9, 9, 9), OBLIQUE, outside=3.25, **on(device, mapping)))
    device.check(out, np.full((9, 9, 9), 3.25))


def test_nan_voxel_spreads_to_its_neighbours_only(device, image):
    image[6, 7, 8] = np.nan
    out = device.get(resample(device.put(image), image.shape, shift_map(0.5, 0.5, 0.5), outside=0))
    bad = np.argwhere(np.isnan(out))
    assert bad.min(0).tolist() == [5, 6, 7]
    assert bad.max(0).tolist() == [6, 7, 8]
    assert len(bad) == 8


def test_nan_and_infinite_displacements_are_outside(device, image):
    field = np.zeros((12, 14, 16, 3), np.float32)
    field[3, 4, 5, 1], field[6, 7, 8, 0], field[9, 9, 9, 2] = np.nan, np.inf, -3e38
    out = device.get(
        resample(device.put(image), image.shape, IDENTITY, field=device.put(field), outside=9)
    )
    assert np.isfinite(out).all()
    assert out[3, 4, 5] == out[6, 7, 8] == out[9, 9, 9] == 9


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("with_field", [False, True])
def test_labels_equal_reference(device, rng, mapping, nearest, with_field):
    labels = rng.integers(0, 4, (12, 14, 16)).astype(np.int32)
    mapping = mapping if with_field else {}
    out = resample_labels(
        device.put(labels), (11, 13, 9), OBLIQUE, nearest=nearest, **on(device, mapping)
    )
    expected = reference.resample_labels(labels, (11, 13, 9), OBLIQUE, nearest=nearest, **mapping)
    np.testing.assert_array_equal(device.get(out), expected)


def test_labels_identity_and_values(device, rng):
    """No label is invented, and large and negative ones survive."""
    labels = rng.choice(np.int32([-5, 0, 7, 2**31 - 1, 2**24 + 1]), (9, 10, 11))
    put = device.put(labels)
    for nearest in (False, True):
        same = resample_labels(put, labels.shape, IDENTITY, nearest=nearest)
        np.testing.assert_array_equal(device.get(same), labels)
        out = device.get(resample_labels(put, (20, 20, 20), OBLIQUE / 2, nearest=nearest))
        assert set(np.unique(out)) <= set(np.unique(labels)) | {0}


def test_nearest_label_rounds_halves_up_and_ties_take_the_smaller_label(device):
    labels = device.put(np.int32([[[5, 3, 8, 8]]]))
    half = shift_map(0, 0, 0.5)
    nearest = device.get(resample_labels(labels, (1, 1, 4), half, nearest=True))
    heaviest = device.get(resample_labels(labels, (1, 1, 4), half))
    assert nearest.tolist() == [[[3, 8, 8, 8]]]
    assert heaviest.tolist() == [[[3, 3, 8, 8]]]
