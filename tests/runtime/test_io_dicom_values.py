"""Values and attributes of DICOM series, compared with the stored pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import STEP_MM, element, write_raw

from dinoreg_rt import io
from dinoreg_rt.errors import InputError

SHAPE = (5, 6, 7)
UNSIGNED = np.random.default_rng(4).integers(100, 3000, SHAPE).astype(np.uint16)


def ct(tags: dict[str, Any]) -> None:
    tags |= {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}


def read(folder: Path, stored: np.ndarray, change: Any = None) -> io.ImageLike:
    write_raw(folder / "s", stored, change)
    return io.read_volume(folder / "s")


@pytest.mark.parametrize(
    "slopes", [[1, 0.001, 0.002, 0.5, 0.003], [1, 2, 3, 4, 5], [-2, 1, 1, 1, 1]]
)
def test_each_slice_has_its_own_slope(tmp_path: Path, slopes: list[float]) -> None:
    """With the type of the first slice, 0.001 times a stored value became 0 or 1."""

    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"RescaleSlope": slopes[k], "RescaleIntercept": 10 * k}

    volume = read(tmp_path, UNSIGNED, change)
    scale, offset = np.array(slopes)[:, None, None], 10 * np.arange(5)[:, None, None]
    np.testing.assert_allclose(volume.array, UNSIGNED * scale + offset, rtol=1e-6)
    whole = all(slope == int(slope) for slope in slopes)
    assert np.issubdtype(np.dtype(volume.pixel_type), np.integer) == whole
    assert volume.notes == ()


def test_signed_and_unsigned_slices(tmp_path: Path) -> None:
    write_raw(tmp_path / "s", UNSIGNED)

    def change(tags: dict[str, Any], k: int) -> None:
        if k % 2:
            signed = UNSIGNED[k].astype(np.int16) - 1024
            tags |= {"PixelRepresentation": 1, "PixelData": signed.tobytes()}

    volume = read(tmp_path, UNSIGNED, change)
    expected = UNSIGNED.astype(int)
    expected[1::2] -= 1024
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.pixel_type == "int32"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_other_bits_above_those_stored(tmp_path: Path, signed: bool, every: int) -> None:
    stored = UNSIGNED % 2000

    def change(tags: dict[str, Any], k: int) -> None:
        if k % every == 0:
            raw = (stored[k] | 0xA000).tobytes()
            tags |= {"BitsStored": 12, "HighBit": 11, "PixelData": raw}
        tags["PixelRepresentation"] = int(signed)

    np.testing.assert_array_equal(read(tmp_path, stored, change).array, stored)


@pytest.mark.parametrize("signed", [False, True])
def test_white_is_low_in_a_ct(tmp_path: Path, signed: bool) -> None:
    """MONOCHROME1 says how values are displayed: Hounsfield units stay. GDCM inverts them."""
    stored = UNSIGNED.astype(np.int16) - 500 if signed else UNSIGNED

    def change(tags: dict[str, Any], k: int) -> None:
        ct(tags)
        tags |= {"PhotometricInterpretation": "MONOCHROME1"}
        tags |= {"RescaleSlope": 2, "RescaleIntercept": -1024}

    volume = read(tmp_path, stored, change)
    np.testing.assert_array_equal(volume.array, stored.astype(int) * 2 - 1024)
    assert volume.notes == ()


@pytest.mark.parametrize("bits", [12, 16])
def test_white_is_low_in_an_mr(tmp_path: Path, bits: int) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"PhotometricInterpretation": "MONOCHROME1"}
        tags |= {"BitsStored": bits, "HighBit": bits - 1}

    volume = read(tmp_path, UNSIGNED, change)
    low, high = int(UNSIGNED.min()), int(UNSIGNED.max())
    np.testing.assert_array_equal(volume.array, low + high - UNSIGNED.astype(int))
    assert "its values were inverted" in volume.notes[0]


def test_padding_of_an_inverted_mr(tmp_path: Path) -> None:
    stored = UNSIGNED.copy()
    stored[:, :2] = 0

    def change(tags: dict[str, Any], k: int) -> None:
        tags |= {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}
        tags |= {"RescaleSlope": 1, "RescaleIntercept": 1}

    volume = read(tmp_path, stored, change)
    low, high = int(UNSIGNED[:, 2:].min()), int(UNSIGNED[:, 2:].max())
    expected = low + high + 1 - UNSIGNED.astype(int)
    expected[:, :2] = low + 1
    np.testing.assert_array_equal(volume.array, expected)


def test_photometric_interpretations_are_not_mixed(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["PhotometricInterpretation"] = f"MONOCHROME{1 + (k > 0)}"

    match = (
        r"differ in photometric interpretation: MONOCHROME1 \(1 slices, the first is im000.dcm\)"
    )
    with pytest.raises(InputError, match=match):
        read(tmp_path, UNSIGNED, change)


@pytest.mark.parametrize(
    ("padding", "limit"), [(63536, None), (40000, 41000)], ids=["value", "range"]
)
def test_padding_becomes_background(tmp_path: Path, padding: int, limit: int | None) -> None:
    """A padding of -2000 on signed pixels is stored as 63536."""
    stored = UNSIGNED.copy()
    stored[:, :2] = padding
    if limit is not None:
        stored[:, 1] = limit - 1

    def change(tags: dict[str, Any], k: int) -> None:
        ct(tags)
        tags |= {"PixelRepresentation": int(limit is None), "RescaleIntercept": -1024}
        tags |= {"RescaleSlope": 1, "PixelPaddingValue": padding, "PixelPaddingRangeLimit": limit}

    volume = read(tmp_path, stored, change)
    expected = UNSIGNED.astype(int) - 1024
    expected[:, :2] = expected[:, 2:].min()
    np.testing.assert_array_equal(volume.array, expected)
    shown = "-3024" if limit is None else "38976 to 39976"
    assert f"70 voxels are padding ({shown}, PixelPaddingValue)" in volume.notes[0]


def test_padding_among_the_values(tmp_path: Path) -> None:
    """A wrong PixelPaddingValue of 0 on signed Hounsfield units would take water away."""
    stored = UNSIGNED.astype(np.int16) - 1500
    stored[:, :2] = 0
    volume = read(tmp_path, stored, lambda tags, k: tags.update(PixelPaddingValue=0))
    np.testing.assert_array_equal(volume.array, stored)
    assert volume.notes == (
        "its PixelPaddingValue (0) lies among the other values and was not replaced",
    )


def test_zero_is_a_background(tmp_path: Path) -> None:
    stored = UNSIGNED.copy()
    stored[:, :2] = 0
    volume = read(tmp_path, stored, lambda tags, k: tags.update(PixelPaddingValue=0))
    np.testing.assert_array_equal(volume.array, stored)
    assert volume.notes == ()


@pytest.mark.parametrize("stated", [0, "0.0", "0.00000", -2.5, 1, 5])
@pytest.mark.parametrize("first", [0, 2])
def test_positions_decide_on_the_spacing(tmp_path: Path, stated: Any, first: int) -> None:
    """ITK refuses a SpacingBetweenSlices of 0."""

    def change(tags: dict[str, Any], k: int) -> None:
        ct(tags)
        tags["SpacingBetweenSlices"] = stated if k >= first else STEP_MM

    volume = read(tmp_path, UNSIGNED, change)
    assert volume.geometry.spacing_mm == pytest.approx((0.5, 0.75, STEP_MM))
    np.testing.assert_array_equal(volume.array, UNSIGNED)


@pytest.mark.parametrize(("modality", "hint"), [("CT", "ct"), ("MR", "mr"), ("PT", None)])
def test_modality_of_the_header(tmp_path: Path, modality: str, hint: str | None) -> None:
    volume = read(tmp_path, UNSIGNED, lambda tags, k: tags.update(Modality=modality))
    assert volume.modality_hint == hint
    assert io.as_volume(volume).modality_hint == hint
    io.write_volume(tmp_path / "a.nii.gz", volume)
    assert io.read_volume(tmp_path / "a.nii.gz").modality_hint is None


def test_description_that_is_not_utf8(tmp_path: Path) -> None:
    write_raw(tmp_path / "s", UNSIGNED, lambda t, k: t.update(SeriesDescription="Sch\xe4del"))
    write_raw(tmp_path / "s", UNSIGNED, lambda t, k: t.update(SeriesInstanceUID="1.2"), prefix="b")
    with pytest.raises(InputError, match="'Sch\xe4del'"):
        io.read_volume(tmp_path / "s")


def test_multi_frame_file(tmp_path: Path) -> None:
    raw = UNSIGNED.tobytes()
    write_raw(tmp_path / "s", UNSIGNED[:1], lambda t, k: t.update(NumberOfFrames=5, PixelData=raw))
    match = r"im000\.dcm: is a multi-frame \(enhanced\) DICOM file with 5 frames.*dcm2niix"
    with pytest.raises(InputError, match=match):
        io.read_volume(tmp_path / "s")


@pytest.mark.parametrize("spacing", [None, "0\\0", "-1\\1", "nan\\1", "1", "a\\b"])
def test_pixel_spacing_that_is_none(tmp_path: Path, spacing: str | None) -> None:
    """ITK takes 1 mm if it is missing."""
    match = r"im000\.dcm: its pixel spacing is '.*'; two positive numbers in mm are needed"
    with pytest.raises(InputError, match=match):
        read(tmp_path, UNSIGNED, lambda tags, k: tags.update(PixelSpacing=spacing))


@pytest.mark.parametrize("missing", [1, 2, 14, 40])
def test_pixels_that_are_too_few(tmp_path: Path, missing: int) -> None:
    """GDCM takes the others from arbitrary memory."""
    raw = UNSIGNED[2].tobytes()[: -2 * missing]
    match = rf"im002\.dcm: has {len(raw)} bytes of pixels, but its header announces 84"
    with pytest.raises(InputError, match=match):
        read(tmp_path, UNSIGNED, lambda t, k: t.update(PixelData=raw) if k == 2 else None)


def test_bytes_after_the_pixels(tmp_path: Path) -> None:
    write_raw(tmp_path / "s", UNSIGNED)
    for file in (tmp_path / "s").iterdir():
        file.write_bytes(file.read_bytes() + element(0xFFFC, 0xFFFC, "OB", bytes(30)))
    np.testing.assert_array_equal(io.read_volume(tmp_path / "s").array, UNSIGNED)


@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_slice_without_a_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no readable slice position and orientation"):
        read(tmp_path, UNSIGNED, lambda tags, k: tags.update({name: None}))
