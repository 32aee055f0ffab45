"""Attention of all heads at once, for TensorRT.

Graphs of a bundle compute attention for a few heads at a time, which bounds the memory of CPUs (see
`graph.vit`). TensorRT compiles each part into a kernel of its own, or leaves its softmax unfused.
The product, softmax and product of all heads become one kernel that never stores the scores,
provided that the products are in 16 bits. Attention in float32 stays in parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

#: Nodes between the split of the heads and their concatenation.
_INNER = {"Cast", "MatMul", "Softmax", "Transpose"}
_HEADS = 1


def write_whole(source: Path, target: Path) -> bool:
    """Write `source` to `target` with the attention of all heads at once.

    Weights stay in their files, which are copied beside the target.

    Returns:
        Whether there was anything to change; if not, nothing is written.
    """
    import onnx

    model = onnx.load(str(source), load_external_data=False)
    if not _join_heads(model.graph):
        return False
    for name in _weight_files(model.graph):
        if not (target.parent / name).exists():
            # Not linked: the onnx library refuses weights with several links.
            shutil.copyfile(source.parent / name, target.parent / name)
    target.write_bytes(model.SerializeToString())
    return True


@dataclass
class _Part:
    """The nodes that compute some heads, and the outputs of splits that they start from."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    starts: list[tuple[str, int]] = field(default_factory=list)

    def form(self) -> tuple[list[tuple[str, list[bytes]]], list[str]]:
        """Return what the nodes do and to which values, which is the same in all parts."""
        kinds = [(n.op_type, [a.SerializeToString() for a in n.attribute]) for n in self.nodes]
        return kinds, [split for split, _ in self.starts]


def _join_heads(graph: onnx.GraphProto) -> int:
    """Replace all parts of each attention by the first one, of all heads; return their number."""
    makers = {name: node for node in graph.node for name in node.output}
    removed: set[str] = set()
    found = 0
    for joint in graph.node:
        parts = _parts(joint, makers)
        if not parts:
            continue
        found += 1
        whole = {
            makers[split].output[0]: makers[split].input[0] for split, _ in parts[0].starts
        } | {joint.input[0]: joint.output[0]}
        for node in parts[0].nodes:
            for names in (node.input, node.output):
                names[:] = [whole.get(name, name) for name in names]
        obsolete = [joint, *(makers[split] for split, _ in parts[0].starts)]
        obsolete += [node for part in parts[1:] for node in part.nodes]
        removed |= {node.name for node in obsolete}  # our writers give each node a name
    kept = [node for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
    return found


def _parts(joint: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[_Part]:
    """Return the parts that a node joins; none unless they are one attention in parts."""
    if joint.op_type != "Concat" or _axis(joint) != _HEADS:
        return []
    parts = []
    for i, name in enumerate(joint.input):
        part = _Part()
        if not _collect(name, makers, part) or not part.starts:
            return []
        if any(
            index != i or len(makers[split].output) != len(joint.input)
            for split, index in part.starts
        ):
            return []
        parts.append(part)
    has_softmax = any(node.op_type == "Softmax" for node in parts[0].nodes)
    alike = all(part.form() == parts[0].form() for part in parts)
    return parts if alike and has_softmax else []


def _collect(name: str, makers: Mapping[str, onnx.NodeProto], part: _Part) -> bool:
    """Collect the nodes that compute a value from splits of the heads; False if others do."""
    node = makers.get(name)
    if node is None:
        return False
    if node.op_type == "Split" and _axis(node) == _HEADS:
        part.starts.append((node.output[0], list(node.output).index(name)))
        return True
    if node.op_type not in _INNER or not all(_collect(x, makers, part) for x in node.input):
        return False
    part.nodes.append(node)
    return True


def _axis(node: onnx.NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "axis"), None)


def _weight_files(graph: onnx.GraphProto) -> set[str]:
    return {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
