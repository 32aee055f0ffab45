"""Whether two images rank tissues by brightness in the same order, so that intensities compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..device.choice import Device
from ..geometry import coarsened_grid
from ..types import AffineTransform, FloatArray
from .grids import WorkingGrids
from .intensity import window
from .pair import Pair
from .resample import resample_volume, weight_on

#: Limits for two MR images to count as alike. Correlation and rising share measured after a rough
#: start: 0.33 to 0.96 and 0.78 to 1 for pairs of one sequence; -0.07 to 0.03 and below 0 for T1
#: with T2 and for different abdominal sequences; 0.70 and 0.50 for a phantom whose contrast
#: reverses.
LEAST_CORRELATION = 0.2
LEAST_RISING_SHARE = 0.75
#: Least correlation of close MR images. Measured: 0.82 and 0.96 for T1 brains of two people and for
#: two states of one heart, 0.47 and 0.54 for abdomens of two people in one sequence.
CLOSE_CORRELATION = 0.7
_BINS = 8
#: Windowed intensities below this are air, which is dark in every image and would make all of them
#: alike.
_AIR = 0.05


@dataclass(frozen=True)
class Contrast:
    """The relation between the intensities of two images.

    Attributes:
        alike: whether tissues have the same order of brightness, so that local intensities can join
            the features.
        close: whether both are MR images in which the same tissue is about equally bright: their
            intensities then say more than features do.
        reason: explanation in words.
    """

    alike: bool
    close: bool
    reason: str


def compare_contrast(
    pair: Pair, initial: AffineTransform, grids: WorkingGrids, device: Device
) -> Contrast:
    """Decide whether the intensities of two images can be compared.

    They are compared on the search grid, with `initial` mapping fixed points to moving points.
    """
    modality = pair[0].modality
    if pair[1].modality != modality:
        reason = "a CT and an MR show tissues in different orders of brightness"
        return Contrast(alike=False, close=False, reason=reason)
    if modality == "ct":
        return Contrast(alike=True, close=False, reason="two CT images show tissues alike")
    tissue = common_tissue(pair, initial, grids, device)
    value, rising = correlation(*tissue), rising_share(*tissue)
    numbers = f"correlation {value:.2f}, rising share {rising:.2f} after the initial alignment"
    alike = value >= LEAST_CORRELATION and rising >= LEAST_RISING_SHARE
    close = alike and value >= CLOSE_CORRELATION
    how = "nearly alike" if close else "alike" if alike else "differently"
    return Contrast(alike, close, f"the MR images show tissues {how} ({numbers})")


def correlation(first: FloatArray, second: FloatArray) -> float:
    """Return Pearson's correlation of two lists of values; 0 where it is undefined."""
    if first.size < _BINS or first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def rising_share(first: FloatArray, second: FloatArray) -> float:
    """Return 1 if the mean of each list only rises with the other, -1 if it only falls."""
    return min(_rising(first, second), _rising(second, first))


def _rising(given: FloatArray, mean_of: FloatArray) -> float:
    if given.size < _BINS:
        return 0.0
    edges = np.quantile(given, np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.searchsorted(edges, given)
    means = [mean_of[bins == i].mean() for i in range(_BINS) if (bins == i).any()]
    steps = np.diff(means)
    total = float(np.abs(steps).sum())
    return float(steps.sum()) / total if total > 0 else 0.0


def common_tissue(
    pair: Pair, initial: AffineTransform, grids: WorkingGrids, device: Device
) -> tuple[FloatArray, FloatArray]:
    """Return windowed intensities (N,) of both images in search cells with tissue in both."""
    cells = coarsened_grid(grids.control, grids.search_factor_zyx)
    maps = (AffineTransform.identity(), initial)
    images = [
        window(resample_volume(image.volume, cells, affine, device), *image.window)
        for image, affine in zip(pair, maps, strict=True)
    ]
    seen = weight_on(cells, pair[1].volume, None, initial, device)
    one, other, seen = device.download(device.xp.stack([*images, seen]))
    inside = (seen > 0.5) & (one > _AIR) & (other > _AIR)
    return one[inside].astype(np.float64), other[inside].astype(np.float64)
