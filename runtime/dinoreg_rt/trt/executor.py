"""A TensorRT engine on memory that CuPy owns, on CuPy's current stream.

The export verifies engines with it and the runtime runs them with it, so that what was verified is
what runs. An engine has one optimisation profile for each batch size, of that size exactly; fewer
slices than the smallest that fits are padded with zeros.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batches import pieces
from ..errors import DeviceError, InputError
from .library import Library

INPUT, OUTPUT = "pixels", "tokens"


@dataclass
class _Context:
    """One execution context with its buffers: one run at a time.

    Attributes:
        batch: slices of its profile.
        outputs: every output of the engine; TensorRT wants an address for each.
        scratch: device memory of the layers' activations; held so that it lives as long.
        done: recorded after each run.
    """

    context: Any
    batch: int
    outputs: dict[str, Any]
    scratch: Any
    done: Any

    def __del__(self) -> None:
        # A thread may end before its last run has: its buffers must not go back to the pool yet.
        self.done.synchronize()


class EngineExecutor:
    """Runs one engine; safe to call from several threads, each with a context of its own."""

    def __init__(self, library: Library, plan: bytes) -> None:
        """Load an engine on the current device.

        Raises:
            DeviceError: TensorRT will not load it, or CuPy is missing.
            InputError: its inputs and outputs are not an encoder's.
        """
        self._cupy = _import_cupy()
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
        # (minimum, optimum, maximum) of each profile.
        profiles = [
            self._engine.get_tensor_profile_shape(INPUT, i)
            for i in range(self._engine.num_optimization_profiles)
        ]
        self._batches = [int(shapes[2][0]) for shapes in profiles]
        self.input_shape = tuple(int(n) for n in profiles[0][2][1:])
        self.output_shape = tuple(int(n) for n in self._engine.get_tensor_shape(OUTPUT)[1:])
        self._local = threading.local()

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return tuple(sorted(self._batches))

    def run(self, pixels: Any) -> Any:
        """Tokens (n, rows, columns, channels) of pixels (n, 3, height, width), float32 on device.

        Queued on the current stream; the host does not wait. More slices than the largest batch are
        run in pieces.
        """
        if pixels.dtype != np.float32 or tuple(pixels.shape[1:]) != self.input_shape:
            raise InputError(
                f"pixels are {pixels.dtype} {tuple(pixels.shape)}; the engine takes float32 "
                f"(n, {', '.join(map(str, self.input_shape))})"
            )
        tokens = self._cupy.empty((len(pixels), *self.output_shape), np.float32)
        for batch, piece in pieces(len(pixels), self._batches):
            self._run_batch(batch, pixels[piece], tokens[piece])
        return tokens

    def _run_batch(self, batch: int, pixels: Any, tokens: Any) -> None:
        cupy = self._cupy
        stream = cupy.cuda.get_current_stream()
        held = self._context(batch, stream)
        if len(pixels) < batch:
            whole = cupy.zeros((batch, *self.input_shape), np.float32)
            whole[: len(pixels)] = pixels
            pixels, into = whole, held.outputs[OUTPUT]
        else:
            pixels, into = cupy.ascontiguousarray(pixels), tokens
        # The thread may have changed its stream since: its buffers are shared by both.
        stream.wait_event(held.done)
        context = held.context
        addresses = {name: buffer.data.ptr for name, buffer in held.outputs.items()}
        addresses |= {INPUT: pixels.data.ptr, OUTPUT: into.data.ptr}
        ready = context.set_input_shape(INPUT, (batch, *self.input_shape))
        for name, address in addresses.items():
            ready = context.set_tensor_address(name, address) and ready
        if not (ready and context.execute_async_v3(stream.ptr)):
            raise DeviceError(
                f"{self._library.flavour} could not run the engine: {self._library.complaint()}"
            )
        if into is not tokens:
            tokens[...] = into[: len(tokens)]
        held.done.record(stream)

    def _context(self, batch: int, stream: Any) -> _Context:
        """This thread's context for a batch size, made at its first use."""
        held: dict[int, _Context] = self._local.__dict__.setdefault("contexts", {})
        if batch not in held:
            held[batch] = self._make_context(batch, stream)
        return held[batch]

    def _make_context(self, batch: int, stream: Any) -> _Context:
        cupy, engine, module = self._cupy, self._engine, self._library.module
        profile = self._batches.index(batch)
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, stream.ptr):
            raise DeviceError(
                f"{self._library.flavour} gave no execution context for {batch} slices: "
                f"{self._library.complaint()}; a smaller --batch takes less memory"
            )
        size = int(engine.get_device_memory_size_for_profile_v2(profile))
        # CuPy's pool hands out multiples of 512 bytes: aligned as TensorRT wants it.
        scratch = cupy.empty(max(size, 1), np.uint8)
        context.set_device_memory(scratch.data.ptr, size)
        outputs = {
            name: cupy.empty((batch, *engine.get_tensor_shape(name)[1:]), np.float32)
            for name in self._outputs
        }
        done = cupy.cuda.Event(disable_timing=True)
        done.record(stream)
        return _Context(context, batch, outputs, scratch, done)

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
            "TensorRT engines run on memory that CuPy owns, and CuPy is not installed; "
            "pip install 'dinoreg-rt[gpu]'"
        ) from error
    return cupy
