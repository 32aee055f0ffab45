"""Checkpoints of every format and layout as one set of canonical tensors.

Tensors are read one at a time, so that an export never holds the whole checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import Source
from dinoreg_rt.errors import InputError

from .architecture import Architecture, Shape
from .checks import check_shapes
from .layouts import Layout, Piece, canonical
from .models import named, recognise
from .onnx_file import OnnxFile
from .safetensors_file import SafetensorsFile
from .snapshot import check_config, config_of, name_of, read_json, weights_file
from .torch_file import TorchFile


class TensorFile(Protocol):
    """The interface of readers for all file formats."""

    def names(self) -> list[str]:
        """Return the stored names of the tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32."""

    def close(self) -> None:
        """Close the file."""


#: Readers by the suffix of the file.
_KINDS: dict[str, type[TorchFile] | type[SafetensorsFile] | type[OnnxFile]] = {
    ".safetensors": SafetensorsFile,
    ".onnx": OnnxFile,
    **dict.fromkeys((".pth", ".pt", ".bin"), TorchFile),
}


class Checkpoint:
    """The canonical tensors of a checkpoint.

    Attributes:
        layout: layout of the names in the file.
        name: name of the file, folder or repository.
        sha256: hash of all files, in the order of their names.
    """

    def __init__(
        self, path: Path, model: str = "auto", architecture: Architecture | None = None
    ) -> None:
        files = _files(path)
        self.name = name_of(path)
        self._files: list[TensorFile] = []
        try:
            self._stored = self._open_all(path, files)
            self.files = (*files, *_beside(self._files))
            self._pieces, layout = canonical(self._stored)
            self.layout: Layout = layout
            self._drop_masked_biases(path)
            self._split_packed_gates()
            shapes = {name: self.shape(name) for name in self._pieces}
            if architecture is None:
                architecture = recognise(shapes) if model == "auto" else named(model)
            self.architecture: Architecture = architecture
            check_shapes(path, shapes, architecture)
            if config := config_of(path):
                check_config(config, architecture)
            self._shapes = architecture.parameters()
            self.sha256 = _sha256(self.files)
        except BaseException:
            self.close()
            raise

    @property
    def source(self) -> Source:
        """Entry about the checkpoint in a bundle's manifest."""
        return Source(checkpoint=self.name, sha256=self.sha256, layout=self.layout)

    def names(self) -> list[str]:
        """Return the canonical names of all tensors."""
        return list(self._pieces)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor.

        Raises:
            InputError: it is part of a packed tensor that cannot be divided.
        """
        piece = self._pieces[name]
        shape = self._stored[piece.stored].shape(piece.stored)
        if piece.parts > 1 and (not shape or shape[0] % piece.parts):
            raise InputError(
                f"{self.name}: '{piece.stored}' has shape {shape}; expected {piece.parts} equal "
                "parts along the first axis"
            )
        if name == "position" and len(shape) == 3 and _is_square(shape[1]):
            return (shape[0], 1 + shape[1], shape[2])
        return (shape[0] // piece.parts, *shape[1:]) if piece.parts > 1 else shape

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32.

        Raises:
            InputError: it contains a NaN or an infinity.
        """
        values = self._read(self._pieces[name])
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.name}: '{name}' holds values that are not finite; copy or download the "
                "checkpoint again"
            )
        if name == "position" and _is_square(values.shape[1]):
            # timm has added the class token's position to the token itself.
            values = np.pad(values, ((0, 0), (1, 0), (0, 0)))
        shape = self._shapes.get(name)
        return np.ascontiguousarray(values.reshape(shape) if shape else values)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _open_all(self, path: Path, files: list[Path]) -> dict[str, TensorFile]:
        stored: dict[str, TensorFile] = {}
        for file in files:
            self._files.append(_open(file))
            for name in self._files[-1].names():
                if name in stored:
                    raise InputError(f"{path}: two of its files hold '{name}'; remove one of them")
                stored[name] = self._files[-1]
        return stored

    def _read(self, piece: Piece) -> NDArray[np.float32]:
        values = self._stored[piece.stored].read(piece.stored)
        if piece.parts == 1:
            return values
        rows = values.shape[0] // piece.parts
        return values[piece.part * rows : (piece.part + 1) * rows]

    def _drop_masked_biases(self, path: Path) -> None:
        """Drop the bias of k, which the original files store together with a mask of zeros."""
        for name in [n for n in self._pieces if re.fullmatch(r"blocks\.\d+\.k\.bias", n)]:
            piece = self._pieces[name]
            mask = f"{piece.stored}_mask"
            if mask in self._stored:
                self.shape(name)  # checks that it can be divided
                wanted, got = (self._stored[n].shape(n) for n in (piece.stored, mask))
                if got != wanted:
                    raise InputError(f"{path}: '{mask}' has shape {got}; expected {wanted}")
                kept = self._read(Piece(mask, piece.part, piece.parts))
                if np.any(kept != 0):
                    raise InputError(f"{path}: '{mask}' keeps the bias of k; expected zeros for it")
                del self._pieces[name]

    def _split_packed_gates(self) -> None:
        """Split the gate and up of DINOv2's SwiGLU, which timm stores as one tensor named up."""
        for name in [n for n in self._pieces if re.fullmatch(r"blocks\.\d+\.up\.weight", n)]:
            block = name[: -len("up.weight")]
            down = f"{block}down.weight"
            if down not in self._pieces or f"{block}gate.weight" in self._pieces:
                continue
            inner = self.shape(down)[-1:]
            if not inner or self.shape(name)[:1] != (2 * inner[0],):
                continue
            for leaf in ("weight", "bias"):
                if f"{block}up.{leaf}" not in self._pieces:
                    continue
                stored = self._pieces[f"{block}up.{leaf}"].stored
                self._pieces[f"{block}gate.{leaf}"] = Piece(stored, 0, 2)
                self._pieces[f"{block}up.{leaf}"] = Piece(stored, 1, 2)


@contextlib.contextmanager
def open_checkpoint(
    path: Path, model: str = "auto", *, architecture: Architecture | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint for the duration of a ``with`` block.

    Args:
        path: .safetensors, .pth or .onnx file, folder with ``model.safetensors`` or its index, or
            repository in Hugging Face's cache; the config.json of a folder must agree.
        model: name in `models.ARCHITECTURES`, or ``auto`` to recognise it by its tensors' shapes.
        architecture: architecture to use instead of one from the table.

    Raises:
        InputError: the path is not a checkpoint, or it is damaged or of an unknown architecture,
            or tensors are missing, superfluous or of another shape.
    """
    checkpoint = Checkpoint(Path(path), model, architecture)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def _files(path: Path) -> list[Path]:
    path = weights_file(path)
    if path.suffix != ".json":
        return [path]
    index = read_json(path, "an index of safetensors")
    try:
        names = sorted(set(index["weight_map"].values()), key=str)
    except (KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not an index of safetensors: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{path}: refused: its part '{name}' is not a plain file name")
        if not (path.parent / name).is_file():
            raise InputError(f"{path}: its part '{name}' is missing; copy it to the same folder")
    return [path.parent / name for name in names]


def _open(file: Path) -> TensorFile:
    kind = _KINDS.get(file.suffix)
    if kind is None:
        raise InputError(
            f"{file}: is not a checkpoint; use a file that ends in {', '.join(_KINDS)}"
        )
    try:
        return kind(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _beside(files: Sequence[TensorFile]) -> list[Path]:
    """Return the separate weights files of ONNX files."""
    return [part for file in files if isinstance(file, OnnxFile) for part in file.files]


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()
