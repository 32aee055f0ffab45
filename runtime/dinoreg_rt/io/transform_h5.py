"""ITK's HDF5 transform files, read and written without a float64 copy of the displacement.

The layout, as ITK 5.4 writes it, is a group ``TransformGroup`` with members ``0``, ``1``, ... Each
holds the string ``TransformType`` and, except for the composite at 0, the vectors
``TransformParameters`` and ``TransformFixedParameters``. A composite applies its last member first.
ITK accepts parameters in float32 and in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..types import AffineTransform, DisplacementField, FloatArray, Geometry
from . import validate

_GROUP = "TransformGroup"
_TYPE = "TransformType"
_PARAMETERS = "TransformParameters"
_FIXED = "TransformFixedParameters"
_COMPOSITE = "CompositeTransform"
_MATRIX_TYPES = ("AffineTransform", "MatrixOffsetTransformBase")
_FIELD_TYPE = "DisplacementFieldTransform"


def read_chain(path: Path) -> tuple[AffineTransform | DisplacementField, ...] | None:
    """Read the chain in `path`, which is applied first element first.

    Returns:
        None if the file has an old layout or holds a kind other than composite, affine and
        displacement field; ITK has to read it then.

    Raises:
        InputError: the file is not HDF5, is damaged or not 3D, or holds several transforms without
            a composite.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if _GROUP not in file:
                raise InputError(f"{path}: is an HDF5 file, but holds no ITK transform")
            members = [file[_GROUP][key] for key in sorted(file[_GROUP], key=int)]
            kinds = [_kind(member, path) for member in members]
            if kinds[0] == _COMPOSITE:
                members, kinds = members[1:], kinds[1:]
            elif len(members) > 1:
                raise InputError(
                    f"{path}: holds {len(members)} transforms without a composite, which leaves "
                    "their order open: save them as one composite, or one per file"
                )
            if not _all_known(members, kinds):
                return None
            steps = [_read_step(m, k, str(path)) for m, k in zip(members, kinds, strict=True)]
            return tuple(reversed(steps))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: cannot be read as an ITK transform; it is truncated or damaged ({error})"
        ) from error


def write_composite(
    path: Path,
    affine: AffineTransform,
    grid: Geometry,
    slabs: Iterable[tuple[int, FloatArray]],
) -> None:
    """Write the composite that applies a displacement first and then `affine`.

    Args:
        path: file to write.
        affine: stored in float64, centred at 0.
        grid: grid of the displacement.
        slabs: first z index and displacement (n, H, W, 3) in mm of each slab; stored in float32.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        _write_members(path, affine, grid, slabs)
    except RuntimeError as error:  # h5py raises it if the disk is full when the file is closed
        raise OSError(str(error)) from error


def _write_members(
    path: Path,
    affine: AffineTransform,
    grid: Geometry,
    slabs: Iterable[tuple[int, FloatArray]],
) -> None:
    import h5py

    depth, height, width = grid.shape_zyx
    with h5py.File(path, "w", libver="earliest") as file:
        _write_string(file, "ITKVersion", "5.4.0")
        _write_string(file, "HDFVersion", h5py.version.hdf5_version)
        _write_string(file, f"{_GROUP}/0/{_TYPE}", f"{_COMPOSITE}_double_3_3")
        _write_string(file, f"{_GROUP}/1/{_TYPE}", "AffineTransform_double_3_3")
        numbers = np.concatenate([affine.matrix.ravel(), affine.translation_mm])
        file[f"{_GROUP}/1/{_PARAMETERS}"] = numbers
        file[f"{_GROUP}/1/{_FIXED}"] = np.zeros(3)
        _write_string(file, f"{_GROUP}/2/{_TYPE}", f"{_FIELD_TYPE}_float_3_3")
        file[f"{_GROUP}/2/{_FIXED}"] = _fixed_parameters(grid)
        plane = height * width * 3
        data = file.create_dataset(f"{_GROUP}/2/{_PARAMETERS}", (depth * plane,), dtype="<f4")
        for start, slab in slabs:
            begin = start * plane
            data[begin : begin + slab.size] = slab.astype(np.float32).ravel()


def _kind(member: Any, path: Path) -> str:
    text = member[_TYPE][0]
    full = text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)
    kind, *rest = full.split("_")
    if rest[-2:] != ["3", "3"]:
        raise InputError(f"{path}: holds {full}; a 3D transform is needed")
    return kind


def _all_known(members: list[Any], kinds: list[str]) -> bool:
    return all(
        kind in (*_MATRIX_TYPES, _FIELD_TYPE) and _PARAMETERS in member and _FIXED in member
        for member, kind in zip(members, kinds, strict=True)
    )


def _read_step(member: Any, kind: str, name: str) -> AffineTransform | DisplacementField:
    fixed = np.array(member[_FIXED], dtype=np.float64)
    if kind == _FIELD_TYPE:
        return _read_field(member[_PARAMETERS], fixed, name)
    numbers = np.array(member[_PARAMETERS], dtype=np.float64).reshape(12)
    matrix, translation = numbers[:9].reshape(3, 3), numbers[9:]
    return AffineTransform(matrix, translation + fixed - matrix @ fixed)


def _read_field(parameters: Any, fixed: FloatArray, name: str) -> DisplacementField:
    size, origin, spacing = fixed[:9].reshape(3, 3)
    x, y, z = (int(n) for n in size)
    grid = Geometry(
        (z, y, x),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        fixed[9:18].reshape(3, 3),
    )
    validate.check_geometry(grid, name)
    vectors = np.empty((z, y, x, 3), dtype=np.float32)
    if parameters.shape != (vectors.size,):
        raise ValueError(f"{parameters.shape} parameters for {vectors.size} values")
    parameters.read_direct(vectors.reshape(-1))  # HDF5 converts float64
    validate.check_displacements(vectors, name)
    return DisplacementField(vectors, grid)


def _fixed_parameters(grid: Geometry) -> FloatArray:
    size = np.asarray(grid.shape_xyz, dtype=np.float64)
    return np.concatenate([size, grid.origin_mm, grid.spacing_mm, grid.direction.ravel()])


def _write_string(file: Any, key: str, text: str) -> None:
    import h5py

    file.create_dataset(key, data=[text], dtype=h5py.string_dtype("ascii"))
