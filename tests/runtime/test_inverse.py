"""The inverse field leads back, and the report says how accurately."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from phantoms import centres_of, make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt import AffineTransform, RegistrationConfig, RegistrationResult, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.geometry import lps_to_index, transform_points

FIXED_GRID = make_grid((36, 40, 44), (2.0, 2.0, 2.0), "LAS")
MOVING_GRID = make_grid((30, 44, 40), (2.5, 2.0, 2.2), "oblique", (60.0, -40.0, 25.0))
START = AffineTransform(np.eye(3), [60.0, -40.0, 25.0])
CASES: dict[str, dict[str, object]] = {
    "all voxels": {"control_spacing_mm": 2.0},
    "default": {},
    "velocity": {"transform": "velocity"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RegistrationResult]:
    """Results for an oblique moving grid, 76 mm away."""
    start = tmp_path_factory.mktemp("inverse") / "start.tfm"
    io.write_affine(start, START)
    phantom = make_phantom(FIXED_GRID, MOVING_GRID, affine=START)
    config = RegistrationConfig(initial=str(start), inverse=True)
    return {
        name: dinoreg_rt.register(
            phantom.fixed, phantom.moving, config=config.model_copy(update=update)
        )
        for name, update in CASES.items()
    }


def inside(grid, points: np.ndarray, margin: float) -> np.ndarray:
    index = transform_points(lps_to_index(grid), points)
    upper = np.asarray(grid.shape_xyz) - 1
    return np.all((index >= margin) & (index <= upper - margin), axis=1)


def loop_errors_mm(result: RegistrationResult) -> np.ndarray:
    """Return |T(T^-1(q)) - q| for the moving voxels q inside the fixed grid."""
    inverse = result.inverse
    assert inverse.geometry.shape_zyx == MOVING_GRID.shape_zyx
    q = centres_of(MOVING_GRID).reshape(-1, 3)
    p = q + inverse.vectors_mm.reshape(-1, 3)
    seen = inside(FIXED_GRID, p, 1.0)
    assert seen.mean() > 0.5
    return np.linalg.norm(io.transform_points([result.displacement], p[seen]) - q[seen], axis=1)


def test_there_and_back(results: dict[str, RegistrationResult]) -> None:
    # Measured: 0.001 mm, the iteration's tolerance.
    assert loop_errors_mm(results["all voxels"]).max() < 0.01


def test_there_and_back_with_a_coarser_field(results: dict[str, RegistrationResult]) -> None:
    """The inverse is that of the solver's field, whose kinks lie between the fixed voxels."""
    errors = loop_errors_mm(results["default"])
    # Measured: mean 0.024, maximum 0.20 mm, with voxels of 2 mm.
    assert errors.mean() < 0.06
    assert errors.max() < 0.5


def test_velocity_there_and_back(results: dict[str, RegistrationResult]) -> None:
    """The exponential of the negative velocity passes through the start without iteration."""
    velocity = results["velocity"]
    errors = loop_errors_mm(velocity)
    assert errors.mean() < 0.1
    assert np.percentile(errors, 99) < 0.4
    assert velocity.quality.folded_percent == 0
    # A tenth of the control voxel of 4 mm.
    assert velocity.quality.inverse_consistency_mean_mm < 0.1
    assert velocity.quality.inverse_consistency_max_mm < 0.4


def test_inverse_undoes_the_start(results: dict[str, RegistrationResult]) -> None:
    inverse = results["default"].inverse
    assert 60 < np.linalg.norm(inverse.vectors_mm, axis=-1).mean() < 90  # START is 76 mm long


def test_no_inverse_unless_requested() -> None:
    phantom = make_phantom(FIXED_GRID, FIXED_GRID)
    config = RegistrationConfig(initial="none", iterations=(2,))
    assert dinoreg_rt.register(phantom.fixed, phantom.moving, config=config).inverse is None


def test_run_writes_and_reports_the_inverse(tmp_path: Path) -> None:
    phantom = make_phantom(FIXED_GRID, MOVING_GRID, affine=START)
    io.write_volume(tmp_path / "f.nii.gz", phantom.fixed)
    io.write_volume(tmp_path / "m.nii.gz", phantom.moving)
    arguments = ["run", "-f", tmp_path / "f.nii.gz", "-m", tmp_path / "m.nii.gz"]
    arguments += ["-o", tmp_path / "out", "--inverse", "--no-qc", "--quiet", "--initial", "centre"]
    outcome = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert outcome.exit_code == 0, outcome.output
    written = io.read_displacement(tmp_path / "out" / "inverse.nii.gz")
    assert written.geometry.shape_zyx == MOVING_GRID.shape_zyx
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "inverse.nii.gz" in report["outputs"]
    assert report["configuration"]["inverse"] is True
    # Measured: 0.1 and 0.7 mm.
    assert 0 < report["quality"]["inverse_consistency_mean_mm"] < 0.5
