"""The forward pass of a ConvNeXt in NumPy: plain, layer by layer, in float32 with channels last.

It was written from the paper, independently of the graph that it verifies.
"""

from __future__ import annotations

import math

import numpy as np

from ..checkpoint.architecture import ConvNextArchitecture, Weights
from .layers import Floats, gelu, norm


def encode(a: ConvNextArchitecture, weights: Weights, pixels: Floats) -> tuple[Floats, Floats]:
    """Compute patch tokens (N, rows, columns, C) and their normalised mean (N, C)."""
    x: Floats = pixels.transpose(0, 2, 3, 1)
    for s, depth in enumerate(a.depths):
        stage = f"stages.{s}."
        if s > 0:
            x = norm(weights, x, f"{stage}reduce_norm", a.epsilon)
        x = _join(weights, x, f"{stage}reduce", a.steps[s])
        if s == 0:
            x = norm(weights, x, f"{stage}reduce_norm", a.epsilon)
        for n in range(depth):
            x = _block(weights, x, f"{stage}blocks.{n}.", a.epsilon)
    return norm(weights, x, "norm", a.epsilon), norm(weights, x.mean((1, 2)), "norm", a.epsilon)


def _join(weights: Weights, x: Floats, name: str, step: int) -> Floats:
    """Convolve with a kernel and stride of `step`: a linear map of each square of pixels."""
    n, height, width, c = x.shape
    cut = x.reshape(n, height // step, step, width // step, step, c).transpose(0, 1, 3, 5, 2, 4)
    kernel = weights.read(f"{name}.weight")
    flat = cut.reshape(n, height // step, width // step, -1)
    result: Floats = flat @ kernel.reshape(len(kernel), -1).T + weights.read(f"{name}.bias")
    return result


def _block(weights: Weights, x: Floats, name: str, epsilon: float) -> Floats:
    kernel = weights.read(f"{name}depthwise.weight")[:, 0]
    side = math.isqrt(kernel[0].size)
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    y = np.zeros_like(x)
    for i in range(side):
        for j in range(side):
            y += padded[:, i : i + height, j : j + width] * kernel[:, i, j]
    y = norm(weights, y + weights.read(f"{name}depthwise.bias"), f"{name}norm", epsilon)
    hidden = gelu(y @ weights.read(f"{name}up.weight").T + weights.read(f"{name}up.bias"))
    y = hidden @ weights.read(f"{name}down.weight").T + weights.read(f"{name}down.bias")
    result: Floats = x + weights.read(f"{name}scale") * y
    return result
