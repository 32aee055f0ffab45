"""Slices in patient orientation, and `qc.png` for any kind of image."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from qualities import GOOD

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.fields.inversion import voxel_centres
from dinoreg_rt.geometry import sample_linear
from dinoreg_rt.quality.metrics import jacobian_determinant
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.run.picture import draw_picture
from dinoreg_rt.run.slices import anatomical_axes, extract_planes
from dinoreg_rt.types import AffineTransform, DisplacementField, FloatArray, Geometry, Volume

DIRECTIONS = [
    np.array(np.eye(3)[list(order)] * signs)
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


def make_grid(direction: FloatArray | None = None, shape: tuple[int, int, int] = (9, 11, 13)):
    return Geometry(
        shape, (2.0, 2.5, 4.0), (5.0, -7.0, 11.0), direction if direction is not None else np.eye(3)
    )


def make_result(
    grid: Geometry, vectors_mm: FloatArray, start: AffineTransform | None = None
) -> RegistrationResult:
    vectors = vectors_mm.reshape(*grid.shape_zyx, 3).astype(np.float32)
    return RegistrationResult(
        displacement=DisplacementField(vectors, grid),
        initial=start or AffineTransform.identity(),
        warped=Volume(np.zeros(grid.shape_zyx, np.float32), grid),
        inverse=None,
        quality=GOOD,
        config=RegistrationConfig(fixed_modality="ct", moving_modality="mr"),
    )


def coordinate_image(grid: Geometry, axis: int) -> Volume:
    """An image whose values are the LPS coordinate of each voxel along `axis`."""
    values = voxel_centres(grid)[:, axis].astype(np.float32)
    return Volume(values.reshape(grid.shape_zyx), grid)


@pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: str(anatomical_axes(make_grid(d))))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_and_columns_run_left_posterior_superior(direction: FloatArray, axis: int) -> None:
    grid = make_grid(direction)
    image = coordinate_image(grid, axis)
    result = make_result(grid, np.zeros((9 * 11 * 13, 3)))
    for plane in extract_planes(result, image, image):
        steps = np.diff(plane.fixed, axis=1 if axis == plane.column_axis else 0)
        if axis in (plane.column_axis, plane.row_axis):
            spacing = plane.spacing_mm[1 if axis == plane.column_axis else 0]
            np.testing.assert_allclose(steps, spacing, rtol=1e-4)
        else:
            np.testing.assert_allclose(plane.fixed, plane.position_mm, rtol=1e-4)
        np.testing.assert_allclose(plane.before, plane.fixed, atol=1e-3)


def test_before_and_after_follow_the_transforms() -> None:
    grid = make_grid()
    image = coordinate_image(grid, 0)
    start = AffineTransform(np.eye(3), np.array([2.0, 0.0, 0.0]))
    result = make_result(grid, np.tile([3.0, 0.0, 0.0], (9 * 11 * 13, 1)), start)
    axial = extract_planes(result, image, image)[0]
    inner = np.isfinite(axial.after)
    np.testing.assert_allclose((axial.before - axial.fixed)[inner], 2.0, atol=0.51)
    np.testing.assert_allclose((axial.after - axial.fixed)[:, 1:-3], 3.0, atol=1e-3)
    np.testing.assert_allclose(axial.offset_mm[..., 1], 1.0, atol=1e-5)  # beyond the start
    np.testing.assert_allclose(axial.offset_mm[..., 0], 0.0, atol=1e-5)


def test_jacobian_is_that_of_the_whole_field() -> None:
    grid = make_grid(DIRECTIONS[17])
    rng = np.random.default_rng(0)
    result = make_result(grid, rng.normal(size=(9 * 11 * 13, 3)))
    whole = Volume(jacobian_determinant(result.displacement), grid)
    for plane in extract_planes(result, whole, whole):
        np.testing.assert_allclose(plane.jacobian, plane.fixed, rtol=1e-4, atol=1e-4)


def test_sampling() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    at = np.array([[0, 0, 0], [3, 2, 1], [1.5, 1, 0.5], [-0.4, 0, 0], [-0.6, 0, 0], [np.nan, 0, 0]])
    found = sample_linear(array, at)
    np.testing.assert_allclose(found[:4], [0, 23, 1.5 + 4 + 6, 0])
    assert np.isnan(found[4:]).all()


def test_sampling_of_vectors() -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    at = np.random.default_rng(1).uniform(-1, [4, 3, 2], (40, 3))
    found = sample_linear(array, at, outside=0.0)
    for channel in range(3):
        expected = np.nan_to_num(sample_linear(array[..., channel], at))
        np.testing.assert_array_equal(found[:, channel], expected)
    assert (found == 0).all(axis=1).any()


@pytest.mark.parametrize("shape", [(9, 11, 13), (2, 40, 30), (30, 2, 5)])
@pytest.mark.parametrize("kind", ["noise", "constant", "elsewhere"])
def test_draws(tmp_path: Path, shape: tuple[int, int, int], kind: str) -> None:
    grid = make_grid(shape=shape)
    rng = np.random.default_rng(0)
    values = np.ones(shape) if kind == "constant" else rng.random(shape)
    fixed = Volume((values * 300).astype(np.float32), grid)
    vectors = rng.normal(scale=4.0, size=(*shape, 3))  # folds
    if kind == "elsewhere":
        vectors += 1e4
    draw_picture(make_result(grid, vectors), fixed, fixed, tmp_path / "qc.png")
    assert (tmp_path / "qc.png").read_bytes().startswith(b"\x89PNG")


def test_panels_say_what_they_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first panel shows the initial alignment, not the position according to the headers."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    image = coordinate_image(make_grid(), 0)
    result = make_result(make_grid(), np.zeros((9 * 11 * 13, 3)))
    draw_picture(result, image, image, tmp_path / "a.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles[:2] == ["after initial alignment", "after registration"]


def test_same_picture_twice(tmp_path: Path) -> None:
    grid = make_grid()
    image = coordinate_image(grid, 0)
    result = make_result(grid, np.zeros((9 * 11 * 13, 3)))
    for name in ("a.png", "b.png"):
        draw_picture(result, image, image, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_matplotlib_is_quiet_without_a_home(tmp_path: Path) -> None:
    """It warns if its folders cannot be written, even with --quiet."""
    code = "from dinoreg_rt.run.figures import new_figure; new_figure(figsize=(1, 1))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MPLCONFIGDIR": "/proc/x", "HOME": "/proc/x"},
    )
    assert ended.stderr == ""
