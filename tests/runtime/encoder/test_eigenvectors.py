"""Leading eigenvectors against a full decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import eigenvectors
from dinoreg_rt.encoder.eigenvectors import leading_eigenvectors

CPU = Device("cpu", threads=2)


def covariance(spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))
    return (axes * spectrum) @ axes.T


SPECTRA = {
    "falling slowly": 1.0 / np.arange(1, 513),
    "falling fast": 0.8 ** np.arange(512),
    "in pairs": np.repeat(1.0 / np.arange(1, 257), 2),
    "of rank 10": np.r_[np.linspace(3, 1, 10), np.zeros(502)],
    "tiny": 1e-30 / np.arange(1, 513) ** 2,
    "flat": np.full(512, 2.0),
    "nearly flat": np.linspace(1.0, 0.9, 512),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_against_a_full_decomposition(name: str) -> None:
    matrix = covariance(SPECTRA[name])
    values, rows = leading_eigenvectors(matrix, 24, CPU)
    expected = np.linalg.eigvalsh(matrix)[::-1][:24]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * expected[0])
    np.testing.assert_allclose(rows @ rows.T, np.eye(24), atol=1e-12)
    np.testing.assert_allclose(matrix @ rows.T, rows.T * values, atol=2e-9 * expected[0])


def test_the_angle_between_the_subspaces() -> None:
    """The tokens are projected on all directions together, so their span is what counts."""
    matrix = covariance(1.0 / np.arange(1, 513) ** 1.5)
    _, rows = leading_eigenvectors(matrix, 24, CPU)
    _, vectors = np.linalg.eigh(matrix)
    cosines = np.linalg.svd(rows @ vectors[:, ::-1][:, :24], compute_uv=False)
    assert np.sqrt(max(0.0, 1 - cosines.min() ** 2)) < 1e-6


def test_the_usual_case_needs_no_full_decomposition(monkeypatch) -> None:
    sizes = []
    whole = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: sizes.append(len(a)) or whole(a))
    leading_eigenvectors(covariance(SPECTRA["falling slowly"]), 24, CPU)
    assert sizes
    assert max(sizes) == 6 * 24


def test_without_convergence_the_full_decomposition_decides(monkeypatch) -> None:
    monkeypatch.setattr(eigenvectors, "_MOST_LOOKS", 1)
    matrix = covariance(SPECTRA["nearly flat"])
    values, _ = leading_eigenvectors(matrix, 24, CPU)
    np.testing.assert_array_equal(values, np.linalg.eigh(matrix)[0][::-1][:24])


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_few_dimensions(count: int) -> None:
    matrix = covariance(np.array([5.0, 3.0, 2.0, 1.0, 0.5, 0.1]))
    values, rows = leading_eigenvectors(matrix, count, CPU)
    np.testing.assert_allclose(values, [5.0, 3.0, 2.0, 1.0, 0.5, 0.1][:count])
    assert rows.shape == (count, 6)


def test_few_channels_are_decomposed_whole(monkeypatch) -> None:
    matrix = covariance(1.0 / np.arange(1, 101))
    monkeypatch.setattr(np.linalg, "qr", None)
    values, _ = leading_eigenvectors(matrix, 12, CPU)
    np.testing.assert_array_equal(values, np.linalg.eigh(matrix)[0][::-1][:12])


def test_the_same_bits_every_time() -> None:
    matrix = covariance(SPECTRA["falling slowly"])
    first, again = (leading_eigenvectors(matrix, 24, CPU) for _ in range(2))
    np.testing.assert_array_equal(first[1], again[1])


@pytest.mark.parametrize(("name", "most"), [("falling slowly", 4), ("flat", 2)])
def test_few_rounds(name: str, most: int, monkeypatch) -> None:
    """On two threads a QR decomposition costs more than the products of its round."""
    rounds = []
    qr = np.linalg.qr
    matrix = covariance(SPECTRA[name])
    monkeypatch.setattr(np.linalg, "qr", lambda a: rounds.append(len(a)) or qr(a))
    leading_eigenvectors(matrix, 24, CPU)
    assert len(rounds) <= most
