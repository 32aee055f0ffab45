"""The check of a registration's results: they hold neither NaN nor infinity."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import RegistrationError
from ..types import Array, DisplacementField, Volume


def named_results(
    displacement: DisplacementField,
    warped: Volume,
    inverse: DisplacementField | None,
    confidence: Array | None,
) -> dict[str, Array]:
    """Return the arrays of a registration's results by the names that messages call them."""
    results = {
        "displacement field": displacement.vectors_mm,
        "warped image": warped.array,
        "inverse": None if inverse is None else inverse.vectors_mm,
        "confidence": confidence,
    }
    return {name: array for name, array in results.items() if array is not None}


def check_finite(names: Iterable[str], sums: Iterable[float]) -> None:
    """Require that every value of a registration's results is finite.

    Args:
        names: names of the arrays.
        sums: sum of each, from `dinoreg_kernels.sum_values`: NaN or infinity shows in it.

    Raises:
        RegistrationError: one is not.
    """
    for name, total in zip(names, sums, strict=True):
        if not math.isfinite(total):
            raise RegistrationError(
                f"the {name} would hold NaN or infinity, because the optimisation diverged: lower "
                "the learning rate (--learning-rate-mm), and check that neither the weights nor "
                "the values of the images are extreme"
            )
