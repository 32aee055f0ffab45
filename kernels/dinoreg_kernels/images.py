"""Resampling of images and labels, and MIND-SSC features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import _library, _structs
from ._arrays import (
    FEATURES,
    VOLUME,
    Array,
    Call,
    array_module,
    check_together,
    doubles,
    int3,
    is_device_array,
    point_map,
    pointer,
    workspace,
)

#: Images of squared differences in the library's mind.h.
_MIND_IMAGES = 6
#: The most memory that MIND-SSC takes on a GPU if it needs less.
_MIND_SLAB_BYTES = 256 << 20


def resample(
    image: Array,
    out_shape: Sequence[int],
    index_map: ArrayLike,
    *,
    field: Array | None = None,
    to_field: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
    samples: Sequence[int] = (1, 1, 1),
    outside: float | None = 0.0,
    inside: Array | None = None,
    threads: int = 0,
) -> Array:
    """Resample an image on another grid by linear interpolation.

    The output voxel with index i reads the input at
    ``index_map @ (i, 1) + matrix @ field(to_field @ (i, 1))``.

    Args:
        image: (z, y, x) float32.
        out_shape: Shape of the result.
        index_map: (3, 4), output index to input index.
        field: (z, y, x, 3) float32, interpolated linearly and clamped at its border, or None.
        to_field: (3, 4), output index to index of the field; None is the identity.
        matrix: (3, 3), the field's vectors to input index; None is the identity.
        samples: Points averaged for each output voxel, per axis, as the antialiasing filter.
        outside: Value where no point lies within the image's voxels. With None the image keeps the
            value at its border beyond it; this excludes `field` and `inside`.
        inside: (out_shape) float32, receives the share of points within the image.
        threads: CPU threads; 0 takes all.

    Returns:
        (out_shape) float32.
    """
    check_together(image=image, field=field, inside=inside)
    out = array_module(image).empty(tuple(out_shape), np.float32)
    args = _structs.ResampleArgs()
    args.input = pointer(image, np.float32, "image", VOLUME)
    args.in_shape = int3(image.shape, "image.shape")
    args.out = pointer(out, np.float32, "out", VOLUME)
    args.out_shape = int3(out_shape, "out_shape")
    if inside is not None:
        args.inside = pointer(inside, np.float32, "inside", out_shape)
    args.map = point_map(index_map, field, to_field, matrix)
    args.samples = int3(samples, "samples")
    args.outside = 0.0 if outside is None else outside
    args.extend = int(outside is None)
    _library.call("dr_image_resample", Call(image, threads).execution, args)
    return out


def coverage(
    inside: Array,
    in_shape: Sequence[int],
    index_map: ArrayLike,
    *,
    samples: Sequence[int] = (1, 1, 1),
    threads: int = 0,
) -> Array:
    """Compute the share of each output voxel that lies within an image of the given shape.

    Args:
        inside: (z, y, x) float32, receives the share of the points within the image, 0..1.
        in_shape: Shape of the image.
        index_map: See `resample`.
        samples: Points for each output voxel, per axis.
        threads: CPU threads; 0 takes all.

    Returns:
        `inside`.
    """
    args = _structs.ResampleArgs()
    args.in_shape = int3(in_shape, "in_shape")
    args.out_shape = int3(inside.shape, "inside.shape")
    args.inside = pointer(inside, np.float32, "inside", VOLUME)
    args.map = point_map(index_map)
    args.samples = int3(samples, "samples")
    _library.call("dr_image_resample", Call(inside, threads).execution, args)
    return inside


def resample_labels(
    labels: Array,
    out_shape: Sequence[int],
    index_map: ArrayLike,
    *,
    field: Array | None = None,
    to_field: ArrayLike | None = None,
    matrix: ArrayLike | None = None,
    nearest: bool = False,
    threads: int = 0,
) -> Array:
    """Resample labels on another grid.

    Args:
        labels: (z, y, x) int32.
        out_shape: Shape of the result.
        index_map: See `resample`, as for `field`, `to_field` and `matrix`.
        field: (z, y, x, 3) float32 or None.
        to_field: (3, 4) or None.
        matrix: (3, 3) or None.
        nearest: Whether to take the label of the nearest voxel. Otherwise the label with the
            largest sum of trilinear weights wins, which keeps borders smooth and invents no value.
        threads: CPU threads; 0 takes all.

    Returns:
        (out_shape) int32, 0 outside.
    """
    check_together(labels=labels, field=field)
    out = array_module(labels).empty(tuple(out_shape), np.int32)
    args = _structs.LabelsArgs()
    args.input = pointer(labels, np.int32, "labels", VOLUME)
    args.in_shape = int3(labels.shape, "labels.shape")
    args.out = pointer(out, np.int32, "out", VOLUME)
    args.out_shape = int3(out_shape, "out_shape")
    args.map = point_map(index_map, field, to_field, matrix)
    args.nearest = int(nearest)
    _library.call("dr_labels_resample", Call(labels, threads).execution, args)
    return out


def mind_ssc(
    image: Array,
    *,
    radius: Sequence[int],
    dilation: Sequence[int],
    pool: Sequence[int] = (1, 1, 1),
    channels: int = 16,
    scale: float = 1.0,
    structure: Array | None = None,
    threads: int = 0,
) -> Array:
    """Compute MIND-SSC features, averaged over blocks of `pool` voxels.

    Args:
        image: (z, y, x) float32.
        radius: Radius of the patch in voxels, z, y, x.
        dilation: Distance of the compared patches in voxels, z, y, x.
        pool: Voxels per block along each axis; the last block may hold fewer.
        channels: Stored channels, a multiple of 8; 12 are used and the rest are 0.
        scale: Factor on the features, which lie in 0..1.
        structure: float32 on the grid of the result, receives 0 where a block is flat (padding,
            clipped air) and its features carry no information, otherwise 1.
        threads: CPU threads; 0 takes all.

    Returns:
        (ceil(z / pool), ceil(y / pool), ceil(x / pool), channels) float16.
    """
    check_together(image=image, structure=structure)
    xp = array_module(image)
    checked = pointer(image, np.float32, "image", VOLUME)  # reports a wrong rank first
    args = _mind_sizes(image.shape, radius, dilation, pool, channels)
    args.image = checked
    shape = tuple(-(-n // p) for n, p in zip(image.shape, pool, strict=True))
    out = xp.empty((*shape, channels), np.float16)
    args.out = pointer(out, np.float16, "out", FEATURES)
    if structure is not None:
        args.structure = pointer(structure, np.float32, "structure", shape)
    args.scale = scale
    useful = mind_workspace_bytes(
        image.shape,
        radius=radius,
        dilation=dilation,
        pool=pool,
        on_gpu=is_device_array(image),
    )
    with workspace("dr_mind_workspace_bytes", args, xp, useful):
        _library.call("dr_mind_compute", Call(image, threads).execution, args)
    return out


def _mind_sizes(
    shape: Sequence[int],
    radius: Sequence[int],
    dilation: Sequence[int],
    pool: Sequence[int],
    channels: int,
) -> _structs.MindArgs:
    args = _structs.MindArgs()
    args.shape = int3(shape, "image.shape")
    args.radius = int3(radius, "radius")
    args.dilation = int3(dilation, "dilation")
    args.pool = int3(pool, "pool")
    args.channels = channels
    return args


def mind_workspace_bytes(
    shape: Sequence[int],
    *,
    radius: Sequence[int],
    dilation: Sequence[int],
    pool: Sequence[int],
    on_gpu: bool = False,
) -> int:
    """Predict the bytes that `mind_ssc` takes in addition to its arrays.

    On a GPU it takes more than it needs: the volume is processed in slabs of planes, and two
    launches for each slab would take longer than the work of small ones.
    """
    args = _mind_sizes(shape, radius, dilation, pool, 16)
    least = _library.workspace_bytes("dr_mind_workspace_bytes", args)
    if not on_gpu:
        return least
    whole = 4 * _MIND_IMAGES  # the patch sums of all planes
    for n, r, d in zip(shape, radius, dilation, strict=True):
        whole *= n + 2 * (r + d)
    return max(least, min(least + whole, _MIND_SLAB_BYTES))


def local_intensity(
    image: Array,
    out: Array,
    *,
    sigma_mm: Sequence[float],
    spacing_mm: Sequence[float],
    pool: Sequence[int] = (1, 1, 1),
    first_channel: int = 0,
    noise: float = 0.1,
    scale: float = 1.0,
    threads: int = 0,
) -> Array:
    """Compute intensities relative to their neighbourhood, with one channel for each window.

    A channel is ``scale * (block mean - window mean) / sqrt(window variance + noise^2)`` with
    Gaussian windows. The squared difference of two such channels is 2 (1 - local correlation), up
    to their weights.

    Args:
        image: (z, y, x) float32.
        out: (ceil(z / pool), ceil(y / pool), ceil(x / pool), channels) float16; receives channels
            ``first_channel ... first_channel + len(sigma_mm) - 1``.
        sigma_mm: Standard deviations of the windows.
        spacing_mm: Spacing of the image, z, y, x.
        pool: Voxels per block along each axis; the last block may hold fewer.
        first_channel: See `out`.
        noise: Structure weaker than this fades out; in units of the image.
        scale: Factor on the channels.
        threads: CPU threads; 0 takes all.

    Returns:
        `out`.
    """
    check_together(image=image, out=out)
    xp = array_module(image)
    checked = pointer(image, np.float32, "image", VOLUME)  # reports a wrong rank first
    args = _local_sizes(image.shape, pool, sigma_mm, spacing_mm, out.shape[-1])
    args.image = checked
    shape = tuple(-(-n // p) for n, p in zip(image.shape, pool, strict=True))
    args.noise, args.scale = noise, scale
    args.out = pointer(out, np.float16, "out", (*shape, args.channels))
    args.first_channel = first_channel
    with workspace("dr_local_workspace_bytes", args, xp):
        _library.call("dr_local_compute", Call(image, threads).execution, args)
    return out


def _local_sizes(
    shape: Sequence[int],
    pool: Sequence[int],
    sigma_mm: Sequence[float],
    spacing_mm: Sequence[float],
    channels: int,
) -> _structs.LocalArgs:
    args = _structs.LocalArgs()
    args.shape = int3(shape, "image.shape")
    args.pool = int3(pool, "pool")
    args.spacing_mm = doubles(spacing_mm, 3, "spacing_mm")
    args.sigma_mm = doubles(sigma_mm, len(sigma_mm), "sigma_mm")
    args.windows = len(sigma_mm)
    args.channels = channels
    return args


def local_workspace_bytes(
    shape: Sequence[int], pool: Sequence[int], sigma_mm: Sequence[float]
) -> int:
    """Predict the bytes that `local_intensity` needs in addition to its arrays."""
    args = _local_sizes(shape, pool, sigma_mm, (1.0, 1.0, 1.0), len(sigma_mm))
    args.noise = 1.0  # checked, but without influence on the size
    return _library.workspace_bytes("dr_local_workspace_bytes", args)
