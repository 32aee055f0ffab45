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
#: Products between two looks at the residual, each of which makes the host wait for a GPU.
_STEPS = 8
_MOST_ROUNDS = 12
#: Largest residual, as a share of the largest eigenvalue. The eigenvalues are then exact to the
#: square of it over their distance from the rest.
_RESIDUAL = 1e-9


def leading_eigenvectors(matrix: Array, count: int, device: Device) -> tuple[Array, Array]:
    """Return the largest eigenvalues (count,), falling, and their eigenvectors as rows (count, C).

    Block subspace iteration with Rayleigh-Ritz (Halko, Martinsson and Tropp 2011) from a fixed
    start. Where it has not converged after a bounded number of products, because the eigenvalues
    hardly fall, a full decomposition takes its place.

    Args:
        matrix: (C, C) float64, symmetric, without negative eigenvalues, on `device`.
        count: number of eigenvectors.
        device: where to compute.
    """
    xp, size = device.xp, len(matrix)
    width = count + max(_LEAST_MORE, int(_MORE * count))
    if 2 * width < size:
        start = np.random.default_rng(0).standard_normal((size, width))
        block, _ = xp.linalg.qr(device.upload(start, np.float64))
        for _ in range(_MOST_ROUNDS):
            for _ in range(_STEPS - 1):
                block, _ = xp.linalg.qr(matrix @ block)
            image = matrix @ block
            values, turn = xp.linalg.eigh(block.T @ image)
            values, turn = values[::-1][:count], turn[:, ::-1][:, :count]
            vectors = block @ turn
            residual = xp.sqrt(xp.square(image @ turn - vectors * values).sum(axis=0)).max()
            if float(residual) <= _RESIDUAL * float(values[0]):
                return values, xp.ascontiguousarray(vectors.T)
            block, _ = xp.linalg.qr(image)
    values, vectors = xp.linalg.eigh(matrix)
    return values[::-1][:count], xp.ascontiguousarray(vectors.T[::-1][:count])
