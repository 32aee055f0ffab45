"""Standardisation of tokens, so that those of two images can be compared.

The mean token of an image, and of each slice, depends on the modality and on the position along the
body rather than on the tissue. Left in, it takes the leading components of the joint basis. Every
kind of standardisation here is an affine map per slice, ``(Q t - centre) / deviation``, so the
moments of standardised tokens follow exactly from those of the slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config.feature_parameters import TokenCentre, TokenScale
from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..types import Array, FloatArray
from .eigenvectors import leading_eigenvectors
from .moments import PairMoments

#: A channel whose deviation is below this share of the largest one counts as constant.
_CONSTANT = 1e-6
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Standardisation:
    """How the tokens of each image are standardised before the joint basis is fitted.

    Attributes:
        centre: what is subtracted: nothing (``none``), the image's mean, each slice's mean, or the
            slices' means smoothed along the stack.
        scale: what tokens are divided by: nothing (``none``), each channel's standard deviation
            over the image, or each token's own length, before anything is subtracted.
        smoothing_mm: standard deviation of the Gaussian that smooths the slices' means.
        position_components: number of positional directions that are projected out
            (`position_directions`).
    """

    centre: TokenCentre
    scale: TokenScale
    smoothing_mm: float
    position_components: int

    @classmethod
    def of(cls, config: RegistrationConfig) -> Standardisation:
        """Return the standardisation of a configuration."""
        return cls(
            config.token_centre,
            config.token_scale,
            config.token_smoothing_mm,
            config.position_components,
        )


@dataclass(frozen=True, eq=False)
class Standardised:
    """The affine map that standardises one image's tokens, and their moments after it.

    With D the diagonal matrix of `deviation`, the scatter of the standardised tokens about their
    mean is ``D^-1 within D^-1 + left^T right``, with `within` that of the tokens as they are.

    Attributes:
        centres: (n, C), subtracted from each slice's tokens.
        deviation: (C,), by which the tokens are then divided.
        directions: (C, P), orthonormal columns that are projected out first; P may be 0.
        count: number of tokens that count.
        mean: (C,), mean of the standardised tokens.
        squares: (C,), diagonal of `within`.
        left: (r, C), what standardisation and the differences between slices add to the scatter.
        right: (r, C), the other factor of it.
    """

    centres: FloatArray
    deviation: FloatArray
    directions: FloatArray
    count: int
    mean: FloatArray
    squares: FloatArray
    left: FloatArray
    right: FloatArray

    @property
    def variances(self) -> FloatArray:
        """Scatter (C,) of the standardised tokens along each channel."""
        added: FloatArray = (self.left * self.right).sum(axis=0)
        return self.squares / self.deviation**2 + added


def read_tokens(
    tokens: Array, layers: int, wanted: tuple[int, ...], *, unit: bool, device: Device
) -> Array:
    """Return tokens on `device`, reduced to the compared layers, (..., C).

    They are float16, as the tokens are, or float32 where they are divided by their length.

    Args:
        tokens: (..., C) float16, the channels of `layers` layers one after the other.
        layers: number of layers that are joined.
        wanted: indices of the layers that are compared.
        unit: divide each layer's part of a token by its length.
        device: where the result lives.
    """
    xp, width = device.xp, tokens.shape[-1] // layers
    if len(wanted) < layers:
        parts = [tokens[..., i * width : (i + 1) * width] for i in wanted]
        module = np if isinstance(tokens, np.ndarray) else xp
        tokens = parts[0] if len(parts) == 1 else module.concatenate(parts, axis=-1)
    if not isinstance(tokens, xp.ndarray):
        tokens = device.upload(tokens, np.float16)
    if not unit:
        return tokens
    values = tokens.astype(np.float32).reshape(*tokens.shape[:-1], len(wanted), width)
    length = xp.sqrt(xp.square(values).sum(axis=-1, keepdims=True))
    values /= xp.maximum(length, _TINY)
    return values.reshape(tokens.shape)


def standardise(
    moments: PairMoments,
    image: int,
    kind: Standardisation,
    positions_mm: FloatArray,
    directions: FloatArray,
    device: Device,
) -> Standardised:
    """Find the map that standardises image 0 or 1.

    It follows from the moments of the tokens that count, the slices' positions (n,) along the
    stack, and the directions (C, P) to project out. All of it is computed on the host.
    """
    counts, means = moments.counts[image], moments.means[image]
    squares, left = moments.squares[image], np.zeros((0, means.shape[1]))
    right = left
    if directions.shape[1]:
        means = means - means @ directions @ directions.T
        left, right = _projected(moments.within[image], directions, device)
    centres = np.zeros_like(means)
    if kind.centre != "none":
        centres = _averaging(kind, counts, positions_mm) @ means
    total = float(counts.sum())
    offsets = means - centres
    mean = counts @ offsets / total
    between = np.sqrt(counts)[:, None] * (offsets - mean)
    left, right = np.concatenate([left, between]), np.concatenate([right, between])
    deviation = np.ones(means.shape[1])
    if kind.scale == "deviation":
        found = np.sqrt(np.maximum(squares + (left * right).sum(axis=0), 0.0) / total)
        deviation = np.where(found > _CONSTANT * found.max(), found, 1.0)
    return Standardised(
        centres,
        deviation,
        directions,
        int(total),
        mean / deviation,
        squares,
        left / deviation,
        right / deviation,
    )


def position_directions(tokens: Array, components: int, device: Device) -> FloatArray:
    """Return the leading directions (C, P) in which the tokens (..., C) of a constant picture vary.

    Such tokens differ by their position alone. "INSID3" (arXiv 2603.28480) projects these
    directions out.
    """
    values = tokens.astype(np.float32).reshape(-1, tokens.shape[-1])
    values -= values.mean(axis=0, dtype=np.float64).astype(np.float32)
    scatter = (values.T @ values).astype(np.float64)
    _, rows = leading_eigenvectors(scatter, components, device)
    return np.ascontiguousarray(rows.T)


def _projected(
    within: Array, directions: FloatArray, device: Device
) -> tuple[FloatArray, FloatArray]:
    """Return the factors (2P, C) of what Q within Q adds to `within`, with Q = 1 - V V^T.

    V are the directions: Q W Q = W - A V^T - V A^T with A = W V - V (V^T W V) / 2.
    """
    product = device.download(within @ device.upload(directions, np.float64))
    half = (product - 0.5 * directions @ (directions.T @ product)).T
    return np.concatenate([-half, -directions.T]), np.concatenate([directions.T, half])


def _averaging(kind: Standardisation, counts: FloatArray, positions_mm: FloatArray) -> FloatArray:
    """Return the weights (n, n) of all slices' means in each slice's centre; rows sum to 1."""
    whole = counts / counts.sum()
    if kind.centre == "image":
        return np.tile(whole, (len(counts), 1))
    if kind.centre == "slice":
        weights = np.diag((counts > 0).astype(float))
    else:
        distance = (positions_mm[:, None] - positions_mm) / kind.smoothing_mm
        weights = np.exp(-0.5 * distance**2) * counts
    sums = weights.sum(axis=1, keepdims=True)
    # A slice far from every token that counts takes the mean of the whole image.
    rows: FloatArray = np.where(sums > 1e-9, weights / np.maximum(sums, 1e-300), whole)
    return rows
