"""What the library and its binding refuse, with their messages; and the progress callback."""

from __future__ import annotations

import dataclasses
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from solving import solver_options

import dinoreg_kernels
from dinoreg_kernels import (
    KernelError,
    SearchFeatures,
    build_info,
    compose,
    coverage,
    cuda_devices,
    cut_slices,
    invert,
    jacobian_determinant,
    map_field,
    mind_ssc,
    pool_features,
    resample,
    resample_labels,
    solve,
    solver_workspace_bytes,
)

IDENTITY = np.eye(3, 4)
IMAGE = np.zeros((4, 5, 6), np.float32)
FIELD = np.zeros((4, 5, 6, 3), np.float32)
OPTIONS = solver_options(search_factor=(2, 2, 2), search_radius=(1, 1, 1), iterations=(2, 3))


def run_solve(options=OPTIONS, **change):
    arguments = {
        "fixed": np.zeros((4, 5, 6, 8), np.float16),
        "moving": np.zeros((4, 5, 6, 8), np.float16),
        "fixed_weight": np.ones((4, 5, 6), np.float32),
        "moving_weight": np.ones((4, 5, 6), np.float32),
        "spacing_mm": (1, 1, 1),
    }
    return solve(**(arguments | change), options=options)


def search_features(shape=(4, 5, 6), channels=16, *, used=None, weight=np.float32, skip=0):
    count = int(np.prod(shape)) * channels
    features = np.zeros(count + skip, np.float16)[skip:].reshape(*shape, channels)
    weights = np.ones(shape, weight)
    return SearchFeatures(features, features, weights, weights, used)


def run_invert(**change):
    arguments = {
        "spacing_mm": (1, 1, 1),
        "matrix": np.eye(3),
        "target": IDENTITY,
        "from_point": IDENTITY,
        "from_index": -IDENTITY,
    }
    return invert(FIELD, (4, 5, 6), **(arguments | change))


def run_cut(image=IMAGE, slices=(0, 3), **change):
    arguments = {"size": (7, 8), "window": (0.0, 1.0), "mean": (0.5, 0.4), "std": (0.2, 0.3)}
    return cut_slices(image, slices, **(arguments | change))


def run_pool(features=None, **change):
    features = np.zeros((4, 5, 6, 8), np.float16) if features is None else features
    arguments = {"weight": np.ones((4, 5, 6), np.float32), "factor": (2, 2, 2)}
    return pool_features(features, **(arguments | change))


def test_build_info():
    info = build_info()
    assert info.version == "0.1"
    assert info.isa in ("x86-64-v4", "x86-64-v3", "generic")
    devices = cuda_devices()
    assert devices.count == 0 or info.cuda_built
    assert bool(devices.problem) == (devices.count == 0)
    assert info.cuda_built or "built without CUDA (" in devices.problem


def test_every_public_name_is_there():
    for name in dinoreg_kernels.__all__:
        assert hasattr(dinoreg_kernels, name)


NAN_MAP = np.full((3, 4), np.nan)
REFUSED = {
    "image type": (lambda: resample(np.zeros((2, 2, 2)), (2, 2, 2), IDENTITY),
                   r"image is float64; wanted float32"),
    "image layout": (lambda: resample(IMAGE.T, (2, 2, 2), IDENTITY), r"image is not C-contiguous"),
    "two axes": (lambda: resample(IMAGE[0], (2, 2, 2), IDENTITY),
                 r"image has shape \(5, 6\); wanted \(any, any, any\)"),
    "empty axis": (lambda: resample(IMAGE[:0], (2, 2, 2), IDENTITY),
                   r"in_shape = \(0, 5, 6\); wanted 1..32768 on each axis"),
    "huge axis": (lambda: resample(np.zeros((1, 1, 40000), np.float32), (2, 2, 2), IDENTITY),
                  r"in_shape = \(1, 1, 40000\); wanted 1..32768"),
    "empty output": (lambda: resample(IMAGE, (2, 0, 2), IDENTITY), r"out_shape = \(2, 0, 2\)"),
    "matrix size": (lambda: resample(IMAGE, (2, 2, 2), np.eye(4)),
                    r"index_map has 16 numbers; wanted 12"),
    "matrix values": (lambda: resample(IMAGE, (2, 2, 2), NAN_MAP),
                      r"map.affine\[0\] is not a finite number"),
    "field type": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, field=FIELD.astype(float)),
                   r"field is float64; wanted float32"),
    "to_field": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, field=FIELD, to_field=NAN_MAP),
                 r"map.to_field\[0\] is not a finite number"),
    "samples": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, samples=(1, 0, 1)),
                r"samples\[1\] = 0; wanted 1..64"),
    "inside": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, inside=np.zeros((2, 2, 3), np.float32)),
               r"inside has shape \(2, 2, 3\); wanted \(2, 2, 2\)"),
    "threads": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, threads=-1),
                r"threads = -1; wanted 0..1024"),
    "too many threads": (lambda: resample(IMAGE, (2, 2, 2), IDENTITY, threads=100_000),
                         r"threads = 100000; wanted 0..1024"),
    "labels type": (lambda: resample_labels(IMAGE, (2, 2, 2), IDENTITY),
                    r"labels is float32; wanted int32"),
    "slices type": (lambda: run_cut(IMAGE.astype(int)), r"image is int64; wanted float32"),
    "slices empty axis": (lambda: run_cut(IMAGE[:, :0]), r"shape = \(4, 0, 6\); wanted 1..32768"),
    "slices window": (lambda: run_cut(window=(1.0, 1.0)),
                      r"window = \(1, 1\); wanted the second above the first"),
    "slices window values": (lambda: run_cut(window=(0.0, np.inf)),
                             r"window\[1\] is not a finite number"),
    "no slices": (lambda: run_cut(slices=()), r"\(count, size\) = \(0, 7, 8\); wanted 1..32768"),
    "slices index": (lambda: run_cut(slices=(0, 4)), r"slices\[1\] = 4; wanted 0..3"),
    "slices samples": (lambda: run_cut(samples=(1, 65)), r"samples\[1\] = 65; wanted 1..64"),
    "slices size": (lambda: run_cut(size=(7, 8, 9)), r"size has 3 numbers; wanted 2"),
    "slices std": (lambda: run_cut(std=(0.2, 0.0)), r"std\[1\] = 0; wanted > 0"),
    "slices mean": (lambda: run_cut(mean=(0.5, np.nan)), r"mean\[1\] is not a finite number"),
    "slices channels": (lambda: run_cut(mean=(0.5,) * 5, std=(0.2,) * 5),
                        r"channels = 5; wanted 1..4"),
    "slices steps": (lambda: run_cut(np.lib.stride_tricks.as_strided(
                         IMAGE, (2, 2, 2), (3 * 2**32, 4, 4))),
                     r"steps of image = \[3221225472, 1, 1\]; wanted 32-bit integers"),
    "slices parts of numbers": (lambda: run_cut(np.lib.stride_tricks.as_strided(
                                    IMAGE, (2, 2, 2), (12, 6, 4))),
                                r"image has strides of \[12, 6, 4\] bytes"),
    "map_field": (lambda: map_field((2, 2, 2), IDENTITY, FIELD, matrix=np.full((3, 3), np.inf)),
                  r"map.matrix\[0\] is not a finite number"),
    "jacobian": (lambda: jacobian_determinant(FIELD, np.full(9, np.nan)),
                 r"index_from_unit\[0\] is not a finite number"),
    "compose": (lambda: compose(FIELD, FIELD, (1, 0, 1)), r"spacing_mm\[1\] = 0; wanted > 0"),
    "invert iterations": (lambda: run_invert(iterations=0), r"iterations = 0; wanted 1..10000"),
    "invert too often": (lambda: run_invert(iterations=10_001), r"10001; wanted 1..10000"),
    "invert wanted": (lambda: run_invert(wanted=np.zeros((4, 5, 6, 2), np.float32)),
                      r"wanted has shape \(4, 5, 6, 2\); wanted \(4, 5, 6, 3\)"),
    "invert tolerance": (lambda: run_invert(tolerance_mm=0.0),
                         r"tolerance_mm\[0\] = 0; wanted > 0"),
    "pool weight": (lambda: run_pool(weight=np.ones((4, 5, 7), np.float32)),
                    r"weight has shape \(4, 5, 7\); wanted \(4, 5, 6\)"),
    "pool channels": (lambda: run_pool(np.zeros((4, 5, 6, 12), np.float16)),
                      r"channels = 12; wanted a multiple of 8"),
    "pool factor": (lambda: run_pool(factor=(2, 0, 2)), r"factor\[1\] = 0; wanted 1..64"),
    "pool offset": (lambda: run_pool(offset=(0, 0, 2)), r"offset\[2\] = 2; wanted 0..1"),
    "mind radius": (lambda: mind_ssc(IMAGE, radius=(1, -1, 1), dilation=(1, 1, 1)),
                    r"radius\[1\] = -1; wanted 0..64"),
    "mind dilation": (lambda: mind_ssc(IMAGE, radius=(1, 1, 1), dilation=(1, 1, 0)),
                      r"dilation\[2\] = 0; wanted 1..64"),
    "mind channels": (lambda: mind_ssc(IMAGE, radius=(1, 1, 1), dilation=(1, 1, 1), channels=12),
                      r"channels = 12; wanted a multiple of 8, at least 12"),
    "mind structure": (lambda: mind_ssc(IMAGE, radius=(1,) * 3, dilation=(1,) * 3,
                                        structure=np.zeros((4, 5, 5), np.float32)),
                       r"structure has shape \(4, 5, 5\); wanted \(4, 5, 6\)"),
    "mind scale": (lambda: mind_ssc(IMAGE, radius=(1,) * 3, dilation=(1,) * 3, scale=np.nan),
                   r"scale is not a finite number"),
    "features type": (lambda: run_solve(fixed=np.zeros((4, 5, 6, 8), np.float32)),
                      r"fixed is float32; wanted float16"),
    "features stride": (lambda: run_solve(fixed=np.zeros((4, 5, 6, 12), np.float16),
                                          moving=np.zeros((4, 5, 6, 12), np.float16)),
                        r"stride = 12; wanted a multiple of 8"),
    "used channels": (lambda: run_solve(channels=9), r"channels = 9; wanted 1..stride = 8"),
    "unequal channels": (lambda: run_solve(moving=np.zeros((4, 5, 6, 16), np.float16)),
                         r"moving has shape \(4, 5, 6, 16\); wanted \(4, 5, 6, 8\)"),
    "weight shape": (lambda: run_solve(fixed_weight=np.ones((4, 5, 5), np.float32)),
                     r"fixed_weight has shape \(4, 5, 5\); wanted \(4, 5, 6\)"),
    "spacing": (lambda: run_solve(spacing_mm=(1, -1, 1)), r"spacing_mm\[1\] = -1; wanted > 0"),
    "offset": (lambda: run_solve(moving_offset=(0, 99999, 0)), r"moving_offset\[1\] = 99999"),
    "unaligned": (lambda: run_solve(fixed=np.zeros(968, np.float16)[1:961].reshape(4, 5, 6, 8)),
                  r"features must be 16-byte aligned"),
    "search levels": (lambda: run_solve(search=[search_features()] * 2),
                      r"search has features for 2 levels; wanted them for search_levels = 1"),
    "no search features": (lambda: run_solve(search=[]), r"search has features for 0 levels"),
    "search stride": (lambda: run_solve(search=[search_features(channels=12)]),
                      r"search_features\[0\].stride = 12; wanted a multiple of 8"),
    "search channels": (lambda: run_solve(search=[search_features(used=17)]),
                        r"search_features\[0\].channels = 17; wanted 1..stride = 16"),
    "search grid": (lambda: run_solve(search=[search_features(shape=(4, 5, 7))]),
                    r"search\[0\].fixed has shape \(4, 5, 7, 16\); wanted \(4, 5, 6, any\)"),
    "search weight": (lambda: run_solve(search=[search_features(weight=np.float64)]),
                      r"search\[0\].fixed_weight is float64; wanted float32"),
    "search unaligned": (lambda: run_solve(search=[search_features(skip=1)]),
                         r"search_features\[0\]: features must be 16-byte aligned"),
    "search strides": (
        lambda: solver_workspace_bytes((4,) * 3, (4,) * 3, 8, (1, 1, 1), OPTIONS,
                                       search_strides=(8, 8)),
        r"search has features for 2 levels"),
    "within a number": (lambda: resample(
        np.zeros(481, np.uint8)[1:].view(np.float32).reshape(4, 5, 6), (2, 2, 2), IDENTITY),
        r"image begins at 0x[0-9a-f]+, unaligned for float32; copy it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, words = REFUSED[name]
    with pytest.raises(KernelError, match=words):
        call()


OPTION_ERRORS = [
    ({"search_factor": (0, 1, 1)}, r"search_factor\[0\] = 0; wanted 1..256"),
    ({"search_radius": (1, 1, 65)}, r"search_radius\[2\] = 65; wanted 0..64"),
    ({"search_levels": 0}, r"search_levels = 0; wanted 1..4"),
    ({"search_levels": 5}, r"search_levels = 5; wanted 1..4"),
    ({"coupling": (0.1,) * 65}, r"coupling_rounds = 65; wanted 0..64"),
    ({"kept_costs_mb": -1}, r"kept_costs_mb = -1; wanted >= 0"),
    ({"consistency_rounds": 1001}, r"consistency_rounds = 1001; wanted 0..1000"),
    ({"consistency_rounds": -1}, r"consistency_rounds = -1; wanted 0..1000"),
    ({"iterations": ()}, r"levels = 0; wanted 1..6"),
    ({"iterations": (1,) * 7}, r"levels = 7; wanted 1..6"),
    ({"iterations": (3, -1)}, r"iterations\[1\] = -1; wanted >= 0"),
    ({"learning_rate_mm": 0.0}, r"learning_rate_mm\[0\] = 0; wanted > 0"),
    ({"search_trust_cost": -1.0}, r"search_trust_cost = -1; wanted >= 0"),
    ({"cost_smoothing_mm": -1.0}, r"cost_smoothing_mm = -1; wanted >= 0"),
    ({"field_smoothing_mm": float("nan")}, r"field_smoothing_mm = -?nan; wanted >= 0"),
    ({"smoothing_mm": float("inf")}, r"smoothing_mm = inf; wanted >= 0"),
    ({"smoothness": -0.5}, r"smoothness = -0.5; wanted >= 0"),
    ({"fold_penalty": -2.0}, r"fold_penalty = -2; wanted >= 0"),
    ({"fold_margin": -0.1}, r"fold_margin = -0.1; wanted >= 0"),
    (
        {"feature_similarity": "ncc"},
        r"feature_similarity is 'ncc'; wanted one of mse, cosine, lncc",
    ),
    (
        {"feature_similarity": "lncc", "trust_cost": 2.0},
        r"trust_cost = 2 with DR_FEATURES_LNCC, .*; wanted 0",
    ),
    (
        {"feature_similarity": "lncc", "correlation_window_mm": 0.0},
        r"correlation_window_mm\[0\] = 0; wanted > 0",
    ),
    (
        {"feature_similarity": "lncc", "correlation_noise": 0.0},
        r"correlation_noise\[0\] = 0; wanted > 0",
    ),
]


@pytest.mark.parametrize(("change", "words"), OPTION_ERRORS)
def test_options_refused(change, words):
    with pytest.raises(KernelError, match=words):
        run_solve(dataclasses.replace(OPTIONS, **change))


def test_wrong_number_of_spacings():
    with pytest.raises(KernelError, match=r"spacing_mm has 2 numbers; wanted 3"):
        run_solve(spacing_mm=(1, 1))


def test_kept_costs_are_part_of_the_workspace_up_to_their_limit():
    """The costs of 27 shifts on a search grid of 64^3 are 27 MiB."""
    sizes = []
    for kept_costs_mb in (0, 26, 27, 256):
        options = solver_options(
            search_factor=(1, 1, 1), search_radius=(1, 1, 1), kept_costs_mb=kept_costs_mb
        )
        sizes.append(solver_workspace_bytes((64,) * 3, (64,) * 3, 8, (1, 1, 1), options))
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3]
    assert sizes[2] - sizes[0] < 27 << 20


def test_workspace_size_grows_with_the_volume_and_refuses_like_the_solver():
    small = solver_workspace_bytes((8, 8, 8), (8, 8, 8), 8, (1, 1, 1), OPTIONS)
    large = solver_workspace_bytes((16, 16, 16), (16, 16, 16), 8, (1, 1, 1), OPTIONS)
    assert 0 < small < large
    refine = dataclasses.replace(OPTIONS, search_radius=(0, 0, 0))
    correlate = dataclasses.replace(refine, feature_similarity="lncc")
    few, many = (
        solver_workspace_bytes((16, 16, 16), (16, 16, 16), stride, (1, 1, 1), correlate)
        - solver_workspace_bytes((16, 16, 16), (16, 16, 16), stride, (1, 1, 1), refine)
        for stride in (8, 64)
    )
    # Eleven images of the finest level, not two for each channel, and the mean of |F|^2. With 64
    # channels the coarse features of the refinement are larger.
    assert few == 11 * 4 * 16**3 + 256
    assert 0 < many <= few
    with pytest.raises(KernelError, match="stride = 9; wanted a multiple of 8"):
        solver_workspace_bytes((8, 8, 8), (8, 8, 8), 9, (1, 1, 1), OPTIONS)


def test_an_error_leaves_the_library_usable():
    with pytest.raises(KernelError):
        run_solve(spacing_mm=(0, 1, 1))
    assert not run_solve().field.any()


# ---- progress -------------------------------------------------------------------------------


def test_progress_is_reported_in_order_up_to_one():
    calls = []
    run_solve(progress=lambda stage, fraction: calls.append((stage, fraction)))
    for stage in ("search", "refine"):
        fractions = [f for s, f in calls if s == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert all(0 < f <= 1 for f in fractions)
    stages = [s for s, _ in calls]
    assert stages == sorted(stages, key=("search", "refine").index)
    assert stages.count("refine") == sum(OPTIONS.iterations)


def test_progress_changes_nothing():
    rng = np.random.default_rng(2)
    features = {k: np.float16(rng.random((4, 5, 6, 8))) for k in ("fixed", "moving")}
    plain = run_solve(**features)
    watched = run_solve(**features, progress=lambda *_: None)
    np.testing.assert_array_equal(plain.field, watched.field)


@pytest.mark.parametrize("stage", ["search", "refine"])
@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()])
def test_an_exception_in_the_callback_stops_the_solve_and_comes_out(stage, error):
    calls = []

    def progress(now, fraction):
        calls.append(now)
        if now == stage:
            raise error

    with pytest.raises(type(error)) as caught:
        run_solve(progress=progress)
    assert caught.value is error
    assert calls.count(stage) == 1
    assert calls[-1] == stage


def test_cancelling_is_prompt():
    """A solve that would take minutes ends at the first report."""
    options = dataclasses.replace(OPTIONS, iterations=(10**8,))

    def stop(stage, fraction):
        if stage == "refine":
            raise TimeoutError

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        run_solve(options, progress=stop)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: jacobian_determinant(np.zeros((4, 5, 3), np.float32), np.eye(3)),
            r"field has shape \(4, 5, 3\); wanted \(any, any, any, 3\)",
        ),
        (
            lambda: mind_ssc(np.zeros((4, 5), np.float32), radius=(1,) * 3, dilation=(1,) * 3),
            r"image has shape \(4, 5\); wanted \(any, any, any\)",
        ),
        (
            lambda: run_solve(
                fixed=np.zeros((4, 5, 8), np.float16), moving=np.zeros((4, 5, 8), np.float16)
            ),
            r"fixed has shape \(4, 5, 8\); wanted \(any, any, any, any\)",
        ),
        (
            lambda: resample([[[1.0]]], (1, 1, 1), IDENTITY),
            "image is a list; wanted a NumPy or CuPy array",
        ),
    ],
)
def test_arrays_of_another_rank_are_refused(call, text):
    with pytest.raises(KernelError, match=text):
        call()


class OnDevice:
    """An array with the interface of a CuPy array."""

    dtype, shape = np.dtype(np.float32), (4, 5, 6)
    flags = SimpleNamespace(c_contiguous=True)

    def __init__(self, index):
        self.device = SimpleNamespace(id=index)
        self.__cuda_array_interface__ = {"data": (512, False)}


def test_arrays_of_two_places_are_refused():
    text = "must be on the host or on one device; got fixed on the host, .* on CUDA device 1"
    with pytest.raises(KernelError, match=text):
        run_solve(images=(IMAGE, OnDevice(1)))
    with pytest.raises(KernelError, match="image on CUDA device 0, inside on CUDA device 1"):
        resample(OnDevice(0), (4, 5, 6), IDENTITY, inside=OnDevice(1))


def test_arrays_of_a_device_that_is_not_current_are_refused(monkeypatch):
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: 0))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(KernelError, match=r"call this within `cupy.cuda.Device\(1\)`"):
        coverage(OnDevice(1), (4, 5, 6), IDENTITY)
