"""Displacement files of the Learn2Reg challenges.

They are NIfTI-1 files with a plain 4D array in voxels, mostly with an identity affine that means
nothing. ITK cannot read them: it turns NaN into 0 and refuses affines that are not rotations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import apply_matrix, index_to_lps, slab_affine, z_slabs
from ..types import DisplacementField, Geometry
from .nifti import gunzipped
from .nifti_header import check_extent, parse_header
from .paths import check_input


def read_learn2reg_displacement(
    path: Path, fixed_grid: Geometry, moving_grid: Geometry
) -> DisplacementField:
    """Read a Learn2Reg ``disp_FFFF_MMMM.nii.gz`` as a displacement in mm on the fixed grid.

    The file holds an array (H, W, D, 3) in the axis order of the image files, with warped =
    ``map_coordinates(moving, identity + displacement)`` in voxel indices. That ignores all headers
    and orientations; the grids of the two images take the index displacement to LPS.

    Args:
        path: the file.
        fixed_grid: grid of the fixed image as in its file, not reoriented.
        moving_grid: grid of the moving image as in its file, not reoriented.

    Raises:
        InputError: the file cannot be read, is not 4D with three components, does not have the
            fixed image's shape, or holds values that are not finite.
    """
    displacement_vox = _read_array(path)
    if displacement_vox.shape[1:] != fixed_grid.shape_zyx:
        raise InputError(
            f"{path}: holds displacements for {displacement_vox.shape[:0:-1]} voxels, but the "
            f"fixed image has {fixed_grid.shape_xyz} (x, y, z)"
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
    """Read voxel displacements (3, z, y, x); component c is along index axis c (x, y, z)."""
    check_input(path)
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
    header = parse_header(content)
    if header is None or header.first_voxel != 352:
        raise InputError(f"{path}: is not a NIfTI-1 file (.nii or .nii.gz)")
    shape, dtype = header.shape, header.dtype
    if len(shape) == 5 and shape[3:] == (1, 3):
        raise InputError(
            f"{path}: holds vectors (an ITK displacement field in mm), not Learn2Reg's plain "
            "(H, W, D, 3) array: give it as --transform"
        )
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"{path}: has shape {shape}; a Learn2Reg file has (H, W, D, 3)")
    if dtype is None:
        raise InputError(f"{path}: has pixels of NIfTI type {header.datatype}; save it as float32")
    check_extent(header, len(content), str(path))
    flat = np.frombuffer(content, dtype, header.voxels, int(header.offset))
    values: NDArray[np.floating] = flat.reshape(shape[::-1]).astype(
        np.float64 if header.datatype == 64 else np.float32
    )
    if np.isfinite(header.slope) and header.slope != 0:  # 0 means no scaling
        values = values * header.slope + header.intercept
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite displacements")
    return values
