"""The plane in which an image is cut, and the grid of its resized slices.

Slices stand upright as a radiologist sees them, whatever the order and sign of the file's axes:
an encoder knows up from down, and both images must be shown to it the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Literal

import numpy as np

from ..geometry import index_to_lps, transform_points
from ..types import Array, Geometry

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, Plane, Plane] = ("axial", "coronal", "sagittal")
#: LPS axes (0, 1, 2) and signs along which slices, rows and columns grow.
_UPRIGHT: dict[Plane, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}
#: Spacing along the slices over the finest spacing from which on the stack decides the plane.
_THICK = 1.5


def choose_plane(geometries: Sequence[Geometry]) -> tuple[Plane, str]:
    """The plane across which the images are coarsest, the same for both, and why.

    Two images whose coarse axes differ are cut where the one with the thicker slices wants it.
    """
    thickness = {plane: max(_thickness(g, plane) for g in geometries) for plane in PLANES}
    plane = max(PLANES, key=lambda p: thickness[p])
    if thickness[plane] < _THICK:
        return "axial", "axial, because no axis is much coarser than the others"
    return plane, f"{plane}, because slices are {thickness[plane]:.1f} times thicker than fine"


def _thickness(geometry: Geometry, plane: Plane) -> float:
    axis = _file_axes(geometry)[_UPRIGHT[plane][0][0]]
    return geometry.spacing_mm[axis] / min(geometry.spacing_mm)


def in_plane_spacing_mm(geometry: Geometry, plane: Plane) -> float:
    """Geometric mean of the pixel's sides in a plane."""
    axes = _file_axes(geometry)
    rows, columns = (geometry.spacing_mm[axes[_UPRIGHT[plane][i][0]]] for i in (1, 2))
    return float(np.sqrt(rows * columns))


def upright(geometry: Geometry, plane: Plane) -> Geometry:
    """The same voxels with axes (slice, row, column) of a plane: a permutation with flips.

    The direction may become left-handed, which is no harm: it is only ever a linear map.
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
    """The voxels of `geometry`, (z, y, x) or (z, y, x, C), as a view (slice, row, column[, C])."""
    axes, flips = _layout(geometry, plane)
    view = array.transpose([*(2 - axis for axis in axes), *range(3, array.ndim)])
    return view[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _layout(geometry: Geometry, plane: Plane) -> tuple[list[int], list[bool]]:
    """File axes (0 = x) of slice, row and column, and which of them run the wrong way."""
    files = _file_axes(geometry)
    axes = [files[anatomical] for anatomical, _ in _UPRIGHT[plane]]
    flips = [
        sign * geometry.direction[anatomical, files[anatomical]] < 0
        for anatomical, sign in _UPRIGHT[plane]
    ]
    return axes, flips


def _file_axes(geometry: Geometry) -> tuple[int, int, int]:
    """For L, P and S the file's index axis that runs along it: the best of the six assignments."""
    along = np.abs(geometry.direction)
    x, y, z = max(
        permutations((0, 1, 2)), key=lambda axes: sum(along[a, f] for a, f in enumerate(axes))
    )
    return x, y, z
