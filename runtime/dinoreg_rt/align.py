"""Initial alignment: where the search begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .geometry import centre_lps_mm, index_to_lps, transform_points
from .types import AffineTransform, Array, FloatArray, Volume


def initial_alignment(
    fixed: Volume,
    moving: Volume,
    method: str,
    windows: tuple[tuple[float, float], tuple[float, float]],
    masks: tuple[Array | None, Array | None] = (None, None),
) -> tuple[AffineTransform, str]:
    """Fixed points to moving points before any image is compared, and how it was found.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        method: ``none`` (positions as in the headers), ``centre`` (middles of the image boxes),
            ``moments`` (centres of mass), or a transform file (``.tfm``, ``.h5``, ``.txt``, ANTs
            ``.mat``) that maps fixed points to moving points.
        windows: intensities that count as 0 and 1, fixed and moving; ``moments`` weighs voxels by
            them.
        masks: (D, H, W) of each image, or None; ``moments`` looks at voxels that are not 0.

    Raises:
        InputError: a transform file that cannot be read or is not affine.
    """
    if method == "none":
        return AffineTransform.identity(), "none: positions as in the headers"
    if method == "centre":
        shift = centre_lps_mm(moving.geometry) - centre_lps_mm(fixed.geometry)
        return _translation(shift), f"centre of the image boxes: {_text(shift)}"
    if method == "moments":
        fixed_centre = centre_of_mass(fixed, windows[0], masks[0])
        shift = centre_of_mass(moving, windows[1], masks[1]) - fixed_centre
        return _translation(shift), f"centres of mass: {_text(shift)}"
    from .io import read_initial

    return read_initial(Path(method)), f"from {method}"


def centre_of_mass(
    volume: Volume, window: tuple[float, float], mask: Array | None = None
) -> FloatArray:
    """LPS position of the centre of the windowed intensities, inside `mask` if there is one."""
    array = np.asarray(volume.array)
    low, high = window
    scaled = np.clip(array, low, high) - np.float32(low)
    if mask is not None:
        scaled *= mask != 0
    total = float(scaled.sum(dtype=np.float64))
    if total <= 0:
        return centre_lps_mm(volume.geometry)
    planes = scaled.sum(axis=(1, 2), dtype=np.float64)
    rows = scaled.sum(axis=(0, 2), dtype=np.float64)
    columns = scaled.sum(axis=(0, 1), dtype=np.float64)
    index_xyz = [
        float(sums @ np.arange(sums.size)) / float(sums.sum()) for sums in (columns, rows, planes)
    ]
    return np.asarray(transform_points(index_to_lps(volume.geometry), np.array([index_xyz]))[0])


def _translation(shift_mm: FloatArray) -> AffineTransform:
    return AffineTransform(np.eye(3), shift_mm)


def _text(shift_mm: FloatArray) -> str:
    return "shift of ({:.1f}, {:.1f}, {:.1f}) mm, LPS".format(*shift_mm)
