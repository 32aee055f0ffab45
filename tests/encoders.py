"""Small encoders as bundles, made without weights, to test the path from ONNX to field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoreg_rt.bundle.manifest import (
    FINAL_ONLY,
    BundleFile,
    Graph,
    Manifest,
    Normalisation,
    Source,
    file_sha256,
    write_manifest,
)

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def gabor_bank(patch: int, orientations: int = 6) -> np.ndarray:
    """Even and odd filters at three scales and a blur, (channels, 1, k, k), k = 5 patches."""
    k = 5 * patch
    y, x = np.meshgrid(*[(np.arange(k) - (k - 1) / 2) / patch] * 2, indexing="ij")
    filters = [np.exp(-(x**2 + y**2) / 2)]
    for wavelength in (1.5, 2.5, 4.0):
        envelope = np.exp(-(x**2 + y**2) / (2 * (0.45 * wavelength) ** 2))
        for angle in np.arange(orientations) * np.pi / orientations:
            phase = 2 * np.pi / wavelength * (x * np.cos(angle) + y * np.sin(angle))
            even = envelope * np.cos(phase)
            filters += [even - envelope * even.sum() / envelope.sum(), envelope * np.sin(phase)]
    bank = np.stack(filters)[:, None]
    return (bank / np.abs(bank).sum(axis=(1, 2, 3), keepdims=True)).astype(np.float32)


def write_bundle(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    patch: int = 4,
    *,
    layers: Sequence[str] = FINAL_ONLY,
    random_weights: bool = False,
    **manifest: object,
) -> Path:
    """A bank of Gabor filters on the mean of the channels, as a bundle.

    Of several layers each further one is the bank of the last turned by a quarter.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    bank = np.concatenate([np.rot90(gabor_bank(patch), i, (2, 3)) for i in range(len(layers))])
    weights = np.repeat(bank, 3, axis=1) / np.float32(3)
    graphs = []
    for height, width in sizes:
        rows, columns = height // patch, width // patch
        nodes = [
            helper.make_node(
                "Conv", ["pixels", "bank"], ["planes"], strides=[patch] * 2, pads=[2 * patch] * 4
            ),
            helper.make_node("Transpose", ["planes"], ["tokens"], perm=[0, 2, 3, 1]),
        ]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "gabor",
            [value("pixels", TensorProto.FLOAT, ["N", 3, height, width])],
            [value("tokens", TensorProto.FLOAT, ["N", rows, columns, len(bank)])],
            [numpy_helper.from_array(weights, "bank")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        name = f"encoder_{height}x{width}.onnx"
        onnx.save(model, str(folder / name))
        graphs.append(Graph(file=name, height=height, width=width))
    settings: dict[str, object] = {
        "model": "gabor-bank",
        "patch": patch,
        "channels": len(bank),
        "layers": tuple(layers),
        "precision": "fp32",
        "normalisation": IMAGENET,
        "graphs": tuple(graphs),
        "files": tuple(_describe(folder / graph.file) for graph in graphs),
        "source": Source(
            checkpoint="none", sha256="0" * 64, layout="none", random_weights=random_weights
        ),
        "licence": "none",
        "exporter": "the tests",
    }
    write_manifest(Manifest(**(settings | manifest)), folder)
    return folder


def _describe(path: Path) -> BundleFile:
    return BundleFile(name=path.name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
