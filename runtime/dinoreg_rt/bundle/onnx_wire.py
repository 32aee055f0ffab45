"""What an ONNX file reads and runs, found by parsing its protobuf encoding.

The runtime does not need the onnx package for it. See onnx.proto for the numbers of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

#: Wire types of protobuf: a number, eight bytes, bytes with a length, four bytes.
_NUMBER, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_TRAINING_GRAPHS = (1, 2)
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 7, 11
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 13, 1, 2
_CONTROL_FLOW = (b"Loop", b"If", b"Scan", b"SequenceMap")


@dataclass(frozen=True)
class OnnxContent:
    """What matters about an ONNX file.

    Attributes:
        files: names of the files that hold its tensors.
        control_flow: operators that run other graphs, such as ``Loop``.
    """

    files: set[str] = field(default_factory=set)
    control_flow: set[str] = field(default_factory=set)


def scan_onnx(data: bytes) -> OnnxContent:
    """Find the files that an ONNX model reads, and its control flow.

    Raises:
        ValueError: the data are not a protobuf message.
    """
    content = OnnxContent()
    for number, value in _fields(memoryview(data)):
        if number == _MODEL_GRAPH:
            _scan_graph(value, content)
        elif number == _MODEL_FUNCTIONS:
            _scan_function(value, content)
        elif number == _MODEL_TRAINING:
            for inner, graph in _fields(value):
                if inner in _TRAINING_GRAPHS:
                    _scan_graph(graph, content)
    return content


def _scan_graph(graph: memoryview, content: OnnxContent) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            _scan_node(value, content)
        elif number == _GRAPH_TENSOR:
            _scan_tensor(value, content)
        elif number == _GRAPH_SPARSE:
            _scan_sparse(value, content)


def _scan_function(function: memoryview, content: OnnxContent) -> None:
    for number, value in _fields(function):
        if number == _FUNCTION_NODE:
            _scan_node(value, content)
        elif number == _FUNCTION_ATTRIBUTE:
            _scan_attribute(value, "a function", content)


def _scan_node(node: memoryview, content: OnnxContent) -> None:
    operator, attributes = b"", []
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = bytes(value)
        elif number == _NODE_ATTRIBUTE:
            attributes.append(value)
    name = operator[:40].decode("utf-8", "replace")
    if operator in _CONTROL_FLOW:
        content.control_flow.add(name)
    for attribute in attributes:
        _scan_attribute(attribute, name, content)


def _scan_attribute(attribute: memoryview, operator: str, content: OnnxContent) -> None:
    for number, value in _fields(attribute):
        if number in _ATTRIBUTE_GRAPHS:  # refused, so it is not scanned
            content.control_flow.add(operator)
        elif number in _ATTRIBUTE_TENSORS:
            _scan_tensor(value, content)
        elif number in _ATTRIBUTE_SPARSE:
            _scan_sparse(value, content)


def _scan_sparse(sparse: memoryview, content: OnnxContent) -> None:
    for number, value in _fields(sparse):
        if number in _SPARSE_TENSORS:
            _scan_tensor(value, content)


def _scan_tensor(tensor: memoryview, content: OnnxContent) -> None:
    for number, entry in _fields(tensor):
        if number != _TENSOR_EXTERNAL:
            continue
        parts = [(inner, bytes(text)) for inner, text in _fields(entry)]
        if (_ENTRY_KEY, b"location") in parts:
            names = [text for inner, text in parts if inner == _ENTRY_VALUE]
            content.files.update(name.decode("utf-8", "replace") for name in names)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the bytes of each field that has bytes, in any order they are in."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _BYTES:
            length, position = _varint(message, position)
            if length > end - position:
                raise ValueError(f"a field of {length} bytes where {end - position} are left")
            yield tag >> 3, message[position : position + length]
            position += length
        elif kind == _NUMBER:
            _, position = _varint(message, position)
        elif kind in (_EIGHT, _FOUR):
            position += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
    if position != end:
        raise ValueError("it ends within a field")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits per byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")
