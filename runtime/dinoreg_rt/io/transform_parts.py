"""Transforms built from the kinds and numbers that ITK's files hold.

All numbers are checked here before ITK sees them. For numbers that contradict each other ITK takes
memory without a limit or ends the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import AffineTransform, DisplacementField, FloatArray, Geometry, Transform
from . import validate
from .hidden import scratch_folder

COMPOSITE = "CompositeTransform"
_FIELD = "DisplacementFieldTransform"
_MATRICES = ("AffineTransform", "MatrixOffsetTransformBase")
#: For each linear kind of ITK: number of parameters, and possible numbers of fixed parameters.
_LINEAR: dict[str, tuple[int, tuple[int, ...]]] = {
    **dict.fromkeys(_MATRICES, (12, (3,))),
    "CenteredAffineTransform": (15, (0, 3)),
    "CenteredEuler3DTransform": (9, (0, 3, 4)),
    "ComposeScaleSkewVersor3DTransform": (12, (3,)),
    "Euler3DTransform": (6, (3, 4)),
    "FixedCenterOfRotationAffineTransform": (12, (3,)),
    "IdentityTransform": (0, (0,)),
    "QuaternionRigidTransform": (7, (3,)),
    "Rigid3DTransform": (12, (3,)),
    "ScalableAffineTransform": (12, (3,)),
    "ScaleLogarithmicTransform": (3, (3,)),
    "ScaleSkewVersor3DTransform": (15, (3,)),
    "ScaleTransform": (3, (3,)),
    "ScaleVersor3DTransform": (9, (3,)),
    "Similarity3DTransform": (7, (3,)),
    "TranslationTransform": (3, (0,)),
    "VersorRigid3DTransform": (6, (3,)),
    "VersorTransform": (3, (3,)),
}
#: Longest axis of a field: what the kernels take.
_LONGEST_AXIS = 32768


class Part(NamedTuple):
    """One transform of a file.

    Attributes:
        kind: ITK's name with type and dimensions, such as ``AffineTransform_double_3_3``.
        size: number of parameters.
        parameters: called once, after all other checks, with a NumPy type; returns a vector.
        fixed: the fixed parameters.
    """

    kind: str
    size: int
    parameters: Callable[[Any], Any]
    fixed: FloatArray


def build_chain(parts: Sequence[Part], name: str) -> tuple[Transform, ...]:
    """Build the chain of a file's transforms, which is applied first element first.

    Args:
        parts: in the order of the file; a composite stands before its parts and applies the last
            one first.
        name: name of the file.

    Raises:
        InputError: several transforms without a composite, none at all, or one that is not 3D,
            neither linear nor a displacement field, or has impossible numbers.
    """
    kinds = [_check_dimension(part.kind, name) for part in parts]
    if kinds and kinds[0] == COMPOSITE:
        parts, kinds = parts[1:], kinds[1:]
    elif len(kinds) > 1:
        raise InputError(
            f"{name}: holds {len(kinds)} transforms without a composite, which leaves their order "
            "open: save them as one composite, or one per file"
        )
    if not kinds:
        raise InputError(f"{name}: holds no transform, or an empty composite; save it again")
    steps = [_build(part, kind, name) for part, kind in zip(parts, kinds, strict=True)]
    return tuple(reversed(steps))


def _check_dimension(full: str, name: str) -> str:
    """Return the name of a kind without its type and dimensions, which must be 3 and 3."""
    kind, *rest = full.split("_")
    if rest[-2:] != ["3", "3"]:
        raise InputError(f"{name}: holds {full[:80]}; a 3D transform is needed")
    return kind


def _build(part: Part, kind: str, name: str) -> Transform:
    if not np.isfinite(part.fixed).all():
        raise InputError(f"{name}: the fixed parameters of its {kind} hold NaN or Inf")
    if kind == _FIELD:
        return _build_field(part, name)
    if kind == COMPOSITE:
        raise InputError(
            f"{name}: holds a composite within a composite; save all of its transforms as one"
        )
    if kind not in _LINEAR:
        raise InputError(
            f"{name}: holds a {kind[:80]}; only affine transforms and displacement fields can be "
            "read: convert it into a displacement field"
        )
    wanted, wanted_fixed = _LINEAR[kind]
    if part.size != wanted or part.fixed.size not in wanted_fixed:
        raise InputError(
            f"{name}: cannot be read as a transform: its {kind} has {part.size} parameters and "
            f"{part.fixed.size} fixed parameters; {wanted} and "
            f"{' or '.join(map(str, wanted_fixed))} are needed: save it again"
        )
    numbers = part.parameters(np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name}: the affine transform holds NaN or Inf")
    if kind in _MATRICES:
        matrix, translation = numbers[:9].reshape(3, 3), numbers[9:]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
            offset = translation + part.fixed - matrix @ part.fixed
        return AffineTransform(matrix, offset)
    return _by_itk(kind, numbers, part.fixed, name)


def grid_numbers(grid: Geometry) -> FloatArray:
    """Return a grid as ITK's fixed parameters of a displacement field, (18,)."""
    size = np.asarray(grid.shape_xyz, dtype=np.float64)
    return np.concatenate([size, grid.origin_mm, grid.spacing_mm, grid.direction.ravel()])


def build_grid(numbers: FloatArray, what: str, name: str) -> Geometry:
    """Return the checked grid of `grid_numbers`; `what` and the file's `name` are for messages.

    Raises:
        InputError: the numbers do not describe a grid.
    """
    if numbers.size != 18:
        raise InputError(
            f"{name}: the grid of its {what} is damaged: {numbers.size} numbers, and 18 are "
            "needed; save it again"
        )
    size, origin, spacing = numbers[:9].reshape(3, 3)
    if not all(1 <= n <= _LONGEST_AXIS and n == int(n) for n in size):
        raise InputError(
            f"{name}: the grid of its {what} has {' x '.join(f'{n:g}' for n in size)} voxels; "
            f"whole numbers from 1 to {_LONGEST_AXIS} are needed: save it again"
        )
    x, y, z = (int(n) for n in size)
    grid = Geometry((z, y, x), tuple(spacing), tuple(origin), numbers[9:])
    validate.check_geometry(grid, name)
    return grid


def _build_field(part: Part, name: str) -> DisplacementField:
    grid = build_grid(part.fixed, "displacement field", name)
    z, y, x = grid.shape_zyx
    if part.size != 3 * x * y * z:
        raise InputError(
            f"{name}: is truncated or damaged: its displacement field of {x} x {y} x {z} voxels "
            f"has {part.size} numbers, and {3 * x * y * z} are needed; copy or save it again"
        )
    with np.errstate(over="ignore"):  # beyond float32's range: becomes Inf, found next
        vectors = part.parameters(np.float32).reshape(z, y, x, 3)
    validate.check_displacements(vectors, name)
    return DisplacementField(vectors, grid)


def _by_itk(kind: str, numbers: FloatArray, fixed: FloatArray, name: str) -> AffineTransform:
    """Convert a linear transform of another parametrisation, from where it sends four points."""
    import SimpleITK as sitk

    # In a composite, because SimpleITK has no class of its own for some kinds and would fail.
    lines = ["#Insight Transform File V1.0", f"Transform: {COMPOSITE}_double_3_3"]
    lines += [f"Transform: {kind}_double_3_3"]
    lines += [f"Parameters: {' '.join(map(repr, numbers.tolist()))}"]
    lines += [f"FixedParameters: {' '.join(map(repr, fixed.tolist()))}", ""]
    points = np.vstack([np.zeros(3), np.eye(3)])
    with scratch_folder() as folder:
        file = folder / "transform.tfm"
        file.write_text("\n".join(lines), "ascii")
        try:
            transform = sitk.ReadTransform(str(file))
            images = np.array([transform.TransformPoint(p) for p in points.tolist()])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"{name}: cannot be read as a transform: ITK refuses the numbers of its {kind} "
                f"({reason}); save it again"
            ) from error
    return AffineTransform((images[1:] - images[0]).T, images[0])


def check_affine(step: AffineTransform, name: str) -> None:
    """Require finite numbers of a plausible size and a matrix that can be inverted.

    Raises:
        InputError: anything else.
    """
    values = np.column_stack([step.matrix, step.translation_mm])
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the affine transform holds NaN or Inf")
    validate.check_positions(values, name, "affine transform")
    determinant = float(np.linalg.det(step.matrix))
    if math.isnan(determinant) or abs(determinant) < 1e-6:
        raise InputError(
            f"{name}: the affine transform is singular (determinant {determinant:.3g}): it "
            "flattens the image"
        )
