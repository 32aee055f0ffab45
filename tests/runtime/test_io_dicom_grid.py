"""The grid of a DICOM series: what is read, with its geometry by DICOM's formula, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import STEP_MM, UID, write_raw

from dinoreg_rt import io
from dinoreg_rt.errors import InputError
from dinoreg_rt.types import Geometry, Volume

STORED = np.random.default_rng(5).integers(0, 3000, (8, 20, 24)).astype(np.uint16)
ROWS_APART, COLUMNS_APART = 0.75, 0.5


def turned(degrees: Sequence[float]) -> np.ndarray:
    """Return axes turned about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        c, s = np.cos(angle), np.sin(angle)
        j, k = [(1, 2), (0, 2), (0, 1)][axis]
        one = np.eye(3)
        one[j, j] = one[k, k] = c
        one[j, k], one[k, j] = -s, s
        matrix = one @ matrix
    return matrix


def place(axes: np.ndarray, decimals: int = 12, step: float = STEP_MM) -> Any:
    """Return a change that gives slices these axes; the cosines have so many decimals."""

    def change(tags: dict[str, Any], k: int) -> None:
        cosines = np.round(np.r_[axes[:, 0], axes[:, 1]], decimals)
        position = np.array([-20, 30, 100.0]) + step * k * axes[:, 2]
        tags["ImageOrientationPatient"] = [f"{v:.12g}" for v in cosines]
        tags["ImagePositionPatient"] = [f"{v:.10g}" for v in position]

    return change


def along_z(positions: Sequence[float], **further: Any) -> Any:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [10, -20, f"{positions[k]:.10g}"]
        tags |= further

    return change


def read(folder: Path, change: Any, stored: np.ndarray = STORED) -> Volume:
    write_raw(folder / "s", stored, change)
    return io.read_volume(folder / "s")


def refuse(folder: Path, change: Any, match: str, stored: np.ndarray = STORED) -> str:
    with pytest.raises(InputError, match=match) as error:
        read(folder, change, stored)
    return str(error.value)


def point(grid: Geometry, *index: int) -> np.ndarray:
    return grid.origin_mm + grid.direction @ (np.array(index) * grid.spacing_mm)


def by_the_formula(axes: np.ndarray, column: int, row: int, k: int) -> np.ndarray:
    steps = (COLUMNS_APART * column, ROWS_APART * row, STEP_MM * k)
    return np.array([-20, 30, 100.0]) + axes @ steps


@pytest.mark.parametrize("decimals", [3, 6, 12])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (10, -12, 5), (90, 0, 0), (-35, 50, 110)])
def test_oblique_series(tmp_path: Path, degrees: tuple[float, ...], decimals: int) -> None:
    axes = turned(degrees)
    volume = read(tmp_path, place(axes, decimals))
    np.testing.assert_array_equal(volume.array, STORED)
    for index in np.ndindex(2, 2, 2):
        i, j, k = np.array(index) * (23, 19, 7)
        expected = by_the_formula(axes, i, j, k)
        atol = 1e-6 if decimals > 6 else 20 * 10.0**-decimals
        np.testing.assert_allclose(point(volume.geometry, i, j, k), expected, atol=atol)


def test_file_order_does_not_matter(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(8)
    volume = read(tmp_path, along_z(STEP_MM * order))
    np.testing.assert_array_equal(volume.array[order], STORED)
    assert volume.geometry.origin_mm == (10, -20, 0)


def test_cosines_with_two_decimals(tmp_path: Path) -> None:
    """GDCM makes the identity of cosines that are not quite perpendicular."""
    axes = turned((9.7, -12, 5.2))
    volume = read(tmp_path, place(axes, decimals=2))
    direction = volume.geometry.direction
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction, axes, atol=0.006)
    last = by_the_formula(axes, 23, 19, 7)
    np.testing.assert_allclose(point(volume.geometry, 23, 19, 7), last, atol=0.1)
    assert "cosines are not quite perpendicular unit vectors (inner product" in volume.notes[0]


@pytest.mark.parametrize("scale", [(1, 1.05), (0.9, 1)])
def test_cosines_that_are_no_axes(tmp_path: Path, scale: tuple[float, float]) -> None:
    match = r"direction cosines are not perpendicular unit vectors \(off by .*, allowed 0\.02\)"
    axes = turned((10, 20, 30))
    refuse(tmp_path, place(axes * [*scale, 1]), match)
    axes[:, 1] += 0.05 * axes[:, 0]
    refuse(tmp_path, place(axes), match)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("step", [0.625, 0.7, 1.25, 2.5, 3.33])
def test_positions_rounded_to_a_tenth(tmp_path: Path, step: float, stated: bool) -> None:
    positions = np.round(step * np.arange(8), 1)
    volume = read(tmp_path, along_z(positions, SliceThickness=step if stated else None))
    spacing = volume.geometry.spacing_mm[2]
    assert spacing == pytest.approx(step, abs=1e-9 if stated else 0.02)
    np.testing.assert_allclose(
        [point(volume.geometry, 0, 0, k)[2] for k in range(8)], positions, atol=0.0701
    )
    rounded = np.abs(positions - step * np.arange(8)).max() > 0.01
    assert len(volume.notes) == rounded
    assert all(note.startswith("its slice positions are uneven") for note in volume.notes)


def test_thickness_that_is_not_the_spacing(tmp_path: Path) -> None:
    positions = np.round(1.25 * np.arange(8), 1)
    volume = read(tmp_path, along_z(positions, SliceThickness=1.5, SpacingBetweenSlices=1.0))
    assert volume.geometry.spacing_mm[2] == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize("count", [3, 4, 5, 7, 8])
@pytest.mark.parametrize("decimals", [1, 6])
def test_a_missing_slice_anywhere(tmp_path: Path, count: int, decimals: int) -> None:
    for missing in range(1, count):
        positions = np.round(1.25 * np.delete(np.arange(count + 1), missing), decimals)
        refuse(tmp_path, along_z(positions), "slice spacing is not uniform", STORED[:count])


def test_gantry_tilt(tmp_path: Path) -> None:
    """Half a degree, too little to be seen from one slice to the next."""

    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [10, -20 + 0.0436 * k, 5 * k]

    refuse(tmp_path, change, r"sideways by 0\.044 mm .*gantry tilt of 0\.5 degrees.*dcm2niix")


def test_sideways_rounding_is_no_tilt(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    jitter = rng.choice([-0.05, 0.05], size=(8, 2))

    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [10 + jitter[k, 0], -20 + jitter[k, 1], STEP_MM * k]

    volume = read(tmp_path, change)
    assert volume.geometry.spacing_mm[2] == pytest.approx(STEP_MM, abs=1e-3)
    np.testing.assert_allclose(volume.geometry.direction, np.eye(3), atol=0.005)


def test_slice_beside_the_others(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [10 + (k in (3, 4)), -20, STEP_MM * k]

    refuse(tmp_path, change, r"some slices lie up to 0\.\d+ mm beside the line")


def test_sizes_differ(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        if k >= 6:
            tags |= {"Rows": 10, "PixelData": STORED[k, :10].tobytes()}

    match = (
        r"differ in size: 24 x 20 pixels \(6 slices, the first is im000\.dcm\), "
        r"24 x 10 pixels \(2 slices, the first is im006\.dcm\); separate them"
    )
    refuse(tmp_path, change, match)


def test_pixel_spacings_differ(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["PixelSpacing"] = [0.75, 0.6] if k == 3 else [0.75, 0.5]

    refuse(tmp_path, change, r"in pixel spacing: 0\.5 x 0\.75 mm \(7 .*, 0\.6 x 0\.75 mm \(1 slice")


def test_scout_among_the_slices(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        if k == 2:
            tags["ImageOrientationPatient"] = [1, 0, 0, 0, 0, -1]

    refuse(tmp_path, change, r"not parallel \(a scout.*1 of 8 are turned, the first is im002\.dcm")


def echoes(tags: dict[str, Any], k: int) -> None:
    tags["ImagePositionPatient"] = [10, -20, 3 * (k // 2)]
    tags["EchoTime"] = [2.46, 4.92][k % 2]


def test_two_echoes(tmp_path: Path) -> None:
    text = refuse(tmp_path, echoes, r"the 8 slices of the series lie at only 4 position")
    assert f"as '{tmp_path / 's'}?series={UID}.1&EchoTime=VALUE'" in text
    assert "\n  EchoTime=2.46  (4 slices)\n  EchoTime=4.92  (4 slices)" in text
    volume = io.read_volume(f"{tmp_path / 's'}?series={UID}.1&EchoTime=4.92")
    np.testing.assert_array_equal(volume.array, STORED[1::2])
    assert volume.geometry.spacing_mm[2] == pytest.approx(3)
    assert len(io.input_files(f"{tmp_path / 's'}?series={UID}.1&EchoTime=4.92")) == 8
    with pytest.raises(InputError, match=r"no slice has EchoTime=5; choose one of these:\n  Echo"):
        io.read_volume(f"{tmp_path / 's'}?series={UID}.1&EchoTime=5")
    with pytest.raises(InputError, match="slices cannot be chosen by 'Echo'; use one of EchoTime,"):
        io.read_volume(f"{tmp_path / 's'}?series={UID}.1&Echo=5")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ImageType", ("ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P")),
        ("AcquisitionNumber", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("DiffusionBValue", (0.0, 1000.0)),
    ],
)
def test_other_volumes_in_one_series(tmp_path: Path, name: str, values: tuple[Any, Any]) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [10, -20, 3 * (k // 2)]
        tags[name] = values[k % 2]

    text = refuse(
        tmp_path, change, rf"only 4 position\(s\); choose one of these as .*&{name}=VALUE"
    )
    chosen = text.splitlines()[-1].split("  (")[0].strip()
    volume = io.read_volume(f"{tmp_path / 's'}?series={UID}.1&{chosen}")
    np.testing.assert_array_equal(volume.array, STORED[1::2])


def test_two_choices(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"EchoNumbers": k % 2, "AcquisitionNumber": k // 2 % 2}
        tags["ImagePositionPatient"] = [10, -20, 3 * (k // 4)]

    text = refuse(tmp_path, change, "lie at only 2 position")
    assert "EchoNumbers=0  (4 slices)" in text
    chosen = f"{tmp_path / 's'}?series={UID}.1&EchoNumbers=1"
    with pytest.raises(InputError, match=r"EchoNumbers=1&AcquisitionNumber=VALUE") as error:
        io.read_volume(chosen)
    assert "AcquisitionNumber=0  (2 slices)" in str(error.value)
    volume = io.read_volume(f"{chosen}&AcquisitionNumber=1")
    np.testing.assert_array_equal(volume.array, STORED[[3, 7]])


def test_copies_of_slices(tmp_path: Path) -> None:
    write_raw(tmp_path / "s", STORED, prefix="copy")
    refuse(tmp_path, None, r"16 slices .* only 8 position\(s\); .* or remove the copies")


def test_half_of_another_echo(tmp_path: Path) -> None:
    """The positions are complete, but the contrast changes midway."""

    def change(tags: dict[str, Any], k: int) -> None:
        tags["EchoTime"] = 2.46 if k < 4 else 4.92

    match = r"differ in EchoTime: 2\.46 \(4 slices, the first is im000\.dcm\), 4\.92 \(4 slices"
    refuse(tmp_path, change, match)


def test_one_stack_of_two_acquisitions(tmp_path: Path) -> None:
    """Interleaved slices of an MR, or a CT of the chest and then of the abdomen."""

    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"AcquisitionNumber": k % 2, "EchoTime": 2.46 + 0.001 * (k % 3)}

    np.testing.assert_array_equal(read(tmp_path, change).array, STORED)
