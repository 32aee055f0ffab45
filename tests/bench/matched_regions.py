"""How well the information of a region tells whether its labels match; a part of trust.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dinoreg_rt import RegistrationResult
from dinoreg_rt.geometry import index_map, transform_points
from dinoreg_rt.quality.agreement import sampling_step
from dinoreg_rt.quality.regions import region_index

#: Labels of at least this volume in a region tell how well it is matched.
LEAST_ML = 20
#: Dice of all labels of a region from which it counts as matched well, and below which as lost.
WELL, LOST = 0.6, 0.35
LIMITS = (0.25, 0.3, 0.35, 0.4, 0.45)


def region_scores(
    result: RegistrationResult, fixed: np.ndarray, warped: np.ndarray, common: Sequence[int]
) -> list[dict[str, float]]:
    """Return information, volume of fixed labels in ml and Dice of each region.

    Args:
        result: a registration with `keep_features`.
        fixed: labels on the fixed grid.
        warped: warped labels there.
        common: labels that both images have.
    """
    kept, grid = result.features, result.displacement.geometry
    assert kept is not None
    weight = kept.fixed_weight
    step = sampling_step(weight.shape)
    sampled = np.ascontiguousarray(weight[::step, ::step, ::step])
    index = region_index(sampled, kept.fixed_geometry.direction, np)
    present = [int(number) for number in np.unique(index[sampled > 0])]
    labelled = np.argwhere(np.isin(fixed, common) | np.isin(warped, common))
    control = transform_points(
        index_map(grid, kept.fixed_geometry), labelled[:, ::-1].astype(float)
    )
    nearest = np.rint(control[:, ::-1] / step).astype(int).clip(0, np.array(index.shape) - 1)
    region = index[tuple(nearest.T)]
    first, second = (np.isin(one, common)[tuple(labelled.T)] for one in (fixed, warped))
    same = (fixed == warped)[tuple(labelled.T)] & first
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
    scores = []
    for number, measured in zip(present, result.regions, strict=True):
        here = region == number
        both = int((first & here).sum() + (second & here).sum())
        scores.append(
            {
                "information": measured.information,
                "ml": voxel_ml * float((first & here).sum()),
                "dice": 2 * float((same & here).sum()) / max(both, 1),
            }
        )
    return scores


def region_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield how many regions of the runs lie below each limit of the information."""
    regions = [r for line in lines for r in line.get("regions", ()) if r["ml"] >= LEAST_ML]
    well = [r for r in regions if r["dice"] > WELL]
    lost = [r for r in regions if r["dice"] < LOST]
    yield "\n| limit, nats | matched well, named | lost, named | all, named |\n|---|---|---|---|"
    for limit in LIMITS:
        counts = (
            f"{sum(r['information'] < limit for r in group)} of {len(group)}"
            for group in (well, lost, regions)
        )
        yield f"| {limit} | {' | '.join(counts)} |"
