"""The similarity at all shifts by Fourier transforms is that of the cells compared one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dinoreg_rt.align.coarse import CHANNELS
from dinoreg_rt.align.sides import SILHOUETTE, Centred
from dinoreg_rt.align.spectra import LEAST_OVERLAP, Shifts, Spectra, peaks, similarity_map
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.unread import read_all, read_arrays

HOST = Device("cpu", threads=1)
FIXED, MOVING = (7, 6, 8), (5, 8, 6)
BOXES = (
    (slice(1, 6), slice(0, 5), slice(2, 7)),
    (slice(2, 4), slice(1, 8), slice(0, 6)),
)


def image(shape, box, seed) -> Centred:
    rng = np.random.default_rng(seed)
    size = tuple(part.stop - part.start for part in box)
    mind = rng.normal(size=(*size, CHANNELS)).astype(np.float32)
    arrays = (rng.uniform(0.2, 1, size), rng.normal(size=shape), rng.uniform(0, 1, shape))
    weight, silhouette, seen = (array.astype(np.float32) for array in arrays)
    return Centred(box, mind, np.square(mind).sum(-1), weight, silhouette, seen)


def whole(values, box, shape) -> np.ndarray:
    out = np.zeros((*shape, *values.shape[3:]))
    out[box] = values
    return out


def overlap(one, other, shift) -> list[np.ndarray]:
    """Return the parts of two arrays of cells that meet: cell p matches cell p + shift."""
    parts = []
    for array, sign in ((one, 1), (other, -1)):
        rest = other if array is one else one
        parts.append(
            array[
                tuple(
                    slice(max(0, -sign * t), max(0, min(n, m - sign * t)))
                    for t, n, m in zip(shift, array.shape[:3], rest.shape[:3], strict=True)
                )
            ]
        )
    return parts


def directly(fixed: Centred, moving: Centred, shift) -> tuple[float, float]:
    """Return similarity and overlap of the bodies at one shift."""
    found = []
    for name, weight in (("mind", "weight"), ("silhouette", "seen")):
        values, weights = [], []
        for one, box, shape in zip((fixed, moving), BOXES, (FIXED, MOVING), strict=True):
            value, mass = getattr(one, name), getattr(one, weight)
            if name == "mind":
                value, mass = whole(value, box, shape), whole(mass, box, shape)
            values.append(value.reshape(*shape, -1))
            weights.append(mass)
        a, b = overlap(*values, shift)
        w = np.multiply(*overlap(*weights, shift))[..., None]
        energy = (w * a * a).sum() * (w * b * b).sum()
        share = w.sum() / min(mass.sum() for mass in weights)
        found.append(((w * a * b).sum() / max(energy, 1e-12) ** 0.5, min(1.0, share)))
    (ncc, q), (s, r) = found
    return ncc * q**0.5 + SILHOUETTE * s * r**0.5, q


@pytest.fixture(scope="module")
def compared() -> tuple[Centred, Centred, Shifts, np.ndarray]:
    fixed, moving = image(FIXED, BOXES[0], 1), image(MOVING, BOXES[1], 2)
    shifts = Shifts.of(BOXES, (FIXED, MOVING))
    sizes = (shifts.count, shifts.whole)
    here, there = (Spectra.of(side, *sizes, HOST) for side in (fixed, moving))
    return fixed, moving, shifts, similarity_map(here.conj(), there, shifts, *sizes, HOST)


def test_every_shift_at_which_the_bodies_overlap(compared) -> None:
    fixed, moving, shifts, found = compared
    assert found.shape == (2, *shifts.count)
    checked = 0
    for index in np.ndindex(*shifts.count):
        value, q = directly(fixed, moving, np.add(index, shifts.first))
        assert found[(1, *index)] == pytest.approx(q, abs=1e-5)
        if q > LEAST_OVERLAP + 1e-4:
            checked += 1
            assert found[(0, *index)] == pytest.approx(value, abs=1e-4)
        elif q < LEAST_OVERLAP - 1e-4:
            assert found[(0, *index)] == -1
    assert checked > 100


def test_no_shift_beyond_them(compared) -> None:
    fixed, moving, shifts, _ = compared
    for axis in range(3):
        for end in (shifts.first[axis] - 1, shifts.first[axis] + shifts.count[axis]):
            shift = list(shifts.first)
            shift[axis] = end
            assert directly(fixed, moving, shift)[1] == 0


def test_peaks_are_the_best_shifts_apart_from_each_other(compared) -> None:
    _, _, shifts, found = compared
    (best,) = read_all([peaks([found], [shifts], np)], HOST)
    assert 1 < len(best[0]) <= 4
    shift, value, share = best[0][0]
    index = np.unravel_index(found[0].argmax(), found[0].shape)
    np.testing.assert_array_equal(shift, np.add(index, shifts.first))
    assert (value, share) == (found[(0, *index)], min(1.0, found[(1, *index)]))
    places = np.array([shift for shift, *_ in best[0]])
    for one, other in zip(*np.triu_indices(len(places), 1), strict=True):
        assert np.abs(places[one] - places[other]).max() > 3
    assert [value for _, value, _ in best[0]] == sorted((v for _, v, _ in best[0]), reverse=True)


def test_arrays_are_read_from_a_device_at_once(cupy) -> None:
    device = Device("cuda", threads=1)
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((4, 1), np.float32)]
    pool = cupy.get_default_memory_pool()
    pool.reads.clear()
    for one, other in zip(read_arrays([*map(cupy.asarray, arrays)], device), arrays, strict=True):
        np.testing.assert_array_equal(one, other)
    assert sum(pool.reads.values()) == 1
    assert read_arrays([], device) == []
