"""Images, labels, masks and weights as the Python API accepts them, checked."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..choices import OrientationChoice
from ..errors import InputError
from ..types import Geometry, LabelMap, Volume
from . import validate
from .arrays import as_array, as_numpy, on_its_device
from .convert import build_labels, build_volume, labels_from_sitk, volume_from_sitk
from .images import read_labels, read_volume

if TYPE_CHECKING:
    import SimpleITK as sitk

#: An image in the Python API: a path, a SimpleITK image, a `Volume`, or voxels and their grid.
#: The voxels may be an array of any library, on the host or on a CUDA device, see `arrays`.
ImageLike: TypeAlias = "str | os.PathLike[str] | Volume | sitk.Image | tuple[Any, Geometry]"
LabelsLike: TypeAlias = "str | os.PathLike[str] | LabelMap | sitk.Image | tuple[Any, Geometry]"

#: Keeps sums of weights finite. With weights of 1000 the field already follows noise, because
#: the smoothness counts for little beside them.
_LARGEST_WEIGHT = 1e4
#: With uniform weights of 0.001 the smoothness already leaves little of the match (1.9 mm of 2.8 mm
#: remain on a phantom, 0.57 mm with 1); with 1e-38 products underflow and the field is NaN.
_SMALLEST_WEIGHT = float(np.float32(1e-6))


def as_volume(
    image: ImageLike, *, constant: bool = False, orientation: OrientationChoice = "auto"
) -> Volume:
    """Return a checked `Volume` from anything that the Python API accepts as an image.

    `constant` and `orientation` are as in `read_volume`.

    Raises:
        InputError: as `read_volume`.
    """
    if isinstance(image, str | os.PathLike):
        return read_volume(image, constant=constant, orientation=orientation)
    if isinstance(image, tuple) and len(image) == 2 and isinstance(image[1], Geometry):
        image = Volume(image[0], image[1], "", "array")
    if isinstance(image, Volume):
        array, name = as_array(image.array), image.name or "image"
        pixel_type = image.pixel_type or array.dtype.name
        with on_its_device(array):
            built = build_volume(array, image.geometry, pixel_type, name, constant=constant)
        return replace(built, modality_hint=image.modality_hint, notes=image.notes)
    if hasattr(image, "GetPixelID"):
        return volume_from_sitk(image, constant=constant)
    raise InputError(
        f"cannot use a {type(image).__name__} as an image; give a path, a SimpleITK image, a "
        "Volume, or (array, Geometry)"
    )


def as_labels(
    labels: LabelsLike, *, mask: bool = False, orientation: OrientationChoice = "auto"
) -> LabelMap:
    """Return a checked `LabelMap` from anything that the Python API accepts as labels.

    `mask` and `orientation` are as in `read_labels`.

    Raises:
        InputError: as `read_labels`.
    """
    if isinstance(labels, str | os.PathLike):
        return read_labels(labels, mask=mask, orientation=orientation)
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


def as_mask(
    mask: LabelsLike, grid: Geometry, role: str, *, orientation: OrientationChoice = "auto"
) -> NDArray[np.float32]:
    """Return a mask, (D, H, W) float32: 1 where the input is not 0, else 0.

    Args:
        mask: anything that `as_labels` accepts.
        grid: the grid of the image that the mask belongs to.
        role: ``fixed`` or ``moving``, for messages.
        orientation: as in `read_labels`.

    Raises:
        InputError: as `read_labels` for a mask; or the mask lies on another grid, or is empty.
    """
    labels = as_labels(mask, mask=True, orientation=orientation)
    validate.check_mask_grid(labels.geometry, grid, labels.name, role)
    inside: NDArray[np.bool_] = np.asarray(labels.array) != 0
    if not inside.any():
        raise InputError(
            f"{labels.name}: the {role} mask is empty: every voxel is 0; mark the voxels that "
            "count, or leave the mask out"
        )
    return inside.astype(np.float32)


def read_mask(path: str | os.PathLike[str], grid: Geometry, role: str) -> NDArray[np.float32]:
    """Read a mask from a file, see `as_mask`."""
    return as_mask(path, grid, role)


def as_weights(
    weights: ImageLike, grid: Geometry, *, orientation: OrientationChoice = "auto"
) -> NDArray[np.float32]:
    """Return the weight of each fixed voxel, (D, H, W), from 0 to 10000; 1 changes nothing.

    Weights below 1e-6 become 0. `orientation` is as in `read_volume`.

    Raises:
        InputError: the weights do not lie on the fixed grid, are out of range, or are all 0.
    """
    volume = as_volume(weights, constant=True, orientation=orientation)
    validate.check_mask_grid(volume.geometry, grid, volume.name, "fixed")
    array = np.asarray(as_numpy(volume.array), np.float32)
    lowest, highest = float(array.min()), float(array.max())
    if lowest < 0:
        raise InputError(
            f"{volume.name}: holds a weight of {lowest:g}; weights must be 0 or more everywhere"
        )
    if highest > _LARGEST_WEIGHT:
        raise InputError(
            f"{volume.name}: holds a weight of {highest:g}; the largest allowed is "
            f"{_LARGEST_WEIGHT:g}: divide all weights, so that 1 is an ordinary voxel"
        )
    if highest == 0:
        raise InputError(f"{volume.name}: every weight is 0, so nothing would be compared")
    if highest < _SMALLEST_WEIGHT:
        raise InputError(
            f"{volume.name}: the largest weight is {highest:g}, and weights below "
            f"{_SMALLEST_WEIGHT:g} count as 0, so nothing would be compared: multiply all weights, "
            "so that 1 is an ordinary voxel"
        )
    tiny = (array > 0) & (array < _SMALLEST_WEIGHT)
    return np.where(tiny, np.float32(0), array) if tiny.any() else array
