"""SimpleITK reads a run's files as the same mapping, image and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from phantoms import make_grid, make_phantom

from dinoreg_rt import AffineTransform, DisplacementField, Geometry, LabelMap, io, warp_labels
from dinoreg_rt.commands.main import cli
from dinoreg_rt.fields.warp import chain_to_displacement
from dinoreg_rt.geometry import index_to_lps, lps_to_index, same_grid, transform_points

POINTS = 1000
#: Every pair starts 150 mm and 0.2 rad apart, which a file tells the run.
START = AffineTransform(
    [[0.9801, -0.1987, 0.0], [0.1987, 0.9801, 0.0], [0.0, 0.0, 1.0]], [110.0, -100.0, 25.0]
)
GRIDS = {
    "RAS": (make_grid((20, 24, 28), (4.0, 4.0, 4.0), "RAS"), (4.0, 4.0, 4.0), "LPS"),
    "LAS": (make_grid((20, 24, 28), (4.0, 4.0, 4.0), "LAS"), (3.5, 4.0, 4.5), "RAS"),
    "LPS": (make_grid((20, 24, 28), (4.0, 4.0, 4.0), "LPS"), (4.0, 4.0, 4.0), "oblique"),
    "oblique": (make_grid((20, 24, 28), (4.0, 4.0, 4.0), "oblique"), (4.0, 4.0, 4.0), "LAS"),
    "anisotropic": (make_grid((9, 40, 40), (2.5, 2.5, 9.0), "oblique"), (2.0, 3.0, 6.0), "LPS"),
}


@dataclass(frozen=True)
class Run:
    """A finished run and its inputs."""

    folder: Path
    fixed_grid: Geometry
    moving: Path
    labels: Path

    def displacement(self) -> DisplacementField:
        return io.read_displacement(self.folder / "displacement.nii.gz")

    def transform(self) -> sitk.Transform:
        return sitk.ReadTransform(str(self.folder / "transform.h5"))

    def through_itk(self, image: Path, interpolator: int) -> np.ndarray:
        """Resample `image` with SimpleITK through transform.h5 onto the fixed grid."""
        reference = sitk.ReadImage(str(self.folder / "warped.nii.gz"))
        moving = sitk.ReadImage(str(image))
        moving = (
            moving
            if interpolator == sitk.sitkNearestNeighbor
            else sitk.Cast(moving, sitk.sitkFloat64)
        )
        resampled = sitk.Resample(moving, reference, self.transform(), interpolator, 0.0)
        return sitk.GetArrayFromImage(resampled)

    def moving_index(self) -> np.ndarray:
        """Return the index (x, y, z) in the moving grid for each fixed voxel, (D, H, W, 3)."""
        field = self.displacement()
        z, y, x = np.indices(field.geometry.shape_zyx)
        index = np.stack([x, y, z], -1).reshape(-1, 3).astype(np.float64)
        points = transform_points(index_to_lps(field.geometry), index)
        points += field.vectors_mm.reshape(-1, 3)
        moving_grid = io.read_geometry(self.moving)
        return transform_points(lps_to_index(moving_grid), points).reshape(*x.shape, 3)


@pytest.fixture(scope="module", params=GRIDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp(request.param)
    fixed_grid, spacing, direction = GRIDS[request.param]
    shape = tuple(round(n * 1.1 / s) for n, s in zip((80, 96, 112), spacing[::-1], strict=True))
    moving_grid = make_grid(shape, spacing, direction, START.translation_mm)
    phantom = make_phantom(fixed_grid, moving_grid, affine=START)
    io.write_volume(folder / "fixed.nii.gz", phantom.fixed)
    io.write_volume(folder / "moving.nii.gz", phantom.moving)
    labels = np.digitize(phantom.moving.array, [100, 350, 550, 800]).astype(np.int32) * 3
    io.write_labels(folder / "organs.nii.gz", LabelMap(labels, moving_grid))
    io.write_affine(folder / "start.tfm", START)
    arguments = ["run", "-f", folder / "fixed.nii.gz", "-m", folder / "moving.nii.gz"]
    arguments += ["-o", folder / "out", "--labels", folder / "organs.nii.gz"]
    arguments += ["--initial", folder / "start.tfm", "--no-qc", "--quiet", "--save", "displacement"]
    outcome = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert outcome.exit_code == 0, outcome.output
    return Run(folder / "out", fixed_grid, folder / "moving.nii.gz", folder / "organs.nii.gz")


def by_itk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in points])


def test_both_files_hold_the_same_mapping(run: Run) -> None:
    """At all voxel centres of the fixed grid, borders included. Measured: at most 1.2e-5 mm."""
    field = sitk.ReadImage(str(run.folder / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    place = (field.GetSize(), field.GetOrigin(), field.GetSpacing(), field.GetDirection())
    whole = sitk.TransformToDisplacementField(run.transform(), sitk.sitkVectorFloat64, *place)
    vectors = sitk.GetArrayFromImage(field)
    assert np.linalg.norm(vectors, axis=-1).min() > 50  # with the initial alignment
    assert np.abs(sitk.GetArrayFromImage(whole) - vectors).max() < 1e-3
    ours = chain_to_displacement(io.read_transform(run.folder / "transform.h5"), run.fixed_grid)
    assert np.abs(ours.vectors_mm - vectors).max() < 1e-3


def test_points_move_as_in_simpleitk(run: Run) -> None:
    """Random points of the fixed grid agree within 1e-4 mm."""
    upper = np.asarray(run.fixed_grid.shape_xyz) - 0.5
    index = np.random.default_rng(11).uniform(-0.499, upper - 0.001, (POINTS, 3))
    points = transform_points(index_to_lps(run.fixed_grid), index)
    image = sitk.ReadImage(str(run.folder / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    for name, theirs in (
        ("displacement.nii.gz", sitk.DisplacementFieldTransform(image)),
        ("transform.h5", run.transform()),
    ):
        ours = io.transform_points(io.read_transform(run.folder / name), points)
        assert np.linalg.norm(by_itk(theirs, points) - ours, axis=1).max() < 1e-4


def test_applied_without_a_reference(run: Run, tmp_path: Path) -> None:
    """Through the files' own grid `apply` gives the run's own warped image."""
    warped = io.read_volume(run.folder / "warped.nii.gz")
    for name in ("transform.h5", "displacement.nii.gz"):
        arguments = ["apply", "-t", run.folder / name, "--image", run.moving]
        arguments += ["-o", tmp_path / "again.nii.gz"]
        outcome = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert outcome.exit_code == 0, outcome.output
        assert f"mm (x, y, z), that of {run.folder / name}" in outcome.stderr
        again = io.read_volume(tmp_path / "again.nii.gz")
        assert same_grid(again.geometry, warped.geometry)
        # Values reach 1000; the positions are float32. Beyond the moving image's border the value
        # falls to 0 within a rounding of the position.
        assert np.quantile(np.abs(again.array - warped.array), 0.9999) < 0.02


def test_displacement_lies_on_the_fixed_grid(run: Run) -> None:
    found = run.displacement().geometry
    assert found.shape_zyx == run.fixed_grid.shape_zyx
    np.testing.assert_allclose(found.spacing_mm, run.fixed_grid.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(found.origin_mm, run.fixed_grid.origin_mm, atol=1e-4)
    np.testing.assert_allclose(found.direction, run.fixed_grid.direction, atol=1e-6)


def test_warped_image_is_simpleitks(run: Run) -> None:
    """Compare away from the moving image's border, where the two extrapolate differently."""
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(run.folder / "warped.nii.gz")))
    expected = run.through_itk(run.moving, sitk.sitkLinear)
    upper = np.asarray(io.read_geometry(run.moving).shape_xyz) - 1
    index = run.moving_index()
    inside = np.all((index > 0.01) & (index < upper - 0.01), axis=-1)
    assert inside.mean() > 0.5
    # Values reach 1000. Measured: 0.0025, because positions are float32.
    assert np.abs(warped - expected)[inside].max() < 0.02


def test_nearest_labels_are_simpleitks(run: Run) -> None:
    field = run.displacement()
    ours = warp_labels(io.read_labels(run.labels), field, nearest=True).array
    expected = run.through_itk(run.labels, sitk.sitkNearestNeighbor)
    # Points on the border between two voxels may be rounded to either.
    index = run.moving_index() - 0.5
    clear = np.all(np.abs(index - np.rint(index)) > 1e-4, axis=-1)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(ours[clear], expected[clear])


def test_written_labels_are_a_label_preserving_warp(run: Run) -> None:
    """No label is invented, and only voxels near a border differ from nearest neighbours."""
    warped = io.read_labels(run.folder / "labels_organs.nii.gz")
    labels = io.read_labels(run.labels)
    assert set(np.unique(warped.array)) <= set(np.unique(labels.array))
    assert warped.geometry.shape_zyx == run.fixed_grid.shape_zyx
    nearest = run.through_itk(run.labels, sitk.sitkNearestNeighbor)
    x, y, z = np.moveaxis(np.rint(run.moving_index()).astype(int), -1, 0)
    uniform = np.zeros(nearest.shape, bool)
    depth, height, width = labels.array.shape
    core = (x > 0) & (y > 0) & (z > 0) & (x < width - 1) & (y < height - 1) & (z < depth - 1)
    around = [
        labels.array[z[core] + dz, y[core] + dy, x[core] + dx]
        for dz in (-1, 0, 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    uniform[core] = np.ptp(np.stack(around), axis=0) == 0
    assert uniform.sum() > 1000
    np.testing.assert_array_equal(warped.array[uniform], nearest[uniform])
