"""The similarity of two images at all shifts at once, by Fourier transforms, and its peaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..device.choice import Device
from ..device.unread import Unread
from ..types import Array, FloatArray
from .coarse import CHANNELS
from .sides import SILHOUETTE, Centred

#: Least overlap of the bodies, as a share of the smaller one, at which a position counts.
LEAST_OVERLAP = 0.15
_PEAKS = 4
_EXCLUDED_CELLS = 3
#: Places of the terms behind those of the channels.
_WEIGHT, _ENERGY, _SILHOUETTE, _SEEN, _SILHOUETTE_ENERGY = range(CHANNELS, CHANNELS + 5)
#: The sums over an overlap besides that of MIND-SSC: a term of the fixed and one of the moving.
_SUMS = (
    (_ENERGY, _WEIGHT),
    (_WEIGHT, _ENERGY),
    (_WEIGHT, _WEIGHT),
    (_SILHOUETTE, _SILHOUETTE),
    (_SILHOUETTE_ENERGY, _SEEN),
    (_SEEN, _SILHOUETTE_ENERGY),
    (_SEEN, _SEEN),
)
_AXES = (1, 2, 3)


def spectra(side: Centred, shape: tuple[int, int, int], device: Device) -> Array:
    """Return the Fourier transforms of all terms in the sums over an overlap, (terms, ...)."""
    xp = device.xp
    terms = xp.empty((CHANNELS + 5, *side.weight.shape), np.float32)
    xp.multiply(xp.moveaxis(side.mind, -1, 0), side.weight, out=terms[:CHANNELS])
    terms[_WEIGHT] = side.weight
    terms[_ENERGY] = side.weight * side.energy
    terms[_SILHOUETTE] = side.seen * side.silhouette
    terms[_SEEN] = side.seen
    terms[_SILHOUETTE_ENERGY] = side.seen * np.square(side.silhouette)
    if device.kind == "cuda":
        return xp.fft.rfftn(terms, shape, axes=_AXES)
    # One after the other they stay in the CPU's cache, which halves the time.
    *first, last = shape
    found = np.empty((len(terms), *first, last // 2 + 1), np.complex64)
    for one, term in zip(found, terms, strict=True):
        one[...] = np.fft.rfftn(term, shape, axes=(0, 1, 2))
    return found


def similarity_map(
    a: Array, b: Array, fixed: Centred, moving: Centred, shape: tuple[int, int, int], device: Device
) -> Array:
    """Return `similarity` and q for all shifts t (modulo the shape): cell p matches cell p + t.

    Args:
        a: complex conjugate of the fixed image's `spectra`.
        b: `spectra` of the moving image.
        fixed: the fixed image.
        moving: the moving image.
        shape: shape of the transforms, large enough for both images side by side.
        device: device of all arrays.

    Returns:
        (2, *shape).
    """
    xp = device.xp
    products = xp.empty((1 + len(_SUMS), *a.shape[1:]), np.complex64)
    (a[:CHANNELS] * b[:CHANNELS]).sum(axis=0, out=products[0])
    for out, (one, other) in zip(products[1:], _SUMS, strict=True):
        xp.multiply(a[one], b[other], out=out)
    mind, first, second, common, body, body_first, body_second, view = _inverse(
        products, shape, device
    )
    both = ((fixed.weight, moving.weight), (fixed.seen, moving.seen))
    smaller = [xp.maximum(xp.minimum(x.sum(), y.sum()), np.float32(1e-6)) for x, y in both]
    overlap, view = common / smaller[0], view / smaller[1]
    value = _ratio(mind, first, second) * xp.sqrt(overlap.clip(0, 1))
    value += SILHOUETTE * _ratio(body, body_first, body_second) * xp.sqrt(view.clip(0, 1))
    return xp.stack([xp.where(overlap < LEAST_OVERLAP, np.float32(-1), value), overlap])


def _inverse(products: Array, shape: tuple[int, int, int], device: Device) -> Sequence[Array]:
    if device.kind == "cuda":
        return list(device.xp.fft.irfftn(products, shape, axes=_AXES))
    return [np.fft.irfftn(product, shape, axes=(0, 1, 2)) for product in products]


def _ratio(cross: Array, first: Array, second: Array) -> Array:
    """Return the correlation; regularised, as empty overlaps hold only rounding errors."""
    energy = first.clip(0) * second.clip(0)
    return cross / np.sqrt(energy + 1e-6 * energy.max() + 1e-12)


def peaks(
    maps: Sequence[Array], fixed_shape: tuple[int, int, int], xp: Any
) -> Unread[list[list[tuple[FloatArray, float, float]]]]:
    """Return shift (z, y, x), value and overlap of the highest peaks of each map, best first.

    Each peak excludes its surroundings. Negative shifts stand at the end of each axis, after shifts
    at which nothing overlaps.
    """
    first = np.array([1 - n for n in fixed_shape])
    z, y, x = (-int(n) for n in first)
    rolled = xp.roll(xp.stack(maps), (z, y, x), (2, 3, 4))
    count, shape = len(maps), tuple(int(n) for n in rolled.shape[2:])
    values, overlaps = (rolled[:, k].reshape(count, -1) for k in (0, 1))
    rows, found = xp.arange(count), []
    for _ in range(_PEAKS):
        place = values.argmax(axis=1)
        found += [place, values[rows, place], overlaps[rows, place]]
        values[rows[:, None], _around(place, shape, xp)] = -1.0

    def made(numbers: list[float]) -> list[list[tuple[FloatArray, float, float]]]:
        by_peak = np.array(numbers).reshape(_PEAKS, 3, count)
        return [_positive(by_peak[:, :, k], shape, first) for k in range(count)]

    return Unread(tuple(found), made)


def _around(place: Array, shape: tuple[int, ...], xp: Any) -> Array:
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
    peaks: FloatArray, shape: tuple[int, ...], first: FloatArray
) -> list[tuple[FloatArray, float, float]]:
    """Return the peaks (place, value, overlap) of one map up to the first that is not positive."""
    found = []
    for place, value, share in peaks:
        if value <= 0:
            break
        index = np.array(np.unravel_index(int(place), shape))
        found.append((index + first, float(value), min(1.0, float(share))))
    return found
