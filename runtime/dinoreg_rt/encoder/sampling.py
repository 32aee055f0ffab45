"""Interpolation of the encoded slices' projected tokens to features on the control grid."""

from __future__ import annotations

import numpy as np

import dinoreg_kernels

from ..device.choice import Device
from ..geometry import index_map, kernel_affine
from ..images.resample import antialiasing_samples
from ..types import AffineTransform, Array, FloatArray, Geometry
from .pca import ProjectedTokens
from .planes import slice_axis
from .slice_stack import SliceStack


def places(encoded: tuple[int, ...], count: int) -> FloatArray:
    """Find where each of `count` slices lies among the encoded ones.

    Returns:
        (count, 2): the position in `encoded` of the slice before, and the share of the next one.
        Slices beyond the first or the last encoded one take that one.
    """
    slices, index = np.asarray(encoded), np.arange(count)
    before = np.clip(np.searchsorted(slices, index, side="right") - 1, 0, len(slices) - 1)
    after = np.minimum(before + 1, len(slices) - 1)
    gap = np.maximum(slices[after] - slices[before], 1)
    share = np.clip((index - slices[before]) / gap, 0, 1) * (after > before)
    return np.column_stack([before, share])


def sample_features(
    projected: ProjectedTokens,
    stack: SliceStack,
    grid: Geometry,
    affine: AffineTransform,
    out: Array,
    device: Device,
    *,
    factor: float = 1.0,
    first_channel: int = 0,
) -> None:
    """Interpolate the features of a stack's encoded slices linearly onto `grid`.

    Args:
        projected: tokens of ``stack.encoded`` on `device`.
        stack: gives the positions of the slices and tokens.
        grid: a grid in the fixed image's space.
        affine: maps fixed points to points of the stack's image.
        out: (d, h, w, channels) float16 on `grid`.
        device: where `out` lives.
        factor: factor on the features.
        first_channel: the first channel of `out` that is written; as many follow as the tokens have
            numbers and as there is room for.
    """
    matrix = kernel_affine(index_map(grid, stack.tokens, affine))
    slices, rows, columns = stack.tokens.shape_zyx
    dinoreg_kernels.sample_tokens(
        projected.values,
        (rows, columns),
        device.upload(places(stack.encoded, slices), np.float32),
        matrix,
        out,
        offsets=device.upload(projected.offsets, np.float32),
        samples=antialiasing_samples(matrix),
        factor=factor,
        first_channel=first_channel,
        threads=device.threads,
    )


def tissue_weight(
    stack: SliceStack, grid: Geometry, affine: AffineTransform, device: Device
) -> Array:
    """Return 1 where a voxel of `grid` holds tissue in a slice that can meet the other image.

    Tissue is anything above the window's dark end; elsewhere the weight is 0. As with MIND-SSC,
    flat background looks alike everywhere and must not count as a match; slices that cannot meet
    the other image are not encoded.

    Returns:
        (d, h, w) float32 on `device`.
    """
    volume = stack.volume
    axis, falling = slice_axis(volume.geometry, stack.plane)
    shape = volume.geometry.shape_zyx
    first, last = [0, 0, 0], [n - 1 for n in shape]
    across = [shape[axis] - 1 - i for i in reversed(stack.needed)] if falling else stack.needed
    first[axis], last[axis] = across
    matrix = kernel_affine(index_map(grid, volume.geometry, affine))
    return dinoreg_kernels.cover_tissue(
        device.upload(volume.array, np.float32),
        grid.shape_zyx,
        matrix,
        above=stack.window[0],
        box=(first, last),
        samples=antialiasing_samples(matrix),
        threads=device.threads,
    )
