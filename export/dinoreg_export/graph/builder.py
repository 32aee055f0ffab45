"""Helpers on top of the onnx library: nodes, constants, and weights in a separate file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import DeviceError

if TYPE_CHECKING:
    import onnx

OPSET = 18
#: Operators of ONNX Runtime itself, and their version.
ORT_DOMAIN, _ORT_OPSET = "com.microsoft", 1
#: Runtimes map the weights file into memory; 64 KiB is the coarsest page that any of them needs.
_ALIGNMENT = 1 << 16
Storage = Literal["float32", "float16", "bfloat16"]
#: Numbers of these types in the ONNX format.
ONNX_TYPES: dict[Storage, int] = {"float32": 1, "float16": 10, "bfloat16": 16}


def need_onnx(what: str) -> None:
    """Check that the onnx package, which `what` needs, is installed.

    Raises:
        DeviceError: it is not.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"{what} needs the onnx package, which is not installed; "
            "pip install 'dinoreg-rt[export,cpu]' (or [export,gpu])"
        ) from error


@dataclass(frozen=True)
class Stored:
    """Position, length, shape and type of a tensor in the weights file."""

    offset: int
    length: int
    shape: tuple[int, ...]
    storage: Storage


def write_aligned(stream: IO[bytes], content: bytes | memoryview) -> int:
    """Append the bytes of a tensor to a weights file and return their offset."""
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    offset = stream.tell()
    stream.write(content)
    return offset


def refer_to_file(tensor: onnx.TensorProto, name: str, offset: int, length: int) -> None:
    """Make a tensor refer to bytes in the weights file `name` beside its graph."""
    from onnx import TensorProto

    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


class WeightsFile:
    """Writes tensors one after another into a file that several graphs refer to."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.name = name
        self.tensors: dict[str, Stored] = {}
        self._stream = stream

    def add(self, name: str, values: NDArray[np.float32], storage: Storage = "float32") -> None:
        """Write one tensor in the given type."""
        content = np.ascontiguousarray(values, numpy_type(storage)).view(np.uint8).data
        offset = write_aligned(self._stream, content)
        self.tensors[name] = Stored(offset, content.nbytes, values.shape, storage)


class GraphBuilder:
    """Collects the nodes and initializers of one graph."""

    def __init__(self, weights: WeightsFile) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._count = 0

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(kind, *inputs, outputs=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        from onnx import helper

        self._count += 1
        names = [f"{kind}_{self._count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names

    def rename(self, value: str, name: str) -> None:
        """Rename a value, for instance to the name of one of the graph's outputs."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name

    def constant(self, values: NDArray[Any]) -> str:
        """Add a constant to this graph and return its name; equal constants are stored once."""
        from onnx import numpy_helper

        digest = hashlib.sha256(values.tobytes()).hexdigest()
        key = f"constant {values.dtype} {values.shape} {digest}"
        if key not in self._initializers:
            self._initializers[key] = numpy_helper.from_array(values, f"c{len(self._initializers)}")
        return str(self._initializers[key].name)

    def integers(self, *values: int) -> str:
        """Add a list of 64-bit integers, the type of shapes and axes."""
        return self.constant(np.asarray(values, np.int64))

    def weight(self, name: str) -> str:
        """Add a reference to a tensor of the weights file and return its name."""
        import onnx

        stored = self._weights.tensors[name]
        tensor = onnx.TensorProto(name=name, dims=stored.shape)
        tensor.data_type = ONNX_TYPES[stored.storage]
        refer_to_file(tensor, self._weights.name, stored.offset, stored.length)
        self._initializers[f"weight {name}"] = tensor
        return name

    def has(self, name: str) -> bool:
        """Return whether the weights file holds a tensor."""
        return name in self._weights.tensors

    def save(
        self,
        path: Path,
        inputs: Sequence[tuple[str, Sequence[int | str]]],
        outputs: Sequence[tuple[str, Sequence[int | str]]],
    ) -> None:
        """Write the graph, with float32 inputs and outputs of these names and shapes.

        Raises:
            onnx.checker.ValidationError: the graph is invalid, which is a bug in this package.
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
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == ORT_DOMAIN for node in self._nodes):
            opsets.append(helper.make_opsetid(ORT_DOMAIN, _ORT_OPSET))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=9,
            producer_name="dinoreg-rt",
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))


def numpy_type(storage: Storage) -> Any:
    """Return the NumPy type that stores numbers of a type."""
    if storage != "bfloat16":
        return np.dtype(storage)
    import ml_dtypes  # NumPy has no bfloat16 of its own

    return np.dtype(ml_dtypes.bfloat16)
