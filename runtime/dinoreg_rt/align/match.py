"""Quick matches of cells around a position, and the similarity of the images after them.

The registration deforms the moving image from whatever position it is given, so the best position
is the one that leads to the best match: two that look equally good can differ by an organ
afterwards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dinoreg_kernels import Solution, SolverOptions, solve

from ..device.choice import Device
from ..device.unread import Unread
from ..geometry import invert_affine, shifted_grid
from ..types import AffineTransform
from .boxes import Box, boxed, common, is_empty, reached
from .coarse import CHANNELS, View, cell_features
from .shifts import Candidate
from .sides import Side, sampled, similarity

#: Reach of a match, in cells.
REACH = 2
#: Adam iterations of the quick match that compares positions.
_QUICK_ITERATIONS = 20


def look(fixed: Side, moving: Side, transform: AffineTransform, device: Device) -> View | None:
    """Return the moving image as seen through `transform`; None where the images do not meet."""
    box = _common_part(fixed, moving, transform, REACH)
    if is_empty(box):
        return None
    cells = boxed(fixed.coarse.cells, box)
    z, y, x = (n + 2 * REACH for n in cells.shape_zyx)
    around = shifted_grid(cells, (-REACH,) * 3, (z, y, x))
    return View(cells, box, REACH, cell_features(moving.coarse, around, transform, device))


def evaluate(
    fixed: Side, moving: Side, transform: AffineTransform, device: Device
) -> Unread[Candidate]:
    """Return the position with its similarity.

    Both images end at the same cells here, and so do the patches of their features. In a `View` the
    moving image does not: with it the cine pair, whose nine slices are all near an end, looked less
    alike in its header position.
    """
    box = _common_part(fixed, moving, transform, 0)
    body = common(box, fixed.coarse.body_box)
    if is_empty(body):
        return Unread((), lambda _: Candidate(transform, -1.0, 0.0))
    here, levels = fixed.centred.part(box, body), (fixed.level, moving.level)
    there = sampled(moving, boxed(fixed.coarse.cells, box), here.box, transform, device)
    found = similarity(here, there, levels, device.xp)
    return Unread(found.values, lambda numbers: Candidate(transform, *found.make(numbers)))


def with_deformed(
    fixed: Side, moving: Side, candidate: Candidate, device: Device
) -> Unread[Candidate]:
    """Return the candidate with `Candidate.deformed` and its view filled in."""
    view = look(fixed, moving, candidate.transform, device)
    if view is None:
        return Unread((), lambda _: replace(candidate, deformed=0.0, view=None))
    found = deformed_similarity(fixed, moving, view, device)
    return Unread(
        found.values, lambda numbers: replace(candidate, deformed=found.make(numbers), view=view)
    )


def examine(
    fixed: Side, moving: Side, transform: AffineTransform, device: Device
) -> Unread[Candidate]:
    """Return the position with its similarity, as it is and deformed, and its view."""
    plain = evaluate(fixed, moving, transform, device)
    after = with_deformed(fixed, moving, Candidate(transform, 0.0, 0.0), device)
    count = sum(int(value.size) for value in plain.values)

    def made(numbers: list[float]) -> Candidate:
        one, other = plain.make(numbers[:count]), after.make(numbers[count:])
        return replace(other, similarity=one.similarity, overlap=one.overlap)

    return Unread((*plain.values, *after.values), made)


def match(
    fixed: Side, view: View, device: Device, *, consistency_rounds: int, iterations: int
) -> Solution:
    """Run the registration's own solver on the cells of a view."""
    here, there = fixed.features.part(view.box), view.features
    cell_mm = view.cells.spacing_mm[0]
    return solve(
        device.xp.ascontiguousarray(here.mind),
        there.mind,
        device.xp.ascontiguousarray(here.weight),
        there.weight,
        spacing_mm=view.cells.spacing_mm,
        moving_offset=(-view.margin,) * 3,
        channels=CHANNELS,
        options=SolverOptions(
            search_factor=(1, 1, 1),
            search_radius=(REACH,) * 3,
            cost_smoothing_mm=1.15 * cell_mm,
            field_smoothing_mm=0.82 * cell_mm,
            coupling=(0.03, 0.3),
            kept_costs_mb=64,  # enough for all costs of so coarse a grid
            consistency_rounds=consistency_rounds,
            iterations=(iterations,),
            learning_rate_mm=0.6 * cell_mm,
            smoothing_mm=cell_mm,
            # Smoother than a registration, because a position is judged before details are matched.
            smoothness=1.25,
            fold_penalty=1.0,
            fold_margin=0.1,
        ),
        threads=device.threads,
    )


def deformed_similarity(fixed: Side, moving: Side, view: View, device: Device) -> Unread[float]:
    """Return the similarity of both images after a quick match: 1 for identical, 0 for unrelated.

    It is 1 minus the ratio of the remaining squared feature difference to that of unrelated images,
    times the square root of the matched share of the fixed body. The share of the smaller body
    would not do: it is 1 as soon as a moving image lies inside the fixed one, and a part that
    matches well would then beat the whole.
    """
    found = match(fixed, view, device, consistency_rounds=0, iterations=_QUICK_ITERATIONS)
    means = np.asarray(fixed.level.mind) - np.asarray(moving.level.mind)
    unrelated = fixed.level.variance + moving.level.variance + float(means @ means)

    def made(numbers: list[float]) -> float:
        _, after, overlap, weight = numbers
        alike = 1 - after / max(unrelated, 1e-6)
        return alike * float(np.sqrt(overlap * weight / max(fixed.level.weight, 1e-6)))

    return Unread((found.feature_distance, fixed.features.weight[view.box].sum()), made)


def _common_part(fixed: Side, moving: Side, transform: AffineTransform, margin: int) -> Box:
    """Return the fixed cells that the moving image can reach; only they cost time."""
    return reached(fixed.coarse.cells, moving.coarse.cells, invert_affine(transform), margin)
