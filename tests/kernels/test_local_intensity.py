"""Local intensities against the reference, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from phantoms import waves

from dinoreg_kernels import KernelError, coverage, local_intensity, resample

CASES = {
    "plain": {"sigma_mm": (2.0,), "spacing_mm": (1.0, 1.0, 1.0)},
    "anisotropic": {"sigma_mm": (3.0, 8.0), "spacing_mm": (5.0, 0.7, 1.0), "noise": 0.02},
    "pooled": {"sigma_mm": (4.0, 1.0), "spacing_mm": (1, 1, 1), "pool": (3, 2, 4), "scale": 1.5},
}


@pytest.fixture
def image(rng):
    smooth = 0.5 + 0.4 * waves((14, 15, 21), channels=1)[..., 0]
    return np.float32(smooth + 0.02 * rng.normal(size=smooth.shape))


def computed(device, image, channels=8, first=0, **case):
    shape = [-(-n // p) for n, p in zip(image.shape, case.get("pool", (1, 1, 1)), strict=True)]
    out = device.put(np.full((*shape, channels), 7.0), np.float16)
    return device.get(
        local_intensity(device.put(image, np.float32), out, first_channel=first, **case)
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(device, image, name):
    windows = len(CASES[name]["sigma_mm"])
    out = computed(device, image, first=3, **CASES[name])
    expected = reference.local_intensity(image, **CASES[name])
    # Half precision, and a variance that is the difference of two sums. Measured: 1.1e-3.
    np.testing.assert_allclose(out[..., 3 : 3 + windows], expected, atol=3e-3)
    others = np.delete(out, np.s_[3 : 3 + windows], axis=-1)
    np.testing.assert_array_equal(others, np.full(others.shape, 7.0))


@pytest.mark.parametrize("shape", [(1, 15, 21), (14, 1, 1), (1, 1, 1), (2, 3, 5)])
def test_thin_images(device, rng, shape):
    image = rng.uniform(size=shape)
    case = {"sigma_mm": (2.0,), "spacing_mm": (1.0, 1.0, 1.0), "pool": (2, 2, 2)}
    expected = reference.local_intensity(image.astype(np.float32), **case)
    np.testing.assert_allclose(computed(device, image, **case)[..., :1], expected, atol=3e-3)


def test_brightness_does_not_matter_and_contrast_only_against_the_noise(device, image):
    case = {"sigma_mm": (3.0,), "spacing_mm": (1.0, 1.0, 1.0), "noise": 1e-3}
    plain = computed(device, image, **case)[..., 0].astype(float)
    changed = computed(device, 2 * image + 0.5, **case)[..., 0].astype(float)
    # Measured: 3e-3.
    np.testing.assert_allclose(changed, plain, atol=1e-2)
    assert plain.std() > 0.5
    inverted = computed(device, -image, **case)[..., 0].astype(float)
    np.testing.assert_allclose(inverted, -plain, atol=1e-3)


def test_constant_image_gives_zero(device):
    out = computed(device, np.full((5, 6, 7), 0.7), sigma_mm=(2.0,), spacing_mm=(1.0, 1.0, 1.0))
    assert np.abs(out[..., 0]).max() < 1e-2


def test_same_bits_for_one_and_two_threads(image):
    outs = []
    for threads in (1, 2):
        out = np.zeros((*image.shape, 8), np.float16)
        outs.append(local_intensity(image, out, threads=threads, **CASES["plain"]))
    np.testing.assert_array_equal(outs[0], outs[1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"sigma_mm": (0.0,)}, "sigma_mm"),
        ({"sigma_mm": ()}, "windows = 0; wanted >= 1"),
        ({"noise": 0.0}, "noise = 0; wanted > 0"),
        ({"first_channel": 8}, "first_channel = 8 with 1 windows; wanted within channels = 8"),
        ({"pool": (2, 2, 2)}, "out has shape"),
    ],
)
def test_errors_name_what_came(image, change, text):
    out = np.zeros((*image.shape, 8), np.float16)
    with pytest.raises(KernelError, match=text):
        local_intensity(image, out, **{**CASES["plain"], **change})


def test_coverage_is_what_resampling_finds_inside(device, rng):
    image = device.put(rng.uniform(size=(5, 6, 7)), np.float32)
    index_map = np.column_stack([np.diag([0.9, 0.8, 1.1]), [-1.3, 0.4, 2.2]])
    inside = device.put(np.empty((6, 6, 6)), np.float32)
    resample(image, (6, 6, 6), index_map, samples=(2, 1, 3), inside=inside)
    found = coverage(
        device.put(np.empty((6, 6, 6)), np.float32), (5, 6, 7), index_map, samples=(2, 1, 3)
    )
    np.testing.assert_array_equal(device.get(found), device.get(inside))
    assert 0 < device.get(inside).mean() < 1
