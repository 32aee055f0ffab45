"""Folders of DICOM slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import COUNT, STEP_MM, UID, element, file_header, voxels, write_series

from dinoreg_rt import io
from dinoreg_rt.errors import InputError


def test_series_is_sorted_and_rescaled(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    volume = io.read_volume(tmp_path / "ct")
    # SimpleITK rescales the values that it writes, so they are compared with what it stored.
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
    with pytest.raises(InputError, match=r"4 slices .* lie at only 3 position.*time points"):
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
    with pytest.raises(InputError, match="or the folder of a DICOM series"):
        io.read_volume(tmp_path / "ct" / "1_001.dcm")


def test_two_time_points(tmp_path: Path) -> None:
    """GDCM cannot sort them by position, so they come in any order."""
    once = [(0.0, 0.0, 2.5 * i) for i in range(COUNT)]
    write_series(tmp_path / "ct", positions=once * 2)
    with pytest.raises(InputError, match=r"the 10 slices .* 5 position.* separate its time points"):
        io.read_volume(tmp_path / "ct")


@pytest.mark.parametrize("number", [1, 3, COUNT])
@pytest.mark.parametrize("left", [0, 100, 200, 0.5, -10])
def test_damaged_slice(tmp_path: Path, number: int, left: float) -> None:
    """GDCM leaves the file out; without the check, a file in the middle looked like a gap."""
    write_series(tmp_path / "ct")
    file = tmp_path / "ct" / f"1_{number:03d}.dcm"
    raw = file.read_bytes()
    file.write_bytes(raw[: left if isinstance(left, int) else int(left * len(raw))])
    match = (
        rf"ct: 1 DICOM file cannot be read \(first: 1_{number:03d}\.dcm(: .*follow)?\), damaged\?"
    )
    with pytest.raises(InputError, match=match):
        io.read_volume(tmp_path / "ct")


def test_nothing_but_damaged_slices(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    for file in (tmp_path / "ct").iterdir():
        file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(InputError, match=r"ct: 5 DICOM files cannot be read \(first: 1_001\.dcm\)"):
        io.read_volume(tmp_path / "ct")


def write_object(file: Path, sop_class: str) -> None:
    """A DICOM object without pixels."""
    body = element(8, 0x16, "UI", sop_class) + element(8, 0x18, "UI", "1.2.3")
    body += element(0x20, 0xD, "UI", UID) + element(0x20, 0xE, "UI", "1.2.3.4")
    file.write_bytes(file_header(sop_class) + body)


def test_other_files_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    storage = "1.2.840.10008.5.1.4.1.1"
    for name, sop_class in {
        "DICOMDIR": "1.2.840.10008.1.3.10",
        "report.dcm": f"{storage}.88.11",
        "contours.dcm": f"{storage}.481.3",
        "presentation.dcm": f"{storage}.11.1",
        "document.dcm": f"{storage}.104.1",
        "raw.dcm": f"{storage}.66",
        "spectrum.dcm": f"{storage}.4.2",
    }.items():
        write_object(tmp_path / "ct" / name, sop_class)
    (tmp_path / "ct" / "README.txt").write_text("nothing")
    (tmp_path / "ct" / "._1_001.dcm").write_bytes(b"of another system")
    (tmp_path / "ct" / "sub.dcm").mkdir()
    assert io.read_volume(tmp_path / "ct").array.shape == (COUNT, 6, 7)
    write_object(tmp_path / "ct" / "slice", f"{storage}.2")
    with pytest.raises(InputError, match=r"1 DICOM file cannot be read \(first: slice\)"):
        io.read_volume(tmp_path / "ct")


def test_files_of_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "ct", uid=f"{UID}.2")
    files = io.input_files(f"{tmp_path / 'ct'}?series={UID}.2")
    assert [file.name for file in files] == [f"2_{i:03d}.dcm" for i in range(1, COUNT + 1)]
    assert len(io.input_files(tmp_path / "ct")) == 2 * COUNT


def test_name_that_is_no_text(tmp_path: Path) -> None:
    """ITK aborts the process if it is given one."""
    write_series(tmp_path / "ct")
    (tmp_path / "ct" / "1_001.dcm").rename(tmp_path / "ct" / "1_\udcfc.dcm")
    with pytest.raises(InputError, match=r"1_\\udcfc\.dcm: its name is not valid text"):
        io.read_volume(tmp_path / "ct")
