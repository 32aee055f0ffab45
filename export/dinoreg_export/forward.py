"""Weights and graphs of an encoder, whichever family it is of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import convnext, vit
from .architecture import VitArchitecture
from .layers import Arithmetic
from .onnx_graph import GraphBuilder, Storage, WeightsFile
from .weights import Weights


def write_weights(
    weights: Weights,
    file: WeightsFile,
    storage: Storage,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Every tensor as the graphs want it, read and written one by one.

    Args:
        weights: the encoder.
        file: what the graphs will refer to.
        storage: type of the products' weights; norms and scales stay float32.
        progress: called with the finished fraction.
    """
    a = weights.architecture
    if isinstance(a, VitArchitecture):
        vit.write_weights(a, weights, file, storage, progress)
    else:
        convnext.write_weights(a, weights, file, storage, progress)


def write_graph(
    weights: Weights,
    file: WeightsFile,
    path: Path,
    size: tuple[int, int],
    arithmetic: Arithmetic,
) -> None:
    """The graph for one (height, width): ``pixels`` -> ``tokens`` (N, rows, columns, C), ``cls``.

    Args:
        weights: the encoder.
        file: holds them, written with `arithmetic.storage`.
        path: of the graph, in the folder of the weights file.
        size: in pixels, multiples of the patch.
        arithmetic: of the products.
    """
    a, builder = weights.architecture, GraphBuilder(file)
    height, width = size
    rows, columns = grid = (height // a.patch, width // a.patch)
    if isinstance(a, VitArchitecture):
        tokens, cls = vit.build(a, weights, builder, grid, arithmetic)
    else:
        tokens, cls = convnext.build(a, builder, arithmetic)
    builder.rename(tokens, "tokens")
    builder.rename(cls, "cls")
    builder.save(
        path,
        [("pixels", ("N", 3, height, width))],
        [("tokens", ("N", rows, columns, a.dim)), ("cls", ("N", a.dim))],
    )
