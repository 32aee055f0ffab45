"""The forward graph of a ConvNeXt of the DINOv3 family (structure: arXiv 2201.03545).

As in `vit`, products and convolutions may use half precision; the residual sum and the layer norms
do not.
"""

from __future__ import annotations

from collections.abc import Callable

from ..checkpoint.architecture import ConvNextArchitecture, Weights
from .builder import GraphBuilder, Storage, WeightsFile
from .layers import Arithmetic, Layers

_TO_CHANNELS_LAST = [0, 2, 3, 1]
_TO_CHANNELS_FIRST = [0, 3, 1, 2]


def write_weights(
    a: ConvNextArchitecture,
    weights: Weights,
    file: WeightsFile,
    storage: Storage,
    progress: Callable[[float], None],
) -> None:
    """Copy every tensor into the weights file, one at a time, with linear layers transposed."""
    names = list(a.parameters())
    for i, name in enumerate(names):
        values = weights.read(name)
        in_norm = "norm." in name or name.endswith(".scale")
        file.add(name, values.T if values.ndim == 2 else values, "float32" if in_norm else storage)
        progress((i + 1) / len(names))


def build(
    a: ConvNextArchitecture, builder: GraphBuilder, arithmetic: Arithmetic
) -> tuple[str, str]:
    """Add the forward pass of ``pixels`` (N, 3, H, W).

    Returns:
        The names of the tokens (N, rows, columns, C) and of their normalised mean (N, C).
    """
    b, layers = builder, Layers(builder, arithmetic, a.epsilon)
    x = "pixels"
    for s, depth in enumerate(a.depths):
        x = _reduce(layers, x, f"stages.{s}.", a.steps[s], first=s == 0)
        for n in range(depth):
            x = _block(layers, x, f"stages.{s}.blocks.{n}.", a.dims[s], a.window)
    last = b.node("Transpose", x, perm=_TO_CHANNELS_LAST)
    mean = b.node("ReduceMean", last, b.integers(1, 2), keepdims=0)
    return layers.norm(last, "norm"), layers.norm(mean, "norm")


def _reduce(layers: Layers, x: str, name: str, step: int, *, first: bool) -> str:
    """Reduce the grid by `step`; the norm follows the first reduction and precedes the others."""
    if not first:
        x = _norm_channels(layers, x, f"{name}reduce_norm")
    x = layers.convolution(x, f"{name}reduce", strides=[step, step])
    return _norm_channels(layers, x, f"{name}reduce_norm") if first else x


def _norm_channels(layers: Layers, x: str, name: str) -> str:
    """Normalise (N, C, H, W) over the channels."""
    b = layers.builder
    last = layers.norm(b.node("Transpose", x, perm=_TO_CHANNELS_LAST), name)
    return b.node("Transpose", last, perm=_TO_CHANNELS_FIRST)


def _block(layers: Layers, x: str, name: str, channels: int, window: int) -> str:
    """Add a block: depthwise convolution, norm and feed-forward layer, scaled and added to x."""
    b = layers.builder
    y = layers.convolution(x, f"{name}depthwise", group=channels, pads=[window // 2] * 4)
    y = layers.norm(b.node("Transpose", y, perm=_TO_CHANNELS_LAST), f"{name}norm")
    y = layers.gelu(layers.restore(layers.linear(y, f"{name}up")))
    y = layers.restore(layers.linear(y, f"{name}down"))
    y = b.node("Mul", y, b.weight(f"{name}scale"))
    return b.node("Add", x, b.node("Transpose", y, perm=_TO_CHANNELS_FIRST))
