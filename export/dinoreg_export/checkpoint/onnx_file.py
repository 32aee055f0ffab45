"""Reader for the weights in an ONNX file that somebody exported, one tensor at a time.

The file must be a plain export of one of Hugging Face's modules. Graphs that were optimised or
quantised, or that decide at run time what to compute, are refused, because their constants may
differ from the parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

from ..graph.builder import need_onnx
from .onnx_graph_view import GraphView
from .onnx_names import Part, named_parameters
from .onnx_tensors import check_bytes, external_file, is_float, read_tensor, shape_of

if TYPE_CHECKING:
    import onnx

#: Largest file in bytes that the format allows; larger models keep their weights in other files.
_LARGEST = (1 << 31) - 1
_PLAIN_DOMAINS = ("", "ai.onnx")
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_QUANTISED = re.compile(r"[Qq]uantize|^QLinear|Integer$")
#: Operators allowed in the branches of an If, which may choose between shapes, as the rotary
#: positions of DINOv3 do.
_SHAPES = {"Constant", "Identity", "Cast", "Abs", "Neg", "Shape", "Gather", "Slice", "Concat"}
_SHAPES |= {"Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "ConstantOfShape"}


class OnnxFile:
    """The parameters in one ONNX file.

    Attributes:
        files: separate files that hold weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        model = _parse(path)
        _check_plain(path, model)
        self._found = named_parameters(path, GraphView(model.graph))
        for tensor in self._tensors():
            check_bytes(path, tensor)
        beside = {external_file(path, tensor) for tensor in self._tensors()}
        self.files = tuple(sorted(file for file in beside if file is not None))

    def names(self) -> list[str]:
        """Return the names of the parameters in the module."""
        return list(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter."""
        entry = self._found[name]
        if entry.tensor is not None:
            return shape_of(entry.tensor)[:: -1 if entry.transposed else 1]
        rows = sum(part.last - part.first for part in entry.parts)
        return (1, rows, shape_of(entry.parts[0].tensor)[-1])

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a parameter as float32.

        Raises:
            InputError: its numbers are damaged or cannot be read.
        """
        entry = self._found[name]
        if entry.tensor is not None:
            values = read_tensor(self.path, entry.tensor)
            return values.T if entry.transposed else values
        return np.concatenate([self._rows(part) for part in entry.parts])[None]

    def close(self) -> None:
        """Release the parameters."""
        self._found = {}

    def _rows(self, part: Part) -> NDArray[np.float32]:
        values = read_tensor(self.path, part.tensor)
        return values.reshape(-1, values.shape[-1])[part.first : part.last]

    def _tensors(self) -> list[onnx.TensorProto]:
        return [tensor for entry in self._found.values() for tensor in entry.tensors()]


def _parse(path: Path) -> onnx.ModelProto:
    need_onnx(f"{path}: reading it")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size = path.stat().st_size
    if size > _LARGEST:
        raise InputError(
            f"{path}: has {size} bytes, and an ONNX file has at most {_LARGEST}; export it with "
            "its weights in a separate file"
        )
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path}: is not an ONNX file, or truncated: {error}") from error
    if not model.graph.node:
        raise InputError(f"{path}: is not an ONNX file, or damaged: it has no nodes")
    if any(isinstance(text, bytes) for text in _texts(model.graph)):  # protobuf's invalid UTF-8
        raise InputError(
            f"{path}: damaged: names in it are not text; copy or download the file again"
        )
    return model


def _texts(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Yield all text of a graph that is used here."""
    held = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*graph.initializer, *held):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (text for entry in node.metadata_props for text in (entry.key, entry.value))
        for attribute in node.attribute:
            yield attribute.name
            if attribute.HasField("g"):
                yield from _texts(attribute.g)


def _check_plain(path: Path, model: onnx.ModelProto) -> None:
    """Check that nothing makes constants differ from parameters.

    Raises:
        InputError: the graph has control flow, functions, custom operators or 8-bit numbers.
    """
    wanted = "use a plain export of the module, as torch.onnx or Optimum write it"
    weights = {t.name for t in model.graph.initializer if is_float(t) and len(t.dims) > 0}
    for node in model.graph.node:
        if not _is_straight(node, weights):
            raise InputError(
                f"{path}: the {node.op_type} '{node.name}' decides at run time what to compute; "
                f"{wanted}"
            )
        if not node.output or (node.op_type in _PRODUCTS and len(node.input) < 2):
            raise InputError(
                f"{path}: damaged: the {node.op_type} '{node.name}' lacks inputs or outputs; copy "
                "or download the file again"
            )
        if node.domain not in _PLAIN_DOMAINS:
            raise InputError(
                f"{path}: '{node.name}' is {node.domain}.{node.op_type}, of a graph that was "
                f"optimised for one engine or has custom functions; {wanted}"
            )
        if _QUANTISED.search(node.op_type):
            raise InputError(
                f"{path}: the {node.op_type} '{node.name}' belongs to a quantised graph, in which "
                f"the original weights are lost; {wanted}, in float32 or float16"
            )
    if model.graph.sparse_initializer:
        raise InputError(f"{path}: holds sparse weights; {wanted}")


def _is_straight(node: onnx.NodeProto, weights: set[str]) -> bool:
    """Return whether a node's use of the weights is independent of values at run time."""
    if node.op_type in ("Loop", "Scan", "SequenceMap") or any(a.graphs for a in node.attribute):
        return False
    branches = [a.g for a in node.attribute if a.HasField("g")]
    inside = [inner for branch in branches for inner in branch.node]
    return not branches or (
        node.op_type == "If"
        and all(inner.op_type in _SHAPES for inner in inside)
        and not any(branch.initializer or branch.sparse_initializer for branch in branches)
        and not weights & {value for inner in inside for value in inner.input}
    )
