"""DICOM files whose elements contradict the file that they are in."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import ELEMENTS, write_raw

from dinoreg_rt import io
from dinoreg_rt.errors import InputError
from dinoreg_rt.io.dicom_elements import damage, elements

STORED = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)


def test_all_elements_of_a_valid_file_are_found(tmp_path: Path) -> None:
    write_raw(tmp_path, STORED)
    raw = (tmp_path / "im000.dcm").read_bytes()
    found = list(elements(raw))
    assert [e.tag for e in found[:2]] == [(2, 0), (2, 1)]
    assert found[-1].tag == (0x7FE0, 0x10)
    assert found[-1].start + found[-1].length == len(raw)


def test_length_far_beyond_the_file(tmp_path: Path) -> None:
    """GDCM would take 1 GiB for it."""
    write_raw(tmp_path, STORED)
    path = tmp_path / "im001.dcm"
    raw = bytearray(path.read_bytes())
    pixels = list(elements(bytes(raw)))[-1]
    raw[pixels.start - 4 : pixels.start] = struct.pack("<I", 1 << 30)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"\(first: im001\.dcm: its element \(7FE0,"):
        io.read_volume(tmp_path)


def _file(syntax: bytes, body: bytes) -> bytes:
    uid = syntax + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 16, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + meta + body


UNDEFINED = 0xFFFFFFFF
LENGTHS = {
    "implicit": (b"1.2.840.10008.1.2", struct.pack("<HHI", 0x10, 0x10, 1 << 30)),
    "big endian": (
        b"1.2.840.10008.1.2.2",
        struct.pack(">HH2sHI", 0x7FE0, 0x10, b"OW", 0, 1 << 30),
    ),
    "item of a sequence": (
        b"1.2.840.10008.1.2.1",
        struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, UNDEFINED)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 1 << 30),
    ),
}


@pytest.mark.parametrize(("syntax", "body"), LENGTHS.values(), ids=list(LENGTHS))
def test_lengths_in_every_encoding(tmp_path: Path, syntax: bytes, body: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(_file(syntax, body))
    assert damage(path).endswith("announces 1073741824 bytes, but 0 follow")


@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_nothing_is_read_beyond_the_end(tmp_path: Path, cut: int) -> None:
    write_raw(tmp_path, STORED)
    raw = (tmp_path / "im000.dcm").read_bytes()
    pixels = list(elements(raw))[-1]
    assert list(elements(raw[: pixels.start - cut]))


def test_deflated_content_ends_the_walk() -> None:
    raw = _file(b"1.2.840.10008.1.2.1.99", b"\xff" * 40)
    assert [e.tag for e in elements(raw)] == [(2, 16)]


def test_the_file_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    write_raw(tmp_path, STORED, lambda tags, k: tags.update(SamplesPerPixel=7 if k == 1 else 1))
    with pytest.raises(InputError, match=r"\(first: im001\.dcm: An invalid .*Samples"):
        io.read_volume(tmp_path)


def test_unknown_type(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(_file(b"1.2.840.10008.1.2.1", struct.pack("<HH2sH", 8, 0x60, b"WI", 0)))
    assert damage(path) == "its element (0008,0060) has no known type"


OTHERS = {"Modality": "CT", "FrameOfReferenceUID": "1.2.3.4"}


@pytest.mark.parametrize("name", list(OTHERS))
def test_slices_that_cannot_be_one_volume(tmp_path: Path, name: str) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        if k == 2:
            tags[name] = OTHERS[name]

    write_raw(tmp_path, STORED, change)
    with pytest.raises(InputError, match=f"differ in {name}: .*{OTHERS[name]} .1 slices"):
        io.read_volume(tmp_path)


def test_position_beyond_all_bounds(tmp_path: Path) -> None:
    write_raw(tmp_path, STORED, lambda tags, k: tags.update(ImagePositionPatient=["1e100", 0, k]))
    with pytest.raises(InputError, match=r"im000\.dcm: its slice position has a coordinate of 1e"):
        io.read_volume(tmp_path)


def test_values_that_are_indices_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ELEMENTS, "ModalityLUTSequence", (0x0028, 0x3000, "SQ"))
    write_raw(tmp_path, STORED, lambda tags, _: tags.update(ModalityLUTSequence=b""))
    with pytest.raises(InputError, match=r"Modality LUT Sequence, \(0028,3000\)"):
        io.read_volume(tmp_path)


def test_several_series_of_which_one_has_no_readable_header(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], _: int) -> None:
        tags |= {"SeriesInstanceUID": "1.2.3.9", "BitsAllocated": 127}

    write_raw(tmp_path, STORED)
    write_raw(tmp_path, STORED, change, prefix="other")
    with pytest.raises(InputError, match=r"holds 2 DICOM series; (.|\n)*\(not readable\)"):
        io.read_volume(tmp_path)


def test_what_was_corrected_in_labels_is_among_their_notes(tmp_path: Path) -> None:
    def change(tags: dict[str, Any], k: int) -> None:
        tags["ImagePositionPatient"] = [0, 0, 1.25 * k + 0.05 * (k == 1)]

    write_raw(tmp_path, STORED, change)
    notes = io.read_labels(tmp_path).geometry.notes
    assert any("slice positions are uneven" in note for note in notes)
