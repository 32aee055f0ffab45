"""One DICOM series from a folder, its slices in order and evenly spaced."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray
from .convert import quiet_itk
from .paths import check_name

if TYPE_CHECKING:
    import SimpleITK as sitk

_SERIES = "?series="
_UNEVEN_MM = 0.05
#: SOP classes of slices and volumes. Reports, contours, treatment plans and the like are not images
#: and are ignored, as GDCM does.
_IMAGE_CLASS = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1|2|3|4|6|7|12|13|14|20|77|128|130)\b"
)
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
#: Name of the tag that `read_series` leaves in the image.
MODALITY_TAG = "0008|0060"
_TAGS = {
    "modality": MODALITY_TAG,
    "position": "0020|0032",
    "orientation": "0020|0037",
    "description": "0008|103e",
}


class _Slice(NamedTuple):
    file: str
    position: FloatArray
    orientation: FloatArray


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Split ``FOLDER?series=UID`` into folder and UID; any other path has the UID None."""
    text = os.fspath(path)
    if _SERIES in text and not Path(text).exists():
        folder, _, uid = text.rpartition(_SERIES)
        return Path(folder), uid
    return Path(text), None


def series_files(folder: Path, uid: str | None = None) -> list[str]:
    """List the files of a series in the order of its slices; arguments as in `read_series`.

    Raises:
        InputError: the folder holds no series, or several (which are listed), or DICOM files that
            cannot be read or whose names are not valid text.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    with quiet_itk():
        found = list(reader.GetGDCMSeriesIDs(str(folder)))
        files = {u: list(reader.GetGDCMSeriesFileNames(str(folder), u)) for u in found}
    for file in (name for names in files.values() for name in names):
        check_name(file)
    _check_unread(folder, {Path(file).name for names in files.values() for file in names})
    if not found:
        raise InputError(
            f"{folder}: holds no DICOM series; give an image file, or the folder that directly "
            "contains the DICOM files"
        )
    if uid is None and len(found) == 1:
        return files[found[0]]
    if uid in files:
        return files[uid]
    listing = "".join(f"\n  {u}  {_description(f[0])}  ({len(f)} files)" for u, f in files.items())
    problem = f"no series {uid}" if uid else f"{len(found)} DICOM series"
    raise InputError(
        f"{folder}: holds {problem}; choose one as '{folder}{_SERIES}UID' from these:{listing}"
    )


def input_files(path: str | os.PathLike[str]) -> list[Path]:
    """List the files that a path as of `split_series` stands for, in name order.

    Raises:
        InputError: the folder does not hold the series.
    """
    folder, uid = split_series(path)
    if uid is not None:
        return sorted(Path(file) for file in series_files(folder, uid))
    if folder.is_dir():
        return sorted(p for p in folder.iterdir() if p.is_file())
    return [folder]


def read_series(folder: Path, uid: str | None = None) -> tuple[sitk.Image, str]:
    """Read the DICOM series of a folder, with each slice's rescale slope and intercept applied.

    Args:
        folder: the folder of the files; it is not searched recursively.
        uid: Series Instance UID, required if the folder holds several series.

    Returns:
        A float32 image, and the NumPy name of the pixel type after rescaling.

    Raises:
        InputError: as `series_files`, or the slices are not evenly spaced.
    """
    import SimpleITK as sitk

    files = series_files(folder, uid)
    with quiet_itk():
        slices = [_read_slice(file) for file in files]
        _check_positions(slices, str(folder))
        first = sitk.ReadImage(slices[0].file)
    if first.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: has colour (RGB) pixels; a greyscale series is needed")
    pixel_type = sitk.GetArrayViewFromImage(first).dtype.name
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([s.file for s in slices])
    # Slopes may differ between slices (PET); integers of the first slice's type would clip them.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the series cannot be read: {str(error).strip().splitlines()[-1]}"
        ) from error
    image.SetMetaData(MODALITY_TAG, _read_tags(slices[0].file).get("modality", ""))
    return image, pixel_type


def _check_unread(folder: Path, read: set[str]) -> None:
    """Require that no slice is damaged: GDCM silently leaves damaged files out of a series.

    Raises:
        InputError: some are; the message says how many, and names the first.
    """
    suffixes = {Path(name).suffix.lower() for name in read} - {""}
    others = sorted(p for p in folder.iterdir() if p.name not in read and p.is_file())
    damaged = [file for file in others if _is_damaged(file, suffixes)]
    if damaged:
        raise InputError(
            f"{folder}: {len(damaged)} DICOM file{'s' * (len(damaged) > 1)} cannot be read "
            f"(first: {damaged[0].name}), damaged? copy them again, or move them out of the folder"
        )


def _is_damaged(file: Path, suffixes: set[str]) -> bool:
    """Return whether a file that GDCM does not read is an image or has one of the suffixes."""
    if file.name.startswith("."):  # metadata of other operating systems
        return False
    with file.open("rb") as stream:
        raw = stream.read(1024)
    if raw[128:132] != b"DICM":
        return file.suffix.lower() in suffixes
    sop_class = _sop_class(raw)
    if sop_class is None:  # the file ends within its header
        return True
    return sop_class != _SPECTROSCOPY and _IMAGE_CLASS.match(sop_class) is not None


def _sop_class(raw: bytes) -> str | None:
    """Return the media storage SOP class from the beginning of a file; None if it is missing."""
    at = 132
    while len(raw) >= at + 12:
        group, element, vr, short = struct.unpack_from("<HH2sH", raw, at)
        is_long = vr in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        length = struct.unpack_from("<I", raw, at + 8)[0] if is_long else short
        at += 12 if is_long else 8
        if group != 2:
            return None
        if element == 2:
            return raw[at : at + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += length
    return None


def _description(file: str) -> str:
    text = _read_tags(file).get("description", "").strip()
    return f"'{text}'" if text else "(no description)"


def _read_tags(file: str) -> dict[str, str]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.SetImageIO("GDCMImageIO")
    reader.ReadImageInformation()
    return {name: reader.GetMetaData(t) for name, t in _TAGS.items() if reader.HasMetaDataKey(t)}


def _read_slice(file: str) -> _Slice:
    try:
        tags = _read_tags(file)
        position = np.array(tags["position"].split("\\"), dtype=np.float64).reshape(3)
        orientation = np.array(tags["orientation"].split("\\"), dtype=np.float64).reshape(2, 3)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{file}: has no readable slice position and orientation; multi-frame (enhanced) "
            "DICOM and scout images are not supported: convert the series to NIfTI or NRRD"
        ) from error
    return _Slice(file, position, orientation)


def _check_positions(slices: list[_Slice], name: str) -> None:
    """Require parallel slices on a straight line along their normal, at equal distances."""
    if len(slices) < 2:
        raise InputError(
            f"{name}: the series has one slice (an axis of one voxel); a 3D volume is needed"
        )
    orientations = np.array([s.orientation for s in slices])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise InputError(
            f"{name}: the slices of the series are not parallel (a scout image among them?); "
            "separate them"
        )
    normal = np.cross(*orientations[0])
    along = np.array([s.position @ normal for s in slices])
    # Repeated positions come in any order, in which gaps between neighbours mean nothing.
    places = 1 + int(np.count_nonzero(np.diff(np.sort(along)) > 1e-3))
    if places < len(slices):
        raise InputError(
            f"{name}: the {len(slices)} slices of the series lie at only {places} position(s); "
            "separate its time points or echoes, or remove the copies"
        )
    steps = np.diff([s.position for s in slices], axis=0)
    gaps = np.abs(steps @ normal)
    low, high = int(np.argmin(gaps)), int(np.argmax(gaps))
    if gaps[high] - gaps[low] > _UNEVEN_MM:
        raise InputError(
            f"{name}: slice spacing is not uniform: {gaps[low]:.3f} mm between slices {low + 1} "
            f"and {low + 2}, {gaps[high]:.3f} mm between {high + 1} and {high + 2} of "
            f"{len(slices)}; is a slice missing? resample the series onto an even grid"
        )
    sideways = float(np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1).max())
    if sideways > _UNEVEN_MM:
        raise InputError(
            f"{name}: the slices are shifted sideways by {sideways:.3f} mm from one to the next "
            "(gantry tilt): resample the series onto an orthogonal grid"
        )
