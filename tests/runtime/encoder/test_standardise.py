"""Standardisation of tokens follows exactly from the moments of the slices."""

from __future__ import annotations

from functools import partial
from typing import get_args

import numpy as np
import pytest

from dinoreg_rt.config.feature_parameters import TokenCentre, TokenScale
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.moments import PairMoments
from dinoreg_rt.encoder.pca import fit_basis, project
from dinoreg_rt.encoder.standardise import (
    Standardisation,
    Standardised,
    position_directions,
    read_tokens,
    standardise,
)

CPU = Device("cpu", threads=1)
CHANNELS, WIDTH = 2 * 12, 12  # two layers
POSITIONS_MM = np.array([0.0, 10.0, 20.0, 45.0, 50.0])


def read(tokens: np.ndarray, *, unit: bool = False) -> np.ndarray:
    return read_tokens(tokens, 2, (0, 1), unit=unit, device=CPU)


@pytest.fixture
def tokens(rng) -> np.ndarray:
    """Tokens (n, rows, columns, C) float16 whose slices and channels differ in mean and size."""
    values = rng.normal(size=(5, 6, 7, CHANNELS)) * np.geomspace(0.2, 5, CHANNELS)
    values += rng.normal(size=(5, 1, 1, CHANNELS)) + 8 * rng.normal(size=CHANNELS)
    return values.astype(np.float16)


@pytest.fixture
def inside(rng) -> np.ndarray:
    """Whether each token counts; none of the slice before the last does."""
    kept = rng.random((5, 42)) < 0.6
    kept[3] = False
    return kept


def reference(tokens, inside, kind: Standardisation, directions: np.ndarray) -> np.ndarray:
    """Standardise all tokens one by one in float64, (n, rows * columns, C)."""
    exact = tokens.astype(np.float64).reshape(5, 42, CHANNELS)
    if kind.scale == "length":
        parts = exact.reshape(5, 42, 2, WIDTH)
        exact = (parts / np.linalg.norm(parts, axis=-1, keepdims=True)).reshape(exact.shape)
    exact = exact - exact @ directions @ directions.T
    whole = exact[inside].mean(axis=0)
    centred = exact.copy()
    for i, position in enumerate(POSITIONS_MM):
        if kind.centre == "image" or (kind.centre == "slice" and not inside[i].any()):
            centred[i] -= whole
        elif kind.centre == "slice":
            centred[i] -= exact[i][inside[i]].mean(axis=0)
        elif kind.centre == "smooth":
            of_slice = np.exp(-0.5 * ((POSITIONS_MM - position) / kind.smoothing_mm) ** 2)
            weights = np.broadcast_to(of_slice[:, None], inside.shape)[inside]
            centred[i] -= weights @ exact[inside] / weights.sum()
    if kind.scale == "deviation":
        centred /= centred[inside].std(axis=0)
    return centred


def standardised(tokens, inside, kind: Standardisation, directions: np.ndarray):
    """Return the moments of a pair of these tokens and the first image's standardisation."""
    reader = partial(read, unit=kind.scale == "length")
    moments = PairMoments.of([(tokens, inside), (tokens, inside)], reader, CPU)
    return moments, standardise(moments, 0, kind, POSITIONS_MM, directions, CPU)


def scatter_of(moments: PairMoments, found: Standardised) -> np.ndarray:
    """Return the scatter of the standardised tokens that its parts describe."""
    scaled = moments.within[0] / (found.deviation[:, None] * found.deviation)
    return scaled + found.left.T @ found.right


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("scale", get_args(TokenScale))
@pytest.mark.parametrize("centre", get_args(TokenCentre))
def test_moments_and_features_are_those_of_all_tokens(
    rng, tokens, inside, centre, scale, positions
) -> None:
    kind = Standardisation(centre, scale, 12.0, positions)
    directions, _ = np.linalg.qr(rng.normal(size=(CHANNELS, positions)))
    moments, found = standardised(tokens, inside, kind, directions)
    exact = reference(tokens, inside, kind, directions)
    chosen = exact[inside]
    assert found.count == inside.sum()
    size = np.abs(chosen).max()
    # Products are float32. Measured: 4e-7 of the largest.
    np.testing.assert_allclose(found.mean, chosen.mean(axis=0), atol=2e-6 * size)
    scatter = (chosen - chosen.mean(axis=0)).T @ (chosen - chosen.mean(axis=0))
    largest = np.abs(scatter).max()
    np.testing.assert_allclose(scatter_of(moments, found), scatter, atol=2e-6 * largest)
    np.testing.assert_allclose(found.variances, np.diag(scatter), atol=2e-6 * largest)

    basis = fit_basis(moments.within, [found, found], 6, CPU)
    np.testing.assert_allclose(
        basis.total_variance, 2 * np.trace(scatter) / (2 * inside.sum() - 1), rtol=2e-6
    )
    reader = partial(read, unit=scale == "length")
    projected = project(tokens, reader, found, basis, 8, CPU)
    assert projected.values.shape == (5, 42, 8)
    assert not projected.values[..., 6:].any()
    expected = (exact - chosen.mean(axis=0)) @ basis.components.T
    largest = np.abs(expected).max()
    np.testing.assert_allclose(projected.features(CPU), expected, atol=2e-5 * largest)


def test_an_offset_and_a_factor_per_channel_do_not_matter(tokens, inside) -> None:
    """Modalities may differ by any offset and factor of a channel."""
    kind = Standardisation("image", "deviation", 20.0, 0)
    none = np.zeros((CHANNELS, 0))
    other = (tokens.astype(np.float32) * np.linspace(0.5, 2, CHANNELS) + 3).astype(np.float16)
    first = scatter_of(*standardised(tokens, inside, kind, none))
    second = scatter_of(*standardised(other, inside, kind, none))
    # The shifted tokens are rounded to half precision. Measured: 2e-3 of the largest.
    np.testing.assert_allclose(first, second, atol=0.01 * np.abs(first).max())


def test_a_channel_that_never_varies_stays_finite(tokens, inside) -> None:
    tokens[..., 3] = 7
    moments, found = standardised(
        tokens, inside, Standardisation("image", "deviation", 20.0, 0), np.zeros((CHANNELS, 0))
    )
    assert found.deviation[3] == 1
    assert np.isfinite(scatter_of(moments, found)).all()


def test_some_layers_of_those_that_are_joined(tokens) -> None:
    second = read_tokens(tokens[0], 2, (1,), unit=True, device=CPU)
    np.testing.assert_array_equal(
        second, read_tokens(tokens[0][..., WIDTH:], 1, (0,), unit=True, device=CPU)
    )
    np.testing.assert_allclose(np.linalg.norm(second, axis=-1), 1, rtol=1e-6)


def test_the_positional_part_is_found_and_projected_out(rng, tokens, inside) -> None:
    """If the tokens of a constant picture differ along two directions only, these are found."""
    directions, _ = np.linalg.qr(rng.normal(size=(CHANNELS, 2)))
    constant = rng.normal(size=(42, 2)) * (5, 2) @ directions.T + rng.normal(size=CHANNELS)
    found = position_directions(constant.astype(np.float32), 2, CPU)
    np.testing.assert_allclose(found @ found.T, directions @ directions.T, atol=1e-5)
    kind = Standardisation("image", "none", 20.0, 2)
    scatter = scatter_of(*standardised(tokens, inside, kind, found))
    along = found.T @ scatter @ found
    assert np.abs(along).max() < 1e-9 * np.abs(scatter).max()


def test_the_same_bits_for_a_memory_mapped_file(tokens, inside, tmp_path) -> None:
    mapped = np.memmap(tmp_path / "tokens", np.float16, "w+", shape=tokens.shape)
    mapped[:] = tokens
    kind, none = Standardisation("smooth", "deviation", 20.0, 0), np.zeros((CHANNELS, 0))
    first, second = (standardised(t, inside, kind, none) for t in (tokens, mapped))
    np.testing.assert_array_equal(scatter_of(*first), scatter_of(*second))
    np.testing.assert_array_equal(first[1].centres, second[1].centres)
