"""NIfTI-1 written in one pass, and gzip read with its checksum.

Both exist because of measurements on a 71 MB displacement field: SimpleITK takes 1.7 s to write
it as ``.nii.gz`` and holds three copies; streaming slabs through ISA-L takes 0.2 s and holds one
slab. And ITK's reader returns zeros for the missing part of a truncated gzip without a word.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import FloatArray, Geometry
from . import integrity
from .staging import own_prefix, remove_abandoned

#: NumPy name of a pixel type -> NIfTI datatype code.
_DATATYPES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "float64": 64,
    "int8": 256,
    "uint16": 512,
    "uint32": 768,
    "int64": 1024,
    "uint64": 1280,
}
_HEADER = struct.Struct("<i10s18sihcB8h3f4h8f3fhBB4f2i80s24shh3f3f12f16s4s")
_VECTOR_INTENT = 1007
_SCANNER_ANATOMICAL = 1
_MILLIMETRES = 2
_CHUNK = 1 << 22
_PREFIX = "dinoreg-unpacked-"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def write_nifti(path: Path, array: NDArray[Any], geometry: Geometry, pixel_type: str) -> None:
    """Write ``.nii`` or ``.nii.gz``.

    Args:
        path: file to write; gzip if the name ends in ``.gz``.
        array: (D, H, W), or (D, H, W, 3) for a vector image whose components stay as they are
            (LPS), as ITK reads and writes them.
        geometry: the grid, LPS.
        pixel_type: NumPy name; integers are rounded and clipped to their range.
    """
    dtype = np.dtype(pixel_type).newbyteorder("<")
    channels = [array] if array.ndim == 3 else [array[..., c] for c in range(array.shape[3])]
    with _open_for_writing(path) as stream:
        stream.write(_header(geometry, pixel_type, len(channels)) + bytes(4))
        step = max(1, _CHUNK // (dtype.itemsize * array.shape[1] * array.shape[2]))
        for channel in channels:
            for start in range(0, array.shape[0], step):
                slab = np.ascontiguousarray(cast_pixels(channel[start : start + step], dtype))
                stream.write(slab.data.cast("B"))


def cast_pixels(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`array` as `dtype`; floats become integers by rounding and clipping to the range."""
    if dtype.kind == "f" or array.dtype.kind in "iu":
        return array.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # The largest 64-bit integer is no float64: one step below it does not overflow.
    top = limits.max if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0.0)
    return np.clip(np.rint(array.astype(np.float64)), limits.min, top).astype(dtype)


@contextmanager
def gunzipped(path: Path) -> Iterator[Path]:
    """Unpack a gzip file for the length of the block, its checksum verified.

    Yields:
        The unpacked file, in a temporary folder, under a name that ITK can read whatever `path`
        is called.

    Raises:
        InputError: truncated or corrupt, or no room in the temporary folder.
    """
    remove_abandoned(Path(tempfile.gettempdir()), _PREFIX)  # of processes that were killed
    with tempfile.TemporaryDirectory(prefix=own_prefix(_PREFIX)) as folder:
        plain = Path(folder) / "image.nii"
        try:
            with open_gzip(path) as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, _CHUNK)
        except _gzip_errors() as error:
            raise InputError(f"{path}: {_why_not_unpacked(path, error)}") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be unpacked into {tempfile.gettempdir()}: {error.strerror}; "
                "set TMPDIR to a folder with more room"
            ) from error
        yield plain


def _why_not_unpacked(path: Path, error: Exception) -> str:
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == integrity.GZIP_MAGIC
    if not is_gzip and integrity.is_nifti(path):
        return "is not compressed; rename it to end in .nii"
    if is_gzip and _ends_in_other_bytes(path):
        return "other bytes follow its gzip data, damaged? copy or download it again"
    if isinstance(error, EOFError):
        return "truncated gzip file: it ends too early; copy or download it again"
    return f"corrupt gzip file ({error}); copy or download it again"


def _ends_in_other_bytes(path: Path) -> bool:
    """Whether whole gzip members are followed by what is none; the readers say it is too short."""
    with path.open("rb") as stream:
        unpacker, packed = zlib.decompressobj(wbits=31), stream.read(_CHUNK)
        try:
            while packed:
                unpacker.decompress(packed, _CHUNK)
                packed = unpacker.unconsumed_tail or unpacker.unused_data or stream.read(_CHUNK)
                if unpacker.eof and packed:
                    packed += stream.read(len(integrity.GZIP_MAGIC))
                    if not packed.startswith(integrity.GZIP_MAGIC):
                        return True
                    unpacker = zlib.decompressobj(wbits=31)
        except zlib.error:
            pass
    return False


def open_gzip(path: Path) -> IO[bytes]:
    """Open a gzip file for reading, with ISA-L where it is installed."""
    try:
        from isal import igzip
    except ImportError:  # platforms that ISA-L does not know
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
    # Level 1 with one thread: level 3 saves nothing on float fields and takes twice as long.
    stream = igzip_threaded.open(
        os.fspath(path), "wb", compresslevel=1, threads=1, block_size=_CHUNK
    )
    return cast(IO[bytes], stream)


def _header(geometry: Geometry, pixel_type: str, components: int) -> bytes:
    x, y, z = geometry.shape_xyz
    vector = components > 1
    dim = (5, x, y, z, 1, components, 1, 1) if vector else (3, x, y, z, 1, 1, 1, 1)
    direction = _LPS_TO_RAS @ geometry.direction
    origin = _LPS_TO_RAS @ np.asarray(geometry.origin_mm)
    qfac, quaternion = _quaternion(direction)
    rows = np.column_stack([direction * np.asarray(geometry.spacing_mm), origin])
    fields: list[Any] = [348, b"", b"", 0, 0, b"r", 0, *dim, 0.0, 0.0, 0.0]
    fields += [_VECTOR_INTENT if vector else 0, _DATATYPES[pixel_type]]
    fields += [np.dtype(pixel_type).itemsize * 8, 0]
    fields += [qfac, *geometry.spacing_mm, 1.0, 1.0, 1.0, 1.0]
    fields += [352.0, 1.0, 0.0, 0, 0, _MILLIMETRES, 0.0, 0.0, 0.0, 0.0, 0, 0, b"dinoreg-rt", b""]
    fields += [_SCANNER_ANATOMICAL, _SCANNER_ANATOMICAL, *quaternion, *origin, *rows.ravel()]
    return _HEADER.pack(*fields, b"", b"n+1\0")


def _quaternion(direction: FloatArray) -> tuple[float, FloatArray]:
    """NIfTI's handedness and the (b, c, d) of the rotation closest to `direction` (RAS)."""
    qfac = 1.0 if np.linalg.det(direction) > 0 else -1.0
    r = direction * np.array([1.0, 1.0, qfac])
    # Bar-Itzhack: the rotation is the eigenvector of the largest eigenvalue of this matrix.
    k = np.empty((4, 4))
    k[:3, :3] = r + r.T - np.trace(r) * np.eye(3)
    k[3, :3] = k[:3, 3] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    k[3, 3] = np.trace(r)
    b, c, d, a = np.linalg.eigh(k)[1][:, -1]
    return qfac, np.array([b, c, d]) * (1.0 if a >= 0 else -1.0)
