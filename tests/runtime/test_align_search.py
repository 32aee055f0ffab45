"""Images are found wherever they lie: shifted, rotated, scaled, cropped, stored differently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from phantoms import Body, bright_pair, centres_of, make_grid, make_phantom, other_contrast
from scipy.spatial.transform import Rotation

import dinoreg_rt
from dinoreg_rt import AffineTransform, Geometry, RegistrationConfig, Volume
from dinoreg_rt.align.affine import robust_fit
from dinoreg_rt.align.coarse import coarse_pair
from dinoreg_rt.align.initial import Alignment, search_alignment
from dinoreg_rt.device.choice import Device
from dinoreg_rt.geometry import invert_affine, transform_points

HOST = Device("cpu", threads=1)
BODY = Body(radii_mm=(110.0, 85.0, 120.0), seed=8)
GRID = make_grid((70, 52, 64), (4.0, 4.0, 4.0))


def large_body(points: np.ndarray) -> np.ndarray:
    """Return the phantom's body three times as large, with blobs of 12 to 27 mm as organs."""
    return Body()(points / 3.0)


FIXED = Volume(large_body(centres_of(GRID)).astype(np.float32), GRID)
SOMEONE_ELSE = Body(radii_mm=(45.0, 30.0, 34.0), seed=31)


def body_through(grid: Geometry, affine: AffineTransform, *, multimodal: bool = False) -> Volume:
    """Return the body after `affine` (fixed points to moving points) on `grid`."""
    back = invert_affine(affine)
    value = large_body(centres_of(grid) @ back.matrix.T + back.translation_mm)
    return Volume((other_contrast(value) if multimodal else value).astype(np.float32), grid)


def rotation(degrees: float) -> np.ndarray:
    """Return a rotation about an oblique axis."""
    axis = np.array([0.3, 0.2, 0.93])
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis))
    return np.asarray(turn.as_matrix())


def align(fixed: Volume, moving: Volume, method: str = "auto", linear: str = "affine") -> Alignment:
    return search_alignment(coarse_pair(bright_pair(fixed, moving), HOST), method, linear, HOST)


def error_mm(found: Alignment, truth: AffineTransform) -> float:
    """Return the mean error over the fixed body."""
    points = centres_of(GRID)[FIXED.array > 0.05][::17]
    difference = transform_points(found.transform, points) - transform_points(truth, points)
    return float(np.linalg.norm(difference, axis=1).mean())


SHIFT = np.array([400.0, -250.0, 800.0])
CASES = {
    "shift": np.eye(3),
    "turned": rotation(15),
    "larger": 1.2 * np.eye(3),
    "smaller": 0.82 * np.eye(3),
    "sheared": rotation(-8) @ np.diag([1.1, 0.92, 1.0]),
}


@pytest.mark.parametrize("multimodal", [False, True], ids=["same", "other contrast"])
@pytest.mark.parametrize("name", CASES)
def test_known_map(name: str, multimodal: bool) -> None:
    truth = AffineTransform(CASES[name], SHIFT)
    grid = make_grid(
        (76, 64, 74), (4.0, 4.0, 4.0), "oblique", tuple(SHIFT + np.array([9.0, -14.0, 12.0]))
    )
    found = align(FIXED, body_through(grid, truth, multimodal=multimodal))
    # Measured: 0.4 to 5.4 mm, with cells of 11 mm.
    assert error_mm(found, truth) < 7
    assert found.similarity > 0.5


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 9.0), (2.5, 7.0, 2.5)], ids=str)
@pytest.mark.parametrize("part", [(-60.0, 120.0), (40.0, 160.0)], ids=str)
def test_part_of_the_body_in_thick_slices(
    spacing: tuple[float, float, float], part: tuple[float, float]
) -> None:
    """The moving image ends within the body at either end."""
    middle, height = part
    shape = [round(n / s) for n, s in zip((height, 220, 260), spacing[::-1], strict=True)]
    truth = AffineTransform(np.eye(3), SHIFT)
    grid = make_grid(tuple(shape), spacing, "RAS", tuple(SHIFT + np.array([0.0, 0.0, middle])))
    found = align(FIXED, body_through(grid, truth))
    assert error_mm(found, truth) < 8


def test_correct_headers_are_kept() -> None:
    """Two scans of the same person are not moved by a fraction of a cell."""
    phantom = make_phantom(GRID, GRID, peak_mm=5.0, body=BODY)
    fixed, moving = (replace(v, array=v.array / 1000) for v in (phantom.fixed, phantom.moving))
    found = align(fixed, moving)
    assert found.transform.is_identity()
    assert found.method.startswith("headers")
    assert not align(fixed, moving, "affine").transform.is_identity()


def test_headers_that_are_nearly_right_are_fitted() -> None:
    """Headers off by part of a cell need no search, but a fit improves them."""
    truth = AffineTransform(np.diag([1.01, 1.0, 0.98]), np.array([1.0, 0.0, -2.0]))
    found = align(FIXED, body_through(GRID, truth))
    assert found.method.startswith("headers and affine fits")
    # Measured: 1.65 mm; the headers alone are off by 2.34 mm, a fifth of a cell.
    left = error_mm(Alignment(AffineTransform.identity(), ""), truth)
    assert error_mm(found, truth) < 0.8 * left


@pytest.mark.parametrize("linear", ["rigid", "similarity", "affine"])
def test_model_of_the_fit(linear: str) -> None:
    truth = AffineTransform(1.12 * rotation(8), SHIFT)
    grid = make_grid((76, 64, 74), (4.0, 4.0, 4.0), "LPS", tuple(SHIFT))
    found = align(FIXED, body_through(grid, truth), linear=linear)
    values = np.linalg.svd(found.transform.matrix)[1]
    if linear == "rigid":
        np.testing.assert_allclose(values, 1, atol=1e-9)
    else:
        np.testing.assert_allclose(values, 1.12, atol=0.03)
    if linear == "similarity":
        np.testing.assert_allclose(values, values[0], atol=1e-9)


def test_search_alone_only_shifts_and_scales() -> None:
    truth = AffineTransform(np.eye(3), SHIFT)
    grid = make_grid((76, 64, 74), (4.0, 4.0, 4.0), "LPS", tuple(SHIFT + 7.0))
    found = align(FIXED, body_through(grid, truth), "search")
    np.testing.assert_array_equal(found.transform.matrix, np.eye(3))
    assert error_mm(found, truth) < 12  # a cell


def test_unrelated_images_are_doubted() -> None:
    sure = align(FIXED, body_through(GRID, AffineTransform(rotation(5), np.zeros(3))))
    other = SOMEONE_ELSE(centres_of(GRID) / 3.0).astype(np.float32)
    doubtful = align(FIXED, Volume(other, GRID))
    assert doubtful.similarity < 0.7 * sure.similarity
    assert doubtful.confidence < 0.5 * sure.confidence


def test_nothing_in_the_image() -> None:
    flat = Volume(np.zeros(GRID.shape_zyx, np.float32), GRID)
    found = align(FIXED, flat)
    assert found.confidence == 0
    assert "no position" in found.method


def test_default_finds_what_lies_elsewhere() -> None:
    truth = AffineTransform(rotation(10), SHIFT)
    grid = make_grid((70, 60, 66), (4.0, 4.0, 4.0), "LAS", tuple(SHIFT))
    config = RegistrationConfig(iterations=(2,))
    plan = dinoreg_rt.plan(FIXED, body_through(grid, truth), config)
    assert error_mm(plan.alignment, truth) < 5
    assert "confidence" in plan.choices["initial alignment"]
    assert set(plan.alignment.numbers()) == {"similarity", "confidence", "overlap"}


@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
def test_fit_ignores_wrong_matches(model: str) -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(-150, 150, (600, 3))
    matrix = {"rigid": 1.0, "similarity": 1.1, "affine": np.diag([1.1, 0.95, 1.0])}[model]
    truth = AffineTransform(rotation(12) @ (matrix * np.eye(3)), np.array([5.0, -9.0, 30.0]))
    targets = transform_points(truth, points) + rng.normal(scale=2.0, size=points.shape)
    targets[:180] += rng.uniform(-60, 60, (180, 3))
    fitted, _ = robust_fit(points, targets, np.ones(600), model, 10.0)
    error = np.linalg.norm(
        transform_points(fitted, points) - transform_points(truth, points), axis=1
    )
    assert error.mean() < (3.5 if model == "affine" else 1.0)  # affine leans towards similarity
