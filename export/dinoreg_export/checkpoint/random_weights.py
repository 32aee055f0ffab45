"""Weights drawn from a seed: for tests of plumbing and speed, not of features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .architecture import Architecture, VitArchitecture

#: Side in pixels of the pictures that DINOv2 learned its positions on.
_TRAINED_PIXELS = 518


class RandomWeights:
    """The tensors that a released checkpoint of this architecture would hold, drawn by name."""

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
        """Canonical names of all tensors."""
        return list(self._shapes)

    def read(self, name: str) -> NDArray[np.float32]:
        """The same numbers each time: the generator is seeded by name."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")
        values = np.random.default_rng(key).standard_normal(self._shapes[name], np.float32)
        leaf = name.rpartition(".")[2]
        if "norm" in name or leaf.startswith("scale"):
            return np.float32(0.1) * values + np.float32(
                leaf == "weight" or leaf.startswith("scale")
            )
        # A depthwise convolution adds up 49 numbers where other layers add up hundreds.
        narrow = values.ndim == 1 or "depthwise" in name
        return np.float32(0.1 if narrow else 0.04) * values
