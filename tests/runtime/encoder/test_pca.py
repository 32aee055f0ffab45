"""The joint basis matches float64 NumPy on all tokens at once, for any chunk size."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import moments
from dinoreg_rt.encoder.moments import SliceMoments, TokenMoments
from dinoreg_rt.encoder.pca import TOTAL_VARIANCE, FeatureBasis, fit_basis
from dinoreg_rt.encoder.pca import project as project_standardised
from dinoreg_rt.encoder.standardise import Standardisation, read_tokens, standardise
from dinoreg_rt.errors import ConfigError


def tokens_like_a_transformer(rng, count: int = 3000, channels: int = 48) -> np.ndarray:
    """Return correlated float16 channels of unequal size around a mean far from zero."""
    mixing = rng.normal(size=(channels, channels)) * np.geomspace(3, 0.02, channels)[:, None]
    values = rng.normal(size=(count, channels)) @ mixing + 20 * rng.normal(size=channels)
    return values.astype(np.float16)


def project(tokens: np.ndarray, basis: FeatureBasis, scale: float, device=None) -> np.ndarray:
    """Project tokens without any standardisation."""
    device = device or Device("cpu")
    flat = SliceMoments.of((t.reshape(-1, tokens.shape[-1]) for t in tokens), device)
    none = device.xp.zeros((tokens.shape[-1], 0), np.float64)
    standard = standardise(
        flat, Standardisation("none", "none", 20.0, 0), np.arange(len(tokens)), none, device
    )
    return project_standardised(
        tokens,
        lambda slice_: read_tokens(slice_, 1, (0,), unit=False, device=device),
        standard,
        basis,
        scale,
        device,
    )


def reference(tokens: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    exact = tokens.astype(np.float64)
    _, values, rows = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    return rows[:components], (values**2 / (len(tokens) - 1))[:components]


def subspace_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sine of the largest principal angle between the spans of orthonormal rows."""
    residual = a - (a @ b.T) @ b
    return float(np.linalg.norm(residual, 2))


@pytest.mark.parametrize("chunk", [1, 7, 256, moments._CHUNK])
def test_any_chunking_gives_the_same_subspace(rng, monkeypatch, chunk) -> None:
    monkeypatch.setattr(moments, "_CHUNK", chunk)
    tokens = tokens_like_a_transformer(rng, 900 if chunk < 256 else 20_000)
    expected, variance = reference(tokens, 12)
    basis = fit_basis([TokenMoments.of(tokens[:300]), TokenMoments.of(tokens[300:])], 12)
    assert subspace_angle(basis.components, expected) < 1e-5
    # Products of a chunk are float32. Measured: up to 7e-8.
    np.testing.assert_allclose(basis.variance, variance, rtol=1e-6)
    np.testing.assert_allclose(np.abs((basis.components * expected).sum(1)), 1, atol=1e-7)


def test_merging_is_exact_for_sets_far_apart(rng) -> None:
    """Raw second moments lose the small scatter within sets: they miss it by 0.3 (measured)."""
    parts = [
        (rng.normal(size=(200, 6)) * 0.05 + 30 * k * np.eye(6)[k]).astype(np.float16)
        for k in range(3)
    ]
    merged = reduce(TokenMoments.merged, map(TokenMoments.of, parts))
    together = np.concatenate(parts).astype(np.float64)
    expected = np.cov(together.T) * (len(together) - 1)
    assert merged.count == 600
    np.testing.assert_allclose(merged.scatter, expected, rtol=1e-6, atol=5e-6)


def test_signs_do_not_depend_on_the_order_of_tokens(rng) -> None:
    tokens = tokens_like_a_transformer(rng)
    first = fit_basis([TokenMoments.of(tokens)], 8)
    second = fit_basis([TokenMoments.of(tokens[::-1])], 8)
    np.testing.assert_allclose(first.components, second.components, atol=1e-6)
    largest = np.abs(first.components).argmax(axis=1)
    assert np.all(first.components[np.arange(8), largest] > 0)


def test_projection_is_centred_and_has_the_promised_variance(rng) -> None:
    tokens = tokens_like_a_transformer(rng).reshape(30, 10, 10, 48)
    basis = fit_basis([TokenMoments.of(tokens.reshape(-1, 48))], 10)
    for feature_scale in (1.0, 0.3):
        features = project(tokens, basis, basis.scale(feature_scale)).reshape(-1, 10)
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
        total = features.astype(np.float64).var(axis=0, ddof=1).sum()
        # Products of float32 numbers around 40. Measured: 3e-5.
        assert total == pytest.approx(TOTAL_VARIANCE * feature_scale**2, rel=1e-3)
    expected = (tokens.astype(np.float64) - basis.mean) @ basis.components.T
    np.testing.assert_allclose(project(tokens, basis, 1.0), expected, atol=1e-3)


def test_explained_shares(rng) -> None:
    basis = fit_basis([TokenMoments.of(tokens_like_a_transformer(rng))], 48)
    assert basis.explained.sum() == pytest.approx(1.0)
    assert np.all(np.diff(basis.explained) <= 0)


def test_more_components_than_the_encoder_has_channels(rng) -> None:
    with pytest.raises(ConfigError, match=r"gives 48 channels and 3000 tokens .* at most 48"):
        fit_basis([TokenMoments.of(tokens_like_a_transformer(rng))], 49)
    with pytest.raises(ConfigError, match=r"3 tokens are compared; give at most 2"):
        fit_basis([TokenMoments.of(tokens_like_a_transformer(rng, 3))], 4)


def test_identical_tokens_do_not_divide_by_zero() -> None:
    basis = fit_basis([TokenMoments.of(np.ones((50, 6), np.float16))], 4)
    assert np.isfinite(basis.scale(1.0))
    assert np.isfinite(basis.explained).all()


@pytest.mark.gpu
def test_the_basis_of_a_gpu(gpu, rng) -> None:
    tokens, cuda = tokens_like_a_transformer(rng), Device("cuda")
    expected = fit_basis([TokenMoments.of(tokens)], 12)
    basis = fit_basis([TokenMoments.of(gpu.put(tokens))], 12, cuda)
    assert subspace_angle(gpu.get(basis.components), expected.components) < 1e-8
    np.testing.assert_allclose(gpu.get(basis.variance), expected.variance, rtol=1e-9)
    features = gpu.get(project(gpu.put(tokens[None]), basis, 1.0, cuda))
    largest = np.abs(features).max()
    np.testing.assert_allclose(features, project(tokens[None], expected, 1.0), atol=1e-4 * largest)
