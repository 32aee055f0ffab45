"""Reader for safetensors files, one tensor at a time.

A file consists of eight bytes of length, a JSON header and the tensors; see
https://huggingface.co/docs/safetensors. The official library is not used because its NumPy
interface lacks bfloat16, which released weights may use.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

_LARGEST_HEADER = 100 << 20
_MOST_AXES = 8
#: NumPy types for the types in the header; NumPy has no bfloat16, which is converted here.
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class SafetensorsFile:
    """The tensors of one safetensors file; reading a tensor reads only its own bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not memory-mapped: pages that were read would count as memory of the process to its end.
        self._stream = path.open("rb")
        try:
            self._header, self._start = self._read_header(path.stat().st_size)
        except BaseException:
            self.close()
            raise

    def _read_header(self, size: int) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self._stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise InputError(
                f"{self.path}: is not a safetensors file, or truncated: its header should have "
                f"{length} bytes, and the file has {size}; copy or download it again"
            )
        header = self._parse(self._stream.read(length))
        for name, entry in header.items():
            self._check(name, entry, size - 8 - length)
        return header, 8 + length

    def names(self) -> list[str]:
        """Return the stored names of the tensors."""
        return list(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str) -> NDArray[np.float32]:
        """Read a tensor as float32.

        Raises:
            InputError: the file was truncated, or no array can have the shape.
        """
        entry = self._header[name]
        first, last = entry["data_offsets"]
        self._stream.seek(self._start + first)
        raw = self._stream.read(last - first)
        if len(raw) != last - first:
            raise InputError(f"{self.path}: was truncated while it was read; try again")
        try:
            values = np.frombuffer(raw, _TYPES[entry["dtype"]]).reshape(entry["shape"])
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{self.path}: '{name}' is damaged ({error}); copy or download the file again"
            ) from error
        if entry["dtype"] == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _parse(self, header: bytes) -> dict[str, Any]:
        try:
            entries = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: its safetensors header is not JSON: {error}") from error
        if not isinstance(entries, dict):
            raise InputError(f"{self.path}: its safetensors header is not a list of tensors")
        return {name: entry for name, entry in entries.items() if name != "__metadata__"}

    def _check(self, name: str, entry: Any, available: int) -> None:
        try:
            kind, shape = entry["dtype"], _integers(entry["shape"])
            first, last = _integers(entry["data_offsets"])
            known = kind in _TYPES
            if len(shape) > _MOST_AXES:
                raise ValueError(f"{len(shape)} axes")
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{self.path}: the header's entry for '{name}' is damaged") from error
        if not known:
            raise InputError(
                f"{self.path}: '{name}' is stored as {kind}; save it as one of {', '.join(_TYPES)}"
            )
        bytes_ = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        if min(shape, default=1) < 0 or first < 0 or last - first != bytes_ or last > available:
            raise InputError(
                f"{self.path}: '{name}' should have {bytes_} bytes at {first}..{last} of "
                f"{available}: the file is truncated or damaged; copy or download it again"
            )


def _integers(values: Any) -> list[int]:
    """Check that a JSON value is a list of integers, which excludes 3.0 and true."""
    if not isinstance(values, list) or any(type(n) is not int for n in values):
        raise TypeError("expected a list of integers")
    return values
