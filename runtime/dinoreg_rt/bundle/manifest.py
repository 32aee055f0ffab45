"""The manifest of a bundle, a folder that holds an encoder as ONNX graphs with their weights.

The export writes it and the runtime reads it. Only files that it lists with their sha256 are
trusted, and no name may lead out of the folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..errors import InputError
from .onnx_wire import OnnxContent, scan_onnx

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
#: Name of the final layer: the last block after the final norm.
FINAL_LAYER = "final"
#: Layers of a bundle by default.
FINAL_ONLY: tuple[str, ...] = (FINAL_LAYER,)

Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: The final layer, or the number of a block whose output is taken before any norm.
LayerName = Annotated[str, Field(pattern=r"^(final|0|[1-9][0-9]{0,2})$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _plain_name(name: str) -> str:
    path = PurePosixPath(name)
    if len(path.parts) != 1 or name in (".", "..") or "\\" in name or "\0" in name:
        raise ValueError(f"'{name}' is not a plain file name inside the bundle")
    return name


FileName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


#: Mean and standard deviation of pixels in 0..1. No encoder comes near these bounds, within which
#: float32 divides safely.
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Std = Annotated[float, Field(ge=1e-6, le=1e6)]
#: Largest input size in pixels, and most channels of a token.
_MOST = 65536
#: Largest file size that file systems can represent.
_MOST_BYTES = 2**63 - 1


class Normalisation(_Frozen):
    """Mean and standard deviation per channel, of pixels in 0..1, that the encoder expects."""

    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]


class BundleFile(_Frozen):
    """One file of the bundle."""

    name: FileName
    size_bytes: int = Field(ge=0, le=_MOST_BYTES)
    sha256: Sha256


class Graph(_Frozen):
    """An ONNX file with a fixed input size and any batch size.

    It maps ``pixels``, float32 (N, 3, height, width) and normalised, to ``tokens``, float32
    (N, height / patch, width / patch, channels).

    Attributes:
        fused: the same graph with the attention of each block in one node, for ONNX Runtime's CUDA
            provider; None in older bundles and where there is no attention.
    """

    file: FileName
    height: int = Field(gt=0, le=_MOST)
    width: int = Field(gt=0, le=_MOST)
    fused: FileName | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All ONNX files of this input size."""
        return (self.file,) if self.fused is None else (self.file, self.fused)


class Source(_Frozen):
    """The checkpoint that the bundle was exported from."""

    checkpoint: str
    sha256: Sha256
    layout: Literal["huggingface", "original", "timm", "none"]
    random_weights: bool = False


class Verification(_Frozen):
    """Comparison of a graph in ONNX Runtime on the CPU with an independent float32 evaluation.

    Attributes:
        height, width: size of the picture in pixels.
        max_error: largest error of any channel of any token.
        mean_cosine: mean cosine between tokens.
        first_percentile_cosine: first percentile of these cosines.
        by_rounding: whether the verified graph has the same weights but rounds to bfloat16 before
            and after float32 products, because ONNX Runtime's CPU has no bfloat16 products.
    """

    height: int
    width: int
    max_error: float = Field(ge=0)
    mean_cosine: float = Field(ge=-1, le=1.000001)
    first_percentile_cosine: float = Field(ge=-1, le=1.000001)
    by_rounding: bool = False


class Manifest(_Frozen):
    """Everything the runtime needs to know about an encoder.

    Attributes:
        model: such as ``dinov3-vitl16``.
        patch: pixels per token along each axis.
        channels: of a token, of all its layers together.
        layers: whose tokens are joined along the channels, each with as many of them: ``final`` or
            the number of a block, counted from 0.
        blocks: that the encoder had before those beyond the layers were left out; None: not known,
            or no transformer.
        graphs: one for each input size, multiples of the patch; all read the same weights file.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str = Field(min_length=1)
    patch: int = Field(gt=0, le=64)
    channels: int = Field(gt=0, le=_MOST)
    layers: tuple[LayerName, ...] = Field(FINAL_ONLY, min_length=1)
    blocks: int | None = Field(None, gt=0, le=999)
    precision: Precision
    normalisation: Normalisation
    graphs: tuple[Graph, ...] = Field(min_length=1)
    files: tuple[BundleFile, ...] = Field(min_length=1)
    source: Source
    licence: str
    verification: Verification | None = None
    exporter: str

    @model_validator(mode="after")
    def _sizes_hold_whole_patches(self) -> Self:
        for graph in self.graphs:
            if graph.height % self.patch or graph.width % self.patch:
                raise ValueError(
                    f"{graph.file}: {graph.height} x {graph.width} pixels are not a multiple of "
                    f"the patch of {self.patch}"
                )
        return self

    @model_validator(mode="after")
    def _layers_share_the_channels(self) -> Self:
        if len(set(self.layers)) != len(self.layers) or self.channels % len(self.layers):
            raise ValueError(
                f"{self.channels} channels cannot be those of the layers {', '.join(self.layers)}: "
                "wanted different layers, each with as many channels"
            )
        return self

    @property
    def layer_channels(self) -> int:
        """Number of channels of each layer's tokens."""
        return self.channels // len(self.layers)

    @property
    def layers_text(self) -> str:
        """Layers for messages, such as ``final layer`` or ``block 5 + final layer``."""
        names = ("final layer" if n == FINAL_LAYER else f"block {n}" for n in self.layers)
        return " + ".join(names)

    def hash(self) -> str:
        """Return the sha256 of weights, graphs and preprocessing together.

        The number of blocks is left out, and the layers and graphs' variants if they are the
        default, so that cached tokens and engines of bundles without these entries remain valid.
        """
        left_out: dict[str, Any] = {"blocks": True}
        if self.layers == FINAL_ONLY:
            left_out["layers"] = True
        plain = {i: {"fused"} for i, graph in enumerate(self.graphs) if graph.fused is None}
        if plain:
            left_out["graphs"] = plain
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()


def layer_at(depth: float | None, blocks: int) -> str:
    """Return the layer at a relative depth of an encoder; 1 or None means the final layer."""
    if depth is None or depth >= 1:
        return FINAL_LAYER
    return str(max(0, int(depth * blocks + 0.5) - 1))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest` into a bundle's folder."""
    # Earlier releases refuse entries that they do not know.
    text = manifest.model_dump_json(indent=2, exclude_none=True)
    (folder / MANIFEST_NAME).write_text(text + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle without checking its files.

    Raises:
        InputError: the folder is not a bundle, or its manifest cannot be read or has another
            schema.
    """
    path = folder / MANIFEST_NAME
    if path.exists() and not path.is_file():  # opening a FIFO would wait for a writer
        raise InputError(f"{path}: is not a regular file; export the bundle again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder}: is not an encoder bundle ({MANIFEST_NAME} cannot be read: "
            f"{error.strerror}); export one with 'dinoreg-rt export onnx'"
        ) from error
    try:
        return Manifest.model_validate_json(content)  # also checks that it is UTF-8
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}" for p in error.errors()
        )
        raise InputError(
            f"{path}: not a manifest of schema {SCHEMA_VERSION}: {problems}; export the bundle "
            "again"
        ) from error


def check_files(manifest: Manifest, folder: Path) -> None:
    """Compare every file of a bundle with its manifest.

    Raises:
        InputError: a file is missing, leads out of the folder, differs or cannot be read, or a
            graph reads a file that the manifest does not list, or holds control flow.
    """
    listed = {file.name for file in manifest.files}
    graphs = [name for graph in manifest.graphs for name in graph.files]
    for graph in graphs:
        if graph not in listed:
            raise InputError(
                f"{folder}: the manifest gives no hash for {graph}; export the bundle again"
            )
    for file in manifest.files:
        path = folder / file.name
        try:
            _check_file(path, file)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    for graph in graphs:
        content = _scan(folder / graph)
        if content.control_flow:
            raise InputError(
                f"{folder}: {graph} runs {', '.join(sorted(content.control_flow))}, control "
                "flow, which no encoder needs and which may never end; export the bundle again"
            )
        unlisted = sorted(content.files - listed)
        if unlisted:
            raise InputError(
                f"{folder}: {graph} reads {', '.join(unlisted)}, for which the manifest gives "
                "no hash; export the bundle again"
            )


def _check_file(path: Path, file: BundleFile) -> None:
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise InputError(f"{path}: missing, or not a file of this bundle; export the bundle again")
    size = path.stat().st_size
    if size != file.size_bytes or file_sha256(path) != file.sha256:
        raise InputError(
            f"{path}: changed since the export ({size} bytes, {file.size_bytes} expected, "
            "or another sha256); export the bundle again"
        )


def _scan(graph: Path) -> OnnxContent:
    try:
        return scan_onnx(graph.read_bytes())
    except ValueError as error:
        raise InputError(f"{graph}: is no ONNX file: {error}; export the bundle again") from error


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, which is read in pieces without the interpreter lock."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
