"""The forward pass in NumPy that every exported graph is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from dinoreg_rt.bundle.manifest import FINAL_ONLY

from ..checkpoint.architecture import VitArchitecture, Weights
from . import convnext, vit
from .layers import Floats


def encode(
    weights: Weights, pixels: Floats, layers: Sequence[str] = FINAL_ONLY
) -> tuple[Floats, Floats | None]:
    """Patch tokens (N, rows, columns, C) and class token (N, C) of pixels (N, 3, H, W).

    The tokens of several layers are joined along the channels; without the final layer there is no
    class token.
    """
    a = weights.architecture
    if isinstance(a, VitArchitecture):
        return vit.encode(a, weights, pixels, layers)
    return convnext.encode(a, weights, pixels)
