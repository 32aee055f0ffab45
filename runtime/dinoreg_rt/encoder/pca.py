"""Joint PCA of the standardised tokens of both images: exact and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..device.choice import Device
from ..errors import ConfigError
from ..types import Array
from .moments import TokenMoments
from .standardise import Standardised

#: Total variance of the features before `feature_scale`: that of MIND-SSC, so that smoothness and
#: coupling mean the same for both. Measured 1.02 to 1.18 on eight of the pairs in the README.
TOTAL_VARIANCE = 1.1
_CPU = Device("cpu")
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """The directions in which the tokens of both images vary most; arrays on a device.

    Attributes:
        mean: (C,) float64.
        components: (K, C) float64, orthonormal rows, the largest variance first. The largest entry
            of each is positive: an eigenvector has no sign of its own.
        variance: (K,) of the tokens along each.
        total_variance: () along all C directions.
        device: where these live.
    """

    mean: Array
    components: Array
    variance: Array
    total_variance: Array
    device: Device

    @property
    def explained(self) -> Array:
        """(K,) share of the total variance along each component."""
        return self.variance / self.device.xp.maximum(self.total_variance, _TINY)

    def scale(self, feature_scale: float) -> Array:
        """(), the factor that gives the features a total variance of `TOTAL_VARIANCE` times its
        square; `feature_scale` itself where nothing varies."""
        xp, kept = self.device.xp, self.variance.sum()
        factor = xp.sqrt(TOTAL_VARIANCE / xp.maximum(kept, _TINY))
        return feature_scale * xp.where(kept > 0, factor, 1.0)


def fit_basis(
    moments: Iterable[TokenMoments], components: int, device: Device = _CPU
) -> FeatureBasis:
    """The joint basis of several sets of tokens, made on `device`.

    Raises:
        ConfigError: more components than channels, or than tokens tell apart.
    """
    together = reduce(TokenMoments.merged, (part.on(device) for part in moments))
    channels = len(together.mean)
    if components > min(channels, together.count - 1):
        raise ConfigError(
            f"--components {components}: the encoder gives {channels} channels and "
            f"{together.count} tokens are compared; wanted at most "
            f"{max(0, min(channels, together.count - 1))}"
        )
    xp = device.xp
    values, vectors = xp.linalg.eigh(together.scatter / (together.count - 1))
    rows = vectors.T[::-1][:components]
    largest = xp.abs(rows).argmax(axis=1)[:, None]
    rows = rows * xp.sign(xp.take_along_axis(rows, largest, axis=1))
    return FeatureBasis(
        together.mean,
        xp.ascontiguousarray(rows),
        xp.maximum(values[::-1][:components], 0.0),
        xp.maximum(values, 0.0).sum(),
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

    A slice at a time: the float32 copy of all tokens would be twice as large as the tokens. Tokens
    on the host go to the device one slice after the other.

    Args:
        tokens: of the encoded slices.
        read: makes (N, C) float32 of one slice's tokens, see `read_tokens`.
        standard: how they are standardised.
        basis: of both images' standardised tokens.
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
