"""Damage that ITK reads without complaint, found before ITK is asked.

Measured with SimpleITK 2.5: the missing part of a truncated ``.nii`` or ``.nii.gz`` comes back as
zeros, NaN and Inf in a NIfTI become 0, its spacing of 0 becomes 1 mm, and compressed MetaImage data
that cannot be unpacked come back as noise. NRRD reports its own damage.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import validate
from .nifti import GZIP_MAGIC
from .nifti_header import HEADER_BYTES, NiftiHeader, check_extent, check_length, parse_header

_CHUNK = 1 << 22
#: Bytes per value of MetaImage types; the file size of other types is not checked.
_META_BYTES = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4}
_META_BYTES |= {"MET_UINT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8}


def check_nifti(file: Path, name: str, *, values: bool = True) -> bool:
    """Require that an uncompressed NIfTI file is whole and holds finite values.

    Args:
        file: the ``.nii`` file.
        name: the name for error messages.
        values: check the values too.

    Returns:
        Whether the voxels of the image are float32 values that were found to be finite.

    Raises:
        InputError: no NIfTI header, a spacing that is not positive, voxels that begin within the
            header, missing voxels, NaN or Inf.
    """
    header = _read_header(file, name)
    axes = range(1, min(max(header.dim[0], 0), 3) + 1)
    if not all(0 < header.pixdim[a] < math.inf for a in axes):
        spacing = " x ".join(f"{header.pixdim[a]:g}" for a in axes)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; each must be positive: correct the "
            "header"
        )
    check_extent(header, file.stat().st_size, name)
    dtype = header.dtype
    if not values or dtype is None or dtype.kind != "f":
        return False
    _check_floats(file, header, dtype, name)
    return dtype.itemsize == 4 and not header.scaled


def check_metaimage(file: Path) -> None:
    """Require that a MetaImage is whole (``.mha``, or ``.mhd`` and its data file).

    Raises:
        InputError: the data file is missing, truncated or corrupt.
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
        wanted = size + (start if data_file == file else 0)
        check_length(data_file.stat().st_size, wanted, str(file))
        return
    with data_file.open("rb") as stream:
        stream.seek(start if data_file == file else 0)
        _check_zlib(stream, file)


def _read_header(file: Path, name: str) -> NiftiHeader:
    with file.open("rb") as stream:
        raw = stream.read(HEADER_BYTES)
    if raw.startswith(GZIP_MAGIC):
        raise InputError(f"{name}: is compressed by gzip; rename it to end in .nii.gz")
    header = parse_header(raw)
    if header is None:
        raise InputError(
            f"{name}: is not a NIfTI file despite its name, or is damaged; copy or download it "
            "again"
        )
    return header


def _check_floats(file: Path, header: NiftiHeader, dtype: np.dtype[Any], name: str) -> None:
    bad, left = 0, header.voxels
    with file.open("rb") as stream:
        stream.seek(int(header.offset))
        while left:
            values = np.fromfile(stream, dtype, min(left, _CHUNK // dtype.itemsize))
            bad += values.size - int(np.count_nonzero(np.isfinite(values)))
            left -= values.size or left  # the file may shrink meanwhile
    if bad:
        raise InputError(validate.not_finite(name, bad))


def _metaimage_fields(stream: Any) -> dict[str, str]:
    fields = {}
    for _ in range(256):  # a header has about twenty lines
        line = stream.readline(4096)
        key, separator, value = line.partition(b"=")
        if not separator:
            break
        fields[key.decode("ascii", "replace").strip()] = value.decode("utf-8", "replace").strip()
        if key.strip() == b"ElementDataFile":
            break
    return fields


def _metaimage_bytes(fields: dict[str, str]) -> int:
    """Return the size of uncompressed pixels; 0 if the header does not determine it."""
    try:
        size = math.prod(int(n) for n in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        return size * channels * _META_BYTES[fields["ElementType"]]
    except (KeyError, ValueError):
        return 0


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
