"""The objective of a linear registration, with gradient and curvature by the map's elements.

The objective is that of the deformable refinement without its smoothness term: the weighted squared
difference of the features, and 1 - rho^2, where rho is the local correlation of the intensities.
Both images are sampled on one grid, the moving one through the current map, so that the unknown is
a small step of that map: a point at q (mm from the centre, along the grid's axes) moves by
``P (q, 1)`` with a (3, 4) matrix P. At each voxel a term has a gradient b (3) and a Gauss-Newton
curvature S (3, 3) with respect to the voxel's displacement, from which follow

    gradient[i, a] = sum b_i q_a            curvature[i, a, j, b] = sum S_ij q_a q_b

On the CPU, sums use einsum without BLAS, whose sums depend on the number of threads. Everything but
the choice of points runs on the device, and the host reads the sums once for each map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device.choice import Device
from ..device.unread import Unread, read_masks
from ..types import Array, FloatArray

#: Upper triangles of symmetric 3 x 3 and 4 x 4 matrices.
_PAIRS_3 = np.triu_indices(3)
_PAIRS_4 = np.triu_indices(4)
#: Share of the noise's variance that is added to the moving image's, as in the deformable
#: refinement: with all of it, contrast counts as well as correlation.
_MOVING_NOISE = 1e-3
#: Largest number of points at which features are compared, evenly taken from the voxels that count.
MOST_POINTS = 60_000


@dataclass(frozen=True, eq=False)
class Sampled:
    """One image on the grid of comparison.

    Attributes:
        features: (d, h, w, stored) float16.
        weight: (d, h, w) float32, 0..1, or larger where organs weigh more.
        image: (d, h, w) float32, intensities 0..1; None without the local correlation.
    """

    features: Array
    weight: Array
    image: Array | None


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Value of an objective, its gradient (3, 4) and its curvature (3, 4, 3, 4); see the module."""

    value: float
    gradient: FloatArray
    curvature: FloatArray

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(
            self.value + other.value,
            self.gradient + other.gradient,
            self.curvature + other.curvature,
        )

    def scaled(self, factor: float) -> NormalEquations:
        """Return the same for `factor` times the objective."""
        return NormalEquations(factor * self.value, factor * self.gradient, factor * self.curvature)


@dataclass(frozen=True, eq=False)
class Points:
    """Voxels at which features are compared.

    Attributes:
        flat: (N,) indices of the voxels in the flattened grid.
        position: (4, N) float32, position (x, y, z) in mm from the centre, and 1.
        shape: shape of the grid, z, y, x.
        spacing_mm: spacing of the grid, z, y, x.
        index: `flat` on the host.
        device: device of the arrays.
    """

    flat: Array
    position: Array
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    index: NDArray[np.intp]
    device: Device

    @classmethod
    def of(
        cls,
        weight: Array,
        spacing_mm: tuple[float, float, float],
        centre_vox: FloatArray,
        device: Device,
        most: int = MOST_POINTS,
    ) -> Points:
        """Take at most `most` inner voxels with a weight; `spacing_mm`, `centre_vox`: z, y, x."""
        inner = np.zeros(weight.shape, bool)
        core = tuple(slice(1, -1) if n > 2 else slice(None) for n in weight.shape)
        (counts,) = read_masks([weight > 0], device)
        inner[core] = counts[core]
        flat = np.flatnonzero(inner)
        flat = flat[:: max(1, -(-flat.size // most))]
        index = np.unravel_index(flat, weight.shape)
        rows = [(i - c) * s for i, c, s in zip(index, centre_vox, spacing_mm, strict=True)][::-1]
        position = device.upload(np.stack([*rows, np.ones(flat.size)]), np.float32)
        here = device.upload(flat, np.intp)
        return cls(here, position, weight.shape, spacing_mm, flat, device)

    @property
    def radius_mm(self) -> float:
        """Root mean square distance from the centre; 0 without points."""
        if self.index.size == 0:
            return 0.0
        squares = np.square(self.position[:3]).sum(axis=0, dtype=np.float64)
        return float(np.sqrt(squares.mean()))

    def steps(self) -> list[tuple[int, float]]:
        """Return, for x, y and z, the distance of neighbours in the flat grid and twice it in mm.

        The distance is 0 along an axis of fewer than three voxels, along which nothing changes.
        """
        d, h, w = self.shape
        strides = (1, w, w * h)
        return [
            (stride if n > 2 else 0, 2 * mm)
            for stride, n, mm in zip(strides, (w, h, d), self.spacing_mm[::-1], strict=True)
        ]


def feature_equations(
    fixed: Sampled,
    moving: Sampled,
    points: Points,
    channels: int,
    *,
    unrelated: float,
    trust_cost: float = 0.0,
) -> Unread[NormalEquations]:
    """Return the mean squared feature difference over the points, weighted by the fixed image.

    Args:
        fixed: the fixed image.
        moving: the moving image, sampled through the current map.
        points: voxels that are compared.
        channels: number of stored channels that are used.
        unrelated: cost of a point without a match, where the moving image has no weight.
        trust_cost: difference at which a point pulls a quarter as hard; 0: all pull alike.
    """
    xp = points.device.xp
    there = moving.features.reshape(-1, moving.features.shape[-1])

    def taken(features: Array, flat: Array) -> Array:
        return features[flat, :channels].astype(np.float32)

    miss = taken(there, points.flat)
    miss -= taken(fixed.features.reshape(there.shape), points.flat)
    slopes = [
        (taken(there, points.flat + step) - taken(there, points.flat - step)) / np.float32(width)
        for step, width in points.steps()
    ]
    cost = xp.einsum("nc,nc->n", miss, miss)
    kept = 1 / (1 + cost / trust_cost) if trust_cost > 0 else np.float32(1)
    here = fixed.weight.reshape(-1)[points.flat]
    both = here * moving.weight.reshape(-1)[points.flat]
    total = xp.maximum(here.sum(dtype=np.float64), 1e-9)
    pull = 2 * both * kept**2 / total.astype(np.float32)
    value = both * cost * kept + (here - both) * np.float32(unrelated)
    gradient = xp.stack([xp.einsum("nc,nc->n", miss, s) for s in slopes]) * pull
    curvature = xp.stack(
        [xp.einsum("nc,nc->n", slopes[i], slopes[j]) for i, j in zip(*_PAIRS_3, strict=True)]
    )
    return _summed(
        value.sum(dtype=np.float64) / total, gradient, curvature * pull, points.position, xp
    )


def correlation_equations(
    fixed: Sampled, moving: Sampled, points: Points, windows: Windows, noise: float
) -> Unread[NormalEquations]:
    """Return the mean of 1 - rho^2 over the points, rho being the correlation of their windows.

    With a = cov / var(m), the gradient with respect to an intensity m of the window is that of the
    residual f - a m with a kept fixed, because the best a is at a minimum. The curvature depends on
    its change: changes of m that a new mean or a new a absorbs cost nothing (variable projection).

    Args:
        fixed: the fixed image.
        moving: the moving image, sampled through the current map.
        points: voxels that are compared.
        windows: the points' windows.
        noise: standard deviation of the noise in units of the images.
    """
    assert fixed.image is not None
    assert moving.image is not None
    xp, number, summed = points.device.xp, windows.number, windows.summed
    there = moving.image.reshape(-1)
    f, m = fixed.image.reshape(-1)[points.flat], there[points.flat]
    here = fixed.weight.reshape(-1)[points.flat]
    both = here * moving.weight.reshape(-1)[points.flat]
    weight = xp.maximum(summed(both), 1e-9)
    f, m = (v - (summed(both * v) / weight)[number] for v in (f, m))
    product, fixed_square, moving_square = (
        summed(both * values) / weight for values in (f * m, f * f, m * m)
    )
    fixed_square = fixed_square + noise**2
    moving_square = moving_square + _MOVING_NOISE * noise**2
    total = xp.maximum(here.sum(dtype=np.float64), 1e-9)
    alike = product**2 / (fixed_square * moving_square)
    value = (summed(both) * (1 - alike)).sum() + (here - both).sum(dtype=np.float64)
    scale = product / moving_square
    steepness = 2 * scale**2 / (fixed_square * total)
    slopes = xp.stack(
        [
            (there[points.flat + step] - there[points.flat - step]) / np.float32(width)
            for step, width in points.steps()
        ]
    )
    pull = -2 * both * (scale / fixed_square)[number] / total
    products = xp.stack([slopes[i] * slopes[j] for i, j in zip(*_PAIRS_3, strict=True)])
    found = _summed(
        value / total,
        pull * (f - scale[number] * m) * slopes,
        both * steepness[number] * products,
        points.position,
        xp,
    )
    rows = (both * slopes[:, None] * points.position).reshape(12, -1)
    absorbed = xp.zeros((12, 12))
    for product, size in ((rows, weight), (rows * m, weight * moving_square)):
        sums = summed(product)
        absorbed += xp.einsum("kn,ln->kl", sums * (steepness / size), sums)

    def made(numbers: list[float]) -> NormalEquations:
        *others, last = np.split(np.array(numbers), [-144])
        one = found.make(others[0].tolist())
        return replace(one, curvature=one.curvature - last.reshape(3, 4, 3, 4))

    return Unread((*found.values, absorbed), made)


@dataclass(frozen=True, eq=False)
class Windows:
    """Blocks of voxels in which points lie, on the device.

    Attributes:
        number: (N,) number of each point's block.
        order: (N,) the points, block by block.
        first: place in `order` of the first point of each block.
        device: device of the arrays.
    """

    number: Array
    order: Array
    first: Array
    device: Device

    @classmethod
    def of(cls, points: Points, width_vox: tuple[int, int, int]) -> Windows:
        """Divide the grid into blocks of `width_vox` voxels, z, y, x."""
        index = np.unravel_index(points.index, points.shape)
        counts = [-(-n // b) for n, b in zip(points.shape, width_vox, strict=True)]
        z, y, x = (i // b for i, b in zip(index, width_vox, strict=True))
        blocks = (z * counts[1] + y) * counts[2] + x
        _, number = np.unique(blocks, return_inverse=True)
        order = np.argsort(number, kind="stable")
        first = np.flatnonzero(np.diff(number[order], prepend=-1))
        device = points.device
        number, order, first = (device.upload(a, np.intp) for a in (number, order, first))
        return cls(number, order, first, device)

    def summed(self, values: Array) -> Array:
        """Return the sums (..., blocks) float64 of values (..., N) over the points of each block.

        A weighted `bincount` would add up in an arbitrary order on a GPU. CuPy's `reduceat` takes
        differences of cumulative sums, for which float64 is exact enough.
        """
        ordered = values[..., self.order].astype(np.float64)
        return self.device.xp.add.reduceat(ordered, self.first, axis=-1)


def _summed(
    value: Array, gradient: Array, curvature: Array, position: Array, xp: Any
) -> Unread[NormalEquations]:
    """Add up gradient (3, N) and curvature (6, N) over the points at `position` (4, N)."""
    squares = xp.stack([position[a] * position[b] for a, b in zip(*_PAIRS_4, strict=True)])
    curvatures = xp.einsum("pn,qn->pq", curvature, squares, dtype=np.float64)
    gradients = xp.einsum("in,an->ia", gradient, position, dtype=np.float64)

    def made(numbers: list[float]) -> NormalEquations:
        pairs, by_pairs = np.empty((3, 3, 4, 4)), np.reshape(numbers[13:], (6, 10))
        (i, j), (a, b) = _PAIRS_3, _PAIRS_4
        for one, other in ((i, j), (j, i)):
            for first, second in ((a, b), (b, a)):
                pairs[one[:, None], other[:, None], first, second] = by_pairs
        return NormalEquations(
            numbers[0], np.reshape(numbers[1:13], (3, 4)), pairs.transpose(0, 2, 1, 3)
        )

    return Unread((value, gradients, curvatures), made)
