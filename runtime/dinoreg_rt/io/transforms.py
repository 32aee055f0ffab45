"""Transform files read and written as chains of `AffineTransform` and `DisplacementField`.

A chain is applied first element first, while an ITK composite lists its parts in reverse order. All
transforms map fixed points to moving points, in LPS mm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..config.image_parameters import LinearModel
from ..errors import InputError, OutputError
from ..types import (
    AffineTransform,
    DisplacementField,
    FloatArray,
    OrientationChoice,
    Transform,
)
from . import transform_h5
from .arrays import as_numpy
from .convert import array_to_sitk
from .images import READABLE, image_suffix, read_displacement
from .paths import check_input, check_name, output_errors
from .staging import staged_file
from .transform_parts import build_chain, check_affine
from .transform_text import read_parts

if TYPE_CHECKING:
    import SimpleITK as sitk

_TRANSFORM_FILES = (".tfm", ".txt", ".mat", ".h5", ".hdf5")
_SLAB_VOXELS = 1 << 19


def read_transform(
    path: str | os.PathLike[str], *, orientation: OrientationChoice = "auto"
) -> tuple[Transform, ...]:
    """Read a transform as a chain, which is applied first element first.

    Args:
        path: ITK ``.tfm``, ``.txt``, ``.h5`` or ``.hdf5`` (single or composite), ANTs ``.mat``, or
            a displacement field (mm, LPS) as a vector image.
        orientation: the placement to take if a NIfTI header holds two that differ, see
            `read_volume`.

    Raises:
        InputError: the file is missing or damaged, or the transform is not 3D or neither affine nor
            a displacement field.
    """
    check_input(path)
    file = Path(path)
    if not file.exists():
        raise InputError(f"{file}: no such file")
    if file.is_dir():
        raise InputError(f"{file}: is a folder; a transform is one file")
    suffix = image_suffix(file)
    if suffix in READABLE:
        return (read_displacement(file, orientation=orientation),)
    if suffix not in _TRANSFORM_FILES:
        raise InputError(
            f"{file}: unknown transform format '{suffix}'; "
            f"give {', '.join(_TRANSFORM_FILES + READABLE)}"
        )
    if suffix in (".h5", ".hdf5"):
        chain = transform_h5.read_chain(file)
    else:
        chain = build_chain(read_parts(file), str(file))
    for step in chain:
        if isinstance(step, AffineTransform):
            check_affine(step, str(file))
    return chain


def read_initial(path: str | os.PathLike[str]) -> AffineTransform:
    """Read an initial alignment: an affine transform, or a composite of affine transforms.

    Raises:
        InputError: as `read_transform`, or the file holds a displacement field.
    """
    chain = read_transform(path)
    affines = [step for step in chain if isinstance(step, AffineTransform)]
    if len(affines) < len(chain):
        raise InputError(
            f"{path}: holds a displacement field; an initial alignment must be affine (or rigid)"
        )
    return reduce(lambda inner, outer: geometry.compose_affines(outer, inner), affines)


def write_affine(path: str | os.PathLike[str], affine: AffineTransform) -> None:
    """Write an ITK affine transform as ``.tfm``, ``.txt``, ``.mat``, ``.h5`` or ``.hdf5``.

    Raises:
        OutputError: the file cannot be written, or has another suffix.
    """
    write_linear(path, _affine_to_sitk(affine))


def write_linear(path: str | os.PathLike[str], transform: sitk.Transform) -> None:
    """Write a linear transform of ITK, such as `linear_to_sitk` returns; as `write_affine`.

    Raises:
        OutputError: as `write_affine`.
    """
    import SimpleITK as sitk

    check_name(path, OutputError)
    target = Path(path)
    if target.suffix.lower() not in _TRANSFORM_FILES:
        raise OutputError(
            f"{target}: transforms cannot be written as '{target.suffix}'; use "
            f"{', '.join(_TRANSFORM_FILES)}"
        )
    with staged_file(target) as staged, output_errors(target):
        try:
            sitk.WriteTransform(transform, str(staged))
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error


def linear_to_sitk(
    affine: AffineTransform, model: LinearModel, centre_mm: FloatArray
) -> sitk.Transform:
    """Convert a linear map to ITK's transform of its model, with `centre_mm` (LPS) as its centre.

    Args:
        affine: a map of the model, up to rounding.
        model: rigid (``Euler3DTransform``), similarity (``Similarity3DTransform``) or affine
            (``AffineTransform``).
        centre_mm: point about which ITK's parameters turn and scale.
    """
    import SimpleITK as sitk

    kinds = {
        "rigid": sitk.Euler3DTransform,
        "similarity": sitk.Similarity3DTransform,
        "affine": lambda: sitk.AffineTransform(3),
    }
    transform = kinds[model]()
    transform.SetCenter(centre_mm.tolist())
    transform.SetMatrix(affine.matrix.ravel().tolist())
    there = geometry.transform_points(affine, centre_mm[None])[0]
    transform.SetTranslation((there - centre_mm).tolist())
    return transform


def composite_to_sitk(
    initial: AffineTransform, displacement: DisplacementField
) -> sitk.CompositeTransform:
    """Convert the mapping ``p -> p + u(p)`` to ITK's composite of `initial` and a remainder.

    The composite is ``T(p) = A(p + d(p))`` with ``d(p) = A^-1(p + u(p)) - p``. Linear
    interpolation commutes with an affine map, so both are the same between the voxel centres of
    the grid. Outside it T is A, where the field alone would be the identity.

    Args:
        initial: A, the initial alignment.
        displacement: u, the whole mapping, A included.
    """
    import SimpleITK as sitk

    remaining = np.empty(displacement.vectors_mm.shape, dtype=np.float64)
    for start, slab in remaining_slabs(initial, displacement):
        remaining[start : start + len(slab)] = slab
    composite = sitk.CompositeTransform(3)
    composite.AddTransform(_affine_to_sitk(initial))
    field = array_to_sitk(remaining, displacement.geometry)
    composite.AddTransform(sitk.DisplacementFieldTransform(field))
    return composite


def write_composite_h5(
    path: str | os.PathLike[str], initial: AffineTransform, displacement: DisplacementField
) -> None:
    """Write the transform of `composite_to_sitk` as ITK HDF5, slab by slab.

    The displacement is stored as float32, half the size that ITK writes.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    with staged_file(target) as staged, output_errors(target):
        slabs = remaining_slabs(initial, displacement)
        transform_h5.write_composite(staged, initial, displacement.geometry, slabs)


def remaining_slabs(
    initial: AffineTransform, displacement: DisplacementField
) -> Iterator[tuple[int, FloatArray]]:
    """Compute the remainder ``d(p) = A^-1(p + u(p)) - p`` in slabs along z.

    Yields:
        The first z index, and the slab (n, H, W, 3) in mm, float64.
    """
    inverse = geometry.invert_affine(initial)
    to_lps = geometry.index_to_lps(displacement.geometry)
    # d is affine in the index plus A^-1's matrix times u: (A^-1 - 1)(M i + o) + t + A^-1 u.
    excess = inverse.matrix - np.eye(3)
    by_index = excess @ to_lps.matrix
    constant = excess @ to_lps.translation_mm + inverse.translation_mm
    depth, height, width = displacement.geometry.shape_zyx
    x_part = np.arange(width)[:, None] * by_index[:, 0]
    plane = np.arange(height)[:, None, None] * by_index[:, 1] + x_part + constant
    step = max(1, _SLAB_VOXELS // (height * width))
    for start in range(0, depth, step):
        slab = as_numpy(displacement.vectors_mm[start : start + step]) @ inverse.matrix.T
        slab += plane
        slab += (np.arange(start, start + len(slab))[:, None] * by_index[:, 2])[:, None, None]
        yield start, slab


def transform_points(chain: Sequence[Transform], points_lps_mm: FloatArray) -> FloatArray:
    """Map points through a chain, in float64.

    Args:
        chain: as returned by `read_transform`.
        points_lps_mm: (N, 3).

    Returns:
        (N, 3) in LPS mm. A displacement is interpolated linearly and is zero outside its grid, as
        in ITK.
    """
    return transform_points_within(chain, points_lps_mm)[0]


def transform_points_within(
    chain: Sequence[Transform], points_lps_mm: FloatArray
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """As `transform_points`; also return, (N,), whether a point was inside every field's grid."""
    points = np.asarray(points_lps_mm, dtype=np.float64).reshape(-1, 3)
    within = np.ones(len(points), np.bool_)
    for step in chain:
        if isinstance(step, AffineTransform):
            points = geometry.transform_points(step, points)
            continue
        index = geometry.transform_points(geometry.lps_to_index(step.geometry), points)
        points = points + geometry.sample_linear(as_numpy(step.vectors_mm), index, outside=0.0)
        within &= geometry.inside_grid(step.geometry.shape_zyx, index)
    return points, within


def _affine_to_sitk(affine: AffineTransform) -> sitk.AffineTransform:
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(affine.matrix.ravel().tolist())
    transform.SetTranslation(affine.translation_mm.tolist())
    return transform
