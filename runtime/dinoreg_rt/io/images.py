"""Image files <-> `Volume`, `LabelMap` and `DisplacementField`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from ..types import DisplacementField, Geometry, LabelMap, Volume
from . import dicom, integrity, nifti, validate
from .arrays import as_array, as_numpy, on_its_device
from .convert import (
    array_to_sitk,
    build_labels,
    build_volume,
    displacement_from_sitk,
    labels_from_sitk,
    sitk_geometry,
    volume_from_sitk,
)
from .names import check_name
from .quiet import quiet_itk
from .staging import output_errors, staged_file

if TYPE_CHECKING:
    import SimpleITK as sitk

#: What the Python API takes for an image: a path, a SimpleITK image, or voxels and their grid.
#: Voxels are an array of any library, on the host or on a CUDA device, see `arrays`.
ImageLike: TypeAlias = "str | os.PathLike[str] | Volume | sitk.Image | tuple[Any, Geometry]"
LabelsLike: TypeAlias = "str | os.PathLike[str] | LabelMap | sitk.Image | tuple[Any, Geometry]"

#: Sums of weights must stay numbers. With weights of 1000 the field follows noise already: beside
#: them the smoothness counts for little.
_LARGEST_WEIGHT = 1e4
_READABLE = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


def read_volume(path: str | os.PathLike[str], *, constant: bool = False) -> Volume:
    """Read a 3D scalar image.

    Args:
        path: NIfTI, NRRD or MetaImage file; a folder with one DICOM series; or
            ``FOLDER?series=UID`` for one of several series.
        constant: whether all voxels may be the same, as weights may.

    Returns:
        float32 voxels in LPS geometry; `pixel_type` names the type in the file.

    Raises:
        InputError: missing, damaged, of an unknown format, not 3D, not scalar, not finite,
            constant (unless that is allowed), or with an impossible header.
    """
    image, pixel_type = _read(path, components=1)
    return volume_from_sitk(image, name=os.fspath(path), pixel_type=pixel_type, constant=constant)


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """Read only where the voxels of an image lie; scalar or vector, its values don't matter.

    Raises:
        InputError: as `read_volume`, but for what concerns the values.
    """
    image, _ = _read(path, components=0)
    geometry = sitk_geometry(image)
    validate.check_geometry(geometry, os.fspath(path))
    return geometry


def read_labels(path: str | os.PathLike[str], *, mask: bool = False) -> LabelMap:
    """Read a label map: whole numbers, 0 is background.

    Args:
        path: as for `read_volume`.
        mask: only 0 and not 0 count, so that the values may be an image's.

    Raises:
        InputError: as `read_volume`, values that are not whole numbers, or, unless it is a mask,
            that cannot be labels: negative ones, or more than 1000 different ones.
    """
    image, _ = _read(path, components=1)
    return labels_from_sitk(image, name=os.fspath(path), mask=mask)


def read_mask(path: str | os.PathLike[str], grid: Geometry, role: str) -> NDArray[np.float32]:
    """Read a mask: 1 where the file is not 0.

    Args:
        path: as for `read_volume`.
        grid: the grid of the image it belongs to.
        role: ``fixed`` or ``moving``, for messages.

    Returns:
        (D, H, W) float32 of 0 and 1.

    Raises:
        InputError: as `read_labels` of a mask, another grid, or nothing inside the mask.
    """
    return as_mask(path, grid, role)


def read_displacement(path: str | os.PathLike[str]) -> DisplacementField:
    """Read a vector image as a displacement in mm, LPS, as ITK, ANTs and 3D Slicer write it.

    Raises:
        InputError: as `read_volume`, or not three components.
    """
    image, _ = _read(path, components=3)
    return displacement_from_sitk(image, name=os.fspath(path))


def as_volume(image: ImageLike, *, constant: bool = False) -> Volume:
    """A checked `Volume` from a path, a SimpleITK image, a `Volume` or (array, geometry).

    Args:
        image: one of those.
        constant: as in `read_volume`.

    Raises:
        InputError: as `read_volume`.
    """
    if isinstance(image, str | os.PathLike):
        return read_volume(image, constant=constant)
    if isinstance(image, Volume):
        array, name = as_array(image.array), image.name or "image"
        with on_its_device(array):
            return build_volume(array, image.geometry, image.pixel_type, name, constant=constant)
    if isinstance(image, tuple) and len(image) == 2 and isinstance(image[1], Geometry):
        array = as_array(image[0])
        with on_its_device(array):
            return build_volume(array, image[1], array.dtype.name, "array", constant=constant)
    if hasattr(image, "GetPixelID"):
        return volume_from_sitk(image, constant=constant)
    raise InputError(
        f"cannot use a {type(image).__name__} as an image; give a path, a SimpleITK image, a "
        "Volume, or (array, Geometry)"
    )


def as_labels(labels: LabelsLike, *, mask: bool = False) -> LabelMap:
    """A checked `LabelMap` from a path, a SimpleITK image, a `LabelMap` or (array, geometry).

    Args:
        labels: one of those.
        mask: as in `read_labels`.

    Raises:
        InputError: as `read_labels`.
    """
    if isinstance(labels, str | os.PathLike):
        return read_labels(labels, mask=mask)
    if isinstance(labels, LabelMap):
        name = labels.name or "labels"
        return build_labels(labels.array, labels.geometry, labels.pixel_type, name, mask=mask)
    if isinstance(labels, tuple) and len(labels) == 2 and isinstance(labels[1], Geometry):
        array = as_numpy(as_array(labels[0]))
        return build_labels(array, labels[1], array.dtype.name, "array", mask=mask)
    if hasattr(labels, "GetPixelID"):
        return labels_from_sitk(labels, mask=mask)
    raise InputError(
        f"cannot use a {type(labels).__name__} as labels; give a path, a SimpleITK image, a "
        "LabelMap, or (array, Geometry)"
    )


def as_mask(mask: LabelsLike, grid: Geometry, role: str) -> NDArray[np.float32]:
    """As `read_mask`, for anything that `as_labels` takes."""
    labels = as_labels(mask, mask=True)
    validate.check_mask_grid(labels.geometry, grid, labels.name, role)
    inside: NDArray[np.bool_] = np.asarray(labels.array) != 0
    if not inside.any():
        raise InputError(f"{labels.name}: the {role} mask is empty: every voxel is 0")
    return inside.astype(np.float32)


def as_weights(weights: ImageLike, grid: Geometry) -> NDArray[np.float32]:
    """How much each voxel of the fixed image counts, (D, H, W), 0 to 10000; 1 changes nothing.

    Raises:
        InputError: not on the fixed grid, a value out of range, or nothing above 0.
    """
    volume = as_volume(weights, constant=True)
    validate.check_mask_grid(volume.geometry, grid, volume.name, "fixed")
    array = np.asarray(as_numpy(volume.array), np.float32)
    lowest, highest = float(array.min()), float(array.max())
    if lowest < 0:
        raise InputError(f"{volume.name}: a weight of {lowest:g}; wanted 0 or more everywhere")
    if highest > _LARGEST_WEIGHT:
        raise InputError(
            f"{volume.name}: a weight of {highest:g}; wanted at most {_LARGEST_WEIGHT:g}: divide "
            "them all, 1 is a voxel that counts as without weights"
        )
    if not array.any():
        raise InputError(f"{volume.name}: every weight is 0: nothing would be compared")
    return array


def write_volume(path: str | os.PathLike[str], volume: Volume) -> None:
    """Write ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha`` in the volume's pixel type.

    Integer pixel types are rounded and clipped. The file appears whole or not at all.

    Raises:
        OutputError: cannot be written, or a format that is not written.
    """
    _write(Path(path), as_numpy(volume.array), volume.geometry, volume.pixel_type)


def write_labels(path: str | os.PathLike[str], labels: LabelMap) -> None:
    """Write a label map in its pixel type; formats and errors as `write_volume`."""
    _write(Path(path), np.asarray(labels.array), labels.geometry, labels.pixel_type)


def write_displacement(path: str | os.PathLike[str], field: DisplacementField) -> None:
    """Write a float32 vector image in mm, LPS; formats and errors as `write_volume`."""
    _write(Path(path), as_numpy(field.vectors_mm), field.geometry, "float32")


def write_vectors(path: str | os.PathLike[str], array: Any, geometry: Geometry) -> None:
    """Write (D, H, W, K) as a float32 vector image; formats and errors as `write_volume`."""
    _write(Path(path), np.asarray(array, np.float32), geometry, "float32")


def image_suffix(path: str | os.PathLike[str]) -> str:
    """The lower-case suffix of an image file, ``.nii.gz`` being one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _read(path: str | os.PathLike[str], components: int) -> tuple[sitk.Image, str]:
    """The image and, where it differs from the image's own, the pixel type to remember.

    Args:
        path: as for `read_volume`.
        components: values per voxel that are wanted; 0: any, and what they are doesn't matter.
    """
    check_name(path)
    file, series = dicom.split_series(path)
    if not file.exists():
        raise InputError(f"{file}: no such file or folder")
    if file.is_dir() or series is not None:
        if components == 3:
            raise InputError(f"{file}: is a folder; a displacement field is one image file")
        return dicom.read_series(file, series)
    suffix = image_suffix(file)
    if suffix not in _READABLE:
        raise InputError(
            f"{file}: unknown image format '{suffix}'; {', '.join(_READABLE)} can be read, and a "
            "DICOM series by giving its folder"
        )
    try:
        if suffix == ".nii.gz":
            with nifti.gunzipped(file) as plain:
                integrity.check_nifti(plain, str(file), values=components > 0)
                return _load(plain, str(file)), ""
        if suffix == ".nii":
            integrity.check_nifti(file, str(file), values=components > 0)
        elif suffix in (".mha", ".mhd"):
            integrity.check_metaimage(file)
        return _load(file, str(file)), ""
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _load(file: Path, name: str) -> sitk.Image:
    import SimpleITK as sitk

    check_name(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
            size = reader.GetSize()
            validate.check_size(size, name)
            if len(size) > 3:  # a single time point
                reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
            return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("ITK ERROR: ")
        if "orthonormal" in reason:
            raise InputError(
                f"{name}: has a singular or sheared direction matrix; its axes must be "
                "perpendicular: correct the header, or resample it onto an orthogonal grid"
            ) from error
        raise InputError(
            f"{name}: cannot be read as an image, damaged or not what its name says ({reason})"
        ) from error


def _write(path: Path, array: NDArray[Any], geometry: Geometry, pixel_type: str) -> None:
    check_name(path, OutputError)
    suffix = image_suffix(path)
    if suffix not in _WRITABLE:
        raise OutputError(
            f"{path}: images are not written as '{suffix}'; use {', '.join(_WRITABLE)}"
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
