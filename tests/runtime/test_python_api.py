"""Shortcuts for users of Python: volumes from files, a result into a folder, short descriptions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import dinoreg_rt
from dinoreg_rt import DisplacementField, Geometry, LabelMap, Volume, io
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.fields.warp import chain_to_displacement
from dinoreg_rt.geometry import same_grid
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair


@pytest.fixture(scope="module")
def result() -> dinoreg_rt.RegistrationResult:
    config = dinoreg_rt.RegistrationConfig(iterations=(2,), initial="none", inverse=True)
    return dinoreg_rt.register(*phantom_pair(phantom_grid((20, 24, 28), 4.0)), config=config)


def image() -> sitk.Image:
    found = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 5, 6), np.float32))
    found.SetSpacing((1.0, 2.0, 3.0))
    found.SetOrigin((-7.0, 8.0, 9.5))
    found.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    return found


def test_geometry_of_an_image() -> None:
    found = Geometry.from_sitk(image())
    assert found.shape_zyx == (4, 5, 6)
    assert found.spacing_mm == (1.0, 2.0, 3.0)
    assert found.origin_mm == (-7.0, 8.0, 9.5)
    assert found.direction.ravel().tolist() == list(image().GetDirection())
    with pytest.raises(InputError, match="the image is 2D; a 3D image is needed"):
        Geometry.from_sitk(sitk.Image(3, 4, sitk.sitkUInt8))


def test_volume_of_an_image_and_of_a_file(tmp_path: Path) -> None:
    sitk.WriteImage(image(), str(tmp_path / "a.nii.gz"))
    one, other = Volume.from_sitk(image(), "scan"), Volume.from_file(tmp_path / "a.nii.gz")
    assert one.name == "scan"
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_array_equal(one.array, sitk.GetArrayFromImage(image()))
    assert same_grid(one.geometry, other.geometry)
    with pytest.raises(InputError, match="no such file"):
        Volume.from_file(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="3 values per voxel"):
        Volume.from_sitk(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3))


def test_descriptions_are_short(result) -> None:
    grid = Geometry((4, 5, 6), (1.0, 2.0, 3.0), (-7.0, 8.0, 9.5), np.eye(3))
    size = "6 x 5 x 4 voxels of 1 x 2 x 3 mm (x, y, z)"
    assert repr(grid) == f"<Geometry {size}, origin -7, 8, 9.5>"
    voxels = np.zeros((4, 5, 6), np.float32)
    assert repr(Volume(voxels, grid, name="a.nii")) == f"<Volume a.nii: {size}>"
    assert repr(Volume(voxels, grid)) == f"<Volume: {size}>"
    assert repr(LabelMap(voxels, grid, name="b.nii")) == f"<LabelMap b.nii: {size}>"
    assert repr(DisplacementField(voxels, grid)) == f"<DisplacementField {size}>"
    text = repr(result)
    assert text.startswith("<RegistrationResult 28 x 24 x 20 voxels of 4 x 4 x 4 mm (x, y, z): ")
    assert result.trust.verdict in text
    assert len(text) < 200


def test_a_result_is_saved_whole(result, tmp_path: Path) -> None:
    files = result.save(tmp_path / "out", displacement=True)
    names = {"warped.nii.gz", "transform.h5", "displacement.nii.gz", "inverse.nii.gz"}
    assert {f.name for f in files} == names
    assert {f.name for f in (tmp_path / "out").iterdir()} == names
    grid = result.displacement.geometry
    chain = io.read_transform(tmp_path / "out" / "transform.h5")
    again = chain_to_displacement(chain, grid)
    np.testing.assert_allclose(again.vectors_mm, result.displacement.vectors_mm, atol=1e-4)
    own = io.read_own_grid(tmp_path / "out" / "transform.h5", chain)
    assert own is not None
    assert same_grid(own, grid)
    assert {f.name for f in replace(result, inverse=None).save(tmp_path / "few")} == {
        "warped.nii.gz",
        "transform.h5",
    }


def test_a_result_that_cannot_be_written_leaves_nothing(result, tmp_path: Path) -> None:
    (tmp_path / "out" / "transform.h5").mkdir(parents=True)
    with pytest.raises(OutputError, match="a folder of this name is in the way"):
        result.save(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["transform.h5"]
