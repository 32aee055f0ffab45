"""Graphs of Hugging Face's modules in the style of torch.onnx and Optimum, written without torch.

Structure and names are theirs as far as they concern the weights. The layers are chained directly,
so the graphs compute nothing useful.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from checkpoints import Tensors, huggingface
from onnx import helper, numpy_helper

from dinoreg_export.checkpoint.architecture import VitArchitecture


@dataclass
class Export:
    """A graph under construction.

    Attributes:
        prefix: prefix of the backbone's modules in the exported one, such as ``backbone.``.
        folded: whether constants are folded: matrices transposed, positions split.
        decomposed: whether layer norms are decomposed, as before opset 17.
    """

    a: VitArchitecture
    tensors: Tensors
    prefix: str = ""
    folded: bool = True
    decomposed: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add a parameter under its name, or a folded constant under an exporter's name."""
        if name.startswith("onnx::"):
            name += str(1000 + len(self.constants))
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def node(self, kind: str, module: str, *inputs: str, **attributes: object) -> str:
        """Add a node in a module, named as by the tracer, and return its output."""
        base = f"/{self._path(module)}{kind}".replace("//", "/")
        count = sum(n.name == base or n.name.startswith(f"{base}_") for n in self.nodes)
        name = f"{base}_{count}" if count else base
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def _path(self, module: str) -> str:
        parts = (self.prefix + module).replace("layer.", "layer#").split(".")
        return "".join(f"{p}/" for p in parts if p).replace("#", ".")

    def build(self) -> onnx.ModelProto:
        """Build the whole graph."""
        stored = huggingface(self.a, self.tensors, "encoder.layer." if self._v2 else "layer.")
        stored.pop("embeddings.mask_token")
        x = self._embed(stored)
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in stored))
        for module in modules:
            if module and not module.startswith("embeddings"):
                x = self._layer(stored, module, x)
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [helper.make_tensor_value_info("pixel_values", 1, ["batch", 3, "height", "width"])],
            [helper.make_tensor_value_info(x, 1, None)],
            list(self.constants.values()),
        )
        return helper.make_model(graph, producer_name="pytorch")

    @property
    def _v2(self) -> bool:
        return self.a.generation == 2

    def _embed(self, stored: Tensors) -> str:
        name = "embeddings.patch_embeddings" + (".projection" if self._v2 else "")
        parts = [
            self.constant(f"{self.prefix}{name}.{p}", stored[f"{name}.{p}"])
            for p in ("weight", "bias")
        ]
        x = self.node("Conv", name, "pixel_values", *parts, strides=[self.a.patch] * 2)
        self.node("Shape", "embeddings.patch_embeddings", x)
        shape = self.constant("onnx::Reshape_", np.array([1, self.a.dim, -1], np.int64))
        x = self.node("Reshape", "embeddings.patch_embeddings", x, shape)
        x = self.node("Transpose", "embeddings.patch_embeddings", x, perm=[0, 2, 1])
        front = [stored["embeddings.cls_token"]]
        registers = stored.get("embeddings.register_tokens")
        if not self._v2 and self.folded:
            both = self.constant("onnx::Concat_", np.concatenate([*front, registers], 1))
            return self.node("Concat", "embeddings", both, x, axis=1)
        tokens = [self._token("cls_token", front[0])]
        if not self._v2:
            tokens.append(self._token("register_tokens", registers))
        x = self.node("Concat", "embeddings", *tokens, x, axis=1)
        if not self._v2:
            return x
        x = self.node("Add", "embeddings", x, self._positions(stored))
        if registers is None:
            return x
        first, rest = self.node("Slice", "embeddings", x), self.node("Slice", "embeddings", x)
        token = self._token("register_tokens", registers)
        return self.node("Concat", "embeddings", first, token, rest, axis=1)

    def _token(self, name: str, values: np.ndarray) -> str:
        token = self.constant(f"{self.prefix}embeddings.{name}", values)
        shape = self.node("Where", "embeddings", "pixel_values")
        return self.node("Expand", "embeddings", token, shape)

    def _positions(self, stored: Tensors) -> str:
        table = stored["embeddings.position_embeddings"]
        if self.folded:
            first = self.constant("onnx::Concat_", table[:, :1])
            rest = self.constant("onnx::Reshape_", table[:, 1:])
        else:
            whole = self.constant(f"{self.prefix}embeddings.position_embeddings", table)
            first, rest = (self.node("Slice", "embeddings", whole) for _ in range(2))
        for kind in ("Reshape", "Transpose", "Cast", "Resize", "Cast", "Transpose", "Reshape"):
            rest = self.node(kind, "embeddings", rest)
        return self.node("Concat", "embeddings", first, rest, axis=1)

    def _layer(self, stored: Tensors, module: str, x: str) -> str:
        """Add a linear layer, norm or layer scale."""
        own = {n.rpartition(".")[2]: v for n, v in stored.items() if n.rpartition(".")[0] == module}
        name = f"{self.prefix}{module}."
        if "lambda1" in own:
            return self.node("Mul", module, x, self.constant(f"{name}lambda1", own["lambda1"]))
        if own["weight"].ndim == 1:
            weight, bias = (self.constant(f"{name}{p}", own[p]) for p in ("weight", "bias"))
            if not self.decomposed:
                return self.node("LayerNormalization", module, x, weight, bias)
            epsilon = self.constant("onnx::Add_", np.float32(1e-6))
            x = self.node("Sqrt", module, self.node("Add", module, x, epsilon))
            x = self.node("Mul", module, self.node("Div", module, x), weight)
            return self.node("Add", module, x, bias)
        if self.folded:
            weight = self.constant("onnx::MatMul_", own["weight"].T)
        else:
            weight = self.constant(f"{name}weight", own["weight"])
            weight = self.node("Transpose", module, weight, perm=[1, 0])
        y = self.node("MatMul", module, x, weight)
        if "bias" in own:
            y = self.node("Add", module, self.constant(f"{name}bias", own["bias"]), y)
        return y


def write_export(path: Path, a: VitArchitecture, tensors: Tensors, **style: object) -> Path:
    """Write a file like that of an exporter."""
    path.write_bytes(Export(a, tensors, **style).build().SerializeToString())
    return path
