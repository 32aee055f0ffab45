"""Positions of patches: learned ones of DINOv2 for any grid, and rotary ones of DINOv3."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def resize_positions(
    position: NDArray[np.float32], rows: int, columns: int, *, antialias: bool
) -> NDArray[np.float32]:
    """Resize learned positions to another grid of patches by bicubic interpolation.

    Args:
        position: positions (1, 1 + n * n, C) of the class token and of a square grid.
        rows: rows of the wanted grid.
        columns: columns of the wanted grid.
        antialias: whether to antialias, as in the training of models with registers.

    Returns:
        Positions (1, 1 + rows * columns, C); that of the class token is unchanged.
    """
    side = round((position.shape[1] - 1) ** 0.5)
    grid = position[0, 1:].reshape(side, side, -1).astype(np.float64)
    if (rows, columns) != (side, side):
        matrix = antialiased_matrix if antialias else _cubic_matrix
        grid = np.einsum("ri,ijc->rjc", matrix(side, rows), grid)
        grid = np.einsum("sj,rjc->rsc", matrix(side, columns), grid)
    flat = grid.reshape(1, rows * columns, -1)
    return np.concatenate([position[:, :1], flat], axis=1).astype(np.float32)


def _cubic(t: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Return the kernel of cubic convolution with parameter a at distances t >= 0."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.asarray(np.where(t <= 1, near, np.where(t < 2, far, 0.0)))


def _cubic_matrix(n: int, out: int) -> NDArray[np.float64]:
    """Return weights (out, n) with a = -0.75, repeated borders and aligned centres.

    The kernel and its parameter are those of the resizing in the training code.
    """
    where = (np.arange(out) + 0.5) * n / out - 0.5
    first = np.floor(where).astype(int)
    matrix = np.zeros((out, n))
    for k in range(-1, 3):
        weights = _cubic(np.abs(where - (first + k)), -0.75)
        np.add.at(matrix, (np.arange(out), np.clip(first + k, 0, n - 1)), weights)
    return matrix


def antialiased_matrix(
    n: int,
    out: int,
    kernel: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda t: _cubic(t, -0.5),
) -> NDArray[np.float64]:
    """Return weights (out, n) of a kernel that widens as the grid becomes coarser.

    Samples beyond the border are ignored, and the weights of the others are scaled to sum to one.
    """
    scale = max(n / out, 1.0)
    where = (np.arange(out)[:, None] + 0.5) * n / out - 0.5
    weights = kernel(np.abs(np.arange(n)[None] - where) / scale)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def rotary_tables(
    rows: int, columns: int, head_dim: int, base: float, prefix: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the tables cos and sin of the rotation ``x cos + rotate_half(x) sin``.

    Both are (prefix + rows * columns, head_dim), with patches row by row. The prefix tokens have
    no position: their cos is 1 and their sin is 0.
    """
    periods = base ** (np.arange(head_dim // 4) / (head_dim // 4))
    axes = [2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)]
    y, x = np.meshgrid(*axes, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], 1)[:, :, None] / periods
    angles = np.tile(angles.reshape(rows * columns, -1), 2)
    cos = np.concatenate([np.ones((prefix, head_dim)), np.cos(angles)])
    sin = np.concatenate([np.zeros((prefix, head_dim)), np.sin(angles)])
    return cos.astype(np.float32), sin.astype(np.float32)
