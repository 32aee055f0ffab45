"""NIfTI-1 files written in one pass, and gzip files read with their checksum.

Both exist because of measurements on a 71 MB displacement field: SimpleITK takes 1.7 s to write it
as ``.nii.gz`` and holds three copies, while streaming slabs through ISA-L takes 0.2 s and holds one
slab. ITK's reader silently returns zeros for the missing part of a truncated gzip.
"""

from __future__ import annotations

import gzip
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import Geometry
from .hidden import scratch_folder
from .nifti_header import GZIP_MAGIC, HEADER_BYTES, build_header, parse_header

_CHUNK = 1 << 22
#: Most bytes that deflate packs into one, and bytes that may follow the voxels.
_MOST_PACKED, _SLACK = 1032, 1 << 24


def write_nifti(path: Path, array: NDArray[Any], geometry: Geometry, pixel_type: str) -> None:
    """Write a ``.nii`` or ``.nii.gz`` file.

    Args:
        path: the file; compressed if its name ends in ``.gz``.
        array: (D, H, W), or (D, H, W, 3) for a vector image. Components stay in LPS, as ITK reads
            and writes them.
        geometry: the grid, LPS.
        pixel_type: NumPy name of the stored type; integers are rounded and clipped to their range.
    """
    dtype = np.dtype(pixel_type).newbyteorder("<")
    channels = [array] if array.ndim == 3 else [array[..., c] for c in range(array.shape[3])]
    with _open_for_writing(path) as stream:
        stream.write(build_header(geometry, pixel_type, len(channels)) + bytes(4))
        step = max(1, _CHUNK // (dtype.itemsize * array.shape[1] * array.shape[2]))
        for channel in channels:
            for start in range(0, array.shape[0], step):
                slab = np.ascontiguousarray(cast_pixels(channel[start : start + step], dtype))
                stream.write(slab.data.cast("B"))


def cast_pixels(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert to `dtype`; floats become integers by rounding and clipping to the range."""
    if dtype.kind == "f" or array.dtype.kind in "iu":
        return array.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # float64 cannot hold the largest 64-bit integer; the next smaller float64 does not overflow.
    top = limits.max if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0.0)
    return np.clip(np.rint(array.astype(np.float64)), limits.min, top).astype(dtype)


@contextmanager
def gunzipped(path: Path) -> Iterator[Path]:
    """Unpack a gzip file for the duration of the block and verify its checksum.

    Yields:
        The unpacked file in a temporary folder, under a name that ITK can read.

    Raises:
        InputError: the file is truncated or corrupt, or the temporary folder has no room for it.
    """
    with scratch_folder() as folder:
        plain = folder / "image.nii"
        try:
            with open_gzip(path) as packed, plain.open("wb") as unpacked:
                _unpack(packed, unpacked, path)
        except _gzip_errors() as error:
            raise InputError(f"{path}: {_why_not_unpacked(path, error)}") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be unpacked into {tempfile.gettempdir()}: {error.strerror}; "
                "set TMPDIR to a folder with more room"
            ) from error
        yield plain


def _unpack(packed: IO[bytes], unpacked: IO[bytes], path: Path) -> None:
    """Copy what a gzip file holds, but no more than its NIfTI header announces and some slack.

    Raises:
        InputError: it holds more, or is too short to hold what is announced.
    """
    chunk = packed.read(_CHUNK)
    header = parse_header(chunk[:HEADER_BYTES])
    wanted = 0
    if header is not None and math.isfinite(header.offset):
        wanted = int(header.offset) + header.voxels * header.bits // 8
        held = path.stat().st_size
        if wanted > held * _MOST_PACKED + _SLACK:
            raise InputError(
                f"{path}: truncated file: {held} bytes compressed, but its header announces "
                f"{wanted}; copy or download it again"
            )
    written = 0
    while chunk:
        unpacked.write(chunk)
        written += len(chunk)
        if written > max(wanted, 0) + _SLACK:
            if header is None:
                return  # the caller finds that this is not NIfTI
            raise InputError(
                f"{path}: unpacks to far more than the {wanted} bytes that its header announces; "
                "is it damaged? copy or download it again"
            )
        chunk = packed.read(_CHUNK)


def _why_not_unpacked(path: Path, error: Exception) -> str:
    with path.open("rb") as stream:
        raw = stream.read(HEADER_BYTES)
    is_gzip = raw.startswith(GZIP_MAGIC)
    if not is_gzip and parse_header(raw) is not None:
        return "is not compressed; rename it to end in .nii"
    if is_gzip and _ends_in_other_bytes(path):
        return "other bytes follow its gzip data, damaged? copy or download it again"
    if isinstance(error, EOFError):
        return "truncated gzip file: it ends too early; copy or download it again"
    return f"corrupt gzip file ({error}); copy or download it again"


def _ends_in_other_bytes(path: Path) -> bool:
    """Return whether other data follow whole gzip members; readers report this as truncation."""
    with path.open("rb") as stream:
        unpacker, packed = zlib.decompressobj(wbits=31), stream.read(_CHUNK)
        try:
            while packed:
                unpacker.decompress(packed, _CHUNK)
                packed = unpacker.unconsumed_tail or unpacker.unused_data or stream.read(_CHUNK)
                if unpacker.eof and packed:
                    packed += stream.read(len(GZIP_MAGIC))
                    if not packed.startswith(GZIP_MAGIC):
                        return True
                    unpacker = zlib.decompressobj(wbits=31)
        except zlib.error:
            pass
    return False


def open_gzip(path: Path) -> IO[bytes]:
    """Open a gzip file for reading, with ISA-L if it is installed."""
    try:
        from isal import igzip
    except ImportError:  # a platform without ISA-L
        return cast(IO[bytes], gzip.open(path, "rb"))
    return cast(IO[bytes], igzip.open(path, "rb"))


def _gzip_errors() -> tuple[type[Exception], ...]:
    errors: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error)
    try:
        from isal import isal_zlib
    except ImportError:
        return errors
    return (*errors, cast(type[Exception], isal_zlib.error))


def _open_for_writing(path: Path) -> IO[bytes]:
    if path.suffix != ".gz":
        return path.open("wb")
    try:
        from isal import igzip_threaded
    except ImportError:
        return cast(IO[bytes], gzip.GzipFile(path, "wb", compresslevel=1, mtime=0))
    # Level 3 saves nothing on float fields and takes twice as long.
    stream = igzip_threaded.open(
        os.fspath(path), "wb", compresslevel=1, threads=1, block_size=_CHUNK
    )
    return cast(IO[bytes], stream)
