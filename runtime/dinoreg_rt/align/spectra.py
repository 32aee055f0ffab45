"""The similarity of two images at all shifts at once, by Fourier transforms, and its peaks.

Positions count only where both bodies overlap, so MIND-SSC is transformed within the boxes of the
bodies, and only the three terms of the silhouette in the whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..device.choice import Device
from ..device.unread import Unread
from ..types import Array, FloatArray
from .boxes import Box
from .coarse import CHANNELS
from .sides import SILHOUETTE, Centred

#: Least overlap of the bodies, as a share of the smaller one, at which a position counts.
LEAST_OVERLAP = 0.15
_PEAKS = 4
_EXCLUDED_CELLS = 3
#: Places of the last terms of each group of spectra.
_WEIGHT, _ENERGY = -2, -1

_Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Shifts:
    """The shifts at which two bodies can overlap, z, y, x.

    Attributes:
        first: the least shift from a fixed cell to the moving one that it is compared with.
        count: number of shifts along each axis.
        margin: extent of the fixed body's box less one; the least shift between both boxes is its
            negative.
        whole: length of the transforms of the whole images at which these shifts are not disturbed
            by those that are periodic with them.
    """

    first: _Shape
    count: _Shape
    margin: _Shape
    whole: _Shape

    @classmethod
    def of(cls, boxes: tuple[Box, Box], shapes: tuple[_Shape, _Shape]) -> Shifts:
        """Take the boxes of both bodies and the shapes of both images, the fixed one first."""
        axes = []
        for here, there, a, b in zip(*boxes, *shapes, strict=True):
            first, last = there.start - here.stop + 1, there.stop - here.start - 1
            margin = here.stop - here.start - 1
            axes.append((first, last - first + 1, margin, max(a, b, b - first, a + last)))
        z, y, x = axes
        return cls(*zip(z, y, x, strict=True))


@dataclass(frozen=True, eq=False)
class Spectra:
    """Fourier transforms of the terms in the sums over an overlap, and the sums of the weights.

    Attributes:
        body: those of the weighted MIND-SSC, the weight, and the weighted energy within the body's
            box, (CHANNELS + 2, ...).
        view: those of the silhouette, its weight and its energy in the whole image, (3, ...).
        weight: sum of the weights.
        seen: sum of the seen shares.
    """

    body: Array
    view: Array
    weight: Array
    seen: Array

    @classmethod
    def of(cls, side: Centred, near: _Shape, whole: _Shape, device: Device) -> Spectra:
        """Transform an image: its body to the shape `near`, and all of it to `whole`."""
        xp = device.xp
        body = xp.empty((CHANNELS + 2, *side.weight.shape), np.float32)
        xp.multiply(xp.moveaxis(side.mind, -1, 0), side.weight, out=body[:CHANNELS])
        body[_WEIGHT] = side.weight
        xp.multiply(side.weight, side.energy, out=body[_ENERGY])
        view = xp.empty((3, *side.seen.shape), np.float32)
        xp.multiply(side.seen, side.silhouette, out=view[0])
        view[_WEIGHT] = side.seen
        xp.multiply(view[0], side.silhouette, out=view[_ENERGY])
        spectra = (_forward(body, near, device), _forward(view, whole, device))
        return cls(*spectra, side.weight.sum(), side.seen.sum())

    def conj(self) -> Spectra:
        """Return the complex conjugate."""
        return replace(self, body=self.body.conj(), view=self.view.conj())


def _forward(terms: Array, shape: _Shape, device: Device) -> Array:
    if device.kind == "cuda":
        return device.xp.fft.rfftn(terms, shape, axes=(1, 2, 3))
    # One after the other they stay in the CPU's cache, which halves the time.
    *first, last = shape
    found = np.empty((len(terms), *first, last // 2 + 1), np.complex64)
    for one, term in zip(found, terms, strict=True):
        one[...] = np.fft.rfftn(term, shape, axes=(0, 1, 2))
    return found


def similarity_map(
    a: Spectra, b: Spectra, shifts: Shifts, near: _Shape, whole: _Shape, device: Device
) -> Array:
    """Return `similarity` and q at all shifts t, (2, *shifts.count): cell p matches cell p + t.

    Args:
        a: complex conjugate of the fixed image's spectra.
        b: spectra of the moving image.
        shifts: the shifts.
        near: shape of the transforms of the bodies.
        whole: shape of the transforms of the whole images.
        device: device of all arrays.
    """
    xp, (z, y, x) = device.xp, shifts.count
    least = tuple(-n for n in shifts.margin)
    terms = []
    for one, other, shape, first, sums in (
        (a.body, b.body, near, least, (a.weight, b.weight)),
        (a.view, b.view, whole, shifts.first, (a.seen, b.seen)),
    ):
        back = tuple(-n for n in first)
        found = xp.roll(_correlations(one, other, shape, device), back, (1, 2, 3))[:, :z, :y, :x]
        share = found[3] / xp.maximum(xp.minimum(*sums), np.float32(1e-6))
        terms.append((_ratio(*found[:3]) * xp.sqrt(share.clip(0, 1)), share))
    (value, overlap), (silhouette, _) = terms
    value += np.float32(SILHOUETTE) * silhouette
    return xp.stack([xp.where(overlap < LEAST_OVERLAP, np.float32(-1), value), overlap])


def _correlations(one: Array, other: Array, shape: _Shape, device: Device) -> Array:
    """Return the sums over all overlaps (modulo the shape), (4, *shape).

    They are those of the product, the energies of both images, and the weight.
    """
    xp = device.xp
    products = xp.empty((4, *one.shape[1:]), np.complex64)
    (one[:_WEIGHT] * other[:_WEIGHT]).sum(axis=0, out=products[0])
    xp.multiply(one[_ENERGY], other[_WEIGHT], out=products[1])
    xp.multiply(one[_WEIGHT], other[_ENERGY], out=products[2])
    xp.multiply(one[_WEIGHT], other[_WEIGHT], out=products[3])
    if device.kind == "cuda":
        return xp.fft.irfftn(products, shape, axes=(1, 2, 3))
    found = np.empty((4, *shape), np.float32)
    for sums, product in zip(found, products, strict=True):
        sums[...] = np.fft.irfftn(product, shape, axes=(0, 1, 2))
    return found


def _ratio(cross: Array, first: Array, second: Array) -> Array:
    """Return the correlation; regularised, as empty overlaps hold only rounding errors."""
    energy = first.clip(0) * second.clip(0)
    energy += 1e-6 * energy.max() + np.float32(1e-12)
    return cross / np.sqrt(energy)


def peaks(
    maps: Sequence[Array], shifts: Sequence[Shifts], xp: Any
) -> Unread[list[list[tuple[FloatArray, float, float]]]]:
    """Return shift (z, y, x), value and overlap of the highest peaks of each map, best first.

    Each peak excludes its surroundings.
    """
    z, y, x = (max(counts) for counts in zip(*(one.count for one in shifts), strict=True))
    both = xp.full((2, len(maps), z, y, x), np.float32(-1))
    for k, one in enumerate(maps):
        d, h, w = one.shape[1:]
        both[:, k, :d, :h, :w] = one
    values, overlaps = both.reshape(2, len(maps), -1)
    rows, found = xp.arange(len(maps)), []
    for _ in range(_PEAKS):
        place = values.argmax(axis=1)
        found += [place, values[rows, place], overlaps[rows, place]]
        values[rows[:, None], _around(place, (z, y, x), xp)] = -1.0

    def made(numbers: list[float]) -> list[list[tuple[FloatArray, float, float]]]:
        by_peak = np.array(numbers).reshape(_PEAKS, 3, len(maps))
        return [
            _positive(by_peak[:, :, k], (z, y, x), np.array(one.first))
            for k, one in enumerate(shifts)
        ]

    return Unread(tuple(found), made)


def _around(place: Array, shape: _Shape, xp: Any) -> Array:
    """Return the flat indices (N, M) of the surroundings of flat indices (N,)."""
    _, h, w = shape
    reach = xp.arange(-_EXCLUDED_CELLS, _EXCLUDED_CELLS + 1)
    z, y, x = (
        (index[:, None] + reach).clip(0, n - 1)
        for index, n in zip((place // (h * w), place // w % h, place % w), shape, strict=True)
    )
    near = (z[:, :, None, None] * h + y[:, None, :, None]) * w + x[:, None, None, :]
    return near.reshape(len(place), -1)


def _positive(
    peaks: FloatArray, shape: _Shape, first: FloatArray
) -> list[tuple[FloatArray, float, float]]:
    """Return the peaks (place, value, overlap) of one map up to the first that is not positive."""
    found = []
    for place, value, share in peaks:
        if value <= 0:
            break
        index = np.array(np.unravel_index(int(place), shape))
        found.append((index + first, float(value), min(1.0, float(share))))
    return found
