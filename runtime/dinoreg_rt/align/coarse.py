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
from ..geometry import compose_affines, corners_lps_mm, shifted_grid
from ..images.body import body_mask, body_of, bounding_box, implausible, tissue
from ..images.intensity import window
from ..images.pair import Pair, PairImage, side_by_side
from ..images.resample import resample_volume, weight_on
from ..types import AffineTransform, Array, FloatArray, Geometry, Volume

#: Voxels of a coarse image per cell, along each axis.
POOL = 2
#: Channels of MIND-SSC in use; stored features are padded.
CHANNELS = 12
_STORED_CHANNELS = 16
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
        doubt: reason why the body cannot serve as a mask; None if it can.
    """

    image: Volume
    seen: Array
    body: Array
    inside: NDArray[np.bool_]
    cells: Geometry
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
    """A coarse image sampled on a grid of cells.

    Attributes:
        mind: MIND-SSC, (d, h, w, stored) float16, of which `CHANNELS` are used.
        weight: (d, h, w) float32, 0 outside the body and where the image is flat.
        body: share of each cell in the body, (d, h, w) float32.
        seen: share of each cell in the field of view, (d, h, w) float32.
    """

    mind: Array
    weight: Array
    body: Array
    seen: Array

    def part(self, box: tuple[slice, slice, slice]) -> CellFeatures:
        """Return the cells of a box."""
        return CellFeatures(self.mind[box], self.weight[box], self.body[box], self.seen[box])


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
    box: tuple[slice, slice, slice]
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
    found, in_view = _on_host([tissue(image, seen), seen > 0.5], device)
    body = body_of(found)
    doubt = implausible(body, in_view)
    if not body.any():  # nothing stands out, so everything seen counts
        (body,) = _on_host([seen > 0], device)
    by_cell = body.reshape([part for n in cells.shape_zyx for part in (n, POOL)]).any((1, 3, 5))
    box = bounding_box(by_cell, _MARGIN_CELLS)
    cells = boxed(cells, box)
    fine = tuple(slice(POOL * b.start, POOL * b.stop) for b in box)
    xp, seen = device.xp, device.xp.ascontiguousarray(seen[fine])
    return CoarseImage(
        Volume(xp.ascontiguousarray(image[fine]), fine_grid(cells)),
        seen,
        xp.where(device.upload(body[fine], np.bool_), seen, np.float32(0)),
        (body & in_view)[fine],
        cells,
        doubt,
    )


def _on_host(masks: list[Array], device: Device) -> list[NDArray[np.bool_]]:
    """Return bool arrays of one shape as NumPy arrays; a GPU sends one bit for each voxel."""
    if device.kind == "cpu":
        return masks
    xp, shape = device.xp, (len(masks), *masks[0].shape)
    bits = device.download(xp.packbits(xp.stack(masks)))
    return list(np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool))


def cell_features(
    coarse: CoarseImage, cells: Geometry, affine: AffineTransform, device: Device
) -> CellFeatures:
    """Sample `coarse` on the grid `cells` through `affine` (points of the grid to the image's)."""
    image = resample_volume(coarse.image, fine_grid(cells), affine, device, outside=coarse.air)
    structure = device.xp.empty(cells.shape_zyx, np.float32)
    mind = dinoreg_kernels.mind_ssc(
        image,
        radius=(1, 1, 1),
        dilation=(2, 2, 2),
        pool=(POOL,) * 3,
        channels=_STORED_CHANNELS,
        structure=structure,
        threads=device.threads,
    )
    body = weight_on(cells, coarse.image, coarse.body, affine, device)
    seen = weight_on(cells, coarse.image, coarse.seen, affine, device)
    return CellFeatures(mind, structure * body, body, seen)


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


def boxed(cells: Geometry, box: tuple[slice, slice, slice]) -> Geometry:
    """Return the part of a grid that lies in a box of its cells."""
    z, y, x = (b.stop - b.start for b in box)
    return shifted_grid(cells, (box[0].start, box[1].start, box[2].start), (z, y, x))


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
