"""Engines: equal tokens, errors for missing packages, and graphs that do not fit their manifest."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from pathlib import Path
from typing import get_args
from unittest.mock import MagicMock

import numpy as np
import pytest
from encoders import gabor_bank, write_bundle

from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.config.feature_parameters import EngineChoice
from dinoreg_rt.engines import open as engines
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.engines.selection import choose_engine
from dinoreg_rt.errors import ConfigError, DeviceError, InputError, ResourceError

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
ENGINES = {"ort-cpu": ("onnxruntime", 1e-5), "openvino": ("openvino", 1e-5)} | {
    # bfloat16 has eight bits of precision; sums of numbers below 1 lose half a unit.
    "openvino-bf16": ("openvino", 2e-2)
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_bundle(tmp_path_factory.mktemp("models") / "gabor", [(24, 32)]))


def reference(pixels: np.ndarray, patch: int = 4) -> np.ndarray:
    bank = gabor_bank(patch)[:, 0].astype(np.float64)
    grey = np.pad(pixels.mean(axis=1, dtype=np.float64), ((0, 0), *((2 * patch,) * 2,) * 2))
    k = bank.shape[-1]
    views = np.lib.stride_tricks.sliding_window_view(grey, (k, k), axis=(1, 2))
    return np.einsum("nrcij,fij->nrcf", views[:, ::patch, ::patch], bank)


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens(bundle, rng, engine) -> None:
    package, tolerance = ENGINES[engine]
    pytest.importorskip(package, reason=f"{package} is not installed")
    encoder = open_encoder(bundle, bundle.manifest.graphs[0], engine, threads=1)
    for count in (1, 3):
        pixels = rng.normal(size=(count, 3, 24, 32)).astype(np.float32)
        tokens = encoder.encode(pixels)
        assert tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, reference(pixels), atol=tolerance)
        np.testing.assert_array_equal(encoder.encode(pixels), tokens)


def test_results_are_not_overwritten_by_the_next_call(bundle, rng) -> None:
    for engine, (package, _) in ENGINES.items():
        pytest.importorskip(package, reason=f"{package} is not installed")
        encoder = open_encoder(bundle, bundle.manifest.graphs[0], engine, threads=1)
        first = encoder.encode(rng.normal(size=(1, 3, 24, 32)).astype(np.float32))
        copy = first.copy()
        encoder.encode(rng.normal(size=(1, 3, 24, 32)).astype(np.float32))
        np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_is_not_installed(bundle, engine, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, ENGINES[engine][0], None)
    with pytest.raises(DeviceError, match=rf"--engine {engine} .* is not installed"):
        open_encoder(bundle, bundle.manifest.graphs[0], engine, threads=1)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_a_graph_that_is_not_what_the_manifest_says(bundle, engine) -> None:
    pytest.importorskip(ENGINES[engine][0], reason=f"{ENGINES[engine][0]} is not installed")
    graph = bundle.manifest.graphs[0].model_copy(update={"width": 64})
    with pytest.raises(InputError, match=r"promises pixels \(N, 3, 24, 64\)"):
        open_encoder(bundle, graph, engine, threads=1)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_a_file_that_is_not_a_graph(bundle, engine, tmp_path) -> None:
    pytest.importorskip(ENGINES[engine][0], reason=f"{ENGINES[engine][0]} is not installed")
    folder = write_bundle(tmp_path / "broken", [(24, 32)])
    opened = open_bundle(folder)
    (folder / "encoder_24x32.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"encoder_24x32\.onnx: cannot be loaded"):
        open_encoder(opened, opened.manifest.graphs[0], engine, threads=1)


def test_every_engine_can_be_requested() -> None:
    names = set(get_args(EngineChoice)) - {"auto"}
    assert names == set(engines.ENGINES)


@pytest.mark.parametrize("engine", engines.ENGINES.values(), ids=str)
def test_engines_name_what_installs_them(engine) -> None:
    """The extras exist, and one of them requires the engine's distribution."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    needs = " ".join(line for extra in engine.extra.split(",") for line in extras[extra])
    assert engine.package in needs
    assert engine.on_gpu == ("gpu" in engine.extra)


def test_bfloat16_is_not_for_onnx_runtimes_cpu(tmp_path) -> None:
    half = open_bundle(write_bundle(tmp_path / "half", [(24, 32)], precision="bf16"))
    with pytest.raises(ConfigError, match="no matrix products in bfloat16"):
        choose_engine("ort-cpu", bundle=half)
    assert choose_engine("auto", bundle=half) == (
        "openvino",
        "openvino (OpenVINO on the CPU in float32), because the bundle is in bfloat16",
    )


def test_the_choice_is_explained() -> None:
    assert choose_engine("auto")[0] == "ort-cpu"
    assert choose_engine("openvino") == (
        "openvino",
        "openvino (OpenVINO on the CPU in float32), as asked",
    )


def test_too_little_memory_is_not_the_bundles_fault(bundle, monkeypatch) -> None:
    import onnxruntime as ort

    def fail(*_: object, **__: object) -> None:
        raise ort.capi.onnxruntime_pybind11_state.RuntimeException(
            "Exception during initialization: std::bad_alloc"
        )

    monkeypatch.setattr(ort, "InferenceSession", fail)
    with pytest.raises(ResourceError, match=r"not enough memory for.*bad_alloc") as caught:
        open_encoder(bundle, bundle.manifest.graphs[0], "ort-cpu", 1)
    assert "export the bundle again" not in str(caught.value)


def test_too_little_memory_while_it_encodes(bundle, monkeypatch) -> None:
    encoder = open_encoder(bundle, bundle.manifest.graphs[0], "ort-cpu", 1)
    for text, kind in (("Failed to allocate memory", ResourceError), ("bad node", RuntimeError)):
        session = MagicMock()
        session.run_with_iobinding.side_effect = RuntimeError(text)
        monkeypatch.setattr(encoder, "_session", session)
        with pytest.raises(kind, match=text):
            encoder.encode(np.zeros((1, 3, 24, 32), np.float32))


def test_too_little_memory_for_the_engines_library(bundle, monkeypatch) -> None:
    """With `ulimit -v` a package may be installed and still not load."""

    def fail(*_: object) -> None:
        raise ImportError("libonnxruntime.so.1: failed to map segment from shared object")

    failing = dataclasses.replace(engines.ENGINES["ort-cpu"], open=fail)
    monkeypatch.setitem(engines.ENGINES, "ort-cpu", failing)
    with pytest.raises(ResourceError, match=r"not enough memory .*failed to map segment"):
        open_encoder(bundle, bundle.manifest.graphs[0], "ort-cpu", 1)
