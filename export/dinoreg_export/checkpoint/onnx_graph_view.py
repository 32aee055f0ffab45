"""A view of an ONNX graph: its constants, and the nodes that make and take each value."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Operators that pass on the numbers of their first input, perhaps in another shape or type.
_PASSING = {"Identity", "Cast", "CastLike", "Expand", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
#: Most nodes between a constant and its use; a damaged graph may have cycles.
_LONGEST_CHAIN = 50
_SCOPES = "pkg.torch.onnx.name_scopes"
_LONGEST_SCOPES = 10_000


class GraphView:
    """The nodes of a graph with their connections.

    Attributes:
        nodes: nodes in the order of the graph.
        constants: initializers and the values of Constant nodes, by name.
        makers: node that makes each value.
        takers: nodes that take each value.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            held = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
            if node.op_type == "Constant" and held:
                self.constants[node.output[0]] = held[0]
                continue
            for value in node.output:
                self.makers[value] = node
            for value in set(node.input):
                self.takers[value].append(node)

    def constant(self, value: str) -> tuple[onnx.TensorProto, bool] | None:
        """Return the constant that a value copies, if any, and whether the copy is transposed."""
        transposed = False
        for _ in range(_LONGEST_CHAIN):
            if value in self.constants:
                return self.constants[value], transposed
            node = self.makers.get(value)
            if node is None or not node.input:
                return None
            if node.op_type == "Transpose":
                transposed = not transposed
            elif node.op_type not in _PASSING:
                return None
            value = node.input[0]
        return None

    def before(self, ends: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """Yield the nodes `ends` and all nodes that they depend on."""
        pending, seen = list(ends), set()
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            pending += [self.makers[value] for value in node.input if value in self.makers]


def modules_of(node: onnx.NodeProto) -> list[str]:
    """Return dotted names of modules that a node may belong to, as exporters record them."""
    found = []
    if "/" in node.name:
        found.append(".".join(node.name.strip("/").split("/")[:-1]))
    for entry in node.metadata_props:
        if entry.key == _SCOPES and len(entry.value) < _LONGEST_SCOPES:
            found += _scopes(entry.value)[-2:-1]
    return found


def _scopes(text: str) -> list[str]:
    """Parse the scopes from the whole model to the node; the last but one is its module."""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [s for s in scopes if isinstance(s, str)] if isinstance(scopes, list) else []
