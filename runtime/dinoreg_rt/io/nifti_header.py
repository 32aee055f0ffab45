"""NIfTI headers: the fields that say how voxels are stored, read and written."""

from __future__ import annotations

import math
import struct
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray, Geometry

#: Length of the part of a file that `parse_header` needs.
HEADER_BYTES = 544

#: NumPy name of a pixel type -> NIfTI datatype code.
_DATATYPES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256}
_DATATYPES |= {"uint16": 512, "uint32": 768, "int64": 1024, "uint64": 1280}
_PIXEL_TYPES = {code: name for name, code in _DATATYPES.items()}
#: Bits per voxel of each datatype code. ITK trusts the code and ignores the header's bitpix.
_BITS = {code: 8 * np.dtype(name).itemsize for name, code in _DATATYPES.items()}
_BITS |= {32: 64, 128: 24, 1536: 128, 1792: 128, 2048: 256, 2304: 32}
_HEADER = struct.Struct("<i10s18sihcB8h3f4h8f3fhBB4f2i80s24shh3f3f12f16s4s")
_VECTOR_INTENT = 1007
_SCANNER_ANATOMICAL = 1
_MILLIMETRES = 2
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


def build_header(geometry: Geometry, pixel_type: str, components: int) -> bytes:
    """Return the 348 bytes of a NIfTI-1 header for `components` values per voxel."""
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
