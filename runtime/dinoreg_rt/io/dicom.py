"""One DICOM series from a folder, its slices in order and evenly spaced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray

if TYPE_CHECKING:
    import SimpleITK as sitk

_SERIES = "?series="
_UNEVEN_MM = 0.05
_TAGS = {
    "position": "0020|0032",
    "orientation": "0020|0037",
    "description": "0008|103e",
}


class _Slice(NamedTuple):
    file: str
    position: FloatArray
    orientation: FloatArray


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """``FOLDER?series=UID`` -> folder and UID; any other path -> itself and None."""
    text = os.fspath(path)
    if _SERIES in text and not Path(text).exists():
        folder, _, uid = text.rpartition(_SERIES)
        return Path(folder), uid
    return Path(text), None


def read_series(folder: Path, uid: str | None = None) -> tuple[sitk.Image, str]:
    """Read the DICOM series of a folder.

    Rescale slope and intercept are applied, slice by slice.

    Args:
        folder: holds the files of the series, not searched recursively.
        uid: Series Instance UID; needed where the folder holds several.

    Returns:
        A float32 image, and the NumPy name of the pixel type after rescaling.

    Raises:
        InputError: no series, several series (listed), uneven slice positions.
    """
    import SimpleITK as sitk

    files = _files_of_series(folder, uid)
    slices = [_read_slice(file) for file in files]
    _check_positions(slices, str(folder))
    first = sitk.ReadImage(slices[0].file)
    if first.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(f"{folder}: has colour (RGB) pixels; a greyscale series is needed")
    pixel_type = sitk.GetArrayViewFromImage(first).dtype.name
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([s.file for s in slices])
    # Slopes may differ between slices (PET): integers of the first one's type would cut them.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        return reader.Execute(), pixel_type
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the series cannot be read: {str(error).strip().splitlines()[-1]}"
        ) from error


def _files_of_series(folder: Path, uid: str | None) -> list[str]:
    import SimpleITK as sitk

    found = list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))
    files = {u: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), u)) for u in found}
    if not found:
        raise InputError(
            f"{folder}: holds no DICOM series; give an image file, or the folder that holds the "
            "DICOM files themselves"
        )
    if uid is None and len(found) == 1:
        return files[found[0]]
    if uid in files:
        return files[uid]
    listing = "".join(f"\n  {u}  {_description(f[0])}  ({len(f)} files)" for u, f in files.items())
    problem = f"no series {uid}" if uid else f"{len(found)} DICOM series"
    raise InputError(
        f"{folder}: holds {problem}; choose one as '{folder}{_SERIES}UID'. There are:{listing}"
    )


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
            "DICOM and scout images are not read: convert the series to NIfTI or NRRD"
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
    steps = np.diff([s.position for s in slices], axis=0)
    normal = np.cross(*orientations[0])
    gaps = np.abs(steps @ normal)
    low, high = int(np.argmin(gaps)), int(np.argmax(gaps))
    if gaps[low] < 1e-3:
        raise InputError(
            f"{name}: slices {low + 1} and {low + 2} of {len(slices)} lie at one position; "
            "separate the time points or echoes of this series"
        )
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
