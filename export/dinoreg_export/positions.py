"""Learned positions of DINOv2 on another grid of patches than the one of the training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def resize_positions(position: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """(1, 1 + n * n, C) -> (1, 1 + rows * columns, C), bicubic; the class token keeps its own."""
    side = round((position.shape[1] - 1) ** 0.5)
    grid = position[0, 1:].reshape(side, side, -1).astype(np.float64)
    if (rows, columns) != (side, side):
        grid = np.einsum("ri,ijc->rjc", _cubic_matrix(side, rows), grid)
        grid = np.einsum("sj,rjc->rsc", _cubic_matrix(side, columns), grid)
    flat = grid.reshape(1, rows * columns, -1)
    return np.concatenate([position[:, :1], flat], axis=1).astype(np.float32)


def _cubic_matrix(n: int, out: int) -> NDArray[np.float64]:
    """Weights (out, n) of cubic convolution with a = -0.75, borders repeated, centres aligned.

    The kernel and its constant are those of the training code's resize.
    """
    a = -0.75
    where = (np.arange(out) + 0.5) * n / out - 0.5
    first = np.floor(where).astype(int)
    matrix = np.zeros((out, n))
    for k in range(-1, 3):
        t = np.abs(where - (first + k))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((t - 5) * t + 8) * t * a - 4 * a
        np.add.at(
            matrix,
            (np.arange(out), np.clip(first + k, 0, n - 1)),
            np.where(t <= 1, near, np.where(t < 2, far, 0.0)),
        )
    return matrix
