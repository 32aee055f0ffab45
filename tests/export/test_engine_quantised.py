"""Engines in 8 bits are calibrated on the user's images, refused early and recorded."""

from __future__ import annotations

import sys

import calm
import numpy as np
import pytest
from checkpoints import TINY
from click.testing import CliRunner
from encoders import write_bundle
from gpu_fakes import fake_tensorrt
from pydantic import ValidationError

from dinoreg_export.cli import export
from dinoreg_export.engine import formats as engine_module
from dinoreg_export.engine import job as engine_job
from dinoreg_export.engine.formats import compile_only, export_engines
from dinoreg_export.engine.job import CalibrationImages
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.engines.cache import find_record
from dinoreg_rt.engines.trt.folder import read_records
from dinoreg_rt.engines.trt.record import EngineRecord, Gpu, build_command
from dinoreg_rt.errors import ConfigError, DeviceError, InputError

A100 = Gpu(gpu="NVIDIA A100", compute_capability="8.0", driver="580.95.05 (CUDA 13.0)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "b"
    return calm.write(folder, TINY["tiny-v3"], [(64, 96)], share=3.0)


def builds(trt) -> list[str]:
    return [call[1] for call in trt.calls if call[0] == "build"]


def build(bundle, precision, *images, **options):
    where = CalibrationImages(tuple(images), slices=4)
    options = {"batches": (1, 4)} | options
    return export_engines(bundle, "tensorrt", precision=precision, images=where, **options)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_built_verified_and_recorded(gpu, images, tmp_path, precision) -> None:
    sizes = [(64, 96), (96, 64)]
    bundle = calm.write(tmp_path / "b", TINY["tiny-v3"], sizes, share=3.0)
    stored = build(bundle, precision, *images)
    assert builds(gpu) == [precision] * 2
    for path, record in stored:
        assert record == EngineRecord.model_validate_json(path.with_suffix(".json").read_bytes())
        assert record.key.precision == precision
        assert f"_{precision}_" in path.name
        assert record.key.calibration == record.calibration.scales_sha256
        assert (record.calibration.images, record.calibration.slices) == (2, 2 * 4)
        assert record.calibration.verification.holds
        # Two synthetic pictures and two slices of each image, on the CPU and in the engine.
        assert record.calibration.verification.tokens == 6 * 24
        assert record.verification.mean_cosine == pytest.approx(
            record.calibration.verification.mean_cosine, abs=1e-3
        )
    # For each of two sizes: six pictures one by one, then in batches of four.
    assert [c[1] for c in gpu.calls if c[0] == "execute"] == ([1] * 6 + [4] * 2) * 2


def test_the_key_holds_the_scales(bundle, gpu, images, tmp_path) -> None:
    first, again, other = (build(bundle, "int8", image)[0] for image in (images[0], *images))
    assert first[1].key == again[1].key
    assert other[1].key.calibration != first[1].key.calibration
    assert other[0] != first[0]
    assert "calibration: " in first[1].key.differences(other[1].key)[0]
    folder = tmp_path / "engines"
    assert len(read_records(folder)) == 2
    chosen = {"precision": "fp32", "calibration": None, "batches": (1,)}
    wanted = first[1].key.model_copy(update=chosen)

    def found(*records):
        return find_record(list(records), wanted, open_bundle(bundle), folder)

    # The one with the better verification, in any order, and before an engine in 16 bits.
    best = max((first[1], other[1]), key=lambda r: r.verification.first_percentile_cosine)
    assert found(first[1], other[1]) == found(other[1], first[1]) == best
    fp16 = build(bundle, "fp16")[0][1]
    assert fp16.key.calibration is None
    assert found(fp16, first[1]) == first[1]
    assert found(fp16) == fp16


def test_a_record_in_8_bits_has_a_calibration(bundle, gpu, images) -> None:
    record = build(bundle, "int8", images[0])[0][1].model_dump()
    with pytest.raises(ValidationError, match="an 8-bit engine, and no other, has a calibration"):
        EngineRecord.model_validate(record | {"calibration": None})
    key = record["key"] | {"precision": "fp16"}
    with pytest.raises(ValidationError, match="an 8-bit engine, and no other, has a calibration"):
        EngineRecord.model_validate(record | {"key": key})


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_refused_before_it_is_built(gpu, images, tmp_path, precision) -> None:
    """With one channel a thousand times the others, 8 bits lose the others."""
    bundle = calm.write(tmp_path / "b", TINY["tiny-v3"], [(64, 96)], share=3.0, outlier=1000.0)
    wanted = rf"in {precision} is refused before it is built: on the CPU token cosine .* fp16 passe"
    with pytest.raises(DeviceError, match=wanted):
        build(bundle, precision, *images)
    assert builds(gpu) == []
    assert read_records(tmp_path / "engines") == []


def test_the_precision_to_use_is_found_by_running_it(bundle, gpu, images, monkeypatch) -> None:
    measure = engine_job.measure_ranges

    def spoil(*names):
        def measured(graph, pixels, kind, progress):
            ranges = measure(graph, pixels, kind, progress)
            return {k: v / 1e3 if kind.name in names else v for k, v in ranges.items()}

        monkeypatch.setattr(engine_job, "measure_ranges", measured)

    spoil("fp8")
    with pytest.raises(DeviceError, match=r"in fp8 is refused .*; --precision int8 passes on the"):
        build(bundle, "fp8", *images)
    spoil("int8")
    with pytest.raises(DeviceError, match=r"in int8 is refused .*; --precision fp8 passes on the"):
        build(bundle, "int8", *images)
    # A GPU without fp8 is not told to use it.
    monkeypatch.setattr(engine_module, "identify_gpu", lambda index: A100)
    with pytest.raises(DeviceError, match=r"in int8 is refused .*; --precision fp16 passes on the"):
        build(bundle, "int8", *images)


def test_a_wrong_engine_is_refused_too(bundle, gpu, images) -> None:
    gpu.faults.tokens = {"int8": lambda t: np.flip(t, -1).copy()}
    with pytest.raises(DeviceError, match=r"in int8 is refused: token .*; --precision fp16 passes"):
        build(bundle, "int8", *images)


def test_settings_that_contradict_each_other(bundle, gpu, images, monkeypatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"fp8 needs --calibration IMAGE, once or more: images"):
        build(bundle, "fp8")
    with pytest.raises(ConfigError, match="only with --precision fp8 or int8, not with fp16"):
        build(bundle, "fp16", images[0])
    with pytest.raises(ConfigError, match="only with --precision fp8 or int8, not with fp32"):
        build(bundle, None, images[0])
    with pytest.raises(InputError, match="nothing"):
        build(bundle, "int8", tmp_path / "nothing.nii.gz")
    gabor = write_bundle(tmp_path / "gabor", [(24, 32)])
    with pytest.raises(ConfigError, match="has no linear layers to convert to int8"):
        build(gabor, "int8", images[0])
    eight = calm.write(tmp_path / "eight", TINY["tiny-v3"], [(64, 96)], "int8")
    with pytest.raises(ConfigError, match=r"is in int8 for CPUs, and engines cannot be built fr"):
        build(eight, "int8", images[0])
    monkeypatch.setattr(engine_module, "identify_gpu", lambda index: A100)
    with pytest.raises(ConfigError, match=r"needs compute capability 8\.9 .* has 8\.0; use --prec"):
        build(bundle, "fp8", images[0])
    assert builds(gpu) == []


def test_compiling_for_another_gpu_checks_its_capability(bundle, images, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt("tensorrt_rtx", "1.7.1"))
    where = CalibrationImages((images[0],), 4)
    for capability, message in (("8.6", "and this GPU has 8.6"), ("ada", "'ada' is not a comp")):
        with pytest.raises(ConfigError, match=message):
            compile_only(bundle, capability, precision="fp8", images=where)


def test_the_command(bundle, gpu, images) -> None:
    words = ["engine", str(bundle), "--precision", "int8", "--batch", "2"]
    given = ["--calibration", str(images[0]), "--calibration", str(images[1])]
    done = CliRunner().invoke(export, [*words, *given, "--calibration-slices", "2"])
    assert done.exit_code == 0, done.output
    assert "tiny-v3 64x96 in int8, batches 2, on NVIDIA H100: token cosine 0.99" in done.output
    assert " from 4 slices of 2 images; before TensorRT token cosine 0.99" in done.output
    done = CliRunner().invoke(export, words)
    assert isinstance(done.exception, ConfigError)
    assert "needs --calibration IMAGE" in str(done.exception)


def test_the_command_that_builds_an_engine_again(bundle) -> None:
    assert build_command(bundle, "tensorrt", "fp8").endswith("--precision fp8 --calibration IMAGE")
