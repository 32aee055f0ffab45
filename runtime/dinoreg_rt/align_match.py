"""Cells matched around a position, and how alike both images are after that.

The registration deforms whatever position it is given, so the best position is the one from which
it gets furthest: two of them that look equally good as they are can differ by an organ afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dinoreg_kernels import Solution, SolverOptions, solve

from .align_search import Candidate, Side
from .coarse import CHANNELS, cell_features
from .device import Device
from .geometry import (
    compose_affines,
    corners_lps_mm,
    invert_affine,
    lps_to_index,
    shifted_grid,
    transform_points,
)
from .types import AffineTransform, Array, Geometry

#: Of the quick match that compares positions: reach in cells, and iterations of Adam.
_QUICK_REACH = 2
_QUICK_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Match:
    """What the solver finds around a position.

    Attributes:
        solution: of the solver, on `cells`.
        cells: the fixed cells that the moving image can reach.
        fixed_weight: of the fixed image on `cells`.
        moving_weight: of the moving image on `cells` and `margin` cells around them.
        margin: in cells.
    """

    solution: Solution
    cells: Geometry
    fixed_weight: Array
    moving_weight: Array
    margin: int


def match(
    fixed: Side,
    moving: Side,
    start: AffineTransform,
    reach: int,
    device: Device,
    *,
    consistency_rounds: int,
    iterations: int,
) -> Match | None:
    """The registration's own solver on cells; None where the images do not meet."""
    cells, box = common_part(fixed, moving, start, reach)
    if cells is None:
        return None
    z, y, x = (n + 2 * reach for n in cells.shape_zyx)
    around = shifted_grid(cells, (-reach,) * 3, (z, y, x))
    there = cell_features(moving.coarse, around, start, device)
    here = fixed.features.part(box)
    cell_mm = cells.spacing_mm[0]
    weight = np.ascontiguousarray(here.weight)
    solution = solve(
        np.ascontiguousarray(here.mind),
        there.mind,
        weight,
        there.weight,
        spacing_mm=cells.spacing_mm,
        moving_offset=(-reach,) * 3,
        channels=CHANNELS,
        options=SolverOptions(
            search_factor=(1, 1, 1),
            search_radius=(reach,) * 3,
            cost_smoothing_mm=1.15 * cell_mm,
            field_smoothing_mm=0.82 * cell_mm,
            coupling=(0.03, 0.3),
            consistency_rounds=consistency_rounds,
            iterations=(iterations,),
            learning_rate_mm=0.6 * cell_mm,
            smoothing_mm=cell_mm,
            # Not the registration's: a position is judged before organs are followed in detail.
            smoothness=1.25,
            fold_penalty=1.0,
            fold_margin=0.1,
        ),
        threads=device.threads,
    )
    return Match(solution, cells, weight, there.weight, reach)


def with_deformed(fixed: Side, moving: Side, candidate: Candidate, device: Device) -> Candidate:
    """The candidate with `Candidate.deformed`."""
    value = deformed_similarity(fixed, moving, candidate.transform, device)
    return replace(candidate, deformed=value)


def deformed_similarity(fixed: Side, moving: Side, start: AffineTransform, device: Device) -> float:
    """How alike both images are after a quick match around `start`; 1 is the same, 0 unrelated.

    The squared feature difference that is left, against what images without any relation would
    leave, times the square root of the share of the fixed body that was matched. The share of the
    smaller body would not do: it is 1 as soon as a moving image is put inside the fixed one, and
    a part that matches well then beats the whole.
    """
    found = match(
        fixed,
        moving,
        start,
        _QUICK_REACH,
        device,
        consistency_rounds=0,
        iterations=_QUICK_ITERATIONS,
    )
    if found is None:
        return 0.0
    means = np.asarray(fixed.level.mind) - np.asarray(moving.level.mind)
    unrelated = fixed.level.variance + moving.level.variance + float(means @ means)
    alike = 1 - found.solution.feature_distance_after / max(unrelated, 1e-6)
    matched = found.solution.overlap * float(found.fixed_weight.sum())
    return alike * float(np.sqrt(matched / max(fixed.level.weight, 1e-6)))


def common_part(
    fixed: Side, moving: Side, transform: AffineTransform, reach: int
) -> tuple[Geometry | None, tuple[slice, slice, slice]]:
    """The fixed cells that the moving image can reach: they are all that costs time."""
    cells = fixed.coarse.cells
    to_cells = compose_affines(lps_to_index(cells), invert_affine(transform))
    corners = transform_points(to_cells, corners_lps_mm(moving.coarse.cells))[:, ::-1]
    lower = np.floor(corners.min(axis=0)).astype(int) - reach
    upper = np.ceil(corners.max(axis=0)).astype(int) + reach + 1
    z, y, x = (
        slice(max(0, int(a)), min(n, int(b)))
        for a, b, n in zip(lower, upper, cells.shape_zyx, strict=True)
    )
    if any(s.stop <= s.start for s in (z, y, x)):
        return None, (z, y, x)
    shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    return shifted_grid(cells, (z.start, y.start, x.start), shape), (z, y, x)
