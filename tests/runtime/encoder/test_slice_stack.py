"""The slices that are encoded, and their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import IMAGENET
from phantoms import centres_of, make_grid, reoriented

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.framing import Frame
from dinoreg_rt.encoder.planning import slice_stride
from dinoreg_rt.encoder.slice_stack import SliceStack, plan_slices
from dinoreg_rt.errors import ConfigError
from dinoreg_rt.geometry import same_grid, shifted_grid
from dinoreg_rt.images.moving_grids import Region
from dinoreg_rt.types import AffineTransform, Volume

CPU = Device("cpu", threads=1)


def stack_of(array: np.ndarray, *, stride: int = 1, size=(24, 32), window=(0.0, 1.0)) -> SliceStack:
    grid = make_grid(array.shape, (1.5, 1.0, 3.0))
    return plan_slices(
        Volume(array.astype(np.float32), grid), window, "axial", size, patch=8, stride=stride
    )


@pytest.mark.parametrize(
    ("slices", "stride", "expected"),
    [
        (7, 3, (0, 3, 6)),
        (8, 3, (0, 3, 6, 7)),
        (5, 1, (0, 1, 2, 3, 4)),
        (4, 9, (0, 3)),
        (1, 3, (0,)),
    ],
)
def test_every_kth_slice_and_the_last(slices, stride, expected) -> None:
    assert stack_of(np.ones((slices, 12, 16)), stride=stride).encoded == expected


def test_empty_slices_are_skipped() -> None:
    array = np.ones((6, 12, 16))
    array[[0, 3]] = 0
    stack = stack_of(array)
    assert stack.encoded == (1, 2, 4, 5)
    assert stack.empty == (0, 3)


def test_pixels_are_windowed_and_normalised(rng) -> None:
    array = rng.uniform(-300, 300, (3, 24, 32)).astype(np.float32)
    stack = stack_of(array, window=(-100.0, 200.0))
    pixels = stack.batch(1, 5, IMAGENET, CPU)
    assert pixels.shape == (2, 3, 24, 32)
    grey = np.clip((array.astype(np.float64) + 100) / 300, 0, 1)
    for channel in range(3):
        expected = (grey[1:] - IMAGENET.mean[channel]) / IMAGENET.std[channel]
        np.testing.assert_allclose(pixels[:, channel], expected, atol=2e-6)


def test_smaller_slices_are_antialiased(rng) -> None:
    array = rng.random((2, 24, 32)).astype(np.float32)
    grey = stack_pixels(stack_of(array, size=(8, 16)))
    blocks = array.reshape(2, 8, 3, 16, 2).mean((2, 4))
    np.testing.assert_allclose(grey, blocks, atol=1e-6)


def test_nan_stays_in_its_slice(rng) -> None:
    array = rng.random((3, 12, 16))
    array[1, 3, 4] = np.nan
    pixels = stack_pixels(stack_of(array))
    assert np.isfinite(pixels[[0, 2]]).all()
    assert np.isnan(pixels[1]).any()


def test_resized_pixels_stay_where_they_were() -> None:
    """A ramp along any axis is the same ramp at the resized pixels' own positions.

    Half a voxel at the border is flat, which is at most six pixels here.
    """
    grid = make_grid((4, 20, 30), (1.5, 1.0, 3.0), "oblique")
    points = centres_of(grid)
    for size in ((40, 45), (16, 24)):
        for axis in range(3):
            image = Volume(points[..., axis].astype(np.float32), grid)
            stack = plan_slices(image, (-200.0, 200.0), "coronal", size, patch=8, stride=1)
            want = centres_of(stack.pixels)[..., axis]
            unit = stack_pixels(stack)
            inner = (slice(None), slice(6, -6), slice(6, -6))
            np.testing.assert_allclose(unit[inner], want[inner], atol=1e-3)


def stack_pixels(stack: SliceStack) -> np.ndarray:
    norm = IMAGENET.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    grey = stack.batch(0, 10_000, norm, CPU)[:, 0]
    low, high = stack.window
    return grey * (high - low) + low


def test_file_order_does_not_matter(rng) -> None:
    array = rng.random((5, 12, 16))
    expected = stack_pixels(stack_of(array))
    grid = make_grid(array.shape, (1.5, 1.0, 3.0))
    image = Volume(array.astype(np.float32), grid)
    for order, flips in (((2, 0, 1), (1,)), ((1, 2, 0), (0, 2))):
        other = plan_slices(reoriented(image, order, flips), (0, 1), "axial", (24, 32), 8, 1)
        np.testing.assert_allclose(stack_pixels(other), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("first", "count", "shift", "needed", "encoded"),
    [
        (7, 5, 0.0, (6, 12), (6, 9, 12)),  # half a voxel at the edge, and a slice to interpolate
        (7, 5, 1.4, (7, 13), (6, 9, 12, 15)),
        (0, 20, 0.0, (0, 19), (0, 3, 6, 9, 12, 15, 18, 19)),
        (25, 4, 0.0, (19, 19), (19,)),  # beyond the image
    ],
)
def test_slices_that_the_region_does_not_reach_are_not_encoded(
    first, count, shift, needed, encoded
) -> None:
    """The slices left are some of those encoded without a region."""
    grid = make_grid((20, 12, 16), (1.5, 1.0, 3.0))
    image = Volume(np.ones(grid.shape_zyx, np.float32), grid)
    moved = AffineTransform(np.eye(3), np.asarray(grid.direction)[:, 2] * 3.0 * shift)
    region = Region(shifted_grid(grid, (first, 0, 0), (count, 12, 16)), moved)
    stack = plan_slices(image, (0.0, 1.0), "axial", (24, 32), 8, 3, region)
    assert (stack.needed, stack.encoded) == (needed, encoded)


def test_an_empty_slice_at_the_edge_is_replaced_by_the_next() -> None:
    array = np.ones((20, 12, 16), np.float32)
    array[[6, 12]] = 0
    grid = make_grid(array.shape, (1.5, 1.0, 3.0))
    region = Region(shifted_grid(grid, (7, 0, 0), (5, 12, 16)), AffineTransform.identity())
    stack = plan_slices(Volume(array, grid), (0.0, 1.0), "axial", (24, 32), 8, 3, region)
    assert stack.encoded == (3, 9, 15)


@pytest.mark.parametrize(
    ("thickness_mm", "wanted_mm", "stride"),
    [(2.0, 8.0, 4), (7.7, 8.0, 1), (2.01, 8.0, 4), (3.0, 8.0, 2), (5.0, 2.0, 1)],
)
def test_the_slice_spacing_sets_the_stride(
    thickness_mm: float, wanted_mm: float, stride: int
) -> None:
    config = RegistrationConfig(encoder="any", slice_spacing_mm=wanted_mm)
    grid = make_grid((20, 8, 8), (1.0, 1.0, thickness_mm))
    assert slice_stride(config, grid) == stride


def test_the_later_of_stride_and_distance_wins(tmp_path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('encoder = "any"\nslice_spacing_mm = 8.0\n')
    config = RegistrationConfig.from_sources(file=file, overrides={"slice_stride": 3})
    assert (config.slice_stride, config.slice_spacing_mm) == (3, None)
    config = RegistrationConfig.from_sources("dino-reg", file)
    assert (config.slice_stride, config.slice_spacing_mm) == (1, 8.0)
    with pytest.raises(ConfigError, match="not both"):
        RegistrationConfig(encoder="any", slice_stride=3, slice_spacing_mm=8.0)


@pytest.mark.parametrize("margins", [(2, 2, 2, 2), (2, 1, 0, 3)])
def test_margins_are_black_and_their_tokens_are_dropped(rng, margins) -> None:
    """The slice between them has the pixels, positions and tokens of one without margins."""
    array = rng.random((3, 12, 16)).astype(np.float32) + 0.5
    image = Volume(array, make_grid(array.shape, (1.5, 1.0, 3.0)))
    top, bottom, left, right = margins
    rows, columns = 3 + top + bottom, 4 + left + right
    plain = plan_slices(image, (0.2, 1.0), "axial", (24, 32), 8, 1)
    size = (8 * rows, 8 * columns)
    padded = plan_slices(image, (0.2, 1.0), "axial", size, 8, 1, frame=Frame(margins))
    assert same_grid(padded.tokens, plain.tokens)
    assert padded.pixels.shape_zyx == (3, *size)
    inner = np.s_[..., 8 * top : 8 * top + 24, 8 * left : 8 * left + 32]
    positions = np.moveaxis(centres_of(padded.pixels), -1, 0)[inner]
    np.testing.assert_allclose(positions, np.moveaxis(centres_of(plain.pixels), -1, 0), atol=1e-9)
    pixels = padded.batch(0, 3, IMAGENET, CPU)
    np.testing.assert_array_equal(pixels[inner], plain.batch(0, 3, IMAGENET, CPU))
    pixels[inner] = np.nan
    for channel in range(3):
        around = pixels[:, channel][np.isfinite(pixels[:, channel])]
        assert around.size == 3 * (64 * rows * columns - 24 * 32)
        black = -IMAGENET.mean[channel] / IMAGENET.std[channel]
        np.testing.assert_allclose(around, black, rtol=1e-6)
    tokens = rng.random((2, rows, columns, 3))
    kept = tokens[:, top : top + 3, left : left + 4]
    np.testing.assert_array_equal(padded.inner(tokens), kept)
    assert plain.inner(tokens) is tokens
