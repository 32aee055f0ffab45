"""How well the images agree in each region of the body.

The body is divided into two parts from right to left, two from front to back and three from bottom
to top, each of equal weight, which makes twelve regions. The mutual information of the intensities
in a region shows how well it matches: it stays low where different organs lie on each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ..geometry import file_axes
from ..summaries import RegionQuality
from ..types import FloatArray
from .mutual_information import mutual_information

#: Names of the parts along L, P and S, in the order in which these coordinates grow.
_PLACES = (("right", "left"), ("front", "back"), ("lower", "middle", "upper"))
#: Number of regions.
REGIONS = math.prod(map(len, _PLACES))
#: Least share of a region that must have a match inside the moving image for its information to be
#: judged, in percent. Where less has one, `overlap_percent` says so.
_LEAST_MATCHED_PERCENT = 50.0
#: Mutual information in nats below which a region is said to match badly. This limit names 4 of 335
#: regions whose labels match well, and 16 of 63 whose labels do not (docs/benchmarks.md).
_LEAST_INFORMATION = 0.35


def region_arguments(
    direction: FloatArray,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return how `dinoreg_kernels.measure_agreement` numbers the regions of a grid.

    Args:
        direction: direction matrix of the grid, as in `Geometry`.

    Returns:
        For each array axis z, y, x: the number of parts, the factor on a part's number, and 1 where
        parts are numbered against the axis. Regions are numbered in the order of `regions_of`.
    """
    parts, factor, reverse = [1, 1, 1], [0, 0, 0], [0, 0, 0]
    after = REGIONS
    for row, (axis, names) in enumerate(zip(file_axes(direction), _PLACES, strict=True)):
        along = 2 - axis
        after //= len(names)
        parts[along], factor[along] = len(names), after
        reverse[along] = int(direction[row, axis] < 0)
    return tuple(parts), tuple(factor), tuple(reverse)


def regions_of(weights: FloatArray, histograms: FloatArray) -> tuple[RegionQuality, ...]:
    """Return the regions that hold any of the body.

    Args:
        weights: weight of each region, in the steps of the histograms.
        histograms: joint histogram of each region, (REGIONS * BINS * BINS,).
    """
    body, found = float(weights.sum()), []
    places = itertools.product(*_PLACES)
    for place, weight, joint in zip(
        places, weights.tolist(), histograms.reshape(REGIONS, -1), strict=True
    ):
        if weight <= 0:
            continue
        side, depth, height = place
        matched = 100 * float(joint.sum()) / weight
        known = matched >= _LEAST_MATCHED_PERCENT
        found.append(
            RegionQuality(
                place=f"{height} {side}, {depth}",
                share_percent=100 * weight / body,
                matched_percent=matched,
                information=mutual_information(joint) if known else math.nan,
            )
        )
    return tuple(found)


def region_warning(regions: Sequence[RegionQuality]) -> str | None:
    """Return a warning that names the regions that match badly, the worst first; None if none."""
    bad = sorted(
        (region for region in regions if region.information < _LEAST_INFORMATION),
        key=lambda region: region.information,
    )
    if not bad:
        return None
    named = "; ".join(
        f"{region.place} ({region.share_percent:.0f} % of it, {region.information:.2f})"
        for region in bad
    )
    share = sum(region.share_percent for region in bad)
    return (
        f"{len(bad)} of {len(regions)} regions, {share:.0f} % of the body, are matched badly, "
        f"judged by the mutual information of their intensities (limit {_LEAST_INFORMATION:g} "
        f"nats): {named}; look there for organs that were missed"
    )
