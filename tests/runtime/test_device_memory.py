"""The GPU memory predicted for each stage is what the arrays of a registration take."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import rich_click as click
from click.testing import CliRunner
from cuda_on_host import DeviceArray, Pool
from encoders import write_bundle

import dinoreg_rt
from dinoreg_rt.commands.main import cli
from dinoreg_rt.commands.options import parse_gigabytes
from dinoreg_rt.device.choice import StageTimer, stage_timer
from dinoreg_rt.encoder import moments
from dinoreg_rt.encoder.cache import TokenCache
from dinoreg_rt.encoder.slice_stack import SliceStack
from dinoreg_rt.encoder.token_writer import WRITER
from dinoreg_rt.engines.cpu import OrtEncoder
from dinoreg_rt.errors import InputError, ResourceError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.io import write_volume
from dinoreg_rt.registration import fields
from dinoreg_rt.registration import register as registration
from dinoreg_rt.registration.memory import fit_to_device

GRID = phantom_grid((72, 80, 88), 2.0)
OTHER = phantom_grid((64, 88, 80), 2.0)
VALUES = {"device": "cuda", "threads": 1, "iterations": (1, 1), "initial": "centre", "cache": False}


def config(**more: Any) -> dinoreg_rt.RegistrationConfig:
    return dinoreg_rt.RegistrationConfig(**(VALUES | more))


@pytest.fixture(scope="module")
def pair() -> Any:
    return phantom_pair(GRID, OTHER)


@pytest.fixture
def timers(monkeypatch) -> list[StageTimer]:
    """The timers of all registrations, in order; the pool counts by their stages."""
    made: list[StageTimer] = []

    def timer(device: Any) -> StageTimer:
        made.append(stage_timer(device))
        return made[-1]

    monkeypatch.setattr(registration, "stage_timer", timer)
    return made


def run(cupy: Any, timers: list[StageTimer], pair: Any, settings: Any) -> Any:
    """Return the result, the peak bytes of each stage, and how often the host read in each."""
    pool = cupy.get_default_memory_pool()
    before, pool.peaks, pool.reads = pool.used, {}, {}
    pool.stage = lambda: timers[-1].running if timers else "plan"
    result = dinoreg_rt.register(*pair, config=settings)
    return result, {stage: peak - before for stage, peak in pool.peaks.items()}, pool.reads


def check(result: Any, measured: dict[str, int], engine: int = 0) -> None:
    memory = result.device_memory
    taken = {
        stage: size + (engine if stage != "field of view" else 0)
        for stage, size in measured.items()
        if stage in memory.stages
    }
    ratios = {stage: memory.stages[stage] / size for stage, size in taken.items()}
    # Rounding to blocks of 512 bytes is not predicted; it is 0.2 % of the smallest of these runs.
    assert min(ratios.values()) >= 0.99, ratios
    # The prediction assumes padding of grids of odd size and the copy of a folding determinant.
    assert max(ratios.values()) <= 1.2, ratios
    assert 0.99 <= memory.peak_bytes / max(taken.values()) <= 1.2


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"inverse": True, "confidence": True},
        {"control_spacing_mm": 2.0},
        {"working_megavoxels": 0.1},
        {"transform": "velocity", "inverse": True, "trust": False},
        {"correlation_weight": 0.0, "body_mask": "off", "intensity": "on"},
    ],
    ids=["default", "all results", "fine control grid", "coarse", "velocity", "features alone"],
)
def test_prediction_beside_the_pool(cupy, timers, pair, more) -> None:
    # Measured: 0.998 to 1.18, for the peaks 0.998 to 1.02, and 1.18 on the coarse grid.
    check(*run(cupy, timers, pair, config(**more))[:2])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"transform": "velocity", "inverse": True},
        {"feature_similarity": "lncc"},
        {"inverse": True, "confidence": True},
    ],
    ids=["default", "velocity", "lncc", "all results"],
)
@pytest.mark.parametrize("place", ["host", "device"])
def test_nothing_waits_before_the_result(cupy, timers, pair, more, place) -> None:
    """The host reads nothing before everything is queued, and then once."""
    if place == "device":
        pair = [(DeviceArray(volume.array), volume.geometry) for volume in pair]
    cupy.entered.clear()
    result, _, reads = run(cupy, timers, pair, config(**more))
    assert not np.isnan(result.quality.decoy_ratio)
    reads.pop("plan", None)
    # In `hash`: images on the device, on a stream of their own that waits for no later work.
    assert reads == ({"hash": 2} if place == "device" else {})
    # All results and all numbers about them arrive together, on a stream of their own.
    waited = [stream for what, stream in cupy.entered if what == "event"]
    assert len([stream for stream in waited if stream not in cupy.launched_on]) == 1
    assert not any("synchronize" in entry for entry in cupy.entered)


@pytest.fixture
def bundle(tmp_path) -> str:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    return str(write_bundle(tmp_path / "gabor", [(96, 112)], patch=4))


@pytest.fixture
def engine(monkeypatch) -> list[int]:
    """An engine that takes and returns arrays on the device, and the batches it was opened for."""
    batches: list[int] = []

    def opened(bundle: Any, graph: Any, engine: str, threads: int, *, batch: int, **_: Any) -> Any:
        real = OrtEncoder(bundle, graph, threads)
        if engine == "ort-cpu":
            return real
        batches.append(batch)

        def encode(pixels: Any) -> DeviceArray:
            assert isinstance(pixels, DeviceArray)
            assert len(pixels) <= batch
            # One slice at a time, because the host's engine rounds differently for other batches.
            parts = [real.encode(np.ascontiguousarray(p)[None]) for p in pixels.host]
            return DeviceArray(np.concatenate(parts))

        return SimpleNamespace(encode=encode, cancel=lambda: None, concurrent=True)

    monkeypatch.setattr("dinoreg_rt.encoder.pair_tokens.open_encoder", opened)
    return batches


def encoder_config(bundle: str, **more: Any) -> dinoreg_rt.RegistrationConfig:
    values = {"encoder": bundle, "engine": "ort-cuda", "mind_weight": 0.5, "slice_stride": 2}
    return config(**(values | more))


def test_tokens_never_leave_the_device(cupy, timers, pair, bundle, engine) -> None:
    """From volume to field the host reads no token, only whether all are finite."""
    result, measured, reads = run(cupy, timers, pair, encoder_config(bundle))
    plan = dinoreg_rt.plan(*pair, encoder_config(bundle))
    assert plan.encoding.tokens_on_device
    assert result.choices["GPU memory"].startswith("tokens on the device, 8 slices at once")
    check(result, measured, plan.encoding.engine_bytes())
    assert reads["encode"] == 2
    # The tokens' means and variances, and what is left of their directions.
    assert reads["features"] == 2
    on_host = {"engine": "ort-cpu", "device": "cpu"}
    expected = dinoreg_rt.register(*pair, config=encoder_config(bundle, **on_host))
    largest = np.abs(expected.displacement.vectors_mm - result.displacement.vectors_mm).max()
    assert largest < 0.05


@pytest.mark.parametrize(
    "more",
    [
        {"mind_weight": 0.0},
        {"search_levels": 2, "search_features": ("encoder", "mind"), "refinement_features": "mind"},
        {"search_levels": 2, "search_features": ("encoder", "joined")},
        {"token_centre": "smooth", "token_scale": "deviation"},
        {"axis": "all"},
    ],
    ids=["MIND for the verdict alone", "encoder leads", "three sets", "standardised", "planes"],
)
def test_prediction_with_features_of_each_stage(cupy, timers, pair, bundle, engine, more) -> None:
    settings = encoder_config(bundle, **more)
    result, measured, _ = run(cupy, timers, pair, settings)
    plan = dinoreg_rt.plan(*pair, settings)
    check(result, measured, plan.encoding.engine_bytes())


def test_prediction_while_the_cache_is_written(
    cupy, timers, pair, bundle, engine, tmp_path, monkeypatch
) -> None:
    """The tokens stay on the device until the writer has read them."""
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    go = threading.Event()
    monkeypatch.setattr(TokenCache, "store", lambda *_: go.wait(60))
    try:
        settings = encoder_config(bundle, cache=True)
        plan = dinoreg_rt.plan(*pair, settings)
        result, measured, _ = run(cupy, timers, pair, settings)
        check(result, measured, plan.encoding.engine_bytes())
        assert plan.encoding.lingering_bytes(settings, on_gpu=True) == plan.encoding.token_bytes(
            plan.encoding.planes[0]
        )
    finally:
        go.set()
        WRITER.wait()


@pytest.fixture
def order(cupy, timers, engine, monkeypatch) -> list[str]:
    """The order in which the stage ``encode`` queues slices and waits, without the writer."""
    seen: list[str] = []
    ours = threading.current_thread()

    def logged(real: Any, what: str) -> Any:
        def call(*args: Any) -> Any:
            here = threading.current_thread() is ours
            if here and timers and timers[-1].running == "encode":
                seen.append(what)
            return real(*args)

        return call

    monkeypatch.setattr(SliceStack, "batch", logged(SliceStack.batch, "batch"))
    monkeypatch.setattr(Pool, "read", logged(Pool.read, "read"))
    return seen


@pytest.mark.parametrize("cache", [False, True])
def test_the_moving_image_is_queued_before_the_fixed_one_is_waited_for(
    cupy, timers, pair, bundle, order, cache, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    settings = encoder_config(bundle, cache=cache)
    first = run(cupy, timers, pair, settings)[0]
    batches = sum(-(-n // 8) for n in first.encoding.planes[0].slices)
    # For each image the sum; tokens go to the cache in the background.
    assert order == ["batch"] * batches + ["read"] * 2
    WRITER.wait()
    second = run(cupy, timers, pair, settings)[0]
    assert second.encoding.planes[0].from_cache == (cache, cache)
    field = first.displacement.vectors_mm
    np.testing.assert_array_equal(second.displacement.vectors_mm, field)


def test_tokens_beyond_half_precision_are_an_error(
    cupy, timers, pair, bundle, engine, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    encode = OrtEncoder.encode
    monkeypatch.setattr(OrtEncoder, "encode", lambda *a: 1e6 * encode(*a))
    with pytest.raises(InputError, match="not finite in half precision"):
        run(cupy, timers, pair, encoder_config(bundle, cache=True))
    assert not (tmp_path / "cache").exists()


def test_tokens_go_to_the_host_behind_the_next_batch(
    cupy, timers, pair, bundle, order, monkeypatch
) -> None:
    settings = encoder_config(bundle)
    on_device = run(cupy, timers, pair, settings)[0]

    def to_host(*of_plan: Any) -> Any:
        sizes, memory = fit_to_device(*of_plan)
        encoding = dataclasses.replace(sizes.encoding, tokens_on_device=False)
        return dataclasses.replace(sizes, encoding=encoding), memory

    monkeypatch.setattr("dinoreg_rt.registration.planning.fit_to_device", to_host)
    order.clear()
    on_host = run(cupy, timers, pair, settings)[0]
    slices = on_host.encoding.planes[0].slices
    expected = []
    for n in (-(-n // 8) for n in slices):
        expected += ["batch", *["batch", "read"] * (n - 1), "read"]
    assert order == [*expected, "read", "read"]
    np.testing.assert_array_equal(
        on_host.displacement.vectors_mm, on_device.displacement.vectors_mm
    )


def test_a_budget_changes_storage_and_batch_but_not_the_result(
    cupy, timers, pair, bundle, engine, monkeypatch
) -> None:
    # Tokens need most of the memory, and the batch the rest: a product takes few of the tokens.
    monkeypatch.setattr("dinoreg_rt.encoder.encoding.activation_bytes", lambda *_, **__: 1 << 20)
    monkeypatch.setitem(moments._NUMBERS, "cuda", 1 << 17)
    tokens_alone = {"slice_stride": 1, "mind_weight": 0.0, "correlation_weight": 0.0}
    tokens_alone |= {"trust": False, "search_levels": 1, "search_memory_mb": 0}
    most = dinoreg_rt.plan(*pair, encoder_config(bundle, **tokens_alone)).device_memory
    assert not most.budget
    seen, fields = [], []
    for share in (1.0, 0.95, 0.8):
        budget_gb = share * most.peak_bytes / 2**30
        settings = encoder_config(bundle, gpu_memory_gb=budget_gb, **tokens_alone)
        plan = dinoreg_rt.plan(*pair, settings)
        assert plan.device_memory.budget
        assert plan.device_memory.peak_bytes <= budget_gb * 2**30
        seen.append((plan.encoding.tokens_on_device, plan.encoding.batch))
        result, measured, _ = run(cupy, timers, pair, settings)
        check(result, measured, plan.encoding.engine_bytes())
        fields.append(result.displacement.vectors_mm)
    assert seen == [(True, 8), (False, 8), (False, 4)]
    assert engine == [8, 8, 4]
    for field in fields[1:]:
        np.testing.assert_array_equal(field, fields[0])
    settings = encoder_config(bundle, gpu_memory_gb=0.005, **tokens_alone)
    with pytest.raises(ResourceError, match=r"and the budget \(--gpu-memory\) is 5 MiB"):
        dinoreg_rt.register(*pair, config=settings)


def test_a_budget_costs_the_search_its_memory_before_tokens_move(
    cupy, timers, pair, bundle, engine, monkeypatch
) -> None:
    monkeypatch.setattr("dinoreg_rt.encoder.encoding.activation_bytes", lambda *_, **__: 1 << 20)
    monkeypatch.setitem(moments._NUMBERS, "cuda", 1 << 17)
    more = {"slice_stride": 1, "mind_weight": 0.0, "correlation_weight": 0.0, "trust": False}
    free = dinoreg_rt.plan(*pair, encoder_config(bundle, **more))
    lean = dinoreg_rt.plan(*pair, encoder_config(bundle, search_memory_mb=0, **more))
    assert "search memory" not in free.choices | lean.choices
    peaks = [plan.device_memory.peak_bytes for plan in (lean, free)]
    assert peaks[0] < peaks[1]
    budget_gb = sum(peaks) / 2 / 2**30
    fields = []
    for budget in ({}, {"gpu_memory_gb": budget_gb}):
        settings = encoder_config(bundle, **more, **budget)
        plan = dinoreg_rt.plan(*pair, settings)
        result, measured, _ = run(cupy, timers, pair, settings)
        check(result, measured, plan.encoding.engine_bytes())
        fields.append(result.displacement.vectors_mm)
    assert plan.config.search_memory_mb == 0
    assert plan.encoding.tokens_on_device
    assert plan.choices["search memory"].startswith("0 MiB, because of the budget of ")
    np.testing.assert_array_equal(fields[0], fields[1])


def test_running_out_names_stage_and_numbers(cupy, timers, pair) -> None:
    pool = cupy.get_default_memory_pool()
    plan = dinoreg_rt.plan(*pair, config())
    pool.limit = pool.used + plan.device_memory.stages["features"] - (1 << 20)
    wanted = (
        r"cuda:0 ran out of memory in the stage 'features': about \d+ MiB were predicted for it, "
        r"\d+ MiB were available at the start and \d+ MiB are now; .*Out of memory allocating"
    )
    with pytest.raises(ResourceError, match=wanted):
        dinoreg_rt.register(*pair, config=config())


@pytest.mark.parametrize(
    "text",
    [
        "cudaErrorMemoryAllocation: out of memory",
        "bfc_arena.cc: Available memory of 3 is smaller than requested bytes of 4 BFCArena::Alloc",
        "dr_solver_run: device failed: out of memory",
    ],
)
def test_errors_of_other_libraries(cupy, pair, monkeypatch, text) -> None:
    monkeypatch.setattr(fields, "warp_volume", Mock(side_effect=RuntimeError(text)))
    with pytest.raises(ResourceError, match="ran out of memory in the stage 'warp'"):
        dinoreg_rt.register(*pair, config=config())


def test_other_errors_stay_what_they_are(cupy, pair, monkeypatch) -> None:
    of_host = MemoryError("Unable to allocate 9 GiB for an array")
    monkeypatch.setattr(fields, "warp_volume", Mock(side_effect=of_host))
    with pytest.raises(MemoryError, match="Unable to allocate"):
        dinoreg_rt.register(*pair, config=config())


@pytest.mark.parametrize(
    ("text", "gigabytes"), [("8GB", 8), ("8", 8), ("512 MB", 0.5), ("1.5gib", 1.5), ("2T", 2048)]
)
def test_sizes_on_the_command_line(text, gigabytes) -> None:
    assert parse_gigabytes(text) == gigabytes


@pytest.mark.parametrize("text", ["", "GB", "8 kB", "1.2.3GB", "-1GB"])
def test_what_is_no_size(text) -> None:
    with pytest.raises(click.BadParameter, match="such as 8GB"):
        parse_gigabytes(text)


def test_command_line(cupy, tmp_path) -> None:
    names = []
    for volume in phantom_pair(phantom_grid((20, 24, 28), 4.0)):
        names.append(str(tmp_path / f"{len(names)}.nii.gz"))
        write_volume(tmp_path / names[-1], volume)
    command = ["run", "-f", names[0], "-m", names[1], "-o", str(tmp_path / "out")]
    command += ["--device", "cuda", "--gpu-memory", "64MB"]
    done = CliRunner().invoke(cli, [*command, "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout)["device_memory"]
    assert planned["budget"]
    assert planned["available_mb"] == 64
    assert planned["peak_mb"] == planned["stages_mb"][planned["largest_stage"]] > 0
    done = CliRunner().invoke(cli, [*command, "--no-trust", "--accept-untrusted", "--no-qc"])
    assert done.exit_code == 0, done.output
    assert "64 MiB of the budget" in done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "trust" not in report["device_memory"]["stages_mb"]
    assert report["device_memory"]["available_mb"] == 64
    instead = {"64MB": "1MB", str(tmp_path / "out"): str(tmp_path / "no")}
    done = CliRunner().invoke(cli, [instead.get(word, word) for word in command])
    assert done.exit_code == 6
    assert not (tmp_path / "no").exists()
