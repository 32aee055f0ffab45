"""Slices stand upright whatever the order and sign of the file's axes."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import DIRECTIONS, centres_of, make_grid, reoriented

from dinoreg_rt.encoder.planes import (
    PLANES,
    choose_plane,
    in_plane_spacing_mm,
    upright,
    upright_view,
)
from dinoreg_rt.types import Volume

ORDERS = [(0, 1, 2), (1, 0, 2), (2, 1, 0), (2, 0, 1), (0, 2, 1), (1, 2, 0)]
FLIPS = [(), (0,), (1, 2), (0, 1, 2)]


def volume(rng: np.random.Generator, direction: str = "LPS") -> Volume:
    return Volume(
        rng.random((5, 6, 7)).astype(np.float32), make_grid((5, 6, 7), (1.0, 1.5, 2.0), direction)
    )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("direction", ["LPS", "RAS", "LAS"])
def test_an_image_stored_in_another_order_gives_the_same_slices(rng, plane, direction) -> None:
    image = volume(rng, direction)
    expected = upright_view(image.array, image.geometry, plane)
    grid = upright(image.geometry, plane)
    for order in ORDERS:
        for flips in FLIPS:
            other = reoriented(image, order, flips)
            np.testing.assert_array_equal(
                upright_view(other.array, other.geometry, plane), expected
            )
            np.testing.assert_allclose(
                centres_of(upright(other.geometry, plane)), centres_of(grid), atol=1e-9
            )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_voxel_keeps_its_position(rng, plane, direction) -> None:
    image = volume(rng, direction)
    points = np.moveaxis(centres_of(image.geometry), -1, 0)
    grid = upright(image.geometry, plane)
    for axis in range(3):
        view = upright_view(points[axis], image.geometry, plane)
        np.testing.assert_allclose(view, centres_of(grid)[..., axis], atol=1e-9)


@pytest.mark.parametrize(
    ("plane", "slices", "rows", "columns"),
    [
        ("axial", (0, 0, 1), (0, 1, 0), (1, 0, 0)),
        ("coronal", (0, 1, 0), (0, 0, -1), (1, 0, 0)),
        ("sagittal", (1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ],
)
@pytest.mark.parametrize("direction", ["LPS", "RAS", "LAS"])
def test_rows_and_columns_run_as_on_a_screen(plane, slices, rows, columns, direction) -> None:
    grid = upright(make_grid((5, 6, 7), (1.0, 1.5, 2.0), direction), plane)
    np.testing.assert_allclose(grid.direction, np.array([columns, rows, slices]).T, atol=1e-12)


def test_the_thick_axis_decides_the_plane() -> None:
    thin = make_grid((5, 6, 7), (1.0, 1.0, 1.2))
    coronal = make_grid((5, 6, 7), (1.0, 4.0, 1.0))
    cardiac = make_grid((5, 6, 7), (1.5, 1.5, 10.0))
    assert choose_plane([thin, thin])[0] == "axial"
    assert choose_plane([thin, coronal])[0] == "coronal"
    assert choose_plane([coronal, thin])[0] == "coronal"
    plane, reason = choose_plane([coronal, cardiac])
    assert plane == "axial"
    assert "6.7 times" in reason


def test_spacing_within_a_plane() -> None:
    grid = make_grid((5, 6, 7), (1.0, 4.0, 9.0))
    assert in_plane_spacing_mm(grid, "axial") == pytest.approx(2.0)
    assert in_plane_spacing_mm(grid, "coronal") == pytest.approx(3.0)
    assert in_plane_spacing_mm(grid, "sagittal") == pytest.approx(6.0)
