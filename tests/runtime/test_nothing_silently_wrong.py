"""Positions beyond all bounds, results that are not finite, and labels of another image."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from phantoms import make_grid, make_phantom

import dinoreg_rt
from dinoreg_kernels import sum_values
from dinoreg_rt import RegistrationConfig, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.errors import InputError, RegistrationError
from dinoreg_rt.io.convert import array_to_sitk
from dinoreg_rt.quality.finite import check_finite, named_results
from dinoreg_rt.quality.label_placement import misplaced, vanished
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, LabelMap, Volume

GRID = make_grid((20, 22, 24), (4.0, 4.0, 4.0))


def noise() -> np.ndarray:
    return np.random.default_rng(3).normal(size=GRID.shape_zyx).astype(np.float32)


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code in (0, 9), result.output
    return result


@pytest.mark.parametrize("far", [1e100, -1e30, 1.1e6])
@pytest.mark.parametrize("name", ["a.mha", "a.nrrd"])
def test_origins_are_bounded(tmp_path: Path, far: float, name: str) -> None:
    image = array_to_sitk(noise(), GRID)
    image.SetOrigin((0.0, far, 0.0))
    sitk.WriteImage(image, str(tmp_path / name))
    match = re.escape(f"its origin has a coordinate of {far:.4g} mm; each must lie within 1e+06")
    for read in (io.read_volume, io.read_geometry, dinoreg_rt.plan):
        with pytest.raises(InputError, match=match):
            read(*[tmp_path / name] * (2 if read is dinoreg_rt.plan else 1))


def test_origins_within_the_bound_are_read(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "a.nii", Volume(noise(), replace(GRID, origin_mm=(0, -9e5, 0))))
    assert io.read_volume(tmp_path / "a.nii").geometry.origin_mm[1] == -9e5


@pytest.mark.parametrize("far", [1e100, -1e7])
def test_points_and_transforms_are_bounded(tmp_path: Path, far: float) -> None:
    (tmp_path / "p.csv").write_text(f"x,y,z\n1,2,3\n1,{far},3\n")
    with pytest.raises(InputError, match="list of points has a coordinate of"):
        io.read_points(tmp_path / "p.csv")
    for name in ("a.tfm", "a.h5"):
        io.write_affine(tmp_path / name, AffineTransform(np.eye(3), np.array([0, far, 0])))
        with pytest.raises(InputError, match="affine transform has a coordinate of"):
            io.read_transform(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".h5"])
def test_displacements_are_bounded(tmp_path: Path, suffix: str) -> None:
    vectors = np.zeros((*GRID.shape_zyx, 3), np.float32)
    vectors[3, 4, 5, 1] = -1e30
    path, field = tmp_path / f"a{suffix}", DisplacementField(vectors, GRID)
    if suffix == ".h5":
        io.write_composite_h5(path, AffineTransform.identity(), field)
    else:
        io.write_displacement(path, field)
    with pytest.raises(InputError, match=r"displacement field has a coordinate of -1e\+30 mm"):
        io.read_transform(path)


@pytest.mark.parametrize("spacing", [1e-4, 1e4])
def test_spacings_are_bounded(spacing: float) -> None:
    grid = replace(GRID, spacing_mm=(1, spacing, 1))
    with pytest.raises(InputError, match=r"each must lie between 0\.001 and 1000 mm"):
        io.as_volume((noise(), grid))


def finite_results(**changed: Any) -> dict[str, Any]:
    ones = np.ones(GRID.shape_zyx, np.float32)
    field = DisplacementField(np.ones((*GRID.shape_zyx, 3), np.float32), GRID)
    return {
        "displacement": field,
        "warped": Volume(ones, GRID),
        "inverse": field,
        "confidence": ones,
    } | changed


def check(**changed: Any) -> None:
    results = named_results(**finite_results(**changed))
    check_finite(results, sum_values(list(results.values())).tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["displacement", "warped", "inverse", "confidence"])
def test_results_that_are_not_finite_are_refused(bad: float, where: str) -> None:
    check()
    check(inverse=None, confidence=None)
    spoiled = np.ones((*GRID.shape_zyx, 3), np.float32)
    spoiled[4, 5, 6, 1] = bad
    scalar = np.ascontiguousarray(spoiled[..., 1])
    values: dict[str, Any] = {
        "displacement": DisplacementField(spoiled, GRID),
        "warped": Volume(scalar, GRID),
        "inverse": DisplacementField(spoiled, GRID),
        "confidence": scalar,
    }
    with pytest.raises(RegistrationError, match="would hold NaN or infinity"):
        check(**{where: values[where]})


def test_a_registration_that_diverges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny weights that are refused when they are read would have this effect."""
    from dinoreg_rt.io import inputs

    monkeypatch.setattr(inputs, "_SMALLEST_WEIGHT", 0.0)
    pair = make_phantom(GRID, GRID)
    weights = Volume(np.full(GRID.shape_zyx, 1e-38, np.float32), GRID)
    config = RegistrationConfig(initial="none")
    with np.errstate(all="ignore"), pytest.raises(RegistrationError, match="NaN or infinity"):
        dinoreg_rt.register(pair.fixed, pair.moving, config=config, weights=weights)


def labels_at(shift_mm: float, value: int = 1) -> LabelMap:
    array = np.zeros(GRID.shape_zyx, np.int32)
    array[8:12, 8:14, 8:16] = value
    x, y, z = GRID.origin_mm
    return LabelMap(array, replace(GRID, origin_mm=(x + shift_mm, y, z)), name="l.nii")


def test_labels_beside_the_image() -> None:
    assert misplaced(labels_at(0), GRID) is None
    assert misplaced(labels_at(20), GRID) is None  # within the image, though the grid differs
    assert misplaced(labels_at(500, value=0), GRID) is None
    # Their 8 voxels along x begin at the image's voxel 8, and 13 further on 3 are left inside.
    text = misplaced(labels_at(4.0 * 13), GRID)
    assert text is not None
    assert text.startswith("l.nii: only 37.5 % of its labelled voxels lie within the moving image")
    assert "only 0 %" in str(misplaced(labels_at(500), GRID))


def test_labels_that_vanish() -> None:
    full, empty = labels_at(0), labels_at(0, value=0)
    assert vanished(full, full) is None
    assert "l.nii: no label is left after warping" in str(vanished(full, empty))
    assert "l.nii: every voxel is 0" in str(vanished(empty, empty))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    phantom = make_phantom(GRID, GRID)
    io.write_volume(tmp_path / "fixed.nii", phantom.fixed)
    io.write_volume(tmp_path / "moving.nii", phantom.moving)
    for name, shift in (("near", 0.0), ("far", 5000.0)):
        io.write_labels(tmp_path / f"{name}.nii", labels_at(shift))
    return tmp_path


def test_run_warns_of_labels_of_another_image(pair: Path) -> None:
    result = invoke(
        *("run", "-f", pair / "fixed.nii", "-m", pair / "moving.nii", "-o", pair / "out"),
        *("--labels", pair / "near.nii", "--labels", pair / "far.nii", "--initial", "none"),
        *("--no-qc", "--accept-untrusted"),
    )
    assert result.stderr.count(f"warning: {pair / 'far.nii'}: only 0 % of its labelled") == 1
    assert result.stderr.count(f"warning: {pair / 'far.nii'}: no label is left after warping") == 1
    assert "near.nii:" not in result.stderr
    warnings = json.loads((pair / "out" / "report.json").read_text())["warnings"]
    assert [text for text in warnings if "near.nii" in text] == []
    assert len([text for text in warnings if "far.nii" in text]) == 2


@pytest.mark.parametrize("name", ["near", "far"])
def test_apply_warns_of_labels_that_vanish(pair: Path, name: str) -> None:
    io.write_affine(pair / "identity.tfm", AffineTransform.identity())
    result = invoke(
        *("apply", "-t", pair / "identity.tfm", "--labels", pair / f"{name}.nii", "--json"),
        *("--reference", pair / "fixed.nii", "-o", pair / "o.nii"),
    )
    warnings = json.loads(result.stdout)["warnings"]
    assert len(warnings) == (name == "far")
    assert ("no label is left after warping" in result.stderr) == (name == "far")


def test_geometry_derived_from_one_with_notes_has_none() -> None:
    noted = replace(GRID, notes=("a note",))
    assert dinoreg_rt.geometry.coarsened_grid(noted, (2, 2, 2)).notes == ()
    assert isinstance(noted, Geometry)
