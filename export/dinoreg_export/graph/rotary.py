"""Rotary positions of DINOv3 for one grid of patches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotary_tables(
    rows: int, columns: int, head_dim: int, base: float, prefix: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin, (prefix + rows * columns, head_dim) each: x cos + rotate_half(x) sin.

    Row by row. Tokens before the patches have no position: cos 1, sin 0.
    """
    periods = base ** (np.arange(head_dim // 4) / (head_dim // 4))
    axes = [2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)]
    y, x = np.meshgrid(*axes, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], 1)[:, :, None] / periods
    angles = np.tile(angles.reshape(rows * columns, -1), 2)
    cos = np.concatenate([np.ones((prefix, head_dim)), np.cos(angles)])
    sin = np.concatenate([np.zeros((prefix, head_dim)), np.sin(angles)])
    return cos.astype(np.float32), sin.astype(np.float32)
