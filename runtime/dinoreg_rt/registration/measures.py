"""Measures of a registration's result that need no labels: queued, read once, then judged.

Nothing waits for the device before they are read, so they arrive together with the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dinoreg_kernels
from dinoreg_kernels import MirrorTest, Quality, Solution

from ..quality.finite import check_finite, named_results
from ..quality.mirror_test import DecoySearches
from ..quality.run_quality import as_struct, measure_quality, run_quality
from ..summaries import RegionQuality, RunQuality
from ..types import Array, FloatArray
from .features import check_left
from .fields import Fields
from .linear import moved_mm
from .plan import Plan


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of one result on the plan's device, where they may still be computed.

    Attributes:
        arrays: one-dimensional float64 arrays: the solver's feature distance, the measures of the
            field, the sums of the images' weights and of each result, and those of the mirror test
            if there is one.
        names: names of the results that were summed.
        inverted: whether an inverse was found by iteration.
    """

    arrays: tuple[Array, ...]
    names: tuple[str, ...]
    inverted: bool


def measure(
    solution: Solution,
    mirror_test: DecoySearches | None,
    fields: Fields,
    counts: tuple[Array, Array],
    plan: Plan,
) -> Measured:
    """Queue all measures of a result.

    Args:
        solution: the solution on the control grid.
        mirror_test: the mirror test, which has been queued; None without one.
        fields: the result on the grids of the images.
        counts: weights of both images on the control grids, see `field_of_view`.
        plan: the plan.
    """
    device = plan.device
    found = measure_quality(
        solution, plan.grids.control, fields.displacement, fields.missed_mm, device
    )
    results = named_results(fields.displacement, fields.warped, fields.inverse, fields.confidence)
    sums = dinoreg_kernels.sum_values([*counts, *results.values()], threads=device.threads)
    tested = () if mirror_test is None else (mirror_test.searches, mirror_test.agreement)
    return Measured(
        (solution.feature_distance, found, sums, *tested),
        tuple(results),
        fields.missed_mm is not None,
    )


def judge(
    measured: Measured,
    numbers: Sequence[FloatArray],
    mirror_test: DecoySearches | None,
    fields: Fields,
    plan: Plan,
    *,
    weighted: bool,
) -> tuple[RunQuality, tuple[RegionQuality, ...]]:
    """Return the quality of a result and of its regions.

    Args:
        measured: what was measured.
        numbers: its arrays, on the host.
        mirror_test: the mirror test; None without one.
        fields: the result.
        plan: the plan.
        weighted: whether the voxels of the fixed image have weights.

    Raises:
        RegistrationError: the result is not finite, or nothing was left to compare.
    """
    distance, read, sums, *searches = numbers
    left, finite = sums[:2].tolist(), sums[2:].tolist()
    check_finite(measured.names, finite)
    check_left(left, plan.sides(*plan.images), weighted=weighted)
    quality = run_quality(
        as_struct(Quality, read),
        distance,
        fields.displacement.geometry,
        inverted=measured.inverted,
    )
    if plan.start is not None:  # the start is compared by the agreement of MIND-SSC alone
        quality = replace(quality, feature_distance_before=math.nan)
    if plan.alignment.similarity is not None:
        quality = replace(quality, alignment_similarity=plan.alignment.similarity)
    quality = replace(quality, sides_in_doubt=plan.sides_in_doubt)
    if mirror_test is None:
        return quality, ()
    found = as_struct(MirrorTest, searches[0]), as_struct(dinoreg_kernels.Agreement, searches[1])
    measures, regions = mirror_test.measures(*found)
    quality = replace(quality, **vars(measures))
    if plan.start is None or moved_mm(plan) >= min(plan.grids.control.spacing_mm) / 2:
        return quality, regions
    # The agreement reads the nearest voxels, which cannot resolve so small a displacement.
    return replace(quality, mind_distance_before=math.nan, information_before=math.nan), regions
