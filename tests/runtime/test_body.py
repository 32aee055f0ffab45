"""The body is found; the table and the air are excluded."""

from __future__ import annotations

import numpy as np
import pytest

from dinoreg_rt.images.body import body_mask, bounding_box, find_body, implausible

SHAPE = (30, 44, 50)
Z, Y, X = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
#: A trunk through all slices, as in an abdominal scan.
TRUNK = ((Y - 20) / 12.0) ** 2 + ((X - 25) / 18.0) ** 2 < 1
LUNG = ((Y - 20) / 5.0) ** 2 + ((X - 18) / 5.0) ** 2 + ((Z - 8) / 6.0) ** 2 < 1
SEEN = np.ones(SHAPE, np.float32)


def image(*, table: bool = False, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(4)
    array = np.where(TRUNK & ~LUNG, 0.6, 0.0)
    if table:  # a thin board that touches the back in a few voxels
        array[:, 35:36, 5:46] = 0.9
        array[:, 32:36, 24:26] = 0.9
    return (array + noise * rng.random(SHAPE)).astype(np.float32)


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_trunk_with_its_lungs(noise: float) -> None:
    found = find_body(image(noise=noise), SEEN)
    assert found[LUNG].all()
    # The opening removes the tips of the ellipse.
    assert (found ^ TRUNK).sum() < 0.03 * TRUNK.sum()
    assert implausible(found, SEEN) is None


def test_table_is_cut_off() -> None:
    found = find_body(image(table=True), SEEN)
    np.testing.assert_array_equal(found[:, 34:], False)
    assert found[TRUNK].mean() > 0.97


def test_slab_that_the_body_fills_sideways() -> None:
    """The body in four slices reaches the left and right borders."""
    array = np.zeros((4, 40, 30), np.float32)
    array[:, 8:30] = 0.5
    array[1:3, 15:20, 10:14] = 0  # gas
    found = find_body(array, np.ones_like(array))
    np.testing.assert_array_equal(found[:, 8:30], True)
    np.testing.assert_array_equal(found[:, :8], False)


def test_only_what_is_seen() -> None:
    seen = SEEN.copy()
    seen[:, :, 25:] = 0
    found = find_body(image(), seen)
    assert found[:, 12:28, 15:24].all()
    assert not found[:, :, 25:].any()


@pytest.mark.parametrize(("value", "reason"), [(0.0, "only 0 %"), (0.5, "fills the field of view")])
def test_implausible(value: float, reason: str) -> None:
    found = find_body(np.full((8, 9, 10), value, np.float32), np.ones((8, 9, 10), np.float32))
    assert reason in str(implausible(found, np.ones((8, 9, 10), np.float32)))


def test_margin_and_box() -> None:
    body = np.zeros((9, 9, 20), bool)
    body[4, 4, 10] = True
    mask = body_mask(body, 7.5)  # 15 mm
    assert mask.dtype == np.float32
    assert mask[4, 4, 8:13].all()
    assert not mask[4, 4, 7]
    assert bounding_box(body, 1) == (slice(3, 6), slice(3, 6), slice(9, 12))
    assert bounding_box(body, 7) == (slice(0, 9), slice(0, 9), slice(3, 18))
    assert bounding_box(np.zeros((2, 3, 4), bool), 1) == (slice(0, 2), slice(0, 3), slice(0, 4))
