"""Cached TensorRT engines: run on the right memory and stream, or refused with a reason.

TensorRT and CuPy are fakes that read and write the given addresses.
"""

from __future__ import annotations

import gc
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gpu_fakes
import numpy as np
import pytest
from encoders import write_bundle
from gpu_fakes import H100, DeviceArray, Event, pretend_gpu_server
from phantoms import make_grid, waves

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="stands for the GPU: onnxruntime is not installed")

from dinoreg_export.engine import formats as engine_module
from dinoreg_export.engine.formats import export_engines
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import pair_tokens
from dinoreg_rt.encoder.encoding import EncodingPlan, common_batches
from dinoreg_rt.encoder.framing import Frame
from dinoreg_rt.encoder.standardise import Standardisation
from dinoreg_rt.engines import cache as engine_cache
from dinoreg_rt.engines.cache import built_records
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.engines.trt.agreement import Agreement
from dinoreg_rt.engines.trt.executor import pieces
from dinoreg_rt.engines.trt.folder import read_records
from dinoreg_rt.engines.trt.record import EngineRecord
from dinoreg_rt.errors import DeviceError, InputError
from dinoreg_rt.types import Volume


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """TensorRT, CuPy and an H100, with the engines of one bundle for 2 and 4 slices."""
    trt, cupy = pretend_gpu_server(monkeypatch, tmp_path / "engines", engine_module, engine_cache)
    write_bundle(tmp_path / "gabor", [(24, 32)])
    export_engines(tmp_path / "gabor", "tensorrt", batches=(2, 4))
    trt.calls.clear()
    cupy.calls.clear()
    return trt, cupy


@pytest.fixture
def bundle(machine, tmp_path):
    return open_bundle(tmp_path / "gabor")


def open_trt(bundle):
    return open_encoder(bundle, bundle.manifest.graphs[0], "tensorrt", 1)


def expected(bundle, pixels: np.ndarray) -> np.ndarray:
    return open_encoder(bundle, bundle.manifest.graphs[0], "ort-cpu", 1).encode(pixels)


def slices(rng, count: int) -> np.ndarray:
    return rng.normal(size=(count, 3, 24, 32)).astype(np.float32)


def executed(trt) -> list[int]:
    return [call[1] for call in trt.calls if call[0] == "execute"]


@pytest.mark.parametrize(("count", "batches"), [(1, [2]), (2, [2]), (3, [4]), (5, [4, 2]), (0, [])])
def test_tokens_of_any_number_of_slices(machine, bundle, rng, count, batches) -> None:
    pixels = slices(rng, count)
    tokens = open_trt(bundle).encode(pixels)
    assert tokens.dtype == np.float32
    assert tokens.shape == (count, 6, 8, 37)
    if count:
        np.testing.assert_allclose(tokens, expected(bundle, pixels), atol=1e-6)
    assert executed(machine[0]) == batches


def test_pieces() -> None:
    assert list(pieces(11, (1, 2, 8))) == [(8, slice(0, 8)), (8, slice(8, 11))]
    assert list(pieces(10, (2, 8))) == [(8, slice(0, 8)), (2, slice(8, 10))]
    assert list(pieces(0, (2,))) == []


def test_device_arrays_stay_there_on_the_callers_stream(machine, bundle, rng) -> None:
    trt, cupy = machine
    encoder, pixels = open_trt(bundle), slices(rng, 4)
    with cupy.cuda.Stream() as stream:
        tokens = encoder.encode(DeviceArray(pixels))
    assert isinstance(tokens, DeviceArray)
    np.testing.assert_allclose(tokens.host, expected(bundle, pixels), atol=1e-6)
    assert [c[2] for c in trt.calls if c[0] in ("execute", "profile")] == [stream.ptr] * 2
    assert not [c for c in cupy.calls if c[0] in ("synchronize", "download")]


def contexts(trt) -> int:
    return len({call[4] for call in trt.calls if call[0] == "execute"})


def test_a_busy_context_is_not_taken_on_another_stream(machine, bundle, rng, monkeypatch) -> None:
    trt, cupy = machine
    encoder, pixels = open_trt(bundle), DeviceArray(slices(rng, 4))
    first, second = cupy.cuda.Stream(), cupy.cuda.Stream()
    for stream in (first, first, second, first, second):
        with stream:
            encoder.encode(pixels)
    assert contexts(trt) == 2
    assert [c for c in cupy.calls if c[0] == "wait"] == []
    # Once the device has finished, any context will do; the stream still waits for the event.
    monkeypatch.setattr(Event, "done", True)
    with cupy.cuda.Stream() as third:
        encoder.encode(pixels)
    assert contexts(trt) == 2
    assert [c[:2] for c in cupy.calls if c[0] == "wait"] == [("wait", third.ptr)]


def test_the_number_of_contexts_is_limited(machine, bundle, rng) -> None:
    trt, cupy = machine
    encoder, pixels = open_trt(bundle), DeviceArray(slices(rng, 4))
    for _ in range(12):
        with cupy.cuda.Stream():
            encoder.encode(pixels)
    assert contexts(trt) == 8
    assert len([c for c in cupy.calls if c[0] == "wait"]) == 4


def test_threads_do_not_meet_in_one_context(machine, bundle, rng) -> None:
    trt, _ = machine
    encoder, pixels = open_trt(bundle), slices(rng, 4)
    wanted = expected(bundle, pixels)
    barrier, results = threading.Barrier(3), []

    def work() -> None:
        barrier.wait()
        results.extend(encoder.encode(pixels) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9  # the fake asserts that each context runs once at a time
    for tokens in results:
        np.testing.assert_allclose(tokens, wanted, atol=1e-6)
    assert 2 <= contexts(trt) <= 3


def test_memory_that_cupy_keeps_is_free_for_the_engine(machine, bundle) -> None:
    open_trt(bundle)
    assert ("blocks freed",) in machine[1].calls


def test_the_end_of_the_interpreter_is_silent(machine, bundle, rng, monkeypatch) -> None:
    """The driver may be gone by then; pytest turns an exception in `__del__` into an error."""
    encoder = open_trt(bundle)
    encoder.encode(slices(rng, 4))

    def gone(self: Event) -> None:
        raise RuntimeError("cudaErrorCudartUnloading: driver shutting down")

    monkeypatch.setattr(Event, "synchronize", gone)
    del encoder
    gc.collect()


def test_cancelled(machine, bundle, rng) -> None:
    encoder = open_trt(bundle)
    encoder.cancel()
    with pytest.raises(DeviceError, match="cancelled"):
        encoder.encode(slices(rng, 1))


def test_wrong_pixels_and_failed_runs(machine, bundle, rng) -> None:
    trt, _ = machine
    encoder = open_trt(bundle)
    with pytest.raises(InputError, match=r"float64 \(1, 3, 24, 32\); the engine takes float32"):
        encoder.encode(slices(rng, 1).astype(np.float64))
    with pytest.raises(InputError, match=r"\(1, 3, 24, 24\); the engine takes float32 \(n, 3, 24"):
        encoder.encode(slices(rng, 1)[..., :24])
    trt.faults.execute = "launch failed"
    with pytest.raises(DeviceError, match="could not run the engine: launch failed"):
        encoder.encode(slices(rng, 1))


def test_an_engine_that_will_not_load(machine, bundle) -> None:
    machine[0].faults.load = "version tag does not match"
    with pytest.raises(DeviceError, match="cannot load the engine: version tag does not match"):
        open_trt(bundle)


def test_a_changed_engine_is_refused(machine, bundle, tmp_path) -> None:
    (path,) = (tmp_path / "engines").glob("*.engine")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"changed since it was verified .* build it with: dinoreg-rt export engine \S+gabor "
        r"--backend tensorrt --precision fp32 --batch 2,4",
    ):
        open_trt(bundle)
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"changed since it was verified \(\d+ bytes, \d+ exp"):
        open_trt(bundle)
    path.unlink()
    with pytest.raises(InputError, match="missing, or not a file of this folder"):
        open_trt(bundle)


def test_scratch_memory_that_is_refused(machine, bundle, rng, monkeypatch) -> None:
    """TensorRT logs it and returns; the run would fail later, or write beyond the end."""
    monkeypatch.setattr(gpu_fakes.Engine, "device_memory_size_v2", 10)
    encoder = open_trt(bundle)
    encoder.encode(slices(rng, 1))
    monkeypatch.setattr(
        gpu_fakes.Context,
        "set_device_memory",
        lambda self, *_: self.trt.loggers[-1].log(gpu_fakes.Severity.ERROR, "misaligned"),
    )
    with pytest.raises(DeviceError, match="tensorrt refused 10 bytes: misaligned"):
        encoder.encode(slices(rng, 4))


def test_the_memory_that_the_engine_states(machine, bundle) -> None:
    """The plan knows it from the record, and reduces the batch only to sizes that exist."""
    graph = bundle.manifest.graphs[0]
    built = built_records(bundle, [graph, graph], "tensorrt", 0)
    (record,) = built
    assert record.memory_bytes == 4000
    assert built_records(bundle, [graph], "ort-cuda", 0) == ()
    stacks = [SimpleNamespace(encoded=range(count)) for count in (8, 9)]
    plane = SimpleNamespace(graph=graph, stacks=stacks)
    kind = Standardisation("none", "none", 0.0, 0)
    plan = EncodingPlan(bundle, "tensorrt", (plane,), 4, None, 1, (0,), kind, built=built)
    assert plan.batches == (4, 2)
    buffers = 4 * (1 + 4) * (plan.pixels(plane) + plan.slice_tokens(plane))
    # Batches of four, and of two for the last slice of the second image or a constant picture.
    assert plan.engine_bytes() == record.size_bytes + 2 * 4000 + buffers
    fewer = replace(plan, planes=(SimpleNamespace(graph=graph, stacks=stacks[:1]),))
    assert fewer.engine_bytes() == record.size_bytes + 4000 + buffers
    constant = replace(fewer, standardisation=Standardisation("none", "none", 0.0, 1))
    assert constant.engine_bytes() == plan.engine_bytes()
    assert plan.shared_bytes() == record.size_bytes  # contexts are each registration's own
    # Without that figure it is estimated, and an engine that makes its own buffers takes any batch.
    old = record.model_copy(update={"memory_bytes": None})
    assert replace(plan, built=(old,)).engine_bytes() == replace(plan, built=()).engine_bytes()
    assert replace(plan, built=(old,)).shared_bytes() == replace(plan, built=()).engine_bytes()
    assert replace(plan, engine="ort-cuda", built=()).batches == (4, 2, 1)
    other = record.model_copy(update={"key": record.key.model_copy(update={"batches": (1, 4, 16)})})
    assert common_batches([record, other], 8) == (4,)
    assert common_batches([other], 8) == (4, 1)
    assert common_batches([other], 0) == (1,)


def test_kernels_of_rtx_are_kept(machine, bundle, rng, monkeypatch, tmp_path) -> None:
    """TensorRT-RTX compiles them where the engine runs, in each process anew."""
    rtx = gpu_fakes.fake_tensorrt("tensorrt_rtx", "1.7.1")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    export_engines(bundle.folder, "tensorrt-rtx", batches=(2,))
    rtx.calls.clear()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def encode() -> bytes:
        graph, pixels = bundle.manifest.graphs[0], slices(rng, 2)
        encoder = open_encoder(bundle, graph, "tensorrt-rtx", 1)
        np.testing.assert_allclose(encoder.encode(pixels), expected(bundle, pixels), atol=1e-6)
        encoder.close()
        return [call[1] for call in rtx.calls if call[0] == "kernels"][-1]

    assert encode() == b""
    (kept,) = (tmp_path / "engines").glob("*.kernels")
    assert encode() == kept.read_bytes() == b"1.7.1: compiled"
    kept.write_bytes(b"1.6: compiled")  # refused, and replaced
    assert encode() == b""
    assert encode() == b"1.7.1: compiled"
    kept.unlink()
    monkeypatch.setattr(Path, "replace", full)
    assert encode() == b""
    assert not kept.exists()


def test_the_choice_does_not_read_the_engine(machine, bundle, tmp_path, monkeypatch) -> None:
    def problem() -> str | None:
        return engine_cache.engine_problem(bundle, bundle.manifest.graphs[0], "tensorrt", 0)

    (path,) = (tmp_path / "engines").glob("*.engine")
    read = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file.name) or whole(file))
    assert problem() is None
    assert path.name not in read
    path.write_bytes(b"short")
    assert "changed since it was verified (5 bytes" in str(problem())
    path.unlink()
    assert "missing" in str(problem())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("driver", "570.10", r"driver: 580.95.05 \(CUDA 13.0\), wanted 570.10"),
        ("gpu", "NVIDIA L4", "GPU: NVIDIA H100, wanted NVIDIA L4"),
        ("compute_capability", "8.9", "compute capability: 9.0, wanted 8.9"),
    ],
)
def test_an_engine_of_another_machine(machine, bundle, monkeypatch, field, value, said) -> None:
    other = H100.model_copy(update={field: value})
    monkeypatch.setattr(engine_cache, "identify_gpu", lambda index: other)
    with pytest.raises(DeviceError, match=rf"cannot be used here \({said}\); rebuild it with: "):
        open_trt(bundle)


def test_an_engine_of_another_tensorrt(machine, bundle) -> None:
    machine[0].__version__ = "10.14.1"
    with pytest.raises(DeviceError, match=r"library version: 10.13.2.6, wanted 10.14.1"):
        open_trt(bundle)


def test_an_engine_of_another_export(machine, tmp_path) -> None:
    write_bundle(tmp_path / "new", [(24, 32)], licence="another")
    with pytest.raises(DeviceError, match=r"cannot be used here \(model: [0-9a-f]{12}, wanted "):
        open_trt(open_bundle(tmp_path / "new"))


def test_no_engine_at_all(machine, bundle, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DINOREG_ENGINES", str(tmp_path / "nothing"))
    with pytest.raises(
        DeviceError, match=r"holds no tensorrt engine of gabor-bank at 24x32; build one with: dino"
    ):
        open_trt(bundle)


def rewrite(folder: Path, **changes: object) -> None:
    (record,) = read_records(folder)
    path = (folder / record.file).with_suffix(".json")
    path.write_text(record.model_copy(update=changes).model_dump_json())


def test_an_unverified_engine_is_never_loaded(machine, bundle, tmp_path) -> None:
    bad = Agreement(tokens=9, not_finite=0, mean_cosine=0.99, first_percentile_cosine=0.9)
    rewrite(tmp_path / "engines", verification=bad)
    with pytest.raises(InputError, match=r"verification failed \(token cosine 0\.99000"):
        open_trt(bundle)
    text = (tmp_path / "engines").glob("*.json").__next__().read_text()
    with pytest.raises(ValueError, match="verification"):
        EngineRecord.model_validate_json(text.replace('"verification"', '"unverified"'))


def test_a_record_that_points_elsewhere(machine, bundle, tmp_path) -> None:
    outside = tmp_path / "outside.engine"
    (path,) = (tmp_path / "engines").glob("*.engine")
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(InputError, match="not a file of this folder"):
        open_trt(bundle)


def test_the_bundles_own_precision_comes_first(machine, bundle, tmp_path) -> None:
    export_engines(bundle.folder, "tensorrt", precision="fp16", batches=(2,))
    _, record, _ = engine_cache.load_engine(bundle, bundle.manifest.graphs[0], "tensorrt", 0)
    assert record.key.precision == "fp32"


def test_tokens_of_one_engine_are_not_those_of_another(machine, bundle, tmp_path) -> None:
    """The tokens under one key are one engine's, whatever else was built for the bundle."""
    grid = make_grid((4, 24, 32), (2.0, 2.0, 2.0))
    stack = SimpleNamespace(
        volume=Volume(waves(grid.shape_zyx, channels=1)[..., 0].astype(np.float32), grid)
    )
    stack.window, stack.encoded, stack.frame = (0.0, 1.0), (0, 2), Frame()
    plane = SimpleNamespace(graph=bundle.manifest.graphs[0], plane="axial")

    def key(engine: str) -> str:
        plan = SimpleNamespace(
            bundle=bundle, engine=engine, normalisation=bundle.manifest.normalisation
        )
        return pair_tokens.token_key(plan, plane, stack, Device("cuda"))

    first = key("tensorrt")
    assert key("tensorrt") == first != key("ort-cuda")
    export_engines(bundle.folder, "tensorrt", precision="fp16", batches=(2,))
    assert key("tensorrt") == first  # the bundle's own precision is still used
    for path in (tmp_path / "engines").glob("*.json"):
        if EngineRecord.model_validate_json(path.read_text()).key.precision == "fp32":
            path.unlink()
    assert key("tensorrt") != first


def test_without_cupy(machine, bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"cupy is not installed; pip install.*gpu,tensorrt"):
        open_trt(bundle)
