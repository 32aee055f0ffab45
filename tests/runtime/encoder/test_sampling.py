"""Interpolation between slices and onto the control grid keeps features in position."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import centres_of, make_grid

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.framing import Frame
from dinoreg_rt.encoder.sampling import neighbours, sample_features
from dinoreg_rt.encoder.slice_stack import plan_slices
from dinoreg_rt.geometry import coarsened_grid
from dinoreg_rt.types import AffineTransform, Volume

CPU = Device("cpu", threads=1)


def between(values: np.ndarray, encoded: tuple[int, ...], count: int) -> np.ndarray:
    before, after, share = neighbours(encoded, count)
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return values[before] * (1 - share) + values[after] * share


def test_between_encoded_slices_everything_is_linear() -> None:
    encoded = (1, 4, 5, 9)
    got = between(np.asarray(encoded, float), encoded, 12)
    np.testing.assert_allclose(got, np.clip(np.arange(12), 1, 9), atol=1e-6)


def test_a_single_slice_stands_for_all() -> None:
    np.testing.assert_array_equal(between(np.array([7.0]), (3,), 5), np.full(5, 7.0))


def test_projecting_before_or_after_the_interpolation_is_the_same(rng) -> None:
    tokens = rng.normal(size=(4, 3, 5, 16)).astype(np.float16)
    basis, offset = rng.normal(size=(16, 6)), rng.normal(size=6)
    encoded = (0, 3, 6, 7)
    first = between(tokens.astype(np.float64) @ basis - offset, encoded, 8)
    second = between(tokens.astype(np.float64), encoded, 8) @ basis - offset
    # The weights are float32. Measured: 4e-7.
    np.testing.assert_allclose(first, second, atol=3e-6)


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (2, 2, 2, 2), (1, 2, 0, 3)])
def test_features_keep_their_position(margins) -> None:
    """Tokens that hold their own position give each control voxel its position."""
    grid = make_grid((16, 40, 48), (1.5, 1.2, 2.0), "oblique")
    image = Volume(np.ones(grid.shape_zyx, np.float32), grid)
    turned = make_grid((10, 20, 20), (2.0, 2.0, 3.0), "RAS", centre_mm=(3.0, -2.0, 1.0))
    shift = AffineTransform(np.eye(3), np.array([2.0, -3.0, 1.0]))
    for plane in ("axial", "coronal", "sagittal"):
        size = (32 + 4 * sum(margins[:2]), 40 + 4 * sum(margins[2:]))
        stack = plan_slices(image, (0.0, 1.0), plane, size, 4, 3, frame=Frame(margins))
        assert stack.tokens.shape_zyx[1:] == (8, 10)
        planes = centres_of(stack.tokens)[list(stack.encoded)].astype(np.float32)
        out = np.full((*turned.shape_zyx, 4), 9, np.float16)
        sample_features(planes, stack, turned, shift, out[..., :3], CPU)
        want = centres_of(turned) + shift.translation_mm
        half = np.asarray(
            grid.direction.T
            @ (want.reshape(-1, 3) - np.mean(centres_of(grid).reshape(-1, 3), axis=0)).T
        ).T.reshape(want.shape)
        extent = np.array(grid.shape_xyz) * grid.spacing_mm / 2 - 5.0
        inside = np.all(np.abs(half) < extent, axis=-1)
        assert inside.sum() > 300
        # Rounding numbers below 64 to half precision costs 0.03; nothing else is lost.
        np.testing.assert_allclose(out[..., :3][inside], want[inside], atol=0.04)
        assert np.all(out[..., 3] == 9)


def test_a_coarser_grid_averages(rng) -> None:
    grid = make_grid((8, 32, 32), (1.0, 1.0, 1.0))
    image = Volume(np.ones(grid.shape_zyx, np.float32), grid)
    stack = plan_slices(image, (0.0, 1.0), "axial", (32, 32), patch=1, stride=1)
    planes = rng.normal(size=(8, 32, 32, 1)).astype(np.float32)
    coarse = coarsened_grid(stack.tokens, (2, 2, 2))
    out = np.empty((*coarse.shape_zyx, 1), np.float16)
    sample_features(planes, stack, coarse, AffineTransform.identity(), out, CPU)
    want = planes.reshape(4, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(out[..., 0], want, atol=2e-3)
