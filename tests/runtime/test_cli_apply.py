"""`dinoreg-rt apply` compared with SimpleITK: forwards, inverted and in chains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from dicom_series import write_raw

from dinoreg_rt.commands.main import cli
from dinoreg_rt.fields.inversion import invert_chain, voxel_centres
from dinoreg_rt.io import read_transform, read_volume, write_affine
from dinoreg_rt.types import AffineTransform


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["apply", "-q", *map(str, arguments)])


def make_image(seed: int, size: tuple[int, int, int], *, labels: bool = False) -> sitk.Image:
    rng = np.random.default_rng(seed)
    noise = sitk.GetImageFromArray(rng.normal(size=size[::-1]).astype(np.float32))
    smooth = sitk.SmoothingRecursiveGaussian(noise, 1.5)
    image = sitk.Cast(smooth > 0, sitk.sitkUInt8) * 7 if labels else smooth * 1000
    image.SetSpacing((2.0, 1.5, 3.0))
    image.SetOrigin((-20.0, 10.0, 5.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    return image


def make_affine() -> sitk.AffineTransform:
    affine = sitk.AffineTransform(3)
    affine.Rotate(0, 1, 0.1)
    affine.SetTranslation((2.0, -1.0, 3.0))
    return affine


def make_field() -> sitk.Image:
    grid = make_image(0, (20, 18, 16))
    index = np.indices((16, 18, 20)).astype(np.float64)
    waves = np.stack([np.sin(index[0] / 4), np.cos(index[2] / 5), np.sin(index[1] / 4)], -1)
    field = sitk.GetImageFromArray((waves * 1.5).astype(np.float64), isVector=True)
    field.CopyInformation(grid)
    return field


@pytest.fixture
def files(tmp_path: Path) -> Path:
    sitk.WriteImage(make_image(0, (20, 18, 16)), str(tmp_path / "fixed.nii.gz"))
    sitk.WriteImage(make_image(1, (22, 17, 15)), str(tmp_path / "moving.nii.gz"))
    sitk.WriteImage(make_image(2, (22, 17, 15), labels=True), str(tmp_path / "organs.nii.gz"))
    sitk.WriteTransform(make_affine(), str(tmp_path / "affine.tfm"))
    sitk.WriteImage(sitk.Cast(make_field(), sitk.sitkVectorFloat32), str(tmp_path / "field.nii.gz"))
    return tmp_path


def itk_chain() -> sitk.CompositeTransform:
    """The chain in which points pass through the field first and the affine second."""
    chain = sitk.CompositeTransform(3)
    chain.AddTransform(make_affine())
    chain.AddTransform(sitk.DisplacementFieldTransform(make_field()))
    return chain


def write_points(path: Path, points: np.ndarray, header: str = "x,y,z\n") -> Path:
    path.write_text(header + "\n".join(",".join(f"{v:.9f}" for v in p) for p in points) + "\n")
    return path


def read_points(path: Path) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2), ndmin=2)


def inner_points(number: int = 50) -> np.ndarray:
    image, rng = make_image(0, (20, 18, 16)), np.random.default_rng(3)
    index = rng.uniform(3, np.array(image.GetSize()) - 4, (number, 3))
    return np.array([image.TransformContinuousIndexToPhysicalPoint(i.tolist()) for i in index])


def chain_options(files: Path) -> list[str]:
    return ["-t", str(files / "field.nii.gz"), "-t", str(files / "affine.tfm")]


def test_points_pass_through_in_the_order_given(files: Path) -> None:
    points = inner_points()
    source = write_points(files / "p.csv", points)
    result = invoke(*chain_options(files), "--points", source, "-o", files / "q.csv")
    assert result.exit_code == 0, result.output
    expected = [itk_chain().TransformPoint(p.tolist()) for p in points]
    np.testing.assert_allclose(read_points(files / "q.csv"), expected, atol=1e-4)


def test_inverse_brings_points_back(files: Path) -> None:
    points = inner_points()
    moved = np.array([itk_chain().TransformPoint(p.tolist()) for p in points])
    source = write_points(files / "q.csv", moved)
    arguments = ["--inverse", "--points", source, "-o", files / "p.csv", "--json"]
    result = invoke(*chain_options(files), *arguments)
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(read_points(files / "p.csv"), points, atol=5e-3)
    assert json.loads(result.stdout)["inverse_residual_mm"] <= 1e-3


def test_frame_of_a_csv(files: Path) -> None:
    points = inner_points()
    flip = np.array([-1.0, -1.0, 1.0])
    source = write_points(files / "p.csv", points * flip)
    result = invoke(
        *chain_options(files), "--points", source, "--frame", "ras", "-o", files / "q.csv"
    )
    assert result.exit_code == 0, result.output
    expected = np.array([itk_chain().TransformPoint(p.tolist()) for p in points]) * flip
    np.testing.assert_allclose(read_points(files / "q.csv"), expected, atol=1e-4)


def test_image_equals_itk(files: Path) -> None:
    result = invoke(
        *chain_options(files),
        *("--image", files / "moving.nii.gz", "--reference", files / "fixed.nii.gz"),
        *("-o", files / "out.nii.gz"),
    )
    assert result.exit_code == 0, result.output
    fixed, moving = (sitk.ReadImage(str(files / n)) for n in ("fixed.nii.gz", "moving.nii.gz"))
    outside = min(0.0, float(sitk.GetArrayViewFromImage(moving).min()))
    expected = sitk.Resample(moving, fixed, itk_chain(), sitk.sitkLinear, outside)
    found = sitk.ReadImage(str(files / "out.nii.gz"))
    difference = np.abs(sitk.GetArrayFromImage(found) - sitk.GetArrayFromImage(expected))
    assert np.quantile(difference, 0.999) < 1e-2  # a voxel on the very border may go either way
    assert found.GetSize() == fixed.GetSize()


@pytest.mark.parametrize(
    ("options", "interpolator"),
    [([], sitk.sitkLabelLinear), (["--nearest"], sitk.sitkNearestNeighbor)],
)
def test_labels_equal_itk(files: Path, options: list[str], interpolator: int) -> None:
    result = invoke(
        *chain_options(files),
        *("--labels", files / "organs.nii.gz", "--reference", files / "fixed.nii.gz"),
        *("-o", files / "out.nii.gz", *options),
    )
    assert result.exit_code == 0, result.output
    fixed, labels = (sitk.ReadImage(str(files / n)) for n in ("fixed.nii.gz", "organs.nii.gz"))
    expected = sitk.Resample(labels, fixed, itk_chain(), interpolator, 0)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "out.nii.gz")))
    assert set(np.unique(found)) <= {0, 7}
    assert (found != sitk.GetArrayFromImage(expected)).mean() < 1e-3


def test_inverse_takes_a_fixed_image_to_the_moving_grid(files: Path) -> None:
    """A linear ramp in the fixed image shows where each moving voxel comes from."""
    fixed = sitk.ReadImage(str(files / "fixed.nii.gz"))
    grid = (fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
    ramp = sitk.PhysicalPointSource(sitk.sitkVectorFloat32, *grid)
    sitk.WriteImage(sitk.VectorIndexSelectionCast(ramp, 2), str(files / "z.nii.gz"))
    result = invoke(
        *chain_options(files),
        *("--inverse", "--image", files / "z.nii.gz", "--reference", files / "moving.nii.gz"),
        *("-o", files / "out.nii.gz"),
    )
    assert result.exit_code == 0, result.output
    found = sitk.ReadImage(str(files / "out.nii.gz"))
    seen = 0
    for point in inner_points(40):
        moved = itk_chain().TransformPoint(point.tolist())
        index = np.array(found.TransformPhysicalPointToContinuousIndex(moved))
        if np.all((index >= 0) & (index <= np.array(found.GetSize()) - 1)):
            seen += 1
            value = found.EvaluateAtContinuousIndex(index.tolist(), sitk.sitkLinear)
            assert abs(value - point[2]) < 0.5
    assert seen > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "a.nii"], "has no grid of its own"),
        (["--image", "a.nii", "--inverse"], "with --inverse needs --reference"),
        ([], "exactly one of"),
        (["--image", "a.nii", "--points", "b.csv"], "exactly one of"),
        (["--points", "b.csv", "--reference", "c.nii"], "points have no grid"),
    ],
)
def test_wrong_usage(files: Path, arguments: list[str], message: str) -> None:
    result = invoke("-t", files / "affine.tfm", "-o", files / "out", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_missing_transform(files: Path) -> None:
    source = write_points(files / "p.csv", inner_points(2))
    result = invoke("-t", files / "none.tfm", "--points", source, "-o", files / "q.csv")
    assert result.exit_code == 3
    assert "none.tfm" in result.stderr
    assert not (files / "q.csv").exists()


def test_points_without_origin(files: Path) -> None:
    source = write_points(files / "q.csv", inner_points(2) + 900.0)
    result = invoke(*chain_options(files), "--inverse", "--points", source, "-o", files / "p.csv")
    assert result.exit_code == 3
    assert "2 of 2 points have no origin" in result.stderr
    assert not (files / "p.csv").exists()


@pytest.mark.parametrize("points", [True, False])
def test_written_is_reported_last(files: Path, points: bool) -> None:
    arguments: list[str | Path] = ["--image", files / "moving.nii.gz"]
    arguments += ["--reference", files / "fixed.nii.gz", "-o", files / "out.nii.gz"]
    if points:
        source = write_points(files / "p.csv", inner_points(2))
        arguments = ["--points", source, "-o", files / "q.csv"]
    result = CliRunner().invoke(cli, ["apply", *chain_options(files), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    *stages, last = result.stderr.splitlines()
    assert last.startswith("written: ")
    assert stages[-1].startswith("map: done" if points else "warp: done")


def test_points_outside_the_field_are_reported(files: Path) -> None:
    """As in ITK, only the rest of the chain moves them; a warning says so."""
    points = np.vstack([inner_points(3), inner_points(2) + 900.0])
    source = write_points(files / "p.csv", points)
    arguments = ["--points", str(source), "-o", str(files / "q.csv"), "--json"]
    result = CliRunner().invoke(cli, ["apply", *chain_options(files), *arguments])
    assert result.exit_code == 0, result.output
    assert "warning: " in result.stderr
    assert "2 of 5 points lie outside the displacement field" in result.stderr
    assert json.loads(result.stdout)["points_outside_field"] == 2
    expected = [itk_chain().TransformPoint(p.tolist()) for p in points]
    np.testing.assert_allclose(read_points(files / "q.csv"), expected, atol=1e-4)


@pytest.fixture
def folds(files: Path) -> tuple[Path, np.ndarray]:
    """A field that folds, and four centres of moving voxels, the first without an inverse."""
    grid = make_image(0, (20, 18, 16))
    noise = np.random.default_rng(4).normal(scale=4.0, size=(16, 18, 20, 3))
    field = sitk.GetImageFromArray(noise, isVector=True)
    field.CopyInformation(grid)
    sitk.WriteImage(sitk.Cast(field, sitk.sitkVectorFloat32), str(files / "folds.nii.gz"))
    transform = read_transform(files / "folds.nii.gz")
    inverse, inversion = invert_chain(transform, read_volume(files / "moving.nii.gz").geometry)
    points = voxel_centres(inverse.geometry)
    known = np.flatnonzero(np.isfinite(inverse.vectors_mm.reshape(-1, 3)).all(axis=1))
    assert inversion.failed.size > 1
    return files / "folds.nii.gz", points[np.concatenate([inversion.failed[:1], known[:3]])]


def test_points_without_inverse_are_nan(files: Path, folds: tuple[Path, np.ndarray]) -> None:
    transform, points = folds
    source = write_points(files / "q.csv", points)
    arguments = ["--points", source, "-t", transform, "--inverse", "--json"]
    result = invoke(*arguments, "-o", files / "p.csv")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inverse_failed"] == 1
    found = np.isfinite(read_points(files / "p.csv")).all(axis=1)
    assert found.tolist() == [False, True, True, True]
    result = invoke(*arguments, "-o", files / "p.mrk.json")
    assert result.exit_code == 0, result.output
    document = json.loads((files / "p.mrk.json").read_text())
    missing = document["markups"][0]["controlPoints"][0]
    assert (missing["position"], missing["positionStatus"]) == ("", "missing")


def test_voxels_without_inverse_are_outside(files: Path, folds: tuple[Path, np.ndarray]) -> None:
    transform, points = folds
    image = sitk.ReadImage(str(files / "fixed.nii.gz")) * 0 + 1
    image[0, 0, 0] = 2  # no constant image
    sitk.WriteImage(image, str(files / "ones.nii.gz"))
    arguments = ["--image", files / "ones.nii.gz", "--reference", files / "moving.nii.gz"]
    arguments += ["-t", transform, "--inverse", "-o", files / "out.nii.gz"]
    result = CliRunner().invoke(cli, ["apply", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert re.search(r"warning: \d+ of \d+ voxels have no inverse", result.stderr)
    found = sitk.ReadImage(str(files / "out.nii.gz"))
    values = [found[found.TransformPhysicalPointToIndex(p.tolist())] for p in points]
    assert values[0] == 0
    assert min(values[1:]) >= 1


@pytest.mark.parametrize("kind", ["image", "labels", "reference", "transform"])
def test_no_input_is_overwritten(files: Path, kind: str) -> None:
    image = files / ("organs.nii.gz" if kind == "labels" else "moving.nii.gz")
    paths = {kind: files / "field.nii.gz"} if kind == "transform" else {}
    paths |= {"reference": files / "fixed.nii.gz", "labels" if kind == "labels" else "image": image}
    output = paths[kind]
    before = output.read_bytes()
    arguments = [word for name, path in paths.items() for word in (f"--{name}", path)]
    more = [] if kind == "transform" else chain_options(files)
    result = invoke(*arguments, *more, "-o", output)
    assert result.exit_code == 7
    assert f"{output}: is an input ({output}) and would be overwritten" in result.stderr
    assert output.read_bytes() == before


def test_points_are_not_overwritten(files: Path) -> None:
    source = write_points(files / "p.csv", inner_points())
    before = source.read_bytes()
    (files / "link.csv").symlink_to(source)
    for output in (source, files / "link.csv"):
        result = invoke(*chain_options(files), "--points", source, "-o", output)
        assert result.exit_code == 7
        assert "is an input" in result.stderr
    assert source.read_bytes() == before


def test_only_the_grid_of_the_reference_matters(files: Path) -> None:
    fixed = sitk.ReadImage(str(files / "fixed.nii.gz"))
    values = sitk.GetArrayFromImage(fixed)
    values[0, 0, 0] = np.nan
    unusual = {
        "constant.nii.gz": fixed * 0,
        "nan.nii.gz": sitk.GetImageFromArray(values),
        "vectors.nii.gz": sitk.Compose(fixed, fixed, fixed),
    }
    outputs = []
    for name, reference in {"fixed.nii.gz": fixed, **unusual}.items():
        reference.CopyInformation(fixed)
        sitk.WriteImage(reference, str(files / name))
        arguments = ["--image", files / "moving.nii.gz", "--reference", files / name]
        result = invoke(*chain_options(files), *arguments, "-o", files / "out.nii.gz")
        assert result.exit_code == 0, result.output
        outputs.append((files / "out.nii.gz").read_bytes())
    assert len(set(outputs)) == 1


def test_constant_image(files: Path) -> None:
    image = sitk.ReadImage(str(files / "moving.nii.gz")) * 0
    sitk.WriteImage(image, str(files / "zero.nii.gz"))
    arguments = ["--image", files / "zero.nii.gz", "--reference", files / "fixed.nii.gz"]
    result = invoke(*chain_options(files), *arguments, "-o", files / "out.nii.gz")
    assert result.exit_code == 0, result.output
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(files / "out.nii.gz"))).any()


def test_corrections_of_a_series_are_reported(tmp_path: Path) -> None:
    """The type of the result holds the values of every slice; the first has slope 1."""

    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"ImagePositionPatient": [0, 0, round(1.25 * k, 1)], "SliceThickness": 1.25}
        tags["RescaleSlope"] = 1 if k == 0 else 0.001

    stored = np.random.default_rng(1).integers(0, 900, (6, 7, 8)).astype(np.uint16)
    write_raw(tmp_path / "s", stored, change)
    write_affine(tmp_path / "identity.tfm", AffineTransform.identity())
    options = ["-t", tmp_path / "identity.tfm", "--image", tmp_path / "s", "--reference"]
    arguments = ["apply", *options, tmp_path / "s", "-o", tmp_path / "o.nii.gz"]
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == 0
    assert "slice positions are uneven by up to" in " ".join(result.stderr.split())
    written = read_volume(tmp_path / "o.nii.gz")
    np.testing.assert_allclose(written.array[1:], stored[1:] * 0.001, rtol=1e-6)
    assert written.geometry.spacing_mm == pytest.approx((0.5, 0.75, 1.25))
