"""The same graph with its matrix products in another precision.

TensorRT engines are strongly typed: their precision is what the ONNX file says. An encoder in
float32 becomes one of fp16 or bf16 by casts around its products alone, as `vit` writes it; layer
norms, softmax, rotary positions and the sum of the blocks stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import Precision
from dinoreg_rt.errors import ConfigError

if TYPE_CHECKING:
    import onnx

#: Element types of ONNX.
_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16
_TYPES: dict[Precision, int] = {"fp32": _FLOAT, "fp16": _FLOAT16, "bf16": _BFLOAT16}
_PRODUCTS = {"MatMul", "Conv"}


def write_retyped(source: Path, target: Path, precision: Precision) -> None:
    """Write `source` with its products in `precision`, and its weights beside it.

    Args:
        source: graph of a bundle in fp32, fp16 or bf16.
        target: graph to write; its weights become ``<target>.data``.
        precision: fp32, fp16 or bf16.

    Raises:
        ConfigError: the graph is quantised, or a weight is too large for fp16.
    """
    import onnx

    model = onnx.load(str(source))
    kinds = {node.op_type for node in model.graph.node}
    quantised = sorted(k for k in kinds if "Quantize" in k or k.endswith("Integer"))
    if quantised or precision not in _TYPES:
        what = f"it holds {', '.join(quantised)}" if quantised else f"{precision} was asked for"
        raise ConfigError(
            f"{source}: cannot be turned into fp32, fp16 or bf16: {what}; start from a bundle of "
            "'dinoreg-rt export onnx --precision fp32'"
        )
    _raise_to_float(model.graph)
    if precision != "fp32":
        _lower_products(model.graph, _TYPES[precision])
    save_beside(model, target)


def save_beside(model: onnx.ModelProto, target: Path) -> None:
    """Write a graph to `target` and its weights to ``<target>.data``."""
    import onnx

    onnx.save_model(
        model,
        str(target),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{target.name}.data",
        size_threshold=1024,
    )


def _raise_to_float(graph: onnx.GraphProto) -> None:
    """Every 16-bit weight and every cast to 16 bits becomes float32."""
    for tensor in graph.initializer:
        if tensor.data_type in (_FLOAT16, _BFLOAT16):
            values = _sixteen_bit_values(tensor)
            tensor.raw_data = values.tobytes()
            tensor.data_type = _FLOAT
    for node in graph.node:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in (_FLOAT16, _BFLOAT16):
                    attribute.i = _FLOAT


def _lower_products(graph: onnx.GraphProto, kind: int) -> None:
    """Casts around every product; weights that only products read are stored in 16 bits."""
    from onnx import helper

    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    lowered = {n for n in stored if readers.get(n, set()) and readers[n] <= _PRODUCTS}
    for name in lowered:
        _lower_weight(stored[name], kind)
    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name in lowered:
                continue
            low = f"{name}_low"
            if low not in cast:
                nodes.append(helper.make_node("Cast", [name], [low], name=low, to=kind))
                cast.add(low)
            node.input[i] = low
        result = node.output[0]
        node.output[0] = f"{result}_product"
        nodes.append(node)
        nodes.append(
            helper.make_node("Cast", [node.output[0]], [result], name=f"{result}_cast", to=_FLOAT)
        )
    del graph.node[:]
    graph.node.extend(nodes)


def _lower_weight(tensor: onnx.TensorProto, kind: int) -> None:
    values = np.frombuffer(_raw(tensor), np.float32)
    if kind == _FLOAT16:
        largest = float(np.abs(values).max(initial=0.0))
        if largest > np.finfo(np.float16).max:
            raise ConfigError(
                f"the weight '{tensor.name}' reaches {largest:.3g}, which fp16 cannot hold; "
                "--precision bf16 can"
            )
        raw = values.astype(np.float16).tobytes()
    else:
        raw = _round_to_bfloat16(values).tobytes()
    tensor.ClearField("float_data")
    tensor.raw_data = raw
    tensor.data_type = kind


def _sixteen_bit_values(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    if tensor.data_type == _FLOAT16:
        return np.frombuffer(_raw(tensor), np.float16).astype(np.float32)
    wide = np.frombuffer(_raw(tensor), np.uint16).astype(np.uint32) << 16
    return wide.view(np.float32)


def _round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves of float32, rounded to the nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _raw(tensor: onnx.TensorProto) -> bytes:
    """Values as bytes, wherever the writer put them."""
    from onnx import numpy_helper

    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(numpy_helper.to_array(tensor).tobytes())
