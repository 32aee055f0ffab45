"""`--transform rigid|similarity|affine`: a linear map alone, from the search to the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from phantoms import Body, centres_of, make_grid
from scipy.spatial.transform import Rotation

import dinoreg_rt
from dinoreg_rt import AffineTransform, Geometry, RegistrationConfig, RegistrationResult, Volume, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.errors import ConfigError
from dinoreg_rt.geometry import invert_affine, same_grid, transform_points
from dinoreg_rt.registration.demands import check_used

DATA = Path(__file__).parents[1] / "data"
GRID = make_grid((44, 40, 48), (4.0, 4.0, 4.0), "LAS")
MOVING_GRID = make_grid((54, 52, 56), (4.0, 4.0, 4.0), "oblique", (60.0, -40.0, 25.0))
BODY = Body()
SHIFT = np.array([60.0, -40.0, 25.0])


def body(points: np.ndarray) -> np.ndarray:
    """Return the phantom's body twice as large: 80 x 68 x 60 mm, blobs of 8 to 18 mm."""
    return BODY(points / 2.0)


FIXED = Volume((1000 * body(centres_of(GRID))).astype(np.float32), GRID)


def moving_through(truth: AffineTransform) -> Volume:
    """Return the body after `truth` (fixed points to moving points), in a brighter contrast."""
    back = invert_affine(truth)
    value = body(centres_of(MOVING_GRID) @ back.matrix.T + back.translation_mm) ** 0.8
    return Volume((1000 * value).astype(np.float32), MOVING_GRID)


def turn(axis: str, degrees: float) -> np.ndarray:
    return np.asarray(Rotation.from_euler(axis, degrees, degrees=True).as_matrix())


def errors_mm(affine: AffineTransform, truth: AffineTransform) -> np.ndarray:
    """Return the distance to the truth over the fixed body."""
    points = centres_of(GRID)[FIXED.array > 50][::7]
    return np.linalg.norm(
        transform_points(affine, points) - transform_points(truth, points), axis=1
    )


TRUTHS = {
    "rigid": turn("z", 10) @ turn("x", -6),
    "similarity": 1.1 * turn("y", 9),
    "affine": turn("x", 8) @ np.diag([1.08, 0.94, 1.03]),
}


@pytest.fixture(scope="module")
def results() -> dict[str, RegistrationResult]:
    """One registration with each model."""
    return {
        model: dinoreg_rt.register(
            FIXED,
            moving_through(AffineTransform(matrix, SHIFT)),
            config=RegistrationConfig(transform=model),
        )
        for model, matrix in TRUTHS.items()
    }


@pytest.mark.parametrize("model", TRUTHS)
def test_known_map(results: dict[str, RegistrationResult], model: str) -> None:
    """Errors are below an eighth of a voxel on average."""
    result, truth = results[model], AffineTransform(TRUTHS[model], SHIFT)
    assert errors_mm(result.affine, truth).mean() < 0.5
    assert errors_mm(result.affine, truth).mean() < 0.5 * errors_mm(result.initial, truth).mean()
    assert result.trust.verdict == "trusted", result.trust.reasons
    assert result.quality.folded_percent == 0
    assert result.quality.mind_distance_after < result.quality.mind_distance_before


@pytest.mark.parametrize("model", TRUTHS)
def test_displacement_and_itk_hold_the_same_map(
    results: dict[str, RegistrationResult], model: str
) -> None:
    result = results[model]
    points = centres_of(GRID).reshape(-1, 3)[::997]
    wanted = transform_points(result.affine, points)
    field = result.displacement.vectors_mm.reshape(-1, 3)[::997]
    np.testing.assert_allclose(points + field, wanted, atol=1e-3)
    transform = result.transform_sitk()
    names = {"rigid": "Euler3D", "similarity": "Similarity3D", "affine": "Affine"}
    assert transform.GetName() == f"{names[model]}Transform"
    there = [transform.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(there, wanted, atol=1e-6)
    summary = result.linear_summary()
    assert summary.model == model
    np.testing.assert_allclose(summary.matrix, result.affine.matrix, atol=1e-5)
    if model == "rigid":
        assert summary.scales == pytest.approx((1, 1, 1), abs=1e-6)
        np.testing.assert_allclose(np.linalg.det(result.affine.matrix), 1, atol=1e-9)


@pytest.mark.parametrize("axis", "xyz")
def test_rotations_to_45_degrees(axis: str) -> None:
    truth = AffineTransform(turn(axis, 45), SHIFT)
    result = dinoreg_rt.register(
        FIXED, moving_through(truth), config=RegistrationConfig(transform="rigid", trust=False)
    )
    assert errors_mm(result.affine, truth).mean() < 0.5
    assert result.linear_summary().angle_deg == pytest.approx(45, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("axis", "xyz")
def test_shipped_brain_turned_by_45_degrees(axis: str) -> None:
    """The header is turned, and noise is added; the largest error measured is 0.4 mm."""
    fixed = io.read_volume(DATA / "brain" / "fixed_t1.nii.gz")
    grid, matrix = fixed.geometry, turn(axis, 45)
    origin = matrix @ np.asarray(grid.origin_mm) + SHIFT
    turned = Geometry(grid.shape_zyx, grid.spacing_mm, tuple(origin), matrix @ grid.direction)
    noise = np.random.default_rng(1).normal(0, 0.03 * fixed.array.max(), fixed.array.shape)
    moving = Volume((fixed.array + noise).astype(np.float32), turned)
    result = dinoreg_rt.register(fixed, moving, config=RegistrationConfig(transform="rigid"))
    points = centres_of(grid)[fixed.array > 0.2 * fixed.array.max()][::499]
    truth = AffineTransform(matrix, SHIFT)
    misses = transform_points(result.affine, points) - transform_points(truth, points)
    assert np.linalg.norm(misses, axis=1).max() < 0.5
    assert result.trust.verdict == "trusted", result.trust.reasons


def test_a_result_registers_to_itself(tmp_path: Path, results) -> None:
    """From its own result a registration hardly moves, and is trusted although it gains nothing."""
    start = tmp_path / "start.tfm"
    io.write_affine(start, results["rigid"].affine)
    moving = moving_through(AffineTransform(TRUTHS["rigid"], SHIFT))
    config = RegistrationConfig(transform="rigid", initial=str(start))
    again = dinoreg_rt.register(FIXED, moving, config=config)
    assert errors_mm(again.affine, results["rigid"].affine).mean() < 0.1
    assert again.trust.verdict == "trusted", again.trust.reasons


def test_an_affine_start_gives_its_rigid_part(tmp_path: Path) -> None:
    start = tmp_path / "start.tfm"
    io.write_affine(start, AffineTransform(1.05 * TRUTHS["rigid"], SHIFT))
    truth = AffineTransform(TRUTHS["rigid"], SHIFT)
    config = RegistrationConfig(transform="rigid", initial=str(start), trust=False)
    result = dinoreg_rt.register(FIXED, moving_through(truth), config=config)
    assert result.choices["initial alignment"].endswith("its rigid part")
    assert np.linalg.det(result.affine.matrix) == pytest.approx(1, abs=1e-9)
    assert errors_mm(result.affine, truth).mean() < 0.5


def test_a_mirrored_image_is_not_trusted() -> None:
    truth = AffineTransform(np.diag([-1.0, 1.0, 1.0]), SHIFT)
    result = dinoreg_rt.register(
        FIXED, moving_through(truth), config=RegistrationConfig(transform="rigid")
    )
    assert result.trust.verdict == "untrusted"


def test_what_weights_leave_out_does_not_count() -> None:
    """Half of the moving body is another one; weights on the other half find its place."""
    truth = AffineTransform(turn("z", 6), SHIFT)
    moving = moving_through(truth)
    points = centres_of(MOVING_GRID)
    back = invert_affine(truth)
    local = points @ back.matrix.T + back.translation_mm
    wrong = 1000 * body(local + np.array([0.0, 9.0, 9.0]))
    array = np.where(local[..., 0] > 0, wrong, moving.array).astype(np.float32)
    weights = (centres_of(GRID)[..., 0] < -8).astype(np.float32)
    found = dinoreg_rt.register(
        FIXED,
        replace(moving, array=array),
        config=RegistrationConfig(transform="rigid", trust=False),
        weights=(weights, GRID),
    )
    plain = dinoreg_rt.register(
        FIXED,
        replace(moving, array=array),
        config=RegistrationConfig(transform="rigid", trust=False),
    )
    assert errors_mm(found.affine, truth).mean() < 1.0
    assert errors_mm(found.affine, truth).mean() < 0.5 * errors_mm(plain.affine, truth).mean()


def test_threads_and_repeats_give_the_same_bits() -> None:
    moving = moving_through(AffineTransform(TRUTHS["rigid"], SHIFT))
    found = [
        dinoreg_rt.register(
            FIXED,
            moving,
            config=RegistrationConfig(transform="rigid", trust=False, threads=threads),
        ).affine
        for threads in (1, 2)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].matrix, other.matrix)
        np.testing.assert_array_equal(found[0].translation_mm, other.translation_mm)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"encoder": "somewhere"}, "leave the encoder out"),
        ({"feature_similarity": "cosine"}, "needs the feature similarity mse"),
        ({"confidence": True}, "has no confidence"),
    ],
)
def test_what_a_linear_map_cannot_have(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RegistrationConfig(transform="affine", **values)


def test_options_of_a_field_have_no_effect() -> None:
    config = RegistrationConfig(transform="rigid", smoothness=2.0, linear="affine")
    with pytest.raises(
        ConfigError, match="--transform rigid these have no effect: --linear, --smo"
    ):
        check_used(config, ["smoothness", "linear", "transform"])
    check_used(config, ["transform", "trust", "correlation_weight"])


def test_files_of_a_run(tmp_path: Path) -> None:
    truth = AffineTransform(TRUTHS["rigid"], SHIFT)
    files = {"fixed": FIXED, "moving": moving_through(truth)}
    for name, volume in files.items():
        io.write_volume(tmp_path / f"{name}.nii.gz", volume)
    names = [str(tmp_path / f"{name}.nii.gz") for name in files]
    out = tmp_path / "out"
    given = ["-f", names[0], "-m", names[1], "-o", str(out)]
    command = ["run", *given, "--transform", "rigid"]
    ran = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "rigid transform with a rotation of" in ran.output
    written = {path.name for path in out.iterdir()}
    assert written == {
        *("warped.nii.gz", "transform.tfm", "qc.png"),
        *("report.html", "report.json"),
    }
    report = json.loads((out / "report.json").read_text())
    assert report["transform"]["model"] == "rigid"
    assert report["transform"]["scale"] == pytest.approx(1)
    assert report["quality"]["feature_distance_before"] is None
    chain = io.read_transform(out / "transform.tfm")
    assert errors_mm(chain[0], truth).mean() < 0.5
    warped = sitk.ReadImage(str(out / "warped.nii.gz"), sitk.sitkFloat32)
    by_itk = sitk.Resample(
        sitk.ReadImage(names[1], sitk.sitkFloat32),
        sitk.ReadImage(names[0], sitk.sitkFloat32),
        sitk.ReadTransform(str(out / "transform.tfm")),
        sitk.sitkLinear,
    )
    arrays = [sitk.GetArrayFromImage(image) for image in (warped, by_itk)]
    np.testing.assert_allclose(arrays[0][2:-2, 2:-2, 2:-2], arrays[1][2:-2, 2:-2, 2:-2], atol=1.0)
    applied = tmp_path / "applied.nii.gz"
    command = [
        "apply",
        "-t",
        str(out / "transform.tfm"),
        "--image",
        names[1],
        "--reference",
        names[0],
    ]
    ran = CliRunner().invoke(cli, [*command, "-o", str(applied)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    again = io.read_volume(applied)
    assert same_grid(again.geometry, GRID)
    np.testing.assert_allclose(again.array, io.read_volume(out / "warped.nii.gz").array, atol=1.0)
