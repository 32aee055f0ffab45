"""Encoders on TensorRT engines from the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import InputError
from ..types import Array
from .cache import load_engine
from .trt.executor import EngineExecutor
from .trt.folder import engines_folder
from .trt.library import Flavour
from .trt.record import build_command


class TensorRtEncoder:
    """An encoder that runs on the current CuPy stream; safe to share between threads.

    Attributes:
        batches: batch sizes of the engine; multiples of the largest waste nothing.
        agreement: agreement of the engine's tokens with float32, measured when it was built.
        concurrent: True, because one encoder serves all threads (see `EncoderPool`).
    """

    concurrent = True

    def __init__(self, bundle: Bundle, graph: Graph, flavour: Flavour, device: int = 0) -> None:
        """Load the engine on the CUDA device with index `device`.

        Raises:
            DeviceError: see `engine_record`.
            InputError: the engine has changed, or is not an engine of this encoder.
        """
        library, record, plan = load_engine(bundle, graph, flavour, device)
        import cupy

        self._cupy: Any = cupy
        self._device = cupy.cuda.Device(device)
        with self._device:
            kernels = (engines_folder() / record.file).with_suffix(".kernels")
            self._executor = EngineExecutor(library, plan, kernels)
        self.batches = self._executor.batches
        self.agreement = record.verification
        self._check_contract(bundle, graph, record.file, flavour)

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`. CuPy arrays stay on the device, and the host does not wait."""
        with self._device:
            if isinstance(pixels, np.ndarray):
                return self._cupy.asnumpy(self._executor.run(self._cupy.asarray(pixels)))
            return self._executor.run(pixels)

    def cancel(self) -> None:
        """See `Encoder`."""
        self._executor.cancelled.set()

    def close(self) -> None:
        """Keep the kernels that TensorRT-RTX went on compiling in the background."""
        self._executor.save_kernels()

    def _check_contract(self, bundle: Bundle, graph: Graph, file: str, flavour: Flavour) -> None:
        wanted_in = (3, graph.height, graph.width)
        wanted_out = (*bundle.token_grid(graph), bundle.manifest.channels)
        found_in, found_out = self._executor.input_shape, self._executor.output_shape
        if (found_in, found_out) != (wanted_in, wanted_out):
            raise InputError(
                f"{file}: takes slices {found_in} and gives tokens {found_out}; the bundle "
                f"promises {wanted_in} and {wanted_out}; rebuild the engine with: "
                f"{build_command(bundle.folder, flavour)}"
            )
