"""The forward graph of a vision transformer of the DINOv2 or DINOv3 family.

It uses plain operators of opset 18, so that ONNX Runtime, OpenVINO and TensorRT read the same file.
On request the attention is a node of ONNX Runtime's own instead, for which its CUDA provider has
fused kernels; those do not store the scores.
Half precision applies to the matrix products only. The residual sum, layer norms, softmax and
rotary positions stay float32; otherwise TensorRT engines of such encoders lose all accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dinoreg_rt.bundle.manifest import FINAL_LAYER

from ..checkpoint.architecture import VitArchitecture, Weights
from ..checkpoint.chosen_layers import blocks_needed
from .builder import ORT_DOMAIN, GraphBuilder, Storage, WeightsFile
from .layers import Arithmetic, Layers
from .positions import resize_positions, rotary_tables

#: Most bytes of attention scores held at a time for each slice: at 112 x 96 tokens, the scores of
#: all sixteen heads of ViT-L would take 7.4 GB.
SCORE_BYTES = 512 << 20


def write_weights(
    a: VitArchitecture,
    weights: Weights,
    file: WeightsFile,
    storage: Storage,
    progress: Callable[[float], None],
    layers: Sequence[str],
) -> None:
    """Copy the tensors that the layers need into the weights file, one at a time.

    Linear layers are transposed. q, k and v form one matrix, with the attention's scale in q.
    """
    names = set(weights.names())
    tokens = [weights.read("cls_token")]
    if a.register_tokens:
        tokens.append(weights.read("register_tokens"))
    if a.generation == 3:
        file.add("prefix", np.concatenate(tokens, axis=1))
    else:
        for name, value in zip(("cls_token", "register_tokens"), tokens, strict=False):
            file.add(name, value)
    for name in ("patch.weight", "patch.bias"):
        file.add(name, weights.read(name), storage)
    depth = blocks_needed(a, layers)
    for n in range(depth):
        block = f"blocks.{n}."
        _write_qkv(a, weights, names, file, block, storage)
        for part in ("o", "up", "down", *(("gate",) if a.gated else ())):
            file.add(f"{block}{part}.weight", weights.read(f"{block}{part}.weight").T, storage)
            file.add(f"{block}{part}.bias", weights.read(f"{block}{part}.bias"), storage)
        for i in (1, 2):
            for name in (f"norm{i}.weight", f"norm{i}.bias", f"scale{i}"):
                file.add(block + name, weights.read(block + name))
        progress((n + 1) / depth)
    if FINAL_LAYER in layers:
        for name in ("norm.weight", "norm.bias"):
            file.add(name, weights.read(name))


def _write_qkv(
    a: VitArchitecture,
    weights: Weights,
    names: set[str],
    file: WeightsFile,
    block: str,
    storage: Storage,
) -> None:
    scales = (np.float32(a.head_dim**-0.5), np.float32(1), np.float32(1))
    parts = [s * weights.read(f"{block}{p}.weight") for p, s in zip("qkv", scales, strict=True)]
    file.add(f"{block}qkv.weight", np.concatenate(parts).T, storage)
    present = [f"{block}{p}.bias" in names for p in "qkv"]
    if any(present):
        none = np.zeros(a.dim, np.float32)
        biases = [
            s * weights.read(f"{block}{p}.bias") if there else none
            for p, s, there in zip("qkv", scales, present, strict=True)
        ]
        file.add(f"{block}qkv.bias", np.concatenate(biases), storage)


def build(
    a: VitArchitecture,
    weights: Weights,
    builder: GraphBuilder,
    grid: tuple[int, int],
    arithmetic: Arithmetic,
    layers: Sequence[str],
    *,
    fused: bool = False,
) -> tuple[str, str | None]:
    """Add the forward pass of ``pixels`` (N, 3, H, W).

    With `fused`, attention is the node ``com.microsoft.MultiHeadAttention``.

    Returns:
        The names of the tokens (N, rows, columns, C), of all layers in their order, and of the
        class token (N, C), None without the final layer.
    """
    g = _VitGraph(a, builder, grid, arithmetic, fused=fused)
    x = g.embed(weights)
    found = {}
    for n in range(blocks_needed(a, layers)):
        x = g.block(x, f"blocks.{n}.")
        if str(n) in layers:
            found[str(n)] = g.patches(x)
    cls = None
    if FINAL_LAYER in layers:
        x = g.layers.norm(x, "norm")
        found[FINAL_LAYER], cls = g.patches(x), g.class_token(x)
    tokens = [found[layer] for layer in layers]
    return tokens[0] if len(tokens) == 1 else builder.node("Concat", *tokens, axis=3), cls


class _VitGraph:
    """The parts of the graph, in the order of the forward pass."""

    def __init__(
        self,
        a: VitArchitecture,
        builder: GraphBuilder,
        grid: tuple[int, int],
        arithmetic: Arithmetic,
        *,
        fused: bool,
    ) -> None:
        self.a, self.builder, self.fused = a, builder, fused
        self.rows, self.columns = grid
        self.layers = Layers(builder, arithmetic, a.epsilon)
        self.count = a.prefix_tokens + self.rows * self.columns
        if a.generation == 3:
            tables = rotary_tables(*grid, a.head_dim, a.rope_base, a.prefix_tokens)
            # With `fused` the heads follow the tokens: (N, tokens, heads, head_dim).
            self.cos, self.sin = (builder.constant(t[:, None] if fused else t) for t in tables)

    def embed(self, weights: Weights) -> str:
        """Embed the patches, and put the tokens that all images share in front."""
        b, a = self.builder, self.a
        patches = self.layers.convolution("pixels", "patch", strides=[a.patch, a.patch])
        flat = b.node("Reshape", patches, b.integers(0, a.dim, -1))
        x = b.node("Transpose", flat, perm=[0, 2, 1])
        if a.generation == 3:
            return b.node("Concat", self._for_each_image(x, b.weight("prefix")), x, axis=1)
        position = resize_positions(
            weights.read("position"), self.rows, self.columns, antialias=a.register_tokens > 0
        )
        x = b.node("Add", x, b.constant(position[:, 1:]))
        cls = b.node("Add", b.weight("cls_token"), b.constant(position[:, :1]))
        front = [self._for_each_image(x, cls)]
        if a.register_tokens:
            front.append(self._for_each_image(x, b.weight("register_tokens")))
        return b.node("Concat", *front, x, axis=1)

    def _for_each_image(self, x: str, tokens: str) -> str:
        """Repeat (1, T, C) over the batch without Expand or Tile, which engines mishandle."""
        b = self.builder
        first = b.node("Slice", x, b.integers(0), b.integers(1), b.integers(1))
        return b.node("Add", b.node("Mul", first, b.constant(np.zeros(1, np.float32))), tokens)

    def block(self, x: str, name: str) -> str:
        """Add a block: attention and feed-forward layer, each scaled and added to x."""
        b, layers = self.builder, self.layers
        attention = self._fused_attention if self.fused else self._attention
        y = attention(layers.norm(x, f"{name}norm1"), name)
        x = b.node("Add", x, b.node("Mul", y, b.weight(f"{name}scale1")))
        y = self._feed_forward(layers.norm(x, f"{name}norm2"), name)
        return b.node("Add", x, b.node("Mul", y, b.weight(f"{name}scale2")))

    def patches(self, x: str) -> str:
        """Cut out the patch tokens and arrange them as a grid."""
        b, a = self.builder, self.a
        patches = b.node(
            "Slice", x, b.integers(a.prefix_tokens), b.integers(self.count), b.integers(1)
        )
        return b.node("Reshape", patches, b.integers(0, self.rows, self.columns, a.dim))

    def class_token(self, x: str) -> str:
        """Cut out the first token."""
        b = self.builder
        cls = b.node("Slice", x, b.integers(0), b.integers(1), b.integers(1))
        return b.node("Squeeze", cls, b.integers(1))

    def _attention(self, x: str, name: str) -> str:
        b, a = self.builder, self.a
        y = self.layers.linear(x, f"{name}qkv")
        y = b.node("Reshape", y, b.integers(0, self.count, 3 * a.heads, a.head_dim))
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
        return self._project(y, f"{name}o")

    def _fused_attention(self, x: str, name: str) -> str:
        b, a = self.builder, self.a
        y = self.layers.linear(x, f"{name}qkv")
        qk, v = b.nodes("Split", y, b.integers(2 * a.dim, a.dim), outputs=2, axis=2)
        if a.generation == 3:
            qk = b.node("Reshape", qk, b.integers(0, self.count, 2 * a.heads, a.head_dim))
            qk = b.node("Reshape", self._rotate(qk), b.integers(0, self.count, 2 * a.dim))
        q, k = b.nodes("Split", qk, outputs=2, axis=2, num_outputs=2)
        # The scale is in the weights of q.
        how = {"domain": ORT_DOMAIN, "num_heads": a.heads, "scale": 1.0}
        return self._project(self.layers.product("MultiHeadAttention", q, k, v, **how), f"{name}o")

    def _head_groups(self) -> list[int]:
        """Return the numbers of heads whose scores are held at the same time."""
        most = max(1, SCORE_BYTES // (4 * self.count**2))
        whole, rest = divmod(self.a.heads, min(most, self.a.heads))
        return [min(most, self.a.heads)] * whole + ([rest] if rest else [])

    def _scores_times_values(self, q: str, k: str, v: str) -> str:
        b, layers = self.builder, self.layers
        scores = layers.product("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
        share = b.node("Softmax", layers.restore(scores), axis=-1)
        return layers.product("MatMul", layers.lower(share), v)

    def _rotate(self, x: str) -> str:
        b = self.builder
        x = self.layers.restore(x)
        low, high = b.nodes("Split", x, outputs=2, axis=3, num_outputs=2)
        half = b.node("Concat", b.node("Neg", high), low, axis=3)
        rotated = b.node("Add", b.node("Mul", x, self.cos), b.node("Mul", half, self.sin))
        return self.layers.lower(rotated)

    def _feed_forward(self, x: str, name: str) -> str:
        b = self.builder
        up = self.layers.restore(self.layers.linear(x, f"{name}up"))
        if self.a.gated:
            gate = self.layers.restore(self.layers.linear(x, f"{name}gate"))
            hidden = b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)
        else:
            hidden = self.layers.gelu(up)
        return self._project(hidden, f"{name}down")

    def _project(self, x: str, name: str) -> str:
        return self.layers.restore(self.layers.linear(x, name))
