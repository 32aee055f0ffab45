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
from ..errors import InputError, OutputError
from ..types import AffineTransform, DisplacementField, FloatArray, Transform
from . import transform_h5
from .arrays import as_numpy
from .convert import array_to_sitk, displacement_from_sitk
from .images import READABLE, image_suffix, read_displacement
from .paths import check_input, check_name, output_errors
from .staging import staged_file

if TYPE_CHECKING:
    import SimpleITK as sitk

_TRANSFORM_FILES = (".tfm", ".txt", ".mat", ".h5", ".hdf5")
_SLAB_VOXELS = 1 << 19


def read_transform(path: str | os.PathLike[str]) -> tuple[Transform, ...]:
    """Read a transform as a chain, which is applied first element first.

    Args:
        path: ITK ``.tfm``, ``.txt``, ``.h5`` or ``.hdf5`` (single or composite), ANTs ``.mat``, or
            a displacement field (mm, LPS) as a vector image.

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
        return (read_displacement(file),)
    if suffix not in _TRANSFORM_FILES:
        raise InputError(
            f"{file}: unknown transform format '{suffix}'; "
            f"give {', '.join(_TRANSFORM_FILES + READABLE)}"
        )
    chain = transform_h5.read_chain(file) if suffix in (".h5", ".hdf5") else None
    if chain is None:
        chain = _read_with_itk(file)
    for step in chain:
        _check(step, str(file))
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
            sitk.WriteTransform(_affine_to_sitk(affine), str(staged))
        except RuntimeError as error:
            raise OSError(str(error).strip().splitlines()[-1]) from error


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


def _read_with_itk(file: Path) -> tuple[Transform, ...]:
    import SimpleITK as sitk

    if file.suffix.lower() in (".tfm", ".txt"):
        _check_single(file)
    try:
        transform = sitk.ReadTransform(str(file))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{file}: cannot be read as a transform; it is damaged or not of the format that its "
            f"name says ({reason})"
        ) from error
    return _from_sitk(transform, str(file))


def _check_single(file: Path) -> None:
    """Require one transform or a composite: ITK reads the first in a text file and drops others."""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    kinds = [line.split(":")[1].strip() for line in lines if line.startswith("Transform:")]
    if len(kinds) > 1 and not kinds[0].startswith("CompositeTransform"):
        raise InputError(
            f"{file}: holds {len(kinds)} transforms without a composite, which leaves their order "
            "open: save them as one composite, or one per file"
        )


def _from_sitk(transform: sitk.Transform, name: str) -> tuple[Transform, ...]:
    import SimpleITK as sitk

    if transform.GetDimension() != 3:
        raise InputError(f"{name}: is a {transform.GetDimension()}D transform; 3D is needed")
    # This comes first: SimpleITK shows kinds that it does not know (ANTs'
    # MatrixOffsetTransformBase) as composites that contain themselves.
    if transform.IsLinear():
        return (_affine_from_sitk(transform),)
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        count = composite.GetNumberOfTransforms()
        parts = [_from_sitk(composite.GetNthTransform(i), name) for i in reversed(range(count))]
        return tuple(step for part in parts for step in part)
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        return (displacement_from_sitk(field, name),)
    raise InputError(
        f"{name}: holds a {transform.GetName()}; only affine transforms and displacement fields "
        "can be read: convert it into a displacement field"
    )


def _affine_from_sitk(transform: sitk.Transform) -> AffineTransform:
    """Convert a linear transform of any parametrisation, from where it sends four points."""
    images = np.array([transform.TransformPoint(p) for p in np.vstack([np.zeros(3), np.eye(3)])])
    return AffineTransform((images[1:] - images[0]).T, images[0])


def _affine_to_sitk(affine: AffineTransform) -> sitk.AffineTransform:
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(affine.matrix.ravel().tolist())
    transform.SetTranslation(affine.translation_mm.tolist())
    return transform


def _check(step: Transform, name: str) -> None:
    if isinstance(step, DisplacementField):
        return
    values: NDArray[np.float64] = np.column_stack([step.matrix, step.translation_mm])
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the affine transform holds NaN or Inf")
    determinant = float(np.linalg.det(step.matrix))
    if abs(determinant) < 1e-6:
        raise InputError(
            f"{name}: the affine transform is singular (determinant {determinant:.3g}): it "
            "flattens the image"
        )
