"""The last check of a registration: its results hold neither NaN nor infinity."""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..errors import RegistrationError
from ..types import Array, DisplacementField, Volume


def check_finite(
    device: Device,
    displacement: DisplacementField,
    warped: Volume,
    inverse: DisplacementField | None,
    confidence: Array | None,
) -> None:
    """Require that every value of a registration's results is finite.

    The arrays are those that the caller gets: a GPU is not waited for before they are copied.

    Raises:
        RegistrationError: one is not.
    """
    results = {
        "displacement field": displacement.vectors_mm,
        "warped image": warped.array,
        "inverse": None if inverse is None else inverse.vectors_mm,
        "confidence": confidence,
    }
    for name, array in results.items():
        if array is None:
            continue
        # NaN and infinity show in the extremes, without a second array as large as the field.
        extremes = array.min(), array.max()
        xp = np if isinstance(array, np.ndarray) else device.xp
        if not all(bool(xp.isfinite(value)) for value in extremes):
            raise RegistrationError(
                f"the {name} would hold NaN or infinity, because the optimisation diverged: lower "
                "the learning rate (--learning-rate-mm), and check that neither the weights nor "
                "the values of the images are extreme"
            )
