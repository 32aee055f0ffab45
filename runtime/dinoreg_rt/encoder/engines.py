"""What runs an encoder's graph: ONNX Runtime or OpenVINO, chosen by name and checked.

An engine that cannot be had is an error. Nothing falls back to another one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ..device import Device
from ..errors import ConfigError, DeviceError, InputError
from ..manifest import Graph
from ..types import Array
from .bundle import Bundle

if TYPE_CHECKING:
    from ..trt.library import Flavour
    from .ort_gpu import GpuEngine

#: Names on the command line, and what they stand for.
ENGINES = {
    "ort-cpu": "ONNX Runtime on the CPU",
    "openvino": "OpenVINO on the CPU in float32",
    "openvino-bf16": "OpenVINO on the CPU in bfloat16",
    "ort-cuda": "ONNX Runtime on a CUDA device",
    "ort-tensorrt": "ONNX Runtime with TensorRT, verified whenever it is opened",
    "tensorrt": "TensorRT engine of 'dinoreg-rt export engine'",
    "tensorrt-rtx": "TensorRT-RTX engine of 'dinoreg-rt export engine --backend rtx'",
}
#: The extra that installs what each engine needs.
EXTRAS = {
    "ort-cpu": "cpu",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
    "ort-cuda": "gpu",
    "ort-tensorrt": "gpu,tensorrt",
    "tensorrt": "gpu,tensorrt",
    "tensorrt-rtx": "gpu,rtx",
}
#: Engines that take no bundle in bfloat16: what ONNX Runtime's CPU is to them, and another engine.
_WITHOUT_BFLOAT16 = {
    "ort-cpu": ("", "--engine openvino"),
    "ort-tensorrt": (
        ", which this engine is verified with,",
        "--engine tensorrt with an engine of 'dinoreg-rt export engine', or ort-cuda",
    ),
}
GPU_ENGINES = frozenset({"ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"})
#: The distribution of each, for reports.
ENGINE_PACKAGES = {
    "ort-cpu": "onnxruntime",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
    "ort-cuda": "onnxruntime-gpu",
    "ort-tensorrt": "onnxruntime-gpu",
    "tensorrt": "tensorrt-cu13",
    "tensorrt-rtx": "tensorrt-rtx-cu13",
}


class Encoder(Protocol):
    """Slices in, tokens out."""

    def encode(self, pixels: Array) -> Array:
        """Tokens (n, rows, columns, channels) float32 of pixels (n, 3, height, width) float32.

        NumPy gives NumPy. Encoders on a GPU also take CuPy, and then give CuPy on the same stream.
        """

    def cancel(self) -> None:
        """From another thread: end a call of `encode` that is under way; it raises. For good."""


class OrtEncoder:
    """A graph in an ONNX Runtime session on the CPU, which writes into our own arrays."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Batches have one size, so the arena holds what one run takes: 9 % faster than without.
        options.enable_cpu_mem_arena = True
        path = bundle.folder / graph.file
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the module's exceptions share no base class
            raise unreadable(path, error) from error
        check_provider(self._session.get_providers(), "CPUExecutionProvider")
        self._tokens = check_session(path, self._session, bundle, graph)
        self._options = ort.RunOptions()

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`."""
        tokens = np.empty((len(pixels), *self._tokens), np.float32)
        binding = self._session.io_binding()
        binding.bind_cpu_input("pixels", pixels)
        binding.bind_output("tokens", "cpu", 0, np.float32, tokens.shape, tokens.ctypes.data)
        self._session.run_with_iobinding(binding, self._options)
        return tokens

    def cancel(self) -> None:
        """See `Encoder`."""
        self._options.terminate = True


class OpenVinoEncoder:
    """A graph compiled by OpenVINO for the CPU, in a precision that is always named.

    Left to itself OpenVINO takes bfloat16 on some processors and float32 on others.
    """

    def __init__(self, bundle: Bundle, graph: Graph, threads: int, precision: str) -> None:
        import openvino

        path = bundle.folder / graph.file
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            model = openvino.Core().read_model(path)
            self._tokens = _check_contract(
                path, _openvino_shapes(model.inputs), _openvino_shapes(model.outputs), bundle, graph
            )
            self._request = (
                openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
            )
        except RuntimeError as error:
            raise unreadable(path, error) from error

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`."""
        self._request.infer({"pixels": pixels}, share_inputs=True)
        return np.array(self._request.get_tensor("tokens").data)

    def cancel(self) -> None:
        """See `Encoder`."""
        self._request.cancel()


def open_encoder(
    bundle: Bundle,
    graph: Graph,
    engine: str,
    threads: int,
    *,
    device: Device | None = None,
    batch: int = 8,
    memory_bytes: int | None = None,
) -> Encoder:
    """The encoder on the engine of that name.

    Args:
        bundle: opened.
        graph: input size.
        engine: one of `ENGINES`.
        threads: of the CPU, for the engines that run there.
        device: where the others run; None is the first CUDA device.
        batch: slices at once; ONNX Runtime's GPU providers make buffers for it.
        memory_bytes: of the device that those may take at most (default: of what is free).

    Raises:
        DeviceError: the engine's package is missing, or runs elsewhere than asked.
        InputError: the graph cannot be loaded, or is not what the manifest says.
    """
    index = device.index if device is not None else 0
    try:
        if engine in ("ort-cuda", "ort-tensorrt"):
            from .ort_gpu import OrtGpuEncoder

            return OrtGpuEncoder(
                bundle, graph, cast("GpuEngine", engine), index, (1, batch), memory_bytes
            )
        if engine in ("tensorrt", "tensorrt-rtx"):
            from .encoder_trt import TensorRtEncoder

            return TensorRtEncoder(bundle, graph, cast("Flavour", engine), index)
        if engine == "ort-cpu":
            return OrtEncoder(bundle, graph, threads)
        precision = {"openvino": "f32", "openvino-bf16": "bf16"}[engine]
        return OpenVinoEncoder(bundle, graph, threads, precision)
    except ImportError as error:
        raise DeviceError(
            f"--engine {engine} ({ENGINES[engine]}): {error.name} is not installed; "
            f"pip install 'dinoreg-rt[{EXTRAS[engine]}]'"
        ) from error


def choose_engine(
    wanted: str,
    device: Device | None = None,
    bundle: Bundle | None = None,
    graph: Graph | None = None,
) -> tuple[str, str]:
    """The engine for ``auto`` or a name, and why.

    Args:
        wanted: ``auto`` or one of `ENGINES`.
        device: that the registration runs on; None counts as the CPU for ``auto``.
        bundle: opened; with `graph` for engines in the cache.
        graph: input size.

    Raises:
        ConfigError: an engine of the GPU for a registration on the CPU, or one that has no matrix
            products in the bundle's precision.
    """
    half = bundle is not None and bundle.manifest.precision == "bf16"
    if wanted in _WITHOUT_BFLOAT16 and half:
        role, other = _WITHOUT_BFLOAT16[wanted]
        raise ConfigError(
            f"--engine {wanted}: ONNX Runtime's CPU{role} has no matrix products in bfloat16, the "
            f"precision of this bundle; {other}, or export it with --precision fp32"
        )
    if wanted != "auto":
        if wanted in GPU_ENGINES and device is not None and device.kind == "cpu":
            raise ConfigError(
                f"--engine {wanted} ({ENGINES[wanted]}) needs a GPU, and the device is the CPU; "
                "--device cuda, or --engine ort-cpu"
            )
        return wanted, f"{wanted} ({ENGINES[wanted]}), as asked"
    if device is not None and device.kind == "cuda":
        from .engine_choice import choose_for_gpu

        return choose_for_gpu(device.index, bundle, graph)
    if half:
        return "openvino", f"openvino ({ENGINES['openvino']}), because the bundle is of bfloat16"
    return "ort-cpu", f"ort-cpu ({ENGINES['ort-cpu']}), the same bits on every run"


def check_provider(active: list[str], wanted: str) -> None:
    """Stop when a session runs elsewhere than it was asked to: ONNX Runtime says nothing.

    Raises:
        DeviceError: another provider comes first.
    """
    if not active or active[0] != wanted:
        raise DeviceError(
            f"ONNX Runtime was asked for {wanted} and took {active[0] if active else 'nothing'}; "
            "'dinoreg-rt doctor' shows what is installed"
        )


def check_session(path: Path, session: Any, bundle: Bundle, graph: Graph) -> tuple[int, int, int]:
    """Shape (rows, columns, channels) of an ONNX Runtime session's tokens.

    Raises:
        InputError: the graph is not what the manifest says.
    """
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    return _check_contract(path, inputs, outputs, bundle, graph)


def _check_contract(
    path: Path,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    bundle: Bundle,
    graph: Graph,
) -> tuple[int, int, int]:
    """Shape (rows, columns, channels) of the tokens, after comparing graph and manifest."""
    tokens = (*bundle.token_grid(graph), bundle.manifest.channels)
    wanted_in, wanted_out = [3, graph.height, graph.width], list(tokens)
    have_in, have_out = inputs.get("pixels", []), outputs.get("tokens", [])
    if list(inputs) != ["pixels"] or have_in[1:] != wanted_in or have_out[1:] != wanted_out:
        raise InputError(
            f"{path}: the graph takes {inputs} and gives {outputs}; its manifest promises pixels "
            f"(N, {', '.join(map(str, wanted_in))}) and tokens "
            f"(N, {', '.join(map(str, wanted_out))}); export the bundle again"
        )
    return tokens


def _openvino_shapes(ports: list[Any]) -> dict[str, list[Any]]:
    return {
        port.get_any_name(): [
            d.get_length() if d.is_static else "N" for d in port.get_partial_shape()
        ]
        for port in ports
    }


def unreadable(path: Path, error: Exception) -> InputError:
    """What to say of a graph that an engine cannot load."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"{path}: cannot be loaded: {first}; export the bundle again")
