"""Joint histograms of intensities and their mutual information."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from reference_measures import BINS, joint_histogram

from dinoreg_rt.quality.mutual_information import correlation, histogram_of, mutual_information


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.random((20, 30, 40), dtype=np.float32)


def information(first: np.ndarray, second: np.ndarray, weight: np.ndarray | None = None) -> float:
    weight = np.ones_like(first) if weight is None else weight
    return mutual_information(joint_histogram(first, second, weight))


def test_information_is_largest_for_an_image_and_its_negative(image) -> None:
    """32 equally full bins hold ln 32 nats."""
    assert information(image, image) == pytest.approx(np.log(32), abs=1e-3)
    assert information(image, 1 - image) == pytest.approx(np.log(32), abs=1e-2)


def test_correlation_is_that_of_the_intensities(image, rng) -> None:
    other = 0.6 * image + 0.4 * rng.random(image.shape, dtype=np.float32)
    weight = rng.random(image.shape, dtype=np.float32)
    found = correlation(joint_histogram(image, other, weight))
    expected = np.cov(image.ravel(), other.ravel(), aweights=weight.ravel())
    # 32 bins add a variance of 1 / 12 of a bin each.
    assert found == pytest.approx(
        expected[0, 1] / np.sqrt(expected[0, 0] * expected[1, 1]), abs=3e-3
    )
    assert np.isnan(correlation(joint_histogram(image, np.zeros_like(image), weight)))
    assert np.isnan(correlation(np.zeros(BINS**2)))


def test_a_constant_or_an_unrelated_image_gives_no_information(image, rng) -> None:
    assert information(image, np.zeros_like(image)) == pytest.approx(0, abs=1e-12)
    other = rng.random(image.shape, dtype=np.float32)
    # N voxels leave a bias of (32 - 1)^2 / 2 N.
    assert information(image, other) == pytest.approx(31**2 / (2 * image.size), rel=0.1)


def test_counts_of_the_kernels_become_numbers() -> None:
    counts = (ctypes.c_uint64 * 3)(0, 2, 2**40)
    np.testing.assert_array_equal(histogram_of(counts), [0.0, 2.0, 2.0**40])


def test_without_weights_there_is_no_information(image) -> None:
    assert information(image, image, np.zeros_like(image)) == 0
