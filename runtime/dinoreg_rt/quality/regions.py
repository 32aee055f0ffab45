"""How well the images agree in each region of the body.

The body is divided into two parts from right to left, two from front to back and three from bottom
to top, each of equal weight, which makes twelve regions. The mutual information of the intensities
in a region shows how well it matches: it stays low where different organs lie on each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from ..geometry import file_axes
from ..summaries import RegionQuality
from ..types import Array, FloatArray
from .mutual_information import HISTOGRAM, WEIGHT_STEPS, mutual_information

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


def region_index(weight: Array, direction: FloatArray, xp: ModuleType) -> Array:
    """Return the number of the region to which each voxel belongs; nothing waits for the device.

    Args:
        weight: weights of the fixed image, (d, h, w).
        direction: direction matrix of its grid, as in `Geometry`.
        xp: NumPy or CuPy.

    Returns:
        (d, h, w) int32 from 0 to `REGIONS` - 1.
    """
    axes = file_axes(direction)
    index = xp.zeros((1, 1, 1), np.int32)
    for row, (axis, names) in enumerate(zip(axes, _PLACES, strict=True)):
        along, parts = 2 - axis, len(names)
        profile = weight.sum(axis=tuple(a for a in range(3) if a != along), dtype=np.float64)
        middles = xp.cumsum(profile) - profile / 2
        part = (parts * middles / xp.maximum(profile.sum(), 1e-6)).astype(np.int32)
        part = xp.clip(part, 0, parts - 1)
        if direction[row, axis] < 0:
            part = parts - 1 - part
        index = index * parts + part.reshape([-1 if a == along else 1 for a in range(3)])
    return index


def region_weights(index: Array, weight: Array, xp: ModuleType) -> Array:
    """Return the summed weight of each region in the steps of `joint_histogram`, uint64."""
    total = xp.zeros(REGIONS, np.uint64)
    xp.add.at(total, index.ravel(), xp.rint(weight * WEIGHT_STEPS).astype(np.uint64).ravel())
    return total


def regions_of(weights: FloatArray, histograms: FloatArray) -> tuple[RegionQuality, ...]:
    """Return the regions that hold any of the body.

    Args:
        weights: result of `region_weights`.
        histograms: joint histogram of each region, (REGIONS * HISTOGRAM,).
    """
    body, found = float(weights.sum()), []
    places = itertools.product(*_PLACES)
    for place, weight, joint in zip(
        places, weights.tolist(), histograms.reshape(REGIONS, HISTOGRAM), strict=True
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
