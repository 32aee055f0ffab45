"""A whole registration as on a CUDA device, in host memory with the CPU's kernels: same bits."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_on_host import DeviceArray, Stream
from encoders import write_bundle

import dinoreg_rt
from dinoreg_kernels import SolverOptions, solve
from dinoreg_rt import Placement
from dinoreg_rt.bench.measure import BenchRequest, run_bench
from dinoreg_rt.device.ceilings import Ceilings
from dinoreg_rt.device.choice import Device
from dinoreg_rt.errors import DeviceError, RegistrationError, ResourceError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.registration import planning
from dinoreg_rt.types import Geometry

GRID = phantom_grid((20, 24, 28), 4.0)
VALUES = {"threads": 1, "iterations": (3, 2), "inverse": True, "confidence": True, "cache": False}
STAGES = [
    "plan",
    "modality",
    "alignment",
    "field of view",
    "features",
    "solve",
    "trust",
    "warp",
    "quality",
    "hash",
    "deliver",
]


@pytest.fixture(scope="module")
def pair():
    return phantom_pair(GRID)


def config(device: str, **more: object) -> dinoreg_rt.RegistrationConfig:
    return dinoreg_rt.RegistrationConfig(device=device, **(VALUES | more))


def check_same(result, expected) -> None:
    for one, other in (
        (result.displacement.vectors_mm, expected.displacement.vectors_mm),
        (result.warped.array, expected.warped.array),
        (result.inverse.vectors_mm, expected.inverse.vectors_mm),
        (result.confidence.array, expected.confidence.array),
    ):
        host = one.get() if isinstance(one, DeviceArray) else one
        np.testing.assert_array_equal(host, other)
    assert result.quality == expected.quality
    assert result.hashes == expected.hashes


def check_devices(pair, placement=None, **more: object) -> dinoreg_rt.RegistrationResult:
    """Check that the device gives the bits of the CPU, and return its result."""
    expected = dinoreg_rt.register(*pair, config=config("cpu", **more))
    result = dinoreg_rt.register(*pair, config=config("cuda", **more), placement=placement)
    check_same(result, expected)
    return result


@pytest.mark.parametrize("initial", ["none", "centre", "moments", "affine"])
def test_host_images(cupy, pair, initial) -> None:
    result = check_devices(pair, initial=initial)
    assert isinstance(result.displacement.vectors_mm, np.ndarray)
    assert result.choices["device"] == "cuda:0, as asked"
    assert list(result.timings_ms) == STAGES


def test_search_of_two_levels(cupy, pair) -> None:
    two = check_devices(pair, initial="none", search_levels=2)
    one = dinoreg_rt.register(*pair, config=config("cpu", initial="none"))
    assert (one.displacement.vectors_mm != two.displacement.vectors_mm).any()


@pytest.mark.parametrize("similarity", ["cosine", "lncc"])
def test_similarity_of_features(cupy, pair, similarity) -> None:
    check_devices(pair, initial="none", feature_similarity=similarity)


def test_images_on_the_device_and_results_that_stay(cupy, pair) -> None:
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    mask[2:, 3:-2] = 1
    masks = {"fixed_mask": (mask, GRID), "moving_mask": (mask, GRID)}
    expected = dinoreg_rt.register(*pair, config=config("cpu"), keep_features=True, **masks)
    images = [(DeviceArray(volume.array), GRID) for volume in pair]
    with dinoreg_rt.Registrar(config("cuda:0")) as registrar:
        registrar.warm_up()
        cupy.entered.clear()
        result = registrar.register(
            *images, placement=Placement(on_device=True), stream=0x70, keep_features=True, **masks
        )
    assert isinstance(result.displacement.vectors_mm, DeviceArray)
    assert isinstance(result.warped.array, DeviceArray)
    assert isinstance(result.inverse.vectors_mm, DeviceArray)
    check_same(result, expected)
    np.testing.assert_array_equal(result.features.moving, expected.features.moving)
    assert cupy.entered[:2] == [("device", 0), ("stream", 0x70)]
    assert cupy.entered[-2:] == [("stream left", 0x70), ("device left", 0)]
    assert ("synchronize", 0) not in cupy.entered  # nothing waits for the whole device


@pytest.mark.parametrize("initial", ["auto", "centre", "moments"])
def test_planning_copies_hardly_anything_to_the_host(cupy, initial) -> None:
    """Of an image on the device only a sample of values, a bit for each coarse voxel, and sums."""
    grid = phantom_grid((96, 96, 96), 2.0)
    images = [(DeviceArray(volume.array), grid) for volume in phantom_pair(grid)]
    pool = cupy.get_default_memory_pool()
    pool.reads.clear()
    pool.read_bytes.clear()
    plan = dinoreg_rt.plan(*images, config=config("cuda", initial=initial, threads=2))
    assert all(isinstance(image.array, DeviceArray) for image in plan.images)
    assert plan.pair[0].body is not None
    (reads,), (size,) = pool.reads.values(), pool.read_bytes.values()
    # Extremes of both images when they are checked (4); sample and window of each (4); bodies (2);
    # the contrast (1). `moments`: the two centres. `auto`: the background of each (2), the sides
    # (1), the candidates (1), their quick matches (1), the matched cells (1), and for each round of
    # fits the matches and the fits.
    assert reads <= {"auto": 24, "centre": 11, "moments": 13}[initial]
    # Measured: 0.97 MB with a search, 0.75 MB without; an image is 3.5 MB.
    assert size < 1.1e6


def test_an_image_on_the_host_is_uploaded_once(cupy, pair, monkeypatch) -> None:
    uploads = []
    real = Device.upload

    def upload(self, array, dtype):
        if isinstance(array, np.ndarray):
            uploads.append(array.nbytes)
        return real(self, array, dtype)

    monkeypatch.setattr(Device, "upload", upload)
    dinoreg_rt.register(*pair, config=config("cuda", initial="affine"))
    assert sum(size == pair[0].array.nbytes for size in uploads) == 2


@pytest.mark.parametrize("place", ["host", "device"])
def test_linear_registration(cupy, pair, place) -> None:
    more = {"transform": "affine", "inverse": False, "confidence": False}
    expected = dinoreg_rt.register(*pair, config=config("cpu", **more))
    images = pair if place == "host" else [(DeviceArray(v.array), GRID) for v in pair]
    result = dinoreg_rt.register(*images, config=config("cuda", **more))
    np.testing.assert_array_equal(result.affine.matrix, expected.affine.matrix)
    np.testing.assert_array_equal(result.warped.array, expected.warped.array)


def test_nothing_left_to_compare_is_found_at_the_end(cupy, pair) -> None:
    """A weight is checked with all other numbers of the result, because that waits."""
    width = GRID.shape_xyz[0] * GRID.spacing_mm[0]
    beside = replace(GRID, origin_mm=np.add(GRID.origin_mm, (0.9 * width, 0, 0)))
    moving = replace(pair[1], geometry=beside)
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    mask[:, :, GRID.shape_zyx[2] // 2 :] = 1  # out of reach
    for device in ("cpu", "cuda"):
        with pytest.raises(RegistrationError, match="nothing of the moving image is left to comp"):
            dinoreg_rt.register(
                pair[0],
                moving,
                config=config(device, initial="none", search_radius_mm=8.0),
                moving_mask=(mask, beside),
            )


@pytest.mark.parametrize(
    ("device", "initial", "searches"),
    [("cuda", "auto", 1), ("cuda", "centre", 0), ("cpu", "auto", 0)],
)
def test_warming_up_loads_what_planning_uses(cupy, monkeypatch, device, initial, searches) -> None:
    searched = []
    real = planning.search_alignment

    def search(*args: Any, **more: Any) -> Any:
        searched.append(args[3].kind)
        return real(*args, **more)

    monkeypatch.setattr(planning, "search_alignment", search)
    with dinoreg_rt.Registrar(config(device, initial=initial)) as registrar:
        registrar.warm_up()
    assert searched == ["cuda"] * searches


def test_work_leaves_the_default_stream(cupy, pair) -> None:
    """There it would wait for all blocking streams of the process; results stay in order."""
    images = [(DeviceArray(volume.array), GRID) for volume in pair]
    dinoreg_rt.register(*images, config=config("cuda"), placement=Placement(on_device=True))
    (ours,) = cupy.launched_on
    assert ours not in (0, 1, 2)
    log = cupy.entered
    first, left = log.index(("stream", ours)), log.index(("stream left", ours))
    assert log.index(("0x0 awaited", ours)) < first  # ours waits for the caller's queued work
    assert log.index((f"{ours:#x} awaited", 0)) > left  # the caller's continues after ours
    # The stream is reused: CuPy's pool keeps memory freed on a stream for that stream.
    with pytest.raises(ZeroDivisionError):
        dinoreg_rt.register(*images, config=config("cuda"), progress=lambda *_: 1 / 0)
    dinoreg_rt.register(*images, config=config("cuda"))
    assert cupy.launched_on == {ours}
    # A stream that the caller has made current is kept.
    cupy.launched_on.clear()
    with cupy.cuda.Stream(non_blocking=True) as theirs:
        dinoreg_rt.register(*images, config=config("cuda"))
    assert cupy.launched_on == {theirs.ptr}


def test_similarity_read_on_another_stream(cupy) -> None:
    features = DeviceArray(np.ones((6, 6, 6, 8), np.float16))
    weight = DeviceArray(np.ones((6, 6, 6), np.float32))
    options = SolverOptions(search_factor=(1, 1, 1), search_radius=(0, 0, 0), cost_smoothing_mm=0.0,
                            field_smoothing_mm=0.0, coupling=(), consistency_rounds=0,
                            iterations=(1,), learning_rate_mm=4.0, smoothing_mm=5.66,
                            smoothness=1.25, fold_penalty=1.0, fold_margin=0.1)  # fmt: skip
    with cupy.cuda.Stream(non_blocking=True) as stream:
        solution = solve(features, features, weight, weight, spacing_mm=(2, 2, 2), options=options)
    assert ("event", stream.ptr) not in cupy.entered
    assert solution.feature_distance_after == solution.feature_distance_before == 0
    assert cupy.entered.count(("event", stream.ptr)) == 1


def test_a_library_that_cupy_misses(cupy, pair, monkeypatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ImportError("libcusparse.so.12: cannot open shared object file: No such file")

    monkeypatch.setattr("dinoreg_rt.registration.fields.warp_volume", fails)
    with pytest.raises(DeviceError, match=r"cannot load a CUDA library \(libcusparse.*pip install"):
        dinoreg_rt.register(*pair, config=config("cuda"))
    with pytest.raises(ImportError):
        dinoreg_rt.register(*pair, config=config("cpu"))


def test_a_failure_that_cupy_sees_first(cupy, pair, monkeypatch) -> None:
    """Kernels run later than they are queued, so the next call of anyone reports their failure."""
    failure = type("CUDARuntimeError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api"})

    def fails(*_: Any, **__: Any) -> None:
        raise failure("cudaErrorIllegalAddress: an illegal memory access was encountered")

    monkeypatch.setattr("dinoreg_rt.registration.fields.warp_volume", fails)
    monkeypatch.setattr(Stream, "record", fails)  # the order with the caller's stream
    with pytest.raises(DeviceError, match=r"the GPU failed \(cudaErrorIllegalAddress.*start it"):
        dinoreg_rt.register(*pair, config=config("cuda"))


def test_buffers_are_filled_from_the_device(cupy, pair) -> None:
    warped = np.full(GRID.shape_zyx, np.nan, np.float32)
    assert check_devices(pair, Placement(warped=warped)).warped.array is warped


def test_encoder_beside_the_device(cupy, pair, tmp_path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    more = {"encoder": str(write_bundle(tmp_path / "gabor", [(48, 56)])), "engine": "ort-cpu"}
    expected = dinoreg_rt.register(*pair, config=config("cpu", **more))
    images = [(DeviceArray(volume.array), GRID) for volume in pair]
    check_same(dinoreg_rt.register(*images, config=config("cuda", **more)), expected)


def test_an_engine_is_chosen_once(cupy, pair, tmp_path, monkeypatch) -> None:
    """The choice looks into the folder of engines and opens a session of ONNX Runtime."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    looked = []
    for name in ("engine_problem", "provider_problem"):
        monkeypatch.setattr(
            f"dinoreg_rt.engines.selection.{name}",
            lambda *_, name=name: looked.append(name) or "not here",
        )
    encoder = str(write_bundle(tmp_path / "gabor", [(48, 56)]))
    with dinoreg_rt.Registrar(config("cuda", encoder=encoder, axis="axial")) as registrar:
        first, second = (registrar.register(*pair) for _ in range(2))
    assert looked == ["engine_problem", "engine_problem", "provider_problem"]
    assert first.choices["engine"] == second.choices["engine"]
    assert first.choices["engine"].startswith("ort-cpu")


def test_device_memory_that_is_too_little(cupy, pair, monkeypatch) -> None:
    monkeypatch.setattr(cupy.cuda, "Device", _small(cupy.cuda.Device))
    monkeypatch.setattr(cupy.get_default_memory_pool(), "free_bytes", lambda: 0)
    wanted = r"would be needed on cuda:0 in the stage '\w+', and 0 MiB are free"
    with pytest.raises(ResourceError, match=wanted):
        dinoreg_rt.register(*pair, config=config("cuda"))


def test_device_memory_that_is_too_little_for_planning(cupy, pair) -> None:
    cupy.get_default_memory_pool().limit = 3 * pair[0].array.nbytes
    with pytest.raises(ResourceError, match=r"cuda:0 ran out of memory in the stage 'modality'"):
        dinoreg_rt.plan(*pair, config=config("cuda"))


def _small(real: Any) -> Any:
    def device(index: int) -> Any:
        made = real(index)
        made.mem_info = (1000, 80 << 30)
        return made

    return device


def test_work_on_the_cpu_takes_no_device_image(cupy, pair) -> None:
    with pytest.raises(DeviceError, match="the fixed image lies on cuda:0"):
        dinoreg_rt.register((DeviceArray(pair[0].array), GRID), pair[1], config=config("cpu"))


def test_bench_on_a_device(cupy, pair, monkeypatch) -> None:
    ceilings = Ceilings(
        bytes_per_s=1e12,
        vector_per_s=1e13,
        scalar_per_s=1e13,
        matrix_per_s=1e14,
        matrix_type="float16",
        how="made up",
    )
    monkeypatch.setattr("dinoreg_rt.bench.measure.measure_ceilings", lambda device: ceilings)
    # The search for the alignment takes more than the rest of so small a registration.
    settings = config("cuda", initial="centre", body_mask="off")
    report = run_bench(BenchRequest(*pair, settings, runs=2), lambda *_: None)
    assert report.device == "cuda:0, as asked"
    assert cupy.pool_asked_within_a_device  # the pool is that of the current device
    pool_mb = sum(pool.peak for pool in cupy.pools) / 2**20
    assert report.memory["peak_gpu_pool_mb"] == pytest.approx(pool_mb, abs=0.1)
    assert report.memory["predicted_gpu_mb"] >= 0.95 * pool_mb
    assert report.memory["gpu_in_use_mb"] == 20 << 10
    # Two ticks of events, because the solver records one after its work.
    assert report.stages["solve"].warm_ms.p50 == 2.0


def on_the_device(cupy, pair) -> list[tuple[DeviceArray, Geometry]]:
    """Return device arrays that the current stream fills."""
    images = [(DeviceArray(np.empty(GRID.shape_zyx, np.float32)), GRID) for _ in pair]
    for (array, _), volume in zip(images, pair, strict=True):
        array[...] = cupy.asarray(volume.array)
    return images


def test_arrays_that_the_caller_is_still_filling(cupy, pair) -> None:
    """`submit` reads their extremes on the caller's stream, and so waits until they are filled."""
    expected = dinoreg_rt.register(*pair, config=config("cpu"))
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        for stream in (None, 0x70):
            with cupy.cuda.Stream(non_blocking=True):
                future = registrar.submit(*on_the_device(cupy, pair), stream=stream)
            check_same(future.result(), expected)
    assert cupy.races == []


def test_without_that_wait_there_is_a_race(cupy, pair, monkeypatch) -> None:
    monkeypatch.setattr("dinoreg_rt.io.convert.validate.check_values", lambda *_: None)
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        with cupy.cuda.Stream(non_blocking=True):
            future = registrar.submit(*on_the_device(cupy, pair))
        future.result()
    assert "read on 0x0, written on 0x1000" in cupy.races
    cupy.races.clear()


@pytest.mark.parametrize("stream", [None, 0x70])
def test_arrays_are_free_after_a_cancelled_registration(cupy, pair, stream) -> None:
    theirs = cupy.cuda.Stream(non_blocking=True)
    with theirs, dinoreg_rt.Registrar(config("cuda")) as registrar:
        images = on_the_device(cupy, pair)
        submitted = threading.Event()

        def progress(stage: str, fraction: float) -> None:
            submitted.wait()
            if stage == "warp":
                future.cancel()

        future = registrar.submit(*images, progress=progress, stream=stream)
        submitted.set()
        future.wait_until_idle()
        for array, _ in images:
            array[...] = 0.0
    assert future.cancelled()
    assert cupy.races == []
