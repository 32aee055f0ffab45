"""The last check of a registration: its results hold neither NaN nor infinity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..device.choice import Device
from ..errors import RegistrationError
from ..types import Array


def extremes(results: Mapping[str, Array | None], device: Device) -> Array:
    """Return the least and greatest value of each array, (2 n,) float32 on the arrays' device.

    NaN and infinity show in them, without a second array as large as the field.
    """
    present = [array for array in results.values() if array is not None]
    values = [value for array in present for value in (array.min(), array.max())]
    return device.xp.stack(values).astype(np.float32)


def check_finite(results: Mapping[str, Array | None], found: NDArray[np.float32]) -> None:
    """Require that every value of a registration's results is finite.

    Args:
        results: the arrays by their names in `_TEXTS`.
        found: their `extremes`.

    Raises:
        RegistrationError: one is not.
    """
    names = [name for name, array in results.items() if array is not None]
    for name, pair in zip(names, found.reshape(-1, 2), strict=True):
        if not np.isfinite(pair).all():
            raise RegistrationError(
                f"the {_TEXTS[name]} would hold NaN or infinity, because the optimisation "
                "diverged: lower the learning rate (--learning-rate-mm), and check that neither "
                "the weights nor the values of the images are extreme"
            )


#: Names of results in messages.
_TEXTS = {
    "displacement": "displacement field",
    "warped": "warped image",
    "inverse": "inverse",
    "confidence": "confidence",
}
