"""Joint PCA of the standardised tokens of both images: exact and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..device.choice import Device
from ..errors import ConfigError
from ..types import Array
from .eigenvectors import leading_eigenvectors
from .moments import TokenMoments
from .standardise import Standardised

#: Total variance of the features before `feature_scale`. It is that of MIND-SSC, measured as 1.02
#: to 1.18 on eight pairs of docs/benchmarks.md, so smoothness and coupling mean the same for both.
TOTAL_VARIANCE = 1.1
_CPU = Device("cpu")
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """The directions in which the tokens of both images vary most.

    Attributes:
        mean: (C,) float64.
        components: (K, C) float64, orthonormal rows in order of falling variance. The entry of
            largest magnitude in each row is positive, which fixes the eigenvectors' signs.
        variance: (K,) variance of the tokens along each component.
        total_variance: () variance along all C directions.
        device: where the arrays live.
    """

    mean: Array
    components: Array
    variance: Array
    total_variance: Array
    device: Device

    @property
    def explained(self) -> Array:
        """Share (K,) of the total variance along each component."""
        return self.variance / self.device.xp.maximum(self.total_variance, _TINY)

    def scale(self, feature_scale: float) -> Array:
        """Return the factor () that gives the features their total variance.

        That is `TOTAL_VARIANCE` times `feature_scale` squared. Where nothing varies, the factor is
        `feature_scale` itself.
        """
        xp, kept = self.device.xp, self.variance.sum()
        factor = xp.sqrt(TOTAL_VARIANCE / xp.maximum(kept, _TINY))
        return feature_scale * xp.where(kept > 0, factor, 1.0)


def fit_basis(
    moments: Iterable[TokenMoments], components: int, device: Device = _CPU
) -> FeatureBasis:
    """Fit the joint basis of several sets of tokens on `device`.

    Raises:
        ConfigError: more components than channels, or than the number of tokens allows.
    """
    together = reduce(TokenMoments.merged, (part.on(device) for part in moments))
    channels = len(together.mean)
    if components > min(channels, together.count - 1):
        raise ConfigError(
            f"--components {components}: the encoder gives {channels} channels and "
            f"{together.count} tokens are compared; give at most "
            f"{max(0, min(channels, together.count - 1))}"
        )
    xp = device.xp
    covariance = together.scatter / (together.count - 1)
    values, rows = leading_eigenvectors(covariance, components, device)
    largest = xp.abs(rows).argmax(axis=1)[:, None]
    rows = rows * xp.sign(xp.take_along_axis(rows, largest, axis=1))
    return FeatureBasis(
        together.mean,
        xp.ascontiguousarray(rows),
        xp.maximum(values, 0.0),
        xp.maximum(xp.trace(covariance), 0.0),
        device,
    )


def project(
    tokens: Array,
    read: Callable[[Array], Array],
    standard: Standardised,
    basis: FeatureBasis,
    scale: float | Array,
    device: Device = _CPU,
) -> Array:
    """Project tokens (n, rows, columns, C) to features (n, rows, columns, K) float32 on `device`.

    Slices are projected, and tokens on the host uploaded, one at a time: a float32 copy of all
    tokens would be twice as large as the tokens.

    Args:
        tokens: tokens of the encoded slices.
        read: makes (N, C) float32 of one slice's tokens (`read_tokens`).
        standard: the standardisation of these tokens.
        basis: the joint basis of both images' standardised tokens.
        scale: factor on the features.
        device: where the features live.
    """
    xp = device.xp
    columns = (basis.components / standard.deviation).T * scale
    matrix = columns - standard.directions @ (standard.directions.T @ columns)
    offsets = standard.centres @ columns + basis.mean @ basis.components.T * scale
    matrix, offsets = (device.upload(a, np.float32) for a in (matrix, offsets))
    out = xp.empty((*tokens.shape[:-1], matrix.shape[1]), np.float32)
    for i in range(len(tokens)):
        features = out[i].reshape(-1, matrix.shape[1])
        xp.matmul(read(tokens[i]), matrix, out=features)
        features -= offsets[i]
    return out
