"""The part of the fixed image's grids that covers the moving image, and vice versa."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import RegistrationError
from ..geometry import (
    compose_affines,
    corners_lps_mm,
    invert_affine,
    lps_to_index,
    shifted_grid,
    transform_points,
)
from ..types import AffineTransform, Geometry
from .grids import WorkingGrids

#: Control voxels by which the refinement may exceed the search's reach.
_REFINEMENT = 2


@dataclass(frozen=True, eq=False)
class MovingGrids:
    """The grids of the moving features, in fixed space after the initial alignment.

    Attributes:
        working: working grid, cropped or extended to cover the moving image.
        control: control grid over the same box.
        offset_zyx: index of the first voxel of `control` on the fixed control grid.
    """

    working: Geometry
    control: Geometry
    offset_zyx: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Region:
    """The part of an image that can be compared with the other image.

    Attributes:
        grid: control voxels of the region, in the fixed image's space.
        affine: map from points of that space to points of the image.
    """

    grid: Geometry
    affine: AffineTransform


def compared_regions(
    grids: WorkingGrids, moving_grids: MovingGrids, initial: AffineTransform
) -> tuple[Region, Region]:
    """Return the regions of the fixed and of the moving image.

    The region of the moving image is its grid. The region of the fixed image is everything that can
    be compared with a voxel of that grid: within the search's reach, plus one cell because cells
    are compared whole, plus the margin of the refinement. `initial` maps fixed points to moving
    points.
    """
    shape = np.asarray(grids.control.shape_zyx)
    margin = grids.search_reach_zyx() + np.asarray(grids.search_factor_zyx) + _REFINEMENT
    begin = np.asarray(moving_grids.offset_zyx)
    first = np.clip(begin - margin, 0, shape - 1)
    last = np.clip(begin + np.asarray(moving_grids.control.shape_zyx) + margin, first + 1, shape)
    fixed = shifted_grid(grids.control, _tuple(first), _tuple(last - first))
    return Region(fixed, AffineTransform.identity()), Region(moving_grids.control, initial)


def plan_moving_grids(
    grids: WorkingGrids, moving: Geometry, initial: AffineTransform
) -> MovingGrids:
    """Cover the moving image's box as far as the search can reach beyond the fixed image.

    Raises:
        RegistrationError: the images do not overlap after the initial alignment.
    """
    to_control = compose_affines(lps_to_index(grids.control), invert_affine(initial))
    corners = transform_points(to_control, corners_lps_mm(moving))[:, ::-1]
    lower, upper = corners.min(axis=0) + 0.5, corners.max(axis=0) + 0.5
    shape = np.asarray(grids.control.shape_zyx)
    if np.any(upper <= 0) or np.any(lower >= shape):
        raise RegistrationError(
            "the images do not overlap after the initial alignment: fixed has "
            f"{grids.working.summary()}, moving {moving.summary()}, and their boxes lie apart; "
            "use --initial auto, centre or moments, or a transform file"
        )
    reach = grids.search_reach_zyx() + _REFINEMENT
    # Rounding errors must not add a layer of voxels.
    first = np.maximum(np.floor(lower + 1e-3).astype(int), -reach)
    last = np.minimum(np.ceil(upper - 1e-3).astype(int), shape + reach)
    offset = (int(first[0]), int(first[1]), int(first[2]))
    size = last - first
    pool = np.asarray(grids.pool_zyx)
    control = shifted_grid(grids.control, offset, _tuple(size))
    working = shifted_grid(grids.working, _tuple(first * pool), _tuple(size * pool))
    return MovingGrids(working, control, offset)


def _tuple(values: np.ndarray) -> tuple[int, int, int]:
    return (int(values[0]), int(values[1]), int(values[2]))
