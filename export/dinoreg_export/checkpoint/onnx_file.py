"""Reads the weights out of an ONNX file that somebody exported: one tensor at a time.

Wanted is the plain export of one of Hugging Face's modules. What was optimised, quantised or
decides at run time what to compute is refused: its constants need not be the parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import DeviceError, InputError

from .onnx_graph_view import GraphView
from .onnx_names import Entry, Part, named_parameters
from .onnx_tensors import check_bytes, external_file, is_float, read_tensor, shape_of

if TYPE_CHECKING:
    import onnx

#: Of the file itself: what the format can describe. Larger models keep their numbers beside it.
_LARGEST = (1 << 31) - 1
_PLAIN_DOMAINS = ("", "ai.onnx")
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_QUANTISED = re.compile(r"[Qq]uantize|^QLinear|Integer$")
#: What the branches of an If may consist of: choices between shapes, as the rotary positions of
#: DINOv3 have them.
_SHAPES = {"Constant", "Identity", "Cast", "Abs", "Neg", "Shape", "Gather", "Slice", "Concat"}
_SHAPES |= {"Reshape", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "ConstantOfShape"}


class OnnxFile:
    """The parameters of one ONNX file.

    Attributes:
        path: of the file.
        files: that it keeps numbers in, beside it.
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
        """Of the parameters, as the module had them."""
        return list(self._found)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one parameter."""
        entry = self._found[name]
        if entry.tensor is not None:
            return shape_of(entry.tensor)[:: -1 if entry.turned else 1]
        rows = sum(part.last - part.first for part in entry.parts)
        return (1, rows, shape_of(entry.parts[0].tensor)[-1])

    def read(self, name: str) -> NDArray[np.float32]:
        """One parameter as float32.

        Raises:
            InputError: its numbers cannot be read.
        """
        entry = self._found[name]
        if entry.tensor is not None:
            values = read_tensor(self.path, entry.tensor)
            return values.T if entry.turned else values
        return np.concatenate([self._rows(part) for part in entry.parts])[None]

    def close(self) -> None:
        """Let go of what was read."""
        self._found = {}

    def _rows(self, part: Part) -> NDArray[np.float32]:
        values = read_tensor(self.path, part.tensor)
        return values.reshape(-1, values.shape[-1])[part.first : part.last]

    def _tensors(self) -> list[onnx.TensorProto]:
        return [tensor for entry in self._found.values() for tensor in _of(entry)]


def _of(entry: Entry) -> list[onnx.TensorProto]:
    own = [entry.tensor] if entry.tensor is not None else []
    return [*own, *(part.tensor for part in entry.parts)]


def _parse(path: Path) -> onnx.ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeviceError(
            f"{path}: reading it needs the onnx package; pip install 'dinoreg-rt[export,cpu]'"
        ) from error
    size = path.stat().st_size
    if size > _LARGEST:
        raise InputError(
            f"{path}: {size} bytes, and an ONNX file has at most {_LARGEST}; larger models keep "
            "their weights in files beside it"
        )
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX file, or cut off: {error}") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file, or damaged: it has no nodes")
    if any(isinstance(text, bytes) for text in _texts(model.graph)):  # as protobuf hands them out
        raise InputError(f"{path}: damaged: names in it are no text; copy or download it again")
    return model


def _texts(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Everything in a graph that is to be text, as far as it is looked at."""
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
    """Stop at what makes constants differ from parameters.

    Raises:
        InputError: control flow, functions, operators of an engine's own, or 8-bit numbers.
    """
    wanted = "wanted the plain export of the module, as torch.onnx or Optimum write it"
    weights = {t.name for t in model.graph.initializer if is_float(t) and len(t.dims) > 0}
    for node in model.graph.node:
        if not _is_straight(node, weights):
            raise InputError(
                f"{path}: the {node.op_type} '{node.name}' decides at run time what is computed; "
                f"{wanted}"
            )
        if not node.output or (node.op_type in _PRODUCTS and len(node.input) < 2):
            raise InputError(
                f"{path}: the {node.op_type} '{node.name}' lacks inputs or outputs: the file is "
                "damaged; copy or download it again"
            )
        if node.domain not in _PLAIN_DOMAINS:
            raise InputError(
                f"{path}: '{node.name}' is {node.domain}.{node.op_type}, of a graph that was "
                f"optimised for one engine or has functions of its own; {wanted}"
            )
        if _QUANTISED.search(node.op_type):
            raise InputError(
                f"{path}: the {node.op_type} '{node.name}' belongs to a quantised graph, which has "
                f"lost the weights; {wanted}, in float32 or float16"
            )
    if model.graph.sparse_initializer:
        raise InputError(f"{path}: holds sparse weights; {wanted}")


def _is_straight(node: onnx.NodeProto, weights: set[str]) -> bool:
    """Whether what a node computes with the weights does not hang on values of the run."""
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
