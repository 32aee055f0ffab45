"""Random encoders whose blocks change their input as little, or as badly, as a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from checkpoints import make_bundle

from dinoreg_export.checkpoint.architecture import Architecture
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_rt.bundle.manifest import Precision


class Weights(RandomWeights):
    """Random weights with scaled layers and an outlier channel in every norm.

    Layer scales are multiplied by `share`: random blocks change their input by its own size, so
    that the errors of 8 bits add up. The channel is multiplied by `outlier`.
    """

    def __init__(self, a: Architecture, share: float = 0.1, outlier: float = 1.0) -> None:
        super().__init__(a, 1)
        self._share, self._outlier = np.float32(share), np.float32(outlier)

    def read(self, name: str) -> np.ndarray:
        values = super().read(name).copy()
        if name.rpartition(".")[2].startswith("scale"):
            values *= self._share
        if name.endswith(("norm1.weight", "norm2.weight")):
            values[0] *= self._outlier
        return values


def write(
    folder: Path,
    a: Architecture,
    sizes: Sequence[tuple[int, int]],
    precision: Precision = "fp32",
    **how: float,
) -> Path:
    make_bundle(folder, Weights(a, **how), sizes, precision=precision)
    return folder
