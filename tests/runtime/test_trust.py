"""The verdict on a registration, for right pairs and deliberately wrong ones."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
from phantoms import Body, make_grid, make_phantom
from wrong_pairs import exchanged_sides, mirrored, part

import dinoreg_kernels
import dinoreg_rt
from dinoreg_rt import RegistrationConfig, RegistrationResult, Volume, io
from dinoreg_rt.features.mind import MIND_MIRRORED
from dinoreg_rt.quality.trust import judge, quality_warnings
from dinoreg_rt.summaries import RunQuality

GOOD = RunQuality(
    feature_distance_before=0.4,
    feature_distance_after=0.2,
    folded_percent=0.01,
    jacobian_min=0.4,
    jacobian_max=2.0,
    sdlogj=0.3,
    inverse_consistency_mean_mm=0.3,
    inverse_consistency_max_mm=2.0,
    overlap_percent=95.0,
    decoy_ratio=0.8,
    unrelated_ratio=0.3,
)
GRID = make_grid((40, 44, 48), (2.5, 2.5, 2.5))


def test_a_good_run_is_trusted():
    assert judge(GOOD).verdict == "trusted"
    assert judge(GOOD).reasons == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"feature_distance_after": float("nan")}, "not a number"),
        ({"feature_distance_after": 0.41}, "not match better"),
        ({"decoy_ratio": 1.0}, "mirror image"),
        ({"decoy_ratio": float("nan")}, "too small to be compared with its mirror images"),
        ({"decoy_ratio": 0.975, "turned_ratio": 0.975}, "upside down or back to front"),
        ({"symmetry": 0.92, "sides_ratio": 2.0, "turned_ratio": 0.4}, "left and right exchanged"),
        ({"symmetry": 0.92, "sides_ratio": 0.4, "turned_ratio": 1.0}, "mirror image"),
        ({"mind_distance_before": 1.0, "mind_distance_after": 1.2}, "still 120 % of that"),
        ({"mind_distance_before": 0.0, "mind_distance_after": 1.2}, "still inf % of that"),
        ({"information_before": 1.0, "information_after": 0.5}, "of the images is 50 % of what"),
        ({"unrelated_ratio": 0.65}, "65 % of that of"),
        ({"decoy_ratio": 0.97, "unrelated_ratio": 0.56}, "the two ratios add up to 1.53"),
        ({"alignment_similarity": 0.2}, "is only 0.2 (limit 0.345)"),
        ({"overlap_percent": 10.0}, "only 10 %"),
        ({"overlap_percent": 28.0, "decoy_ratio": 0.96}, "only 28 % of the fixed image"),
        ({"folded_percent": 3.0}, "3 % of the voxels are folded (limit 2 %)"),
        ({"sdlogj": 1.2}, "change in volume"),
        ({"inverse_consistency_mean_mm": 5.0}, "disagree by 5 mm"),
    ],
)
def test_each_measure_can_say_no(change, reason):
    trust = judge(dataclasses.replace(GOOD, **change))
    assert trust.verdict == "untrusted"
    assert len(trust.reasons) == 1
    assert reason in trust.reasons[0]


def test_a_clear_match_may_cover_little_of_the_fixed_image():
    slab = dataclasses.replace(GOOD, overlap_percent=28.0)
    assert judge(slab).reasons == ()
    assert "only 28 %" in quality_warnings(slab)[0]
    assert judge(dataclasses.replace(slab, overlap_percent=19.0)).verdict == "untrusted"
    untested = dataclasses.replace(slab, decoy_ratio=math.nan, unrelated_ratio=math.nan)
    assert judge(untested).verdict == "untrusted"


def test_sides_of_symmetric_anatomy_are_no_reason_but_are_said():
    ratios = {"decoy_ratio": 1.02, "sides_ratio": 1.02, "turned_ratio": 0.4}
    brain = dataclasses.replace(GOOD, symmetry=0.92, **ratios)
    assert judge(brain).reasons == ()
    (warning,) = quality_warnings(brain)
    assert warning.startswith("left and right cannot be told apart by the images")
    abdomen = dataclasses.replace(GOOD, symmetry=0.7, **ratios)
    assert judge(abdomen).verdict == "untrusted"
    assert len(quality_warnings(dataclasses.replace(brain, sides_ratio=0.3))) == 1
    for settled in (0.05, 2.0):
        assert quality_warnings(dataclasses.replace(brain, sides_ratio=settled)) == []


def test_a_linear_registration_may_end_where_it_started():
    same = dataclasses.replace(GOOD, mind_distance_before=1.0, mind_distance_after=1.0)
    assert "MIND-SSC" in quality_warnings(same)[0]
    linear = dataclasses.replace(same, feature_distance_before=math.nan)
    assert quality_warnings(linear) == []
    assert judge(dataclasses.replace(linear, mind_distance_after=1.2)).verdict == "untrusted"


def test_headers_are_weighed_in():
    """Sides that a header leaves open need images that tell them apart."""
    nearly = {"decoy_ratio": 0.95, "sides_ratio": 0.95, "turned_ratio": 0.4}
    named = dataclasses.replace(GOOD, symmetry=0.7, **nearly)
    assert judge(named).reasons == ()
    for symmetry in (0.7, 0.92):
        doubtful = dataclasses.replace(named, symmetry=symmetry, sides_in_doubt=True)
        (reason,) = judge(doubtful).reasons
        assert reason.startswith("a header leaves open which side is left")
        clear = dataclasses.replace(doubtful, decoy_ratio=0.6, sides_ratio=0.6)
        assert judge(clear).reasons == ()
    exchanged = dataclasses.replace(named, decoy_ratio=1.1, sides_ratio=1.1)
    assert "the headers of both files name the sides" in judge(exchanged).reasons[0]
    turned = dataclasses.replace(named, decoy_ratio=1.1, turned_ratio=1.1, sides_ratio=0.5)
    assert "name the sides" not in judge(turned).reasons[0]
    brain = dataclasses.replace(named, symmetry=0.92, sides_ratio=0.7)
    for in_doubt, said in ((False, "the headers of both files name"), (True, "leaves open")):
        (warning,) = quality_warnings(dataclasses.replace(brain, sides_in_doubt=in_doubt))
        assert said in warning


def test_a_header_without_orientation_reaches_the_verdict():
    pair = make_phantom(GRID, GRID, multimodal=True)
    config = RegistrationConfig(initial="none", threads=1, intensity="off", trust=False)
    grid = dataclasses.replace(pair.moving.geometry, sides_in_doubt=True)
    moving = dataclasses.replace(pair.moving, geometry=grid)
    assert dinoreg_rt.register(pair.fixed, moving, config=config).quality.sides_in_doubt
    assert not dinoreg_rt.register(pair.fixed, pair.moving, config=config).quality.sides_in_doubt


def test_missing_measures_give_no_reason():
    unmeasured = dataclasses.replace(GOOD, decoy_ratio=float("nan"), unrelated_ratio=float("nan"))
    assert judge(unmeasured).verdict == "trusted"


@pytest.mark.parametrize(
    ("before", "after", "ratio", "trusted"),
    [
        (0.0, 0.0, 0.0, True),
        (0.03, 0.03, 0.01, True),
        (0.03, 0.05, float("nan"), True),
        (0.03, 0.03, 0.3, False),  # nearly the same by its own measure alone
        (0.3, 0.3, 0.01, False),
    ],
)
def test_images_that_are_nearly_the_same_need_not_match_better(before, after, ratio, trusted):
    quality = dataclasses.replace(
        GOOD,
        feature_distance_before=before,
        feature_distance_after=after,
        unrelated_ratio=ratio,
    )
    assert (judge(quality).reasons == ()) == trusted


SHIPPED = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize("initial", ["none", "auto"])
@pytest.mark.parametrize("name", ["mr", "ct"])
def test_identical_images_are_trusted_and_stay(name, initial, trust):
    image = io.read_volume(SHIPPED / "abdomen" / f"{name}.nii.gz")
    config = RegistrationConfig(initial=initial, trust=trust)
    result = dinoreg_rt.register(image, image, config=config)
    assert judge(result.quality).reasons == ()
    labels = io.read_labels(SHIPPED / "abdomen" / f"{name}_labels.nii.gz").array
    moved = np.linalg.norm(result.displacement.vectors_mm, axis=-1)[labels > 0]
    # A tenth of a voxel. Measured: 0.24 mm (MR) and 0.13 mm (CT); 1 mm before Adam had an epsilon
    # and while the warped image's variance was without noise.
    assert moved.mean() < 0.1 * image.geometry.spacing_mm[0]


@pytest.mark.parametrize("shift_mm", [0.0, 4.0, 24.0])
@pytest.mark.parametrize("name", ["abdomen/ct", "brain/moving_t1"])
def test_an_image_is_not_its_own_mirror_image_wherever_that_lies(name, shift_mm):
    image = io.read_volume(SHIPPED / f"{name}.nii.gz")
    quality = dinoreg_rt.register(image, exchanged_sides(image, shift_mm)).quality
    assert judge(quality).verdict == "untrusted"
    # One of the mirror images is the fixed image.
    assert quality.sides_ratio > 1.2


@pytest.mark.parametrize("brain", ["fixed_t1", "moving_t1"])
def test_a_brain_is_not_an_abdomen(brain):
    """No single limit catches it: mirror images match a little worse than the brain itself."""
    images = (
        io.read_volume(SHIPPED / f"{name}.nii.gz") for name in ("abdomen/ct", f"brain/{brain}")
    )
    assert judge(dinoreg_rt.register(*images).quality).verdict == "untrusted"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_channels_are_those_of_the_mirrored_image(axis, rng):
    image = rng.random((11, 13, 15)).astype(np.float32)
    features = [
        dinoreg_kernels.mind_ssc(
            np.ascontiguousarray(one),
            radius=(1, 1, 1),
            dilation=(2, 2, 2),
            pool=(1, 1, 1),
            channels=16,
            scale=1.0,
            threads=1,
        )[..., :12]
        for one in (image, np.flip(image, axis))
    ]
    expected = np.flip(features[0], axis)[..., list(MIND_MIRRORED[axis])]
    np.testing.assert_allclose(features[1], expected, atol=1e-3)
    assert np.abs(features[1] - np.flip(features[0], axis).astype(float)).max() > 0.1


def phantom_run(change, **config) -> RegistrationResult:
    pair = make_phantom(GRID, GRID, multimodal=True)
    options = {"initial": "none", "threads": 1, "intensity": "off"} | config
    return dinoreg_rt.register(
        pair.fixed, change(pair.moving), config=RegistrationConfig(**options)
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        pytest.param(lambda v: v, "trusted", id="right"),
        pytest.param(lambda v: mirrored(v, 0), "untrusted", id="upside down"),
        pytest.param(lambda v: mirrored(v, 1), "untrusted", id="back to front"),
        pytest.param(lambda v: mirrored(v, 2), "untrusted", id="mirrored"),
        pytest.param(
            lambda v: make_phantom(GRID, GRID, body=Body(seed=11)).moving,
            "untrusted",
            id="another body",
        ),
    ],
)
def test_phantoms(change, verdict):
    result = phantom_run(change)
    assert judge(result.quality).verdict == verdict
    # The mirror image of the mirrored phantom is the right one.
    assert (result.quality.decoy_ratio < 1) == (verdict == "trusted")


def test_not_measured_unless_requested():
    quality = phantom_run(lambda v: v, trust=False).quality
    assert np.isnan([quality.decoy_ratio, quality.unrelated_ratio]).all()


def test_same_verdict_for_any_number_of_threads():
    first, second = (phantom_run(lambda v: v, threads=n).quality for n in (1, 2))
    assert (first.decoy_ratio, first.unrelated_ratio) == (
        second.decoy_ratio,
        second.unrelated_ratio,
    )


# ---- confidence ------------------------------------------------------------------------------


def test_confidence_lies_on_the_fixed_grid_and_distinguishes_body_from_air():
    pair = make_phantom(GRID, make_grid((30, 32, 34), (3.5, 3.5, 3.5)))
    config = RegistrationConfig(initial="none", threads=1, confidence=True)
    result = dinoreg_rt.register(pair.fixed, pair.moving, config=config)
    certainty = result.confidence
    assert certainty.geometry is pair.fixed.geometry
    assert certainty.array.shape == GRID.shape_zyx
    assert certainty.array.dtype == np.float32
    assert 0 <= certainty.array.min() < certainty.array.max() <= 1
    middle = certainty.array[15:25, 17:27, 19:29].mean()
    corner = certainty.array[:3, :3, :3].mean()
    assert middle > corner + 0.3


def test_no_confidence_unless_requested():
    assert phantom_run(lambda v: v).confidence is None


# ---- real scans -----------------------------------------------------------------------------

FOLDER = os.environ.get("DINOREG_TEST_DATA", "")
REAL = ("tune_mrct_1", "tune_ctct_1", "abd_mrct_3", "abd_mrmr_1", "card_1", "brain_1")


def shared(name: str) -> tuple[Volume, Volume, str]:
    """Return a pair from the folder of labelled pairs, and where its search starts."""
    if not FOLDER:
        pytest.skip("DINOREG_TEST_DATA names no folder of labelled pairs")
    with (Path(FOLDER) / "pairs.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["pair"] == name)
    fixed, moving = (io.read_volume(Path(FOLDER) / row[role]) for role in ("fixed", "moving"))
    start = Path(FOLDER) / "init" / f"{name}.tfm"
    return fixed, moving, str(start) if start.exists() else "moments"


def result_of(fixed: Volume, moving: Volume, initial: str) -> RegistrationResult:
    return dinoreg_rt.register(fixed, moving, config=RegistrationConfig(initial=initial))


def verdict_of(fixed: Volume, moving: Volume, initial: str) -> str:
    return result_of(fixed, moving, initial).trust.verdict


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_trusted(name):
    assert verdict_of(*shared(name)) == "trusted"


@pytest.mark.shared_data
@pytest.mark.parametrize("turned", [exchanged_sides, lambda volume: mirrored(volume, 0)])
@pytest.mark.parametrize("name", [name for name in REAL if name not in ("abd_mrct_3", "brain_1")])
def test_mirrored_and_upside_down_pairs_are_not(name, turned):
    fixed, moving, initial = shared(name)
    assert verdict_of(fixed, turned(moving), initial) == "untrusted"


@pytest.mark.shared_data
def test_a_brain_is_nearly_symmetric():
    fixed, moving, initial = shared("brain_1")
    assert verdict_of(fixed, mirrored(moving, 1), initial) == "untrusted"
    for image in (moving, exchanged_sides(moving)):
        warnings = result_of(fixed, image, initial).warnings
        assert any("left and right cannot be told apart" in warning for warning in warnings)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("fixed", "moving"), [("brain_1", "tune_ctct_1"), ("tune_mrct_1", "brain_1")]
)
def test_other_organs_are_not(fixed, moving):
    assert verdict_of(shared(fixed)[0], shared(moving)[1], "moments") == "untrusted"


@pytest.mark.shared_data
def test_other_regions_are_not():
    fixed, moving, _ = shared("tune_ctct_1")
    upper, lower = part(fixed, 0.65, 1.0), part(moving, 0.0, 0.35)
    assert verdict_of(upper, lower, "moments") == "untrusted"
