"""Damage in NIfTI files that ITK reads without complaint, found before ITK is asked.

Measured with SimpleITK 2.5: the missing part of a truncated ``.nii`` or ``.nii.gz`` comes back as
zeros, NaN and Inf in a NIfTI become 0, and its spacing of 0 becomes 1 mm. `metaimage` finds the
same in MetaImage files. NRRD reports its own damage.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import validate
from .nifti_header import NiftiHeader, check_extent

_CHUNK = 1 << 22
#: ITK does not apply a smaller factor.
_ITK_EPSILON = 2.0**-52


def check_nifti(header: NiftiHeader, file: Path, name: str, *, values: bool = True) -> bool:
    """Require that the voxels of an uncompressed NIfTI file are all there and finite.

    Args:
        header: the header of the image.
        file: the file with the voxels: ``.nii`` or ``.img``.
        name: the name for error messages.
        values: check the values too.

    Returns:
        Whether the voxels of the image are float32 values that were found to be finite.

    Raises:
        InputError: a spacing that is not positive, a factor that ITK ignores, voxels that begin
            within the header, missing voxels, NaN or Inf.
    """
    axes = range(1, min(max(header.dim[0], 0), 3) + 1)
    if not all(0 < header.pixdim[a] < math.inf for a in axes):
        spacing = " x ".join(f"{header.pixdim[a]:g}" for a in axes)
        raise InputError(
            f"{name}: has a voxel spacing of {spacing} mm; each must be positive: correct the "
            "header"
        )
    if 0 < abs(header.slope) < _ITK_EPSILON:
        raise InputError(
            f"{name}: scales its values by {header.slope:g} (scl_slope), which ITK takes as 1; "
            "store them in another unit, as floating-point numbers"
        )
    check_extent(header, file.stat().st_size, name)
    dtype = header.dtype
    if not values or dtype is None or dtype.kind != "f":
        return False
    _check_floats(file, header, dtype, name)
    return dtype.itemsize == 4 and not header.scaled


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
