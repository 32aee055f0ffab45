"""Synthetic image pairs with a known deformation, for warm-up and measurements.

Everything is a product of functions of one axis, so volumes of any size are made quickly.
"""

from __future__ import annotations

import numpy as np

from ..types import FloatArray, Geometry, Volume

_WAVES = 10
_PEAK_SHARE, _WAVELENGTH_SHARE = 0.035, 0.7


def phantom_pair(fixed: Geometry, moving: Geometry | None = None, seed: int = 1) -> list[Volume]:
    """Return a fixed and a moving image of one soft body; the fixed one is deformed.

    Args:
        fixed: grid of the fixed image.
        moving: grid of the moving image (default: that of the fixed image).
        seed: seed of the structures.

    Returns:
        Two volumes of values 0 to 1000 that agree after a sine shift of each axis by about 3.5 % of
        its length, without folds.
    """
    grids = (fixed, moving or fixed)
    axes = [[_unit_axis(n) for n in grid.shape_zyx] for grid in grids]
    deformed = [a + _shift(a) for a in axes[0]]
    return [
        Volume(_body(points, seed), grid, name=f"phantom {role}")
        for points, grid, role in zip((deformed, axes[1]), grids, ("fixed", "moving"), strict=True)
    ]


def phantom_grid(shape_zyx: tuple[int, int, int], spacing_mm: float) -> Geometry:
    """Return an axial grid of cubic voxels centred on the origin."""
    x, y, z = (-(n - 1) / 2 * spacing_mm for n in shape_zyx[::-1])
    return Geometry(shape_zyx, (spacing_mm,) * 3, (x, y, z), np.eye(3))


def _unit_axis(count: int) -> FloatArray:
    """Return the voxel centres along an axis of the box from -1 to 1."""
    return np.asarray((np.arange(count) + 0.5) / count * 2 - 1)


def _shift(axis: FloatArray) -> FloatArray:
    return np.asarray(2 * _PEAK_SHARE * np.sin(2 * np.pi * axis / (2 * _WAVELENGTH_SHARE)))


def _body(axes: list[FloatArray], seed: int) -> np.ndarray:
    """Return an ellipsoid of waves, (D, H, W) float32."""
    rng = np.random.default_rng(seed)
    z, y, x = (a.astype(np.float32) for a in axes)
    value = np.full((z.size, y.size, x.size), 0.5, np.float32)
    for _ in range(_WAVES):
        waves = rng.uniform(1.5, 12, 3), rng.uniform(0, 2 * np.pi, 3)
        a, b, c = (
            np.sin(wave * axis + phase) for axis, wave, phase in zip((z, y, x), *waves, strict=True)
        )
        value += (0.16 * a)[:, None, None] * (b[:, None] * c)
    radius = np.sqrt((z**2)[:, None, None] + ((y**2)[:, None] + x**2))
    np.clip(value, 0.05, 1.0, out=value)
    value *= np.clip((0.85 - radius) / 0.04, 0, 1)
    value *= 1000
    return value
