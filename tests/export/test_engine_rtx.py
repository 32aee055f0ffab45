"""TensorRT-RTX itself parses and compiles exported encoders, even without a GPU."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import calm
import pytest
from checkpoints import make_bundle
from click.testing import CliRunner

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install '.[rtx]'")

from dinoreg_export.checkpoint.models import named
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.cli import export
from dinoreg_export.engine import job as engine_job
from dinoreg_export.engine.formats import compile_only
from dinoreg_export.engine.job import CalibrationImages
from dinoreg_export.graph import vit
from dinoreg_rt.bundle.manifest import file_sha256, write_manifest
from dinoreg_rt.errors import ConfigError, DeviceError, InputError

pytestmark = pytest.mark.rtx


@pytest.fixture(scope="module", params=["dinov3-vits16", "dinov3-vits16plus", "dinov2-vits14"])
def bundle(request, tmp_path_factory):
    """Two blocks of each kind of transformer in fp16."""
    architecture = replace(named(request.param), depth=2)
    folder = tmp_path_factory.mktemp("bundles") / request.param
    sizes = [(10 * architecture.patch, 7 * architecture.patch)]
    make_bundle(folder, RandomWeights(architecture, 1), sizes, precision="fp16")
    return folder


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_compiles_in_every_precision(bundle, precision) -> None:
    (size,) = compile_only(bundle, "8.9", precision=precision, batches=(1, 4)).values()
    weights = (bundle / "weights.bin").stat().st_size  # of fp16
    assert size > (1.5 if precision == "fp32" else 0.8) * weights


def kernels(plan: bytes, name: bytes) -> int:
    """Return how often a plan runs kernels whose names contain `name`.

    Plans list them; TensorRT's inspector would need a GPU.
    """
    return len(re.findall(rb"function=\{ name=\w*" + name, plan))


@pytest.mark.parametrize(
    ("precision", "capability"),
    [("fp16", "7.5"), ("fp16", "8.6"), ("fp16", "8.9"), ("fp16", "12.0"), ("bf16", "8.9")],
)
def test_attention_is_one_kernel(tmp_path, monkeypatch, precision, capability) -> None:
    """One for each block and profile; in parts it was one for each head, or none at all."""
    monkeypatch.setattr(vit, "SCORE_BYTES", 1)
    built: list[bytes] = []
    build = engine_job.build_plan
    monkeypatch.setattr(
        engine_job, "build_plan", lambda *args: built.append(build(*args)) or built[-1]
    )
    architecture = replace(named("dinov3-vits16"), depth=2)
    make_bundle(tmp_path / "b", RandomWeights(architecture, 1), [(256, 224)])
    how = {"precision": precision, "batches": (1, 8)}
    compile_only(tmp_path / "b", capability, **how)
    monkeypatch.setattr(engine_job, "write_whole", lambda *_: False)
    compile_only(tmp_path / "b", capability, **how)
    whole, parts = built
    blocks = 2 * 2
    assert kernels(whole, b"gemm_mha") == blocks
    assert kernels(whole, b"MaxrSubExp") == 0  # a softmax by itself
    assert kernels(parts, b"gemm_mha") + kernels(parts, b"MaxrSubExp") == 6 * blocks
    assert kernels(parts, b"") > 4 * kernels(whole, b"")


def test_compiles_for_several_generations(bundle) -> None:
    for capability in ("7.5", "8.6", "12.0"):
        assert compile_only(bundle, capability, batches=(1,))
    with pytest.raises(ConfigError, match=r"does not compile for compute capability 9\.0; it supp"):
        compile_only(bundle, "9.0")


@pytest.fixture(scope="module", params=["dinov3-vits16", "dinov3-vits16plus"])
def calm_bundle(request, tmp_path_factory):
    """Two blocks in fp32 that rounding to 8 bits changes little."""
    architecture = replace(named(request.param), depth=2)
    folder = tmp_path_factory.mktemp("bundles") / request.param
    return calm.write(folder, architecture, [(160, 112)])


@pytest.fixture(scope="module")
def calibration(images):
    return CalibrationImages(images[:1], 4)


@pytest.mark.parametrize(
    ("precision", "capability"),
    [("fp8", "8.9"), ("fp8", "12.0"), *(("int8", c) for c in ("7.5", "8.0", "8.6", "8.9", "12.0"))],
)
def test_compiles_in_8_bits(calm_bundle, calibration, precision, capability) -> None:
    how = {"precision": precision, "images": calibration, "batches": (1, 4)}
    (size,) = compile_only(calm_bundle, capability, **how).values()
    (fp16,) = compile_only(calm_bundle, capability, precision="fp16", batches=(1, 4)).values()
    # Nearly a byte less for each linear weight; the code of the kernels takes some of it.
    a = named(calm_bundle.name)
    linear = 2 * (4 * a.dim**2 + (3 if a.gated else 2) * a.dim * a.hidden)
    assert fp16 - size > 0.7 * linear


def test_rtx_itself_refuses_fp8_for_older_gpus(calm_bundle, calibration, monkeypatch) -> None:
    monkeypatch.setattr(engine_job, "multiplies_fp8", lambda capability: True)
    with pytest.raises(DeviceError, match="HW-specific datatypes: fp8"):
        compile_only(calm_bundle, "8.6", precision="fp8", images=calibration, batches=(1,))


def test_progress_and_the_command(bundle) -> None:
    seen: list[float] = []
    compile_only(bundle, "8.9", batches=(1,), progress=lambda _, done: seen.append(done))
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert seen[-1] == 1.0
    words = ["engine", str(bundle), "--backend", "rtx", "--compile-for", "8.9", "--batch", "1"]
    done = CliRunner().invoke(export, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert next(iter(json.loads(done.output).values())) > 1 << 20


def test_an_unknown_operator_is_named(tmp_path) -> None:
    from onnx import TensorProto, helper

    folder = tmp_path / "odd"
    architecture = replace(named("dinov3-vits16"), depth=1)
    manifest = make_bundle(folder, RandomWeights(architecture, 1), precision="fp16")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("NoSuchNode", ["pixels"], ["tokens"], domain="odd")],
        "odd",
        [value("pixels", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [value("tokens", TensorProto.FLOAT, ["N", 2, 2, 384])],
    )
    path = folder / "encoder_32x32.onnx"
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("odd", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=sets).SerializeToString())
    files = tuple(
        f.model_copy(update={"size_bytes": path.stat().st_size, "sha256": file_sha256(path)})
        if f.name == path.name
        else f
        for f in manifest.files
    )
    write_manifest(manifest.model_copy(update={"files": files}), folder)
    with pytest.raises(InputError, match=r"tensorrt-rtx cannot read it: .*NoSuchNode"):
        compile_only(folder, "8.9")
