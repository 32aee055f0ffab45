"""Initial positions from headers, centres of the boxes, centres of mass, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import Body, bright_pair, centres_of, make_grid

from dinoreg_rt import io
from dinoreg_rt.align.centres import centre_of_mass
from dinoreg_rt.align.initial import Alignment, initial_alignment
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


TRUTH_MM = np.array([100.0, 50.0, -40.0])


def aligned(method: str, fixed: Volume = FIXED, mask: np.ndarray | None = None) -> Alignment:
    return initial_alignment(bright_pair(fixed, MOVING, mask), method, HOST)


def test_none_is_the_identity() -> None:
    found = aligned("none")
    np.testing.assert_array_equal(found.transform.matrix, np.eye(3))
    np.testing.assert_array_equal(found.transform.translation_mm, 0)
    assert "headers" in found.method


def test_centre_puts_the_boxes_together() -> None:
    found = aligned("centre")
    np.testing.assert_allclose(found.transform.translation_mm, [103.0, 43.0, -38.0])
    assert "(103.0, 43.0, -38.0) mm" in found.method


def test_moments_put_the_bodies_together() -> None:
    """The centres of the boxes are 7.7 mm off; the bodies are found."""
    found = aligned("moments")
    # Measured: 3e-4 mm.
    np.testing.assert_allclose(found.transform.translation_mm, TRUTH_MM, atol=0.01)
    np.testing.assert_array_equal(found.transform.matrix, np.eye(3))
    assert "centres of mass" in found.method


def test_moments_look_only_inside_the_mask() -> None:
    spoiled = FIXED.array.copy()
    spoiled[:3] = 1.0
    fixed = Volume(spoiled, FIXED.geometry)
    mask = np.ones(spoiled.shape, np.float32)
    mask[:3] = 0
    masked, plain = (aligned("moments", fixed, m).transform.translation_mm for m in (mask, None))
    assert np.abs(masked - TRUTH_MM).max() < 0.5
    assert np.abs(plain - TRUTH_MM).max() > 2


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
    found = aligned(str(tmp_path / name))
    assert found.numbers() == {}
    affine = found.transform
    np.testing.assert_allclose(affine.matrix, wanted.matrix, atol=1e-12)
    np.testing.assert_allclose(affine.translation_mm, wanted.translation_mm, atol=1e-12)
    assert name in found.method


def test_word_that_is_not_a_file() -> None:
    with pytest.raises(InputError, match="middle"):
        aligned("middle")
