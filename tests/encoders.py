"""Small encoders as bundles, made without weights, and registrations that use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import dinoreg_rt
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

if TYPE_CHECKING:
    from phantoms import Phantom

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def config(bundle: Path, **more: object) -> dinoreg_rt.RegistrationConfig:
    """Return a configuration in which nothing but the encoder's features is compared.

    Tokens are not standardised: in a phantom of blobs, the mean of a slice is most of what
    distinguishes it from the next one. Features alone need more iterations than the default, which
    is meant for the refinement with local correlation.
    """
    values = {"encoder": str(bundle), "threads": 1, "initial": "none", "device": "cpu"}
    values |= {"token_centre": "none", "token_scale": "none", "body_mask": "off"}
    values |= {"correlation_weight": 0.0, "iterations": (40, 20)} | more
    return dinoreg_rt.RegistrationConfig(**values)


def run(
    phantom: Phantom, settings: dinoreg_rt.RegistrationConfig, **more: object
) -> dinoreg_rt.RegistrationResult:
    """Register a phantom."""
    return dinoreg_rt.register(phantom.fixed, phantom.moving, config=settings, **more)


def errors_voxels(phantom: Phantom, result: dinoreg_rt.RegistrationResult) -> np.ndarray:
    """Return the errors of a field in voxels of 2 mm."""
    return phantom.errors_mm(result.displacement.vectors_mm) / 2.0


def gabor_bank(patch: int, orientations: int = 6) -> np.ndarray:
    """Return even and odd filters at three scales and a blur, (channels, 1, k, k)."""
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
    """Write a bank of Gabor filters on the mean of the channels as a bundle.

    Each further layer is the bank of the previous one turned by a quarter.
    """
    folder.mkdir(parents=True)
    bank = np.concatenate([np.rot90(gabor_bank(patch), i, (2, 3)) for i in range(len(layers))])
    graphs = [_write_graph(folder, size, bank, patch) for size in sizes]
    settings: dict[str, object] = {
        "model": "gabor-bank",
        "patch": patch,
        "channels": len(bank),
        "layers": tuple(layers),
        "precision": "fp32",
        "normalisation": IMAGENET,
        "graphs": tuple(graphs),
        "files": tuple(describe(folder / graph.file) for graph in graphs),
        "source": Source(
            checkpoint="none", sha256="0" * 64, layout="none", random_weights=random_weights
        ),
        "licence": "none",
        "exporter": "the tests",
    }
    write_manifest(Manifest(**(settings | manifest)), folder)
    return folder


def describe(path: Path) -> BundleFile:
    """Return a file's entry in the manifest."""
    return BundleFile(name=path.name, size_bytes=path.stat().st_size, sha256=file_sha256(path))


def _write_graph(folder: Path, size: tuple[int, int], bank: np.ndarray, patch: int) -> Graph:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    height, width = size
    value = helper.make_tensor_value_info
    grid = [height // patch, width // patch, len(bank)]
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv", ["pixels", "bank"], ["planes"], strides=[patch] * 2, pads=[2 * patch] * 4
            ),
            helper.make_node("Transpose", ["planes"], ["tokens"], perm=[0, 2, 3, 1]),
        ],
        "gabor",
        [value("pixels", TensorProto.FLOAT, ["N", 3, height, width])],
        [value("tokens", TensorProto.FLOAT, ["N", *grid])],
        [numpy_helper.from_array(np.repeat(bank, 3, axis=1) / np.float32(3), "bank")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    name = f"encoder_{height}x{width}.onnx"
    onnx.save(model, str(folder / name))
    return Graph(file=name, height=height, width=width)
