"""`dinoreg-rt apply` beyond a displacement field: points, references, and options given twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result

from dinoreg_rt.commands.main import cli
from dinoreg_rt.fields import warp
from dinoreg_rt.fields.warp import warp_volume
from dinoreg_rt.geometry import shifted_grid
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, Volume

GRID = Geometry((24, 26, 28), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["apply", *map(str, arguments)])


def make_field() -> DisplacementField:
    z, y, x = np.indices(GRID.shape_zyx) * 2.0
    vectors = np.stack([3 * np.sin(y / 20), 2 * np.cos(x / 25), 2 * np.sin(z / 30)], -1)
    return DisplacementField(vectors.astype(np.float32), GRID)


@pytest.fixture
def field(tmp_path: Path) -> Path:
    image = sitk.GetImageFromArray(make_field().vectors_mm, isVector=True)
    image.SetSpacing(GRID.spacing_mm)
    sitk.WriteImage(image, str(tmp_path / "field.nii.gz"))
    return tmp_path / "field.nii.gz"


def write_points(path: Path, points: np.ndarray) -> Path:
    path.write_text("x,y,z\n" + "".join(f"{x:.9f},{y:.9f},{z:.9f}\n" for x, y, z in points))
    return path


def read_points(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2), ndmin=2)


def test_a_point_from_outside_is_left_out_of_the_inverse(field: Path) -> None:
    image = sitk.ReadImage(str(field), sitk.sitkVectorFloat64)
    forth = sitk.DisplacementFieldTransform(image)
    points = np.random.default_rng(0).uniform(12, 36, (20, 3))
    moved = [forth.TransformPoint(p.tolist()) for p in points]
    source = write_points(field.parent / "q.csv", np.array([*moved, (90.0, 30.0, 30.0)]))
    out = field.parent / "p.csv"
    result = invoke("-t", field, "--inverse", "--points", source, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    found = read_points(out)
    np.testing.assert_allclose(found[:20], points, atol=1e-4)
    assert np.isnan(found[20]).all()
    assert json.loads(result.stdout)["points_outside_field"] == 1
    assert "1 of 21 points have no origin inside the displacement field" in result.stderr
    assert "without a position: '21'" in result.stderr


def test_points_that_all_come_from_outside_are_an_error(field: Path) -> None:
    source = write_points(field.parent / "q.csv", np.array([(90.0, 30.0, 30.0)] * 3))
    out = field.parent / "p.csv"
    result = invoke("-t", field, "--inverse", "--points", source, "-o", out)
    assert result.exit_code == 3
    assert "3 of 3 points have no origin inside the displacement field" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("option", ["--image", "--labels", "--points", "--reference", "-o"])
def test_an_option_given_twice_is_an_error(field: Path, option: str) -> None:
    others = {"--image": "a", "--reference": "b", "-o": "c"} | {option: "d"}
    arguments = [part for pair in others.items() for part in pair]
    result = invoke("-t", field, *arguments, option, "e")
    assert result.exit_code == 2
    spelled = "--output" if option == "-o" else option
    assert f"{spelled} is given 2 times" in result.stderr


@pytest.mark.parametrize("more", [1, 9])
@pytest.mark.parametrize("turned", [False, True])
def test_a_larger_reference_equals_itk_and_takes_no_field_in_numpy(
    monkeypatch: pytest.MonkeyPatch, more: int, turned: bool
) -> None:
    """As quick as inside: NumPy, which took 14 times as long, samples nothing."""
    monkeypatch.delattr(warp, "chain_to_displacement")
    z, y, x = np.indices(GRID.shape_zyx)
    values = 500 + 300 * np.sin(x / 7) * np.cos(y / 8) * np.sin(z / 6)
    volume = Volume(values.astype(np.float32), GRID)
    depth, height, width = GRID.shape_zyx
    shape = (depth + 2 * more, height + 2 * more, width + 2 * more)
    reference = shifted_grid(GRID, (-more, -more, -more), shape)
    angle = 0.1 if turned else 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    before = AffineTransform(np.vstack([turn, [0, 0, 1]]), np.array([0.2, 0.1, 0.3]))
    chain = (before, make_field()) if turned else (make_field(),)
    found = warp_volume(volume, chain, reference, outside=0.0)

    vectors = sitk.GetImageFromArray(make_field().vectors_mm.astype(np.float64), isVector=True)
    vectors.SetSpacing(GRID.spacing_mm)
    composite = sitk.CompositeTransform([sitk.DisplacementFieldTransform(vectors)])
    if turned:
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(before.matrix.ravel().tolist())
        affine.SetTranslation(before.translation_mm.tolist())
        composite.AddTransform(affine)
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(GRID.spacing_mm)
    expected = sitk.Resample(
        image, shape[::-1], composite, sitk.sitkLinear, reference.origin_mm, GRID.spacing_mm
    )
    difference = np.abs(found.array - sitk.GetArrayFromImage(expected))
    assert np.quantile(difference, 0.999) < 1e-2  # a voxel on the very border may go either way
