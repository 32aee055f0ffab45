"""Feature sets joined side by side, so that their weighted squared differences are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import dinoreg_kernels

from ..config.decided import DecidedConfig
from ..device.choice import Device
from .mind import FeaturePair, padded_channels


@dataclass(frozen=True)
class Joined:
    """Features that are joined to others.

    Attributes:
        channels: number of their channels.
        weight: their weight, where that of the others is 1.
    """

    channels: int
    weight: float


NOTHING_BESIDE = Joined(0, 0.0)


def join_features(
    pairs: Sequence[FeaturePair], weights: Sequence[float], device: Device
) -> FeaturePair:
    """Join several feature sets so that their squared differences are averaged.

    All sets have about the same total variance, so the weights mean the same whatever the numbers
    of channels, and the joined features keep that variance.

    Args:
        pairs: feature sets on one grid.
        weights: one weight > 0 per set; only their ratios count.
        device: device that holds the features.
    """
    if len(pairs) == 1:
        return pairs[0]
    stored = padded_channels(sum(pair.channels for pair in pairs))
    fixed, moving = (
        device.xp.zeros((*array.shape[:3], stored), np.float16)
        for array in (pairs[0].fixed, pairs[0].moving)
    )
    joined = FeaturePair(fixed, moving, pairs[0].fixed_weight, pairs[0].moving_weight, 0)
    for pair, weight in zip(pairs, weights, strict=True):
        joined = add_features(joined, pair, (weight / sum(weights)) ** 0.5, device)
    return joined


def add_features(
    joined: FeaturePair, more: FeaturePair, factor: float, device: Device
) -> FeaturePair:
    """Write more channels, times a factor, after those that joined features already have.

    Args:
        joined: features whose arrays have room for them; the arrays are changed.
        more: features on the same grid.
        factor: factor on the added channels.
        device: device that holds the features.

    Returns:
        All of these features; a voxel's weight is the larger of both.
    """
    for out, features in ((joined.fixed, more.fixed), (joined.moving, more.moving)):
        dinoreg_kernels.join_channels(
            features,
            more.channels,
            out,
            first_channel=joined.channels,
            factor=factor,
            threads=device.threads,
        )
    fixed, moving = (
        first if first is second else device.xp.maximum(first, second)
        for first, second in (
            (joined.fixed_weight, more.fixed_weight),
            (joined.moving_weight, more.moving_weight),
        )
    )
    return FeaturePair(joined.fixed, joined.moving, fixed, moving, joined.channels + more.channels)


def joins_in_place(config: DecidedConfig) -> bool:
    """Return whether an encoder's features are needed only as a part of the joined set."""
    return "joined" in config.feature_sets and "encoder" not in config.feature_sets
