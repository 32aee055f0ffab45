"""The images that the mirror test compares, on a grid coarser than the control grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

import dinoreg_kernels

from ..device.choice import Device
from ..types import Array

#: Control voxels per voxel of the mirror test's grid along each axis. With 2 a search takes 0.05 s
#: of CPU time for a 192 x 160 x 192 pair and reaches twice as far as the registration's.
COARSER = 2


@dataclasses.dataclass(frozen=True, eq=False)
class MirrorTestImage:
    """An image on the mirror test's grid.

    Its voxels begin at multiples of `COARSER` on the fixed image's control grid.

    Attributes:
        features: (d, h, w, stored) float16.
        weight: (d, h, w) float32.
        image: intensities, (d, h, w) float32.
        offset_zyx: index of the first voxel on that grid.
    """

    features: Array
    weight: Array
    image: Array
    offset_zyx: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        features: Array,
        image: Array,
        weight: Array,
        offset_zyx: tuple[int, int, int],
        device: Device,
    ) -> MirrorTestImage:
        """Average an image from the control grid, where its first voxel has index `offset_zyx`."""
        lead = [o % COARSER for o in offset_zyx]
        averaged, share = dinoreg_kernels.pool_features(
            features, weight, (COARSER,) * 3, offset=lead, threads=device.threads
        )
        # Sample each voxel's control voxels at their centres.
        matrix = np.column_stack([COARSER * np.eye(3), (COARSER - 1) / 2 - np.array(lead)])
        grey = dinoreg_kernels.resample(
            image * weight, share.shape, matrix, samples=(COARSER,) * 3, threads=device.threads
        )
        grey /= device.xp.maximum(share, 1e-6)
        z, y, x = ((o - a) // COARSER for o, a in zip(offset_zyx, lead, strict=True))
        return cls(averaged, share, grey, (z, y, x))

    def mirrored(
        self, axis: int, order: Sequence[int], middle: float, device: Device
    ) -> MirrorTestImage:
        """Mirror about a plane.

        Args:
            axis: the array axis that is perpendicular to it.
            order: the channels that replace the first ones.
            middle: where it cuts that axis, as an index of this image's voxels; rounded to half a
                voxel.
            device: device that holds the arrays.
        """
        xp, others = device.xp, range(len(order), self.features.shape[-1])
        flipped = xp.flip(self.features, axis)[..., [*order, *others]]
        features, weight, image = (
            xp.ascontiguousarray(array)
            for array in (flipped, xp.flip(self.weight, axis), xp.flip(self.image, axis))
        )
        z, y, x = self.offset_zyx
        offset = [z, y, x]
        offset[axis] += round(2 * middle) - (weight.shape[axis] - 1)
        return MirrorTestImage(features, weight, image, (offset[0], offset[1], offset[2]))

    def warped(
        self, field: Array, spacing_mm: Sequence[float], device: Device
    ) -> tuple[Array, Array]:
        """Return image and weight warped by `field`, (d, h, w, 3) mm on the fixed voxels."""
        image, weight = (
            dinoreg_kernels.resample(
                array,
                field.shape[:3],
                np.column_stack([np.eye(3), np.negative(self.offset_zyx)]),
                field=field,
                matrix=np.diag(1.0 / np.array(spacing_mm)),
                threads=device.threads,
            )
            for array in (self.image, self.weight)
        )
        return image, weight

    def shifted_difference(
        self, fixed: MirrorTestImage, shifts: Sequence[Array], device: Device
    ) -> Array:
        """Return the feature difference to `fixed` after a shift of whole voxels, and its weight.

        Args:
            fixed: fixed image.
            shifts: shift along z, y, x in voxels; scalars on the device.
            device: device that holds the arrays.

        Returns:
            (2,) float64: weighted sum of squared differences, sum of the weights.
        """
        xp, features, weight = device.xp, self.features, self.weight
        for axis, (n, offset) in enumerate(zip(weight.shape, self.offset_zyx, strict=True)):
            index = xp.arange(fixed.weight.shape[axis]) - offset + shifts[axis]
            inside = ((index >= 0) & (index < n)).astype(np.float32)
            index = xp.clip(index, 0, n - 1)
            features = xp.take(features, index, axis=axis)
            line = [-1 if a == axis else 1 for a in range(3)]
            weight = xp.take(weight, index, axis=axis) * inside.reshape(line)
        error = xp.subtract(fixed.features, features, dtype=np.float32)
        error = xp.square(error, out=error).sum(axis=-1)
        weight = weight * fixed.weight
        return xp.stack([(error * weight).sum(dtype=np.float64), weight.sum(dtype=np.float64)])


def content_middle(image: Array, weight: Array, device: Device) -> tuple[float, float, float]:
    """Return the centroid of an image's intensities on the control grid, as an index z, y, x.

    It waits for the device. An image without content has the middle of its grid.
    """
    content, sums = image * weight, []
    for axis, n in enumerate(content.shape):
        profile = content.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
        sums += [profile.sum(), (profile * device.xp.arange(n)).sum()]
    numbers = np.array(device.numbers(*sums)).reshape(3, 2)
    z, y, x = (
        float(moment / total) if total > 0 else (n - 1) / 2
        for (total, moment), n in zip(numbers, content.shape, strict=True)
    )
    return z, y, x


def coarser(counts_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Return counts of control voxels as counts of voxels of the mirror test's grid, rounded up."""
    z, y, x = (-(-n // COARSER) for n in counts_zyx)
    return z, y, x


def coarser_index(index: float, offset: int) -> float:
    """Return an index of an image's control voxels as one of its voxels on the test's grid.

    `offset` is the index of the image's first control voxel on the fixed image's control grid.
    """
    return (index + offset % COARSER - (COARSER - 1) / 2) / COARSER
