"""Runs TensorRT engines on CuPy's memory and current stream.

The export verifies engines with this module and the runtime runs them with it. An engine has one
optimisation profile for each batch size, of exactly that size; smaller batches are padded with
zeros.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoreg_kernels import release_idle_memory

from ...errors import DeviceError, InputError
from .library import Library
from .runtime_cache import RuntimeCache

INPUT, OUTPUT = "pixels", "tokens"
#: Most execution contexts of one batch size; beyond these, streams wait for each other.
_MOST_CONTEXTS = 8


@dataclass
class _Context:
    """An execution context with its buffers, for one run at a time.

    Attributes:
        batch: batch size of the context's profile.
        outputs: buffers of all of the engine's outputs; TensorRT needs an address for each.
        scratch: device memory for activations, kept alive here.
        done: event recorded after each run.
        stream: pointer of the last run's stream.
        fresh: whether it has not run yet.
    """

    context: Any
    batch: int
    outputs: dict[str, Any]
    scratch: Any
    done: Any
    stream: int
    fresh: bool = True

    def __del__(self) -> None:
        # The executor may be deleted before its last run ends; the run's buffers may not.
        with suppress(Exception):  # waiting fails while the interpreter shuts down
            self.done.synchronize()


class _Contexts:
    """The contexts of one batch size that no call is using."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Context] = []
        self._made = 0

    def take(self, stream: Any, make: Callable[[], _Context]) -> _Context:
        """Return a context that is idle or on the same stream, or a new one up to the limit."""
        with self._lock:
            for i, held in enumerate(self._idle):
                if held.stream == stream.ptr or held.done.done:
                    return self._idle.pop(i)
            if self._idle and self._made >= _MOST_CONTEXTS:
                return self._idle.pop()  # the stream will wait for its last run
            self._made += 1
        return make()

    def give(self, held: _Context) -> None:
        """Return a context, whose run may not have finished."""
        with self._lock:
            self._idle.append(held)


class EngineExecutor:
    """Runs one engine; safe to call from several threads, each in a context of its own.

    Attributes:
        cancelled: event that, once set, ends runs before their next batch.
    """

    def __init__(self, library: Library, plan: bytes, kernels: Path | None = None) -> None:
        """Load an engine on the current device.

        Args:
            library: a flavour of TensorRT.
            plan: the engine.
            kernels: file of the kernels that TensorRT-RTX compiles here; None keeps none.

        Raises:
            DeviceError: TensorRT cannot load the engine, or CuPy is missing.
            InputError: the inputs and outputs are not those of an encoder.
        """
        self._cupy = _import_cupy()
        # The engine cannot use memory that pools keep.
        release_idle_memory()
        self._library = library
        self._runtime = library.module.Runtime(library.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeviceError(f"{library.flavour} cannot load the engine: {library.complaint()}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if INPUT not in names or OUTPUT not in names:
            raise InputError(f"the engine has {', '.join(names)}; wanted {INPUT} and {OUTPUT}")
        self._outputs = [name for name in names if name != INPUT]
        self._check_types([INPUT, *self._outputs])
        # (minimum, optimum, maximum) shape of each profile.
        profiles = [
            self._engine.get_tensor_profile_shape(INPUT, i)
            for i in range(self._engine.num_optimization_profiles)
        ]
        self._batches = [int(shapes[2][0]) for shapes in profiles]
        self.input_shape = tuple(int(n) for n in profiles[0][2][1:])
        self.output_shape = tuple(int(n) for n in self._engine.get_tensor_shape(OUTPUT)[1:])
        self._contexts = {batch: _Contexts() for batch in self._batches}
        self._strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self._kernels = None
        if kernels is not None and library.has_runtime_cache:
            self._kernels = RuntimeCache(self._engine, self._strategy, kernels)
        self.cancelled = threading.Event()

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return tuple(sorted(self._batches))

    @property
    def context_bytes(self) -> int:
        """Device memory of one execution context; `set_device_memory` wants it for all profiles."""
        return int(self._engine.device_memory_size_v2)

    def run(self, pixels: Any) -> Any:
        """Queue the encoding of pixels (n, 3, height, width) and return their tokens.

        The tokens (n, rows, columns, channels) are float32 on the device like the pixels. The work
        is queued on the current stream and the host does not wait. Any number of slices is allowed.
        """
        check_pixels(pixels, self.input_shape)
        tokens = self._cupy.empty((len(pixels), *self.output_shape), np.float32)
        for batch, piece in pieces(len(pixels), self._batches):
            self._run_batch(batch, pixels[piece], tokens[piece])
        return tokens

    def save_kernels(self) -> None:
        """Keep the kernels that were compiled here for the next process."""
        if self._kernels is not None:
            self._kernels.save()

    def _run_batch(self, batch: int, pixels: Any, tokens: Any) -> None:
        if self.cancelled.is_set():
            raise DeviceError("the encoder was cancelled")
        cupy, contexts = self._cupy, self._contexts[batch]
        stream = cupy.cuda.get_current_stream()
        held = contexts.take(stream, lambda: self._make_context(batch, stream))
        try:
            # The context's last run may have been on another stream.
            stream.wait_event(held.done)
            if len(pixels) < batch:
                whole = cupy.zeros((batch, *self.input_shape), np.float32)
                whole[: len(pixels)] = pixels
                self._execute(held, whole, held.outputs[OUTPUT], stream)
                tokens[...] = held.outputs[OUTPUT][: len(tokens)]
            else:
                self._execute(held, cupy.ascontiguousarray(pixels), tokens, stream)
            held.done.record(stream)
            held.stream = stream.ptr
            if held.fresh:  # its first run has compiled its kernels
                held.fresh = False
                self.save_kernels()
        finally:
            contexts.give(held)

    def _execute(self, held: _Context, pixels: Any, tokens: Any, stream: Any) -> None:
        """Queue one run; outputs other than the tokens go to the context's own buffers."""
        addresses = {name: buffer.data.ptr for name, buffer in held.outputs.items()}
        addresses |= {INPUT: pixels.data.ptr, OUTPUT: tokens.data.ptr}
        context = held.context
        ready = context.set_input_shape(INPUT, (held.batch, *self.input_shape))
        for name, address in addresses.items():
            ready = context.set_tensor_address(name, address) and ready
        if not (ready and context.execute_async_v3(stream.ptr)):
            raise DeviceError(
                f"{self._library.flavour} could not run the engine: {self._library.complaint()}"
            )

    def _make_context(self, batch: int, stream: Any) -> _Context:
        cupy, engine, library = self._cupy, self._engine, self._library
        profile = self._batches.index(batch)
        config = self._strategy if self._kernels is None else self._kernels.config
        context = engine.create_execution_context(config)
        if context is None or not context.set_optimization_profile_async(profile, stream.ptr):
            raise DeviceError(
                f"{self._library.flavour} could not make an execution context for {batch} slices: "
                f"{self._library.complaint()}; a smaller --batch needs less memory"
            )
        size = self.context_bytes
        # CuPy's pool allocates multiples of 512 bytes, which gives TensorRT's alignment.
        scratch = cupy.empty(max(size, 1), np.uint8)
        library.log.clear()
        context.set_device_memory(scratch.data.ptr, size)
        if library.log:  # nothing else says that the memory was refused
            raise DeviceError(f"{library.flavour} refused {size} bytes: {library.complaint()}")
        outputs = {
            name: cupy.empty((batch, *engine.get_tensor_shape(name)[1:]), np.float32)
            for name in self._outputs
        }
        done = cupy.cuda.Event(disable_timing=True)
        done.record(stream)
        return _Context(context, batch, outputs, scratch, done, stream.ptr)

    def _check_types(self, names: list[str]) -> None:
        for name in names:
            kind = self._engine.get_tensor_dtype(name)
            if kind != self._library.module.float32:
                raise InputError(f"the engine's {name} are {kind}; wanted float32")


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "TensorRT engines need CuPy, which is not installed; pip install 'dinoreg-rt[gpu]'"
        ) from error
    return cupy


def check_pixels(pixels: Any, shape: tuple[int, ...]) -> None:
    """Check that pixels are float32 slices of a shape (3, height, width).

    Raises:
        InputError: they are not.
    """
    if pixels.dtype != np.float32 or tuple(pixels.shape[1:]) != shape:
        raise InputError(
            f"pixels are {pixels.dtype} {tuple(pixels.shape)}; the engine takes float32 "
            f"(n, {', '.join(map(str, shape))})"
        )


def pieces(count: int, batches: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Divide slices into batches: the largest size as often as it fits, then the best for the rest.

    Args:
        count: number of slices.
        batches: batch sizes of the engine.

    Yields:
        The batch size and the range of slices, which may be smaller and must then be padded.
    """
    first = 0
    while first < count:
        fitting = [batch for batch in batches if batch >= count - first]
        batch = min(fitting) if fitting else max(batches)
        yield batch, slice(first, min(first + batch, count))
        first += batch
