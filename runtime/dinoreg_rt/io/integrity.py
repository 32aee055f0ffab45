"""Damage that ITK reads without a word, found before it is asked.

Measured with SimpleITK 2.5: a truncated ``.nii`` or ``.nii.gz`` comes back with zeros for the
missing part, NaN and Inf in a NIfTI become 0, its spacing of 0 becomes 1 mm, and compressed
MetaImage data that do not unpack come back as noise. NRRD reports its own damage.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from . import validate

_CHUNK = 1 << 22


#: NIfTI datatype codes that can hold NaN.
_FLOATS = {16: "f4", 64: "f8"}


class _NiftiHeader(NamedTuple):
    order: str
    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    bits: int
    offset: int


def check_nifti(file: Path, name: str) -> None:
    """Require that an uncompressed NIfTI file is whole and holds finite values.

    Args:
        file: the ``.nii`` file.
        name: what to call it in messages.

    Raises:
        InputError: no NIfTI header, a spacing that is not positive, missing voxels, NaN or Inf.
    """
    header = _read_nifti_header(file, name)
    axes = range(1, min(max(header.dim[0], 0), 3) + 1)
    if not all(0 < header.pixdim[a] < math.inf for a in axes):
        spacing = " x ".join(f"{header.pixdim[a]:g}" for a in axes)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; each must be positive: correct the "
            "header"
        )
    voxels = math.prod(max(n, 1) for n in header.dim[1 : 1 + max(header.dim[0], 0)])
    wanted = header.offset + voxels * header.bits // 8
    have = file.stat().st_size
    if have < wanted:
        raise InputError(
            f"{name}: truncated file: {have} bytes, but its header announces {wanted}; copy or "
            "download it again"
        )
    if header.datatype in _FLOATS:
        _check_floats(file, header, voxels, name)


def check_metaimage(file: Path) -> None:
    """Require that the compressed pixels of a MetaImage unpack (``.mha``, or ``.mhd`` + data).

    Raises:
        InputError: missing data file, truncated or corrupt data.
    """
    with file.open("rb") as stream:
        fields = _metaimage_fields(stream)
        start = stream.tell()
    data = fields.get("ElementDataFile", "LOCAL")
    data_file = file if data.upper() == "LOCAL" else file.parent / data
    if not data_file.is_file():
        raise InputError(f"{file}: its data file {data} is missing; keep both files together")
    if fields.get("CompressedData", "False").lower() != "true":
        return
    with data_file.open("rb") as stream:
        stream.seek(start if data_file == file else 0)
        _check_zlib(stream, file)


def _read_nifti_header(file: Path, name: str) -> _NiftiHeader:
    with file.open("rb") as stream:
        raw = stream.read(544)
    for order in "<>":
        size = struct.unpack_from(order + "i", raw)[0] if len(raw) >= 348 else 0
        if size == 348:
            dim = struct.unpack_from(order + "8h", raw, 40)
            datatype, bits = struct.unpack_from(order + "2h", raw, 70)
            pixdim = struct.unpack_from(order + "8f", raw, 76)
            offset = int(struct.unpack_from(order + "f", raw, 108)[0])
            return _NiftiHeader(order, dim, datatype, pixdim, bits, offset)
        if size == 540 and len(raw) >= 540:
            datatype, bits = struct.unpack_from(order + "2h", raw, 12)
            dim = struct.unpack_from(order + "8q", raw, 16)
            pixdim = struct.unpack_from(order + "8d", raw, 104)
            offset = struct.unpack_from(order + "q", raw, 168)[0]
            return _NiftiHeader(order, dim, datatype, pixdim, bits, offset)
    raise InputError(f"{name}: is not a NIfTI file, whatever its name says, or it is damaged")


def _check_floats(file: Path, header: _NiftiHeader, voxels: int, name: str) -> None:
    dtype = np.dtype(header.order + _FLOATS[header.datatype])
    bad, left = 0, voxels
    with file.open("rb") as stream:
        stream.seek(header.offset)
        while left:
            values = np.fromfile(stream, dtype, min(left, _CHUNK // dtype.itemsize))
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            left -= values.size
    if bad:
        raise InputError(validate.not_finite(name, bad))


def _metaimage_fields(stream: Any) -> dict[str, str]:
    fields = {}
    for _ in range(256):  # a header has some twenty lines; binary junk has none
        line = stream.readline(4096)
        key, separator, value = line.partition(b"=")
        if not separator:
            break
        fields[key.decode("ascii", "replace").strip()] = value.decode("utf-8", "replace").strip()
        if key.strip() == b"ElementDataFile":
            break
    return fields


def _check_zlib(stream: Any, name: Path) -> None:
    unpacker = zlib.decompressobj()
    try:
        while not unpacker.eof:
            packed = stream.read(_CHUNK)
            if not packed:
                raise InputError(
                    f"{name}: truncated file: its compressed pixels end too early; copy or "
                    "download it again"
                )
            while packed and not unpacker.eof:
                unpacker.decompress(packed, _CHUNK)
                packed = unpacker.unconsumed_tail
    except zlib.error as error:
        raise InputError(
            f"{name}: corrupt file: its pixels do not unpack ({error}); copy or download it again"
        ) from error
