"""Weights and graphs of an encoder, whichever family it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dinoreg_rt.bundle.manifest import FINAL_ONLY

from ..checkpoint.architecture import VitArchitecture, Weights
from . import convnext, vit
from .builder import GraphBuilder, Storage, WeightsFile
from .layers import Arithmetic


def write_weights(
    weights: Weights,
    file: WeightsFile,
    storage: Storage,
    progress: Callable[[float], None] = lambda fraction: None,
    layers: Sequence[str] = FINAL_ONLY,
) -> None:
    """Every tensor that the layers need, as the graphs want it, read and written one by one.

    Args:
        weights: the encoder.
        file: what the graphs will refer to.
        storage: type of the products' weights; norms and scales stay float32.
        progress: called with the finished fraction.
        layers: whose tokens are wanted, as a manifest has them.
    """
    a = weights.architecture
    if isinstance(a, VitArchitecture):
        vit.write_weights(a, weights, file, storage, progress, layers)
    else:
        convnext.write_weights(a, weights, file, storage, progress)


def write_graph(
    weights: Weights,
    file: WeightsFile,
    path: Path,
    size: tuple[int, int],
    arithmetic: Arithmetic,
    layers: Sequence[str] = FINAL_ONLY,
) -> None:
    """The graph for one (height, width): ``pixels`` -> ``tokens`` (N, rows, columns, C).

    With the final layer also the class token, ``cls``.

    Args:
        weights: the encoder.
        file: holds them, written with `arithmetic.storage`.
        path: of the graph, in the folder of the weights file.
        size: in pixels, multiples of the patch.
        arithmetic: of the products.
        layers: whose tokens are wanted, joined along the channels.
    """
    a, builder = weights.architecture, GraphBuilder(file)
    height, width = size
    rows, columns = grid = (height // a.patch, width // a.patch)
    cls: str | None
    if isinstance(a, VitArchitecture):
        tokens, cls = vit.build(a, weights, builder, grid, arithmetic, layers)
    else:
        tokens, cls = convnext.build(a, builder, arithmetic)
    builder.rename(tokens, "tokens")
    outputs: list[tuple[str, Sequence[int | str]]] = [
        ("tokens", ("N", rows, columns, len(layers) * a.dim))
    ]
    if cls is not None:
        builder.rename(cls, "cls")
        outputs.append(("cls", ("N", a.dim)))
    builder.save(path, [("pixels", ("N", 3, height, width))], outputs)
