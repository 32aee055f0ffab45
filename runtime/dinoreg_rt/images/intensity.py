"""The intensities of one image: its window for feature extraction, and its padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..config.parameters import RegistrationConfig
from ..errors import InputError
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
        mask: (D, H, W), nonzero where voxels of an MR count; None for everywhere.
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
    low, high = _ends(values, config.mr_percentile, found.dark) if values.size else (0.0, 0.0)
    # Windows are applied in float32.
    if not high - low > 1.0 / np.finfo(np.float32).max:
        where = "" if mask is None else f" inside the {role} mask"
        raise InputError(
            f"the {role} image has only the value {low:g}{where}: there is nothing to align; "
            "check that it is the right image and that the mask covers the anatomy"
        )
    return low, high


def _ends(values: Array, percentile: float, dark: float | None) -> tuple[float, float]:
    """Return the ends of a window over `values` (N,), which starts at `dark` if that is given."""
    sample = values[:: max(1, values.size // _PERCENTILE_SAMPLES)]
    low, high = float(values.min()), float(np.percentile(sample, percentile))
    without_outliers = float(np.percentile(sample, _LOW_PERCENTILE))
    if dark is not None:
        low = dark
    elif without_outliers - low > _MOST_RAISED * (high - low):
        low = without_outliers
    inside = sample > low
    if dark is not None or np.count_nonzero(inside) < _LEAST_FOREGROUND * sample.size:
        foreground = sample[inside]
        if foreground.size == 0:  # none in the sample
            return low, float(values.max())
        high = float(np.percentile(foreground, percentile))
    return low, high


def is_padding(array: Array, padding: tuple[float, ...]) -> Array:
    """Return where `array` has a value of the padding, of the same shape."""
    return np.logical_or.reduce([array == np.float32(value) for value in padding])


def without_padding(volume: Volume, padding: tuple[float, ...]) -> Volume:
    """Return the image with its smallest other value, that of air, in place of the padding."""
    if not padding:
        return volume
    outside = is_padding(volume.array, padding)
    air = volume.array.min(where=~outside, initial=np.inf)
    return replace(volume, array=np.where(outside, air, volume.array))


def window(array: Array, low: float, high: float) -> Array:
    """Clip to [low, high] and scale to [0, 1], in place."""
    array -= np.float32(low)
    array *= np.float32(1.0 / (high - low))
    return array.clip(0.0, 1.0, out=array)
