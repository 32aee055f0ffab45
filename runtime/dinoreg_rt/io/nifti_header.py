"""NIfTI headers: how voxels are stored and where they lie, read and written."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray, Geometry
from .nifti_layouts import NIFTI1, NIFTI2, Layout

#: Length of the part of a file that `parse_header` needs.
HEADER_BYTES = 544
GZIP_MAGIC = b"\x1f\x8b"

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


class Placement(NamedTuple):
    """The fields of a NIfTI header that say where its voxels lie, in the header's unit, RAS.

    Attributes:
        units: code of the unit of length: 1 metre, 2 millimetre, 3 micron; others: not stated.
        qform_code: what the quaternion refers to; 0: it is not set.
        sform_code: what the matrix refers to; 0: it is not set.
        quaternion: b, c and d of the rotation.
        offset: centre of the first voxel according to the quaternion's form.
        rows: the matrix (3, 4) from voxel indices to positions, row after row.
    """

    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    offset: tuple[float, ...]
    rows: tuple[float, ...]


class NiftiHeader(NamedTuple):
    """The fields of a NIfTI header that say how its voxels are stored, and where they lie.

    Attributes:
        order: byte order, ``<`` or ``>``.
        dim: number of axes, followed by the lengths of the axes.
        datatype: NIfTI code of the pixel type.
        bits: bits per voxel.
        pixdim: handedness, followed by the spacing along each axis.
        offset: position of the first voxel in the file, in bytes.
        slope: factor on the stored values; 0 and NaN mean that they are not scaled.
        intercept: constant added after the factor.
        first_voxel: smallest allowed `offset`: 352 for NIfTI-1, 544 for NIfTI-2; 0 for voxels in
            a file of their own.
        placement: where the voxels lie.
        intent: code and three parameters of what the values mean.
        magic: the signature, such as ``n+1``; empty for Analyze 7.5, the format before NIfTI.
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
    placement: Placement
    intent: tuple[float, ...]
    magic: bytes

    @property
    def layout(self) -> Layout:
        """Positions of the fields: NIfTI-1 (and Analyze 7.5) or NIfTI-2."""
        return NIFTI2 if self.magic.endswith(b"2") else NIFTI1

    @property
    def voxel_bytes(self) -> int:
        """Size of the stored voxels."""
        return self.voxels * self.bits // 8

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
    if len(raw) < NIFTI1.size:
        return None
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    for order in orders:
        size = struct.unpack_from(f"{order}i", raw)[0]
        for layout in (NIFTI1, NIFTI2):
            if size == layout.size <= len(raw):
                return _parse(raw, order, layout)
    return None


def _parse(raw: bytes, order: Literal["<", ">"], layout: Layout) -> NiftiHeader:
    def field(name: str) -> tuple[Any, ...]:
        return layout.read(raw, order, name)

    magic = field("magic")[0].partition(b"\0")[0]
    magic = magic if magic in (b"n+1", b"ni1", b"n+2", b"ni2") else b""
    (datatype,) = field("datatype")
    placement = Placement(
        units=field("xyzt_units")[0] & 7,
        qform_code=field("qform_code")[0],
        sform_code=field("sform_code")[0],
        quaternion=field("quatern"),
        offset=field("qoffset"),
        rows=(*field("srow_x"), *field("srow_y"), *field("srow_z")),
    )
    return NiftiHeader(
        order=order,
        dim=field("dim"),
        datatype=datatype,
        bits=_BITS.get(datatype, field("bitpix")[0]),
        pixdim=field("pixdim"),
        offset=field("vox_offset")[0],
        slope=field("scl_slope")[0],
        intercept=field("scl_inter")[0],
        first_voxel=0 if magic.startswith(b"ni") else layout.first_voxel,
        placement=placement,
        intent=(*field("intent_code"), *field("intent_p")),
        magic=magic,
    )


def read_header(file: Path, name: str, *, paired: bool) -> NiftiHeader:
    """Read the header of an uncompressed file.

    Args:
        file: the file that begins with the header.
        name: the name for error messages.
        paired: the voxels lie in a file of their own.

    Raises:
        InputError: the file has no NIfTI header, or one of the other kind.
    """
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
    if not header.magic:
        raise InputError(
            f"{name}: has no NIfTI signature, as in the older format Analyze 7.5, which does not "
            "say which side is left: convert it to NIfTI with a program that knows where it is from"
        )
    if header.magic.startswith(b"ni") != paired:
        wanted = ".nii, because its voxels follow" if paired else ".hdr, because its voxels lie in "
        wanted += " the header" if paired else "an .img file"
        raise InputError(f"{name}: its header belongs in a file that ends in {wanted}")
    return header


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
    check_length(size_bytes, int(header.offset) + header.voxel_bytes, name)


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
