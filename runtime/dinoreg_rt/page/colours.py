"""Colours that the picture and the page share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import Array

#: Largest expansion and contraction that the Jacobian's colours tell apart.
JACOBIAN_RANGE = 4.0
FOLD = (255, 43, 214)
_ANCHORS = (
    *("67001f", "b2182b", "d6604d", "f4a582", "fddbc7", "f7f7f7"),
    *("d1e5f0", "92c5de", "4393c3", "2166ac", "053061"),
)
_LABELS = (
    *("ff5f57", "4cc9f0", "ffd166", "80ed99", "c77dff", "ff9f1c", "06d6a0", "f72585", "a2d2ff"),
    *("e9c46a", "90be6d", "ff99c8", "00b4d8", "f4a261", "b5e48c", "9d8df1", "f94144", "43aa8b"),
)


def _bytes(colours: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.array([list(bytes.fromhex(colour)) for colour in colours], np.uint8)


def _ramp(anchors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 256 colours between anchors."""
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


#: Colours of the Jacobian, (256, 3), from contraction to expansion: ColorBrewer's RdBu.
JACOBIAN = _ramp(_bytes(_ANCHORS))
#: Colours of labels, which repeat; (n, 3).
LABELS = _bytes(_LABELS)


def jacobian_shades(jacobian: Array) -> NDArray[np.uint8]:
    """Return indices into `JACOBIAN`: the logarithm of the determinant within its range."""
    floor = 1 / JACOBIAN_RANGE
    logarithm = np.log(np.clip(np.nan_to_num(jacobian, nan=1.0), floor, JACOBIAN_RANGE))
    return np.asarray((logarithm / np.log(JACOBIAN_RANGE) + 1) * 127.5).round().astype(np.uint8)


def jacobian_opacity(shades: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how opaque the colours of these shades lie on an image: 0 where nothing changes."""
    return np.asarray(np.minimum(0.85, np.abs(shades - 127.5) / 90))
