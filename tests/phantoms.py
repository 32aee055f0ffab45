"""Inputs with a known answer."""

from __future__ import annotations

import numpy as np


def waves(shape, shift=(0, 0, 0), *, channels=8, seed=1, wavelengths=(7.0, 20.0), count=6):
    """Sums of sines, (shape, channels): the same continuous function at p - shift, exactly."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) - shift
    direction = rng.normal(size=(channels, count, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    wave = 2 * np.pi * direction / rng.uniform(*wavelengths, (channels, count, 1))
    phase = rng.uniform(0, 2 * np.pi, (channels, count))
    amplitude = 1 / np.sqrt(2 * count)
    return amplitude * np.sin(np.tensordot(grid, wave, (3, 2)) + phase).sum(-1)
