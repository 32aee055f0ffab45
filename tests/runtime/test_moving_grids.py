"""The part of the fixed grids that covers the moving image."""

from __future__ import annotations

import numpy as np
import pytest
from decisions import decided
from phantoms import make_grid

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.errors import RegistrationError
from dinoreg_rt.geometry import corners_lps_mm, lps_to_index, transform_points
from dinoreg_rt.images.grids import WorkingGrids
from dinoreg_rt.images.moving_grids import MovingGrids, compared_regions, plan_moving_grids
from dinoreg_rt.types import AffineTransform, Geometry

FIXED = make_grid((40, 48, 56), (2.0, 2.0, 2.0), "oblique", (10.0, -20.0, 30.0))
HERE = AffineTransform.identity()


def plan(
    moving: Geometry, initial: AffineTransform = HERE, search_levels: int = 1
) -> tuple[WorkingGrids, MovingGrids]:
    config = RegistrationConfig(
        control_spacing_mm=4.0,
        search_spacing_mm=8.0,
        search_radius_mm=24.0,
        search_levels=search_levels,
    )
    grids, _ = decided(FIXED, config)
    return grids, plan_moving_grids(grids, moving, initial)


def test_same_grid_is_the_fixed_grid() -> None:
    grids, moving_grids = plan(FIXED)
    assert moving_grids.offset_zyx == (0, 0, 0)
    assert moving_grids.control.shape_zyx == grids.control.shape_zyx
    np.testing.assert_allclose(corners_lps_mm(moving_grids.control), corners_lps_mm(grids.control))


@pytest.mark.parametrize("direction", ["LPS", "RAS", "oblique"])
def test_both_images_share_one_grid(direction: str) -> None:
    """The moving grid consists of whole fixed control voxels, and of whole working voxels."""
    grids, moving_grids = plan(
        make_grid((30, 30, 90), (1.7, 2.1, 2.4), direction, (30.0, -25.0, 20.0))
    )
    index = transform_points(
        lps_to_index(grids.control), np.asarray(moving_grids.control.origin_mm)[None]
    )[0]
    np.testing.assert_allclose(index[::-1], moving_grids.offset_zyx, atol=1e-6)
    pooled = np.asarray(moving_grids.control.shape_zyx) * grids.pool_zyx
    np.testing.assert_array_equal(moving_grids.working.shape_zyx, pooled)
    np.testing.assert_allclose(
        corners_lps_mm(moving_grids.working), corners_lps_mm(moving_grids.control)
    )
    np.testing.assert_allclose(moving_grids.control.direction, FIXED.direction)


def test_small_moving_image_is_cut_out() -> None:
    moving = make_grid((8, 10, 12), (2.0, 2.0, 2.0), FIXED.direction, (10.0, -20.0, 30.0))
    grids, moving_grids = plan(moving)
    # 10 working voxels touch 6 control voxels of 2.
    assert moving_grids.control.shape_zyx == (4, 6, 6)
    assert moving_grids.offset_zyx == (8, 9, 11)
    end = np.add(moving_grids.offset_zyx, moving_grids.control.shape_zyx)
    assert (end <= grids.control.shape_zyx).all()


def test_large_moving_image_is_seen_as_far_as_the_search_reaches() -> None:
    grids, moving_grids = plan(make_grid((400, 400, 400), (2.0, 2.0, 2.0), FIXED.direction))
    reach = np.asarray(grids.search_radius_zyx) * grids.search_factor_zyx
    np.testing.assert_array_equal(moving_grids.offset_zyx, -(reach + 2))
    expected = np.asarray(grids.control.shape_zyx) + 2 * (reach + 2)
    np.testing.assert_array_equal(moving_grids.control.shape_zyx, expected)


def test_further_levels_of_the_search_do_not_widen_the_grid() -> None:
    wide = make_grid((400, 400, 400), (2.0, 2.0, 2.0), FIXED.direction)
    grids, moving_grids = plan(wide, search_levels=3)
    factor, radius = grids.search_factor_zyx, grids.search_radius_zyx
    assert (factor, radius) == ((2, 2, 2), (3, 3, 3))
    # Later levels have cells of one voxel and reach two of them.
    assert grids.search_grids()[1:] == [((1, 1, 1), (2, 2, 2))] * 2
    np.testing.assert_array_equal(moving_grids.offset_zyx, [-(6 + 2)] * 3)


def test_initial_alignment_brings_the_moving_image_here() -> None:
    far = AffineTransform(np.eye(3), [300.0, -200.0, 100.0])
    moving = make_grid(FIXED.shape_zyx, FIXED.spacing_mm, FIXED.direction, (310.0, -220.0, 130.0))
    grids, moving_grids = plan(moving, far)
    assert moving_grids.offset_zyx == (0, 0, 0)
    assert moving_grids.control.shape_zyx == grids.control.shape_zyx


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_overlap(axis: int, sign: int) -> None:
    box_mm = np.asarray(FIXED.shape_xyz) * FIXED.spacing_mm
    step = FIXED.direction[:, axis] * box_mm[axis] * sign
    centre = np.array([10.0, -20.0, 30.0])
    for share, fits in ((0.9, True), (1.1, False)):
        moving = make_grid(
            FIXED.shape_zyx, FIXED.spacing_mm, FIXED.direction, tuple(centre + share * step)
        )
        if fits:
            plan(moving)
            continue
        with pytest.raises(
            RegistrationError, match=r"do not overlap .* use --initial auto, centre"
        ):
            plan(moving)


def test_the_fixed_region_is_what_the_search_compares_with_the_moving_image() -> None:
    """The margin is 8 voxels of 4 mm (24 mm of search, 8 of a cell) plus 2 for the refinement."""
    moving = make_grid((4, 96, 112), (2.0, 2.0, 2.0), FIXED.direction, (10.0, -20.0, 30.0))
    grids, moving_grids = plan(moving)
    fixed, other = compared_regions(grids, moving_grids, HERE)
    begin, depth = moving_grids.offset_zyx[0], moving_grids.control.shape_zyx[0]
    offset = transform_points(lps_to_index(grids.control), np.asarray(fixed.grid.origin_mm)[None])
    assert grids.control.shape_zyx[0] == 20
    first, last = max(0, begin - 10), min(20, begin + depth + 10)
    np.testing.assert_allclose(offset[0], (0, 0, first), atol=1e-6)
    assert fixed.grid.shape_zyx == (last - first, *grids.control.shape_zyx[1:])
    assert other.grid is moving_grids.control


def test_the_fixed_region_of_a_whole_image_is_all_of_it() -> None:
    grids, moving_grids = plan(FIXED)
    fixed, _ = compared_regions(grids, moving_grids, HERE)
    np.testing.assert_allclose(corners_lps_mm(fixed.grid), corners_lps_mm(grids.control))
