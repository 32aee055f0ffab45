"""Image files read and written as `Volume`, `LabelMap` and `DisplacementField`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..choices import OrientationChoice
from ..errors import InputError, OutputError
from ..types import DisplacementField, Geometry, LabelMap, Modality, Volume
from . import dicom, metaimage, nifti, nrrd, validate
from .arrays import as_numpy
from .convert import (
    array_to_sitk,
    displacement_from_sitk,
    labels_from_sitk,
    volume_from_sitk,
)
from .doubts import HeaderDoubts
from .itk_files import load, rescale
from .meta_header import check_meta_header
from .nifti_read import read_nifti
from .paths import check_input, check_name, output_errors
from .staging import staged_file

if TYPE_CHECKING:
    import SimpleITK as sitk

#: Suffixes of image files that can be read.
READABLE = (".nii", ".nii.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd")
_NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


class _Image(NamedTuple):
    """An image as it was read.

    Attributes:
        image: the SimpleITK image.
        pixel_type: the pixel type to remember if it is not the image's own; otherwise empty.
        finite: the values are already known to be finite.
        doubts: what the header leaves in doubt about the grid.
        modality: the modality that a DICOM header names.
        corrections: what was corrected, as `Volume.notes`.
    """

    image: sitk.Image
    pixel_type: str = ""
    finite: bool = False
    doubts: HeaderDoubts = HeaderDoubts()
    modality: Modality | None = None
    corrections: tuple[str, ...] = ()


def read_volume(
    path: str | os.PathLike[str],
    *,
    constant: bool = False,
    orientation: OrientationChoice = "auto",
) -> Volume:
    """Read a 3D scalar image.

    Args:
        path: NIfTI (also ``.hdr`` with ``.img``), NRRD or MetaImage file; a folder with one DICOM
            series; or ``FOLDER?series=UID`` for one of several series; ``&EchoTime=4.92`` after
            that chooses among the volumes mixed in one.
        constant: allow an image in which all voxels are the same, such as weights.
        orientation: the placement to take if a NIfTI header holds two that differ; ``auto`` takes
            the sform unless it is sheared.

    Returns:
        Read-only float32 voxels in LPS geometry; `pixel_type` names the type in the file, and
        `geometry.notes` says what its header leaves in doubt.

    Raises:
        InputError: the file is missing, damaged or of an unknown format, or the image is not 3D,
            not scalar, not finite, constant (unless allowed), or has an impossible header.
    """
    read, name = _read(path, 1, orientation), os.fspath(path)
    volume = volume_from_sitk(
        read.image, name, read.pixel_type, constant=constant, finite=read.finite
    )
    geometry = _noted(volume.geometry, read, name)
    return replace(volume, geometry=geometry, modality_hint=read.modality, notes=read.corrections)


def read_geometry(
    path: str | os.PathLike[str], *, orientation: OrientationChoice = "auto"
) -> Geometry:
    """Read the geometry of a scalar or vector image; `orientation` as for `read_volume`.

    Raises:
        InputError: as `read_volume`, except for the values.
    """
    read = _read(path, 0, orientation)
    geometry = Geometry.from_sitk(read.image)
    validate.check_geometry(geometry, os.fspath(path))
    return _noted(geometry, read, os.fspath(path))


def read_labels(
    path: str | os.PathLike[str], *, mask: bool = False, orientation: OrientationChoice = "auto"
) -> LabelMap:
    """Read a label map: whole numbers, of which 0 is background.

    Args:
        path: as for `read_volume`.
        mask: only zero and nonzero are told apart, so the file may hold the values of an image.
        orientation: as for `read_volume`.

    Raises:
        InputError: as `read_volume`; or values that are not whole numbers or, unless it is a mask,
            cannot be labels (negative, or more than 1000 different ones).
    """
    read = _read(path, 1, orientation)
    labels = labels_from_sitk(read.image, name=os.fspath(path), mask=mask)
    corrected = tuple(f"{labels.name}: {text}" for text in read.corrections)
    return replace(labels, geometry=_noted(labels.geometry, read, labels.name, corrected))


def read_displacement(
    path: str | os.PathLike[str], *, orientation: OrientationChoice = "auto"
) -> DisplacementField:
    """Read a vector image as a displacement in mm, LPS, as ITK, ANTs and 3D Slicer write it.

    `orientation` is as for `read_volume`.

    Raises:
        InputError: as `read_volume`, or the image does not have three components.
    """
    read = _read(path, 3, orientation)
    field = displacement_from_sitk(read.image, name=os.fspath(path))
    return replace(field, geometry=_noted(field.geometry, read, os.fspath(path)))


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` in the volume's pixel type.

    Values are rounded and clipped to an integer pixel type. The file appears whole or not at all.

    Raises:
        OutputError: the file cannot be written, or the format is not supported.
    """
    _write(Path(path), as_numpy(volume.array), volume.geometry, volume.pixel_type)


def write_labels(path: str | os.PathLike[str], labels: LabelMap) -> None:
    """Write a label map in its pixel type; formats and errors as for `write_volume`."""
    _write(Path(path), np.asarray(labels.array), labels.geometry, labels.pixel_type)


def write_displacement(path: str | os.PathLike[str], field: DisplacementField) -> None:
    """Write a float32 vector image in mm, LPS; formats and errors as for `write_volume`."""
    _write(Path(path), as_numpy(field.vectors_mm), field.geometry, "float32")


def write_vectors(path: str | os.PathLike[str], array: Any, geometry: Geometry) -> None:
    """Write (D, H, W, K) as a float32 vector image; formats and errors as for `write_volume`."""
    _write(Path(path), np.asarray(array, np.float32), geometry, "float32")


def image_suffix(path: str | os.PathLike[str]) -> str:
    """Return the lower-case suffix of an image file, of which ``.nii.gz`` is one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _read(path: str | os.PathLike[str], components: int, orientation: OrientationChoice) -> _Image:
    """Read an image file or a DICOM series.

    Args:
        path: as for `read_volume`.
        components: wanted number of values per voxel; 0 accepts any number and any values.
        orientation: as for `read_volume`.
    """
    check_input(path)
    file, series = dicom.split_series(path)
    if not file.exists():
        raise InputError(f"{file}: no such file or folder")
    if file.is_dir() or series is not None:
        if components == 3:
            raise InputError(f"{file}: is a folder; a displacement field is one image file")
        read = dicom.read_series(file, series)
        return _Image(read.image, read.pixel_type, modality=read.modality, corrections=read.notes)
    suffix = image_suffix(file)
    if suffix not in READABLE:
        raise InputError(
            f"{file}: unknown image format '{suffix}'; give {', '.join(READABLE)}, or the folder "
            "of a DICOM series"
        )
    try:
        if suffix in _NIFTI:
            image, finite, doubts = read_nifti(file, values=components > 0, orientation=orientation)
            return _Image(image, finite=finite, doubts=doubts)
        if suffix in (".nrrd", ".nhdr"):
            nrrd.check_header(file)
            image = load(file, str(file))
            return _rescaled(image, *nrrd.header_doubts(file, vectors=components == 3))
        header = metaimage.read_header(file)
        check_meta_header(header)
        metaimage.check_metaimage(header)
        image = load(file, str(file))
        return _rescaled(image, *metaimage.header_doubts(header, Geometry.from_sitk(image)))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _noted(geometry: Geometry, read: _Image, name: str, more: tuple[str, ...] = ()) -> Geometry:
    """Return the geometry with everything that is in doubt about it."""
    notes = (*read.doubts.notes, *validate.doubts_about_size(geometry, name), *more)
    return read.doubts._replace(notes=notes).of(geometry)


def _rescaled(image: sitk.Image, factor: float, doubts: HeaderDoubts) -> _Image:
    if factor != 1:
        rescale(image, factor)
    return _Image(image, doubts=doubts)


def _write(path: Path, array: NDArray[Any], geometry: Geometry, pixel_type: str) -> None:
    check_name(path, OutputError)
    suffix = image_suffix(path)
    if suffix not in _WRITABLE:
        raise OutputError(
            f"{path}: images cannot be written as '{suffix}'; use {', '.join(_WRITABLE)}"
        )
    with staged_file(path) as staged, output_errors(path):
        if suffix in (".nii", ".nii.gz"):
            nifti.write_nifti(staged, array, geometry, pixel_type)
        else:
            _write_with_itk(staged, nifti.cast_pixels(array, np.dtype(pixel_type)), geometry)


def _write_with_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    import SimpleITK as sitk

    try:
        sitk.WriteImage(array_to_sitk(array, geometry), str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error
