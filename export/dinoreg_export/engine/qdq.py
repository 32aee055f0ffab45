"""Linear layers in 8 bits: QuantizeLinear and DequantizeLinear around their inputs and weights.

This is TensorRT's explicit quantisation: a product is computed in 8 bits only if both factors come
from a DequantizeLinear. The products of attention, convolutions, norms and sums stay as they are.
ONNX Runtime's own tool is not suitable: it derives the range of fp8 from the standard deviation,
which clips the outliers of transformers, and it does not keep the other products in float16.
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

#: The first opset with 8-bit floating point; no operator of our graphs changed from 18 to 19.
_OPSET = 19
_FLOAT16 = 10


def linear_layers(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Yield the names of the input and the weight of each linear layer, in the graph's order."""
    stored = {tensor.name for tensor in graph.initializer}
    yield from ((n.input[0], n.input[1]) for n in graph.node if _is_linear(n, stored))


def required_layers(path: Path, model: onnx.ModelProto, kind: Format) -> list[tuple[str, str]]:
    """Return the linear layers of a graph, read from `path`, that are to be rounded to `kind`.

    Raises:
        ConfigError: there are none.
    """
    if layers := list(linear_layers(model.graph)):
        return layers
    raise ConfigError(
        f"{path}: has no linear layers to convert to {kind.name}; use --precision fp16"
    )


def raise_opset(model: onnx.ModelProto) -> None:
    """Raise the opset of a graph to one with 8-bit floating point."""
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, _OPSET)


def _is_linear(node: onnx.NodeProto, stored: Container[str]) -> bool:
    """Return whether a node multiplies by a stored matrix, unlike the products of attention."""
    return node.op_type == "MatMul" and node.input[1] in stored


def write_quantised(source: Path, target: Path, ranges: Mapping[str, float], kind: Format) -> str:
    """Write `source` with its linear layers in 8 bits, and its weights beside it.

    Each weight has a scale per output channel, and each input has one scale. A weight that several
    layers share is stored once; a shared input is rounded once if its ranges are equal.

    Args:
        source: graph in fp16.
        target: graph to write, with its weights in ``<target>.data``.
        ranges: ranges of the inputs' magnitudes, by the names of the weights.
        kind: fp8 or int8.

    Returns:
        The sha256 of all scales.

    Raises:
        ConfigError: there are no linear layers, or the type cannot hold a range.
    """
    import onnx

    model = onnx.load(str(source))
    required_layers(source, model, kind)
    digest = _Insertion(model.graph, kind).run(ranges)
    raise_opset(model)
    save_beside(model, target)
    return digest


class _Insertion:
    """The insertion of rounding nodes and their constants into one graph."""

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
        """Round `x` to 8 bits and back, and return the name of the result."""
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
        """Store a matrix (in, out) in 8 bits with a scale per column; return its float name."""
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
        """Store scales and their zero points, and return the names of both."""
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
