"""The leading eigenvectors of a covariance matrix, by products alone.

A full decomposition of 1024 x 1024 numbers computes forty times what a registration needs, and on a
GPU it takes longer than everything else of the solver.
"""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..types import Array, FloatArray

#: Directions in the block for each one wanted: the more, the fewer products they take to converge.
_WIDTH = 6
_LEAST_MORE = 8
#: Products between two orthonormalisations: more of them magnify the first directions until they
#: hide the last ones in rounding errors.
_PRODUCTS = 4
#: Orthonormalisations between two looks at the block, for which the host waits, and the most looks.
_ROUNDS = 2
_MOST_LOOKS = 5
#: Largest residual, as a share of the largest eigenvalue. The eigenvalues are then exact to the
#: square of it over their distance from the rest.
_RESIDUAL = 1e-9


def leading_eigenvectors(
    matrix: Array, count: int, device: Device
) -> tuple[FloatArray, FloatArray]:
    """Return the largest eigenvalues (count,), falling, and their eigenvectors as rows (count, C).

    Subspace iteration from a fixed start on `device`, and Rayleigh-Ritz in its block on the host,
    where both results lie. Where the block would fill half of the space, or would not converge in a
    bounded number of products because the eigenvalues hardly fall, a full decomposition takes its
    place.

    Args:
        matrix: (C, C) float64, symmetric, without negative eigenvalues, on `device`.
        count: number of eigenvectors.
        device: where to compute.
    """
    xp, size = device.xp, len(matrix)
    width = max(_WIDTH * count, count + _LEAST_MORE)
    if 2 * width > size:
        return _leading(*np.linalg.eigh(device.download(matrix)), count)
    start = np.random.default_rng(0).standard_normal((size, width))
    block, before = device.upload(start, np.float64), np.inf
    for left in reversed(range(_MOST_LOOKS)):
        for _ in range(_ROUNDS):
            for _ in range(_PRODUCTS):
                block = matrix @ block
            block, _ = xp.linalg.qr(block)
        both = device.download(xp.concatenate([block, matrix @ block], axis=1))
        values, rows, residual = _rayleigh_ritz(both[:, :width], both[:, width:], count)
        largest = float(values[0])
        if residual <= _RESIDUAL * largest:
            return values, rows
        if residual * (residual / before) ** left > _RESIDUAL * largest:
            break
        before = residual
    found, vectors = xp.linalg.eigh(matrix)
    return _leading(device.download(found), device.download(vectors), count)


def _rayleigh_ritz(
    block: FloatArray, image: FloatArray, count: int
) -> tuple[FloatArray, FloatArray, float]:
    """Return the best eigenpairs in an orthonormal block, and their largest residual.

    `image` is the product of the matrix and the block.
    """
    values, rows = _leading(*np.linalg.eigh(block.T @ image), count)
    found = rows @ block.T
    errors = rows @ image.T - values[:, None] * found
    return values, found, float(np.sqrt(np.square(errors).sum(axis=1).max()))


def _leading(values: FloatArray, vectors: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the last `count` of rising eigenvalues, falling, and their eigenvectors as rows."""
    return values[::-1][:count], np.ascontiguousarray(vectors.T[::-1][:count])
