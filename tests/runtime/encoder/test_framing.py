"""Both images at one scale in the encoder's picture, with tokens at their true positions."""

from __future__ import annotations

import numpy as np
import pytest
from encoders import IMAGENET
from phantoms import DIRECTIONS, centres_of, make_grid

from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.framing import Frame, evenly_padded, frames_of, picture_extent, shown_boxes
from dinoreg_rt.encoder.planes import PLANES, upright
from dinoreg_rt.encoder.slice_stack import SliceStack, plan_slices
from dinoreg_rt.images.pair import PairImage
from dinoreg_rt.types import Geometry, Volume

CPU = Device("cpu", threads=1)
PATCH = 8
GREY = IMAGENET.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})


def image_of(values: np.ndarray, grid: Geometry, body: Volume | None = None) -> PairImage:
    volume = Volume(values.astype(np.float32), grid)
    return PairImage("fixed", volume, None, "mr", (0.0, 1.0), 0.0, body)


def stacks_of(pair, grid, *, scale="common", plane="axial", padding=0) -> list[SliceStack]:
    shown = shown_boxes(pair, plane, scale)
    picture = picture_extent([extent for _, extent in shown], scale)
    size = (grid[0] * PATCH, grid[1] * PATCH)
    return [
        plan_slices(image.volume, (0.0, 1.0), plane, size, PATCH, 1, frame=frame)
        for image, frame in zip(pair, frames_of(shown, picture, grid, padding, scale), strict=True)
    ]


def ball(grid: Geometry, radius_mm: float, centre_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    return np.linalg.norm(centres_of(grid) - np.asarray(centre_mm), axis=-1) < radius_mm


@pytest.mark.parametrize("scale", ["common", "body"])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pixels_and_tokens_have_the_positions_of_their_grids(plane, direction, scale) -> None:
    """A ramp along any axis is the same ramp at the pixels' own positions, inside the slice."""
    grid = make_grid((12, 20, 30), (1.5, 1.0, 3.0), direction)
    other = make_grid((40, 44, 48), (2.0, 2.0, 2.0))
    body = Volume(ball(grid, 9.0).astype(np.float32), grid)
    points = centres_of(grid)
    for axis in range(3):
        ramp = (points[..., axis] + 100) / 200
        pair = (image_of(ramp, grid, body), image_of(np.ones(other.shape_zyx), other))
        stack, _ = stacks_of(pair, (11, 13), plane=plane, scale=scale)
        top, bottom, left, right = (PATCH * n for n in stack.frame.margins)
        height, width = stack.pixels.shape_zyx[1:]
        inner = (slice(None), slice(top, height - bottom), slice(left, width - right))
        grey = stack.batch(0, 10_000, GREY, CPU)[:, 0]
        want = (centres_of(stack.pixels)[..., axis] + 100) / 200
        count = len(stack.encoded)
        near = 8 if min(stack.tokens.shape_zyx[1:]) > 2 else 4  # half a voxel at the edge is flat
        core = (slice(None), slice(near, -near), slice(near, -near))
        np.testing.assert_allclose(grey[inner][core], want[inner][core], atol=2e-3)
        rows, columns = stack.tokens.shape_zyx[1:]
        patches = centres_of(stack.pixels)[inner].reshape(count, rows, PATCH, columns, PATCH, 3)
        np.testing.assert_allclose(centres_of(stack.tokens), patches.mean((2, 4)), atol=1e-9)


def test_a_structure_has_one_size_in_both_images() -> None:
    """Fields of view of different size, aspect and resolution change the size only with `fit`."""
    grids = (
        make_grid((3, 120, 100), (3.0, 2.0, 4.0)),
        make_grid((4, 150, 140), (1.0, 1.0, 3.0), "LAS", (5.0, -5.0, 0.0)),
    )
    pair = tuple(image_of(0.01 + ball(grid, 60.0), grid) for grid in grids)
    sizes = {}
    for scale in ("common", "fit"):
        found = []
        for stack in stacks_of(pair, (28, 34), scale=scale):
            seen = stack.batch(1, 1, GREY, CPU)[0, 0] > 0.5
            found.append((seen.any(axis=1).sum(), seen.any(axis=0).sum()))
        sizes[scale] = np.array(found)
    assert np.ptp(sizes["common"]) <= 0.06 * sizes["common"].mean()
    assert np.ptp(sizes["fit"]) > 0.3 * sizes["fit"].mean()


def test_tokens_have_one_size_and_both_slices_fit() -> None:
    grids = (
        make_grid((3, 91, 117), (3.0, 3.0, 3.0)),
        make_grid((3, 101, 122), (3.0, 3.0, 3.0)),
    )
    pair = tuple(image_of(np.ones(grid.shape_zyx), grid) for grid in grids)
    first, second = stacks_of(pair, (28, 34), padding=1)
    for stack, grid in zip((first, second), grids, strict=True):
        rows, columns = stack.tokens.shape_zyx[1:]
        top, bottom, left, right = stack.frame.margins
        assert min(stack.frame.margins) >= 1
        assert (top + rows + bottom, left + columns + right) == (28, 34)
        assert abs(top - bottom) <= 1
        assert abs(left - right) <= 1
        # A slice is rounded to whole tokens.
        token_mm = 3 * max(101 / 26, 122 / 32)
        assert abs(rows * token_mm - 3 * grid.shape_zyx[1]) <= token_mm / 2 + 1e-9
        assert abs(columns * token_mm - 3 * grid.shape_zyx[2]) <= token_mm / 2 + 1e-9
    assert second.tokens.shape_zyx[1] == 26


def test_the_smaller_slice_is_centred_between_margins() -> None:
    pair = tuple(
        image_of(np.ones(shape), make_grid(shape, (2.0, 2.0, 3.0)))
        for shape in ((2, 12, 16), (2, 30, 40))
    )
    stack, other = stacks_of(pair, (6, 8))
    assert other.frame == Frame()
    assert stack.frame.margins == (2, 2, 2, 3)
    assert stack.tokens.shape_zyx == (2, 2, 3)


def test_on_one_grid_of_the_encoders_aspect_common_equals_fit(rng) -> None:
    grid = make_grid((3, 28, 34), (2.0, 2.0, 2.0))
    pair = tuple(image_of(rng.random(grid.shape_zyx), grid) for _ in range(2))
    for padding in (0, 2):
        fit, common = (
            stacks_of(pair, (14, 17), scale=scale, padding=padding) for scale in ("fit", "common")
        )
        for one, other in zip(fit, common, strict=True):
            if padding == 0:
                assert one.frame == other.frame == evenly_padded(0)
                np.testing.assert_array_equal(centres_of(one.tokens), centres_of(other.tokens))
                pixels = (stack.batch(0, 3, IMAGENET, CPU) for stack in (one, other))
                np.testing.assert_array_equal(*pixels)
            else:
                assert min(other.frame.margins) >= padding


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_box_holds_the_body(direction) -> None:
    grid = make_grid((20, 40, 50), (2.0, 2.0, 3.0), direction)
    own = make_grid((14, 18, 20), (5.0, 5.0, 5.0), "LPS", (4.0, -3.0, 0.0))
    body = Volume(ball(own, 14.0, (6.0, 5.0, 0.0)).astype(np.float32), own)
    (box, extent), (whole, _) = shown_boxes(
        (image_of(np.ones(grid.shape_zyx), grid, body), image_of(np.ones(grid.shape_zyx), grid)),
        "axial",
        "body",
    )
    assert whole is None  # without a body, the whole slice is shown
    assert box is not None
    stack = upright(grid, "axial")
    shown = centres_of(Frame(box=box).shown(stack))
    np.testing.assert_allclose(shown, centres_of(stack)[Frame(box=box).index], atol=1e-9)
    inside = ball(stack, 12.0, (6.0, 5.0, 0.0))
    assert inside[Frame(box=box).index].sum() == inside.sum()
    assert max(extent) < 70


def test_slices_that_are_empty_in_the_box_are_skipped() -> None:
    grid = make_grid((4, 20, 20), (2.0, 2.0, 2.0))
    values = np.zeros(grid.shape_zyx)
    values[1:, 8:12, 8:12] = 1
    values[0, 0, 0] = 1
    stack = plan_slices(
        Volume(values.astype(np.float32), grid),
        (0.0, 1.0),
        "axial",
        (16, 16),
        PATCH,
        1,
        frame=Frame(box=(4, 16, 4, 16)),
    )
    assert (stack.encoded, stack.empty) == ((1, 2, 3), (0,))
