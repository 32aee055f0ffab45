"""Positions and types of the fields in NIfTI-1 and NIfTI-2 headers."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """The fields of one version of the header.

    Attributes:
        size: length of the header in bytes, which is also its first field.
        first_voxel: smallest position of the voxels in the same file, in bytes.
        fields: position in bytes and `struct` format of each field.
    """

    size: int
    first_voxel: int
    fields: dict[str, tuple[int, str]]

    def read(self, raw: bytes, order: str, name: str) -> tuple[Any, ...]:
        """Return the values of a field in the byte order ``<`` or ``>``."""
        position, form = self.fields[name]
        return struct.unpack_from(f"{order}{form}", raw, position)

    def write(self, raw: bytearray, order: str, name: str, *values: Any) -> None:
        """Write the values of a field in place."""
        position, form = self.fields[name]
        struct.pack_into(f"{order}{form}", raw, position, *values)


NIFTI1 = Layout(
    size=348,
    first_voxel=352,
    fields={
        "sizeof_hdr": (0, "i"),
        "dim": (40, "8h"),
        "intent_p": (56, "3f"),
        "intent_code": (68, "h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quatern": (256, "3f"),
        "qoffset": (268, "3f"),
        "srow_x": (280, "4f"),
        "srow_y": (296, "4f"),
        "srow_z": (312, "4f"),
        "magic": (344, "4s"),
    },
)

NIFTI2 = Layout(
    size=540,
    first_voxel=544,
    fields={
        "sizeof_hdr": (0, "i"),
        "magic": (4, "4s"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "dim": (16, "8q"),
        "intent_p": (80, "3d"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quatern": (352, "3d"),
        "qoffset": (376, "3d"),
        "srow_x": (400, "4d"),
        "srow_y": (432, "4d"),
        "srow_z": (464, "4d"),
        "xyzt_units": (500, "i"),
        "intent_code": (504, "i"),
    },
)
