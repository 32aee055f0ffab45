"""Dynamic quantisation of float32 graphs to int8 by ONNX Runtime, with one weights file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dinoreg_rt.engines.onnx_runtime import import_onnxruntime

from ..graph.builder import refer_to_file, write_aligned

if TYPE_CHECKING:
    import onnx

#: Smallest tensor in the weights file; smaller ones, such as shapes, stay in the graph.
_LEAST_BYTES = 1024


class SharedWeights:
    """A weights file that several graphs share and that holds equal tensors once."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._offsets: dict[str, int] = {}

    def move_here(self, tensor: onnx.TensorProto) -> None:
        """Move the numbers of a tensor into the file and leave a reference to them."""
        from onnx import numpy_helper

        raw = numpy_helper.to_array(tensor).tobytes()
        key = hashlib.sha256(raw).hexdigest()
        if key not in self._offsets:
            self._offsets[key] = write_aligned(self._stream, raw)
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        del tensor.external_data[:]
        refer_to_file(tensor, self._name, self._offsets[key], len(raw))


def quantise(graph: Path, output: Path, weights: SharedWeights) -> None:
    """Quantise the linear layers; attention, convolutions and everything else stay float32.

    ONNX Runtime holds the model in memory, so this step needs several times the checkpoint's size.

    Args:
        graph: float32 graph with its weights beside it; temporary files are written there too.
        output: int8 graph to write, in the folder of `weights`.
        weights: file that receives the tensors.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, quantised = graph.with_suffix(".prepared"), graph.with_suffix(".quantised")
    _mark_prepared(graph, prepared)
    # Weights have seven bits and one scale per channel. With eight bits, the 16-bit sums of
    # processors without VNNI saturate, and a bundle would give other tokens there than where it
    # was verified.
    quantize_dynamic(
        prepared,
        quantised,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    model: Any = onnx.load(str(quantised))
    for path in graph.parent.glob(f"{quantised.name}*"):
        path.unlink()
    prepared.unlink()
    for tensor in model.graph.initializer:
        if onnx.numpy_helper.to_array(tensor).nbytes >= _LEAST_BYTES:
            weights.move_here(tensor)
    model.producer_name = "dinoreg-rt"
    output.write_bytes(model.SerializeToString())


def _mark_prepared(graph: Path, output: Path) -> None:
    """Write a copy marked as preprocessed, which the graph does not need, to avoid a warning."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    output.write_bytes(model.SerializeToString())
