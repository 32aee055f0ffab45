"""Reader for the tensors of a .pth file that needs no torch and runs no code from the file.

A .pth file is a zip archive with `data.pkl`, a pickle that describes the tensors, and a file of raw
numbers for each tensor. A pickle can call any function that it names. Here it may name only a few,
each replaced by a harmless stand-in; any other name stops the reading before anything is called.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

#: NumPy types for the types of storages; NumPy has no bfloat16, which is converted here.
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
#: A list of tensors takes about 200 bytes and 50 opcodes for each.
_LARGEST_PICKLE, _MOST_OPCODES = 8 << 20, 1_000_000
_MOST_AXES = 8
#: Errors that zipfile and NumPy raise for bytes that contradict the archive's directory.
_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    OverflowError,
    EOFError,
    struct.error,
)
#: Keys under which training code stores the tensors of the encoder.
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
    """A stand-in for torch's function, without attributes because a pickle might set some."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor has no storage")
        return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))


class _RebuildParameter:
    """A stand-in for torch's function that returns the tensor of a parameter."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Inert(pickle.Unpickler):
    """An unpickler that builds only dictionaries, lists, numbers, text and `_Tensor`."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse it."""
        if module == "torch" and name in _STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        }
        if (module, name) not in known:
            raise InputError(
                f"{self._path}: refused: it refers to {module}.{name}, which is not a tensor, and "
                "a pickle may run any code that it refers to; save only the weights, preferably "
                "as safetensors"
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a reference to raw numbers."""
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        kind = str(pid[1])
        if kind not in _STORAGES:
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        return _Storage(kind, str(pid[2]))


class TorchFile:
    """The tensors of one .pth file; reading a tensor reads only its own bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise InputError(
                f"{path}: is not a .pth file of torch 1.6 or later, or truncated ({error}); save "
                "it again with torch.save, or as safetensors"
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
                f"{self.path}: holds {len(pickles)} files data.pkl, and torch.save writes one; "
                "save it again"
            )
        self._folder = pickles[0][: -len("data.pkl")]
        order = f"{self._folder}byteorder"
        if order in self._zip.namelist():
            with self._whole("its byte order"):
                little = self._zip.read(order) == b"little"
            if not little:
                raise InputError(
                    f"{self.path}: its numbers are big-endian; save it on a little-endian machine"
                )
        tensors = _tensors_of(self._unpickle(pickles[0]), self.path)
        for name, tensor in tensors.items():
            self._check(name, tensor)
        return tensors

    def names(self) -> list[str]:
        """Return the stored names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32.

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
        """Close the file."""
        self._zip.close()

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        """Turn errors about damaged bytes into one that names their content."""
        try:
            yield
        except (*_DAMAGE, OSError) as error:  # OSError for a position before the file's beginning
            raise InputError(
                f"{self.path}: {what} is damaged ({error}); copy or download the file again"
            ) from error

    def _entry(self, tensor: _Tensor) -> str:
        return f"{self._folder}data/{tensor.storage.key}"

    def _unpickle(self, entry: str) -> Any:
        if self._zip.getinfo(entry).file_size > _LARGEST_PICKLE:
            raise InputError(
                f"{self.path}: its data.pkl is larger than any list of tensors; save only the "
                "weights, preferably as safetensors"
            )
        try:
            content = self._zip.read(entry)
            _check_opcodes(content)
            return _Inert(io.BytesIO(content), self.path).load()
        except InputError:
            raise
        except Exception as error:
            # A damaged pickle may raise almost any error.
            raise InputError(
                f"{self.path}: its list of tensors is damaged ({error}); copy or download the file "
                "again"
            ) from error

    def _check(self, name: str, tensor: _Tensor) -> None:
        try:
            info = self._zip.getinfo(self._entry(tensor))
        except KeyError as error:
            raise InputError(
                f"{self.path}: the numbers of '{name}' are missing; copy or download the file again"
            ) from error
        if len(tensor.shape) > _MOST_AXES:
            raise InputError(
                f"{self.path}: '{name}' has {len(tensor.shape)} axes; an encoder's tensors have at "
                f"most {_MOST_AXES}: the file is damaged; copy or download it again"
            )
        strides = [math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
        steps = zip(tensor.shape, tensor.stride, strides, strict=False)
        whole = len(tensor.stride) == len(tensor.shape) and all(
            n == 1 or got == wanted for n, got, wanted in steps
        )
        size = np.dtype(_STORAGES[tensor.storage.kind]).itemsize
        last = (tensor.offset + math.prod(tensor.shape)) * size
        if not whole or tensor.offset < 0 or min(tensor.shape, default=1) < 0:
            raise InputError(
                f"{self.path}: '{name}' is not contiguous; save tensor.contiguous() instead"
            )
        # The directory may announce more bytes than the file has.
        held = min(info.file_size, self.path.stat().st_size - info.header_offset)
        if info.compress_type != zipfile.ZIP_STORED or last > held:
            raise InputError(
                f"{self.path}: '{name}' needs {last} bytes and has {held}: the file is "
                "truncated or damaged; copy or download it again"
            )


def _check_opcodes(content: bytes) -> None:
    """Check a pickle before it is loaded, without memory for what it only announces.

    The unpickler takes memory for the length of a text before it reads the text, and for all
    places of its memo up to the highest number that is used.

    Raises:
        ValueError: a length beyond the end, a place beyond the number of opcodes, or too many.
    """
    count, highest = 0, 0
    for opcode, argument, _ in pickletools.genops(content):
        count += 1
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            highest = max(highest, int(argument or 0))
        if count > _MOST_OPCODES:
            raise ValueError(f"more than {_MOST_OPCODES} opcodes")
    if highest > count:
        raise ValueError(f"place {highest} of its memo, with {count} opcodes")


def _tensors_of(content: Any, path: Path) -> dict[str, _Tensor]:
    """Return the tensors of a state dict, which may be nested in other dictionaries."""
    for _ in range(3):
        inner = next(
            (content[w] for w in _WRAPPERS if isinstance(content, dict) and w in content), None
        )
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, not a dictionary of tensors; save the "
            "encoder's state dict"
        )
    tensors = {str(k): v for k, v in content.items() if isinstance(v, _Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors; save the encoder's state dict")
    return tensors
