"""The part of the fixed image's lattice on which the moving image is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import RegistrationError
from .geometry import (
    compose_affines,
    corners_lps_mm,
    describe,
    invert_affine,
    lps_to_index,
    shifted_grid,
    transform_points,
)
from .preprocess import WorkingGrids
from .types import AffineTransform, Geometry


@dataclass(frozen=True, eq=False)
class MovingLattice:
    """Where the moving features stand, in fixed space after the initial alignment.

    Attributes:
        working: working lattice, cut and extended to where the moving image is.
        control: the same for the control lattice.
        offset_zyx: index of its first voxel on the fixed control grid.
    """

    working: Geometry
    control: Geometry
    offset_zyx: tuple[int, int, int]


def plan_moving_lattice(
    grids: WorkingGrids, moving: Geometry, initial: AffineTransform
) -> MovingLattice:
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
            f"{describe(grids.working)}, moving {describe(moving)}, and their boxes lie apart; "
            "use --initial auto, centre or moments, or a transform file"
        )
    reach = grids.search_reach_zyx() + 2
    # A sliver of rounding must not add a layer of voxels.
    first = np.maximum(np.floor(lower + 1e-3).astype(int), -reach)
    last = np.minimum(np.ceil(upper - 1e-3).astype(int), shape + reach)
    offset = (int(first[0]), int(first[1]), int(first[2]))
    cells = last - first
    pool = np.asarray(grids.pool_zyx)
    control = shifted_grid(grids.control, offset, _tuple(cells))
    working = shifted_grid(grids.working, _tuple(first * pool), _tuple(cells * pool))
    return MovingLattice(working, control, offset)


def _tuple(values: np.ndarray) -> tuple[int, int, int]:
    return (int(values[0]), int(values[1]), int(values[2]))
