"""Boxes of cells: parts of a grid, and the parts that other grids and features reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..geometry import (
    compose_affines,
    corners_lps_mm,
    lps_to_index,
    shifted_grid,
    transform_points,
)
from ..types import AffineTransform, Geometry

#: A part of a grid of cells, z, y, x.
Box: TypeAlias = tuple[slice, slice, slice]


def boxed(cells: Geometry, box: Box) -> Geometry:
    """Return the part of a grid that lies in a box of its cells."""
    z, y, x = (b.stop - b.start for b in box)
    return shifted_grid(cells, (box[0].start, box[1].start, box[2].start), (z, y, x))


def is_empty(box: Box) -> bool:
    """Return whether a box holds no cell."""
    return any(part.stop <= part.start for part in box)


def common(one: Box, other: Box) -> Box:
    """Return the cells that lie in both boxes; the box may be empty."""
    z, y, x = (
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return (z, y, x)


def moved_box(box: Box, origin: Sequence[int]) -> Box:
    """Return the box counted from another cell, z, y, x."""
    z, y, x = (
        slice(part.start - first, part.stop - first)
        for part, first in zip(box, origin, strict=True)
    )
    return (z, y, x)


def wider(box: Box, margin: int, cells: Geometry) -> Box:
    """Return a box with a margin, as far as the grid has cells."""
    z, y, x = (
        slice(max(0, part.start - margin), min(n, part.stop + margin))
        for part, n in zip(box, cells.shape_zyx, strict=True)
    )
    return (z, y, x)


def coarser(box: Box, factor: Sequence[int]) -> Box:
    """Return the box that covers `box` in a grid coarser by a factor, z, y, x."""
    z, y, x = (
        slice(part.start // n, -(-part.stop // n)) for part, n in zip(box, factor, strict=True)
    )
    return (z, y, x)


def reached(cells: Geometry, other: Geometry, affine: AffineTransform, margin: int) -> Box:
    """Return the cells within a margin of the box of another grid; the box may be empty.

    Args:
        cells: grid.
        other: grid of another image.
        affine: map from points of the other image to points of `cells`.
        margin: in cells.
    """
    corners = transform_points(compose_affines(lps_to_index(cells), affine), corners_lps_mm(other))
    lower = np.floor(corners[:, ::-1].min(axis=0)).astype(int) - margin
    upper = np.ceil(corners[:, ::-1].max(axis=0)).astype(int) + margin + 1
    z, y, x = (
        slice(max(0, int(a)), min(n, int(b)))
        for a, b, n in zip(lower, upper, cells.shape_zyx, strict=True)
    )
    return (z, y, x)
