"""How well two images agree under a displacement field, whatever was matched to find it.

MIND-SSC and mutual information are taken before the registration and with the final field. An
encoder whose features mean nothing still lowers the distance of those features; it does not make
the images alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..device.choice import Device
from ..features.mind import FeaturePair
from ..summaries import RegionQuality
from ..types import Array, FloatArray, Geometry
from .mutual_information import HISTOGRAM, joint_histogram, mutual_information
from .regions import REGIONS, region_index, region_weights, regions_of

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
    def of(cls, numbers: FloatArray) -> Agreement:
        """Convert the numbers that `measure_agreement` returned."""
        before, after, by_region, _ = np.split(numbers, _PARTS)
        distances = [one[0] / one[1] if one[1] > 0 else float("nan") for one in (before, after)]
        joints = (before[2:], by_region.reshape(REGIONS, HISTOGRAM).sum(axis=0))
        information = [mutual_information(joint) for joint in joints]
        return cls(float(distances[0]), float(distances[1]), *information)


#: Where the parts of these numbers end: sum of weighted differences, sum of weights and joint
#: histogram before; both sums after; the joint histogram of each region after; the weights of all
#: regions.
_PARTS = (2 + HISTOGRAM, 4 + HISTOGRAM, 4 + (1 + REGIONS) * HISTOGRAM)
#: Length of the numbers that `measure_agreement` returns.
NUMBERS = _PARTS[-1] + REGIONS


def agreement_by_region(numbers: FloatArray) -> tuple[RegionQuality, ...]:
    """Convert the numbers that `measure_agreement` returned to those of each region."""
    _, _, by_region, weights = np.split(numbers, _PARTS)
    return regions_of(weights, by_region)


def sampling_step(shape: Sequence[int]) -> int:
    """Return the step in control voxels along each axis at which the images are compared."""
    return 2 if np.prod(shape, dtype=np.int64) >= _MANY_VOXELS else 1


def measure_agreement(
    features: FeaturePair,
    images: tuple[Array, Array],
    weights: tuple[Array, Array],
    before: Array | None,
    after: Array,
    grid: Geometry,
    moving_offset_zyx: Sequence[int],
    device: Device,
) -> Array:
    """Compare both images voxel by voxel under two fields; the host waits for nothing.

    Args:
        features: MIND-SSC on the control grid.
        images: intensities 0..1 on the same grids, (d, h, w) float32.
        weights: weights of both images there.
        before: the field before the registration, (d, h, w, 3) float32, mm along the control grid's
            axes z, y, x; None: 0 everywhere.
        after: the final field.
        grid: the control grid.
        moving_offset_zyx: offset of the moving grid, in control voxels.
        device: device that holds the arrays.

    Returns:
        (NUMBERS,) float64 on the device, for `Agreement.of` and `agreement_by_region`.
    """
    xp, step, spacing_mm = device.xp, sampling_step(images[0].shape), grid.spacing_mm[::-1]
    part = (slice(None, None, step),) * 3
    sampled = features.fixed[part], images[0][part], weights[0][part]
    region = region_index(sampled[2], grid.direction, xp)
    parts = []
    for field in (before, after):
        shifts = None if field is None else field[part]
        places = _places(sampled[1].shape, spacing_mm, step, shifts, device)
        flat, inside = _nearest(places, moving_offset_zyx, images[1].shape, device)
        weight = sampled[2] * inside * xp.take(weights[1].reshape(-1), flat)
        stored = features.moving.shape[-1]
        error = xp.subtract(
            sampled[0], xp.take(features.moving.reshape(-1, stored), flat, axis=0), dtype=np.float32
        )
        error = xp.square(error, out=error).sum(axis=-1)
        matched = xp.take(images[1].reshape(-1), flat)
        by_region = {"group": region, "groups": REGIONS} if field is after else {}
        joint = joint_histogram(sampled[1], matched, weight, xp, **by_region)
        sums = xp.stack([(error * weight).sum(dtype=np.float64), weight.sum(dtype=np.float64)])
        parts += [sums, joint.astype(np.float64)]
    parts.append(region_weights(region, sampled[2], xp).astype(np.float64))
    return xp.concatenate(parts)


def _places(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    step: int,
    shifts: Array | None,
    device: Device,
) -> Iterator[Array]:
    """Yield the index of each match on the fixed control grid, axis by axis."""
    xp = device.xp
    for axis, n in enumerate(shape):
        line = [-1 if a == axis else 1 for a in range(3)]
        index = xp.arange(n, dtype=np.float32).reshape(line) * np.float32(step)
        yield (
            index
            if shifts is None
            else index + shifts[..., axis] * np.float32(1 / spacing_mm[axis])
        )


def _nearest(
    places: Iterable[Array], offset_zyx: Sequence[int], shape: Sequence[int], device: Device
) -> tuple[Array, Array]:
    """Return the flat index of the moving voxel nearest to each match, and whether it exists."""
    xp, flat, inside = device.xp, 0, 1
    for place, offset, n in zip(places, offset_zyx, shape, strict=True):
        index = xp.rint(place - np.float32(offset)).astype(np.int32)
        inside = inside * ((index >= 0) & (index < n))
        flat = flat * n + xp.clip(index, 0, n - 1)
    return flat, inside
