"""The search for positions: all shifts of the moving image, in several poses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..device.choice import Device
from ..device.unread import Unread
from ..geometry import centre_lps_mm, invert_affine, transform_points
from ..images.pair import side_by_side
from ..types import AffineTransform, Array, FloatArray, Geometry
from .boxes import boxed, reached
from .coarse import View, posed_grid, shifted
from .sides import Side, sampled
from .spectra import Shifts, Spectra, peaks, similarity_map

#: Least distance between candidates, in cells.
APART_CELLS = 2.5


@dataclass(frozen=True, eq=False)
class Candidate:
    """A position of the moving image.

    Attributes:
        transform: map from fixed points to moving points.
        similarity: similarity of the images there; see `dinoreg_rt.align.sides`.
        overlap: q there.
        deformed: similarity after a quick match, see `dinoreg_rt.align.match`; 0 if not measured.
        view: view used by the quick match; None without one, or where the images do not meet.
    """

    transform: AffineTransform
    similarity: float
    overlap: float
    deformed: float = 0.0
    view: View | None = None


def search_positions(
    fixed: Side,
    moving: Side,
    poses: Sequence[FloatArray],
    device: Device,
    *,
    best_of_each: bool = False,
) -> Unread[list[Candidate]]:
    """Return the best shifts for each pose of the moving image, best first and well apart.

    A pose is the matrix (3, 3) from fixed to moving points: a scaling, or a rotation. With
    `best_of_each` only the best shift of each pose counts, wherever those of other poses lie.
    """
    cells, body = fixed.coarse.cells, fixed.coarse.body_box
    grids = [posed_grid(moving.coarse.cells, pose) for pose in poses]
    shown = boxed(moving.coarse.cells, moving.coarse.body_box)
    boxes = [reached(grid, shown, invert_affine(affine), 1) for grid, affine in grids]
    shifts = [
        Shifts.of((body, box), (cells.shape_zyx, grid.shape_zyx))
        for box, (grid, _) in zip(boxes, grids, strict=True)
    ]
    near = _fast_shape(one.count for one in shifts)
    whole = _fast_shape(one.whole for one in shifts)
    here = Spectra.of(fixed.centred, near, whole, device).conj()

    def compared(number: int, share: Device) -> Array:
        grid, affine = grids[number]
        there = sampled(moving, grid, boxes[number], affine, share)
        other = Spectra.of(there, near, whole, share)
        return similarity_map(here, other, shifts[number], near, whole, share)

    maps = side_by_side(compared, range(len(grids)), device)
    found = peaks(maps, shifts, device.xp)

    def made(numbers: list[float]) -> list[Candidate]:
        by_pose = [
            [Candidate(_moved(cells, posed, shift), value, share) for shift, value, share in one]
            for posed, one in zip(grids, found.make(numbers), strict=True)
        ]
        if best_of_each:
            return sorted((c for one in by_pose for c in one[:1]), key=lambda c: -c.similarity)
        return apart([c for one in by_pose for c in one], cells)

    return Unread(found.values, made)


def _moved(
    cells: Geometry, posed: tuple[Geometry, AffineTransform], shift_zyx: FloatArray
) -> AffineTransform:
    """Return the map from fixed points to the moving image's after a shift of its posed grid."""
    grid, affine = posed
    step = np.asarray(grid.origin_mm) - np.asarray(cells.origin_mm)
    step += cells.direction @ np.multiply(shift_zyx[::-1], cells.spacing_mm)
    return shifted(affine, step)


def apart(candidates: Sequence[Candidate], cells: Geometry) -> list[Candidate]:
    """Sort by similarity, dropping those that map the fixed centre close to a better one."""
    middle = centre_lps_mm(cells)[None]
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.similarity):
        here = transform_points(candidate.transform, middle)
        distances = [
            float(np.linalg.norm(here - transform_points(other.transform, middle)))
            for other in kept
        ]
        if all(d > APART_CELLS * cells.spacing_mm[0] for d in distances):
            kept.append(candidate)
    return kept


def _fast_shape(shapes: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return lengths that are quickly transformed and at least those of all shapes."""
    z, y, x = (_fast_length(max(lengths)) for lengths in zip(*shapes, strict=True))
    return (z, y, x)


def _fast_length(n: int) -> int:
    """Return the smallest length >= n without a prime factor above 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
