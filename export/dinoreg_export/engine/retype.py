"""Conversion of a graph's matrix products to another precision.

TensorRT engines are strongly typed: the types in the ONNX file determine their precision. A float32
encoder is converted to fp16 or bf16 by casts around its products only, as `graph.vit` writes them;
layer norms, softmax, rotary positions and the residual sum stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinoreg_rt.bundle.manifest import Precision
from dinoreg_rt.errors import ConfigError

from ..graph.builder import numpy_type

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
        target: graph to write, with its weights in ``<target>.data``.
        precision: fp32, fp16 or bf16.

    Raises:
        ConfigError: the graph is quantised, or a weight is too large for fp16.
    """
    import onnx

    model = onnx.load(str(source))
    kinds = {node.op_type for node in model.graph.node}
    quantised = sorted(k for k in kinds if "Quantize" in k or k.endswith("Integer"))
    if quantised or precision not in _TYPES:
        problem = f"it contains {', '.join(quantised)}" if quantised else f"{precision} was wanted"
        raise ConfigError(
            f"{source}: conversion is possible only between fp32, fp16 and bf16, but {problem}; "
            "export a bundle with 'dinoreg-rt export onnx --precision fp32'"
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
    """Turn every 16-bit weight, and every cast to 16 bits, into float32."""
    from onnx import numpy_helper

    for tensor in graph.initializer:
        if tensor.data_type in (_FLOAT16, _BFLOAT16):
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.raw_data = values.tobytes()
            tensor.data_type = _FLOAT
    for node in graph.node:
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i in (_FLOAT16, _BFLOAT16):
                    attribute.i = _FLOAT


def _lower_products(graph: onnx.GraphProto, kind: int) -> None:
    """Put casts around every product, and store weights that only products read in 16 bits."""
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
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if kind == _FLOAT16:
        largest = float(np.abs(values).max(initial=0.0))
        if largest > np.finfo(np.float16).max:
            raise ConfigError(
                f"the weight '{tensor.name}' reaches {largest:.3g}, which fp16 cannot hold; use "
                "--precision bf16"
            )
    kind_type = numpy_type("float16" if kind == _FLOAT16 else "bfloat16")
    tensor.ClearField("float_data")
    tensor.raw_data, tensor.data_type = values.astype(kind_type).tobytes(), kind
