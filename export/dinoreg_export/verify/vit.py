"""The forward pass of a vision transformer in NumPy: plain, layer by layer, in float32.

It was written from the papers, independently of the graph that it verifies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dinoreg_rt.bundle.manifest import FINAL_LAYER

from ..checkpoint.architecture import VitArchitecture, Weights
from ..graph.positions import resize_positions
from .layers import Floats, gelu, norm


def encode(
    a: VitArchitecture, weights: Weights, pixels: Floats, layers: Sequence[str]
) -> tuple[Floats, Floats | None]:
    """Compute patch tokens and the class token as `reference.encode` does."""
    n, _, height, width = pixels.shape
    rows, columns = height // a.patch, width // a.patch
    cut = pixels.reshape(n, 3, rows, a.patch, columns, a.patch).transpose(0, 2, 4, 1, 3, 5)
    kernel = weights.read("patch.weight").reshape(a.dim, -1)
    x = cut.reshape(n, rows * columns, -1) @ kernel.T + weights.read("patch.bias")
    front = [weights.read("cls_token")]
    if a.generation == 2:
        position = resize_positions(
            weights.read("position"), rows, columns, antialias=a.register_tokens > 0
        )
        x = x + position[:, 1:]
        front[0] = front[0] + position[:, :1]
    if a.register_tokens:
        front.append(weights.read("register_tokens"))
    prefix = np.concatenate(front, axis=1)
    x = np.concatenate([np.repeat(prefix, n, axis=0), x], axis=1)
    names = set(weights.names())
    outputs = {}
    for i in range(a.depth):
        x = _block(a, weights, names, x, f"blocks.{i}.", (rows, columns))
        if str(i) in layers:
            outputs[str(i)] = x
        if outputs.keys() >= set(layers):
            break
    cls = None
    if FINAL_LAYER in layers:
        outputs[FINAL_LAYER] = norm(weights, x, "norm", a.epsilon)
        cls = outputs[FINAL_LAYER][:, 0]
    tokens = np.concatenate([outputs[name][:, a.prefix_tokens :] for name in layers], axis=-1)
    return tokens.reshape(n, rows, columns, -1), cls


def _block(
    a: VitArchitecture,
    weights: Weights,
    names: set[str],
    x: Floats,
    name: str,
    grid: tuple[int, int],
) -> Floats:
    def linear(values: Floats, layer: str) -> Floats:
        y = values @ weights.read(f"{name}{layer}.weight").T
        return y + weights.read(f"{name}{layer}.bias") if f"{name}{layer}.bias" in names else y

    y = norm(weights, x, f"{name}norm1", a.epsilon)
    q, k, v = (
        linear(y, part).reshape(*y.shape[:2], a.heads, a.head_dim).swapaxes(1, 2) for part in "qkv"
    )
    if a.generation == 3:
        q, k = (_rotate(t, *grid, a.rope_base) for t in (q, k))
    scores = q @ k.swapaxes(2, 3) / np.float32(math.sqrt(a.head_dim))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    y = (scores / scores.sum(-1, keepdims=True)) @ v
    x = x + weights.read(f"{name}scale1") * linear(y.swapaxes(1, 2).reshape(x.shape), "o")
    y = norm(weights, x, f"{name}norm2", a.epsilon)
    up = linear(y, "up")
    if a.gated:
        gate = linear(y, "gate")
        hidden = gate / (1 + np.exp(-gate)) * up
    else:
        hidden = gelu(up)
    return x + weights.read(f"{name}scale2") * linear(hidden, "down")


def _rotate(x: Floats, rows: int, columns: int, base: float) -> Floats:
    """Rotate each pair of channels (i, i + half) of a patch by its row or column angle."""
    quarter = x.shape[-1] // 4
    patches = x[:, :, -rows * columns :].reshape(*x.shape[:2], rows, columns, 4 * quarter)
    frequency = 2 * np.pi / base ** (np.arange(quarter) / quarter)
    y = (2 * (np.arange(rows) + 0.5) / rows - 1)[:, None, None] * frequency
    z = (2 * (np.arange(columns) + 0.5) / columns - 1)[None, :, None] * frequency
    full = (rows, columns, quarter)
    angle = np.concatenate([np.broadcast_to(y, full), np.broadcast_to(z, full)], axis=-1)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    low, high = patches[..., : 2 * quarter], patches[..., 2 * quarter :]
    rotated = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    out = x.copy()
    out[:, :, -rows * columns :] = rotated.reshape(*x.shape[:2], rows * columns, -1)
    return out
