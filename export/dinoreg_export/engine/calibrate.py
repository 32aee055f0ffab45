"""Calibration: ranges of the inputs of linear layers, measured on slices.

Everything is measured inside the graph, so that no activation has to be kept: first the largest
magnitude of each input, then, for int8, the squared rounding error with several smaller ranges.
The relative precision of fp8 does not depend on the range: a smaller one would clip outliers and
gain nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..verify.compare import open_session
from .eight_bits import INT8, Format
from .qdq import raise_opset, required_layers

if TYPE_CHECKING:
    import onnx

#: Ranges to try, as shares of the largest magnitude.
_SHARES = 2.0 ** (-np.arange(8) / 2)
_FLOAT = 1


def measure_ranges(
    graph: Path,
    pixels: NDArray[np.float32],
    kind: Format,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, float]:
    """Return the range of each linear layer's input, by the name of the layer's weight.

    A weight that several layers share gets the largest of their ranges.

    Args:
        graph: float32 graph.
        pixels: slices (n, 3, height, width), run through the graph one at a time.
        kind: type that the inputs will be rounded to.
        progress: called with the completed fraction.

    Raises:
        ConfigError: the graph has no linear layers.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    layers = required_layers(graph, model, kind)
    inputs = list(dict.fromkeys(x for x, _ in layers))
    passes = 2 if kind is INT8 else 1
    watched = _watch(model, [_peak(x) for x in inputs])
    found = _run(watched, graph.parent, pixels, lambda done: progress(done / passes))
    ranges = found.max(axis=0)
    if kind is INT8:
        tried = ranges[:, None] * _SHARES.astype(np.float32)
        watched = _watch(model, [_error(x, t, kind) for x, t in zip(inputs, tried, strict=True)])
        found = _run(watched, graph.parent, pixels, lambda done: progress((1 + done) / passes))
        best = found.astype(np.float64).sum(axis=0).reshape(tried.shape).argmin(axis=1)
        ranges = tried[np.arange(len(inputs)), best]
    by_input = dict(zip(inputs, ranges.tolist(), strict=True))
    by_weight: dict[str, float] = {}
    for x, weight in layers:
        by_weight[weight] = max(by_weight.get(weight, 0.0), by_input[x])
    return by_weight


class _Probe:
    """Uniquely named nodes that reduce one value of a graph to a few numbers."""

    def __init__(self, x: str) -> None:
        self.prefix = f"{x}_watched"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.results: list[str] = []

    def node(self, kind: str, *inputs: str, **attributes: int) -> str:
        from onnx import helper

        name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, kind: int, raw: bytes) -> str:
        from onnx import helper

        name = f"{self.prefix}_c{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, kind, [], raw, raw=True))
        return name


def _peak(x: str) -> _Probe:
    """Return a probe of the largest magnitude."""
    probe = _Probe(x)
    probe.results.append(probe.node("ReduceMax", probe.node("Abs", x), keepdims=0))
    return probe


def _error(x: str, ranges: NDArray[np.float32], kind: Format) -> _Probe:
    """Return a probe of the squared error of rounding to 8 bits with each of the ranges."""
    probe = _Probe(x)
    zero = probe.constant(kind.onnx_type, b"\0")
    for scale in kind.scale(ranges).astype(np.float32):
        constant = probe.constant(_FLOAT, scale.tobytes())
        number = probe.node("QuantizeLinear", x, constant, zero)
        back = probe.node("DequantizeLinear", number, constant, zero)
        off = probe.node("Sub", x, back)
        probe.results.append(probe.node("ReduceSumSquare", off, keepdims=0))
    return probe


def _watch(model: onnx.ModelProto, probes: list[_Probe]) -> bytes:
    """Return the serialised graph with the numbers of the probes as its only outputs."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    raise_opset(watched)
    del watched.graph.output[:]
    for probe in probes:
        watched.graph.node.extend(probe.nodes)
        watched.graph.initializer.extend(probe.constants)
        watched.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, _FLOAT, []) for name in probe.results
        )
    return bytes(watched.SerializeToString())


def _run(
    model: bytes,
    folder: Path,
    pixels: NDArray[np.float32],
    progress: Callable[[float], None],
) -> NDArray[np.float32]:
    """Return every output for every slice, (slices, outputs)."""
    session = open_session(model, folder)
    found = []
    for i in range(len(pixels)):
        found.append(session.run(None, {"pixels": pixels[i : i + 1]}))
        progress((i + 1) / len(pixels))
    return np.array(found, np.float32)
