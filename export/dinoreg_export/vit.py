"""The forward graph of a vision transformer of the DINOv2 or DINOv3 family.

Plain operators of opset 18, so that ONNX Runtime, OpenVINO and TensorRT read the same file. In half
precision the matrix products are half; the sum of the blocks, layer norms, softmax and rotary
positions stay float32, without which TensorRT engines of such towers lose all accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .architecture import VitArchitecture
from .checkpoint import Weights
from .onnx_graph import GraphBuilder, WeightsFile
from .positions import resize_positions
from .rotary import rotary_tables

#: Scores of attention that exist at one time, per slice: at 112 x 96 tokens those of all sixteen
#: heads of ViT-L would take 7.4 GB.
SCORE_BYTES = 512 << 20


def write_weights(
    weights: Weights, file: WeightsFile, *, half: bool, progress: Callable[[float], None]
) -> None:
    """Every tensor as the graph wants it, read and written one by one.

    Linear layers are transposed; q, k and v are one matrix, with the scale of the attention in q.
    """
    a, names = weights.architecture, set(weights.names())
    tokens = [weights.read("cls_token")]
    if a.register_tokens:
        tokens.append(weights.read("register_tokens"))
    if a.generation == 3:
        file.add("prefix", np.concatenate(tokens, axis=1))
    else:
        for name, value in zip(("cls_token", "register_tokens"), tokens, strict=False):
            file.add(name, value)
    for name in ("patch.weight", "patch.bias"):
        file.add(name, weights.read(name), half=half)
    for n in range(a.depth):
        block = f"blocks.{n}."
        _write_qkv(weights, names, file, block, half=half)
        for layer in ("o", "up", "down", *(("gate",) if a.gated else ())):
            file.add(f"{block}{layer}.weight", weights.read(f"{block}{layer}.weight").T, half=half)
            file.add(f"{block}{layer}.bias", weights.read(f"{block}{layer}.bias"), half=half)
        for name in (
            "norm1.weight",
            "norm1.bias",
            "norm2.weight",
            "norm2.bias",
            "scale1",
            "scale2",
        ):
            file.add(block + name, weights.read(block + name))
        progress((n + 1) / a.depth)
    for name in ("norm.weight", "norm.bias"):
        file.add(name, weights.read(name))


def _write_qkv(
    weights: Weights, names: set[str], file: WeightsFile, block: str, *, half: bool
) -> None:
    a = weights.architecture
    scales = (np.float32(a.head_dim**-0.5), np.float32(1), np.float32(1))
    parts = [s * weights.read(f"{block}{p}.weight") for p, s in zip("qkv", scales, strict=True)]
    file.add(f"{block}qkv.weight", np.concatenate(parts).T, half=half)
    present = [f"{block}{p}.bias" in names for p in "qkv"]
    if any(present):
        none = np.zeros(a.dim, np.float32)
        biases = [
            s * weights.read(f"{block}{p}.bias") if there else none
            for p, s, there in zip("qkv", scales, present, strict=True)
        ]
        file.add(f"{block}qkv.bias", np.concatenate(biases), half=half)


def write_graph(
    weights: Weights, file: WeightsFile, path: Path, height: int, width: int, *, half: bool
) -> None:
    """The graph for one input size: ``pixels`` -> ``tokens`` (N, rows, columns, C) and ``cls``."""
    a = weights.architecture
    rows, columns = height // a.patch, width // a.patch
    g = _VitGraph(a, GraphBuilder(file), rows, columns, half=half)
    x = g.embed(weights)
    for n in range(a.depth):
        x = g.block(x, f"blocks.{n}.")
    tokens, cls = g.finish(x)
    builder = g.builder
    builder.rename(tokens, "tokens")
    builder.rename(cls, "cls")
    builder.save(
        path,
        [("pixels", ("N", 3, height, width))],
        [("tokens", ("N", rows, columns, a.dim)), ("cls", ("N", a.dim))],
    )


class _VitGraph:
    """The pieces of the graph, in the order of the forward pass."""

    def __init__(
        self, a: VitArchitecture, builder: GraphBuilder, rows: int, columns: int, *, half: bool
    ) -> None:
        self.a, self.builder, self.rows, self.columns = a, builder, rows, columns
        self.half = half
        self.count = a.prefix_tokens + rows * columns
        if a.generation == 3:
            tables = rotary_tables(rows, columns, a.head_dim, a.rope_base, a.prefix_tokens)
            self.cos, self.sin = (builder.constant(t) for t in tables)

    def embed(self, weights: Weights) -> str:
        """Patches, then the tokens that every image has, in front."""
        b, a = self.builder, self.a
        patches = b.node(
            "Conv",
            self._to_half("pixels"),
            b.weight("patch.weight"),
            b.weight("patch.bias"),
            strides=[a.patch, a.patch],
        )
        flat = b.node("Reshape", self._to_float(patches), b.integers(0, a.dim, -1))
        x = b.node("Transpose", flat, perm=[0, 2, 1])
        if a.generation == 3:
            return b.node("Concat", self._for_each_image(x, b.weight("prefix")), x, axis=1)
        position = resize_positions(weights.read("position"), self.rows, self.columns)
        x = b.node("Add", x, b.constant(position[:, 1:]))
        cls = b.node("Add", b.weight("cls_token"), b.constant(position[:, :1]))
        front = [self._for_each_image(x, cls)]
        if a.register_tokens:
            front.append(self._for_each_image(x, b.weight("register_tokens")))
        return b.node("Concat", *front, x, axis=1)

    def _for_each_image(self, x: str, tokens: str) -> str:
        """(1, T, C) repeated over the batch, without Expand or Tile, which engines mishandle."""
        b = self.builder
        first = b.node("Slice", x, b.integers(0), b.integers(1), b.integers(1))
        return b.node("Add", b.node("Mul", first, b.constant(np.zeros(1, np.float32))), tokens)

    def block(self, x: str, name: str) -> str:
        """Attention and feed-forward, each scaled and added."""
        b = self.builder
        y = self._attention(self._norm(x, f"{name}norm1"), name)
        x = b.node("Add", x, b.node("Mul", y, b.weight(f"{name}scale1")))
        y = self._feed_forward(self._norm(x, f"{name}norm2"), name)
        return b.node("Add", x, b.node("Mul", y, b.weight(f"{name}scale2")))

    def finish(self, x: str) -> tuple[str, str]:
        """Patch tokens as a grid, and the class token, after the last norm."""
        b, a = self.builder, self.a
        x = self._norm(x, "norm")
        patches = b.node(
            "Slice", x, b.integers(a.prefix_tokens), b.integers(self.count), b.integers(1)
        )
        tokens = b.node("Reshape", patches, b.integers(0, self.rows, self.columns, a.dim))
        cls = b.node("Slice", x, b.integers(0), b.integers(1), b.integers(1))
        return tokens, b.node("Squeeze", cls, b.integers(1))

    def _attention(self, x: str, name: str) -> str:
        b, a = self.builder, self.a
        heads = 3 * a.heads
        y = self._linear(x, f"{name}qkv")
        y = b.node("Reshape", y, b.integers(0, self.count, heads, a.head_dim))
        y = b.node("Transpose", y, perm=[0, 2, 1, 3])
        if a.generation == 3:
            qk, v = b.nodes("Split", y, b.integers(2 * a.heads, a.heads), outputs=2, axis=1)
            q, k = b.nodes("Split", self._rotate(qk), outputs=2, axis=1, num_outputs=2)
        else:
            q, k, v = b.nodes("Split", y, outputs=3, axis=1, num_outputs=3)
        groups = self._head_groups()
        parts = [
            b.nodes("Split", part, b.integers(*groups), outputs=len(groups), axis=1)
            if len(groups) > 1
            else [part]
            for part in (q, k, v)
        ]
        outs = [self._scores_times_values(*qkv) for qkv in zip(*parts, strict=True)]
        y = b.node("Concat", *outs, axis=1) if len(outs) > 1 else outs[0]
        y = b.node("Transpose", y, perm=[0, 2, 1, 3])
        y = b.node("Reshape", y, b.integers(0, self.count, a.dim))
        return self._to_float(self._linear(y, f"{name}o"))

    def _head_groups(self) -> list[int]:
        """Heads whose scores exist together."""
        most = max(1, SCORE_BYTES // (4 * self.count**2))
        whole, rest = divmod(self.a.heads, min(most, self.a.heads))
        return [min(most, self.a.heads)] * whole + ([rest] if rest else [])

    def _scores_times_values(self, q: str, k: str, v: str) -> str:
        b = self.builder
        scores = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
        share = b.node("Softmax", self._to_float(scores), axis=-1)
        return b.node("MatMul", self._to_half(share), v)

    def _rotate(self, x: str) -> str:
        b = self.builder
        x = self._to_float(x)
        low, high = b.nodes("Split", x, outputs=2, axis=3, num_outputs=2)
        half = b.node("Concat", b.node("Neg", high), low, axis=3)
        turned = b.node("Add", b.node("Mul", x, self.cos), b.node("Mul", half, self.sin))
        return self._to_half(turned)

    def _feed_forward(self, x: str, name: str) -> str:
        b = self.builder
        if self.a.gated:
            gate = self._to_float(self._linear(x, f"{name}gate"))
            gate = b.node("Mul", gate, b.node("Sigmoid", gate))
            hidden = b.node("Mul", gate, self._to_float(self._linear(x, f"{name}up")))
        else:
            hidden = self._gelu(self._to_float(self._linear(x, f"{name}up")))
        return self._to_float(self._linear(self._to_half(hidden), f"{name}down"))

    def _gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2, in the order of operations that runtimes fuse."""
        b = self.builder
        erf = b.node("Erf", b.node("Div", x, b.constant(np.array(np.sqrt(2), np.float32))))
        y = b.node("Mul", x, b.node("Add", erf, b.constant(np.array(1, np.float32))))
        return b.node("Mul", y, b.constant(np.array(0.5, np.float32)))

    def _norm(self, x: str, name: str) -> str:
        b = self.builder
        weights = (b.weight(f"{name}.weight"), b.weight(f"{name}.bias"))
        return b.node("LayerNormalization", x, *weights, axis=-1, epsilon=self.a.epsilon)

    def _linear(self, x: str, name: str) -> str:
        b = self.builder
        y = b.node("MatMul", self._to_half(x), b.weight(f"{name}.weight"))
        return b.node("Add", y, b.weight(f"{name}.bias")) if b.has(f"{name}.bias") else y

    def _to_half(self, x: str) -> str:
        return self.builder.node("Cast", x, to=10) if self.half else x

    def _to_float(self, x: str) -> str:
        return self.builder.node("Cast", x, to=1) if self.half else x
