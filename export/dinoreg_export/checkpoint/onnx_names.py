"""Which constant of an exported graph is which parameter of the module that it came from.

Exporters keep the names of parameters where they can. Where they turn a matrix, its node still says
whose it is; where they cut the learned positions apart, only the structure tells: what is joined in
front of the patches is the class token, what is added to them are positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dinoreg_rt.errors import InputError

from .layouts import is_known
from .onnx_graph_view import GraphView, modules_of
from .onnx_tensors import is_float, shape_of

if TYPE_CHECKING:
    import onnx

_PATCH = re.compile(r"^(.*?)embeddings\.patch_embeddings(?:\.projection)?\.weight$")
#: What a parameter is called, unlike the numbered names of an exporter's own.
_PARAMETER = re.compile(r"^[A-Za-z_]\w*(\.\w+)+$")
#: Buffers that follow from the architecture.
_FOLLOWS = re.compile(r"(^|\.)inv_freq$")
_LAST_NORM = re.compile(r"^(?:model\.)?(?:layernorm|norm)\.weight$")
_POSITION = "embeddings.position_embeddings"
#: Nodes between what is added to the tokens and its constants, at most.
_DEEPEST = 50
#: What stands between the patches and the first block, and hands tokens on.
_EMBEDDING = {"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_EMBEDDING |= {"Slice", "Concat", "Add"}
_TABLE = {"Identity", "Cast", "Transpose", "Reshape", "Resize", "Expand", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Part:
    """Rows `first` to `last` of a constant that is looked at as (n, channels)."""

    tensor: onnx.TensorProto
    first: int
    last: int


@dataclass(frozen=True)
class Entry:
    """Where a parameter's numbers lie.

    Attributes:
        tensor: the constant.
        turned: it holds the matrix transposed.
        parts: instead of that one: rows that are joined to (1, n, channels).
    """

    tensor: onnx.TensorProto | None
    turned: bool = False
    parts: tuple[Part, ...] = ()


def named_parameters(path: Path, view: GraphView) -> dict[str, Entry]:
    """The backbone's parameters, by the names that they had in the module, without its own prefix.

    What other modules have, such as a head, is left out; the encoder must not depend on it.

    Raises:
        InputError: no single patch embedding of DINOv2 or DINOv3, or a matrix in the encoder that
            no parameter of theirs explains.
    """
    patch, prefix = _patch_embedding(path, view)
    names = _Names(path, view, prefix)
    for name, tensor in view.constants.items():
        if is_float(tensor) and _PARAMETER.match(name) and not _FOLLOWS.search(name):
            names.add_named(name, tensor)
    unexplained = [
        node
        for node in view.nodes
        for leaf, tensor, turned in _matrices(node, view)
        if not names.add_matrix(node, leaf, tensor, turned=turned)
    ]
    for node in view.nodes:
        for leaf, tensor in _vectors(node, view):
            names.add_vector(node, leaf, tensor)
    _check_nothing_else(path, view, names.found, unexplained)
    for name, entry in _embedding(view, patch).items():
        names.found.setdefault(name, entry)
    return names.found


class _Names:
    """Parameters found so far."""

    def __init__(self, path: Path, view: GraphView, prefix: str) -> None:
        self._path, self._view, self._prefix = path, view, prefix
        self.found: dict[str, Entry] = {}

    def add_named(self, name: str, tensor: onnx.TensorProto) -> None:
        """A constant that kept its name."""
        if name.startswith(self._prefix):
            self.found[name.removeprefix(self._prefix)] = Entry(tensor)

    def add_matrix(
        self, node: onnx.NodeProto, leaf: str, tensor: onnx.TensorProto, *, turned: bool
    ) -> bool:
        """A constant that a node multiplies by; False: nothing says whose it is."""
        modules = [*modules_of(node), *_modules_by_bias(node, self._view)]
        name = next(filter(is_known, (self._name(m, leaf) for m in modules)), None)
        if name is None:
            name = next((n for n, e in self.found.items() if e.tensor is tensor), None)
        if name is None:
            return False
        other = self.found.get(name)
        if other is not None and other.tensor is not tensor:
            raise InputError(
                f"{self._path}: two constants are used as '{name}'; wanted an export of the "
                "encoder as it is, with one"
            )
        self.found[name] = Entry(tensor, turned)
        return True

    def add_vector(self, node: onnx.NodeProto, leaf: str, tensor: onnx.TensorProto) -> None:
        """A bias or scale, which an exporter stores once where several are equal."""
        names = (self._name(module, leaf) for module in modules_of(node))
        if (name := next(filter(is_known, names), None)) is not None:
            self.found.setdefault(name, Entry(tensor))

    def _name(self, module: str, leaf: str) -> str:
        return f"{module}.{leaf}".removeprefix(self._prefix)


def _patch_embedding(path: Path, view: GraphView) -> tuple[onnx.NodeProto, str]:
    """The convolution that makes patches, and what stands before the names of its module."""
    found = []
    for node in view.nodes:
        held = view.constant(node.input[1]) if node.op_type == "Conv" else None
        if held is None or len(shape_of(held[0])) != 4:
            continue
        names = [held[0].name, *(f"{module}.weight" for module in modules_of(node))]
        if match := next(filter(None, map(_PATCH.match, names)), None):
            found.append((node, match[1]))
    if len(found) != 1:
        what = f"{len(found)} patch embeddings" if found else "no patch embedding"
        raise InputError(
            f"{path}: the graph holds {what} of Hugging Face's DINOv2 or DINOv3 (a Conv of the "
            "module embeddings.patch_embeddings); wanted the export of one such module, as "
            "torch.onnx or Optimum write it"
        )
    return found[0]


def _matrices(
    node: onnx.NodeProto, view: GraphView
) -> Iterator[tuple[str, onnx.TensorProto, bool]]:
    """Constants that a node multiplies by: their role in the module, and whether they are turned.

    A linear layer's weight is (out, in), and a product wants (in, out).
    """
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return
    for position in (0, 1):
        held = view.constant(node.input[position])
        if held is None or not is_float(held[0]) or len(shape_of(held[0])) < 2:
            continue
        straight = node.op_type == "Conv" or _flag(node, "transB")
        yield "weight", held[0], held[1] == straight


def _vectors(node: onnx.NodeProto, view: GraphView) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Constants along the channels that a node adds or scales by, with their possible roles."""
    roles: dict[str, list[tuple[int, str]]] = {
        "Conv": [(2, "bias")],
        "Gemm": [(2, "bias")],
        "Add": [(0, "bias"), (1, "bias")],
        "Mul": [(i, leaf) for i in (0, 1) for leaf in ("weight", "lambda1")],
        "LayerNormalization": [(1, "weight"), (2, "bias")],
    }
    for position, leaf in roles.get(node.op_type, []):
        held = view.constant(node.input[position]) if position < len(node.input) else None
        if held is not None and is_float(held[0]) and _is_vector(shape_of(held[0])):
            yield leaf, held[0]


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 and shape[0] > 1


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(a.name == name and a.i for a in node.attribute)


def _modules_by_bias(node: onnx.NodeProto, view: GraphView) -> Iterator[str]:
    """The module whose named bias is added to a product."""
    adds = [n for value in node.output for n in view.takers[value] if n.op_type == "Add"]
    names = [value for add in adds for value in add.input if value in view.constants]
    names += node.input[2:] if node.op_type == "Gemm" else []
    yield from (name.removesuffix(".bias") for name in names if name.endswith(".bias"))


def _check_nothing_else(
    path: Path, view: GraphView, found: dict[str, Entry], unexplained: list[onnx.NodeProto]
) -> None:
    """Stop where the tokens depend on a matrix that is no parameter of the encoder."""
    last = [e.tensor for n, e in found.items() if _LAST_NORM.search(n)]
    held = [(node, view.constant(value)) for node in view.nodes for value in node.input]
    ends = [node for node, h in held if h is not None and any(h[0] is t for t in last)]
    inside = {id(node) for node in view.before(ends)}
    for node in unexplained:
        if id(node) in inside:
            raise InputError(
                f"{path}: in the encoder the {node.op_type} '{node.name}' multiplies by a constant "
                "that no parameter of DINOv2 or DINOv3 explains; wanted their export as they are"
            )


def _embedding(view: GraphView, patch: onnx.NodeProto) -> dict[str, Entry]:
    """Class token, registers and positions by what becomes of the patches before the first block.

    What cannot be told is left out.
    """
    kernel = view.constant(patch.input[1])
    channels = 0 if kernel is None else shape_of(kernel[0])[0]
    front: list[Part] = []
    table: list[Part] = []
    pending, seen = [patch.output[0]], set()
    while pending:
        value = pending.pop(0)
        for node in view.takers[value]:
            if id(node) in seen or node.op_type not in _EMBEDDING:
                continue
            others = [v for v in node.input if v != value]
            if node.op_type == "Concat":
                front += [p for v in others if (p := _rows(view, v, channels)) is not None]
            elif node.op_type == "Add":
                table = table or (_table(view, others[0], channels) if others else [])
            elif node.input[0] != value:
                continue
            seen.add(id(node))
            pending.append(node.output[0])
    return _tokens(front) | ({_POSITION: Entry(None, parts=tuple(table))} if table else {})


def _tokens(front: list[Part]) -> dict[str, Entry]:
    """The first row is the class token, the others are registers."""
    if not front:
        return {}
    first, rest = front[0], front[1:]
    if first.last > 1:
        rest = [Part(first.tensor, 1, first.last), *rest]
    found = {"embeddings.cls_token": Entry(None, parts=(Part(first.tensor, 0, 1),))}
    return found | ({"embeddings.register_tokens": Entry(None, parts=tuple(rest))} if rest else {})


def _rows(view: GraphView, value: str, channels: int) -> Part | None:
    """A constant as rows of so many channels."""
    held = view.constant(value)
    if held is None or held[1] or not is_float(held[0]):
        return None
    *ones, rows, last = (1, 1, *shape_of(held[0]))
    one_for_all = all(n == 1 for n in ones)
    return Part(held[0], 0, rows) if one_for_all and last == channels and rows > 0 else None


def _table(view: GraphView, value: str, channels: int) -> list[Part]:
    """The learned positions behind what is added to the tokens, whatever grid it was fitted to.

    One constant, or that of the class token and those of the patches joined; else none.
    """
    origin = _origin(view, value)
    node = view.makers.get(origin)
    joined = node.input if node is not None and node.op_type == "Concat" else [origin]
    parts = [_rows(view, _origin(view, v), channels) for v in joined]
    return [] if None in parts else [part for part in parts if part is not None]


def _origin(view: GraphView, value: str) -> str:
    """What a value is a copy of, in another shape, order or size."""
    for _ in range(_DEEPEST):
        node = view.makers.get(value)
        if node is None or node.op_type not in _TABLE or not node.input:
            break
        value = node.input[0]
    return value
