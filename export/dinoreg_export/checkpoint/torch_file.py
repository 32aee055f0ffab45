"""Reads the tensors of a .pth file without torch and without running what it contains.

A .pth is a zip archive: `data.pkl`, a pickle that describes the tensors, and one file of raw
numbers for each. A pickle can call anything it names. Here it may name a handful of things, each
replaced by a harmless stand-in; any other name stops the reading before something is called.
"""

from __future__ import annotations

import collections
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

#: Storage type -> type that NumPy reads it as; bfloat16 is widened by hand.
_STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
_LARGEST_PICKLE = 64 << 20
#: What zipfile and NumPy raise for bytes that are not as the archive's list says.
_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    OverflowError,
    EOFError,
    struct.error,
)
#: Where trainers keep the encoder's tensors inside a checkpoint.
_WRAPPERS = ("teacher", "model", "state_dict", "model_state_dict")


class _Storage(NamedTuple):
    kind: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _RebuildTensor:
    """Stands for torch's function. It takes no attributes: a pickle may try to set some."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


class _RebuildParameter:
    """Stands for torch's function; a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Inert(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, text and `_Tensor`, nothing else."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; every other name is refused."""
        if module == "torch" and name in _STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        }
        if (module, name) not in known:
            raise InputError(
                f"{self._path}: refused: it asks for {module}.{name}, which is no tensor; a pickle "
                "may run any code it names. Save the weights alone, best as safetensors"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A reference to raw numbers."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        kind = str(pid[1])
        if kind not in _STORAGES:
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        return _Storage(kind, str(pid[2]))


class TorchFile:
    """Tensors of one .pth file; reading one touches its bytes alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise InputError(
                f"{path}: not a .pth of torch 1.6 or later, or cut off ({error}); save it again "
                "with torch.save, or as safetensors"
            ) from error
        try:
            self._tensors = self._read_list()
        except BaseException:
            self.close()
            raise

    def _read_list(self) -> dict[str, _Tensor]:
        pickles = [n for n in self._zip.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(
                f"{self.path}: holds {len(pickles)} data.pkl; wanted one, as of torch.save"
            )
        self._folder = pickles[0][: -len("data.pkl")]
        order = f"{self._folder}byteorder"
        if order in self._zip.namelist():
            with self._whole("its byte order"):
                little = self._zip.read(order) == b"little"
            if not little:
                raise InputError(f"{self.path}: its numbers are big-endian; save it again")
        tensors = _tensors_of(self._unpickle(pickles[0]), self.path)
        for name, tensor in tensors.items():
            self._check(name, tensor)
        return tensors

    def names(self) -> list[str]:
        """Of the tensors, as stored."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32.

        Raises:
            InputError: its bytes are damaged.
        """
        tensor = self._tensors[name]
        type_ = np.dtype(_STORAGES[tensor.storage.kind])
        with self._whole(f"'{name}'"):
            with self._zip.open(self._entry(tensor)) as stream:
                stream.seek(tensor.offset * type_.itemsize)
                raw = stream.read(math.prod(tensor.shape) * type_.itemsize)
            values = np.frombuffer(raw, type_).reshape(tensor.shape)
        if tensor.storage.kind == "BFloat16Storage":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        """Whatever is raised for damaged bytes, as one error that names what they hold."""
        try:
            yield
        except _DAMAGE as error:
            raise InputError(
                f"{self.path}: {what} is damaged ({error}); copy or download the file again"
            ) from error

    def _entry(self, tensor: _Tensor) -> str:
        return f"{self._folder}data/{tensor.storage.key}"

    def _unpickle(self, entry: str) -> Any:
        if self._zip.getinfo(entry).file_size > _LARGEST_PICKLE:
            raise InputError(f"{self.path}: its data.pkl is larger than any list of tensors")
        try:
            with self._zip.open(entry) as stream:
                return _Inert(stream, self.path).load()
        except InputError:
            raise
        except Exception as error:
            # A damaged pickle fails in many ways, all of which mean the same to the reader.
            raise InputError(f"{self.path}: its list of tensors is damaged: {error}") from error

    def _check(self, name: str, tensor: _Tensor) -> None:
        try:
            info = self._zip.getinfo(self._entry(tensor))
        except KeyError as error:
            raise InputError(f"{self.path}: the numbers of '{name}' are missing") from error
        strides = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
        steps = zip(tensor.shape, tensor.stride, strides, strict=False)
        whole = len(tensor.stride) == len(tensor.shape) and all(
            n == 1 or got == wanted for n, got, wanted in steps
        )
        size = np.dtype(_STORAGES[tensor.storage.kind]).itemsize
        last = (tensor.offset + math.prod(tensor.shape)) * size
        if not whole or tensor.offset < 0 or min(tensor.shape, default=1) < 0:
            raise InputError(
                f"{self.path}: '{name}' is not stored in one piece; save it contiguous"
            )
        if info.compress_type != zipfile.ZIP_STORED or last > info.file_size:
            raise InputError(
                f"{self.path}: '{name}' needs {last} bytes of {info.file_size}: cut off or damaged"
            )


def _tensors_of(content: Any, path: Path) -> dict[str, _Tensor]:
    """The tensors of a state dict, which may lie inside wrappers."""
    for _ in range(3):
        inner = next(
            (content[w] for w in _WRAPPERS if isinstance(content, dict) and w in content), None
        )
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}; wanted a dictionary of tensors"
        )
    tensors = {str(k): v for k, v in content.items() if isinstance(v, _Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors; wanted the encoder's state dict")
    return tensors
