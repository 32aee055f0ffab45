"""What runs an encoder's graph, by name, and how one is opened.

An engine that cannot be had is an error. Nothing falls back to another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..device.choice import Device
from ..errors import DeviceError, is_for_want_of_memory
from ..types import Array
from .cpu import OpenVinoEncoder, OrtEncoder
from .graph_checks import too_little_memory

if TYPE_CHECKING:
    from .ort_gpu import GpuEngine
    from .trt.library import Flavour


class Encoder(Protocol):
    """Slices in, tokens out."""

    def encode(self, pixels: Array) -> Array:
        """Tokens (n, rows, columns, channels) float32 of pixels (n, 3, height, width) float32.

        NumPy gives NumPy. Encoders on a GPU also take CuPy, and then give CuPy on the same stream.
        """

    def cancel(self) -> None:
        """From another thread: end a call of `encode` that is under way; it raises. For good."""


class Place(NamedTuple):
    """Where an encoder runs; the arguments of `open_encoder`."""

    threads: int
    gpu: int
    batch: int
    memory_bytes: int | None


Opener = Callable[[Bundle, Graph, Place], Encoder]


@dataclass(frozen=True)
class Engine:
    """What runs a graph; formatted it is its text.

    Attributes:
        text: what its name on the command line stands for.
        extra: of our package, which installs what it needs.
        package: the distribution, for reports.
        module: that the distribution brings; on a GPU CuPy is needed beside it.
        open: makes an encoder; imports what it needs.
        on_gpu: it needs a CUDA device.
    """

    text: str
    extra: str
    package: str
    module: str
    open: Opener
    on_gpu: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """That opening it imports."""
        return (self.module, "cupy") if self.on_gpu else (self.module,)

    def __str__(self) -> str:
        return self.text


def _open_ort(bundle: Bundle, graph: Graph, at: Place) -> Encoder:
    return OrtEncoder(bundle, graph, at.threads)


def _openvino(precision: str) -> Opener:
    return lambda bundle, graph, at: OpenVinoEncoder(bundle, graph, at.threads, precision)


def _ort_gpu(engine: GpuEngine) -> Opener:
    def opener(bundle: Bundle, graph: Graph, at: Place) -> Encoder:
        from .ort_gpu import OrtGpuEncoder

        return OrtGpuEncoder(bundle, graph, engine, at.gpu, (1, at.batch), at.memory_bytes)

    return opener


def _tensorrt(flavour: Flavour) -> Opener:
    def opener(bundle: Bundle, graph: Graph, at: Place) -> Encoder:
        from .tensorrt import TensorRtEncoder

        return TensorRtEncoder(bundle, graph, flavour, at.gpu)

    return opener


#: By the name on the command line; `config.EngineChoice` lists the same names.
ENGINES = {
    "ort-cpu": Engine("ONNX Runtime on the CPU", "cpu", "onnxruntime", "onnxruntime", _open_ort),
    "openvino": Engine(
        "OpenVINO on the CPU in float32", "openvino", "openvino", "openvino", _openvino("f32")
    ),
    "openvino-bf16": Engine(
        "OpenVINO on the CPU in bfloat16", "openvino", "openvino", "openvino", _openvino("bf16")
    ),
    "ort-cuda": Engine(
        "ONNX Runtime on a CUDA device",
        "gpu",
        "onnxruntime-gpu",
        "onnxruntime",
        _ort_gpu("ort-cuda"),
        on_gpu=True,
    ),
    "ort-tensorrt": Engine(
        "ONNX Runtime with TensorRT, verified whenever it is opened",
        "gpu,tensorrt",
        "onnxruntime-gpu",
        "onnxruntime",
        _ort_gpu("ort-tensorrt"),
        on_gpu=True,
    ),
    "tensorrt": Engine(
        "TensorRT engine of 'dinoreg-rt export engine'",
        "gpu,tensorrt",
        "tensorrt-cu13",
        "tensorrt",
        _tensorrt("tensorrt"),
        on_gpu=True,
    ),
    "tensorrt-rtx": Engine(
        "TensorRT-RTX engine of 'dinoreg-rt export engine --backend rtx'",
        "gpu,rtx",
        "tensorrt-rtx-cu13",
        "tensorrt_rtx",
        _tensorrt("tensorrt-rtx"),
        on_gpu=True,
    ),
}
GPU_ENGINES = frozenset(name for name, engine in ENGINES.items() if engine.on_gpu)
#: The distribution of each, for reports.
ENGINE_PACKAGES = {name: engine.package for name, engine in ENGINES.items()}


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
        ResourceError: there is too little memory to load it.
    """
    index = device.index if device is not None else 0
    chosen = ENGINES[engine]
    try:
        return chosen.open(bundle, graph, Place(threads, index, batch, memory_bytes))
    except ImportError as error:
        if is_for_want_of_memory(error):
            raise too_little_memory(f"--engine {engine} ({chosen})", str(error)) from error
        raise DeviceError(
            f"--engine {engine} ({chosen}): {error.name} is not installed; "
            f"pip install 'dinoreg-rt[{chosen.extra}]'"
        ) from error
