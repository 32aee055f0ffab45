"""The joint basis matches float64 NumPy on all tokens at once, however many a product takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import moments
from dinoreg_rt.encoder.moments import PairMoments
from dinoreg_rt.encoder.pca import TOTAL_VARIANCE, FeatureBasis, fit_basis
from dinoreg_rt.encoder.pca import project as project_standardised
from dinoreg_rt.encoder.standardise import (
    Standardisation,
    Standardised,
    read_tokens,
    standardise,
)
from dinoreg_rt.errors import ConfigError

CPU = Device("cpu", threads=1)


def tokens_like_a_transformer(rng, count: int = 3000, channels: int = 48) -> np.ndarray:
    """Return correlated float16 channels of unequal size around a mean far from zero."""
    mixing = rng.normal(size=(channels, channels)) * np.geomspace(3, 0.02, channels)[:, None]
    values = rng.normal(size=(count, channels)) @ mixing + 20 * rng.normal(size=channels)
    return values.astype(np.float16)


NONE = Standardisation("none", "none", 20.0, 0)


def read(tokens: np.ndarray, device: Device) -> np.ndarray:
    return read_tokens(tokens, 1, (0,), unit=False, device=device)


def fitted(
    images: Sequence[np.ndarray], components: int, device: Device = CPU
) -> tuple[FeatureBasis, list[Standardised]]:
    """Fit the basis of two images' tokens (n, rows, columns, C) without any standardisation."""
    reader = partial(read, device=device)
    found = PairMoments.of([(tokens, None) for tokens in images], reader, device)
    none = np.zeros((images[0].shape[-1], 0))
    standards = [
        standardise(found, i, NONE, np.arange(len(tokens), dtype=float), none, device)
        for i, tokens in enumerate(images)
    ]
    return fit_basis(found.within, standards, components, device), standards


def basis_of(tokens: np.ndarray, components: int, device: Device = CPU) -> FeatureBasis:
    """Fit the basis of tokens (N, C), a third of which are one image's."""
    cut = len(tokens) // 3
    return fitted([tokens[None, None, :cut], tokens[None, None, cut:]], components, device)[0]


def project(tokens: np.ndarray, basis: FeatureBasis, device: Device = CPU) -> np.ndarray:
    """Project tokens (n, rows, columns, C) without any standardisation."""
    _, (standard, _) = fitted([tokens, tokens], 1, device)
    reader = partial(read, device=device)
    return project_standardised(tokens, reader, standard, basis, 16, device).features(device)


def reference(tokens: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    exact = tokens.astype(np.float64)
    _, values, rows = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    return rows[:components], (values**2 / (len(tokens) - 1))[:components]


def subspace_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sine of the largest principal angle between the spans of orthonormal rows."""
    residual = a - (a @ b.T) @ b
    return float(np.linalg.norm(residual, 2))


@pytest.mark.parametrize("numbers", [1, 48 * 7, 48 * 256, moments._NUMBERS["cpu"]])
def test_any_number_of_tokens_in_a_product_gives_the_same_subspace(
    rng, monkeypatch, numbers
) -> None:
    monkeypatch.setitem(moments._NUMBERS, "cpu", numbers)
    tokens = tokens_like_a_transformer(rng, 900 if numbers < 48 * 256 else 20_000)
    expected, variance = reference(tokens, 12)
    images = [tokens[:300].reshape(30, 2, 5, 48), tokens[300:].reshape(-1, 10, 10, 48)]
    basis, _ = fitted(images, 12)
    assert subspace_angle(basis.components, expected) < 1e-5
    # Products are float32. Measured: up to 7e-8.
    np.testing.assert_allclose(basis.variance, variance, rtol=1e-6)
    np.testing.assert_allclose(np.abs((basis.components * expected).sum(1)), 1, atol=1e-7)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_scatter_of_slices_far_apart(rng, cupy, kind) -> None:
    """Slices that differ by 600 deviations cost no digits: each loses its mean before a product."""
    device = Device(kind)
    tokens = rng.normal(size=(7, 40, 50, 32)) * 0.05 + 30 * rng.normal(size=(7, 1, 1, 32))
    tokens = tokens.astype(np.float16)
    inside = rng.random((7, 2000)) < 0.4
    exact = tokens.astype(np.float64).reshape(7, 2000, 32)
    counted = [(exact[i], inside[i]) for i in range(7)]
    means = np.stack([t[k].mean(axis=0) for t, k in counted])
    within = sum((t[k] - t[k].mean(axis=0)).T @ (t[k] - t[k].mean(axis=0)) for t, k in counted)
    on_device = device.upload(tokens, np.float16)
    pair = [(on_device, inside), (on_device, None)]
    found = PairMoments.of(pair, partial(read, device=device), device)
    np.testing.assert_array_equal(found.counts[0], inside.sum(axis=1))
    # Measured: 2e-7 and 4e-7.
    np.testing.assert_allclose(found.means[0], means, atol=1e-6 * np.abs(means).max())
    scatter = device.download(found.within)[0]
    assert np.abs(scatter - within).max() < 1e-5 * np.abs(within).max()
    np.testing.assert_array_equal(found.squares[0], np.diag(scatter))


def test_a_product_of_a_gpu_has_more_tokens_and_the_same_scatter(rng, cupy) -> None:
    """One float32 product of 80,000 tokens on a GPU, and many on a CPU, against float64."""
    tokens = tokens_like_a_transformer(rng, 80_000).reshape(10, 80, 100, 48)
    exact = tokens.astype(np.float64).reshape(10, -1, 48)
    exact -= exact.mean(axis=1, keepdims=True)
    expected = np.einsum("ntc,ntd->cd", exact, exact, optimize=True)
    for device in (CPU, Device("cuda")):
        on_device = device.upload(tokens, np.float16)
        pair = [(on_device, None), (on_device, None)]
        found = PairMoments.of(pair, partial(read, device=device), device)
        error = np.abs(device.download(found.within)[0] - expected).max()
        assert error < 1e-5 * np.abs(expected).max()  # measured: 4e-7


def test_signs_do_not_depend_on_the_order_of_tokens(rng) -> None:
    tokens = tokens_like_a_transformer(rng)
    first, second = basis_of(tokens, 8), basis_of(tokens[::-1], 8)
    np.testing.assert_allclose(first.components, second.components, atol=1e-6)
    largest = np.abs(first.components).argmax(axis=1)
    assert np.all(first.components[np.arange(8), largest] > 0)


def test_projection_is_centred_and_has_the_promised_variance(rng) -> None:
    tokens = tokens_like_a_transformer(rng).reshape(30, 10, 10, 48)
    basis = basis_of(tokens.reshape(-1, 48), 10)
    features = project(tokens, basis)
    for feature_scale in (1.0, 0.3):
        scaled = features.reshape(-1, 10) * basis.scale(feature_scale)
        np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-3)
        total = scaled.astype(np.float64).var(axis=0, ddof=1).sum()
        # Products of float32 numbers around 40. Measured: 3e-5.
        assert total == pytest.approx(TOTAL_VARIANCE * feature_scale**2, rel=1e-3)
    expected = (tokens.astype(np.float64) - basis.mean) @ basis.components.T
    np.testing.assert_allclose(features, expected.reshape(features.shape), atol=1e-3)


def test_explained_shares(rng) -> None:
    basis = basis_of(tokens_like_a_transformer(rng), 48)
    assert basis.explained.sum() == pytest.approx(1.0)
    assert np.all(np.diff(basis.explained) <= 0)


def test_more_components_than_the_encoder_has_channels(rng) -> None:
    with pytest.raises(ConfigError, match=r"gives 48 channels and 3000 tokens .* at most 48"):
        basis_of(tokens_like_a_transformer(rng), 49)
    with pytest.raises(ConfigError, match=r"3 tokens are compared; give at most 2"):
        basis_of(tokens_like_a_transformer(rng, 3), 4)


def test_identical_tokens_do_not_divide_by_zero() -> None:
    basis = basis_of(np.ones((50, 6), np.float16), 4)
    assert np.isfinite(basis.scale(1.0))
    assert np.isfinite(basis.explained).all()


@pytest.mark.gpu
def test_the_basis_of_a_gpu(gpu, rng) -> None:
    tokens, cuda = tokens_like_a_transformer(rng), Device("cuda")
    expected, basis = basis_of(tokens, 12), basis_of(gpu.put(tokens), 12, cuda)
    # The GPU sums more tokens in float32; 1e-6 is the bound for the variance in these tests.
    assert subspace_angle(basis.components, expected.components) < 1e-5
    np.testing.assert_allclose(basis.variance, expected.variance, rtol=1e-6)
    whole = tokens.reshape(30, 10, 10, 48)
    features, wanted = project(gpu.put(whole), basis, cuda), project(whole, expected)
    np.testing.assert_allclose(features, wanted, atol=1e-4 * np.abs(wanted).max())
