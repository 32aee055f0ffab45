"""How well two images agree under a displacement field, whatever was matched to find it.

MIND-SSC and mutual information are taken before the registration and with the final field. An
encoder whose features mean nothing still lowers the distance of those features; it does not make
the images alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

import dinoreg_kernels
from dinoreg_kernels import WeighedImages

from ..device.choice import Device
from ..summaries import RegionQuality
from ..types import Array, Geometry
from .mutual_information import histogram_of, mutual_information
from .regions import REGIONS, region_arguments, regions_of

#: From this many voxels on, every second voxel along each axis is compared. The measures change by
#: less than 1 % and take an eighth of the time and memory.
_MANY_VOXELS = 200_000


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well both images agree before the registration and after it.

    Attributes:
        mind_distance_before: mean weighted squared difference of MIND-SSC; lower is better. NaN
            where the images share nothing.
        mind_distance_after: the same with the final field.
        information_before: mutual information of the intensities in nats; higher is better.
        information_after: the same with the final field.
    """

    mind_distance_before: float
    mind_distance_after: float
    information_before: float
    information_after: float

    @classmethod
    def of(cls, found: dinoreg_kernels.Agreement) -> Agreement:
        """Convert the result of `measure_agreement`."""
        pairs = (found.before, found.before_weight), (found.after, found.after_weight)
        distances = [sums / weight if weight > 0 else float("nan") for sums, weight in pairs]
        by_region = histogram_of(found.joint_after).reshape(REGIONS, -1)
        joints = histogram_of(found.joint_before), by_region.sum(axis=0)
        return cls(*distances, *(mutual_information(joint) for joint in joints))


def agreement_by_region(found: dinoreg_kernels.Agreement) -> tuple[RegionQuality, ...]:
    """Convert the result of `measure_agreement` to that of each region."""
    return regions_of(np.array(found.region_weight), histogram_of(found.joint_after))


def sampling_step(shape: Sequence[int]) -> int:
    """Return the step in control voxels along each axis at which the images are compared."""
    return 2 if np.prod(shape, dtype=np.int64) >= _MANY_VOXELS else 1


def measure_agreement(
    images: WeighedImages, before: Array | None, after: Array, grid: Geometry, device: Device
) -> Array:
    """Compare both images voxel by voxel under two fields; the host waits for nothing.

    Args:
        images: MIND-SSC, weights and intensities of both images on the control grid.
        before: the field before the registration, (d, h, w, 3) float32, mm along the control grid's
            axes z, y, x; None: 0 everywhere.
        after: the final field.
        grid: the control grid.
        device: device that holds the arrays.

    Returns:
        `dinoreg_kernels.Agreement` as float64 on the device.
    """
    parts, factor, reverse = region_arguments(grid.direction)
    return dinoreg_kernels.measure_agreement(
        images,
        after,
        before,
        step=sampling_step(images.fixed.shape[:3]),
        parts=parts,
        region_factor=factor,
        reversed_parts=reverse,
        threads=device.threads,
    )
