"""Folders of DICOM slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.errors import InputError

UID = "1.2.826.0.1.3680043.2.1125.1"
STEP_MM = 2.5
COUNT = 5


def voxels() -> np.ndarray:
    return np.random.default_rng(3).integers(-1000, 1000, (COUNT, 6, 7)).astype(np.int16)


def write_series(
    folder: Path,
    *,
    uid: str = f"{UID}.1",
    description: str = "portal venous",
    positions: list[tuple[float, float, float]] | None = None,
    rows: str = "1\\0\\0\\0\\1\\0",
) -> None:
    """Slices of `voxels`, stored with an intercept of -1024 in files named in reverse order."""
    folder.mkdir(exist_ok=True)
    positions = positions or [(10.0, -20.0, 100 + STEP_MM * i) for i in range(COUNT)]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, position in enumerate(positions):
        image = sitk.GetImageFromArray((voxels()[i % COUNT] + 1024)[None].astype(np.uint16))
        image.SetSpacing((0.5, 0.75, STEP_MM))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{i + 1}",
            "0008|103e": description,
            "0020|000d": UID,
            "0020|000e": uid,
            "0020|0013": str(i),
            "0020|0032": "\\".join(f"{v:g}" for v in position),
            "0020|0037": rows,
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid[-1]}_{len(positions) - i:03d}.dcm"))
        writer.Execute(image)


def test_series_is_sorted_and_rescaled(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    volume = io.read_volume(tmp_path / "ct")
    # SimpleITK writes values through its own rescale: compare up to what it stored.
    first = sitk.ReadImage(str(tmp_path / "ct" / "1_005.dcm"))
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(first)[0])
    assert np.ptp(volume.array - voxels()) == 0
    assert volume.geometry.shape_zyx == (COUNT, 6, 7)
    np.testing.assert_allclose(volume.geometry.spacing_mm, (0.5, 0.75, STEP_MM), atol=1e-6)
    np.testing.assert_allclose(volume.geometry.origin_mm, (10, -20, 100), atol=1e-6)
    assert np.issubdtype(np.dtype(volume.pixel_type), np.integer)


def test_several_series_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "ct", uid=f"{UID}.2", description="delayed")
    with pytest.raises(
        InputError, match=r"holds 2 DICOM series; choose one as .*series=UID"
    ) as error:
        io.read_volume(tmp_path / "ct")
    assert f"{UID}.1  'portal venous'  (5 files)" in str(error.value)
    assert f"{UID}.2  'delayed'  (5 files)" in str(error.value)
    assert io.read_volume(f"{tmp_path / 'ct'}?series={UID}.2").array.shape == (COUNT, 6, 7)
    with pytest.raises(InputError, match=r"holds no series 9\.9; choose one"):
        io.read_volume(f"{tmp_path / 'ct'}?series=9.9")


def test_missing_slice(tmp_path: Path) -> None:
    positions = [(0.0, 0.0, z) for z in (0.0, 2.5, 7.5, 10.0)]
    write_series(tmp_path / "ct", positions=positions)
    match = r"not uniform: 2\.500 mm between slices 1 and 2, 5\.000 mm between 2 and 3 of 4"
    with pytest.raises(InputError, match=match):
        io.read_volume(tmp_path / "ct")


def test_two_slices_at_one_position(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", positions=[(0.0, 0.0, z) for z in (0.0, 2.5, 2.5, 5.0)])
    with pytest.raises(InputError, match="lie at one position; separate the time points"):
        io.read_volume(tmp_path / "ct")


def test_gantry_tilt(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", positions=[(0.0, 0.4 * i, 2.5 * i) for i in range(4)])
    with pytest.raises(InputError, match=r"shifted sideways by 0\.400 mm .*gantry tilt"):
        io.read_volume(tmp_path / "ct")


def test_slices_that_are_not_parallel(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "scout", rows="1\\0\\0\\0\\0\\-1", positions=[(0.0, 0.0, 0.0)])
    (tmp_path / "scout" / "1_001.dcm").rename(tmp_path / "ct" / "scout.dcm")
    with pytest.raises(InputError, match="not parallel"):
        io.read_volume(tmp_path / "ct")


def test_one_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", positions=[(0.0, 0.0, 0.0)])
    with pytest.raises(InputError, match="one slice"):
        io.read_volume(tmp_path / "ct")


def test_folder_without_dicom(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no DICOM series; give an image file, or the"):
        io.read_volume(tmp_path)


def test_single_dicom_file(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    with pytest.raises(InputError, match="a DICOM series by giving its folder"):
        io.read_volume(tmp_path / "ct" / "1_001.dcm")
