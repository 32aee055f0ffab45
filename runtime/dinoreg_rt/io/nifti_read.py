"""NIfTI images read and checked: NIfTI-1 and NIfTI-2, in one file or as header and voxels.

ITK reads the voxels. It has no reader for NIfTI-2, which is copied into a NIfTI-1 file for it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import OrientationChoice
from ..errors import InputError
from ..types import Geometry
from . import integrity, nifti
from .doubts import HeaderDoubts
from .hidden import scratch_folder
from .itk_files import load, set_geometry
from .nifti_header import NiftiHeader, read_header
from .nifti_layouts import NIFTI1
from .nifti_placement import place

if TYPE_CHECKING:
    import SimpleITK as sitk

_CHUNK = 1 << 22


def read_nifti(
    file: Path, *, values: bool, orientation: OrientationChoice
) -> tuple[sitk.Image, bool, HeaderDoubts]:
    """Read a NIfTI image.

    Args:
        file: ``.nii`` or ``.nii.gz``, or one of a pair of ``.hdr`` and ``.img``.
        values: check the values as well.
        orientation: the placement to take if the header holds two that differ.

    Returns:
        The image, whether its float32 values are known to be finite, and what its header leaves in
        doubt.

    Raises:
        InputError: the file cannot be used.
    """
    name = str(file)
    with ExitStack() as stack:
        header_file, voxel_file = _files(file)
        if file.suffix.lower() == ".gz":
            header_file = voxel_file = stack.enter_context(nifti.gunzipped(file))
        header = read_header(header_file, name, paired=header_file != voxel_file)
        finite = integrity.check_nifti(header, voxel_file, name, values=values)
        readable = header_file
        if header.layout is not NIFTI1:
            readable = stack.enter_context(_as_nifti1(header, voxel_file, name))
        image = load(readable, name)
    itk = Geometry.from_sitk(image)
    geometry, doubts = place(header, itk, name, orientation)
    if geometry is not itk:
        set_geometry(image, geometry)
    return image, finite, doubts


def _files(file: Path) -> tuple[Path, Path]:
    """Return the files of the header and of the voxels."""
    if file.suffix.lower() not in (".hdr", ".img"):
        return file, file
    upper = file.suffix.isupper()
    header, voxels = (file.with_suffix(s.upper() if upper else s) for s in (".hdr", ".img"))
    for part in (header, voxels):
        if not part.is_file():
            raise InputError(
                f"{file}: {part.name} is missing; a .hdr file and its .img file belong together"
            )
    return header, voxels


@contextmanager
def _as_nifti1(header: NiftiHeader, voxel_file: Path, name: str) -> Iterator[Path]:
    """Copy a NIfTI-2 image into a NIfTI-1 file for the duration of the block."""
    if max(header.dim) > 32767:
        shape = " x ".join(str(n) for n in header.shape)
        raise InputError(
            f"{name}: has an axis of more than 32767 voxels ({shape}); crop or resample it"
        )
    with scratch_folder() as folder:
        plain = folder / "image.nii"
        try:
            with voxel_file.open("rb") as source, plain.open("wb") as target:
                target.write(_nifti1_header(header))
                source.seek(int(header.offset))
                shutil.copyfileobj(source, target, _CHUNK)
        except OSError as error:
            raise InputError(
                f"{name}: cannot be converted in {tempfile.gettempdir()}: {error.strerror}; set "
                "TMPDIR to a folder with more room"
            ) from error
        yield plain


def _nifti1_header(header: NiftiHeader) -> bytes:
    raw, where = bytearray(NIFTI1.first_voxel), header.placement
    fields = {
        "sizeof_hdr": (NIFTI1.size,),
        "dim": header.dim,
        "intent_code": (int(header.intent[0]),),
        "intent_p": header.intent[1:],
        "datatype": (header.datatype,),
        "bitpix": (header.bits,),
        "pixdim": header.pixdim,
        "vox_offset": (NIFTI1.first_voxel,),
        "scl_slope": (header.slope,),
        "scl_inter": (header.intercept,),
        "xyzt_units": (where.units,),
        "qform_code": (where.qform_code,),
        "sform_code": (where.sform_code,),
        "quatern": where.quaternion,
        "qoffset": where.offset,
        "srow_x": where.rows[:4],
        "srow_y": where.rows[4:8],
        "srow_z": where.rows[8:],
        "magic": (b"n+1",),
    }
    for field, values in fields.items():
        NIFTI1.write(raw, header.order, field, *values)
    return bytes(raw)
