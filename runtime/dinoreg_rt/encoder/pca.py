"""Joint PCA of the tokens of both images: exact, streamed, deterministic.

Means are float64. Products are float32, of tokens centred chunk by chunk, and the chunks' sums are
merged in float64: the order of magnitude of the tokens does not show in the basis, the size of the
chunks only in its last digits. On a GPU all of it stays there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..device import Device
from ..errors import ConfigError
from ..types import Array

#: Tokens in one product: what float32 loses in its sum stays below 1e-6 of it (`test_pca.py`).
_CHUNK = 1 << 13
#: Total variance of the features before `feature_scale`: that of MIND-SSC, so that smoothness and
#: coupling mean the same for both. Measured 1.02 to 1.18 on eight of the pairs in the README.
TOTAL_VARIANCE = 1.1
_CPU = Device("cpu")
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Count, mean and scatter of a set of tokens; sets are merged without looking at them again.

    The arrays live where the tokens do.

    Attributes:
        count: number of tokens.
        mean: (C,) float64.
        scatter: (C, C) float64, sum of the outer products of the deviations from the mean.
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def none(cls, channels: int) -> TokenMoments:
        """Of no tokens at all."""
        return cls(0, np.zeros(channels), np.zeros((channels, channels)))

    def on(self, device: Device) -> TokenMoments:
        """The same on a device."""
        mean, scatter = (device.upload(a, np.float64) for a in (self.mean, self.scatter))
        return TokenMoments(self.count, mean, scatter)

    @classmethod
    def of(cls, tokens: Array) -> TokenMoments:
        """Of tokens (N, C), whatever their type."""
        parts = (
            cls._of_chunk(tokens[start : start + _CHUNK].astype(np.float32))
            for start in range(0, len(tokens), _CHUNK)
        )
        return reduce(TokenMoments.merged, parts, cls.none(tokens.shape[1]))

    @classmethod
    def _of_chunk(cls, tokens: Array) -> TokenMoments:
        mean = tokens.mean(axis=0, dtype=np.float64)
        tokens -= mean.astype(np.float32)
        return cls(len(tokens), mean, (tokens.T @ tokens).astype(np.float64))

    def merged(self, other: TokenMoments) -> TokenMoments:
        """Of both sets together (Chan, Golub and LeVeque 1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count
        return TokenMoments(
            count,
            self.mean + share * shift,
            self.scatter + other.scatter + (self.count * share) * (shift[:, None] * shift),
        )


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
    tokens: Array, basis: FeatureBasis, scale: float | Array, device: Device = _CPU
) -> Array:
    """Tokens (..., C) as features (..., K) float32: centred, on the basis, times `scale`.

    A slice at a time: the float32 copy of all tokens would be twice as large as the tokens. The
    result is on `device`; tokens on the host go there one slice after the other.
    """
    xp = device.xp
    matrix = device.upload(basis.components.T * scale, np.float32)
    offset = device.upload(basis.mean @ basis.components.T * scale, np.float32)
    out = xp.empty((*tokens.shape[:-1], matrix.shape[1]), np.float32)
    for i in range(len(tokens)):
        features = out[i]
        xp.matmul(device.upload(tokens[i], np.float16).astype(np.float32), matrix, out=features)
        features -= offset
    return out
