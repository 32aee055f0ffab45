"""Matching of the constants of an exported graph to the parameters of the original module.

Exporters keep the names of parameters if they can. If they transpose a matrix, the name of its node
still identifies it. If they split the learned positions, only the structure does: tokens that are
joined in front of the patches are the class token and registers, and a table that is added to them
holds positions.
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
#: Names of parameters, in contrast to the numbered names that exporters make up.
_PARAMETER = re.compile(r"^[A-Za-z_]\w*(\.\w+)+$")
#: Buffers that are determined by the architecture.
_DERIVED = re.compile(r"(^|\.)inv_freq$")
_LAST_NORM = re.compile(r"^(?:model\.)?(?:layernorm|norm)\.weight$")
_POSITION = "embeddings.position_embeddings"
#: Most nodes between a table of positions and its constants.
_DEEPEST = 50
#: Operators between the patches and the first block that pass tokens on.
_EMBEDDING = {"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_EMBEDDING |= {"Slice", "Concat", "Add"}
#: Operators between the learned positions and their addition to the tokens.
_TABLE = {"Identity", "Cast", "Transpose", "Reshape", "Resize", "Expand", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Part:
    """Rows `first` to `last` (exclusive) of a constant in the shape (n, channels)."""

    tensor: onnx.TensorProto
    first: int
    last: int


@dataclass(frozen=True)
class Entry:
    """The source of a parameter's numbers.

    Attributes:
        tensor: constant that holds the parameter; None if it consists of `parts`.
        transposed: whether the constant holds the matrix transposed.
        parts: rows that are joined to (1, n, channels).
    """

    tensor: onnx.TensorProto | None
    transposed: bool = False
    parts: tuple[Part, ...] = ()

    def tensors(self) -> list[onnx.TensorProto]:
        """Return all constants that hold numbers of the parameter."""
        own = [self.tensor] if self.tensor is not None else []
        return [*own, *(part.tensor for part in self.parts)]


def named_parameters(path: Path, view: GraphView) -> dict[str, Entry]:
    """Return the parameters of the backbone by their names in the module, without its prefix.

    Parameters of other modules, such as a head, are left out; the encoder must not depend on them.

    Raises:
        InputError: there is not exactly one patch embedding of DINOv2 or DINOv3, or a matrix in
            the encoder is not one of their parameters.
    """
    patch, prefix = _patch_embedding(path, view)
    names = _Names(path, view, prefix)
    for name, tensor in view.constants.items():
        if is_float(tensor) and _PARAMETER.match(name) and not _DERIVED.search(name):
            names.add_named(name, tensor)
    unexplained = [
        node
        for node in view.nodes
        for leaf, tensor, transposed in _matrices(node, view)
        if not names.add_matrix(node, leaf, tensor, transposed=transposed)
    ]
    for node in view.nodes:
        for leaf, tensor in _vectors(node, view):
            names.add_vector(node, leaf, tensor)
    _check_nothing_else(path, view, names.found, unexplained)
    for name, entry in _embedding(view, patch).items():
        names.found.setdefault(name, entry)
    return names.found


class _Names:
    """The parameters found so far."""

    def __init__(self, path: Path, view: GraphView, prefix: str) -> None:
        self._path, self._view, self._prefix = path, view, prefix
        self.found: dict[str, Entry] = {}

    def add_named(self, name: str, tensor: onnx.TensorProto) -> None:
        """Add a constant that kept the name of its parameter."""
        if name.startswith(self._prefix):
            self.found[name.removeprefix(self._prefix)] = Entry(tensor)

    def add_matrix(
        self, node: onnx.NodeProto, leaf: str, tensor: onnx.TensorProto, *, transposed: bool
    ) -> bool:
        """Add a constant that a node multiplies by; return whether it could be identified."""
        modules = [*modules_of(node), *_modules_by_bias(node, self._view)]
        name = next(filter(is_known, (self._name(m, leaf) for m in modules)), None)
        if name is None:
            name = next((n for n, e in self.found.items() if e.tensor is tensor), None)
        if name is None:
            return False
        other = self.found.get(name)
        if other is not None and other.tensor is not tensor:
            raise InputError(
                f"{self._path}: two constants are used as '{name}'; export the encoder without "
                "changes to its parameters"
            )
        self.found[name] = Entry(tensor, transposed)
        return True

    def add_vector(self, node: onnx.NodeProto, leaf: str, tensor: onnx.TensorProto) -> None:
        """Add a bias or scale; exporters store equal ones once."""
        names = (self._name(module, leaf) for module in modules_of(node))
        if (name := next(filter(is_known, names), None)) is not None:
            self.found.setdefault(name, Entry(tensor))

    def _name(self, module: str, leaf: str) -> str:
        return f"{module}.{leaf}".removeprefix(self._prefix)


def _patch_embedding(path: Path, view: GraphView) -> tuple[onnx.NodeProto, str]:
    """Return the convolution that makes patches, and the prefix of its module's name."""
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
            "module embeddings.patch_embeddings); export one such module with torch.onnx or "
            "Optimum"
        )
    return found[0]


def _matrices(
    node: onnx.NodeProto, view: GraphView
) -> Iterator[tuple[str, onnx.TensorProto, bool]]:
    """Yield constants that a node multiplies by, with their role and whether they are transposed.

    The weight of a linear layer is (out, in), and MatMul needs (in, out).
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
    """Yield constants along the channels that a node adds or scales by, with possible roles."""
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
    """Yield names of modules whose bias, which kept its name, is added to a product."""
    adds = [n for value in node.output for n in view.takers[value] if n.op_type == "Add"]
    names = [value for add in adds for value in add.input if value in view.constants]
    names += node.input[2:] if node.op_type == "Gemm" else []
    yield from (name.removesuffix(".bias") for name in names if name.endswith(".bias"))


def _check_nothing_else(
    path: Path, view: GraphView, found: dict[str, Entry], unexplained: list[onnx.NodeProto]
) -> None:
    """Refuse a graph whose tokens depend on a matrix that is not a parameter of the encoder."""
    last = [e.tensor for n, e in found.items() if _LAST_NORM.search(n)]
    held = [(node, view.constant(value)) for node in view.nodes for value in node.input]
    ends = [node for node, h in held if h is not None and any(h[0] is t for t in last)]
    inside = {id(node) for node in view.before(ends)}
    for node in unexplained:
        if id(node) in inside:
            raise InputError(
                f"{path}: in the encoder, the {node.op_type} '{node.name}' multiplies by a "
                "constant that is no parameter of DINOv2 or DINOv3; export the unmodified encoder"
            )


def _embedding(view: GraphView, patch: onnx.NodeProto) -> dict[str, Entry]:
    """Find the class token, registers and positions on the way from the patches to the blocks.

    Parameters that cannot be identified are left out.
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
    """Split the rows in front of the patches: the first is the class token, others registers."""
    if not front:
        return {}
    first, rest = front[0], front[1:]
    if first.last > 1:
        rest = [Part(first.tensor, 1, first.last), *rest]
    found = {"embeddings.cls_token": Entry(None, parts=(Part(first.tensor, 0, 1),))}
    return found | ({"embeddings.register_tokens": Entry(None, parts=tuple(rest))} if rest else {})


def _rows(view: GraphView, value: str, channels: int) -> Part | None:
    """Return a constant as rows with the given number of channels; None if it does not fit."""
    held = view.constant(value)
    if held is None or held[1] or not is_float(held[0]):
        return None
    *ones, rows, last = (1, 1, *shape_of(held[0]))
    one_for_all = all(n == 1 for n in ones)
    return Part(held[0], 0, rows) if one_for_all and last == channels and rows > 0 else None


def _table(view: GraphView, value: str, channels: int) -> list[Part]:
    """Return the learned positions behind a value added to the tokens, before any resizing.

    They are one constant, or that of the class token joined with that of the patches; else none.
    """
    origin = _origin(view, value)
    node = view.makers.get(origin)
    joined = node.input if node is not None and node.op_type == "Concat" else [origin]
    parts = [_rows(view, _origin(view, v), channels) for v in joined]
    return [] if None in parts else [part for part in parts if part is not None]


def _origin(view: GraphView, value: str) -> str:
    """Return the value that a value copies in another shape, order or size."""
    for _ in range(_DEEPEST):
        node = view.makers.get(value)
        if node is None or node.op_type not in _TABLE or not node.input:
            break
        value = node.input[0]
    return value
