"""Joint PCA of the standardised tokens of both images: exact and deterministic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..device.choice import Device
from ..errors import ConfigError
from ..types import Array, FloatArray
from .eigenvectors import leading_eigenvectors
from .moments import spans
from .standardise import Standardised

#: Total variance of the features before `feature_scale`. It is that of MIND-SSC, measured as 1.02
#: to 1.18 on eight pairs of docs/benchmarks.md, so smoothness and coupling mean the same for both.
TOTAL_VARIANCE = 1.1
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class FeatureBasis:
    """The directions in which the tokens of both images vary most.

    Attributes:
        mean: (C,), of the tokens of both images.
        components: (K, C), orthonormal rows in order of falling variance. The entry of largest
            magnitude in each row is positive, which fixes the eigenvectors' signs.
        variance: (K,) variance of the tokens along each component.
        total_variance: variance along all C directions.
    """

    mean: FloatArray
    components: FloatArray
    variance: FloatArray
    total_variance: float

    @property
    def explained(self) -> FloatArray:
        """Share (K,) of the total variance along each component."""
        return self.variance / max(self.total_variance, _TINY)

    def scale(self, feature_scale: float) -> float:
        """Return the factor that gives the features their total variance.

        That is `TOTAL_VARIANCE` times `feature_scale` squared. Where nothing varies, the factor is
        `feature_scale` itself.
        """
        kept = float(self.variance.sum())
        return feature_scale * (float(np.sqrt(TOTAL_VARIANCE / max(kept, _TINY))) if kept else 1.0)


@dataclass(frozen=True, eq=False)
class ProjectedTokens:
    """One image's tokens along the components of the joint basis.

    Attributes:
        values: (n, rows * columns, stride) float32 on the device, before standardisation's offset;
            numbers beyond the components are 0.
        offsets: (n, stride), subtracted from each slice's values.
        components: number of components K.
    """

    values: Array
    offsets: FloatArray
    components: int

    def features(self, device: Device) -> FloatArray:
        """Return the features (n, rows * columns, K) on the host."""
        values = device.download(self.values) - self.offsets[:, None]
        return np.asarray(values[..., : self.components], np.float32)


def fit_basis(
    within: Array, images: Sequence[Standardised], components: int, device: Device
) -> FeatureBasis:
    """Fit the joint basis of the images' standardised tokens.

    Args:
        within: (images, C, C) float64 on `device`, the scatter within slices (`PairMoments`).
        images: each image's standardisation.
        components: number of components.
        device: where to compute.

    Raises:
        ConfigError: more components than channels, or than the number of tokens allows.
    """
    channels = within.shape[-1]
    counts = np.array([float(image.count) for image in images])
    total = int(counts.sum())
    if components > min(channels, total - 1):
        raise ConfigError(
            f"--components {components}: the encoder gives {channels} channels and {total} tokens "
            f"are compared; give at most {max(0, min(channels, total - 1))}"
        )
    means = np.stack([image.mean for image in images])
    mean = counts @ means / total
    between = np.sqrt(counts)[:, None] * (means - mean)
    left, right = (
        np.concatenate([*rows, between]) / np.sqrt(total - 1)
        for rows in ([i.left for i in images], [i.right for i in images])
    )
    scale = 1 / (np.stack([image.deviation for image in images]) * np.sqrt(total - 1))
    covariance = within * device.upload(scale[:, :, None], np.float64)
    covariance *= device.upload(scale[:, None], np.float64)
    covariance = covariance.sum(axis=0)
    first = device.upload(left, np.float64)
    second = first if np.array_equal(left, right) else device.upload(right, np.float64)
    covariance += first.T @ second
    values, rows = leading_eigenvectors(covariance, components, device)
    largest = np.abs(rows).argmax(axis=1)[:, None]
    rows = rows * np.sign(np.take_along_axis(rows, largest, axis=1))
    variance = sum(image.variances.sum() for image in images) + np.square(between).sum()
    return FeatureBasis(
        mean, rows, np.maximum(values, 0.0), max(float(variance) / (total - 1), 0.0)
    )


def project(
    tokens: Array,
    read: Callable[[Array], Array],
    standard: Standardised,
    basis: FeatureBasis,
    stride: int,
    device: Device,
) -> ProjectedTokens:
    """Project an image's tokens onto the joint basis.

    Slices are projected, and tokens on the host uploaded, a few at a time: a float32 copy of all
    tokens would be twice as large as the tokens.

    Args:
        tokens: (n, rows, columns, C) float16, tokens of the encoded slices.
        read: gives the compared part of some slices' tokens on the device (`read_tokens`).
        standard: the standardisation of these tokens.
        basis: the joint basis of both images' standardised tokens.
        stride: numbers stored for a token, at least the number of components.
        device: where to compute.
    """
    xp = device.xp
    columns = np.zeros((basis.components.shape[1], stride))
    columns[:, : len(basis.components)] = (basis.components / standard.deviation).T
    offsets = standard.centres @ columns
    offsets[:, : len(basis.components)] += basis.mean @ basis.components.T
    columns -= standard.directions @ (standard.directions.T @ columns)
    matrix = device.upload(columns, np.float32)
    size = (len(tokens), math.prod(tokens.shape[1:-1]))
    values, done = None, 0
    for span in spans(tokens, device):
        rows = read(span).reshape(len(span), size[1], len(columns))
        if len(span) == len(tokens):
            values = rows @ matrix
            break
        values = xp.empty((*size, stride), np.float32) if values is None else values
        xp.matmul(rows, matrix, out=values[done : done + len(span)])
        done += len(span)
    return ProjectedTokens(values, offsets, len(basis.components))
