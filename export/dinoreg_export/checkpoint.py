"""A checkpoint as one set of canonical tensors, whatever file and names it came in.

Tensors are read one at a time: an export never holds the whole checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

from .architecture import Shape, VitArchitecture, named, recognise
from .layouts import Layout, Piece, canonical
from .safetensors_file import SafetensorsFile
from .torch_file import TorchFile

_INDEX = "model.safetensors.index.json"
_TORCH = {".pth", ".pt", ".bin"}


class TensorFile(Protocol):
    """What both kinds of file offer."""

    def names(self) -> list[str]:
        """Of the tensors, as stored."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""

    def close(self) -> None:
        """Let go of the file."""


class Weights(Protocol):
    """Canonical tensors of an encoder: a checkpoint's, or random ones."""

    architecture: VitArchitecture

    def names(self) -> list[str]:
        """Canonical names."""

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""


class Checkpoint:
    """The canonical tensors of a checkpoint.

    Attributes:
        architecture: what they belong to.
        layout: whose names the file uses.
        name: of the file or folder.
        sha256: of all its files, in the order of their names.
    """

    def __init__(
        self, path: Path, model: str = "auto", architecture: VitArchitecture | None = None
    ) -> None:
        files = _files(path)
        self.name = path.name
        self._stored: dict[str, TensorFile] = {}
        self._files = [_open(file) for file in files]
        for file in self._files:
            for stored in file.names():
                if stored in self._stored:
                    raise InputError(f"{path}: two of its files hold '{stored}'")
                self._stored[stored] = file
        self._pieces, layout = canonical(self._stored)
        self.layout: Layout = layout
        self._drop_masked_biases(path)
        shapes = {name: self.shape(name) for name in self._pieces}
        if architecture is None:
            architecture = recognise(shapes) if model == "auto" else named(model)
        self.architecture = architecture
        _check_shapes(path, shapes, architecture)
        self.sha256 = _sha256(files)

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self._pieces)

    def shape(self, name: str) -> Shape:
        """Of one tensor."""
        piece = self._pieces[name]
        shape = self._stored[piece.stored].shape(piece.stored)
        return (shape[0] // piece.parts, *shape[1:]) if piece.parts > 1 else shape

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32.

        Raises:
            InputError: it holds a NaN or an infinity.
        """
        values = self._read(self._pieces[name])
        if not np.isfinite(values).all():
            raise InputError(f"{self.name}: '{name}' holds values that are not finite")
        shape = self.architecture.parameters().get(name)
        return np.ascontiguousarray(values.reshape(shape) if shape else values)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()

    def _read(self, piece: Piece) -> NDArray[np.float32]:
        values = self._stored[piece.stored].read(piece.stored)
        rows = values.shape[0] // piece.parts if piece.parts > 1 else len(values)
        return values[piece.part * rows : (piece.part + 1) * rows] if piece.parts > 1 else values

    def _drop_masked_biases(self, path: Path) -> None:
        """The original files store a bias for k and a mask that takes it away."""
        for name in [n for n in self._pieces if re.fullmatch(r"blocks\.\d+\.k\.bias", n)]:
            piece = self._pieces[name]
            mask = f"{piece.stored}_mask"
            if mask in self._stored:
                kept = self._read(Piece(mask, piece.part, piece.parts))
                if np.any(kept != 0):
                    raise InputError(f"{path}: '{mask}' keeps the bias of k; wanted it masked out")
                del self._pieces[name]


@contextlib.contextmanager
def open_checkpoint(
    path: Path, model: str = "auto", *, architecture: VitArchitecture | None = None
) -> Iterator[Checkpoint]:
    """A checkpoint for as long as the block lasts.

    Args:
        path: a .safetensors or .pth file, or a folder with ``model.safetensors`` or its index.
        model: name in `ARCHITECTURES`, or ``auto``: by the tensors' shapes.
        architecture: instead of one from the table.

    Raises:
        InputError: no checkpoint, damaged, of an unknown architecture, tensors missing, left over
            or of another shape.
    """
    checkpoint = Checkpoint(Path(path), model, architecture)
    try:
        yield checkpoint
    finally:
        checkpoint.close()


class RandomWeights:
    """Weights drawn from a seed: for tests of plumbing and speed, not of features."""

    def __init__(self, architecture: VitArchitecture, seed: int) -> None:
        self.architecture = architecture
        self.seed = seed
        biases = [n for n in architecture.optional_parameters() if ".k." not in n]
        self._shapes = architecture.parameters() | {
            n: (architecture.dim,) for n in biases if architecture.name != "dinov3-vit7b16"
        }
        if architecture.generation == 2:
            tokens = 1 + (518 // architecture.patch) ** 2
            self._shapes["position"] = (1, tokens, architecture.dim)

    def names(self) -> list[str]:
        """Canonical names of all tensors."""
        return list(self._shapes)

    def read(self, name: str) -> NDArray[np.float32]:
        """The same numbers each time: the generator is seeded by name."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")
        values = np.random.default_rng(key).standard_normal(self._shapes[name], np.float32)
        leaf = name.rpartition(".")[2]
        if "norm" in name or leaf.startswith("scale"):
            return np.float32(0.1) * values + np.float32(
                leaf == "weight" or leaf.startswith("scale")
            )
        return np.float32(0.1 if values.ndim == 1 else 0.04) * values


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        single = path / "model.safetensors"
        path = single if single.exists() else path / _INDEX
    if not path.is_file():
        raise InputError(
            f"{path}: no checkpoint there; wanted a .safetensors or .pth file, or a folder with "
            f"model.safetensors or {_INDEX}"
        )
    if path.suffix != ".json":
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not an index of safetensors: {error}") from error
    for name in names:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise InputError(f"{path}: its part '{name}' is missing beside it")
    return [path.parent / name for name in names]


def _open(file: Path) -> TensorFile:
    if file.suffix in _TORCH:
        return TorchFile(file)
    if file.suffix == ".safetensors":
        return SafetensorsFile(file)
    raise InputError(f"{file}: wanted .safetensors or {', '.join(sorted(_TORCH))}")


def _check_shapes(path: Path, shapes: dict[str, Shape], architecture: VitArchitecture) -> None:
    wanted = architecture.parameters()
    allowed = wanted | architecture.optional_parameters()
    missing = sorted(wanted.keys() - shapes.keys())
    extra = sorted(shapes.keys() - allowed.keys() - {"position"})
    if (architecture.generation == 2) != ("position" in shapes):
        (missing if architecture.generation == 2 else extra).append("position")
    for what, names in (("lacks", missing), ("has besides", extra)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise InputError(f"{path}: {architecture.name} {what} {', '.join(names[:5])}{more}")
    for name, shape in shapes.items():
        expected = allowed.get(name)
        if expected is not None and shape != expected and not _same_but_for_ones(shape, expected):
            raise InputError(
                f"{path}: '{name}' has shape {shape}; {architecture.name} wants {expected}"
            )
    position = shapes.get("position")
    if position is not None:
        side = round((position[1] - 1) ** 0.5) if len(position) == 3 else 0
        if len(position) != 3 or position[1] != 1 + side * side or position[2] != architecture.dim:
            raise InputError(f"{path}: 'position' has shape {position}; wanted (1, 1 + n * n, dim)")


def _same_but_for_ones(shape: Shape, expected: Shape) -> bool:
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()
