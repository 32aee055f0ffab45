"""Requirements on images, checked before anything else uses them; each refusal says what to do."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import describe_position, same_grid
from ..types import Geometry

_SPACING_RANGE_MM = (1e-3, 1e3)
#: Positions and displacements beyond 1 km are errors; far larger ones overflow later.
_FARTHEST_MM = 1e6
#: Lengths in metres that are taken as mm give bodies of 0.1 to 2 mm.
_FIELD_OF_VIEW_MM = (2.0, 5e3)
_DIRECTION_TOLERANCE = 1e-3
#: Parcellations of a whole brain have a few hundred labels with values up to some ten thousand.
_MOST_LABELS = 1000
#: Read-only arrays whose values are known to be finite, by their `id`.
_FINITE: WeakValueDictionary[int, NDArray[Any]] = WeakValueDictionary()


def check_size(size_xyz: tuple[int, ...], name: str) -> None:
    """Require three axes of at least two voxels; further axes of length 1 are accepted.

    Raises:
        InputError: a 2D image, several time points, or an axis of one voxel.
    """
    shape = " x ".join(str(n) for n in size_xyz)
    if len(size_xyz) < 3:
        raise InputError(f"{name}: is {len(size_xyz)}D ({shape}); a 3D volume is needed")
    if any(n > 1 for n in size_xyz[3:]):
        raise InputError(
            f"{name}: is {len(size_xyz)}D ({shape}); a 3D volume is needed: extract one time "
            "point or channel into a file of its own"
        )
    if min(size_xyz[:3]) < 2:
        raise InputError(
            f"{name}: has an axis of one voxel ({shape}); a 3D volume with at least 2 voxels "
            "along each axis is needed"
        )


def check_pixels(*, components: int, is_complex: bool, wanted: int, name: str) -> None:
    """Require real pixels with `wanted` components: 1 for an image, 3 for a displacement.

    Raises:
        InputError: complex pixels, or another number of components.
    """
    if is_complex:
        raise InputError(
            f"{name}: has complex pixels; real ones are needed: save the magnitude image"
        )
    if components == wanted:
        return
    if wanted == 1:
        raise InputError(
            f"{name}: has {components} values per voxel (RGB or vector); one is needed: save a "
            "single channel"
        )
    raise InputError(
        f"{name}: has {components} value(s) per voxel; a displacement field has {wanted} "
        "(x, y, z in mm, LPS)"
    )


def check_geometry(geometry: Geometry, name: str) -> None:
    """Require a plausible spacing and orthonormal axes.

    Raises:
        InputError: a spacing outside 0.001 to 1000 mm, a singular or sheared direction, or an
            origin that is not finite or beyond 1e6 mm.
    """
    low, high = _SPACING_RANGE_MM
    if not all(low <= s <= high for s in geometry.spacing_mm):
        spacing = " x ".join(f"{s:.4g}" for s in geometry.spacing_mm)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; each must lie between {low:g} and "
            f"{high:g} mm: correct the header"
        )
    direction = geometry.direction
    if not np.isfinite(direction).all() or not np.isfinite(geometry.origin_mm).all():
        raise InputError(f"{name}: origin or direction holds NaN or Inf: correct the header")
    check_positions(np.asarray(geometry.origin_mm), name, "origin")
    determinant = float(np.linalg.det(direction))
    if abs(determinant) < 0.1:
        raise InputError(
            f"{name}: has a singular direction matrix (determinant {determinant:.3g}); its axes "
            "must be perpendicular: correct the header"
        )
    deviation = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if deviation > _DIRECTION_TOLERANCE:
        raise InputError(
            f"{name}: its axes are not perpendicular unit vectors (off by {deviation:.2g}, "
            f"allowed {_DIRECTION_TOLERANCE:g}): resample it onto an orthogonal grid"
        )


def doubts_about_size(geometry: Geometry, name: str) -> tuple[str, ...]:
    """Return a warning if the field of view is far smaller or larger than any patient's."""
    size_mm = [n * s for n, s in zip(geometry.shape_zyx[::-1], geometry.spacing_mm, strict=True)]
    low, high = _FIELD_OF_VIEW_MM
    if low <= max(size_mm) <= high:
        return ()
    text = " x ".join(f"{length:.3g}" for length in size_mm)
    return (f"{name}: its field of view is {text} mm; are the lengths in its header in mm?",)


def check_positions(positions_mm: NDArray[np.floating], name: str, what: str) -> None:
    """Require that no coordinate is beyond 1e6 mm; `what` names them in the message.

    Raises:
        InputError: one is.
    """
    low, high = (float(end) for end in (positions_mm.min(), positions_mm.max()))
    largest = low if -low > high else high
    if not abs(largest) <= _FARTHEST_MM:
        raise InputError(
            f"{name}: its {what} has a coordinate of {largest:.4g} mm; each must lie within "
            f"{_FARTHEST_MM:g} mm of 0: correct it"
        )


def check_values(array: NDArray[Any], name: str) -> None:
    """Require finite values that are not all the same.

    Raises:
        InputError: NaN or Inf (with their number), or a constant image.
    """
    if _is_known(array):
        low = float(array[0, 0, 0])
        # The first plane that varies ends the search.
        constant = all(float(plane.min()) == low == float(plane.max()) for plane in array)
    else:
        low, high = _finite_extremes(array, name)
        constant = low == high
    if constant:
        raise InputError(
            f"{name}: every voxel is {low:g}: there is nothing to align in a constant image"
        )


def check_finite(array: NDArray[Any], name: str) -> None:
    """Require that no value is NaN or Inf; arrays given to `remember_finite` are not examined.

    Raises:
        InputError: with the number of such values.
    """
    if not _is_known(array):
        _finite_extremes(array, name)


def check_displacements(vectors_mm: NDArray[Any], name: str) -> None:
    """Require displacements (D, H, W, 3) that are finite and at most 1e6 mm along each axis.

    Raises:
        InputError: NaN or Inf (with their number), or a larger one.
    """
    check_positions(np.array(_finite_extremes(vectors_mm, name)), name, "displacement field")


def remember_finite(array: NDArray[Any]) -> None:
    """Make an array of finite values read-only, so that they need not be examined again."""
    array.flags.writeable = False
    _FINITE[id(array)] = array


def _is_known(array: NDArray[Any]) -> bool:
    return _FINITE.get(id(array)) is array and not array.flags.writeable


def _finite_extremes(array: NDArray[Any], name: str) -> tuple[float, float]:
    # The extremes reveal any NaN or Inf, without a second array as large as the image.
    with np.errstate(invalid="ignore"):
        low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        bad = sum(int(np.count_nonzero(~np.isfinite(part))) for part in array)
        raise InputError(not_finite(name, bad))
    return low, high


def not_finite(name: str, count: int) -> str:
    """Return the error message for `count` values that are not finite."""
    return (
        f"{name}: holds {count} NaN or Inf value(s) (as float32): replace them, for instance with "
        "the background value, and exclude them with a mask if they matter"
    )


def check_labels(array: NDArray[Any], name: str) -> None:
    """Require that whole numbers (D, H, W) can be labels: none negative, at most 1000 different.

    Raises:
        InputError: they look like the values of an image.
    """
    low, high = int(array.min()), int(array.max())
    wanted = (
        f"a label map holds whole numbers from 0 (background) up, at most {_MOST_LABELS} different "
        "ones: is this the image instead of its labels?"
    )
    if low < 0:
        raise InputError(f"{name}: holds negative values (down to {low}); {wanted}")
    if high < _MOST_LABELS:
        return
    found: NDArray[Any] = np.zeros(0, array.dtype)
    for plane in array:
        found = np.union1d(found, plane)
        if found.size > _MOST_LABELS:
            raise InputError(
                f"{name}: holds more than {_MOST_LABELS} different values, from {low} to {high}; "
                f"{wanted}"
            )


def check_mask_grid(mask: Geometry, grid: Geometry, name: str, role: str) -> None:
    """Require that a mask lies on the grid of its image.

    Raises:
        InputError: they differ; the message shows both grids.
    """
    if same_grid(mask, grid):
        return
    origins = [describe_position(each.origin_mm) for each in (mask, grid)]
    raise InputError(
        f"{name}: the {role} mask must lie on the {role} image's grid; the mask has "
        f"{mask.summary()}, origin {origins[0]}, the image {grid.summary()}, origin {origins[1]}: "
        "resample the mask (nearest neighbours)"
    )
