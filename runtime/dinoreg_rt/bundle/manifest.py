"""Schema of a bundle: the folder that holds an encoder as ONNX, its weights and this manifest.

The export writes it, the runtime reads it. A bundle is trusted only as far as its hashes: every
file is named here with its sha256, and no name may leave the folder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..errors import InputError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
#: Name of the layer that all of an encoder leads to: its last block after the final norm.
FINAL_LAYER = "final"
#: What a bundle gives unless others were chosen.
FINAL_ONLY: tuple[str, ...] = (FINAL_LAYER,)

Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: The last block after the final norm, or the number of a block whose output is taken as it is.
LayerName = Annotated[str, Field(pattern=r"^(final|0|[1-9][0-9]{0,2})$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _plain_name(name: str) -> str:
    path = PurePosixPath(name)
    if len(path.parts) != 1 or name in (".", "..") or "\\" in name or "\0" in name:
        raise ValueError(f"'{name}' is not a plain file name inside the bundle")
    return name


FileName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_plain_name)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


#: Of pixels in 0..1. Bounds that no encoder comes near, within which float32 divides safely.
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Std = Annotated[float, Field(ge=1e-6, le=1e6)]
#: Of an input size in pixels, and of the channels of a token.
_MOST = 65536
#: Of bytes: what a file system counts to.
_MOST_BYTES = 2**63 - 1


class Normalisation(_Frozen):
    """Per-channel mean and standard deviation, of pixels in 0..1, that the encoder expects."""

    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]


class BundleFile(_Frozen):
    """One file of the bundle."""

    name: FileName
    size_bytes: int = Field(ge=0, le=_MOST_BYTES)
    sha256: Sha256


class Graph(_Frozen):
    """One ONNX file: a fixed input size, any batch.

    Input ``pixels`` (N, 3, height, width) float32, normalised; output ``tokens``
    (N, height / patch, width / patch, channels) float32.
    """

    file: FileName
    height: int = Field(gt=0, le=_MOST)
    width: int = Field(gt=0, le=_MOST)


class Source(_Frozen):
    """The checkpoint that the bundle was made from."""

    checkpoint: str
    sha256: Sha256
    layout: Literal["huggingface", "original", "timm", "none"]
    random_weights: bool = False


class Verification(_Frozen):
    """The graph on ONNX Runtime's CPU against an independent float32 evaluation.

    Attributes:
        height: of the picture in pixels.
        width: likewise.
        max_error: of any channel of any token.
        mean_cosine: between tokens.
        first_percentile_cosine: likewise, of the worst hundredth.
        by_rounding: ONNX Runtime's CPU has no products of bfloat16, so a graph with the same
            weights ran that rounds to bfloat16 before and after products in float32.
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
                    f"{graph.file}: {graph.height} x {graph.width} pixels are no multiple of the "
                    f"patch of {self.patch}"
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
        """Channels of each layer's tokens."""
        return self.channels // len(self.layers)

    @property
    def layers_text(self) -> str:
        """For messages: ``final layer``, or such as ``block 7`` and ``block 5 + final layer``."""
        names = ("final layer" if n == FINAL_LAYER else f"block {n}" for n in self.layers)
        return " + ".join(names)

    def hash(self) -> str:
        """sha256 that stands for weights, graphs and preprocessing together.

        The final layer alone leaves no trace in it: tokens and engines of bundles that were written
        before there was a choice stay theirs.
        """
        left_out = {"blocks"} | ({"layers"} if self.layers == FINAL_ONLY else set())
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()


def layer_at(depth: float | None, blocks: int) -> str:
    """The layer at a relative depth of an encoder with so many blocks: 1, or None, is the final."""
    if depth is None or depth >= 1:
        return FINAL_LAYER
    return str(max(0, int(depth * blocks + 0.5) - 1))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest` into a bundle's folder."""
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest; its files are not looked at yet.

    Raises:
        InputError: no bundle, unreadable, or not of a schema that this version knows.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder}: no encoder bundle ({MANIFEST_NAME} cannot be read: {error.strerror}); "
            "'dinoreg-rt export onnx' makes one"
        ) from error
    try:
        return Manifest.model_validate_json(content)  # which must be UTF-8
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}" for p in error.errors()
        )
        raise InputError(
            f"{path}: not a manifest of schema {SCHEMA_VERSION}: {problems}"
        ) from error


def check_files(manifest: Manifest, folder: Path) -> None:
    """Compare every file of the bundle with the manifest.

    Raises:
        InputError: a file is missing, is a link out of the folder, differs or cannot be read; or a
            graph reads one that the manifest does not list.
    """
    listed = {file.name for file in manifest.files}
    for graph in manifest.graphs:
        if graph.file not in listed:
            raise InputError(f"{folder}: the manifest gives no hash for {graph.file}")
    for file in manifest.files:
        path = folder / file.name
        try:
            _check_file(path, file)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    for graph in manifest.graphs:
        unlisted = sorted(_external_files(folder / graph.file) - listed)
        if unlisted:
            raise InputError(
                f"{folder}: {graph.file} reads {', '.join(unlisted)}, for which the manifest gives "
                "no hash; export it again"
            )


def _check_file(path: Path, file: BundleFile) -> None:
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise InputError(f"{path}: missing, or not a file of this bundle; export it again")
    size = path.stat().st_size
    if size != file.size_bytes or file_sha256(path) != file.sha256:
        raise InputError(
            f"{path}: changed since the export ({size} bytes, {file.size_bytes} expected, "
            "or another sha256); export it again"
        )


def _external_files(graph: Path) -> set[str]:
    """Names of the files that an ONNX file keeps tensors in.

    Found by their encoding, because the runtime does without the package onnx: an entry
    ``location`` (field 1) of a tensor's ``external_data``, then the length of the name and the name
    (field 2).
    """
    data = graph.read_bytes()
    found = set()
    for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]{0,2}[\x00-\x7f])", data):
        # Seven bits in each byte, the lowest first.
        length = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(entry[1]))
        found.add(data[entry.end() : entry.end() + length].decode("utf-8", "replace"))
    return found


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
