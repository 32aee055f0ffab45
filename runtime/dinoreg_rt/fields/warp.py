"""Images and labels resampled through transforms, and chains as one displacement.

A chain is listed in the order in which points pass through it, from the fixed image's space to the
moving image's: ``chain[0]`` first. Images are pulled back: the output voxel at ``p`` shows the
input at ``chain(p)``. To go the other way, invert the chain first (`inversion`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..device.choice import Device, choose_device, kernel_errors
from ..errors import InputError
from ..geometry import (
    centres_within,
    compose_affines,
    index_map,
    index_to_lps,
    inside_grid,
    kernel_affine,
    lps_to_index,
    same_grid,
    slab_affine,
    z_slabs,
)
from ..types import AffineTransform, Array, DisplacementField, Geometry, LabelMap, Transform, Volume

Mapping: TypeAlias = Transform | Sequence[Transform]


@kernel_errors()
def warp_volume(
    volume: Volume,
    transform: Mapping,
    grid: Geometry | None = None,
    device: Device | None = None,
    *,
    download: bool = True,
    outside: float | None = None,
    known: bool = False,
) -> Volume:
    """Pull `volume` back through `transform` with linear interpolation.

    Args:
        volume: moving image.
        transform: map from points of `grid`'s space to points of the volume, one transform or a
            chain. As in ITK, a displacement field moves nothing outside its grid.
        grid: grid of the result (default: that of `transform`, if it is a displacement field).
        device: device that computes (default: the CPU).
        download: return a NumPy array, not one on the device.
        outside: value outside the volume (default: its smallest value if negative, else 0, which
            takes a pass over the volume).
        known: the displacement field holds no NaN, so skip the search for any.

    Returns:
        float32 values on `grid`.

    Raises:
        InputError: `grid` is missing and `transform` has none.
    """
    device, grid = device or choose_device("cpu", 0)[0], grid or _own_grid(transform)
    outside = min(0.0, float(volume.array.min())) if outside is None else outside
    with device.active():
        path = _path(transform, grid, volume.geometry, device, known=known)
        voxels = device.upload(volume.array, np.float32)
        settings: dict[str, Any] = {"outside": outside, "threads": device.threads}
        resample = partial(dinoreg_kernels.resample, voxels, grid.shape_zyx, **settings)
        array = path.follow(resample, outside)
    values = device.download(array) if download else array
    return Volume(values, grid, volume.pixel_type, volume.name)


@kernel_errors()
def warp_labels(
    labels: LabelMap,
    transform: Mapping,
    grid: Geometry | None = None,
    *,
    nearest: bool = False,
    device: Device | None = None,
) -> LabelMap:
    """Pull labels back through `transform`; 0 outside.

    The label with the largest sum of linear weights wins, so borders stay smooth and no label is
    invented (SimpleITK's ``sitkLabelLinear``); with `nearest` the nearest voxel's label wins
    (``sitkNearestNeighbor``). Other arguments as in `warp_volume`.
    """
    device, grid = device or choose_device("cpu", 0)[0], grid or _own_grid(transform)
    with device.active():
        path = _path(transform, grid, labels.geometry, device)
        voxels = device.upload(labels.array, np.int32)
        settings: dict[str, Any] = {"nearest": nearest, "threads": device.threads}
        resample = partial(dinoreg_kernels.resample_labels, voxels, grid.shape_zyx, **settings)
        array = path.follow(resample, 0)
    return LabelMap(device.download(array), grid, labels.pixel_type, labels.name)


@kernel_errors()
def chain_to_displacement(transform: Mapping, grid: Geometry) -> DisplacementField:
    """Return the whole mapping as one displacement on the voxel centres of `grid`."""
    from ..io import transform_points

    chain = _as_chain(transform)
    only = chain[0] if len(chain) == 1 else None
    if isinstance(only, DisplacementField) and same_grid(only.geometry, grid):
        return DisplacementField(np.asarray(only.vectors_mm), grid)
    before, rest = _leading_affines(chain)
    here = index_to_lps(grid)
    vectors = np.empty((*grid.shape_zyx, 3), np.float32)
    for part in z_slabs(grid.shape_zyx):
        moved = slab_affine(compose_affines(before, here), grid, part)
        moved = transform_points(rest, moved) - slab_affine(here, grid, part)
        vectors[part] = moved.reshape(vectors[part].shape)
    return DisplacementField(vectors, grid)


@dataclass(frozen=True, eq=False)
class _Path:
    """A mapping as the kernels take it.

    Attributes:
        arguments: arguments of `dinoreg_kernels.resample`.
        unknown: (D, H, W) bool, voxels at which the field holds NaN, as an inverse can; None
            without any.
        beyond: (D, H, W) bool, voxels outside the field's grid; None without any. The kernels
            continue a field there, while ITK and this package move nothing.
    """

    arguments: dict[str, Any]
    unknown: Array | None = None
    beyond: Array | None = None

    def follow(self, resample: Callable[..., Array], outside: float) -> Array:
        """Return the result of `resample`; `outside` where the mapping is unknown."""
        array = resample(**self.arguments)
        if self.beyond is not None:
            array[self.beyond] = resample(index_map=self.arguments["index_map"])[self.beyond]
        if self.unknown is not None:
            array[self.unknown] = outside
        return array


def _path(
    transform: Mapping, grid: Geometry, onto: Geometry, device: Device, *, known: bool = False
) -> _Path:
    """Map indices of `grid` to indices of `onto` with at most one displacement field."""
    before, field, after = _as_one_field(_as_chain(transform), grid)
    to_index = compose_affines(lps_to_index(onto), after)
    affine = compose_affines(to_index, compose_affines(before, index_to_lps(grid)))
    arguments: dict[str, Any] = {"index_map": kernel_affine(affine)}
    if field is None:
        return _Path(arguments)
    vectors, unknown = device.upload(field.vectors_mm, np.float32), None
    arguments["matrix"] = np.ascontiguousarray(to_index.matrix[::-1])
    if same_grid(field.geometry, grid) and before.is_identity():
        # On the field's own voxels nothing is interpolated, so NaN must not reach neighbours.
        if not known and not bool(device.xp.isfinite(vectors.max())):
            unknown = device.xp.isnan(vectors).any(axis=-1)
            vectors = device.xp.nan_to_num(vectors)
    else:
        arguments["to_field"] = kernel_affine(index_map(grid, field.geometry, before))
    beyond = None
    if not centres_within(grid, field.geometry, before):
        beyond = device.upload(_beyond(grid, field.geometry, before), np.bool_)
    return _Path(arguments | {"field": vectors}, unknown, beyond)


def _beyond(grid: Geometry, box: Geometry, affine: AffineTransform) -> NDArray[np.bool_]:
    """Return the voxels of `grid`, (D, H, W), whose centres `affine` takes out of `box`."""
    to_box = index_map(grid, box, affine)
    beyond = np.empty(grid.shape_zyx, np.bool_)
    for part in z_slabs(grid.shape_zyx):
        index = slab_affine(to_box, grid, part)
        beyond[part] = ~inside_grid(box.shape_zyx, index).reshape(beyond[part].shape)
    return beyond


def _as_one_field(
    chain: Sequence[Transform], grid: Geometry
) -> tuple[AffineTransform, DisplacementField | None, AffineTransform]:
    """Reduce the chain on the points of `grid` to affine, displacement, affine."""
    identity = AffineTransform.identity()
    before, rest = _leading_affines(chain)
    if not rest:
        return before, None, identity
    field, others = rest[0], rest[1:]
    affines = [step for step in others if isinstance(step, AffineTransform)]
    if isinstance(field, AffineTransform) or len(affines) < len(others):
        return identity, chain_to_displacement(chain, grid), identity
    return before, field, _composed(affines)


def _leading_affines(
    chain: Sequence[Transform],
) -> tuple[AffineTransform, tuple[Transform, ...]]:
    """Return the leading affine transforms of a chain as one, and the rest."""
    before = AffineTransform.identity()
    for position, step in enumerate(chain):
        if not isinstance(step, AffineTransform):
            return before, tuple(chain[position:])
        before = compose_affines(step, before)
    return before, ()


def _composed(affines: Sequence[AffineTransform]) -> AffineTransform:
    return reduce(
        lambda inner, outer: compose_affines(outer, inner), affines, AffineTransform.identity()
    )


def _as_chain(transform: Mapping) -> tuple[Transform, ...]:
    if isinstance(transform, AffineTransform | DisplacementField):
        return (transform,)
    return tuple(transform)


def _own_grid(transform: Mapping) -> Geometry:
    if isinstance(transform, DisplacementField):
        return transform.geometry
    raise InputError("a chain or an affine transform has no grid of its own; give `grid`")
