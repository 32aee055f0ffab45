"""Reading of the tensors of an ONNX file, which may lie in separate files beside it.

Nothing that the file says about itself is trusted: the bytes of a tensor must lie in the same
folder, inside a file that is long enough, and be as many as its shape needs.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import InputError

if TYPE_CHECKING:
    import onnx

#: NumPy types for the bytes of ONNX types; NumPy has no bfloat16, which is converted here.
_TYPES = {1: "<f4", 10: "<f2", 11: "<f8", 16: "<u2"}
_BFLOAT16 = 16


def is_float(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor has a floating point type that weights may have."""
    return tensor.data_type in _TYPES


def shape_of(tensor: onnx.TensorProto) -> tuple[int, ...]:
    """Return the declared shape of a tensor."""
    return tuple(tensor.dims)


def external_file(path: Path, tensor: onnx.TensorProto) -> Path | None:
    """Return the file that holds a tensor of the ONNX file `path`; None means that file itself.

    Raises:
        InputError: the file is missing or not in the same folder.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    location = _external_entries(tensor).get("location", "")
    parts = PurePosixPath(location).parts
    plain = not {"..", "/"} & set(parts) and not any(c in location for c in "\\:\0")
    if not parts or not plain:
        raise InputError(
            f"{path}: refused: '{tensor.name}' lies in '{location}', which is not a file in the "
            "same folder"
        )
    file = path.parent / location
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise InputError(f"{path}: its file '{location}' is missing; copy it to the same folder")
    return file


def check_bytes(path: Path, tensor: onnx.TensorProto) -> None:
    """Compare the bytes of a tensor with its shape before it is read.

    Raises:
        InputError: their number differs, or the file is too short.
    """
    shape = shape_of(tensor)
    item = np.dtype(_TYPES[tensor.data_type]).itemsize
    wanted = math.prod(shape) * item
    file = external_file(path, tensor)
    if file is None:
        listed = len(tensor.float_data) + len(tensor.double_data) + len(tensor.int32_data)
        held = len(tensor.raw_data) or listed * item
        first, end = 0, held
    else:
        first, held = _span(path, tensor, wanted)
        end = file.stat().st_size
    if min(shape, default=0) < 0 or held != wanted or first < 0 or first + wanted > end:
        raise InputError(
            f"{path}: '{tensor.name}' of shape {shape} should have {wanted} bytes and has {held} "
            f"at {first} of {end}: the file is truncated or damaged; copy or download it again"
        )


def read_tensor(path: Path, tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Read a tensor as float32.

    Raises:
        InputError: it is damaged.
    """
    check_bytes(path, tensor)
    file = external_file(path, tensor)
    kind = _TYPES[tensor.data_type]
    if file is None and not tensor.raw_data:
        return _listed(tensor)
    if file is None:
        raw = tensor.raw_data
    else:
        count = math.prod(shape_of(tensor)) * np.dtype(kind).itemsize
        first, _ = _span(path, tensor, count)
        with file.open("rb") as stream:
            stream.seek(first)
            raw = stream.read(count)
        if len(raw) != count:
            raise InputError(f"{file}: was truncated while it was read; try again")
    return _widened(np.frombuffer(raw, kind), tensor)


def _listed(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Read numbers that are stored as a list, those of 16-bit types as integers."""
    if tensor.data_type in (_BFLOAT16, 10):
        bits = np.asarray(tensor.int32_data, np.int64).astype(np.uint16)
        return _widened(bits if tensor.data_type == _BFLOAT16 else bits.view(np.float16), tensor)
    values = tensor.float_data if tensor.data_type == 1 else tensor.double_data
    return _widened(np.asarray(values), tensor)


def _widened(values: NDArray[Any], tensor: onnx.TensorProto) -> NDArray[np.float32]:
    if tensor.data_type == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    result: NDArray[np.float32] = values.astype(np.float32, copy=False)
    return result.reshape(shape_of(tensor))


def _span(path: Path, tensor: onnx.TensorProto, default: int) -> tuple[int, int]:
    """Return the offset and length of a tensor in an external file."""
    entries = _external_entries(tensor)
    try:
        return int(entries.get("offset", "0")), int(entries.get("length", str(default)))
    except ValueError as error:
        raise InputError(
            f"{path}: damaged: the offset or length of '{tensor.name}' is not a number: {error}; "
            "copy or download the file again"
        ) from error


def _external_entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
