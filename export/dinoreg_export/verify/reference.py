"""The NumPy reference that every exported graph is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from dinoreg_rt.bundle.manifest import FINAL_ONLY

from ..checkpoint.architecture import VitArchitecture, Weights
from . import convnext, vit
from .layers import Floats


def encode(
    weights: Weights, pixels: Floats, layers: Sequence[str] = FINAL_ONLY
) -> tuple[Floats, Floats | None]:
    """Compute patch tokens (N, rows, columns, C) and the class token (N, C).

    Args:
        weights: the encoder.
        pixels: normalised pictures (N, 3, H, W).
        layers: layers whose tokens are joined along the channels. Without the final layer, the
            class token is None.
    """
    a = weights.architecture
    if isinstance(a, VitArchitecture):
        return vit.encode(a, weights, pixels, layers)
    return convnext.encode(a, weights, pixels)
