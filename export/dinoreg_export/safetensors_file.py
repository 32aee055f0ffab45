"""Reads safetensors: eight bytes of length, a JSON header, then the tensors. One at a time.

Our own reader, because the library's NumPy half knows no bfloat16, which the released weights may
use. https://huggingface.co/docs/safetensors describes the format.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

_LARGEST_HEADER = 100 << 20
#: Name in the header -> type that NumPy reads it as; BF16 is widened by hand.
_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}


class SafetensorsFile:
    """Tensors of one file; reading one touches its bytes alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            size = path.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise InputError(
                    f"{path}: not a safetensors file, or cut off: its header would take {length} "
                    f"bytes of {size}"
                )
            self._header = self._parse(stream.read(length))
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = 8 + length
        for name in self._header:
            self._check(name, size - self._start)

    def names(self) -> list[str]:
        """Of the tensors, as stored."""
        return list(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
        entry = self._header[name]
        first, last = entry["data_offsets"]
        raw = self._map[self._start + first : self._start + last]
        values = np.frombuffer(raw, _TYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def _parse(self, header: bytes) -> dict[str, Any]:
        try:
            entries = json.loads(header)
            entries.pop("__metadata__", None)
        except (ValueError, AttributeError) as error:
            raise InputError(f"{self.path}: its safetensors header is not JSON: {error}") from error
        return dict(entries)

    def _check(self, name: str, available: int) -> None:
        entry = self._header[name]
        try:
            kind, shape = entry["dtype"], [int(n) for n in entry["shape"]]
            first, last = (int(n) for n in entry["data_offsets"])
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{self.path}: the header's entry for '{name}' is damaged") from error
        if kind not in _TYPES:
            raise InputError(
                f"{self.path}: '{name}' is stored as {kind}; wanted one of {', '.join(_TYPES)}"
            )
        bytes_ = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        if min(shape, default=1) < 0 or first < 0 or last - first != bytes_ or last > available:
            raise InputError(
                f"{self.path}: '{name}' should take {bytes_} bytes at {first}..{last} of "
                f"{available}: the file is cut off or damaged"
            )
