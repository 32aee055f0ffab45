"""Encoders on ONNX Runtime's GPU providers, with CuPy's memory and a stream of their own.

Events order the callers' streams with the encoder's; the host does not wait. The encoder does not
use a caller's stream, which may end before the encoder does. The providers' CUDA graphs are off:
they belong to the thread that captured them, and during a capture no other thread of the process
may allocate device memory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dinoreg_kernels import release_idle_memory

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DeviceError
from ..types import Array
from .onnx_runtime import import_onnxruntime
from .trt.agreement import compare_tokens, probe
from .trt.executor import check_pixels, pieces

GpuEngine = Literal["ort-cuda", "ort-tensorrt"]
PROVIDERS: dict[GpuEngine, str] = {
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
#: Share of the free device memory, or of a given limit, that the provider's arena may take.
_ARENA_SHARE = 0.8
#: An ONNX graph of one Relu, to test whether a provider can be loaded.
_SMALLEST_GRAPH = (
    b'\x08\t:3\n\x0c\n\x01a\x12\x01b"\x04Relu\x12\x01gZ\x0f\n\x01a\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)


@dataclass
class _Batch:
    """The buffers of one batch size, bound once."""

    pixels: Any
    tokens: Any
    binding: Any
    options: Any


class OrtGpuEncoder:
    """A graph in an ONNX Runtime session on a GPU; safe to share between threads."""

    #: One encoder serves all threads (see `EncoderPool`).
    concurrent = True

    def __init__(
        self,
        bundle: Bundle,
        graph: Graph,
        engine: GpuEngine,
        device: int = 0,
        batches: Sequence[int] = (1, 8),
        memory_bytes: int | None = None,
    ) -> None:
        """Open a session on the CUDA device with index `device`.

        Args:
            bundle: an opened bundle.
            graph: the input size.
            engine: name of the engine, for its provider.
            device: index of the CUDA device.
            batches: batch sizes. The TensorRT provider uses only the largest, because each size
                would need an engine of its own that has to be verified.
            memory_bytes: memory of which the provider's arena may take a share; None: all free
                device memory.

        Raises:
            DeviceError: the provider cannot be loaded or cannot run the graph, or its tokens do not
                agree with those of float32.
            InputError: the graph is not what the manifest describes.
        """
        import cupy

        ort = import_onnxruntime()
        _preload(ort)
        self._cupy, self._ort, self._engine = cupy, ort, engine
        self._memory_bytes = memory_bytes
        self._input = (3, graph.height, graph.width)
        self._tokens = (*bundle.token_grid(graph), bundle.manifest.channels)
        self.batches = (max(batches),) if engine == "ort-tensorrt" else tuple(sorted(set(batches)))
        self._index, self._device = device, cupy.cuda.Device(device)
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        with self._device:
            # The provider cannot use memory that pools keep.
            release_idle_memory()
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._session = self._open(bundle, graph)
            # Allocated on this stream, so that CuPy reuses the memory only for later work on it.
            with self._stream:
                self._buffers = {batch: self._make_buffers(batch) for batch in self.batches}
        if engine == "ort-tensorrt":
            self._verify(bundle, graph)

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`. CuPy arrays stay on the device, and the host does not wait."""
        check_pixels(pixels, self._input)
        cupy = self._cupy
        with self._device, self._lock:
            caller = cupy.cuda.get_current_stream()
            # Allocated on the caller's stream: not reused before the caller's work ends.
            tokens = cupy.empty((len(pixels), *self._tokens), np.float32)
            self._stream.wait_event(caller.record())
            try:
                with self._stream:
                    for batch, piece in pieces(len(pixels), self.batches):
                        self._run(batch, pixels[piece], tokens[piece])
            finally:
                # Also after an error, because work that was queued before uses these arrays.
                caller.wait_event(self._stream.record())
            return cupy.asnumpy(tokens) if isinstance(pixels, np.ndarray) else tokens

    def cancel(self) -> None:
        """See `Encoder`; takes effect between two batches."""
        self._cancelled.set()

    def close(self) -> None:
        """Release session and buffers once their work is done."""
        self._cancelled.set()
        with self._device, self._lock:
            self._stream.synchronize()
            self._buffers, self._session = {}, None

    def __del__(self) -> None:
        with suppress(Exception):  # opening may have failed, or the interpreter is shutting down
            self.close()

    def _run(self, batch: int, pixels: Array, tokens: Any) -> None:
        if self._cancelled.is_set():
            raise DeviceError("the encoder was cancelled")
        buffers, count = self._buffers[batch], len(pixels)
        if isinstance(pixels, np.ndarray):
            buffers.pixels[:count].set(np.ascontiguousarray(pixels))
        else:
            buffers.pixels[:count] = pixels
        if count < len(buffers.pixels):
            buffers.pixels[count:] = 0
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        tokens[...] = buffers.tokens[:count]

    def _open(self, bundle: Bundle, graph: Graph) -> Any:
        from .graph_checks import check_provider, check_session

        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.use_deterministic_compute = True
        providers = self._providers(bundle.manifest.precision)
        path = bundle.folder / self._file(graph)
        try:
            session = _open_session(self._ort, str(path), options, providers)
        except Exception as error:  # the module's exceptions share no base class
            # The file matches the manifest's hash, so the graph is not at fault.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DeviceError(
                f"{path}: {PROVIDERS[self._engine]} cannot open it: {reason[0]}; "
                "'dinoreg-rt doctor' shows what is installed"
            ) from error
        check_provider(session.get_providers(), PROVIDERS[self._engine])
        check_session(path, session, bundle, graph)
        return session

    def _file(self, graph: Graph) -> str:
        """Return the graph's file for the provider; TensorRT does not know the fused attention."""
        return graph.fused if graph.fused and self._engine == "ort-cuda" else graph.file

    def _providers(self, precision: str) -> list[tuple[str, dict[str, str]]]:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        shared = {"device_id": str(self._index), "user_compute_stream": str(self._stream.ptr)}
        limit = str(int(min(free, self._memory_bytes or free) * _ARENA_SHARE))
        cuda = shared | {
            "gpu_mem_limit": limit,
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            # The default measures all algorithms of the patch embedding at each start, and may
            # choose another one, with other bits, in the next process.
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": "0",
        }
        if self._engine == "ort-cuda":
            return [(PROVIDERS["ort-cuda"], cuda)]
        shape = "x".join(map(str, (self.batches[-1], *self._input)))
        tensorrt = shared | {
            "trt_max_workspace_size": limit,
            "trt_fp16_enable": "1" if precision == "fp16" else "0",
            "trt_cuda_graph_enable": "0",
            # A cached engine would not have been verified.
            "trt_engine_cache_enable": "0",
            "trt_profile_min_shapes": f"pixels:{shape}",
            "trt_profile_opt_shapes": f"pixels:{shape}",
            "trt_profile_max_shapes": f"pixels:{shape}",
        }
        # The CUDA provider runs the nodes that TensorRT cannot.
        return [(PROVIDERS["ort-tensorrt"], tensorrt), (PROVIDERS["ort-cuda"], cuda)]

    def _make_buffers(self, batch: int) -> _Batch:
        pixels = self._cupy.zeros((batch, *self._input), np.float32)
        tokens = self._cupy.zeros((batch, *self._tokens), np.float32)
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, "pixels", pixels),
            (binding.bind_output, "tokens", tokens),
        ):
            bind(name, "cuda", self._index, np.float32, array.shape, array.data.ptr)
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return _Batch(pixels, tokens, binding, options)

    def _verify(self, bundle: Bundle, graph: Graph) -> None:
        """Compare with the CPU at every opening, because the provider rebuilds its engine then."""
        from .cpu import OrtEncoder

        pixels = probe(graph.height, graph.width, 1)
        expected = OrtEncoder(bundle, graph, threads=0).encode(pixels)
        batch = self.batches[-1]
        found = compare_tokens(
            self.encode(np.repeat(pixels, batch, axis=0)), np.repeat(expected, batch, axis=0)
        )
        if not found.holds:
            raise DeviceError(
                f"the TensorRT provider computes {graph.file} wrongly: {found.describe()}; use "
                "--engine ort-cuda, or 'dinoreg-rt export engine' and --engine tensorrt"
            )


def provider_problem(engine: GpuEngine) -> str | None:
    """Return why an engine's provider cannot run here, or None if it can."""
    try:
        import cupy  # noqa: F401

        ort = import_onnxruntime()
    except ImportError as error:
        return f"{error.name} is not installed"
    wanted = PROVIDERS[engine]
    if wanted not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {wanted}"
    _preload(ort)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = _open_session(ort, _SMALLEST_GRAPH, options, [wanted])
    except Exception as error:  # the module's exceptions share no base class
        return f"{wanted} cannot be loaded ({str(error).strip().splitlines()[0]})"
    if session.get_providers()[0] != wanted:
        return f"{wanted} cannot load its libraries"
    return None


def _preload(ort: Any) -> None:
    """Load the libraries of CUDA and cuDNN, which come in packages of their own.

    ONNX Runtime prints about missing ones; that goes to stderr.
    """
    with redirect_stdout(sys.stderr):
        ort.preload_dlls()


def _open_session(ort: Any, model: str | bytes, options: Any, providers: list[Any]) -> Any:
    """Open a session on these providers only; by default ONNX Runtime falls back to others."""
    return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
