"""The model files of a bundle: one weights file and a graph for each input size."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoreg_rt.bundle.manifest import FINAL_ONLY, Precision

from ..checkpoint.architecture import Weights
from ..graph.builder import WeightsFile
from ..graph.forward import write_graph, write_weights
from ..graph.layers import STORAGE, arithmetic
from .quantise import SharedWeights, quantise

WEIGHTS_NAME = "weights.bin"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class GraphFile:
    """A graph that is to be written.

    Attributes:
        name: of the file.
        size: (height, width) in pixels.
        verified: it is only for the comparison on ONNX Runtime's CPU.
        fused: attention is one node, for ONNX Runtime's CUDA provider.
    """

    name: str
    size: tuple[int, int]
    verified: bool = False
    fused: bool = False


def write_files(
    weights: Weights,
    graphs: Sequence[GraphFile],
    folder: Path,
    precision: Precision,
    report: Progress = lambda stage, fraction: None,
    layers: Sequence[str] = FINAL_ONLY,
) -> None:
    """Write the weights file and the graphs into an existing folder.

    `layers` are those whose tokens the graphs give, as a manifest has them.
    """
    if precision == "int8":
        _write_int8(weights, graphs, folder, report, layers)
        return

    def progress(done: float) -> None:
        report("weights", done)

    with (folder / WEIGHTS_NAME).open("wb") as stream:
        file = WeightsFile(stream, WEIGHTS_NAME)
        write_weights(weights, file, STORAGE[precision], progress, layers)
    for i, graph in enumerate(graphs):
        how = arithmetic(precision, verified=graph.verified)
        target = folder / graph.name
        write_graph(weights, file, target, graph.size, how, layers, fused=graph.fused)
        report("graphs", (i + 1) / len(graphs))


def _write_int8(
    weights: Weights,
    graphs: Sequence[GraphFile],
    folder: Path,
    report: Progress,
    layers: Sequence[str],
) -> None:
    floats = folder / "float32"
    floats.mkdir()
    try:
        write_files(weights, graphs, floats, "fp32", report, layers)
        with (folder / WEIGHTS_NAME).open("wb") as stream:
            shared = SharedWeights(stream, WEIGHTS_NAME)
            for i, graph in enumerate(graphs):
                quantise(floats / graph.name, folder / graph.name, shared)
                report("quantisation", (i + 1) / len(graphs))
    finally:
        shutil.rmtree(floats)
