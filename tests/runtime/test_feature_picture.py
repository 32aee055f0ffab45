"""`features.png`: a tissue has the same colour at any position and in any modality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from phantoms import make_grid

from dinoreg_rt.geometry import shifted_grid
from dinoreg_rt.page.feature_picture import DARK, choose_palette, draw_features, feature_views
from dinoreg_rt.registration.result import KeptFeatures

SHAPE = (12, 14, 16)
#: Offset of the moving image in control voxels (z, y, x).
SHIFT = (1, -2, 2)


@pytest.fixture
def features(rng) -> KeptFeatures:
    """Features of one body in two modalities, with another mean and deviation in each channel."""
    grid = make_grid(SHAPE, (4.0, 4.0, 5.0))
    wide = tuple(n + 8 for n in SHAPE)
    tissue = rng.normal(size=(*wide, 6)) * (6, 5, 4, 3, 2, 1)
    fixed = tissue[4:-4, 4:-4, 4:-4] + 3
    z, y, x = (4 - s for s in SHIFT)
    moving = tissue[z : z + 12, y : y + 14, x : x + 16] * (1, 2, 0.5, 1, 3, 1) - (0, 9, 1, 2, 3, 4)
    return KeptFeatures(
        fixed=fixed.astype(np.float16),
        moving=moving.astype(np.float16),
        fixed_weight=np.ones(SHAPE, np.float32),
        moving_weight=np.ones(SHAPE, np.float32),
        fixed_geometry=grid,
        moving_geometry=shifted_grid(grid, (0, 0, 0), SHAPE),
        moving_offset_zyx=(0, 0, 0),
        displacement_mm=np.broadcast_to(
            np.multiply(SHIFT, (5.0, 4.0, 4.0)).astype(np.float32), (*SHAPE, 3)
        ),
        encoder_channels=0,
    )


def test_the_same_tissue_has_the_same_colour(features) -> None:
    palette = choose_palette(features)
    for view in feature_views(features, palette):
        fixed, aligned, warped = view.pictures
        seen = (warped != DARK).any(axis=-1)
        assert 0.5 < seen.mean() < 1  # the rest lies beyond the moving image
        assert np.abs(fixed - warped)[seen].mean() < 0.03
        assert np.abs(fixed - aligned)[seen].mean() > 0.1
        assert fixed[seen].std(axis=0).min() > 0.15


def test_both_are_dark_where_either_has_no_features(features) -> None:
    some = features.moving_weight.copy()
    some[:, :7] = 0
    some = replace(features, moving_weight=some)
    view = feature_views(some, choose_palette(some))[0]
    dark = [(picture == DARK).all(axis=-1) for picture in view.pictures]
    np.testing.assert_array_equal(dark[0], dark[2])
    assert dark[1][:7].all()
    assert not dark[1][7:].any()
    assert dark[2][:9].all()  # 2 voxels off
    assert not dark[2][9:, :12].any()


def test_colours_are_made_of_what_is_compared_alone(features) -> None:
    """The background is left out, and so is MIND-SSC beside an encoder."""
    inside = np.zeros(SHAPE, np.float32)
    inside[2:10, 2:10, 2:10] = 1
    some = replace(features, fixed_weight=inside, moving_weight=inside)
    wild = features.fixed.copy()
    wild[inside == 0] = 1000
    joined = replace(
        some,
        fixed=np.concatenate([wild, 9 * wild[..., ::-1]], axis=-1),
        moving=np.concatenate([features.moving, features.fixed], axis=-1),
        encoder_channels=6,
    )
    expected = feature_views(some, choose_palette(some))
    for one, other in zip(expected, feature_views(joined, choose_palette(joined)), strict=True):
        np.testing.assert_array_equal(one.pictures, other.pictures)


def test_nothing_that_matches_and_nothing_that_varies(features) -> None:
    """The pictures show little but are drawn."""
    apart = replace(features, displacement_mm=np.full((*SHAPE, 3), 1e3, np.float32))
    flat = replace(features, moving=np.zeros_like(features.moving))
    for odd in (apart, flat):
        for view in feature_views(odd, choose_palette(odd)):
            assert np.isfinite(view.pictures).all()


def test_a_picture_is_written(features, tmp_path) -> None:
    draw_features(features, tmp_path / "features.png")
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")
