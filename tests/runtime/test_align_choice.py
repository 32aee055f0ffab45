"""What decides between positions is the match that a registration could reach from them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from phantoms import Body, bright_pair, centres_of, make_grid

import dinoreg_rt
from dinoreg_rt import AffineTransform, RegistrationConfig, Volume
from dinoreg_rt.align.coarse import CoarseImage, coarse_pair
from dinoreg_rt.align.initial import Alignment, search_alignment
from dinoreg_rt.align.match import evaluate, with_deformed
from dinoreg_rt.align.shifts import Candidate
from dinoreg_rt.align.sides import Side, make_sides
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.unread import read_all

HOST = Device("cpu", threads=1)
GRID = make_grid((70, 52, 64), (4.0, 4.0, 4.0))
HERE = AffineTransform.identity()


def shift(x_mm: float) -> AffineTransform:
    return AffineTransform(np.eye(3), np.array([x_mm, 0.0, 0.0]))


#: Position of the twin: the bodies touch, or the smaller one would not count as body.
TWIN = shift(222.0)


def someone(points: np.ndarray, seed: int = 3) -> np.ndarray:
    """Return the phantom's body, three times as large."""
    return Body(seed=seed)(points / 3.0)


def waves(points: np.ndarray) -> np.ndarray:
    """Move points by up to 14 mm along each axis."""
    x, y, z = np.moveaxis(points, -1, 0)
    return points + 14.0 * np.stack([np.sin(y / 30 + 0.3), np.sin(z / 34), np.sin(x / 32 + 1)], -1)


@functools.cache
def fixed_and_twins() -> tuple[Volume, Volume]:
    """Return a body, and an image of two: it deformed, and an undeformed, half-similar twin."""
    fixed = Volume(someone(centres_of(GRID)).astype(np.float32), GRID)
    wide = make_grid((70, 52, 124), (4.0, 4.0, 4.0), "LPS", tuple(TWIN.translation_mm / 2))
    points = centres_of(wide)
    beside = points - TWIN.translation_mm
    twin = 0.45 * someone(beside) + 0.55 * someone(beside, seed=31)
    return fixed, Volume(np.maximum(someone(waves(points)), twin).astype(np.float32), wide)


@pytest.fixture(scope="module")
def images() -> tuple[CoarseImage, CoarseImage]:
    return coarse_pair(bright_pair(*fixed_and_twins()), HOST)


@pytest.fixture(scope="module")
def sides(images: tuple[CoarseImage, CoarseImage]) -> tuple[Side, Side]:
    fixed, moving = make_sides(images, HOST)
    return fixed, moving


def deformed(fixed: Side, moving: Side, position: AffineTransform) -> float:
    """Return the similarity at a position after a quick match."""
    found = with_deformed(fixed, moving, Candidate(position, 0.0, 0.0), HOST)
    return read_all([found], HOST)[0].deformed


def similarity(fixed: Side, moving: Side, position: AffineTransform) -> float:
    """Return the similarity at a position as it is."""
    return read_all([evaluate(fixed, moving, position, HOST)], HOST)[0].similarity


@pytest.fixture(scope="module")
def found(images: tuple[CoarseImage, CoarseImage]) -> Alignment:
    return search_alignment(images, "affine", "affine", HOST)


def test_match_distinguishes_the_deformed_body_from_its_twin(sides: tuple[Side, Side]) -> None:
    here, twin = (similarity(*sides, position) for position in (HERE, TWIN))
    # Measured: 0.695 and 0.945 as they are, 0.833 and 0.772 deformed.
    assert here < twin - 0.1
    assert deformed(*sides, HERE) > deformed(*sides, TWIN) + 0.02


def test_match_decides(sides: tuple[Side, Side], found: Alignment) -> None:
    """The search starts at the deformed body although its twin looks more alike."""
    assert np.linalg.norm(found.transform.translation_mm) < 15
    assert found.similarity < similarity(*sides, TWIN)


def test_choice_is_explained(found: Alignment) -> None:
    assert "when deformed from there" in found.method
    assert "from the best other position" in found.method


def test_plan_says_why() -> None:
    config = RegistrationConfig(initial="affine", iterations=(2,))
    plan = dinoreg_rt.plan(*fixed_and_twins(), config)
    assert "when deformed from there" in plan.choices["initial alignment"]
    assert np.linalg.norm(plan.initial.translation_mm) < 20


def test_same_image_matches_wholly(sides: tuple[Side, Side]) -> None:
    fixed = sides[0]
    assert deformed(fixed, fixed, HERE) > 0.9
    assert deformed(fixed, fixed, shift(120.0)) < 0.45


def test_nothing_to_match(sides: tuple[Side, Side]) -> None:
    assert deformed(*sides, shift(5000.0)) == 0.0
