"""Where a NIfTI image lies: its sform, its qform, or neither.

A header may hold two placements. The qform is a rotation by a quaternion, with the spacing of
`pixdim`; the sform is a matrix. Where they differ, nibabel, FSL, SPM and MRtrix take the sform;
ITK takes the qform unless the sform's code is 1. Nothing in the file says which of them is right.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..choices import OrientationChoice
from ..errors import InputError
from ..geometry import describe_position
from ..types import FloatArray, Geometry
from . import validate
from .doubts import HeaderDoubts
from .nifti_header import NiftiHeader, Placement

#: Placements that differ by at most this at every corner of the image are the same.
SAME_MM = 0.01
#: As in `validate.check_geometry`.
_SHEAR = 1e-3
#: Allowed excess of the squared length of the quaternion's vector part over 1.
_QUATERNION = 1e-3
#: Smallest square of the quaternion's first part, which is not stored but follows from the others.
_HALF_TURN = 1e-7
#: Rounding of the sum of the stored parts' squares in single precision. Near a half turn it turns
#: the image: of 108 images of 500 mm written by nibabel, with the same placement in both forms, 26
#: differ by 0.02 to 0.48 mm at a corner.
_ROUNDING = 1.2e-7
_UNITS = {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}
_RAS_TO_LPS = np.array([[-1.0], [-1.0], [1.0]])
_OTHER = {"sform": "qform", "qform": "sform"}


class _Form(NamedTuple):
    """One of the two placements.

    Attributes:
        name: sform or qform.
        code: what it refers to, above 0.
        matrix: from voxel indices (x, y, z) to LPS mm, 3x4.
        rounding: angle by which rounded numbers may turn it, in radians.
        fault: why it cannot be used; empty if it can.
    """

    name: str
    code: int
    matrix: FloatArray
    fault: str
    rounding: float = 0.0

    def geometry(self, shape_zyx: tuple[int, int, int]) -> Geometry:
        """Return the geometry, which must have no fault."""
        spacing = np.linalg.norm(self.matrix[:, :3], axis=0)
        return Geometry(
            shape_zyx, spacing, tuple(self.matrix[:, 3].tolist()), self.matrix[:, :3] / spacing
        )


def place(
    header: NiftiHeader, itk: Geometry, name: str, choice: OrientationChoice
) -> tuple[Geometry, HeaderDoubts]:
    """Decide where a NIfTI image lies.

    Args:
        header: the header of the file.
        itk: the geometry that ITK read from it, which is kept if it agrees with the decision.
        name: the name for messages.
        choice: the form to take if the header holds both; ``auto`` takes the sform unless it
            cannot be used.

    Returns:
        The geometry, and what the header leaves in doubt. A choice settles the sides.

    Raises:
        InputError: the form that would be taken is sheared, singular or not finite.
    """
    unit, scale = _UNITS.get(header.placement.units, ("", 1.0))
    notes = [f"{name}: states its lengths in {unit}; they were converted to mm"] if unit else []
    forms = {form.name: form for form in _forms(header, scale)}
    if not forms:
        notes.append(
            f"{name}: does not say where it lies, because its sform and qform codes are both 0; "
            "its axes were taken to point to the left, the back and the top, with the first voxel "
            "at 0, as ITK does. Other programs assume other axes, so left and right, or front and "
            "back, may be exchanged: set the orientation in the header if it is known"
        )
        return itk, HeaderDoubts(tuple(notes), sides=True)
    taken = _choose(forms, name, choice)
    other = forms.get(_OTHER[taken.name])
    geometry = taken.geometry(itk.shape_zyx)
    mirrored = False
    if other is not None:
        notes += _conflict(taken, other, geometry, name)
        mirrored = not other.fault and _are_mirrored(taken.matrix, other.matrix)
    elif taken.name == "sform":
        notes += _pixdim_conflict(header, geometry, scale, name)
    if unit:
        _check_converted(geometry, name, unit)
    same = _gap_mm(_matrix(itk), taken.matrix, itk.shape_xyz) <= SAME_MM
    doubts = HeaderDoubts(tuple(notes), sides=mirrored and choice == "auto")
    return itk if same else geometry, doubts


def _check_converted(geometry: Geometry, name: str, unit: str) -> None:
    try:
        validate.check_geometry(geometry, name)
    except InputError as error:
        raise InputError(f"{error}, which states its lengths in {unit} (xyzt_units)") from error


def _choose(forms: dict[str, _Form], name: str, choice: OrientationChoice) -> _Form:
    wanted = "qform" if choice == "qform" else "sform"
    first = forms.get(wanted) or forms[_OTHER[wanted]]
    second = forms.get(_OTHER[first.name])
    if not first.fault:
        return first
    if choice == "auto" and second is not None and not second.fault:
        return second
    advice = "correct the header, or resample it onto an orthogonal grid"
    if second is not None and not second.fault:
        advice = f"take its {second.name} by --orientation {second.name}, or {advice}"
    raise InputError(f"{name}: its {first.name} {first.fault}: {advice}")


def _forms(header: NiftiHeader, scale: float) -> list[_Form]:
    where, forms = header.placement, []
    if where.sform_code > 0:
        matrix = _RAS_TO_LPS * np.array(where.rows, np.float64).reshape(3, 4) * scale
        forms.append(_Form("sform", where.sform_code, matrix, _matrix_fault(matrix)))
    if where.qform_code > 0:
        square = math.fsum(v * v for v in where.quaternion)
        fault = ""
        if not square <= 1 + _QUATERNION or not np.isfinite(where.offset).all():
            fault = "has a quaternion that is no rotation, or an origin that is not finite"
        matrix = np.zeros((3, 4)) if fault else _RAS_TO_LPS * _qform(where, header.pixdim) * scale
        rest = max(_HALF_TURN, 1 - square)
        turn = _ROUNDING / math.sqrt(rest) if rest > _HALF_TURN else 2 * math.sqrt(_HALF_TURN)
        forms.append(_Form("qform", where.qform_code, matrix, fault, turn))
    return forms


def _qform(where: Placement, pixdim: tuple[float, ...]) -> FloatArray:
    """Return the matrix (3, 4) of the quaternion, the spacing and the offset, RAS."""
    b, c, d = where.quaternion
    square = 1 - (b * b + c * c + d * d)
    # As in the NIfTI library: the rest of rounded numbers means a rotation by 180 degrees.
    a = math.sqrt(square) if square >= _HALF_TURN else 0.0
    a, b, c, d = np.array([a, b, c, d]) / math.hypot(a, b, c, d)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    spacing = np.array(pixdim[1:4]) * [1, 1, -1 if pixdim[0] < 0 else 1]
    return np.column_stack([rotation * spacing, where.offset])


def _matrix_fault(matrix: FloatArray) -> str:
    if not np.isfinite(matrix).all():
        return "holds NaN or Inf"
    spacing = np.linalg.norm(matrix[:, :3], axis=0)
    axes = matrix[:, :3] / np.where(spacing > 0, spacing, 1)
    if abs(np.linalg.det(axes)) < 0.1:
        return "has a singular direction matrix; its axes must be perpendicular"
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if cosine > _SHEAR:
        degrees = math.degrees(math.asin(min(1.0, cosine)))
        return f"is sheared (its axes are up to {degrees:.2g} degrees from perpendicular)"
    return ""


def _conflict(taken: _Form, other: _Form, geometry: Geometry, name: str) -> list[str]:
    """Describe how the other form differs from the taken one, if it does."""
    head = f"{name}: the {taken.name} (code {taken.code}) was taken; its {other.name} (code "
    head += f"{other.code}) "
    shape = geometry.shape_xyz
    gap = _gap_mm(taken.matrix, other.matrix, shape) if other.matrix.any() else math.inf
    diagonal = math.hypot(*(n * s for n, s in zip(shape, geometry.spacing_mm, strict=True)))
    if gap <= max(SAME_MM, diagonal * max(taken.rounding, other.rounding)):
        return []
    if other.fault and not math.isfinite(gap):
        return [f"{head}{other.fault}"]
    if other.fault:
        return [f"{head}{other.fault}, and places its corners up to {gap:.4g} mm away"]
    elsewhere = other.geometry(geometry.shape_zyx)
    users = "nibabel, FSL, SPM and MRtrix take the sform; ITK, ANTs and 3D Slicer take the qform"
    return [
        f"{head}places its corners up to {gap:.4g} mm away ({_difference(geometry, elsewhere)}). "
        f"{users} unless the sform's code is 1: choose with --orientation sform or qform"
    ]


def _are_mirrored(one: FloatArray, other: FloatArray) -> bool:
    """Return whether one matrix keeps the handedness of the voxel axes and the other does not."""
    return bool(np.linalg.det(one[:, :3]) * np.linalg.det(other[:, :3]) < 0)


def _difference(one: Geometry, other: Geometry) -> str:
    turned = one.direction.T @ other.direction
    if _are_mirrored(one.direction, other.direction):
        axes = "a mirror image"
    else:
        cosine = (np.trace(turned) - 1) / 2
        axes = f"turned by {math.degrees(math.acos(min(1.0, max(-1.0, cosine)))):.3g} degrees"
    parts = [
        f"first voxel at {describe_position(other.origin_mm)} instead of "
        f"{describe_position(one.origin_mm)} mm LPS, axes {axes}"
    ]
    if _size(other.spacing_mm) != _size(one.spacing_mm):
        parts.append(f"voxels of {_size(other.spacing_mm)} instead of {_size(one.spacing_mm)} mm")
    return ", ".join(parts)


def _pixdim_conflict(header: NiftiHeader, geometry: Geometry, scale: float, name: str) -> list[str]:
    stated = np.abs(header.pixdim[1:4]) * scale
    gap = np.abs(stated - geometry.spacing_mm) * (np.array(geometry.shape_xyz) - 1)
    if float(gap.max()) <= SAME_MM:
        return []
    return [
        f"{name}: its sform has voxels of {_size(geometry.spacing_mm)} mm, its pixdim says "
        f"{_size(tuple(stated))} mm, up to {gap.max():.4g} mm over the image; the sform was taken, "
        "and there is no qform: correct the header if pixdim is right"
    ]


def _size(spacing_mm: tuple[float, ...]) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing_mm)


def _matrix(geometry: Geometry) -> FloatArray:
    return np.column_stack([geometry.direction * geometry.spacing_mm, geometry.origin_mm])


def _gap_mm(one: FloatArray, other: FloatArray, shape_xyz: tuple[int, ...]) -> float:
    """Return the largest distance between the image's corners under two matrices (3, 4).

    It is infinite if a matrix holds NaN or infinity.
    """
    ends = [(-0.5, n - 0.5) for n in shape_xyz]
    corners = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return math.inf
    moved = (one - other)[:, :3] @ corners + (one - other)[:, 3:]
    return float(np.linalg.norm(moved, axis=0).max())
