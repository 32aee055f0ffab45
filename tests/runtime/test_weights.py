"""User weights: organs that count more, voxels that do not count, and adaptive trust."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from decisions import decided
from phantoms import make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt import RegistrationConfig, Volume, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.errors import InputError
from dinoreg_rt.images.contrast import Contrast
from dinoreg_rt.io.convert import volume_to_sitk

GRID = make_grid((32, 36, 40), (2.0, 2.0, 2.0))
CONFIG = RegistrationConfig(initial="none")


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(GRID, GRID)


def registered(phantom, weights=None, **changes):
    return dinoreg_rt.register(
        phantom.fixed,
        phantom.moving,
        config=CONFIG.model_copy(update=changes),
        weights=None if weights is None else Volume(np.float32(weights), GRID),
    )


def test_a_heavy_organ_is_followed_more_closely(phantom):
    """Against a strong smoothness term the weighted half keeps its displacement."""
    weights = np.full(GRID.shape_zyx, 0.05)
    weights[:, :, :20] = 4
    equal = registered(phantom, np.full(GRID.shape_zyx, 0.05), smoothness=5.0)
    heavy = registered(phantom, weights, smoothness=5.0)
    truth = phantom.errors_mm
    left = [np.nanmean(truth(r.displacement.vectors_mm)) for r in (equal, heavy)]
    # Measured: 1.21 mm with equal weights, 1.15 mm with the heavy half.
    assert left[1] < 0.97 * left[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-1.0, "image: holds a weight of -1; weights must be 0 or more"),
        (0.0, "image: every weight is 0"),
        (np.nan, "image: holds 46080 NaN"),
        (1e-38, "image: the largest weight is 1e-38, and weights below 1e-06 count as 0"),
        (1e30, "image: holds a weight of 1e\\+30; the largest allowed is 10000"),
    ],
)
def test_weights_that_cannot_be_used(phantom, weights, message):
    with pytest.raises(InputError, match=message):
        registered(phantom, np.full(GRID.shape_zyx, weights))


@pytest.mark.parametrize("weight", [1e-6, 1.1e-6, 1e4])
def test_results_are_finite_with_the_weights_at_the_limits(phantom, weight):
    mixed = np.full(GRID.shape_zyx, 1e-38)
    mixed[10:20] = weight
    for weights in (np.full(GRID.shape_zyx, weight), mixed):
        result = registered(phantom, weights, inverse=True, confidence=True)
        for array in (result.displacement.vectors_mm, result.inverse.vectors_mm):
            assert np.isfinite(array).all()
        assert np.isfinite(result.confidence.array).all()


def test_tiny_weights_count_as_zero(phantom):
    weights = np.zeros(GRID.shape_zyx)
    weights[10:20] = 1
    with_tiny = np.where(weights > 0, weights, 1e-7)
    one, other = (registered(phantom, w).displacement.vectors_mm for w in (weights, with_tiny))
    assert np.array_equal(one, other)


def test_weights_of_one_of_any_type_change_no_bit(phantom, tmp_path):
    plain = registered(phantom).displacement.vectors_mm
    ones = Volume(np.ones(GRID.shape_zyx, np.float32), GRID)
    io.write_volume(tmp_path / "ones.nii.gz", ones)
    for weights in (ones, tmp_path / "ones.nii.gz", (ones.array, GRID), volume_to_sitk(ones)):
        result = dinoreg_rt.register(phantom.fixed, phantom.moving, config=CONFIG, weights=weights)
        np.testing.assert_array_equal(result.displacement.vectors_mm, plain)


@pytest.mark.filterwarnings("error")
def test_the_largest_weight_is_one_that_the_verdict_bears(phantom):
    result = registered(phantom, np.full(GRID.shape_zyx, 1e4))
    assert np.isfinite(result.displacement.vectors_mm).all()
    assert result.quality.decoy_ratio < 1


@pytest.mark.parametrize("call", [dinoreg_rt.plan, dinoreg_rt.register])
def test_weights_are_checked_before_the_alignment(phantom, call, monkeypatch):
    def aligned(*_):
        raise AssertionError("the alignment has begun")

    monkeypatch.setattr("dinoreg_rt.registration.planning._align", aligned)
    weights = (np.full(GRID.shape_zyx, -1.0), GRID)
    with pytest.raises(InputError, match="a weight of -1"):
        call(phantom.fixed, phantom.moving, config=CONFIG, weights=weights)


def test_a_dry_run_looks_at_the_weights(phantom, tmp_path):
    values = {"f": phantom.fixed.array, "m": phantom.moving.array}
    values |= {"ones": np.ones(GRID.shape_zyx), "bad": np.full(GRID.shape_zyx, 2e4)}
    for name, array in values.items():
        io.write_volume(tmp_path / f"{name}.nii.gz", Volume(np.float32(array), GRID))

    def dry_run(weights):
        words = ["run", "-f", "f", "-m", "m", "--weights", weights]
        words = [str(tmp_path / f"{w}.nii.gz") if w in values else w for w in words]
        return CliRunner().invoke(
            cli, [*words, "-o", str(tmp_path / "o"), "--initial", "none", "--dry-run"]
        )

    assert dry_run("ones").exit_code == 0
    refused = dry_run("bad")
    assert refused.exit_code == 3
    assert "bad.nii.gz: holds a weight of 20000; the largest allowed is 10000" in refused.output


def test_weights_on_another_grid(phantom):
    other = Volume(np.ones((4, 5, 6), np.float32), make_grid((4, 5, 6), (2.0, 2.0, 2.0)))
    with pytest.raises(InputError, match="must lie on the fixed image's grid"):
        dinoreg_rt.register(phantom.fixed, phantom.moving, config=CONFIG, weights=other)


def test_adaptive_trust_keeps_the_result_free_of_folds(phantom):
    result = registered(phantom, trust_cost=1.0)
    assert result.quality.folded_percent == 0
    assert result.quality.feature_distance_after < 0.7 * result.quality.feature_distance_before


@pytest.mark.parametrize(
    ("similarity", "words"),
    [("cosine", "1 x cosine of features: "), ("lncc", "1 x local correlation of features: ")],
)
def test_similarity_of_features_is_reported_and_used(phantom, similarity, words):
    result = registered(phantom, feature_similarity=similarity, correlation_weight=0.0)
    assert result.choices["objective"].startswith(words)
    assert result.quality.folded_percent == 0
    assert result.quality.feature_distance_after < 0.7 * result.quality.feature_distance_before
    plain = registered(phantom, correlation_weight=0.0)
    assert (result.displacement.vectors_mm != plain.displacement.vectors_mm).any()


@pytest.mark.parametrize(
    ("alike", "close", "levels", "features", "correlation", "noise", "iterations"),
    [
        (True, True, 1, 0.1, 3.0, 0.01, (40, 40)),
        (True, False, 2, 1.0, 2.5, 0.1, (40, 20)),
        (False, False, 1, 1.0, 2.5, 0.1, (40, 20)),
    ],
)
def test_defaults_by_contrast(alike, close, levels, features, correlation, noise, iterations):
    """Close MR pairs rely on intensities; others of one contrast are searched on two levels.

    Values that are given are kept.
    """
    names = ("feature_weight", "correlation_weight", "correlation_noise", "iterations")

    def filled(**given):
        contrast = Contrast(alike, close, "as measured")
        grid, config = make_grid((30, 30, 30), (1.0, 1.0, 1.0)), RegistrationConfig(**given)
        grids, config = decided(grid, config, ("mr", "mr"), contrast)
        assert grids.search_levels == config.search_levels
        return config

    config = filled()
    assert config.search_levels == levels
    assert filled(search_levels=3).search_levels == 3
    wanted = (features, correlation, noise, iterations)
    assert tuple(getattr(config, name) for name in names) == wanted
    given = dict(zip(names, (0.5, 0.0, 0.2, (7,)), strict=True))
    config = filled(**given)
    assert {name: getattr(config, name) for name in names} == given
    assert filled(correlation_weight=0.0).feature_weight == 1.0
