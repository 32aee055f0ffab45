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
GZIP_MAGIC = b"\x1f\x8b"

#: Bits of a voxel by NIfTI datatype code: ITK goes by the code, and so does the size of the file.
_NIFTI_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32}
_NIFTI_BITS |= {1024: 64, 1280: 64, 1536: 128, 1792: 128, 2048: 256, 2304: 32}
#: Bytes of a value by MetaImage type; of others the size of the file is not looked at.
_META_BYTES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4}
_META_BYTES |= {"MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8}

#: NIfTI datatype codes that can hold NaN.
_FLOATS = {16: "f4", 64: "f8"}


class _NiftiHeader(NamedTuple):
    order: str
    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    bits: int
    offset: float
    first_voxel: int


def check_nifti(file: Path, name: str, *, values: bool = True) -> None:
    """Require that an uncompressed NIfTI file is whole and holds finite values.

    Args:
        file: the ``.nii`` file.
        name: what to call it in messages.
        values: False: whether they are finite doesn't matter.

    Raises:
        InputError: no NIfTI header, a spacing that is not positive, voxels that begin in the
            header, missing voxels, NaN or Inf.
    """
    header = _read_nifti_header(file, name)
    axes = range(1, min(max(header.dim[0], 0), 3) + 1)
    if not all(0 < header.pixdim[a] < math.inf for a in axes):
        spacing = " x ".join(f"{header.pixdim[a]:g}" for a in axes)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; each must be positive: correct the "
            "header"
        )
    if not header.first_voxel <= header.offset < math.inf:  # NaN is none of them
        raise InputError(
            f"{name}: its header says that the voxels begin at byte {header.offset:g} "
            f"(vox_offset); {header.first_voxel} or more is needed: correct the header"
        )
    voxels = math.prod(max(n, 1) for n in header.dim[1 : 1 + max(header.dim[0], 0)])
    wanted = int(header.offset) + voxels * header.bits // 8
    _check_length(file.stat().st_size, wanted, name)
    if values and header.datatype in _FLOATS:
        _check_floats(file, header, voxels, name)


def _check_length(have: int, wanted: int, name: str | Path) -> None:
    if have < wanted:
        raise InputError(
            f"{name}: truncated file: {have} bytes, but its header announces {wanted}; copy or "
            "download it again"
        )


def check_metaimage(file: Path) -> None:
    """Require that the pixels of a MetaImage are all there (``.mha``, or ``.mhd`` + data).

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
        size = _metaimage_bytes(fields)
        _check_length(data_file.stat().st_size, size + (start if data_file == file else 0), file)
        return
    with data_file.open("rb") as stream:
        stream.seek(start if data_file == file else 0)
        _check_zlib(stream, file)


def _read_nifti_header(file: Path, name: str) -> _NiftiHeader:
    with file.open("rb") as stream:
        raw = stream.read(544)
    if raw.startswith(GZIP_MAGIC):
        raise InputError(f"{name}: is compressed by gzip; rename it to end in .nii.gz")
    for order in "<>":
        size = struct.unpack_from(order + "i", raw)[0] if len(raw) >= 348 else 0
        if size == 348:
            dim = struct.unpack_from(order + "8h", raw, 40)
            datatype, bits = struct.unpack_from(order + "2h", raw, 70)
            pixdim = struct.unpack_from(order + "8f", raw, 76)
            offset = struct.unpack_from(order + "f", raw, 108)[0]
            bits = _NIFTI_BITS.get(datatype, bits)
            return _NiftiHeader(order, dim, datatype, pixdim, bits, offset, 352)
        if size == 540 and len(raw) >= 540:
            datatype, bits = struct.unpack_from(order + "2h", raw, 12)
            dim = struct.unpack_from(order + "8q", raw, 16)
            pixdim = struct.unpack_from(order + "8d", raw, 104)
            offset = struct.unpack_from(order + "q", raw, 168)[0]
            bits = _NIFTI_BITS.get(datatype, bits)
            return _NiftiHeader(order, dim, datatype, pixdim, bits, offset, 544)
    raise InputError(f"{name}: is not a NIfTI file, whatever its name says, or it is damaged")


def _check_floats(file: Path, header: _NiftiHeader, voxels: int, name: str) -> None:
    dtype = np.dtype(header.order + _FLOATS[header.datatype])
    bad, left = 0, voxels
    with file.open("rb") as stream:
        stream.seek(int(header.offset))
        while left:
            values = np.fromfile(stream, dtype, min(left, _CHUNK // dtype.itemsize))
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            left -= values.size or left  # a file that shrinks meanwhile ends it
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


def _metaimage_bytes(fields: dict[str, str]) -> int:
    """Size of uncompressed pixels; 0 where the header does not say it plainly."""
    try:
        size = math.prod(int(n) for n in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        return size * channels * _META_BYTES[fields["ElementType"]]
    except (KeyError, ValueError):
        return 0


def is_nifti(file: Path) -> bool:
    """Whether a file begins as an uncompressed NIfTI file does."""
    try:
        _read_nifti_header(file, "")
    except InputError:
        return False
    return True


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
