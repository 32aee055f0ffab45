"""Transform files read and written as chains of `AffineTransform` and `DisplacementField`.

A chain is applied first element first, while an ITK composite lists its parts in reverse order. All
transforms map fixed points to moving points, in LPS mm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import geometry
from ..choices import OrientationChoice
from ..config.image_parameters import LinearModel
from ..errors import InputError, OutputError
from ..types import (
    AffineTransform,
    DisplacementField,
    FloatArray,
    Geometry,
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

_HDF5 = (".h5", ".hdf5")
_TRANSFORM_FILES = (".tfm", ".txt", ".mat", *_HDF5)


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
    if suffix in _HDF5:
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
    initial: AffineTransform, deformable: DisplacementField | None
) -> sitk.CompositeTransform:
    """Return the mapping ``p -> initial(p + d(p))`` as an ITK composite.

    Args:
        initial: the initial alignment.
        deformable: d, in LPS mm; None: the composite holds `initial` alone. As in ITK, d is linear
            between its voxels and 0 outside its grid.
    """
    import SimpleITK as sitk

    composite = sitk.CompositeTransform(3)
    composite.AddTransform(_affine_to_sitk(initial))
    if deformable is not None:
        vectors = as_numpy(deformable.vectors_mm).astype(np.float64)
        field = array_to_sitk(vectors, deformable.geometry)
        composite.AddTransform(sitk.DisplacementFieldTransform(field))
    return composite


def write_composite_h5(
    path: str | os.PathLike[str],
    initial: AffineTransform,
    deformable: DisplacementField | None,
    fixed: Geometry | None = None,
) -> None:
    """Write the transform of `composite_to_sitk` as ITK HDF5.

    The displacements are stored as float32, half the size that ITK writes.

    Args:
        path: file to write.
        initial: as for `composite_to_sitk`.
        deformable: as for `composite_to_sitk`.
        fixed: grid of the fixed image, which `read_own_grid` returns and ITK ignores.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    with staged_file(target) as staged, output_errors(target):
        transform_h5.write_composite(staged, initial, deformable, fixed)


def read_own_grid(path: str | os.PathLike[str], chain: Sequence[Transform]) -> Geometry | None:
    """Return the grid that results of a transform lie on; None if it has none.

    It is the fixed image's for `transform.h5` and ``displacement.nii.gz`` of a run and the moving
    image's for ``inverse.nii.gz``. For transforms of other programs it is the grid of the
    displacement field that comes first.

    Args:
        path: file of the transform.
        chain: what `read_transform` returned for it.

    Raises:
        InputError: the file is damaged.
    """
    stored = None
    if image_suffix(path) in _HDF5:
        stored = transform_h5.read_fixed_grid(Path(path))
    if stored is None and isinstance(chain[0], DisplacementField):
        return chain[0].geometry
    return stored


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
