"""Grids, modality, intensity window, resampling, weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from decisions import decided
from phantoms import Body, centres_of, make_grid

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device
from dinoreg_rt.geometry import corners_lps_mm
from dinoreg_rt.images.grids import whole_voxels, working_grid
from dinoreg_rt.images.intensity import intensity_window, window, without_padding
from dinoreg_rt.images.modality import Detection
from dinoreg_rt.images.resample import antialiasing_samples, resample_volume, weight_on
from dinoreg_rt.types import AffineTransform, Geometry, Volume

CPU = Device("cpu", threads=1)
CONFIG = RegistrationConfig()
HERE = AffineTransform.identity()


def volume(array: np.ndarray, spacing: float = 2.0) -> Volume:
    return Volume(array.astype(np.float32), make_grid(array.shape, (spacing,) * 3))


def box_mm(grid: Geometry) -> np.ndarray:
    return np.asarray(grid.shape_xyz) * np.asarray(grid.spacing_mm)


@pytest.mark.parametrize("direction", ["LPS", "oblique"])
@pytest.mark.parametrize("megavoxels", [0.03, 0.2, 1.0])
def test_working_grid_keeps_the_box_and_the_limit(direction: str, megavoxels: float) -> None:
    fixed = make_grid((40, 120, 100), (0.9, 0.9, 3.0), direction, (5.0, 6.0, 7.0))
    found = working_grid(fixed, megavoxels)
    # Whole voxels per axis exceed the limit by a few per cent at most.
    assert np.prod(found.shape_zyx) <= 1.08e6 * megavoxels
    np.testing.assert_allclose(corners_lps_mm(found), corners_lps_mm(fixed), atol=1e-9)
    if megavoxels == 1.0:
        assert found is fixed


def test_working_grid_leaves_thick_slices() -> None:
    fixed = make_grid((9, 256, 256), (1.0, 1.0, 10.0))
    found = working_grid(fixed, 0.1)
    assert found.shape_zyx[0] == 9
    assert found.spacing_mm[2] == pytest.approx(10.0)
    assert found.spacing_mm[0] == pytest.approx(found.spacing_mm[1], rel=0.02)


def test_plan_grids_in_mm_per_axis() -> None:
    fixed = make_grid((9, 216, 256), (1.4, 1.4, 10.0), "LAS")
    config = RegistrationConfig(
        control_spacing_mm=2.8, search_spacing_mm=10.0, search_radius_mm=20.0
    )
    grids, filled = decided(fixed, config)
    assert grids.pool_zyx == (1, 2, 2)
    assert grids.control.shape_zyx == (9, 108, 128)
    assert grids.search_factor_zyx == (1, 4, 4)
    assert grids.search_radius_zyx == (2, 2, 2)  # 20, 22.4 and 22.4 mm
    assert filled.search_radius_mm == 20.0


def test_plan_grids_fills_all_lengths() -> None:
    _, config = decided(make_grid((50, 60, 70), (1.5, 1.5, 2.0)), CONFIG)
    lengths = [name for name in RegistrationConfig.model_fields if name.endswith("_mm")]
    lengths.remove("slice_spacing_mm")  # unset, the stride decides
    assert len(lengths) > 5
    assert all(getattr(config, name) is not None for name in lengths)
    for name in ("mind_radius_mm", "control_spacing_mm", "search_spacing_mm"):
        in_voxels = getattr(config, name) / 1.5
        assert in_voxels == pytest.approx(round(in_voxels))


def test_plan_grids_keeps_what_was_given() -> None:
    given = RegistrationConfig(smoothing_mm=0.0, search_radius_mm=0.0, learning_rate_mm=0.7)
    grids, config = decided(make_grid((50, 60, 70), (1.5, 1.5, 2.0)), given)
    assert (config.smoothing_mm, config.search_radius_mm, config.learning_rate_mm) == (0, 0, 0.7)
    assert grids.search_radius_zyx == (0, 0, 0)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 90), (3, 200, 2)])
def test_no_length_is_ever_zero_voxels(shape: tuple[int, int, int]) -> None:
    tiny = RegistrationConfig(control_spacing_mm=0.01, search_spacing_mm=0.01, mind_radius_mm=0.01)
    for config in (CONFIG, tiny):
        grids, filled = decided(make_grid(shape, (1.0, 2.0, 8.0)), config)
        assert min(grids.pool_zyx) >= 1
        assert min(grids.search_factor_zyx) >= 1
        assert min(grids.control.shape_zyx) >= 1
        assert min(whole_voxels(filled.mind_radius_mm, grids.working)) >= 1
        # The search never reaches further than the grid has cells.
        for radius, factor, n in zip(
            grids.search_radius_zyx, grids.search_factor_zyx, grids.control.shape_zyx, strict=True
        ):
            assert 0 <= radius <= -(-n // factor) - 1


def test_whole_voxels_are_at_most_the_axis() -> None:
    assert whole_voxels(1000.0, make_grid((4, 5, 6), (1.0, 1.0, 1.0))) == (4, 5, 6)


MR = Detection("mr", "mr, as asked")


def test_window_of_a_ct_is_fixed(rng: np.random.Generator) -> None:
    config = RegistrationConfig(ct_window_hu=(-10.0, 20.0))
    image = volume(rng.random((4, 5, 6)))
    assert intensity_window(image, Detection("ct", "", water=0.0), config) == (-10.0, 20.0)
    assert intensity_window(image, Detection("ct", "", water=1024.0), config) == (1014.0, 1044.0)


def test_window_of_an_mr_is_a_percentile(rng: np.random.Generator) -> None:
    values = rng.random((20, 30, 40))
    values[0, 0, 0] = 1e6  # one bright voxel must not set the scale
    low, high = intensity_window(volume(values), MR, CONFIG)
    assert low == pytest.approx(0, abs=1e-3)
    assert high == pytest.approx(CONFIG.mr_percentile / 100, abs=0.01)


def test_window_of_an_image_that_is_nearly_all_background() -> None:
    values = np.zeros((20, 20, 20))
    values[5, 5, 5:8] = 100
    assert intensity_window(volume(values), MR, CONFIG) == (0.0, 100.0)


def test_window_looks_only_inside_the_mask(rng: np.random.Generator) -> None:
    values = rng.random((20, 30, 40))
    values[10:] += 500
    mask = np.zeros(values.shape, np.int32)
    mask[:10] = 2
    assert intensity_window(volume(values), MR, CONFIG, mask)[1] < 1
    assert intensity_window(volume(values), MR, CONFIG)[1] > 500


def test_window_of_a_small_body_comes_from_the_body(rng: np.random.Generator) -> None:
    """3 % body: the 98th percentile of all voxels would be among its darkest third."""
    values = np.zeros((20, 30, 40))
    values[:6, :10, :12] = 100 + 100 * rng.random((6, 10, 12))
    values[0, 0, 0] = 1e5  # metal
    low, high = intensity_window(volume(values), MR, CONFIG)
    assert low == 0
    assert high == pytest.approx(198, abs=1)


def test_ringing_does_not_raise_the_background(rng: np.random.Generator) -> None:
    """A few strongly negative voxels beside edges, as cubic splines leave."""
    values = np.where(rng.random((20, 30, 40)) < 0.6, 0.0, 1000 * rng.random((20, 30, 40)))
    values[::5, ::7, ::9] = -300
    low, high = intensity_window(volume(values), MR, CONFIG)
    assert low == 0
    assert high > 900


def test_window_leaves_out_padding(rng: np.random.Generator) -> None:
    values = 1000 * rng.random((20, 30, 40))
    expected = intensity_window(volume(values), MR, CONFIG)
    for padding in (-2000.0, 32767.0):
        padded = np.concatenate([values, np.full_like(values, padding)])
        image, found = volume(padded), replace(MR, padding=(padding,))
        assert intensity_window(image, found, CONFIG) == expected
        assert without_padding(image, found.padding).array[20:].max() == np.float32(values.min())


def test_window_maps_to_0_and_1() -> None:
    array = np.array([-5.0, 0.0, 5.0, 10.0, 50.0], np.float32)
    np.testing.assert_allclose(window(array, 0.0, 10.0), [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("factor", [2.0, 3.0, 4.7])
def test_resampling_keeps_the_mean(rng: np.random.Generator, factor: float) -> None:
    """Noise on a coarser grid keeps its mean; without antialiasing its variance would stay too."""
    image = volume(rng.random((60, 60, 60)))
    n = round(60 / factor)
    coarse = make_grid((n, n, n), (120 / n,) * 3)
    array = resample_volume(image, coarse, HERE, CPU)
    # Measured: 2e-5.
    assert array.mean() == pytest.approx(image.array.mean(), abs=2e-4)
    assert array.std() < 0.75 * image.array.std() / factor
    assert antialiasing_samples(np.diag([factor, factor, factor])) == (int(factor + 0.25),) * 3


def test_resampling_onto_its_own_grid_is_a_copy(rng: np.random.Generator) -> None:
    image = volume(rng.random((5, 6, 7)))
    array = resample_volume(image, image.geometry, HERE, CPU)
    np.testing.assert_array_equal(array, image.array)
    assert not np.shares_memory(array, image.array)


def test_resampling_through_an_affine() -> None:
    """A smooth body read from an oblique grid matches its continuous function."""
    body = Body()
    grid = make_grid((40, 44, 52), (2.0, 2.0, 2.0), "oblique", (30.0, 0.0, 0.0))
    shift = AffineTransform(np.eye(3), [30.0, 0.0, 0.0])
    image = Volume(body(centres_of(grid) - shift.translation_mm).astype(np.float32), grid)
    target = make_grid((20, 22, 26), (2.0, 2.0, 2.0))
    array = resample_volume(image, target, shift, CPU)
    # Edges are 0.8 mm wide, voxels 2 mm. Measured: 0.0066.
    assert np.abs(array - body(centres_of(target))).mean() < 0.01


def test_weight_is_the_covered_share() -> None:
    image = volume(np.ones((10, 10, 10)))
    same = weight_on(image.geometry, image, None, HERE, CPU)
    np.testing.assert_array_equal(same, 1)
    half_off = AffineTransform(np.eye(3), [10.0, 0.0, 0.0])
    weight = weight_on(image.geometry, image, None, half_off, CPU)
    np.testing.assert_array_equal(weight[..., :5], 1)
    np.testing.assert_array_equal(weight[..., 5:], 0)


def test_weight_of_a_mask() -> None:
    image = volume(np.ones((8, 8, 8)))
    mask = np.zeros((8, 8, 8), np.float32)
    mask[2:6] = 1
    coarse = make_grid((4, 4, 4), (4.0, 4.0, 4.0))
    weight = weight_on(coarse, image, mask, HERE, CPU)
    np.testing.assert_allclose(weight[:, 1, 1], [0, 1, 1, 0], atol=1e-6)
    beyond = AffineTransform(np.eye(3), [0.0, 0.0, 100.0])
    assert not weight_on(coarse, image, mask, beyond, CPU).any()


def test_same_voxels_elsewhere_have_the_same_weight() -> None:
    image = volume(np.ones((6, 7, 8)))
    oblique = replace(image, geometry=make_grid((6, 7, 8), (1.0, 2.0, 3.0), "oblique", (9, 9, 9)))
    weight = weight_on(oblique.geometry, oblique, None, HERE, CPU)
    np.testing.assert_array_equal(weight, 1)
