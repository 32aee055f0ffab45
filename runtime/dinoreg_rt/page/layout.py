"""Which slices and pixels of a fixed image are shown, in each plane.

Slices stand upright as in `dinoreg_rt.encoder.planes`, are evenly spaced over the body, and have
square pixels of one size in all planes. Maps such as the Jacobian have fewer, larger pixels, each
of which shows one voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..encoder.planes import PLANES, Plane, slice_axis, upright, upright_view
from ..geometry import index_to_lps, reshaped_grid, shifted_grid, transform_points
from ..images.body import bounding_box, find_body, implausible
from ..types import Array, Geometry, Volume

#: Limits of intensity that are shown as black and white.
Window: TypeAlias = tuple[float, float]
#: A range of voxels along axes z, y, x.
Box: TypeAlias = tuple[slice, slice, slice]
Indices: TypeAlias = NDArray[np.intp]

#: Largest number of slices in a plane, and of pixels along an edge: of an image, of a map, and of
#: the lines of the displacement grid.
MOST_SLICES, MOST_PIXELS, MOST_MAP_PIXELS, MOST_LINES = 24, 224, 84, 20
#: Voxel size at which the body is looked for, and the margin around it.
_COARSE_MM, _MARGIN_MM = 5.0, 6.0
#: LPS axis across each plane.
_ACROSS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True, eq=False)
class PlaneLayout:
    """The slices of one plane.

    Attributes:
        plane: axial, coronal or sagittal.
        grid: positions of the pixels; axes slice, row, column.
        box: the part of the fixed image that is shown.
        slices: ascending indices of the slices' voxels along the array axis across the plane.
        across: that axis; 0 is z.
        fixed: grid of the fixed image.
    """

    plane: Plane
    grid: Geometry
    box: Box
    slices: Indices
    across: int
    fixed: Geometry

    @property
    def positions_mm(self) -> list[float]:
        """LPS coordinate of each slice along the plane's normal, at the slice's middle."""
        slices, rows, columns = self.grid.shape_zyx
        middle = np.array([[(columns - 1) / 2, (rows - 1) / 2, k] for k in range(slices)])
        points = transform_points(index_to_lps(self.grid), middle)
        return [float(v) for v in points[:, _ACROSS[self.plane]]]

    def voxels(self, most: int) -> tuple[Indices, Indices, Indices]:
        """Return the voxel indices along z, y and x of at most `most` pixels along each edge."""
        z, y, x = (
            self.slices if axis == self.across else _spread(part, count)
            for axis, (part, count) in enumerate(zip(self.box, self._pixels(most), strict=True))
        )
        return z, y, x

    def pixel_of(self, most: int) -> tuple[Indices, Indices, Indices]:
        """Return for each voxel along z, y and x the pixel that shows it; -1 for none."""
        tables = []
        for axis, (part, count) in enumerate(zip(self.box, self._pixels(most), strict=True)):
            table = np.full(self.fixed.shape_zyx[axis], -1)
            here = np.arange(part.start, part.stop)
            if axis == self.across:
                table[part] = np.abs(here[:, None] - self.slices).argmin(axis=1)
            else:
                table[part] = (here - part.start) * count // len(here)
            tables.append(table)
        return tables[0], tables[1], tables[2]

    def _pixels(self, most: int) -> list[int]:
        """Return the number of pixels along z, y and x."""
        counts = [part.stop - part.start for part in self.box]
        spacing = self.fixed.spacing_mm[::-1]
        edges = [n * mm for n, mm in zip(counts, spacing, strict=True)]
        pixel_mm = max(edges) / most
        return [max(1, min(n, round(e / pixel_mm))) for n, e in zip(counts, edges, strict=True)]

    def view(self, array: Array) -> Array:
        """Turn values at `voxels`, (z, y, x), into slices, rows and columns."""
        return upright_view(array, self.fixed, self.plane)


def _spread(part: slice, count: int) -> Indices:
    """Return the middle voxels of `count` equal parts of a range."""
    size = part.stop - part.start
    return np.asarray(part.start + ((np.arange(count) + 0.5) * size / count).astype(np.intp))


def plane_layouts(geometry: Geometry, box: Box) -> list[PlaneLayout]:
    """Lay out the slices of all planes inside `box`."""
    offset = (box[0].start, box[1].start, box[2].start)
    z, y, x = (part.stop - part.start for part in box)
    cropped = shifted_grid(geometry, offset, (z, y, x))
    edges = [n * mm for n, mm in zip((x, y, z), geometry.spacing_mm, strict=True)]
    pixel_mm = max(min(geometry.spacing_mm), max(edges) / MOST_PIXELS)
    return [_layout(geometry, cropped, box, plane, pixel_mm) for plane in PLANES]


def _layout(
    geometry: Geometry, cropped: Geometry, box: Box, plane: Plane, pixel_mm: float
) -> PlaneLayout:
    standing = upright(cropped, plane)
    depth = standing.shape_zyx[0]
    rows, columns = (
        max(1, round(n * mm / pixel_mm))
        for n, mm in zip(standing.shape_zyx[1:], standing.spacing_mm[1::-1], strict=True)
    )
    step = math.ceil(depth / MOST_SLICES)
    first = (depth - 1) % step // 2
    count = (depth - 1 - first) // step + 1
    every = reshaped_grid(standing, (depth, rows, columns))
    start = shifted_grid(every, (first, 0, 0), (count, rows, columns))
    spacing = (start.spacing_mm[0], start.spacing_mm[1], start.spacing_mm[2] * step)
    grid = Geometry(start.shape_zyx, spacing, start.origin_mm, start.direction)
    across, downwards = slice_axis(geometry, plane)
    part = box[across]
    slices = part.start + first + step * np.arange(count)
    if downwards:
        slices = part.stop + part.start - 1 - slices[::-1]
    return PlaneLayout(plane, grid, box, slices, across, geometry)


def content_box(volume: Volume, window: Window) -> Box:
    """Return the box of the body in voxels (z, y, x); the whole image without a clear body."""
    shape, spacing = volume.geometry.shape_zyx, volume.geometry.spacing_mm[::-1]
    step = [max(1, round(_COARSE_MM / mm)) for mm in spacing]
    coarse = np.asarray(
        volume.array[
            tuple(slice(min(s // 2, n - 1), None, s) for s, n in zip(step, shape, strict=True))
        ]
    )
    shown = np.clip((coarse - window[0]) / (window[1] - window[0]), 0, 1)
    seen = np.ones(shown.shape)
    body = find_body(shown, seen)
    if implausible(body, seen) is not None:
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    z, y, x = (
        slice(
            max(0, part.start * by - math.ceil(_MARGIN_MM / mm)),
            min(n, part.stop * by + math.ceil(_MARGIN_MM / mm)),
        )
        for part, by, n, mm in zip(bounding_box(body, 0), step, shape, spacing, strict=True)
    )
    return z, y, x
