"""The table of engines that run an encoder's graph, and the opening of an encoder on one.

An engine that is not available is an error; nothing falls back to another one.
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
    """A vision network that turns slices into tokens."""

    def encode(self, pixels: Array) -> Array:
        """Encode pixels (n, 3, height, width) to tokens (n, rows, columns, channels), float32.

        NumPy pixels give NumPy tokens. Encoders on a GPU also take CuPy pixels, and then give CuPy
        tokens on the same stream.
        """

    def cancel(self) -> None:
        """End a running call of `encode` in another thread, which raises, and all later calls."""


class Place(NamedTuple):
    """The threads, GPU, batch and memory limit of an encoder, as in `open_encoder`."""

    threads: int
    gpu: int
    batch: int
    memory_bytes: int | None


Opener = Callable[[Bundle, Graph, Place], Encoder]


@dataclass(frozen=True)
class Engine:
    """An engine that runs graphs; its string is `text`.

    Attributes:
        text: description of the engine, for messages.
        extra: extra of this package that installs the engine's packages.
        package: the engine's distribution, for reports.
        module: the module of that distribution; engines on a GPU also need CuPy.
        open: function that opens an encoder, importing what it needs.
        on_gpu: whether the engine needs a CUDA device.
    """

    text: str
    extra: str
    package: str
    module: str
    open: Opener
    on_gpu: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that opening an encoder imports."""
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


#: Engines by their name on the command line; `EngineChoice` lists the same names.
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
        "ONNX Runtime with TensorRT, verified each time it is opened",
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
#: Distribution that provides each engine, for reports.
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
    """Open an encoder on an engine.

    Args:
        bundle: an opened bundle.
        graph: the input size.
        engine: one of `ENGINES`.
        threads: CPU threads, for engines on the CPU.
        device: the device for engines on a GPU; None is the first CUDA device.
        batch: slices per call, for which ONNX Runtime's GPU providers allocate buffers.
        memory_bytes: limit on the device memory of those providers; None: the free memory.

    Raises:
        DeviceError: the engine's package is missing, or runs elsewhere than requested.
        InputError: the graph cannot be loaded, or is not what the manifest describes.
        ResourceError: there is too little memory to load the graph.
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
