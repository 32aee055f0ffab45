"""The plane in which an image is cut into slices, and the grid of its upright slices.

Slices stand upright as a radiologist sees them, whatever the order and sign of the file's axes:
an encoder tells up from down, so both images must be shown to it in the same orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..geometry import file_axes, index_to_lps, transform_points
from ..types import Array, Geometry

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, Plane, Plane] = ("axial", "coronal", "sagittal")
#: The LPS axis (0, 1, 2) and sign along which slices, rows and columns are counted.
_UPRIGHT: dict[Plane, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}
#: From this ratio of slice spacing to finest spacing on, the thick slices decide the plane.
_THICK = 1.5


def choose_plane(geometries: Sequence[Geometry]) -> tuple[Plane, str]:
    """Choose the plane of the thickest slices, the same for both images, and say why."""
    thickness = {plane: max(_thickness(g, plane) for g in geometries) for plane in PLANES}
    plane = max(PLANES, key=lambda p: thickness[p])
    ratio = thickness[plane]
    if ratio < _THICK:
        return "axial", "axial, because no axis is much coarser than the others"
    return plane, f"{plane}, because slices are {ratio:.1f} times as thick as the finest spacing"


def _thickness(geometry: Geometry, plane: Plane) -> float:
    """Return the spacing between a plane's slices over the finest spacing."""
    axis = file_axes(geometry.direction)[_UPRIGHT[plane][0][0]]
    return geometry.spacing_mm[axis] / min(geometry.spacing_mm)


def in_plane_spacing_mm(geometry: Geometry, plane: Plane) -> float:
    """Return the geometric mean of the pixel spacings within a plane."""
    axes = file_axes(geometry.direction)
    rows, columns = (geometry.spacing_mm[axes[_UPRIGHT[plane][i][0]]] for i in (1, 2))
    return float(np.sqrt(rows * columns))


def upright(geometry: Geometry, plane: Plane) -> Geometry:
    """Return the grid of the same voxels with axes (slice, row, column), permuted and flipped.

    The direction may become left-handed, which is harmless because it is only used as a linear map.
    """
    axes, flips = _layout(geometry, plane)
    shape = [geometry.shape_xyz[axis] for axis in axes]
    spacing = [geometry.spacing_mm[axis] for axis in axes]
    first = np.zeros(3)
    for axis, flip in zip(axes, flips, strict=True):
        first[axis] = geometry.shape_xyz[axis] - 1 if flip else 0
    origin = transform_points(index_to_lps(geometry), first[None])[0]
    columns = [
        geometry.direction[:, axis] * (-1.0 if flip else 1.0)
        for axis, flip in zip(axes, flips, strict=True)
    ]
    return Geometry(
        (shape[0], shape[1], shape[2]),
        (spacing[2], spacing[1], spacing[0]),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        np.column_stack(columns[::-1]),
    )


def upright_view(array: Array, geometry: Geometry, plane: Plane) -> Array:
    """Return a view (slice, row, column[, C]) of the voxels (z, y, x[, C]) of `geometry`."""
    axes, flips = _layout(geometry, plane)
    view = array.transpose([*(2 - axis for axis in axes), *range(3, array.ndim)])
    return view[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def slice_axis(geometry: Geometry, plane: Plane) -> tuple[int, bool]:
    """Return the array axis (0 is z) across a plane, and whether its slices are counted down."""
    axes, flips = _layout(geometry, plane)
    return 2 - axes[0], flips[0]


def _layout(geometry: Geometry, plane: Plane) -> tuple[list[int], list[bool]]:
    """Return the file axes (0 = x) of slice, row and column, and which of them are flipped."""
    files = file_axes(geometry.direction)
    axes = [files[anatomical] for anatomical, _ in _UPRIGHT[plane]]
    flips = [
        sign * geometry.direction[anatomical, files[anatomical]] < 0
        for anatomical, sign in _UPRIGHT[plane]
    ]
    return axes, flips
