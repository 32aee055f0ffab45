"""The conditions under which intensities join the features."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_grid, waves

import dinoreg_rt
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.images.contrast import LEAST_RISING_SHARE, correlation, rising_share
from dinoreg_rt.registration.planning import plan
from dinoreg_rt.types import Volume

GRID = make_grid((30, 32, 34), (2.0, 2.0, 2.0))


def image(seed: int = 0, *, sign: float = 1.0, offset: float = 500.0) -> Volume:
    smooth = waves(GRID.shape_zyx, channels=seed + 1)[..., seed]
    return Volume(np.float32(offset + sign * 300 * smooth / np.abs(smooth).max()), GRID)


def decision(fixed: Volume, moving: Volume, **config: str) -> tuple[str, str | None]:
    decided = plan(fixed, moving, RegistrationConfig(initial="none", **config))
    return decided.config.intensity, decided.choices.get("local intensities")


@pytest.mark.parametrize(
    ("moving", "used", "why"),
    [
        (
            image(),
            "on",
            "on: the MR images show tissues nearly alike (correlation 1.00, rising share 1.00",
        ),
        (
            image(sign=-1.0),
            "off",
            "off: the MR images show tissues differently (correlation -1.00, rising share -1.00",
        ),
        (image(offset=0.0), "off", "off: a CT and an MR"),
    ],
    ids=["same", "inverted", "CT"],
)
def test_auto(moving: Volume, used: str, why: str) -> None:
    found, reason = decision(image(), moving)
    assert found == used
    assert reason is not None
    assert reason.startswith(why)


def test_two_ct_compare() -> None:
    assert decision(image(offset=0.0), image(sign=-1, offset=0.0))[0] == "on"


def test_a_contrast_that_reverses_is_another_one() -> None:
    """The images still correlate because most values lie on one side of the reversal."""
    rng = np.random.default_rng(0)
    first = rng.uniform(size=4000)
    second = np.interp(first, [0, 0.7, 1], [0, 1, 0.4]) + 0.05 * rng.normal(size=first.size)
    assert correlation(first, second) > 0.5
    assert rising_share(first, second) < LEAST_RISING_SHARE
    assert rising_share(first, first) == 1
    assert correlation(first[:3], second[:3]) == 0


@pytest.mark.parametrize("wanted", ["on", "off"])
def test_a_requested_intensity_is_used(wanted: str) -> None:
    assert decision(image(), image(sign=-1.0), intensity=wanted) == (wanted, None)


def test_intensities_change_the_result() -> None:
    fixed, moving = image(), image(1)
    fields = [
        dinoreg_rt.register(
            fixed, moving, config=RegistrationConfig(initial="none", intensity=choice)
        ).displacement.vectors_mm
        for choice in ("on", "off")
    ]
    assert np.abs(fields[0] - fields[1]).max() > 0.1


def test_close_images_are_refined_by_their_intensities() -> None:
    """For two MR images with little in common the features count in full."""
    half = Volume(0.45 * image().array + 0.55 * image(1).array, GRID)
    weights = []
    for moving in (image(), half):
        decided = plan(image(), moving, RegistrationConfig(initial="none"))
        assert decided.config.intensity == "on"
        weights.append((decided.config.feature_weight, decided.config.correlation_weight))
    assert weights == [(0.1, 3.0), (1.0, 2.5)]
