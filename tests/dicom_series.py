"""Small DICOM series, written by SimpleITK or element by element."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

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


#: Attributes of `write_raw`: group, element and value representation.
ELEMENTS = {
    "ImageType": (0x0008, 0x0008, "CS"),
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "SOPInstanceUID": (0x0008, 0x0018, "UI"),
    "Modality": (0x0008, 0x0060, "CS"),
    "SeriesDescription": (0x0008, 0x103E, "LO"),
    "SliceThickness": (0x0018, 0x0050, "DS"),
    "EchoTime": (0x0018, 0x0081, "DS"),
    "EchoNumbers": (0x0018, 0x0086, "IS"),
    "SpacingBetweenSlices": (0x0018, 0x0088, "DS"),
    "DiffusionBValue": (0x0018, 0x9087, "FD"),
    "StudyInstanceUID": (0x0020, 0x000D, "UI"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
    "AcquisitionNumber": (0x0020, 0x0012, "IS"),
    "InstanceNumber": (0x0020, 0x0013, "IS"),
    "ImagePositionPatient": (0x0020, 0x0032, "DS"),
    "ImageOrientationPatient": (0x0020, 0x0037, "DS"),
    "FrameOfReferenceUID": (0x0020, 0x0052, "UI"),
    "TemporalPositionIdentifier": (0x0020, 0x0100, "IS"),
    "SamplesPerPixel": (0x0028, 0x0002, "US"),
    "PhotometricInterpretation": (0x0028, 0x0004, "CS"),
    "NumberOfFrames": (0x0028, 0x0008, "IS"),
    "Rows": (0x0028, 0x0010, "US"),
    "Columns": (0x0028, 0x0011, "US"),
    "PixelSpacing": (0x0028, 0x0030, "DS"),
    "BitsAllocated": (0x0028, 0x0100, "US"),
    "BitsStored": (0x0028, 0x0101, "US"),
    "HighBit": (0x0028, 0x0102, "US"),
    "PixelRepresentation": (0x0028, 0x0103, "US"),
    "PixelPaddingValue": (0x0028, 0x0120, "US"),
    "PixelPaddingRangeLimit": (0x0028, 0x0121, "US"),
    "RescaleIntercept": (0x0028, 0x1052, "DS"),
    "RescaleSlope": (0x0028, 0x1053, "DS"),
    "PixelData": (0x7FE0, 0x0010, "OW"),
}
_NUMBERS = {"UL": "<I", "US": "<H", "SS": "<h", "FD": "<d"}
_STORAGE = "1.2.840.10008.5.1.4.1.1"
Change = Callable[[dict[str, Any], int], None]


def element(group: int, number: int, kind: str, value: Any) -> bytes:
    """Encode one element, explicit little endian."""
    if kind in _NUMBERS:
        raw = struct.pack(_NUMBERS[kind], value)
    else:
        texts = value if isinstance(value, list | tuple | np.ndarray) else [value]
        raw = value if isinstance(value, bytes) else "\\".join(map(str, texts)).encode("latin-1")
    raw += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(raw) % 2)
    long = kind in ("OB", "OW", "UN", "SQ")
    length = struct.pack("<HI", 0, len(raw)) if long else struct.pack("<H", len(raw))
    return struct.pack("<HH", group, number) + kind.encode() + length + raw


def file_header(sop_class: str) -> bytes:
    """Return what precedes the data set."""
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", sop_class)
    meta += element(2, 3, "UI", "1.2.3") + element(2, 16, "UI", "1.2.840.10008.1.2.1")
    return bytes(128) + b"DICM" + element(2, 0, "UL", len(meta)) + meta


def write_raw(
    folder: Path, stored: np.ndarray, change: Change | None = None, *, prefix: str = "im"
) -> None:
    """Write 16-bit pixels (D, H, W) as an MR series with slices 2.5 mm apart along z.

    Args:
        folder: is created if it is missing.
        stored: pixels as they are stored.
        change: is given the attributes of each slice and its number, and may change them; an
            attribute without a value is left out.
        prefix: the beginning of the file names.
    """
    folder.mkdir(exist_ok=True)
    for k, plane in enumerate(stored):
        tags: dict[str, Any] = {
            "SOPClassUID": f"{_STORAGE}.4",
            "SOPInstanceUID": f"{UID}.{k + 1}",
            "Modality": "MR",
            "StudyInstanceUID": UID,
            "SeriesInstanceUID": f"{UID}.1",
            "InstanceNumber": k + 1,
            "ImagePositionPatient": [10, -20, 100 + STEP_MM * k],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "PixelSpacing": [0.75, 0.5],
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": int(plane.dtype == np.int16),
            "PixelData": plane.astype("<i2" if plane.dtype == np.int16 else "<u2").tobytes(),
        }
        if change is not None:
            change(tags, k)
        found = [(*ELEMENTS[name], value) for name, value in tags.items() if value is not None]
        body = b"".join(element(*one) for one in sorted(found, key=lambda one: one[:2]))
        (folder / f"{prefix}{k:03d}.dcm").write_bytes(file_header(tags["SOPClassUID"]) + body)
