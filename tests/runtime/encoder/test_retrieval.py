"""Retrieval of tokens compared with a plain search in float64 and with known results."""

from __future__ import annotations

import numpy as np
import pytest

from dinoreg_rt.evaluate.retrieval import (
    NEIGHBOURS,
    REACH_MM,
    Places,
    chance,
    common_labels,
    consistent,
    findable,
    nearest,
    retrieved,
)


def places_of(points_mm: np.ndarray, labels: np.ndarray | None = None) -> Places:
    carried = np.zeros(len(points_mm), int) if labels is None else labels
    return Places(np.ones((1, 1, len(points_mm)), bool), points_mm, carried)


def grid_points(shape=(6, 12, 14), step_mm=(12.0, 8.0, 8.0)) -> np.ndarray:
    """Return the points (N, 3) of a grid."""
    axes = [np.arange(n) * step for n, step in zip(shape, step_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def brute_force(features, here: Places, there: Places, token: int, count: int) -> set[int]:
    """Search for the neighbours of one token in float64."""
    first, second = (f.astype(np.float64) for f in features)
    reached = np.flatnonzero(
        np.abs(there.points_mm - here.points_mm[token]).max(axis=1) <= REACH_MM
    )
    if len(reached) < count:
        return {*reached.tolist(), -1}
    distance = np.square(second[reached] - first[token]).sum(axis=1)
    return set(reached[np.argsort(distance)[:count]].tolist())


@pytest.mark.parametrize("count", [1, 3])
def test_nearest_agrees_with_a_search_in_float64(rng, count) -> None:
    points = grid_points()
    here, there = places_of(points), places_of(points[:700] + rng.normal(size=(700, 3)))
    features = tuple(rng.normal(size=(len(p.labels), 9)).astype(np.float32) for p in (here, there))
    chosen = np.arange(0, len(points), 3)
    found = nearest(features, here, there, chosen, count)
    assert found.shape == (len(chosen), count)
    for token, row in zip(chosen, found, strict=True):
        assert set(row.tolist()) == brute_force(features, here, there, token, count)


@pytest.mark.parametrize(("within", "found"), [(2, [-1, -1, -1]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_too_few_tokens_within_reach_give_none(within, found) -> None:
    """Exactly enough will do; similar tokens out of reach never count."""
    apart = np.r_[np.full(within, REACH_MM - 1), np.full(5, REACH_MM + 1)]
    there = places_of(np.column_stack([apart, np.zeros((len(apart), 2))]))
    features = np.zeros((1, 2), np.float32), np.zeros((len(apart), 2), np.float32)
    features[1][:within, 0] = 1 + np.arange(within)
    got = nearest(features, places_of(np.zeros((1, 3))), there, np.array([0]), 3)
    assert sorted(got[0][got[0] >= 0].tolist()) == [n for n in found if n >= 0]


def halves(points: np.ndarray) -> np.ndarray:
    """Return labels of background and three organs side by side."""
    return np.digitize(points[:, 2], [10, 40, 75]).astype(int)


def test_visible_labels_are_found_and_others_by_chance(rng) -> None:
    points = grid_points()
    fixed, moving = (places_of(p, halves(p)) for p in (points, points + 2.0))
    tokens = findable(fixed, moving)
    assert list(tokens) == [1, 2, 3]
    expected = chance(tokens, fixed, moving)

    shown = [
        np.eye(4)[p.labels] + 0.05 * rng.normal(size=(len(p.labels), 4)) for p in (fixed, moving)
    ]
    found = retrieved(tuple(f.astype(np.float32) for f in shown), tokens, fixed, moving)
    assert min(found.values()) > 0.99

    noise = tuple(rng.normal(size=(len(p.labels), 4)).astype(np.float32) for p in (fixed, moving))
    found = retrieved(noise, tokens, fixed, moving)
    for label, share in found.items():
        # At least 250 tokens with three neighbours each: a deviation of 0.02 at most.
        assert share == pytest.approx(expected[label], abs=0.06)


def test_chance_is_the_share_of_the_label_within_reach() -> None:
    points = np.array([[0.0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0], [500, 0, 0]])
    labels = np.array([1, 1, 1, 2, 2])
    places = places_of(points, labels)
    tokens = findable(places, places)
    assert chance(tokens, places, places) == {1: 0.75}


def test_labels_out_of_reach_are_left_out() -> None:
    """Label 2 is far away, 3 has too few tokens in reach, and 4 is not in the other image."""
    points = grid_points((1, 3, 3))
    fixed = places_of(np.concatenate([points] * 4), np.repeat([1, 2, 3, 4], 9))
    far = points + np.array([0.0, 0.0, 60.0 + REACH_MM])
    few = np.concatenate([points[: NEIGHBOURS - 1], far[NEIGHBOURS - 1 :]])
    moving = places_of(np.concatenate([points, far, few]), np.repeat([1, 2, 3], 9))
    assert common_labels(fixed, moving) == [1, 2, 3]
    tokens = findable(fixed, moving)
    assert list(tokens) == [1]
    np.testing.assert_array_equal(tokens[1], np.arange(9))


def test_background_is_not_a_label() -> None:
    points = grid_points((2, 3, 3))
    places = places_of(points, np.repeat([0, 5], 9))
    assert common_labels(places, places) == [5]


def test_an_image_is_consistent_with_itself(rng) -> None:
    places = places_of(grid_points())
    own = rng.normal(size=(len(places.labels), 6)).astype(np.float32)
    assert consistent((own, own), places, places, 1e-3) == 1
    other = rng.normal(size=own.shape).astype(np.float32)
    # Matches of noise are mutual surprisingly often. Measured: 0.41.
    assert consistent((own, other), places, places, 12.0) < 0.6


def test_nothing_within_reach_is_not_consistent(rng) -> None:
    points = grid_points((1, 3, 3))
    features = (rng.normal(size=(9, 4)).astype(np.float32),) * 2
    assert consistent(features, places_of(points), places_of(points + 500.0), 10.0) == 0
