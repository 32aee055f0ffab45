"""An encoder on a TensorRT engine out of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import InputError
from ..types import Array
from .cache import load_engine
from .trt.executor import EngineExecutor
from .trt.library import Flavour
from .trt.record import build_command


class TensorRtEncoder:
    """Runs on the current CuPy stream; safe to share between threads.

    Attributes:
        batches: slices that the engine takes at once; multiples of the largest waste nothing.
        agreement: of the engine's tokens with float32, found when it was built.
        concurrent: one is enough for all threads, see `EncoderPool`.
    """

    concurrent = True

    def __init__(self, bundle: Bundle, graph: Graph, flavour: Flavour, device: int = 0) -> None:
        """Load the engine on CUDA device `device`.

        Raises:
            DeviceError: it is not there, or was built for something else.
            InputError: it was changed, or is not an engine of this encoder.
        """
        library, record, plan = load_engine(bundle, graph, flavour, device)
        import cupy

        self._cupy: Any = cupy
        self._device = cupy.cuda.Device(device)
        with self._device:
            self._executor = EngineExecutor(library, plan)
        self.batches = self._executor.batches
        self.agreement = record.verification
        self._check_contract(bundle, graph, record.file, flavour)

    def encode(self, pixels: Array) -> Array:
        """See `Encoder`. CuPy arrays stay on the device, and nobody waits for it."""
        with self._device:
            if isinstance(pixels, np.ndarray):
                return self._cupy.asnumpy(self._executor.run(self._cupy.asarray(pixels)))
            return self._executor.run(pixels)

    def cancel(self) -> None:
        """See `Encoder`."""
        self._executor.cancelled.set()

    def _check_contract(self, bundle: Bundle, graph: Graph, file: str, flavour: Flavour) -> None:
        wanted_in = (3, graph.height, graph.width)
        wanted_out = (*bundle.token_grid(graph), bundle.manifest.channels)
        found_in, found_out = self._executor.input_shape, self._executor.output_shape
        if (found_in, found_out) != (wanted_in, wanted_out):
            raise InputError(
                f"{file}: takes slices {found_in} and gives tokens {found_out}; the bundle "
                f"promises {wanted_in} and {wanted_out}; build it anew with: "
                f"{build_command(bundle.folder, flavour)}"
            )
