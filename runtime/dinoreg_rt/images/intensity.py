"""The intensities of one image: its window for feature extraction, and its padding."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config.parameters import RegistrationConfig
from ..errors import InputError
from ..io.arrays import as_numpy
from ..types import Array, Volume
from .modality import Detection

#: Voxels sampled for a percentile: enough for three digits, and fast on any scan.
_PERCENTILE_SAMPLES = 1_000_000
#: The lower end of a window is the smallest value, unless a few outliers would raise the background
#: by more than this share of the window; then it is this percentile. The share is that of `TISSUE`,
#: the limit of the body. Ringing after spline interpolation raises it by 14 and 17 %, the
#: negative values of an MR as reconstructed by 6.5 %.
_MOST_RAISED, _LOW_PERCENTILE = 0.1, 0.5
#: With less foreground than this, the percentile is taken of the foreground.
_LEAST_FOREGROUND = 0.1


def intensity_window(
    volume: Volume,
    found: Detection,
    config: RegistrationConfig,
    mask: Array | None = None,
    role: str = "",
) -> tuple[float, float]:
    """Return the intensities that map to 0 and 1.

    Args:
        volume: image.
        found: modality of the image, its scale and its padding.
        config: windows and percentiles.
        mask: (D, H, W) beside the image, nonzero where voxels of an MR count; None for everywhere.
        role: ``fixed`` or ``moving``, for messages.

    Raises:
        InputError: an MR holds only one value there, or values too close to be told apart.
    """
    if found.water is not None:
        low, high = config.ct_window_hu
        return low + found.water, high + found.water
    values = volume.array.reshape(-1) if mask is None else volume.array[mask != 0]
    if found.padding:
        values = values[~is_padding(values, found.padding)]
    whole = mask is None and not found.padding
    lowest = found.lowest if whole else None
    low, high = 0.0, 0.0
    if values.size:
        low, high = _ends(values, config.mr_percentile, found.dark, lowest)
    # Windows are applied in float32.
    if not high - low > 1.0 / np.finfo(np.float32).max:
        where = "" if mask is None else f" inside the {role} mask"
        raise InputError(
            f"the {role} image has only the value {low:g}{where}: there is nothing to align; "
            "check that it is the right image and that the mask covers the anatomy"
        )
    return low, high


def _ends(
    values: Array, percentile: float, dark: float | None, lowest: float | None
) -> tuple[float, float]:
    """Return the ends of a window over `values` (N,).

    Only single numbers are copied from a device, usually all at once.

    Args:
        values: intensities.
        percentile: percentile at the upper end.
        dark: lower end, if it is known.
        lowest: the smallest value, if it is known.
    """
    sample = values[:: max(1, values.size // _PERCENTILE_SAMPLES)]
    least = values.min() if lowest is None else lowest
    above = [_count_above(sample, least if dark is None else dark)]
    if lowest is None:
        above.append(values.min().reshape(1))
    (without_outliers, high), more = _percentiles(sample, (_LOW_PERCENTILE, percentile), 0, above)
    count, low = int(more[0]), float(more[1]) if lowest is None else lowest
    if dark is not None:
        low = dark
    elif without_outliers - low > _MOST_RAISED * (high - low):
        low = without_outliers
        count = int(as_numpy(_count_above(sample, low))[0])
    if dark is not None or count < _LEAST_FOREGROUND * sample.size:
        if count == 0:  # none in the sample
            return low, float(values.max())
        (high,), _ = _percentiles(sample, (percentile,), sample.size - count)
    return low, high


def _count_above(sample: Array, limit: float | Array) -> Array:
    """Return the number of values above a limit, (1,) float32 beside the sample."""
    return (sample > limit).sum().astype(np.float32).reshape(1)


def _percentiles(
    sample: Array, percentiles: Sequence[float], first: int, more: Sequence[Array] = ()
) -> tuple[list[float], list[np.float32]]:
    """Return percentiles of a sample without its `first` smallest values, as NumPy computes them.

    The values of `more`, (1,) float32 each, are read at the same time and returned beside them.
    """
    last = sample.size - 1
    ranks = [(last - first) * (percent / 100) for percent in percentiles]
    places = [min(first + int(rank) + i, last) for rank in ranks for i in (0, 1)]
    ordered = np.partition(sample, sorted(set(places)))
    numbers = list(as_numpy(np.concatenate([*(ordered[k : k + 1] for k in places), *more])))
    found = []
    for rank, low, high in zip(ranks, numbers[::2], numbers[1::2], strict=False):
        part, step = rank - int(rank), high - low
        found.append(float(low + step * part if part < 0.5 else high - step * (1 - part)))
    return found, numbers[len(places) :]


def is_padding(array: Array, padding: tuple[float, ...]) -> Array:
    """Return where `array` has a value of the padding, of the same shape."""
    return functools.reduce(operator.or_, [array == np.float32(value) for value in padding])


def without_padding(volume: Volume, padding: tuple[float, ...]) -> Volume:
    """Return the image with its smallest other value, that of air, in place of the padding."""
    if not padding:
        return volume
    outside = is_padding(volume.array, padding)
    air = np.where(outside, np.float32(np.inf), volume.array).min()
    return replace(volume, array=np.where(outside, air, volume.array))


def window(array: Array, low: float, high: float) -> Array:
    """Clip to [low, high] and scale to [0, 1], in place."""
    array -= np.float32(low)
    array *= np.float32(1.0 / (high - low))
    return array.clip(0.0, 1.0, out=array)
