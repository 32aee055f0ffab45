"""On a real GPU: whole registrations, engines and memory, against the CPU.

Each skips with its reason where there is no device. What the host can stand in for is in
test_cuda_path.py; this is what it cannot.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
from close_results import check_close, register_brains

import dinoreg_rt
from dinoreg_rt.bundle.manifest import Source
from dinoreg_rt.bundle.opened import Bundle, open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.recording import total_bytes
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.engines.trt.agreement import compare_tokens, probe
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

pytestmark = pytest.mark.gpu
GPU = Device("cuda")
RANDOM = Source(checkpoint="random seed 1", sha256="0" * 64, layout="none", random_weights=True)


def test_the_shipped_pair_against_the_cpu(gpu) -> None:
    expected, result, again = (register_brains(device) for device in ("cpu", "cuda", "cuda"))
    check_close(result.displacement, expected.displacement)
    np.testing.assert_array_equal(again.displacement.vectors_mm, result.displacement.vectors_mm)
    np.testing.assert_array_equal(again.warped.array, result.warped.array)


@pytest.fixture
def bundle(gpu, tmp_path) -> Bundle:
    """Two blocks of a vision transformer with random weights, in float32."""
    for package in ("onnx", "ml_dtypes", "onnxruntime"):
        pytest.importorskip(package, reason=f"exports an encoder: {package} is not installed")
    from dinoreg_export.bundle.write import export_bundle
    from dinoreg_export.checkpoint.models import named
    from dinoreg_export.checkpoint.random_weights import RandomWeights

    architecture = replace(named("dinov3-vits16"), depth=2)
    folder = tmp_path / "two-blocks"
    export_bundle(RandomWeights(architecture, 1), RANDOM, [(160, 112)], folder, precision="fp32")
    return open_bundle(folder)


def check_encoder(bundle: Bundle, engine: str, gpu) -> None:
    """Tokens of host and device arrays, of more slices than a batch holds, beside the CPU's."""
    graph = bundle.manifest.graphs[0]
    pixels = probe(graph.height, graph.width, 5)
    expected = open_encoder(bundle, graph, "ort-cpu", 2).encode(pixels)
    encoder = open_encoder(bundle, graph, engine, 2, device=GPU, batch=4)
    tokens = encoder.encode(pixels)
    found = compare_tokens(tokens, expected)
    assert found.holds, found.describe()
    with gpu.xp.cuda.Stream(non_blocking=True):
        on_device = encoder.encode(gpu.put(pixels))
        again = encoder.encode(gpu.put(pixels))
        np.testing.assert_array_equal(gpu.get(on_device), gpu.get(again))
    np.testing.assert_array_equal(gpu.get(on_device), tokens)
    close = getattr(encoder, "close", None)
    if close is not None:
        close()


def test_onnxruntime_against_its_cpu(gpu, bundle) -> None:
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        pytest.skip("GPU test: onnxruntime-gpu is not installed")
    check_encoder(bundle, "ort-cuda", gpu)


def test_an_engine_of_export_engine(gpu, bundle, monkeypatch, tmp_path) -> None:
    pytest.importorskip("tensorrt", reason="GPU test: TensorRT is not installed")
    from dinoreg_export.engine.formats import export_engines

    monkeypatch.setenv("DINOREG_ENGINES", str(tmp_path / "engines"))
    ((_, record),) = export_engines(bundle.folder, "tensorrt", batches=(1, 4))
    assert record.verification.holds
    check_encoder(bundle, "tensorrt", gpu)


def test_memory_is_flat_over_many_registrations(gpu) -> None:
    pair = phantom_pair(phantom_grid((48, 56, 64), 2.0))
    config = dinoreg_rt.RegistrationConfig(device="cuda", iterations=(4, 4), inverse=True)
    pool, held, in_use = gpu.xp.get_default_memory_pool(), [], []
    with dinoreg_rt.Registrar(config) as registrar:
        for _ in range(20):
            registrar.submit(*pair).result()
            free, total = gpu.xp.cuda.runtime.memGetInfo()
            held.append(pool.total_bytes() + total_bytes())
            in_use.append(total - free)
    assert max(held[1:]) - held[1] <= 1 << 20, held
    # Kernels are loaded when they are first used, and others may use the device.
    assert max(in_use[1:]) - in_use[1] <= 64 << 20, in_use
