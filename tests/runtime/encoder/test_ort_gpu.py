"""ONNX Runtime's GPU providers: buffers, streams, options and fallbacks.

A fake session reads and writes the bound addresses, and computes with a real one on the CPU.
"""

from __future__ import annotations

import shutil
import sys
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from encoders import write_bundle
from gpu_fakes import DeviceArray, at_address, fake_cupy

from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.cuda_driver import CudaDriver
from dinoreg_rt.engines import selection as engine_choice
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.engines.ort_gpu import OrtGpuEncoder, provider_problem
from dinoreg_rt.engines.selection import choose_engine
from dinoreg_rt.engines.trt import identity
from dinoreg_rt.errors import ConfigError, DeviceError, InputError

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

DEFAULT_STREAMS = (0, 1, 2)
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, tuple[tuple[int, ...], int]] = {}

    def bind_input(self, name, kind, index, dtype, shape, address) -> None:
        assert (kind, dtype) == ("cuda", np.float32)
        self.bound[name] = (tuple(shape), address)

    bind_output = bind_input


def fake_onnxruntime(usable: tuple[str, ...] = (TENSORRT, CUDA), broken: str = "") -> ModuleType:
    """Make a module in which only the `usable` providers load; the others silently fall back.

    With `broken`, the reason, all fail; unless told not to, ONNX Runtime prints it and falls back.
    """
    ort = ModuleType("onnxruntime")
    ort.__version__, ort.calls, ort.spoil = "1.31.1", [], None
    ort.SessionOptions, ort.ExecutionMode = onnxruntime.SessionOptions, onnxruntime.ExecutionMode

    def preload_dlls() -> None:
        ort.calls.append(("preload",))
        print("Failed to load libcudnn.so.9")

    ort.preload_dlls = preload_dlls
    ort.get_available_providers = lambda: [TENSORRT, CUDA, "CPUExecutionProvider"]

    class RunOptions(dict):
        def add_run_config_entry(self, key: str, value: str) -> None:
            self[key] = value

    class Session:
        def __init__(self, path, options, providers, **more) -> None:
            names = [p if isinstance(p, str) else p[0] for p in providers]
            ort.calls.append(("session", providers, options))
            ort.opened = path
            self.on_gpu = [n for n in names if n in usable and not broken]
            if broken and int(more.get("enable_fallback", 1)) != 1:
                raise RuntimeError(broken)
            if broken:
                print(f"EP Error {broken} when using {providers}")
            self.real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs

        def get_providers(self) -> list[str]:
            return [*self.on_gpu, "CPUExecutionProvider"]

        def io_binding(self):
            return Binding() if self.on_gpu else self.real.io_binding()

        def run_with_iobinding(self, binding, options) -> None:
            if not self.on_gpu:
                self.real.run_with_iobinding(binding)
                return
            ort.calls.append(("run", dict(binding.bound), dict(options)))
            pixels = at_address(binding.bound["pixels"][1], binding.bound["pixels"][0])
            (tokens,) = self.real.run(["tokens"], {"pixels": pixels})
            shape, address = binding.bound["tokens"]
            at_address(address, shape)[...] = ort.spoil(tokens) if ort.spoil else tokens

    ort.RunOptions, ort.InferenceSession = RunOptions, Session
    return ort


@pytest.fixture
def cupy(monkeypatch):
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


@pytest.fixture
def ort(monkeypatch):
    ort = fake_onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    return ort


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(write_bundle(tmp_path_factory.mktemp("models") / "gabor", [(24, 32)]))


def open_on_gpu(bundle, engine: str = "ort-cuda", **more) -> OrtGpuEncoder:
    return OrtGpuEncoder(bundle, bundle.manifest.graphs[0], engine, **more)


def expected(bundle, pixels: np.ndarray) -> np.ndarray:
    path = bundle.folder / bundle.manifest.graphs[0].file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["tokens"], {"pixels": pixels})[0]


def slices(rng, count: int) -> np.ndarray:
    return rng.normal(size=(count, 3, 24, 32)).astype(np.float32)


def calls(ort, name: str) -> list:
    return [call for call in ort.calls if call[0] == name]


@pytest.mark.parametrize(("engine", "runs"), [("ort-cuda", [4, 1]), ("ort-tensorrt", [4, 4])])
def test_tokens(bundle, cupy, ort, rng, engine, runs) -> None:
    encoder, pixels = open_on_gpu(bundle, engine, batches=(1, 4)), slices(rng, 5)
    ort.calls.clear()
    first = encoder.encode(pixels)
    kept = first.copy()
    np.testing.assert_allclose(first, expected(bundle, pixels), atol=1e-6)
    bound = [call[1] for call in calls(ort, "run")]
    assert [b["pixels"][0] for b in bound] == [(n, 3, 24, 32) for n in runs]
    # The buffers stay bound, and earlier results are not overwritten.
    encoder.encode(slices(rng, 5))
    assert [call[1] for call in calls(ort, "run")][len(runs) :] == bound
    np.testing.assert_array_equal(first, kept)


def test_options_of_the_cuda_provider(bundle, cupy, ort, rng, capsys) -> None:
    encoder = open_on_gpu(bundle, device=2, batches=(1, 4))
    encoder.encode(slices(rng, 5))
    (_, ((name, settings),), options) = calls(ort, "session")[0]
    assert (name, ort.calls[0]) == (CUDA, ("preload",))  # before the session is opened
    assert capsys.readouterr().out == ""
    assert options.use_deterministic_compute
    assert ("blocks freed",) in cupy.calls
    assert int(settings.pop("user_compute_stream")) not in DEFAULT_STREAMS
    assert settings == {
        "device_id": "2",
        "gpu_mem_limit": str(8 << 30),
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "0",
    }
    # Runs do not wait for the device.
    assert [call[2] for call in calls(ort, "run")] == [
        {"disable_synchronize_execution_providers": "1"}
    ] * 2


def test_options_of_the_tensorrt_provider(bundle, cupy, ort) -> None:
    open_on_gpu(bundle, "ort-tensorrt", batches=(1, 4))
    (_, ((name, settings), (second, rest)), _) = calls(ort, "session")[0]
    assert (name, second) == (TENSORRT, CUDA)
    assert {settings[f"trt_profile_{k}_shapes"] for k in ("min", "opt", "max")} == {
        "pixels:4x3x24x32"
    }
    assert settings["trt_engine_cache_enable"] == "0"
    assert settings["trt_cuda_graph_enable"] == "0"
    assert rest["enable_cuda_graph"] == "0"


@pytest.mark.parametrize("opened_on_a_stream", [False, True])
def test_streams_are_put_in_order(bundle, cupy, ort, rng, opened_on_a_stream) -> None:
    """The stream that is current at the opening is not kept, as it may end before the encoder."""
    with cupy.cuda.Stream() if opened_on_a_stream else nullcontext() as first:
        encoder = open_on_gpu(bundle)
    own = int(calls(ort, "session")[0][1][0][1]["user_compute_stream"])
    assert own not in (*DEFAULT_STREAMS, getattr(first, "ptr", 0))
    cupy.calls.clear()
    pixels = slices(rng, 2)
    with cupy.cuda.Stream() as stream:
        tokens = encoder.encode(DeviceArray(pixels))
    assert isinstance(tokens, DeviceArray)
    np.testing.assert_allclose(tokens.host, expected(bundle, pixels), atol=1e-6)
    # The encoder's stream waits for the pixels, the caller's for the tokens; the host never waits.
    in_order = [("wait", own, stream.ptr), ("wait", stream.ptr, own)]
    assert [c for c in cupy.calls if c[0] != "device"] == in_order
    # The same holds after an error.
    encoder.cancel()
    with cupy.cuda.Stream() as stream, pytest.raises(DeviceError, match="cancelled"):
        encoder.encode(DeviceArray(pixels))
    assert cupy.calls[-1] == ("wait", stream.ptr, own)


def test_closed_when_its_work_is_done(bundle, cupy, ort, rng) -> None:
    encoder = open_on_gpu(bundle)
    session, stream = weakref.ref(encoder._session), weakref.ref(encoder._stream)
    cupy.calls.clear()
    encoder.close()
    assert ("synchronize", stream().ptr) in cupy.calls
    assert session() is None  # deleted before its stream, which it may use until then
    with pytest.raises(DeviceError, match="cancelled"):
        encoder.encode(slices(rng, 1))
    encoder = open_on_gpu(bundle)
    gone = []
    weakref.finalize(encoder._session, gone.append, "session")
    weakref.finalize(encoder._stream, gone.append, "stream")
    del encoder
    assert gone == ["session", "stream"]


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt"])
def test_the_reason_of_a_failing_provider(bundle, cupy, monkeypatch, capsys, engine) -> None:
    broken = fake_onnxruntime(broken="CUDA failure 35: driver version is insufficient\nand more")
    monkeypatch.setitem(sys.modules, "onnxruntime", broken)
    with pytest.raises(DeviceError, match=r"Provider cannot open it: CUDA failure 35: driver ver"):
        open_on_gpu(bundle, engine)
    assert "(CUDA failure 35: driver version" in (provider_problem("ort-cuda") or "")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt"])
def test_a_session_that_fell_back_is_an_error(bundle, cupy, monkeypatch, engine) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(usable=()))
    with pytest.raises(DeviceError, match=r"asked for \w+ and took CPUExecutionProvider"):
        open_on_gpu(bundle, engine)


def test_tensorrt_that_fell_back_to_cuda_is_an_error(bundle, cupy, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(usable=(CUDA,)))
    with pytest.raises(DeviceError, match=f"asked for {TENSORRT} and took {CUDA}"):
        open_on_gpu(bundle, "ort-tensorrt")


def test_the_tensorrt_provider_is_verified(bundle, cupy, ort) -> None:
    ort.spoil = lambda tokens: tokens[..., ::-1]
    with pytest.raises(DeviceError, match=r"computes encoder_24x32.onnx wrongly: token cosine"):
        open_on_gpu(bundle, "ort-tensorrt")


def test_wrong_pixels(bundle, cupy, ort, rng) -> None:
    with pytest.raises(InputError, match=r"float32 \(1, 3, 24, 16\); the engine takes float32"):
        open_on_gpu(bundle).encode(slices(rng, 1)[..., :16])


def test_missing_packages(bundle, monkeypatch, ort) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"ort-cuda .*cupy is not installed; .*\[gpu\]"):
        open_encoder(bundle, bundle.manifest.graphs[0], "ort-cuda", 1)
    assert provider_problem("ort-cuda") == "cupy is not installed"


def test_provider_problems(monkeypatch, cupy) -> None:
    def problem(usable: tuple[str, ...], available: list[str]) -> str | None:
        ort = fake_onnxruntime(usable)
        ort.get_available_providers = lambda: available
        monkeypatch.setitem(sys.modules, "onnxruntime", ort)
        return provider_problem("ort-cuda")

    assert problem((CUDA,), [CUDA]) is None
    assert problem((), [CUDA]) == f"{CUDA} cannot load its libraries"
    assert problem((), []) == f"the installed onnxruntime 1.31.1 has no {CUDA}"


def test_auto_on_a_gpu(bundle, cupy, ort, monkeypatch) -> None:
    graph, device = bundle.manifest.graphs[0], Device("cuda", 0)
    monkeypatch.setattr(
        identity, "query_cuda_driver", lambda: CudaDriver(None, (), "the driver is gone")
    )
    name, reason = choose_engine("auto", device, bundle, [graph])
    assert name == "ort-cuda"
    assert "because tensorrt: no CUDA device can be used: the driver is gone" in reason
    assert "; tensorrt-rtx: " in reason
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(usable=()))
    name, reason = choose_engine("auto", device)
    assert (name, "because ort-cuda: CUDAExecutionProvider cannot" in reason) == ("ort-cpu", True)
    for flavour in ("tensorrt", "tensorrt-rtx"):
        found = SimpleNamespace(flavour=flavour)
        monkeypatch.setattr(
            engine_choice,
            "engine_problem",
            lambda b, g, f, i, found=found: None if f == found.flavour else "none",
        )
        assert choose_engine("auto", device, bundle, [graph]) == (
            flavour,
            f"{flavour}, because a verified engine for this GPU is in the cache",
        )


def test_auto_without_a_gpu_engine_for_a_bundle_in_bfloat16(bundle, cupy, monkeypatch) -> None:
    """ONNX Runtime's CPU has no matrix products in bfloat16."""
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(usable=()))
    half = replace(bundle, manifest=bundle.manifest.model_copy(update={"precision": "bf16"}))
    name, reason = choose_engine("auto", Device("cuda"), half)
    assert (name, reason.startswith("openvino (")) == ("openvino", True)
    # So it cannot verify an engine's tokens either.
    with pytest.raises(ConfigError, match=r"ort-tensorrt: ONNX Runtime's CPU, which .* bfloat16"):
        choose_engine("ort-tensorrt", Device("cuda"), half)


@pytest.mark.parametrize(
    ("engine", "file"), [("ort-cuda", "cuda.onnx"), ("ort-tensorrt", "encoder_24x32.onnx")]
)
def test_the_graph_with_fused_attention_is_for_cuda(
    cupy, ort, bundle, tmp_path, engine, file
) -> None:
    folder = tmp_path / "gabor"
    shutil.copytree(bundle.folder, folder)
    graph = bundle.manifest.graphs[0]
    shutil.copyfile(folder / graph.file, folder / "cuda.onnx")
    both = graph.model_copy(update={"fused": "cuda.onnx"})
    opened = replace(bundle, folder=folder)
    for one, expected in ((graph, graph.file), (both, file)):
        OrtGpuEncoder(opened, one, engine)
        assert Path(ort.opened) == folder / expected
