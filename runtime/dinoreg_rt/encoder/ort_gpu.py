"""An encoder on ONNX Runtime's GPU providers: buffers of CuPy, one stream, CUDA graphs.

The provider's stream is the current one when the encoder is opened, or one of its own where that is
the default stream, which cannot be captured into a CUDA graph. Callers on other streams are put in
order by events; the host does not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..batches import pieces
from ..errors import DeviceError, InputError
from ..manifest import Graph
from ..trt.agreement import compare_tokens, probe
from ..types import Array
from .bundle import Bundle

GpuEngine = Literal["ort-cuda", "ort-tensorrt"]
PROVIDERS: dict[GpuEngine, str] = {
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
#: Share of the free device memory, or of a budget, that the provider's arena may take.
_ARENA_SHARE = 0.8
#: CuPy's numbers for the default streams of CUDA.
_DEFAULT_STREAMS = (0, 1, 2)
#: A graph of one Relu, to see whether a provider can be loaded at all.
_SMALLEST_GRAPH = (
    b'\x08\t:3\n\x0c\n\x01a\x12\x01b"\x04Relu\x12\x01gZ\x0f\n\x01a\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)


@dataclass
class _Batch:
    """Buffers of one batch size: CUDA graphs read and write the same addresses each time."""

    pixels: Any
    tokens: Any
    binding: Any
    options: Any


class OrtGpuEncoder:
    """A graph in an ONNX Runtime session on a GPU; safe to share between threads."""

    #: One is enough for all threads, see `EncoderPool`.
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
        """Open the session on CUDA device `device`.

        Args:
            bundle: opened.
            graph: input size.
            engine: which provider.
            device: CUDA device.
            batches: slices that are encoded at once. The TensorRT provider takes the largest
                alone: every other one would be an engine more, each to be verified.
            memory_bytes: of which the provider's arena takes at most a share (default: what is
                free).

        Raises:
            DeviceError: the provider cannot be loaded, or its tokens are not those of float32.
            InputError: the graph cannot be loaded.
        """
        import cupy
        import onnxruntime as ort

        ort.preload_dlls()  # CUDA's and cuDNN's libraries lie in packages of their own
        self._cupy, self._ort, self._engine = cupy, ort, engine
        self._memory_bytes = memory_bytes
        self._input = (3, graph.height, graph.width)
        self._tokens = (*bundle.token_grid(graph), bundle.manifest.channels)
        self.batches = (max(batches),) if engine == "ort-tensorrt" else tuple(sorted(set(batches)))
        self._index, self._device = device, cupy.cuda.Device(device)
        self._lock, self._cancelled = threading.Lock(), threading.Event()
        with self._device:
            current = cupy.cuda.get_current_stream()
            own = current.ptr in _DEFAULT_STREAMS
            self._stream = cupy.cuda.Stream(non_blocking=True) if own else current
            self._session = self._open(bundle, graph)
            self._buffers = {batch: self._make_buffers(batch) for batch in self.batches}
        if engine == "ort-tensorrt":
            self._verify(bundle, graph)

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`. CuPy arrays stay on the device, and nobody waits for it."""
        if pixels.dtype != np.float32 or tuple(pixels.shape[1:]) != self._input:
            raise InputError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}; the encoder takes float32 "
                f"(n, {', '.join(map(str, self._input))})"
            )
        cupy = self._cupy
        with self._device, self._lock:
            caller = cupy.cuda.get_current_stream()
            # Of the caller's stream: its memory is not used again before the caller's work ends.
            tokens = cupy.empty((len(pixels), *self._tokens), np.float32)
            self._stream.wait_event(caller.record())
            with self._stream:
                for batch, piece in pieces(len(pixels), self.batches):
                    self._run(self._buffers[batch], pixels[piece], tokens[piece])
                done = self._stream.record()
            caller.wait_event(done)
            return cupy.asnumpy(tokens) if isinstance(pixels, np.ndarray) else tokens

    def cancel(self) -> None:
        """See `Encoder`; between two batches, because a captured graph runs to its end."""
        self._cancelled.set()

    def _run(self, buffers: _Batch, pixels: Array, tokens: Any) -> None:
        if self._cancelled.is_set():
            raise DeviceError("the encoder was cancelled")
        count = len(pixels)
        if isinstance(pixels, np.ndarray):
            buffers.pixels[:count].set(np.ascontiguousarray(pixels))
        else:
            buffers.pixels[:count] = pixels
        if count < len(buffers.pixels):
            buffers.pixels[count:] = 0
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        tokens[...] = buffers.tokens[:count]

    def _open(self, bundle: Bundle, graph: Graph) -> Any:
        from .engines import check_provider, check_session, unreadable

        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.use_deterministic_compute = True
        providers = self._providers(bundle.manifest.precision)
        path = bundle.folder / graph.file
        try:
            session = self._ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the module's exceptions share no base class
            raise unreadable(path, error) from error
        check_provider(session.get_providers(), PROVIDERS[self._engine])
        check_session(path, session, bundle, graph)
        return session

    def _providers(self, precision: str) -> list[tuple[str, dict[str, str]]]:
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        shared = {"device_id": str(self._index), "user_compute_stream": str(self._stream.ptr)}
        limit = str(int(min(free, self._memory_bytes or free) * _ARENA_SHARE))
        cuda = shared | {
            "gpu_mem_limit": limit,
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "enable_cuda_graph": "1" if self._engine == "ort-cuda" else "0",
        }
        if self._engine == "ort-cuda":
            return [(PROVIDERS["ort-cuda"], cuda)]
        shape = "x".join(map(str, (self.batches[-1], *self._input)))
        tensorrt = shared | {
            "trt_max_workspace_size": limit,
            "trt_fp16_enable": "1" if precision == "fp16" else "0",
            "trt_cuda_graph_enable": "1",
            # A cached engine would be one that nobody compared with the graph.
            "trt_engine_cache_enable": "0",
            "trt_profile_min_shapes": f"pixels:{shape}",
            "trt_profile_opt_shapes": f"pixels:{shape}",
            "trt_profile_max_shapes": f"pixels:{shape}",
        }
        # The CUDA provider takes the nodes that TensorRT leaves.
        return [(PROVIDERS["ort-tensorrt"], tensorrt), (PROVIDERS["ort-cuda"], cuda)]

    def _make_buffers(self, batch: int) -> _Batch:
        pixels = self._cupy.zeros((batch, *self._input), np.float32)
        tokens = self._cupy.zeros((batch, *self._tokens), np.float32)
        # Filled on the current stream, which need not be the provider's.
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        binding = self._session.io_binding()
        for bind, name, array in (
            (binding.bind_input, "pixels", pixels),
            (binding.bind_output, "tokens", tokens),
        ):
            bind(name, "cuda", self._index, np.float32, array.shape, array.data.ptr)
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._engine == "ort-cuda":
            options.add_run_config_entry("gpu_graph_id", str(batch))
        return _Batch(pixels, tokens, binding, options)

    def _verify(self, bundle: Bundle, graph: Graph) -> None:
        """Every time it is opened: this provider builds its engine anew, and no two are alike."""
        from .engines import OrtEncoder

        pixels = probe(graph.height, graph.width, 1)
        expected = OrtEncoder(bundle, graph, threads=0).encode(pixels)
        batch = self.batches[-1]
        found = compare_tokens(
            self.encode(np.repeat(pixels, batch, axis=0)), np.repeat(expected, batch, axis=0)
        )
        if not found.holds:
            raise DeviceError(
                f"the TensorRT provider computes {graph.file} wrongly: {found.describe()}; "
                "--engine ort-cuda, or 'dinoreg-rt export engine' and --engine tensorrt"
            )


def provider_problem(engine: GpuEngine) -> str | None:
    """Why a provider cannot run anything here; None when it can."""
    try:
        import cupy  # noqa: F401
        import onnxruntime as ort
    except ImportError as error:
        return f"{error.name} is not installed"
    wanted = PROVIDERS[engine]
    if wanted not in ort.get_available_providers():
        return f"the installed onnxruntime {ort.__version__} has no {wanted}"
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(_SMALLEST_GRAPH, options, providers=[wanted])
    except Exception as error:  # the module's exceptions share no base class
        return f"{wanted} cannot be loaded ({str(error).strip().splitlines()[0]})"
    if session.get_providers()[0] != wanted:
        return f"{wanted} cannot load its libraries"
    return None
