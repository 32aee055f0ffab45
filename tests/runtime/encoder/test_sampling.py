"""Interpolation between slices and onto the control grid keeps features in position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from phantoms import centres_of, make_grid

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.framing import Frame
from dinoreg_rt.encoder.pca import ProjectedTokens
from dinoreg_rt.encoder.planes import upright_view
from dinoreg_rt.encoder.sampling import places, sample_features, tissue_weight
from dinoreg_rt.encoder.slice_stack import SliceStack, plan_slices
from dinoreg_rt.geometry import coarsened_grid
from dinoreg_rt.images.resample import resample_volume, weight_on
from dinoreg_rt.types import AffineTransform, Array, Volume

CPU = Device("cpu", threads=1)
#: The axes of a sagittal scan: to the back, down, and to the right.
PIR = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def between(values: np.ndarray, encoded: tuple[int, ...], count: int) -> np.ndarray:
    before, share = places(encoded, count).T
    first, share = before.astype(int), share.reshape(-1, *[1] * (values.ndim - 1))
    second = np.minimum(first + 1, len(encoded) - 1)
    return values[first] * (1 - share) + values[second] * share


def projected(planes: Array, offsets: Array | None = None) -> ProjectedTokens:
    """Store features (n, rows, columns, K) as projection leaves them."""
    count, rows, columns, channels = planes.shape
    stride = -(-channels // 8) * 8
    values = np.zeros((count, rows * columns, stride), np.float32)
    values[..., :channels] = planes.reshape(count, -1, channels)
    kept = np.zeros((count, stride))
    if offsets is not None:
        kept[:, :channels] = offsets
    return ProjectedTokens(values, kept, channels)


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
    np.testing.assert_allclose(first, second, atol=1e-12)


def cut(plane: str, direction: str, stride: int, frame: Frame | None = None) -> SliceStack:
    """Cut an image of random values with thick slices; a few of them are empty."""
    grid = make_grid((18, 40, 48), (2.5, 1.2, 1.0), PIR if direction == "PIR" else direction)
    array = np.random.default_rng(7).random(grid.shape_zyx).astype(np.float32)
    image = Volume(array, grid)
    return plan_slices(image, (0.6, 1.0), plane, (32, 40), 4, stride, frame=frame or Frame())


@pytest.mark.parametrize("direction", ["LPS", "RAS", "oblique", "PIR"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("stride", "spacing"), [(1, 2.0), (3, 4.5), (50, 1.5)])
def test_equal_to_filling_slices_and_resampling_channels(rng, plane, direction, stride, spacing):
    """Filling in the slices of each channel and resampling them gives the same features."""
    stack = cut(plane, direction, stride)
    grid = make_grid((9, 14, 12), (spacing, 3.0, 2.5), "RAS", centre_mm=(3.0, -2.0, 1.0))
    shift = AffineTransform(np.eye(3), np.array([2.0, -3.0, 1.0]))
    planes = rng.normal(size=(len(stack.encoded), 8, 10, 11)).astype(np.float32)
    offsets = rng.normal(size=(len(stack.encoded), 11))
    out = np.full((*grid.shape_zyx, 24), 9, np.float16)
    kept = projected(planes, offsets)
    sample_features(kept, stack, grid, shift, out, CPU, factor=0.3, first_channel=8)
    exact = planes - offsets[:, None, None]
    filled = between(exact, stack.encoded, stack.tokens.shape_zyx[0]).astype(np.float32)
    for channel in range(11):
        volume = Volume(np.ascontiguousarray(filled[..., channel]), stack.tokens)
        want = 0.3 * resample_volume(volume, grid, shift, CPU, outside=0.0)
        # Half of the last place of half precision below 2.
        np.testing.assert_allclose(out[..., 8 + channel], want, atol=5e-4, rtol=0)
    assert np.all(out[..., :8] == 9)
    assert not out[..., 19:].any()


@pytest.mark.parametrize("direction", ["LPS", "RAS", "oblique", "PIR"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_tissue_weight(plane, direction) -> None:
    """It is 1 where the mask of tissue in the needed slices, resampled like an image, is not 0."""
    stack = cut(plane, direction, 1)
    first, last = stack.tokens.shape_zyx[0] // 3, stack.tokens.shape_zyx[0] // 2
    stack = replace(stack, needed=(first, last), window=(0.99, 1.0))
    grid = make_grid((11, 30, 25), (2.0, 1.5, 2.5), "RAS", centre_mm=(3.0, -2.0, 1.0))
    shift = AffineTransform(np.eye(3), np.array([2.1, -3.3, 1.2]))
    tissue = (stack.volume.array > np.float32(0.99)).copy()
    slices = upright_view(tissue, stack.volume.geometry, stack.plane)
    slices[:first] = False
    slices[last + 1 :] = False
    want = weight_on(grid, stack.volume, tissue, shift, CPU) > 0
    np.testing.assert_array_equal(tissue_weight(stack, grid, shift, CPU), want)
    assert 0 < want.mean() < 1


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
        out = np.full((*turned.shape_zyx, 8), 9, np.float16)
        sample_features(projected(planes), stack, turned, shift, out, CPU)
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


def test_a_coarser_grid_averages(rng) -> None:
    grid = make_grid((8, 32, 32), (1.0, 1.0, 1.0))
    image = Volume(np.ones(grid.shape_zyx, np.float32), grid)
    stack = plan_slices(image, (0.0, 1.0), "axial", (32, 32), patch=1, stride=1)
    planes = rng.normal(size=(8, 32, 32, 1)).astype(np.float32)
    coarse = coarsened_grid(stack.tokens, (2, 2, 2))
    out = np.empty((*coarse.shape_zyx, 8), np.float16)
    sample_features(projected(planes), stack, coarse, AffineTransform.identity(), out, CPU)
    want = planes.reshape(4, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(out[..., 0], want, atol=2e-3)
