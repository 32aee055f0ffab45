"""NIfTI headers read, NIfTI-1 files written in one pass, and gzip read with its checksum.

Writing and unpacking are done here because of a 71 MB displacement field: SimpleITK takes 1.7 s to
write it as ``.nii.gz`` and holds three copies, while streaming slabs through ISA-L takes 0.2 s and
holds one slab. ITK's reader silently returns zeros for the missing part of a truncated gzip.
"""

from __future__ import annotations

import gzip
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..types import FloatArray, Geometry
from .staging import hidden_folder

GZIP_MAGIC = b"\x1f\x8b"
#: Length of the part of a file that `parse_header` needs.
HEADER_BYTES = 544

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
_PIXEL_TYPES = {code: name for name, code in _DATATYPES.items()}
#: Bits per voxel of each datatype code. ITK trusts the code and ignores the header's bitpix.
_BITS = {code: 8 * np.dtype(name).itemsize for name, code in _DATATYPES.items()}
_BITS |= {32: 64, 128: 24, 1536: 128, 1792: 128, 2048: 256, 2304: 32}
_HEADER = struct.Struct("<i10s18sihcB8h3f4h8f3fhBB4f2i80s24shh3f3f12f16s4s")
_VECTOR_INTENT = 1007
_SCANNER_ANATOMICAL = 1
_MILLIMETRES = 2
_CHUNK = 1 << 22
_PREFIX = "dinoreg-unpacked-"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class NiftiHeader(NamedTuple):
    """The fields of a NIfTI header that say how its voxels are stored.

    Attributes:
        order: byte order, ``<`` or ``>``.
        dim: number of axes, followed by the lengths of the axes.
        datatype: NIfTI code of the pixel type.
        bits: bits per voxel.
        pixdim: handedness, followed by the spacing along each axis.
        offset: position of the first voxel in the file, in bytes.
        slope: factor on the stored values; 0 and NaN mean that they are not scaled.
        intercept: constant added after the factor.
        first_voxel: smallest allowed `offset`: 352 for NIfTI-1, 544 for NIfTI-2.
    """

    order: Literal["<", ">"]
    dim: tuple[int, ...]
    datatype: int
    bits: int
    pixdim: tuple[float, ...]
    offset: float
    slope: float
    intercept: float
    first_voxel: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes, the fastest one first."""
        return self.dim[1 : 1 + max(self.dim[0], 0)]

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The NumPy type of the stored values; None if NumPy has none."""
        name = _PIXEL_TYPES.get(self.datatype)
        return None if name is None else np.dtype(name).newbyteorder(self.order)

    @property
    def voxels(self) -> int:
        """Number of voxels, over all axes."""
        return math.prod(max(n, 1) for n in self.shape)

    @property
    def scaled(self) -> bool:
        """Whether the values of the image are not those stored."""
        factor = self.slope if math.isfinite(self.slope) and self.slope != 0 else 1.0
        return (factor, self.intercept) != (1.0, 0.0)


def parse_header(raw: bytes) -> NiftiHeader | None:
    """Return the NIfTI-1 or NIfTI-2 header at the beginning of a file; None if there is none."""
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = struct.unpack_from(f"{order}i", raw)[0] if len(raw) >= 348 else 0
        if size == 348:
            dim = struct.unpack_from(f"{order}8h", raw, 40)
            datatype, bits = struct.unpack_from(f"{order}2h", raw, 70)
            pixdim = struct.unpack_from(f"{order}8f", raw, 76)
            offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
        elif size == 540 and len(raw) >= 540:
            datatype, bits = struct.unpack_from(f"{order}2h", raw, 12)
            dim = struct.unpack_from(f"{order}8q", raw, 16)
            pixdim = struct.unpack_from(f"{order}8d", raw, 104)
            offset, slope, intercept = struct.unpack_from(f"{order}q2d", raw, 168)
        else:
            continue
        bits = _BITS.get(datatype, bits)
        first = 352 if size == 348 else 544
        return NiftiHeader(order, dim, datatype, bits, pixdim, offset, slope, intercept, first)
    return None


def check_extent(header: NiftiHeader, size_bytes: int, name: str) -> None:
    """Require that a file of `size_bytes` holds all the voxels that its header announces.

    Raises:
        InputError: the voxels begin within the header, or some are missing.
    """
    if not header.first_voxel <= header.offset < math.inf:  # NaN fails both comparisons
        raise InputError(
            f"{name}: its header says that the voxels begin at byte {header.offset:g} "
            f"(vox_offset); {header.first_voxel} or more is needed: correct the header"
        )
    check_length(size_bytes, int(header.offset) + header.voxels * header.bits // 8, name)


def check_length(size_bytes: int, wanted_bytes: int, name: str) -> None:
    """Require that a file is as long as its header says.

    Raises:
        InputError: the file is truncated.
    """
    if size_bytes < wanted_bytes:
        raise InputError(
            f"{name}: truncated file: {size_bytes} bytes, but its header announces "
            f"{wanted_bytes}; copy or download it again"
        )


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
        stream.write(_header(geometry, pixel_type, len(channels)) + bytes(4))
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
    folder = hidden_folder(Path(tempfile.gettempdir()), _PREFIX)
    plain = folder / "image.nii"
    try:
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
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    """Return NIfTI's qfac and the (b, c, d) of the rotation closest to `direction` (RAS)."""
    qfac = 1.0 if np.linalg.det(direction) > 0 else -1.0
    r = direction * np.array([1.0, 1.0, qfac])
    # Bar-Itzhack: the quaternion is the eigenvector of the largest eigenvalue of this matrix.
    k = np.empty((4, 4))
    k[:3, :3] = r + r.T - np.trace(r) * np.eye(3)
    k[3, :3] = k[:3, 3] = r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]
    k[3, 3] = np.trace(r)
    b, c, d, a = np.linalg.eigh(k)[1][:, -1]
    return qfac, np.array([b, c, d]) * (1.0 if a >= 0 else -1.0)
