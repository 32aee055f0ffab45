"""The header of one DICOM slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..types import FloatArray
from . import validate
from .convert import quiet_itk

if TYPE_CHECKING:
    import SimpleITK as sitk

#: The attributes that are read, by their DICOM keywords.
_TAGS = {
    "ImageType": "0008|0008",
    "AcquisitionTime": "0008|0032",
    "Modality": "0008|0060",
    "FrameOfReferenceUID": "0020|0052",
    "SeriesDescription": "0008|103e",
    "SliceThickness": "0018|0050",
    "EchoTime": "0018|0081",
    "EchoNumbers": "0018|0086",
    "SpacingBetweenSlices": "0018|0088",
    "TriggerTime": "0018|1060",
    "DiffusionBValue": "0018|9087",
    "AcquisitionNumber": "0020|0012",
    "ImagePositionPatient": "0020|0032",
    "ImageOrientationPatient": "0020|0037",
    "SeriesInstanceUID": "0020|000e",
    "TemporalPositionIdentifier": "0020|0100",
    "PhotometricInterpretation": "0028|0004",
    "NumberOfFrames": "0028|0008",
    "Rows": "0028|0010",
    "Columns": "0028|0011",
    "PixelSpacing": "0028|0030",
    "BitsAllocated": "0028|0100",
    "BitsStored": "0028|0101",
    "PixelRepresentation": "0028|0103",
    "PixelPaddingValue": "0028|0120",
    "PixelPaddingRangeLimit": "0028|0121",
    "RescaleIntercept": "0028|1052",
    "RescaleSlope": "0028|1053",
}


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one slice.

    Attributes:
        file: its path.
        tags: the attributes in `_TAGS` that the file has, as text.
        position: LPS of the centre of its first pixel, (3,) in mm.
        orientation: direction cosines of its rows and of its columns, (2, 3), as stored.
        spacing_mm: distance of neighbouring columns and of neighbouring rows.
        pixel_type: NumPy name of the pixel type after rescaling.
    """

    file: str
    tags: dict[str, str]
    position: FloatArray
    orientation: FloatArray
    spacing_mm: tuple[float, float]
    pixel_type: str

    def number(self, name: str, default: float) -> float:
        """Return an attribute as a number; `default` if it is missing, empty or not a number."""
        try:
            return float(self.tags.get(name) or default)
        except ValueError:
            return default


def read_slices(files: Sequence[str]) -> list[Slice]:
    """Read the headers of slices.

    Raises:
        InputError: a file is a multi-frame or colour image, lacks position, orientation or pixel
            spacing, or lies beyond 1e6 mm.
    """
    reader = header_reader()
    with quiet_itk():
        return [_read_slice(reader, file) for file in files]


def header_reader() -> sitk.ImageFileReader:
    """Return a reader for `read_tags`."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    return reader


def read_tags(reader: sitk.ImageFileReader, file: str) -> dict[str, str]:
    """Return the attributes of a file."""
    reader.SetFileName(file)
    reader.ReadImageInformation()
    keys = set(reader.GetMetaDataKeys())
    return {name: _text(reader.GetMetaData(tag)) for name, tag in _TAGS.items() if tag in keys}


def _read_slice(reader: sitk.ImageFileReader, file: str) -> Slice:
    try:
        tags = read_tags(reader, file)
    except RuntimeError as error:
        raise InputError(f"{file}: its DICOM header cannot be read: {last_line(error)}") from error
    frames = tags.get("NumberOfFrames", "1")
    if frames not in ("", "1"):
        raise InputError(
            f"{file}: is a multi-frame (enhanced) DICOM file with {frames} frames, which is not "
            "supported: convert it to NIfTI, for instance with 'dcm2niix -o OUTPUT FOLDER'"
        )
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{file}: has colour (RGB) pixels; a greyscale series is needed")
    position = _numbers(tags, "ImagePositionPatient", 3)
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        raise InputError(
            f"{file}: has no readable slice position and orientation; scout images and secondary "
            "captures are not supported: convert the series to NIfTI or NRRD"
        )
    validate.check_positions(np.array(position), file, "slice position")
    spacing = _numbers(tags, "PixelSpacing", 2)
    if spacing is None or min(spacing) <= 0:
        raise InputError(
            f"{file}: its pixel spacing is '{tags.get('PixelSpacing', '')}'; two positive numbers "
            "in mm are needed: correct PixelSpacing (0028,0030)"
        )
    sides = (spacing[1], spacing[0])
    place = np.array(position), np.array(orientation).reshape(2, 3)
    return Slice(file, tags, *place, sides, _type_name(reader.GetPixelID()))


def _numbers(tags: dict[str, str], name: str, count: int) -> list[float] | None:
    """Return the numbers of an attribute; None if they are not `count` finite numbers."""
    try:
        values = [float(text) for text in tags.get(name, "").split("\\")]
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


@cache
def _type_name(pixel_id: int) -> str:
    import SimpleITK as sitk

    return str(sitk.GetArrayViewFromImage(sitk.Image([1, 1], pixel_id)).dtype.name)


def _text(value: str) -> str:
    """Return a value without padding; bytes that are not UTF-8 are taken as Latin-1."""
    value = value.strip(" \0")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def last_line(error: Exception) -> str:
    """Return what ITK says at the end of its message."""
    return str(error).strip().splitlines()[-1].strip()
