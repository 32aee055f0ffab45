"""The same bits for any number of threads and from run to run."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import waves
from solving import solver_options

from dinoreg_kernels import (
    _arrays,
    compose,
    cut_slices,
    jacobian_determinant,
    mind_ssc,
    pool_features,
    resample,
    shared_workspace,
    solve,
)

#: Up to more than most test machines have cores, and more than some arrays have planes.
THREADS = (1, 2, 3, 16, 0)


def assert_same_bits(results):
    first = results[0]
    for other in results[1:]:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def solve_all(shape, options, seed=1):
    rng = np.random.default_rng(seed)
    fixed = np.float16(waves(shape))
    moving = np.float16(waves(shape, (0.7, -1.6, 1.2)))
    weight = np.float32(rng.random(shape))
    results = []
    for threads in (*THREADS, THREADS[-1]):
        images = (np.float32(fixed[..., 0]), np.float32(moving[..., 1]))
        s = solve(fixed, moving, weight, weight, images=images, spacing_mm=(2, 2, 2),
                  options=options, threads=threads)  # fmt: skip
        fields = [s.field] if s.inverse is None else [s.field, s.inverse]
        results.append((*fields, s.feature_distance_before, s.feature_distance_after, s.overlap))
    return results


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((22, 24, 26), (3, 3, 3)),
        ((9, 40, 44), (2, 2, 2)),
        ((2, 60, 62), (2, 2, 2)),  # one coarse plane
        ((62, 3, 60), (2, 2, 2)),
        ((60, 62, 2), (2, 2, 2)),  # a coarse row of one voxel
        ((40, 40, 8), (2, 2, 2)),
    ],
)
def test_solve(shape, factor):
    options = solver_options(
        search_factor=factor,
        search_radius=(1, 2, 2),
        coupling=(0.01, 0.3),
        consistency_rounds=2,
        iterations=(2, 2),
    )
    assert_same_bits(solve_all(shape, options))


@pytest.mark.parametrize("shape", [(22, 24, 26), (2, 60, 62)])
def test_levels_of_the_search(shape):
    options = solver_options(
        search_factor=(4, 4, 3),
        search_radius=(1, 2, 2),
        search_levels=3,
        coupling=(0.01, 0.3),
        consistency_rounds=2,
        iterations=(2, 2),
    )
    assert_same_bits(solve_all(shape, options))


def test_trust_in_the_search():
    options = solver_options(
        search_factor=(2, 2, 2), search_radius=(1, 2, 2), coupling=(0.3,), search_levels=2,
        consistency_rounds=2, iterations=(0,), search_trust_cost=0.5
    )  # fmt: skip
    assert_same_bits(solve_all((22, 24, 40), options))


def test_one_level_and_no_search():
    options = solver_options(search_radius=(0, 0, 0), iterations=(4,))
    assert_same_bits(solve_all((5, 60, 62), options))


@pytest.mark.parametrize(
    "terms",
    [
        {"squarings": 5},
        {"trust_cost": 1.0},
        {"feature_similarity": "cosine"},
        {"feature_similarity": "lncc"},
        {},
    ],
)
def test_similarities_and_velocity(terms):
    options = solver_options(
        search_radius=(1, 1, 1), iterations=(2, 2), correlation_weight=1.5, **terms
    )
    assert_same_bits(solve_all((22, 24, 26), options))


@pytest.mark.parametrize("shape", [(40, 33, 35), (3, 90, 91)])
def test_mind(shape, rng):
    image = rng.normal(size=shape).astype(np.float32)
    case = {"radius": (1, 1, 1), "dilation": (2, 2, 2), "pool": (2, 2, 2)}
    assert_same_bits([(mind_ssc(image, **case, threads=t),) for t in (*THREADS, 0)])


@pytest.mark.parametrize("content", [0, 0x2F, 0xFF])
def test_memory_of_an_earlier_call(rng, content):
    """A workspace is used again, and what is left in it changes nothing."""
    image = rng.normal(size=(9, 12, 35)).astype(np.float32)
    case = {"radius": (1, 1, 1), "dilation": (2, 2, 2), "pool": (2, 2, 2), "threads": 1}
    options = solver_options(search_radius=(1, 1, 1), iterations=(2, 2), correlation_weight=1.5)

    def results():
        features = mind_ssc(image, **case)
        weight = np.ones(features.shape[:3], np.float32)
        found = solve(features, features[::-1].copy(), weight, weight,
                      images=(weight, weight), spacing_mm=(2, 2, 2), options=options)  # fmt: skip
        return features, found.field

    with shared_workspace():
        spare = _arrays._spare.get()
        results()
        used = spare[0]
        used[:] = content
        again = results()
        assert spare[0] is used
    assert _arrays._spare.get() is None
    assert_same_bits([results(), again])


def test_resample_jacobian_and_compose(rng):
    image = rng.normal(size=(20, 33, 35)).astype(np.float32)
    field = rng.normal(size=(20, 33, 35, 3)).astype(np.float32)
    assert_same_bits(
        [
            (
                resample(
                    image, image.shape, np.eye(3, 4), field=field, samples=(2, 1, 1), threads=t
                ),
                jacobian_determinant(field, np.eye(3), threads=t),
                compose(field, field, (1, 2, 3), threads=t),
            )
            for t in (*THREADS, 0)
        ]
    )


def test_slices(rng):
    image = rng.normal(size=(5, 33, 70)).astype(np.float32).transpose(1, 2, 0)
    case = {"window": (-1.0, 1.0), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    assert_same_bits(
        [(cut_slices(image, range(33), (60, 3), samples=(1, 2), **case, threads=t),)
         for t in (*THREADS, 0)]
    )  # fmt: skip


def test_pooled_features(rng):
    features, weight = np.float16(waves((20, 33, 35))), np.float32(rng.random((20, 33, 35)))
    assert_same_bits([pool_features(features, weight, (2, 3, 2), threads=t) for t in (*THREADS, 0)])


def test_a_volume_that_is_part_of_a_larger_buffer(rng):
    """Nothing outside the arrays is read, so other numbers around them change no bit."""
    shape = (7, 9, 11)
    features, weight = np.float16(waves(shape)), np.float32(rng.random(shape))
    options = solver_options(search_factor=(2, 2, 2), search_radius=(1, 1, 1), iterations=(2,))
    results = []
    for filling in (0.0, 100.0):
        arrays = []
        for array in (features, features[::-1], weight, weight):
            buffer = np.full(array.size + 512, filling, array.dtype)
            start = (-buffer.ctypes.data % 64) // array.itemsize + 128
            inner = buffer[start : start + array.size].reshape(array.shape)
            inner[...] = array
            arrays.append(inner)
        results.append((solve(*arrays, spacing_mm=(2, 2, 2), options=options).field,))
    assert_same_bits(results)


def test_spread(rng):
    """Groups of shifts are added in order for any number of threads."""
    shape = (24, 33, 35)
    features, weight = np.float16(waves(shape)), np.float32(rng.random(shape))
    options = solver_options(search_factor=(2, 2, 2), search_radius=(2, 3, 2), iterations=(0,))
    results = []
    for threads in (*THREADS, 0):
        arrays = (features, features[:, ::-1].copy(), weight, weight)
        solution = solve(
            *arrays, spacing_mm=(2, 2, 2), options=options, spread=True, threads=threads
        )
        results.append((solution.spread,))
    assert_same_bits(results)


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"squarings": 5},
        {"feature_similarity": "cosine", "trust_cost": 1.0},
        {"feature_similarity": "lncc"},
    ],
)
@pytest.mark.gpu
def test_on_a_gpu(gpu, terms):
    """The same bits from run to run, and the CPU's field to the tolerance.

    With one iteration per level everything is launched; further iterations are a CUDA graph.
    """
    shape = (22, 24, 26)
    rng = np.random.default_rng(1)
    arrays = (np.float16(waves(shape)), np.float16(waves(shape, (0.7, -1.6, 1.2))))
    arrays += (np.float32(rng.random(shape)),) * 2
    images = (np.float32(arrays[0][..., 0]), np.float32(arrays[1][..., 1]))
    for iterations in ((1, 1), (5, 4)):
        options = solver_options(
            search_radius=(1, 2, 2), iterations=iterations, correlation_weight=1.5, **terms
        )
        on_cpu = solve(*arrays, images=images, spacing_mm=(2, 2, 2), options=options)
        there = [gpu.put(a) for a in (*arrays, *images)]
        found = [
            solve(*there[:4], images=tuple(there[4:]), spacing_mm=(2, 2, 2), options=options)
            for _ in range(2)
        ]
        assert_same_bits([(gpu.get(s.field), gpu.get(s.feature_distance)) for s in found])
        gpu.check(found[0].field, on_cpu.field, "field_mm")


def test_a_thousand_threads_are_no_more_than_help():
    """They would take minutes on a machine with few processors, and they change no bit."""
    image = np.random.default_rng(0).random((40, 64, 64)).astype(np.float32)
    results = [
        [resample(image, image.shape, np.eye(3, 4), threads=threads)] for threads in (1, 1024)
    ]
    assert_same_bits(results)
