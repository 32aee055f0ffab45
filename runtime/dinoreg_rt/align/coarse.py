"""Coarse images for trying every position: cells of about 10 mm with MIND-SSC and the body.

A "cell" is a voxel of the coarse alignment grid. Images and features stay on the device. Only the
body is found on the host, from one bit for each voxel: labelling pieces is sequential.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..device.choice import Device
from ..device.unread import read_masks
from ..geometry import (
    compose_affines,
    corners_lps_mm,
)
from ..images.body import body_mask, body_of, bounding_box, implausible, tissue
from ..images.intensity import window
from ..images.pair import Pair, PairImage, side_by_side
from ..images.resample import resample_volume, weight_on, weights_on
from ..types import AffineTransform, Array, FloatArray, Geometry, Volume
from .boxes import Box, boxed, moved_box, wider

#: Voxels of a coarse image per cell, along each axis.
POOL = 2
#: Channels of MIND-SSC in use; stored features are padded.
CHANNELS = 12
_STORED_CHANNELS = 16
#: Radius of the patches of MIND-SSC, and distance of those compared, in voxels.
_PATCH_RADIUS, _PATCH_DISTANCE = 1, 2
#: Cells around a box that its features depend on.
_PATCH_CELLS = -(-(_PATCH_RADIUS + _PATCH_DISTANCE) // POOL)
#: Largest edge of a cell that still resolves organs; small images get smaller cells.
_LARGEST_CELL_MM = 12.0
_CELLS_ACROSS = 24
#: Largest number of cells of an image; larger images get larger cells.
_MOST_CELLS = 150_000
#: Margin of air around the body, in cells: the silhouette needs it.
_MARGIN_CELLS = 3


@dataclass(frozen=True, eq=False)
class CoarseImage:
    """An image with `POOL` voxels per cell and axis, cropped around its body.

    Attributes:
        image: windowed intensities, 0..1, on the device.
        seen: share of each voxel inside the field of view and the user's mask, 0..1, beside it.
        body: the same share for voxels of the body, 0 elsewhere.
        inside: whether more than half of a voxel is body, on the host.
        cells: grid of cubic cells along the fixed image's axes.
        body_box: the part of `cells` that the body reaches.
        doubt: reason why the body cannot serve as a mask; None if it can.
    """

    image: Volume
    seen: Array
    body: Array
    inside: NDArray[np.bool_]
    cells: Geometry
    body_box: Box
    doubt: str | None

    def mask(self) -> Volume:
        """Return the body with a margin as 0 or 1, on the host; outside its box it is 0."""
        grid = self.image.geometry
        return Volume(body_mask(self.inside, grid.spacing_mm[0]), grid)

    @functools.cached_property
    def air(self) -> float:
        """The smallest intensity."""
        return float(self.image.array.min())


@dataclass(frozen=True, eq=False)
class CellFeatures:
    """MIND-SSC of a coarse image on a grid of cells.

    Attributes:
        mind: (d, h, w, stored) float16, of which `CHANNELS` are used.
        weight: (d, h, w) float32, 0 outside the body and where the image is flat.
    """

    mind: Array
    weight: Array

    def part(self, box: Box) -> CellFeatures:
        """Return the cells of a box."""
        return CellFeatures(self.mind[box], self.weight[box])


@dataclass(frozen=True, eq=False)
class View:
    """The moving image as the fixed cells see it through a transform.

    Attributes:
        cells: grid of the fixed cells that the moving image can reach.
        box: position of `cells` in the grid of all fixed cells.
        margin: width of the margin around `cells`, in cells.
        features: features of the moving image on `cells` and the margin.
    """

    cells: Geometry
    box: Box
    margin: int
    features: CellFeatures


def coarse_pair(pair: Pair, device: Device) -> tuple[CoarseImage, CoarseImage]:
    """Return both images on cells of the same size along the fixed image's axes."""
    fixed, moving = (image.volume.geometry for image in pair)
    size = cell_size_mm(fixed, moving)

    def made(image: PairImage, share: Device) -> CoarseImage:
        return image.kept.once(
            "coarse image", size, lambda: coarse_image(image, fixed.direction, size, share)
        )

    first, second = side_by_side(made, pair, device)
    return first, second


def cell_size_mm(fixed: Geometry, moving: Geometry) -> float:
    """Return the edge of a cell for a pair of images."""
    boxes = [np.multiply(g.shape_xyz, g.spacing_mm) for g in (fixed, moving)]
    size = min(_LARGEST_CELL_MM, *(float(box.max()) / _CELLS_ACROSS for box in boxes))
    return max(size, *(math.cbrt(float(box.prod()) / _MOST_CELLS) for box in boxes))


def coarse_image(scan: PairImage, axes: FloatArray, cell_mm: float, device: Device) -> CoarseImage:
    """Return `scan`, placed as its header says, on cells along `axes` (columns, LPS directions)."""
    volume, here = scan.volume, AffineTransform.identity()
    cells = _covering_grid(volume.geometry, axes, cell_mm)
    grid = fine_grid(cells)
    # Beyond the image is air here, unlike where voxels are matched: fields of view that end alike
    # are a hint. When the border voxels were continued instead, one of seven MR-CT pairs was
    # misaligned.
    image = resample_volume(volume, grid, here, device, outside=scan.lowest)
    image = window(image, *scan.window)
    seen = weight_on(grid, volume, None, here, device)
    if scan.mask is not None:
        seen = seen * weight_on(grid, volume, scan.mask, here, device)
    found, in_view = read_masks([tissue(image, seen), seen > 0.5], device)
    body = body_of(found)
    doubt = implausible(body, in_view)
    if not body.any():  # nothing stands out, so everything seen counts
        (body,) = read_masks([seen > 0], device)
    by_cell = body.reshape([part for n in cells.shape_zyx for part in (n, POOL)]).any((1, 3, 5))
    box = bounding_box(by_cell, _MARGIN_CELLS)
    cells, body_box = boxed(cells, box), bounding_box(by_cell[box], 0)
    fine = tuple(slice(POOL * b.start, POOL * b.stop) for b in box)
    xp, seen = device.xp, device.xp.ascontiguousarray(seen[fine])
    return CoarseImage(
        Volume(xp.ascontiguousarray(image[fine]), fine_grid(cells)),
        seen,
        xp.where(device.upload(body[fine], np.bool_), seen, np.float32(0)),
        (body & in_view)[fine],
        cells,
        body_box,
        doubt,
    )


def cell_features(
    coarse: CoarseImage, cells: Geometry, affine: AffineTransform, device: Device
) -> CellFeatures:
    """Sample MIND-SSC on the grid `cells` through `affine` (points of the grid to the image's)."""
    mind, structure = _mind(coarse, cells, affine, device)
    (body,) = weights_on(cells, coarse.image, (coarse.body,), affine, device)
    return CellFeatures(mind, structure * body)


def part_features(
    coarse: CoarseImage, cells: Geometry, box: Box, affine: AffineTransform, device: Device
) -> tuple[CellFeatures, Array, Array]:
    """Sample MIND-SSC on a box of `cells` and the silhouette on all of them.

    MIND-SSC is that of `cell_features`, except that the floor of its variance is that of the box.

    Returns:
        The features of the box, and the share of each of `cells` in the body and in the field of
        view, (d, h, w) float32.
    """
    wide = wider(box, _PATCH_CELLS, cells)
    inner = moved_box(box, [part.start for part in wide])
    mind, structure = _mind(coarse, boxed(cells, wide), affine, device)
    body, seen = weights_on(cells, coarse.image, (coarse.body, coarse.seen), affine, device)
    return CellFeatures(mind[inner], structure[inner] * body[box]), body, seen


def _mind(
    coarse: CoarseImage, cells: Geometry, affine: AffineTransform, device: Device
) -> tuple[Array, Array]:
    """Return MIND-SSC and whether a cell shows any structure, 0 or 1."""
    image = resample_volume(coarse.image, fine_grid(cells), affine, device, outside=coarse.air)
    structure = device.xp.empty(cells.shape_zyx, np.float32)
    mind = dinoreg_kernels.mind_ssc(
        image,
        radius=(_PATCH_RADIUS,) * 3,
        dilation=(_PATCH_DISTANCE,) * 3,
        pool=(POOL,) * 3,
        channels=_STORED_CHANNELS,
        structure=structure,
        threads=device.threads,
    )
    return mind, structure


def posed_grid(cells: Geometry, pose: FloatArray) -> tuple[Geometry, AffineTransform]:
    """Return a grid around 0 that covers `cells` through a pose, and the map of its points.

    Args:
        cells: grid of the moving image.
        pose: (3, 3), matrix from the grid's points to the moving image's, such as a scaling.
    """
    axes = cells.direction
    reach = np.abs(axes.T @ np.linalg.inv(pose) @ axes) @ np.asarray(cells.shape_xyz, np.float64)
    x, y, z = (max(1, math.ceil(n - 1e-6)) for n in reach)
    first = axes @ (np.array([x, y, z], np.float64) - 1) / 2 * cells.spacing_mm[0]
    middle = corners_lps_mm(cells).mean(axis=0)
    grid = Geometry((z, y, x), cells.spacing_mm, tuple(-first), axes)
    return grid, AffineTransform(pose, middle)


def shifted(affine: AffineTransform, shift_mm: FloatArray) -> AffineTransform:
    """Return `affine` preceded by a shift of its points."""
    return compose_affines(affine, AffineTransform(np.eye(3), shift_mm))


def fine_grid(cells: Geometry) -> Geometry:
    """Return the grid with `POOL` voxels per cell along each axis."""
    cell_mm = cells.spacing_mm[0]
    offset = cells.direction @ np.full(3, (POOL - 1) / (2 * POOL) * cell_mm)
    z, y, x = (n * POOL for n in cells.shape_zyx)
    origin = tuple(np.asarray(cells.origin_mm) - offset)
    return Geometry((z, y, x), (cell_mm / POOL,) * 3, origin, cells.direction)


def _covering_grid(grid: Geometry, axes: FloatArray, cell_mm: float) -> Geometry:
    corners = corners_lps_mm(grid) @ axes
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    x, y, z = (max(1, math.ceil(n / cell_mm - 1e-6)) for n in upper - lower)
    first = (lower + upper) / 2 - (np.array([x, y, z]) - 1) / 2 * cell_mm
    return Geometry((z, y, x), (cell_mm,) * 3, tuple(axes @ first), axes)
