"""How well the images agree in regions of the body, and the warning that names them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from phantoms import make_grid, make_phantom
from reference_measures import joint_histogram, region_index

import dinoreg_rt
from dinoreg_rt import RegistrationConfig
from dinoreg_rt.quality.regions import REGIONS, region_arguments, region_warning, regions_of
from dinoreg_rt.summaries import RegionQuality

SHAPE = (12, 8, 10)
PLACES = [
    f"{height} {side}, {depth}"
    for side in ("right", "left")
    for depth in ("front", "back")
    for height in ("lower", "middle", "upper")
]


def place_at(direction: np.ndarray, index_zyx: tuple[int, int, int], weight=None) -> str:
    weight = np.ones(SHAPE, np.float32) if weight is None else weight
    return PLACES[region_index(weight, *region_arguments(direction))[index_zyx]]


@pytest.mark.parametrize(
    ("index", "place"),
    [
        ((0, 0, 0), "lower right, front"),
        ((11, 0, 0), "upper right, front"),
        ((6, 7, 9), "middle left, back"),
    ],
)
def test_places_follow_the_axes_of_the_patient(index, place):
    assert place_at(np.eye(3), index) == place
    mirrored = np.diag([-1.0, 1.0, 1.0])
    other = place.replace("right", "x").replace("left", "right").replace("x", "left")
    assert place_at(mirrored, index) == other
    # Sagittal slices: index x runs along S, y along P, z along L.
    turned = np.eye(3)[:, ::-1]
    assert place_at(turned, (11, 0, 0)) == "lower left, front"
    assert place_at(turned, (0, 0, 9)) == "upper right, front"
    slanted = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    assert place_at(slanted, index) == place


def test_cuts_follow_the_body_and_not_the_grid():
    weight = np.zeros(SHAPE, np.float32)
    weight[:, :, 6:] = 1
    assert place_at(np.eye(3), (0, 0, 7), weight) == "lower right, front"
    assert place_at(np.eye(3), (0, 0, 8), weight) == "lower left, front"


def measured(first, second, weight, matched) -> tuple[RegionQuality, ...]:
    index = region_index(weight, *region_arguments(np.eye(3)))
    parts = [index == region for region in range(REGIONS)]
    joint = [joint_histogram(first[p], second[p], (weight * matched)[p]) for p in parts]
    weights = [np.rint(weight[p] * 255).sum() for p in parts]
    return regions_of(np.array(weights), np.concatenate(joint).ravel())


def test_the_region_that_is_wrong_is_named(rng):
    shape = (36, 32, 32)
    image, weight = rng.random(shape, np.float32), np.ones(shape, np.float32)
    other = image.copy()
    other[24:, 16:, 16:] = np.float32(0.5)
    regions = measured(image, other, weight, weight)
    assert [region.place for region in regions] == PLACES
    assert sum(region.share_percent for region in regions) == pytest.approx(100)
    warning = region_warning(regions)
    assert warning is not None
    assert "upper left, back (8 % of it, 0.00);" in warning
    assert warning.count("% of it") == 1
    assert region_warning(measured(image, image, weight, weight)) is None


def test_the_worst_region_comes_first():
    regions = [
        RegionQuality("a", 8, 100, 0.3),
        RegionQuality("b", 8, 100, 0.1),
        RegionQuality("c", 8, 100, 0.9),
    ]
    warning = region_warning(regions)
    assert warning is not None
    assert warning.index("b (8 %") < warning.index("a (8 %")
    assert "c (8 %" not in warning
    assert region_warning([]) is None


def test_a_region_without_a_match_is_not_judged(rng):
    image, weight = rng.random(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    matched = weight.copy()
    matched[:, :, :3] = 0  # 3 of 5 columns of the right half
    regions = measured(image, np.zeros_like(image), weight, matched)
    for region in regions:
        right = "right" in region.place
        assert math.isnan(region.information) == right
        assert region.matched_percent == pytest.approx(40 if right else 100)
    assert "right" not in str(region_warning(regions))


def test_regions_without_body_are_left_out():
    weight = np.zeros(SHAPE, np.float32)
    weight[0] = 1  # a single slice lies in the middle third
    image = np.zeros(SHAPE, np.float32)
    places = [region.place for region in measured(image, image, weight, weight)]
    assert places == [place for place in PLACES if place.startswith("middle")]


def test_a_run_measures_and_names_its_regions():
    grid = make_grid((40, 44, 48), (2.5, 2.5, 2.5))
    pair = make_phantom(grid, grid)
    config = RegistrationConfig(initial="none", threads=1, intensity="off")
    result = dinoreg_rt.register(pair.fixed, pair.moving, config=config)
    assert [region.place for region in result.regions] == PLACES
    assert min(region.information for region in result.regions) > 0.35
    assert not any("matched badly" in warning for warning in result.warnings)
    bad = dataclasses.replace(result.regions[0], information=0.1)
    worse = dataclasses.replace(result, regions=(bad, *result.regions[1:]))
    assert f"{bad.place} ({bad.share_percent:.0f} % of it, 0.10)" in worse.warnings[-1]
    untested = config.model_copy(update={"trust": False})
    assert dinoreg_rt.register(pair.fixed, pair.moving, config=untested).regions == ()
