"""The arithmetic of an encoder, for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from dinoreg_rt.bundle.manifest import FINAL_ONLY

from .architecture import VitArchitecture
from .chosen_layers import blocks_needed
from .models import ARCHITECTURES


def slice_operations(
    model: str, rows: int, columns: int, layers: Sequence[str] = FINAL_ONLY
) -> float | None:
    """Multiplications and additions of one slice through a vision transformer.

    Linear layers, attention and patch embedding; None for models that are not listed or are none.

    Args:
        model: such as ``dinov3-vitl16``.
        rows: of tokens.
        columns: of tokens.
        layers: whose tokens are wanted, as a manifest has them; blocks beyond them cost nothing.
    """
    a = ARCHITECTURES.get(model)
    if not isinstance(a, VitArchitecture):
        return None
    tokens = rows * columns + a.prefix_tokens
    wide = (3 if a.gated else 2) * a.dim * a.hidden
    block = 2 * (4 * a.dim**2 + wide) + 4 * tokens * a.dim
    return float(tokens * (blocks_needed(a, layers) * block + 2 * 3 * a.patch**2 * a.dim))
