"""The grid of a stack of DICOM slices, from their positions and direction cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..types import FloatArray, Geometry
from .dicom_headers import Slice
from .dicom_slices import refuse_mixed, repeated

#: Largest distance of a slice from an even grid, as a share of the slice spacing. Positions rounded
#: to 0.1 mm reach an eighth at 0.4 mm; with one slice missing, some slice is off by 0.21 or more.
_UNEVEN_SHARE = 0.125
#: Largest sideways shift over a whole stack that is put down to rounded positions.
_SIDEWAYS_MM = 0.15
#: Largest deviation from orthonormal axes: for cosines with two decimals (each is off by up to
#: 0.005), and for cosines that look exact. A gantry is tilted by half a degree (0.009) or more.
_ROUNDED_AXES, _EXACT_AXES = 0.02, 0.002
#: Error of positions with one decimal, and a little for floating point.
_ROUNDED_MM = 0.0501
#: Smallest changes that are reported.
_REPORTED_MM = 0.01
_NEGLIGIBLE = 1e-6


def stack(slices: Sequence[Slice], name: str) -> tuple[list[Slice], Geometry, tuple[str, ...]]:
    """Put parallel slices in order and find the even, orthogonal grid that fits them best.

    Returns:
        The slices along their normal, the grid, and notes about what was evened out.

    Raises:
        InputError: two slices lie at one position, one is missing or far from an even grid, the
            stack is sheared (gantry tilt), or the direction cosines are not perpendicular unit
            vectors.
    """
    cosines = np.mean([s.orientation for s in slices], axis=0)
    _check_cosines(cosines, name)
    if twice := repeated(slices):
        refuse_mixed(
            slices,
            name,
            f"the {len(slices)} slices of the series lie at only {len(slices) - twice} position(s)",
            "separate its time points or echoes, or remove the copies",
        )
    normal = np.cross(*cosines)
    normal /= np.linalg.norm(normal)
    ordered = sorted(slices, key=lambda s: float(s.position @ normal))
    step, middle, uneven_mm = _fit_line(ordered, normal, name)
    geometry, moved_mm = _grid(ordered, cosines, step, middle)
    notes = []
    if moved_mm > _REPORTED_MM:
        notes.append(
            "its direction cosines are not quite perpendicular unit vectors (inner product "
            f"{cosines[0] @ cosines[1]:.4f}); perpendicular ones were fitted, which moves voxels "
            f"by up to {moved_mm:.2g} mm"
        )
    if uneven_mm > _REPORTED_MM:
        notes.append(
            f"its slice positions are uneven by up to {uneven_mm:.2g} mm (rounded?); they were "
            f"taken as evenly spaced by {geometry.spacing_mm[2]:.5g} mm"
        )
    return ordered, geometry, tuple(notes)


def _fit_line(
    ordered: Sequence[Slice], normal: FloatArray, name: str
) -> tuple[FloatArray, FloatArray, float]:
    """Fit evenly spaced points on a line to the positions.

    Returns:
        The step from one to the next, their middle, and the largest distance from them, in mm.
    """
    positions = np.array([s.position for s in ordered])
    index: FloatArray = np.arange(len(ordered), dtype=np.float64) - (len(ordered) - 1) / 2
    middle = positions.mean(axis=0)
    step = index @ (positions - middle) / (index @ index)
    off = positions - middle - np.outer(index, step)
    _check_even(positions @ normal, off @ normal, float(step @ normal), name)
    tolerance = _tolerance([s.tags["ImageOrientationPatient"] for s in ordered])
    _check_sideways(step, off, normal, tolerance, name)
    if np.abs(off).max() > _NEGLIGIBLE:
        step, shift = _nominal(ordered, step, positions - middle, index)
        middle = middle + shift
        off = positions - middle - np.outer(index, step)
    return step, middle, float(np.linalg.norm(off, axis=1).max())


def _tolerance(texts: Sequence[str]) -> float:
    """Return how far axes may be from orthonormal, given the decimals of the stored cosines."""
    numbers = [number.strip() for text in set(texts) for number in text.split("\\")]
    if any("e" in number.lower() for number in numbers):
        return _EXACT_AXES
    decimals = max(len(number.partition(".")[2].rstrip("0")) for number in numbers)
    return _ROUNDED_AXES if 0 < decimals <= 2 else _EXACT_AXES


def _check_cosines(cosines: FloatArray, name: str) -> None:
    product = cosines @ cosines.T
    deviation = float(np.abs(product - np.eye(2)).max())
    if deviation > _ROUNDED_AXES:
        raise InputError(
            f"{name}: its direction cosines are not perpendicular unit vectors (off by "
            f"{deviation:.2g}, allowed {_ROUNDED_AXES:g}): correct ImageOrientationPatient "
            "(0020,0037)"
        )


def _check_even(along: FloatArray, off: FloatArray, step: float, name: str) -> None:
    if np.abs(off).max() <= _UNEVEN_SHARE * step:
        return
    gaps = np.diff(along)
    low, high = int(np.argmin(gaps)), int(np.argmax(gaps))
    raise InputError(
        f"{name}: slice spacing is not uniform: {gaps[low]:.3f} mm between slices {low + 1} "
        f"and {low + 2}, {gaps[high]:.3f} mm between {high + 1} and {high + 2} of "
        f"{len(along)}; is a slice missing? resample the series onto an even grid"
    )


def _check_sideways(
    step: FloatArray, off: FloatArray, normal: FloatArray, tolerance: float, name: str
) -> None:
    """Require slices on a line along their normal; `off` is the distance of each from the line."""
    along = float(step @ normal)
    shift = float(np.linalg.norm(step - along * normal))
    gaps = len(off) - 1
    if shift * gaps > max(_SIDEWAYS_MM, tolerance * along * gaps):
        raise InputError(
            f"{name}: the slices are shifted sideways by {shift:.3f} mm from one to the next "
            f"(gantry tilt of {np.degrees(np.arctan2(shift, along)):.1f} degrees): resample the "
            "series onto an orthogonal grid, for instance with dcm2niix, which corrects the tilt"
        )
    stray = float(np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max())
    if stray > max(_SIDEWAYS_MM, _UNEVEN_SHARE * along):
        raise InputError(
            f"{name}: some slices lie up to {stray:.3f} mm beside the line through the others: "
            "correct ImagePositionPatient (0020,0032), or resample the series onto an even grid"
        )


def _nominal(
    ordered: Sequence[Slice], step: FloatArray, positions: FloatArray, index: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return step and shift of the line with the stated slice spacing if it fits as well as `step`.

    Rounded positions determine the spacing less exactly than the header states it.
    """
    length = float(np.linalg.norm(step))
    along = positions @ (step / length)
    limit = max(_ROUNDED_MM, float(np.abs(along - length * index).max()))
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        stated = ordered[0].number(name, 0.0)
        off = along - stated * index
        shift = (off.max() + off.min()) / 2
        if stated > 0 and np.abs(off - shift).max() <= limit:
            return step * (stated / length), step * (shift / length)
    return step, np.zeros(3)


def _grid(
    ordered: Sequence[Slice], cosines: FloatArray, step: FloatArray, middle: FloatArray
) -> tuple[Geometry, float]:
    """Return the grid, and how far it moves voxels from where the cosines put them, in mm.

    The nearest orthonormal axes are fitted about the middle of the stack.
    """
    rows, columns = int(ordered[0].tags["Rows"]), int(ordered[0].tags["Columns"])
    in_plane = np.median([s.spacing_mm for s in ordered], axis=0)
    length = float(np.linalg.norm(step))
    spacing = np.array([*in_plane, length])
    axes = np.column_stack([*cosines, step / length])
    direction = axes
    if np.abs(axes.T @ axes - np.eye(3)).max() > _NEGLIGIBLE:
        left, _, right = np.linalg.svd(axes)
        direction = left @ right
    half = spacing * (np.array([columns, rows, len(ordered)]) - 1) / 2
    corners = half * np.array(list(np.ndindex(2, 2, 2))) * 2 - half
    moved_mm = float(np.linalg.norm(corners @ (axes - direction).T, axis=1).max())
    # The centre of the volume, by the stored cosines.
    origin = middle + cosines.T @ half[:2] - direction @ half
    first = ordered[0].position
    if np.abs(origin - first).max() < _NEGLIGIBLE:
        origin = first
    shape = (len(ordered), rows, columns)
    return Geometry(shape, tuple(spacing), tuple(origin), direction), moved_mm
