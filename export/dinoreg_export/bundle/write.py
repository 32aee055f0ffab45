"""Export of a checkpoint as a bundle: graphs, a weights file, a manifest and a licence notice."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from dinoreg_rt.bundle.manifest import (
    FINAL_ONLY,
    BundleFile,
    Graph,
    Manifest,
    Normalisation,
    Precision,
    Source,
    Verification,
    file_sha256,
    write_manifest,
)
from dinoreg_rt.errors import ConfigError

from ..checkpoint.architecture import Architecture, VitArchitecture, Weights
from ..checkpoint.chosen_layers import canonical_layers
from ..verify.compare import check_same_tokens, compare, passes, refusal
from .files import WEIGHTS_NAME, GraphFile, Progress, write_files
from .in_place import staged
from .memory import memory_errors

NOTICE_NAME = "LICENSE"
NormalisationName = Literal["imagenet", "satellite", "none"]
#: Normalisations of pixels in 0..1 in the training of the released weights, on photographs
#: (ImageNet) or satellite images.
NORMALISATIONS: dict[NormalisationName, Normalisation] = {
    "imagenet": Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "satellite": Normalisation(mean=(0.430, 0.411, 0.296), std=(0.213, 0.156, 0.143)),
    "none": Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}
#: Grid of patches (rows, columns) of the verified picture if every exported size has more than
#: `_MOST_PROBE_PATCHES` patches: the reference takes minutes for the attention of a large grid.
_PROBE_PATCHES = (10, 7)
_MOST_PROBE_PATCHES = 400
#: Largest side of an input in pixels: a square of it would take a terabyte of attention scores for
#: each head.
_MOST_PIXELS = 16384

#: Graph that is compared with the probe and removed.
_FUSED_PROBE = "probe_cuda.onnx"

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")


def export_bundle(  # noqa: PLR0913 - the rare ones are keyword-only
    weights: Weights,
    source: Source,
    sizes: Sequence[tuple[int, int]],
    folder: Path,
    *,
    layers: Sequence[str] = FINAL_ONLY,
    precision: Precision = "fp32",
    normalisation: NormalisationName = "imagenet",
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write and verify a bundle; if anything fails, nothing is left.

    Args:
        weights: open checkpoint, or random weights.
        source: entry about the weights for the manifest.
        sizes: heights and widths in pixels, multiples of the patch.
        folder: bundle to write; may exist only with `force`, and then as a bundle that holds
            nothing else.
        layers: layers whose tokens are joined along the channels, as for `canonical_layers`.
        precision: precision of the products; see `graph.layers.STORAGE`.
        normalisation: normalisation of the pixels.
        force: replace an existing bundle.
        progress: called with the name of a stage and its completed fraction.

    Raises:
        ConfigError: a size, layer or precision cannot be exported.
        InputError: the weights are damaged, or the graph fails its verification.
        OutputError: `folder` is in the way, holds the checkpoint, or cannot be written.
        ResourceError: there is too little memory.
    """
    a = weights.architecture
    check_sizes(a, sizes)
    layers = canonical_layers(a, layers)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"'{precision}' is not a precision; choose one of {', '.join(PRECISIONS)}"
        )
    report = progress or (lambda stage, fraction: None)
    with staged(folder, force=force, reads=weights.files) as work, memory_errors():
        graphs, verification = _write_files(weights, sizes, work, precision, report, layers)
        (work / NOTICE_NAME).write_text(_notice(a, source), "utf-8")
        fused = [graph.fused for graph in graphs if graph.fused is not None]
        names = [WEIGHTS_NAME, *(graph.file for graph in graphs), *fused, NOTICE_NAME]
        manifest = Manifest(
            model=a.name,
            patch=a.patch,
            channels=a.dim * len(layers),
            layers=layers,
            blocks=a.depth if isinstance(a, VitArchitecture) else None,
            precision=precision,
            normalisation=NORMALISATIONS[normalisation],
            graphs=tuple(graphs),
            files=tuple(_describe(work / name) for name in names),
            source=source,
            licence=a.licence,
            verification=verification,
            exporter=f"dinoreg-rt {exporter_version()}",
        )
        write_manifest(manifest, work)
    return manifest


def normalisation_of(files: Sequence[Path]) -> NormalisationName:
    """Return the normalisation that the released name of a checkpoint implies.

    Args:
        files: files of the checkpoint. In the path of the first one, the last part that names the
            training data decides: the file itself, or the folder of a ``model.safetensors``.
    """
    for part in reversed(files[0].absolute().parts if files else ()):
        if "sat493m" in part.lower():
            return "satellite"
        if "lvd1689m" in part.lower():
            return "imagenet"
    return "imagenet"


def check_sizes(a: Architecture, sizes: Sequence[tuple[int, int]]) -> None:
    """Check that sizes are multiples of the patch and not excessive.

    Raises:
        ConfigError: they are not; the message names the nearest size.
    """
    if not sizes:
        raise ConfigError("no input size was given; give at least one, such as 1792x1536")
    for height, width in sizes:
        if max(height, width) > _MOST_PIXELS:
            raise ConfigError(
                f"the input size {max(height, width):.6g} is above {_MOST_PIXELS} pixels, more "
                "than any encoder can process; use a size such as 1792x1536"
            )
        if height % a.patch or width % a.patch or min(height, width) < a.patch:
            near = "x".join(str(max(1, round(n / a.patch)) * a.patch) for n in (height, width))
            raise ConfigError(
                f"{height}x{width} is not a multiple of {a.name}'s patch of {a.patch} pixels; the "
                f"nearest size is {near}"
            )


def _write_files(
    weights: Weights,
    sizes: Sequence[tuple[int, int]],
    work: Path,
    precision: Precision,
    report: Progress,
    layers: tuple[str, ...],
) -> tuple[list[Graph], Verification]:
    """Write the weights and graphs, and compare one graph with the reference."""
    files = [GraphFile(f"encoder_{h}x{w}.onnx", (h, w)) for h, w in sorted(set(sizes))]
    probe = _probe(weights.architecture, files, precision)
    fused: list[GraphFile | None] = [None] * len(files)
    written = [*files, probe]
    if isinstance(weights.architecture, VitArchitecture) and precision != "int8":
        fused = [replace(f, name=f"{Path(f.name).stem}_cuda.onnx", fused=True) for f in files]
        written += [*(f for f in fused if f), replace(probe, name=_FUSED_PROBE, fused=True)]
    write_files(weights, list(dict.fromkeys(written)), work, precision, report, layers)
    report("verification", 0.0)
    found = compare(weights, work / probe.name, probe.size, precision, layers)
    if not passes(found):
        raise refusal(found, precision, _passing(weights, probe, work, precision, layers))
    if any(fused):
        check_same_tokens(work / probe.name, work / _FUSED_PROBE, probe.size)
        (work / _FUSED_PROBE).unlink()
    if probe not in files:
        (work / probe.name).unlink()
    report("verification", 1.0)
    graphs = [
        Graph(file=f.name, height=f.size[0], width=f.size[1], fused=other and other.name)
        for f, other in zip(files, fused, strict=True)
    ]
    return graphs, found


def _probe(a: Architecture, files: Sequence[GraphFile], precision: Precision) -> GraphFile:
    """Return the graph that is compared with the reference."""
    smallest = min(files, key=lambda file: file.size[0] * file.size[1])
    small = smallest.size[0] * smallest.size[1] <= _MOST_PROBE_PATCHES * a.patch**2
    if small and precision != "bf16":
        return smallest
    rows, columns = _PROBE_PATCHES
    size = smallest.size if small else (rows * a.patch, columns * a.patch)
    return GraphFile("probe.onnx", size, verified=True)


def _passing(
    weights: Weights, probe: GraphFile, work: Path, refused: Precision, layers: tuple[str, ...]
) -> Precision | None:
    """Return the smallest other precision whose graph agrees with the checkpoint, if any."""
    others: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
    for precision in others[others.index(refused) + 1 :] if refused in others else others:
        with tempfile.TemporaryDirectory(dir=work) as name:
            graph = replace(probe, verified=True)
            write_files(weights, [graph], Path(name), precision, layers=layers)
            if passes(compare(weights, Path(name) / probe.name, probe.size, precision, layers)):
                return precision
    return None


def _describe(path: Path) -> BundleFile:
    return BundleFile(name=path.name, size_bytes=path.stat().st_size, sha256=file_sha256(path))


def _notice(a: Architecture, source: Source) -> str:
    if source.random_weights:
        return f"Random weights in the shape of {a.name}, for tests of function and speed.\n"
    return (
        f"The weights in this folder were converted from {source.checkpoint}\n"
        f"(sha256 {source.sha256}).\n\n"
        "They remain under the licence of that checkpoint. For the released weights of\n"
        f"{a.name} this is the {a.licence}.\n"
        "This folder may be redistributed only under that licence and with a copy of it.\n"
    )


def exporter_version() -> str:
    """Return the version of this package."""
    try:
        return metadata.version("dinoreg-rt")
    except metadata.PackageNotFoundError:
        return "(not installed)"
