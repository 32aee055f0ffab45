"""Displacement files of the Learn2Reg challenges.

They are NIfTI-1 files whose header says nothing: a plain 4D array in voxels, mostly with an
identity affine. They are read here byte by byte, because ITK's NIfTI reader turns NaN into 0
without a word and refuses affines that are no rotation, which for these files mean nothing.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import apply_matrix, index_to_lps, slab_affine, z_slabs
from ..types import DisplacementField, Geometry

#: NIfTI datatype code -> NumPy type.
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"}


def read_learn2reg_displacement(
    path: Path, fixed_grid: Geometry, moving_grid: Geometry
) -> DisplacementField:
    """A Learn2Reg ``disp_FFFF_MMMM.nii.gz`` as a displacement in mm on the fixed grid.

    The file holds an array (H, W, D, 3) in the axis order of the image files' own arrays; warped
    = ``map_coordinates(moving, identity + displacement)``, all in voxel indices. The headers of
    file and images play no part, so neither does the orientation: the index displacement is
    carried over to LPS with the grids of the two images.

    Args:
        path: the file.
        fixed_grid: grid of the fixed image as it is in its file (not reoriented).
        moving_grid: grid of the moving image as it is in its file.

    Raises:
        InputError: unreadable, not 4D with three components, not finite, or not of the fixed
            image's shape.
    """
    displacement_vox = _read_array(path)
    if displacement_vox.shape[1:] != fixed_grid.shape_zyx:
        raise InputError(
            f"{path}: displacements for {displacement_vox.shape[:0:-1]} voxels, but the fixed "
            f"image has {fixed_grid.shape_xyz} (x, y, z)"
        )
    to_moving = index_to_lps(moving_grid)
    vectors = np.empty((*fixed_grid.shape_zyx, 3), np.float32)
    for part in z_slabs(fixed_grid.shape_zyx):
        moved = slab_affine(to_moving, fixed_grid, part)
        moved += apply_matrix(to_moving.matrix, displacement_vox[:, part].reshape(3, -1).T)
        moved -= slab_affine(index_to_lps(fixed_grid), fixed_grid, part)
        vectors[part] = moved.reshape(vectors[part].shape)
    return DisplacementField(vectors, fixed_grid)


def _read_array(path: Path) -> NDArray[np.floating]:
    """(3, z, y, x) voxel displacements; component c along index axis c (x, y, z)."""
    from .nifti import gunzipped

    try:
        if path.suffix == ".gz":
            with gunzipped(path) as plain:
                content = plain.read_bytes()
        else:
            content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _parse(path, content)


def _parse(path: Path, content: bytes) -> NDArray[np.floating]:
    order = next((o for o in "<>" if content[:4] == struct.pack(f"{o}i", 348)), None)
    if order is None or len(content) < 352:
        raise InputError(f"{path}: is not a NIfTI-1 file (.nii or .nii.gz)")
    dimensions = struct.unpack_from(f"{order}8h", content, 40)
    shape = dimensions[1 : 1 + dimensions[0]]
    if len(shape) == 5 and shape[3:] == (1, 3):
        raise InputError(
            f"{path}: holds vectors (an ITK displacement field in mm), not Learn2Reg's plain "
            "(H, W, D, 3) array: give it as --transform"
        )
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{path}: has shape {shape}; a Learn2Reg file has (H, W, D, 3)")
    (code,) = struct.unpack_from(f"{order}h", content, 70)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", content, 108)
    if code not in _TYPES:
        raise InputError(f"{path}: has pixels of NIfTI type {code}; save it as float32")
    dtype = np.dtype(order + _TYPES[code])
    wanted = int(offset) + int(np.prod(shape)) * dtype.itemsize
    if len(content) < wanted:
        raise InputError(f"{path}: is truncated: {len(content)} bytes, wanted {wanted}")
    flat = np.frombuffer(content, dtype, int(np.prod(shape)), int(offset))
    values: NDArray[np.floating] = flat.reshape(shape[::-1]).astype(
        np.float64 if code == 64 else np.float32
    )
    if np.isfinite(slope) and slope != 0:  # 0 says: no scaling
        values = values * slope + intercept
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite displacements")
    return values
