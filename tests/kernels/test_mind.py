"""MIND-SSC against the reference, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from phantoms import waves
from scipy import ndimage

from dinoreg_kernels import mind_ssc


@pytest.fixture
def image(rng):
    """Make a smooth structure with some noise."""
    smooth = 100 * waves((14, 15, 21), channels=1)[..., 0]
    return np.float32(smooth + 5 * rng.normal(size=smooth.shape))


CASES = {
    "plain": {"radius": (1, 1, 1), "dilation": (2, 2, 2)},
    "anisotropic": {"radius": (0, 1, 2), "dilation": (1, 3, 2)},
    "no patch": {"radius": (0, 0, 0), "dilation": (1, 1, 1)},
    "pooled": {"radius": (1, 1, 1), "dilation": (2, 2, 2), "pool": (3, 2, 4), "scale": 0.75},
    "wide": {"radius": (1, 2, 1), "dilation": (3, 3, 4), "pool": (2, 2, 2), "channels": 24},
}


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(device, image, name):
    out = mind_ssc(device.put(image), **CASES[name])
    device.check(out, reference.mind_ssc(image, **CASES[name]))


@pytest.mark.parametrize("shape", [(1, 15, 21), (14, 1, 21), (14, 15, 1), (1, 1, 1), (2, 3, 5)])
def test_thin_images_and_patches_larger_than_them(device, rng, shape):
    image = rng.normal(size=shape).astype(np.float32)
    case = {"radius": (2, 1, 1), "dilation": (3, 2, 2), "pool": (2, 2, 2)}
    device.check(mind_ssc(device.put(image), **case), reference.mind_ssc(image, **case))


@pytest.mark.parametrize("pool_z", [1, 3, 5, 40])
def test_more_planes_than_one_slab(device, rng, pool_z):
    """The volume is processed in slabs of planes, whose seams must not show."""
    image = rng.normal(size=(37, 5, 9)).astype(np.float32)
    case = {"radius": (1, 1, 1), "dilation": (2, 1, 2), "pool": (pool_z, 1, 1)}
    device.check(mind_ssc(device.put(image), **case), reference.mind_ssc(image, **case))


def test_range_and_padding(device, image):
    """Features lie in 0..1, the best channel of each voxel is 1, and unused channels are 0."""
    out = device.get(mind_ssc(device.put(image), **CASES["plain"])).astype(float)
    assert out.min() >= 0
    np.testing.assert_array_equal(out[..., :12].max(-1), np.ones(image.shape))
    assert (out[..., 12:] == 0).all()


@pytest.mark.parametrize(("gain", "offset"), [(2.0, 0.0), (-1.0, 0.0), (-0.5, 300.0)])
def test_contrast_brightness_and_inversion_do_not_matter(device, image, gain, offset):
    plain = device.get(mind_ssc(device.put(image), **CASES["plain"])).astype(float)
    image = np.round(image)  # so that gain and offset are exact in float32
    plain = mind_ssc(device.put(image), **CASES["plain"])
    changed = mind_ssc(device.put(gain * image + offset, np.float32), **CASES["plain"])
    np.testing.assert_array_equal(device.get(changed), device.get(plain))


def test_shifting_the_image_shifts_the_features(device, image):
    """Away from the border; the floor, which depends on the whole image, is not reached here."""
    image = ndimage.zoom(image, 1.6, order=1).astype(np.float32)
    case = CASES["plain"]
    first = device.get(mind_ssc(device.put(image[:-2, :-1, :-3]), **case)).astype(float)
    second = device.get(mind_ssc(device.put(image[2:, 1:, 3:]), **case)).astype(float)
    inner = (slice(4, -4),) * 3
    limit = 5e-4  # one unit in the last place of half precision
    difference = first[2:, 1:, 3:][inner] - second[:-2, :-1, :-3][inner]
    assert np.abs(difference).max() <= limit


def test_channels_follow_the_axes(device, image):
    """Swapping axes permutes channels: the (z, y) pairs become (z, x) pairs."""
    case = CASES["plain"]
    plain = device.get(mind_ssc(device.put(image), **case))
    turned = device.get(mind_ssc(device.put(image.transpose(0, 2, 1)), **case)).transpose(
        0, 2, 1, 3
    )
    # The floors, from every fourth voxel of another axis, differ by far less than half precision.
    plain, turned = plain.astype(float), turned.astype(float)
    limit = 5e-4  # one unit in the last place, as sums in another order may round differently
    assert np.abs(turned[..., 0:4] - plain[..., 4:8]).max() <= limit
    assert np.abs(turned[..., 4:8] - plain[..., 0:4]).max() <= limit


def test_constant_image_is_all_ones(device):
    """Nothing differs, so every distance is the smallest one."""
    out = device.get(mind_ssc(device.put(np.full((6, 7, 8), 42, np.float32)), **CASES["plain"]))
    assert (out[..., :12] == 1).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_structure_marks_what_is_not_flat(device, image, scale):
    """It is 0 in padding and 1 in the image, whatever the factor on the features."""
    image = np.pad(image, ((0, 0), (0, 0), (0, 20)), constant_values=-1000)
    case = CASES["pooled"] | {"scale": scale}
    expected = reference.mind_ssc(image, **case)
    structure = device.xp.full(expected.shape[:3], 7, np.float32)
    plain = mind_ssc(device.put(image), **case)
    out = mind_ssc(device.put(image), **case, structure=structure)
    np.testing.assert_array_equal(device.get(out), device.get(plain))
    marks = device.get(structure)
    np.testing.assert_array_equal(marks, reference.mind_structure(expected, scale))
    assert (marks[:, :, :5] == 1).all()
    assert (marks[:, :, 7:] == 0).all()


def test_flat_regions_are_not_noise(device, rng):
    """The floor holds down differences far below those of the image."""
    image = np.zeros((12, 12, 40), np.float32)
    image[:, :, :12] = 1000 * rng.normal(size=(12, 12, 12))
    image[:, :, 20:] = 1e-3 * rng.normal(size=(12, 12, 20))
    out = device.get(mind_ssc(device.put(image), **CASES["plain"]))
    assert (out[:, :, 26:, :12] > 0.999).all()


def test_nan_stays_within_reach_of_its_patch(device, image):
    """A NaN voxel spoils features as far as patch and dilation reach, but crashes nothing.

    It also removes the floor, whose mean becomes NaN, so that flat regions lose their protection.
    Images must be finite; this only shows how far the damage goes.
    """
    image[7, 7, 10] = np.nan
    out = device.get(mind_ssc(device.put(image), **CASES["plain"])).astype(float)
    expected = reference.mind_ssc(np.where(np.isnan(image), 0, image), **CASES["plain"])
    touched = np.zeros(image.shape, bool)
    touched[4:11, 4:11, 7:14] = True
    assert np.abs(out - expected)[~touched].max() < 3e-4
    assert out.min() >= 0
    assert out.max() <= 1


def test_features_lie_in_0_to_1_beside_nan(device, image):
    """The smallest distance is that of all numbers, wherever a NaN stands among them."""
    image[::3, ::4, ::5] = np.nan
    for name in ("no patch", "anisotropic"):
        out = device.get(mind_ssc(device.put(image), **CASES[name])).astype(float)
        assert out.min() >= 0
        assert out.max() <= 1
