"""Weights files and graphs of encoders of either family."""

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
    """Copy the tensors that the layers need into the weights file, one at a time.

    Args:
        weights: the encoder.
        file: the file that the graphs will refer to.
        storage: type of the weights of products; norms and scales stay float32.
        progress: called with the completed fraction.
        layers: layers whose tokens the graphs give, named as in a manifest.
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
    *,
    fused: bool = False,
) -> None:
    """Write the graph of one input size: ``pixels`` -> ``tokens`` (N, rows, columns, C).

    With the final layer, the graph also gives the class token, ``cls`` (N, C).

    Args:
        weights: the encoder.
        file: its weights file, written with `arithmetic.storage`.
        path: the graph, in the folder of the weights file.
        size: height and width in pixels, multiples of the patch.
        arithmetic: arithmetic of the products.
        layers: layers whose tokens are joined along the channels.
        fused: whether a transformer's attention is one node, see `vit.build`.
    """
    a, builder = weights.architecture, GraphBuilder(file)
    height, width = size
    rows, columns = grid = (height // a.patch, width // a.patch)
    cls: str | None
    if isinstance(a, VitArchitecture):
        tokens, cls = vit.build(a, weights, builder, grid, arithmetic, layers, fused=fused)
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
