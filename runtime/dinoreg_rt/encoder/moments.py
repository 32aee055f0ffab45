"""Moments of tokens: exact, streamed slice by slice, deterministic.

Means are float64. Products are float32, of tokens centred chunk by chunk, and the chunks' sums are
merged in float64: the magnitude of the tokens does not affect the result, and the chunk size
affects only its last digits. On a GPU everything stays there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..device.choice import Device
from ..types import Array, FloatArray

#: Tokens in one product; the float32 rounding of its sum stays below 1e-6 of it (`test_pca.py`).
_CHUNK = 1 << 13


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Count, mean and scatter of a set of tokens, which can be merged without reading them again.

    The arrays live on the tokens' device.

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
        """Return the moments of an empty set."""
        return cls(0, np.zeros(channels), np.zeros((channels, channels)))

    def on(self, device: Device) -> TokenMoments:
        """Return the same moments on a device."""
        mean, scatter = (device.upload(a, np.float64) for a in (self.mean, self.scatter))
        return TokenMoments(self.count, mean, scatter)

    @classmethod
    def of(cls, tokens: Array) -> TokenMoments:
        """Compute the moments of tokens (N, C) of any type."""
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
        """Return the moments of both sets together (Chan, Golub and LeVeque 1979)."""
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
class SliceMoments:
    """Moments of the tokens of each slice, enough to standardise an image exactly.

    Attributes:
        counts: (n,) number of tokens that count in each slice, on the host.
        means: (n, C) float64, the mean of those tokens; 0 for a slice without any.
        within: (C, C) float64, the sum over the slices of the scatter about each slice's mean.
    """

    counts: FloatArray
    means: Array
    within: Array

    @classmethod
    def of(cls, slices: Iterable[Array], device: Device) -> SliceMoments:
        """Compute the moments of one image from each slice's tokens (N, C) on `device`."""
        parts = [TokenMoments.of(tokens) for tokens in slices]
        means = device.xp.stack([device.upload(part.mean, np.float64) for part in parts])
        within = reduce(lambda a, b: a + b, (part.scatter for part in parts if part.count))
        return cls(np.array([float(part.count) for part in parts]), means, within)

    def merged(self, centres: Array, device: Device) -> TokenMoments:
        """Return the moments of all tokens after subtracting each slice's row of `centres`."""
        counts = device.upload(self.counts, np.float64)
        total = float(self.counts.sum())
        offset = self.means - centres
        mean = counts @ offset / total
        rest = (offset - mean) * device.xp.sqrt(counts)[:, None]
        return TokenMoments(int(total), mean, self.within + rest.T @ rest)
