"""Damage that ITK reads without a word, found before it is asked.

Measured with SimpleITK 2.5: a truncated ``.nii`` or ``.nii.gz`` comes back with zeros for the
missing part, a NIfTI spacing of 0 becomes 1 mm, and compressed MetaImage data that do not unpack
come back as noise. NRRD reports its own damage.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError

_CHUNK = 1 << 22


class _NiftiHeader(NamedTuple):
    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    bits: int
    offset: int


def check_nifti(file: Path, name: str) -> None:
    """Require that an uncompressed NIfTI file is as long as its header says.

    Args:
        file: the ``.nii`` file.
        name: what to call it in messages.

    Raises:
        InputError: no NIfTI header, a spacing of zero, or missing voxels.
    """
    header = _read_nifti_header(file, name)
    axes = range(1, min(max(header.dim[0], 0), 3) + 1)
    if any(header.pixdim[a] == 0 or not math.isfinite(header.pixdim[a]) for a in axes):
        spacing = " x ".join(f"{header.pixdim[a]:g}" for a in axes)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; it must be positive: correct the header"
        )
    voxels = math.prod(max(n, 1) for n in header.dim[1 : 1 + max(header.dim[0], 0)])
    wanted = header.offset + voxels * header.bits // 8
    have = file.stat().st_size
    if have < wanted:
        raise InputError(
            f"{name}: truncated file: {have} bytes, but its header announces {wanted}; copy or "
            "download it again"
        )


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
            bits = struct.unpack_from(order + "h", raw, 72)[0]
            pixdim = struct.unpack_from(order + "8f", raw, 76)
            offset = int(struct.unpack_from(order + "f", raw, 108)[0])
            return _NiftiHeader(dim, pixdim, bits, offset)
        if size == 540 and len(raw) >= 540:
            bits = struct.unpack_from(order + "h", raw, 14)[0]
            dim = struct.unpack_from(order + "8q", raw, 16)
            pixdim = struct.unpack_from(order + "8d", raw, 104)
            return _NiftiHeader(dim, pixdim, bits, struct.unpack_from(order + "q", raw, 168)[0])
    raise InputError(f"{name}: is not a NIfTI file, whatever its name says, or it is damaged")


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
