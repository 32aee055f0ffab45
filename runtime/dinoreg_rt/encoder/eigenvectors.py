"""The leading eigenvectors of a covariance matrix, by products alone.

A full decomposition of 1024 x 1024 numbers computes forty times what a registration needs, and on a
GPU it takes longer than everything else of the solver.
"""

from __future__ import annotations

import numpy as np

from ..device.choice import Device
from ..types import Array

#: Directions beyond those wanted, as a share of them: the more, the sooner the others converge.
_MORE = 1.0
_LEAST_MORE = 8
#: Degree of the Chebyshev polynomial, which is the number of products in a round. A higher degree
#: magnifies the first directions until they hide the last ones in rounding errors.
_DEGREE = 4
_MOST_ROUNDS = 10
#: Channels for each direction below which a full decomposition is as quick: at 384 channels and 48
#: directions it takes 25 to 33 ms of CPU time on two threads and this 16 to 45 ms; at 1024 channels
#: 500 to 620 ms and 80 to 390 ms (two cores of an AMD EPYC virtual machine, 2026-11-30).
_SMALLEST = 8
#: Largest residual, as a share of the largest eigenvalue. The eigenvalues are then exact to the
#: square of it over their distance from the rest.
_RESIDUAL = 1e-9


def leading_eigenvectors(matrix: Array, count: int, device: Device) -> tuple[Array, Array]:
    """Return the largest eigenvalues (count,), falling, and their eigenvectors as rows (count, C).

    Subspace iteration with a Chebyshev filter and Rayleigh-Ritz (Zhou, Saad, Tiago and Chelikowsky
    2006) from a fixed start. Where it would take more than a bounded number of products, because
    the eigenvalues hardly fall, a full decomposition takes its place.

    Args:
        matrix: (C, C) float64, symmetric, without negative eigenvalues, on `device`.
        count: number of eigenvectors.
        device: where to compute.
    """
    xp, size = device.xp, len(matrix)
    width = count + max(_LEAST_MORE, int(_MORE * count))
    if _SMALLEST * width < size:
        start = np.random.default_rng(0).standard_normal((size, width))
        block = matrix @ device.upload(start, np.float64)
        before = np.inf
        for left in reversed(range(_MOST_ROUNDS)):
            block, _ = xp.linalg.qr(block)
            image = matrix @ block
            values, turn = xp.linalg.eigh(block.T @ image)
            values, turn = values[::-1], xp.ascontiguousarray(turn[:, ::-1])
            block, image = block @ turn, image @ turn
            errors = image[:, :count] - block[:, :count] * values[:count]
            largest, residual = device.numbers(
                values[0], xp.sqrt(xp.square(errors).sum(axis=0)).max()
            )
            if residual <= _RESIDUAL * largest:
                return values[:count], xp.ascontiguousarray(block[:, :count].T)
            if residual * (residual / before) ** left > _RESIDUAL * largest:
                break
            before = residual
            block = _filtered(matrix, block, image, xp.maximum(values[-1], _RESIDUAL * values[0]))
    values, vectors = xp.linalg.eigh(matrix)
    return values[::-1][:count], xp.ascontiguousarray(vectors.T[::-1][:count])


def _filtered(matrix: Array, block: Array, image: Array, bound: Array) -> Array:
    """Return the block after a Chebyshev polynomial that is small for eigenvalues in [0, bound]."""
    before, now = block, image * (2 / bound) - block
    for _ in range(_DEGREE - 1):
        before, now = now, (matrix @ now) * (4 / bound) - 2 * now - before
    return now
