"""Encoders on the CPU, by ONNX Runtime or OpenVINO."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import is_for_want_of_memory
from ..types import Array
from .graph_checks import (
    check_contract,
    check_provider,
    check_session,
    too_little_memory,
    unreadable,
)
from .onnx_runtime import import_onnxruntime


class OrtEncoder:
    """A graph in an ONNX Runtime session on the CPU, which writes into arrays of ours."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # All batches have one size, so the arena only holds the memory of one run. 9 % faster.
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
        """See `dinoreg_rt.engines.open.Encoder`."""
        tokens = np.empty((len(pixels), *self._tokens), np.float32)
        binding = self._session.io_binding()
        binding.bind_cpu_input("pixels", pixels)
        binding.bind_output("tokens", "cpu", 0, np.float32, tokens.shape, tokens.ctypes.data)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # the module's exceptions share no base class
            if is_for_want_of_memory(error):
                raise too_little_memory("encode", str(error)) from error
            raise
        return tokens

    def cancel(self) -> None:
        """See `dinoreg_rt.engines.open.Encoder`."""
        self._options.terminate = True


class OpenVinoEncoder:
    """A graph compiled by OpenVINO for the CPU.

    The precision is always set, because OpenVINO's default is bfloat16 on some processors and
    float32 on others.
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
            self._tokens = check_contract(
                path, _openvino_shapes(model.inputs), _openvino_shapes(model.outputs), bundle, graph
            )
            self._request = (
                openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
            )
        except RuntimeError as error:
            raise unreadable(path, error) from error

    def encode(self, pixels: Array) -> Array:
        """See `dinoreg_rt.engines.open.Encoder`."""
        self._request.infer({"pixels": pixels}, share_inputs=True)
        return np.array(self._request.get_tensor("tokens").data)

    def cancel(self) -> None:
        """See `dinoreg_rt.engines.open.Encoder`."""
        self._request.cancel()


def _openvino_shapes(ports: list[Any]) -> dict[str, list[Any]]:
    return {
        port.get_any_name(): [
            d.get_length() if d.is_static else "N" for d in port.get_partial_shape()
        ]
        for port in ports
    }
