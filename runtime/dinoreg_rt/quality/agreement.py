"""How well two images agree under a displacement field, whatever was matched to find it.

MIND-SSC and mutual information are taken before the registration and with the final field. An
encoder whose features mean nothing still lowers the distance of those features; it does not make
the images alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..device.choice import Device
from ..features.mind import FeaturePair
from ..types import Array, FloatArray
from .mutual_information import HISTOGRAM, joint_histogram, mutual_information

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
        before, after = numbers.reshape(2, -1)
        distances = [one[0] / one[1] if one[1] > 0 else float("nan") for one in (before, after)]
        information = [mutual_information(one[2:]) for one in (before, after)]
        return cls(float(distances[0]), float(distances[1]), *information)


#: Length of the numbers of an `Agreement`.
NUMBERS = 2 * (2 + HISTOGRAM)


def sampling_step(shape: Sequence[int]) -> int:
    """Return the step in control voxels along each axis at which the images are compared."""
    return 2 if np.prod(shape, dtype=np.int64) >= _MANY_VOXELS else 1


def measure_agreement(
    features: FeaturePair,
    images: tuple[Array, Array],
    weights: tuple[Array, Array],
    field: Array,
    spacing_mm: Sequence[float],
    moving_offset_zyx: Sequence[int],
    device: Device,
) -> Array:
    """Compare both images voxel by voxel, without and with the field; the host waits for nothing.

    Args:
        features: MIND-SSC on the control grid.
        images: intensities 0..1 on the same grids, (d, h, w) float32.
        weights: weights of both images there.
        field: (d, h, w, 3) float32, mm along the control grid's axes z, y, x.
        spacing_mm: spacing of the control grid, z, y, x.
        moving_offset_zyx: offset of the moving grid, in control voxels.
        device: device that holds the arrays.

    Returns:
        (NUMBERS,) float64 on the device, for `Agreement.of`.
    """
    xp, step = device.xp, sampling_step(images[0].shape)
    part = (slice(None, None, step),) * 3
    shifts = field[part]
    sampled = features.fixed[part], images[0][part], weights[0][part]
    parts = []
    for moved in (False, True):
        flat, inside = _matches(
            shifts, spacing_mm, step, moving_offset_zyx, images[1].shape, device, moved=moved
        )
        weight = sampled[2] * inside * xp.take(weights[1].reshape(-1), flat)
        stored = features.moving.shape[-1]
        error = xp.subtract(
            sampled[0], xp.take(features.moving.reshape(-1, stored), flat, axis=0), dtype=np.float32
        )
        error = xp.square(error, out=error).sum(axis=-1)
        joint = joint_histogram(sampled[1], xp.take(images[1].reshape(-1), flat), weight, xp)
        sums = xp.stack([(error * weight).sum(dtype=np.float64), weight.sum(dtype=np.float64)])
        parts += [sums, joint.astype(np.float64)]
    return xp.concatenate(parts)


def _matches(
    shifts: Array,
    spacing_mm: Sequence[float],
    step: int,
    offset_zyx: Sequence[int],
    shape: Sequence[int],
    device: Device,
    *,
    moved: bool,
) -> tuple[Array, Array]:
    """Return the flat index of the moving voxel nearest to each match, and whether it exists."""
    xp, flat, inside = device.xp, 0, 1
    for axis, n in enumerate(shape):
        line = [-1 if a == axis else 1 for a in range(3)]
        start = xp.arange(shifts.shape[axis], dtype=np.float32).reshape(line)
        index = start * np.float32(step) - np.float32(offset_zyx[axis])
        if moved:
            index = index + shifts[..., axis] * np.float32(1 / spacing_mm[axis])
        index = xp.rint(index).astype(np.int32)
        inside = inside * ((index >= 0) & (index < n))
        flat = flat * n + xp.clip(index, 0, n - 1)
    return flat, inside
