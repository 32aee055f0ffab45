"""An evenly spread sample of an image's values: its padding and the shares of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..io.arrays import as_numpy
from ..types import Array, FloatArray

#: Sampled voxels: the share of a value that 0.5 % of the voxels have is then known to a twentieth.
_SAMPLES = 100_000
#: Padding is one extreme value that fills at least this share of the image, far from all others.
_PADDING_SHARE = 0.005
#: Least distance to the other values, relative to their range: below them and above them.
_GAP_BELOW, _GAP_ABOVE = 0.2, 2.0
#: Fewer different values than this are no scan.
_FEWEST_VALUES = 16
#: Lowest value of air on a CT.
AIR_HU = -1100.0
#: Width and step of the bins in which a peak is sought, HU: wide enough for noise and 8 bits.
_BIN_HU, _STEP_HU = 40.0, 10.0


def sample_values(array: Array) -> tuple[FloatArray, float]:
    """Return 50,000 to 100,000 values from all over the array, ascending, and the smallest of all.

    They are all that is copied from a device to the host, in one piece.
    """
    flat = array.reshape(-1)
    step = max(1, -(-flat.size // _SAMPLES))
    # A step that shares a factor with the rows would visit some columns only.
    while step > 1 and any(math.gcd(step, n) > 1 for n in array.shape):
        step += 1
    values = as_numpy(np.concatenate([flat.min().reshape(1), flat[::step]]))
    return np.sort(values[1:]), float(values[0])


def find_padding(
    values: FloatArray, *, least_air: float = AIR_HU
) -> tuple[FloatArray, tuple[float, ...]]:
    """Return the sorted values of the scan itself, and the padding around it.

    Values of `least_air` and above may be air and are no padding at the lower end, unless they are
    the only negative ones.
    """
    found: list[float] = []
    while True:
        below = _padding_below(values, _GAP_BELOW)
        if below and not (values[0] < least_air or values[0] < 0 <= values[below]):
            below = 0
        above = _padding_below(-values[::-1], _GAP_ABOVE)
        if not below and not above:
            return values, tuple(found)
        found.append(float(values[0] if below else values[-1]))
        values = values[below:] if below else values[:-above]


def _padding_below(values: FloatArray, least_gap: float) -> int:
    """Return how many of the sorted values are padding at their lower end.

    Args:
        values: in ascending order.
        least_gap: distance to the other values, relative to their range.
    """
    count = int(np.searchsorted(values, values[0], "right"))
    rest = values[count:]
    if count < _PADDING_SHARE * values.size or rest.size < _FEWEST_VALUES:
        return 0
    gap = float(rest[0] - values[0])
    reach = float(rest[int(0.99 * (rest.size - 1))] - rest[0])
    if gap < least_gap * reach:
        return 0
    return count if np.unique(rest).size >= _FEWEST_VALUES else 0


@dataclass(frozen=True, eq=False)
class Histogram:
    """The values of an image in ascending order, without padding."""

    values: FloatArray

    @property
    def lowest(self) -> float:
        """Smallest value."""
        return float(self.values[0])

    @property
    def highest(self) -> float:
        """Largest value."""
        return float(self.values[-1])

    def share(self, low: float, high: float) -> float:
        """Return the share of the values from `low` to `high`, both included."""
        first = np.searchsorted(self.values, low, "left")
        last = np.searchsorted(self.values, high, "right")
        return max(0, int(last - first)) / self.values.size

    @property
    def lowest_share(self) -> float:
        """Share of the voxels that have exactly the smallest value."""
        return self.share(self.lowest, self.lowest)

    @property
    def highest_share(self) -> float:
        """Share of the voxels that have exactly the largest value."""
        return self.share(self.highest, self.highest)

    def contrast(self, water: float, unit: float) -> float:
        """Return the peak density of soft tissue over the density between air and fat.

        Args:
            water: value that would be 0 HU.
            unit: values per HU.
        """
        starts = np.arange(-20.0, 121.0 - _BIN_HU, _STEP_HU)
        first = np.searchsorted(self.values, water + unit * (starts - 0.5), "left")
        last = np.searchsorted(self.values, water + unit * (starts + _BIN_HU - 0.5), "left")
        peak = float((last - first).max()) / _BIN_HU
        start = max(water - 500 * unit, self.lowest)
        width_hu = max((water - start) / unit - 200.0, 1.0)
        between = self.share(start, water - 200 * unit) * self.values.size
        return peak * width_hu / max(between, 1.0)

    def above_lowest(self) -> Histogram:
        """Return the histogram without the voxels that have exactly the smallest value."""
        return Histogram(self.values[np.searchsorted(self.values, self.values[0], "right") :])

    def percentile(self, percent: float) -> float:
        """Return the value below which `percent` of the voxels lie."""
        return float(self.values[int(percent / 100 * (self.values.size - 1))])
