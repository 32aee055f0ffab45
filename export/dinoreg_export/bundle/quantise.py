"""float32 graphs -> int8 ones by ONNX Runtime's dynamic quantisation, with one weights file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dinoreg_rt.engines.onnx_runtime import import_onnxruntime

if TYPE_CHECKING:
    import onnx

#: Smaller tensors, such as shapes, stay inside the graph.
_LEAST_BYTES = 1024
_ALIGNMENT = 1 << 16


class SharedWeights:
    """A weights file that holds each tensor once, whichever graphs refer to it."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._offsets: dict[str, int] = {}

    def move_here(self, tensor: onnx.TensorProto) -> None:
        """Take the numbers out of the tensor and leave a reference."""
        from onnx import TensorProto, numpy_helper

        raw = numpy_helper.to_array(tensor).tobytes()
        key = hashlib.sha256(raw).hexdigest()
        if key not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
            self._offsets[key] = self._stream.tell()
            self._stream.write(raw)
        for field in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._name, "offset": self._offsets[key], "length": len(raw)}
        for name, value in place.items():
            tensor.external_data.add(key=name, value=str(value))


def quantise(graph: Path, output: Path, weights: SharedWeights) -> None:
    """Quantise the linear layers; attention, convolutions and the rest stay float32.

    The tool holds the model in memory, so this one step takes a multiple of the checkpoint.

    Args:
        graph: a float32 graph, its weights beside it; files next to it are made and removed.
        output: where the int8 graph goes, in the folder of `weights`.
        weights: takes the tensors.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, quantised = graph.with_suffix(".prepared"), graph.with_suffix(".quantised")
    _mark_prepared(graph, prepared)
    # Seven bits of weight, one scale per channel: with eight, processors without VNNI saturate
    # their 16-bit sums, and a bundle would give other tokens there than where it was verified.
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
    """A copy of the graph that the tool doesn't warn about: it needs no simplification before."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    output.write_bytes(model.SerializeToString())
