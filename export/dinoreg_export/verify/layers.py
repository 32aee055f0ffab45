"""The layers of both NumPy references."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.architecture import Weights

Floats = NDArray[np.float32]


def norm(weights: Weights, x: Floats, name: str, epsilon: float) -> Floats:
    """Apply a layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    scaled = centred / np.sqrt(variance + np.float32(epsilon))
    result: Floats = scaled * weights.read(f"{name}.weight") + weights.read(f"{name}.bias")
    return result


def gelu(x: Floats) -> Floats:
    """Multiply x by the cumulative distribution function of the normal distribution at x."""
    result: Floats = x * np.float32(0.5) * (1 + _erf(x / np.float32(math.sqrt(2))))
    return result


def _erf(x: Floats) -> Floats:
    """Apply the error function of the C library to each number."""
    result: Floats = np.vectorize(math.erf, otypes=[np.float32])(x)
    return result
