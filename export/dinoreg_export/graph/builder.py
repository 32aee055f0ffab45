"""Small helpers over the onnx library: nodes, constants, weights in a file of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

OPSET = 18
#: Readers map the file into memory; 64 KiB is the coarsest page any of them asks for.
_ALIGNMENT = 1 << 16
Storage = Literal["float32", "float16", "bfloat16"]
#: Numbers of the types in the ONNX format.
ONNX_TYPES: dict[Storage, int] = {"float32": 1, "float16": 10, "bfloat16": 16}
_ITEM_BYTES: dict[Storage, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies in the weights file."""

    offset: int
    shape: tuple[int, ...]
    storage: Storage


class WeightsFile:
    """Writes tensors one after the other; several graphs refer to them."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self.tensors: dict[str, Stored] = {}
        self._stream = stream

    def add(self, name: str, values: NDArray[np.float32], storage: Storage = "float32") -> None:
        """Write one tensor as numbers of this type."""
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
        self.tensors[name] = Stored(self._stream.tell(), values.shape, storage)
        self._stream.write(np.ascontiguousarray(values, _numpy_type(storage)).view(np.uint8).data)


class GraphBuilder:
    """Collects nodes and initializers of one graph."""

    def __init__(self, weights: WeightsFile) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        return self.nodes(kind, *inputs, outputs=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node; returns the names of its outputs."""
        from onnx import helper

        self._count += 1
        names = [f"{kind}_{self._count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def rename(self, value: str, name: str) -> None:
        """Give a node's output the name of a graph's output."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name

    def constant(self, values: NDArray[Any]) -> str:
        """A constant that belongs to this graph alone; equal ones are stored once."""
        from onnx import numpy_helper

        digest = hashlib.sha256(values.tobytes()).hexdigest()
        key = f"constant {values.dtype} {values.shape} {digest}"
        if key not in self._initializers:
            self._initializers[key] = numpy_helper.from_array(values, f"c{len(self._initializers)}")
        return str(self._initializers[key].name)

    def integers(self, *values: int) -> str:
        """A constant list of 64-bit integers, as shapes and axes want them."""
        return self.constant(np.asarray(values, np.int64))

    def weight(self, name: str) -> str:
        """A tensor of the weights file."""
        import onnx

        stored = self._weights.tensors[name]
        tensor = onnx.TensorProto(name=name, dims=stored.shape)
        tensor.data_type = ONNX_TYPES[stored.storage]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        length = int(np.prod(stored.shape)) * _ITEM_BYTES[stored.storage]
        for key, value in (
            ("location", self._weights.name),
            ("offset", stored.offset),
            ("length", length),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self._initializers[f"weight {name}"] = tensor
        return name

    def has(self, name: str) -> bool:
        """Whether the weights file holds a tensor."""
        return name in self._weights.tensors

    def save(
        self,
        path: Path,
        inputs: Sequence[tuple[str, Sequence[int | str]]],
        outputs: Sequence[tuple[str, Sequence[int | str]]],
    ) -> None:
        """Write the graph; its inputs and outputs are float32 with these names and shapes.

        Raises:
            onnx.checker.ValidationError: a fault of ours.
        """
        import onnx
        from onnx import helper

        def value(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))

        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [value(*i) for i in inputs],
            [value(*o) for o in outputs],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=9,
            producer_name="dinoreg-rt",
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))


def _numpy_type(storage: Storage) -> Any:
    if storage != "bfloat16":
        return np.dtype(storage)
    import ml_dtypes  # NumPy has no bfloat16 of its own

    return np.dtype(ml_dtypes.bfloat16)
