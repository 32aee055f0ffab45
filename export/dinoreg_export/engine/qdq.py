"""Linear layers in 8 bits: QuantizeLinear and DequantizeLinear around their inputs and weights.

TensorRT calls this explicit quantisation: it computes a product in 8 bits where both factors come
out of a DequantizeLinear, and nothing else. Attention's products, convolutions, norms and sums stay
as they are. ONNX Runtime's own tool does not fit: its range of fp8 follows from the standard
deviation, which cuts off the outliers that transformers have, and it leaves no float16 around.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinoreg_rt.errors import ConfigError

from .eight_bits import Format
from .retype import save_beside

if TYPE_CHECKING:
    import onnx

#: The first with 8-bit floating point; no operator of our graphs changed from 18 to 19.
OPSET = 19
_FLOAT16 = 10


def linear_layers(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Names of the input and the weight of each linear layer, in the order of the graph."""
    stored = {tensor.name for tensor in graph.initializer}
    yield from ((n.input[0], n.input[1]) for n in graph.node if _is_linear(n, stored))


def _is_linear(node: onnx.NodeProto, stored: Container[str]) -> bool:
    """A product with a stored matrix; those of attention multiply two results."""
    return node.op_type == "MatMul" and node.input[1] in stored


def write_quantised(source: Path, target: Path, ranges: Mapping[str, float], kind: Format) -> str:
    """Write `source` with its linear layers in 8 bits, and its weights beside it.

    A weight has a scale for each output channel, an input has one. A weight that several layers
    share is stored once; an input that they share is rounded once if the weights' ranges agree.

    Args:
        source: graph in fp16.
        target: graph to write; its weights become ``<target>.data``.
        ranges: of the inputs' magnitudes, by the names of the weights.
        kind: fp8 or int8.

    Returns:
        sha256 of all scales.

    Raises:
        ConfigError: no linear layers, or a range that the type cannot hold.
    """
    import onnx

    model = onnx.load(str(source))
    if not any(linear_layers(model.graph)):
        raise ConfigError(f"{source}: has no linear layers, so nothing in it becomes {kind.name}")
    digest = _Insertion(model.graph, kind).run(ranges)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, OPSET)
    save_beside(model, target)
    return digest


class _Insertion:
    """Nodes and constants that are added to one graph."""

    def __init__(self, graph: onnx.GraphProto, kind: Format) -> None:
        self._graph, self._kind = graph, kind
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._done: dict[tuple[str, bytes], str] = {}
        self._digest = hashlib.sha256(kind.name.encode())

    def run(self, ranges: Mapping[str, float]) -> str:
        for node in self._graph.node:
            if _is_linear(node, self._stored):
                x, weight = node.input
                scale = self._kind.scale(np.array(ranges[weight], np.float32))
                node.input[0] = self._rounded(x, scale)
                node.input[1] = self._weight(weight)
            self._nodes.append(node)
        nodes = list(self._nodes)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        return self._digest.hexdigest()

    def _rounded(self, x: str, scale: np.ndarray) -> str:
        """`x` rounded to 8 bits and back."""
        from onnx import helper

        key = (x, scale.tobytes())
        if key not in self._done:
            name = f"{x}_{len(self._done)}"
            scales = self._constant(f"{name}_scale", scale)
            self._nodes.append(
                helper.make_node("QuantizeLinear", [x, *scales], [f"{name}_q"], name=f"{name}_q")
            )
            self._nodes.append(self._dequantise(f"{name}_q", scales, f"{name}_dq"))
            self._done[key] = f"{name}_dq"
        return self._done[key]

    def _weight(self, name: str) -> str:
        """The stored matrix (in, out) as 8-bit numbers and a scale for each column."""
        from onnx import numpy_helper

        key = (name, b"")
        if key not in self._done:
            tensor = self._stored[name]
            values = numpy_helper.to_array(tensor).astype(np.float32)
            scale = self._kind.scale(np.abs(values).max(axis=0))
            numbers = self._kind.quantise(values, scale)
            for field in ("float_data", "int32_data"):
                tensor.ClearField(field)
            tensor.raw_data, tensor.data_type = numbers.tobytes(), self._kind.onnx_type
            scales = self._constant(f"{name}_scale", scale)
            self._nodes.append(self._dequantise(name, scales, f"{name}_dq", axis=1))
            self._done[key] = f"{name}_dq"
        return self._done[key]

    def _dequantise(
        self, x: str, scales: list[str], result: str, **attributes: int
    ) -> onnx.NodeProto:
        from onnx import helper

        return helper.make_node("DequantizeLinear", [x, *scales], [result], result, **attributes)

    def _constant(self, name: str, scale: np.ndarray) -> list[str]:
        """Names of a scale and of the zero that goes with it."""
        from onnx import helper

        zero = np.zeros(scale.shape, np.uint8)
        for text, kind, values in (
            (name, _FLOAT16, scale),
            (f"{name}_zero", self._kind.onnx_type, zero),
        ):
            self._graph.initializer.append(
                helper.make_tensor(text, kind, scale.shape, values.tobytes(), raw=True)
            )
        self._digest.update(f" {name} ".encode() + scale.tobytes())
        return [name, f"{name}_zero"]
