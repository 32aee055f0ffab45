"""Metrics against values worked out by hand, and against SciPy where it has the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from phantoms import centres_of, rotation
from scipy import ndimage

from dinoreg_kernels import Quality, Solution
from dinoreg_rt.device.choice import choose_device
from dinoreg_rt.errors import InputError
from dinoreg_rt.quality import metrics as quality
from dinoreg_rt.quality.run_quality import as_struct, measure_quality, run_quality
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry

#: A reflection followed by a rotation about an axis that is none of the coordinate axes.
OBLIQUE = rotation(np.deg2rad(-40), 0, np.deg2rad(25)) @ np.diag([1, -1, 1])


def grid(shape=(12, 14, 16), spacing=(1.0, 1.0, 1.0), direction=None):
    return Geometry(
        shape, spacing, (-31.0, 17.5, 240.0), np.eye(3) if direction is None else direction
    )


def affine_field(matrix, geometry):
    points = centres_of(geometry)
    return DisplacementField((points @ np.asarray(matrix).T - points).astype(np.float32), geometry)


def cubes(shift_zyx, size=4):
    fixed, warped = np.zeros((2, 12, 14, 16), np.int32)
    fixed[3 : 3 + size, 4 : 4 + size, 5 : 5 + size] = 7
    z, y, x = np.add((3, 4, 5), shift_zyx)
    warped[z : z + size, y : y + size, x : x + size] = 7
    return fixed, warped


class TestDice:
    def test_shifted_cubes(self):
        fixed, warped = cubes((0, 0, 1))
        assert quality.dice(fixed, warped) == {7: pytest.approx(3 / 4)}

    def test_counts_labels_of_both_maps_only(self):
        fixed, warped = cubes((0, 0, 0))
        fixed[0, 0, 0], warped[11, 13, 15] = 1, 2
        assert quality.dice(fixed, warped) == {7: 1.0}

    def test_lost_label_that_was_requested_scores_zero(self):
        fixed, warped = cubes((0, 0, 0))
        fixed[0, 0, 0] = 1
        assert quality.dice(fixed, warped, labels=[1, 7]) == {1: 0.0, 7: 1.0}

    @pytest.mark.parametrize("label", [-3, 2035, 10_000_000])
    def test_any_label_code(self, label):
        fixed, warped = (np.where(m, label, 0) for m in cubes((1, 0, 0)))
        assert quality.dice(fixed, warped) == {label: pytest.approx(3 / 4)}

    def test_refuses_another_grid(self):
        with pytest.raises(InputError, match="warp the moving labels onto the fixed grid"):
            quality.dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)))


class TestHd95:
    def test_shifted_cubes_on_anisotropic_voxels(self):
        # The plates are one voxel thick along x, so each surface voxel is the shift away from the
        # other plate.
        fixed, warped = np.zeros((2, 12, 14, 16), np.int32)
        fixed[2:9, 2:9, 4] = 1
        warped[2:9, 2:9, 7] = 1
        result = quality.hd95(fixed, warped, grid(spacing=(2.5, 1.0, 4.0)))
        assert result[1] == (pytest.approx(7.5), pytest.approx(3.0))

    def test_is_zero_for_equal_maps_and_symmetric(self):
        fixed, warped = cubes((1, 2, 3), size=5)
        geometry = grid(spacing=(1.0, 2.0, 3.0))
        assert quality.hd95(fixed, fixed, geometry)[7] == (0, 0)
        assert quality.hd95(fixed, warped, geometry) == quality.hd95(warped, fixed, geometry)

    def test_is_the_larger_direction_not_the_pooled_percentile(self):
        # Every fixed voxel has a match; a tenth of the warped ones are 5 voxels away.
        fixed, warped = np.zeros((2, 12, 14, 20), np.int32)
        fixed[3, 3, :9] = warped[3, 3, :9] = 1
        warped[3, 3, 13] = 1
        result = quality.hd95(fixed, warped, grid((12, 14, 20)))
        assert result[1].voxels == pytest.approx(np.percentile([0] * 9 + [5], 95))

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0)])
    def test_agrees_with_scipy_on_rough_shapes(self, spacing):
        rng = np.random.default_rng(3)
        masks = [ndimage.gaussian_filter(rng.normal(size=(12, 14, 16)), 1.5) > 0 for _ in "ab"]
        result = quality.hd95(*(m.astype(np.int32) for m in masks), grid(spacing=spacing))
        for value, sampling in zip(result[1], (spacing[::-1], (1, 1, 1)), strict=True):
            assert value == pytest.approx(scipy_hd95(*masks, sampling), rel=1e-5)

    def test_lost_label_gets_the_diagonal(self):
        fixed, warped = cubes((0, 0, 0))
        fixed[0, 0, 0] = 1
        lost = quality.hd95(fixed, warped, grid(spacing=(2.0, 2.0, 2.0)), labels=[1])[1]
        diagonal = math.sqrt(12**2 + 14**2 + 16**2)
        assert lost == (pytest.approx(2 * diagonal), pytest.approx(diagonal))

    def test_refuses_labels_of_another_shape_than_the_grid(self):
        with pytest.raises(InputError, match="do not lie on a grid of shape"):
            quality.hd95(*cubes((0, 0, 0)), grid((3, 3, 3)))


def scipy_hd95(a, b, sampling):
    def surface(mask):
        return mask & ~ndimage.binary_erosion(mask)

    def directed(one, other):
        return np.percentile(ndimage.distance_transform_edt(~other, sampling=sampling)[one], 95)

    a, b = surface(a), surface(b)
    return max(directed(a, b), directed(b, a))


class TestJacobian:
    MATRIX = np.array([[1.2, 0.1, 0.0], [-0.2, 0.9, 0.05], [0.03, -0.1, 1.1]])

    def test_affine_field_on_an_oblique_anisotropic_grid(self):
        geometry = grid(spacing=(0.8, 1.7, 4.0), direction=OBLIQUE)
        result = quality.jacobian_determinant(affine_field(self.MATRIX, geometry))
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, np.linalg.det(self.MATRIX), atol=2e-4)

    def test_quadratic_field_against_calculus(self):
        # u_x = 0.01 x^2: central differences are exact, J = 1 + 0.02 x inside.
        geometry = Geometry((5, 5, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
        vectors = np.zeros((5, 5, 9, 3), np.float32)
        vectors[..., 0] = 0.01 * np.arange(9) ** 2
        result = quality.jacobian_determinant(DisplacementField(vectors, geometry))
        np.testing.assert_allclose(result[2, 2, 1:-1], 1 + 0.02 * np.arange(1, 8), rtol=1e-5)
        assert result[2, 2, 0] == pytest.approx(1.01)

    def test_axis_of_one_voxel(self):
        result = quality.jacobian_determinant(affine_field(np.diag([2, 1, 1]), grid((1, 6, 6))))
        np.testing.assert_allclose(result, 2, atol=1e-4)

    def test_reflection_folds_everywhere(self):
        field = affine_field(np.diag([-1, 1, 1]), grid(spacing=(2.0, 1.0, 3.0), direction=OBLIQUE))
        result = quality.jacobian_statistics(field)
        assert result.folded_percent == 100
        assert result.minimum == pytest.approx(-1, abs=1e-4)
        assert result.maximum == pytest.approx(-1, abs=1e-4)
        assert math.isnan(result.sdlogj)

    def test_identity(self):
        result = quality.jacobian_statistics(
            DisplacementField(np.zeros((6, 7, 8, 3)), grid((6, 7, 8)))
        )
        assert (result.sdlogj, result.sdlogj_learn2reg, result.folded_percent) == (0, 0, 0)
        assert (result.minimum, result.maximum, result.voxels) == (1, 1, 6 * 7 * 8)

    def test_statistics_follow_their_formulas_inside_the_mask(self):
        rng = np.random.default_rng(1)
        noise = rng.normal(size=(12, 14, 16, 3)).astype(np.float32)
        field = DisplacementField(0.5 * noise, grid())
        mask = rng.random((12, 14, 16)) < 0.6
        det = quality.jacobian_determinant(field).astype(float)
        inside = det[mask]
        shifted = det[2:-2, 2:-2, 2:-2][mask[2:-2, 2:-2, 2:-2]] + 3
        result = quality.jacobian_statistics(field, mask.astype(np.int32))
        assert 0 < result.folded_percent < 50
        assert result.folded_percent == pytest.approx(100 * np.mean(inside <= 0))
        assert result.sdlogj == pytest.approx(np.std(np.log(inside[inside > 0])))
        expected = np.std(np.log(np.clip(shifted, 1e-9, 1e9)))
        assert result.sdlogj_learn2reg == pytest.approx(expected)
        assert result.voxels == mask.sum()

    def test_learn2reg_number_against_the_challenge_code(self):
        # The challenge correlates with [-1/2, 0, 1/2] along each array axis, in voxels.
        rng = np.random.default_rng(2)
        noise = rng.normal(size=(3, 12, 14, 16))
        disp = np.stack([ndimage.gaussian_filter(c, 1.0) for c in noise])
        gradient = np.array(
            [[ndimage.correlate1d(c, [-0.5, 0, 0.5], axis=axis) for axis in range(3)] for c in disp]
        )
        jacobian = np.moveaxis(gradient, (0, 1), (-2, -1))[2:-2, 2:-2, 2:-2] + np.eye(3)
        expected = np.log(np.clip(np.linalg.det(jacobian) + 3, 1e-9, 1e9)).std()
        vectors = np.moveaxis(disp[::-1], 0, -1) * 2.0  # zyx voxels -> xyz mm at 2 mm
        result = quality.jacobian_statistics(
            DisplacementField(vectors.astype(np.float32), grid(spacing=(2.0, 2.0, 2.0)))
        )
        assert result.sdlogj_learn2reg == pytest.approx(expected, rel=1e-4)

    def test_refuses_wrong_or_empty_masks(self):
        field = DisplacementField(np.zeros((6, 7, 8, 3)), grid((6, 7, 8)))
        with pytest.raises(InputError, match=r"mask has shape \(6, 7, 9\)"):
            quality.jacobian_statistics(field, np.ones((6, 7, 9)))
        with pytest.raises(InputError, match="mask is empty"):
            quality.jacobian_statistics(field, np.zeros((6, 7, 8)))


class TestTre:
    def test_is_exact(self):
        fixed = np.array([[0.0, 0.0, 0.0], [10.0, -5.0, 2.0]])
        shift = AffineTransform(np.eye(3), np.array([1.0, 2.0, 3.0]))
        moving = fixed + np.array([[4, 2, 7], [1, 2, 3]])
        np.testing.assert_allclose(quality.tre_mm(fixed, moving, (shift,)), [5, 0], atol=1e-12)
        np.testing.assert_allclose(
            quality.tre_mm(fixed, moving, ()), [math.sqrt(16 + 4 + 49), math.sqrt(14)]
        )

    def test_refuses_sets_of_different_size(self):
        with pytest.raises(InputError, match="2 fixed points but 1 moving points"):
            quality.tre_mm(np.zeros((2, 3)), np.zeros((1, 3)), ())


class TestMeans:
    def test_bootstrap_is_deterministic_and_covers_the_mean(self):
        values = np.random.default_rng(5).normal(0.8, 0.1, 30)
        low, high = quality.bootstrap_interval(values)
        assert (low, high) == quality.bootstrap_interval(values)
        assert (low, high) != quality.bootstrap_interval(values, seed=1)
        half_width = 1.96 * values.std() / math.sqrt(30)
        assert low == pytest.approx(values.mean() - half_width, abs=0.005)
        assert high == pytest.approx(values.mean() + half_width, abs=0.005)

    @pytest.mark.parametrize("values", [[], [0.5]])
    def test_too_few_values_have_no_interval(self, values):
        assert all(map(math.isnan, quality.bootstrap_interval(values)))

    def test_mean_over_labels(self):
        assert quality.mean_over_labels({1: 0.5, 9: 1.0}) == 0.75
        assert math.isnan(quality.mean_over_labels({}))


def test_a_run_measures_what_the_metrics_measure():
    """From sums that are read from the device, where the metrics use whole arrays."""
    geometry = grid((20, 22, 24), (2.0, 2.5, 3.0), OBLIQUE)
    rng = np.random.default_rng(1)
    vectors = ndimage.gaussian_filter(rng.normal(size=(20, 22, 24, 3)), (2, 2, 2, 0))
    displacement = DisplacementField(np.float32(25 * vectors), geometry)
    solution = Solution(np.zeros((4, 4, 4, 3), np.float32), np.array([3.0, 1.0, 0.5]))
    device = choose_device("cpu", 1)[0]
    measured = measure_quality(solution, grid((4, 4, 4)), displacement, None, device)
    found = run_quality(
        as_struct(Quality, measured), solution.feature_distance, geometry, inverted=False
    )
    expected = quality.jacobian_statistics(displacement)
    assert 0.01 < expected.folded_percent < 50
    for name, value in (
        ("folded_percent", expected.folded_percent),
        ("jacobian_min", expected.minimum),
        ("jacobian_max", expected.maximum),
        ("sdlogj", expected.sdlogj),
        ("feature_distance_before", 3.0),
        ("overlap_percent", 50.0),
        ("inverse_consistency_max_mm", 0.0),
    ):
        assert getattr(found, name) == pytest.approx(value, rel=1e-5), name
    assert math.isnan(found.inverse_missed_percent)
