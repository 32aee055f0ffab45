"""Slices for an encoder against the reference, and what holds for any input."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from dinoreg_kernels import cut_slices

#: The order of the array's axes, and which of them run backwards.
LAYOUTS = [((0, 1, 2), ()), ((2, 0, 1), (1,)), ((1, 2, 0), (0, 2)), ((2, 1, 0), (0, 1, 2))]
#: Size and points per pixel: larger, smaller, both, and a single pixel.
SIZES = [((40, 33), (1, 1)), ((7, 5), (2, 5)), ((19, 9), (1, 3)), ((1, 1), (8, 8))]
WINDOW, MEAN, STD = (-1.0, 1.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: A normalisation that leaves a grey value unchanged.
GREY = {"window": (0.0, 1.0), "mean": [0.0], "std": [1.0]}


@pytest.fixture
def image(rng):
    return rng.normal(size=(6, 13, 24)).astype(np.float32)


def stored(device, image, order, flips):
    """Return the image as a view of an array with another memory order."""
    array = device.put(np.flip(image.transpose(order), flips))
    flipped = array[tuple(slice(None, None, -1 if i in flips else 1) for i in range(3))]
    return flipped.transpose([order.index(axis) for axis in range(3)])


@pytest.mark.parametrize(("order", "flips"), LAYOUTS)
@pytest.mark.parametrize(("size", "samples"), SIZES)
def test_equal_to_the_reference_in_any_order(device, image, order, flips, size, samples):
    view = stored(device, image, order, flips)
    case = {"window": WINDOW, "mean": MEAN, "std": STD, "samples": samples}
    out = cut_slices(view, (4, 0, 5), size, **case)
    device.check(out, reference.cut_slices(image, (4, 0, 5), size, **case))
    # The memory order changes no bit.
    same = cut_slices(device.put(image), (4, 0, 5), size, **case)
    np.testing.assert_array_equal(device.get(out), device.get(same))


def test_of_their_own_size_slices_are_only_windowed(device, image):
    out = device.get(cut_slices(device.put(image), range(6), (13, 24), **GREY))[:, 0]
    expected = np.clip(image, 0, 1)
    # The last pixel of an axis is a + 1 (b - a), which is rounded once.
    np.testing.assert_array_equal(out[:, :-1, :-1], expected[:, :-1, :-1])
    assert np.abs(out - expected).max() <= 1e-6
    assert out.min() == 0
    assert out.max() == 1


def test_antialiasing_averages_whole_blocks(device, image):
    case = GREY | {"window": (-10.0, 10.0)}
    out = cut_slices(device.put(image[:, :12]), range(6), (4, 6), samples=(3, 4), **case)
    blocks = image[:, :12].reshape(6, 4, 3, 6, 4).astype(float).mean((2, 4))
    device.check(out[:, 0], (blocks + 10) / 20)


def test_each_channel_is_normalised_by_itself(device, image):
    put = device.put(image)
    case = {"window": WINDOW, "samples": (1, 2)}
    together = device.get(cut_slices(put, (1, 2), (20, 10), mean=MEAN, std=STD, **case))
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        alone = cut_slices(put, (1, 2), (20, 10), mean=[mean], std=[std], **case)
        np.testing.assert_array_equal(together[:, channel], device.get(alone)[:, 0])


def test_many_slices_in_any_order(device, image):
    """More slices than one launch takes."""
    chosen = [5, 0, 3, 3, *range(6)] * 14
    put = device.put(image)
    out = device.get(cut_slices(put, chosen, (9, 11), **GREY))
    for index in range(6):
        alone = device.get(cut_slices(put, [index], (9, 11), **GREY))[0]
        for i in (i for i, wanted in enumerate(chosen) if wanted == index):
            np.testing.assert_array_equal(out[i], alone)


def test_nan_and_infinite_voxels_stay_in_their_slice(device, image):
    image[2, 6, 7], image[4, 0, 0], image[4, 12, 23] = np.nan, np.inf, -np.inf
    out = device.get(cut_slices(device.put(image), range(6), (26, 48), **GREY))[:, 0]
    assert np.isfinite(out[[0, 1, 3, 5]]).all()
    # With two pixels per voxel, these are all pixels in which the voxel has weight.
    bad = np.argwhere(np.isnan(out[2]))
    assert bad.min(0).tolist() == [11, 13]
    assert bad.max(0).tolist() == [14, 16]
    assert len(bad) == 16


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 9), (2, 9, 1), (1, 2, 2), (3, 5, 7)])
def test_thin_and_odd_images(device, rng, shape):
    image = rng.normal(size=shape).astype(np.float32)
    case = {"window": WINDOW, "mean": MEAN, "std": STD}
    out = cut_slices(device.put(image), [shape[0] - 1], (17, 34), **case)
    device.check(out, reference.cut_slices(image, [shape[0] - 1], (17, 34), **case))


def test_a_constant_image_stays_constant(device):
    image = device.put(np.full((2, 9, 11), 0.25, np.float32))
    out = device.get(cut_slices(image, (0, 1), (40, 5), samples=(1, 2), **GREY))
    assert (out == 0.25).all()
