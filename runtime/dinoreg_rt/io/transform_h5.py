"""ITK's HDF5 transform files, read and written without a float64 copy of the displacement.

The layout, as ITK 5.4 writes it, is a group ``TransformGroup`` with members ``0``, ``1``, ... Each
holds the string ``TransformType`` and, except for the composite at 0, the vectors
``TransformParameters`` and ``TransformFixedParameters``. A composite applies its last member first.
ITK accepts parameters in float32 and in float64, and ignores groups of other names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..types import AffineTransform, DisplacementField, Geometry, Transform
from .arrays import as_numpy
from .guard import reader_errors
from .transform_parts import COMPOSITE, Part, build_chain, build_grid, grid_numbers

_GROUP = "TransformGroup"
_TYPE = "TransformType"
_PARAMETERS = "TransformParameters"
_FIXED = "TransformFixedParameters"
#: Names that ITK wrote before version 5.
_OLD_PARAMETERS, _OLD_FIXED = "TranformParameters", "TranformFixedParameters"
_MOST_TRANSFORMS = 1000
_LONGEST_TYPE = 1000
#: More fixed parameters than any known kind has.
_MOST_FIXED = 1000
#: Most numbers that deflate, which HDF5 applies to chunks, packs into a byte.
_MOST_PACKED = 1032
_FIELD_TYPE = "DisplacementFieldTransform"
#: A group that ITK ignores, and in it the fixed image's grid as numbers of `grid_numbers`.
_OWN_GROUP, _FIXED_GRID = "DinoregRT", "FixedGrid"


def read_chain(path: Path) -> tuple[Transform, ...]:
    """Read the chain in `path`, which is applied first element first.

    Raises:
        InputError: the file is not HDF5, is damaged or not 3D, or holds several transforms without
            a composite, or one that is neither linear nor a displacement field.
    """
    import h5py

    with reader_errors(str(path), "an ITK transform"), h5py.File(path, "r") as file:
        if _GROUP not in file:
            raise InputError(f"{path}: is an HDF5 file, but holds no ITK transform")
        members = _group(file, _GROUP)
        keys = sorted((str(key) for key in members), key=int)
        if len(keys) > _MOST_TRANSFORMS:
            raise ValueError(f"{len(keys)} transforms")
        return build_chain([_part(_group(members, key)) for key in keys], str(path))


def read_fixed_grid(path: Path) -> Geometry | None:
    """Return the fixed image's grid as `write_composite` stored it; None if there is none.

    Raises:
        InputError: the file is damaged.
    """
    import h5py

    with reader_errors(str(path), "an ITK transform"), h5py.File(path, "r") as file:
        if _OWN_GROUP not in file:
            return None
        numbers = _numbers(_dataset(_group(file, _OWN_GROUP), _FIXED_GRID))
        if numbers.size > _MOST_FIXED:
            raise ValueError(f"{numbers.size} numbers for a grid")
        return build_grid(_read(numbers, np.float64), "fixed image", str(path))


def write_composite(
    path: Path,
    affine: AffineTransform,
    deformable: DisplacementField | None,
    fixed: Geometry | None,
) -> None:
    """Write the composite that applies a displacement first, if there is one, and then `affine`.

    Args:
        path: file to write.
        affine: stored in float64, centred at 0.
        deformable: stored in float32.
        fixed: grid of the fixed image, stored in a group of its own; None: not stored.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        _write_members(path, affine, deformable, fixed)
    except RuntimeError as error:  # h5py raises it if the disk is full when the file is closed
        raise OSError(str(error)) from error


def _write_members(
    path: Path,
    affine: AffineTransform,
    deformable: DisplacementField | None,
    fixed: Geometry | None,
) -> None:
    import h5py

    with h5py.File(path, "w", libver="earliest") as file:
        _write_string(file, "ITKVersion", "5.4.0")
        _write_string(file, "HDFVersion", h5py.version.hdf5_version)
        _write_string(file, f"{_GROUP}/0/{_TYPE}", f"{COMPOSITE}_double_3_3")
        _write_string(file, f"{_GROUP}/1/{_TYPE}", "AffineTransform_double_3_3")
        numbers = np.concatenate([affine.matrix.ravel(), affine.translation_mm])
        file[f"{_GROUP}/1/{_PARAMETERS}"] = numbers
        file[f"{_GROUP}/1/{_FIXED}"] = np.zeros(3)
        if deformable is not None:
            _write_string(file, f"{_GROUP}/2/{_TYPE}", f"{_FIELD_TYPE}_float_3_3")
            file[f"{_GROUP}/2/{_FIXED}"] = grid_numbers(deformable.geometry)
            vectors = np.asarray(as_numpy(deformable.vectors_mm), "<f4")
            file[f"{_GROUP}/2/{_PARAMETERS}"] = vectors.reshape(-1)
        if fixed is not None:
            file[f"{_OWN_GROUP}/{_FIXED_GRID}"] = grid_numbers(fixed)


def _part(member: Any) -> Part:
    """Describe a transform; its parameters are read when they are asked for."""
    kind = _text(_dataset(member, _TYPE))
    names = [name for name in (_PARAMETERS, _OLD_PARAMETERS) if name in member]
    if not names:
        return Part(kind, 0, lambda dtype: np.zeros(0, dtype), np.zeros(0))
    numbers = _numbers(_dataset(member, names[0]))
    old = names[0] == _OLD_PARAMETERS
    fixed = _numbers(_dataset(member, _OLD_FIXED if old else _FIXED))
    if fixed.size > _MOST_FIXED:
        raise ValueError(f"{fixed.size} fixed parameters")
    return Part(kind, numbers.size, partial(_read, numbers), _read(fixed, np.float64))


def _read(numbers: Any, dtype: Any) -> Any:
    values = np.empty(numbers.size, dtype)
    if values.size:
        numbers.read_direct(values)  # HDF5 converts between float32 and float64
    return values


def _text(data: Any) -> str:
    """Return the one string of a dataset."""
    import h5py

    kind = h5py.check_string_dtype(data.dtype)
    if data.shape not in ((), (1,)) or kind is None:
        raise ValueError(f"{data.name} is not one string")
    if _length(data, kind) > _LONGEST_TYPE:
        raise ValueError(f"{data.name} is longer than any name")
    text = data[()] if data.shape == () else data[0]
    return text.decode("ascii", "replace") if isinstance(text, bytes) else str(text)


def _length(data: Any, kind: Any) -> int:
    """Return the length of a string without reading it; HDF5 takes memory for what is announced."""
    if kind.length is not None:
        return int(kind.length)
    offset = data.id.get_offset()
    if offset is None:
        raise ValueError(f"{data.name} is not stored as ITK does")
    with open(data.file.filename, "rb") as stream:
        stream.seek(offset)
        return int.from_bytes(stream.read(4), "little")  # then the place of the characters


def _numbers(data: Any) -> Any:
    """Check that a dataset is a vector that its file can hold, before any memory is taken."""
    if data.shape is None or len(data.shape) != 1 or data.dtype.kind not in "fiu":
        raise ValueError(f"{data.name} is not a vector of numbers")
    if data.is_virtual or data.external:
        raise ValueError(f"{data.name} lies in another file")
    held = data.id.get_storage_size()
    if data.size * data.dtype.itemsize > held * (_MOST_PACKED if data.chunks else 1):
        raise ValueError(f"{data.name} announces {data.size} numbers and holds {held} bytes")
    return data


def _group(parent: Any, key: str) -> Any:
    return _member(parent, key, "Group")


def _dataset(parent: Any, key: str) -> Any:
    return _member(parent, key, "Dataset")


def _member(parent: Any, key: str, kind: str) -> Any:
    """Return a member of a group that lies in the same file and is of the wanted kind."""
    import h5py

    if not isinstance(parent.get(key, getlink=True), h5py.HardLink):
        raise ValueError(f"{key} is a link, possibly into another file")
    member = parent[key]
    if not isinstance(member, getattr(h5py, kind)):
        raise ValueError(f"{key} is not a {kind.lower()}")
    return member


def _write_string(file: Any, key: str, text: str) -> None:
    import h5py

    file.create_dataset(key, data=[text], dtype=h5py.string_dtype("ascii"))
