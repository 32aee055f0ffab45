"""Engines are built, verified and stored, or refused, through fakes of TensorRT and CuPy."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from encoders import write_bundle
from gpu_fakes import H100

from dinoreg_export.cli import export
from dinoreg_export.engine.formats import compile_only, export_engines
from dinoreg_rt.engines.trt.folder import read_engine, read_records
from dinoreg_rt.engines.trt.record import EngineRecord
from dinoreg_rt.errors import ConfigError, DeviceError, InputError, OutputError


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "gabor", [(24, 32), (32, 24)])


def noise(tokens: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(size=tokens.shape).astype(np.float32)


def half_rotten(tokens: np.ndarray) -> np.ndarray:
    """Spoil one token in fifty: the mean stays good, the tail does not."""
    spoilt = tokens.reshape(-1, tokens.shape[-1]).copy()
    spoilt[::50] *= np.where(np.arange(spoilt.shape[1]) % 40, 1, -1.5)
    return spoilt.reshape(tokens.shape)


def with_nan(tokens: np.ndarray) -> np.ndarray:
    spoilt = tokens.copy()
    spoilt[0, 0, 0, 0] = np.nan
    return spoilt


def test_every_size_is_built_verified_and_stored(bundle, gpu, tmp_path) -> None:
    stored = export_engines(bundle, "tensorrt", batches=(8, 1), workspace_bytes=1 << 20)
    assert [(r.key.height, r.key.width) for _, r in stored] == [(24, 32), (32, 24)]
    for path, record in stored:
        assert path.parent == tmp_path / "engines"
        assert record == EngineRecord.model_validate_json(path.with_suffix(".json").read_bytes())
        assert record.key.batches == (1, 8)
        assert (record.key.gpu, record.key.driver) == (H100.gpu, H100.driver)
        assert record.verification.holds
        assert record.verification.mean_cosine > 0.999999
        assert read_engine(path.parent, record, "") == path.read_bytes()
    # Networks are strongly typed, with one profile of exactly each batch and the given workspace.
    assert [c[1] for c in gpu.calls if c[0] == "network"] == [2, 2]
    _, precision, limits, profiles = next(c for c in gpu.calls if c[0] == "build")
    assert (precision, limits) == ("fp32", {"WORKSPACE": 1 << 20})
    assert [p.shapes["pixels"] for p in profiles] == [((n, 3, 24, 32),) * 3 for n in (1, 8)]
    # Each batch size has its own kernels, and each was run on both slices and the picture.
    assert [c[1] for c in gpu.calls if c[0] == "execute"] == [1, 1, 1, 8] * 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_take_the_requested_precision(bundle, gpu, precision) -> None:
    stored = export_engines(bundle, "tensorrt", precision=precision, batches=(1,))
    assert {c[1] for c in gpu.calls if c[0] == "build"} == {precision}
    assert {r.key.precision for _, r in stored} == {precision}
    assert all(0.9999 < r.verification.mean_cosine < 1 for _, r in stored)


@pytest.mark.parametrize("fault", [noise, half_rotten, with_nan])
def test_a_wrong_engine_is_refused_and_what_passes_is_named(bundle, gpu, tmp_path, fault) -> None:
    gpu.faults.tokens = {"fp16": fault}
    with pytest.raises(DeviceError, match=r"in fp16 is refused: .*; --precision bf16 passes"):
        export_engines(bundle, "tensorrt", precision="fp16", batches=(1, 2))
    assert not list((tmp_path / "engines").glob("*.engine"))
    assert read_records(tmp_path / "engines") == []


def test_where_no_precision_passes(bundle, gpu) -> None:
    gpu.faults.tokens = dict.fromkeys(("fp16", "bf16", "fp32"), noise)
    with pytest.raises(DeviceError, match=r"none of fp16, bf16 passes either.*10\.13\.2\.6 comp"):
        export_engines(bundle, "tensorrt", batches=(1,))


def test_a_wrong_batch_size_alone_is_found(bundle, gpu) -> None:
    gpu.faults.tokens = {"fp32": lambda t: noise(t) if len(t) == 8 else t}
    with pytest.raises(DeviceError, match="refused"):
        export_engines(bundle, "tensorrt", batches=(1, 8))


def test_the_timing_cache_grows(bundle, gpu, tmp_path) -> None:
    export_engines(bundle, "tensorrt", batches=(1,))
    (cache,) = (tmp_path / "engines").glob("timing_*")
    assert cache.name == "timing_tensorrt_10.13.2.6_NVIDIA-H100.cache"
    assert cache.read_bytes() == b"timed;timed;"


@pytest.mark.parametrize("content", [b"damaged", b"other GPU"])
def test_a_timing_cache_that_is_refused(bundle, gpu, tmp_path, content) -> None:
    """TensorRT gives no cache for one, and no error for the other; all is measured again."""
    cache = tmp_path / "engines" / "timing_tensorrt_10.13.2.6_NVIDIA-H100.cache"
    cache.parent.mkdir()
    cache.write_bytes(content)
    export_engines(bundle, "tensorrt", batches=(1,))
    assert cache.read_bytes().startswith(b"timed;")


def test_progress_rises_to_the_end(bundle, gpu) -> None:
    seen: list[float] = []
    export_engines(
        bundle,
        "tensorrt",
        batches=(1,),
        progress=lambda stage, done: seen.append(done) if stage == "building" else None,
    )
    first = seen[: len(seen) // 2]
    assert first == sorted(first)
    assert first[0] == pytest.approx(1 / 8)  # a quarter of the first of two steps
    assert first[-1] == 1.0


def test_ctrl_c_ends_a_build(bundle, gpu, tmp_path) -> None:
    def stop(stage: str, fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_engines(bundle, "tensorrt", batches=(1,), progress=stop)
    assert not list((tmp_path / "engines").glob("*.engine"))


def test_errors_of_tensorrt_are_passed_on(bundle, gpu) -> None:
    gpu.faults.build = "out of   memory"
    with pytest.raises(DeviceError, match=r"could not build .* out of memory; a smaller --batch"):
        export_engines(bundle, "tensorrt")
    gpu.faults.parse = "no such operator"
    with pytest.raises(InputError, match="cannot read it: no such operator"):
        export_engines(bundle, "tensorrt")


def test_bad_settings(bundle, gpu) -> None:
    with pytest.raises(ConfigError, match="give at least one, each of 1 slice"):
        export_engines(bundle, "tensorrt", batches=(0, 1))
    with pytest.raises(ConfigError, match="'fp4' is not a precision of engines; choose one of fp8"):
        export_engines(bundle, "tensorrt", precision="fp4")


@pytest.mark.parametrize("backend", ["tensorrt", "rtx"])
def test_settings_are_checked_before_the_machine(bundle, backend, tmp_path) -> None:
    def answer(*words):
        done = CliRunner().invoke(export, ["engine", *map(str, words), "--backend", backend])
        return type(done.exception), str(done.exception)

    eight = write_bundle(tmp_path / "eight", [(24, 32)])
    text = (eight / "manifest.json").read_text()
    (eight / "manifest.json").write_text(text.replace('"fp32"', '"int8"'))
    for words, error, message in (
        ([tmp_path / "NOSUCH"], InputError, "is not an encoder bundle"),
        ([bundle, "--precision", "fp8"], ConfigError, "needs --calibration IMAGE"),
        ([eight], ConfigError, "is in int8 for CPUs"),
        ([eight, "--precision", "fp16"], ConfigError, "is in int8 for CPUs"),
    ):
        for more in ([], ["--compile-for", "8.9"] if backend == "rtx" else []):
            kind, text = answer(*words, *more)
            assert (kind, message in text) == (error, True), text


def test_a_damaged_bundle(bundle, gpu) -> None:
    (bundle / "encoder_24x32.onnx").write_bytes(b"changed")
    with pytest.raises(InputError, match="changed since the export"):
        export_engines(bundle, "tensorrt")


@pytest.mark.parametrize("version", ["10.12.0", "9.3.0", "12.0.1"])
def test_versions_that_are_not_supported(bundle, gpu, version) -> None:
    gpu.__version__ = version
    with pytest.raises(DeviceError, match=rf"tensorrt {version} is not supported; wanted 10.13"):
        export_engines(bundle, "tensorrt")


def test_tensorrt_11_without_the_flag(bundle, gpu) -> None:
    gpu.__version__ = "11.0.1"
    del gpu.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    export_engines(bundle, "tensorrt", batches=(1,))
    assert {c[1] for c in gpu.calls if c[0] == "network"} == {0}


def test_not_installed(bundle, gpu, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=r"pip install 'dinoreg-rt\[tensorrt\]'"):
        export_engines(bundle, "tensorrt")


@pytest.mark.parametrize("backend", ["tensorrt", "rtx"])
def test_without_a_gpu_the_answer_comes_at_once(bundle, backend, monkeypatch) -> None:
    from dinoreg_rt.device.cuda_driver import CudaDriver
    from dinoreg_rt.engines.trt import identity

    monkeypatch.setattr(
        identity, "query_cuda_driver", lambda: CudaDriver(None, (), "no NVIDIA driver")
    )
    began = time.perf_counter()
    with pytest.raises(DeviceError, match="no CUDA device can be used: no NVIDIA driver"):
        CliRunner().invoke(
            export, ["engine", str(bundle), "--backend", backend], catch_exceptions=False
        )
    assert time.perf_counter() - began < 1


def test_a_stdout_that_cannot_be_written(bundle, gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    for words in ([], ["--json"]):
        with pytest.raises(OutputError, match=rf"closed.*written to {tmp_path / 'engines'}"):
            export.main(["engine", str(bundle), "--batch", "1", *words], standalone_mode=False)


def test_the_command(bundle, gpu) -> None:
    done = CliRunner().invoke(export, ["engine", str(bundle), "--batch", "1,2"])
    assert done.exit_code == 0, done.output
    assert "gabor-bank 24x32 in fp32, batches 1,2, on NVIDIA H100: token cosine 1.0" in done.output
    done = CliRunner().invoke(export, ["engine", str(bundle), "--batch", "1,x"])
    assert (done.exit_code, "not a list of batch sizes" in done.output) == (2, True)
    done = CliRunner().invoke(export, ["engine", str(bundle), "--compile-for", "8.9"])
    assert (done.exit_code, "only with --backend rtx" in done.output) == (2, True)


def test_compiling_for_a_gpu_that_is_not_here_needs_rtx(bundle, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError, match=r"tensorrt-rtx is not installed.*\[rtx\]"):
        compile_only(bundle, "8.9")
