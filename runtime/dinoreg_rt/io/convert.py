"""Checked conversion between SimpleITK images or arrays and the package's data types."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import DisplacementField, Geometry, LabelMap, Volume
from . import nifti, validate
from .arrays import as_numpy, float32_at

if TYPE_CHECKING:
    import SimpleITK as sitk


def volume_from_sitk(
    image: sitk.Image,
    name: str = "image",
    pixel_type: str = "",
    *,
    constant: bool = False,
    finite: bool = False,
) -> Volume:
    """Convert to a checked `Volume`.

    The voxels are read-only; those of a float32 image share its memory.

    Args:
        image: 3D, scalar.
        name: the name for messages and reports.
        pixel_type: NumPy name to remember; by default that of `image`.
        constant: as in `build_volume`.
        finite: the values are already known to be finite.
    """
    _check_kind(image, components=1, name=name)
    voxels = sitk_view(image)
    pixel_type = pixel_type or voxels.dtype.name
    if voxels.dtype == np.float32:
        # A view alone would die with the image. ITK's copy shares the voxels until one is changed.
        voxels = float32_at(voxels.ctypes.data, voxels.shape, owner=type(image)(image))
        if finite:
            validate.remember_finite(voxels)
    volume = build_volume(voxels, Geometry.from_sitk(image), pixel_type, name, constant=constant)
    validate.remember_finite(volume.array)
    return volume


def labels_from_sitk(image: sitk.Image, name: str = "labels", *, mask: bool = False) -> LabelMap:
    """Convert to a checked `LabelMap` with a copy of the voxels; `mask` as in `build_labels`."""
    _check_kind(image, components=1, name=name)
    view = sitk_view(image)
    return build_labels(view, Geometry.from_sitk(image), view.dtype.name, name, mask=mask)


def displacement_from_sitk(image: sitk.Image, name: str = "displacement") -> DisplacementField:
    """Convert to a checked `DisplacementField` with a copy of the vectors."""
    _check_kind(image, components=3, name=name)
    geometry = Geometry.from_sitk(image)
    validate.check_geometry(geometry, name)
    vectors = np.array(sitk_view(image), dtype=np.float32)
    validate.check_displacements(vectors, name)
    return DisplacementField(vectors, geometry)


def volume_to_sitk(volume: Volume) -> sitk.Image:
    """Convert to a float32 SimpleITK image with a copy of the voxels."""
    return array_to_sitk(np.asarray(as_numpy(volume.array), dtype=np.float32), volume.geometry)


def labels_to_sitk(labels: LabelMap) -> sitk.Image:
    """Convert to a SimpleITK image of the label map's pixel type."""
    array = nifti.cast_pixels(np.asarray(labels.array), np.dtype(labels.pixel_type))
    return array_to_sitk(array, labels.geometry)


def displacement_to_sitk(field: DisplacementField) -> sitk.Image:
    """Convert to a float32 SimpleITK vector image in mm, LPS."""
    vectors = np.asarray(as_numpy(field.vectors_mm), dtype=np.float32)
    return array_to_sitk(vectors, field.geometry)


def build_volume(
    array: Any, geometry: Geometry, pixel_type: str, name: str, *, constant: bool = False
) -> Volume:
    """Build a checked `Volume`; float32 voxels are shared, others are converted.

    `constant` allows an image in which all voxels are the same.
    """
    _check_array(array, geometry, name)
    with np.errstate(over="ignore"):  # beyond float32's range: becomes Inf, found next
        voxels = array.astype(np.float32, copy=False)
    check = validate.check_finite if constant else validate.check_values
    check(voxels, name)
    return Volume(voxels, geometry, pixel_type if pixel_type != "bool" else "uint8", name)


def build_labels(
    array: Any, geometry: Geometry, pixel_type: str, name: str, *, mask: bool = False
) -> LabelMap:
    """Build a checked `LabelMap`; whole numbers stored as floats are accepted.

    In a `mask` only zero and nonzero are told apart, so it may hold the values of an image.
    """
    _check_array(array, geometry, name)
    if array.dtype.kind == "f":
        validate.check_finite(array, name)
        fractions = int(np.count_nonzero(array != np.rint(array)))
        if fractions:
            raise InputError(
                f"{name}: {fractions} voxels are not whole numbers; labels and masks need whole "
                "numbers: threshold it, or resample it with nearest neighbours"
            )
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise InputError(f"{name}: holds labels beyond 32 bits; renumber them")
    if not mask:
        validate.check_labels(array.astype(np.int32, copy=False), name)
    if pixel_type.startswith(("float", "bool")):
        pixel_type = _smallest_integer(int(array.min()), int(array.max()))
    return LabelMap(array.astype(np.int32), geometry, pixel_type, name)


def array_to_sitk(array: NDArray[Any], geometry: Geometry) -> sitk.Image:
    """Make a SimpleITK image from (D, H, W) voxels or (D, H, W, 3) vectors."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    set_geometry(image, geometry)
    return image


def set_geometry(image: sitk.Image, geometry: Geometry) -> None:
    """Give a SimpleITK image spacing, origin and direction."""
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(tuple(float(v) for v in geometry.origin_mm))
    image.SetDirection(geometry.direction.ravel().tolist())


def _smallest_integer(low: int, high: int) -> str:
    for name in ("uint8", "int16"):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return name
    return "int32"


def _check_array(array: Any, geometry: Geometry, name: str) -> None:
    if array.dtype.kind == "c":
        validate.check_pixels(components=1, is_complex=True, wanted=1, name=name)
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name}: has pixels of type {array.dtype}; numbers are needed")
    validate.check_size(array.shape[::-1], name)
    if array.shape != geometry.shape_zyx:
        raise InputError(
            f"{name}: the array has shape {array.shape} (z, y, x) but its geometry says "
            f"{geometry.shape_zyx}"
        )
    validate.check_geometry(geometry, name)


def _check_kind(image: sitk.Image, components: int, name: str) -> None:
    validate.check_size(image.GetSize(), name)
    if image.GetDimension() != 3:
        raise InputError(f"{name}: is {image.GetDimension()}D; a 3D volume is needed")
    validate.check_pixels(
        components=image.GetNumberOfComponentsPerPixel(),
        is_complex="complex" in image.GetPixelIDTypeAsString(),
        wanted=components,
        name=name,
    )


def sitk_view(image: sitk.Image) -> NDArray[Any]:
    """Return the voxels of a SimpleITK image, (D, H, W), read-only and valid while it lives."""
    import SimpleITK as sitk

    view: NDArray[Any] = sitk.GetArrayViewFromImage(image)
    return view


class _Quiet:
    """The state of ITK's warning switch: one per process, while several threads read images."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.shown = True


_quiet = _Quiet()


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Silence ITK's warnings on stderr; what matters is checked and reported as an error."""
    import SimpleITK as sitk

    with _quiet.lock:
        if _quiet.users == 0:
            _quiet.shown = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.GlobalWarningDisplayOff()
        _quiet.users += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.users -= 1
            if _quiet.users == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_quiet.shown)
