"""Numbers of an ONNX file's tensors, its own or those it keeps in files beside it.

Nothing is believed that the file says about itself: a tensor's place must lie in its own folder,
inside a file that is long enough, and hold as many bytes as its shape wants.
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

#: Number of a type in the ONNX format -> type that NumPy reads its bytes as; bfloat16 is widened by
#: hand.
_TYPES = {1: "<f4", 10: "<f2", 11: "<f8", 16: "<u2"}
_BFLOAT16 = 16


def is_float(tensor: onnx.TensorProto) -> bool:
    """Whether it holds numbers as weights are."""
    return tensor.data_type in _TYPES


def shape_of(tensor: onnx.TensorProto) -> tuple[int, ...]:
    """Its shape, as it says."""
    return tuple(tensor.dims)


def external_file(path: Path, tensor: onnx.TensorProto) -> Path | None:
    """The file that a tensor of the ONNX file `path` lies in; None: in that file itself.

    Raises:
        InputError: it names a place outside the folder, or no file.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    location = _place(tensor).get("location", "")
    parts = PurePosixPath(location).parts
    plain = not {"..", "/"} & set(parts) and not any(c in location for c in "\\:\0")
    if not parts or not plain:
        raise InputError(
            f"{path}: '{tensor.name}' lies in '{location}', which is no file in the same folder; "
            "refused"
        )
    file = path.parent / location
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise InputError(f"{path}: its part '{location}' is missing beside it")
    return file


def check_bytes(path: Path, tensor: onnx.TensorProto) -> None:
    """Compare what a tensor takes with its shape, before anything of it is read.

    Raises:
        InputError: another number of bytes, or a place that its file is too short for.
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
            f"{path}: '{tensor.name}' of shape {shape} should take {wanted} bytes and has {held} "
            f"at {first} of {end}: the file is cut off or damaged"
        )


def read_tensor(path: Path, tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """The numbers as float32.

    Raises:
        InputError: damaged, or they cannot be read.
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
            raise InputError(f"{file}: was cut off while it was read")
    return _widened(np.frombuffer(raw, kind), tensor)


def _listed(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Numbers that are kept one by one; the 16-bit types as integers with their bits."""
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
    """Offset and length in an external file."""
    place = _place(tensor)
    try:
        return int(place.get("offset", "0")), int(place.get("length", str(default)))
    except ValueError as error:
        raise InputError(
            f"{path}: the place of '{tensor.name}' in its file is damaged: {error}"
        ) from error


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
