"""Where the registration begins: headers, middles of the boxes, centres of mass, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import Body, bright_pair, centres_of, make_grid

from dinoreg_rt import io
from dinoreg_rt.align.initial import centre_of_mass, initial_alignment
from dinoreg_rt.device.choice import Device
from dinoreg_rt.errors import InputError
from dinoreg_rt.geometry import centre_lps_mm
from dinoreg_rt.types import AffineTransform, Volume

HOST = Device("cpu", threads=2)


def body_at(centre: tuple[float, float, float], direction: str, grid_centre=None) -> Volume:
    grid = make_grid((44, 44, 48), (2.2, 2.4, 2.3), direction, grid_centre or centre)
    return Volume(Body(centre_mm=centre)(centres_of(grid)).astype(np.float32), grid)


FIXED = body_at((5.0, -3.0, 8.0), "LAS")
MOVING = body_at((105.0, 47.0, -32.0), "oblique", (108.0, 40.0, -30.0))


def test_none_is_the_identity() -> None:
    found = initial_alignment(bright_pair(FIXED, MOVING), "none", HOST)
    affine, reason = found.transform, found.method
    np.testing.assert_array_equal(affine.matrix, np.eye(3))
    np.testing.assert_array_equal(affine.translation_mm, 0)
    assert "headers" in reason


def test_centre_puts_the_boxes_together() -> None:
    found = initial_alignment(bright_pair(FIXED, MOVING), "centre", HOST)
    affine, reason = found.transform, found.method
    np.testing.assert_allclose(
        centre_lps_mm(FIXED.geometry) + affine.translation_mm, centre_lps_mm(MOVING.geometry)
    )
    np.testing.assert_allclose(affine.translation_mm, [103.0, 43.0, -38.0])
    assert "(103.0, 43.0, -38.0) mm" in reason


def test_moments_put_the_bodies_together() -> None:
    """The boxes' middles are 7.7 mm off, the bodies are found."""
    found = initial_alignment(bright_pair(FIXED, MOVING), "moments", HOST)
    affine, reason = found.transform, found.method
    # Measured: 3e-4 mm.
    np.testing.assert_allclose(affine.translation_mm, [100.0, 50.0, -40.0], atol=0.01)
    np.testing.assert_array_equal(affine.matrix, np.eye(3))
    assert "centres of mass" in reason


def test_moments_look_only_inside_the_mask() -> None:
    spoiled = FIXED.array.copy()
    spoiled[:3] = 1.0
    fixed = Volume(spoiled, FIXED.geometry)
    mask = np.ones(spoiled.shape, np.float32)
    mask[:3] = 0
    masked = initial_alignment(bright_pair(fixed, MOVING, mask), "moments", HOST).transform
    plain = initial_alignment(bright_pair(fixed, MOVING), "moments", HOST).transform
    truth = np.array([100.0, 50.0, -40.0])
    assert np.abs(masked.translation_mm - truth).max() < 0.5
    assert np.abs(plain.translation_mm - truth).max() > 2


def test_moments_of_an_image_below_its_window() -> None:
    empty = Volume(np.full((4, 5, 6), -3.0, np.float32), make_grid((4, 5, 6), (1.0, 2.0, 3.0)))
    np.testing.assert_allclose(centre_of_mass(empty, (0.0, 1.0)), centre_lps_mm(empty.geometry))


def test_centre_of_mass_is_exact() -> None:
    grid = make_grid((5, 6, 7), (1.0, 2.0, 3.0), "oblique", (10.0, 20.0, 30.0))
    array = np.zeros(grid.shape_zyx, np.float32)
    array[1, 4, 2], array[3, 0, 6] = 0.75, 5.0  # the second is clipped to 1
    points = centres_of(grid)
    expected = (0.75 * points[1, 4, 2] + points[3, 0, 6]) / 1.75
    np.testing.assert_allclose(centre_of_mass(Volume(array, grid), (0.0, 1.0)), expected)


@pytest.mark.parametrize("name", ["start.tfm", "start.txt"])
def test_file(tmp_path: Path, name: str) -> None:
    wanted = AffineTransform([[0.0, -1.0, 0.0], [1.1, 0.0, 0.0], [0.0, 0.2, 0.9]], [1.0, -2.0, 3.5])
    io.write_affine(tmp_path / name, wanted)
    found = initial_alignment(bright_pair(FIXED, MOVING), str(tmp_path / name), HOST)
    affine, reason = found.transform, found.method
    assert found.numbers() == {}
    np.testing.assert_allclose(affine.matrix, wanted.matrix, atol=1e-12)
    np.testing.assert_allclose(affine.translation_mm, wanted.translation_mm, atol=1e-12)
    assert name in reason


def test_word_that_is_no_file() -> None:
    with pytest.raises(InputError, match="middle"):
        initial_alignment(bright_pair(FIXED, MOVING), "middle", HOST)
