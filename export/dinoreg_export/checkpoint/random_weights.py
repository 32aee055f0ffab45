"""Random weights from a seed, for tests of function and speed but not of features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .architecture import Architecture, VitArchitecture

#: Side in pixels of the pictures in the training of DINOv2's positions.
_TRAINED_PIXELS = 518


class RandomWeights:
    """Random tensors with the names and shapes of a released checkpoint of an architecture."""

    files: tuple[Path, ...] = ()

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self.architecture = architecture
        self.seed = seed
        self._shapes = architecture.parameters()
        if isinstance(architecture, VitArchitecture):
            biased = tuple(f".{p}.bias" for p in architecture.biased)
            optional = architecture.optional_parameters()
            self._shapes |= {n: s for n, s in optional.items() if n.endswith(biased)}
        if architecture.learned_positions:
            tokens = 1 + (_TRAINED_PIXELS // architecture.patch) ** 2
            self._shapes["position"] = (1, tokens, architecture.dim)

    def names(self) -> list[str]:
        """Return the canonical names of all tensors."""
        return list(self._shapes)

    def read(self, name: str) -> NDArray[np.float32]:
        """Draw one tensor, from a generator seeded by its name: always the same numbers."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")
        values = np.random.default_rng(key).standard_normal(self._shapes[name], np.float32)
        leaf = name.rpartition(".")[2]
        if "norm" in name or leaf.startswith("scale"):
            return np.float32(0.1) * values + np.float32(
                leaf == "weight" or leaf.startswith("scale")
            )
        # A depthwise convolution sums 49 numbers, other layers hundreds.
        narrow = values.ndim == 1 or "depthwise" in name
        return np.float32(0.1 if narrow else 0.04) * values
