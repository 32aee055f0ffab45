"""What every source of an encoder's tensors offers."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .architecture import Architecture


class Weights(Protocol):
    """Canonical tensors of an encoder: a checkpoint's, or random ones."""

    @property
    def architecture(self) -> Architecture:
        """What they belong to."""

    @property
    def files(self) -> tuple[Path, ...]:
        """That they are read from, none if they are not."""

    def names(self) -> list[str]:
        """Canonical names."""

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
