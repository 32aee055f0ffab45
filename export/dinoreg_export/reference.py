"""The forward pass in NumPy that every exported graph is compared with."""

from __future__ import annotations

from . import reference_convnext, reference_vit
from .architecture import VitArchitecture
from .reference_layers import Floats
from .weights import Weights


def encode(weights: Weights, pixels: Floats) -> tuple[Floats, Floats]:
    """Patch tokens (N, rows, columns, C) and class token (N, C) of pixels (N, 3, H, W)."""
    a = weights.architecture
    if isinstance(a, VitArchitecture):
        return reference_vit.encode(a, weights, pixels)
    return reference_convnext.encode(a, weights, pixels)
