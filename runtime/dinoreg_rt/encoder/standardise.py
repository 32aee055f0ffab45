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
from .moments import SliceMoments, TokenMoments

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

    Attributes:
        centres: (n, C) float64, subtracted from each slice's tokens.
        deviation: (C,) float64, by which the tokens are then divided.
        directions: (C, P) float64, orthonormal columns that are projected out first; P may be 0.
        moments: moments of all standardised tokens that count.
    """

    centres: Array
    deviation: Array
    directions: Array
    moments: TokenMoments


def read_tokens(
    tokens: Array, layers: int, wanted: tuple[int, ...], *, unit: bool, device: Device
) -> Array:
    """Return one slice's tokens as (N, C) float32 on `device`, reduced to the compared layers.

    Args:
        tokens: (rows, columns, C) float16, the channels of `layers` layers one after the other.
        layers: number of layers that are joined.
        wanted: indices of the layers that are compared.
        unit: divide each layer's part of a token by its length.
        device: where the result lives.
    """
    width = tokens.shape[-1] // layers
    if len(wanted) < layers:
        parts = [tokens[..., i * width : (i + 1) * width] for i in wanted]
        tokens = parts[0] if len(parts) == 1 else device.xp.concatenate(parts, axis=-1)
    values = device.upload(tokens, np.float16).astype(np.float32).reshape(-1, len(wanted), width)
    if unit:
        xp = device.xp
        length = xp.sqrt(xp.square(values).sum(axis=-1, keepdims=True))
        values /= xp.maximum(length, _TINY)
    return values.reshape(-1, len(wanted) * width)


def standardise(
    moments: SliceMoments,
    kind: Standardisation,
    positions_mm: FloatArray,
    directions: Array,
    device: Device,
) -> Standardised:
    """Find the map that standardises one image's tokens.

    It follows from the moments of the tokens that count, the slices' positions (n,) along the
    stack, and the directions (C, P) to project out.
    """
    xp = device.xp
    if directions.shape[1]:
        moments = _projected(moments, directions)
    means = moments.means
    if kind.centre == "none":
        centres = xp.zeros_like(means)
    else:
        weights = device.upload(_averaging(kind, moments.counts, positions_mm), np.float64)
        centres = weights @ means
    together = moments.merged(centres, device)
    deviation = xp.ones(means.shape[1], np.float64)
    if kind.scale == "deviation":
        found = xp.sqrt(xp.diagonal(together.scatter) / together.count)
        deviation = xp.where(found > _CONSTANT * found.max(), found, 1.0)
    scatter = together.scatter / (deviation[:, None] * deviation)
    scaled = TokenMoments(together.count, together.mean / deviation, scatter)
    return Standardised(centres, deviation, directions, scaled)


def position_directions(tokens: Array, components: int, device: Device) -> Array:
    """Return the leading directions (C, P) in which the tokens (N, C) of a constant picture vary.

    Such tokens differ by their position alone. "INSID3" (arXiv 2603.28480) projects these
    directions out.
    """
    moments = TokenMoments.of(tokens)
    _, vectors = device.xp.linalg.eigh(moments.scatter)
    return device.xp.ascontiguousarray(vectors[:, ::-1][:, :components])


def _projected(moments: SliceMoments, directions: Array) -> SliceMoments:
    """Return the moments of the tokens projected by Q = 1 - V V^T, with V the directions."""
    means = moments.means - moments.means @ directions @ directions.T
    left = moments.within - directions @ (directions.T @ moments.within)
    return SliceMoments(moments.counts, means, left - left @ directions @ directions.T)


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
